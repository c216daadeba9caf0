/* rank.h - ranking of floats: larger values first, equal ones by the lower index, NaNs last. */
#ifndef KG_RANK_H
#define KG_RANK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "shared.h"

/* A value and its index as one number: what ranks higher is larger, and no two are equal. */
typedef uint64_t kg_rank;

/* Order of floats as an order of integers: -0 equals +0, NaN is 0 and below -inf. */
KG_SHARED uint32_t kg_rank_key(float value)
{
  if (value != value) return 0;
  value += 0.0f; /* -0 becomes +0 */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits ^ (-(bits >> 31) | 0x80000000u); /* all bits of a negative one, the sign of another: no branch on it */
}

KG_SHARED kg_rank kg_rank_make(float value, uint32_t index)
{
  return (uint64_t)kg_rank_key(value) << 32 | (uint32_t)~index;
}

KG_SHARED int32_t kg_rank_index(kg_rank rank)
{
  return (int32_t)~(uint32_t)rank;
}

/* The value of a rank; -0 comes back as +0. */
KG_SHARED float kg_rank_value(kg_rank rank)
{
  const uint32_t key = (uint32_t)(rank >> 32), bits = key >> 31 ? key ^ 0x80000000u : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value; /* of a NaN's rank: a NaN */
}

/* Sort descending. `scratch` holds n too. */
void kg_rank_sort(kg_rank *items, kg_rank *scratch, size_t n);

/* How many kg_rank of room kg_rank_top needs; k <= n < 2^31. */
size_t kg_rank_room(int64_t n, int64_t k);
/* The k highest of x[n], best first, at the start of `room`. */
void kg_rank_top(const float *x, int64_t n, int64_t k, kg_rank *room);

#endif
