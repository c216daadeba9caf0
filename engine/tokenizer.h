/* tokenizer.h - what the parts of the tokenizer share. A kind (tokenizer.ggml.model) knows how text becomes ids; the
 * vocabulary, control segments, user-defined tokens, BOS and decoding are the same for all and stand in tokenizer.c. */
#ifndef KG_TOKENIZER_H
#define KG_TOKENIZER_H

#include "merge.h"
#include "vocab.h"

enum { KG_END_TOKENS_MAX = 64 };

typedef struct kg_tokenizer_kind {
  const char *model;         /* name in tokenizer.ggml.model */
  kg_unmap unmap;            /* from the text of a token in the file to what it writes */
  int32_t bos, eos, unknown; /* ids where the file names none; -1: none */
  bool add_bos;              /* where the file does not say; open may decide otherwise */
  /* Build the kind's own tables in tokenizer->state; the vocabulary is complete. Also after a failure `close` is
   * called with what stands in state. */
  int (*open)(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err);
  void (*close)(void *state);
  /* Append the ids of plain text of at least one byte that holds no user-defined token. `after_special`: it stands at
   * the start, or behind a control or user-defined token. */
  int (*encode)(const kg_tokenizer *tokenizer, const char *text, size_t size, bool after_special, kg_merger *merger,
                kg_tokens *out, kg_error *err);
} kg_tokenizer_kind;

extern const kg_tokenizer_kind kg_bpe_kind, kg_spm_kind;

struct kg_tokenizer {
  const kg_tokenizer_kind *kind;
  kg_vocab vocab;
  void *state;
  char *pre; /* tokenizer.ggml.pre of the file, NULL: none */
  size_t pre_size;
  int32_t bos, eos, unknown;
  bool add_bos;
  bool space_prefix; /* encode puts a space before text that starts or follows a special token; decode takes it away */
  int32_t ends[KG_END_TOKENS_MAX];
  size_t n_ends;
};

/* For the kinds: the bool under the key; *out stays as it is where the file has none. */
int kg_tokenizer_read_flag(const kg_gguf *gguf, const char *key, bool *out, kg_error *err);
/* Append one id; the tokens for one byte that no piece covers (UNSUPPORTED: there are none). */
int kg_tokens_push(kg_tokens *tokens, int32_t id, kg_error *err);
int kg_tokenizer_push_byte(const kg_tokenizer *tokenizer, unsigned char byte, kg_tokens *out, kg_error *err);

/* What token `id`, in range, writes. *after_special says what came before and is moved on: true at a start. */
kg_string kg_tokenizer_piece(const kg_tokenizer *tokenizer, int32_t id, unsigned flags, bool *after_special);
/* KG_ERR_ARGUMENT unless the id is in range. */
int kg_tokenizer_check_id(const kg_tokenizer *tokenizer, int32_t id, kg_error *err);

#endif
