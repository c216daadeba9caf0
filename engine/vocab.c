#include "vocab.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

typedef struct kg_text_slot {
  uint32_t tag; /* upper half of the hash: most mismatches end here */
  int32_t id;   /* -1: free */
} kg_text_slot;

/* ---- reading ---- */

/* "<0x0A>": exactly that form, as SentencePiece writes it. */
static int parse_byte(kg_string text)
{
  if (text.size != 6 || memcmp(text.data, "<0x", 3) || text.data[5] != '>') return -1;
  int value = 0;
  for (int i = 3; i < 5; i++) {
    const char c = text.data[i];
    if (c >= '0' && c <= '9')
      value = value * 16 + (c - '0'); /* bounded: two digits */
    else if (c >= 'A' && c <= 'F')
      value = value * 16 + (c - 'A' + 10); /* bounded: two digits */
    else
      return -1;
  }
  return value;
}

static int read_types(kg_vocab *vocab, const kg_gguf *gguf, kg_error *err)
{
  static const char key[] = "tokenizer.ggml.token_type";
  vocab->types = kg_alloc((size_t)vocab->size);
  if (!vocab->types) return kg_fail_memory(err, (size_t)vocab->size, "token types");
  memset(vocab->types, KG_TOKEN_NORMAL, (size_t)vocab->size);
  if (!kg_gguf_find(gguf, key)) return KG_OK;

  const kg_gguf_entry *entry;
  const int rc = kg_gguf_get_array(gguf, key, KG_GGUF_I32, &entry, err);
  if (rc) return rc;
  if (entry->count != (uint64_t)vocab->size)
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s has %llu elements for %d tokens", kg_gguf_path(gguf), key,
                   (unsigned long long)entry->count, vocab->size);
  for (int32_t id = 0; id < vocab->size; id++) {
    const int64_t type = kg_gguf_entry_int(entry, (uint64_t)id);
    if (type < KG_TOKEN_UNDEFINED || type > KG_TOKEN_BYTE)
      return kg_fail(err, KG_ERR_FORMAT, "%s: %s[%d] is %lld, outside %d to %d", kg_gguf_path(gguf), key, id,
                     (long long)type, KG_TOKEN_UNDEFINED, KG_TOKEN_BYTE);
    vocab->types[id] = (uint8_t)type;
  }
  return KG_OK;
}

static int allocate_pieces(kg_vocab *vocab, const kg_gguf *gguf, const kg_gguf_entry *tokens, kg_error *err)
{
  size_t total = 0;
  for (uint64_t i = 0; i < tokens->count; i++)
    if (!kg_add_size(total, tokens->strings[i].size, &total) || total > UINT32_MAX)
      return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: tokenizer.ggml.tokens has more than 4 GiB of text",
                     kg_gguf_path(gguf));
  vocab->bytes = kg_alloc(total);
  vocab->offsets = kg_alloc_array((size_t)vocab->size + 1, sizeof *vocab->offsets); /* bounded: below INT32_MAX */
  if (!vocab->bytes || !vocab->offsets) return kg_fail_memory(err, total, "the vocabulary");
  return KG_OK;
}

int kg_vocab_read(kg_vocab *vocab, const kg_gguf *gguf, kg_unmap unmap, kg_unmap unmap_user, kg_error *err)
{
  const kg_gguf_entry *tokens;
  int rc = kg_gguf_get_array(gguf, "tokenizer.ggml.tokens", KG_GGUF_STRING, &tokens, err);
  if (rc) return rc;
  if (tokens->count < 1 || tokens->count > INT32_MAX - 1)
    return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.tokens has %llu elements, outside 1 to %d",
                   kg_gguf_path(gguf), (unsigned long long)tokens->count, INT32_MAX - 1);
  vocab->size = (int32_t)tokens->count;
  if ((rc = read_types(vocab, gguf, err))) return rc;
  if ((rc = allocate_pieces(vocab, gguf, tokens, err))) return rc;

  for (int i = 0; i < 256; i++) vocab->byte_ids[i] = -1;
  uint32_t used = 0;
  for (int32_t id = 0; id < vocab->size; id++) {
    const kg_string text = tokens->strings[id];
    const kg_token_type type = vocab->types[id];
    size_t n = text.size;
    if (type == KG_TOKEN_BYTE) {
      const int byte = parse_byte(text);
      if (byte < 0) {
        char quoted[KG_QUOTE_MAX];
        return kg_fail(err, KG_ERR_FORMAT, "%s: token %d is a byte but spells %s, not <0xHH>", kg_gguf_path(gguf), id,
                       kg_quote(quoted, text.data, text.size));
      }
      vocab->bytes[used] = (char)byte;
      n = 1;
      if (vocab->byte_ids[byte] < 0) vocab->byte_ids[byte] = id;
    } else if (type == KG_TOKEN_NORMAL || type == KG_TOKEN_UNUSED || type == KG_TOKEN_UNDEFINED) {
      n = unmap(text.data, text.size, vocab->bytes + used);
    } else if (type == KG_TOKEN_USER_DEFINED && unmap_user) {
      n = unmap_user(text.data, text.size, vocab->bytes + used);
    } else if (n) {
      memcpy(vocab->bytes + used, text.data, n);
    }
    used += (uint32_t)n; /* bounded: allocate_pieces: all texts have at most UINT32_MAX bytes, and none gets longer */
    vocab->offsets[id + 1] = used; /* bounded: id < INT32_MAX - 1 */
  }
  return KG_OK;
}

