#define _GNU_SOURCE
#include "sha256.h"

#include <fcntl.h>
#include <string.h>

#include "system.h"

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2). */
static const uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static uint32_t big_endian(const uint8_t *bytes)
{
  return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void schedule(uint32_t w[64], const uint8_t block[64])
{
  for (int t = 0; t < 16; t++) w[t] = big_endian(block + 4 * t);
  for (int t = 16; t < 64; t++) {
    const uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
    const uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
    w[t] = s1 + w[t - 7] + s0 + w[t - 16];
  }
}

/* One block into the state; letters as in the standard (6.2.2). */
static void compress_one(uint32_t state[8], const uint8_t block[64])
{
  uint32_t w[64];
  schedule(w, block);
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int t = 0; t < 64; t++) {
    const uint32_t s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
    const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + round_constants[t] + w[t];
    const uint32_t s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
    const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1;
    d = c, c = b, b = a, a = t1 + t2;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

static void compress_portably(uint32_t state[8], const uint8_t *blocks, size_t n)
{
  for (size_t i = 0; i < n; i++) compress_one(state, blocks + 64 * i);
}

/* ---- the processor's own instructions ---- */

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

/* The same with the SHA extensions, which keep the state as (a, b, e, f) and (c, d, g, h), highest first, and do two
 * rounds at once with two sums of words and constants. */
__attribute__((target("sha,sse4.1"))) static void compress_by_extensions(uint32_t state[8], const uint8_t *blocks,
                                                                         size_t n)
{
  const __m128i swap_bytes = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xB1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0x1B);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xF0);
  for (; n; n--, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[16]; /* four words each */
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      if (i < 4)
        w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(blocks + 16 * i)), swap_bytes);
      else
        w[i] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(w[i - 4], w[i - 3]),
                                                  _mm_alignr_epi8(w[i - 1], w[i - 2], 4)),
                                    w[i - 1]);
      const __m128i sums = _mm_add_epi32(w[i], _mm_loadu_si128((const __m128i *)(round_constants + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sums);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sums, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xF0));
  _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static bool has_extensions(void)
{
  unsigned a, b, c, d;
  return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 29;
}
#else
static void compress_by_extensions(uint32_t state[8], const uint8_t *blocks, size_t n)
{
  compress_portably(state, blocks, n);
}
static bool has_extensions(void) { return false; }
#endif

/* ---- of bytes as they come ---- */

void kg_sha256_begin_portably(kg_sha256 *sha)
{
  kg_sha256_begin(sha);
  sha->is_portable = true;
}

void kg_sha256_begin(kg_sha256 *sha)
{
  /* of the square roots of the first 8 primes (5.3.3) */
  *sha = (kg_sha256){
      .state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19},
      .is_portable = !has_extensions()};
}

static void compress(kg_sha256 *sha, const uint8_t *blocks, size_t n)
{
  (sha->is_portable ? compress_portably : compress_by_extensions)(sha->state, blocks, n);
}

void kg_sha256_add(kg_sha256 *sha, const void *bytes, size_t n)
{
  const uint8_t *at = bytes;
  const size_t waiting = sha->n_bytes % 64, room = 64 - waiting;
  if (!n) return;
  sha->n_bytes += n;
  if (waiting) {
    const size_t taken = n < room ? n : room;
    memcpy(sha->block + waiting, at, taken);
    if (taken < room) return;
    compress(sha, sha->block, 1);
    at += taken;
    n -= taken;
  }
  compress(sha, at, n / 64);
  memcpy(sha->block, at + n / 64 * 64, n % 64);
}

void kg_sha256_end(kg_sha256 *sha, char hex[KG_SHA256_HEX])
{
  static const uint8_t padding[64] = {0x80};
  const uint64_t n_bits = sha->n_bytes * 8;
  const size_t waiting = sha->n_bytes % 64;
  kg_sha256_add(sha, padding, (waiting < 56 ? 56 : 120) - waiting);
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = (uint8_t)(n_bits >> (56 - 8 * i));
  kg_sha256_add(sha, length, sizeof length);
  for (int i = 0; i < 64; i++) hex[i] = "0123456789abcdef"[sha->state[i / 8] >> (28 - 4 * (i % 8)) & 15];
  hex[64] = 0;
}

int kg_sha256_file(const char *path, char hex[KG_SHA256_HEX], kg_error *err)
{
  int fd;
  int code = kg_sys_open(path, O_RDONLY, &fd, err);
  if (code) return code;
  kg_sha256 sha;
  kg_sha256_begin(&sha);
  uint8_t piece[1 << 16];
  size_t n = sizeof piece;
  while (!code && n == sizeof piece) {
    code = kg_sys_read(path, fd, piece, sizeof piece, &n, err);
    kg_sha256_add(&sha, piece, n);
  }
  kg_sys_close(fd);
  if (!code) kg_sha256_end(&sha, hex);
  return code;
}
