/* cache.c - memory of the key/value pages. Pages are made in slabs, one per growth, and never move. */
#include "executable.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

typedef struct kg_slab {
  struct kg_slab *next;
  void *block; /* zeroed when made: what was never written is at least a number */
} kg_slab;

int kg_cpu_cache_open(kg_executable *exe, kg_error *err)
{
  const int32_t n_layers = kg_plan_layer_count(exe->plan);
  const size_t element = exe->half ? sizeof(uint16_t) : sizeof(float);
  exe->layers = kg_alloc_array((size_t)n_layers, sizeof *exe->layers);
  if (!exe->layers) return kg_fail_memory(err, (size_t)n_layers * sizeof *exe->layers, "the cache layout");
  int32_t most_heads = 1;
  for (int32_t i = 0; i < n_layers; i++) {
    const kg_attention_params *a = &kg_plan_layer(exe->plan, i)->u.attention;
    kg_cache_layer *layer = &exe->layers[i];
    size_t *page_bytes = &exe->page_bytes[a->group];
    layer->offset = *page_bytes;
    layer->key_bytes = (size_t)a->head_dim * KG_KEY_STRIDE * element;
    layer->head_bytes = layer->key_bytes;
    if (!a->values_in_keys) layer->head_bytes += (size_t)kg_padded(a->value_dim) * KG_PAGE * element;
    size_t bytes;
    if (!kg_mul_size(layer->head_bytes, (size_t)a->n_kv_heads, &bytes) || !kg_align_size(bytes, KG_ALIGNMENT, &bytes) ||
        !kg_add_size(*page_bytes, bytes, page_bytes))
      return kg_fail_memory(err, SIZE_MAX, "a cache page");
    const int64_t floats = (int64_t)a->n_heads * kg_partial_floats(a->value_dim);
    if (floats > exe->partial_row_floats) exe->partial_row_floats = floats;
    if (a->n_heads / a->n_kv_heads > most_heads) most_heads = a->n_heads / a->n_kv_heads;
  }
  exe->block_rows = most_heads < KG_ATTENTION_PAIRS ? KG_ATTENTION_PAIRS / most_heads : 1;
  return KG_OK;
}

void kg_cpu_cache_close(kg_executable *exe)
{
  while (exe->slabs) {
    kg_slab *slab = exe->slabs;
    exe->slabs = slab->next;
    kg_free(slab->block);
    kg_free(slab);
  }
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) kg_free(exe->pages[g]);
  kg_free(exe->partials);
  kg_free(exe->layers);
}

static int32_t splits_before(int32_t end) { return (end - 1) / KG_SPLIT + 1; }

int kg_cpu_reserve_splits(kg_executable *exe, int32_t n_rows, int32_t end, kg_error *err)
{
  int32_t n_splits = splits_before(end);
  if (n_rows * n_splits <= exe->n_partials || !exe->partial_row_floats) return KG_OK; /* bounded: 8 << 24 / KG_SPLIT */
  /* A sequence that grows asks for more and more, until the model's context is full. */
  const int32_t more = n_splits + n_splits / 2, most = splits_before(kg_plan_context_length(exe->plan));
  if (n_splits < most) n_splits = more < most ? more : most;
  const size_t n_partials = (size_t)n_rows * (size_t)n_splits;
  size_t n_bytes;
  float *partials = NULL;
  if (kg_mul_size((size_t)exe->partial_row_floats * sizeof *partials, n_partials, &n_bytes))
    partials = kg_alloc_aligned(n_bytes, KG_ALIGNMENT);
  if (!partials) return kg_fail_memory(err, SIZE_MAX, "attention over a long context");
  kg_free(exe->partials);
  exe->partials = partials;
  exe->n_partials = (int32_t)n_partials;
  return KG_OK;
}

int kg_cpu_cache_reserve(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err)
{
  if (n_pages <= exe->n_pages[group]) return KG_OK;
  const size_t n_new = (size_t)(n_pages - exe->n_pages[group]), page_bytes = exe->page_bytes[group];
  size_t n_bytes;
  if (!kg_mul_size(n_new, page_bytes, &n_bytes) || !kg_add_size(n_bytes, KG_ALIGNMENT, &n_bytes))
    return kg_fail_memory(err, SIZE_MAX, "cache pages");
  unsigned char **pages = kg_realloc_array(exe->pages[group], (size_t)n_pages, sizeof *pages);
  if (pages) exe->pages[group] = pages;
  kg_slab *slab = pages ? kg_alloc(sizeof *slab) : NULL;
  void *block = slab ? kg_alloc_array(n_bytes, 1) : NULL;
  if (!block) {
    kg_free(slab);
    return kg_fail_memory(err, n_bytes, "cache pages");
  }
  *slab = (kg_slab){.next = exe->slabs, .block = block};
  exe->slabs = slab;
  unsigned char *first = (unsigned char *)(((uintptr_t)block + KG_ALIGNMENT - 1) & ~(uintptr_t)(KG_ALIGNMENT - 1));
  for (size_t i = 0; i < n_new; i++) pages[(size_t)exe->n_pages[group] + i] = first + i * page_bytes;
  exe->n_pages[group] = n_pages;
  return KG_OK;
}

