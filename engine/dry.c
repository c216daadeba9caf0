#include "dry.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"

struct kg_dry {
  kg_tokenizer *tokenizer; /* one reference */
  kg_string *breakers;     /* into `bytes` */
  size_t n;
  char *bytes;
  bool starts[256]; /* does a breaker start with this byte? */
  uint8_t *holds;   /* a bit for each token: does it hold a whole breaker? */
};

/* ---- making ---- */

static bool starts_with(kg_string text, size_t at, kg_string breaker)
{
  return breaker.size <= text.size - at && !memcmp(text.data + at, breaker.data, breaker.size);
}

static bool holds_breaker(const kg_dry *dry, kg_string piece)
{
  for (size_t at = 0; at < piece.size; at++) {
    if (!dry->starts[(unsigned char)piece.data[at]]) continue;
    for (size_t b = 0; b < dry->n; b++)
      if (starts_with(piece, at, dry->breakers[b])) return true;
  }
  return false;
}

/* Copy the texts, whose sizes are checked. */
static void copy_breakers(kg_dry *dry, const kg_string *breakers, size_t n)
{
  char *at = dry->bytes;
  for (size_t b = 0; b < n; b++) {
    memcpy(at, breakers[b].data, breakers[b].size);
    dry->breakers[b] = (kg_string){at, breakers[b].size};
    dry->starts[(unsigned char)*at] = true;
    at += breakers[b].size; /* bounded: up to their sum */
  }
  dry->n = n;
}

int kg_dry_new(kg_tokenizer *tokenizer, const kg_string *breakers, size_t n, kg_dry **out, kg_error *err)
{
  if (n > KG_DRY_BREAKERS) return kg_fail(err, KG_ERR_ARGUMENT, "%zu breakers are more than %d", n, KG_DRY_BREAKERS);
  size_t n_bytes = 0;
  for (size_t b = 0; b < n; b++) {
    if (!breakers[b].size || breakers[b].size > KG_DRY_BREAKER_SIZE)
      return kg_fail(err, KG_ERR_ARGUMENT, "breaker %zu: %zu bytes are not 1 to %d", b + 1, breakers[b].size,
                     KG_DRY_BREAKER_SIZE);
    n_bytes += breakers[b].size; /* bounded: KG_DRY_BREAKERS * KG_DRY_BREAKER_SIZE */
  }
  const size_t size = (size_t)kg_tokenizer_size(tokenizer), hold_bytes = size / 8 + 1;
  kg_dry *dry = kg_alloc_array(1, sizeof *dry);
  if (!dry) return kg_fail_memory(err, sizeof *dry, "the breakers of DRY");
  dry->tokenizer = kg_tokenizer_ref(tokenizer);
  dry->breakers = kg_alloc_array(n, sizeof *dry->breakers);
  dry->bytes = kg_alloc(n_bytes);
  dry->holds = kg_alloc_array(hold_bytes, 1);
  if (!dry->breakers || !dry->bytes || !dry->holds) {
    kg_dry_free(dry);
    return kg_fail_memory(err, hold_bytes, "the breakers of DRY");
  }
  copy_breakers(dry, breakers, n);
  for (size_t id = 0; id < size; id++)
    if (holds_breaker(dry, kg_vocab_piece(&tokenizer->vocab, (int32_t)id)))
      dry->holds[id / 8] |= (uint8_t)(1u << id % 8);
  *out = dry;
  return KG_OK;
}

void kg_dry_free(kg_dry *dry)
{
  if (!dry) return;
  kg_tokenizer_free(dry->tokenizer);
  kg_free(dry->breakers);
  kg_free(dry->bytes);
  kg_free(dry->holds);
  kg_free(dry);
}

/* ---- breakers ---- */

bool kg_dry_is_breaker(const kg_dry *dry, int32_t id)
{
  return dry && id < kg_tokenizer_size(dry->tokenizer) && dry->holds[id / 8] >> id % 8 & 1;
}

static kg_string piece_of(const kg_dry *dry, int32_t id)
{
  return id < kg_tokenizer_size(dry->tokenizer) ? kg_vocab_piece(&dry->tokenizer->vocab, id) : (kg_string){"", 0};
}

/* Does what tokens[0..n) write end with this text? */
static bool ends_with(const kg_dry *dry, const int32_t *tokens, int32_t n, const char *text, size_t size)
{
  while (size && n--) {
    const kg_string piece = piece_of(dry, tokens[n]);
    const size_t common = piece.size < size ? piece.size : size;
    size -= common;
    if (common && memcmp(piece.data + piece.size - common, text + size, common)) return false;
  }
  return !size;
}

/* Does a breaker that began before the last of these tokens end in it? */
static bool ends_in_last(const kg_dry *dry, const int32_t *tokens, int32_t n)
{
  const kg_string piece = piece_of(dry, tokens[n - 1]);
  for (size_t b = 0; b < dry->n; b++) {
    const kg_string breaker = dry->breakers[b];
    for (size_t end = 1; end <= piece.size && end < breaker.size; end++) {
      const size_t before = breaker.size - end;
      if (!memcmp(piece.data, breaker.data + before, end) && ends_with(dry, tokens, n - 1, breaker.data, before))
        return true;
    }
  }
  return false;
}

int32_t kg_dry_tail(const kg_dry *dry, const int32_t *tokens, int32_t n, int32_t most)
{
  if (!dry) return most;
  int32_t tail = 0;
  while (tail < most && !kg_dry_is_breaker(dry, tokens[n - 1 - tail]) && !ends_in_last(dry, tokens, n - tail)) tail++;
  return tail;
}

/* ---- matches ---- */

/* The Z function of the tokens in reverse: in linear time, because no token within a match is looked at twice.
 * (Gusfield: "Algorithms on Strings, Trees, and Sequences", 1997) */
void kg_dry_match(const int32_t *tokens, int32_t n, int32_t *lengths)
{
  const int32_t *last = tokens + n - 1;
  int32_t from = 0, to = 0; /* the match that reaches furthest back */
  for (int32_t i = 1; i < n; i++) {
    int32_t length = 0;
    if (i < to) length = lengths[i - from] < to - i ? lengths[i - from] : to - i;
    while (i + length < n && last[-length] == last[-i - length]) length++;
    lengths[i] = length;
    if (i + length <= to) continue;
    from = i;
    to = i + length;
  }
}

float kg_dry_penalty(float multiplier, float base, int32_t exponent)
{
  enum { MOST = 1000000 };
  if (multiplier == 0) return 0;
  double penalty = multiplier, power = base;
  for (; exponent && penalty < MOST; exponent >>= 1) {
    if (exponent & 1) penalty *= power;
    power *= power;
  }
  return penalty < MOST ? (float)penalty : (float)MOST;
}
