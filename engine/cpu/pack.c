/* pack.c - from GGUF blocks, row after row, to groups of 16 rows (layouts: kernels.h). */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "alloc.h"
#include "error.h"
#include "kernels.h"
#include "system.h"

enum { LARGE_PAGE = 2 << 20 };

/* Bytes of a group of block type: whole units and a short one, to a multiple of 64. */
static bool block_group_bytes(const kg_layout *layout, int64_t cols, size_t *out)
{
  const size_t n_blocks = (size_t)(cols / KG_BLOCK);
  const size_t n_units = (n_blocks + (size_t)layout->unit_blocks - 1) / (size_t)layout->unit_blocks;
  size_t heads, codes, sum;
  return kg_mul_size(n_units, (size_t)layout->head_bytes, &heads) &&
         kg_mul_size(n_blocks, (size_t)layout->block_bytes, &codes) && kg_add_size(heads, codes, &sum) &&
         kg_align_size(sum, 64, out);
}

static bool float_group_bytes(const kg_type_info *info, int64_t cols, size_t *out)
{
  size_t padded;
  return kg_align_size((size_t)cols, KG_FLOAT_BLOCK, &padded) &&
         kg_mul_size(padded, (size_t)(KG_GROUP * info->block_bytes), out);
}

int kg_packed_init(kg_packed *packed, kg_type type, int64_t cols, int64_t rows, int64_t planes, kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)type);
  if (!info || !kg_type_is_computable(type))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "weights of type %s cannot be computed with", info ? info->name : "?");
  if (cols <= 0 || rows <= 0 || planes <= 0 || cols % info->block_size || rows > INT64_MAX - KG_GROUP)
    return kg_fail(err, KG_ERR_FORMAT, "a %s weight of %lld columns, %lld rows, %lld planes: no whole blocks", info->name,
                   (long long)cols, (long long)rows, (long long)planes);
  const kg_layout layout = kg_layout_of(type);
  kg_packed p = {.type = type, .cols = cols, .rows = rows, .planes = planes};
  p.n_groups = (rows + KG_GROUP - 1) / KG_GROUP;
  const bool fits = (layout.unit_blocks ? block_group_bytes(&layout, cols, &p.group_bytes)
                                        : float_group_bytes(info, cols, &p.group_bytes)) &&
                    kg_mul_size(p.group_bytes, (size_t)p.n_groups, &p.plane_bytes) &&
                    kg_mul_size(p.plane_bytes, (size_t)planes, &p.n_bytes);
  if (!fits)
    return kg_fail(err, KG_ERR_FORMAT, "a %s weight of %lld columns, %lld rows, %lld planes is too large", info->name,
                   (long long)cols, (long long)rows, (long long)planes);
  *packed = p;
  return KG_OK;
}

void *kg_packed_memory(size_t n_bytes)
{
  if (n_bytes < 4 * LARGE_PAGE) return kg_alloc_aligned(n_bytes, 64);
  void *memory = kg_alloc_aligned(n_bytes, LARGE_PAGE);
#ifdef MADV_HUGEPAGE
  if (memory) kg_sys_madvise(memory, n_bytes & ~(size_t)(LARGE_PAGE - 1), MADV_HUGEPAGE); /* a wish */
#endif
  return memory;
}

/* ---- words: a step of one row ---- */

static uint32_t load32(const uint8_t *p)
{
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}

static void store32(uint8_t *p, uint32_t word)
{
  memcpy(p, &word, sizeof word);
}

static uint32_t load16(const uint8_t *p)
{
  uint16_t half;
  memcpy(&half, p, sizeof half);
  return half;
}

/* Planes of the codes of one row of a block (32 bytes) into its lane of the vectors at `out`. */

static void put_bytes(const uint8_t *codes, uint8_t *out)
{
  for (int s = 0; s < 8; s++) store32(out + 64 * s, load32(codes + 4 * s));
}

static void put_nibbles(const uint8_t *codes, uint8_t *out)
{
  for (int j = 0; j < 4; j++)
    store32(out + 64 * j, (load32(codes + 4 * j) & 0x0f0f0f0f) | (load32(codes + 16 + 4 * j) & 0x0f0f0f0f) << 4);
}

