/* spm.c - SentencePiece BPE (tokenizer.ggml.model "llama"): characters of the whole text, merged by score; what no
 * piece covers becomes bytes. The vocabulary writes a space as U+2581; kigo holds pieces and text with plain spaces, so
 * U+2581 in the text is a space to it, as it is to every tokenizer of this kind.
 *
 * The kind "gemma4" is the same with a list of merges instead of scores, and with lines: runs of newlines are words of
 * their own, which are one token where the vocabulary has it. */
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "merges.h"
#include "normalize.h"
#include "tokenizer.h"
#include "utf8.h"

typedef struct spm {
  uint32_t *ranks;  /* of each token, from its score: the best score has the lowest */
  kg_merges merges; /* instead of them in "gemma4" */
  kg_normalizer normalizer;
} spm;

/* ---- opening ---- */

/* Higher scores to lower numbers, in the order of the floats. */
static uint32_t rank_of(float score)
{
  uint32_t bits;
  /* bounded: a float */
  score += 0.0f; /* no negative zero */
  memcpy(&bits, &score, sizeof bits);
  return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

static int read_scores(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  spm *s = tokenizer->state;
  const kg_gguf_entry *scores;
  const int rc = kg_tokenizer_read_scores(tokenizer, gguf, &scores, err);
  if (rc) return rc;
  const int32_t size = tokenizer->vocab.size;
  s->ranks = kg_alloc_array((size_t)size, sizeof *s->ranks);
  if (!s->ranks) return kg_fail_memory(err, (size_t)size * sizeof *s->ranks, "scores");
  for (int32_t id = 0; id < size; id++) s->ranks[id] = rank_of((float)kg_gguf_entry_double(scores, (uint64_t)id));
  return KG_OK;
}

static int open_with(kg_tokenizer *tokenizer, const kg_gguf *gguf, bool space_prefix, kg_error *err)
{
  spm *s = tokenizer->state = kg_alloc_array(1, sizeof *s);
  if (!s) return kg_fail_memory(err, sizeof *s, "a tokenizer");
  tokenizer->space_prefix = space_prefix;
  int rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_space_prefix", &tokenizer->space_prefix, err);
  return rc ? rc : kg_normalizer_read(&s->normalizer, gguf, false, err);
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  const int rc = open_with(tokenizer, gguf, true, err);
  return rc ? rc : read_scores(tokenizer, gguf, err);
}

static int open_merges(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  const int rc = open_with(tokenizer, gguf, false, err);
  if (rc) return rc;
  spm *s = tokenizer->state;
  return kg_merges_read(&s->merges, &tokenizer->vocab, gguf, kg_unmap_spaces, err);
}

static void close(void *state)
{
  spm *s = state;
  if (!s) return;
  kg_free(s->ranks);
  kg_merges_deinit(&s->merges);
  kg_normalizer_deinit(&s->normalizer);
  kg_free(s);
}

/* ---- encoding ---- */

typedef struct merge_context {
  const kg_vocab *vocab;
  const spm *state;
  const char *text;
} merge_context;

static bool find_by_score(const void *context, const kg_symbol *left, const kg_symbol *right, uint32_t *rank,
                          int32_t *id)
{
  const merge_context *c = context;
  /* bounded: two parts of one text */
  *id = kg_vocab_find(c->vocab, &c->vocab->texts, c->text + left->begin, (size_t)left->size + right->size);
  if (*id < 0) return false;
  *rank = c->state->ranks[*id];
  return true;
}

static bool find_in_list(const void *context, const kg_symbol *left, const kg_symbol *right, uint32_t *rank,
                         int32_t *id)
{
  const merge_context *c = context;
  const bool is_pair = left->id >= 0 && right->id >= 0;
  const kg_merge_rule *rule = is_pair ? kg_merges_find(&c->state->merges, left->id, right->id) : NULL;
  if (!rule) return false;
  *id = rule->id;
  *rank = rule->rank;
  return true;
}

static int encode_word(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_merger *merger, kg_tokens *out,
                       kg_error *err)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  const spm *s = tokenizer->state;
  int rc = kg_merger_reset(merger, size, err);
  if (rc) return rc;
  for (size_t i = 0, length; i < size; i += length) {
    uint32_t c;
    if (kg_utf8_next(text + i, size - i, &c, &length) != KG_UTF8_VALID) length = 1;
    kg_merger_add(merger, (uint32_t)i, (uint32_t)length, kg_vocab_find(vocab, &vocab->texts, text + i, length));
  }
  const merge_context context = {vocab, s, text};
  if ((rc = kg_merger_run(merger, s->ranks ? find_by_score : find_in_list, &context, err))) return rc;
  for (int32_t i = 0; i >= 0 && !rc; i = merger->symbols[i].next) {
    const kg_symbol *symbol = &merger->symbols[i];
    if (symbol->id >= 0) {
      rc = kg_tokens_push(out, symbol->id, err);
      continue;
    }
    for (uint32_t k = 0; k < symbol->size && !rc; k++)
      /* bounded: inside of the text */
      rc = kg_tokenizer_push_byte(tokenizer, (unsigned char)text[symbol->begin + k], out, err);
  }
  return rc;
}

/* Lines and the newlines between them. */
static int encode_lines(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_merger *merger,
                        kg_tokens *out, kg_error *err)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  int rc = KG_OK;
  for (size_t begin = 0, end; begin < size && !rc; begin = end) {
    const bool is_newline = text[begin] == '\n';
    for (end = begin + 1; end < size && (text[end] == '\n') == is_newline; end++) /* bounded: begin < size */
      ;
    const int32_t id = is_newline ? kg_vocab_find(vocab, &vocab->texts, text + begin, end - begin) : -1;
    rc = id >= 0 ? kg_tokens_push(out, id, err)
                 : encode_word(tokenizer, text + begin, end - begin, merger, out, err);
  }
  return rc;
}

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  const spm *s = tokenizer->state;
  kg_bytes normal = {0};
  const bool prefix = tokenizer->space_prefix && after_special;
  int rc = kg_normalizer_run(&s->normalizer, text, size, prefix, false, &normal, err);
  if (!rc && normal.size > INT32_MAX)
    rc = kg_fail(err, KG_ERR_ARGUMENT, "the text becomes too long when it is normalized: %zu bytes", normal.size);
  if (!rc && normal.size)
    rc = (s->ranks ? encode_word : encode_lines)(tokenizer, normal.data, normal.size, merger, out, err);
  kg_bytes_deinit(&normal);
  return rc;
}

const kg_tokenizer_kind kg_spm_kind = {
    .model = "llama", .unmap = kg_unmap_spaces, .unmap_user = kg_unmap_spaces, .add_bos = true, .open = open,
    .close = close, .encode = encode, .texts = {[KG_BOS] = "<s>", [KG_EOS] = "</s>", [KG_UNK] = "<unk>"}};

const kg_tokenizer_kind kg_gemma4_kind = {
    .model = "gemma4", .unmap = kg_unmap_spaces, .unmap_user = kg_unmap_spaces, .add_bos = true, .open = open_merges,
    .close = close, .encode = encode,
    .texts = {[KG_BOS] = "<bos>", [KG_EOS] = "<eos>", [KG_UNK] = "<unk>", [KG_PAD] = "<pad>"}};
