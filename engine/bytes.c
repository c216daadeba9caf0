#include "bytes.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

int kg_bytes_append(kg_bytes *out, const void *bytes, size_t n, kg_error *err)
{
  size_t size;
  if (!n) return KG_OK;
  if (!kg_add_size(out->size, n, &size) || !kg_grow((void **)&out->data, &out->capacity, size, 1))
    return kg_fail_memory(err, n, "bytes to save");
  memcpy(out->data + out->size, bytes, n);
  out->size = size;
  return KG_OK;
}

const char *kg_take(kg_string *from, uint64_t n)
{
  if (n > from->size) return NULL;
  const char *bytes = from->data;
  from->data += n; /* bounded: just checked */
  from->size -= (size_t)n;
  return bytes;
}

bool kg_take_into(kg_string *from, void *out, size_t n)
{
  const char *bytes = kg_take(from, n);
  if (bytes) memcpy(out, bytes, n);
  return bytes != NULL;
}
