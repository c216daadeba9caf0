/* lanes.h - sixteen floats as one value, for the files that are compiled once per instruction set. The including file
 * has set KG_VECTOR to one of the numbers below (and GCC's target options to match). Lane i of every operation depends
 * on lane i of its operands alone, so a number has the same bits wherever it stands in a row. */
#ifndef KG_CPU_LANES_H
#define KG_CPU_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "quant.h"

#define KG_VECTOR_GENERIC 0 /* what every compiler can do: four times four floats, no fused multiply-add */
#define KG_VECTOR_AVX2 1
#define KG_VECTOR_AVX512 2

#if KG_VECTOR != KG_VECTOR_GENERIC && defined(__x86_64__)
#include <immintrin.h>
#endif

#define VEC static inline __attribute__((always_inline))

enum { LANES = 16 };

#if KG_VECTOR == KG_VECTOR_AVX512

typedef __m512 vec;
typedef __mmask16 vecm;

VEC vec v_set1(float x) { return _mm512_set1_ps(x); }
VEC vec v_load(const float *p) { return _mm512_loadu_ps(p); }
VEC void v_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
VEC vec v_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
VEC void v_store_half(uint16_t *p, vec a)
{
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
VEC vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
VEC vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
VEC vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
VEC vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
VEC vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
VEC vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
VEC vecm v_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
VEC vec v_select(vecm m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
VEC vec v_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC vec v_abs(vec a) { return _mm512_abs_ps(a); }
/* a * 2^n for whole n; overflow and underflow as IEEE rounds them */
VEC vec v_scale2(vec a, vec n) { return _mm512_scalef_ps(a, n); }
/* lanes i with from <= i < to */
VEC vecm v_range(int from, int to)
{
  const unsigned below_to = to >= LANES ? 0xffffu : to <= 0 ? 0 : (1u << to) - 1;
  const unsigned below_from = from >= LANES ? 0xffffu : from <= 0 ? 0 : (1u << from) - 1;
  return (vecm)(below_to & ~below_from);
}

#elif KG_VECTOR == KG_VECTOR_AVX2

typedef struct vec { __m256 a, b; } vec;
typedef struct vecm { __m256 a, b; } vecm;

VEC vec v_set1(float x) { const __m256 s = _mm256_set1_ps(x); return (vec){s, s}; }
VEC vec v_load(const float *p) { return (vec){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
VEC void v_store(float *p, vec x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
VEC vec v_load_half(const uint16_t *p)
{
  return (vec){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
               _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
VEC void v_store_half(uint16_t *p, vec x)
{
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
VEC vec v_add(vec x, vec y) { return (vec){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
VEC vec v_sub(vec x, vec y) { return (vec){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
VEC vec v_mul(vec x, vec y) { return (vec){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
VEC vec v_div(vec x, vec y) { return (vec){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
VEC vec v_fma(vec x, vec y, vec z) { return (vec){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
VEC vec v_max(vec x, vec y) { return (vec){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
VEC vec v_min(vec x, vec y) { return (vec){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
VEC vecm v_less(vec x, vec y)
{
  return (vecm){_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
VEC vec v_select(vecm m, vec yes, vec no)
{
  return (vec){_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
VEC vec v_round(vec x)
{
  return (vec){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
               _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
VEC vec v_abs(vec x)
{
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return (vec){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
VEC __m256 scale2_half(__m256 a, __m256 n)
{
  /* in two steps, so that neither power leaves the range of normal numbers */
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
VEC vec v_scale2(vec x, vec n) { return (vec){scale2_half(x.a, n.a), scale2_half(x.b, n.b)}; }
VEC vecm v_range(int from, int to)
{
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), lane_b = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
  const __m256i before = _mm256_set1_epi32(from - 1), end = _mm256_set1_epi32(to);
  return (vecm){
      _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane, before), _mm256_cmpgt_epi32(end, lane))),
      _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane_b, before), _mm256_cmpgt_epi32(end, lane_b)))};
}

#else

typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t vec4i __attribute__((vector_size(16)));
typedef struct vec { vec4 q[4]; } vec;
typedef struct vecm { vec4i q[4]; } vecm;

VEC vec v_set1(float x) { const vec4 s = {x, x, x, x}; return (vec){{s, s, s, s}}; }
VEC vec v_load(const float *p) { vec x; memcpy(&x, p, sizeof x); return x; }
VEC void v_store(float *p, vec x) { memcpy(p, &x, sizeof x); }
VEC vec v_load_half(const uint16_t *p)
{
  float x[LANES];
  for (int i = 0; i < LANES; i++) x[i] = kg_f16_to_f32(p[i]);
  return v_load(x);
}
VEC void v_store_half(uint16_t *p, vec a)
{
  float x[LANES];
  v_store(x, a);
  for (int i = 0; i < LANES; i++) p[i] = kg_f32_to_f16(x[i]);
}
#define EACH(expression)                                                                                               \
  (vec)                                                                                                                \
  {                                                                                                                    \
    {                                                                                                                  \
      expression(0), expression(1), expression(2), expression(3)                                                       \
    }                                                                                                                  \
  }
#define ADD_Q(i) x.q[i] + y.q[i]
#define SUB_Q(i) x.q[i] - y.q[i]
#define MUL_Q(i) x.q[i] * y.q[i]
#define DIV_Q(i) x.q[i] / y.q[i]
#define FMA_Q(i) x.q[i] * y.q[i] + z.q[i]
VEC vec v_add(vec x, vec y) { return EACH(ADD_Q); }
VEC vec v_sub(vec x, vec y) { return EACH(SUB_Q); }
VEC vec v_mul(vec x, vec y) { return EACH(MUL_Q); }
VEC vec v_div(vec x, vec y) { return EACH(DIV_Q); }
VEC vec v_fma(vec x, vec y, vec z) { return EACH(FMA_Q); }
VEC vec4 select4(vec4i m, vec4 yes, vec4 no) { return (vec4)(((vec4i)yes & m) | ((vec4i)no & ~m)); }
#define LESS_Q(i) x.q[i] < y.q[i]
VEC vecm v_less(vec x, vec y) { return (vecm){{LESS_Q(0), LESS_Q(1), LESS_Q(2), LESS_Q(3)}}; }
#define SELECT_Q(i) select4(m.q[i], yes.q[i], no.q[i])
VEC vec v_select(vecm m, vec yes, vec no) { return EACH(SELECT_Q); }
VEC vec v_max(vec x, vec y) { return v_select(v_less(y, x), x, y); }
VEC vec v_min(vec x, vec y) { return v_select(v_less(x, y), x, y); }
#define ABS_Q(i) (vec4)((vec4i)x.q[i] & 0x7fffffff)
VEC vec v_abs(vec x) { return EACH(ABS_Q); }
/* nearest whole number, for |x| < 2^22: adding 1.5 * 2^23 pushes the fraction out */
VEC vec v_round(vec x) { return v_sub(v_add(x, v_set1(12582912.0f)), v_set1(12582912.0f)); }
VEC vec4 scale2_quarter(vec4 a, vec4 n)
{
  const vec4i whole = __builtin_convertvector(n, vec4i), half = whole >> 1;
  return a * (vec4)((half + 127) << 23) * (vec4)((whole - half + 127) << 23);
}
#define SCALE2_Q(i) scale2_quarter(x.q[i], n.q[i])
VEC vec v_scale2(vec x, vec n) { return EACH(SCALE2_Q); }
VEC vecm v_range(int from, int to)
{
  const vec4i lane = {0, 1, 2, 3};
#define RANGE_Q(i) (lane + 4 * i >= from) & (lane + 4 * i < to)
  return (vecm){{RANGE_Q(0), RANGE_Q(1), RANGE_Q(2), RANGE_Q(3)}};
}

#endif

/* The first n < LANES floats of p, zeros behind them. */
VEC vec v_load_n(const float *p, int64_t n)
{
#if KG_VECTOR == KG_VECTOR_AVX512
  return _mm512_maskz_loadu_ps(v_range(0, (int)n), p);
#else
  float x[LANES] = {0};
  memcpy(x, p, (size_t)n * sizeof *x);
  return v_load(x);
#endif
}

VEC void v_store_n(float *p, vec a, int64_t n)
{
#if KG_VECTOR == KG_VECTOR_AVX512
  _mm512_mask_storeu_ps(p, v_range(0, (int)n), a);
#else
  float x[LANES];
  v_store(x, a);
  memcpy(p, x, (size_t)n * sizeof *x);
#endif
}

/* Sum and maximum of the lanes, always in the same order: halves onto each other. */
VEC float v_sum(vec a)
{
  float x[LANES];
  v_store(x, a);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

VEC float v_peak(vec a)
{
  float x[LANES];
  v_store(x, a);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

/* e^x within 2 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, then 2^n. */
VEC vec v_exp(vec x)
{
  const vec lowest = v_set1(-110.0f), highest = v_set1(89.0f); /* beyond them the result is 0 or infinite */
  const vec clamped = v_min(highest, v_max(lowest, x));        /* NaN stays NaN */
  const vec n = v_round(v_mul(clamped, v_set1(1.44269504088896341f)));
  vec r = v_fma(n, v_set1(-0.693359375f), clamped);
  r = v_fma(n, v_set1(2.12194440e-4f), r);
  vec p = v_set1(1.9875691500e-4f);
  p = v_fma(p, r, v_set1(1.3981999507e-3f));
  p = v_fma(p, r, v_set1(8.3334519073e-3f));
  p = v_fma(p, r, v_set1(4.1665795894e-2f));
  p = v_fma(p, r, v_set1(1.6666665459e-1f));
  p = v_fma(p, r, v_set1(5.0000001201e-1f));
  p = v_fma(p, v_mul(r, r), v_add(r, v_set1(1.0f)));
  return v_scale2(p, n);
}

/* tanh x: a polynomial near 0, else through e^2x */
VEC vec v_tanh(vec x)
{
  const vec one = v_set1(1.0f), z = v_mul(x, x);
  vec p = v_set1(-5.70498872745e-3f);
  p = v_fma(p, z, v_set1(2.06390887954e-2f));
  p = v_fma(p, z, v_set1(-5.37397155531e-2f));
  p = v_fma(p, z, v_set1(1.33314422036e-1f));
  p = v_fma(p, z, v_set1(-3.33332819422e-1f));
  const vec near = v_fma(v_mul(p, z), x, x);
  const vec far = v_sub(one, v_div(v_set1(2.0f), v_add(v_exp(v_add(x, x)), one)));
  return v_select(v_less(v_abs(x), v_set1(0.625f)), near, far);
}

#endif
