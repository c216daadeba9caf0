/* stages.c - running the stages of a program. One job of the pool per run: every worker walks the stages, shares the
 * items of each, and waits at the barrier behind it. */
#include "executable.h"

#include <math.h>
#include <string.h>

/* Stages [first, end) of the body or of a block of the tail. */
typedef struct stretch {
  size_t first, end;
  int32_t n_rows;
  const int32_t *source, *wanted; /* as in `pass` */
} stretch;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* What a run consists of; read by all workers. */
typedef struct run {
  kg_executable *exe;
  const kg_program *program;
  const kg_batch *batch;
  unsigned char *arena;
  stretch now;      /* where taps cut the run */
  int32_t n_blocks; /* of attention */
  int32_t n_tail;   /* rows that go through the tail */
  size_t trace_end; /* behind the last stage that shows a traced value */
  int32_t n_splits; /* of the longest sequence here */
  bool is_split;    /* attention: splits are items of their own, joined by KG_ROW_COMBINE */
} run;

/* One pass over the body or over a block of the tail, as one worker sees it. */
typedef struct pass {
  const run *run;
  int32_t worker;
  int32_t n_rows;
  const int32_t *source; /* batch row of each row */
  const int32_t *wanted; /* in the tail: index in batch->wanted of each row, or -1 */
  unsigned char *memory; /* of the worker */
  kg_ahead ahead;        /* weights of the next products that this worker has not fetched yet */
} pass;

static const kg_place *place_at(const pass *p, int32_t index) { return &p->run->program->places[index]; }

static void *place_data(const pass *p, int32_t index)
{
  const kg_place *place = place_at(p, index);
  return (place->local ? p->memory : p->run->arena) + place->offset;
}

static float *row_data(const pass *p, int32_t index, int64_t row)
{
  return (float *)place_data(p, index) + row * place_at(p, index)->stride;
}

static const float *vector_of(const pass *p, int32_t weight)
{
  return weight == KG_NONE ? NULL : p->run->exe->weights[weight].vector;
}

/* Two rows of any width that an operation may use while it runs. */
static float *spare_rows(const pass *p)
{
  return (float *)(p->memory + p->run->exe->worker_bytes - p->run->exe->spare_bytes);
}

/* ---- row operations ---- */

static float *angles_of(const kg_executable *exe, const kg_program *program, int32_t rotation, int32_t batch_row)
{
  return exe->angles + exe->angle_offsets[rotation] + (size_t)batch_row * 2 * (size_t)program->rotations[rotation]->n_dims;
}

static void fill_angles(const pass *p, int32_t batch_row)
{
  const kg_program *program = p->run->program;
  for (int32_t r = 0; r < (int32_t)program->n_rotations; r++) {
    const kg_rope_params *rope = program->rotations[r];
    const int32_t n = rope->n_dims, half = n / 2, position = p->run->batch->positions[batch_row];
    const bool halves = rope->style == KG_ROPE_HALVES;
    const float magnitude = (float)kg_rope_magnitude(rope, position);
    float *cosines = angles_of(p->run->exe, program, r, batch_row), *sines = cosines + n;
    for (int32_t i = 0; i < half; i++) {
      const double angle = (double)position * (double)rope->inverse_freqs[i];
      const float c = (float)cos(angle) * magnitude, s = (float)sin(angle) * magnitude;
      const int32_t a = halves ? i : 2 * i, b = halves ? half + i : 2 * i + 1;
      cosines[a] = cosines[b] = c;
      sines[a] = -s;
      sines[b] = s;
    }
  }
}

static void embed(const pass *p, const kg_row_op *op, int32_t batch_row, float *out)
{
  const kg_executable *exe = p->run->exe;
  const kg_batch *batch = p->run->batch;
  exe->kernels->dequantize_row(&exe->weights[op->op->w[0]].packed, 0, batch->tokens[batch_row], out);
  const int32_t rows[] = {batch->positions[batch_row], 0}; /* of the tables of positions and of types */
  for (int i = 0; i < 2; i++) {
    if (op->op->w[1 + i] == KG_NONE) continue;
    float *row = spare_rows(p);
    exe->kernels->dequantize_row(&exe->weights[op->op->w[1 + i]].packed, 0, rows[i], row);
    exe->vector->add(out, row, out, op->width);
  }
}

static void write_cache(const pass *p, const kg_row_op *op, int32_t row)
{
  const kg_executable *exe = p->run->exe;
  const kg_attention_params *a = &op->op->u.attention;
  const kg_cache_layer *layer = &exe->layers[a->layer];
  unsigned char *keys = exe->row_page[a->group][p->source[row]] + layer->offset;
  const float *values = a->values_in_keys ? NULL : row_data(p, op->in[1], row);
  exe->vector->cache_write(a, row_data(p, op->in[0], row), values, exe->row_slot[p->source[row]], exe->half, keys,
                           keys + layer->key_bytes, layer->head_bytes);
}

/* Floats between the rows and between the splits of exe->partials in this run. */
static int64_t split_stride(const kg_attention_params *a) { return a->n_heads * kg_partial_floats(a->value_dim); }

static int64_t row_stride(const run *r, const kg_attention_params *a) { return r->n_splits * split_stride(a); }

static int32_t first_split(const kg_attention_params *a, int32_t pos)
{
  return (a->window && pos >= a->window ? pos - a->window + 1 : 0) / KG_SPLIT;
}

static void combine(const pass *p, const kg_row_op *op, int32_t row, float *out)
{
  if (!p->run->is_split) return;
  const kg_executable *exe = p->run->exe;
  const kg_attention_params *a = &op->op->u.attention;
  const float *sinks = vector_of(p, op->op->w[0]);
  const int32_t pos = p->run->batch->positions[p->source[row]], first = first_split(a, pos);
  const int32_t last = a->is_bidirectional ? exe->row_last[p->source[row]] : pos;
  float *partials = exe->partials + row * row_stride(p->run, a) + first * split_stride(a);
  for (int32_t h = 0; h < a->n_heads; h++)
    exe->vector->combine(partials + h * kg_partial_floats(a->value_dim), split_stride(a), last / KG_SPLIT + 1 - first,
                         sinks ? sinks + h : NULL, a->value_dim, out + (int64_t)h * a->value_dim);
}

/* What experts are ranked by (kg_moe_params), to `ranks`. Softmax and sigmoid keep the order of the logits: where nothing
 * is added to a score, the logits themselves serve. */
