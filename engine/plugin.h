/* plugin.h - the seam to libkigo_cuda, which is opened at run time and never linked: one build serves machines with and
 * without a GPU. The plug-in calls back through a table, because the symbols of its host are hidden. */
#ifndef KG_PLUGIN_H
#define KG_PLUGIN_H

#include "backend.h"

enum { KG_PLUGIN_ABI = 11 }; /* raise it with every change of a structure that both sides see */

/* What the plug-in needs of its host. The readers of plan.h, so that the plug-in has no copy of its structures. */
typedef struct kg_plugin_host {
  void *(*alloc)(size_t n_bytes);
  void *(*alloc_array)(size_t count, size_t size);
  void *(*realloc_array)(void *block, size_t count, size_t size);
  void (*free)(void *block);
  int32_t (*plan_op_count)(const kg_plan *plan);
  const kg_op *(*plan_op)(const kg_plan *plan, int32_t index);
  int32_t (*plan_value_count)(const kg_plan *plan);
  const kg_value *(*plan_value)(const kg_plan *plan, int32_t index);
  int32_t (*plan_weight_count)(const kg_plan *plan);
  const kg_weight *(*plan_weight_at)(const kg_plan *plan, int32_t index);
  int32_t (*plan_logits)(const kg_plan *plan);
  int32_t (*plan_vocab_size)(const kg_plan *plan);
  int32_t (*plan_layer_count)(const kg_plan *plan);
  const kg_op *(*plan_layer)(const kg_plan *plan, int32_t layer);
  int32_t (*plan_group_count)(const kg_plan *plan);
  int32_t (*plan_group_window)(const kg_plan *plan, int32_t group);
  int32_t (*plan_tail)(const kg_plan *plan);
  int64_t (*plan_state_size)(const kg_plan *plan);
  int32_t (*plan_residual)(const kg_plan *plan);
  const kg_gguf *(*plan_gguf)(const kg_plan *plan);
  void (*release_pages)(const kg_gguf *gguf, const void *data, size_t n_bytes);
  int (*batch_check)(const kg_plan *plan, const kg_batch *batch, int32_t chunk, const int32_t *n_pages, int32_t n_ahead,
                     kg_error *err);
  int (*batch_check_states)(const kg_plan *plan, const kg_batch *batch, int32_t n_slots, kg_error *err);
  int (*kv_rows_check)(const kg_plan *plan, const kg_kv_rows *rows, const int32_t *n_pages, kg_error *err);
  int32_t (*adapter_rank)(const kg_adapter *adapter);
  const kg_adapter_part *(*adapter_part_of)(const kg_adapter *adapter, const kg_op *op);
  void (*adapter_attach)(kg_adapter *adapter, kg_adapter_copy *copy);
  void (*adapter_detach)(kg_adapter *adapter, kg_adapter_copy *copy);
  int (*host_buffer_new)(int64_t n, kg_buffer **out, kg_error *err);
  void (*buffer_unref)(kg_buffer *buffer);
  const kg_tensor_ops *host_ops;
} kg_plugin_host;

typedef struct kg_plugin {
  int32_t abi, page; /* KG_PLUGIN_ABI and KG_PAGE as the plug-in was built */
  const kg_backend *backend;
  /* Can device `index` be used? KG_ERR_DEVICE says why not. The first call wakes the driver. */
  int (*probe)(int32_t index, kg_error *err);
} kg_plugin;

/* The plug-in's only exported function; `host` must stay. */
#define KG_PLUGIN_ENTRY "kg_plugin_open"
typedef const kg_plugin *(*kg_plugin_entry)(const kg_plugin_host *host);

/* A file that comes with the engine: beside this library or program, in ../lib, or two folders up. `mode` as for
 * access(2). */
bool kg_find_beside(const char *name, int mode, char *path, size_t room);

/* Find libkigo_cuda.so beside this library or program, or in ../lib, and open it. KG_ERR_UNSUPPORTED: it is not there;
 * KG_ERR_DEVICE: it cannot be loaded or belongs to another version. Once opened it stays. */
int kg_plugin_find(const kg_plugin **out, kg_error *err);

#endif
