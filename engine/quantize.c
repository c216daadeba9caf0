/* quantize.c - float32 values to blocks. Every input gives the same bytes on every machine: the arithmetic below is
 * float32 and double, operation by operation. */
#include <math.h>
#include <string.h>

#include "error.h"
#include "quant.h"

static void store_u16(uint8_t *bytes, uint16_t value)
{
  bytes[0] = (uint8_t)value;
  bytes[1] = (uint8_t)(value >> 8);
}

/* ---- blocks of 32 on a grid from the extreme values ---- */

/* The integer nearest to x within [low, high], halves upwards; total, so that no input is undefined behaviour. */
static int nearest(float x, int low, int high)
{
  if (!(x > (float)low)) return low;
  if (x >= (float)high) return high;
  const int truncated = (int)x;
  const float rest = x - (float)truncated; /* exact */
  return truncated + (rest >= 0.5f) - (rest < -0.5f);
}

/* A grid of steps of d from `origin`: what is stored is rounded to half precision, the quantizer uses the same. */
typedef struct grid {
  float origin, inverse; /* q = (x - origin) * inverse */
  uint16_t d_bits, origin_bits;
} grid;

static grid grid_make(float d, float origin)
{
  grid g = {.d_bits = kg_f32_to_f16(d), .origin_bits = kg_f32_to_f16(origin)};
  const float stored = kg_f16_to_f32(g.d_bits);
  g.inverse = stored != 0 ? 1 / stored : 0;
  g.origin = kg_f16_to_f32(g.origin_bits);
  return g;
}

/* The value farthest from zero, with its sign. */
static float extreme(const float *x, int n)
{
  float most = 0;
  for (int i = 0; i < n; i++)
    if (fabsf(x[i]) > fabsf(most)) most = x[i];
  return most;
}

/* The extreme value sits on the most negative level, as negative levels reach one step further. */
static grid symmetric_grid(const float *x, int n_levels)
{
  return grid_make(extreme(x, 32) / (float)(-n_levels / 2), 0);
}

static grid range_grid(const float *x, int n_levels)
{
  float low = x[0], high = x[0];
  for (int i = 1; i < 32; i++) {
    low = fminf(low, x[i]);
    high = fmaxf(high, x[i]);
  }
  return grid_make((high - low) / (float)(n_levels - 1), low);
}

static void quantize_q8_0(const float *x, uint8_t *b)
{
  const grid g = grid_make(fabsf(extreme(x, 32)) / 127, 0);
  store_u16(b, g.d_bits);
  for (int i = 0; i < 32; i++) b[2 + i] = (uint8_t)nearest(x[i] * g.inverse, -127, 127);
}

static void quantize_q4_0(const float *x, uint8_t *b)
{
  const grid g = symmetric_grid(x, 16);
  store_u16(b, g.d_bits);
  for (int i = 0; i < 16; i++) {
    const int low = nearest(x[i] * g.inverse, -8, 7) + 8, high = nearest(x[i + 16] * g.inverse, -8, 7) + 8;
    b[2 + i] = (uint8_t)(low | high << 4);
  }
}

static void quantize_q4_1(const float *x, uint8_t *b)
{
  const grid g = range_grid(x, 16);
  store_u16(b, g.d_bits);
  store_u16(b + 2, g.origin_bits);
  for (int i = 0; i < 16; i++) {
    const int low = nearest((x[i] - g.origin) * g.inverse, 0, 15);
    const int high = nearest((x[i + 16] - g.origin) * g.inverse, 0, 15);
    b[4 + i] = (uint8_t)(low | high << 4);
  }
}

/* Put value i of 32 where q5_value finds it; the bytes start as zeros. */
static void store_q5(uint8_t *high, uint8_t *nibbles, int i, int q)
{
  nibbles[i % 16] |= (uint8_t)((q & 15) << i / 16 * 4);
  high[i / 8] |= (uint8_t)(q >> 4 << i % 8);
}

static void quantize_q5_0(const float *x, uint8_t *b)
{
  const grid g = symmetric_grid(x, 32);
  memset(b, 0, 22);
  store_u16(b, g.d_bits);
  for (int i = 0; i < 32; i++) store_q5(b + 2, b + 6, i, nearest(x[i] * g.inverse, -16, 15) + 16);
}

