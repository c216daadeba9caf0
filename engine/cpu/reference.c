/* reference.c - the oracle: executes a plan one operation after the other, one row after the other, in one thread.
 * Values are float32, sums are double, weights are dequantized row by row straight from the mapped file while they are
 * used. Nothing is fused or reordered; what a row's numbers are depends on the loops below and on nothing else, so
 * they do not depend on how rows were batched. The cache is float32 always: options.kv_type is ignored, and so are
 * n_threads and variant. */
#include <math.h>
#include <string.h>

#include "alloc.h"
#include "backend.h"
#include "error.h"
#include "states.h"

struct kg_executable {
  const kg_plan *plan;
  int32_t chunk;
  void **copies;           /* [weights] a weight's bytes once somebody wrote to them, else NULL: the file's */
  size_t *layer_at;        /* [layers] float offset of a layer in a page: keys [KG_PAGE][key width], then values */
  size_t page_floats[KG_PAGE_GROUPS]; /* by page group, as the next three */
  float **pages[KG_PAGE_GROUPS];      /* [n_pages] */
  int32_t n_pages[KG_PAGE_GROUPS];
  size_t pages_capacity[KG_PAGE_GROUPS];
  kg_host_states states;
  float *row;              /* one dequantized row of the longest weight */
  int64_t expert_bytes;    /* kg_model_stats */
};

/* One run: the rows still computed (all of the batch, or the wanted ones after the plan's tail) and the values. */
typedef struct run {
  kg_executable *exe;
  const kg_batch *batch;
  int32_t n_rows;
  const int32_t *source;   /* [n_rows] rows of the batch; NULL: all of them */
  float **values;          /* [values] (n_rows, width); NULL where not computed yet or no longer needed */
} run;

/* ---- weights ---- */

static const kg_weight *weight_at(const kg_executable *exe, int32_t weight)
{
  return kg_plan_weight_at(exe->plan, weight);
}

static const unsigned char *weight_plane(const kg_executable *exe, int32_t weight, int64_t plane)
{
  const kg_weight *w = weight_at(exe, weight);
  if (!exe->copies[weight]) return kg_weight_plane(w, plane);
  return (const unsigned char *)exe->copies[weight] + w->n_bytes / (size_t)w->planes * (size_t)plane;
}

/* Row `row` of a plane as floats: exe->row, valid until the next call. */
static const float *weight_row(kg_executable *exe, int32_t weight, int64_t plane, int64_t row)
{
  const kg_weight *w = weight_at(exe, weight);
  const kg_type_info *info = kg_type_find(w->type);
  const int64_t n_blocks = w->cols / info->block_size;
  const size_t at = (size_t)(row * n_blocks) * (size_t)info->block_bytes;
  info->dequantize(weight_plane(exe, weight, plane) + at, n_blocks, exe->row);
  return exe->row;
}

static double dot(const float *a, const float *b, int64_t n)
{
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
  return sum;
}

/* ---- rows of values ---- */

static int32_t width_of(const run *r, int32_t value)
{
  return kg_plan_value(r->exe->plan, value)->width;
}

static float *row_of(const run *r, int32_t value, int32_t row)
{
  return r->values[value] + (size_t)row * (size_t)width_of(r, value);
}

/* ---- operations: each computes op->out for all rows of the run ---- */

/* out += a row of a table, where there is one */
static void add_row(const run *r, int32_t table, int32_t row, float *out, int32_t width)
{
  if (table == KG_NONE) return;
  const float *values = weight_row(r->exe, table, 0, row);
  for (int32_t c = 0; c < width; c++) out[c] += values[c];
}

static void embed(const run *r, const kg_op *op)
{
  const int32_t width = width_of(r, op->out);
  for (int32_t i = 0; i < r->n_rows; i++) {
    float *out = row_of(r, op->out, i);
    memcpy(out, weight_row(r->exe, op->w[0], 0, r->batch->tokens[i]), (size_t)width * sizeof *out);
    add_row(r, op->w[1], r->batch->positions[i], out, width);
    add_row(r, op->w[2], 0, out, width);
  }
}

