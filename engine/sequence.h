/* sequence.h - one timeline: tokens, cache pages, seed. Tokens [0, evaluated) are in the cache; the rest is pending. */
#ifndef KG_SEQUENCE_H
#define KG_SEQUENCE_H

#include "model.h"

struct kg_sequence {
  kg_model *model;
  kg_tokens tokens;        /* the timeline */
  int32_t n_evaluated;     /* tokens whose keys and values are in the pages */
  kg_page_table pages;
  uint64_t seed;
  uint64_t n_draws;        /* random numbers drawn at position draw_pos; a new position starts at 0 */
  int32_t draw_pos;
  kg_buffer *logits;       /* vocab floats, made on first use */
  int32_t logits_pos;      /* tokens on the timeline when the logits were computed; -1: none */
  struct {                 /* bookkeeping of the step that runs */
    int64_t serial;
    int32_t pos;           /* of its first row */
    int64_t row;           /* that row's index in the step */
    int32_t n_rows;        /* rows in the run that is being filled */
  } step;
};

kg_model *kg_sequence_model(const kg_sequence *sequence);
/* Tokens that a step has to evaluate: those not in the cache yet, or, when the logits are not those of the last token
 * any more (after a rewind), the last one again. */
int32_t kg_sequence_pending(const kg_sequence *sequence);
/* Bring the logits up to date, as kg_sequence_logits does, without making a handle. */
int kg_sequence_evaluate(kg_sequence *sequence, kg_error *err);
/* A number that tells timelines apart by their first `n` tokens. */
uint64_t kg_sequence_hash(const kg_sequence *sequence, int32_t n);
/* Where drawing stands at the current position, and going back there. */
uint64_t kg_sequence_draws(const kg_sequence *sequence);
void kg_sequence_set_draws(kg_sequence *sequence, uint64_t n_draws);
/* The next uniform number in [0, 1) of this seed, position and draw; counts the draw. */
double kg_sequence_uniform(kg_sequence *sequence);

#endif