int kg_vocab_init_mute(kg_vocab *vocab, int32_t size, kg_error *err)
{
  vocab->size = size;
  vocab->bytes = kg_alloc(0);
  vocab->types = kg_alloc_array((size_t)size, 1); /* UNDEFINED */
  vocab->offsets = kg_alloc_array((size_t)size + 1, sizeof *vocab->offsets); /* bounded: below INT32_MAX */
  for (int i = 0; i < 256; i++) vocab->byte_ids[i] = -1;
  if (vocab->bytes && vocab->types && vocab->offsets) return KG_OK;
  return kg_fail_memory(err, (size_t)size * sizeof *vocab->offsets, "the vocabulary");
}

kg_string kg_vocab_piece(const kg_vocab *vocab, int32_t id)
{
  const uint32_t begin = vocab->offsets[id];
  return (kg_string){vocab->bytes + begin, vocab->offsets[id + 1] - begin}; /* bounded: id < INT32_MAX - 1 */
}

/* ---- the hash index ---- */

/* Up to eight bytes, all of which count. */
static uint64_t read_word(const char *bytes, size_t n)
{
  uint64_t word = 0;
  uint32_t head, tail;
  if (n >= 8) {
    memcpy(&word, bytes, 8);
  } else if (n >= 4) {
    memcpy(&head, bytes, 4);
    memcpy(&tail, bytes + n - 4, 4);
    word = head | (uint64_t)tail << 32; /* bounded: 32 bits, moved up by 32 */
  } else {
    for (size_t i = 0; i < n; i++) word = word << 8 | (unsigned char)bytes[i]; /* bounded: three bytes */
  }
  return word;
}

static uint64_t hash_text(uint64_t seed, const char *bytes, size_t n)
{
  uint64_t hash = seed;
  size_t i = 0;
  for (; n - i > 8; i += 8) hash = kg_vocab_hash(seed, hash ^ read_word(bytes + i, 8), i);
  return kg_vocab_hash(seed, hash ^ read_word(bytes + i, n - i), n ^ hash >> 32);
}

/* The slot that holds this text, or the free one where it belongs, with this tag. */
static kg_text_slot *find_slot(const kg_vocab *vocab, const kg_text_index *index, const char *bytes, size_t n,
                               uint32_t *tag)
{
  const uint64_t hash = hash_text(vocab->seed, bytes, n);
  *tag = (uint32_t)(hash >> 32);
  for (size_t at = (size_t)hash & index->mask;; at = (at + 1) & index->mask) {
    kg_text_slot *slot = &index->slots[at];
    if (slot->id < 0) return slot;
    if (slot->tag != *tag) continue;
    const kg_string piece = kg_vocab_piece(vocab, slot->id);
    if (piece.size == n && !memcmp(piece.data, bytes, n)) return slot;
  }
}

int32_t kg_vocab_find(const kg_vocab *vocab, const kg_text_index *index, const char *bytes, size_t n)
{
  if (!n || n > index->max_size) return -1;
  uint32_t tag;
  return find_slot(vocab, index, bytes, n, &tag)->id;
}