/* out = (x - mean) / sqrt(variance + epsilon), or x / sqrt(mean square + epsilon) */
static void normalize(const float *x, int32_t n, const kg_norm_params *p, float *out)
{
  double mean = 0, square = 0;
  for (int32_t i = 0; i < n; i++) mean += x[i];
  mean = p->subtract_mean ? mean / n : 0;
  for (int32_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  const double factor = 1 / sqrt(square / n + (double)p->epsilon);
  for (int32_t i = 0; i < n; i++) out[i] = (float)((x[i] - mean) * factor);
}

static void norm(const run *r, const kg_op *op)
{
  const kg_norm_params *p = &op->u.norm;
  const int32_t width = width_of(r, op->out), part = width / p->groups;
  for (int32_t i = 0; i < r->n_rows; i++)
    for (int32_t g = 0; g < p->groups; g++)
      normalize(row_of(r, op->in[0], i) + g * part, part, p, row_of(r, op->out, i) + g * part);

  for (int32_t g = 0; g < p->groups; g++) {
    const int32_t weight_group = weight_at(r->exe, op->w[0])->rows > 1 ? g : 0;
    const float *scale = weight_row(r->exe, op->w[0], 0, weight_group);
    for (int32_t i = 0; i < r->n_rows; i++)
      for (int32_t c = 0; c < part; c++) row_of(r, op->out, i)[g * part + c] *= scale[c];
    if (op->w[1] == KG_NONE) continue;
    const float *bias = weight_row(r->exe, op->w[1], 0, weight_group);
    for (int32_t i = 0; i < r->n_rows; i++)
      for (int32_t c = 0; c < part; c++) row_of(r, op->out, i)[g * part + c] += bias[c];
  }
}

static void linear(const run *r, const kg_op *op)
{
  const kg_weight *w = weight_at(r->exe, op->w[0]);
  for (int64_t o = 0; o < w->rows; o++) {
    const float *weights = weight_row(r->exe, op->w[0], 0, o);
    for (int32_t i = 0; i < r->n_rows; i++)
      row_of(r, op->out, i)[o] = (float)dot(weights, row_of(r, op->in[0], i), w->cols);
  }
  if (op->w[1] == KG_NONE) return;
  const float *bias = weight_row(r->exe, op->w[1], 0, 0);
  for (int32_t i = 0; i < r->n_rows; i++)
    for (int64_t o = 0; o < w->rows; o++) row_of(r, op->out, i)[o] += bias[o];
}

static void linear_each(const run *r, const kg_op *op)
{
  const kg_weight *w = weight_at(r->exe, op->w[0]);
  for (int64_t plane = 0; plane < w->planes; plane++)
    for (int64_t o = 0; o < w->rows; o++) {
      const float *weights = weight_row(r->exe, op->w[0], plane, o);
      for (int32_t i = 0; i < r->n_rows; i++)
        row_of(r, op->out, i)[plane * w->rows + o] =
            (float)dot(weights, row_of(r, op->in[0], i) + plane * w->cols, w->cols);
    }
}

/* The span of a row of the run; NULL: it has none (what follows from a given residual). */
static const kg_span *span_of(const run *r, int32_t row)
{
  const int32_t batch_row = r->source ? r->source[row] : row;
  for (int32_t s = 0; s < r->batch->n_spans; s++) {
    const kg_span *span = &r->batch->spans[s];
    if (batch_row >= span->row && batch_row < span->row + span->n_rows) return span;
  }
  return NULL;
}

/* out += factor * B (A x), or of a table B a, a the token's row */
static int adapt_row(const run *r, const kg_op *op, int32_t row, const kg_adapted *adapted, kg_error *err)
{
  const kg_adapter_part *part = kg_adapter_part_of(adapted->adapter, op);
  if (!part) return KG_OK;
  const int32_t rank = part->rank;
  double *down = kg_alloc((size_t)rank * sizeof *down);
  if (!down) return kg_fail_memory(err, (size_t)rank * sizeof *down, "an adapter");
  for (int32_t k = 0; k < rank; k++)
    if (part->is_table)
      down[k] = part->a[(int64_t)r->batch->tokens[r->source ? r->source[row] : row] * rank + k];
    else
      down[k] = dot(part->a + (int64_t)k * part->cols, row_of(r, op->in[0], row), part->cols);
  float *out = row_of(r, op->out, row);
  for (int32_t c = 0; c < part->rows; c++) {
    double sum = 0;
    for (int32_t k = 0; k < rank; k++) sum += part->b[(int64_t)k * part->rows + c] * down[k];
    out[c] = (float)(out[c] + (double)adapted->scale * (double)part->factor * sum);
  }
  kg_free(down);
  return KG_OK;
}

static int adapt(const run *r, const kg_op *op, kg_error *err)
{
  int code = KG_OK;
  for (int32_t row = 0; row < r->n_rows; row++) {
    const kg_span *span = span_of(r, row);
    for (int32_t i = 0; span && i < span->n_adapters && !code; i++)
      code = adapt_row(r, op, row, &span->adapters[i], err);
  }
  return code;
}

static void rope(const run *r, const kg_op *op)
{
  const kg_rope_params *p = &op->u.rope;
  for (int32_t i = 0; i < r->n_rows; i++) {
    float *out = row_of(r, op->out, i);
    memcpy(out, row_of(r, op->in[0], i), (size_t)width_of(r, op->out) * sizeof *out);
    const double magnitude = kg_rope_magnitude(p, r->batch->positions[i]);
    for (int32_t f = 0; f < p->n_dims / 2; f++) {
      const double angle = (double)r->batch->positions[i] * (double)p->inverse_freqs[f];
      const double c = cos(angle) * magnitude, s = sin(angle) * magnitude;
      const int32_t first = p->style == KG_ROPE_HALVES ? f : 2 * f;
      const int32_t second = p->style == KG_ROPE_HALVES ? f + p->n_dims / 2 : 2 * f + 1;
      for (int32_t h = 0; h < p->n_heads; h++) {
        float *a = out + h * p->head_dim + first, *b = out + h * p->head_dim + second;
        const double x = *a, y = *b;
        *a = (float)(x * c - y * s);
        *b = (float)(x * s + y * c);
      }
    }
  }
}

/* What a page holds of a layer, at a position of a span's sequence. */
static float *page_of(const run *r, const kg_span *span, const kg_attention_params *p, int32_t pos)
{
  return r->exe->pages[p->group][span->pages[p->group][pos / KG_PAGE]] + r->exe->layer_at[p->layer];
}

/* The keys of a layer at a position: [kg_key_width] floats. */
static float *key_row(const run *r, const kg_span *span, const kg_attention_params *p, int32_t pos)
{
  return page_of(r, span, p, pos) + (size_t)(pos % KG_PAGE) * (size_t)kg_key_width(p);
}

/* The values: [kg_value_width] floats behind all keys of the page, or the keys themselves. */
static float *value_row(const run *r, const kg_span *span, const kg_attention_params *p, int32_t pos)
{
  if (p->values_in_keys) return key_row(r, span, p, pos);
  const size_t at = (size_t)KG_PAGE * (size_t)kg_key_width(p); /* behind all keys */
  return page_of(r, span, p, pos) + at + (size_t)(pos % KG_PAGE) * (size_t)kg_value_width(p);
}

/* One head of one row: q [head_dim] against positions [first, last]; scores [last - first + 1] is scratch. */
static void attend(const run *r, const kg_op *op, const kg_span *span, int32_t pos, int32_t head, const float *q,
                   double *scores, float *out)
{
  const kg_attention_params *p = &op->u.attention;
  const int32_t last = p->is_bidirectional ? span->pos + span->n_rows - 1 : pos;
  const int32_t first = p->window && pos >= p->window ? pos - p->window + 1 : 0, n = last - first + 1;
  const size_t kv_head = (size_t)(head / (p->n_heads / p->n_kv_heads)), k_at = kv_head * (size_t)p->head_dim;
  const size_t v_at = kv_head * (size_t)(p->values_in_keys ? p->head_dim : p->value_dim);
  double max = -INFINITY, total = 0;
  for (int32_t j = 0; j < n; j++) {
    scores[j] = dot(q, key_row(r, span, p, first + j) + k_at, p->head_dim) * p->scale;
    if (p->softcap > 0) scores[j] = p->softcap * tanh(scores[j] / p->softcap);
    if (scores[j] > max) max = scores[j];
  }
  if (op->w[0] != KG_NONE) { /* a sink takes its share of the softmax and gives nothing */
    const double sink = weight_row(r->exe, op->w[0], 0, 0)[head];
    if (sink > max) max = sink;
    total = exp(sink - max);
  }
  for (int32_t j = 0; j < n; j++) total += scores[j] = exp(scores[j] - max);
  for (int32_t c = 0; c < p->value_dim; c++) {
    double sum = 0;
    for (int32_t j = 0; j < n; j++) sum += scores[j] * value_row(r, span, p, first + j)[v_at + (size_t)c];
    out[c] = (float)(sum / total);
  }
}

static int attention(const run *r, const kg_op *op, kg_error *err)
{
  const kg_attention_params *p = &op->u.attention;
  const size_t key_bytes = (size_t)kg_key_width(p) * sizeof(float);
  const size_t value_bytes = (size_t)kg_value_width(p) * sizeof(float);
  for (int32_t s = 0; s < r->batch->n_spans; s++) {
    const kg_span *span = &r->batch->spans[s];
    const size_t n_positions = (size_t)span->pos + (size_t)span->n_rows;
    double *scores = kg_alloc(n_positions * sizeof *scores);
    if (!scores) return kg_fail_memory(err, n_positions * sizeof *scores, "attention scores");
    for (int32_t i = 0; i < span->n_rows; i++) {
      memcpy(key_row(r, span, p, span->pos + i), row_of(r, op->in[1], span->row + i), key_bytes);
      if (!p->values_in_keys)
        memcpy(value_row(r, span, p, span->pos + i), row_of(r, op->in[2], span->row + i), value_bytes);
    }
    for (int32_t i = 0; i < span->n_rows; i++)
      for (int32_t h = 0; h < p->n_heads; h++)
        attend(r, op, span, span->pos + i, h, row_of(r, op->in[0], span->row + i) + h * p->head_dim, scores,
               row_of(r, op->out, span->row + i) + h * p->value_dim);
    kg_free(scores);
  }
  return KG_OK;
}

/* Each channel by itself: the kernel over the inputs of this row and of those before. */
static void conv(const run *r, const kg_op *op)
{
  const int32_t width = width_of(r, op->out), taps = op->u.conv.taps;
  float *const *slots = r->exe->states.slots;
  for (int32_t s = 0; s < r->batch->n_spans; s++) {
    const kg_span *span = &r->batch->spans[s];
    const kg_conv_rows rows = {.params = &op->u.conv,
                               .state = span->state == KG_NONE ? NULL : slots[span->state] + op->u.conv.state_at,
                               .rows = row_of(r, op->in[0], span->row),
                               .stride = width_of(r, op->in[0]),
                               .width = width,
                               .n_rows = span->n_rows};
    for (int32_t c = 0; c < width; c++) {
      const float *weights = weight_row(r->exe, op->w[0], 0, c);
      for (int32_t i = 0; i < span->n_rows; i++) {
        double sum = 0;
        for (int32_t t = 0; t < taps; t++) {
          const kg_conv_input in = kg_conv_input_at(&rows, i, t);
          const float x = !in.x ? 0 : in.b ? in.b[c] * in.x[c] : in.x[c];
          sum += (double)weights[t] * (double)x;
        }
        row_of(r, op->out, span->row + i)[c] = (float)sum;
      }
    }
    for (int32_t i = 0; i < span->n_rows; i++) {
      float *out = row_of(r, op->out, span->row + i);
      const float *gate = kg_conv_gate(&rows, i);
      add_row(r, op->w[1], 0, out, width);
      for (int32_t c = 0; gate && c < width; c++) out[c] *= gate[c];
    }
    for (int32_t i = 0; i < span->n_states; i++)
      kg_conv_leave(&rows, span->states[i].n_rows, 0, width, slots[span->states[i].slot] + op->u.conv.state_at);
  }
}

static double sigmoid(double x)
{
  return 1 / (1 + exp(-x));
}

static double activate(kg_act_kind kind, double x)
{
  switch (kind) {
  case KG_ACT_SILU: return x * sigmoid(x);
  case KG_ACT_GELU: return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); /* sqrt(2 / pi) */
  case KG_ACT_GELU_ERF: return 0.5 * x * (1 + erf(x * 0.7071067811865476));                       /* sqrt(1 / 2) */
  default: return x > 0 ? x : 0; /* KG_ACT_RELU; the clamped kind is gated only */
  }
}

