#include "format.h"

#include "alloc.h"

bool kg_format_find(kg_type type, kg_format *out)
{
  switch (type) {
  case KG_F32: *out = (kg_format){0, 0, 0, 1}; return true;
  case KG_F16:
  case KG_BF16: *out = (kg_format){1024, 0, 0, 1}; return true;
  case KG_Q8_0: *out = (kg_format){512, 0, 32, 1}; return true;
  case KG_Q4_0:
  case KG_IQ4_NL: *out = (kg_format){256, 0, 32, 1}; return true;
  case KG_Q4_1: *out = (kg_format){256, 0, 64, 1}; return true;
  case KG_Q5_0: *out = (kg_format){256, 64, 32, 1}; return true;
  case KG_Q5_1: *out = (kg_format){256, 64, 64, 1}; return true;
  case KG_MXFP4: *out = (kg_format){256, 0, 16, 1}; return true;
  case KG_Q4_K: *out = (kg_format){256, 0, 16 * 16, 8}; return true;
  case KG_Q5_K: *out = (kg_format){256, 64, 16 * 16, 8}; return true;
  case KG_Q6_K: *out = (kg_format){256, 128, 16 * 18, 8}; return true;
  case KG_Q3_K: *out = (kg_format){128, 64, 16 * 14, 8}; return true;
  case KG_Q2_K: *out = (kg_format){128, 0, 16 * 20, 8}; return true;
  case KG_IQ4_XS: *out = (kg_format){256, 0, 16 * 8, 8}; return true;
  default: return false;
  }
}

static bool plane_bytes(size_t count, size_t each, size_t *out)
{
  return kg_mul_size(count, each, out) && kg_align_size(*out, 256, out);
}

bool kg_matrix_init(kg_matrix *m, kg_type type, int64_t cols, int64_t rows, int64_t planes, size_t *n_bytes)
{
  kg_format f;
  if (!kg_format_find(type, &f)) return false;
  *m = (kg_matrix){.type = type, .cols = (int32_t)cols, .rows = (int32_t)rows, .planes = (int32_t)planes};
  m->n_tiles = (int32_t)((rows + KG_TILE_ROWS - 1) / KG_TILE_ROWS);
  m->n_blocks = (int32_t)((cols + KG_BLOCK_COLS - 1) / KG_BLOCK_COLS);
  const size_t n = (size_t)m->n_tiles * (size_t)m->n_blocks; /* at most 2^20 * 2^19 */
  if (type == KG_F32) {
    if (!plane_bytes((size_t)cols * (size_t)rows, 4, &m->q_plane)) return false;
  } else if (!plane_bytes(n, (size_t)f.q_bytes, &m->q_plane) || !plane_bytes(n, (size_t)f.h_bytes, &m->h_plane) ||
             !plane_bytes((n + (size_t)f.s_blocks - 1) / (size_t)f.s_blocks, (size_t)f.s_bytes, &m->s_plane))
    return false;
  size_t each;
  return kg_add_size(m->q_plane, m->h_plane, &each) && kg_add_size(each, m->s_plane, &each) &&
         kg_mul_size(each, (size_t)planes, n_bytes);
}

void kg_matrix_place(kg_matrix *m, unsigned char *memory)
{
  m->q = memory;
  m->h = m->q + m->q_plane * (size_t)m->planes;
  m->s = m->h + m->h_plane * (size_t)m->planes;
}
