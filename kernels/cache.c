/* cache.c - device memory of the key/value pages. Pages are made in slabs, one per growth, and never move. States have
 * slabs, too. */
#include "executable.h"

#include <string.h>

typedef struct kg_slab {
  struct kg_slab *next;
  void *block;
} kg_slab;

int kg_gpu_slab_new(kg_executable *exe, size_t n_bytes, const char *what, void **out, kg_error *err)
{
  kg_slab *slab = kg_alloc(sizeof *slab);
  if (!slab) return kg_fail_memory(err, sizeof *slab, what);
  const int code = kg_cuda_alloc(n_bytes, what, &slab->block, err);
  if (code) {
    kg_free(slab);
    return code;
  }
  slab->next = exe->slabs;
  exe->slabs = slab;
  *out = slab->block;
  return KG_OK;
}

void kg_gpu_slabs_close(kg_executable *exe)
{
  while (exe->slabs) {
    kg_slab *slab = exe->slabs;
    exe->slabs = slab->next;
    (void)cudaFree(slab->block);
    kg_free(slab);
  }
}

int kg_gpu_cache_open(kg_executable *exe, kg_error *err)
{
  const int32_t n_layers = kg_plan_layer_count(exe->plan);
  exe->layer_at = kg_alloc_array((size_t)n_layers, sizeof *exe->layer_at);
  if (!exe->layer_at) return kg_fail_memory(err, (size_t)n_layers * sizeof *exe->layer_at, "the cache layout");
  for (int32_t i = 0; i < n_layers; i++) {
    const kg_attention_params *a = &kg_plan_layer(exe->plan, i)->u.attention;
    if (a->head_dim > KG_ATTENTION_MAX_DIM || a->value_dim > KG_ATTENTION_MAX_DIM)
      return kg_fail(err, KG_ERR_UNSUPPORTED,
                     "attention heads of %d with values of %d, the cuda backend takes %d at most", a->head_dim,
                     a->value_dim, KG_ATTENTION_MAX_DIM);
    const size_t bytes =
        (size_t)KG_PAGE * ((size_t)kg_key_width(a) + (size_t)kg_value_width(a)) * (exe->half ? 2 : 4);
    size_t *page_bytes = &exe->page_bytes[a->group];
    exe->layer_at[i] = *page_bytes;
    if (!kg_align_size(*page_bytes + bytes, 256, page_bytes)) return kg_fail_memory(err, SIZE_MAX, "a page");
  }
  return KG_OK;
}

void kg_gpu_cache_close(kg_executable *exe)
{
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) kg_free(exe->pages[g]);
  kg_free(exe->layer_at);
}

int kg_gpu_cache_reserve(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err)
{
  const int32_t n_before = exe->n_pages[group];
  if (n_pages <= n_before) return KG_OK;
  const size_t n_new = (size_t)(n_pages - n_before), page_bytes = exe->page_bytes[group];
  size_t n_bytes;
  if (!kg_mul_size(n_new, page_bytes, &n_bytes)) return kg_fail_memory(err, SIZE_MAX, "cache pages");
  int code = kg_stream_use(exe->stream, err);
  if (code) return code;
  unsigned char **pages = kg_realloc_array(exe->pages[group], (size_t)n_pages, sizeof *pages);
  if (!pages) return kg_fail_memory(err, (size_t)n_pages * sizeof *pages, "the page table");
  exe->pages[group] = pages;
  void *block;
  code = kg_gpu_slab_new(exe, n_bytes, "cache pages", &block, err);
  if (!code) /* what was never written is at least a number */
    code = kg_cuda_check(cudaMemsetAsync(block, 0, n_bytes, exe->stream->handle), "clearing pages", err);
  if (code) return code;
  for (size_t i = 0; i < n_new; i++) pages[(size_t)n_before + i] = (unsigned char *)block + i * page_bytes;
  exe->n_pages[group] = n_pages;
  return KG_OK;
}

int kg_gpu_cache_copy(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions, kg_error *err)
{
  const int32_t n_pages = exe->n_pages[group];
  unsigned char *const *pages = exe->pages[group];
  if (to < 0 || to >= n_pages || from < 0 || from >= n_pages)
    return kg_fail(err, KG_ERR_ARGUMENT, "cache page %d or %d is outside 0 to %d", to, from, n_pages - 1);
  if (n_positions < 1) return KG_OK;
  const int code = kg_stream_use(exe->stream, err);
  return code ? code
              : kg_cuda_check(cudaMemcpyAsync(pages[to], pages[from], exe->page_bytes[group], cudaMemcpyDeviceToDevice,
                                              exe->stream->handle),
                              "copying a page", err);
}

