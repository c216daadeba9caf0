/* bpe.c - byte-level BPE (tokenizer.ggml.model "gpt2"): words of bytes, merged in the order of the file's list. Most
 * words are one token, or stood in the text before: the vocabulary's index and a small cache spare their merging. Both
 * give what merging would. */
#include <stdatomic.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "merges.h"
#include "nfc.h"
#include "pretokenize.h"
#include "tokenizer.h"
#include "utf8.h"

#define NO_RULE UINT32_MAX /* there are fewer slots */

/* Is a token what merging its bytes gives? Found out when its text is first a word; every thread finds the same. */
enum { UNKNOWN, WHOLE, IN_PARTS };

typedef struct bpe {
  const kg_pretokenizer *pre;
  kg_splitter splitter;
  int32_t byte_ids[256]; /* the symbol that a byte starts as; -1: none */
  kg_merges merges;
  uint64_t seed;
  uint32_t *byte_rules;       /* the slot of two bytes' rule, or NO_RULE: [first * 256 + second] */
  _Atomic uint8_t *wholeness; /* of each token */
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

/* ---- opening ---- */

static int find_pre(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  char known[1280], quoted[KG_QUOTE_MAX];
  static const char by_default[] = "default";
  const char *name = tokenizer->pre ? tokenizer->pre : by_default;
  const size_t size = tokenizer->pre ? tokenizer->pre_size : sizeof by_default - 1;
  bpe *b = tokenizer->state;
  b->pre = kg_pretokenizer_find(name, size);
  if (b->pre) return kg_splitter_init(&b->splitter, b->pre, false, err);
  return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: tokenizer.ggml.pre %s is not known; known: %s", kg_gguf_path(gguf),
                 kg_quote(quoted, name, size), kg_pretokenizer_names(known, sizeof known));
}

/* Pairs of bytes are looked up more often than all others. */
static int index_bytes(bpe *b, int32_t n_tokens, kg_error *err)
{
  enum { N_PAIRS = 256 * 256 };
  b->byte_rules = kg_alloc_array(N_PAIRS, sizeof *b->byte_rules);
  b->wholeness = kg_alloc_array((size_t)n_tokens, sizeof *b->wholeness);
  if (!b->byte_rules || !b->wholeness) return kg_fail_memory(err, N_PAIRS * sizeof *b->byte_rules, "a tokenizer");
  for (size_t pair = 0; pair < N_PAIRS; pair++) {
    const int32_t left = b->byte_ids[pair / 256], right = b->byte_ids[pair % 256];
    const kg_merge_rule *rule = left >= 0 && right >= 0 ? kg_merges_find(&b->merges, left, right) : NULL;
    b->byte_rules[pair] = rule ? (uint32_t)(rule - b->merges.slots) : NO_RULE;
  }
  return KG_OK;
}

static int open(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  bpe *b = tokenizer->state = kg_alloc_array(1, sizeof *b);
  if (!b) return kg_fail_memory(err, sizeof *b, "a tokenizer");
  int rc = find_pre(tokenizer, gguf, err);
  if (rc) return rc;
  tokenizer->add_bos = (b->pre->flags & KG_PRE_ADD_BOS) != 0;
  tokenizer->normalize = tokenizer->normalize && b->pre->flags & KG_PRE_NFC;
  b->seed = tokenizer->vocab.seed;
  for (int byte = 0; byte < 256; byte++) {
    const char c = (char)byte;
    b->byte_ids[byte] = kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.texts, &c, 1);
  }
  rc = kg_merges_read(&b->merges, &tokenizer->vocab, gguf, unmap, err);
  return rc ? rc : index_bytes(b, tokenizer->vocab.size, err);
}

static void close(void *state)
{
  bpe *b = state;
  if (!b) return;
  kg_splitter_deinit(&b->splitter);
  kg_merges_deinit(&b->merges);
  kg_free(b->byte_rules);
  kg_free(b->wholeness);
  kg_free(b);
}

/* ---- merging a word ---- */

static int push(kg_tokens *out, int32_t id, kg_error *err)
{
  if (out->n == out->capacity) return kg_tokens_push(out, id, err);
  out->ids[out->n++] = id;
  return KG_OK;
}

