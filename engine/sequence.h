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
};

kg_model *kg_sequence_model(const kg_sequence *sequence);
/* The next uniform number in [0, 1) of this seed, position and draw; counts the draw. */
double kg_sequence_uniform(kg_sequence *sequence);

#endif
