/* kernels_body.h - the kernels, once for all instruction sets: each kernels_<variant>.c includes this file and is compiled
 * with the flags of its set. Everything here is static but the table at the end, KG_KERNELS.
 *
 * Shape of a product: for one group of 16 weight rows and up to 16 activation rows, walk along the columns; unpack the
 * 8 steps of a block once, then for each activation row add 32 exact products in integers, convert, scale, and
 * accumulate in float32. Per pair (weight row, activation row) the float operations are, in this order:
 *   t = float(products) * scale                    (two scales: t = fma(float(upper), scale_hi, float(lower) * scale_lo))
 *   acc = fma(t, x_scale, acc)
 *   acc = fma(min, x_sum, acc)                     (types with minima; two minima: twice)
 * and nothing else ever touches acc, so it does not matter which rows are computed together. */
#include <stddef.h>
#include <string.h>

#include "kernels.h"
#include "simd.h"

#if KG_LANES < 8
#define KG_UNROLL_PARTS _Pragma("GCC unroll 1") /* the vectors are many and the instructions short: keep the code small */
#else
#define KG_UNROLL_PARTS _Pragma("GCC unroll 2")
#endif

enum { PARTS = KG_GROUP / KG_LANES, STEPS = 8, MOST_AT_ONCE = 4, PREFETCH_BYTES = 4096 };

/* ---- what the types are ---- */

typedef struct traits {
  bool wide;   /* codes of more than 6 bits */
  bool halves; /* scales for 16 columns */
  bool minima; /* value = scale * code + min; otherwise scale * (code - offset) */
  int offset;  /* of the codes as `unpack` leaves them */
  int run;     /* steps that are added at once: KG_RUN(largest code), within the columns of one scale */
} traits;

KG_INLINE traits traits_of(kg_type type)
{
  switch (type) {
  case KG_Q4_0: return (traits){.offset = 8, .run = KG_RUN(15)};
  case KG_Q5_0:
  case KG_MXFP4: return (traits){.offset = 16, .run = KG_RUN(31)};
  case KG_Q8_0:
  case KG_IQ4_NL:
  case KG_IQ4_XS: return (traits){.wide = true, .offset = KG_WIDE_OFFSET, .run = 1};
  case KG_Q2_K: return (traits){.halves = true, .minima = true, .run = KG_RUN(31)};
  case KG_Q3_K: return (traits){.halves = true, .offset = 4, .run = KG_RUN(31)};
  case KG_Q6_K: return (traits){.halves = true, .offset = 32, .run = KG_RUN(63)};
  case KG_Q4_1:
  case KG_Q4_K: return (traits){.minima = true, .run = KG_RUN(15)};
  default: return (traits){.minima = true, .run = KG_RUN(31)}; /* Q5_1, Q5_K */
  }
}

/* KG_LANES rows of a block. */
typedef struct block {
  kg_vi codes[STEPS];
  kg_vf scale[2], min[2]; /* [1]: of columns 16 to 31, where the type has halves */
} block;

KG_INLINE void unpack_bytes(const uint8_t *p, kg_vi *codes)
{
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s++) codes[s] = kg_vi_wide(kg_vi_load(p + 64 * s));
}

KG_INLINE void unpack_nibbles(const uint8_t *p, kg_vi *codes)
{
  const kg_vi mask = kg_vi_set(0x0f0f0f0f);
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const kg_vi v = kg_vi_load(p + 64 * j);
    codes[j] = kg_vi_and(v, mask);
    codes[j + 4] = kg_vi_and(kg_vi_shr(v, 4), mask);
  }
}

KG_INLINE void unpack_lookup(const uint8_t table[16], kg_vi *codes)
{
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s++) codes[s] = kg_vi_lookup(table, codes[s]);
}

/* Bits [2f, 2f + 2) of v moved to bits [shift, shift + 2) of every byte. */
KG_INLINE kg_vi pair_at(kg_vi v, int f, int shift)
{
  const kg_vi mask = kg_vi_set(0x03030303 << shift);
  return kg_vi_and(2 * f > shift ? kg_vi_shr(v, 2 * f - shift) : kg_vi_shl(v, shift - 2 * f), mask);
}

