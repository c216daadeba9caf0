#include "backend.h"

#include <string.h>

#include "error.h"

int kg_backend_find(const char *device, const kg_backend **out, kg_error *err)
{
  if (!strcmp(device, "cpu") || !strcmp(device, "auto")) {
    *out = &kg_backend_cpu;
    return KG_OK;
  }
  if (!strcmp(device, "reference")) {
    *out = &kg_backend_reference;
    return KG_OK;
  }
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_UNSUPPORTED, "device %s is not known here; there are: auto, cpu, reference",
                 kg_quote(quoted, device, strlen(device)));
}
