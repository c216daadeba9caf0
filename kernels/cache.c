/* cache.c - device memory of the key/value pages. Pages are made in slabs, one per growth, and never move. */
#include "executable.h"

#include <string.h>

typedef struct kg_slab {
  struct kg_slab *next;
  void *block;
} kg_slab;

int kg_gpu_cache_open(kg_executable *exe, kg_error *err)
{
  const int32_t n_layers = kg_plan_layer_count(exe->plan);
  exe->layer_at = kg_alloc_array((size_t)n_layers, sizeof *exe->layer_at);
  if (!exe->layer_at) return kg_fail_memory(err, (size_t)n_layers * sizeof *exe->layer_at, "the cache layout");
  for (int32_t i = 0; i < n_layers; i++) {
    const kg_attention_params *a = &kg_plan_layer(exe->plan, i)->u.attention;
    if (a->is_bidirectional)
      return kg_fail(err, KG_ERR_UNSUPPORTED, "the cuda backend has no attention that looks both ways: use the cpu");
    if (a->head_dim > KG_ATTENTION_MAX_DIM)
      return kg_fail(err, KG_ERR_UNSUPPORTED, "attention heads of %d, the cuda backend takes %d at most", a->head_dim,
                     KG_ATTENTION_MAX_DIM);
    const size_t bytes = (size_t)2 * KG_PAGE * (size_t)a->n_kv_heads * (size_t)a->head_dim * (exe->half ? 2 : 4);
    exe->layer_at[i] = exe->page_bytes;
    if (!kg_align_size(exe->page_bytes + bytes, 256, &exe->page_bytes)) return kg_fail_memory(err, SIZE_MAX, "a page");
  }
  return KG_OK;
}

void kg_gpu_cache_close(kg_executable *exe)
{
  while (exe->slabs) {
    kg_slab *slab = exe->slabs;
    exe->slabs = slab->next;
    (void)cudaFree(slab->block);
    kg_free(slab);
  }
  kg_free(exe->pages);
  kg_free(exe->layer_at);
}

int kg_gpu_cache_reserve(kg_executable *exe, int32_t n_pages, kg_error *err)
{
  if (n_pages <= exe->n_pages) return KG_OK;
  const size_t n_new = (size_t)(n_pages - exe->n_pages);
  size_t n_bytes;
  if (!kg_mul_size(n_new, exe->page_bytes, &n_bytes)) return kg_fail_memory(err, SIZE_MAX, "cache pages");
  int code = kg_stream_use(exe->stream, err);
  if (code) return code;
  unsigned char **pages = kg_realloc_array(exe->pages, (size_t)n_pages, sizeof *pages);
  if (pages) exe->pages = pages;
  kg_slab *slab = pages ? kg_alloc(sizeof *slab) : NULL;
  if (!slab) return kg_fail_memory(err, (size_t)n_pages * sizeof *pages, "the page table");
  code = kg_cuda_alloc(n_bytes, "cache pages", &slab->block, err);
  if (!code && /* what was never written is at least a number */
      (code = kg_cuda_check(cudaMemsetAsync(slab->block, 0, n_bytes, exe->stream->handle), "clearing pages", err)))
    (void)cudaFree(slab->block);
  if (code) {
    kg_free(slab);
    return code;
  }
  slab->next = exe->slabs;
  exe->slabs = slab;
  for (size_t i = 0; i < n_new; i++)
    pages[(size_t)exe->n_pages + i] = (unsigned char *)slab->block + i * exe->page_bytes;
  exe->n_pages = n_pages;
  return KG_OK;
}

int kg_gpu_cache_copy(kg_executable *exe, int32_t to, int32_t from, int32_t n_positions, kg_error *err)
{
  if (to < 0 || to >= exe->n_pages || from < 0 || from >= exe->n_pages)
    return kg_fail(err, KG_ERR_ARGUMENT, "cache page %d or %d is outside 0 to %d", to, from, exe->n_pages - 1);
  if (n_positions < 1) return KG_OK;
  const int code = kg_stream_use(exe->stream, err);
  return code ? code
              : kg_cuda_check(cudaMemcpyAsync(exe->pages[to], exe->pages[from], exe->page_bytes,
                                              cudaMemcpyDeviceToDevice, exe->stream->handle),
                              "copying a page", err);
}

