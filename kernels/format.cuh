/* format.cuh - reading packed weights (format.h): a lane's part of a tile as f16 fragments, and single values. Products
 * take weights rounded to f16, what a table of rows gives is exact. */
#pragma once

#include "common.cuh"
#include "format.h"

/* What the code of a format means, at compile time. */
template <int T> struct traits {
  static constexpr int q_bits = T == KG_F16 || T == KG_BF16    ? 16
                                : T == KG_Q8_0                 ? 8
                                : T == KG_Q2_K || T == KG_Q3_K ? 2
                                                               : 4;
  static constexpr int h_bits = T == KG_Q6_K ? 2 : T == KG_Q5_0 || T == KG_Q5_1 || T == KG_Q5_K || T == KG_Q3_K ? 1 : 0;
  static constexpr int h_shift = T == KG_Q3_K ? 2 : 4;
  static constexpr bool has_levels = T == KG_IQ4_NL || T == KG_IQ4_XS || T == KG_MXFP4;
  /* subtracted from the code */
  static constexpr int bias = T == KG_Q8_0 || has_levels ? 128
                              : T == KG_Q4_0             ? 8
                              : T == KG_Q5_0             ? 16
                              : T == KG_Q6_K             ? 32
                              : T == KG_Q3_K             ? 4
                                                         : 0;
  static constexpr bool has_min = T == KG_Q4_1 || T == KG_Q5_1 || T == KG_Q4_K || T == KG_Q5_K || T == KG_Q2_K;
  static constexpr bool has_16 = T == KG_Q6_K || T == KG_Q3_K || T == KG_Q2_K; /* scales per 16 columns */
  static constexpr bool is_float = T == KG_F16 || T == KG_BF16;
  static constexpr bool has_fields = q_bits == 4 && h_bits == 1; /* of 5 bits each, across both planes (format.h) */
};

/* Levels of a nibble, biased by 128, as four words of bytes. */
template <int T> static __device__ __forceinline__ void levels(uint32_t table[4])
{
  if (T == KG_MXFP4) { /* 0 1 2 3 4 6 8 12 and their negatives */
    table[0] = 0x83828180;
    table[1] = 0x8c888684;
    table[2] = 0x7d7e7f80;
    table[3] = 0x74787a7c;
  } else { /* -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113 */
    table[0] = 0x3f2d1801;
    table[1] = 0x766a5d4f;
    table[2] = 0xa6998d81;
    table[3] = 0xf1d9c5b5;
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

/* (a & mask) | b in one instruction, which the compiler makes two of for two constants. */
static __device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t b)
{
#ifdef __CUDA_ARCH__
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(mask), "r"(b));
  return out;
#else
  return (a & mask) | b;
#endif
}

static constexpr uint32_t whole = 0x64006400; /* 1024 in both halves: 1024 + n has n in its last bits */

/* Two whole numbers n of which `pair` has 1024 + n 2^shift, minus bias. A number that stands higher is divided, which
 * is exact and costs less than a shift. */
static __device__ __forceinline__ uint32_t whole_to_half2(uint32_t pair, int shift, int bias)
{
  const float unit = 1.0f / (float)(1 << shift);
  if (!shift) return as_word(__hsub2(as_half2(pair), __float2half2_rn((float)(1024 + bias))));
  return as_word(__hfma2(as_half2(pair), __float2half2_rn(unit), __float2half2_rn(-1024 * unit - (float)bias)));
}

/* The numbers where `mask` is. */
static __device__ __forceinline__ uint32_t small_to_half2(uint32_t word, uint32_t mask, int shift, int bias)
{
  return whole_to_half2(and_or(word, mask, whole), shift, bias);
}

/* Eight fields of 5 bits in each half of two words and a byte (format.h). */
template <int T>
static __device__ __forceinline__ void decode_fields(uint32_t w0, uint32_t w1, uint32_t h, uint32_t a[8])
{
  constexpr int bias = traits<T>::bias;
  constexpr uint32_t both = 0x00010001;
  const uint32_t u0 = w0 >> 7, u1 = w1 >> 6;
  h = __byte_perm(h, 0, 0x4140); /* a byte of each half */
  a[0] = small_to_half2(w0, 0x1f * both, 0, bias);
  a[2] = small_to_half2(w0, 0x3e0 * both, 5, bias);
  a[4] = small_to_half2(u0, 0x1f0 * both, 4, bias);
  a[6] = small_to_half2(w1, 0x1f * both, 0, bias);
  a[1] = small_to_half2(w1, 0x3e0 * both, 5, bias);
  a[3] = small_to_half2(u1, 0x3e0 * both, 5, bias);
  a[5] = small_to_half2(h, 0x1f * both, 0, bias);
  a[7] = whole_to_half2(and_or(u1, 0x10 * both, and_or(u0, 8 * both, and_or(h, 0xe0 * both, whole))), 3, bias);
}

