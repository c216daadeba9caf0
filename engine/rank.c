#include "rank.h"

#include <math.h>
#include <stdbool.h>

#include "vector.h"

/* ---- sorting ---- */

static void insertion_sort(kg_rank *items, size_t n)
{
  for (size_t i = 1; i < n; i++) {
    const kg_rank item = items[i];
    size_t at = i;
    for (; at && items[at - 1] < item; at--) items[at] = items[at - 1];
    items[at] = item;
  }
}

/* Are the items in the order of their indices, as after a scan? */
static bool is_by_index(const kg_rank *items, size_t n)
{
  for (size_t i = 1; i < n; i++)
    if ((uint32_t)items[i] > (uint32_t)items[i - 1]) return false;
  return true;
}

/* Stable byte by byte, least significant first; bytes that are in order already or that all items share are skipped. */
static void radix_sort(kg_rank *items, kg_rank *scratch, size_t n)
{
  uint32_t counts[8][256] = {{0}};
  for (size_t i = 0; i < n; i++)
    for (int byte = 0; byte < 8; byte++) counts[byte][items[i] >> 8 * byte & 255]++;
  kg_rank *from = items, *to = scratch;
  for (int byte = is_by_index(items, n) ? 4 : 0; byte < 8; byte++) {
    uint32_t *count = counts[byte];
    if (count[items[0] >> 8 * byte & 255] == n) continue;
    uint32_t start = 0;
    for (int value = 255; value >= 0; value--) {
      const uint32_t here = count[value];
      count[value] = start;
      start += here;
    }
    for (size_t i = 0; i < n; i++) to[count[from[i] >> 8 * byte & 255]++] = from[i];
    kg_rank *other = from;
    from = to;
    to = other;
  }
  if (from != items) memcpy(items, from, n * sizeof *items);
}

void kg_rank_sort(kg_rank *items, kg_rank *scratch, size_t n)
{
  if (n <= 64)
    insertion_sort(items, n);
  else
    radix_sort(items, scratch, n);
}

/* ---- the top ---- */

/* Kept while scanning: when they are full, all but the k best are dropped. */
static size_t kept_capacity(int64_t n, int64_t k)
{
  const int64_t wanted = 4 * k + 64;
  return (size_t)(wanted < n ? wanted : n);
}

size_t kg_rank_room(int64_t n, int64_t k) { return 2 * kept_capacity(n, k) + 1; }

/* A value that at least k of x reach, or -inf: the k-th best of the maxima of blocks. With less than 2k blocks of 32
 * there is no such bound that is worth its cost. */
static float lower_bound(const kg_vector *vector, const float *x, int64_t n, int64_t k, kg_rank *room)
{
  int64_t block = (n + 4 * k - 1) / (4 * k);
  block += (KG_VECTOR_BLOCK - block % KG_VECTOR_BLOCK) % KG_VECTOR_BLOCK;
  if (n / KG_VECTOR_BLOCK < 2 * k || n / block < k) return -INFINITY;
  const int64_t n_blocks = n / block; /* at most 4k: they fit the room; what follows the last one is not looked at */
  for (int64_t i = 0; i < n_blocks; i++) room[i] = kg_rank_make(vector->max(x + i * block, block), (uint32_t)i);
  kg_rank_sort(room, room + n_blocks, (size_t)n_blocks);
  const int64_t at = (int64_t)kg_rank_index(room[k - 1]) * block;
  return vector->max(x + at, block);
}

void kg_rank_top(const float *x, int64_t n, int64_t k, kg_rank *room)
{
  if (k <= 0) return;
  const kg_vector *vector = kg_vector_get();
  const size_t capacity = kept_capacity(n, k);
  /* Items are seen in index order, so once k are kept, only a larger value than the k-th can displace one. */
  float bound = lower_bound(vector, x, n, k, room);
  float above = bound == -INFINITY ? NAN : nextafterf(bound, -INFINITY); /* NAN: keep everything */
  size_t n_kept = 0;
  for (int64_t at = 0; at < n;) {
    if (above == above) at += vector->find_above(x + at, n - at, above);
    const int64_t end = at + KG_VECTOR_BLOCK < n ? at + KG_VECTOR_BLOCK : n;
    for (; at < end; at++) {
      if (above == above && !(x[at] > above)) continue;
      if (n_kept == capacity) {
        kg_rank_sort(room, room + capacity, n_kept);
        n_kept = (size_t)k;
        above = x[kg_rank_index(room[k - 1])];
        if (above == above && !(x[at] > above)) continue;
      }
      room[n_kept++] = kg_rank_make(x[at], (uint32_t)at);
    }
  }
  kg_rank_sort(room, room + capacity, n_kept);
}