/* Long words: with a heap. */
static bool find_symbols_merge(const void *context, const kg_symbol *left, const kg_symbol *right, uint32_t *rank,
                               int32_t *id)
{
  const kg_merge_rule *slot = left->id >= 0 && right->id >= 0 ? kg_merges_find(context, left->id, right->id) : NULL;
  if (!slot) return false;
  *rank = slot->rank;
  *id = slot->id;
  return true;
}

static int merge_long(const kg_tokenizer *tokenizer, const char *word, size_t size, kg_merger *merger, kg_tokens *out,
                      kg_error *err)
{
  const bpe *b = tokenizer->state;
  int rc = kg_merger_reset(merger, size, err);
  if (rc) return rc;
  for (size_t i = 0; i < size; i++) kg_merger_add(merger, (uint32_t)i, 1, b->byte_ids[(unsigned char)word[i]]);
  if ((rc = kg_merger_run(merger, find_symbols_merge, &b->merges, err))) return rc;
  for (int32_t i = 0; i >= 0 && !rc; i = merger->symbols[i].next) {
    const kg_symbol *symbol = &merger->symbols[i];
    rc = symbol->id >= 0 ? push(out, symbol->id, err)
                         : kg_tokenizer_push_byte(tokenizer, (unsigned char)word[symbol->begin], out, err);
  }
  return rc;
}

enum { SHORT_WORD = 48 }; /* up to so many bytes looking at all pairs is faster than a heap */

/* The symbols of a short word, and behind each what it and the next one merge to. */
typedef struct parts {
  size_t n;
  int32_t ids[SHORT_WORD];    /* below 0: ~byte of a byte without a token */
  int32_t merged[SHORT_WORD]; /* [i]: of i and i + 1 */
  uint32_t ranks[SHORT_WORD]; /* UINT32_MAX: they do not merge */
} parts;

static void set_pair(parts *p, size_t i, const kg_merge_rule *slot)
{
  p->ranks[i] = slot ? slot->rank : UINT32_MAX;
  p->merged[i] = slot ? slot->id : -1;
}

static void look_up_pair(const bpe *b, parts *p, size_t i)
{
  const bool is_pair = i + 1 < p->n && p->ids[i] >= 0 && p->ids[i + 1] >= 0; /* bounded: i < n */
  set_pair(p, i, is_pair ? kg_merges_find(&b->merges, p->ids[i], p->ids[i + 1]) : NULL); /* bounded: i < n */
}

static void merge_short(const bpe *b, parts *p, const char *word, size_t size)
{
  const unsigned char *bytes = (const unsigned char *)word;
  p->n = size;
  for (size_t i = 0; i < size; i++) {
    const int32_t id = b->byte_ids[bytes[i]];
    p->ids[i] = id >= 0 ? id : ~(int32_t)bytes[i];
    const uint32_t rule = i + 1 < size ? b->byte_rules[bytes[i] * 256u + bytes[i + 1]] : NO_RULE; /* bounded: bytes */
    set_pair(p, i, rule != NO_RULE ? &b->merges.slots[rule] : NULL);
  }
  for (;;) {
    size_t best = 0;
    for (size_t i = 1; i < p->n; i++)
      if (p->ranks[i] < p->ranks[best]) best = i;
    if (p->ranks[best] == UINT32_MAX) return;
    p->ids[best] = p->merged[best];
    p->n--;
    for (size_t i = best + 1; i < p->n; i++) { /* bounded: best < n */
      p->ids[i] = p->ids[i + 1];               /* bounded: one less than there were */
      p->merged[i] = p->merged[i + 1];         /* bounded: as above */
      p->ranks[i] = p->ranks[i + 1];           /* bounded: as above */
    }
    look_up_pair(b, p, best);
    if (best) look_up_pair(b, p, best - 1);
  }
}

static int merge_word(const kg_tokenizer *tokenizer, const char *word, size_t size, kg_merger *merger, kg_tokens *out,
                      kg_error *err)
{
  if (size > SHORT_WORD) return merge_long(tokenizer, word, size, merger, out, err);
  parts p;
  merge_short(tokenizer->state, &p, word, size);
  int rc = KG_OK;
  for (size_t i = 0; i < p.n && !rc; i++)
    rc = p.ids[i] >= 0 ? push(out, p.ids[i], err)
                       : kg_tokenizer_push_byte(tokenizer, (unsigned char)~p.ids[i], out, err);
  return rc;
}

