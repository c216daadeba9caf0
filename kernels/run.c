/* run.c - a batch: its rows to the device, then the stages, as a graph where the same shape comes again and again. */
#include <string.h>

#include "executable.h"

enum { PAGES_PER_SPLIT = KG_ATTENTION_SPLIT > KG_PAGE ? KG_ATTENTION_SPLIT / KG_PAGE : 1 };

/* Rows [row0, row0 + n_rows) of a batch, with what they want. */
typedef struct kg_pass {
  kg_executable *exe;
  const kg_batch *batch;
  const kg_program *program;
  int32_t row0, n_rows;
  int32_t wanted0, n_wanted; /* of batch->wanted */
  kg_draws_key draws;        /* what draws from its logits, if anything does */
  int32_t n_ahead;           /* positions behind the rows' that follow without a round trip */
  int32_t n_splits, n_few, n_spans, span_rows; /* attention: see kg_attention_args */
  int32_t n_state_spans, state_span_rows; /* spans of the pass, where the plan has states; rows of the longest */
  bool draws_first;                       /* from logits that are there, before any pass */
  bool is_alone;             /* every row is its sequence's only one */
  bool wants_all;            /* the wanted rows are those of the pass, and the tail takes all of them together */
  bool is_adapted;           /* some row of the batch has adapters: see */
  kg_adapted_rows adapted;
  kg_meta_layout at;
  int32_t n, first;          /* rows of the side that runs, and which of the wanted ones is its first */
} kg_pass;
typedef struct kg_pass pass;

static size_t align16(size_t n) { return (n + 15) / 16 * 16; }

/* Fixed for all passes of at most KG_FEW_ROWS rows, so that graphs find their numbers. */
static kg_meta_layout meta_layout(const kg_executable *exe, int32_t n_rows)
{
  const size_t rows = (size_t)(n_rows <= KG_FEW_ROWS ? KG_FEW_ROWS : exe->pass_rows);
  const size_t ints = align16(rows * sizeof(int32_t));
  const size_t out_rows = (8 + (size_t)kg_plan_group_count(exe->plan)) * ints;
  const size_t state_spans = out_rows + align16(rows * sizeof(float *));
  const size_t state_places = state_spans + (exe->state_floats ? align16(rows * sizeof(kg_state_span)) : 0);
  return (kg_meta_layout){.tokens = 0,
                          .positions = ints,
                          .wanted_rows = 2 * ints,
                          .wanted_tokens = 3 * ints,
                          .wanted_positions = 4 * ints,
                          .lasts = 5 * ints,
                          .few = 6 * ints,
                          .spans = 7 * ints,
                          .row_pages = 8 * ints,
                          .group_row_pages = ints,
                          .out_rows = out_rows,
                          .state_spans = state_spans,
                          .state_places = state_places,
                          /* at most one place for each row, and one for each span */
                          .pages = state_places + (exe->state_floats ? 2 * rows * sizeof(kg_state_place) : 0)};
}

/* ---- arguments of stages ---- */

static const void *meta(const pass *p, size_t at) { return p->exe->meta + at; }

static const int32_t *ids_of(const pass *p, kg_side side, bool positions)
{
  if (side == KG_ALL_ROWS) return meta(p, positions ? p->at.positions : p->at.tokens);
  return (const int32_t *)meta(p, positions ? p->at.wanted_positions : p->at.wanted_tokens) + p->first;
}

static float *const *out_rows(const pass *p) { return (float *const *)meta(p, p->at.out_rows) + p->first; }
static const int32_t *wanted_rows(const pass *p) { return (const int32_t *)meta(p, p->at.wanted_rows) + p->first; }

static void *in_arena(const pass *p, size_t at) { return at == SIZE_MAX ? NULL : p->exe->arena + at; }

static const kg_value_place *place_of(const pass *p, kg_side side, int32_t value)
{
  return &p->program->places[side][value];
}

/* Are a gathered value's rows those that it is gathered from, where they are? */
static bool is_alias(const pass *p, int32_t value)
{
  return p->wants_all && place_of(p, KG_WANTED_ROWS, value)->is_alias;
}

static float *floats_of(const pass *p, kg_side side, int32_t value)
{
  if (value != KG_NONE && side == KG_WANTED_ROWS && is_alias(p, value)) side = KG_ALL_ROWS;
  return value == KG_NONE ? NULL : in_arena(p, place_of(p, side, value)->at);
}

static int32_t width_of(const pass *p, int32_t value) { return kg_plan_value(p->exe->plan, value)->width; }
static const kg_cuda_weight *weight_of(const pass *p, int32_t weight) { return &p->exe->weights[weight]; }
static const float *vector_of(const pass *p, int32_t weight)
{
  return weight == KG_NONE ? NULL : weight_of(p, weight)->vector;
}

/* Traces and taps want every value in memory. */
static bool is_fused(const pass *p) { return p->program != &p->exe->traced; }

static bool has_panels(const pass *p, const kg_value_place *place)
{
  return is_fused(p) && p->n > p->program->max_few && kg_cuda_linear_has_many(p->exe->stream, place->n_tiles);
}

/* x of a product in the form that its weights want. */
static void set_x(const pass *p, kg_linear_args *a, kg_side side, int32_t value)
{
  const kg_value_place *place = place_of(p, side, value);
  const bool is_float = a->part[0].m.type == KG_F32;
  a->x = is_float ? floats_of(p, side, value) : in_arena(p, place->half);
  a->x_scale = is_float ? NULL : in_arena(p, place->half_scale);
  a->x_panels = !is_float && has_panels(p, place);
}

static void set_act(kg_linear_args *a, const kg_act *act)
{
  a->act = (int32_t)act->kind; /* kg_cuda_act has the same order */
  a->act_limit = act->limit;
  a->act_alpha = act->alpha;
}

static kg_rotation rotation_at(const pass *p, int32_t index, const kg_op *rope)
{
  if (index == KG_NONE) return (kg_rotation){0};
  const kg_rotation_place *r = &p->program->rotations[index];
  return (kg_rotation){in_arena(p, r->table), r->params->n_dims / 2, rope->u.rope.style == KG_ROPE_PAIRS};
}

/* ---- stages ---- */

/* Do products bring the rows of this value to f16 themselves, where they can? */
static bool is_few(const pass *p, int32_t value)
{
  return is_fused(p) && p->n <= p->program->max_few &&
         kg_cuda_linear_is_few(p->exe->stream, p->n, width_of(p, value));
}

static float *max_slot(const pass *p, int32_t slot, int32_t value)
{
  return slot == KG_NONE || !is_few(p, value) ? NULL : p->exe->row_max + (size_t)slot * KG_LINEAR_FEW;
}

/* Where a stage says how large its rows are: nowhere, if all who ask know a bound (bounds.c). */
static float *measured_max(const pass *p, const kg_gpu_stage *stage)
{
  const bool is_known = p->exe->half_up[stage->out] > 0 && !stage->is_normed;
  return is_known ? NULL : max_slot(p, stage->max_slot, stage->out);
}

/* Does this stage write the f16 form of its value, too? */
static bool makes_half(const pass *p, const kg_gpu_stage *stage)
{
  if (stage->half == KG_NONE || !(p->exe->half_up[stage->out] > 0)) return false;
  return has_panels(p, place_of(p, stage->side, stage->out)) &&
         (stage->kind == KG_STAGE_ATTENTION || has_panels(p, place_of(p, stage->side, stage->in[0])));
}

