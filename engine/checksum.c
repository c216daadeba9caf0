#include "checksum.h"

#include <string.h>

static const uint64_t P1 = 0x9E3779B185EBCA87u, P2 = 0xC2B2AE3D27D4EB4Fu, P3 = 0x165667B19E3779F9u,
                      P4 = 0x85EBCA77C2B2AE63u, P5 = 0x27D4EB2F165667C5u;

static uint64_t rotated(uint64_t x, int n) { return x << n | x >> (64 - n); }

static uint64_t mixed(uint64_t lane, uint64_t word) { return rotated(lane + word * P2, 31) * P1; }

static uint64_t word_at(const uint8_t *bytes) /* little-endian, as the processors that we know */
{
  uint64_t word;
  memcpy(&word, bytes, sizeof word);
  return word;
}

void kg_checksum_begin(kg_checksum *sum) { *sum = (kg_checksum){.lanes = {P1 + P2, P2, 0, 0 - P1}}; }

static void take_block(kg_checksum *sum, const uint8_t *block)
{
  for (size_t i = 0; i < 4; i++) sum->lanes[i] = mixed(sum->lanes[i], word_at(block + 8 * i));
}

void kg_checksum_add(kg_checksum *sum, const void *bytes, size_t n)
{
  const uint8_t *at = bytes;
  const size_t waiting = sum->n_bytes % sizeof sum->block;
  if (!n) return;
  sum->n_bytes += n;
  if (waiting) {
    const size_t room = sizeof sum->block - waiting, taken = n < room ? n : room;
    memcpy(sum->block + waiting, at, taken);
    if (taken < room) return;
    take_block(sum, sum->block);
    at += taken;
    n -= taken;
  }
  for (; n >= sizeof sum->block; n -= sizeof sum->block, at += sizeof sum->block) take_block(sum, at);
  memcpy(sum->block, at, n);
}

static uint64_t joined(const uint64_t lanes[4])
{
  uint64_t sum = rotated(lanes[0], 1) + rotated(lanes[1], 7) + rotated(lanes[2], 12) + rotated(lanes[3], 18);
  for (int i = 0; i < 4; i++) sum = (sum ^ mixed(0, lanes[i])) * P1 + P4;
  return sum;
}

uint64_t kg_checksum_end(const kg_checksum *sum)
{
  const uint8_t *at = sum->block, *end = at + sum->n_bytes % sizeof sum->block;
  uint64_t h = (sum->n_bytes < sizeof sum->block ? P5 : joined(sum->lanes)) + sum->n_bytes;
  for (; end - at >= 8; at += 8) h = rotated(h ^ mixed(0, word_at(at)), 27) * P1 + P4;
  if (end - at >= 4) {
    uint32_t half;
    memcpy(&half, at, sizeof half);
    h = rotated(h ^ half * P1, 23) * P2 + P3;
    at += 4;
  }
  for (; at < end; at++) h = rotated(h ^ *at * P5, 11) * P1;
  h = (h ^ h >> 33) * P2;
  h = (h ^ h >> 29) * P3;
  return h ^ h >> 32;
}
