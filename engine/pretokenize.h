/* pretokenize.h - cutting text into words before byte-level BPE, as the model's regular expressions say. PCRE2 runs
 * them; the most frequent ones are also done by hand, in one pass and without backtracking, and those that would need
 * more than linear time are done by hand only. Both ways give the same words (spec/pretokenize_spec.lua), but for
 * characters that are newer than PCRE2's Unicode version (14.0 in Debian 12's 10.42) or ours (15.0). */
#ifndef KG_PRETOKENIZE_H
#define KG_PRETOKENIZE_H

#include "regex.h"

enum { KG_SPLIT_RULES_MAX = 6 };

/* Where the piece that starts at pos < size ends; all pieces of the text together are the text. Bytes that are not
 * UTF-8 count as symbols. */
typedef size_t (*kg_split_next)(const char *text, size_t size, size_t pos);

/* Pieces are the matches of the expression and what lies between them. */
typedef struct kg_split_rule {
  const char *regex;     /* NULL: by hand only */
  kg_split_next by_hand; /* NULL: by PCRE2 */
} kg_split_rule;

/* What else the tokenizers of a name do. */
enum {
  KG_PRE_WHOLE_WORDS = 1, /* a word that is a token is that token, whatever merges say */
  KG_PRE_ADD_BOS = 2,     /* where the file does not say */
  KG_PRE_NFC = 4          /* the model's own tokenizer normalizes text; runtimes of such files do not */
};

typedef struct kg_pretokenizer {
  const char *name;
  const kg_split_rule *rules; /* up to KG_SPLIT_RULES_MAX, then an empty one; each cuts the pieces of the one before */
  unsigned flags;             /* KG_PRE_* */
} kg_pretokenizer;

/* The pre-tokenizer for a name of tokenizer.ggml.pre, or NULL. */
const kg_pretokenizer *kg_pretokenizer_find(const char *name, size_t size);
/* All names, "a, b, c", into the buffer. */
const char *kg_pretokenizer_names(char *buffer, size_t size);
/* The name of row i, or NULL behind the last. */
const char *kg_pretokenizer_name(size_t i);

/* A pre-tokenizer whose expressions are compiled; immutable. */
typedef struct kg_splitter {
  size_t n_rules;
  kg_split_rule rules[KG_SPLIT_RULES_MAX];
  kg_regex *regexes[KG_SPLIT_RULES_MAX]; /* NULL: by hand */
  bool has_regex;
} kg_splitter;

/* `by_regex`: PCRE2 also where there is a way by hand. Zero-initialised storage; kg_splitter_deinit also after a
 * failure. */
int kg_splitter_init(kg_splitter *splitter, const kg_pretokenizer *pre, bool by_regex, kg_error *err);
void kg_splitter_deinit(kg_splitter *splitter);

/* What one rule has of the text. */
typedef struct kg_split_level {
  size_t begin, pos, end;        /* the piece of the rule before, and how far it is cut */
  size_t match_begin, match_end; /* the last match that was found; it may lie ahead */
} kg_split_level;

/* The words of one text, one after the other. Zero-initialise; borrows splitter and text. */
typedef struct kg_split {
  const kg_splitter *splitter;
  const char *text; /* as the rules see it */
  char *valid;      /* a copy of a text that is not UTF-8, with other bytes for those that are wrong */
  kg_match *match;
  kg_split_level levels[KG_SPLIT_RULES_MAX];
} kg_split;

int kg_split_begin(kg_split *split, const kg_splitter *splitter, const char *text, size_t size, kg_error *err);
/* Move *pos, which is 0 at first, to the end of the next word; it was less than the text's size. */
int kg_split_move(kg_split *split, size_t *pos, kg_error *err);
void kg_split_end(kg_split *split);

#endif