/* Where it goes; *out, where the float32 form would, becomes NULL if nobody reads that. */
static kg_half_out half_out(const pass *p, const kg_gpu_stage *stage, float **out)
{
  if (!makes_half(p, stage)) return (kg_half_out){0};
  const kg_value_place *place = place_of(p, stage->side, stage->out);
  if (!p->program->stages[stage->half].has_reader) *out = NULL;
  return (kg_half_out){in_arena(p, place->half), in_arena(p, place->half_scale), p->exe->half_up[stage->out]};
}

/* Does a pass begin with an embedding, which clears the maxima? */
static bool embeds_first(const kg_program *program)
{
  return program->n_stages && program->stages[0].kind == KG_STAGE_EMBED_ROWS;
}

static int run_embed(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const kg_op *op = stage->op;
  const bool is_first = stage == p->program->stages;
  const int32_t *ids[] = {ids_of(p, stage->side, false), ids_of(p, stage->side, true), NULL};
  kg_embed_args a = {.n = p->n,
                     .out = floats_of(p, stage->side, stage->out),
                     .out_max = max_slot(p, stage->max_slot, stage->out),
                     .cleared = p->exe->row_max,
                     .n_cleared = is_first ? p->program->n_max_slots : 0};
  int code = KG_OK;
  for (int i = 0; i < 3 && !code; i++) {
    if (op->w[i] == KG_NONE) continue;
    a.table = weight_of(p, op->w[i])->m;
    a.ids = ids[i];
    a.add = i > 0;
    code = kg_cuda_embed(p->exe->stream, &a, err);
  }
  return code;
}

static int run_norm(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const kg_value_place *place = place_of(p, stage->side, stage->out);
  kg_norm_args a = {
      .x = floats_of(p, stage->side, stage->in[0]), .n = p->n, .width = width_of(p, stage->out), .groups = 1};
  const bool is_norm = stage->kind == KG_STAGE_NORM_ROWS;
  if (stage->maker != KG_NONE && makes_half(p, &p->program->stages[stage->maker])) return KG_OK;
  const bool is_read = is_norm && stage->has_reader; /* the float32 form that it makes */
  if (is_few(p, stage->out) && !stage->is_needed && !is_read) return KG_OK; /* products do it themselves */
  if (is_norm) {
    const kg_norm_params *norm = &stage->op->u.norm;
    a.normalize = true;
    a.groups = norm->groups;
    a.subtract_mean = norm->subtract_mean;
    a.epsilon = norm->epsilon;
    a.scale = vector_of(p, stage->op->w[0]);
    a.scale_max = weight_of(p, stage->op->w[0])->vector_max;
    a.is_wide = kg_plan_weight_at(p->exe->plan, stage->op->w[0])->rows > 1;
    if (stage->view[0]) {
      a.x += stage->view[0]->u.slice.first;
      a.x_parts = 1;
      a.x_width = width_of(p, stage->in[0]);
    }
    a.bias = vector_of(p, stage->op->w[1]);
    a.out = in_arena(p, place->at);
  }
  if (!is_norm || a.groups == 1) {
    a.half = in_arena(p, place->half);
    a.half_scale = in_arena(p, place->half_scale);
    a.half_up = p->exe->half_up[stage->out];
    a.panels = has_panels(p, place);
  }
  return kg_cuda_norm(p->exe->stream, &a, err);
}

static int run_linear(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  kg_linear_args a = {.n_parts = stage->n_parts, .n = p->n, .gated = stage->glu != NULL};
  for (int i = 0; i < stage->n_parts; i++) {
    const kg_op *op = stage->parts[i];
    a.part[i] = (kg_linear_part){.m = weight_of(p, op->w[0])->m, .bias = vector_of(p, op->w[1])};
    if (!stage->to_logits) a.part[i].out = floats_of(p, stage->side, i ? op->out : stage->out);
  }
  if (stage->fused_in != KG_NONE && is_few(p, stage->in[0])) {
    const kg_gpu_stage *before = &p->program->stages[stage->fused_in];
    a.x_floats = floats_of(p, stage->side, before->in[0]);
    a.x_max = max_slot(p, before->max_slot, stage->in[0]);
    a.x_up = p->exe->half_up[stage->in[0]];
    if (before->kind == KG_STAGE_NORM_ROWS) {
      a.norm_scale = vector_of(p, before->op->w[0]);
      a.norm_max = weight_of(p, before->op->w[0])->vector_max;
      a.norm_epsilon = before->op->u.norm.epsilon;
    }
  } else
    set_x(p, &a, stage->side, stage->in[0]);
  a.out_max = measured_max(p, stage);
  if (stage->glu) set_act(&a, &stage->glu->u.act);
  a.half = half_out(p, stage, &a.part[0].out);
  a.residual = floats_of(p, stage->side, stage->residual);
  if (stage->to_logits) a.out_rows = out_rows(p);
  a.scratch = p->exe->scratch;
  a.scratch_floats = p->program->scratch_floats;
  a.starts_next = stage->starts_next;
  return kg_cuda_linear(p->exe->stream, &a, err);
}

/* What adapters add to a product's parts, or to an embedding, and what comes behind it: one half of it. */
static int run_adapt(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const bool is_wanted = stage->side == KG_WANTED_ROWS;
  kg_adapt_args a = {.n_parts = stage->n_parts ? stage->n_parts : 1, .gated = stage->glu != NULL, .n_rows = p->n,
                     .n_tiles = is_wanted ? p->n : p->adapted.n_tiles, .n_ranks = p->adapted.n_ranks};
  if (!p->adapted.n_tiles) return KG_OK;
  for (int i = 0; i < a.n_parts; i++) {
    const kg_op *op = stage->n_parts ? stage->parts[i] : stage->op;
    a.op[i] = kg_plan_value(p->exe->plan, op->out)->producer;
    a.width[i] = width_of(p, op->out);
    a.y[i] = floats_of(p, stage->side, op->out);
  }
  kg_gpu_adapters_set(p->exe, is_wanted, is_wanted ? p->first : 0, &a);
  if (stage->kind == KG_STAGE_ADAPT_IN) {
    const kg_gpu_stage *norm = stage->fused_in == KG_NONE ? NULL : &p->program->stages[stage->fused_in];
    if (stage->n_parts) {
      a.x = floats_of(p, stage->side, stage->in[0]);
      a.cols = width_of(p, stage->in[0]);
    }
    if (norm && norm->kind == KG_STAGE_NORM_ROWS && is_few(p, stage->in[0])) {
      a.x = floats_of(p, stage->side, norm->in[0]);
      a.norm_scale = vector_of(p, norm->op->w[0]);
      a.norm_epsilon = norm->op->u.norm.epsilon;
    }
    if (!stage->n_parts) a.ids = ids_of(p, stage->side, false);
    return kg_cuda_adapt_in(p->exe->stream, &a, err);
  }
  if (stage->glu) {
    const kg_act *act = &stage->glu->u.act;
    a.act = (int32_t)act->kind;
    a.act_limit = act->limit;
    a.act_alpha = act->alpha;
  }
  a.residual = floats_of(p, stage->side, stage->residual);
  a.out = floats_of(p, stage->side, stage->out);
  a.out_max = max_slot(p, stage->max_slot, stage->out);
  return kg_cuda_adapt_out(p->exe->stream, &a, err);
}

