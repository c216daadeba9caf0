/* states.h - slots of sequence states in host memory, for the backends that compute there. Zero-initialise, with the
 * size. */
#ifndef KG_CPU_STATES_H
#define KG_CPU_STATES_H

#include "backend.h"

typedef struct kg_host_states {
  size_t n_floats;  /* of a slot: kg_plan_state_size */
  float **slots;    /* [n]; they never move */
  int32_t n;
  size_t capacity;
} kg_host_states;

/* As the functions of kg_backend. */
int kg_host_states_reserve(kg_host_states *states, int32_t n, kg_error *err);
int kg_host_states_copy(kg_host_states *states, int32_t to, int32_t from, kg_error *err);
int kg_host_states_read(const kg_host_states *states, int32_t slot, float *out, kg_error *err);
int kg_host_states_write(kg_host_states *states, int32_t slot, const float *in, kg_error *err);
void kg_host_states_deinit(kg_host_states *states);

/* The rows of a span that a convolution reads, and the state before them. */
typedef struct kg_conv_rows {
  const kg_conv_params *params;
  const float *state;   /* of the operation, [taps - 1][width]; NULL: zeros */
  const float *rows;    /* [n_rows] of the input value, `stride` floats apart */
  int64_t stride;
  int32_t width, n_rows; /* channels that are convolved */
} kg_conv_rows;

/* What tap t of a row reads: channels of x, each times that of b where there is a b. */
typedef struct kg_conv_input {
  const float *x, *b;   /* x NULL: zeros; b NULL: x alone */
} kg_conv_input;

/* With row = n_rows: what the next row would read. */
static inline kg_conv_input kg_conv_input_at(const kg_conv_rows *r, int32_t row, int32_t t)
{
  const int32_t at = row + t - (r->params->taps - 1);
  if (at < 0) return (kg_conv_input){r->state ? r->state + (int64_t)(row + t) * r->width : NULL, NULL};
  const float *in = r->rows + at * r->stride;
  return r->params->is_gated ? (kg_conv_input){in + 2 * (int64_t)r->width, in} : (kg_conv_input){in, NULL};
}

/* What the result of a row is multiplied by, or NULL. */
static inline const float *kg_conv_gate(const kg_conv_rows *r, int32_t row)
{
  return r->params->is_gated ? r->rows + row * r->stride + r->width : NULL;
}

/* Channels [first, end) of the state behind the first n_rows rows. It may stand where the state before does. */
void kg_conv_leave(const kg_conv_rows *r, int32_t n_rows, int32_t first, int32_t end, float *state);

#endif
