/* bits.h - sets of small numbers as words of 64 bits. */
#ifndef KG_BITS_H
#define KG_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Words for n bits. */
static inline size_t kg_bit_words(size_t n) { return n / 64 + (n % 64 != 0); }
/* The bit of i in its word, word i / 64. */
static inline uint64_t kg_bit(size_t i) { return UINT64_C(1) << i % 64; }
static inline bool kg_has_bit(const uint64_t *bits, size_t i) { return bits[i / 64] >> i % 64 & 1; }
static inline void kg_set_bit(uint64_t *bits, size_t i) { bits[i / 64] |= kg_bit(i); }

#endif
