/* size.c - the parts of alloc.h that hold no state: checked arithmetic and growth. The CUDA plug-in has them too. */
#include "alloc.h"

bool kg_grow(void **items, size_t *capacity, size_t need, size_t item_size)
{
  if (need <= *capacity) return true;
  size_t wanted = *capacity + *capacity / 2;
  if (wanted < need) wanted = need;
  if (wanted < 8) wanted = 8;
  void *grown = kg_realloc_array(*items, wanted, item_size);
  if (!grown) return false;
  *items = grown;
  *capacity = wanted;
  return true;
}

bool kg_add_size(size_t a, size_t b, size_t *out)
{
  size_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return false;
  *out = sum;
  return true;
}

bool kg_mul_size(size_t a, size_t b, size_t *out)
{
  size_t product;
  if (__builtin_mul_overflow(a, b, &product)) return false;
  *out = product;
  return true;
}

bool kg_align_size(size_t n, size_t alignment, size_t *out)
{
  size_t padded;
  if (!kg_add_size(n, alignment - 1, &padded)) return false;
  *out = padded & ~(alignment - 1);
  return true;
}