/* Bytes of a tile's block in each plane (format.h), and of its scales: per block of 32, or per block of 256 the heads.
 */
template <int T> struct sizes {
  static constexpr bool has_heads =
      T == KG_Q4_K || T == KG_Q5_K || T == KG_Q6_K || T == KG_Q3_K || T == KG_Q2_K || T == KG_IQ4_XS;
  static constexpr int q = traits<T>::q_bits * 64, h = traits<T>::h_bits * 64;
  static constexpr int head = T == KG_Q4_K || T == KG_Q5_K ? 16
                              : T == KG_Q6_K               ? 18
                              : T == KG_Q3_K               ? 14
                              : T == KG_Q2_K               ? 20
                                                           : 8;
  static constexpr int s = has_heads                      ? 16 * head
                           : traits<T>::is_float          ? 0
                           : T == KG_Q4_1 || T == KG_Q5_1 ? 64
                           : T == KG_MXFP4                ? 16
                                                          : 32;
  static constexpr int s_blocks = has_heads ? 8 : 1;
};

/* A lane's part of a tile's block as it stands in memory. */
struct raw_tile {
  uint4 q[2];
  uint32_t h;
};

/* q and h: of the block. */
template <int T>
static __device__ __forceinline__ void load_tile(const unsigned char *q, const unsigned char *h, int lane,
                                                 raw_tile &raw)
{
  typedef traits<T> t;
  if (t::q_bits == 16) {
    raw.q[0] = ((const uint4 *)q)[lane];
    raw.q[1] = ((const uint4 *)q)[32 + lane];
  } else if (t::q_bits == 8) {
    raw.q[0] = ((const uint4 *)q)[lane];
  } else if (t::q_bits == 4) {
    const uint2 v = ((const uint2 *)q)[lane];
    raw.q[0].x = v.x;
    raw.q[0].y = v.y;
  } else {
    raw.q[0].x = ((const uint32_t *)q)[lane];
  }
  if (t::h_bits == 2) raw.h = ((const uint32_t *)h)[lane];
  if (t::h_bits == 1) raw.h = ((const unsigned short *)h)[lane];
}

/* value = code * scale + offset; both halves alike; of rows g (0) and g + 8 (1), of each 16 columns where has_16. */
struct tile_scales {
  __half2 scale[2][2], offset[2][2];
};

/* The codes as A fragments of both k16 steps: a[4 step + 2 (pair % 2) + row]. For BF16 the words are pairs of bf16. */
template <int T> static __device__ __forceinline__ void decode_codes(const raw_tile &raw, uint32_t a[8])
{
  typedef traits<T> t;
  if (t::q_bits == 16) {
    a[0] = raw.q[0].x;
    a[1] = raw.q[0].y;
    a[2] = raw.q[0].z;
    a[3] = raw.q[0].w;
    a[4] = raw.q[1].x;
    a[5] = raw.q[1].y;
    a[6] = raw.q[1].z;
    a[7] = raw.q[1].w;
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
        a[4 * (p / 2) + 2 * (p % 2) + row] = small_to_half2(pair, 0x00ff00ff, 0, t::bias);
      }
    }
    return;
  }
  if (t::has_fields) {
    decode_fields<T>(raw.q[0].x, raw.q[0].y, raw.h, a);
    return;
  }
  if (t::q_bits == 4) { /* pairs 1 and 3 stay where they are: half of the shifts do */
#pragma unroll
    for (int row = 0; row < 2; row++)
#pragma unroll
      for (int p = 0; p < 4; p++) {
        const uint32_t word = (row ? raw.q[0].y : raw.q[0].x) >> p / 2 * 8;
        const int at = 2 * (4 * row + p), shift = p % 2 * 4; /* of its two high bits, and of its low ones */
        uint32_t pair = and_or(word, 0x000f000f << shift, whole);
        if (t::h_bits == 2) {
          const int by = shift + 4 - at;
          pair = and_or(by < 0 ? raw.h >> -by : raw.h << by, 0x00030003 << (shift + 4), pair);
        }
        a[4 * (p / 2) + 2 * (p % 2) + row] = whole_to_half2(pair, shift, t::bias);
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
      uint32_t pair = and_or(raw.q[0].x >> 2 * at, 0x00030003, whole);
      if (t::h_bits == 1) pair = and_or(h >> at, 0x00010001u << t::h_shift, pair);
      a[4 * (p / 2) + 2 * (p % 2) + row] = whole_to_half2(pair, 0, t::bias);
    }
}

