#include "dry.h"

#include <string.h>

#include "tokenizer.h"

/* ---- breakers ---- */

static kg_string piece_of(const kg_breakers *breakers, int32_t id)
{
  if (id >= kg_tokenizer_size(breakers->tokenizer)) return (kg_string){"", 0}; /* of a model with more ids */
  return kg_vocab_piece(&breakers->tokenizer->vocab, id);
}

static bool holds(kg_string piece, kg_string text)
{
  for (size_t at = 0; at + text.size <= piece.size; at++) /* bounded: pieces and breakers are short */
    if (!memcmp(piece.data + at, text.data, text.size)) return true;
  return false;
}

bool kg_dry_is_breaker(const kg_breakers *breakers, int32_t id)
{
  for (int32_t b = 0; b < breakers->n; b++)
    if (holds(piece_of(breakers, id), breakers->texts[b])) return true;
  return false;
}

/* Does what tokens[0..n) write end with this text? */
static bool ends_with(const kg_breakers *breakers, const int32_t *tokens, int32_t n, const char *text, size_t size)
{
  while (size && n--) {
    const kg_string piece = piece_of(breakers, tokens[n]);
    const size_t common = piece.size < size ? piece.size : size;
    size -= common;
    if (common && memcmp(piece.data + piece.size - common, text + size, common)) return false;
  }
  return !size;
}

/* Does a breaker that began before the last of these tokens end in it? */
static bool ends_in_last(const kg_breakers *breakers, const int32_t *tokens, int32_t n)
{
  const kg_string piece = piece_of(breakers, tokens[n - 1]);
  for (int32_t b = 0; b < breakers->n; b++) {
    const kg_string text = breakers->texts[b];
    for (size_t end = 1; end <= piece.size && end < text.size; end++) {
      const size_t before = text.size - end;
      if (!memcmp(piece.data, text.data + before, end) && ends_with(breakers, tokens, n - 1, text.data, before))
        return true;
    }
  }
  return false;
}

int32_t kg_dry_tail(const kg_breakers *breakers, const int32_t *tokens, int32_t n, int32_t most)
{
  if (!breakers->n) return most;
  int32_t tail = 0;
  while (tail < most && !kg_dry_is_breaker(breakers, tokens[n - 1 - tail]) && !ends_in_last(breakers, tokens, n - tail))
    tail++;
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