int kg_cpu_cache_copy(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions, kg_error *err)
{
  const int32_t n_pages = exe->n_pages[group];
  if (to < 0 || to >= n_pages || from < 0 || from >= n_pages)
    return kg_fail(err, KG_ERR_ARGUMENT, "cache page %d or %d is outside 0 to %d", to, from, n_pages - 1);
  /* Positions stand side by side in the keys, so a part is as scattered as the whole. */
  if (n_positions > 0) memcpy(exe->pages[group][to], exe->pages[group][from], exe->page_bytes[group]);
  return KG_OK;
}

size_t kg_cpu_page_bytes(const kg_executable *exe, int32_t group) { return exe->page_bytes[group]; }

kg_kv_type kg_cpu_cache_type(const kg_executable *exe) { return exe->half ? KG_KV_F16 : KG_KV_F32; }

/* Where an element of one slot and kv head stands. In a page keys have their slots side by side, values their elements. */
typedef struct place {
  unsigned char *keys, *values; /* element 0; keys are KG_KEY_STRIDE elements apart */
} place;

static place find_place(const kg_executable *exe, const kg_kv_rows *rows, int32_t value_dim, int32_t i, int32_t head)
{
  const kg_cache_layer *layer = &exe->layers[rows->layer];
  const size_t element = exe->half ? sizeof(uint16_t) : sizeof(float), slot = (size_t)(rows->slot + i);
  const int32_t group = kg_plan_layer(exe->plan, rows->layer)->u.attention.group;
  unsigned char *first = exe->pages[group][rows->page] + layer->offset + (size_t)head * layer->head_bytes;
  return (place){first + slot * element, first + layer->key_bytes + slot * (size_t)kg_padded(value_dim) * element};
}

/* Strides in elements. */
static void copy_keys(bool half, void *to, size_t to_stride, const void *from, size_t from_stride, int32_t n)
{
  for (int32_t d = 0; half && d < n; d++)
    ((uint16_t *)to)[(size_t)d * to_stride] = ((const uint16_t *)from)[(size_t)d * from_stride];
  for (int32_t d = 0; !half && d < n; d++)
    ((float *)to)[(size_t)d * to_stride] = ((const float *)from)[(size_t)d * from_stride];
}

int kg_cpu_cache_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err)
{
  const int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  if (code) return code;
  const kg_attention_params *a = &kg_plan_layer(exe->plan, rows->layer)->u.attention;
  const size_t element = exe->half ? sizeof(uint16_t) : sizeof(float), key_bytes = (size_t)a->head_dim * element;
  const size_t value_bytes = a->values_in_keys ? 0 : (size_t)a->value_dim * element;
  char *key = keys, *value = values;
  for (int32_t i = 0; i < rows->n; i++)
    for (int32_t head = 0; head < a->n_kv_heads; head++, key += key_bytes, value += value_bytes) {
      const place at = find_place(exe, rows, a->value_dim, i, head);
      copy_keys(exe->half, key, 1, at.keys, KG_KEY_STRIDE, a->head_dim);
      if (value_bytes) memcpy(value, at.values, value_bytes);
    }
  return KG_OK;
}

int kg_cpu_cache_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err)
{
  const int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  if (code) return code;
  const kg_attention_params *a = &kg_plan_layer(exe->plan, rows->layer)->u.attention;
  const size_t element = exe->half ? sizeof(uint16_t) : sizeof(float), key_bytes = (size_t)a->head_dim * element;
  const size_t value_bytes = a->values_in_keys ? 0 : (size_t)a->value_dim * element;
  const char *key = keys, *value = values;
  for (int32_t i = 0; i < rows->n; i++)
    for (int32_t head = 0; head < a->n_kv_heads; head++, key += key_bytes, value += value_bytes) {
      const place at = find_place(exe, rows, a->value_dim, i, head);
      copy_keys(exe->half, at.keys, KG_KEY_STRIDE, key, 1, a->head_dim);
      if (value_bytes) memcpy(at.values, value, value_bytes);
    }
  return KG_OK;
}
