/* sampler.h - sampling as a chain of stages over the logits. Stages run in the order given, each on what the one
 * before left; the last step draws from the softmax of what remains (greedy: the best, no draw).
 * Ties go to the lower id, always. History for the penalties is read from the sequence's timeline. */
#ifndef KG_SAMPLER_H
#define KG_SAMPLER_H

#include "sequence.h"
#include "tensor.h"

typedef enum kg_stage_kind {
  KG_STAGE_GREEDY,      /* keep the best candidate alone */
  KG_STAGE_TEMPERATURE, /* logits / t; t = 0 is greedy */
  KG_STAGE_TOP_K,       /* keep the k best; k <= 0 keeps all */
  KG_STAGE_TOP_P,       /* keep the best whose probabilities first reach p (nucleus: Holtzman et al. 2019) */
  KG_STAGE_MIN_P,       /* keep those with probability >= p * the best one's (Nguyen et al. 2024) */
  KG_STAGE_TYPICAL,     /* keep those nearest to the entropy until p is reached (Meister et al. 2022) */
  KG_STAGE_PENALTIES,   /* repetition (Keskar et al. 2019), frequency and presence, over the last n tokens */
  KG_STAGE_BIAS         /* add to the logits of given ids; -inf bans */
} kg_stage_kind;

typedef struct kg_stage {
  kg_stage_kind kind;
  float value;               /* temperature, p, or min-p */
  int32_t k;                 /* top-k */
  int32_t last_n;            /* penalties: history length; -1: all */
  float repeat, frequency, presence;
  const int32_t *bias_ids;   /* borrowed by kg_chain_new only during the call */
  const float *bias_values;
  int32_t n_bias;
} kg_stage;

/* A chain of its own scratch memory; checks every parameter (finite, in range) and names the stage in the error. */
int kg_chain_new(const kg_stage *stages, size_t n, kg_chain **out, kg_error *err);
void kg_chain_free(kg_chain *chain);

/* The candidates that the stages leave, best first, with their probabilities: for tests and scripts. At most
 * `capacity` are written; *n is the full number. */
int kg_chain_candidates(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *ids, float *probs,
                        int32_t capacity, int32_t *n, kg_error *err);

#endif
