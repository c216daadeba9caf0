/* unpack.c - from fragment order (format.h) back to the bytes of the file, on the host: what shows that the device
 * holds the file's weights. It shares no code with pack.cu, so that a mistake there cannot hide here. */
#include <string.h>

#include "executable.h"

/* Columns [32 block, 32 block + 32) of a row, found in its tile's planes. */
typedef struct corner {
  const unsigned char *q, *h; /* of the tile's block */
  int row;                    /* in the tile */
} corner;

static uint32_t word_at(const unsigned char *p, int index)
{
  uint32_t word;
  memcpy(&word, p + 4 * index, sizeof word);
  return word;
}

/* Which lane holds a column, and which of its eight slots. */
static int lane_of(int row, int column) { return row % 8 * 4 + column % 16 / 4; }
static int slot_of(int column) { return column % 4 + column / 16 * 4; }

/* Where a slot's bits begin in a word of both halves, for fields of so many bits. */
static int shift_in_word(int row, int slot, int bits) { return bits * (4 * (row / 8) + slot / 2) + 16 * (slot % 2); }

/* Codes of 5 bits stand across both planes: eight fields in each half of a lane's words. */
static bool has_fields(const kg_format *f) { return f->q_bytes == 256 && f->h_bytes == 64; }

static unsigned field_at(const corner *c, int column)
{
  const int lane = lane_of(c->row, column), slot = slot_of(column), half = slot % 2;
  const unsigned w0 = word_at(c->q, 2 * lane) >> 16 * half & 0xffff;
  const unsigned w1 = word_at(c->q, 2 * lane + 1) >> 16 * half & 0xffff;
  const unsigned h = c->h[2 * lane + half], split = (w0 >> 10 & 1) | (w1 >> 10 & 1) << 1 | h >> 5 << 2;
  const unsigned fields[8] = {w0 & 31, w0 >> 5 & 31, w0 >> 11, w1 & 31, w1 >> 5 & 31, w1 >> 11, h & 31, split};
  return fields[4 * (c->row / 8) + slot / 2];
}

static unsigned low_bits(const kg_format *f, const corner *c, int column)
{
  if (has_fields(f)) return field_at(c, column) & 15;
  const int lane = lane_of(c->row, column), slot = slot_of(column);
  if (f->q_bytes == 512) return c->q[16 * lane + 8 * (c->row / 8) + slot];
  if (f->q_bytes == 256) return word_at(c->q, 2 * lane + c->row / 8) >> (4 * (slot / 2) + 16 * (slot % 2)) & 15;
  return word_at(c->q, lane) >> shift_in_word(c->row, slot, 2) & 3;
}

static unsigned high_bits(const kg_format *f, const corner *c, int column)
{
  if (has_fields(f)) return field_at(c, column) >> 4;
  const int lane = lane_of(c->row, column), slot = slot_of(column);
  if (f->h_bytes == 128) return word_at(c->h, lane) >> shift_in_word(c->row, slot, 2) & 3;
  const unsigned short bits = (unsigned short)(c->h[2 * lane] | c->h[2 * lane + 1] << 8);
  return bits >> (4 * (c->row / 8) + slot / 2 + 8 * (slot % 2)) & 1;
}

/* ---- blocks of the file (layouts: quant.c) ---- */

/* Put a number's code where the file has it. `i`: its place in the block, which is zero where nothing was put. */
static void put_nibble(unsigned char *nibbles, int i, unsigned code)
{
  nibbles[i % 16] |= (unsigned char)(code << i / 16 * 4);
}

static void put_bit(unsigned char *bits, int i, unsigned bit) { bits[i / 8] |= (unsigned char)(bit << i % 8); }

/* 64 numbers a group of 32 bytes: the first 32 in low nibbles. */
static void put_nibble64(unsigned char *nibbles, int i, unsigned code)
{
  nibbles[i / 64 * 32 + i % 32] |= (unsigned char)(code << i % 64 / 32 * 4);
}

/* 128 numbers a group of 32 bytes: 32 in each pair of bits. */
static void put_pair128(unsigned char *pairs, int i, unsigned code)
{
  pairs[i / 128 * 32 + i % 32] |= (unsigned char)(code << i % 128 / 32 * 2);
}