static void put_pairs(const uint8_t *codes, int shift, uint8_t *out)
{
  for (int j = 0; j < 2; j++) {
    uint32_t word = 0;
    for (int f = 0; f < 4; f++) word |= ((load32(codes + 16 * j + 4 * f) >> shift) & 0x03030303) << (2 * f);
    store32(out + 64 * j, word);
  }
}

static void put_bits(const uint8_t *codes, int shift, uint8_t *out)
{
  uint32_t word = 0;
  for (int s = 0; s < 8; s++) word |= ((load32(codes + 4 * s) >> shift) & 0x01010101) << s;
  store32(out, word);
}

/* ---- from a file's block to codes and scales of one row ---- */

/* One row of a unit, n_blocks blocks of 32 columns. */
typedef struct unit_row {
  uint8_t codes[KG_MAX_UNIT * KG_BLOCK];
  uint8_t *head; /* of the unit; scales go to lane r */
  int n_blocks, r;
} unit_row;

static void put_half(unit_row *u, int index, const uint8_t *half)
{
  memcpy(u->head + 32 * index + 2 * u->r, half, 2);
}

static void put_byte(unit_row *u, int base, int index, unsigned value)
{
  u->head[base + 16 * index + u->r] = (uint8_t)value;
}

/* 16 bytes: low nibbles are columns 0 to 15, high nibbles 16 to 31. */
static void split_nibbles(const uint8_t *qs, uint8_t *codes)
{
  for (int j = 0; j < 16; j++) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}

static void add_fifth_bits(const uint8_t *qh, uint8_t *codes)
{
  for (int j = 0; j < 32; j++) codes[j] |= (uint8_t)(((qh[j / 8] >> (j % 8)) & 1) << 4);
}

static void expand_q4_0(unit_row *u, const uint8_t *blocks) /* also IQ4_NL */
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 18) {
    put_half(u, b, blocks);
    split_nibbles(blocks + 2, u->codes + 32 * b);
  }
}

static void expand_q4_1(unit_row *u, const uint8_t *blocks)
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 20) {
    put_half(u, 2 * b, blocks);
    put_half(u, 2 * b + 1, blocks + 2);
    split_nibbles(blocks + 4, u->codes + 32 * b);
  }
}

static void expand_q5_0(unit_row *u, const uint8_t *blocks)
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 22) {
    put_half(u, b, blocks);
    split_nibbles(blocks + 6, u->codes + 32 * b);
    add_fifth_bits(blocks + 2, u->codes + 32 * b);
  }
}

static void expand_q5_1(unit_row *u, const uint8_t *blocks)
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 24) {
    put_half(u, 2 * b, blocks);
    put_half(u, 2 * b + 1, blocks + 2);
    split_nibbles(blocks + 8, u->codes + 32 * b);
    add_fifth_bits(blocks + 4, u->codes + 32 * b);
  }
}

static void expand_q8_0(unit_row *u, const uint8_t *blocks)
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 34) {
    put_half(u, b, blocks);
    for (int j = 0; j < 32; j++) u->codes[32 * b + j] = blocks[2 + j] ^ 0x80;
  }
}

static void expand_mxfp4(unit_row *u, const uint8_t *blocks)
{
  for (int b = 0; b < u->n_blocks; b++, blocks += 17) {
    put_byte(u, 0, b, blocks[0]);
    split_nibbles(blocks + 1, u->codes + 32 * b);
  }
}

/* 64 bytes to 256 two-bit codes: 32 bytes hold four blocks, one per pair of bits. */
static void split_pairs(const uint8_t *qs, uint8_t *codes)
{
  for (int b = 0; b < 8; b++)
    for (int j = 0; j < 32; j++) codes[32 * b + j] = (qs[32 * (b / 4) + j] >> (2 * (b % 4))) & 3;
}

static void expand_q2_k(unit_row *u, const uint8_t *block)
{
  put_half(u, 0, block + 80);
  put_half(u, 1, block + 82);
  for (int i = 0; i < 16; i++) put_byte(u, 64, i, block[i]);
  split_pairs(block + 16, u->codes);
}

