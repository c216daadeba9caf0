/* draw.h - a sampler chain as plain data, and the arithmetic that everything that runs one shares: the chain on the
 * host (sampler.c) and blocks of threads on a device (draw_block.h). Both give the same id, bit for bit:
 *
 * Weights are exp(x - max) in float32, from one polynomial. They are summed as whole numbers of 2^-44 ("mass"): such
 * sums are exact, so they do not depend on their order, and everybody may sum as suits him. Candidates are ranked by
 * (logit, lower id), which is an order without ties. Everything else is done to each candidate by itself. */
#ifndef KG_DRAW_H
#define KG_DRAW_H

#include <math.h>
#include <stdbool.h>

#include "kigo.h"
#include "random.h"
#include "rank.h"

enum kg_sampler_stage {
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
  /* Add bias_values to the logits of bias_ids: -1e6 to 1e6, or -inf, which bans. Then the same for the last id of each
   * phrase that the timeline ends with the others of, in their order. An id outside the vocabulary is an error when the
   * chain is used. */
  KG_STAGE_BIAS,
  /* Keep the logits that are at most value standard deviations of all of them below the best; 0 keeps all. 0 to 1e3.
   * (Tang, Liu, Xu, Wang: "Top-n-sigma: Not All Logits Are You Need", 2024) */
  KG_STAGE_TOP_N_SIGMA,
  /* With this probability, where several candidates have a probability of `threshold` or more, drop all of these but
   * the worst: "exclude top choices". Draws a number, unless the outcome is sure. 0 to 1 both. (Weidmann, known as
   * p-e-w: text-generation-webui, pull request 6335, 2024) */
  KG_STAGE_XTC,
  /* Logits / (low + (high - low) * (entropy / log(number of candidates)) ^ exponent): the bolder, the less sure the
   * model is; below 1e-6 it is greedy. 0 <= low <= high <= 1e6, exponent 0 to 1e3. (Dynamic temperature by entropy,
   * known as DynaTemp: kalomaze, koboldcpp, 2023) */
  KG_STAGE_DYNAMIC_TEMPERATURE,
  /* "Don't repeat yourself": where the last n tokens, with n >= allowed, stood among the last last_n (-1: all) before,
   * multiplier * base ^ (n - allowed), at most 1e6, is subtracted from the logit of what came next there; the longest n
   * counts. dry.h says what a breaker is. multiplier 0 to 1e6, base 1 to 1e3, allowed 1 or more. Draws on the host: its
   * breakers are texts. (Weidmann, known as p-e-w: text-generation-webui, pull request 5677, 2024) */
  KG_STAGE_DRY,
  /* Version 2: keep the candidates with a surprise, -log2(probability), of at most mu, and the best. When the id that
   * is drawn from them is fed, mu becomes mu - eta * (its surprise - tau); it begins as 2 * tau. The last stage. tau 0
   * to 1e3, eta 0 to 10. Surprise is that before the cut, as in the paper. Draws on the host: mu goes on with what is
   * fed, not with what is drawn (mirostat.h). (Basu, Ramachandran, Keskar, Varshney: "Mirostat: A Neural Text Decoding
   * Algorithm that Directly Controls Perplexity", 2020) */
  KG_STAGE_MIROSTAT
};

enum { KG_CHAIN_STAGES = 64 };

typedef struct kg_draw_stage {
  int32_t kind;              /* enum kg_sampler_stage */
  float value;
  int32_t k, last_n;
  float repeat, frequency, presence;
  float threshold;           /* of XTC; its probability is the value */
  float high, exponent;      /* of a dynamic temperature; the lowest is the value */
  int32_t bias, n_bias;      /* which of the program's biases */
  int32_t phrase, n_phrases; /* and of its phrases */
} kg_draw_stage;

