/* format.cuh - reading packed weights (format.h): a lane's part of a tile as f16 fragments, and single values. */
#pragma once

#include "common.cuh"
#include "format.h"

/* What the code of a format means, at compile time. */
template <int T> struct traits {
  static constexpr int q_bits = T == KG_F16 || T == KG_BF16 ? 16 : T == KG_Q8_0 ? 8 : T == KG_Q2_K || T == KG_Q3_K ? 2 : 4;
  static constexpr int h_bits = T == KG_Q6_K ? 2 : T == KG_Q5_0 || T == KG_Q5_1 || T == KG_Q5_K || T == KG_Q3_K ? 1 : 0;
  static constexpr int h_shift = T == KG_Q3_K ? 2 : 4;
  static constexpr bool has_levels = T == KG_IQ4_NL || T == KG_IQ4_XS || T == KG_MXFP4;
  /* subtracted from the code */
  static constexpr int bias = T == KG_Q8_0 || has_levels ? 128 : T == KG_Q4_0 ? 8 : T == KG_Q5_0 ? 16 : T == KG_Q6_K ? 32
                            : T == KG_Q3_K ? 4 : 0;
  static constexpr bool has_min = T == KG_Q4_1 || T == KG_Q5_1 || T == KG_Q4_K || T == KG_Q5_K || T == KG_Q2_K;
  static constexpr bool has_16 = T == KG_Q6_K || T == KG_Q3_K || T == KG_Q2_K; /* scales per 16 columns */
  static constexpr bool is_float = T == KG_F16 || T == KG_BF16;
};

/* Levels of a nibble, biased by 128, as four words of bytes. */
template <int T> static __device__ __forceinline__ void levels(uint32_t table[4])
{
  if (T == KG_MXFP4) { /* 0 1 2 3 4 6 8 12 and their negatives */
    table[0] = 0x83828180; table[1] = 0x8c888684; table[2] = 0x7d7e7f80; table[3] = 0x74787a7c;
  } else { /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113 */
    table[0] = 0x3f2d1801; table[1] = 0x766a5d4f; table[2] = 0xa6998d81; table[3] = 0xf1d9c5b5;
  }
}

/* Levels of the four nibbles in the low 16 bits. */
static __device__ __forceinline__ uint32_t look_up(const uint32_t table[4], uint32_t nibbles)
{
  const uint32_t low = __byte_perm(table[0], table[1], nibbles & 0x7777);
  const uint32_t high = __byte_perm(table[2], table[3], nibbles & 0x7777);
  return __byte_perm(low, high, 0x3210 | (nibbles & 0x8888) >> 1);
}

static __device__ __forceinline__ uint32_t as_word(__half2 x) { return *(const uint32_t *)&x; }
static __device__ __forceinline__ __half2 as_half2(uint32_t x) { return *(const __half2 *)&x; }

/* Two small whole numbers in the low bits of both halves, minus bias: 1024 + n has n in its last bits. */
static __device__ __forceinline__ uint32_t small_to_half2(uint32_t pair, int bias)
{
  const uint32_t offset = 0x64006400 + (uint32_t)bias * 0x00010001;
  return as_word(__hsub2(as_half2(pair | 0x64006400), as_half2(offset)));
}

/* A lane's part of a tile as loaded: kept apart from its decoding, so that loads can run ahead. */
struct raw_tile {
  uint4 q[2];
  uint32_t h;
};

template <int T>
static __device__ __forceinline__ void load_tile(const kg_matrix &m, const unsigned char *q, const unsigned char *h,
                                                 size_t tile_block, int lane, raw_tile &raw)
{
  typedef traits<T> t;
  if (t::q_bits == 16) {
    raw.q[0] = __ldcs((const uint4 *)(q + tile_block * 1024) + lane);
    raw.q[1] = __ldcs((const uint4 *)(q + tile_block * 1024 + 512) + lane);
  } else if (t::q_bits == 8) {
    raw.q[0] = __ldcs((const uint4 *)(q + tile_block * 512) + lane);
  } else if (t::q_bits == 4) {
    const uint2 v = __ldcs((const uint2 *)(q + tile_block * 256) + lane);
    raw.q[0].x = v.x;
    raw.q[0].y = v.y;
  } else {
    raw.q[0].x = __ldcs((const uint32_t *)(q + tile_block * 128) + lane);
  }
  if (t::h_bits == 2) raw.h = __ldcs((const uint32_t *)(h + tile_block * 128) + lane);
  if (t::h_bits == 1) raw.h = __ldcs((const unsigned short *)(h + tile_block * 64) + lane);
}

