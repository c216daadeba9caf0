/* moe.cu - which experts a row uses, rows by their experts, and the sum of what these give. */
#include "moe.h"

#include "common.cuh"

enum { EXPERTS_MAX = 1024 }; /* as KG_PLAN_MAX_EXPERTS */

/* The best rank among those of the warp's lanes, ties to the lower index; EXPERTS_MAX: none. */
static __device__ int best_of_warp(float best, int index)
{
  for (int step = 16; step; step >>= 1) {
    const float x = __shfl_xor_sync(~0u, best, step);
    const int at = __shfl_xor_sync(~0u, index, step);
    if (index == EXPERTS_MAX || (at != EXPERTS_MAX && (x > best || (x == best && at < index)))) {
      best = x;
      index = at;
    }
  }
  return index;
}

/* Of ranks that are not taken; bit i of `taken`: rank lane + 32 i. */
static __device__ int take_best(const float *ranks, int n, uint32_t *taken)
{
  const int lane = threadIdx.x;
  float best = -CUDART_INF_F;
  int index = EXPERTS_MAX;
  for (int i = 0; i * 32 + lane < n; i++) {
    const float x = ranks[i * 32 + lane];
    if (*taken >> i & 1 || (index != EXPERTS_MAX && !(x > best))) continue;
    best = x == x ? x : -CUDART_INF_F; /* no number: last, but still an expert */
    index = i * 32 + lane;
  }
  index = best_of_warp(best, index);
  if (index % 32 == lane) *taken |= 1u << index / 32;
  return index;
}

/* How good each group is, to `groups`; then the experts of all but the best count as taken. */
static __device__ uint32_t take_other_groups(const kg_route_args &a, const float *ranks, float *groups, bool *is_used)
{
  const int lane = threadIdx.x, n = a.n_experts / a.n_groups;
  for (int g = lane; g < a.n_groups; g += 32) {
    float first = -CUDART_INF_F, second = -CUDART_INF_F;
    for (int i = 0; i < n; i++) {
      const float x = ranks[g * n + i];
      second = fmaxf(second, fminf(first, x));
      first = fmaxf(first, x);
    }
    groups[g] = a.group_top == 2 ? first + second : first;
    is_used[g] = false;
  }
  __syncwarp();
  uint32_t groups_taken = 0, taken = 0;
  for (int i = 0; i < a.n_groups_used; i++) {
    const int g = take_best(groups, a.n_groups, &groups_taken);
    if (!lane) is_used[g] = true;
  }
  __syncwarp();
  for (int i = 0; i * 32 + lane < a.n_experts; i++)
    if (!is_used[(i * 32 + lane) / n]) taken |= 1u << i;
  return taken;
}

/* Weights in proportion to e^logit, as softmax and, where logits are very low, sigmoid are; the best is 1. Returns
 * their sum. For weights that are next to nothing, where parts may be lost: sigmoids below 3e-39 are 0. By one
 * thread. */
static __device__ float weigh_by_logits(const float *logits, const int32_t *experts, int n_used, float *weights)
{
  float max = -CUDART_INF_F, sum = 0;
  for (int u = 0; u < n_used; u++) max = fmaxf(max, logits[experts[u]]);
  for (int u = 0; u < n_used; u++) sum += weights[u] = expf(logits[experts[u]] - max);
  return sum;
}

/* route: grid (rows), one warp a row; ties to the lower index.
 * twin: choose_experts in cpu/reference.c. */
