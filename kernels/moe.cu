#include "common.cuh"
#include "moe.h"

enum { EXPERTS_MAX = 1024, EACH = EXPERTS_MAX / 32 };

/* route: grid (rows), one warp a row; ties to the lower index.
 * twin: choose_experts in cpu/reference.c. */
static __global__ void __launch_bounds__(32) route(const __grid_constant__ kg_route_args a)
{
  wait_for_previous();
  const int lane = threadIdx.x, row = blockIdx.x;
  const float *logits = a.logits + (size_t)row * a.n_experts;
  float max = -CUDART_INF_F, total = 0, sum = 0;
  for (int e = lane; e < a.n_experts; e += 32) max = fmaxf(max, logits[e]);
  max = warp_max(max);
  for (int e = lane; e < a.n_experts; e += 32) total += expf(logits[e] - max);
  total = warp_sum(total);
  uint32_t taken = 0; /* bit i: expert lane + 32 i */
  for (int u = 0; u < a.n_used; u++) {
    float best = -CUDART_INF_F;
    int index = EXPERTS_MAX;
    for (int i = 0; i * 32 + lane < a.n_experts; i++) {
      const float x = logits[i * 32 + lane];
      if (taken >> i & 1 || (index != EXPERTS_MAX && !(x > best))) continue;
      best = x == x ? x : -CUDART_INF_F; /* no number: last, but still an expert */
      index = i * 32 + lane;
    }
    for (int step = 16; step; step >>= 1) {
      const float x = __shfl_xor_sync(~0u, best, step);
      const int at = __shfl_xor_sync(~0u, index, step);
      if (index == EXPERTS_MAX || (at != EXPERTS_MAX && (x > best || (x == best && at < index)))) {
        best = x;
        index = at;
      }
    }
    if (index % 32 == lane) taken |= 1u << index / 32;
    const float x = logits[index];
    const float weight = a.gate == 2 ? 1 / (1 + expf(-x)) : expf(x - max);
    sum += weight;
    if (lane) continue;
    a.experts[(size_t)row * a.n_used + u] = index;
    a.weights[(size_t)row * a.n_used + u] = weight;
  }
  if (lane) return;
  for (int u = 0; u < a.n_used; u++) {
    float *weight = &a.weights[(size_t)row * a.n_used + u];
    if (a.normalize || a.gate == 1)
      *weight /= sum;
    else if (a.gate == 0)
      *weight /= total;
    *weight *= a.scale;
  }
}

int kg_cuda_route(kg_stream *s, const kg_route_args *a, kg_error *err)
{
  if (a->n_experts < 1 || a->n_experts > EXPERTS_MAX || a->n_used < 1 || a->n_used > a->n_experts)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d of %d experts", a->n_used, a->n_experts);
  return run_kernel(s, "route", route, dim3(a->n), 32, 0, err, *a);
}

static __global__ void __launch_bounds__(256) mix(const float *in, const float *weights, int32_t n_used, int32_t width,
                                                  float *out)
{
  wait_for_previous();
  const size_t row = blockIdx.x;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    float sum = 0;
    for (int u = 0; u < n_used; u++) sum = fmaf(weights[row * n_used + u], in[(row * n_used + u) * width + c], sum);
    out[row * width + c] = sum;
  }
}

int kg_cuda_mix(kg_stream *s, const float *in, const float *weights, int32_t n, int32_t n_used, int32_t width, float *out,
                kg_error *err)
{
  return run_kernel(s, "mix", mix, dim3(n), 256, 0, err, in, weights, n_used, width, out);
}