static bool is_in_index(const kg_vocab *vocab, const kg_text_index *index, int32_t id)
{
  const kg_token_type type = vocab->types[id];
  /* bounded: id < INT32_MAX - 1 */
  if (vocab->offsets[id] == vocab->offsets[id + 1]) return false; /* nothing to find it by */
  if (index == &vocab->controls) return type == KG_TOKEN_CONTROL;
  return type == KG_TOKEN_NORMAL || type == KG_TOKEN_USER_DEFINED;
}

static int build_index(kg_vocab *vocab, kg_text_index *index, kg_error *err)
{
  size_t count = 0;
  /* bounded: at most one for each token */
  for (int32_t id = 0; id < vocab->size; id++) count += is_in_index(vocab, index, id);
  if (!count) return KG_OK;
  size_t n_slots = 8;
  while (n_slots < count + count / 2) n_slots *= 2; /* bounded: count < 2^31 */
  index->slots = kg_alloc_array(n_slots, sizeof *index->slots);
  if (!index->slots) return kg_fail_memory(err, n_slots * sizeof *index->slots, "the vocabulary's index");
  for (size_t i = 0; i < n_slots; i++) index->slots[i].id = -1;
  index->mask = n_slots - 1;

  for (int32_t id = 0; id < vocab->size; id++) {
    if (!is_in_index(vocab, index, id)) continue;
    const kg_string piece = kg_vocab_piece(vocab, id);
    uint32_t tag;
    kg_text_slot *slot = find_slot(vocab, index, piece.data, piece.size, &tag);
    const bool is_better = slot->id < 0 || (vocab->types[id] == KG_TOKEN_NORMAL &&
                                            vocab->types[slot->id] != KG_TOKEN_NORMAL);
    if (is_better) *slot = (kg_text_slot){tag, id};
    if (piece.size > index->max_size) index->max_size = piece.size;
  }
  return KG_OK;
}

/* ---- tokens that are cut out of text ---- */

int kg_vocab_build_trie(const kg_vocab *vocab, unsigned types, kg_trie *out, kg_error *err)
{
  kg_trie_item *items = NULL;
  size_t n = 0, capacity = 0;
  int rc = KG_OK;
  for (int32_t id = 0; id < vocab->size && !rc; id++) {
    if (!(types >> vocab->types[id] & 1)) continue;
    if (!kg_grow((void **)&items, &capacity, n + 1, sizeof *items))
      rc = kg_fail_memory(err, (n + 1) * sizeof *items, "the vocabulary's tree");
    else
      items[n++] = (kg_trie_item){kg_vocab_piece(vocab, id), id};
  }
  if (!rc) rc = kg_trie_build(out, items, n, err);
  kg_free(items);
  return rc;
}

int32_t kg_vocab_find_first(const kg_trie *trie, const char *text, size_t size, size_t from, size_t *at)
{
  for (size_t pos = from; pos < size; pos++) {
    if (!trie->starts[(unsigned char)text[pos]]) continue;
    size_t length;
    const int32_t id = kg_trie_longest(trie, text + pos, size - pos, &length);
    if (id < 0) continue;
    *at = pos;
    return id;
  }
  return -1;
}

int kg_vocab_index(kg_vocab *vocab, kg_error *err)
{
  /* Where the pieces stand in memory is random enough from run to run; results do not depend on it. */
  vocab->seed = kg_vocab_hash((uint64_t)(uintptr_t)vocab->bytes, (uint64_t)(uintptr_t)vocab, 1);
  int rc = build_index(vocab, &vocab->texts, err);
  if (!rc) rc = build_index(vocab, &vocab->controls, err);
  if (!rc) rc = kg_vocab_build_trie(vocab, 1u << KG_TOKEN_USER_DEFINED, &vocab->user_defined, err);
  if (!rc)
    rc = kg_vocab_build_trie(vocab, 1u << KG_TOKEN_USER_DEFINED | 1u << KG_TOKEN_CONTROL | 1u << KG_TOKEN_UNKNOWN,
                             &vocab->specials, err);
  return rc;
}

void kg_vocab_deinit(kg_vocab *vocab)
{
  kg_free(vocab->bytes);
  kg_free(vocab->offsets);
  kg_free(vocab->types);
  kg_free(vocab->texts.slots);
  kg_free(vocab->controls.slots);
  kg_trie_deinit(&vocab->user_defined);
  kg_trie_deinit(&vocab->specials);
}