/* A bias for `id` where the timeline ends with these n tokens. */
typedef struct kg_draw_phrase {
  int32_t first, n;          /* of the program's phrase_ids */
  int32_t id;
  float value;
} kg_draw_phrase;

/* A chain without pointers into itself. The first n_prefix stages change logits one by one and drop none. */
typedef struct kg_draw_program {
  int32_t n_stages, n_prefix;
  int32_t last_n;            /* how much history the stages look at; 0: none, -1: all */
  int32_t n_biases, max_bias_id, n_phrases, n_phrase_ids;
  kg_draw_stage stages[KG_CHAIN_STAGES];
  const int32_t *bias_ids;   /* ascending within a stage */
  const float *bias_values;
  const kg_draw_phrase *phrases;
  const int32_t *phrase_ids;
} kg_draw_program;

/* One draw: what it depends on besides the logits. */
typedef struct kg_draw {
  const kg_draw_program *program;
  uint64_t seed, n_draws;    /* numbers drawn at this position before */
  int32_t pos;               /* tokens on the timeline */
  const int32_t *history;    /* the last n_history of them, as many as the program looks at */
  int32_t n_history;
} kg_draw;

enum { KG_DRAW_FAILED = -1 /* nothing was drawn: the host's chain will say why, or can do it */ };

typedef struct kg_drawn {
  int32_t id, status; /* how many random numbers it took, which is none where one candidate has all the weight */
} kg_drawn;

/* ---- weights ---- */