kg_kv_type kg_gpu_cache_type(const kg_executable *exe) { return exe->half ? KG_KV_F16 : KG_KV_F32; }

/* The rows' slots of one layer as they stand on the device: a strip [slots][head_dim] of each head's keys, then of its
 * values, KG_PAGE slots apart; on the host, where `strips` is, without what lies between. */
typedef struct strips {
  unsigned char *device, *host;
  size_t pitch, bytes;  /* from strip to strip on the device; of one strip */
  size_t row;           /* bytes of one slot and head */
  int32_t n_heads;
} strips;

/* Allocates `host`. */
static int open_strips(const kg_executable *exe, const kg_kv_rows *rows, strips *out, kg_error *err)
{
  int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  if (!code) code = kg_stream_use(exe->stream, err);
  if (code) return code;
  const kg_attention_params *a = &kg_plan_layer(exe->plan, rows->layer)->u.attention;
  const size_t row = (size_t)a->head_dim * (exe->half ? 2 : 4);
  *out = (strips){.device = exe->pages[rows->page] + exe->layer_at[rows->layer] + (size_t)rows->slot * row,
                  .pitch = KG_PAGE * row, .bytes = (size_t)rows->n * row, .row = row, .n_heads = a->n_kv_heads};
  out->host = kg_alloc_array((size_t)(2 * a->n_kv_heads), out->bytes);
  return out->host ? KG_OK : kg_fail_memory(err, (size_t)(2 * a->n_kv_heads) * out->bytes, "cache rows");
}

static int move_strips(const kg_executable *exe, const strips *s, bool down, kg_error *err)
{
  const int code = kg_cuda_check(
      down ? cudaMemcpy2DAsync(s->host, s->bytes, s->device, s->pitch, s->bytes, (size_t)(2 * s->n_heads),
                               cudaMemcpyDeviceToHost, exe->stream->handle)
           : cudaMemcpy2DAsync(s->device, s->pitch, s->host, s->bytes, s->bytes, (size_t)(2 * s->n_heads),
                               cudaMemcpyHostToDevice, exe->stream->handle),
      "copying cache rows", err);
  return code ? code : kg_stream_wait(exe->stream, "copying cache rows", err);
}

/* The place of slot i and head in the strips: keys, with the values one strip behind. */
static unsigned char *in_strips(const strips *s, int32_t i, int32_t head)
{
  return s->host + (size_t)(2 * head) * s->bytes + (size_t)i * s->row;
}

int kg_gpu_cache_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err)
{
  strips s;
  int code = open_strips(exe, rows, &s, err);
  if (code) return code;
  code = move_strips(exe, &s, true, err);
  unsigned char *key = keys, *value = values;
  for (int32_t i = 0; i < rows->n && !code; i++)
    for (int32_t head = 0; head < s.n_heads; head++, key += s.row, value += s.row) {
      memcpy(key, in_strips(&s, i, head), s.row);
      memcpy(value, in_strips(&s, i, head) + s.bytes, s.row);
    }
  kg_free(s.host);
  return code;
}

int kg_gpu_cache_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err)
{
  strips s;
  int code = open_strips(exe, rows, &s, err);
  if (code) return code;
  const unsigned char *key = keys, *value = values;
  for (int32_t i = 0; i < rows->n; i++)
    for (int32_t head = 0; head < s.n_heads; head++, key += s.row, value += s.row) {
      memcpy(in_strips(&s, i, head), key, s.row);
      memcpy(in_strips(&s, i, head) + s.bytes, value, s.row);
    }
  code = move_strips(exe, &s, false, err);
  kg_free(s.host);
  return code;
}
