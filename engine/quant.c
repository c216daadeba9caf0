#include "quant.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

/* ---- half precision ---- */

static uint32_t float_bits(float value)
{
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float float_from_bits(uint32_t bits)
{
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* 1 sign, 5 exponent (bias 15), 10 mantissa bits. */
float kg_f16_to_f32(uint16_t half)
{
  const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 0x3ff;
  if (exponent == 31) return float_from_bits(sign | 0x7f800000 | mantissa << 13); /* infinity, NaN with its payload */
  if (exponent) return float_from_bits(sign | (exponent + 127 - 15) << 23 | mantissa << 13);
  const float magnitude = (float)mantissa * 0x1p-24f; /* subnormal: exact in float32 */
  return sign ? -magnitude : magnitude;
}

uint16_t kg_f32_to_f16(float value)
{
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7e00 | (magnitude >> 13 & 0x3ff); /* NaN, made quiet */
  if (magnitude >= 0x477ff000) return sign | 0x7c00;                            /* 65520 and up round to infinity */
  if (magnitude < 0x38800000)                                                   /* below 2^-14: subnormal */
    return sign | (uint16_t)(float_bits(float_from_bits(magnitude) + 0.5f) - 0x3f000000); /* ulp of 0.5 is 2^-24 */
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | (uint16_t)((rounded - 0x38000000) >> 13);
}

float kg_bf16_to_f32(uint16_t bits)
{
  return float_from_bits((uint32_t)bits << 16);
}

uint16_t kg_f32_to_bf16(float value)
{
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- little-endian fields of unaligned blocks ---- */

static uint16_t load_u16(const uint8_t *bytes)
{
  return (uint16_t)(bytes[0] | bytes[1] << 8);
}

static float load_f16(const uint8_t *bytes)
{
  return kg_f16_to_f32(load_u16(bytes));
}

/* ---- dequantization ----
 * Every product and sum below is one float32 operation, in the order of the reference implementations: results are
 * compared bit for bit. `b` is the current block, `y` its output. Offsets in the comments are bytes in the block. */

static void dequantize_f32(const void *blocks, int64_t n_blocks, float *out)
{
  memcpy(out, blocks, (size_t)n_blocks * sizeof *out);
}

static void dequantize_f16(const void *blocks, int64_t n_blocks, float *out)
{
  const uint8_t *b = blocks;
  for (int64_t i = 0; i < n_blocks; i++) out[i] = load_f16(b + 2 * i);
}

static void dequantize_bf16(const void *blocks, int64_t n_blocks, float *out)
{
  const uint8_t *b = blocks;
  for (int64_t i = 0; i < n_blocks; i++) out[i] = kg_bf16_to_f32(load_u16(b + 2 * i));
}

/* 0: d f16; 2: 16 bytes, low nibbles are values 0-15, high nibbles 16-31. value = d * (q - 8) */
static void dequantize_q4_0(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 18, y += 32) {
    const float d = load_f16(b);
    for (int i = 0; i < 16; i++) {
      y[i] = d * (float)((b[2 + i] & 15) - 8);
      y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
  }
}

/* 0: d f16; 2: m f16; 4: nibbles as in Q4_0. value = d * q + m */
static void dequantize_q4_1(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 20, y += 32) {
    const float d = load_f16(b), m = load_f16(b + 2);
    for (int i = 0; i < 16; i++) {
      y[i] = d * (float)(b[4 + i] & 15) + m;
      y[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
  }
}

/* Value i of the 32 of a Q5 block: a nibble as in Q4_0 and, above it, bit i of the 4 bytes at `high`. */
static int q5_value(const uint8_t *high, const uint8_t *nibbles, int i)
{
  const int low = i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
  return low | (high[i / 8] >> i % 8 & 1) << 4;
}

/* 0: d f16; 2: fifth bits; 6: nibbles. value = d * (q - 16) */
static void dequantize_q5_0(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 22, y += 32) {
    const float d = load_f16(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(q5_value(b + 2, b + 6, i) - 16);
  }
}

/* 0: d f16; 2: m f16; 4: fifth bits; 8: nibbles. value = d * q + m */
static void dequantize_q5_1(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 24, y += 32) {
    const float d = load_f16(b), m = load_f16(b + 2);
    for (int i = 0; i < 32; i++) y[i] = d * (float)q5_value(b + 4, b + 8, i) + m;
  }
}

/* 0: d f16; 2: 32 signed bytes. value = d * q */
static void dequantize_q8_0(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 34, y += 32) {
    const float d = load_f16(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
  }
}

/* Two-bit fields of Q2_K and Q3_K: each of two runs of 32 bytes holds 128 values, bits 0-1 the first 32 of them, bits
 * 2-3 the next 32, and so on. Value i of the group-th 16 of 256. */
static int two_bits(const uint8_t *qs, int group, int i)
{
  return qs[group / 8 * 32 + group % 2 * 16 + i] >> group % 8 / 2 * 2 & 3;
}

/* 0: for each of 16 groups of 16 a scale (low nibble) and a minimum (high nibble); 16: two-bit fields;
 * 80: d f16; 82: dmin f16. value = d * scale * q - dmin * minimum */
static void dequantize_q2_k(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 84) {
    const float d = load_f16(b + 80), dmin = load_f16(b + 82);
    for (int group = 0; group < 16; group++, y += 16) {
      const float scale = d * (float)(b[group] & 15), minimum = dmin * (float)(b[group] >> 4);
      for (int i = 0; i < 16; i++) y[i] = scale * (float)two_bits(b + 16, group, i) - minimum;
    }
  }
}

/* 0: 32 bytes of third bits, bit k of byte i is value 32 k + i (set: nothing, clear: minus 4); 32: two-bit fields;
 * 96: 12 bytes of six-bit scales, biased by 32: low nibbles of 8 bytes, then their high nibbles are the low four
 * bits of 16 scales, the last 4 bytes hold the upper two, byte g % 4, bits 2 (g / 4); 108: d f16.
 * value = d * (scale - 32) * q, q in -4..3 */
static void dequantize_q3_k(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 110) {
    const uint8_t *scales = b + 96;
    const float d = load_f16(b + 108);
    for (int group = 0; group < 16; group++, y += 16) {
      const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
      const int high = scales[8 + group % 4] >> group / 4 * 2 & 3;
      const float scale = d * (float)((low | high << 4) - 32);
      for (int i = 0; i < 16; i++) {
        const int third = b[group % 2 * 16 + i] >> group / 2 & 1;
        y[i] = scale * (float)(two_bits(b + 32, group, i) - (third ? 0 : 4));
      }
    }
  }
}

/* The 12 bytes of six-bit scales and minima of Q4_K and Q5_K, for group 0-7. Groups 0-3: bytes 0-3 and 4-7, low six
 * bits. Groups 4-7: nibbles of bytes 8-11, with the two top bits of bytes 0-3 and 4-7 above them. */
static void six_bit_scale(const uint8_t *s, int group, int *scale, int *minimum)
{
  if (group < 4) {
    *scale = s[group] & 63;
    *minimum = s[group + 4] & 63;
  } else {
    *scale = (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
    *minimum = s[group + 4] >> 4 | (s[group] >> 6) << 4;
  }
}

/* 0: d f16; 2: dmin f16; 4: scales and minima of 8 groups of 32; 16: 128 bytes, each run of 32 holds a group in its
 * low nibbles and the next group in its high ones. value = d * scale * q - dmin * minimum */
static void dequantize_q4_k(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 144) {
    const float d = load_f16(b), dmin = load_f16(b + 2);
    for (int group = 0; group < 8; group++, y += 32) {
      int scale_bits, minimum_bits;
      six_bit_scale(b + 4, group, &scale_bits, &minimum_bits);
      const float scale = d * (float)scale_bits, minimum = dmin * (float)minimum_bits;
      const uint8_t *nibbles = b + 16 + group / 2 * 32;
      for (int i = 0; i < 32; i++) y[i] = scale * (float)(nibbles[i] >> group % 2 * 4 & 15) - minimum;
    }
  }
}

/* As Q4_K, with 32 bytes of fifth bits at 16 (bit g of byte i: value i of group g) and the nibbles at 48. */
static void dequantize_q5_k(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 176) {
    const float d = load_f16(b), dmin = load_f16(b + 2);
    for (int group = 0; group < 8; group++, y += 32) {
      int scale_bits, minimum_bits;
      six_bit_scale(b + 4, group, &scale_bits, &minimum_bits);
      const float scale = d * (float)scale_bits, minimum = dmin * (float)minimum_bits;
      const uint8_t *nibbles = b + 48 + group / 2 * 32;
      for (int i = 0; i < 32; i++) {
        const int q = (nibbles[i] >> group % 2 * 4 & 15) | (b[16 + i] >> group & 1) << 4;
        y[i] = scale * (float)q - minimum;
      }
    }
  }
}

