/* tokenizer.h - what the parts of the tokenizer share. A kind (tokenizer.ggml.model) knows how text becomes ids; the
 * vocabulary, control segments, user-defined tokens, BOS and decoding are the same for all and stand in tokenizer.c. */
#ifndef KG_TOKENIZER_H
#define KG_TOKENIZER_H

#include "merge.h"
#include "vocab.h"

enum { KG_END_TOKENS_MAX = 64 };

/* Tokens that a file may name. */
typedef enum kg_special {
  KG_NO_SPECIAL, KG_BOS, KG_EOS, KG_EOT, KG_EOM, KG_UNK, KG_SEP, KG_PAD, KG_CLS, KG_MASK, KG_FIM_PREFIX,
  KG_FIM_SUFFIX, KG_FIM_MIDDLE, KG_FIM_PAD, KG_FIM_REPO, KG_FIM_FILE, KG_SPECIAL_COUNT
} kg_special;

/* White space around a special token that belongs to it: text loses it. */
enum { KG_STRIP_LEFT = 1, KG_STRIP_RIGHT = 2 };

typedef struct kg_tokenizer_kind {
  const char *model;         /* name in tokenizer.ggml.model */
  kg_unmap unmap;            /* from the text of a token in the file to what it writes; NULL: ids without text */
  kg_unmap unmap_user;       /* the same for user-defined tokens; NULL: they write what they spell */
  const char *texts[KG_SPECIAL_COUNT]; /* how special tokens are spelled where the file names no id */
  bool add_bos, add_eos, add_sep;      /* where the file does not say; open may decide otherwise */
  bool spaced_words; /* every word begins with a space, whatever precedes it: only the first of a text loses it */
  /* Build the kind's own tables in tokenizer->state; the vocabulary is complete. Also after a failure `close` is
   * called with what stands in state. */
  int (*open)(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err);
  void (*close)(void *state);
  /* Append the ids of plain text of at least one byte that holds no user-defined token. `after_special`: it stands at
   * the start, or behind a control or user-defined token. NULL: ids without text. */
  int (*encode)(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                kg_tokens *out, kg_error *err);
} kg_tokenizer_kind;

extern const kg_tokenizer_kind kg_bpe_kind, kg_spm_kind, kg_gemma4_kind, kg_wordpiece_kind, kg_unigram_kind,
    kg_rwkv_kind;

struct kg_tokenizer {
  int32_t n_refs;
  const kg_tokenizer_kind *kind;
  kg_vocab vocab;
  void *state;
  char *pre; /* tokenizer.ggml.pre of the file, NULL: none */
  size_t pre_size;
  bool normalize; /* as the model's own tokenizer does, where that is known */
  int32_t special[KG_SPECIAL_COUNT]; /* ids; -1: none */
  bool add_bos, add_eos, add_sep;    /* what the file asks for around a text, where there are such tokens */
  bool space_prefix; /* encode puts a space before text that starts or follows a special token; decode takes it away */
  uint8_t *strips;   /* KG_STRIP_* of each id; NULL: nothing is stripped */
  int32_t ends[KG_END_TOKENS_MAX];
  size_t n_ends;
  struct kg_pieces *pieces; /* pieces.h; NULL until somebody constrains */
};

/* One reference more, for who may outlive the tokenizer's owner; kg_tokenizer_free gives one back. */
kg_tokenizer *kg_tokenizer_ref(kg_tokenizer *tokenizer);

/* The special token of this name in Lua ("bos", "fim_prefix"); KG_NO_SPECIAL: there is no such name. */
kg_special kg_special_find(const char *name);

/* For the kinds: the bool under the key; *out stays as it is where the file has none. */
int kg_tokenizer_read_flag(const kg_gguf *gguf, const char *key, bool *out, kg_error *err);
/* The scores of all tokens: an array of as many floats, none of which is NaN. */
int kg_tokenizer_read_scores(const kg_tokenizer *tokenizer, const kg_gguf *gguf, const kg_gguf_entry **scores,
                             kg_error *err);
/* Append one id; the unknown token for text (UNSUPPORTED: there is none, or it is a control token); the token for one
 * byte that no piece covers, or the unknown one. */
int kg_tokens_push(kg_tokens *tokens, int32_t id, kg_error *err);
int kg_tokenizer_push_unknown(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_tokens *out,
                              kg_error *err);
int kg_tokenizer_push_byte(const kg_tokenizer *tokenizer, unsigned char byte, kg_tokens *out, kg_error *err);

/* What token `id`, in range, writes. *after_special says what came before and is moved on: true at a start. */
kg_string kg_tokenizer_piece(const kg_tokenizer *tokenizer, int32_t id, unsigned flags, bool *after_special);
/* The token of ordinary text that writes just this, or -1. */
int32_t kg_tokenizer_find(const kg_tokenizer *tokenizer, const char *text, size_t size);
/* Append, by ascending id, the tokens of ordinary text that begin with this text. On failure `out` is unchanged. */
int kg_tokenizer_with_prefix(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_tokens *out,
                             kg_error *err);
/* KG_ERR_ARGUMENT unless the id is in range. */
int kg_tokenizer_check_id(const kg_tokenizer *tokenizer, int32_t id, kg_error *err);

#endif