/* ---- the cache of a text's words ---- */

/* What identifies a word: all of it up to 16 bytes, beyond that its ends. */
typedef struct word_key {
  uint64_t head, tail;
} word_key;

enum { SMALL_WORD = 16, SMALL_IDS = 3 };

/* A word that stood earlier in the text: one of up to SMALL_WORD bytes and SMALL_IDS ids with its ids, others with the
 * places of the word in the text and of its ids in those of the text. */
typedef struct seen_word {
  word_key key;
  union {
    int32_t ids[SMALL_IDS];
    struct {
      uint32_t pos, first;
    } at;
  } is;
  uint16_t size, n; /* size 0: free */
} seen_word;

typedef struct word_cache {
  seen_word *slots; /* each word has one place; a later one takes it over */
  size_t mask;
  const char *text;
  size_t first; /* where the text's ids begin */
} word_cache;

enum { CACHED_WORD = 64, CACHE_SLOTS_MAX = 65536, CACHE_SLOT_BYTES = 64 /* a slot for so many bytes of text */ };

static word_key key_of(const char *word, size_t size)
{
  word_key key = {0};
  if (size >= 8) { /* head and tail may overlap */
    memcpy(&key.head, word, 8);
    memcpy(&key.tail, word + size - 8, 8);
    return key;
  }
  if (size >= 4) {
    memcpy(&key.head, word, 4);
    memcpy(&key.tail, word + size - 4, 4);
    return key;
  }
  const unsigned char *bytes = (const unsigned char *)word;
  return (word_key){bytes[0], (uint64_t)bytes[size / 2] << 8 | bytes[size - 1]}; /* bounded: two bytes */
}

/* Texts of a few words need none. */
static int cache_init(word_cache *cache, size_t text_bytes, kg_error *err)
{
  size_t n = 1;
  while (n < CACHE_SLOTS_MAX && n < text_bytes / CACHE_SLOT_BYTES) n *= 2; /* bounded: CACHE_SLOTS_MAX */
  if (n < 16) return KG_OK;
  cache->slots = kg_alloc_array(n, sizeof *cache->slots);
  if (!cache->slots) return kg_fail_memory(err, n * sizeof *cache->slots, "encoding");
  cache->mask = n - 1;
  return KG_OK;
}

static seen_word *cache_slot(const word_cache *cache, const bpe *b, word_key key)
{
  return &cache->slots[kg_vocab_hash(b->seed, key.head, key.tail) & cache->mask];
}

static bool is_small(size_t size, size_t n) { return size <= SMALL_WORD && n <= SMALL_IDS; }

static bool is_seen(const word_cache *cache, const seen_word *seen, word_key key, const char *word, size_t size)
{
  return seen->size == size && seen->key.head == key.head && seen->key.tail == key.tail &&
         (size <= SMALL_WORD || !memcmp(cache->text + seen->is.at.pos, word, size));
}

/* Append the ids that the word had before. */
static int repeat_ids(const word_cache *cache, const seen_word *seen, kg_tokens *out, kg_error *err)
{
  const bool small = is_small(seen->size, seen->n);
  int rc = KG_OK;
  for (size_t i = 0; i < seen->n && !rc; i++)
    rc = push(out, small ? seen->is.ids[i] : out->ids[cache->first + seen->is.at.first + i], err); /* bounded: in ids */
  return rc;
}

/* Remember the word at pos, whose ids begin at `first` and end the ids. */
static void remember(const word_cache *cache, seen_word *slot, word_key key, size_t pos, size_t size, size_t first,
                     const kg_tokens *out)
{
  const size_t n = out->n - first;
  *slot = (seen_word){.key = key, .size = (uint16_t)size, .n = (uint16_t)n};
  if (is_small(size, n)) {
    for (size_t i = 0; i < n; i++) slot->is.ids[i] = out->ids[first + i]; /* bounded: in ids */
  } else {
    slot->is.at.pos = (uint32_t)pos;
    slot->is.at.first = (uint32_t)(first - cache->first);
  }
}

/* ---- encoding ---- */

