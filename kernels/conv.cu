#include "common.cuh"
#include "conv.h"

/* What is convolved in a row of the span, or before it: rows from 1 - taps to -1 are in the state. */
static __device__ __forceinline__ float input_at(const kg_conv_args &a, const kg_state_span &span, int row, int c)
{
  if (row < 0) return span.state ? span.state[a.state_at + (int64_t)(row + a.taps - 1) * a.width + c] : 0;
  const float *in = a.in + (size_t)(span.row + row) * (a.gated ? 3 * (size_t)a.width : a.width) + c;
  return a.gated ? in[0] * in[2 * (size_t)a.width] : in[0];
}

/* The states that a span leaves, of one channel. The oldest row first: in place, each is read before it is written
 * over. */
static __device__ __forceinline__ void leave_states(const kg_conv_args &a, const kg_state_span &span, int c)
{
  for (int i = span.first; i < span.first + span.n_places; i++) {
    float *out = a.places[i].state + a.state_at + c;
    for (int t = 0; t < a.taps - 1; t++)
      out[(size_t)t * a.width] = input_at(a, span, a.places[i].n_rows + t - (a.taps - 1), c);
  }
}

/* conv_rows: out[row][c] = (sum over t of weights[c][t] * input[row + t - (taps - 1)][c] + bias[c]) [* gate[row][c]]
 * grid: channels / 128, spans, rows / KG_CONV_ROWS; block: 128 channels. Sums in float32, from the oldest row on.
 * moves the rows in and out once, what taps read again is in the caches.
 * A span of one block leaves its states here: nobody else reads the state before it. */
static __global__ void __launch_bounds__(128) conv_rows(const __grid_constant__ kg_conv_args a)
{
  wait_for_previous();
  const int c = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.z * KG_CONV_ROWS;
  const kg_state_span span = a.spans[blockIdx.y];
  if (c >= a.width || first >= span.n_rows) return;
  const int n = min(KG_CONV_ROWS, span.n_rows - first);
  float sums[KG_CONV_ROWS];
#pragma unroll
  for (int r = 0; r < KG_CONV_ROWS; r++) sums[r] = a.bias ? a.bias[c] : 0;
  for (int t = 0; t < a.taps; t++) {
    const float weight = a.weights[(size_t)c * a.taps + t];
#pragma unroll
    for (int r = 0; r < KG_CONV_ROWS; r++)
      if (r < n) sums[r] += weight * input_at(a, span, first + r + t - (a.taps - 1), c);
  }
#pragma unroll
  for (int r = 0; r < KG_CONV_ROWS; r++) {
    if (r >= n) continue;
    const size_t at = span.row + first + r;
    const float value = a.gated ? sums[r] * a.in[(3 * at + 1) * a.width + c] : sums[r];
    a.out[at * a.width + c] = value;
    if (!a.out_max) continue;
    const float largest = warp_max(fabsf(value));
    if (threadIdx.x % 32 == 0) raise_max(a.out_max + at, largest);
  }
  if (span.n_rows <= KG_CONV_ROWS) leave_states(a, span, c);
}

/* Behind conv_rows, of spans that took several blocks. */
static __global__ void __launch_bounds__(128) conv_states(const __grid_constant__ kg_conv_args a)
{
  wait_for_previous();
  const int c = blockIdx.x * blockDim.x + threadIdx.x;
  const kg_state_span span = a.spans[blockIdx.y];
  if (c < a.width && span.n_rows > KG_CONV_ROWS) leave_states(a, span, c);
}

int kg_cuda_conv(kg_stream *s, const kg_conv_args *a, kg_error *err)
{
  const unsigned blocks = (unsigned)(a->width + 127) / 128, n_spans = (unsigned)a->n_spans;
  const unsigned chunks = (unsigned)(a->most_rows + KG_CONV_ROWS - 1) / KG_CONV_ROWS;
  if (a->n_spans < 1 || a->n_spans > 65535 || a->most_rows < 1 || chunks > 65535 || (a->out_max && a->width % 32))
    return kg_fail(err, KG_ERR_ARGUMENT, "a convolution of %d spans of up to %d rows", a->n_spans, a->most_rows);
  const int code = run_kernel(s, "conv_rows", conv_rows, dim3(blocks, n_spans, chunks), 128, 0, err, *a);
  if (code || chunks == 1) return code;
  return run_kernel(s, "conv_states", conv_states, dim3(blocks, n_spans), 128, 0, err, *a);
}