static void rank_experts(const kg_moe_params *moe, const float *logits, const float *bias, float *ranks)
{
  if (moe->gate == KG_MOE_SOFTMAX_USED || (!bias && moe->group_top == 1)) {
    for (int32_t e = 0; e < moe->n_experts; e++) ranks[e] = logits[e] + (bias ? bias[e] : 0.0f);
    return;
  }
  float peak = -INFINITY, sum = 0;
  for (int32_t e = 0; e < moe->n_experts; e++) peak = fmaxf(peak, logits[e]);
  for (int32_t e = 0; e < moe->n_experts; e++) sum += expf(logits[e] - peak);
  for (int32_t e = 0; e < moe->n_experts; e++) {
    const float score = moe->gate == KG_MOE_SIGMOID ? 1.0f / (1.0f + expf(-logits[e])) : expf(logits[e] - peak) / sum;
    ranks[e] = score + (bias ? bias[e] : 0.0f);
  }
}

/* The best of n that is not taken yet, ties to the lower index; taken then. */
static int32_t take_best(const float *ranks, int32_t n, bool *taken)
{
  int32_t best = -1;
  for (int32_t i = 0; i < n; i++)
    if (!taken[i] && (best < 0 || ranks[i] > ranks[best])) best = i;
  taken[best] = true;
  return best;
}

/* The experts of all groups but the best count as taken. */
static void take_other_groups(const kg_moe_params *moe, const float *ranks, bool *taken)
{
  const int32_t n = moe->n_experts / moe->n_groups;
  float groups[KG_PLAN_MAX_EXPERTS];
  bool is_used[KG_PLAN_MAX_EXPERTS] = {false};
  for (int32_t g = 0; g < moe->n_groups; g++) {
    const float *in_group = ranks + g * n;
    float first = -INFINITY, second = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
      second = fmaxf(second, fminf(first, in_group[i]));
      first = fmaxf(first, in_group[i]);
    }
    groups[g] = moe->group_top == 2 ? first + second : first;
  }
  for (int32_t i = 0; i < moe->n_groups_used; i++) take_best(groups, moe->n_groups, is_used);
  for (int32_t e = 0; e < moe->n_experts; e++) taken[e] = !is_used[e / n];
}

/* Where the sum is next to nothing, parts of it may be lost: sigmoids below 3e-39 are 0. Then the shares are made of
 * e^logit, which a sigmoid is there, relative to the best. */
static void divide_by_sum(const kg_moe_params *moe, const float *logits, const int32_t *chosen, float *shares)
{
  float sum = 0;
  for (int32_t i = 0; i < moe->n_used; i++) sum += shares[i];
  if (sum < 1e-30f) {
    float peak = -INFINITY;
    for (int32_t i = 0; i < moe->n_used; i++) peak = fmaxf(peak, logits[chosen[i]]);
    sum = 0;
    for (int32_t i = 0; i < moe->n_used; i++) sum += shares[i] = expf(logits[chosen[i]] - peak);
  }
  for (int32_t i = 0; i < moe->n_used; i++) shares[i] /= sum;
}

/* The used experts of a row and the shares of their results. */
static void route(const pass *p, const kg_mixture *m, int32_t row)
{
  const kg_moe_params *moe = &m->op->u.moe;
  const float *logits = row_data(p, m->router, row);
  int32_t *chosen = (int32_t *)place_data(p, m->chosen) + (int64_t)row * moe->n_used;
  float *shares = (float *)place_data(p, m->shares) + (int64_t)row * moe->n_used;
  float ranks[KG_PLAN_MAX_EXPERTS];
  bool taken[KG_PLAN_MAX_EXPERTS] = {false};
  rank_experts(moe, logits, vector_of(p, m->op->w[6]), ranks);
  if (moe->n_groups_used < moe->n_groups) take_other_groups(moe, ranks, taken);
  for (int32_t i = 0; i < moe->n_used; i++) chosen[i] = take_best(ranks, moe->n_experts, taken);
  float peak = -INFINITY, sum = 0;
  for (int32_t e = 0; e < moe->n_experts; e++) peak = fmaxf(peak, logits[e]);
  for (int32_t i = 0; i < moe->n_used; i++)
    shares[i] = moe->gate == KG_MOE_SIGMOID ? 1.0f / (1.0f + expf(-logits[chosen[i]])) : expf(logits[chosen[i]] - peak);
  if (moe->gate == KG_MOE_SOFTMAX) {
    for (int32_t e = 0; e < moe->n_experts; e++) sum += expf(logits[e] - peak);
    for (int32_t i = 0; i < moe->n_used; i++) shares[i] /= sum;
  }
  if (moe->gate == KG_MOE_SOFTMAX_USED) divide_by_sum(moe, logits, chosen, shares);
  if (moe->normalize) divide_by_sum(moe, logits, chosen, shares);
  for (int32_t i = 0; i < moe->n_used; i++) shares[i] *= moe->scale;
}

static void mix(const pass *p, const kg_mixture *m, int32_t row, int64_t width, float *out)
{
  const int32_t n_used = m->op->u.moe.n_used;
  const int32_t *slots = (const int32_t *)place_data(p, m->slots) + (int64_t)row * n_used;
  const float *shares = (const float *)place_data(p, m->shares) + (int64_t)row * n_used;
  p->run->exe->vector->scale(row_data(p, m->down, slots[0]), shares[0], out, width);
  for (int32_t i = 1; i < n_used; i++)
    p->run->exe->vector->add_scaled(out, row_data(p, m->down, slots[i]), shares[i], width);
}

/* Store a row among the packed activations of n_rows rows. A quantizer that is given a stride of 0 and the row's
 * address reads it for any row number. */
static void pack_row(const pass *p, kg_activation_format format, const float *x, int32_t n_rows, int64_t cols,
                     int32_t row, void *packed)
{
  const kg_executable *exe = p->run->exe;
  if (kg_terms(format) == 1) {
    exe->kernels->quantize(format, x, 0, n_rows, cols, row, row + 1, packed);
    return;
  }
  enum { ROWS = KG_PANEL / 2 };
  float *first = spare_rows(p), *second = first + kg_padded(cols);
  const int32_t panel = row / ROWS, in_panel = n_rows - panel * ROWS < ROWS ? n_rows - panel * ROWS : ROWS;
  const int32_t at = panel * KG_PANEL + row % ROWS;
  exe->vector->split_terms(x, cols, first, second);
  exe->kernels->quantize(format, first, 0, 2 * n_rows, cols, at, at + 1, packed);
  exe->kernels->quantize(format, second, 0, 2 * n_rows, cols, at + in_panel, at + in_panel + 1, packed);
}

static void slice(const kg_slice_params *params, int32_t width, const float *x, float *out)
{
  const int32_t part = width / params->groups;
  for (int32_t g = 0; g < params->groups; g++, x += part, out += params->width)
    memcpy(out, x + params->first, (size_t)params->width * sizeof *out);
}

