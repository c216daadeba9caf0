/* vocab.h - the vocabulary of a tokenizer: what every token writes, of which type it is, and finding tokens by text.
 * Owns copies of everything; immutable once indexed. */
#ifndef KG_VOCAB_H
#define KG_VOCAB_H

#include "gguf.h"
#include "trie.h"

typedef enum kg_token_type { /* numbers as in the file */
  KG_TOKEN_UNDEFINED, KG_TOKEN_NORMAL, KG_TOKEN_UNKNOWN, KG_TOKEN_CONTROL, KG_TOKEN_USER_DEFINED, KG_TOKEN_UNUSED,
  KG_TOKEN_BYTE
} kg_token_type;

/* A hash table from the bytes of a piece to its id. */
typedef struct kg_text_index {
  struct kg_text_slot *slots; /* a power of two of them; NULL while empty */
  size_t mask;
  size_t max_size;            /* longest piece in it, so that longer texts need no hashing */
} kg_text_index;

typedef struct kg_vocab {
  int32_t size;
  char *bytes;       /* all pieces, one after the other */
  uint32_t *offsets; /* size + 1: piece i is bytes[offsets[i], offsets[i + 1]) */
  uint8_t *types;    /* kg_token_type of each id */
  int32_t byte_ids[256]; /* tokens that stand for one byte whatever precedes them (type BYTE); -1: none */
  uint64_t seed;         /* of the hash functions */
  kg_text_index texts;        /* what ordinary text may become: NORMAL, USER_DEFINED */
  kg_text_index controls;     /* what only control segments may become: CONTROL */
  kg_trie user_defined; /* what is cut out of text before anything else looks at it: USER_DEFINED */
  kg_trie specials;     /* the same where text may spell control tokens: USER_DEFINED, CONTROL, UNKNOWN */
} kg_vocab;

/* From the text of a token in the file to the bytes that it writes; never longer. Returns the size. */
typedef size_t (*kg_unmap)(const char *text, size_t n, char *out);

/* Read tokens and types; `unmap` is for tokens of ordinary text, `unmap_user` for USER_DEFINED ones (NULL: as they
 * are), BYTE tokens must spell <0xHH>, the others write what they spell. Zero-initialised storage; kg_vocab_deinit
 * also after a failure. */
int kg_vocab_read(kg_vocab *vocab, const kg_gguf *gguf, kg_unmap unmap, kg_unmap unmap_user, kg_error *err);
/* `size` tokens that write nothing. */
int kg_vocab_init_mute(kg_vocab *vocab, int32_t size, kg_error *err);
/* Build the indexes; types do not change any more. Where pieces are equal, NORMAL comes before other types and the
 * lower id before the higher. */
int kg_vocab_index(kg_vocab *vocab, kg_error *err);
void kg_vocab_deinit(kg_vocab *vocab);

/* The bytes of token `id`, which must be in range. */
kg_string kg_vocab_piece(const kg_vocab *vocab, int32_t id);
/* -1: no such token in this index. */
int32_t kg_vocab_find(const kg_vocab *vocab, const kg_text_index *index, const char *bytes, size_t n);
/* The first token of the trie (user_defined or specials) at or after `from`, the longest there: its id and place, or
 * -1. */
int32_t kg_vocab_find_first(const kg_trie *trie, const char *text, size_t size, size_t from, size_t *at);
/* A trie of all tokens whose types are in `types` (a set of bits, 1 << type). */
int kg_vocab_build_trie(const kg_vocab *vocab, unsigned types, kg_trie *out, kg_error *err);

/* A hash of 64 bits that a file cannot aim collisions at, because the seed differs from run to run. */
static inline uint64_t kg_vocab_hash(uint64_t seed, uint64_t a, uint64_t b)
{
  __extension__ typedef unsigned __int128 wide;
  /* bounded: 128 bits hold it */
  const wide product = (wide)(a ^ seed ^ 0x9E3779B97F4A7C15u) * (b ^ (seed << 32 | seed >> 32) ^ 0xD1B54A32D192ED03u);
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

#endif
