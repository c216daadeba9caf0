/* checksum.h - XXH64 (seed 0), written from its public specification: a fast checksum against accidents. It shows
 * nothing that somebody wants to hide; what names files is sha256.h. */
#ifndef KG_CHECKSUM_H
#define KG_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

typedef struct kg_checksum {
  uint64_t lanes[4];
  uint64_t n_bytes;
  uint8_t block[32]; /* the first n_bytes % 32 are waiting */
} kg_checksum;

void kg_checksum_begin(kg_checksum *sum);
void kg_checksum_add(kg_checksum *sum, const void *bytes, size_t n);
uint64_t kg_checksum_end(const kg_checksum *sum); /* of what came so far */

#endif