static void concat(const pass *p, const kg_op *op, const float *a, const float *b, float *out)
{
  const kg_concat_params *params = &op->u.concat;
  const kg_plan *plan = p->run->exe->plan;
  const size_t n_a = (size_t)(kg_plan_value(plan, op->in[0])->width / params->groups);
  const size_t n_b = (size_t)(kg_plan_value(plan, op->in[1])->width / (params->is_shared ? 1 : params->groups));
  for (int32_t g = 0; g < params->groups; g++, a += n_a, b += params->is_shared ? 0 : n_b, out += n_a + n_b) {
    memcpy(out, a, n_a * sizeof *out);
    memcpy(out + n_a, b, n_b * sizeof *out);
  }
}

static float *wanted_logits(const pass *p, int32_t row)
{
  if (p->wanted[row] < 0) return NULL;
  const kg_wanted *wanted = &p->run->batch->wanted[p->wanted[row]];
  return (float *)wanted->buffer->data + wanted->at;
}

static void run_row_op(const pass *p, const kg_row_op *op, int32_t row)
{
  const kg_executable *exe = p->run->exe;
  const kg_vector_ops *vector = exe->vector;
  const int32_t batch_row = p->source[row];
  const bool is_float_out = op->out != KG_NONE && place_at(p, op->out)->is_rows;
  float *out = is_float_out ? row_data(p, op->out, row) : NULL;
  const float *a = op->in[0] != KG_NONE && place_at(p, op->in[0])->is_rows ? row_data(p, op->in[0], row) : NULL;
  switch (op->kind) {
  case KG_ROW_ANGLES:
    fill_angles(p, batch_row);
    break;
  case KG_ROW_EMBED:
    embed(p, op, batch_row, out);
    break;
  case KG_ROW_GATHER:
    memcpy(out, row_data(p, op->in[0], batch_row), (size_t)op->width * sizeof *out);
    break;
  case KG_ROW_NORM:
    vector->norm(&op->op->u.norm, a, vector_of(p, op->op->w[0]), vector_of(p, op->op->w[1]),
                 kg_plan_weight_at(exe->plan, op->op->w[0])->rows > 1, out, op->width);
    break;
  case KG_ROW_ROPE: {
    const float *cosines = angles_of(exe, p->run->program, op->index, batch_row);
    vector->rope(&op->op->u.rope, a, cosines, cosines + op->op->u.rope.n_dims, out);
    break;
  }
  case KG_ROW_CACHE:
    write_cache(p, op, row);
    break;
  case KG_ROW_COMBINE:
    combine(p, op, row, out);
    break;
  case KG_ROW_ACT:
    vector->act(&op->op->u.act, a, op->in[1] == KG_NONE ? NULL : row_data(p, op->in[1], row), out, op->width);
    break;
  case KG_ROW_ADD:
    vector->add(a, row_data(p, op->in[1], row), out, op->width);
    break;
  case KG_ROW_SCALE:
    vector->scale(a, op->op->u.scale, out, op->width);
    break;
  case KG_ROW_SOFTCAP:
    vector->softcap(a, op->op->u.scale, out, op->width);
    break;
  case KG_ROW_SLICE:
    slice(&op->op->u.slice, kg_plan_value(exe->plan, op->op->in[0])->width, a, out);
    break;
  case KG_ROW_CONCAT:
    concat(p, op->op, a, row_data(p, op->in[1], row), out);
    break;
  case KG_ROW_QUANTIZE: {
    const kg_place *packed = place_at(p, op->out);
    for (int32_t i = 0; i < packed->parts; i++)
      pack_row(p, packed->format, a + i * op->width, p->n_rows, op->width, row,
               (unsigned char *)place_data(p, op->out) + (size_t)i * packed->part_bytes);
    break;
  }
  case KG_ROW_ROUTE:
    route(p, &p->run->program->mixtures[op->index], row);
    break;
  case KG_ROW_MIX:
    mix(p, &p->run->program->mixtures[op->index], row, op->width, out);
    break;
  case KG_ROW_LOGITS: {
    float *logits = wanted_logits(p, row);
    if (logits) memcpy(logits, a, (size_t)op->width * sizeof *logits);
    break;
  }
  case KG_ROW_TRACE: {
    const kg_trace *trace = exe->trace_of[op->value];
    if (trace)
      memcpy((float *)trace->buffer->data + trace->at + batch_row * op->width, a, (size_t)op->width * sizeof *a);
    break;
  }
  }
}

static void run_rows(const pass *p, const kg_cpu_stage *stage, int64_t row, int64_t end)
{
  for (; row < end; row++)
    for (int32_t i = stage->first; i < stage->end; i++) run_row_op(p, &p->run->program->rows[i], (int32_t)row);
}

/* ---- products ---- */

/* The address that makes a product write its first column, which is row `first` of the weight, to `tile`. */
static float *before_tile(float *tile, int64_t first)
{
  return (float *)((uintptr_t)tile - (uintptr_t)first * sizeof *tile);
}

/* Groups [group0, group1) of a product whose x stands in two terms: the terms are multiplied as rows of their own, in
 * blocks that stay in the second-level cache, and added on the way out. */
static void multiply_terms(const pass *p, const kg_matmul *whole, int64_t group0, int64_t group1)
{
  enum { RESIDENT_BYTES = 256 << 10 }; /* of weights, while blocks of rows pass */
  const kg_executable *exe = p->run->exe;
  const kg_packed *weight = whole->weight;
  float *tile = (float *)p->memory;
  const int64_t block_rows = whole->n_rows < KG_TILE_ROWS ? whole->n_rows : KG_TILE_ROWS;
  int64_t step = KG_TILE_FLOATS / (2 * block_rows * KG_GROUP);
  if (whole->n_rows > block_rows && step > (int64_t)(RESIDENT_BYTES / weight->group_bytes))
    step = (int64_t)(RESIDENT_BYTES / weight->group_bytes);
  if (step < 1) step = 1;
  for (int64_t group = group0; group < group1; group += step) {
    const int64_t end = group + step < group1 ? group + step : group1, column = group * KG_GROUP;
    const int64_t width = (end - group) * KG_GROUP, left = weight->rows - column, n = left < width ? left : width;
    for (int64_t row = 0; row < whole->n_rows; row += block_rows) {
      const int64_t n_rows = whole->n_rows - row < block_rows ? whole->n_rows - row : block_rows;
      const kg_matmul m = {.weight = weight,
                           .plane = whole->plane,
                           .x = (const char *)whole->x + kg_terms_bytes(KG_ACTIVATION_Q8, row, weight->cols),
                           .n_rows = 2 * n_rows,
                           .out = before_tile(tile, column),
                           .out_stride = width};
      exe->kernels->matmul(&m, group, end);
      for (int64_t i = 0; i < n_rows; i++) {
        enum { ROWS = KG_PANEL / 2 };
        const int64_t panel = i / ROWS, in_panel = n_rows - panel * ROWS < ROWS ? n_rows - panel * ROWS : ROWS;
        const float *first = tile + (panel * KG_PANEL + i % ROWS) * width;
        exe->vector->sum_terms(first, first + in_panel * width, whole->bias ? whole->bias + column : NULL,
                               whole->residual ? whole->residual + (row + i) * whole->residual_stride + column : NULL,
                               whole->out + (row + i) * whole->out_stride + column, n);
      }
    }
  }
}