static void quantize_q5_1(const float *x, uint8_t *b)
{
  const grid g = range_grid(x, 32);
  memset(b, 0, 24);
  store_u16(b, g.d_bits);
  store_u16(b + 2, g.origin_bits);
  for (int i = 0; i < 32; i++) store_q5(b + 4, b + 8, i, nearest((x[i] - g.origin) * g.inverse, 0, 31));
}

/* ---- least squares ----
 * A group of n values gets a scale, and for some types a minimum; q are whole levels. For given q the best scale
 * follows by least squares; the q come from several first guesses around the one that makes the extreme value fit. */

enum { GUESSES = 9, RANGE_GUESSES = 21, GROUPS_MAX = 16 };
static const float GUESS_STEP = 0.1f;

/* The scale s for x = s q, q in [low, high] with -low > high; it may be negative. */
static float fit_scale(const float *x, int n, int low, int high)
{
  const float most = extreme(x, n);
  double best_gain = 0;
  float scale = 0;
  if (most == 0) return 0;
  for (int guess = 0; guess < GUESSES; guess++) {
    const float inverse = ((float)low + GUESS_STEP * (float)(guess - GUESSES / 2)) / most;
    double xq = 0, qq = 0;
    for (int i = 0; i < n; i++) {
      const int q = nearest(x[i] * inverse, low, high);
      xq += (double)x[i] * q;
      qq += q * q;
    }
    if (qq > 0 && xq * xq > best_gain * qq) { /* the squares of errors are those of x less xq^2 / qq */
      best_gain = xq * xq / qq;
      scale = (float)(xq / qq);
    }
  }
  return scale;
}

/* Scale and minimum, both at least 0, for x = scale * q - minimum, q in [0, high]. */
static void fit_range(const float *x, int n, int high, float *scale, float *minimum)
{
  float least = 0, most = x[0];
  double sum_x = 0, sum_xx = 0, best = INFINITY;
  for (int i = 0; i < n; i++) {
    least = fminf(least, x[i]);
    most = fmaxf(most, x[i]);
    sum_x += x[i];
    sum_xx += (double)x[i] * x[i];
  }
  *scale = 0;
  *minimum = -least;
  if (!(most > least)) return;
  for (int guess = 0; guess < RANGE_GUESSES; guess++) {
    const float inverse = ((float)high + GUESS_STEP * (float)(guess - RANGE_GUESSES / 2)) / (most - least);
    double sum_q = 0, sum_qq = 0, sum_xq = 0;
    for (int i = 0; i < n; i++) {
      const int q = nearest((x[i] - least) * inverse, 0, high);
      sum_q += q;
      sum_qq += q * q;
      sum_xq += (double)x[i] * q;
    }
    const double determinant = n * sum_qq - sum_q * sum_q;
    if (!(sum_qq > 0)) continue;
    double s = determinant > 0 ? (n * sum_xq - sum_x * sum_q) / determinant : 0;
    double origin = determinant > 0 ? (sum_qq * sum_x - sum_q * sum_xq) / determinant : 0;
    if (!(determinant > 0) || origin > 0) {
      origin = 0;
      s = sum_xq / sum_qq;
    }
    const double error = sum_xx - 2 * s * sum_xq - 2 * origin * sum_x + s * s * sum_qq + 2 * s * origin * sum_q +
                         n * origin * origin;
    if (s < 0 || !(error < best)) continue;
    best = error;
    *scale = (float)s;
    *minimum = (float)-origin;
  }
}

/* Scales as whole numbers in [low, high] times one number, which comes back rounded to half precision in *d_bits. Where
 * low < 0 the extreme scale sits on it. */
static float share_scale(const float *scales, int n, int low, int high, int *whole, uint16_t *d_bits)
{
  const float most = extreme(scales, n);
  *d_bits = kg_f32_to_f16(most / (float)(low < 0 ? low : high));
  const float d = kg_f16_to_f32(*d_bits), inverse = d != 0 ? 1 / d : 0;
  for (int i = 0; i < n; i++) whole[i] = nearest(scales[i] * inverse, low, high);
  return d;
}

/* Levels of a group once its scale is what the file holds. */
static void levels(const float *x, int n, float scale, float minimum, int low, int high, int *q)
{
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < n; i++) q[i] = nearest((x[i] + minimum) * inverse, low, high);
}