static float gated(const kg_act *act, double gate, double up)
{
  if (act->kind != KG_ACT_SWIGLU_CLAMPED) return (float)(activate(act->kind, gate) * up);
  gate = fmin(gate, act->limit);
  up = fmax(fmin(up, act->limit), -act->limit);
  return (float)(gate * sigmoid(act->alpha * gate) * (up + 1));
}

/* The index of the best of n numbers that is not taken yet, ties to the lower one; taken then. */
static int32_t take_best(const double *numbers, int32_t n, bool *taken)
{
  int32_t best = KG_NONE;
  for (int32_t i = 0; i < n; i++)
    if (!taken[i] && (best == KG_NONE || numbers[i] > numbers[best])) best = i;
  taken[best] = true;
  return best;
}

/* Leave out the experts of all groups but the best. */
static void limit_groups(const kg_moe_params *p, const double *ranks, bool *taken)
{
  const int32_t n = p->n_experts / p->n_groups;
  double groups[KG_PLAN_MAX_EXPERTS];
  bool group_taken[KG_PLAN_MAX_EXPERTS] = {false};
  for (int32_t g = 0; g < p->n_groups; g++) {
    bool seen[KG_PLAN_MAX_EXPERTS] = {false};
    groups[g] = 0;
    for (int32_t i = 0; i < p->group_top; i++) groups[g] += ranks[g * n + take_best(ranks + g * n, n, seen)];
  }
  for (int32_t i = 0; i < p->n_groups_used; i++) take_best(groups, p->n_groups, group_taken);
  for (int32_t e = 0; e < p->n_experts; e++) taken[e] = !group_taken[e / n];
}