/* 0: 128 bytes of low nibbles, each run of 64 holds 64 values low, then 64 high; 128: 64 bytes of upper two bits, each
 * run of 32 holds 128 values like the two-bit fields; 192: 16 signed scales of groups of 16; 208: d f16.
 * value = d * scale * (q - 32) */
static void dequantize_q6_k(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 210) {
    const float d = load_f16(b + 208);
    for (int group = 0; group < 16; group++, y += 16) {
      const float scale = d * (float)(int8_t)b[192 + group];
      const uint8_t *nibbles = b + group / 8 * 64 + group % 4 * 16;
      const int shift = group % 8 / 4 * 4;
      for (int i = 0; i < 16; i++) {
        const int q = (nibbles[i] >> shift & 15) | two_bits(b + 128, group, i) << 4;
        y[i] = scale * (float)(q - 32);
      }
    }
  }
}

const int8_t kg_mxfp4_levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
const int8_t kg_iq4_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* 0: d f16; 2: nibbles as in Q4_0. value = d * level[q] */
static void dequantize_iq4_nl(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 18, y += 32) {
    const float d = load_f16(b);
    for (int i = 0; i < 16; i++) {
      y[i] = d * (float)kg_iq4_levels[b[2 + i] & 15];
      y[i + 16] = d * (float)kg_iq4_levels[b[2 + i] >> 4];
    }
  }
}

