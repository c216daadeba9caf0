#include "host.h"

/* The one global of the plug-in: written once, before its first object exists, with a constant of the host. */
static const kg_plugin_host *the_host;

const kg_plugin_host *kg_host(void) { return the_host; }
void kg_host_set(const kg_plugin_host *host) { the_host = host; }

void *kg_alloc(size_t n_bytes) { return the_host->alloc(n_bytes); }
void *kg_alloc_array(size_t count, size_t size) { return the_host->alloc_array(count, size); }
void *kg_realloc_array(void *block, size_t count, size_t size) { return the_host->realloc_array(block, count, size); }
void kg_free(void *block) { the_host->free(block); }

int32_t kg_plan_op_count(const kg_plan *plan) { return the_host->plan_op_count(plan); }
const kg_op *kg_plan_op(const kg_plan *plan, int32_t index) { return the_host->plan_op(plan, index); }
int32_t kg_plan_value_count(const kg_plan *plan) { return the_host->plan_value_count(plan); }
const kg_value *kg_plan_value(const kg_plan *plan, int32_t index) { return the_host->plan_value(plan, index); }
int32_t kg_plan_weight_count(const kg_plan *plan) { return the_host->plan_weight_count(plan); }
const kg_weight *kg_plan_weight_at(const kg_plan *plan, int32_t index) { return the_host->plan_weight_at(plan, index); }
int32_t kg_plan_logits(const kg_plan *plan) { return the_host->plan_logits(plan); }
int32_t kg_plan_vocab_size(const kg_plan *plan) { return the_host->plan_vocab_size(plan); }
int32_t kg_plan_layer_count(const kg_plan *plan) { return the_host->plan_layer_count(plan); }
const kg_op *kg_plan_layer(const kg_plan *plan, int32_t layer) { return the_host->plan_layer(plan, layer); }
bool kg_plan_is_bidirectional(const kg_plan *plan)
{
  return kg_plan_layer_count(plan) && kg_plan_layer(plan, 0)->u.attention.is_bidirectional;
}

int32_t kg_plan_group_count(const kg_plan *plan) { return the_host->plan_group_count(plan); }
int32_t kg_plan_group_window(const kg_plan *plan, int32_t group) { return the_host->plan_group_window(plan, group); }
int32_t kg_plan_residual(const kg_plan *plan) { return the_host->plan_residual(plan); }
int32_t kg_plan_tail(const kg_plan *plan) { return the_host->plan_tail(plan); }
int64_t kg_plan_state_size(const kg_plan *plan) { return the_host->plan_state_size(plan); }
const kg_gguf *kg_plan_gguf(const kg_plan *plan) { return the_host->plan_gguf(plan); }

void kg_gguf_release_pages(const kg_gguf *gguf, const void *data, size_t n_bytes)
{
  the_host->release_pages(gguf, data, n_bytes);
}

int32_t kg_adapter_rank(const kg_adapter *adapter) { return the_host->adapter_rank(adapter); }

const kg_adapter_part *kg_adapter_part_of(const kg_adapter *adapter, const kg_op *op)
{
  return the_host->adapter_part_of(adapter, op);
}

void kg_adapter_attach(kg_adapter *adapter, kg_adapter_copy *copy) { the_host->adapter_attach(adapter, copy); }
void kg_adapter_detach(kg_adapter *adapter, kg_adapter_copy *copy) { the_host->adapter_detach(adapter, copy); }

void kg_buffer_unref(kg_buffer *buffer) { the_host->buffer_unref(buffer); }

int kg_batch_check(const kg_plan *plan, const kg_batch *batch, int32_t chunk, const int32_t *n_pages, int32_t n_ahead,
                   kg_error *err)
{
  return the_host->batch_check(plan, batch, chunk, n_pages, n_ahead, err);
}

int kg_batch_check_states(const kg_plan *plan, const kg_batch *batch, int32_t n_slots, kg_error *err)
{
  return the_host->batch_check_states(plan, batch, n_slots, err);
}

int kg_kv_rows_check(const kg_plan *plan, const kg_kv_rows *rows, const int32_t *n_pages, kg_error *err)
{
  return the_host->kv_rows_check(plan, rows, n_pages, err);
}