/* Weights in proportion to e^logit, as softmax and, where logits are very low, sigmoid are; the best is 1. Returns
 * their sum. For weights that are next to nothing, where parts may be lost: sigmoids below 1e-308 are 0. */
static double weigh_by_logits(const kg_moe_params *p, const float *logits, const int32_t *used, double *weights)
{
  double max = -INFINITY, sum = 0;
  for (int32_t u = 0; u < p->n_used; u++) max = fmax(max, logits[used[u]]);
  for (int32_t u = 0; u < p->n_used; u++) sum += weights[u] = exp(logits[used[u]] - max);
  return sum;
}

/* The used experts and their weights; `bias` is added to the scores for the choice, or NULL. Softmax and sigmoid keep the
 * order of the logits: where nothing is added to a score, the logits are compared. */
static void choose_experts(const kg_moe_params *p, const float *logits, const float *bias, int32_t *used,
                           double *weights)
{
  double max = -INFINITY, total = 0, sum = 0, scores[KG_PLAN_MAX_EXPERTS], ranks[KG_PLAN_MAX_EXPERTS];
  bool taken[KG_PLAN_MAX_EXPERTS] = {false};
  for (int32_t e = 0; e < p->n_experts; e++) max = fmax(max, logits[e]);
  for (int32_t e = 0; e < p->n_experts; e++) total += exp(logits[e] - max);
  for (int32_t e = 0; e < p->n_experts; e++) {
    scores[e] = p->gate == KG_MOE_SIGMOID ? sigmoid(logits[e]) : exp(logits[e] - max);
    if (p->gate == KG_MOE_SOFTMAX) scores[e] /= total;
    ranks[e] = p->gate == KG_MOE_SOFTMAX_USED || (!bias && p->group_top == 1) ? logits[e] : scores[e];
    if (bias) ranks[e] += bias[e];
  }
  if (p->n_groups_used < p->n_groups) limit_groups(p, ranks, taken);
  for (int32_t u = 0; u < p->n_used; u++) {
    used[u] = take_best(ranks, p->n_experts, taken);
    weights[u] = scores[used[u]];
    sum += weights[u];
  }
  const bool is_relative = p->normalize || p->gate == KG_MOE_SOFTMAX_USED;
  if (is_relative && sum < 1e-290) sum = weigh_by_logits(p, logits, used, weights);
  for (int32_t u = 0; u < p->n_used; u++) {
    if (is_relative) weights[u] /= sum;
    weights[u] *= p->scale;
  }
}

/* y[rows of w] = x * (plane of w)^T + its row of the bias */
static void expert_linear(kg_executable *exe, int32_t weight, int32_t bias, int32_t expert, const float *x, float *y)
{
  const kg_weight *w = weight_at(exe, weight);
  for (int64_t o = 0; o < w->rows; o++) y[o] = (float)dot(weight_row(exe, weight, expert, o), x, w->cols);
  if (bias == KG_NONE) return;
  const float *b = weight_row(exe, bias, 0, expert);
  for (int64_t o = 0; o < w->rows; o++) y[o] += b[o];
}