/* 0: d f16; 2: u16, the upper two bits of 8 six-bit scales; 4: their low nibbles, low one first; 8: 8 groups of 16
 * bytes of nibbles as in Q4_0. value = d * (scale - 32) * level[q] */
static void dequantize_iq4_xs(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 136) {
    const float d = load_f16(b);
    const int upper = load_u16(b + 2);
    for (int group = 0; group < 8; group++, y += 32) {
      const int low = b[4 + group / 2] >> group % 2 * 4 & 15;
      const float scale = d * (float)((low | (upper >> group * 2 & 3) << 4) - 32);
      const uint8_t *nibbles = b + 8 + group * 16;
      for (int i = 0; i < 16; i++) {
        y[i] = scale * (float)kg_iq4_levels[nibbles[i] & 15];
        y[i + 16] = scale * (float)kg_iq4_levels[nibbles[i] >> 4];
      }
    }
  }
}

/* 0: exponent e of a power of two, 2^(e - 127); 1: nibbles as in Q4_0, each a float with 1 sign, 2 exponent and 1
 * mantissa bits. The levels are doubled to be integers, so the power is halved: 2^(e - 128). */
static void dequantize_mxfp4(const void *blocks, int64_t n_blocks, float *y)
{
  const uint8_t *b = blocks;
  for (int64_t n = 0; n < n_blocks; n++, b += 17, y += 32) {
    /* e of 0 and 1 are subnormal in float32 */
    const float d = float_from_bits(b[0] < 2 ? (uint32_t)0x00200000 << b[0] : (uint32_t)(b[0] - 1) << 23);
    for (int i = 0; i < 16; i++) {
      y[i] = d * (float)kg_mxfp4_levels[b[1 + i] & 15];
      y[i + 16] = d * (float)kg_mxfp4_levels[b[1 + i] >> 4];
    }
  }
}

