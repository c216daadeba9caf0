/* rotate.cuh - the channels of a head after rotation, two at a time. */
#pragma once

#include "common.cuh"
#include "rows.h"

/* The i-th pair of channels of a head, i < (head_dim + 1) / 2: two that turn together, or two neighbours that do not.
 */
struct channel_pair {
  const float *x, *y;
  const float2 *turn;
  int c, d; /* d is head_dim where there is no second */
};

static __device__ __forceinline__ channel_pair find_pair(const kg_rotation &r, const float *head, int head_dim, int row,
                                                         int i)
{
  const bool turns = r.table && i < r.n_freqs, apart = turns && !r.pairs;
  const int c = apart ? i : 2 * i, d = apart ? i + r.n_freqs : 2 * i + 1;
  return {head + c, head + (d < head_dim ? d : c), turns ? (const float2 *)r.table + (size_t)row * r.n_freqs + i : NULL,
          c, d};
}

/* put(channel, value) for both. Without branches around its loads, so that those of several pairs are under way
 * together. */
template <typename Put> static __device__ __forceinline__ void rotate_pair(const channel_pair &p, int head_dim, Put put)
{
  float2 turn = make_float2(1, 0);
  if (p.turn) turn = *p.turn;
  const float x = *p.x, y = *p.y;
  put(p.c, fmaf(x, turn.x, -(y * turn.y)));
  if (p.d < head_dim) put(p.d, fmaf(x, turn.y, y * turn.x));
}