static void multiply(const pass *p, const kg_matmul *m, int64_t group0, int64_t group1)
{
  const kg_kernels *kernels = p->run->exe->kernels;
  if (kg_terms(kernels->format(m->weight->type)) == 2)
    multiply_terms(p, m, group0, group1);
  else
    kernels->matmul(m, group0, group1);
}

/* Groups [group0, group1), counted through the planes, of a product that has a plane for each part of x. */
static void multiply_each(const pass *p, const kg_product *product, int64_t group0, int64_t group1)
{
  const kg_packed *weight = &p->run->exe->weights[product->weight].packed;
  while (group0 < group1) {
    const int64_t plane = group0 / weight->n_groups, first = group0 % weight->n_groups;
    const int64_t left = weight->n_groups - first, n = group1 - group0 < left ? group1 - group0 : left;
    const size_t x_at = (size_t)plane * place_at(p, product->x)->part_bytes;
    const kg_matmul m = {.weight = weight,
                         .plane = plane,
                         .x = (const unsigned char *)place_data(p, product->x) + x_at,
                         .n_rows = p->n_rows,
                         .out = row_data(p, product->out, 0) + plane * weight->rows,
                         .out_stride = place_at(p, product->out)->stride};
    multiply(p, &m, first, first + n);
    group0 += n;
  }
}

static void run_products(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const kg_executable *exe = p->run->exe;
  int64_t before = 0; /* groups of the products so far */
  for (int32_t i = stage->first; i < stage->end && before < end; i++) {
    const kg_product *product = &p->run->program->products[i];
    const int64_t group0 = item > before ? item - before : 0;
    const int64_t group1 = end - before < product->n_groups ? end - before : product->n_groups;
    before += product->n_groups;
    if (group0 >= group1) continue;
    if (product->planes > 1) {
      multiply_each(p, product, group0, group1);
      continue;
    }
    kg_matmul m = {.weight = &exe->weights[product->weight].packed,
                   .x = place_data(p, product->x),
                   .n_rows = p->n_rows,
                   .bias = vector_of(p, product->bias),
                   .out = row_data(p, product->out, 0),
                   .out_stride = place_at(p, product->out)->stride};
    if (product->residual != KG_NONE) {
      m.residual = row_data(p, product->residual, 0);
      m.residual_stride = place_at(p, product->residual)->stride;
    }
    multiply(p, &m, group0, group1);
  }
}

/* The head's results pass through a small tile on their way to where they are wanted: logits of all rows together would
 * be the largest intermediate result by far. */
static void run_head(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const kg_executable *exe = p->run->exe;
  const kg_product *product = &p->run->program->products[stage->first];
  const kg_packed *weight = &exe->weights[product->weight].packed;
  enum { WIDTH = KG_HEAD_GROUPS * KG_GROUP };
  float *tile = (float *)p->memory + KG_TILE_FLOATS;
  for (; item < end; item += KG_HEAD_GROUPS) {
    const int64_t group1 = item + KG_HEAD_GROUPS < end ? item + KG_HEAD_GROUPS : end, first = item * KG_GROUP;
    const int64_t n = (group1 * KG_GROUP < weight->rows ? group1 * KG_GROUP : weight->rows) - first;
    const kg_matmul m = {.weight = weight,
                         .x = place_data(p, product->x),
                         .n_rows = p->n_rows,
                         .bias = vector_of(p, product->bias),
                         .out = before_tile(tile, first),
                         .out_stride = WIDTH};
    multiply(p, &m, item, group1);
    for (int32_t row = 0; row < p->n_rows; row++) {
      float *logits = wanted_logits(p, row), *from = tile + (int64_t)row * WIDTH;
      if (!logits) continue;
      for (size_t i = 0; i < p->run->program->n_post; i++) {
        const kg_op *op = p->run->program->post[i];
        if (op->kind == KG_OP_SCALE)
          exe->vector->scale(from, op->u.scale, from, n);
        else
          exe->vector->softcap(from, op->u.scale, from, n);
      }
      memcpy(logits + first, from, (size_t)n * sizeof *logits);
    }
  }
}

/* ---- adapters ---- */

/* Those of a row of the pass; NULL: it has none. */
static const kg_span *adapted_span(const pass *p, int64_t row)
{
  const kg_span *span = &p->run->batch->spans[p->run->exe->row_span[p->source[row]]];
  return span->n_adapters ? span : NULL;
}

/* Items of A x of one row: its ranks in parts of KG_ADAPTED_RANKS. */
static int64_t adapted_parts(const run *r)
{
  return (r->exe->adapted_stride + KG_ADAPTED_RANKS - 1) / KG_ADAPTED_RANKS;
}

static int64_t adapted_blocks(const run *r, const kg_cpu_stage *stage)
{
  const int32_t value = kg_plan_op(r->exe->plan, stage->first)->out;
  return (kg_plan_value(r->exe->plan, value)->width + KG_ADAPTED_COLUMNS - 1) / KG_ADAPTED_COLUMNS;
}

static void run_adapt_in(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const kg_executable *exe = p->run->exe;
  const kg_op *op = kg_plan_op(exe->plan, stage->first);
  const int64_t n_parts = adapted_parts(p->run);
  for (; item < end; item++) {
    const int64_t row = item / n_parts, from = item % n_parts * KG_ADAPTED_RANKS;
    const kg_span *span = adapted_span(p, row);
    const float *x = span && stage->in != KG_NONE ? row_data(p, stage->in, row) : NULL;
    float *out = exe->adapted + row * exe->adapted_stride;
    int64_t at = 0; /* of the adapter's first rank in the row */
    for (int32_t i = 0; span && i < span->n_adapters; i++) {
      const kg_adapter_part *part = kg_adapter_part_of(span->adapters[i].adapter, op);
      if (!part) continue;
      for (int64_t k = most(from - at, 0); k < part->rank && at + k < from + KG_ADAPTED_RANKS; k++)
        out[at + k] = part->is_table ? part->a[p->run->batch->tokens[p->source[row]] * (int64_t)part->rank + k]
                                     : exe->vector->dot(part->a + k * part->cols, x, part->cols);
      at += part->rank;
    }
  }
}

