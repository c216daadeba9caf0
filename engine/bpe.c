/* bpe.c - byte-level BPE (tokenizer.ggml.model "gpt2"): words of bytes, merged in the order of the file's list. */
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "pretokenize.h"
#include "tokenizer.h"
#include "utf8.h"

typedef struct merge_slot {
  int32_t left, right, id; /* left -1: free */
  uint32_t rank;
} merge_slot;

typedef struct bpe {
  const kg_pretokenizer *pre;
  int32_t byte_ids[256]; /* the symbol that a byte starts as; -1: none */
  merge_slot *slots;     /* a hash table by (left, right) */
  size_t mask;
  uint64_t seed;
} bpe;

/* ---- the alphabet ---- */

/* GPT-2 writes every byte as a printable character: itself where it is one, else U+0100 and up in order. -1: c stands
 * for no byte. */
static int byte_of(uint32_t c)
{
  if ((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255)) return (int)c;
  const uint32_t k = c - 256; /* wraps below 256, which is then beyond the last */
  if (k <= 32) return (int)k;
  if (k == 33) return 127;
  if (k <= 66) return (int)k - 34 + 128;
  return k == 67 ? 173 : -1;
}

/* Text that spells bytes becomes those bytes; other text (an added token) writes itself. */
static size_t unmap(const char *text, size_t n, char *out)
{
  size_t used = 0;
  for (size_t i = 0, length; i < n; i += length) {
    uint32_t c;
    const int byte = kg_utf8_next(text + i, n - i, &c, &length) == KG_UTF8_VALID ? byte_of(c) : -1;
    if (byte < 0) {
      memcpy(out, text, n);
      return n;
    }
    out[used++] = (char)byte;
  }
  return used;
}

/* ---- merges ---- */

static merge_slot *find_slot(const bpe *b, int32_t left, int32_t right)
{
  /* bounded: 32 bits, moved up by 32 */
  const uint64_t hash = kg_vocab_hash(b->seed, (uint64_t)(uint32_t)left << 32 | (uint32_t)right, 1);
  for (size_t at = (size_t)hash & b->mask;; at = (at + 1) & b->mask) {
    merge_slot *slot = &b->slots[at];
    if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
  }
}

static int malformed_merge(const kg_gguf *gguf, uint64_t index, kg_string text, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.merges[%llu] is %s, not two pieces and a space",
                 kg_gguf_path(gguf), (unsigned long long)index, kg_quote(quoted, text.data, text.size));
}

/* Enter one "left right". Merges of texts that are not in the vocabulary, or that would make a control token, can
 * never yield an id: they are left out. `buffer` has room for the text. */
static int add_merge(bpe *b, const kg_vocab *vocab, const kg_gguf *gguf, uint64_t index, kg_string text, char *buffer,
                     kg_error *err)
{
  const char *space = text.size > 2 ? memchr(text.data + 1, ' ', text.size - 2) : NULL;
  if (!space) return malformed_merge(gguf, index, text, err);
  const size_t left_size = (size_t)(space - text.data), right_size = text.size - left_size - 1;
  const size_t n_left = unmap(text.data, left_size, buffer);
  const size_t n_right = unmap(space + 1, right_size, buffer + n_left);
  const int32_t left = kg_vocab_find(vocab, &vocab->texts, buffer, n_left);
  const int32_t right = kg_vocab_find(vocab, &vocab->texts, buffer + n_left, n_right);
  /* bounded: both parts are inside of one text */
  const int32_t id = kg_vocab_find(vocab, &vocab->texts, buffer, n_left + n_right);
  if (left < 0 || right < 0 || id < 0) return KG_OK;
  merge_slot *slot = find_slot(b, left, right);
  if (slot->left < 0) *slot = (merge_slot){left, right, id, (uint32_t)index}; /* of repeated ones the first counts */
  return KG_OK;
}

