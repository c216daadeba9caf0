/* sampler.h - sampling as a chain of stages over the logits. Stages run in the order given, each on what the one
 * before left; the last step draws from the softmax of what remains.
 *
 * The candidates are at first all ids; a logit of -inf means that its id has none: it is never drawn. Where logits of
 * +inf come in, they win: their ids are equally likely and all others are banned. "Probability" in a stage is the
 * softmax over the candidates that are left when it runs. Candidates are ranked by logit, ties by the lower id, always.
 * History for the penalties is read from the sequence's timeline.
 * The draw: with u = kg_sequence_uniform, the first candidate in rank order at which the sum of probabilities exceeds
 * u. Where one candidate is left, no number is drawn.
 * KG_ERR_NUMERIC: a logit is NaN (the message counts them), nothing is left, or the logits overflow. */
#ifndef KG_SAMPLER_H
#define KG_SAMPLER_H

#include "sequence.h"
#include "tensor.h"

typedef enum kg_stage_kind {
  /* Keep the best candidate alone. */
  KG_STAGE_GREEDY,
  /* Logits / value; 0 is greedy. 0, or 1e-6 to 1e6. */
  KG_STAGE_TEMPERATURE,
  /* Keep the k best; k <= 0 keeps all. (Fan, Lewis, Dauphin: "Hierarchical Neural Story Generation", 2018) */
  KG_STAGE_TOP_K,
  /* Keep the shortest run of best candidates whose probabilities sum to value or more, at least one; 1 keeps all.
   * 0 to 1. (Holtzman et al.: "The Curious Case of Neural Text Degeneration", 2019) */
  KG_STAGE_TOP_P,
  /* Keep those with a probability >= value * the best one's. 0 to 1. (Nguyen et al.: "Turning Up the Heat: Min-p
   * Sampling for Creative and Coherent LLM Outputs", 2024) */
  KG_STAGE_MIN_P,
  /* Order by |-log(probability) - entropy|, ties by the lower id; keep the shortest run whose probabilities sum to
   * value or more, at least one; 1 keeps all. 0 to 1. (Meister et al.: "Locally Typical Sampling", 2022) */
  KG_STAGE_TYPICAL,
  /* For each id among the last last_n tokens (-1: all) of the timeline, with its count there: a positive logit is
   * divided by `repeat`, another multiplied (Keskar et al.: "CTRL", 2019); then frequency * count and, once, presence
   * are subtracted. repeat 1e-3 to 1e3; the others -1e3 to 1e3. */
  KG_STAGE_PENALTIES,
  /* Add bias_values to the logits of bias_ids: -1e6 to 1e6, or -inf, which bans. An id outside the vocabulary is an
   * error when the chain is used. */
  KG_STAGE_BIAS
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

/* The chain's stages as they were given; borrowed. */
const kg_stage *kg_chain_stages(const kg_chain *chain, size_t *n);

/* The candidates that the stages leave, best first, with their probabilities: for tests and scripts. At most
 * `capacity` are written; *n is the full number. Nothing is drawn; without a sequence (NULL) there is no history. */
int kg_chain_candidates(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *ids, float *probs,
                        int32_t capacity, int32_t *n, kg_error *err);

#endif