static int run_attention(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const kg_op *op = stage->op;
  const kg_attention_params *params = &op->u.attention;
  const kg_op *rope[2] = {NULL, NULL};
  for (int i = 0; i < 2; i++)
    rope[i] = kg_plan_op(p->exe->plan, kg_plan_value(p->exe->plan, op->in[i])->producer);
  float *out = floats_of(p, stage->side, stage->out);
  kg_attention_args a = kg_gpu_attention_shape(p->exe, op, p->n);
  a.q = floats_of(p, stage->side, stage->in[0]);
  a.k = floats_of(p, stage->side, stage->in[1]);
  a.v = floats_of(p, stage->side, stage->in[2]);
  a.q_rotation = rotation_at(p, stage->rotation[0], rope[0]);
  a.k_rotation = rotation_at(p, stage->rotation[1], rope[1]);
  a.sinks = vector_of(p, op->w[0]);
  a.positions = ids_of(p, stage->side, true);
  a.lasts = params->is_bidirectional ? meta(p, p->at.lasts) : a.positions;
  a.pages = meta(p, p->at.pages);
  a.row_pages = meta(p, p->at.row_pages + (size_t)params->group * p->at.group_row_pages);
  a.is_alone = p->is_alone;
  a.max_splits = p->n_splits;
  a.few = meta(p, p->at.few);
  a.n_few = p->n_few;
  a.spans = meta(p, p->at.spans);
  a.n_spans = p->n_spans;
  a.span_rows = p->span_rows;
  a.scratch = p->exe->scratch;
  a.scratch_floats = p->program->scratch_floats;
  a.out_max = measured_max(p, stage);
  a.half_out = half_out(p, stage, &out);
  a.out = out;
  return kg_cuda_attention(p->exe->stream, &a, err);
}

static int run_conv(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const kg_op *op = stage->op;
  const kg_conv_args a = {.in = floats_of(p, stage->side, stage->in[0]),
                          .gated = op->u.conv.is_gated,
                          .width = width_of(p, stage->out),
                          .taps = op->u.conv.taps,
                          .weights = vector_of(p, op->w[0]),
                          .bias = vector_of(p, op->w[1]),
                          .spans = meta(p, p->at.state_spans),
                          .places = meta(p, p->at.state_places),
                          .n_spans = p->n_state_spans,
                          .most_rows = p->state_span_rows,
                          .state_at = op->u.conv.state_at,
                          .out = floats_of(p, stage->side, stage->out),
                          .out_max = max_slot(p, stage->max_slot, stage->out)};
  return kg_cuda_conv(p->exe->stream, &a, err);
}

/* An input in so many equal parts, of which a slice or all of each is read. */
static kg_columns_part part_of(const pass *p, const kg_gpu_stage *stage, int input, const kg_op *slice, int32_t parts)
{
  const int32_t value = stage->in[input], width = width_of(p, value), part = width / parts;
  kg_columns_part out = {.x = floats_of(p, stage->side, value), .width = width, .step = parts == 1 ? 0 : part,
                         .first = slice ? slice->u.slice.first : 0, .dim = slice ? slice->u.slice.width : part};
  const int32_t read = stage->op->in[input]; /* what a rotation, if there is one here, would give */
  out.rotation =
      rotation_at(p, stage->rotation[input], kg_plan_op(p->exe->plan, kg_plan_value(p->exe->plan, read)->producer));
  return out;
}

static int run_columns(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  static const int32_t kinds[] = {[KG_OP_GLU] = KG_COLUMNS_GLU, [KG_OP_ACT] = KG_COLUMNS_ACT,
                                  [KG_OP_ADD] = KG_COLUMNS_ADD, [KG_OP_SCALE] = KG_COLUMNS_SCALE,
                                  [KG_OP_SOFTCAP] = KG_COLUMNS_SOFTCAP, [KG_OP_SLICE] = KG_COLUMNS_PARTS,
                                  [KG_OP_CONCAT] = KG_COLUMNS_PARTS};
  const kg_op *op = stage->op;
  kg_columns_args a = {.kind = kinds[op->kind], .n = p->n, .width = width_of(p, stage->out),
                       .a = floats_of(p, stage->side, stage->in[0]), .b = floats_of(p, stage->side, stage->in[1]),
                       .out = floats_of(p, stage->side, stage->out)};
  if (op->kind == KG_OP_GLU || op->kind == KG_OP_ACT) {
    a.act = (int32_t)op->u.act.kind;
    a.limit = op->u.act.limit;
    a.alpha = op->u.act.alpha;
  } else if (op->kind == KG_OP_SLICE) {
    a.groups = op->u.slice.groups;
    a.part[0] = part_of(p, stage, 0, op, a.groups);
  } else if (op->kind == KG_OP_CONCAT) {
    a.groups = op->u.concat.groups;
    a.part[0] = part_of(p, stage, 0, stage->view[0], a.groups);
    a.part[1] = part_of(p, stage, 1, stage->view[1], op->u.concat.is_shared ? 1 : a.groups);
  } else if (op->kind != KG_OP_ADD)
    a.scale = op->u.scale;
  return kg_cuda_columns(p->exe->stream, &a, err);
}

/* ---- experts, and products of each head ---- */

/* The float32 rows of a product to f16, in the arena's end; `half` says how wide they are and where they stand. */
static int round_rows(const pass *p, kg_linear_args *a, kg_norm_args half, kg_error *err)
{
  half.x = a->x;
  half.n = a->n;
  half.groups = 1;
  half.half = in_arena(p, p->exe->moe.half);
  half.half_scale = in_arena(p, p->exe->moe.half_scale);
  a->x = half.half;
  a->x_scale = half.half_scale;
  return kg_cuda_norm(p->exe->stream, &half, err);
}

/* Where planes have several rows each: in groups of at most so many. */
static int group_planes(const pass *p, kg_linear_args *a, int32_t n_planes, int32_t most, kg_error *err)
{
  const int32_t rows = a->n > KG_LINEAR_FEW * n_planes ? most : KG_LINEAR_FEW;
  if (a->n < 2 * n_planes) return KG_OK;
  a->groups =
      (kg_linear_groups){in_arena(p, p->exe->moe.order), in_arena(p, p->exe->moe.groups), a->n / rows + n_planes, rows};
  return kg_cuda_group(p->exe->stream, a->planes, a->n, n_planes, &a->groups, err);
}

/* A row's parts are rows of their own, each with its plane. */
static int run_each(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  kg_stream *s = p->exe->stream;
  const kg_cuda_weight *w = weight_of(p, stage->op->w[0]);
  const kg_matrix *m = &w->m;
  const kg_op *view = stage->view[0];
  const size_t parts = (size_t)m->planes, step = KG_EACH_ROWS / parts; /* KG_PLAN_MAX_EXPERTS parts at most */
  const size_t width = (size_t)width_of(p, stage->in[0]);
  const float *in = floats_of(p, stage->side, stage->in[0]) + (view ? view->u.slice.first : 0);
  float *out = floats_of(p, stage->side, stage->out);
  int code = KG_OK;
  for (size_t row = 0, n; row < (size_t)p->n && !code; row += n) {
    n = (size_t)p->n - row < step ? (size_t)p->n - row : step;
    kg_linear_args a = {.part = {{*m, NULL, out + row * parts * (size_t)m->rows}},
                        .n_parts = 1,
                        .n = (int32_t)(n * parts),
                        .x = in + row * width,
                        .planes = w->planes,
                        .x_share = 1};
    kg_norm_args half = {.width = m->cols};
    if (view) {
      half.x_parts = m->planes;
      half.x_width = (int32_t)width;
      half.x_step = (int32_t)(width / parts);
    }
    if (m->type != KG_F32) code = round_rows(p, &a, half, err);
    if (!code) code = group_planes(p, &a, m->planes, kg_cuda_linear_group_rows(s, m), err);
    if (!code) code = kg_cuda_linear(s, &a, err);
  }
  return code;
}