KG_INLINE void unpack_pairs(const uint8_t *p, int shift, bool add, kg_vi *codes)
{
#pragma GCC unroll 2
  for (int j = 0; j < 2; j++) {
    const kg_vi v = kg_vi_load(p + 64 * j);
#pragma GCC unroll 4
    for (int f = 0; f < 4; f++) {
      const kg_vi pair = pair_at(v, f, shift);
      codes[4 * j + f] = add ? kg_vi_or(codes[4 * j + f], pair) : pair;
    }
  }
}

KG_INLINE void add_bits(const uint8_t *p, int shift, kg_vi *codes)
{
  const kg_vi v = kg_vi_load(p), mask = kg_vi_set(0x01010101 << shift);
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s++) {
    const kg_vi moved = s > shift ? kg_vi_shr(v, s - shift) : kg_vi_shl(v, shift - s);
    codes[s] = kg_vi_or(codes[s], kg_vi_and(moved, mask));
  }
}

KG_INLINE void unpack_codes(kg_type type, const uint8_t *p, kg_vi *codes)
{
  switch (type) {
  case KG_Q8_0: unpack_bytes(p, codes); break;
  case KG_Q2_K: unpack_pairs(p, 0, false, codes); break;
  case KG_Q3_K:
    unpack_pairs(p, 0, false, codes);
    add_bits(p + 128, 2, codes);
    break;
  case KG_Q6_K:
    unpack_nibbles(p, codes);
    unpack_pairs(p + 256, 4, true, codes);
    break;
  case KG_Q5_0:
  case KG_Q5_1:
  case KG_Q5_K:
    unpack_nibbles(p, codes);
    add_bits(p + 256, 4, codes);
    break;
  case KG_IQ4_NL:
  case KG_IQ4_XS:
    unpack_nibbles(p, codes);
    unpack_lookup(kg_iq4_codes, codes);
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) codes[s] = kg_vi_wide(codes[s]);
    break;
  case KG_MXFP4:
    unpack_nibbles(p, codes);
    unpack_lookup(kg_mxfp4_codes, codes);
    break;
  default: unpack_nibbles(p, codes); break;
  }
}

KG_INLINE kg_vf negated(kg_vf v)
{
  return kg_vf_mul(v, kg_vf_set(-1));
}

/* 2^(e - 128): half of the power of two that e stands for, since the codes are doubled; subnormal below e = 2. */
KG_INLINE kg_vf half_power(kg_vi e)
{
  const kg_vi normal = kg_vi_shl(kg_vi_add(e, kg_vi_set(-1)), 23);
  return kg_vf_mul(kg_vf_bits(kg_vi_max(normal, kg_vi_set(0x00200000))), kg_vf_set(1));
}

/* Scales and minima of block b of the unit at head; lane0: the first of the rows. */
KG_INLINE void unpack_scales(kg_type type, const uint8_t *head, int b, int lane0, block *w)
{
  const uint8_t *halves = head + 2 * lane0, *bytes = head + lane0;
  switch (type) {
  case KG_Q4_1:
  case KG_Q5_1:
    w->scale[0] = kg_vf_load_f16(halves + 64 * b);
    w->min[0] = kg_vf_load_f16(halves + 64 * b + 32);
    break;
  case KG_MXFP4: w->scale[0] = half_power(kg_vi_load_u8(bytes + 16 * b)); break;
  case KG_Q2_K: {
    const kg_vf d = kg_vf_load_f16(halves), m = negated(kg_vf_load_f16(halves + 32));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const kg_vi both = kg_vi_load_u8(bytes + 64 + 32 * b + 16 * i);
      w->scale[i] = kg_vf_mul(d, kg_vf_of_i(kg_vi_and(both, kg_vi_set(15))));
      w->min[i] = kg_vf_mul(m, kg_vf_of_i(kg_vi_shr(both, 4)));
    }
    break;
  }
  case KG_Q3_K:
  case KG_Q6_K: {
    const kg_vf d = kg_vf_load_f16(halves);
    const uint8_t *scales = bytes + (type == KG_Q3_K ? 32 : 64) + 32 * b;
    w->scale[0] = kg_vf_mul(d, kg_vf_of_i(kg_vi_load_i8(scales)));
    w->scale[1] = kg_vf_mul(d, kg_vf_of_i(kg_vi_load_i8(scales + 16)));
    break;
  }
  case KG_Q4_K:
  case KG_Q5_K: {
    const kg_vf d = kg_vf_load_f16(halves), m = negated(kg_vf_load_f16(halves + 32));
    w->scale[0] = kg_vf_mul(d, kg_vf_of_i(kg_vi_load_u8(bytes + 64 + 16 * b)));
    w->min[0] = kg_vf_mul(m, kg_vf_of_i(kg_vi_load_u8(bytes + 192 + 16 * b)));
    break;
  }
  case KG_IQ4_XS:
    w->scale[0] = kg_vf_mul(kg_vf_load_f16(halves), kg_vf_of_i(kg_vi_load_i8(bytes + 64 + 16 * b)));
    break;
  default: w->scale[0] = kg_vf_load_f16(halves + 32 * b); break; /* Q4_0, Q5_0, Q8_0, IQ4_NL */
  }
}