static int moe(const run *r, const kg_op *op, kg_error *err)
{
  const kg_moe_params *p = &op->u.moe;
  const int32_t width = width_of(r, op->out);
  const size_t n_hidden = (size_t)weight_at(r->exe, op->w[0])->rows;
  const size_t n_floats = 2 * n_hidden + (size_t)width;
  int32_t used[KG_PLAN_MAX_EXPERTS];
  bool was_used[KG_PLAN_MAX_EXPERTS] = {false};
  double weights[KG_PLAN_MAX_EXPERTS], *sum = kg_alloc((size_t)width * sizeof *sum);
  float *gate = kg_alloc(n_floats * sizeof *gate);
  if (!sum || !gate) {
    kg_free(sum);
    kg_free(gate);
    return kg_fail_memory(err, n_floats * sizeof *gate, "experts");
  }
  float *up = gate + n_hidden, *down = up + n_hidden;
  for (int32_t i = 0; i < r->n_rows; i++) {
    const float *x = row_of(r, op->in[0], i);
    const float *bias = op->w[6] == KG_NONE ? NULL : weight_row(r->exe, op->w[6], 0, 0);
    choose_experts(p, row_of(r, op->in[1], i), bias, used, weights);
    for (int32_t c = 0; c < width; c++) sum[c] = 0;
    for (int32_t u = 0; u < p->n_used; u++) {
      if (!was_used[used[u]] && p->n_experts > 1)
        for (int w = 0; w < 3; w++) r->exe->expert_bytes += kg_expert_bytes(weight_at(r->exe, op->w[w]));
      was_used[used[u]] = true;
      expert_linear(r->exe, op->w[0], op->w[3], used[u], x, gate);
      expert_linear(r->exe, op->w[1], op->w[4], used[u], x, up);
      for (size_t c = 0; c < n_hidden; c++) gate[c] = gated(&p->act, gate[c], up[c]);
      expert_linear(r->exe, op->w[2], op->w[5], used[u], gate, down);
      for (int32_t c = 0; c < width; c++) sum[c] += weights[u] * down[c];
    }
    for (int32_t c = 0; c < width; c++) row_of(r, op->out, i)[c] = (float)sum[c];
  }
  kg_free(sum);
  kg_free(gate);
  return KG_OK;
}

/* The operations that look at one column at a time. */
static void columns(const run *r, const kg_op *op)
{
  const int32_t width = width_of(r, op->out);
  for (int32_t i = 0; i < r->n_rows; i++) {
    const float *a = row_of(r, op->in[0], i), *b = op->in[1] == KG_NONE ? NULL : row_of(r, op->in[1], i);
    float *out = row_of(r, op->out, i);
    for (int32_t c = 0; c < width; c++) switch (op->kind) {
      case KG_OP_GLU: out[c] = gated(&op->u.act, a[c], b[c]); break;
      case KG_OP_ACT: out[c] = (float)activate(op->u.act.kind, a[c]); break;
      case KG_OP_ADD: out[c] = a[c] + b[c]; break;
      case KG_OP_SCALE: out[c] = a[c] * op->u.scale; break;
      default: out[c] = (float)(op->u.scale * tanh((double)a[c] / op->u.scale)); break; /* KG_OP_SOFTCAP */
      }
  }
}

static void slice(const run *r, const kg_op *op)
{
  const kg_slice_params *p = &op->u.slice;
  const int32_t part = width_of(r, op->in[0]) / p->groups;
  for (int32_t i = 0; i < r->n_rows; i++)
    for (int32_t c = 0; c < width_of(r, op->out); c++)
      row_of(r, op->out, i)[c] = row_of(r, op->in[0], i)[c / p->width * part + p->first + c % p->width];
}

static void concat(const run *r, const kg_op *op)
{
  const kg_concat_params *p = &op->u.concat;
  const int32_t n_a = width_of(r, op->in[0]) / p->groups, n = width_of(r, op->out) / p->groups, n_b = n - n_a;
  for (int32_t i = 0; i < r->n_rows; i++)
    for (int32_t c = 0; c < width_of(r, op->out); c++) {
      const int32_t group = c / n, at = c % n, b_at = p->is_shared ? at - n_a : group * n_b + at - n_a;
      row_of(r, op->out, i)[c] = at < n_a ? row_of(r, op->in[0], i)[group * n_a + at] : row_of(r, op->in[1], i)[b_at];
    }
}

static int compute(const run *r, const kg_op *op, kg_error *err)
{
  switch (op->kind) {
  case KG_OP_EMBED: embed(r, op); return adapt(r, op, err);
  case KG_OP_NORM: norm(r, op); return KG_OK;
  case KG_OP_LINEAR: linear(r, op); return adapt(r, op, err);
  case KG_OP_LINEAR_EACH: linear_each(r, op); return KG_OK;
  case KG_OP_SLICE: slice(r, op); return KG_OK;
  case KG_OP_CONCAT: concat(r, op); return KG_OK;
  case KG_OP_ROPE: rope(r, op); return KG_OK;
  case KG_OP_ATTENTION: return attention(r, op, err);
  case KG_OP_CONV: conv(r, op); return KG_OK;
  case KG_OP_MOE: return moe(r, op, err);
  default: columns(r, op); return KG_OK;
  }
}

/* ---- running a batch ---- */

static int new_rows(const run *r, int32_t value, float **out, kg_error *err)
{
  size_t n;
  if (!kg_mul_size((size_t)r->n_rows, (size_t)width_of(r, value), &n) || !kg_mul_size(n, sizeof **out, &n))
    n = SIZE_MAX;
  *out = kg_alloc(n);
  return *out ? KG_OK : kg_fail_memory(err, n, kg_plan_value(r->exe->plan, value)->name);
}

/* From here on only the wanted rows matter: gather them, in every value that is still there. */
static int keep_wanted(run *r, int32_t *source, kg_error *err)
{
  const run all = *r;
  r->n_rows = all.batch->n_wanted;
  for (int32_t i = 0; i < r->n_rows; i++) source[i] = all.batch->wanted[i].row;
  r->source = source;
  for (int32_t v = 0; v < kg_plan_value_count(r->exe->plan); v++) {
    if (!all.values[v]) continue;
    float *kept;
    const int code = new_rows(r, v, &kept, err);
    if (code) return code;
    const size_t width = (size_t)width_of(r, v);
    for (int32_t i = 0; i < r->n_rows; i++)
      memcpy(kept + (size_t)i * width, row_of(&all, v, all.batch->wanted[i].row), width * sizeof *kept);
    kg_free(r->values[v]);
    r->values[v] = kept;
  }
  return KG_OK;
}

static void free_values(const run *r)
{
  for (int32_t v = 0; r->values && v < kg_plan_value_count(r->exe->plan); v++) kg_free(r->values[v]);
  kg_free(r->values);
}