static void expand_q3_k(unit_row *u, const uint8_t *block)
{
  const uint8_t *scales = block + 96;
  put_half(u, 0, block + 108);
  for (int i = 0; i < 16; i++) {
    const unsigned low = i < 8 ? scales[i] & 15u : scales[i - 8] >> 4;
    const unsigned high = (scales[8 + i % 4] >> (2 * (i / 4))) & 3u;
    put_byte(u, 32, i, (low | high << 4) - 32);
  }
  split_pairs(block + 32, u->codes);
  for (int b = 0; b < 8; b++)
    for (int j = 0; j < 32; j++) u->codes[32 * b + j] |= (uint8_t)(((block[j] >> b) & 1) << 2);
}

/* 12 bytes hold eight 6-bit scales and eight 6-bit minima. */
static void put_scales_k4(unit_row *u, const uint8_t *scales)
{
  for (int j = 0; j < 4; j++) {
    put_byte(u, 64, j, scales[j] & 63);
    put_byte(u, 192, j, scales[j + 4] & 63);
    put_byte(u, 64, j + 4, (scales[j + 8] & 15u) | (unsigned)(scales[j] >> 6) << 4);
    put_byte(u, 192, j + 4, (unsigned)(scales[j + 8] >> 4) | (unsigned)(scales[j + 4] >> 6) << 4);
  }
}

/* 128 bytes to 256 four-bit codes: 32 bytes hold two blocks. */
static void split_nibbles_k(const uint8_t *qs, uint8_t *codes)
{
  for (int c = 0; c < 4; c++)
    for (int j = 0; j < 32; j++) {
      codes[64 * c + j] = qs[32 * c + j] & 15;
      codes[64 * c + 32 + j] = qs[32 * c + j] >> 4;
    }
}

static void expand_q4_k(unit_row *u, const uint8_t *block)
{
  put_half(u, 0, block);
  put_half(u, 1, block + 2);
  put_scales_k4(u, block + 4);
  split_nibbles_k(block + 16, u->codes);
}

static void expand_q5_k(unit_row *u, const uint8_t *block)
{
  put_half(u, 0, block);
  put_half(u, 1, block + 2);
  put_scales_k4(u, block + 4);
  split_nibbles_k(block + 48, u->codes);
  for (int b = 0; b < 8; b++)
    for (int j = 0; j < 32; j++) u->codes[32 * b + j] |= (uint8_t)(((block[16 + j] >> b) & 1) << 4);
}

static void expand_q6_k(unit_row *u, const uint8_t *block)
{
  put_half(u, 0, block + 208);
  for (int i = 0; i < 16; i++) put_byte(u, 64, i, block[192 + i]);
  for (int n = 0; n < 2; n++) {
    const uint8_t *ql = block + 64 * n, *qh = block + 128 + 32 * n;
    uint8_t *codes = u->codes + 128 * n;
    for (int j = 0; j < 32; j++) {
      codes[j] = (uint8_t)((ql[j] & 15) | (qh[j] & 3) << 4);
      codes[j + 32] = (uint8_t)((ql[j + 32] & 15) | ((qh[j] >> 2) & 3) << 4);
      codes[j + 64] = (uint8_t)((ql[j] >> 4) | ((qh[j] >> 4) & 3) << 4);
      codes[j + 96] = (uint8_t)((ql[j + 32] >> 4) | (qh[j] >> 6) << 4);
    }
  }
}

static void expand_iq4_xs(unit_row *u, const uint8_t *block)
{
  const uint32_t scales_h = load16(block + 2);
  put_half(u, 0, block);
  for (int b = 0; b < 8; b++) {
    const unsigned low = (block[4 + b / 2] >> (4 * (b % 2))) & 15u, high = (scales_h >> (2 * b)) & 3u;
    put_byte(u, 64, b, (low | high << 4) - 32);
    split_nibbles(block + 8 + 16 * b, u->codes + 32 * b);
  }
}

static void expand(kg_type type, unit_row *u, const uint8_t *blocks)
{
  switch (type) {
  case KG_Q4_0:
  case KG_IQ4_NL: expand_q4_0(u, blocks); break;
  case KG_Q4_1: expand_q4_1(u, blocks); break;
  case KG_Q5_0: expand_q5_0(u, blocks); break;
  case KG_Q5_1: expand_q5_1(u, blocks); break;
  case KG_Q8_0: expand_q8_0(u, blocks); break;
  case KG_MXFP4: expand_mxfp4(u, blocks); break;
  case KG_Q2_K: expand_q2_k(u, blocks); break;
  case KG_Q3_K: expand_q3_k(u, blocks); break;
  case KG_Q4_K: expand_q4_k(u, blocks); break;
  case KG_Q5_K: expand_q5_k(u, blocks); break;
  case KG_Q6_K: expand_q6_k(u, blocks); break;
  default: expand_iq4_xs(u, blocks); break;
  }
}