static void run_adapt_out(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const kg_executable *exe = p->run->exe;
  const kg_op *op = kg_plan_op(exe->plan, stage->first);
  const int64_t n_blocks = adapted_blocks(p->run, stage), width = kg_plan_value(exe->plan, op->out)->width;
  for (; item < end; item++) {
    const int64_t row = item / n_blocks, first = item % n_blocks * KG_ADAPTED_COLUMNS;
    const int64_t n = least(KG_ADAPTED_COLUMNS, width - first);
    const kg_span *span = adapted_span(p, row);
    float *out = row_data(p, stage->out, row) + first;
    const float *down = exe->adapted + row * exe->adapted_stride;
    memcpy(out, row_data(p, stage->in, row) + first, (size_t)n * sizeof *out);
    for (int32_t i = 0; span && i < span->n_adapters; i++) {
      const kg_adapter_part *part = kg_adapter_part_of(span->adapters[i].adapter, op);
      if (!part) continue;
      const float factor = span->adapters[i].scale * part->factor;
      for (int32_t k = 0; k < part->rank; k++)
        exe->vector->add_scaled(out, part->b + (int64_t)k * part->rows + first, factor * *down++, n);
    }
  }
}

/* ---- attention ---- */

/* Heads of a kv head are taken in parts of at most KG_ATTENTION_PAIRS. */
static int32_t head_parts(const kg_attention_params *a)
{
  return (a->n_heads / a->n_kv_heads + KG_ATTENTION_PAIRS - 1) / KG_ATTENTION_PAIRS;
}

static int64_t attention_items(const run *r, const kg_attention_params *a)
{
  return (int64_t)r->n_blocks * a->n_kv_heads * head_parts(a) * (r->is_split ? r->n_splits : 1);
}

static void run_attention(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const run *r = p->run;
  const kg_executable *exe = r->exe;
  const kg_op *op = kg_plan_op(exe->plan, stage->first);
  const kg_attention_params *a = &op->u.attention;
  const kg_cache_layer *layer = &exe->layers[a->layer];
  const float *sinks = vector_of(p, op->w[0]);
  const int32_t n_parts = head_parts(a), group = a->n_heads / a->n_kv_heads;
  for (; item < end; item++) {
    int64_t rest = item;
    const int32_t split = r->is_split ? (int32_t)(rest % r->n_splits) : 0;
    if (r->is_split) rest /= r->n_splits;
    const int32_t part = (int32_t)(rest % n_parts);
    rest /= n_parts;
    const int32_t kv_head = (int32_t)(rest % a->n_kv_heads);
    const kg_row_block *block = &exe->blocks[rest / a->n_kv_heads];
    const kg_span *span = &r->batch->spans[block->span];
    const int32_t first_head = kv_head * group + part * KG_ATTENTION_PAIRS;
    const int32_t left = group - part * KG_ATTENTION_PAIRS;
    const size_t keys = layer->offset + (size_t)kv_head * layer->head_bytes;
    const int32_t last = a->is_bidirectional ? exe->row_last[block->row] : block->pos + block->n_rows - 1;
    const kg_attention_block b = {.q = row_data(p, stage->in, block->row) + (int64_t)first_head * a->head_dim,
                                  .out = row_data(p, stage->out, block->row) + (int64_t)first_head * a->value_dim,
                                  .q_stride = place_at(p, stage->in)->stride,
                                  .out_stride = place_at(p, stage->out)->stride,
                                  .n_rows = block->n_rows,
                                  .n_heads = left < KG_ATTENTION_PAIRS ? left : KG_ATTENTION_PAIRS,
                                  .head_dim = a->head_dim,
                                  .value_dim = a->value_dim,
                                  .values_in_keys = a->values_in_keys,
                                  .pos = block->pos,
                                  .end = a->is_bidirectional ? last + 1 : 0,
                                  .window = a->window,
                                  .scale = a->scale,
                                  .softcap = a->softcap,
                                  .sinks = sinks ? sinks + first_head : NULL,
                                  .pages = span->pages[a->group],
                                  .page_data = exe->pages[a->group],
                                  .k_offset = keys,
                                  .v_offset = keys + layer->key_bytes,
                                  .half = exe->half,
                                  .scratch = (float *)p->memory};
    if (!r->is_split) {
      exe->vector->attend(&b);
    } else if (split >= first_split(a, block->pos) && split <= last / KG_SPLIT) {
      float *partials = exe->partials + block->row * row_stride(r, a) + split * split_stride(a);
      exe->vector->attend_split(&b, split, partials + first_head * kg_partial_floats(a->value_dim), row_stride(r, a));
    }
  }
}

/* ---- convolutions ---- */

static int64_t conv_blocks(const kg_executable *exe, const kg_op *op)
{
  return (kg_plan_value(exe->plan, op->out)->width + KG_CONV_CHANNELS - 1) / KG_CONV_CHANNELS;
}

/* Items: some channels of a span, from its first row to its last, and their part of the states that it leaves. */
static void run_conv(const pass *p, const kg_cpu_stage *stage, int64_t item, int64_t end)
{
  const kg_executable *exe = p->run->exe;
  const kg_op *op = kg_plan_op(exe->plan, stage->first);
  const int64_t n_blocks = conv_blocks(exe, op), state_at = op->u.conv.state_at;
  const int32_t width = kg_plan_value(exe->plan, op->out)->width;
  for (; item < end; item++) {
    const kg_span *span = &p->run->batch->spans[item / n_blocks];
    const int32_t first = (int32_t)(item % n_blocks) * KG_CONV_CHANNELS;
    const int32_t last = (int32_t)least(width, first + KG_CONV_CHANNELS);
    const kg_conv_rows rows = {.params = &op->u.conv,
                               .state = span->state == KG_NONE ? NULL : exe->states.slots[span->state] + state_at,
                               .rows = row_data(p, stage->in, span->row),
                               .stride = place_at(p, stage->in)->stride,
                               .width = width,
                               .n_rows = span->n_rows};
    exe->vector->conv(&rows, vector_of(p, op->w[0]), vector_of(p, op->w[1]), first, last,
                      row_data(p, stage->out, span->row), place_at(p, stage->out)->stride);
    for (int32_t i = 0; i < span->n_states; i++)
      kg_conv_leave(&rows, span->states[i].n_rows, first, last, exe->states.slots[span->states[i].slot] + state_at);
  }
}

/* ---- mixtures of experts ---- */

/* List the (row, rank) pairs by expert, then row. */
static void sort_pairs(const pass *p, const kg_mixture *m)
{
  const kg_moe_params *moe = &m->op->u.moe;
  const int32_t *chosen = place_data(p, m->chosen);
  int32_t *pairs = place_data(p, m->pairs), *slots = place_data(p, m->slots), *bounds = place_data(p, m->bounds);
  const int32_t n_pairs = p->n_rows * moe->n_used;
  memset(bounds, 0, ((size_t)moe->n_experts + 1) * sizeof *bounds);
  for (int32_t i = 0; i < n_pairs; i++) bounds[chosen[i] + 1]++;
  for (int32_t e = 0; e < moe->n_experts; e++) bounds[e + 1] += bounds[e];
  for (int32_t i = 0; i < n_pairs; i++) { /* bounds[e] counts up to bounds[e + 1] and is put back below */
    const int32_t slot = bounds[chosen[i]]++;
    pairs[slot] = i;
    slots[i] = slot;
  }
  for (int32_t e = moe->n_experts; e > 0; e--) bounds[e] = bounds[e - 1];
  bounds[0] = 0;
}

