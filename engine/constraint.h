/* constraint.h - a grammar that the rest of a timeline follows: a companion (companion.h) with a matcher. Tokens that
 * do not fit are refused, and have logits of -inf. It may wait for a text first (the end of a thinking block): until
 * then everything may come but end tokens. An end token ends the constraint: what follows it is free. */
#ifndef KG_CONSTRAINT_H
#define KG_CONSTRAINT_H

#include "companion.h"
#include "matcher.h"

typedef struct kg_constraint_options {
  kg_string after; /* wait for these bytes in what the tokens write, control tokens spelled; size 0: do not wait */
  int32_t within;        /* after so many tokens of waiting nothing but these bytes may come; negative: any number */
  const kg_judge *judge; /* NULL: the grammar has no points */
} kg_constraint_options;

extern const kg_companion_ops kg_constraint_companion;

/* Constrain the sequence from its position on, instead of by an earlier constraint; grammar NULL: no more. */
int kg_sequence_constrain(kg_sequence *sequence, kg_grammar *grammar, kg_tokenizer *tokenizer,
                          const kg_constraint_options *options, kg_error *err);
bool kg_sequence_is_constrained(const kg_sequence *sequence);
/* The matcher of the constraint, borrowed; NULL: there is none, or it waits. */
kg_matcher *kg_sequence_matcher(const kg_sequence *sequence);
bool kg_sequence_is_waiting(const kg_sequence *sequence);
const kg_judge *kg_sequence_judge(const kg_sequence *sequence); /* NULL: no constraint */
/* Set the logits of banned tokens to -inf, once; the logits are those of the last token. KG_ERR_NUMERIC: a dead end, no
 * token fits. */
int kg_sequence_ban(kg_sequence *sequence, kg_error *err);

#endif
