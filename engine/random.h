/* random.h - counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy
 * as 1, 2, 3", SC'11). A draw is a pure function of (seed, position, draw index), so it survives fork, rewind,
 * batching and restore without any state to carry. */
#ifndef KG_RANDOM_H
#define KG_RANDOM_H

#include <stdint.h>

void kg_philox(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4]);

/* Uniform in [0, 1), 53 bits: the draw-th number of a seed at a position. */
double kg_uniform(uint64_t seed, uint64_t pos, uint64_t draw);

#endif
