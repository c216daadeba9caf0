/* unigram.c - SentencePiece unigram (tokenizer.ggml.model "t5"): of all ways to write the text with pieces, the one
 * whose scores sum up best (Viterbi). A character that no piece covers costs a penalty and becomes bytes, where the
 * vocabulary has them, or else the unknown token, one for a run of them. Sums are doubles: floats, as SentencePiece
 * takes them, lose all differences between scores on long texts. */
#include <math.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "normalize.h"
#include "tokenizer.h"
#include "utf8.h"

typedef struct unigram {
  kg_trie pieces; /* NORMAL ones */
  float *scores;  /* of each token */
  double unknown_score;
  kg_normalizer normalizer;
  bool has_bytes; /* byte tokens, so that no text is unknown */
} unigram;

static const double unknown_penalty = 10; /* below the worst piece, as in training */

/* ---- opening ---- */

static int read_scores(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  unigram *u = tokenizer->state;
  const kg_vocab *vocab = &tokenizer->vocab;
  const kg_gguf_entry *scores;
  const int rc = kg_tokenizer_read_scores(tokenizer, gguf, &scores, err);
  if (rc) return rc;
  u->scores = kg_alloc_array((size_t)vocab->size, sizeof *u->scores);
  if (!u->scores) return kg_fail_memory(err, (size_t)vocab->size * sizeof *u->scores, "scores");
  float worst = 0;
  bool is_first = true;
  for (int32_t id = 0; id < vocab->size; id++) {
    const float score = u->scores[id] = (float)kg_gguf_entry_double(scores, (uint64_t)id);
    if (vocab->types[id] != KG_TOKEN_NORMAL) continue;
    if (!isfinite(score))
      return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.scores[%d] is not finite", kg_gguf_path(gguf), id);
    if (is_first || score < worst) worst = score;
    is_first = false;
  }
  u->unknown_score = (double)worst - unknown_penalty;
  return KG_OK;
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  unigram *u = tokenizer->state = kg_alloc_array(1, sizeof *u);
  if (!u) return kg_fail_memory(err, sizeof *u, "a tokenizer");
  tokenizer->space_prefix = true;
  int rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_space_prefix", &tokenizer->space_prefix, err);
  if (!rc) rc = kg_normalizer_read(&u->normalizer, gguf, true, err);
  if (!rc) rc = read_scores(tokenizer, gguf, err);
  if (!rc) rc = kg_vocab_build_trie(&tokenizer->vocab, 1u << KG_TOKEN_NORMAL, &u->pieces, err);
  for (int byte = 0; byte < 256; byte++) u->has_bytes = u->has_bytes || tokenizer->vocab.byte_ids[byte] >= 0;
  return rc;
}

static void close(void *state)
{
  unigram *u = state;
  if (!u) return;
  kg_trie_deinit(&u->pieces);
  kg_free(u->scores);
  kg_normalizer_deinit(&u->normalizer);
  kg_free(u);
}

/* ---- encoding ---- */

/* The best way to a place in the text. */
typedef struct arrival {
  double score;
  int32_t id;    /* last token; -1: a character that no piece covers */
  uint32_t size; /* its bytes; 0: nobody has come here yet */
} arrival;

static void offer(arrival *at, double score, int32_t id, size_t size)
{
  if (!at->size || score > at->score) *at = (arrival){score, id, (uint32_t)size};
}

/* arrivals: size + 1 of them, zeroed. Pieces are whole characters, so that every start of one is reached. */
static void find_best(const unigram *u, const char *text, size_t size, arrival *arrivals)
{
  for (size_t begin = 0, length; begin < size; begin += length) {
    uint32_t c;
    const double score = arrivals[begin].score;
    bool is_covered = false;
    if (kg_utf8_next(text + begin, size - begin, &c, &length) != KG_UTF8_VALID) length = 1;
    uint32_t node = 0;
    for (size_t end = begin; end < size;) {
      node = kg_trie_step(&u->pieces, node, (unsigned char)text[end++]);
      if (!node) break;
      const int32_t id = u->pieces.nodes[node].id;
      if (id < 0) continue;
      offer(&arrivals[end], score + (double)u->scores[id], id, end - begin); /* bounded: doubles */
      is_covered = is_covered || end - begin == length;
    }
    if (!is_covered)
      offer(&arrivals[begin + length], score + u->unknown_score, -1, length); /* bounded: in the text; doubles */
  }
}

/* Turn the way around: afterwards arrivals[i] is the token that begins at i. */
static void reverse(arrival *arrivals, size_t size)
{
  arrival next = arrivals[size];
  for (size_t end = size; end;) {
    const size_t begin = end - next.size;
    const arrival before = arrivals[begin];
    arrivals[begin] = next;
    next = before;
    end = begin;
  }
}

static int push_way(const kg_tokenizer *tokenizer, const char *text, size_t size, const arrival *arrivals,
                    kg_tokens *out, kg_error *err)
{
  const unigram *u = tokenizer->state;
  bool was_unknown = false;
  int rc = KG_OK;
  for (size_t i = 0; i < size && !rc; i += arrivals[i].size) { /* bounded: inside of the text */
    const int32_t id = arrivals[i].id;
    if (id >= 0)
      rc = kg_tokens_push(out, id, err);
    else if (!u->has_bytes && !was_unknown)
      rc = kg_tokenizer_push_unknown(tokenizer, text + i, arrivals[i].size, out, err);
    else
      for (uint32_t k = 0; u->has_bytes && k < arrivals[i].size && !rc; k++)
        rc = kg_tokenizer_push_byte(tokenizer, (unsigned char)text[i + k], out, err); /* bounded: inside of the text */
    was_unknown = id < 0;
  }
  return rc;
}

static int encode_normal(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_tokens *out, kg_error *err)
{
  size_t n;
  arrival *arrivals = kg_add_size(size, 1, &n) ? kg_alloc_array(n, sizeof *arrivals) : NULL;
  if (!arrivals) return kg_fail_memory(err, size * sizeof *arrivals, "encoding");
  find_best(tokenizer->state, text, size, arrivals);
  reverse(arrivals, size);
  const int rc = push_way(tokenizer, text, size, arrivals, out, err);
  kg_free(arrivals);
  return rc;
}

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  (void)merger;
  const unigram *u = tokenizer->state;
  kg_bytes normal = {0};
  const bool prefix = tokenizer->space_prefix && after_special;
  int rc = kg_normalizer_run(&u->normalizer, text, size, prefix, !u->has_bytes, &normal, err);
  if (!rc && normal.size) rc = encode_normal(tokenizer, normal.data, normal.size, out, err);
  kg_bytes_deinit(&normal);
  return rc;
}

const kg_tokenizer_kind kg_unigram_kind = {
    .model = "t5", .unmap = kg_unmap_spaces, .unmap_user = kg_unmap_spaces, .add_eos = true, .open = open,
    .close = close, .encode = encode,
    .texts = {[KG_BOS] = "<s>", [KG_EOS] = "</s>", [KG_UNK] = "<unk>", [KG_PAD] = "<pad>", [KG_MASK] = "<mask>"}};