/* ---- the table ---- */

static const kg_type_info type_table[] = {
    [KG_F32] = {"F32", 1, 4, dequantize_f32},
    [KG_F16] = {"F16", 1, 2, dequantize_f16},
    [KG_Q4_0] = {"Q4_0", 32, 18, dequantize_q4_0},
    [KG_Q4_1] = {"Q4_1", 32, 20, dequantize_q4_1},
    [KG_Q5_0] = {"Q5_0", 32, 22, dequantize_q5_0},
    [KG_Q5_1] = {"Q5_1", 32, 24, dequantize_q5_1},
    [KG_Q8_0] = {"Q8_0", 32, 34, dequantize_q8_0},
    [KG_Q8_1] = {"Q8_1", 32, 36, NULL},
    [KG_Q2_K] = {"Q2_K", 256, 84, dequantize_q2_k},
    [KG_Q3_K] = {"Q3_K", 256, 110, dequantize_q3_k},
    [KG_Q4_K] = {"Q4_K", 256, 144, dequantize_q4_k},
    [KG_Q5_K] = {"Q5_K", 256, 176, dequantize_q5_k},
    [KG_Q6_K] = {"Q6_K", 256, 210, dequantize_q6_k},
    [KG_Q8_K] = {"Q8_K", 256, 292, NULL},
    [KG_IQ2_XXS] = {"IQ2_XXS", 256, 66, NULL},
    [KG_IQ2_XS] = {"IQ2_XS", 256, 74, NULL},
    [KG_IQ3_XXS] = {"IQ3_XXS", 256, 98, NULL},
    [KG_IQ1_S] = {"IQ1_S", 256, 50, NULL},
    [KG_IQ4_NL] = {"IQ4_NL", 32, 18, dequantize_iq4_nl},
    [KG_IQ3_S] = {"IQ3_S", 256, 110, NULL},
    [KG_IQ2_S] = {"IQ2_S", 256, 82, NULL},
    [KG_IQ4_XS] = {"IQ4_XS", 256, 136, dequantize_iq4_xs},
    [KG_I8] = {"I8", 1, 1, NULL},
    [KG_I16] = {"I16", 1, 2, NULL},
    [KG_I32] = {"I32", 1, 4, NULL},
    [KG_I64] = {"I64", 1, 8, NULL},
    [KG_F64] = {"F64", 1, 8, NULL},
    [KG_IQ1_M] = {"IQ1_M", 256, 56, NULL},
    [KG_BF16] = {"BF16", 1, 2, dequantize_bf16},
    [KG_TQ1_0] = {"TQ1_0", 256, 54, NULL},
    [KG_TQ2_0] = {"TQ2_0", 256, 66, NULL},
    [KG_MXFP4] = {"MXFP4", 32, 17, dequantize_mxfp4},
    [KG_NVFP4] = {"NVFP4", 64, 36, NULL},
};

const kg_type_info *kg_type_find(uint32_t type)
{
  if (type >= sizeof type_table / sizeof type_table[0] || !type_table[type].name) return NULL;
  return &type_table[type];
}

bool kg_type_is_computable(kg_type type)
{
  const kg_type_info *info = kg_type_find((uint32_t)type);
  return info && info->dequantize;
}

bool kg_type_bytes(const kg_type_info *info, uint64_t n, size_t *out)
{
  const uint64_t block_size = (uint64_t)info->block_size;
  if (n % block_size) return false;
  return kg_mul_size(n / block_size, (size_t)info->block_bytes, out);
}