static int expert_gates(const pass *p, const kg_gpu_stage *stage, const kg_linear_args *shared, kg_error *err)
{
  kg_stream *s = p->exe->stream;
  const kg_op *op = stage->op;
  const kg_moe_scratch *at = &p->exe->moe;
  kg_linear_args a = *shared;
  const kg_matrix *gate = &weight_of(p, op->w[0])->m, *up = &weight_of(p, op->w[1])->m;
  a.part[0] = (kg_linear_part){*gate, vector_of(p, op->w[3]), in_arena(p, at->gate)};
  a.n_parts = 1;
  a.gated = gate->type == up->type && kg_cuda_linear_gates(gate);
  set_x(p, &a, stage->side, stage->in[0]);
  if (a.gated) {
    a.n_parts = 2;
    a.part[1] = (kg_linear_part){*up, vector_of(p, op->w[4]), NULL};
    set_act(&a, &op->u.moe.act);
    return kg_cuda_linear(s, &a, err);
  }
  int code = kg_cuda_linear(s, &a, err);
  a.part[0] = (kg_linear_part){*up, vector_of(p, op->w[4]), in_arena(p, at->up)};
  set_x(p, &a, stage->side, stage->in[0]);
  if (!code) code = kg_cuda_linear(s, &a, err);
  const kg_columns_args glu = {.kind = KG_COLUMNS_GLU, .act = (int32_t)op->u.moe.act.kind, .limit = op->u.moe.act.limit,
                               .alpha = op->u.moe.act.alpha, .n = a.n, .width = gate->rows, .a = in_arena(p, at->gate),
                               .b = in_arena(p, at->up), .out = in_arena(p, at->gate)};
  return code ? code : kg_cuda_columns(s, &glu, err);
}

/* Rows [first, first + n) of the side's rows. */
static int run_experts(const pass *p, const kg_gpu_stage *stage, int32_t first, int32_t n, kg_error *err)
{
  kg_stream *s = p->exe->stream;
  const kg_op *op = stage->op;
  const kg_moe_params *params = &op->u.moe;
  const kg_moe_scratch *at = &p->exe->moe;
  const kg_matrix *down = &weight_of(p, op->w[2])->m;
  const kg_route_args route = {.logits = floats_of(p, stage->side, stage->in[1]) + (size_t)first * params->n_experts,
                               .bias = vector_of(p, op->w[6]), .n = n, .n_experts = params->n_experts,
                               .n_used = params->n_used, .n_groups = params->n_groups,
                               .n_groups_used = params->n_groups_used, .group_top = params->group_top,
                               .gate = params->gate == KG_MOE_SOFTMAX ? 0 : params->gate == KG_MOE_SOFTMAX_USED ? 1 : 2,
                               .normalize = params->normalize, .scale = params->scale,
                               .experts = in_arena(p, at->experts), .weights = in_arena(p, at->weights)};
  int code = kg_cuda_route(s, &route, err);
  if (code) return code;
  kg_linear_args a = {.n = n * params->n_used, .planes = route.experts, .x_share = params->n_used, .x_first = first};
  int32_t most = kg_cuda_linear_group_rows(s, down);
  for (int i = 0; i < 2; i++)
    if (kg_cuda_linear_group_rows(s, &weight_of(p, op->w[i])->m) < most) most = KG_LINEAR_FEW;
  code = group_planes(p, &a, params->n_experts, most, err);
  if (!code) code = expert_gates(p, stage, &a, err);
  if (code) return code;
  a = (kg_linear_args){.groups = a.groups,
                       .part = {{*down, vector_of(p, op->w[5]), in_arena(p, at->down)}},
                       .n_parts = 1,
                       .n = n * params->n_used,
                       .x = in_arena(p, at->gate),
                       .planes = route.experts,
                       .x_share = 1};
  if (down->type != KG_F32) code = round_rows(p, &a, (kg_norm_args){.width = down->cols}, err);
  if (!code) code = kg_cuda_linear(s, &a, err);
  if (code) return code;
  return kg_cuda_mix(s, in_arena(p, at->down), in_arena(p, at->weights), n, params->n_used, down->rows,
                     floats_of(p, stage->side, stage->out) + (size_t)first * (size_t)down->rows, err);
}

static int run_moe(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  const int32_t n_used = stage->op->u.moe.n_used, step = n_used < KG_MOE_ROWS ? KG_MOE_ROWS / n_used : 1;
  int code = KG_OK;
  for (int32_t first = 0; first < p->n && !code; first += step)
    code = run_experts(p, stage, first, p->n - first < step ? p->n - first : step, err);
  return code;
}

/* ---- one pass ---- */

static int run_stage(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  kg_stream *s = p->exe->stream;
  const int32_t width = stage->out == KG_NONE ? 0 : width_of(p, stage->out);
  switch (stage->kind) {
  case KG_STAGE_EMBED_ROWS: return run_embed(p, stage, err);
  case KG_STAGE_GATHER:
    if (is_alias(p, stage->out)) return KG_OK;
    return kg_cuda_gather(s, floats_of(p, KG_ALL_ROWS, stage->in[0]), wanted_rows(p), p->n, width,
                          floats_of(p, KG_WANTED_ROWS, stage->out), max_slot(p, stage->max_slot, stage->out), err);
  case KG_STAGE_NORM_ROWS:
  case KG_STAGE_HALF: return run_norm(p, stage, err);
  case KG_STAGE_LINEAR: return run_linear(p, stage, err);
  case KG_STAGE_ADAPT_IN:
  case KG_STAGE_ADAPT: return run_adapt(p, stage, err);
  case KG_STAGE_EACH: return run_each(p, stage, err);
  case KG_STAGE_ANGLES: {
    const kg_rotation_place *r = &p->program->rotations[stage->rotation[0]];
    const kg_growing growing = {r->params->magnitude, r->params->growth, r->params->growth_length};
    return kg_cuda_angles(s, ids_of(p, stage->side, true), p->n, r->freqs, r->params->n_dims / 2, growing,
                          in_arena(p, r->table), err);
  }
  case KG_STAGE_ROPE: {
    const kg_rotation rotation = rotation_at(p, stage->rotation[0], stage->op);
    return kg_cuda_rope(s, floats_of(p, stage->side, stage->in[0]), p->n, stage->op->u.rope.n_heads,
                        stage->op->u.rope.head_dim, &rotation, floats_of(p, stage->side, stage->out), err);
  }
  case KG_STAGE_ATTENTION: return run_attention(p, stage, err);
  case KG_STAGE_MOE: return run_moe(p, stage, err);
  case KG_STAGE_CONV: return run_conv(p, stage, err);
  case KG_STAGE_COLUMNS: return run_columns(p, stage, err);
  default:
    if (stage->side == KG_WANTED_ROWS)
      return kg_cuda_scatter(s, floats_of(p, stage->side, stage->in[0]), NULL, out_rows(p), p->n, width, err);
    return p->n_wanted ? kg_cuda_scatter(s, floats_of(p, stage->side, stage->in[0]), wanted_rows(p), out_rows(p),
                                         p->n_wanted, width, err)
                       : KG_OK;
  }
}

