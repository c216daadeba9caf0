/* half.cuh - the f16 form of rows: which power of two brings a row to it, and where its numbers stand in panels. */
#pragma once

#include "common.cuh"
#include "format.h"

/* The power of two of rows that are no norm's: a known one where no number can be too large for it, as plans often tell
 * (bounds.c), else what half_scale finds. known is 0 where nothing is known. */
static __device__ __forceinline__ float known_half_scale(float max, float known)
{
  return known > 0 && max * known <= 65519 ? known : half_scale(max);
}

/* Columns c and c + 1 of a row in panels; c is even. */
static __device__ __forceinline__ __half2 *panel_pair(void *panels, int n_blocks, int row, int c)
{
  return (__half2 *)((char *)panels + kg_panel_at(row, c / 32, n_blocks)) + 64 * (c % 32 / 16) + 32 * (c % 4 / 2) +
         row % 8 * 4 + c % 16 / 4;
}
