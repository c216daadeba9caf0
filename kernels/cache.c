/* cache.c - device memory of the key/value pages. Pages are made in slabs, one per growth, and never move. */
#include "executable.h"

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
