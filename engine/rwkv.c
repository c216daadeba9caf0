/* rwkv.c - RWKV's vocabulary (tokenizer.ggml.model "rwkv"): always the longest token from the left. The file spells
 * bytes as Python would print them: \xHH, \t, \n, \r, \\, \'. */
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"

/* ---- opening ---- */

static int digit(char c)
{
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; /* bounded: a digit */
}

/* The byte that an escape at text spells; *n is moved behind it. Anything else stands for itself. */
static char unescape(const char *text, size_t size, size_t *n)
{
  static const char names[] = "tnr\\'\"", bytes[] = "\t\n\r\\'\"";
  *n = 1;
  if (text[0] != '\\' || size < 2) return text[0];
  const char *name = text[1] ? strchr(names, text[1]) : NULL;
  if (name) {
    *n = 2;
    return bytes[name - names];
  }
  if (text[1] != 'x' || size < 4 || digit(text[2]) < 0 || digit(text[3]) < 0) return text[0];
  *n = 4;
  return (char)(digit(text[2]) * 16 + digit(text[3])); /* bounded: two digits */
}

static size_t unmap(const char *text, size_t n, char *out)
{
  size_t used = 0;
  for (size_t i = 0, length; i < n; i += length) out[used++] = unescape(text + i, n - i, &length);
  return used;
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  (void)gguf;
  kg_trie *pieces = tokenizer->state = kg_alloc_array(1, sizeof *pieces);
  if (!pieces) return kg_fail_memory(err, sizeof *pieces, "a tokenizer");
  return kg_vocab_build_trie(&tokenizer->vocab, 1u << KG_TOKEN_NORMAL, pieces, err);
}

static void close(void *state)
{
  if (state) kg_trie_deinit(state);
  kg_free(state);
}

/* ---- encoding ---- */

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  (void)after_special, (void)merger;
  int rc = KG_OK;
  for (size_t i = 0, length = 1; i < size && !rc; i += length) {
    const int32_t id = kg_trie_longest(tokenizer->state, text + i, size - i, &length);
    if (id < 0) length = 1;
    rc = id >= 0 ? kg_tokens_push(out, id, err) : kg_tokenizer_push_byte(tokenizer, (unsigned char)text[i], out, err);
  }
  return rc;
}

const kg_tokenizer_kind kg_rwkv_kind = {.model = "rwkv", .unmap = unmap, .open = open, .close = close,
                                        .encode = encode};
