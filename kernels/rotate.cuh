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

struct pair_values {
  float x, y;
  float2 turn;
};

/* Without branches around its loads, so that those of several pairs are under way together. */
static __device__ __forceinline__ pair_values load_pair(const channel_pair &p)
{
  float2 turn = make_float2(1, 0);
  if (p.turn) turn = *p.turn;
  return {*p.x, *p.y, turn};
}

/* put(channel, value) for both. */
template <typename Put>
static __device__ __forceinline__ void put_pair(const channel_pair &p, const pair_values &v, int head_dim, Put put)
{
  put(p.c, fmaf(v.x, v.turn.x, -(v.y * v.turn.y)));
  if (p.d < head_dim) put(p.d, fmaf(v.x, v.turn.y, v.y * v.turn.x));
}

template <typename Put> static __device__ __forceinline__ void rotate_pair(const channel_pair &p, int head_dim, Put put)
{
  put_pair(p, load_pair(p), head_dim, put);
}

/* Channel c of a head all of whose channels turn (or, without a table, none), as rotate_pair makes it. */
static __device__ __forceinline__ float turned_channel(const kg_rotation &r, const float *head, int row, int c)
{
  if (!r.table) return head[c];
  const bool second = r.pairs ? c % 2 : c >= r.n_freqs;
  const int i = r.pairs ? c / 2 : second ? c - r.n_freqs : c, at = r.pairs ? 2 * i : i;
  const float2 turn = ((const float2 *)r.table)[(size_t)row * r.n_freqs + i];
  const float x = head[at], y = head[r.pairs ? at + 1 : at + r.n_freqs];
  return second ? fmaf(x, turn.y, y * turn.x) : fmaf(x, turn.x, -(y * turn.y));
}