static void put_code(kg_type type, unsigned char *block, int i, unsigned low, unsigned high)
{
  switch (type) {
  case KG_Q8_0:
    block[2 + i] = (unsigned char)(low - 128);
    break;
  case KG_Q4_0:
  case KG_IQ4_NL:
    put_nibble(block + 2, i, low);
    break;
  case KG_Q4_1:
    put_nibble(block + 4, i, low);
    break;
  case KG_Q5_0:
    put_nibble(block + 6, i, low);
    put_bit(block + 2, i, high);
    break;
  case KG_Q5_1:
    put_nibble(block + 8, i, low);
    put_bit(block + 4, i, high);
    break;
  case KG_MXFP4:
    put_nibble(block + 1, i, low);
    break;
  case KG_Q4_K:
    put_nibble64(block + 16, i, low);
    break;
  case KG_Q5_K:
    put_nibble64(block + 48, i, low);
    block[16 + i % 32] |= (unsigned char)(high << i / 32);
    break;
  case KG_Q6_K: /* 128 numbers a group: 64 bytes of nibbles, 32 of pairs */
    block[i / 128 * 64 + i % 64] |= (unsigned char)(low << i % 128 / 64 * 4);
    put_pair128(block + 128, i, high);
    break;
  case KG_Q3_K:
    put_pair128(block + 32, i, low);
    block[i % 32] |= (unsigned char)(high << i / 32);
    break;
  case KG_Q2_K:
    put_pair128(block + 16, i, low);
    break;
  default:
    put_nibble(block + 8 + i / 32 * 16, i % 32, low); /* IQ4_XS */
  }
}

/* Scales of a row's block, from the s plane of its tile's block. */
static void put_scales(kg_type type, unsigned char *block, const unsigned char *s, int row)
{
  const unsigned char *two = s + row % 8 * 4 + row / 8 * 2, *head;
  switch (type) {
  case KG_Q4_1:
  case KG_Q5_1:
    memcpy(block, s + row % 8 * 8 + row / 8 * 2, 2);
    memcpy(block + 2, s + row % 8 * 8 + 4 + row / 8 * 2, 2);
    break;
  case KG_MXFP4:
    block[0] = s[row % 8 * 2 + row / 8];
    break;
  case KG_Q4_K:
  case KG_Q5_K:
    memcpy(block, s + row * 16, 16);
    break;
  case KG_Q6_K:
    memcpy(block + 192, s + row * 18, 18);
    break;
  case KG_Q3_K:
    memcpy(block + 96, s + row * 14, 14);
    break;
  case KG_Q2_K:
    head = s + row * 20;
    memcpy(block, head, 16);
    memcpy(block + 80, head + 16, 4);
    break;
  case KG_IQ4_XS:
    memcpy(block, s + row * 8, 8);
    break;
  default:
    memcpy(block, two, 2); /* Q8_0, Q4_0, IQ4_NL, Q5_0 */
  }
}

/* ---- rows ---- */

/* A tile's planes on the host. */
typedef struct tile {
  const kg_matrix *m;
  kg_format f;
  const unsigned char *q, *h, *s;
} tile;

static void unpack_half_row(const tile *t, int row, unsigned char *out)
{
  for (int64_t column = 0; column < t->m->cols; column++) {
    const int in_block = (int)(column % KG_BLOCK_COLS), slot = slot_of(in_block);
    const int at = slot / 4 * 256 + lane_of(row, in_block) * 8 + (slot / 2 % 2 * 2 + row / 8) * 2 + slot % 2;
    memcpy(out + 2 * column, t->q + (size_t)(column / KG_BLOCK_COLS) * 1024 + 2 * (size_t)at, 2);
  }
}

static void unpack_row(const tile *t, int row, unsigned char *out)
{
  const kg_matrix *m = t->m;
  if (t->f.q_bytes == 1024) {
    unpack_half_row(t, row, out);
    return;
  }
  const kg_type_info *info = kg_type_find((uint32_t)m->type);
  const int pieces = info->block_size / KG_BLOCK_COLS;
  memset(out, 0, (size_t)(m->cols / info->block_size) * (size_t)info->block_bytes);
  for (int32_t b = 0; b < m->n_blocks; b++) {
    unsigned char *block = out + (size_t)(b / pieces) * (size_t)info->block_bytes;
    const corner c = {t->q + (size_t)b * (size_t)t->f.q_bytes, t->h + (size_t)b * (size_t)t->f.h_bytes, row};
    for (int i = 0; i < KG_BLOCK_COLS; i++)
      put_code(m->type, block, b % pieces * KG_BLOCK_COLS + i, low_bits(&t->f, &c, i),
               t->f.h_bytes ? high_bits(&t->f, &c, i) : 0);
    if (b % pieces == 0) put_scales(m->type, block, t->s + (size_t)(b / t->f.s_blocks) * (size_t)t->f.s_bytes, row);
  }
}

