/* pretokenize.h - cutting text into words before byte-level BPE. The splitters do by hand what the models' regular
 * expressions say, in one pass and without backtracking; categories of characters are those of Unicode. */
#ifndef KG_PRETOKENIZE_H
#define KG_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct kg_pretokenizer {
  const char *name;
  /* The end of the word that starts at pos < size. Bytes that are not UTF-8 count as symbols. */
  size_t (*next)(const char *text, size_t size, size_t pos);
  bool whole_words; /* a word that is a token is that token, whatever merges say */
  bool add_bos;     /* where the file does not say */
} kg_pretokenizer;

/* The splitter for a name of tokenizer.ggml.pre, or NULL. */
const kg_pretokenizer *kg_pretokenizer_find(const char *name, size_t size);
/* All names, "a, b, c", into the buffer. */
const char *kg_pretokenizer_names(char *buffer, size_t size);

#endif