/* Packed activations of an expert: each starts at a whole panel. */
static void *expert_packed(const pass *p, const kg_mixture *m, int32_t place, int64_t cols, int32_t expert)
{
  const int32_t *bounds = place_data(p, m->bounds);
  int64_t panels = 0;
  for (int32_t e = 0; e < expert; e++) panels += (bounds[e + 1] - bounds[e] + KG_PANEL - 1) / KG_PANEL;
  const size_t panel_bytes = kg_terms_bytes(place_at(p, place)->format, KG_PANEL, cols);
  return (unsigned char *)place_data(p, place) + (size_t)panels * panel_bytes;
}

static int32_t expert_of(const pass *p, const kg_mixture *m, int32_t slot)
{
  return ((const int32_t *)place_data(p, m->chosen))[((const int32_t *)place_data(p, m->pairs))[slot]];
}

static void pack_pair(const pass *p, const kg_mixture *m, int32_t place, int64_t cols, int32_t slot, const float *row)
{
  const int32_t *bounds = place_data(p, m->bounds);
  const int32_t expert = expert_of(p, m, slot), at = slot - bounds[expert];
  pack_row(p, place_at(p, place)->format, row, bounds[expert + 1] - bounds[expert], cols, at,
           expert_packed(p, m, place, cols, expert));
}

static void pairs_in(const pass *p, const kg_mixture *m, int64_t slot, int64_t end)
{
  const int64_t cols = p->run->exe->weights[m->op->w[0]].packed.cols;
  const int32_t *pairs = place_data(p, m->pairs);
  for (; slot < end; slot++) {
    const float *x = row_data(p, m->x, pairs[slot] / m->op->u.moe.n_used);
    pack_pair(p, m, m->x_packed[0], cols, (int32_t)slot, x);
    if (m->x_packed[1] != m->x_packed[0]) pack_pair(p, m, m->x_packed[1], cols, (int32_t)slot, x);
  }
}

static void pairs_act(const pass *p, const kg_mixture *m, int64_t slot, int64_t end)
{
  const int64_t cols = p->run->exe->weights[m->op->w[2]].packed.cols;
  for (; slot < end; slot++) {
    float *gate = row_data(p, m->gate, slot);
    p->run->exe->vector->act(&m->op->u.moe.act, gate, row_data(p, m->up, slot), gate, cols);
    pack_pair(p, m, m->packed, cols, (int32_t)slot, gate);
  }
}

/* Groups [group0, group1) of weight `which` of one expert. */
static void expert_product(const pass *p, const kg_mixture *m, int which, int32_t expert, int32_t x, int32_t out,
                           int64_t group0, int64_t group1)
{
  kg_executable *exe = p->run->exe;
  const kg_packed *weight = &exe->weights[m->op->w[which]].packed;
  const int32_t *bounds = place_data(p, m->bounds);
  const int32_t n_rows = bounds[expert + 1] - bounds[expert];
  if (!n_rows || group0 >= group1) return;
  if (!group0 && m->op->u.moe.n_experts > 1) /* whoever begins with it, counts it */
    atomic_fetch_add_explicit(&exe->expert_bytes, kg_expert_bytes(kg_plan_weight_at(exe->plan, m->op->w[which])),
                              memory_order_relaxed);
  const float *biases = vector_of(p, m->op->w[3 + which]);
  const kg_matmul product = {.weight = weight,
                             .plane = expert,
                             .x = expert_packed(p, m, x, weight->cols, expert),
                             .n_rows = n_rows,
                             .bias = biases ? biases + expert * weight->rows : NULL,
                             .out = row_data(p, out, bounds[expert]),
                             .out_stride = place_at(p, out)->stride};
  multiply(p, &product, group0, group1);
}

/* Items: the groups of gate and up of each expert in turn. */
static void experts_up(const pass *p, const kg_mixture *m, int64_t item, int64_t end)
{
  const int64_t n_gate = p->run->exe->weights[m->op->w[0]].packed.n_groups;
  const int64_t n_both = n_gate + p->run->exe->weights[m->op->w[1]].packed.n_groups;
  while (item < end) {
    const int32_t expert = (int32_t)(item / n_both);
    const int64_t first = item % n_both, last = least(first + end - item, n_both);
    expert_product(p, m, 0, expert, m->x_packed[0], m->gate, first, least(last, n_gate));
    expert_product(p, m, 1, expert, m->x_packed[1], m->up, most(first, n_gate) - n_gate, last - n_gate);
    item += last - first;
  }
}

static void experts_down(const pass *p, const kg_mixture *m, int64_t item, int64_t end)
{
  const int64_t n_groups = p->run->exe->weights[m->op->w[2]].packed.n_groups;
  while (item < end) {
    const int64_t first = item % n_groups, last = least(first + end - item, n_groups);
    expert_product(p, m, 2, (int32_t)(item / n_groups), m->packed, m->down, first, last);
    item += last - first;
  }
}

/* ---- stages ---- */

static int64_t item_count(const pass *p, const kg_cpu_stage *stage)
{
  const kg_executable *exe = p->run->exe;
  if (stage->kind == KG_CPU_STAGE_ROWS) return p->n_rows;
  if (stage->kind == KG_CPU_STAGE_PRODUCTS || stage->kind == KG_CPU_STAGE_HEAD) return stage->n_groups;
  if (stage->kind == KG_CPU_STAGE_ATTENTION)
    return attention_items(p->run, &kg_plan_op(exe->plan, stage->first)->u.attention);
  if (stage->kind == KG_CPU_STAGE_CONV)
    return p->run->batch->n_spans * conv_blocks(exe, kg_plan_op(exe->plan, stage->first));
  if (stage->kind == KG_CPU_STAGE_ADAPT_IN) return p->n_rows * adapted_parts(p->run);
  if (stage->kind == KG_CPU_STAGE_ADAPT_OUT) return p->n_rows * adapted_blocks(p->run, stage);
  const kg_mixture *m = &p->run->program->mixtures[stage->first];
  const kg_moe_params *moe = &m->op->u.moe;
  switch (stage->kind) {
  case KG_CPU_STAGE_PAIRS_IN:
  case KG_CPU_STAGE_PAIRS_ACT:
    return (int64_t)p->n_rows * moe->n_used;
  case KG_CPU_STAGE_EXPERTS_UP:
    return moe->n_experts * (exe->weights[m->op->w[0]].packed.n_groups + exe->weights[m->op->w[1]].packed.n_groups);
  case KG_CPU_STAGE_EXPERTS_DOWN:
    return moe->n_experts * exe->weights[m->op->w[2]].packed.n_groups;
  default:
    return 1;
  }
}

