/* bounds.c - how large the numbers of a value can be, where the weights tell: then the power of two of its f16 form is
 * known before it is computed, and what makes the value writes that form at once.
 *
 * - Attention over an f16 cache gives means of numbers that f16 holds.
 * - A root-mean-square norm of n columns gives rows of a norm of sqrt(n) at most, times its scale. So a product with a
 *   row w of a matrix is at most sqrt(n) |w * scale| (Cauchy and Schwarz), and act(gate) * up at most the product of
 *   two of these: all activations here but a clamped one give no more than they are given.
 *
 * f16 has room for that: 2^30 times its smallest number of full precision. Where a bound is so far off that this does
 * not do, the power of two is found from the numbers as they are. That is also done, by all who did not make a value
 * themselves, where a number turns out too large: hooks and adapters may change what plans compute. */
#include <math.h>

#include "executable.h"
#include "row_norm.h"

/* Numbers of 1 keep 11 bits beside the largest that can be. */
static const float LEAST_UP = 0x1p-9f, MOST_UP = 0x1p40f, LARGEST = 0x1p15f;

int kg_gpu_bounds_open(kg_executable *exe, kg_error *err)
{
  const size_t n = (size_t)kg_plan_value_count(exe->plan);
  exe->half_up = kg_alloc_array(n, sizeof *exe->half_up);
  return exe->half_up ? KG_OK : kg_fail_memory(err, n * sizeof *exe->half_up, "the bounds of values");
}

static const kg_op *producer_of(const kg_plan *plan, int32_t value)
{
  return kg_plan_op(plan, kg_plan_value(plan, value)->producer);
}

/* Gate (0) or up (1) of this operation, if it is a product of a plain norm, else NULL. */
static const kg_op *factor_of(const kg_executable *exe, const kg_op *glu, int i)
{
  const kg_op *op = producer_of(exe->plan, glu->in[i]);
  if (op->kind != KG_OP_LINEAR || exe->weights[op->w[0]].m.type == KG_F32) return NULL;
  const kg_op *norm = producer_of(exe->plan, op->in[0]);
  const bool is_plain = norm->kind == KG_OP_NORM && norm->u.norm.groups == 1 && !norm->u.norm.subtract_mean &&
                        norm->w[1] == KG_NONE;
  return is_plain ? op : NULL;
}

/* Can its bound be told, and does it depend on this weight, or on any (KG_NONE)? */
static bool is_bounded(const kg_executable *exe, const kg_op *op, int32_t weight)
{
  if (op->kind != KG_OP_GLU || op->u.act.kind == KG_ACT_SWIGLU_CLAMPED || !factor_of(exe, op, 0) ||
      !factor_of(exe, op, 1))
    return false;
  for (int i = 0; i < 2; i++) {
    const kg_op *factor = factor_of(exe, op, i);
    if (weight == KG_NONE || weight == factor->w[0] || weight == factor->w[1] ||
        weight == producer_of(exe->plan, factor->in[0])->w[0])
      return true;
  }
  return false;
}

/* row_norm: the largest of the matrix, its columns times the norm's scale. */
static float bound_of(const kg_executable *exe, const kg_op *op, float row_norm)
{
  const float margin = 1.01f; /* sums and factors are rounded; */
  const kg_cuda_weight *scale = &exe->weights[producer_of(exe->plan, op->in[0])->w[0]];
  const float n = sqrtf((float)exe->weights[op->w[0]].m.cols);
  const float rounding = n * scale->vector_max * 0x1p-24f; /* and so are weights, to f16 */
  return margin * n * (row_norm + rounding) + (op->w[1] == KG_NONE ? 0 : exe->weights[op->w[1]].vector_max);
}

/* The largest power of two that brings numbers up to a bound to LARGEST, or 0. */
static float up_for(float bound)
{
  if (!(bound > 0 && bound < INFINITY)) return 0;
  const float up = ldexpf(1, ilogbf(LARGEST / bound));
  return up < LEAST_UP ? 0 : up > MOST_UP ? MOST_UP : up;
}

static int measure(const kg_executable *exe, const kg_op *glu, float *norms /* [2], on the device */, kg_error *err)
{
  int code = KG_OK;
  for (int i = 0; i < 2 && !code; i++) {
    const kg_op *op = factor_of(exe, glu, i);
    const float *scale = exe->weights[producer_of(exe->plan, op->in[0])->w[0]].vector;
    code = kg_cuda_row_norm(exe->stream, &exe->weights[op->w[0]].m, scale, norms + i, err);
  }
  return code;
}

/* norms: [bounded operations][2] */
static int measure_all(const kg_executable *exe, int32_t weight, float *norms, float *there, size_t n_bytes,
                       kg_error *err)
{
  const cudaStream_t stream = exe->stream->handle;
  int code = kg_cuda_check(cudaMemsetAsync(there, 0, n_bytes, stream), "clearing bounds", err);
  for (int32_t i = 0, at = 0; i < kg_plan_op_count(exe->plan) && !code; i++) {
    const kg_op *op = kg_plan_op(exe->plan, i);
    if (!is_bounded(exe, op, weight)) continue;
    code = measure(exe, op, there + at, err);
    at += 2;
  }
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(norms, there, n_bytes, cudaMemcpyDeviceToHost, stream), "bounds", err);
  const int waited = kg_stream_wait(exe->stream, "bounds", code ? NULL : err);
  return code ? code : waited;
}

int kg_gpu_bounds_find(kg_executable *exe, int32_t weight, kg_error *err)
{
  const kg_plan *plan = exe->plan;
  size_t n = 0;
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    const kg_op *op = kg_plan_op(plan, i);
    const bool is_measured = is_bounded(exe, op, weight);
    n += is_measured;
    if (is_measured) exe->half_up[op->out] = 0; /* unknown, if measuring fails */
    if (op->kind == KG_OP_ATTENTION && exe->half) exe->half_up[op->out] = 1;
  }
  if (!n) return KG_OK;
  const size_t n_bytes = 2 * n * sizeof(float);
  void *there = NULL;
  float *norms = kg_alloc(n_bytes);
  int code = norms ? kg_cuda_alloc(n_bytes, "bounds", &there, err) : kg_fail_memory(err, n_bytes, "bounds");
  if (!code) code = measure_all(exe, weight, norms, there, n_bytes, err);
  for (int32_t i = 0, at = 0; i < kg_plan_op_count(plan) && !code; i++) {
    const kg_op *op = kg_plan_op(plan, i);
    if (!is_bounded(exe, op, weight)) continue;
    exe->half_up[op->out] = up_for(bound_of(exe, factor_of(exe, op, 0), norms[at]) *
                                   bound_of(exe, factor_of(exe, op, 1), norms[at + 1]));
    at += 2;
  }
  (void)cudaFree(there);
  kg_free(norms);
  return code;
}