static int copy_traces(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  int code = KG_OK;
  for (int32_t i = 0; i < p->batch->n_traces && !code && stage->op; i++) {
    const kg_trace *trace = &p->batch->traces[i];
    if (trace->value != stage->out) continue;
    const size_t width = (size_t)width_of(p, stage->out);
    float *out;
    code = kg_cuda_buffer_claim(trace->buffer, trace->at + (int64_t)p->row0 * (int64_t)width,
                                (int64_t)p->n * (int64_t)width, false, &out, err);
    if (code) break;
    code = kg_cuda_check(cudaMemcpyAsync(out, floats_of(p, stage->side, stage->out), (size_t)p->n * width * sizeof *out,
                                         cudaMemcpyDeviceToDevice, p->exe->stream->handle),
                         "copying a trace", err);
  }
  return code;
}

/* The f16 form of n rows of a value, from row `first` on, once more: somebody has changed the value. */
static int renew_half(const pass *p, int32_t value, int32_t first, int32_t n, kg_error *err)
{
  const kg_value_place *place = place_of(p, KG_ALL_ROWS, value);
  const int32_t width = width_of(p, value);
  const size_t half_row = (size_t)(width + 31) / 32 * 32 * 2;
  const kg_norm_args a = {.x = floats_of(p, KG_ALL_ROWS, value) + (size_t)first * (size_t)width,
                          .n = n,
                          .width = width,
                          .groups = 1,
                          .half = (char *)in_arena(p, place->half) + (size_t)first * half_row,
                          .half_scale = (float *)in_arena(p, place->half_scale) + first,
                          .half_up = p->exe->half_up[value]};
  return kg_cuda_norm(p->exe->stream, &a, err);
}

/* A norm has written the f16 form of its rows itself, with another rounding than from its float32 form: only of rows
 * that are other numbers now it is made again. */
static int renew_changed(const pass *p, int32_t value, int32_t first, int32_t n, const float *before, kg_error *err)
{
  const size_t width = (size_t)width_of(p, value), n_bytes = (size_t)n * width * sizeof *before;
  float *now = kg_alloc(n_bytes);
  if (!now) return kg_fail_memory(err, n_bytes, "a tapped value");
  int code = kg_cuda_check(cudaMemcpyAsync(now, floats_of(p, KG_ALL_ROWS, value) + (size_t)first * width, n_bytes,
                                           cudaMemcpyDeviceToHost, p->exe->stream->handle),
                           "reading a tapped value", err);
  if (!code) code = kg_stream_wait(p->exe->stream, "reading a tapped value", err);
  for (int32_t i = 0; i < n && !code; i++)
    if (memcmp(now + (size_t)i * width, before + (size_t)i * width, width * sizeof *now))
      code = renew_half(p, value, first + i, 1, err);
  kg_free(now);
  return code;
}

/* Rows of a tapped value to a buffer, the call, and back. */
static int call_tap(const pass *p, const kg_gpu_stage *stage, const kg_tap *tap, int32_t first, int32_t n,
                    kg_error *err)
{
  const kg_stream *s = p->exe->stream;
  const size_t width = (size_t)width_of(p, tap->value), n_bytes = (size_t)n * width * sizeof(float);
  const bool has_half = stage->kind == KG_STAGE_NORM_ROWS && place_of(p, KG_ALL_ROWS, tap->value)->half != SIZE_MAX;
  float *rows = floats_of(p, KG_ALL_ROWS, tap->value) + (size_t)first * width, *before = NULL;
  kg_buffer *copy = NULL;
  int code = kg_cuda_buffer_new(p->exe->stream, (int64_t)n * (int64_t)width, &copy, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(copy->data, rows, n_bytes, cudaMemcpyDeviceToDevice, s->handle), "a tap", err);
  if (!code && has_half) {
    before = kg_alloc(n_bytes);
    code = before ? KG_OK : kg_fail_memory(err, n_bytes, "a tapped value");
    if (!code)
      code = kg_cuda_check(cudaMemcpyAsync(before, rows, n_bytes, cudaMemcpyDeviceToHost, s->handle), "a tap", err);
    const int waited = kg_stream_wait(s, "a tap", code ? NULL : err);
    if (!code) code = waited;
  }
  if (!code) {
    const float *changed;
    tap->call(tap->user, p->batch->positions[p->row0 + first], n, copy);
    code = kg_cuda_buffer_numbers(copy, &changed, err);
    if (!code)
      code = kg_cuda_check(cudaMemcpyAsync(rows, changed, n_bytes, cudaMemcpyDeviceToDevice, s->handle), "a tap", err);
  }
  if (!code && before) code = renew_changed(p, tap->value, first, n, before, err);
  kg_free(before);
  kg_buffer_unref(copy);
  return code;
}

/* The unfused program computes the tail for all rows, but only the wanted ones are shown, as everywhere. */
static int call_taps(const pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  int32_t *wanted = kg_alloc_array((size_t)p->n_wanted, sizeof *wanted);
  if (!wanted) return kg_fail_memory(err, (size_t)p->n_wanted * sizeof *wanted, "wanted rows");
  for (int32_t i = 0; i < p->n_wanted; i++) wanted[i] = p->batch->wanted[p->wanted0 + i].row - p->row0;
  const bool is_tail = stage->op && kg_plan_value(p->exe->plan, stage->out)->producer >= kg_plan_tail(p->exe->plan);
  const int32_t *source = is_tail ? wanted : NULL;
  int code = KG_OK;
  for (int32_t i = 0; i < p->batch->n_taps && !code && stage->op; i++) {
    kg_tap tap = p->batch->taps[i];
    int32_t first = 0;
    if (tap.value != stage->out) continue;
    tap.row -= p->row0;
    for (int32_t n; !code && (n = kg_tap_rows(&tap, source, source ? p->n_wanted : p->n, &first)) > 0; first += n)
      code = call_tap(p, stage, &tap, source ? source[first] : first, n, err);
  }
  kg_free(wanted);
  return code;
}

/* Does its value have, behind this stage, what its operation makes of it? */
static bool is_complete(const pass *p, const kg_gpu_stage *stage)
{
  if (stage->kind == KG_STAGE_ADAPT_IN) return false;
  return stage->kind == KG_STAGE_ADAPT ? p->adapted.n_tiles > 0 : !stage->is_adapted || !p->adapted.n_tiles;
}

static int run_side(pass *p, kg_side side, kg_error *err)
{
  int code = KG_OK;
  for (size_t i = 0; i < p->program->n_stages && !code; i++) {
    const kg_gpu_stage *stage = &p->program->stages[i];
    if (stage->side != side) continue;
    code = run_stage(p, stage, err);
    if (!is_complete(p, stage)) continue;
    if (!code && p->batch->n_taps) code = call_taps(p, stage, err);
    if (!code && p->batch->n_traces) code = copy_traces(p, stage, err);
  }
  return code;
}