/* As two_bits of quant.c reads them; the bytes start as zeros. */
static void store_two_bits(uint8_t *qs, int group, int i, int q)
{
  qs[group / 8 * 32 + group % 2 * 16 + i] |= (uint8_t)(q << group % 8 / 2 * 2);
}

/* ---- blocks of 256 ---- */

static void quantize_q6_k(const float *x, uint8_t *b)
{
  float scales[16];
  int whole[16], q[16];
  uint16_t d_bits;
  for (int group = 0; group < 16; group++) scales[group] = fit_scale(x + group * 16, 16, -32, 31);
  const float d = share_scale(scales, 16, -128, 127, whole, &d_bits);
  memset(b, 0, 210);
  store_u16(b + 208, d_bits);
  for (int group = 0; group < 16; group++) {
    b[192 + group] = (uint8_t)whole[group];
    levels(x + group * 16, 16, d * (float)whole[group], 0, -32, 31, q);
    for (int i = 0; i < 16; i++) {
      b[group / 8 * 64 + group % 4 * 16 + i] |= (uint8_t)(((q[i] + 32) & 15) << group % 8 / 4 * 4);
      store_two_bits(b + 128, group, i, (q[i] + 32) >> 4);
    }
  }
}

static void quantize_q3_k(const float *x, uint8_t *b)
{
  float scales[16];
  int whole[16], q[16];
  uint16_t d_bits;
  for (int group = 0; group < 16; group++) scales[group] = fit_scale(x + group * 16, 16, -4, 3);
  const float d = share_scale(scales, 16, -32, 31, whole, &d_bits);
  memset(b, 0, 110);
  store_u16(b + 108, d_bits);
  for (int group = 0; group < 16; group++) {
    const int biased = whole[group] + 32;
    b[96 + group % 8] |= (uint8_t)((biased & 15) << group / 8 * 4);
    b[96 + 8 + group % 4] |= (uint8_t)(biased >> 4 << group / 4 * 2);
    levels(x + group * 16, 16, d * (float)whole[group], 0, -4, 3, q);
    for (int i = 0; i < 16; i++) {
      b[group % 2 * 16 + i] |= (uint8_t)((q[i] + 4) >> 2 << group / 2);
      store_two_bits(b + 32, group, i, (q[i] + 4) & 3);
    }
  }
}

/* Scales and minima of a block's groups, as whole numbers up to `high`, and what they are multiplied by. */
typedef struct ranges {
  int scale[GROUPS_MAX], minimum[GROUPS_MAX];
  float d, dmin;
  uint16_t d_bits, dmin_bits;
} ranges;

/* The minimum for a scale that has been rounded: what the levels leave of x on average. */
static float fit_minimum(const float *x, int n, float scale, int high, float minimum)
{
  int q[32];
  double left = 0;
  levels(x, n, scale, minimum, 0, high, q);
  for (int i = 0; i < n; i++) left += (double)scale * q[i] - (double)x[i];
  return left > 0 ? (float)(left / n) : 0;
}

static ranges fit_ranges(const float *x, int n_groups, int top_level, int high)
{
  const int size = 256 / n_groups;
  float scales[GROUPS_MAX], minima[GROUPS_MAX];
  ranges r;
  for (int group = 0; group < n_groups; group++)
    fit_range(x + group * size, size, top_level, &scales[group], &minima[group]);
  r.d = share_scale(scales, n_groups, 0, high, r.scale, &r.d_bits);
  for (int group = 0; group < n_groups; group++)
    minima[group] = fit_minimum(x + group * size, size, r.d * (float)r.scale[group], top_level, minima[group]);
  r.dmin = share_scale(minima, n_groups, 0, high, r.minimum, &r.dmin_bits);
  return r;
}

static void range_levels(const ranges *r, const float *x, int group, int size, int top_level, int *q)
{
  levels(x + group * size, size, r->d * (float)r->scale[group], r->dmin * (float)r->minimum[group], 0, top_level, q);
}

static void quantize_q2_k(const float *x, uint8_t *b)
{
  const ranges r = fit_ranges(x, 16, 3, 15);
  int q[16];
  memset(b, 0, 84);
  store_u16(b + 80, r.d_bits);
  store_u16(b + 82, r.dmin_bits);
  for (int group = 0; group < 16; group++) {
    b[group] = (uint8_t)(r.scale[group] | r.minimum[group] << 4);
    range_levels(&r, x, group, 16, 3, q);
    for (int i = 0; i < 16; i++) store_two_bits(b + 16, group, i, q[i]);
  }
}

