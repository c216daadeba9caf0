/* sampler.h - sampling as a chain of stages over the logits. Stages run in the order given, each on what the one
 * before left; the last step draws from the softmax of what remains.
 *
 * The candidates are at first all ids; a logit of -inf means that its id has none: it is never drawn. Where logits of
 * +inf come in, they win: their ids are equally likely and all others are banned. "Probability" in a stage is the
 * softmax over the candidates that are left when it runs. Candidates are ranked by logit, ties by the lower id, always.
 * History is read from the sequence's timeline.
 * The draw: with u = kg_sequence_uniform, the first candidate in rank order at which the sum of probabilities exceeds
 * u. Where one candidate has all the weight, no number is drawn. Stages that want random numbers draw before it. Every
 * device draws the same id from the same logits, to the bit (draw.h). KG_ERR_NUMERIC: a logit is NaN (the message
 * counts them), nothing is left, or the logits overflow. */
#ifndef KG_SAMPLER_H
#define KG_SAMPLER_H

#include "sequence.h"
#include "stage.h"
#include "tensor.h"

/* A chain of its own scratch memory; checks every parameter (finite, in range) and names the stage in the error. */
int kg_chain_new(const kg_stage *stages, size_t n, kg_chain **out, kg_error *err);
void kg_chain_free(kg_chain *chain); /* gives one reference back */
kg_chain *kg_chain_ref(kg_chain *chain);

/* The chain's stages as they were given; borrowed. */
const kg_stage *kg_chain_stages(const kg_chain *chain, size_t *n);

/* Write what the stages make of the logits back: -inf where an id is no candidate any more, and for the others what
 * they became. Nothing is drawn from them; numbers that stages draw count. Without a sequence (NULL) there is no
 * history. Where the logits are on a device, it is done there, or they come to the host for it (kg_chain_plan_draw). On
 * failure they are as before. */
int kg_chain_apply(kg_chain *chain, kg_tensor *logits, kg_sequence *sequence, kg_error *err);

/* Several picks and applications at once, where a device can make them together. A use that is not done then is to be
 * made by itself. No sequence is NULL. */
typedef struct kg_chain_use {
  kg_chain *chain;
  kg_tensor *logits;
  kg_sequence *sequence;
  bool applies; /* as kg_chain_apply; else as kg_chain_pick */
  bool is_done;
  int32_t id;
} kg_chain_use;
int kg_chain_use_together(kg_chain_use *uses, size_t n, kg_error *err);

/* The candidates that the stages leave, best first, with their probabilities: for tests and scripts. At most
 * `capacity` are written; *n is the full number. Nothing is drawn: where a stage wants a random number, it sees the one
 * that a draw would get. Without a sequence (NULL) there is no history. */
int kg_chain_candidates(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *ids, float *probs,
                        int32_t capacity, int32_t *n, kg_error *err);

/* Can devices run it at all? DRY and mirostat are for the host. */
bool kg_chain_is_plain(const kg_chain *chain);
/* The next draw of a sequence as plain data, which stays good until one of the two changes. False: only the chain
 * itself can do it, or say what is wrong with it. */
bool kg_chain_plan_draw(const kg_chain *chain, const kg_sequence *sequence, int64_t n_vocab, kg_draw *out);
/* kg_chain_pick by the twin of the kernels (kg_draw_alone), for tests: KG_ERR_UNSUPPORTED where a device would leave it
 * to the chain. */
int kg_chain_pick_as_device(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id,
                            kg_error *err);
int kg_chain_apply_as_device(kg_chain *chain, kg_tensor *logits, kg_sequence *sequence, kg_error *err);

#endif