KG_INLINE void unpack(kg_type type, const uint8_t *head, const uint8_t *codes, int b, int lane0, block *w)
{
  unpack_scales(type, head, b, lane0, w);
  unpack_codes(type, codes + 4 * lane0, w->codes);
}

/* ---- products of block types ---- */

/* Where the sums of one block and one row start from, so that the offset of the codes cancels. */
KG_INLINE kg_vi start(const traits t, const uint8_t *fields, int rows, int half)
{
  if (t.halves && t.offset)
    return kg_vi_sar(kg_vi_broadcast(fields + 4 * rows * (KG_Q8_TIMES_LO + half)), t.offset == 32 ? 2 : 5);
  if (half || !t.offset) return kg_vi_zero();
  if (t.offset == 128) return kg_vi_broadcast(fields + 4 * rows * KG_Q8_TIMES_128);
  const kg_vi times_8 = kg_vi_broadcast(fields + 4 * rows * KG_Q8_TIMES_8);
  return t.offset == 16 ? kg_vi_add(times_8, times_8) : times_8;
}

/* t.run steps of one row. */
KG_INLINE kg_vi dot(const traits t, kg_vi acc, const kg_vi *codes, const uint8_t *x)
{
  return t.wide ? kg_vi_dot_wide(acc, codes[0], kg_vi_broadcast(x)) : kg_vi_dot_run(acc, codes, x, t.run);
}

/* The products of a block with one activation row, in integers; [1]: of columns 16 to 31 where the type has halves. */
typedef struct dots {
  kg_vi of[2];
} dots;

KG_INLINE kg_vf scale_sums(const traits t, const block *w, const dots *products, const uint8_t *fields, int rows, kg_vf acc)
{
  kg_vf sum = kg_vf_mul(kg_vf_of_i(products->of[0]), w->scale[0]);
  if (t.halves) sum = kg_vf_fma(kg_vf_of_i(products->of[1]), w->scale[1], sum);
  acc = kg_vf_fma(sum, kg_vf_broadcast(fields + 4 * rows * KG_Q8_SCALE), acc);
  if (t.minima && t.halves) {
    acc = kg_vf_fma(w->min[0], kg_vf_broadcast(fields + 4 * rows * KG_Q8_SUM_LO), acc);
    acc = kg_vf_fma(w->min[1], kg_vf_broadcast(fields + 4 * rows * KG_Q8_SUM_HI), acc);
  } else if (t.minima) {
    acc = kg_vf_fma(w->min[0], kg_vf_broadcast(fields + 4 * rows * KG_Q8_SUM), acc);
  }
  return acc;
}

/* acc[i] += the products of a block with activation row i of n, side by side: each sum is a chain of dependent
 * instructions. codes: 32 bytes per row; fields: those of the first row, one field `rows` words after the other. */
KG_INLINE void add_block(const traits t, const block *w, int n, const uint8_t *codes, const uint8_t *fields, int rows,
                         int part, kg_vf (*acc)[PARTS])
{
  dots products[MOST_AT_ONCE];
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) {
    products[i].of[0] = start(t, fields + 4 * i, rows, 0);
    if (t.halves) products[i].of[1] = start(t, fields + 4 * i, rows, 1);
  }
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; s += t.run)
#pragma GCC unroll 4
    for (int i = 0; i < n; i++) {
      const int half = t.halves ? s / 4 : 0;
      products[i].of[half] = dot(t, products[i].of[half], w->codes + s, codes + KG_BLOCK * i + 4 * s);
    }
#pragma GCC unroll 4
  for (int i = 0; i < n; i++) acc[i][part] = scale_sums(t, w, &products[i], fields + 4 * i, rows, acc[i][part]);
}