size_t kg_gpu_page_bytes(const kg_executable *exe, int32_t group) { return exe->page_bytes[group]; }

kg_kv_type kg_gpu_cache_type(const kg_executable *exe) { return exe->half ? KG_KV_F16 : KG_KV_F32; }

/* The rows' slots of one plane (keys, values) of a layer: a strip [slots][numbers] for each kv head, on the device one
 * head's planes apart. On the host they stand slot by slot, [slots][heads][numbers]. */
typedef struct strips {
  unsigned char *device;
  size_t pitch, row;    /* bytes from strip to strip on the device; of one slot and head */
  int32_t n, n_heads;
} strips;

static strips strips_of(const kg_executable *exe, const kg_kv_rows *rows, bool values)
{
  const kg_attention_params *a = &kg_plan_layer(exe->plan, rows->layer)->u.attention;
  const size_t element = exe->half ? 2 : 4, key = (size_t)a->head_dim * element;
  const size_t value = a->values_in_keys ? 0 : (size_t)a->value_dim * element, row = values ? value : key;
  return (strips){.device = exe->pages[a->group][rows->page] + exe->layer_at[rows->layer] +
                            (values ? KG_PAGE * key : 0) + (size_t)rows->slot * row,
                  .pitch = KG_PAGE * (key + value), .row = row, .n = rows->n, .n_heads = a->n_kv_heads};
}

static int check_rows(const kg_executable *exe, const kg_kv_rows *rows, kg_error *err)
{
  const int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  return code ? code : kg_stream_use(exe->stream, err);
}

/* To or from host memory, strip by strip. */
static int move_strips(const kg_executable *exe, const strips *s, bool down, unsigned char *host, kg_error *err)
{
  const size_t n_bytes = (size_t)s->n * s->row, n_heads = (size_t)s->n_heads;
  const cudaStream_t stream = exe->stream->handle;
  const int code = kg_cuda_check(
      down ? cudaMemcpy2DAsync(host, n_bytes, s->device, s->pitch, n_bytes, n_heads, cudaMemcpyDeviceToHost, stream)
           : cudaMemcpy2DAsync(s->device, s->pitch, host, n_bytes, n_bytes, n_heads, cudaMemcpyHostToDevice, stream),
      "copying cache rows", err);
  return code ? code : kg_stream_wait(exe->stream, "copying cache rows", err);
}

/* What is no finite number in f16, as kernels store it (attention.cuh): whoever gets the page next multiplies what he
 * does not see by 0, too. */
static void make_finite(uint16_t *x, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if ((x[i] & 0x7c00) == 0x7c00) x[i] = x[i] == 0x7c00 ? 0x7bff : 0xfbff;
}

/* Slot by slot to `out`, or from `in`. */
static int move_plane(const kg_executable *exe, const strips *s, void *out, const void *in, kg_error *err)
{
  const size_t n_bytes = (size_t)s->n * (size_t)s->n_heads * s->row;
  if (!n_bytes) return KG_OK;
  unsigned char *host = kg_alloc(n_bytes);
  if (!host) return kg_fail_memory(err, n_bytes, "cache rows");
  int code = out ? move_strips(exe, s, true, host, err) : KG_OK;
  size_t at = 0; /* in slot order */
  for (size_t i = 0; i < (size_t)s->n && !code; i++)
    for (size_t head = 0; head < (size_t)s->n_heads; head++, at += s->row) {
      unsigned char *strip = host + (head * (size_t)s->n + i) * s->row;
      if (out)
        memcpy((unsigned char *)out + at, strip, s->row);
      else
        memcpy(strip, (const unsigned char *)in + at, s->row);
    }
  if (!out && exe->half) make_finite((uint16_t *)host, n_bytes / 2);
  if (!out) code = move_strips(exe, s, false, host, err);
  kg_free(host);
  return code;
}

int kg_gpu_cache_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err)
{
  int code = check_rows(exe, rows, err);
  if (code) return code;
  const strips of_keys = strips_of(exe, rows, false), of_values = strips_of(exe, rows, true);
  code = move_plane(exe, &of_keys, keys, NULL, err);
  return code ? code : move_plane(exe, &of_values, values, NULL, err);
}

int kg_gpu_cache_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err)
{
  int code = check_rows(exe, rows, err);
  if (code) return code;
  const strips of_keys = strips_of(exe, rows, false), of_values = strips_of(exe, rows, true);
  code = move_plane(exe, &of_keys, NULL, keys, err);
  return code ? code : move_plane(exe, &of_values, NULL, values, err);
}