static int enqueue(pass *p, kg_error *err)
{
  kg_executable *exe = p->exe;
  p->n = p->n_rows;
  p->first = 0;
  int code = KG_OK;
  /* Also where there is no slot: no kernel of the pass starts before this, and what came before, is done. */
  if (!embeds_first(p->program))
    code = kg_cuda_check(cudaMemsetAsync(exe->row_max, 0,
                                         (size_t)(p->program->n_max_slots + 1) * KG_LINEAR_FEW * sizeof *exe->row_max,
                                         exe->stream->handle),
                         "clearing", err);
  if (!code) code = run_side(p, KG_ALL_ROWS, err);
  for (; p->first < p->n_wanted && !code; p->first += p->n) {
    const int32_t left = p->n_wanted - p->first;
    p->n = left < p->program->max_rows[KG_WANTED_ROWS] ? left : p->program->max_rows[KG_WANTED_ROWS];
    code = run_side(p, KG_WANTED_ROWS, err);
  }
  return code || !p->draws.rows ? code : kg_draws_next(exe->stream, err);
}

/* ---- graphs ---- */

void kg_gpu_forget_graphs(kg_executable *exe)
{
  for (int i = 0; i < KG_GRAPHS; i++) {
    if (exe->graphs[i].handle) (void)cudaGraphExecDestroy(exe->graphs[i].handle);
    exe->graphs[i] = (kg_graph){0};
  }
}

static kg_graph *find_graph(kg_executable *exe, const pass *p)
{
  for (int i = 0; i < KG_GRAPHS; i++) {
    kg_graph *g = &exe->graphs[i];
    if (g->n_rows == p->n_rows && g->n_wanted == p->n_wanted && g->n_splits == p->n_splits &&
        g->program == p->program && g->n_ranks == p->adapted.n_ranks && g->draws.rows == p->draws.rows &&
        g->draws.n_rows == p->draws.n_rows && g->draws.way == p->draws.way)
      return g;
  }
  kg_graph *g = &exe->graphs[exe->next_graph];
  exe->next_graph = (exe->next_graph + 1) % KG_GRAPHS;
  if (g->handle) (void)cudaGraphExecDestroy(g->handle);
  *g = (kg_graph){p->n_rows, p->n_wanted, p->n_splits, p->program, p->adapted.n_ranks, p->draws, false, NULL};
  return g;
}

static int capture(pass *p, cudaGraphExec_t *out, kg_error *err)
{
  cudaStream_t stream = p->exe->stream->handle;
  cudaGraph_t graph = NULL;
  int code = kg_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a graph", err);
  if (code) return code;
  code = enqueue(p, err);
  const cudaError_t status = cudaStreamEndCapture(stream, &graph);
  if (!code) code = kg_cuda_check(status, "capturing a graph", err);
  if (!code) code = kg_cuda_check(cudaGraphInstantiate(out, graph, 0), "making a graph", err);
  if (graph) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  return code;
}

/* The first time as it is, which also loads the kernels; from the second on as a graph, if there is memory for one. */
static int run_graph(pass *p, kg_error *err)
{
  kg_graph *g = find_graph(p->exe, p);
  if (!g->seen) {
    g->seen = true;
    return enqueue(p, err);
  }
  int code = g->handle ? KG_OK : capture(p, &g->handle, err);
  /* The first launch brings it to the device. */
  if (!code) code = kg_cuda_check(cudaGraphLaunch(g->handle, p->exe->stream->handle), "launching a graph", err);
  return code == KG_ERR_MEMORY ? enqueue(p, err) : code;
}

/* ---- rows to the device ---- */

static int reserve_meta(kg_executable *exe, size_t n_bytes, kg_error *err)
{
  if (n_bytes <= exe->meta_bytes) return KG_OK;
  n_bytes += n_bytes / 2;
  void *host = NULL, *device = NULL;
  int code = kg_cuda_alloc(n_bytes, "the rows of a step", &device, err);
  if (!code && (code = kg_cuda_check(cudaMallocHost(&host, n_bytes), "pinned memory for the rows of a step", err)))
    (void)cudaFree(device);
  if (code) return code;
  code = kg_stream_wait(exe->stream, "the rows of a step", err);
  kg_gpu_forget_graphs(exe);
  (void)cudaFree(exe->meta);
  (void)cudaFreeHost(exe->meta_host);
  exe->meta = device;
  exe->meta_host = host;
  exe->meta_bytes = n_bytes;
  return code;
}

static int32_t last_page(const pass *p, const kg_span *span, int32_t first, int32_t n)
{
  return (span->pos + p->row0 + first + n - 1 - span->row + p->n_ahead) / KG_PAGE;
}

/* Rows [first, first + n) of the pass are of this span: the states that they find and leave. What follows in another
 * pass finds its state where the whole span leaves its last. */
static void fill_states(pass *p, const kg_span *span, int32_t first, int32_t n, int32_t *n_places)
{
  const kg_executable *exe = p->exe;
  kg_state_place *places = (kg_state_place *)(exe->meta_host + p->at.state_places) + *n_places;
  const int32_t done = p->row0 + first - span->row, slot = span->states[span->n_states - 1].slot;
  const int32_t from = done ? slot : span->state;
  int32_t count = 0;
  for (int32_t i = 0; i < span->n_states; i++)
    if (span->states[i].n_rows > done && span->states[i].n_rows <= done + n)
      places[count++] = (kg_state_place){exe->states[span->states[i].slot], span->states[i].n_rows - done};
  if (done + n < span->n_rows) places[count++] = (kg_state_place){exe->states[slot], n};
  ((kg_state_span *)(exe->meta_host + p->at.state_spans))[p->n_state_spans++] =
      (kg_state_span){from == KG_NONE ? NULL : exe->states[from], first, n, *n_places, count};
  if (n > p->state_span_rows) p->state_span_rows = n;
  *n_places += count;
}

/* The first page that kernels read of a group for rows from this one of the span on: splits are fetched as a whole. */
static int32_t first_page(const pass *p, int32_t group, const kg_span *span, int32_t first)
{
  const int32_t pos = span->pos + p->row0 + first - span->row;
  const int32_t page = kg_first_page(kg_plan_group_window(p->exe->plan, group), pos);
  return page / PAGES_PER_SPLIT * PAGES_PER_SPLIT;
}

/* The pages of a group that n rows of a span see to `pages`, of which *at are there. row_pages[row] is where page 0
 * would be. Those that were let go are before what any row sees: some page stands in for them, as numbers that count
 * for nothing. */
static void fill_pages(const pass *p, int32_t group, const kg_span *span, int32_t first, int32_t n, int32_t *row_pages,
                       unsigned char **pages, int32_t *at)
{
  const int32_t begin = first_page(p, group, span, first), end = last_page(p, span, first, n) + 1;
  unsigned char *const *of_group = p->exe->pages[group];
  for (int32_t i = 0; i < n; i++) row_pages[first + i] = *at - begin;
  for (int32_t i = begin; i < end; i++) {
    const int32_t id = span->pages[group][i];
    pages[(*at)++] = of_group[id == KG_NONE ? 0 : id];
  }
}