static int read_merges(bpe *b, const kg_vocab *vocab, const kg_gguf *gguf, kg_error *err)
{
  const kg_gguf_entry *merges;
  int rc = kg_gguf_get_array(gguf, "tokenizer.ggml.merges", KG_GGUF_STRING, &merges, err);
  if (rc) return rc;
  if (merges->count > INT32_MAX)
    return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.merges has %llu elements, more than %d", kg_gguf_path(gguf),
                   (unsigned long long)merges->count, INT32_MAX);
  size_t n_slots = 8, longest = 0;
  while (n_slots < merges->count + merges->count / 2) n_slots *= 2; /* bounded: count < 2^31 */
  for (uint64_t i = 0; i < merges->count; i++)
    if (merges->strings[i].size > longest) longest = merges->strings[i].size;
  b->slots = kg_alloc_array(n_slots, sizeof *b->slots);
  char *buffer = kg_alloc(longest);
  if (!b->slots || !buffer) {
    kg_free(buffer);
    return kg_fail_memory(err, n_slots * sizeof *b->slots, "merges");
  }
  for (size_t i = 0; i < n_slots; i++) b->slots[i].left = -1;
  b->mask = n_slots - 1;
  for (uint64_t i = 0; i < merges->count && !rc; i++)
    rc = add_merge(b, vocab, gguf, i, merges->strings[i], buffer, err);
  kg_free(buffer);
  return rc;
}

/* ---- opening ---- */

static int find_pre(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  char known[384], quoted[KG_QUOTE_MAX];
  const char *name = tokenizer->pre;
  bpe *b = tokenizer->state;
  if (name) b->pre = kg_pretokenizer_find(name, tokenizer->pre_size);
  if (b->pre) return KG_OK;
  return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: tokenizer.ggml.pre %s is not supported; known: %s", kg_gguf_path(gguf),
                 name ? kg_quote(quoted, name, tokenizer->pre_size) : "is absent, which",
                 kg_pretokenizer_names(known, sizeof known));
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  bpe *b = tokenizer->state = kg_alloc_array(1, sizeof *b);
  if (!b) return kg_fail_memory(err, sizeof *b, "a tokenizer");
  const int rc = find_pre(tokenizer, gguf, err);
  if (rc) return rc;
  tokenizer->add_bos = b->pre->add_bos;
  b->seed = tokenizer->vocab.seed;
  for (int byte = 0; byte < 256; byte++) {
    const char c = (char)byte;
    b->byte_ids[byte] = kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.texts, &c, 1);
  }
  return read_merges(b, &tokenizer->vocab, gguf, err);
}

static void close(void *state)
{
  bpe *b = state;
  if (!b) return;
  kg_free(b->slots);
  kg_free(b);
}

/* ---- encoding ---- */

static bool find_merge(const void *context, const kg_symbol *left, const kg_symbol *right, uint32_t *rank, int32_t *id)
{
  if (left->id < 0 || right->id < 0) return false;
  const merge_slot *slot = find_slot(context, left->id, right->id);
  if (slot->left < 0) return false;
  *rank = slot->rank;
  *id = slot->id;
  return true;
}

static int encode_word(const kg_tokenizer *tokenizer, const char *word, size_t size, kg_merger *merger, kg_tokens *out,
                       kg_error *err)
{
  const bpe *b = tokenizer->state;
  if (b->pre->whole_words) {
    const int32_t id = kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.texts, word, size);
    if (id >= 0) return kg_tokens_push(out, id, err);
  }
  int rc = kg_merger_reset(merger, size, err);
  if (rc) return rc;
  for (size_t i = 0; i < size; i++) kg_merger_add(merger, (uint32_t)i, 1, b->byte_ids[(unsigned char)word[i]]);
  if ((rc = kg_merger_run(merger, find_merge, b, err))) return rc;
  for (int32_t i = 0; i >= 0 && !rc; i = merger->symbols[i].next) {
    const kg_symbol *symbol = &merger->symbols[i];
    rc = symbol->id >= 0 ? kg_tokens_push(out, symbol->id, err)
                         : kg_tokenizer_push_byte(tokenizer, (unsigned char)word[symbol->begin], out, err);
  }
  return rc;
}

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  (void)after_special;
  const bpe *b = tokenizer->state;
  int rc = KG_OK;
  for (size_t pos = 0, end; pos < size && !rc; pos = end) {
    end = b->pre->next(text, size, pos);
    rc = encode_word(tokenizer, text + pos, end - pos, merger, out, err);
  }
  return rc;
}

const kg_tokenizer_kind kg_bpe_kind = {.model = "gpt2", .unmap = unmap, .bos = -1, .eos = -1, .unknown = -1,
                                       .add_bos = false, .open = open, .close = close, .encode = encode};
