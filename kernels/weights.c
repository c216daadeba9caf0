/* weights.c - the weights of an executable: which are matrices and which are vectors, and packing them on
 * the device. */
#include <math.h>
#include <string.h>

#include "executable.h"
#include "packing.h"

enum { PIECE_BYTES = 32 << 20, ALIGNMENT = 256 };

static void mark(void *user, int32_t weight, bool as_matrix)
{
  kg_executable *exe = user;
  exe->weights[weight].is_matrix |= as_matrix;
  exe->weights[weight].is_vector |= !as_matrix;
}

static int shape(kg_executable *exe, int32_t i, kg_error *err)
{
  const kg_weight *weight = kg_plan_weight_at(exe->plan, i);
  kg_cuda_weight *w = &exe->weights[i];
  size_t vector_bytes = 0;
  if ((w->is_matrix &&
       !kg_matrix_init(&w->m, weight->type, weight->cols, weight->rows, weight->planes, &w->matrix_bytes)) ||
      (w->is_vector && (!kg_mul_size((size_t)kg_weight_values(weight), sizeof(float), &vector_bytes) ||
                        !kg_align_size(vector_bytes, ALIGNMENT, &vector_bytes))) ||
      !kg_add_size(w->matrix_bytes, vector_bytes, &w->n_bytes) ||
      !kg_add_size(exe->weight_bytes, w->n_bytes, &exe->weight_bytes))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "tensor %s cannot be packed", weight->name);
  return KG_OK;
}

int kg_gpu_weights_open(kg_executable *exe, kg_error *err)
{
  exe->n_weights = kg_plan_weight_count(exe->plan);
  exe->weights = kg_alloc_array((size_t)exe->n_weights, sizeof *exe->weights);
  if (!exe->weights) return kg_fail_memory(err, (size_t)exe->n_weights * sizeof *exe->weights, "the table of weights");
  kg_each_weight_use(exe->plan, mark, exe);
  int code = KG_OK;
  for (int32_t i = 0; i < exe->n_weights && !code; i++) code = shape(exe, i, err);
  if (code) return code;
  void *block;
  code = kg_cuda_alloc(exe->weight_bytes, "the weights", &block, err);
  if (code) return code;
  exe->weight_block = block;
  unsigned char *at = block;
  for (int32_t i = 0; i < exe->n_weights; i++) {
    kg_cuda_weight *w = &exe->weights[i];
    w->data = at;
    at += w->n_bytes;
    if (w->is_matrix) kg_matrix_place(&w->m, w->data);
    if (w->is_vector) w->vector = (float *)(w->data + w->matrix_bytes);
  }
  return KG_OK;
}

/* ---- packing ---- */

typedef struct packing {
  kg_executable *exe;
  kg_packing_progress progress;
  void *raw;           /* on the device */
  size_t raw_bytes;
  kg_error *err;
} packing;

static int upload(packing *p, void *to, const void *from, size_t n_bytes)
{
  kg_stream *s = p->exe->stream;
  const int code = kg_cuda_check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, s->handle),
                                 "bringing weights over", p->err);
  return code ? code : kg_stream_wait(s, "bringing weights over", p->err);
}

/* Tiles [tile0, tile1) of a plane. */
static int pack_piece(packing *p, const kg_weight *weight, const kg_matrix *m, int32_t plane, int32_t tile0,
                      int32_t tile1)
{
  const size_t plane_bytes = weight->n_bytes / (size_t)weight->planes, row_bytes = plane_bytes / (size_t)weight->rows;
  const int64_t row0 = (int64_t)tile0 * KG_TILE_ROWS, end = (int64_t)tile1 * KG_TILE_ROWS;
  const size_t n_bytes = (size_t)((end < weight->rows ? end : weight->rows) - row0) * row_bytes;
  const unsigned char *from = kg_weight_plane(weight, plane) + (size_t)row0 * row_bytes;
  int code = upload(p, p->raw, from, n_bytes);
  if (!code) code = kg_cuda_pack(p->exe->stream, m, plane, tile0, tile1, p->raw, p->err);
  if (code) return code;
  kg_gguf_release_pages(kg_plan_gguf(p->exe->plan), from, n_bytes);
  return kg_report_packed(&p->progress, n_bytes, p->err);
}