/* The A fragments of both k16 steps: a[4 step + 2 (pair % 2) + row]. Scales are not applied. For BF16 the words are
 * pairs of bf16. */
template <int T> static __device__ __forceinline__ void decode_tile(const raw_tile &raw, uint32_t a[8])
{
  typedef traits<T> t;
  if (t::q_bits == 16) {
    a[0] = raw.q[0].x; a[1] = raw.q[0].y; a[2] = raw.q[0].z; a[3] = raw.q[0].w;
    a[4] = raw.q[1].x; a[5] = raw.q[1].y; a[6] = raw.q[1].z; a[7] = raw.q[1].w;
    return;
  }
  if (t::q_bits == 8) {
    const uint32_t v[2][2] = {{raw.q[0].x, raw.q[0].y}, {raw.q[0].z, raw.q[0].w}};
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
      for (int row = 0; row < 2; row++) {
        const __half2 low = as_half2(__byte_perm(v[row][step], 0x64646464, 0x4140)); /* 1024 + code */
        const __half2 high = as_half2(__byte_perm(v[row][step], 0x64646464, 0x4342));
        a[4 * step + row] = as_word(__hsub2(low, as_half2(0x64806480)));
        a[4 * step + 2 + row] = as_word(__hsub2(high, as_half2(0x64806480)));
      }
    return;
  }
  if (t::has_levels) {
    uint32_t table[4];
    levels<T>(table);
    const uint32_t v[2] = {raw.q[0].x, raw.q[0].y};
#pragma unroll
    for (int row = 0; row < 2; row++) {
      const uint32_t even = look_up(table, v[row] & 0xffff), odd = look_up(table, v[row] >> 16);
#pragma unroll
      for (int p = 0; p < 4; p++) {
        const uint32_t pair = __byte_perm(even >> 8 * p & 255, odd >> 8 * p & 255, 0x5410);
        a[4 * (p / 2) + 2 * (p % 2) + row] = small_to_half2(pair, t::bias);
      }
    }
    return;
  }
  uint32_t h = raw.h;
  if (t::h_bits == 1) h = __byte_perm(h, 0, 0x4140) << t::h_shift; /* even slots low, odd slots high */
#pragma unroll
  for (int row = 0; row < 2; row++)
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const int at = 4 * row + p;
      uint32_t pair;
      if (t::q_bits == 4)
        pair = (row ? raw.q[0].y : raw.q[0].x) >> 4 * p & 0x000f000f;
      else
        pair = raw.q[0].x >> 2 * at & 0x00030003;
      if (t::h_bits == 1) pair |= h >> at & (0x00010001u << t::h_shift);
      if (t::h_bits == 2) pair |= (h >> 2 * at & 0x00030003) << t::h_shift;
      a[4 * (p / 2) + 2 * (p % 2) + row] = small_to_half2(pair, t::bias);
    }
}

static __device__ __forceinline__ float half_bits(uint32_t bits)
{
  return __half2float(__ushort_as_half((unsigned short)bits));
}

static __device__ __forceinline__ uint32_t two_bytes(const unsigned char *p) { return *(const unsigned short *)p; }

/* Scale and minimum of step 0 and 1 (16 columns each) of a row's block of 32, from the head of its block of 256 as the
 * file has it; value = scale * code - minimum. The products are those of quant.c. */
template <int T>
static __device__ __forceinline__ void head_scales(const unsigned char *head, int group, float scale[2], float minimum[2])
{
  if (T == KG_Q4_K || T == KG_Q5_K) {
    const uint4 v = *(const uint4 *)head; /* d, dmin; 12 bytes of six-bit scales and minima */
    const uint32_t s[3] = {v.y, v.z, v.w};
    uint32_t sc, mn;
    const int shift = group % 4 * 8;
    if (group < 4) {
      sc = s[0] >> shift & 63;
      mn = s[1] >> shift & 63;
    } else {
      sc = (s[2] >> shift & 15) | (s[0] >> shift >> 6 & 3) << 4;
      mn = (s[2] >> shift >> 4 & 15) | (s[1] >> shift >> 6 & 3) << 4;
    }
    scale[0] = scale[1] = half_bits(v.x & 0xffff) * (float)sc;
    minimum[0] = minimum[1] = half_bits(v.x >> 16) * (float)mn;
  } else if (T == KG_Q6_K) {
    const float d = half_bits(two_bytes(head + 16));
    for (int i = 0; i < 2; i++) scale[i] = d * (float)(int8_t)head[2 * group + i];
  } else if (T == KG_Q3_K) {
    const float d = half_bits(two_bytes(head + 12));
    for (int i = 0; i < 2; i++) {
      const int g = 2 * group + i;
      const int low = g < 8 ? head[g] & 15 : head[g - 8] >> 4, high = head[8 + g % 4] >> g / 4 * 2 & 3;
      scale[i] = d * (float)((low | high << 4) - 32);
    }
  } else if (T == KG_Q2_K) {
    const float d = half_bits(two_bytes(head + 16)), dmin = half_bits(two_bytes(head + 18));
    for (int i = 0; i < 2; i++) {
      const int v = head[2 * group + i];
      scale[i] = d * (float)(v & 15);
      minimum[i] = dmin * (float)(v >> 4);
    }
  } else { /* IQ4_XS */
    const int low = head[4 + group / 2] >> group % 2 * 4 & 15;
    const int high = (int)(two_bytes(head + 2) >> group * 2 & 3);
    scale[0] = scale[1] = half_bits(two_bytes(head)) * (float)((low | high << 4) - 32);
  }
}

