#include "pretokenize.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

#include "utf8.h"

/* ---- classes of characters ---- */

typedef enum char_class { END, LETTER, NUMBER, SPACE, NEWLINE, OTHER } char_class; /* NEWLINE: CR and LF; also white */

/* The property White_Space of Unicode, less CR and LF. */
static bool is_space(uint32_t c)
{
  return c == ' ' || (c >= 0x09 && c <= 0x0D) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static char_class classify(uint32_t c)
{
  if (c == '\r' || c == '\n') return NEWLINE;
  if (is_space(c)) return SPACE;
  switch (utf8proc_category((utf8proc_int32_t)c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO: return LETTER;
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_NO: return NUMBER;
  default: return OTHER;
  }
}

/* Class and length of the character at pos; END and 0 at the end of the text. */
static char_class class_at(const char *text, size_t size, size_t pos, size_t *length)
{
  *length = 0;
  if (pos >= size) return END;
  uint32_t c;
  return kg_utf8_next(text + pos, size - pos, &c, length) == KG_UTF8_VALID ? classify(c) : OTHER;
}

/* ---- pieces of the expressions ---- */

/* X* at most `limit` times */
static size_t skip(const char *text, size_t size, size_t pos, char_class wanted, size_t limit)
{
  size_t length;
  while (limit-- && class_at(text, size, pos, &length) == wanted) pos += length;
  return pos;
}

/* 's 't 're 've 'm 'll 'd: its length, or 0. With any_case also in capitals, ASCII ones. */
static size_t contraction(const char *text, size_t size, size_t pos, bool any_case)
{
  if (text[pos] != '\'' || size - pos < 2) return 0;
  const char fold = any_case ? 0x20 : 0;
  const char a = text[pos + 1] | fold, b = size - pos > 2 ? text[pos + 2] | fold : 0;
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s+(?!\S)|\s+ where white space starts at pos: the run, without its last character when a word follows it. */
static size_t white_space(const char *text, size_t size, size_t pos, size_t *after_newlines)
{
  size_t last = pos, at = pos, length;
  *after_newlines = 0;
  for (char_class c; (c = class_at(text, size, at, &length)) == SPACE || c == NEWLINE; at += length) {
    last = at;
    if (c == NEWLINE) *after_newlines = at + length;
  }
  return at == size || last == pos ? at : last;
}

/* ---- splitters ---- */

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t next_gpt2(const char *text, size_t size, size_t pos)
{
  const size_t n = contraction(text, size, pos, false);
  if (n) return pos + n;
  size_t length;
  const size_t at = pos + (text[pos] == ' ');
  const char_class c = class_at(text, size, at, &length);
  if (c == LETTER || c == NUMBER || c == OTHER) return skip(text, size, at, c, SIZE_MAX);
  return white_space(text, size, pos, &length);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max_digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
 * \s+(?!\S)|\s+ */
static size_t next_llama3(const char *text, size_t size, size_t pos, size_t max_digits)
{
  const size_t n = contraction(text, size, pos, true);
  if (n) return pos + n;
  size_t length, ignored;
  char_class c = class_at(text, size, pos, &length);
  if (c == LETTER) return skip(text, size, pos, LETTER, SIZE_MAX);
  if (c == NUMBER) return skip(text, size, pos, NUMBER, max_digits);
  if (c != NEWLINE && class_at(text, size, pos + length, &ignored) == LETTER)
    return skip(text, size, pos + length, LETTER, SIZE_MAX);
  if (c == OTHER || (text[pos] == ' ' && class_at(text, size, pos + 1, &ignored) == OTHER)) {
    size_t end = skip(text, size, pos + (text[pos] == ' '), OTHER, SIZE_MAX);
    return skip(text, size, end, NEWLINE, SIZE_MAX);
  }
  size_t after_newlines;
  const size_t end = white_space(text, size, pos, &after_newlines);
  return after_newlines ? after_newlines : end;
}

static size_t next_llama_bpe(const char *text, size_t size, size_t pos)
{
  return next_llama3(text, size, pos, 3);
}

static size_t next_qwen2(const char *text, size_t size, size_t pos)
{
  return next_llama3(text, size, pos, 1);
}

/* ---- names ---- */

/* Every name that converters write into files for one of these splitters: llama.cpp gave the same ids for thousands of
 * texts under each name of a group. */
static const kg_pretokenizer pretokenizers[] = {
    {"gpt-2", next_gpt2, false, false},
    {"phi-2", next_gpt2, false, false},
    {"mpt", next_gpt2, false, false},
    {"olmo", next_gpt2, false, false},
    {"jais", next_gpt2, false, false},
    {"trillion", next_gpt2, false, false},
    {"exaone4", next_gpt2, false, false},
    {"gigachat", next_gpt2, false, false},
    {"mellum", next_gpt2, false, false},
    {"a.x-4.0", next_gpt2, false, false},
    {"granite-docling", next_gpt2, false, false},
    {"qwen2", next_qwen2, false, false},
    {"deepseek-r1-qwen", next_qwen2, false, false},
    {"stablelm2", next_qwen2, false, false},
    {"hunyuan", next_qwen2, false, false},
    {"megrez", next_qwen2, false, false},
    {"kormo", next_qwen2, false, false},
    {"solar-open", next_qwen2, false, false},
    {"llama-bpe", next_llama_bpe, true, true},
    {"llama3", next_llama_bpe, true, true},
    {"llama-v3", next_llama_bpe, true, true},
    {"falcon3", next_llama_bpe, true, true},
    {"falcon-h1", next_llama_bpe, true, true},
    {"pixtral", next_llama_bpe, true, true},
    {"midm-2.0", next_llama_bpe, true, true},
    {"lfm2", next_llama_bpe, true, true},
    {"dbrx", next_llama_bpe, false, false},
    {"smaug-bpe", next_llama_bpe, false, false},
};

const kg_pretokenizer *kg_pretokenizer_find(const char *name, size_t size)
{
  for (size_t i = 0; i < sizeof pretokenizers / sizeof pretokenizers[0]; i++)
    if (strlen(pretokenizers[i].name) == size && !memcmp(pretokenizers[i].name, name, size)) return &pretokenizers[i];
  return NULL;
}

const char *kg_pretokenizer_names(char *buffer, size_t size)
{
  size_t used = 0;
  buffer[0] = 0;
  for (size_t i = 0; i < sizeof pretokenizers / sizeof pretokenizers[0] && used < size; i++)
    used += (size_t)snprintf(buffer + used, size - used, "%s%s", i ? ", " : "", pretokenizers[i].name);
  return buffer;
}