/* Append the ids of a word that is not in the cache. */
static int encode_word(const kg_tokenizer *tokenizer, const char *word, size_t size, kg_merger *merger, kg_tokens *out,
                       kg_error *err)
{
  const bpe *b = tokenizer->state;
  const int32_t id = kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.texts, word, size);
  const uint8_t known = id >= 0 ? atomic_load_explicit(&b->wholeness[id], memory_order_relaxed) : IN_PARTS;
  if (id >= 0 && (b->pre->flags & KG_PRE_WHOLE_WORDS || known == WHOLE)) return push(out, id, err);
  const size_t first = out->n;
  const int rc = merge_word(tokenizer, word, size, merger, out, err);
  if (known == UNKNOWN && !rc) {
    const bool is_whole = out->n - first == 1 && out->ids[first] == id;
    atomic_store_explicit(&b->wholeness[id], is_whole ? WHOLE : IN_PARTS, memory_order_relaxed);
  }
  return rc;
}

/* Words whose places in the cache are on their way while the ones before are encoded. */
enum { WORDS_AHEAD = 16 };

typedef struct ahead {
  size_t end;
  word_key key;
  seen_word *slot; /* NULL: not for the cache */
} ahead;

static int look_ahead(const bpe *b, kg_split *split, const word_cache *cache, size_t pos, size_t size, ahead *words,
                      size_t *n_words, kg_error *err)
{
  size_t n = 0;
  for (size_t end = pos; n < WORDS_AHEAD && pos < size; pos = end, n++) {
    const int rc = kg_split_move(split, &end, err);
    if (rc) return rc;
    ahead *word = &words[n];
    word->end = end;
    word->slot = NULL;
    if (!cache->slots || end - pos > CACHED_WORD) continue;
    word->key = key_of(cache->text + pos, end - pos);
    word->slot = cache_slot(cache, b, word->key);
    __builtin_prefetch(word->slot);
  }
  *n_words = n;
  return KG_OK;
}

static int encode_words(const kg_tokenizer *tokenizer, kg_split *split, const word_cache *cache, size_t size,
                        kg_merger *merger, kg_tokens *out, kg_error *err)
{
  int rc = KG_OK;
  for (size_t pos = 0; pos < size && !rc;) {
    ahead words[WORDS_AHEAD];
    size_t n_words;
    rc = look_ahead(tokenizer->state, split, cache, pos, size, words, &n_words, err);
    for (size_t i = 0; !rc && i < n_words; pos = words[i++].end) {
      const char *word = cache->text + pos;
      const size_t n = words[i].end - pos, first = out->n;
      seen_word *slot = words[i].slot;
      if (slot && is_seen(cache, slot, words[i].key, word, n)) {
        rc = repeat_ids(cache, slot, out, err);
        continue;
      }
      rc = encode_word(tokenizer, word, n, merger, out, err);
      if (slot && !rc) remember(cache, slot, words[i].key, pos, n, first, out);
    }
  }
  return rc;
}

static int encode_normal(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_merger *merger,
                         kg_tokens *out, kg_error *err)
{
  const bpe *b = tokenizer->state;
  kg_split split = {0};
  word_cache cache = {.text = text, .first = out->n};
  int rc = kg_split_begin(&split, &b->splitter, text, size, err);
  if (!rc) rc = cache_init(&cache, size, err);
  if (!rc) rc = encode_words(tokenizer, &split, &cache, size, merger, out, err);
  kg_split_end(&split);
  kg_free(cache.slots);
  return rc;
}

static int encode(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                  kg_tokens *out, kg_error *err)
{
  (void)after_special;
  if (!tokenizer->normalize || !kg_nfc_may_change(text, size))
    return encode_normal(tokenizer, text, size, merger, out, err);
  kg_bytes normal = {0};
  int rc = kg_nfc_append(text, size, &normal, err);
  if (!rc && normal.size >= INT32_MAX) rc = kg_fail(err, KG_ERR_ARGUMENT, "the text is too long in its normal form");
  if (!rc) rc = encode_normal(tokenizer, normal.data, normal.size, merger, out, err);
  kg_bytes_deinit(&normal);
  return rc;
}

const kg_tokenizer_kind kg_bpe_kind = {
    .model = "gpt2", .unmap = unmap, .open = open, .close = close, .encode = encode};
