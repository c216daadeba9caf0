/* weights.c - the weights of an executable: which are matrices and which are vectors, and packing them. */
#include "executable.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "packing.h"

enum { PIECE_BYTES = 16 << 20 }; /* of the file: so much of it is resident beside its packed form */

static void mark(void *user, int32_t weight, bool as_matrix)
{
  kg_executable *exe = user;
  exe->weights[weight].is_matrix |= as_matrix;
  exe->weights[weight].is_vector |= !as_matrix;
}

int kg_cpu_weights_open(kg_executable *exe, kg_error *err)
{
  exe->n_weights = kg_plan_weight_count(exe->plan);
  exe->weights = kg_alloc_array((size_t)exe->n_weights, sizeof *exe->weights);
  if (!exe->weights) return kg_fail_memory(err, (size_t)exe->n_weights * sizeof *exe->weights, "the table of weights");
  kg_each_weight_use(exe->plan, mark, exe);
  for (int32_t i = 0; i < exe->n_weights; i++) {
    const kg_weight *weight = kg_plan_weight_at(exe->plan, i);
    kg_cpu_weight *w = &exe->weights[i];
    if (w->is_matrix) {
      const int code = kg_packed_init(&w->packed, weight->type, weight->cols, weight->rows, weight->planes, err);
      if (code) return code;
    }
    size_t vector_bytes = 0;
    if (w->is_vector && (!kg_mul_size((size_t)kg_weight_values(weight), sizeof(float), &vector_bytes) ||
                         !kg_align_size(vector_bytes, KG_ALIGNMENT, &vector_bytes)))
      return kg_fail_memory(err, SIZE_MAX, weight->name);
    w->n_bytes = w->packed.n_bytes + vector_bytes; /* in this order */
    if (!kg_add_size(exe->weight_bytes, w->n_bytes, &exe->weight_bytes))
      return kg_fail_memory(err, SIZE_MAX, "the packed weights");
  }
  return KG_OK;
}

/* ---- packing ---- */

typedef struct piece {
  kg_pool *pool;
  const kg_packed *packed;
  const kg_weight *weight; /* in the file */
  int64_t first, n;            /* groups, counted through all planes */
} piece;

static void pack_job(void *arg, int32_t worker)
{
  const piece *p = arg;
  kg_phase phase = kg_phase_begin(p->pool, worker, p->n, 8);
  for (int64_t i, end; kg_phase_next(&phase, &i, &end);)
    for (i += p->first, end += p->first; i < end;) { /* as far as one plane goes */
      const int64_t plane = i / p->packed->n_groups, group = i % p->packed->n_groups;
      const int64_t left = p->packed->n_groups - group, take = end - i < left ? end - i : left;
      kg_pack(p->packed, plane, group, group + take, kg_weight_plane(p->weight, plane));
      i += take;
    }
}

typedef struct packing {
  kg_executable *exe;
  kg_packing_progress progress;
  kg_error *err;
} packing;

/* Bytes [from, to) of all planes will not be read soon. */
static void release(const packing *p, const kg_weight *weight, size_t from, size_t to)
{
  const size_t plane_bytes = weight->n_bytes / (size_t)weight->planes;
  while (from < to) {
    const size_t first = from % plane_bytes, left = plane_bytes - first, some = to - from < left ? to - from : left;
    kg_gguf_release_pages(kg_plan_gguf(p->exe->plan), kg_weight_plane(weight, (int64_t)(from / plane_bytes)) + first,
                          some);
    from += some;
  }
}

static int pack_matrix(packing *p, const kg_weight *weight, const kg_cpu_weight *w)
{
  const int64_t n_groups = w->packed.n_groups * weight->planes;
  const size_t plane_bytes = weight->n_bytes / (size_t)weight->planes, row_bytes = plane_bytes / (size_t)weight->rows;
  int64_t step = (int64_t)(PIECE_BYTES / (row_bytes * KG_GROUP));
  if (step < 1) step = 1;
  size_t released = 0;
  for (int64_t at = 0; at < n_groups; at += step) {
    piece job = {.pool = p->exe->pool,
                 .packed = &w->packed,
                 .weight = weight,
                 .first = at,
                 .n = n_groups - at < step ? n_groups - at : step};
    kg_pool_run(p->exe->pool, pack_job, &job);
    /* What the groups so far were made of. The last group of a plane may be short. */
    const int64_t end = at + job.n, plane = end / w->packed.n_groups;
    int64_t rows = end % w->packed.n_groups * KG_GROUP;
    if (rows > weight->rows) rows = weight->rows;
    const size_t read = (size_t)plane * plane_bytes + (size_t)rows * row_bytes;
    release(p, weight, released, read);
    const int code = kg_report_packed(&p->progress, read - released, p->err);
    if (code) return code;
    released = read;
  }
  return KG_OK;
}

int kg_cpu_weights_pack(kg_executable *exe, const kg_backend_options *options, kg_error *err)
{
  packing p = {.exe = exe, .progress.options = options, .err = err};
  exe->weight_block = kg_packed_memory(exe->weight_bytes);
  if (!exe->weight_block) return kg_fail_memory(err, exe->weight_bytes, "the packed weights");
  unsigned char *at = exe->weight_block;
  for (int32_t i = 0; i < exe->n_weights; i++) {
    kg_cpu_weight *w = &exe->weights[i];
    w->data = at;
    at += w->n_bytes;
    w->packed.data = w->is_matrix ? w->data : NULL;
    w->vector = w->is_vector ? (float *)(w->data + w->packed.n_bytes) : NULL;
    p.progress.total += (int64_t)kg_plan_weight_at(exe->plan, i)->n_bytes;
  }
  for (int32_t i = 0; i < exe->n_weights; i++) {
    const kg_weight *weight = kg_plan_weight_at(exe->plan, i);
    kg_cpu_weight *w = &exe->weights[i];
    if (w->is_vector) {
      const kg_type_info *info = kg_type_find(weight->type);
      const int64_t n = kg_weight_values(weight);
      memset(w->vector, 0, w->n_bytes - w->packed.n_bytes);
      info->dequantize(weight->data, n / info->block_size, w->vector);
    }
    const int code = w->is_matrix ? pack_matrix(&p, weight, w) : kg_report_packed(&p.progress, weight->n_bytes, err);
    if (code) return code;
  }
  return KG_OK;
}