template <int T> static __device__ __forceinline__ constexpr int head_bytes()
{
  return T == KG_Q4_K || T == KG_Q5_K ? 16 : T == KG_Q6_K ? 18 : T == KG_Q3_K ? 14 : T == KG_Q2_K ? 20 : 8;
}

/* 2^(e - 128), subnormal for e of 0 and 1 */
static __device__ __forceinline__ float power_scale(uint32_t e)
{
  return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

/* Scales of rows g (0) and g + 8 (1) of a tile's block: scale[row][step]. */
template <int T>
static __device__ __forceinline__ void load_scales(const kg_matrix &m, const unsigned char *s, int tile, int block, int g,
                                                   float scale[2][2], float minimum[2][2])
{
  const size_t at = (size_t)tile * m.n_blocks + block;
  if (T == KG_Q8_0 || T == KG_Q4_0 || T == KG_Q5_0 || T == KG_IQ4_NL) {
    const float2 d = __half22float2(as_half2(((const uint32_t *)(s + at * 32))[g]));
    scale[0][0] = d.x;
    scale[1][0] = d.y;
  } else if (T == KG_Q4_1 || T == KG_Q5_1) {
    const uint2 v = ((const uint2 *)(s + at * 64))[g];
    const float2 d = __half22float2(as_half2(v.x)), low = __half22float2(as_half2(v.y));
    scale[0][0] = d.x;
    scale[1][0] = d.y;
    minimum[0][0] = -low.x;
    minimum[1][0] = -low.y;
  } else if (T == KG_MXFP4) {
    const uint32_t e = ((const unsigned short *)(s + at * 16))[g];
    scale[0][0] = power_scale(e & 255);
    scale[1][0] = power_scale(e >> 8);
  } else if (!traits<T>::is_float) {
    const unsigned char *heads = s + ((size_t)tile * (m.n_blocks / 8) + block / 8) * (16 * head_bytes<T>());
    for (int row = 0; row < 2; row++)
      head_scales<T>(heads + (g + 8 * row) * head_bytes<T>(), block % 8, scale[row], minimum[row]);
  }
}

/* Column `col` of a row. Slow: for tables of which a step reads a few rows. */
template <int T>
static __device__ float weight_value(const kg_matrix &m, int plane, int row, int col)
{
  typedef traits<T> t;
  const int tile = row / 16, g = row % 8, row8 = row % 16 / 8, block = col / 32, at = place_of(col % 32);
  const int lane = 4 * g + at / 8, j = at % 8, pair = j / 2;
  raw_tile raw;
  uint32_t a[8];
  float scale[2][2] = {}, minimum[2][2] = {};
  load_tile<T>(m, m.q + plane * m.q_plane, m.h + plane * m.h_plane, (size_t)tile * m.n_blocks + block, lane, raw);
  decode_tile<T>(raw, a);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i == 4 * (pair / 2) + 2 * (pair % 2) + row8) word = a[i];
  const uint32_t bits = j % 2 ? word >> 16 : word & 0xffff;
  if (T == KG_BF16) return __uint_as_float(bits << 16);
  if (T == KG_F16) return half_bits(bits);
  load_scales<T>(m, m.s + plane * m.s_plane, tile, block, g, scale, minimum);
  const int step = t::has_16 ? j / 4 : 0;
  const float value = (row8 ? scale[1][step] : scale[0][step]) * half_bits(bits);
  return t::has_min ? value - (row8 ? minimum[1][step] : minimum[0][step]) : value;
}
