/* wordpiece.c - WordPiece (tokenizer.ggml.model "bert"): words of BERT's BasicTokenizer, each written with the longest
 * pieces from the left, or as one unknown token. GGUF files hold the pieces that begin words with U+2581 before them
 * and the others bare; kigo holds a plain space.
 *
 * Oracle: BertNormalizer and BertPreTokenizer of Hugging Face. Deliberate differences: our Unicode is newer (new
 * punctuation parts words); the range of CJK ideographs is BERT's own (U+2B820 on, not U+2B920). */
#include <string.h>

#include <utf8proc.h>

#include "alloc.h"
#include "error.h"
#include "normalize.h"
#include "tokenizer.h"
#include "unicode.h"
#include "utf8.h"

enum { WORD_MAX = 100 /* characters; longer words are unknown */ };

typedef struct wordpiece {
  kg_trie pieces;
  bool lower, strip_accents;
} wordpiece;

/* ---- opening ---- */

static bool has_letter(const kg_vocab *vocab, uint32_t c)
{
  char piece[5] = {' '};
  /* bounded: an address; a letter has 4 bytes at most */
  const size_t n = (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)piece + 1);
  const char *letter = &piece[1];
  if (kg_vocab_find(vocab, &vocab->texts, letter, n) >= 0) return true;
  return kg_vocab_find(vocab, &vocab->texts, piece, n + 1) >= 0; /* bounded: at most 5 bytes */
}

/* Files before 2026 do not say what the text was like. The alphabet of the vocabulary does: after lower-casing there
 * are no capitals in it, after stripping accents no letters with accents. */
static void guess_normalization(wordpiece *w, const kg_vocab *vocab)
{
  int n_capitals = 0;
  for (uint32_t c = 'A'; c <= 'Z'; c++) n_capitals += has_letter(vocab, c); /* bounded: 26 */
  w->lower = n_capitals <= 13;
  w->strip_accents = w->lower;
  for (uint32_t c = 0xE0; c <= 0xFF; c++) {
    utf8proc_int32_t parts[4];
    const bool has_accent = utf8proc_decompose_char((utf8proc_int32_t)c, parts, 4, UTF8PROC_DECOMPOSE, NULL) > 1;
    if (has_accent && has_letter(vocab, c)) w->strip_accents = false;
  }
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  static const char lower_key[] = "tokenizer.ggml.normalizer.lowercase";
  wordpiece *w = tokenizer->state = kg_alloc_array(1, sizeof *w);
  if (!w) return kg_fail_memory(err, sizeof *w, "a tokenizer");
  tokenizer->space_prefix = true;
  guess_normalization(w, &tokenizer->vocab);
  int rc = kg_tokenizer_read_flag(gguf, lower_key, &w->lower, err);
  if (kg_gguf_find(gguf, lower_key)) w->strip_accents = w->lower; /* BERT's rule where only the one is said */
  if (!rc) rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.normalizer.strip_accents", &w->strip_accents, err);
  return rc ? rc : kg_vocab_build_trie(&tokenizer->vocab, 1u << KG_TOKEN_NORMAL, &w->pieces, err);
}

static void close(void *state)
{
  wordpiece *w = state;
  if (!w) return;
  kg_trie_deinit(&w->pieces);
  kg_free(w);
}

/* Converters mark user-defined tokens as if they were words. */
static size_t unmap_user(const char *text, size_t n, char *out)
{
  const size_t used = kg_unmap_spaces(text, n, out), skip = used && out[0] == ' ';
  memmove(out, out + skip, used - skip);
  return used - skip;
}

/* ---- words to tokens ---- */

/* A word grows here behind the space that marks its start. */
typedef struct speller {
  const kg_tokenizer *tokenizer;
  char word[1 + WORD_MAX * 4];
  size_t size, n_chars; /* n_chars may pass WORD_MAX; the bytes stop there */
  kg_tokens *out;
} speller;

static int finish_word(speller *s, kg_error *err)
{
  const wordpiece *w = s->tokenizer->state;
  const size_t n_before = s->out->n, n_chars = s->n_chars;
  s->n_chars = 0;
  if (!n_chars) return KG_OK;
  bool is_known = n_chars <= WORD_MAX;
  for (size_t at = 0, length; at < s->size && is_known; at += length) { /* bounded: inside of the word */
    const int32_t id = kg_trie_longest(&w->pieces, s->word + at, s->size - at, &length);
    is_known = id >= 0 && (at || length > 1); /* a bare space is no piece of a word */
    const int rc = is_known ? kg_tokens_push(s->out, id, err) : KG_OK;
    if (rc) return rc;
  }
  if (is_known) return KG_OK;
  s->out->n = n_before;
  return kg_tokenizer_push_unknown(s->tokenizer, s->word + 1, s->size - 1, s->out, err);
}