static int fill_meta(pass *p, size_t *n_bytes, kg_error *err)
{
  kg_executable *exe = p->exe;
  const kg_batch *batch = p->batch;
  size_t n_pages = 0;
  const int32_t n_groups = kg_plan_group_count(exe->plan);
  int32_t first, n, max_pos = 0, n_places = 0;
  p->is_alone = true;
  for (int32_t s = 0; s < batch->n_spans; s++)
    if ((n = kg_rows_of_span(&batch->spans[s], p->row0, p->n_rows, &first)) > 0) {
      p->is_alone = p->is_alone && n == 1;
      for (int32_t g = 0; g < n_groups; g++)
        n_pages += (size_t)(last_page(p, &batch->spans[s], first, n) + 1 - first_page(p, g, &batch->spans[s], first));
    }
  p->at = meta_layout(exe, p->n_rows);
  *n_bytes = p->at.pages + n_pages * sizeof(void *);
  int code = reserve_meta(exe, *n_bytes, err);
  if (!code) code = kg_cuda_check(cudaEventSynchronize(exe->meta_read), "waiting for an upload", err);
  if (code) return code;

  unsigned char *m = exe->meta_host;
  memcpy(m + p->at.tokens, batch->tokens + p->row0, (size_t)p->n_rows * sizeof(int32_t));
  memcpy(m + p->at.positions, batch->positions + p->row0, (size_t)p->n_rows * sizeof(int32_t));
  int32_t at = 0;
  int32_t *const lasts = (int32_t *)(m + p->at.lasts), *const few = (int32_t *)(m + p->at.few);
  int32_t *const spans = (int32_t *)(m + p->at.spans);
  unsigned char **pages = (unsigned char **)(m + p->at.pages);
  for (int32_t s = 0; s < batch->n_spans; s++) {
    const kg_span *span = &batch->spans[s];
    if ((n = kg_rows_of_span(span, p->row0, p->n_rows, &first)) <= 0) continue;
    if (exe->state_floats) fill_states(p, span, first, n, &n_places);
    for (int32_t g = 0; g < n_groups; g++) {
      int32_t *row_pages = (int32_t *)(m + p->at.row_pages + (size_t)g * p->at.group_row_pages);
      fill_pages(p, g, span, first, n, row_pages, pages, &at);
    }
    for (int32_t i = 0; i < n; i++) lasts[first + i] = span->pos + span->n_rows - 1;
    for (int32_t i = 0; i < n && n <= KG_ATTENTION_FEW; i++) few[p->n_few++] = first + i;
    if (n > KG_ATTENTION_FEW) {
      spans[2 * p->n_spans] = first;
      spans[2 * p->n_spans++ + 1] = n;
      p->span_rows += n;
    }
    if (batch->positions[p->row0 + first + n - 1] > max_pos) max_pos = batch->positions[p->row0 + first + n - 1];
  }
  for (int32_t i = 0; i < p->n_wanted && !code; i++) {
    const kg_wanted *wanted = &batch->wanted[p->wanted0 + i];
    code = kg_cuda_buffer_claim(wanted->buffer, wanted->at, kg_plan_vocab_size(exe->plan), p->draws_first,
                                &((float **)(m + p->at.out_rows))[i], err);
    ((int32_t *)(m + p->at.wanted_rows))[i] = wanted->row - p->row0;
    ((int32_t *)(m + p->at.wanted_tokens))[i] = batch->tokens[wanted->row];
    ((int32_t *)(m + p->at.wanted_positions))[i] = batch->positions[wanted->row];
  }
  p->wants_all = p->n_wanted == p->n_rows && p->n_rows <= p->program->max_rows[KG_WANTED_ROWS];
  for (int32_t i = 0; i < p->n_wanted && p->wants_all; i++)
    p->wants_all = batch->wanted[p->wanted0 + i].row == p->row0 + i;
  p->n_splits = 8; /* a power of two, so that graphs live long */
  while (p->n_splits < KG_ATTENTION_SPREAD && p->n_splits * KG_ATTENTION_SPLIT <= max_pos + p->n_ahead)
    p->n_splits *= 2;
  return code;
}

static bool is_decoding(const pass *p)
{
  return is_fused(p) && p->n_rows == p->batch->n_rows && p->n_rows <= KG_FEW_ROWS &&
         p->n_rows == p->batch->n_spans && (p->wants_all || p->n_wanted < p->n_rows);
}

/* The rows of a pass to the device. */
static int bring_rows(pass *p, kg_error *err)
{
  kg_executable *exe = p->exe;
  size_t n_bytes;
  int code = fill_meta(p, &n_bytes, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(exe->meta, exe->meta_host, n_bytes, cudaMemcpyHostToDevice,
                                         exe->stream->handle),
                         "bringing rows over", err);
  p->adapted = (kg_adapted_rows){p->row0, p->n_rows, p->wanted0, p->n_wanted, 0, 0};
  if (!code && p->is_adapted) code = kg_gpu_adapters_bring(exe, p->batch, &p->adapted, err);
  return code ? code : kg_cuda_check(cudaEventRecord(exe->meta_read, exe->stream->handle), "bringing rows over", err);
}

static int run_pass(pass *p, kg_error *err)
{
  const int code = bring_rows(p, err);
  if (code) return code;
  return is_decoding(p) ? run_graph(p, err) : enqueue(p, err);
}

/* A pass of rows of the batch, and what it needs on the device. */
static int begin(kg_executable *exe, const kg_batch *batch, pass *out, kg_error *err)
{
  const kg_program *adapting = NULL;
  int code = kg_stream_use(exe->stream, err);
  if (!code) code = kg_draws_finish(exe->stream, err); /* graphs, and what they read, may go */
  if (!code) code = kg_gpu_adapters_prepare(exe, batch, &adapting, err);
  *out = (pass){.exe = exe,
                .batch = batch,
                .program = batch->n_traces || batch->n_taps ? &exe->traced : adapting ? adapting : &exe->fused,
                .is_adapted = adapting != NULL};
  return code;
}

/* What will be asked about the logits is asked now, behind the pass and for all of them at once. That there is no
 * memory for it is no fault of the pass. */
static int32_t ask_ahead(kg_executable *exe, const kg_batch *batch, kg_question *questions)
{
  const int64_t n_vocab = kg_plan_vocab_size(exe->plan);
  int32_t n = 0;
  for (int32_t i = 0; i < batch->n_wanted && n < KG_QUESTIONS_MAX; i++) {
    const kg_wanted *wanted = &batch->wanted[i];
    if (!wanted->at && wanted->buffer->n == n_vocab && kg_cuda_buffer_expects(wanted->buffer, &questions[n])) n++;
  }
  return !n || kg_answers_ask(exe->stream, questions, n, n_vocab, NULL) ? 0 : n;
}

int kg_gpu_run(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  kg_question questions[KG_QUESTIONS_MAX];
  int32_t n_questions = 0;
  pass first;
  int code = begin(exe, batch, &first, err);
  const int32_t step = first.program->max_rows[KG_ALL_ROWS];
  int32_t wanted = 0;
  if (!code) code = kg_gpu_timing_begin(exe, err);
  for (int32_t row = 0; row < batch->n_rows && !code; row += step) {
    pass p = first;
    p.row0 = row;
    p.wanted0 = wanted;
    p.n_rows = batch->n_rows - row < step ? batch->n_rows - row : step;
    while (wanted < batch->n_wanted && batch->wanted[wanted].row < row + p.n_rows) wanted++;
    p.n_wanted = wanted - p.wanted0;
    code = run_pass(&p, err);
  }
  if (!code) code = kg_gpu_timing_end(exe, err);
  if (!code) n_questions = ask_ahead(exe, batch, questions);
  /* Faults belong to the step that made them. */
  const int waited = kg_stream_wait(exe->stream, "a step", code ? NULL : err);
  if (!code) code = waited;
  if (!code) kg_answers_take(exe->stream, questions, n_questions);
  return code ? code : kg_gpu_timing_add(exe, 1, err);
}

/* ---- from the residual to the logits ---- */