static void free_unused(const run *r, int32_t op_index)
{
  const kg_op *op = kg_plan_op(r->exe->plan, op_index);
  const int32_t used[] = {op->out, op->in[0], op->in[1], op->in[2]};
  for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) {
    if (used[i] == KG_NONE || kg_plan_value(r->exe->plan, used[i])->last_use > op_index) continue;
    kg_free(r->values[used[i]]);
    r->values[used[i]] = NULL;
  }
}

static int call_tap(const run *r, const kg_tap *tap, kg_error *err)
{
  const size_t width = (size_t)width_of(r, tap->value);
  int32_t first = 0;
  for (int32_t n; (n = kg_tap_rows(tap, r->source, r->n_rows, &first)) > 0; first += n) {
    float *rows = row_of(r, tap->value, first);
    kg_buffer *copy;
    const int code = kg_host_buffer_new((int64_t)n * (int64_t)width, &copy, err);
    if (code) return code;
    memcpy(copy->data, rows, (size_t)n * width * sizeof *rows);
    tap->call(tap->user, r->batch->positions[r->source ? r->source[first] : first], n, copy);
    memcpy(rows, copy->data, (size_t)n * width * sizeof *rows);
    kg_buffer_unref(copy);
  }
  return KG_OK;
}

static int call_taps(const run *r, int32_t value, kg_error *err)
{
  int code = KG_OK;
  for (int32_t i = 0; i < r->batch->n_taps && !code; i++)
    if (r->batch->taps[i].value == value) code = call_tap(r, &r->batch->taps[i], err);
  return code;
}

static int write_traces(const run *r, int32_t value, kg_error *err)
{
  for (int32_t t = 0; t < r->batch->n_traces; t++) {
    const kg_trace *trace = &r->batch->traces[t];
    if (trace->value != value) continue;
    const int64_t n = (int64_t)r->n_rows * width_of(r, value);
    const int code = trace->buffer->ops->write(trace->buffer, trace->at, n, r->values[value], err);
    if (code) return code;
  }
  return KG_OK;
}

static int write_logits(const run *r, bool rows_are_wanted, kg_error *err)
{
  const int32_t logits = kg_plan_logits(r->exe->plan);
  for (int32_t i = 0; i < r->batch->n_wanted; i++) {
    const kg_wanted *wanted = &r->batch->wanted[i];
    const float *row = row_of(r, logits, rows_are_wanted ? i : wanted->row);
    const int code = wanted->buffer->ops->write(wanted->buffer, wanted->at, width_of(r, logits), row, err);
    if (code) return code;
  }
  return KG_OK;
}

/* With traces every operation is computed for every row; else the plan's tail for the wanted rows only. */
static int run_ops(run *r, int32_t *source, kg_error *err)
{
  const kg_plan *plan = r->exe->plan;
  const bool all_rows = r->batch->n_traces > 0;
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    int code = KG_OK;
    if (i == kg_plan_tail(plan) && !all_rows) {
      if (!r->batch->n_wanted) return KG_OK;
      /* A plan without attention begins with its tail: the rows are picked at the end instead. */
      if (i) code = keep_wanted(r, source, err);
    }
    const kg_op *op = kg_plan_op(plan, i);
    if (!code) code = new_rows(r, op->out, &r->values[op->out], err);
    if (!code) code = compute(r, op, err);
    if (!code) code = call_taps(r, op->out, err);
    if (!code) code = write_traces(r, op->out, err);
    if (code) return code;
    free_unused(r, i);
  }
  return write_logits(r, !all_rows && kg_plan_tail(plan) > 0, err);
}

static int reference_run(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  int code = kg_batch_check(exe->plan, batch, exe->chunk, exe->n_pages, 0, err);
  if (!code) code = kg_batch_check_states(exe->plan, batch, exe->states.n, err);
  if (!code) code = kg_gguf_check_unchanged(kg_plan_gguf(exe->plan), err); /* the weights are read from the file */
  if (code) return code;
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan);
  run r = {.exe = exe, .batch = batch, .n_rows = batch->n_rows};
  r.values = kg_alloc_array(n_values, sizeof *r.values);
  int32_t *source = kg_alloc_array((size_t)batch->n_wanted, sizeof *source);
  code = r.values && source ? run_ops(&r, source, err) : kg_fail_memory(err, n_values * sizeof *r.values, "values");
  free_values(&r);
  kg_free(source);
  return code;
}

static int reference_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                             int64_t logits_at, kg_error *err)
{
  const kg_plan *plan = exe->plan;
  const int32_t from = kg_plan_residual(plan), to = kg_plan_logits(plan);
  const kg_batch none = {.n_rows = n_rows};
  run r = {.exe = exe, .batch = &none, .n_rows = n_rows};
  r.values = kg_alloc_array((size_t)kg_plan_value_count(plan), sizeof *r.values);
  int code = kg_gguf_check_unchanged(kg_plan_gguf(plan), err);
  if (!code && !r.values) code = kg_fail_memory(err, (size_t)kg_plan_value_count(plan) * sizeof *r.values, "values");
  if (!code) code = new_rows(&r, from, &r.values[from], err);
  if (!code) code = x->ops->read(x, at, (int64_t)n_rows * width_of(&r, from), r.values[from], err);
  for (int32_t i = 0; i < kg_plan_op_count(plan) && !code; i++) {
    const kg_op *op = kg_plan_op(plan, i);
    if (!kg_leads_from(plan, from, op->out)) continue;
    code = new_rows(&r, op->out, &r.values[op->out], err);
    if (!code) code = compute(&r, op, err);
  }
  if (!code)
    code = logits->ops->write(logits, logits_at, (int64_t)n_rows * width_of(&r, to), r.values[to], err);
  free_values(&r);
  return code;
}