/* As six_bit_scale of quant.c reads them; the 12 bytes start as zeros. */
static void store_six_bits(uint8_t *s, int group, int scale, int minimum)
{
  if (group < 4) {
    s[group] |= (uint8_t)scale;
    s[group + 4] |= (uint8_t)minimum;
  } else {
    s[group + 4] |= (uint8_t)((scale & 15) | (minimum & 15) << 4);
    s[group - 4] |= (uint8_t)(scale >> 4 << 6);
    s[group] |= (uint8_t)(minimum >> 4 << 6);
  }
}

/* Q4_K, and Q5_K with `fifth` for its fifth bits. */
static void store_ranges(const float *x, int top_level, uint8_t *b, uint8_t *fifth, uint8_t *nibbles)
{
  const ranges r = fit_ranges(x, 8, top_level, 63);
  int q[32];
  store_u16(b, r.d_bits);
  store_u16(b + 2, r.dmin_bits);
  for (int group = 0; group < 8; group++) {
    store_six_bits(b + 4, group, r.scale[group], r.minimum[group]);
    range_levels(&r, x, group, 32, top_level, q);
    for (int i = 0; i < 32; i++) {
      nibbles[group / 2 * 32 + i] |= (uint8_t)((q[i] & 15) << group % 2 * 4);
      if (fifth) fifth[i] |= (uint8_t)(q[i] >> 4 << group);
    }
  }
}

static void quantize_q4_k(const float *x, uint8_t *b)
{
  memset(b, 0, 144);
  store_ranges(x, 15, b, NULL, b + 16);
}

static void quantize_q5_k(const float *x, uint8_t *b)
{
  memset(b, 0, 176);
  store_ranges(x, 31, b, b + 16, b + 48);
}

/* ---- levels from a table ---- */

/* Index of the nearest of n ascending levels, the lower one where two are as near. */
static int nearest_level(const int8_t *table, int n, float x)
{
  int index = 0;
  for (int i = 1; i < n; i++) index += 2 * x > (float)(table[i - 1] + table[i]);
  return index;
}

static int iq4_level(float x) { return nearest_level(kg_iq4_levels, 16, x); }

/* The second half of the levels are the first with a minus. */
static int mxfp4_level(float x)
{
  const int magnitude = nearest_level(kg_mxfp4_levels, 8, fabsf(x));
  return x < 0 && magnitude ? magnitude + 8 : magnitude;
}

/* As fit_scale, for the 32 values of a group and the levels of IQ4: the extreme value may sit on either end. */
static float fit_table(const float *x)
{
  const float most = extreme(x, 32);
  double best_gain = 0;
  float scale = 0;
  if (most == 0) return 0;
  for (int guess = 0; guess < 2 * GUESSES; guess++) {
    const float end = (float)kg_iq4_levels[guess < GUESSES ? 0 : 15];
    const float inverse = end * (1 + 0.02f * (float)(guess % GUESSES - GUESSES / 2)) / most;
    double xq = 0, qq = 0;
    for (int i = 0; i < 32; i++) {
      const int level = kg_iq4_levels[iq4_level(x[i] * inverse)];
      xq += (double)x[i] * level;
      qq += level * level;
    }
    if (qq > 0 && xq * xq > best_gain * qq) {
      best_gain = xq * xq / qq;
      scale = (float)(xq / qq);
    }
  }
  return scale;
}

/* Nibbles of 32 values: 0-15 low, 16-31 high. */
static void store_levels(int (*level)(float), const float *x, float scale, uint8_t *nibbles)
{
  const float inverse = scale != 0 ? 1 / scale : 0;
  for (int i = 0; i < 16; i++) nibbles[i] = (uint8_t)(level(x[i] * inverse) | level(x[i + 16] * inverse) << 4);
}

static void quantize_iq4_nl(const float *x, uint8_t *b)
{
  const uint16_t d_bits = kg_f32_to_f16(fit_table(x));
  store_u16(b, d_bits);
  store_levels(iq4_level, x, kg_f16_to_f32(d_bits), b + 2);
}