/* How many items a worker takes at once: few enough that the others can help at the end. */
static int64_t grain_of(const pass *p, const kg_cpu_stage *stage, int64_t n_items)
{
  const int64_t n_workers = kg_pool_size(p->run->exe->pool);
  if (stage->kind == KG_CPU_STAGE_ATTENTION || stage->kind == KG_CPU_STAGE_CONV || stage->kind == KG_CPU_STAGE_SORT)
    return 1;
  if (stage->kind == KG_CPU_STAGE_ROWS) return n_items >= 4 * KG_PANEL * n_workers ? KG_PANEL : 1;
  return most(n_items / (n_workers * 8), 1);
}

/* With few rows, products are bound by memory: what a worker's part of them begins with is fetched while it waits for
 * others that have a row of their own to work on. */
static kg_ahead weights_ahead(const pass *p, const kg_cpu_stage *stage)
{
  const kg_executable *exe = p->run->exe;
  const int64_t n_workers = kg_pool_size(exe->pool);
  int64_t group = stage->n_groups * p->worker / n_workers;
  if (p->n_rows > KG_SPLIT_ROWS) return (kg_ahead){NULL, NULL};
  const kg_product *product = &p->run->program->products[stage->first];
  while (group >= product->n_groups) group -= product++->n_groups;
  const kg_packed *weight = &exe->weights[product->weight].packed;
  const size_t left = (size_t)(product->n_groups - group) * weight->group_bytes; /* planes stand one after the other */
  const char *at = (const char *)weight->data + (size_t)group * weight->group_bytes;
  return (kg_ahead){at, at + (left < KG_AHEAD_BYTES ? left : KG_AHEAD_BYTES)};
}

static void run_stage(pass *p, const kg_cpu_stage *stage)
{
  kg_pool *pool = p->run->exe->pool;
  const int64_t n_items = item_count(p, stage);
  const kg_mixture *m = stage->kind >= KG_CPU_STAGE_SORT ? &p->run->program->mixtures[stage->first] : NULL;
  kg_phase phase = kg_phase_begin(pool, p->worker, n_items, grain_of(p, stage, n_items));
  for (int64_t item, end; kg_phase_next(&phase, &item, &end);) switch (stage->kind) {
    case KG_CPU_STAGE_ROWS:
      run_rows(p, stage, item, end);
      break;
    case KG_CPU_STAGE_PRODUCTS:
      run_products(p, stage, item, end);
      break;
    case KG_CPU_STAGE_HEAD:
      run_head(p, stage, item, end);
      break;
    case KG_CPU_STAGE_ATTENTION:
      run_attention(p, stage, item, end);
      break;
    case KG_CPU_STAGE_CONV:
      run_conv(p, stage, item, end);
      break;
    case KG_CPU_STAGE_TAP: /* never: run_between_taps stops before it */
      break;
    case KG_CPU_STAGE_ADAPT_IN:
      run_adapt_in(p, stage, item, end);
      break;
    case KG_CPU_STAGE_ADAPT_OUT:
      run_adapt_out(p, stage, item, end);
      break;
    case KG_CPU_STAGE_SORT:
      sort_pairs(p, m);
      break;
    case KG_CPU_STAGE_PAIRS_IN:
      pairs_in(p, m, item, end);
      break;
    case KG_CPU_STAGE_EXPERTS_UP:
      experts_up(p, m, item, end);
      break;
    case KG_CPU_STAGE_PAIRS_ACT:
      pairs_act(p, m, item, end);
      break;
    case KG_CPU_STAGE_EXPERTS_DOWN:
      experts_down(p, m, item, end);
      break;
    }
  kg_pool_barrier(pool, p->worker, &p->ahead);
}

static bool is_products(const kg_cpu_stage *stage)
{
  return stage->kind == KG_CPU_STAGE_PRODUCTS || stage->kind == KG_CPU_STAGE_HEAD;
}

/* Run stages [first, end), the weights of the next products always in view. */
static void run_stages(pass *p, size_t first, size_t end)
{
  const kg_cpu_stage *stages = p->run->program->stages;
  for (size_t i = first, next = first; i < end; i++) {
    if (next <= i) {
      next = i + 1;
      while (next < end && !is_products(&stages[next])) next++;
      p->ahead = next < end ? weights_ahead(p, &stages[next]) : (kg_ahead){NULL, NULL};
    }
    run_stage(p, &stages[i]);
  }
}

/* Of a block of the tail whose logits nobody wants, only what traces show is computed. */
static size_t tail_end(const run *r, const int32_t *wanted, int32_t n_rows)
{
  for (int32_t i = 0; i < n_rows; i++)
    if (wanted[i] >= 0) return r->program->n_stages;
  return r->trace_end;
}

static void run_job(void *arg, int32_t worker)
{
  const run *r = arg;
  const kg_executable *exe = r->exe;
  const kg_program *program = r->program;
  pass p = {.run = r,
            .worker = worker,
            .n_rows = r->batch->n_rows,
            .source = exe->identity,
            .memory = exe->worker_memory + (size_t)worker * exe->worker_bytes};
  run_stages(&p, 0, (size_t)program->n_body);
  for (int32_t row = 0; row < r->n_tail; row += program->tail_rows) {
    p.n_rows = (int32_t)least(program->tail_rows, r->n_tail - row);
    p.source = exe->tail_source + row;
    p.wanted = exe->tail_wanted + row;
    run_stages(&p, (size_t)program->n_body, tail_end(r, p.wanted, p.n_rows));
  }
}

/* ---- taps ---- */

static void run_stretch(void *arg, int32_t worker)
{
  const run *r = arg;
  const kg_executable *exe = r->exe;
  pass p = {.run = r,
            .worker = worker,
            .n_rows = r->now.n_rows,
            .source = r->now.source,
            .wanted = r->now.wanted,
            .memory = exe->worker_memory + (size_t)worker * exe->worker_bytes};
  run_stages(&p, r->now.first, r->now.end);
}