static void add_char(speller *s, uint32_t c)
{
  if (!s->n_chars) s->size = 1;
  s->word[0] = ' ';
  if (s->n_chars++ >= WORD_MAX) return;
  /* bounded: WORD_MAX characters of at most 4 bytes have room */
  s->size += (size_t)utf8proc_encode_char((utf8proc_int32_t)c, (utf8proc_uint8_t *)s->word + s->size);
}

/* ---- text to words ---- */

static bool is_ideograph(uint32_t c)
{
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
         (c >= 0x2A700 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

typedef enum char_class { ORDINARY, SPACE, PUNCTUATION, NOISE } char_class;

static char_class classify(uint32_t c)
{
  /* bounded: constants */
  enum { CONTROLS = 1 << 26 | 1 << 27 | 1 << 29 /* Cc Cf Co */, PUNCTUATIONS = 0x7F << 12 /* Pc to Po */ };
  const uint32_t category = kg_unicode_category(c);
  if (c < 0x80) {
    if (c == '\t' || c == '\n' || c == '\r' || c == ' ') return SPACE;
    if (c < ' ' || c == 0x7F) return NOISE;
    return category & (KG_LETTER | KG_DIGIT) ? ORDINARY : PUNCTUATION; /* symbols too */
  }
  if (c == 0x85 || c == 0xFFFD || category & CONTROLS) return NOISE;
  if (category & KG_WHITE) return SPACE;
  return category & PUNCTUATIONS ? PUNCTUATION : ORDINARY;
}

/* A character in its last form. */
static int add_normal(speller *s, uint32_t c, kg_error *err)
{
  const bool stands_alone = classify(c) == PUNCTUATION;
  int rc = stands_alone ? finish_word(s, err) : KG_OK;
  if (rc) return rc;
  add_char(s, c);
  return stands_alone ? finish_word(s, err) : KG_OK;
}

static int add_lowered(speller *s, uint32_t c, kg_error *err)
{
  const wordpiece *w = s->tokenizer->state;
  if (!w->lower) return add_normal(s, c, err);
  if (c == 0x130) { /* the one capital whose small form is two characters */
    const int rc = add_normal(s, 'i', err);
    return rc ? rc : add_normal(s, 0x307, err);
  }
  return add_normal(s, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c), err);
}

static int add_stripped(speller *s, uint32_t c, kg_error *err)
{
  enum { NONSPACING = 1 << 6 /* Mn */ };
  const wordpiece *w = s->tokenizer->state;
  utf8proc_int32_t parts[8]; /* a canonical decomposition has 4 at most */
  if (!w->strip_accents || c < 0x80) return add_lowered(s, c, err);
  const utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, parts, 8, UTF8PROC_DECOMPOSE, NULL);
  int rc = KG_OK;
  for (utf8proc_ssize_t i = 0; i < n && i < 8 && !rc; i++)
    if (!(kg_unicode_category((uint32_t)parts[i]) & NONSPACING)) rc = add_lowered(s, (uint32_t)parts[i], err);
  return rc;
}

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  (void)after_special, (void)merger;
  speller s = {.tokenizer = tokenizer, .out = out};
  int rc = KG_OK;
  for (size_t i = 0, length; i < size && !rc; i += length) {
    uint32_t c;
    if (kg_utf8_next(text + i, size - i, &c, &length) != KG_UTF8_VALID) continue; /* as U+FFFD: noise */
    const char_class class = classify(c);
    const bool stands_alone = is_ideograph(c);
    if (class == NOISE) continue;
    if (class == SPACE || stands_alone) rc = finish_word(&s, err);
    if (class != SPACE && !rc) rc = add_stripped(&s, c, err);
    if (stands_alone && !rc) rc = finish_word(&s, err);
  }
  return rc ? rc : finish_word(&s, err);
}

const kg_tokenizer_kind kg_wordpiece_kind = {
    .model = "bert", .unmap = kg_unmap_spaces, .unmap_user = unmap_user, .add_bos = true, .add_sep = true,
    .spaced_words = true, .open = open, .close = close, .encode = encode,
    .texts = {[KG_CLS] = "[CLS]", [KG_SEP] = "[SEP]", [KG_UNK] = "[UNK]", [KG_PAD] = "[PAD]",
              [KG_MASK] = "[MASK]"}};