/* The weights as f16 fragments, rounded once; scales and offsets are f16 already. */
template <int T>
static __device__ __forceinline__ void decode_tile(const raw_tile &raw, const tile_scales &s, uint32_t a[8])
{
  typedef traits<T> t;
  decode_codes<T>(raw, a);
#pragma unroll
  for (int i = 0; i < 8 && !t::is_float; i++) {
    const int row = i % 2, step = t::has_16 ? i / 4 : 0;
    const __half2 code = as_half2(a[i]);
    a[i] = as_word(t::has_min ? __hfma2(code, s.scale[row][step], s.offset[row][step])
                              : __hmul2(code, s.scale[row][step]));
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
static __device__ __forceinline__ void head_scales(const unsigned char *head, int group, float scale[2],
                                                   float minimum[2])
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

/* 2^(e - 128), subnormal for e of 0 and 1 */
static __device__ __forceinline__ float power_scale(uint32_t e)
{
  return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
}

/* Scales of a tile's block, from the block's scales or the heads of its block of 256. */
template <int T>
static __device__ __forceinline__ void load_scales(const unsigned char *s, int block, int g, tile_scales &out)
{
  if (T == KG_Q8_0 || T == KG_Q4_0 || T == KG_Q5_0 || T == KG_IQ4_NL) {
    const __half2 d = as_half2(((const uint32_t *)s)[g]);
    out.scale[0][0] = __low2half2(d);
    out.scale[1][0] = __high2half2(d);
  } else if (T == KG_Q4_1 || T == KG_Q5_1) {
    const uint2 v = ((const uint2 *)s)[g];
    out.scale[0][0] = __low2half2(as_half2(v.x));
    out.scale[1][0] = __high2half2(as_half2(v.x));
    out.offset[0][0] = __low2half2(as_half2(v.y));
    out.offset[1][0] = __high2half2(as_half2(v.y));
  } else if (T == KG_MXFP4) { /* powers of two beyond f16's become its largest and zero */
    const uint32_t e = ((const unsigned short *)s)[g];
    for (int row = 0; row < 2; row++)
      out.scale[row][0] = __float2half2_rn(fminf(power_scale(e >> 8 * row & 255), 4096));
  } else if (sizes<T>::has_heads) {
    for (int row = 0; row < 2; row++) {
      float scale[2], minimum[2] = {0, 0};
      head_scales<T>(s + (g + 8 * row) * sizes<T>::head, block % 8, scale, minimum);
      for (int step = 0; step < (traits<T>::has_16 ? 2 : 1); step++) {
        out.scale[row][step] = __float2half2_rn(scale[step]);
        if (traits<T>::has_min) out.offset[row][step] = __float2half2_rn(-minimum[step]);
      }
    }
  }
}

/* The same in float32, of one row and step. */
template <int T>
static __device__ void exact_scale(const unsigned char *s, int block, int g, int row8, int step, float *scale,
                                   float *minimum)
{
  float both[2], minima[2] = {0, 0};
  *minimum = 0;
  if (sizes<T>::has_heads) {
    head_scales<T>(s + (g + 8 * row8) * sizes<T>::head, block % 8, both, minima);
    *scale = step ? both[1] : both[0];
    *minimum = step ? minima[1] : minima[0];
  } else if (T == KG_MXFP4) {
    *scale = power_scale(s[2 * g + row8]);
  } else if (T == KG_Q4_1 || T == KG_Q5_1) {
    *scale = half_bits(two_bytes(s + 8 * g + 2 * row8));
    *minimum = -half_bits(two_bytes(s + 8 * g + 4 + 2 * row8));
  } else
    *scale = half_bits(two_bytes(s + 4 * g + 2 * row8));
}

/* Column `col` of a row. Slow: for tables of which a step reads a few rows. */
template <int T> static __device__ float weight_value(const kg_matrix &m, int plane, int row, int col)
{
  typedef traits<T> t;
  const int tile = row / 16, g = row % 8, row8 = row % 16 / 8, block = col / 32, at = place_of(col % 32);
  const int lane = 4 * g + at / 8, j = at % 8, pair = j / 2;
  const size_t tile_block = (size_t)tile * m.n_blocks + block;
  raw_tile raw;
  uint32_t a[8];
  load_tile<T>(m.q + plane * m.q_plane + tile_block * sizes<T>::q, m.h + plane * m.h_plane + tile_block * sizes<T>::h,
               lane, raw);
  decode_codes<T>(raw, a);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i == 4 * (pair / 2) + 2 * (pair % 2) + row8) word = a[i];
  const uint32_t bits = j % 2 ? word >> 16 : word & 0xffff;
  if (T == KG_BF16) return __uint_as_float(bits << 16);
  if (T == KG_F16) return half_bits(bits);
  float scale, minimum;
  exact_scale<T>(m.s + plane * m.s_plane + (size_t)tile * (m.n_blocks / sizes<T>::s_blocks) * sizes<T>::s +
                     (size_t)(block / sizes<T>::s_blocks) * sizes<T>::s,
                 block, g, row8, t::has_16 ? j / 4 : 0, &scale, &minimum);
  const float value = scale * half_bits(bits);
  return t::has_min ? value - minimum : value;
}
