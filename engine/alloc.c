#include "alloc.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_llong live_blocks, n_calls, fail_at; /* fail_at: value of n_calls that fails; 0 = none */
static atomic_bool fail_for_ever;

static bool injected(void)
{
  const long long call = atomic_fetch_add_explicit(&n_calls, 1, memory_order_relaxed) + 1;
  const long long at = atomic_load_explicit(&fail_at, memory_order_relaxed);
  return at && (call == at || (call > at && atomic_load_explicit(&fail_for_ever, memory_order_relaxed)));
}

static void *counted(void *block)
{
  if (block) atomic_fetch_add_explicit(&live_blocks, 1, memory_order_relaxed);
  return block;
}

void *kg_alloc(size_t n_bytes)
{
  return injected() ? NULL : counted(malloc(n_bytes ? n_bytes : 1));
}

void *kg_alloc_array(size_t count, size_t size)
{
  return injected() ? NULL : counted(calloc(count ? count : 1, size ? size : 1));
}

void *kg_realloc_array(void *block, size_t count, size_t size)
{
  size_t n_bytes;
  if (!kg_mul_size(count, size, &n_bytes)) return NULL;
  if (!block) return kg_alloc(n_bytes);
  return injected() ? NULL : realloc(block, n_bytes ? n_bytes : 1);
}

void *kg_alloc_aligned(size_t n_bytes, size_t alignment)
{
  size_t padded;
  if (injected() || !kg_align_size(n_bytes ? n_bytes : 1, alignment, &padded)) return NULL;
  return counted(aligned_alloc(alignment, padded));
}

void kg_free(void *block)
{
  if (!block) return;
  atomic_fetch_sub_explicit(&live_blocks, 1, memory_order_relaxed);
  free(block);
}

char *kg_copy_bytes(const char *bytes, size_t n)
{
  size_t with_nul;
  char *copy = kg_add_size(n, 1, &with_nul) ? kg_alloc(with_nul) : NULL;
  if (!copy) return NULL;
  if (n) memcpy(copy, bytes, n);
  copy[n] = 0;
  return copy;
}

void kg_alloc_inject(int64_t nth, bool for_ever)
{
  atomic_store(&fail_for_ever, for_ever);
  atomic_store(&fail_at, nth > 0 ? atomic_load(&n_calls) + nth : 0);
}

int64_t kg_alloc_live(void)
{
  return atomic_load(&live_blocks);
}

int64_t kg_alloc_calls(void)
{
  return atomic_load(&n_calls);
}