static int pack_matrix(packing *p, const kg_weight *weight, const kg_matrix *m)
{
  const size_t tile_bytes = weight->n_bytes / (size_t)weight->planes / (size_t)weight->rows * KG_TILE_ROWS;
  const size_t fit = p->raw_bytes / tile_bytes;
  const int32_t step = fit < 1 ? 1 : fit > (size_t)m->n_tiles ? m->n_tiles : (int32_t)fit;
  int code = KG_OK;
  for (int32_t plane = 0; plane < m->planes && !code; plane++)
    for (int32_t tile = 0; tile < m->n_tiles && !code; tile += step)
      code = pack_piece(p, weight, m, plane, tile, m->n_tiles - tile < step ? m->n_tiles : tile + step);
  return code;
}

static float largest_of(const float *values, int64_t n)
{
  float largest = 0;
  for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(values[i]));
  return largest;
}

static int pack_vector(packing *p, const kg_weight *weight, kg_cuda_weight *w)
{
  const kg_type_info *info = kg_type_find(weight->type);
  const int64_t n = kg_weight_values(weight);
  float *values = kg_alloc((size_t)n * sizeof *values);
  if (!values) return kg_fail_memory(p->err, (size_t)n * sizeof *values, weight->name);
  info->dequantize(weight->data, n / info->block_size, values);
  w->vector_max = largest_of(values, n);
  const int code = upload(p, w->vector, values, (size_t)n * sizeof *values);
  kg_free(values);
  return code;
}

int kg_gpu_vector_measure(kg_executable *exe, int32_t weight, kg_error *err)
{
  kg_cuda_weight *w = &exe->weights[weight];
  if (!w->is_vector) return KG_OK;
  const int64_t n = kg_weight_values(kg_plan_weight_at(exe->plan, weight));
  float values[2048], largest = 0; /* in pieces, which need no memory that may be out */
  const int64_t most = sizeof values / sizeof *values;
  int code = KG_OK;
  for (int64_t at = 0; at < n && !code; at += most) {
    const int64_t n_now = n - at < most ? n - at : most;
    code = kg_cuda_check(cudaMemcpyAsync(values, w->vector + at, (size_t)n_now * sizeof *values, cudaMemcpyDeviceToHost,
                                         exe->stream->handle), "measuring a weight", err);
    const int waited = kg_stream_wait(exe->stream, "measuring a weight", code ? NULL : err);
    if (!code) code = waited;
    if (!code) largest = fmaxf(largest, largest_of(values, n_now));
  }
  if (!code) w->vector_max = largest;
  return code;
}

static int pack_all(packing *p)
{
  int code = KG_OK;
  for (int32_t i = 0; i < p->exe->n_weights && !code; i++) {
    const kg_weight *weight = kg_plan_weight_at(p->exe->plan, i);
    kg_cuda_weight *w = &p->exe->weights[i];
    if (w->is_vector) code = pack_vector(p, weight, w);
    if (!code && w->is_matrix) code = pack_matrix(p, weight, &w->m);
    if (!code && !w->is_matrix) code = kg_report_packed(&p->progress, weight->n_bytes, p->err);
  }
  return code;
}

int kg_gpu_weights_pack(kg_executable *exe, const kg_backend_options *options, kg_error *err)
{
  packing p = {.exe = exe, .progress.options = options, .raw_bytes = PIECE_BYTES, .err = err};
  for (int32_t i = 0; i < exe->n_weights; i++) {
    const kg_weight *weight = kg_plan_weight_at(exe->plan, i);
    const size_t tile = weight->n_bytes / (size_t)weight->planes / (size_t)weight->rows * KG_TILE_ROWS;
    p.progress.total += (int64_t)weight->n_bytes;
    if (exe->weights[i].is_matrix && tile > p.raw_bytes) p.raw_bytes = tile;
  }
  int code = kg_cuda_alloc(p.raw_bytes, "packing weights", &p.raw, err);
  if (code) return code;
  code = kg_cuda_check(cudaMemsetAsync(exe->weight_block, 0, exe->weight_bytes, exe->stream->handle),
                       "clearing weights", err); /* gaps too: a checksum over them must not vary */
  if (!code) code = pack_all(&p);
  if (!code) code = kg_stream_wait(exe->stream, "packing weights", err);
  (void)cudaFree(p.raw);
  return code;
}
