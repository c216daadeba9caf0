/* simd.h - the vectors that the kernels are written in: KG_LANES floats or 32-bit integers, of the instruction set that
 * the including file is compiled for. KG_LANES divides KG_GROUP. Loads and stores need no alignment.
 *
 * kg_vi_dot(acc, w, x) adds to each 32-bit lane the four products of its bytes: w unsigned, x signed, exact (x within
 * -127 to 127). Weights of more than 6 bits go through kg_vi_dot_wide, whose operand kg_vi_wide made from unsigned
 * bytes; it computes with (byte - 128 + KG_WIDE_OFFSET), because only some sets multiply all unsigned bytes exactly.
 * kg_vi_dot_run adds several steps at once, KG_RUN(largest weight) at most: less work where products are 16 bits wide. */
#ifndef KG_SIMD_H
#define KG_SIMD_H

#include <stdint.h>
#include <string.h>

#define KG_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#define KG_LANES 16
#define KG_WIDE_OFFSET 128
#if defined(__AVX512BF16__)
#define KG_SIMD_NAME "avx512bf16"
#else
#define KG_SIMD_NAME "avx512vnni"
#endif

typedef __m512 kg_vf;
typedef __m512i kg_vi;

KG_INLINE kg_vf kg_vf_load(const float *p) { return _mm512_loadu_ps(p); }
KG_INLINE void kg_vf_store(float *p, kg_vf v) { _mm512_storeu_ps(p, v); }
KG_INLINE kg_vf kg_vf_set(float x) { return _mm512_set1_ps(x); }
KG_INLINE kg_vf kg_vf_add(kg_vf a, kg_vf b) { return _mm512_add_ps(a, b); }
KG_INLINE kg_vf kg_vf_mul(kg_vf a, kg_vf b) { return _mm512_mul_ps(a, b); }
KG_INLINE kg_vf kg_vf_fma(kg_vf a, kg_vf b, kg_vf c) { return _mm512_fmadd_ps(a, b, c); }
KG_INLINE kg_vf kg_vf_of_i(kg_vi v) { return _mm512_cvtepi32_ps(v); }
KG_INLINE kg_vf kg_vf_bits(kg_vi v) { return _mm512_castsi512_ps(v); }
KG_INLINE kg_vf kg_vf_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }

KG_INLINE kg_vi kg_vi_load(const void *p) { return _mm512_loadu_si512(p); }
KG_INLINE void kg_vi_store(void *p, kg_vi v) { _mm512_storeu_si512(p, v); }
KG_INLINE kg_vi kg_vi_load_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128(p)); }
KG_INLINE kg_vi kg_vi_load_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128(p)); }
KG_INLINE kg_vi kg_vi_set(int32_t x) { return _mm512_set1_epi32(x); }
KG_INLINE kg_vi kg_vi_zero(void) { return _mm512_setzero_si512(); }
KG_INLINE kg_vi kg_vi_and(kg_vi a, kg_vi b) { return _mm512_and_si512(a, b); }
KG_INLINE kg_vi kg_vi_or(kg_vi a, kg_vi b) { return _mm512_or_si512(a, b); }
KG_INLINE kg_vi kg_vi_add(kg_vi a, kg_vi b) { return _mm512_add_epi32(a, b); }
KG_INLINE kg_vi kg_vi_max(kg_vi a, kg_vi b) { return _mm512_max_epi32(a, b); }
KG_INLINE kg_vi kg_vi_shl(kg_vi v, int n) { return _mm512_slli_epi32(v, (unsigned)n); }
KG_INLINE kg_vi kg_vi_shr(kg_vi v, int n) { return _mm512_srli_epi32(v, (unsigned)n); }
KG_INLINE kg_vi kg_vi_sar(kg_vi v, int n) { return _mm512_srai_epi32(v, (unsigned)n); }
KG_INLINE kg_vi kg_vi_round(kg_vf v) { return _mm512_cvtps_epi32(v); }
KG_INLINE kg_vi kg_vi_lookup(const uint8_t table[16], kg_vi index)
{
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table)), index);
}
/* The low byte of each lane, in order. */
KG_INLINE void kg_vi_store_i8(int8_t *p, kg_vi v) { _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8(v)); }

