/* rotate.cuh - channel c of a head after rotation. */
#pragma once

#include "common.cuh"
#include "rows.h"

static __device__ __forceinline__ float rotated(const kg_rotation &r, const float *head, int row, int c)
{
  if (!r.table || c >= 2 * r.n_freqs) return head[c];
  const int f = r.pairs ? c / 2 : c % r.n_freqs;
  const bool second = r.pairs ? c % 2 : c >= r.n_freqs;
  const float2 turn = ((const float2 *)r.table)[(size_t)row * r.n_freqs + f];
  const float x = head[r.pairs ? 2 * f : f], y = head[r.pairs ? 2 * f + 1 : f + r.n_freqs];
  return second ? fmaf(x, turn.y, y * turn.x) : fmaf(x, turn.x, -(y * turn.y));
}
