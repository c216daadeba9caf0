/* conv.h - causal convolutions over the rows of sequences, and the states that they find and leave. */
#ifndef KG_CUDA_CONV_H
#define KG_CUDA_CONV_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A state that a span leaves behind its first n_rows rows; the whole state of the plan. */
typedef struct kg_state_place {
  float *state;
  int32_t n_rows;
} kg_state_place;

/* Rows of one sequence in a pass, the state before them (NULL: zeros) and those that they leave, by rows, ascending.
 * The last of them may be in the place of the one before. */
typedef struct kg_state_span {
  const float *state;
  int32_t row, n_rows;
  int32_t first, n_places;
} kg_state_span;

enum { KG_CONV_ROWS = 8 /* that one thread takes, for one channel: their sums are in registers */ };

typedef struct kg_conv_args {
  const float *in;      /* [rows][width], or gated: [rows][b, c, x: width each] */
  bool gated;           /* b * x is convolved, the result multiplied by c */
  int32_t width, taps;
  const float *weights; /* [width][taps] */
  const float *bias;    /* [width] or NULL */
  const kg_state_span *spans;
  const kg_state_place *places;
  int32_t n_spans, most_rows; /* of a span */
  int64_t state_at;     /* of the operation in a state, floats: [taps - 1][width] */
  float *out;           /* [rows][width] */
  float *out_max;       /* [rows] raised to the largest magnitudes, or NULL; the width is a multiple of 32 then */
} kg_conv_args;
int kg_cuda_conv(kg_stream *s, const kg_conv_args *a, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