KG_INLINE kg_vi kg_vi_dot(kg_vi acc, kg_vi w, kg_vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
KG_INLINE kg_vi kg_vi_wide(kg_vi w) { return w; }
KG_INLINE kg_vi kg_vi_dot_wide(kg_vi acc, kg_vi w, kg_vi x) { return _mm512_dpbusd_epi32(acc, w, x); }
KG_INLINE void kg_prefetch(const void *p) { _mm_prefetch(p, _MM_HINT_T0); }

#if defined(__AVX512BF16__)
/* acc + the two products of the BF16 pairs of each lane; w and x as pairs. */
KG_INLINE kg_vf kg_vf_dot_bf16(kg_vf acc, kg_vi w, kg_vi x)
{
  return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}
/* 16 floats rounded to BF16. */
KG_INLINE void kg_vf_store_bf16(void *p, kg_vf v)
{
  const __m256bh rounded = _mm512_cvtneps_pbh(v);
  memcpy(p, &rounded, sizeof rounded);
}
#endif

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#define KG_LANES 8

typedef __m256 kg_vf;
typedef __m256i kg_vi;

KG_INLINE kg_vf kg_vf_load(const float *p) { return _mm256_loadu_ps(p); }
KG_INLINE void kg_vf_store(float *p, kg_vf v) { _mm256_storeu_ps(p, v); }
KG_INLINE kg_vf kg_vf_set(float x) { return _mm256_set1_ps(x); }
KG_INLINE kg_vf kg_vf_add(kg_vf a, kg_vf b) { return _mm256_add_ps(a, b); }
KG_INLINE kg_vf kg_vf_mul(kg_vf a, kg_vf b) { return _mm256_mul_ps(a, b); }
KG_INLINE kg_vf kg_vf_fma(kg_vf a, kg_vf b, kg_vf c) { return _mm256_fmadd_ps(a, b, c); }
KG_INLINE kg_vf kg_vf_of_i(kg_vi v) { return _mm256_cvtepi32_ps(v); }
KG_INLINE kg_vf kg_vf_bits(kg_vi v) { return _mm256_castsi256_ps(v); }
KG_INLINE kg_vf kg_vf_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }

KG_INLINE kg_vi kg_vi_load(const void *p) { return _mm256_loadu_si256(p); }
KG_INLINE void kg_vi_store(void *p, kg_vi v) { _mm256_storeu_si256(p, v); }
KG_INLINE kg_vi kg_vi_load_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64(p)); }
KG_INLINE kg_vi kg_vi_load_i8(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64(p)); }
KG_INLINE kg_vi kg_vi_set(int32_t x) { return _mm256_set1_epi32(x); }
KG_INLINE kg_vi kg_vi_zero(void) { return _mm256_setzero_si256(); }
KG_INLINE kg_vi kg_vi_and(kg_vi a, kg_vi b) { return _mm256_and_si256(a, b); }
KG_INLINE kg_vi kg_vi_or(kg_vi a, kg_vi b) { return _mm256_or_si256(a, b); }
KG_INLINE kg_vi kg_vi_add(kg_vi a, kg_vi b) { return _mm256_add_epi32(a, b); }
KG_INLINE kg_vi kg_vi_max(kg_vi a, kg_vi b) { return _mm256_max_epi32(a, b); }
KG_INLINE kg_vi kg_vi_shl(kg_vi v, int n) { return _mm256_slli_epi32(v, n); }
KG_INLINE kg_vi kg_vi_shr(kg_vi v, int n) { return _mm256_srli_epi32(v, n); }
KG_INLINE kg_vi kg_vi_sar(kg_vi v, int n) { return _mm256_srai_epi32(v, n); }
KG_INLINE kg_vi kg_vi_round(kg_vf v) { return _mm256_cvtps_epi32(v); }
KG_INLINE kg_vi kg_vi_lookup(const uint8_t table[16], kg_vi index)
{
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), index);
}
KG_INLINE void kg_vi_store_i8(int8_t *p, kg_vi v)
{
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
}
KG_INLINE void kg_prefetch(const void *p) { _mm_prefetch(p, _MM_HINT_T0); }

#if defined(__AVXVNNI__)

#define KG_SIMD_NAME "avxvnni"
#define KG_WIDE_OFFSET 128

