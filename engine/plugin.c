#define _GNU_SOURCE /* dladdr */
#include "plugin.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "alloc.h"
#include "error.h"

static const kg_plugin_host host = {
    .alloc = kg_alloc,
    .alloc_array = kg_alloc_array,
    .realloc_array = kg_realloc_array,
    .free = kg_free,
    .plan_op_count = kg_plan_op_count,
    .plan_op = kg_plan_op,
    .plan_value_count = kg_plan_value_count,
    .plan_value = kg_plan_value,
    .plan_weight_count = kg_plan_weight_count,
    .plan_weight_at = kg_plan_weight_at,
    .plan_logits = kg_plan_logits,
    .plan_vocab_size = kg_plan_vocab_size,
    .plan_layer_count = kg_plan_layer_count,
    .plan_layer = kg_plan_layer,
    .plan_group_count = kg_plan_group_count,
    .plan_group_window = kg_plan_group_window,
    .plan_tail = kg_plan_tail,
    .plan_state_size = kg_plan_state_size,
    .plan_residual = kg_plan_residual,
    .plan_gguf = kg_plan_gguf,
    .release_pages = kg_gguf_release_pages,
    .batch_check = kg_batch_check,
    .batch_check_states = kg_batch_check_states,
    .kv_rows_check = kg_kv_rows_check,
    .adapter_rank = kg_adapter_rank,
    .adapter_part_of = kg_adapter_part_of,
    .adapter_attach = kg_adapter_attach,
    .adapter_detach = kg_adapter_detach,
    .host_buffer_new = kg_host_buffer_new,
    .buffer_unref = kg_buffer_unref,
    .host_ops = &kg_host_tensor_ops,
};

/* The folder of the library or program that this code is part of, without the slash at its end. */
static bool own_folder(char folder[PATH_MAX])
{
  Dl_info info;
  char path[PATH_MAX];
  if (!dladdr(&host, &info) || !info.dli_fname) return false;
  const bool is_path = strchr(info.dli_fname, '/') != NULL; /* the program's name as it was typed may be none */
  const char *name = is_path ? info.dli_fname : "/proc/self/exe";
  const ssize_t n = readlink(name, path, sizeof path - 1);
  if (n > 0)
    path[n] = 0;
  else if (is_path && strlen(name) < sizeof path)
    strcpy(path, name);
  else
    return false;
  if (path[0] != '/' && is_path) { /* a link beside its target, or a relative name */
    if (strlen(name) >= sizeof path) return false;
    strcpy(path, name);
  }
  char *slash = strrchr(path, '/');
  if (!slash) return false;
  *slash = 0;
  strcpy(folder, path);
  return true;
}

static int open_file(const char *path, const kg_plugin **out, kg_error *err)
{
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return kg_fail(err, KG_ERR_DEVICE, "%s", dlerror());
  kg_plugin_entry entry;
  void *symbol = dlsym(library, KG_PLUGIN_ENTRY);
  if (!symbol) return kg_fail(err, KG_ERR_DEVICE, "%s is no plug-in of kigo", path);
  memcpy(&entry, &symbol, sizeof entry); /* ISO C knows no conversion between the two kinds of pointers */
  const kg_plugin *plugin = entry(&host);
  if (plugin->abi != KG_PLUGIN_ABI || plugin->page != KG_PAGE)
    return kg_fail(err, KG_ERR_DEVICE,
                   "%s belongs to another build of kigo (interface %d, pages of %d; here %d and %d)", path, plugin->abi,
                   plugin->page, KG_PLUGIN_ABI, KG_PAGE);
  *out = plugin;
  return KG_OK;
}

bool kg_find_beside(const char *name, int mode, char *path, size_t room)
{
  static const char *const places[] = {"", "/../lib", "/../.."}; /* beside; bin and lib; lib/lua/5.4 */
  char folder[PATH_MAX];
  if (!own_folder(folder)) return false;
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    const int n = snprintf(path, room, "%s%s/%s", folder, places[i], name);
    if (n > 0 && (size_t)n < room && !access(path, mode)) return true;
  }
  return false;
}

int kg_plugin_find(const kg_plugin **out, kg_error *err)
{
  char path[PATH_MAX];
  if (kg_find_beside("libkigo_cuda.so", R_OK, path, sizeof path)) return open_file(path, out, err);
  return kg_fail(err, KG_ERR_UNSUPPORTED, "libkigo_cuda.so is not beside the program: it was built without CUDA");
}
