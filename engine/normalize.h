/* normalize.h - what SentencePiece does to a text before it looks for pieces: characters replaced by the file's table
 * (tokenizer.ggml.precompiled_charsmap), a space in front, spaces squeezed. */
#ifndef KG_NORMALIZE_H
#define KG_NORMALIZE_H

#include "gguf.h"

/* The table is a double-array trie (Darts) of byte strings with the places of their replacements, as SentencePiece
 * writes it. Nothing in it is trusted. */
typedef struct kg_normalizer {
  uint32_t *units; /* of the double array; NULL: nothing is replaced */
  size_t n_units;
  char *texts; /* replacements, each ended by a NUL; the last byte is one */
  size_t n_texts;
  bool squeeze; /* no spaces at the start and the end, one between words */
} kg_normalizer;

/* `squeeze`: where the file does not say. Zero-initialised storage; kg_normalizer_deinit also after a failure. */
int kg_normalizer_read(kg_normalizer *normalizer, const kg_gguf *gguf, bool squeeze, kg_error *err);
void kg_normalizer_deinit(kg_normalizer *normalizer);

/* Append the normal form of a text to `out`, with plain spaces where SentencePiece writes U+2581, so that a U+2581 of
 * the text is a space too. `prefix`: a space in front, where there is anything at all. Bytes that are no UTF-8 stay as
 * they are, or become U+FFFD each with `replace_invalid`. KG_ERR_FORMAT when the table turns out to be malformed. */
int kg_normalizer_run(const kg_normalizer *normalizer, const char *text, size_t size, bool prefix,
                      bool replace_invalid, kg_bytes *out, kg_error *err);

/* Copy the text of a token with spaces for U+2581; returns the size, at most n. */
size_t kg_unmap_spaces(const char *text, size_t n, char *out);

#endif
