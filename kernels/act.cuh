/* act.cuh - activation functions in float32. */
#pragma once

#include "common.cuh"
#include "linear.h"

static __device__ __forceinline__ float activate(int kind, float x)
{
  switch (kind) {
  case KG_CUDA_SILU: return __fdividef(x, 1 + __expf(-x)); /* off by 2^-20 of itself at most where f16 can tell */
  case KG_CUDA_GELU: return 0.5f * x * (1 + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); /* sqrt(2 / pi) */
  case KG_CUDA_GELU_ERF: return 0.5f * x * (1 + erff(x * 0.70710678f));                        /* sqrt(1 / 2) */
  default: return x > 0 ? x : x != x ? x : 0; /* relu */
  }
}

static __device__ __forceinline__ float gated(int kind, float limit, float alpha, float gate, float up)
{
  if (kind != KG_CUDA_SWIGLU_CLAMPED) return activate(kind, gate) * up;
  if (gate > limit) gate = limit;
  if (up > limit) up = limit;
  if (up < -limit) up = -limit;
  return __fdividef(gate, 1 + __expf(-alpha * gate)) * (up + 1);
}
