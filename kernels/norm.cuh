/* norm.cuh - the sums of a norm, in one order whoever makes them: segments of 128 columns, four neighbours a lane, the
 * lanes as a tree, the segments from left to right. So kernels that norm for themselves get the same bits. */
#pragma once

#include "common.cuh"

enum { SEGMENT = 128 };

static __device__ __forceinline__ int n_segments(int n) { return (n + SEGMENT - 1) / SEGMENT; }

/* Four neighbours from column c on; zero beyond the row's end. Rows of a width that is a multiple of 4 are aligned. */
static __device__ __forceinline__ float4 four_of(const float *x, int n, int c)
{
  if (n % 4 == 0) return c < n ? *(const float4 *)(x + c) : make_float4(0, 0, 0, 0);
  return make_float4(c < n ? x[c] : 0, c + 1 < n ? x[c + 1] : 0, c + 2 < n ? x[c + 2] : 0, c + 3 < n ? x[c + 3] : 0);
}

static __device__ __forceinline__ float segment_squares(float4 v)
{
  return warp_sum(fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x))));
}

static __device__ __forceinline__ float norm_factor(float squares, int n, float epsilon)
{
  return rsqrtf(__fdividef(squares, (float)n) + epsilon);
}

/* A norm without mean and bias is factor * x * scale. Its f16 form is x * scale, times a power of two that is known
 * before the factor is: from the largest magnitudes of both. The factor goes with what undoes the power of two. */
static __device__ __forceinline__ float norm_half_scale(float x_max, float scale_max)
{
  return half_scale(x_max * scale_max);
}
