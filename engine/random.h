/* random.h - counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
 * as 1, 2, 3", SC'11). A draw is a pure function of (seed, position, draw index), so it survives fork, rewind,
 * batching and restore without any state to carry, and is the same on every device. */
#ifndef KG_RANDOM_H
#define KG_RANDOM_H

#include <stdint.h>

#include "shared.h"

KG_SHARED void kg_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
  uint32_t k0 = key[0], k1 = key[1];
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/* Uniform in [0, 1), 53 bits: the draw-th number of a seed at a position. */
KG_SHARED double kg_uniform(uint64_t seed, uint64_t pos, uint64_t draw)
{
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), (uint32_t)draw, (uint32_t)(draw >> 32)};
  uint32_t bits[4];
  kg_philox(key, counter, bits);
  const uint64_t wide = (uint64_t)bits[0] << 32 | bits[1];
  return (double)(wide >> 11) * 0x1p-53;
}

#endif