/* ---- life ---- */

static void reference_release(kg_executable *exe)
{
  if (!exe) return;
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) {
    for (int32_t i = 0; i < exe->n_pages[g]; i++) kg_free(exe->pages[g][i]);
    kg_free(exe->pages[g]);
  }
  if (exe->copies)
    for (int32_t i = 0; i < kg_plan_weight_count(exe->plan); i++) kg_free(exe->copies[i]);
  kg_host_states_deinit(&exe->states);
  kg_free(exe->copies);
  kg_free(exe->layer_at);
  kg_free(exe->row);
  kg_free(exe);
}

static size_t all_weight_bytes(const kg_plan *plan)
{
  size_t sum = 0; /* of tensors that stand in one file: cannot overflow */
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++) sum += kg_plan_weight_at(plan, i)->n_bytes;
  return sum;
}

/* Where each layer stands in a page. The products stay small: 2^12 layers of 2 * KG_PAGE * 2^24 floats. */
static void lay_out_pages(kg_executable *exe)
{
  for (int32_t i = 0; i < kg_plan_layer_count(exe->plan); i++) {
    const kg_attention_params *p = &kg_plan_layer(exe->plan, i)->u.attention;
    exe->layer_at[i] = exe->page_floats[p->group];
    exe->page_floats[p->group] += (size_t)KG_PAGE * ((size_t)kg_key_width(p) + (size_t)kg_value_width(p));
  }
}

static int reference_compile(const kg_plan *plan, const kg_backend_options *options, kg_executable **out, kg_error *err)
{
  if (kg_plan_logits(plan) == KG_NONE) return kg_fail(err, KG_ERR_ARGUMENT, "the plan is not finished");
  kg_executable *exe = kg_alloc_array(1, sizeof *exe);
  if (!exe) return kg_fail_memory(err, sizeof *exe, "the reference backend");
  int64_t longest = 1;
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++)
    if (kg_plan_weight_at(plan, i)->cols > longest) longest = kg_plan_weight_at(plan, i)->cols;
  exe->plan = plan;
  exe->chunk = options->chunk;
  exe->states.n_floats = (size_t)kg_plan_state_size(plan);
  exe->copies = kg_alloc_array((size_t)kg_plan_weight_count(plan), sizeof *exe->copies);
  exe->layer_at = kg_alloc_array((size_t)kg_plan_layer_count(plan), sizeof *exe->layer_at);
  exe->row = kg_alloc_array((size_t)longest, sizeof *exe->row);
  int code = KG_OK;
  if (!exe->copies || !exe->layer_at || !exe->row)
    code = kg_fail_memory(err, (size_t)longest * sizeof *exe->row, "the reference backend");
  const int64_t n_bytes = (int64_t)all_weight_bytes(plan);
  if (!code && options->progress && options->progress(options->progress_user, "load", n_bytes, n_bytes))
    code = kg_fail(err, KG_ERR_CANCELLED, "cancelled while loading");
  if (code) {
    reference_release(exe);
    return code;
  }
  lay_out_pages(exe);
  *out = exe;
  return KG_OK;
}

/* ---- the cache ---- */

static int reference_kv_reserve(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err)
{
  int32_t *n = &exe->n_pages[group];
  if (n_pages <= *n) return KG_OK;
  const int32_t before = *n;
  const size_t floats = exe->page_floats[group];
  float ***pages = &exe->pages[group];
  bool ok = kg_grow((void **)pages, &exe->pages_capacity[group], (size_t)n_pages, sizeof **pages);
  while (ok && *n < n_pages) {
    (*pages)[*n] = kg_alloc_array(floats, sizeof(float));
    ok = (*pages)[*n] != NULL;
    if (ok) ++*n;
  }
  if (ok) return KG_OK;
  while (*n > before) kg_free((*pages)[--*n]);
  return kg_fail_memory(err, floats * sizeof(float), "a cache page");
}

static int reference_kv_copy(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions,
                             kg_error *err)
{
  const int32_t n_pages = exe->n_pages[group];
  if (to < 0 || to >= n_pages || from < 0 || from >= n_pages || n_positions < 0 || n_positions > KG_PAGE)
    return kg_fail(err, KG_ERR_ARGUMENT, "copy of %d positions from page %d to %d of %d", n_positions, from, to,
                   n_pages);
  for (int32_t i = 0; i < kg_plan_layer_count(exe->plan); i++) {
    const kg_attention_params *p = &kg_plan_layer(exe->plan, i)->u.attention;
    const size_t widths[] = {(size_t)kg_key_width(p), (size_t)kg_value_width(p)};
    size_t at = exe->layer_at[i];
    if (p->group != group) continue;
    for (int part = 0; part < 2; at += KG_PAGE * widths[part++])
      memmove(exe->pages[group][to] + at, exe->pages[group][from] + at,
              (size_t)n_positions * widths[part] * sizeof(float));
  }
  return KG_OK;
}

static int reference_state_reserve(kg_executable *exe, int32_t n_slots, kg_error *err)
{
  return kg_host_states_reserve(&exe->states, n_slots, err);
}

static int reference_state_copy(kg_executable *exe, int32_t to, int32_t from, kg_error *err)
{
  return kg_host_states_copy(&exe->states, to, from, err);
}

static int reference_state_read(kg_executable *exe, int32_t slot, float *out, kg_error *err)
{
  return kg_host_states_read(&exe->states, slot, out, err);
}

static int reference_state_write(kg_executable *exe, int32_t slot, const float *in, kg_error *err)
{
  return kg_host_states_write(&exe->states, slot, in, err);
}

