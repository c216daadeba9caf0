#include "cpu/states.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

int kg_host_states_reserve(kg_host_states *states, int32_t n, kg_error *err)
{
  const int32_t before = states->n;
  if (n <= before) return KG_OK;
  bool ok = kg_grow((void **)&states->slots, &states->capacity, (size_t)n, sizeof *states->slots);
  while (ok && states->n < n) {
    states->slots[states->n] = kg_alloc_array(states->n_floats, sizeof(float));
    ok = states->slots[states->n] != NULL;
    if (ok) states->n++;
  }
  if (ok) return KG_OK;
  while (states->n > before) kg_free(states->slots[--states->n]);
  return kg_fail_memory(err, states->n_floats * sizeof(float), "the state of a sequence");
}

static int check_slot(const kg_host_states *states, int32_t slot, kg_error *err)
{
  if (slot >= 0 && slot < states->n) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "state %d of %d", slot, states->n);
}

int kg_host_states_copy(kg_host_states *states, int32_t to, int32_t from, kg_error *err)
{
  const size_t n_bytes = states->n_floats * sizeof(float);
  int code = check_slot(states, to, err);
  if (!code && from != KG_NONE) code = check_slot(states, from, err);
  if (code) return code;
  if (from == KG_NONE)
    memset(states->slots[to], 0, n_bytes);
  else if (to != from)
    memcpy(states->slots[to], states->slots[from], n_bytes);
  return KG_OK;
}

int kg_host_states_read(const kg_host_states *states, int32_t slot, float *out, kg_error *err)
{
  const int code = check_slot(states, slot, err);
  if (!code) memcpy(out, states->slots[slot], states->n_floats * sizeof *out);
  return code;
}

int kg_host_states_write(kg_host_states *states, int32_t slot, const float *in, kg_error *err)
{
  const int code = check_slot(states, slot, err);
  if (!code) memcpy(states->slots[slot], in, states->n_floats * sizeof *in);
  return code;
}

void kg_host_states_deinit(kg_host_states *states)
{
  while (states->n) kg_free(states->slots[--states->n]);
  kg_free(states->slots);
  states->slots = NULL;
}

/* The oldest row first: in place, each is read before it is written over. */
void kg_conv_leave(const kg_conv_rows *r, int32_t n_rows, int32_t first, int32_t end, float *state)
{
  for (int32_t t = 0; t < r->params->taps - 1; t++) {
    const kg_conv_input in = kg_conv_input_at(r, n_rows, t);
    float *out = state + (int64_t)t * r->width;
    for (int32_t c = first; c < end; c++) out[c] = !in.x ? 0 : in.b ? in.b[c] * in.x[c] : in.x[c];
  }
}