/* Activation rows whose sums run side by side, as many as registers are left for: measured. */
KG_INLINE int rows_at_once(kg_type type)
{
  const bool crowded = type == KG_Q5_0 || type == KG_Q5_1 || type == KG_Q5_K || traits_of(type).halves;
  return KG_LANES == 16 && !crowded ? MOST_AT_ONCE : 2;
}

/* n (a constant) rows of a panel of `rows`, from row0, with `parts` vectors of a group, from vector part0: sums to
 * out[n][KG_GROUP]. */
KG_INLINE void block_pass(kg_type type, int n, int part0, int parts, const uint8_t *group, int64_t n_blocks,
                          const uint8_t *panel, int rows, int row0, float *out)
{
  const kg_layout layout = kg_layout_of(type);
  const traits t = traits_of(type);
  const int at_once = rows_at_once(type);
  kg_vf acc[KG_PANEL][PARTS];
#pragma GCC unroll 16
  for (int i = 0; i < n; i++)
KG_UNROLL_PARTS
    for (int part = 0; part < parts; part++) acc[i][part] = kg_vf_set(0);

  const uint8_t *x = panel + KG_BLOCK * row0, *fields = panel + KG_BLOCK * rows + 4 * row0;
  const ptrdiff_t x_step = (ptrdiff_t)KG_Q8_ROW_BYTES * rows;
  while (n_blocks > 0) {
    const uint8_t *codes = group + layout.head_bytes;
    const int in_unit = n_blocks < layout.unit_blocks ? (int)n_blocks : layout.unit_blocks;
    for (int b = 0; b < in_unit; b++, codes += layout.block_bytes, x += x_step, fields += x_step) {
      /* Ask for what comes some blocks later; one line more than a block has, for the heads. */
#pragma GCC unroll 10
      for (int line = 0; line <= layout.block_bytes; line += 64) kg_prefetch(codes + PREFETCH_BYTES + line);
KG_UNROLL_PARTS
      for (int part = 0; part < parts; part++) {
        block w;
        unpack(type, group, codes, b, (part0 + part) * KG_LANES, &w);
#pragma GCC unroll 16
        for (int i = 0; i < n; i += at_once)
          add_block(t, &w, n - i < at_once ? n - i : at_once, x + KG_BLOCK * i, fields + 4 * i, rows, part, acc + i);
      }
    }
    n_blocks -= in_unit;
    group = codes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; i++)
KG_UNROLL_PARTS
    for (int part = 0; part < parts; part++) kg_vf_store(out + KG_GROUP * i + KG_LANES * (part0 + part), acc[i][part]);
}

KG_INLINE void block_product(kg_type type, int n, const uint8_t *group, int64_t n_blocks, const uint8_t *panel, int rows,
                             int row0, float *out)
{
  const int parts = KG_LANES == 8 && n > 1 ? 1 : PARTS; /* half a group at a time where there are 16 registers */
  for (int part0 = 0; part0 < PARTS; part0 += parts)
    block_pass(type, n, part0, parts, group, n_blocks, panel, rows, row0, out);
}

/* ---- products of float types ---- */

/* Weights of columns k and k + 1 of KG_LANES rows as float32. */
KG_INLINE void load_columns(kg_type type, const uint8_t *group, int64_t k, int lane0, kg_vf w[2])
{
  if (type == KG_F32) {
    w[0] = kg_vf_load((const float *)(const void *)(group + 64 * k + 4 * lane0));
    w[1] = kg_vf_load((const float *)(const void *)(group + 64 * k + 64 + 4 * lane0));
  } else if (type == KG_F16) {
    w[0] = kg_vf_load_f16(group + 32 * k + 2 * lane0);
    w[1] = kg_vf_load_f16(group + 32 * k + 32 + 2 * lane0);
  } else { /* pairs of BF16, which are the upper halves of float32 */
    const kg_vi pair = kg_vi_load(group + 32 * k + 4 * lane0);
    w[0] = kg_vf_bits(kg_vi_shl(pair, 16));
    w[1] = kg_vf_bits(kg_vi_and(pair, kg_vi_set((int32_t)0xffff0000)));
  }
}

