/* pack.cu - from file order to fragment order (format.h), once at load. */
#include "format.cuh"

static __device__ __forceinline__ int q5_high(const unsigned char *high, int i)
{
  return (high[i / 8] >> i % 8 & 1) << 4;
}

static __device__ __forceinline__ int nibble(const unsigned char *nibbles, int i)
{
  return i < 16 ? nibbles[i] & 15 : nibbles[i - 16] >> 4;
}

static __device__ __forceinline__ int two_bits(const unsigned char *qs, int group, int i)
{
  return qs[group / 8 * 32 + group % 2 * 16 + i] >> group % 8 / 2 * 2 & 3;
}

/* The whole-number code of value k of a row in file order (layouts: quant.c); 16-bit types: the bits themselves. */
template <int T> static __device__ int raw_code(const unsigned char *row, int k)
{
  const int i = k % 32, group = k % 256 / 32, group16 = k % 256 / 16;
  const unsigned char *b;
  switch (T) {
  case KG_F16:
  case KG_BF16: return row[2 * (size_t)k] | row[2 * (size_t)k + 1] << 8;
  case KG_Q8_0: return (row + (size_t)(k / 32) * 34)[2 + i] ^ 0x80;
  case KG_Q4_0:
  case KG_IQ4_NL: return nibble(row + (size_t)(k / 32) * 18 + 2, i);
  case KG_Q4_1: return nibble(row + (size_t)(k / 32) * 20 + 4, i);
  case KG_Q5_0: b = row + (size_t)(k / 32) * 22; return nibble(b + 6, i) | q5_high(b + 2, i);
  case KG_Q5_1: b = row + (size_t)(k / 32) * 24; return nibble(b + 8, i) | q5_high(b + 4, i);
  case KG_MXFP4: return nibble(row + (size_t)(k / 32) * 17 + 1, i);
  case KG_Q4_K: b = row + (size_t)(k / 256) * 144; return b[16 + group / 2 * 32 + i] >> group % 2 * 4 & 15;
  case KG_Q5_K:
    b = row + (size_t)(k / 256) * 176;
    return (b[48 + group / 2 * 32 + i] >> group % 2 * 4 & 15) | (b[16 + i] >> group & 1) << 4;
  case KG_Q6_K:
    b = row + (size_t)(k / 256) * 210;
    return (b[group16 / 8 * 64 + group16 % 4 * 16 + k % 16] >> group16 % 8 / 4 * 4 & 15) |
           two_bits(b + 128, group16, k % 16) << 4;
  case KG_Q3_K:
    b = row + (size_t)(k / 256) * 110;
    return two_bits(b + 32, group16, k % 16) | (b[group16 % 2 * 16 + k % 16] >> group16 / 2 & 1) << 2;
  case KG_Q2_K: b = row + (size_t)(k / 256) * 84; return two_bits(b + 16, group16, k % 16);
  default: b = row + (size_t)(k / 256) * 136; return nibble(b + 8 + group * 16, i); /* IQ4_XS */
  }
}

/* Bytes of a row's block (of 32 or 256) and where in it the head's parts stand: n bytes at `at`, then n2 at at2. */
struct head_parts {
  int block_bytes, at, n, at2, n2;
};

template <int T> static __device__ head_parts parts()
{
  switch (T) {
  case KG_Q8_0: return {34, 0, 2, 0, 0};
  case KG_Q4_0:
  case KG_IQ4_NL: return {18, 0, 2, 0, 0};
  case KG_Q5_0: return {22, 0, 2, 0, 0};
  case KG_Q4_1: return {20, 0, 2, 2, 2};
  case KG_Q5_1: return {24, 0, 2, 2, 2};
  case KG_MXFP4: return {17, 0, 1, 0, 0};
  case KG_Q4_K: return {144, 0, 16, 0, 0};
  case KG_Q5_K: return {176, 0, 16, 0, 0};
  case KG_Q6_K: return {210, 192, 18, 0, 0};
  case KG_Q3_K: return {110, 96, 14, 0, 0};
  case KG_Q2_K: return {84, 0, 16, 80, 4};
  case KG_IQ4_XS: return {136, 0, 8, 0, 0};
  default: return {0, 0, 0, 0, 0};
  }
}