/* Is this one of the stages between the residual and the logits? */
static bool unembeds(const kg_plan *plan, int32_t residual, const kg_gpu_stage *stage)
{
  if (stage->kind == KG_STAGE_HALF) return stage->in[0] == residual || kg_leads_from(plan, residual, stage->in[0]);
  return stage->op && stage->kind != KG_STAGE_GATHER && kg_leads_from(plan, residual, stage->out);
}

/* Stages of the traced program, whose values have memory of their own here: a run may be in the middle of it. */
static int unembed_rows(pass *p, int32_t residual, const float *x, float *logits, kg_error *err)
{
  const kg_plan *plan = p->exe->plan;
  const size_t width = (size_t)width_of(p, residual), vocab = (size_t)kg_plan_vocab_size(plan), n = (size_t)p->n;
  int code = kg_cuda_check(cudaMemcpyAsync(floats_of(p, KG_ALL_ROWS, residual), x, n * width * sizeof *x,
                                           cudaMemcpyDeviceToDevice, p->exe->stream->handle),
                           "rows to unembed", err);
  for (size_t i = 0; i < p->program->n_stages && !code; i++)
    if (unembeds(plan, residual, &p->program->stages[i])) code = run_stage(p, &p->program->stages[i], err);
  return code ? code
              : kg_cuda_check(cudaMemcpyAsync(logits, floats_of(p, KG_ALL_ROWS, kg_plan_logits(plan)),
                                              n * vocab * sizeof *logits, cudaMemcpyDeviceToDevice,
                                              p->exe->stream->handle),
                              "logits of rows", err);
}

int kg_gpu_unembed(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                   int64_t logits_at, kg_error *err)
{
  const kg_batch none = {.n_rows = n_rows};
  const int32_t step = exe->traced.max_rows[KG_ALL_ROWS], residual = kg_plan_residual(exe->plan);
  const int64_t width = kg_plan_value(exe->plan, residual)->width, vocab = kg_plan_vocab_size(exe->plan);
  const float *in;
  float *out;
  int code = kg_cuda_buffer_numbers(x, &in, err);
  if (!code) code = kg_cuda_buffer_claim(logits, logits_at, n_rows * vocab, false, &out, err);
  if (!code) code = kg_stream_use(exe->stream, err);
  void *memory = exe->unembedding_arena;
  if (!code && !memory) code = kg_cuda_alloc(exe->traced.arena_bytes, "intermediate results", &memory, err);
  if (code) return code;
  exe->unembedding_arena = memory;
  unsigned char *const arena = exe->arena;
  exe->arena = memory;
  for (int32_t row = 0; row < n_rows && !code; row += step) {
    pass p = {.exe = exe, .batch = &none, .program = &exe->traced};
    p.n = p.n_rows = n_rows - row < step ? n_rows - row : step;
    code = unembed_rows(&p, residual, in + at + row * width, out + row * vocab, err);
  }
  exe->arena = arena;
  const int waited = kg_stream_wait(exe->stream, "unembedding", code ? NULL : err);
  return code ? code : waited;
}

/* ---- single stages ---- */

int kg_gpu_pass_new(kg_executable *exe, const kg_batch *batch, kg_pass **out, kg_error *err)
{
  if (batch->n_rows > exe->fused.max_rows[KG_ALL_ROWS] || batch->n_wanted > exe->fused.max_rows[KG_WANTED_ROWS] ||
      batch->n_traces || batch->n_taps)
    return kg_fail(err, KG_ERR_ARGUMENT, "a batch of %d rows, %d of them wanted, is no single pass", batch->n_rows,
                   batch->n_wanted);
  kg_pass *p = kg_alloc(sizeof *p);
  if (!p) return kg_fail_memory(err, sizeof *p, "a pass");
  int code = begin(exe, batch, p, err);
  p->n_rows = batch->n_rows;
  p->n_wanted = batch->n_wanted;
  if (!code) code = bring_rows(p, err);
  if (code)
    kg_free(p);
  else
    *out = p;
  return code;
}

int kg_gpu_pass_stage(kg_pass *p, const kg_gpu_stage *stage, kg_error *err)
{
  p->n = stage->side == KG_ALL_ROWS ? p->n_rows : p->n_wanted;
  return p->n ? run_stage(p, stage, err) : KG_OK;
}

const kg_program *kg_gpu_pass_program(const kg_pass *p) { return p->program; }
void kg_gpu_pass_free(kg_pass *p) { kg_free(p); }

/* ---- many steps without a round trip ---- */

/* Where row i of a step reads its token and position, as a row and as a wanted one. */
static kg_draw_request request_of(const pass *p, const kg_run_ahead *ahead, int32_t i)
{
  int32_t *const tokens = (int32_t *)(p->exe->meta + p->at.tokens);
  int32_t *const positions = (int32_t *)(p->exe->meta + p->at.positions);
  int32_t *const wanted_tokens = (int32_t *)(p->exe->meta + p->at.wanted_tokens);
  int32_t *const wanted_positions = (int32_t *)(p->exe->meta + p->at.wanted_positions);
  const kg_wanted *wanted = &p->batch->wanted[i];
  return (kg_draw_request){.draw = &ahead->draws[i],
                           .logits = (const float *)wanted->buffer->data + wanted->at,
                           .tokens = {tokens + i, wanted_tokens + i},
                           .positions = {positions + i, wanted_positions + i}};
}

/* Everything is enqueued at once: what a draw finds is written to where the next pass reads its tokens and
 * positions. Where nobody measures the time, it is not waited for. */
int kg_gpu_run_ahead(kg_executable *exe, const kg_batch *batch, const kg_run_ahead *ahead, kg_error *err)
{
  kg_draw_request requests[KG_AHEAD_ROWS];
  pass p;
  int code = begin(exe, batch, &p, err);
  p.n_rows = p.n_wanted = batch->n_rows;
  p.n_ahead = ahead->n_draws - 1;
  p.draws_first = !ahead->evaluates_first;
  if (!code) code = bring_rows(&p, err);
  for (int32_t i = 0; i < batch->n_rows && !code; i++) requests[i] = request_of(&p, ahead, i);
  if (!code) code = kg_gpu_timing_begin(exe, err);
  if (!code)
    code = kg_draws_begin(exe->stream, requests, batch->n_rows, kg_plan_vocab_size(exe->plan), ahead->n_draws, err);
  if (!code) p.draws = kg_draws_launch_key(exe->stream);
  for (int32_t i = 0; i < ahead->n_draws && !code; i++) {
    code = i || ahead->evaluates_first ? run_graph(&p, err) : kg_draws_next(exe->stream, err);
    if (!code) code = kg_draws_mark(exe->stream, i, err);
  }
  if (!code) code = kg_gpu_timing_end(exe, err);
  if (!code) kg_draws_follow(exe->stream, ahead->drawn);
  if (!code && !exe->timer.begin) return KG_OK;
  const int waited = kg_stream_wait(exe->stream, "steps ahead", code ? NULL : err);
  if (!code) code = waited;
  const int finished = kg_draws_finish(exe->stream, code ? NULL : err);
  if (!code) code = finished;
  return code ? code : kg_gpu_timing_add(exe, ahead->n_draws - !ahead->evaluates_first, err);
}

int kg_gpu_wait_ahead(kg_executable *exe, int32_t step, kg_error *err)
{
  const int code = kg_stream_use(exe->stream, err);
  if (!code) return kg_draws_wait(exe->stream, step, err);
  kg_draws_follow(exe->stream, NULL); /* where they were wanted may go */
  return code;
}
