/* matcher.h - one text on its way through a grammar: what was accepted, what may follow, and going back. */
#ifndef KG_MATCHER_H
#define KG_MATCHER_H

#include "mask.h"
#include "tensor.h"

typedef struct kg_matcher kg_matcher;

/* Who decides at the points of a grammar. `partial`: the text is not complete; may it become one that will do? The
 * answers must depend on the text alone: texts are asked about again after going back. Meanwhile all matchers of the
 * grammar refuse (KG_ERR_ARGUMENT) what would read or change them, and must be neither freed nor rewound. */
typedef struct kg_judge {
  int (*ask)(void *user, uint32_t point, bool partial, const char *text, size_t size, bool *answer, kg_error *err);
  void (*ref)(void *user); /* a matcher keeps the judge; NULL: it lives longer anyway */
  void (*unref)(void *user);
  bool asks_partial; /* false: the partial question is never asked */
  void *user;
} kg_judge;

enum {
  /* Tokens on whose text a point depends are judged one by one, the likeliest first: so many, and then on until one of
   * all tokens is allowed. The others are banned unseen. */
  KG_JUDGED_MAX = 128
};

/* A matcher at the start of a text. Keeps references to the grammar and the tokenizer (NULL: bytes only). `judge` may
 * be NULL where the grammar has no points: KG_ERR_ARGUMENT. */
int kg_matcher_new(kg_grammar *grammar, kg_tokenizer *tokenizer, const kg_judge *judge, kg_matcher **out,
                   kg_error *err);
const kg_judge *kg_matcher_judge(const kg_matcher *matcher);
kg_grammar *kg_matcher_grammar(const kg_matcher *matcher); /* borrowed */
int kg_matcher_copy(const kg_matcher *matcher, kg_matcher **out, kg_error *err);
void kg_matcher_free(kg_matcher *matcher);
/* Is a judge being asked, by this one or another of its grammar? */
bool kg_matcher_is_judging(const kg_matcher *matcher);
/* Say, before the first token, that text begins here as behind a special token (SentencePiece leaves out a space
 * there). */
void kg_matcher_begin_text(kg_matcher *matcher, bool after_special);

/* Go on by bytes, or by a token; *accepted false: they do not fit, and nothing has changed. An end token fits where the
 * text may end; behind it everything does. Every accepted call counts one step. */
int kg_matcher_accept_bytes(kg_matcher *matcher, const char *bytes, size_t n, bool *accepted, kg_error *err);
int kg_matcher_accept(kg_matcher *matcher, int32_t id, bool *accepted, kg_error *err);
/* The same, and nothing has changed in any case. */
int kg_matcher_fits(kg_matcher *matcher, int32_t id, bool *fits, kg_error *err);
int32_t kg_matcher_n_steps(const kg_matcher *matcher);
void kg_matcher_rewind(kg_matcher *matcher, int32_t n_steps); /* to so many; not more than there are */

/* May the text end here? */
int kg_matcher_is_complete(kg_matcher *matcher, bool *out, kg_error *err);
/* Can it do nothing but end (or did it)? */
int kg_matcher_is_over(kg_matcher *matcher, bool *out, kg_error *err);
/* Was the end token accepted? */
bool kg_matcher_has_ended(const kg_matcher *matcher);
kg_string kg_matcher_text(const kg_matcher *matcher); /* borrowed */

/* The tokens that are allowed, as bits of kg_matcher_n_words words, good until the next call; with points: those
 * that may be allowed, and in *sure those that are, whatever the judge says (both the same without points). */
size_t kg_matcher_n_words(const kg_matcher *matcher); /* of its masks; 0 without a tokenizer */
int kg_matcher_mask(kg_matcher *matcher, const uint64_t **possible, const uint64_t **sure, kg_error *err);
int kg_matcher_count(kg_matcher *matcher, size_t *n_allowed, kg_error *err); /* those that may be allowed */
/* Set the logits of all other tokens to -inf; *n_allowed are left. n: at least the vocabulary's size; what is above is
 * banned. Tokens whose logit is -inf already are not judged. */
int kg_matcher_mask_logits(kg_matcher *matcher, float *logits, size_t n, size_t *n_allowed, kg_error *err);

/* The same for n numbers of a buffer, wherever it is. */
int kg_matcher_mask_buffer(kg_matcher *matcher, kg_buffer *logits, int64_t at, int64_t n, size_t *n_allowed,
                           kg_error *err);

/* The tokens that the bytes which must follow, whatever comes, are certain to be: canonical ones, up to the place where
 * a longer token might begin. Nothing where points are open. */
int kg_matcher_forced(kg_matcher *matcher, kg_tokens *out, kg_error *err);

#endif