static size_t reference_page_bytes(const kg_executable *exe, int32_t group)
{
  return exe->page_floats[group] * sizeof(float);
}

static kg_kv_type reference_kv_type(const kg_executable *exe)
{
  (void)exe;
  return KG_KV_F32;
}

/* The first of the rows' slots: keys and values, and their floats in one slot. */
typedef struct kv_place {
  float *keys, *values;
  size_t key_width, value_width;
} kv_place;

static kv_place find_rows(const kg_executable *exe, const kg_kv_rows *rows)
{
  const kg_attention_params *p = &kg_plan_layer(exe->plan, rows->layer)->u.attention;
  const size_t key_width = (size_t)kg_key_width(p), value_width = (size_t)kg_value_width(p);
  float *keys = exe->pages[p->group][rows->page] + exe->layer_at[rows->layer], *values = keys + KG_PAGE * key_width;
  const size_t slot = (size_t)rows->slot;
  return (kv_place){keys + slot * key_width, values + slot * value_width, key_width, value_width};
}

static int reference_kv_read(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err)
{
  const int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  if (code) return code;
  const kv_place at = find_rows(exe, rows);
  memcpy(keys, at.keys, (size_t)rows->n * at.key_width * sizeof(float));
  memcpy(values, at.values, (size_t)rows->n * at.value_width * sizeof(float));
  return KG_OK;
}

static int reference_kv_write(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values,
                              kg_error *err)
{
  const int code = kg_kv_rows_check(exe->plan, rows, exe->n_pages, err);
  if (code) return code;
  const kv_place at = find_rows(exe, rows);
  memcpy(at.keys, keys, (size_t)rows->n * at.key_width * sizeof(float));
  memcpy(at.values, values, (size_t)rows->n * at.value_width * sizeof(float));
  return KG_OK;
}

/* ---- looking into and damaging weights ---- */

static size_t reference_weight_bytes(const kg_executable *exe, int32_t weight)
{
  return weight_at(exe, weight)->n_bytes;
}

static int check_weight_range(const kg_executable *exe, int32_t weight, size_t at, size_t n, kg_error *err)
{
  if (weight < 0 || weight >= kg_plan_weight_count(exe->plan))
    return kg_fail(err, KG_ERR_ARGUMENT, "weight %d of %d", weight, kg_plan_weight_count(exe->plan));
  const size_t n_bytes = weight_at(exe, weight)->n_bytes;
  if (at > n_bytes || n > n_bytes - at)
    return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: %zu bytes at %zu of %zu", weight_at(exe, weight)->name, n, at,
                   n_bytes);
  return KG_OK;
}

/* Bytes [at, at + n) of all planes. */
static void copy_bytes(const kg_executable *exe, int32_t weight, size_t at, size_t n, unsigned char *out)
{
  const kg_weight *w = weight_at(exe, weight);
  const size_t plane_bytes = w->n_bytes / (size_t)w->planes;
  while (n) {
    const size_t first = at % plane_bytes, left = plane_bytes - first, some = n < left ? n : left;
    memcpy(out, weight_plane(exe, weight, (int64_t)(at / plane_bytes)) + first, some);
    at += some;
    out += some;
    n -= some;
  }
}

static int reference_weight_read(const kg_executable *exe, int32_t weight, size_t at, size_t n, void *out,
                                 kg_error *err)
{
  const int code = check_weight_range(exe, weight, at, n, err);
  if (!code) copy_bytes(exe, weight, at, n, out);
  return code;
}

/* The file is never written to: the first write makes a private copy. */
static int reference_weight_write(kg_executable *exe, int32_t weight, size_t at, size_t n, const void *in,
                                  kg_error *err)
{
  const int code = check_weight_range(exe, weight, at, n, err);
  if (code) return code;
  const kg_weight *w = weight_at(exe, weight);
  if (!exe->copies[weight]) {
    void *copy = kg_alloc(w->n_bytes);
    if (!copy) return kg_fail_memory(err, w->n_bytes, w->name);
    copy_bytes(exe, weight, 0, w->n_bytes, copy);
    exe->copies[weight] = copy;
  }
  memcpy((char *)exe->copies[weight] + at, in, n);
  return KG_OK;
}

static int reference_buffer_new(kg_executable *exe, int64_t n_floats, kg_buffer **out, kg_error *err)
{
  (void)exe;
  return kg_host_buffer_new(n_floats, out, err);
}

static void reference_get_stats(const kg_executable *exe, kg_model_stats *out)
{
  out->device = "reference";
  out->variant = "scalar";
  out->weight_bytes = all_weight_bytes(exe->plan);
  out->kv_bytes = 0;
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) out->kv_bytes += (size_t)exe->n_pages[g] * reference_page_bytes(exe, g);
  out->n_threads = 1;
  out->expert_bytes = exe->expert_bytes;
}

const kg_backend kg_backend_reference = {
    .name = "reference",
    .compile = reference_compile,
    .release = reference_release,
    .run = reference_run,
    .unembed = reference_unembed,
    .kv_reserve = reference_kv_reserve,
    .kv_copy = reference_kv_copy,
    .page_bytes = reference_page_bytes,
    .state_reserve = reference_state_reserve,
    .state_copy = reference_state_copy,
    .state_read = reference_state_read,
    .state_write = reference_state_write,
    .kv_type = reference_kv_type,
    .kv_read = reference_kv_read,
    .kv_write = reference_kv_write,
    .weight_bytes = reference_weight_bytes,
    .weight_read = reference_weight_read,
    .weight_write = reference_weight_write,
    .buffer_new = reference_buffer_new,
    .get_stats = reference_get_stats,
};