/* exp(x) for x <= 0 as kg_vector's exp_sum and weigh compute it, bit for bit (vector_loops.h); not for NaN. */
KG_SHARED float kg_draw_weight(float x)
{
  if (x < -86.5f) return 0;
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* The mass of weight 1: sums of n_vocab masses stay below 2^63. */
KG_SHARED float kg_mass_scale(int64_t n_vocab)
{
  return n_vocab <= 1 << 19 ? 17592186044416.0f /* 2^44 */ : 4294967296.0f /* 2^32 */;
}

/* Nearest whole number of one in [0, 2^52), halves to the even one. */
KG_SHARED uint64_t kg_whole(double number)
{
  const double shifted = number + 4503599627370496.0; /* 2^52: the number is in the low bits */
  uint64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4330000000000000u;
}

/* The mass of a weight in [0, 1]. */
KG_SHARED uint64_t kg_mass(float weight, float scale) { return kg_whole((double)(weight * scale)); }

/* log(x) for normal x > 0 as kg_vector's entropy_sums compute it, bit for bit (vector_loops.h). */
KG_SHARED float kg_draw_log(float x)
{
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int32_t from_root = (int32_t)(bits - 0x3f3504f3u);
  const float e = (float)(from_root >> 23);
  bits = (uint32_t)(from_root & 0x7fffff) + 0x3f3504f3u;
  float m;
  memcpy(&m, &bits, sizeof m);
  m -= 1.0f;
  const float square = m * m;
  float p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * square + e * -2.12194440e-4f - square * 0.5f;
  return m + p + e * 0.693359375f;
}

/* ---- goals: masses that a sum must reach, from 1 to total ---- */

KG_SHARED uint64_t kg_goal_between(double wanted, uint64_t total)
{
  if (!(wanted > 1)) return 1;
  return wanted >= (double)total ? total : (uint64_t)wanted;
}

/* Of the shortest run with a share of p or more. */
KG_SHARED uint64_t kg_goal_of_share(float p, uint64_t total)
{
  return kg_goal_between(ceil((double)p * (double)total), total);
}

/* Of the first candidate at which the sum exceeds u. */
KG_SHARED uint64_t kg_goal_of_draw(double u, uint64_t total)
{
  return kg_goal_between(floor(u * (double)total) + 1, total);
}

/* ---- stages that change one logit ---- */

KG_SHARED float kg_penalized(float logit, int32_t count, float repeat, float frequency, float presence)
{
  const float repeated = logit > 0 ? logit / repeat : logit * repeat;
  return repeated - frequency * (float)count - presence;
}

/* -inf bans, whatever was there. */
KG_SHARED float kg_biased(float logit, float bias) { return bias == -INFINITY ? bias : logit + bias; }

/* The first token that a penalty of the last `last_n` (-1: all) looks at, of n. */
KG_SHARED int32_t kg_history_first(int32_t last_n, int32_t n) { return last_n < 0 || last_n > n ? 0 : n - last_n; }

/* What "typical" ranks by: the opposite of the distance between surprise and entropy. */
KG_SHARED float kg_typicality(float x, float max, float mean) { return -fabsf(x - max - mean); }

/* The mean of x - max under the weights. */
KG_SHARED float kg_mean_of(uint64_t moment, uint64_t total) { return -(float)((double)moment / (double)total); }

/* Can an XTC stage drop anything? Above one half there cannot be two. */
KG_SHARED bool kg_xtc_may_drop(float probability, float threshold) { return probability > 0 && threshold <= 0.5f; }

/* ---- the spread of logits ---- */

/* Distances to the best logit are summed as whole numbers of a power of two, such that the largest one, `range` > 0, is
 * below 2^22 (2^16 for many ids) and sums of squares stay below 2^63. How many of them 1 is. */
KG_SHARED double kg_spread_scale(double range, int64_t n_vocab)
{
  uint64_t bits;
  memcpy(&bits, &range, sizeof bits);
  bits = (2046 + (n_vocab <= 1 << 19 ? 21 : 15) - (bits >> 52)) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return scale;
}

/* The distance of x, above -inf, to max. */
KG_SHARED uint64_t kg_spread_of(float x, float max, double scale)
{
  return kg_whole(((double)max - (double)x) * scale);
}

/* The least logit within `value` standard deviations of max: `sum` and `squares` are those of n distances. */
KG_SHARED float kg_sigma_cut(float value, float max, uint64_t sum, uint64_t squares, int64_t n, double scale)
{
  const double mean = (double)sum / (double)n, variance = (double)squares / (double)n - mean * mean;
  return (float)((double)max - (double)value * (sqrt(variance > 0 ? variance : 0) / scale));
}

/* ---- dynamic temperature ---- */

/* Of n candidates with these masses; below KG_TEMPERATURE_MIN it is greedy. */
#define KG_TEMPERATURE_MIN 1e-6f

KG_SHARED float kg_dynamic_temperature(float low, float high, float exponent, uint64_t total, float mean, int64_t n,
                                       float scale)
{
  float share = n > 1 ? (kg_draw_log((float)total / scale) - mean) / kg_draw_log((float)n) : 0;
  if (share > 1) share = 1;
  const float power = share > 1e-37f ? kg_draw_weight(exponent * kg_draw_log(share)) : exponent == 0 ? 1.0f : 0.0f;
  return low + (high - low) * power;
}

/* ---- phrases ---- */

/* Does the history end with the first tokens of the phrase? */
KG_SHARED bool kg_phrase_applies(const kg_draw_phrase *phrase, const int32_t *phrase_ids, const int32_t *history,
                                 int32_t n_history)
{
  if (n_history < phrase->n) return false;
  for (int32_t i = 0; i < phrase->n; i++)
    if (history[n_history - phrase->n + i] != phrase_ids[phrase->first + i]) return false;
  return true;
}

/* ---- on the host ---- */

/* One draw, step by step as a block of threads makes it (draw_block.h), with memory of its own: the scalar twin of the
 * kernels, for backends that have none and for tests. */
int kg_draw_alone(const kg_draw *draw, const float *logits, int32_t n_vocab, kg_drawn *out, kg_error *err);
/* The same for what the stages leave of the logits, in place; out->id means nothing. */
int kg_draw_apply_alone(const kg_draw *draw, float *logits, int32_t n_vocab, kg_drawn *out, kg_error *err);

#endif
