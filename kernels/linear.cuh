/* linear.cuh - what the two families of products share. */
#pragma once

#include "act.cuh"
#include "ring.cuh"

/* Types that one meets often: they have kernels for gates and for many rows; the others, to build faster, compute gates in
 * two steps and take 8 rows at a time. */
static constexpr bool is_common(int type)
{
  return type == KG_F16 || type == KG_Q8_0 || type == KG_Q4_0 || type == KG_Q5_0 || type == KG_Q4_K || type == KG_Q5_K ||
         type == KG_Q6_K;
}

/* What is added to the product of row `row` of part `d` with row `n` of x. */
struct addends {
  float bias, up_bias, residual;
};

static __device__ __forceinline__ addends find_addends(const kg_linear_args &a, int d, int plane, int row, int n, bool exists)
{
  addends add = {0, 0, 0};
  const kg_linear_part &part = a.part[d];
  if (!exists || row >= part.m.rows) return add;
  if (part.bias) add.bias = part.bias[(size_t)plane * part.m.rows + row];
  if (a.gated && a.part[1].bias) add.up_bias = a.part[1].bias[(size_t)plane * part.m.rows + row];
  if (a.residual) add.residual = a.residual[(size_t)n * part.m.rows + row];
  return add;
}

/* Finish the product and put it where it goes. */
static __device__ __forceinline__ float store(const kg_linear_args &a, int d, int row, int n, float value, float up, addends add)
{
  const kg_linear_part &part = a.part[d];
  if (part.bias) value += add.bias;
  if (a.gated) value = gated(a.act, a.act_limit, a.act_alpha, value, a.part[1].bias ? up + add.up_bias : up);
  if (a.residual) value += add.residual;
  if (a.out_rows)
    a.out_rows[n][row] = value;
  else
    part.out[(size_t)n * part.m.rows + row] = value;
  return value;
}

/* linear_many.cu: the same products for many rows, on devices that have its instructions (kg_stream.has_wgmma). */
int kg_cuda_linear_many(kg_stream *s, const kg_linear_args *a, kg_error *err);