/* Rows in the place of a tapped value to a buffer, the call, and back. */
static int call_tap(const pass *p, const kg_tap *tap, int32_t place, kg_error *err)
{
  const kg_batch *batch = p->run->batch;
  const int64_t width = kg_plan_value(p->run->exe->plan, tap->value)->width;
  int32_t first = 0;
  for (int32_t n; (n = kg_tap_rows(tap, p->source, p->n_rows, &first)) > 0; first += n) {
    kg_buffer *rows;
    const int code = kg_host_buffer_new(n * width, &rows, err);
    if (code) return code;
    float *copy = rows->data;
    for (int32_t i = 0; i < n; i++) memcpy(copy + i * width, row_data(p, place, first + i), (size_t)width * sizeof *copy);
    tap->call(tap->user, batch->positions[p->source[first]], n, rows);
    for (int32_t i = 0; i < n; i++) memcpy(row_data(p, place, first + i), copy + i * width, (size_t)width * sizeof *copy);
    kg_buffer_unref(rows);
  }
  return KG_OK;
}

static int run_tap(const run *r, const kg_cpu_stage *stage, kg_error *err)
{
  const pass p = {.run = r, .n_rows = r->now.n_rows, .source = r->now.source};
  const kg_place *place = place_at(&p, stage->out); /* laid out as the place before: neither is local */
  memcpy(row_data(&p, stage->out, 0), row_data(&p, stage->in, 0),
         (size_t)p.n_rows * (size_t)place->stride * sizeof(float));
  int code = KG_OK;
  for (int32_t i = 0; i < r->batch->n_taps && !code; i++)
    if (r->batch->taps[i].value == stage->first) code = call_tap(&p, &r->batch->taps[i], stage->out, err);
  return code;
}

static int run_between_taps(run *r, stretch whole, kg_error *err)
{
  const kg_cpu_stage *stages = r->program->stages;
  int code = KG_OK;
  for (size_t at = whole.first; at < whole.end && !code;) {
    size_t stop = at;
    while (stop < whole.end && stages[stop].kind != KG_CPU_STAGE_TAP) stop++;
    r->now = whole;
    r->now.first = at;
    r->now.end = stop;
    if (stop > at) kg_pool_run(r->exe->pool, run_stretch, r);
    if (stop < whole.end) code = run_tap(r, &stages[stop], err);
    at = stop + 1;
  }
  return code;
}

/* As run_job, on the caller's thread where it stops. */
static int run_with_taps(run *r, kg_error *err)
{
  const kg_executable *exe = r->exe;
  const size_t n_body = (size_t)r->program->n_body;
  const int32_t step = r->program->tail_rows;
  int code = run_between_taps(r, (stretch){0, n_body, r->batch->n_rows, exe->identity, NULL}, err);
  for (int32_t row = 0; row < r->n_tail && !code; row += step)
    code = run_between_taps(r, (stretch){n_body, r->program->n_stages, (int32_t)least(step, r->n_tail - row),
                                      exe->tail_source + row, exe->tail_wanted + row}, err);
  return code;
}

void kg_cpu_run_unembedding(kg_executable *exe, const float *x, const kg_wanted *wanted, int32_t n_rows)
{
  const kg_program *program = &exe->unembedding;
  const kg_batch batch = {.n_rows = n_rows, .n_wanted = n_rows, .wanted = wanted};
  run r = {.exe = exe, .program = program, .batch = &batch, .arena = exe->unembedding_arena};
  r.now = (stretch){1, program->n_stages, n_rows, exe->identity, exe->identity}; /* stage 0 is the residual's tap */
  const pass p = {.run = &r};
  const int32_t place = program->stages[0].out;
  const int64_t width = kg_plan_value(exe->plan, program->stages[0].first)->width;
  for (int32_t i = 0; i < n_rows; i++)
    memcpy(row_data(&p, place, i), x + i * width, (size_t)width * sizeof *x);
  kg_pool_run(exe->pool, run_stretch, &r);
}

/* ---- before a run ---- */

static void prepare_rows(run *r)
{
  kg_executable *exe = r->exe;
  for (int32_t s = 0; s < r->batch->n_spans; s++) {
    const kg_span *span = &r->batch->spans[s];
    for (int32_t i = 0; i < span->n_rows; i++) {
      const int32_t pos = span->pos + i;
      for (int32_t g = 0; g < kg_plan_group_count(exe->plan); g++)
        exe->row_page[g][span->row + i] = exe->pages[g][span->pages[g][pos / KG_PAGE]];
      exe->row_slot[span->row + i] = pos % KG_PAGE;
      exe->row_last[span->row + i] = span->pos + span->n_rows - 1;
      exe->row_span[span->row + i] = s;
    }
    for (int32_t i = 0; i < span->n_rows; i += exe->block_rows)
      exe->blocks[r->n_blocks++] = (kg_row_block){.span = s,
                                                  .row = span->row + i,
                                                  .n_rows = (int32_t)least(exe->block_rows, span->n_rows - i),
                                                  .pos = span->pos + i};
    r->n_splits = (int32_t)most(r->n_splits, (span->pos + span->n_rows - 1) / KG_SPLIT + 1);
  }
  r->is_split = r->batch->n_rows <= KG_SPLIT_ROWS;
}

static size_t find_trace_end(const run *r)
{
  const kg_program *program = r->program;
  size_t end = (size_t)program->n_body;
  for (size_t s = end; s < program->n_stages; s++) {
    const kg_cpu_stage *stage = &program->stages[s];
    for (int32_t i = stage->first; stage->kind == KG_CPU_STAGE_ROWS && i < stage->end; i++)
      if (program->rows[i].kind == KG_ROW_TRACE && r->exe->trace_of[program->rows[i].value]) end = s + 1;
  }
  return end;
}

static void prepare_tail(run *r)
{
  kg_executable *exe = r->exe;
  const kg_batch *batch = r->batch;
  if (batch->n_traces) { /* all rows */
    r->n_tail = batch->n_rows;
    for (int32_t i = 0; i < batch->n_rows; i++) {
      exe->tail_source[i] = i;
      exe->tail_wanted[i] = -1;
    }
    for (int32_t i = 0; i < batch->n_wanted; i++) exe->tail_wanted[batch->wanted[i].row] = i;
    return;
  }
  r->n_tail = batch->n_wanted;
  for (int32_t i = 0; i < batch->n_wanted; i++) {
    exe->tail_source[i] = batch->wanted[i].row;
    exe->tail_wanted[i] = i;
  }
}

int kg_cpu_run(kg_executable *exe, const kg_program *program, const kg_batch *batch, kg_error *err)
{
  run r = {.exe = exe, .batch = batch, .program = program, .arena = exe->arena};
  int code = KG_OK;
  prepare_rows(&r);
  prepare_tail(&r);
  for (int32_t i = 0; i < batch->n_traces; i++) exe->trace_of[batch->traces[i].value] = &batch->traces[i];
  r.trace_end = batch->n_traces ? find_trace_end(&r) : 0;
  if (program->has_taps)
    code = run_with_taps(&r, err);
  else
    kg_pool_run(exe->pool, run_job, &r);
  for (int32_t i = 0; i < batch->n_traces; i++) exe->trace_of[batch->traces[i].value] = NULL;
  return code;
}