KG_INLINE kg_vi kg_vi_dot(kg_vi acc, kg_vi w, kg_vi x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
KG_INLINE kg_vi kg_vi_wide(kg_vi w) { return w; }
KG_INLINE kg_vi kg_vi_dot_wide(kg_vi acc, kg_vi w, kg_vi x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }

#else

#define KG_SIMD_NAME "avx2"
#define KG_WIDE_OFFSET 0

/* maddubs saturates at 16 bits, which 2 * 63 * 127 and 2 * 128 * 127 are under; so are 8 times 2 * 15 * 127, and so on. */
#define KG_RUN(largest) ((largest) <= 15 ? 8 : (largest) <= 31 ? 4 : (largest) <= 63 ? 2 : 1)

KG_INLINE kg_vi kg_vi_dot(kg_vi acc, kg_vi w, kg_vi x)
{
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
KG_INLINE kg_vi kg_vi_dot_run(kg_vi acc, const kg_vi *w, const uint8_t *x, int n)
{
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int s = 0; s < n; s++) {
    int32_t word;
    memcpy(&word, x + 4 * s, sizeof word);
    sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[s], _mm256_set1_epi32(word)));
  }
  return _mm256_add_epi32(acc, _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
}
KG_INLINE kg_vi kg_vi_wide(kg_vi w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
KG_INLINE kg_vi kg_vi_dot_wide(kg_vi acc, kg_vi w, kg_vi x)
{
  return kg_vi_dot(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); /* |w| * (x with the sign of w) */
}

#endif

#else /* four lanes of GCC's vectors: SSE2, NEON, or whatever the compiler makes of them */

#define KG_SIMD_NAME "generic"
#define KG_LANES 4
#define KG_WIDE_OFFSET 128

typedef float kg_vf __attribute__((vector_size(16)));
typedef int32_t kg_vi __attribute__((vector_size(16)));
typedef uint32_t kg_vu __attribute__((vector_size(16)));
typedef int16_t kg_vs __attribute__((vector_size(16)));

KG_INLINE kg_vf kg_vf_load(const float *p) { kg_vf v; memcpy(&v, p, sizeof v); return v; }
KG_INLINE void kg_vf_store(float *p, kg_vf v) { memcpy(p, &v, sizeof v); }
KG_INLINE kg_vf kg_vf_set(float x) { return (kg_vf){x, x, x, x}; }
KG_INLINE kg_vf kg_vf_add(kg_vf a, kg_vf b) { return a + b; }
KG_INLINE kg_vf kg_vf_mul(kg_vf a, kg_vf b) { return a * b; }
KG_INLINE kg_vf kg_vf_fma(kg_vf a, kg_vf b, kg_vf c) { return a * b + c; } /* two roundings: see matmul.h */
KG_INLINE kg_vf kg_vf_of_i(kg_vi v) { return __builtin_convertvector(v, kg_vf); }
KG_INLINE kg_vf kg_vf_bits(kg_vi v) { return (kg_vf)v; }

KG_INLINE kg_vi kg_vi_load(const void *p) { kg_vi v; memcpy(&v, p, sizeof v); return v; }
KG_INLINE void kg_vi_store(void *p, kg_vi v) { memcpy(p, &v, sizeof v); }
KG_INLINE kg_vi kg_vi_load_u8(const void *p)
{
  const uint8_t *b = p;
  return (kg_vi){b[0], b[1], b[2], b[3]};
}
KG_INLINE kg_vi kg_vi_load_i8(const void *p)
{
  const int8_t *b = p;
  return (kg_vi){b[0], b[1], b[2], b[3]};
}
KG_INLINE kg_vi kg_vi_set(int32_t x) { return (kg_vi){x, x, x, x}; }
KG_INLINE kg_vi kg_vi_zero(void) { return kg_vi_set(0); }
KG_INLINE kg_vi kg_vi_and(kg_vi a, kg_vi b) { return a & b; }
KG_INLINE kg_vi kg_vi_or(kg_vi a, kg_vi b) { return a | b; }
KG_INLINE kg_vi kg_vi_add(kg_vi a, kg_vi b) { return (kg_vi)((kg_vu)a + (kg_vu)b); }
KG_INLINE kg_vi kg_vi_max(kg_vi a, kg_vi b) { const kg_vi m = a > b; return (a & m) | (b & ~m); }
KG_INLINE kg_vi kg_vi_shl(kg_vi v, int n) { return (kg_vi)((kg_vu)v << n); }
KG_INLINE kg_vi kg_vi_shr(kg_vi v, int n) { return (kg_vi)((kg_vu)v >> n); }
KG_INLINE kg_vi kg_vi_sar(kg_vi v, int n) { return v >> n; }
/* To the nearest integer, ties to even; |v| < 2^22. Adding 1.5 * 2^23 leaves the integer in the low bits. */
KG_INLINE kg_vi kg_vi_round(kg_vf v) { return (kg_vi)(v + 12582912.0f) - 0x4b400000; }
KG_INLINE kg_vi kg_vi_lookup(const uint8_t table[16], kg_vi index)
{
  uint8_t bytes[16];
  memcpy(bytes, &index, 16);
  for (int i = 0; i < 16; i++) bytes[i] = table[bytes[i]];
  return kg_vi_load(bytes);
}
KG_INLINE void kg_vi_store_i8(int8_t *p, kg_vi v)
{
  for (int i = 0; i < 4; i++) p[i] = (int8_t)v[i];
}
/* Half-precision bits to float: shift exponent and fraction into place and rescale, which is exact for subnormals too;
 * infinities and NaNs get their exponent back. */
KG_INLINE kg_vf kg_vf_load_f16(const void *p)
{
  uint16_t h[4];
  memcpy(h, p, sizeof h);
  const kg_vi v = {h[0], h[1], h[2], h[3]};
  const kg_vi magnitude = (v & 0x7fff) << 13;
  const kg_vf scaled = (kg_vf)magnitude * 0x1p112f;
  const kg_vi special = magnitude >= (0x7c00 << 13);
  const kg_vi bits = ((kg_vi)scaled & ~special) | ((magnitude | 0x7f800000) & special);
  return (kg_vf)(bits | kg_vi_shl(v & 0x8000, 16));
}

/* Even and odd bytes as 16-bit lanes, which hold 255 * 127; their products are added in 32 bits. */
KG_INLINE kg_vi kg_vi_dot(kg_vi acc, kg_vi w, kg_vi x)
{
  const kg_vs even = ((kg_vs)w & 0xff) * ((kg_vs)kg_vi_shl(x & 0x00ff00ff, 8) >> 8);
  const kg_vs odd = (kg_vs)((kg_vi)((kg_vu)w >> 8) & 0x00ff00ff) * ((kg_vs)x >> 8);
  const kg_vi low = (kg_vi_shl((kg_vi)even, 16) >> 16) + (kg_vi_shl((kg_vi)odd, 16) >> 16);
  return acc + low + ((kg_vi)even >> 16) + ((kg_vi)odd >> 16);
}
KG_INLINE kg_vi kg_vi_wide(kg_vi w) { return w; }
KG_INLINE kg_vi kg_vi_dot_wide(kg_vi acc, kg_vi w, kg_vi x) { return kg_vi_dot(acc, w, x); }
KG_INLINE void kg_prefetch(const void *p) { __builtin_prefetch(p); }

#endif

/* The largest lane, and the sum of 16 bytes. */
#if KG_LANES == 4
KG_INLINE int32_t kg_vi_largest(kg_vi v)
{
  const int32_t a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
  return a > b ? a : b;
}
KG_INLINE int32_t kg_sum16(const int8_t *p)
{
  int32_t sum = 0;
  for (int i = 0; i < 16; i++) sum += p[i];
  return sum;
}
#else
KG_INLINE int32_t kg_vi_largest(kg_vi v)
{
#if KG_LANES == 16
  const __m256i of8 = _mm256_max_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
#else
  const __m256i of8 = v;
#endif
  const __m128i of4 = _mm_max_epi32(_mm256_castsi256_si128(of8), _mm256_extracti128_si256(of8, 1));
  const __m128i of2 = _mm_max_epi32(of4, _mm_shuffle_epi32(of4, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(of2, _mm_shuffle_epi32(of2, 0xb1)));
}
KG_INLINE int32_t kg_sum16(const int8_t *p)
{
  const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const void *)p), _mm_set1_epi8(-128)); /* + 128 */
  const __m128i sums = _mm_sad_epu8(bytes, _mm_setzero_si128());
  return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4) - 16 * 128;
}
#endif

/* One 32-bit pattern, four activation bytes, in every lane. */
KG_INLINE kg_vi kg_vi_broadcast(const void *p)
{
  int32_t x;
  memcpy(&x, p, sizeof x);
  return kg_vi_set(x);
}

KG_INLINE kg_vf kg_vf_broadcast(const void *p)
{
  float x;
  memcpy(&x, p, sizeof x);
  return kg_vf_set(x);
}

#if !defined(KG_RUN)
#define KG_RUN(largest) 1
KG_INLINE kg_vi kg_vi_dot_run(kg_vi acc, const kg_vi *w, const uint8_t *x, int n)
{
  for (int s = 0; s < n; s++) acc = kg_vi_dot(acc, w[s], kg_vi_broadcast(x + 4 * s));
  return acc;
}
#endif

#endif