/* Row r of 16 of a tile: its scales for one block to the s plane. `in` is NULL for rows beyond the matrix. */
template <int T>
static __device__ void pack_scales(unsigned char *s, size_t tile_block, int r, const unsigned char *in)
{
  const head_parts p = parts<T>();
  const int row8 = r / 8, g = r % 8;
  if (T == KG_MXFP4) {
    s[tile_block * 16 + g * 2 + row8] = in ? in[0] : 0;
  } else if (T == KG_Q4_1 || T == KG_Q5_1) {
    for (int i = 0; i < 4; i++) s[tile_block * 64 + g * 8 + i / 2 * 4 + row8 * 2 + i % 2] = in ? in[i] : 0;
  } else if (p.n == 2) {
    for (int i = 0; i < 2; i++) s[tile_block * 32 + g * 4 + row8 * 2 + i] = in ? in[i] : 0;
  } else {
    unsigned char *head = s + (tile_block * 16 + r) * (p.n + p.n2);
    for (int i = 0; i < p.n; i++) head[i] = in ? in[p.at + i] : 0;
    for (int i = 0; i < p.n2; i++) head[p.n + i] = in ? in[p.at2 + i] : 0;
  }
}

/* Eight codes of 5 bits, of one half of a lane's words. */
static __device__ void pack_fields(const int f[8], uint32_t *w0, uint32_t *w1, uint32_t *h)
{
  *w0 = (uint32_t)(f[0] | f[1] << 5 | (f[7] & 1) << 10 | f[2] << 11);
  *w1 = (uint32_t)(f[3] | f[4] << 5 | (f[7] >> 1 & 1) << 10 | f[5] << 11);
  *h = (uint32_t)(f[6] | f[7] >> 2 << 5);
}

/* pack_tiles: grid (blocks of 32 columns, tiles), one warp = one tile's block.
 * twin: kg_type_info.dequantize beside weight_value (spec/cuda_spec.lua), equal to the bit where scales are. */