/* Codes of one row of a block into its lane of the block's planes. */
static void put_codes(kg_type type, const uint8_t *codes, uint8_t *out)
{
  switch (type) {
  case KG_Q8_0: put_bytes(codes, out); break;
  case KG_Q2_K: put_pairs(codes, 0, out); break;
  case KG_Q3_K:
    put_pairs(codes, 0, out);
    put_bits(codes, 2, out + 128);
    break;
  case KG_Q6_K:
    put_nibbles(codes, out);
    put_pairs(codes, 4, out + 256);
    break;
  case KG_Q5_0:
  case KG_Q5_1:
  case KG_Q5_K:
    put_nibbles(codes, out);
    put_bits(codes, 4, out + 256);
    break;
  default: put_nibbles(codes, out); break;
  }
}

/* ---- groups ---- */

static void pack_block_group(const kg_packed *packed, const uint8_t *rows, size_t row_bytes, int n_rows, uint8_t *out)
{
  const kg_layout layout = kg_layout_of(packed->type);
  const kg_type_info *info = kg_type_find((uint32_t)packed->type);
  const int64_t n_blocks = packed->cols / KG_BLOCK;
  const size_t unit_bytes = (size_t)(layout.head_bytes + layout.unit_blocks * layout.block_bytes);
  const size_t file_bytes = (size_t)(layout.unit_blocks * KG_BLOCK / info->block_size * info->block_bytes);
  for (int64_t b = 0; b < n_blocks; b += layout.unit_blocks, out += unit_bytes, rows += file_bytes) {
    const int64_t left = n_blocks - b;
    unit_row u = {.head = out, .n_blocks = left < layout.unit_blocks ? (int)left : layout.unit_blocks};
    for (u.r = 0; u.r < n_rows; u.r++) {
      expand(packed->type, &u, rows + (size_t)u.r * row_bytes);
      for (int i = 0; i < u.n_blocks; i++)
        put_codes(packed->type, u.codes + 32 * i, out + layout.head_bytes + i * layout.block_bytes + 4 * u.r);
    }
  }
}

/* Elements of `size` bytes, `run` neighbours of a row kept together. */
static void pack_float_group(const uint8_t *rows, size_t row_bytes, int n_rows, int64_t cols, int size, int run,
                             uint8_t *out)
{
  for (int64_t k = 0; k < cols; k++)
    for (int r = 0; r < n_rows; r++)
      memcpy(out + size * (k / run * KG_GROUP * run + r * run + k % run), rows + (size_t)r * row_bytes + size * k,
             (size_t)size);
}

void kg_pack(const kg_packed *packed, int64_t plane, int64_t group0, int64_t group1, const void *blocks)
{
  const kg_type_info *info = kg_type_find((uint32_t)packed->type);
  const size_t row_bytes = (size_t)(packed->cols / info->block_size) * (size_t)info->block_bytes;
  for (int64_t g = group0; g < group1; g++) {
    const int64_t row = g * KG_GROUP, left = packed->rows - row;
    const int n_rows = left < KG_GROUP ? (int)left : KG_GROUP;
    const uint8_t *rows = (const uint8_t *)blocks + (size_t)row * row_bytes;
    uint8_t *out = packed->data + (size_t)plane * packed->plane_bytes + (size_t)g * packed->group_bytes;
    memset(out, 0, packed->group_bytes);
    if (packed->type == KG_F32) pack_float_group(rows, row_bytes, n_rows, packed->cols, 4, 1, out);
    else if (packed->type == KG_F16) pack_float_group(rows, row_bytes, n_rows, packed->cols, 2, 1, out);
    else if (packed->type == KG_BF16) pack_float_group(rows, row_bytes, n_rows, packed->cols, 2, 2, out);
    else pack_block_group(packed, rows, row_bytes, n_rows, out);
  }
}