static __global__ void __launch_bounds__(32) route(const __grid_constant__ kg_route_args a)
{
  __shared__ float ranks[EXPERTS_MAX], groups[EXPERTS_MAX];
  __shared__ bool is_used[EXPERTS_MAX];
  wait_for_previous();
  const int lane = threadIdx.x, row = blockIdx.x;
  const float *logits = a.logits + (size_t)row * a.n_experts;
  float max = -CUDART_INF_F, total = 0, sum = 0;
  for (int e = lane; e < a.n_experts; e += 32) max = fmaxf(max, logits[e]);
  max = warp_max(max);
  for (int e = lane; e < a.n_experts; e += 32) total += expf(logits[e] - max);
  total = warp_sum(total);
  const bool by_logit = a.gate == 1 || (!a.bias && a.group_top == 1); /* gates keep the order of the logits */
  for (int e = lane; e < a.n_experts; e += 32) {
    const float x = logits[e];
    const float score = by_logit ? x : a.gate == 2 ? 1 / (1 + expf(-x)) : expf(x - max) / total;
    ranks[e] = score + (a.bias ? a.bias[e] : 0.0f);
  }
  __syncwarp();
  uint32_t taken = a.n_groups_used < a.n_groups ? take_other_groups(a, ranks, groups, is_used) : 0;
  for (int u = 0; u < a.n_used; u++) {
    const int index = take_best(ranks, a.n_experts, &taken);
    const float x = logits[index];
    const float weight = a.gate == 2 ? 1 / (1 + expf(-x)) : expf(x - max);
    sum += weight;
    if (lane) continue;
    a.experts[(size_t)row * a.n_used + u] = index;
    a.weights[(size_t)row * a.n_used + u] = weight;
  }
  if (lane) return;
  const bool is_relative = a.normalize || a.gate == 1;
  float *weights = a.weights + (size_t)row * a.n_used;
  if (is_relative && sum < 1e-30f)
    sum = weigh_by_logits(logits, a.experts + (size_t)row * a.n_used, a.n_used, weights);
  for (int u = 0; u < a.n_used; u++) {
    if (is_relative)
      weights[u] /= sum;
    else if (a.gate == 0)
      weights[u] /= total;
    weights[u] *= a.scale;
  }
}

int kg_cuda_route(kg_stream *s, const kg_route_args *a, kg_error *err)
{
  if (a->n_experts < 1 || a->n_experts > EXPERTS_MAX || a->n_used < 1 || a->n_used > a->n_experts)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d of %d experts", a->n_used, a->n_experts);
  if (a->n_groups < 1 || a->n_experts % a->n_groups || a->n_groups_used < 1 || a->n_groups_used > a->n_groups)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d of %d groups of %d experts", a->n_groups_used, a->n_groups, a->n_experts);
  return run_kernel(s, "route", route, dim3(a->n), 32, 0, err, *a);
}

/* group_rows: grid: 1; block: a thread for each plane. Which place a row has in its group changes nothing for it. */
static __global__ void __launch_bounds__(EXPERTS_MAX)
    group_rows(const int32_t *planes, int32_t n, const kg_linear_groups groups)
{
  __shared__ int ends[EXPERTS_MAX], group_ends[EXPERTS_MAX], places[EXPERTS_MAX];
  wait_for_previous();
  const int plane = threadIdx.x;
  places[plane] = 0;
  __syncthreads();
  for (int i = plane; i < n; i += EXPERTS_MAX) atomicAdd(&places[planes[i]], 1);
  __syncthreads();
  const int count = places[plane], n_groups = (count + groups.rows - 1) / groups.rows;
  ends[plane] = count;
  group_ends[plane] = n_groups;
  for (int step = 1; step < EXPERTS_MAX; step *= 2) {
    __syncthreads();
    const int before = plane >= step ? ends[plane - step] : 0;
    const int groups_before = plane >= step ? group_ends[plane - step] : 0;
    __syncthreads();
    ends[plane] += before;
    group_ends[plane] += groups_before;
  }
  const int first = ends[plane] - count, first_group = group_ends[plane] - n_groups;
  places[plane] = first;
  __syncthreads();
  for (int i = 0; i < n_groups; i++)
    groups.list[first_group + i] = {plane, first + i * groups.rows, min(groups.rows, count - i * groups.rows)};
  for (int i = group_ends[EXPERTS_MAX - 1] + plane; i < groups.n; i += EXPERTS_MAX) groups.list[i] = {0, 0, 0};
  for (int i = plane; i < n; i += EXPERTS_MAX) groups.order[atomicAdd(&places[planes[i]], 1)] = i;
}

int kg_cuda_group(kg_stream *s, const int32_t *planes, int32_t n, int32_t n_planes, const kg_linear_groups *groups,
                  kg_error *err)
{
  if (n_planes < 1 || n_planes > EXPERTS_MAX || groups->rows < 1 || groups->n < n / groups->rows + n_planes)
    return kg_fail(err, KG_ERR_ARGUMENT, "%d groups of %d planes", groups->n, n_planes);
  return run_kernel(s, "group_rows", group_rows, dim3(1), EXPERTS_MAX, 0, err, planes, n, *groups);
}

/* mix: grid: rows; block: 256 columns at a time. twin: moe in cpu/reference.c, tolerance float32 sums. */
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

int kg_cuda_mix(kg_stream *s, const float *in, const float *weights, int32_t n, int32_t n_used, int32_t width,
                float *out, kg_error *err)
{
  return run_kernel(s, "mix", mix, dim3(n), 256, 0, err, in, weights, n_used, width, out);
}