KG_INLINE void float_product(kg_type type, int n, const uint8_t *group, int64_t n_blocks, const uint8_t *panel, int rows,
                             int row0, float *out)
{
  const int column_bytes = type == KG_F32 ? 64 : 32;
  kg_vf acc[KG_PANEL][PARTS];
#pragma GCC unroll 16
  for (int i = 0; i < n; i++)
KG_UNROLL_PARTS
    for (int part = 0; part < PARTS; part++) acc[i][part] = kg_vf_set(0);

  const uint8_t *x = panel + 4 * KG_FLOAT_BLOCK * row0;
  for (int64_t b = 0; b < n_blocks; b++, x += (ptrdiff_t)4 * KG_FLOAT_BLOCK * rows, group += KG_FLOAT_BLOCK * column_bytes) {
    for (int k = 0; k < KG_FLOAT_BLOCK; k += 2) {
      kg_prefetch(group + PREFETCH_BYTES + column_bytes * k);
      if (type == KG_F32) kg_prefetch(group + PREFETCH_BYTES + column_bytes * k + 64);
KG_UNROLL_PARTS
      for (int part = 0; part < PARTS; part++) {
        kg_vf w[2];
        load_columns(type, group, k, part * KG_LANES, w);
#pragma GCC unroll 16
        for (int i = 0; i < n; i++) {
          const uint8_t *xi = x + 4 * KG_FLOAT_BLOCK * i + 4 * k;
          acc[i][part] = kg_vf_fma(w[0], kg_vf_broadcast(xi), acc[i][part]);
          acc[i][part] = kg_vf_fma(w[1], kg_vf_broadcast(xi + 4), acc[i][part]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; i++)
KG_UNROLL_PARTS
    for (int part = 0; part < PARTS; part++) kg_vf_store(out + KG_GROUP * i + KG_LANES * part, acc[i][part]);
}

#if defined(__AVX512BF16__)
/* BF16 weights and activations: pairs of columns. */
KG_INLINE void bf16_product(kg_type type, int n, const uint8_t *group, int64_t n_blocks, const uint8_t *panel, int rows,
                            int row0, float *out)
{
  (void)type;
  kg_vf acc[KG_PANEL];
#pragma GCC unroll 16
  for (int i = 0; i < n; i++) acc[i] = kg_vf_set(0);
  const uint8_t *x = panel + 2 * KG_FLOAT_BLOCK * row0;
  for (int64_t b = 0; b < n_blocks; b++, x += (ptrdiff_t)2 * KG_FLOAT_BLOCK * rows) {
    for (int pair = 0; pair < KG_FLOAT_BLOCK / 2; pair++, group += 64) {
      kg_prefetch(group + PREFETCH_BYTES);
      const kg_vi w = kg_vi_load(group);
#pragma GCC unroll 16
      for (int i = 0; i < n; i++)
        acc[i] = kg_vf_dot_bf16(acc[i], w, kg_vi_broadcast(x + 2 * KG_FLOAT_BLOCK * i + 4 * pair));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < n; i++) kg_vf_store(out + KG_GROUP * i, acc[i]);
}
#endif

/* ---- instances: one function per type and number of rows ---- */

typedef void (*product)(const uint8_t *group, int64_t n_blocks, const uint8_t *panel, int rows, int row0, float *out);

#define PRODUCT(shape, type, n)                                                                                        \
  static void product_##type##_##n(const uint8_t *group, int64_t n_blocks, const uint8_t *panel, int rows, int row0,   \
                                   float *out)                                                                         \
  {                                                                                                                    \
    shape##_product(KG_##type, n, group, n_blocks, panel, rows, row0, out);                                            \
  }

/* A panel is cut into the largest of these that fit: more rows than registers hold would spill. A sanitized build does
 * with the small ones, which unroll the same code: the large ones take minutes to instrument. */
#if KG_LANES == 16 && !defined(__SANITIZE_ADDRESS__)
#define PRODUCTS(shape, type)                                                                                          \
  PRODUCT(shape, type, 1) PRODUCT(shape, type, 2) PRODUCT(shape, type, 4) PRODUCT(shape, type, 8) PRODUCT(shape, type, 16)
#define ROWS(type) {product_##type##_1, product_##type##_2, product_##type##_4, product_##type##_8, product_##type##_16}
#elif KG_LANES == 8
#define PRODUCTS(shape, type) PRODUCT(shape, type, 1) PRODUCT(shape, type, 2) PRODUCT(shape, type, 4)
#define ROWS(type) {product_##type##_1, product_##type##_2, product_##type##_4}
#else
#define PRODUCTS(shape, type) PRODUCT(shape, type, 1) PRODUCT(shape, type, 2)
#define ROWS(type) {product_##type##_1, product_##type##_2}
#endif

enum { N_SIZES = 5 }; /* 1, 2, 4, 8, 16; sizes without a function are NULL */

PRODUCTS(float, F32)
PRODUCTS(float, F16)
#if defined(__AVX512BF16__)
PRODUCTS(bf16, BF16)
#else
PRODUCTS(float, BF16)
#endif
PRODUCTS(block, Q4_0)
PRODUCTS(block, Q4_1)
PRODUCTS(block, Q5_0)
PRODUCTS(block, Q5_1)
PRODUCTS(block, Q8_0)
PRODUCTS(block, Q2_K)
PRODUCTS(block, Q3_K)
PRODUCTS(block, Q4_K)
PRODUCTS(block, Q5_K)
PRODUCTS(block, Q6_K)
PRODUCTS(block, IQ4_NL)
PRODUCTS(block, IQ4_XS)
PRODUCTS(block, MXFP4)

static const product *products_of(kg_type type)
{
  static const product table[][N_SIZES] = {
      [KG_F32] = ROWS(F32),   [KG_F16] = ROWS(F16),   [KG_BF16] = ROWS(BF16), [KG_Q4_0] = ROWS(Q4_0),
      [KG_Q4_1] = ROWS(Q4_1), [KG_Q5_0] = ROWS(Q5_0), [KG_Q5_1] = ROWS(Q5_1), [KG_Q8_0] = ROWS(Q8_0),
      [KG_Q2_K] = ROWS(Q2_K), [KG_Q3_K] = ROWS(Q3_K), [KG_Q4_K] = ROWS(Q4_K), [KG_Q5_K] = ROWS(Q5_K),
      [KG_Q6_K] = ROWS(Q6_K), [KG_IQ4_NL] = ROWS(IQ4_NL), [KG_IQ4_XS] = ROWS(IQ4_XS), [KG_MXFP4] = ROWS(MXFP4)};
  return table[type];
}

/* ---- the product of a weight ---- */

static kg_activation_format format_of(kg_type type)
{
#if defined(__AVX512BF16__)
  if (type == KG_BF16) return KG_ACTIVATION_BF16;
#endif
  return kg_layout_of(type).unit_blocks ? KG_ACTIVATION_Q8 : KG_ACTIVATION_F32;
}

/* Sums of one group and one activation row to their place. Whole groups and cut ones add in the same order. */
static void finish(const kg_matmul *m, int64_t row, int64_t column, const float *sums)
{
  const int64_t left = m->weight->rows - column;
  const float *bias = m->bias ? m->bias + column : NULL;
  const float *residual = m->residual ? m->residual + row * m->residual_stride + column : NULL;
  float *out = m->out + row * m->out_stride + column;
  if (left < KG_GROUP) {
    for (int64_t r = 0; r < left; r++) {
      const float biased = bias ? sums[r] + bias[r] : sums[r];
      out[r] = residual ? biased + residual[r] : biased;
    }
    return;
  }
  for (int r = 0; r < KG_GROUP; r += KG_LANES) {
    kg_vf v = kg_vf_load(sums + r);
    if (bias) v = kg_vf_add(v, kg_vf_load(bias + r));
    if (residual) v = kg_vf_add(v, kg_vf_load(residual + r));
    kg_vf_store(out + r, v);
  }
}

/* One group with the `rows` rows of the panel that starts at activation row row0. */
static void group_with_panel(const kg_matmul *m, const product *products, const uint8_t *group, int64_t column,
                             int64_t n_blocks, const uint8_t *panel, int64_t row0, int rows)
{
  float sums[KG_PANEL * KG_GROUP];
  for (int done = 0, size = N_SIZES - 1; done < rows; size--) {
    const int n = 1 << size;
    while (products[size] && rows - done >= n) {
      products[size](group, n_blocks, panel, rows, done, sums);
      for (int i = 0; i < n; i++) finish(m, row0 + done + i, column, sums + KG_GROUP * i);
      done += n;
    }
  }
}

static void matmul(const kg_matmul *m, int64_t group0, int64_t group1)
{
  enum { RESIDENT_BYTES = 384 << 10 }; /* of weights that stay in the second-level cache while panels pass */
  const kg_packed *weight = m->weight;
  const kg_activation_format format = format_of(weight->type);
  const int step = format == KG_ACTIVATION_Q8 ? KG_BLOCK : KG_FLOAT_BLOCK;
  const int64_t n_blocks = (weight->cols + step - 1) / step;
  const size_t row_bytes = kg_activation_bytes(format, 1, weight->cols);
  const uint8_t *groups = weight->data + (size_t)m->plane * weight->plane_bytes;
  const product *products = products_of(weight->type);
  int64_t batch = (int64_t)(RESIDENT_BYTES / weight->group_bytes);
  if (batch < 1) batch = 1;
  for (int64_t first = group0; first < group1; first += batch) {
    const int64_t end = first + batch < group1 ? first + batch : group1;
    for (int64_t row0 = 0; row0 < m->n_rows; row0 += KG_PANEL) {
      const int rows = m->n_rows - row0 < KG_PANEL ? (int)(m->n_rows - row0) : KG_PANEL;
      const uint8_t *panel = (const uint8_t *)m->x + (size_t)row0 * row_bytes;
      for (int64_t g = first; g < end; g++)
        group_with_panel(m, products, groups + (size_t)g * weight->group_bytes, g * KG_GROUP, n_blocks, panel, row0, rows);
    }
  }
}

/* ---- activations ---- */

/* The largest |x| of 32 numbers as bits: they order like integers, and a NaN is above them all. */
KG_INLINE uint32_t largest_bits(const float *x)
{
  kg_vi most = kg_vi_zero();
#pragma GCC unroll 8
  for (int k = 0; k < KG_BLOCK; k += KG_LANES) most = kg_vi_max(most, kg_vi_and(kg_vi_load(x + k), kg_vi_set(0x7fffffff)));
  return (uint32_t)kg_vi_largest(most);
}

/* 32 numbers to codes and the scale. Zeros where the scale would vanish or is not finite; then it is kept, so that
 * products with it are not finite either. */
KG_INLINE float quantize_codes(const float *x, int8_t *codes)
{
  const uint32_t bits = largest_bits(x);
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  const bool finite = bits < 0x7f800000;
  if (!finite || largest < 1e-35f) {
    memset(codes, 0, KG_BLOCK);
    return finite ? 0 : largest;
  }
  const kg_vf factor = kg_vf_set(127.0f / largest);
#pragma GCC unroll 8
  for (int k = 0; k < KG_BLOCK; k += KG_LANES)
    kg_vi_store_i8(codes + k, kg_vi_round(kg_vf_mul(kg_vf_load(x + k), factor)));
  return largest / 127.0f;
}

KG_INLINE void quantize_block(const float *x, int8_t *codes, uint8_t *fields, int rows)
{
  const float scale = quantize_codes(x, codes);
  const int32_t low = kg_sum16(codes), high = kg_sum16(codes + 16);
  const float floats[] = {scale, scale * (float)(low + high), scale * (float)low, scale * (float)high};
  const int32_t integers[] = {-8 * (low + high), -128 * (low + high), -128 * low, -128 * high};
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    memcpy(fields + 4 * rows * (KG_Q8_SCALE + i), &floats[i], 4);
    memcpy(fields + 4 * rows * (KG_Q8_TIMES_8 + i), &integers[i], 4);
  }
}

/* Row i of a panel of `rows`. */
static void quantize_row(const float *x, int64_t cols, uint8_t *panel, int rows, int i)
{
  for (int64_t k = 0; k < cols; k += KG_BLOCK, panel += KG_Q8_ROW_BYTES * rows)
    quantize_block(x + k, (int8_t *)panel + KG_BLOCK * i, panel + KG_BLOCK * rows + 4 * i, rows);
}

/* KG_FLOAT_BLOCK floats in a float format. */
KG_INLINE void store_floats(kg_activation_format format, const float *x, uint8_t *out)
{
#if defined(__AVX512BF16__)
  if (format == KG_ACTIVATION_BF16) {
    kg_vf_store_bf16(out, kg_vf_load(x));
    return;
  }
#endif
  (void)format;
  memcpy(out, x, 4 * KG_FLOAT_BLOCK);
}

static void copy_row(kg_activation_format format, const float *x, int64_t cols, uint8_t *panel, int rows, int i)
{
  const int bytes = KG_FLOAT_BLOCK * (format == KG_ACTIVATION_BF16 ? 2 : 4);
  uint8_t *out = panel + bytes * i;
  for (int64_t k = 0; k < cols; k += KG_FLOAT_BLOCK, out += bytes * rows) {
    float padded[KG_FLOAT_BLOCK] = {0};
    const int64_t left = cols - k;
    if (left < KG_FLOAT_BLOCK) memcpy(padded, x + k, 4 * (size_t)left);
    store_floats(format, left < KG_FLOAT_BLOCK ? padded : x + k, out);
  }
}

static void quantize(kg_activation_format format, const float *x, int64_t x_stride, int64_t n_rows, int64_t cols,
                     int64_t row0, int64_t row1, void *out)
{
  const size_t row_bytes = kg_activation_bytes(format, 1, cols);
  for (int64_t row = row0; row < row1; row++) {
    const int64_t first = row / KG_PANEL * KG_PANEL;
    const int rows = n_rows - first < KG_PANEL ? (int)(n_rows - first) : KG_PANEL;
    uint8_t *panel = (uint8_t *)out + (size_t)first * row_bytes;
    if (format == KG_ACTIVATION_Q8) quantize_row(x + row * x_stride, cols, panel, rows, (int)(row - first));
    else copy_row(format, x + row * x_stride, cols, panel, rows, (int)(row - first));
  }
}

/* ---- one row back as float32 ---- */

/* The value of lane r's column 4s + i. */
KG_INLINE float value_of(const traits t, const block *w, int column, int r)
{
  float scale[KG_LANES], min[KG_LANES];
  uint8_t codes[4 * KG_LANES];
  const int half = t.halves ? column / 16 : 0;
  kg_vi_store(codes, w->codes[column / 4]);
  kg_vf_store(scale, w->scale[half]);
  const uint8_t code = codes[4 * r + column % 4];
  const int number = t.wide && t.offset == 0 ? (int8_t)code : code - t.offset;
  if (!t.minima) return scale[r] * (float)number;
  kg_vf_store(min, w->min[half]);
  return scale[r] * (float)number + min[r];
}

KG_INLINE void dequantize_blocks(kg_type type, const uint8_t *group, int64_t n_blocks, int r, float *out)
{
  const kg_layout layout = kg_layout_of(type);
  const traits t = traits_of(type);
  const int lane0 = r / KG_LANES * KG_LANES;
  while (n_blocks > 0) {
    const uint8_t *codes = group + layout.head_bytes;
    const int in_unit = n_blocks < layout.unit_blocks ? (int)n_blocks : layout.unit_blocks;
    for (int b = 0; b < in_unit; b++, codes += layout.block_bytes, out += KG_BLOCK) {
      block w;
      unpack(type, group, codes, b, lane0, &w);
      for (int column = 0; column < KG_BLOCK; column++) out[column] = value_of(t, &w, column, r - lane0);
    }
    n_blocks -= in_unit;
    group = codes;
  }
}

static void dequantize_floats(kg_type type, const uint8_t *group, int64_t cols, int r, float *out)
{
  for (int64_t k = 0; k < cols; k += 2) {
    kg_vf w[2];
    float column[KG_LANES];
    load_columns(type, group, k, r / KG_LANES * KG_LANES, w);
    for (int i = 0; i < 2 && k + i < cols; i++) {
      kg_vf_store(column, w[i]);
      out[k + i] = column[r % KG_LANES];
    }
  }
}

static void dequantize_row(const kg_packed *weight, int64_t plane, int64_t row, float *out)
{
  const uint8_t *group =
      weight->data + (size_t)plane * weight->plane_bytes + (size_t)(row / KG_GROUP) * weight->group_bytes;
  const int64_t n_blocks = weight->cols / KG_BLOCK;
  const int r = (int)(row % KG_GROUP);
  switch (weight->type) {
#define CASE(name) case KG_##name: dequantize_blocks(KG_##name, group, n_blocks, r, out); break;
    CASE(Q4_0) CASE(Q4_1) CASE(Q5_0) CASE(Q5_1) CASE(Q8_0) CASE(Q2_K) CASE(Q3_K) CASE(Q4_K) CASE(Q5_K) CASE(Q6_K)
    CASE(IQ4_NL) CASE(IQ4_XS) CASE(MXFP4)
#undef CASE
  default: dequantize_floats(weight->type, group, weight->cols, r, out); break;
  }
}

static const kg_kernels variant = {
    .name = KG_SIMD_NAME, .format = format_of, .quantize = quantize, .matmul = matmul, .dequantize_row = dequantize_row};
const kg_kernels *const KG_KERNELS = &variant;