template <int T>
static __global__ void __launch_bounds__(32) pack_tiles(kg_matrix m, int plane, int tile0, const unsigned char *raw,
                                                        size_t row_bytes)
{
  typedef traits<T> t;
  const int lane = threadIdx.x, g = lane / 4, slot0 = lane % 4, block = blockIdx.x, tile = tile0 + blockIdx.y;
  const size_t at = (size_t)tile * m.n_blocks + block;
  unsigned char *q = (unsigned char *)m.q + plane * m.q_plane, *h = (unsigned char *)m.h + plane * m.h_plane,
                *s = (unsigned char *)m.s + plane * m.s_plane;
  int code[2][8];
#pragma unroll 1 /* once at load: small code matters more */
  for (int r = 0; r < 2; r++) {
    const int row = blockIdx.y * 16 + g + 8 * r;
    const bool exists = tile * 16 + g + 8 * r < m.rows;
#pragma unroll 1
    for (int j = 0; j < 8; j++) {
      const int k = block * 32 + 4 * slot0 + (j & 3) + 16 * (j >> 2);
      code[r][j] = exists && k < m.cols ? raw_code<T>(raw + row * row_bytes, k) : t::is_float ? 0 : t::bias & 255;
    }
  }
  if (t::q_bits == 16) {
    unsigned short *out = (unsigned short *)(q + at * 1024);
    for (int r = 0; r < 2; r++)
      for (int j = 0; j < 8; j++)
        out[j / 4 * 256 + lane * 8 + (2 * (j / 2 % 2) + r) * 2 + j % 2] = (unsigned short)code[r][j];
  } else if (t::q_bits == 8) {
    for (int r = 0; r < 2; r++)
      for (int j = 0; j < 8; j++) q[at * 512 + lane * 16 + r * 8 + j] = (unsigned char)code[r][j];
  } else if (t::has_fields) {
    uint32_t words[2] = {}, high = 0;
    for (int half = 0; half < 2; half++) {
      int fields[8];
      uint32_t w0, w1, h_half;
      for (int i = 0; i < 8; i++) fields[i] = code[i / 4][i % 4 * 2 + half];
      pack_fields(fields, &w0, &w1, &h_half);
      words[0] |= w0 << 16 * half;
      words[1] |= w1 << 16 * half;
      high |= h_half << 8 * half;
    }
    for (int r = 0; r < 2; r++) ((uint32_t *)(q + at * 256))[lane * 2 + r] = words[r];
    ((unsigned short *)(h + at * 64))[lane] = (unsigned short)high;
  } else if (t::q_bits == 4) {
    for (int r = 0; r < 2; r++) {
      uint32_t word = 0;
      for (int j = 0; j < 8; j++) word |= (uint32_t)(code[r][j] & 15) << (4 * (j / 2) + 16 * (j % 2));
      ((uint32_t *)(q + at * 256))[lane * 2 + r] = word;
    }
  } else {
    uint32_t word = 0;
    for (int r = 0; r < 2; r++)
      for (int j = 0; j < 8; j++) word |= (uint32_t)(code[r][j] & 3) << (2 * (4 * r + j / 2) + 16 * (j % 2));
    ((uint32_t *)(q + at * 128))[lane] = word;
  }
  if (t::h_bits && !t::has_fields) {
    uint32_t word = 0;
    for (int r = 0; r < 2; r++)
      for (int j = 0; j < 8; j++) {
        const uint32_t high = (uint32_t)code[r][j] >> (t::q_bits == 2 ? 2 : 4);
        if (t::h_bits == 2)
          word |= (high & 3) << (2 * (4 * r + j / 2) + 16 * (j % 2));
        else
          word |= (high & 1) << (4 * r + j / 2 + 8 * (j % 2));
      }
    if (t::h_bits == 2)
      ((uint32_t *)(h + at * 128))[lane] = word;
    else
      ((unsigned short *)(h + at * 64))[lane] = (unsigned short)word;
  }
  const head_parts p = parts<T>();
  if (!p.block_bytes || lane >= 16) return;
  const bool exists = tile * 16 + lane < m.rows;
  const unsigned char *row = raw + (blockIdx.y * 16 + lane) * row_bytes;
  if (p.n <= 2)
    pack_scales<T>(s, at, lane, exists ? row + (size_t)block * p.block_bytes : NULL);
  else if (block % 8 == 0)
    pack_scales<T>(s, (size_t)tile * (m.n_blocks / 8) + block / 8, lane,
                   exists ? row + (size_t)(block / 8) * p.block_bytes : NULL);
}

int kg_cuda_pack(kg_stream *s, const kg_matrix *m, int32_t plane, int32_t tile0, int32_t tile1, const void *raw,
                 kg_error *err)
{
  const kg_type_info *info = kg_type_find(m->type);
  const size_t row_bytes = (size_t)(m->cols / info->block_size) * (size_t)info->block_bytes;
  if (m->type == KG_F32) {
    const int64_t first = (int64_t)tile0 * KG_TILE_ROWS, end = (int64_t)tile1 * KG_TILE_ROWS;
    const size_t n_rows = (size_t)((end < m->rows ? end : m->rows) - first);
    unsigned char *out = (unsigned char *)m->q + (size_t)plane * m->q_plane + (size_t)first * row_bytes;
    return kg_cuda_check(cudaMemcpyAsync(out, raw, n_rows * row_bytes, cudaMemcpyDeviceToDevice, s->handle),
                         "packing weights", err);
  }
  for (int32_t tile = tile0; tile < tile1; tile += 32768) {
    const dim3 grid(m->n_blocks, tile1 - tile < 32768 ? tile1 - tile : 32768);
    const unsigned char *at = (const unsigned char *)raw + (size_t)(tile - tile0) * KG_TILE_ROWS * row_bytes;
    switch (m->type) {
#define CASE(T) case T: pack_tiles<T><<<grid, 32, 0, s->handle>>>(*m, plane, tile, at, row_bytes); break;
      CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1) CASE(KG_IQ4_NL)
      CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
    default: return kg_fail(err, KG_ERR_UNSUPPORTED, "weights of type %d", (int)m->type);
    }
    const int code = kg_cuda_launched("pack_tiles", err);
    if (code) return code;
  }
  return KG_OK;
}