static int fetch(const kg_stream *s, const void *from, size_t n_bytes, void *to, kg_error *err)
{
  if (!n_bytes) return KG_OK;
  return kg_cuda_check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToHost, s->handle), "reading weights", err);
}

/* Rows [row, row + n_rows) of one plane. */
static int unpack_plane(const kg_executable *exe, const kg_matrix *m, int64_t plane, int64_t row, int64_t n_rows,
                        size_t row_bytes, unsigned char *out, kg_error *err)
{
  const kg_stream *s = exe->stream;
  tile t = {.m = m};
  if (m->type == KG_F32)
    return fetch(s, m->q + (size_t)plane * m->q_plane + (size_t)row * row_bytes, (size_t)n_rows * row_bytes, out, err);
  (void)kg_format_find(m->type, &t.f); /* it was, when the weight was packed */
  const size_t tile0 = (size_t)row / KG_TILE_ROWS, n_tiles = (size_t)(row + n_rows - 1) / KG_TILE_ROWS + 1 - tile0;
  const size_t q = (size_t)m->n_blocks * (size_t)t.f.q_bytes, h = (size_t)m->n_blocks * (size_t)t.f.h_bytes,
               scales = (size_t)(m->n_blocks / t.f.s_blocks) * (size_t)t.f.s_bytes;
  unsigned char *host = kg_alloc_array(n_tiles, q + h + scales);
  if (!host) return kg_fail_memory(err, n_tiles * (q + h + scales), "looking at weights");
  unsigned char *host_h = host + n_tiles * q, *host_s = host_h + n_tiles * h;
  int code = fetch(s, m->q + (size_t)plane * m->q_plane + tile0 * q, n_tiles * q, host, err);
  if (!code) code = fetch(s, m->h + (size_t)plane * m->h_plane + tile0 * h, n_tiles * h, host_h, err);
  if (!code) code = fetch(s, m->s + (size_t)plane * m->s_plane + tile0 * scales, n_tiles * scales, host_s, err);
  if (!code) code = kg_stream_wait(s, "reading weights", err);
  for (int64_t r = row; r < row + n_rows && !code; r++) {
    const size_t i = (size_t)r / KG_TILE_ROWS - tile0;
    t.q = host + i * q;
    t.h = host_h + i * h;
    t.s = host_s + i * scales;
    unpack_row(&t, (int)(r % KG_TILE_ROWS), out + (size_t)(r - row) * row_bytes);
  }
  kg_free(host);
  return code;
}

static int unpack_matrix(const kg_executable *exe, const kg_matrix *m, int64_t row, int64_t n_rows, unsigned char *out,
                         kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)m->type);
  const size_t row_bytes = (size_t)(m->cols / info->block_size) * (size_t)info->block_bytes;
  int code = KG_OK;
  while (n_rows > 0 && !code) {
    const int64_t plane = row / m->rows, first = row % m->rows, left = m->rows - first;
    const int64_t n = n_rows < left ? n_rows : left;
    code = unpack_plane(exe, m, plane, first, n, row_bytes, out, err);
    out += (size_t)n * row_bytes;
    row += n;
    n_rows -= n;
  }
  return code;
}

unsigned kg_gpu_weight_forms(const kg_executable *exe, int32_t weight)
{
  const kg_cuda_weight *w = &exe->weights[weight];
  return (w->is_matrix ? KG_FORM_FILE : 0u) | (w->is_vector ? KG_FORM_FLOATS : 0u);
}

int kg_gpu_weight_unpack(kg_executable *exe, int32_t weight, unsigned form, int64_t row, int64_t n_rows, void *out,
                         kg_error *err)
{
  const kg_weight *of_file = kg_plan_weight_at(exe->plan, weight);
  const kg_cuda_weight *w = &exe->weights[weight];
  const int64_t all = of_file->rows * of_file->planes;
  if (!(kg_gpu_weight_forms(exe, weight) & form) || row < 0 || n_rows < 0 || n_rows > all || row > all - n_rows)
    return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: rows %lld to %lld of %lld in form %u", of_file->name,
                   (long long)row, (long long)(row + n_rows), (long long)all, form);
  int code = kg_stream_use(exe->stream, err);
  if (!code && form == KG_FORM_FILE) code = unpack_matrix(exe, &w->m, row, n_rows, out, err);
  if (!code && form == KG_FORM_FLOATS)
    code =
        fetch(exe->stream, w->vector + row * of_file->cols, (size_t)(n_rows * of_file->cols) * sizeof(float), out, err);
  return code ? code : kg_stream_wait(exe->stream, "reading weights", err);
}