static void quantize_iq4_xs(const float *x, uint8_t *b)
{
  float scales[8];
  int whole[8], upper = 0;
  uint16_t d_bits;
  for (int group = 0; group < 8; group++) scales[group] = fit_table(x + group * 32);
  const float d = share_scale(scales, 8, -32, 31, whole, &d_bits);
  memset(b, 0, 136);
  store_u16(b, d_bits);
  for (int group = 0; group < 8; group++) {
    const int biased = whole[group] + 32;
    b[4 + group / 2] |= (uint8_t)((biased & 15) << group % 2 * 4);
    upper |= biased >> 4 << group * 2;
    store_levels(iq4_level, x + group * 32, d * (float)whole[group], b + 8 + group * 16);
  }
  store_u16(b + 2, (uint16_t)upper);
}

/* The power of two with the less squares of errors: the one that lets the extreme value reach the largest level of 6,
 * or half of it, which cuts it off. (Open Compute Project: "Microscaling Formats Specification", 2023) */
static void quantize_mxfp4(const float *x, uint8_t *b)
{
  const float most = fabsf(extreme(x, 32));
  double best = INFINITY;
  memset(b, 0, 17);
  if (most == 0) return;
  int exponent; /* most < 2^exponent */
  frexpf(most, &exponent);
  for (int e = exponent - 3; e <= exponent - 2; e++) {
    const int biased = e + 127 < 0 ? 0 : e + 127;
    const float half = ldexpf(1, biased - 128); /* the levels are doubled */
    uint8_t nibbles[16];
    double error = 0;
    store_levels(mxfp4_level, x, half, nibbles);
    for (int i = 0; i < 32; i++) {
      const int level = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
      const double off = (double)x[i] - (double)half * kg_mxfp4_levels[level];
      error += off * off;
    }
    if (!(error < best)) continue;
    best = error;
    b[0] = (uint8_t)biased;
    memcpy(b + 1, nibbles, 16);
  }
}

/* ---- all of them ---- */

/* Half-precision scales and minima reach 65504. */
static int check_range(const kg_type_info *info, const float *values, int64_t n, kg_error *err)
{
  for (int64_t i = 0; i < n; i++)
    if (!(fabsf(values[i]) <= 65504))
      return kg_fail(err, KG_ERR_ARGUMENT, "value %lld is %g: %s holds numbers up to 65504", (long long)i,
                     (double)values[i], info->name);
  return KG_OK;
}

int kg_quantize(kg_type type, const float *values, int64_t n, void *out, kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)type);
  void (*quantize)(const float *x, uint8_t *block) = NULL;
  uint8_t *bytes = out;
  switch (type) {
  case KG_F32:
  case KG_F16:
  case KG_BF16: break;
  case KG_Q4_0: quantize = quantize_q4_0; break;
  case KG_Q4_1: quantize = quantize_q4_1; break;
  case KG_Q5_0: quantize = quantize_q5_0; break;
  case KG_Q5_1: quantize = quantize_q5_1; break;
  case KG_Q8_0: quantize = quantize_q8_0; break;
  case KG_Q2_K: quantize = quantize_q2_k; break;
  case KG_Q3_K: quantize = quantize_q3_k; break;
  case KG_Q4_K: quantize = quantize_q4_k; break;
  case KG_Q5_K: quantize = quantize_q5_k; break;
  case KG_Q6_K: quantize = quantize_q6_k; break;
  case KG_IQ4_NL: quantize = quantize_iq4_nl; break;
  case KG_IQ4_XS: quantize = quantize_iq4_xs; break;
  case KG_MXFP4: quantize = quantize_mxfp4; break;
  default:
    return kg_fail(err, KG_ERR_ARGUMENT, "values cannot be converted to %s", info ? info->name : "an unknown type");
  }
  if (n < 0 || n % info->block_size)
    return kg_fail(err, KG_ERR_ARGUMENT, "%lld values: %s has blocks of %d", (long long)n, info->name,
                   (int)info->block_size);
  if (quantize) {
    const int code = check_range(info, values, n, err);
    if (code) return code;
    for (int64_t i = 0; i < n; i += info->block_size, bytes += info->block_bytes) quantize(values + i, bytes);
  } else if (type == KG_F32) {
    memcpy(bytes, values, (size_t)n * sizeof *values);
  } else {
    for (int64_t i = 0; i < n; i++)
      store_u16(bytes + 2 * i, type == KG_F16 ? kg_f32_to_f16(values[i]) : kg_f32_to_bf16(values[i]));
  }
  return KG_OK;
}
