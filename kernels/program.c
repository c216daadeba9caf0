/* program.c - from the operations of a plan to stages: linears of one value together, gates and residuals with their
 * products, rotations with attention, norms with the f16 form that products read; then places in the arena.
 *
 * A fused stage computes exactly what its operations compute one by one: every intermediate is a float32 number
 * either way. So the traced program, which fuses nothing, gives the same bits. */
#include <string.h>

#include "executable.h"

typedef struct builder {
  kg_executable *exe;
  kg_program *program;
  bool traced;
  const bool *adapted;          /* [values] adapters may be added to it; NULL: to none */
  int32_t n_ops, n_values, tail;
  int32_t *n_uses;              /* [values] operations that read it */
  bool *wants_float[KG_SIDES];  /* [values] is the float32 form read on this side? */
  bool *wants_half[KG_SIDES];
  bool *wants_adapting[KG_SIDES]; /* is the float32 form read by adapters? */
  int32_t *half_stage[KG_SIDES]; /* the norm or half stage that makes the f16 form, or KG_NONE */
  bool *done;                   /* [ops] part of an earlier stage */
  kg_error *err;
} builder;

static int32_t few_rows(const kg_executable *exe) { return exe->chunk < KG_FEW_ROWS ? exe->chunk : KG_FEW_ROWS; }

static const kg_op *op_at(const builder *b, int32_t i) { return kg_plan_op(b->exe->plan, i); }
static kg_side side_of(const builder *b, int32_t op)
{
  return !b->traced && op >= b->tail ? KG_WANTED_ROWS : KG_ALL_ROWS;
}
static const kg_value *value_at(const builder *b, int32_t value) { return kg_plan_value(b->exe->plan, value); }
static const kg_op *producer_of(const builder *b, int32_t value) { return op_at(b, value_at(b, value)->producer); }
static const kg_matrix *matrix_of(const builder *b, int32_t weight) { return &b->exe->weights[weight].m; }

/* May adapters be added to what this makes? */
static bool is_adapted(const builder *b, const kg_op *op)
{
  if (op->kind != KG_OP_LINEAR && op->kind != KG_OP_EMBED) return false;
  return b->traced || (b->adapted && b->adapted[op->out]);
}

/* ---- who reads what ---- */

/* In which forms is the first input read? Products want it as their weights are; gates and ups of experts may
 * differ. */
static bool reads_form(const builder *b, const kg_op *op, bool half)
{
  if (op->kind != KG_OP_LINEAR && op->kind != KG_OP_MOE) return !half;
  for (int i = 0; i < (op->kind == KG_OP_MOE ? 2 : 1); i++)
    if ((matrix_of(b, op->w[i])->type != KG_F32) == half) return true;
  return false;
}

static void read_value(builder *b, int32_t op, int32_t value, bool as_float, bool as_half)
{
  if (value == KG_NONE) return;
  const kg_side side = side_of(b, op);
  b->n_uses[value]++;
  b->wants_float[side][value] |= as_float;
  b->wants_half[side][value] |= as_half;
  if (side_of(b, value_at(b, value)->producer) != side)
    b->wants_float[KG_ALL_ROWS][value] = b->wants_float[side][value] = true;
}

static void find_uses(builder *b)
{
  for (int32_t i = 0; i < b->n_ops; i++) {
    const kg_op *op = op_at(b, i);
    for (int j = 0; j < KG_OP_INPUTS; j++)
      read_value(b, i, op->in[j], j || reads_form(b, op, false), !j && reads_form(b, op, true));
    if (op->in[0] != KG_NONE && is_adapted(b, op)) b->wants_adapting[side_of(b, i)][op->in[0]] = true;
  }
  const int32_t logits = kg_plan_logits(b->exe->plan);
  b->wants_float[b->traced ? KG_ALL_ROWS : KG_WANTED_ROWS][logits] = true;
  for (int32_t v = 0; v < b->n_values && b->traced; v++) b->wants_float[KG_ALL_ROWS][v] = true;
}

/* ---- stages ---- */

static kg_gpu_stage *add_stage(builder *b, kg_stage_kind kind, kg_side side, const kg_op *op)
{
  kg_program *p = b->program;
  if (!kg_grow((void **)&p->stages, &p->stages_capacity, p->n_stages + 1, sizeof *p->stages)) {
    kg_fail_memory(b->err, (p->n_stages + 1) * sizeof *p->stages, "the program");
    return NULL;
  }
  kg_gpu_stage *stage = &p->stages[p->n_stages++];
  *stage = (kg_gpu_stage){.kind = kind, .side = side, .op = op, .residual = KG_NONE, .in = {KG_NONE, KG_NONE, KG_NONE},
                          .out = KG_NONE, .rotation = {KG_NONE, KG_NONE}, .fused_in = KG_NONE, .max_slot = KG_NONE,
                          .maker = KG_NONE, .half = KG_NONE};
  if (op) {
    memcpy(stage->in, op->in, sizeof stage->in);
    stage->out = op->out;
  }
  return stage;
}

/* The stage that makes this value, on this side, of this kind; or KG_NONE, also where it is far back: for what is
 * quicker with it, and right without. */
static int32_t find_stage(const builder *b, kg_stage_kind kind, kg_side side, int32_t value)
{
  enum { FAR = 32 }; /* a layer has fewer, and a plan may have very many */
  const int32_t n_stages = (int32_t)b->program->n_stages;
  for (int32_t i = n_stages - 1; i >= 0 && i > n_stages - FAR; i--) {
    const kg_gpu_stage *stage = &b->program->stages[i];
    if (stage->kind == kind && stage->side == side && stage->out == value) return i;
  }
  return KG_NONE;
}

/* The stage that makes this value and can write its f16 form, too, where many rows have a known power of two: gates
 * and attention; or KG_NONE. */
static int32_t find_maker(const builder *b, kg_side side, int32_t value)
{
  if (b->traced || value_at(b, value)->width % KG_BLOCK_COLS) return KG_NONE;
  const int32_t attention = find_stage(b, KG_STAGE_ATTENTION, side, value);
  if (attention != KG_NONE) {
    const kg_attention_args shape = kg_gpu_attention_shape(b->exe, b->program->stages[attention].op, 1);
    return kg_cuda_attention_is_even(&shape) ? attention : KG_NONE;
  }
  const int32_t linear = find_stage(b, KG_STAGE_LINEAR, side, value);
  const kg_gpu_stage *stage = linear == KG_NONE ? NULL : &b->program->stages[linear];
  const bool gates = stage && stage->glu && kg_cuda_linear_many_tiles(matrix_of(b, stage->parts[0]->w[0])) &&
                     kg_cuda_linear_many_tiles(matrix_of(b, stage->parts[1]->w[0]));
  return gates ? linear : KG_NONE;
}

static int add_half(builder *b, kg_side side, int32_t value)
{
  if (b->half_stage[side][value] != KG_NONE) return KG_OK;
  kg_gpu_stage *stage = add_stage(b, KG_STAGE_HALF, side, NULL);
  if (!stage) return KG_ERR_MEMORY;
  stage->in[0] = stage->out = value;
  stage->has_reader = b->wants_float[side][value] || b->wants_adapting[side][value];
  stage->maker = find_maker(b, side, value);
  if (stage->maker != KG_NONE) b->program->stages[stage->maker].half = (int32_t)b->program->n_stages - 1;
  b->half_stage[side][value] = (int32_t)b->program->n_stages - 1;
  b->wants_float[side][value] = true;
  return KG_OK;
}

/* The stage that makes this value and can tell the largest magnitudes of its rows; or KG_NONE. */
static int32_t find_measuring(const builder *b, kg_side side, int32_t value)
{
  static const kg_stage_kind kinds[] = {KG_STAGE_ADAPT, KG_STAGE_LINEAR,     KG_STAGE_ATTENTION,
                                        KG_STAGE_CONV,  KG_STAGE_EMBED_ROWS, KG_STAGE_GATHER};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    const int32_t found = find_stage(b, kinds[i], side, value);
    if (found == KG_NONE) continue;
    const kg_gpu_stage *stage = &b->program->stages[found];
    const bool has_parts = stage->kind == KG_STAGE_LINEAR || stage->kind == KG_STAGE_ADAPT;
    const bool one = !has_parts || stage->glu || stage->n_parts == 1;
    return one && (stage->kind != KG_STAGE_LINEAR || matrix_of(b, stage->op->w[0])->type != KG_F32) ? found : KG_NONE;
  }
  return KG_NONE;
}

/* Where all rows are wanted nothing is gathered, and who made the value measures it: in the same slot, to which a
 * gather writes again. */
static void measure_gathered(builder *b, const kg_gpu_stage *gather)
{
  const int32_t producer = find_measuring(b, KG_ALL_ROWS, gather->in[0]);
  int32_t *slot = producer == KG_NONE ? NULL : &b->program->stages[producer].max_slot;
  if (slot && *slot == KG_NONE) *slot = gather->max_slot;
  if (slot && gather->is_normed) b->program->stages[producer].is_normed = true;
  if (!slot || *slot != gather->max_slot) b->program->places[KG_WANTED_ROWS][gather->out].is_alias = false;
}

/* Can products make the f16 form of this value themselves when rows are few? The norm or half stage that they
 * replace. */
static int32_t find_fusable(builder *b, kg_side side, int32_t value)
{
  kg_program *p = b->program;
  if (b->traced || value_at(b, value)->width % KG_BLOCK_COLS) return KG_NONE;
  int32_t form = find_stage(b, KG_STAGE_NORM_ROWS, side, value);
  if (form != KG_NONE) {
    const kg_op *op = p->stages[form].op;
    if (op->u.norm.groups != 1 || op->u.norm.subtract_mean || op->w[1] != KG_NONE) return KG_NONE;
  } else
    form = find_stage(b, KG_STAGE_HALF, side, value);
  const int32_t producer = form == KG_NONE ? KG_NONE : find_measuring(b, side, p->stages[form].in[0]);
  if (producer == KG_NONE) return KG_NONE;
  if (p->stages[producer].max_slot == KG_NONE) p->stages[producer].max_slot = p->n_max_slots++;
  if (p->stages[form].kind == KG_STAGE_NORM_ROWS) p->stages[producer].is_normed = true;
  if (p->stages[producer].kind == KG_STAGE_GATHER) measure_gathered(b, &p->stages[producer]);
  p->stages[form].max_slot = p->stages[producer].max_slot;
  return form;
}

/* The f16 form of this value, which somebody makes, must be there however few the rows are. */
static void need_half(builder *b, kg_side side, int32_t value)
{
  b->program->stages[b->half_stage[side][value]].is_needed = true;
}

/* The table of these angles, made before its first use on this side; KG_NONE where memory is out. */
static int32_t find_rotation(builder *b, kg_side side, const kg_rope_params *params)
{
  kg_program *p = b->program;
  for (size_t i = 0; i < p->n_rotations; i++)
    if (p->rotations[i].side == side && kg_rope_angles_are_equal(p->rotations[i].params, params)) return (int32_t)i;
  if (!kg_grow((void **)&p->rotations, &p->rotations_capacity, p->n_rotations + 1, sizeof *p->rotations)) {
    kg_fail_memory(b->err, (p->n_rotations + 1) * sizeof *p->rotations, "the program");
    return KG_NONE;
  }
  kg_gpu_stage *stage = add_stage(b, KG_STAGE_ANGLES, side, NULL);
  if (!stage) return KG_NONE;
  p->rotations[p->n_rotations] = (kg_rotation_place){.params = params, .side = side};
  stage->rotation[0] = (int32_t)p->n_rotations;
  return (int32_t)p->n_rotations++;
}

/* ---- fusing ---- */

/* A linear that may stand in one launch with `first`: the same input, width and summation order. */
static bool is_like(const builder *b, const kg_op *first, const kg_op *op)
{
  const kg_matrix *m = matrix_of(b, first->w[0]), *n = matrix_of(b, op->w[0]);
  return op->kind == KG_OP_LINEAR && op->in[0] == first->in[0] && m->cols == n->cols &&
         (m->type == KG_F32) == (n->type == KG_F32) && kg_cuda_linear_run(m) == kg_cuda_linear_run(n);
}

static bool is_same_shape(const kg_matrix *m, const kg_matrix *n)
{
  return m->type == n->type && m->rows == n->rows;
}

/* The gate that reads this linear and another one like it, both alone; else NULL. */
static const kg_op *find_gate(const builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  if (b->n_uses[op->out] != 1 || !kg_cuda_linear_gates(matrix_of(b, op->w[0]))) return NULL;
  const kg_op *glu = op_at(b, value_at(b, op->out)->last_use < b->n_ops ? value_at(b, op->out)->last_use : 0);
  if (glu->kind != KG_OP_GLU || glu->in[0] == glu->in[1]) return NULL;
  const int32_t gate = value_at(b, glu->in[0])->producer, up = value_at(b, glu->in[1])->producer;
  if (op_at(b, gate)->kind != KG_OP_LINEAR || !is_like(b, op_at(b, gate), op_at(b, up)) || b->n_uses[glu->in[0]] != 1 ||
      b->n_uses[glu->in[1]] != 1 ||
      !is_same_shape(matrix_of(b, op_at(b, gate)->w[0]), matrix_of(b, op_at(b, up)->w[0])) ||
      side_of(b, gate) != side_of(b, up) || side_of(b, up) != side_of(b, value_at(b, glu->out)->producer))
    return NULL;
  return glu;
}

/* The sum that this linear alone goes to, its other part being there already; else NULL. */
static const kg_op *find_sum(const builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const int32_t last = value_at(b, op->out)->last_use;
  if (b->n_uses[op->out] != 1 || last >= b->n_ops) return NULL;
  const kg_op *sum = op_at(b, last);
  if (sum->kind != KG_OP_ADD || side_of(b, last) != side_of(b, op_index)) return NULL;
  const int32_t other = sum->in[0] == op->out ? sum->in[1] : sum->in[0];
  return value_at(b, other)->producer < op_index ? sum : NULL;
}

/* Around the stage that was added last: what adapters add, and then what that stage was to do with it. The first half
 * of it needs nothing that the stage makes: before it, it is done while that one still fetches its weights. */
static int add_adapters(builder *b)
{
  const size_t at = b->program->n_stages - 1;
  const kg_gpu_stage made = b->program->stages[at];
  bool any = is_adapted(b, made.op);
  for (int i = 0; i < made.n_parts; i++) any = any || is_adapted(b, made.parts[i]);
  if (!any) return KG_OK;
  if (!add_stage(b, KG_STAGE_ADAPT_IN, made.side, made.op) || !add_stage(b, KG_STAGE_ADAPT, made.side, made.op))
    return KG_ERR_MEMORY;
  kg_gpu_stage *in = &b->program->stages[at], *product = in + 1, *out = in + 2;
  *in = *product; /* as it was added */
  *product = made;
  for (kg_gpu_stage *half = in; half <= out; half += 2) {
    memcpy(half->parts, made.parts, sizeof half->parts);
    half->n_parts = made.n_parts;
  }
  in->out = KG_NONE;
  memcpy(out->in, (int32_t[]){KG_NONE, KG_NONE, KG_NONE}, sizeof out->in);
  out->glu = made.glu;
  out->residual = made.residual;
  out->out = made.out;
  product->glu = NULL;
  product->residual = KG_NONE;
  product->out = product->n_parts ? product->parts[0]->out : product->out;
  product->is_adapted = true;
  return KG_OK;
}

static void mark_done(builder *b, const kg_op *op) { b->done[value_at(b, op->out)->producer] = true; }

static int add_linear_stage(builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const kg_side side = side_of(b, op_index);
  const bool is_float = matrix_of(b, op->w[0])->type == KG_F32;
  if (!is_float && add_half(b, side, op->in[0])) return KG_ERR_MEMORY;
  kg_gpu_stage *stage = add_stage(b, KG_STAGE_LINEAR, side, op);
  if (!stage) return KG_ERR_MEMORY;
  stage->parts[0] = op;
  stage->n_parts = 1;
  stage->to_logits = !b->traced && !is_adapted(b, op) && op->out == kg_plan_logits(b->exe->plan) && !b->n_uses[op->out];
  if (b->traced || stage->to_logits) return KG_OK;
  const kg_op *glu = is_float ? NULL : find_gate(b, op_index);
  if (glu) {
    stage->parts[0] = producer_of(b, glu->in[0]);
    stage->parts[1] = producer_of(b, glu->in[1]);
    stage->n_parts = 2;
    stage->glu = glu;
    stage->out = glu->out;
    for (int i = 0; i < 2; i++) mark_done(b, stage->parts[i]);
    mark_done(b, glu);
    return KG_OK;
  }
  const kg_op *sum = find_sum(b, op_index);
  if (sum) {
    stage->residual = sum->in[0] == op->out ? sum->in[1] : sum->in[0];
    stage->out = sum->out;
    mark_done(b, sum);
    return KG_OK;
  }
  const int32_t last = value_at(b, op->in[0])->last_use;
  for (int32_t i = op_index + 1; i <= last && i < b->n_ops && !is_float && stage->n_parts < KG_LINEAR_PARTS; i++) {
    const kg_op *next = op_at(b, i);
    if (b->done[i] || next->kind != KG_OP_LINEAR || !is_like(b, op, next) || side_of(b, i) != side ||
        next->out == kg_plan_logits(b->exe->plan) || find_gate(b, i) || find_sum(b, i))
      continue;
    stage->parts[stage->n_parts++] = next;
    b->done[i] = true;
  }
  return KG_OK;
}

static int add_linear(builder *b, int32_t op_index)
{
  int code = add_linear_stage(b, op_index);
  size_t index = b->program->n_stages - 1;
  if (!code) code = add_adapters(b);
  if (code) return code;
  const bool has_adapters = b->program->stages[index].kind == KG_STAGE_ADAPT_IN;
  if (has_adapters) index++;
  kg_gpu_stage *stage = &b->program->stages[index];
  if (matrix_of(b, stage->op->w[0])->type == KG_F32) return KG_OK;
  kg_value_place *place = &b->program->places[stage->side][stage->in[0]];
  int32_t n_tiles = 0;
  for (int i = 0; i < stage->n_parts; i++) n_tiles += kg_cuda_linear_many_tiles(matrix_of(b, stage->parts[i]->w[0]));
  if (n_tiles > place->n_tiles) place->n_tiles = n_tiles;
  const kg_matrix *m = matrix_of(b, stage->op->w[0]);
  const size_t scratch = stage->glu || !n_tiles ? 0 : kg_cuda_linear_scratch(b->exe->stream, m, n_tiles);
  if (scratch > b->program->scratch_floats) b->program->scratch_floats = scratch;
  stage->fused_in = find_fusable(b, stage->side, stage->in[0]);
  if (stage->fused_in == KG_NONE) need_half(b, stage->side, stage->in[0]);
  if (has_adapters) stage[-1].fused_in = stage->fused_in;
  return KG_OK;
}

/* A rotation that only this attention reads is done by it. */
static bool takes_rotation(const builder *b, int32_t value, kg_side side)
{
  const kg_op *rope = producer_of(b, value);
  return !b->traced && rope->kind == KG_OP_ROPE && b->n_uses[value] == 1 &&
         side_of(b, value_at(b, value)->producer) == side;
}

static int add_attention(builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const kg_side side = side_of(b, op_index);
  int32_t rotation[2] = {KG_NONE, KG_NONE}, in[3] = {op->in[0], op->in[1], op->in[2]};
  for (int i = 0; i < 2; i++) {
    if (!takes_rotation(b, op->in[i], side)) continue;
    const kg_op *rope = producer_of(b, op->in[i]);
    rotation[i] = find_rotation(b, side, &rope->u.rope);
    if (rotation[i] == KG_NONE) return KG_ERR_MEMORY;
    in[i] = rope->in[0];
  }
  kg_gpu_stage *stage = add_stage(b, KG_STAGE_ATTENTION, side, op);
  if (!stage) return KG_ERR_MEMORY;
  memcpy(stage->in, in, sizeof in);
  memcpy(stage->rotation, rotation, sizeof rotation);
  const kg_attention_args shape = kg_gpu_attention_shape(b->exe, op, few_rows(b->exe));
  const size_t scratch = kg_cuda_attention_scratch(b->exe->stream, &shape);
  if (scratch > b->program->scratch_floats) b->program->scratch_floats = scratch;
  return KG_OK;
}

static bool only_attention_turns(const builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const int32_t last = value_at(b, op->out)->last_use;
  if (b->traced || b->n_uses[op->out] != 1 || last >= b->n_ops || op_at(b, last)->kind != KG_OP_ATTENTION) return false;
  const kg_op *attention = op_at(b, last);
  return attention->in[2] != op->out && side_of(b, last) == side_of(b, op_index);
}

/* ---- slices and rotations that their readers do ---- */

/* Equal parts of an input of what is put together, each read by its group; 1: all of it by all groups. */
static int32_t parts_of(const kg_op *concat, int32_t value)
{
  return concat->in[1] == value && concat->u.concat.is_shared ? 1 : concat->u.concat.groups;
}

static bool is_aligned(const builder *b, const kg_op *slice)
{
  const int32_t part = value_at(b, slice->in[0])->width / slice->u.slice.groups;
  return part % 4 == 0 && slice->u.slice.first % 4 == 0 && slice->u.slice.width % 4 == 0;
}

/* Does the only reader of this slice or rotation read through it? */
static bool is_folded(const builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const int32_t last = value_at(b, op->out)->last_use;
  if (b->traced || b->n_uses[op->out] != 1 || last >= b->n_ops || side_of(b, last) != side_of(b, op_index))
    return false;
  const kg_op *reader = op_at(b, last);
  if (op->kind == KG_OP_ROPE)
    return reader->kind == KG_OP_CONCAT && op->u.rope.n_dims == op->u.rope.head_dim &&
           op->u.rope.n_heads == parts_of(reader, op->out);
  const int32_t groups = op->u.slice.groups;
  switch (reader->kind) {
  case KG_OP_CONCAT: return groups == parts_of(reader, op->out);
  case KG_OP_ROPE: return groups == reader->u.rope.n_heads && is_folded(b, last);
  case KG_OP_LINEAR_EACH:
    return groups == matrix_of(b, reader->w[0])->planes && matrix_of(b, reader->w[0])->type != KG_F32 &&
           is_aligned(b, op);
  case KG_OP_NORM: /* one that no product does by itself */
    return groups == 1 && reader->u.norm.groups == 1 && !b->wants_half[side_of(b, last)][reader->out] &&
           is_aligned(b, op);
  default: return false;
  }
}

/* A stage that reads through slices, and what is put together through rotations, too. */
static int add_reader(builder *b, kg_stage_kind kind, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const kg_side side = side_of(b, op_index);
  const kg_op *view[2] = {NULL, NULL};
  int32_t rotation[2] = {KG_NONE, KG_NONE}, in[3] = {op->in[0], op->in[1], op->in[2]};
  for (int i = 0; i < (op->kind == KG_OP_CONCAT ? 2 : 1); i++) {
    const kg_op *from = producer_of(b, in[i]);
    if (from->kind == KG_OP_ROPE && is_folded(b, value_at(b, in[i])->producer)) {
      rotation[i] = find_rotation(b, side, &from->u.rope);
      if (rotation[i] == KG_NONE) return KG_ERR_MEMORY;
      in[i] = from->in[0];
      from = producer_of(b, in[i]);
    }
    if (from->kind != KG_OP_SLICE || !is_folded(b, value_at(b, in[i])->producer)) continue;
    view[i] = from;
    in[i] = from->in[0];
  }
  kg_gpu_stage *stage = add_stage(b, kind, side, op);
  if (!stage) return KG_ERR_MEMORY;
  memcpy(stage->in, in, sizeof in);
  memcpy(stage->view, view, sizeof view);
  memcpy(stage->rotation, rotation, sizeof rotation);
  return KG_OK;
}

static int add_norm(builder *b, int32_t op_index)
{
  const kg_op *op = op_at(b, op_index);
  const kg_side side = side_of(b, op_index);
  const int code = add_reader(b, KG_STAGE_NORM_ROWS, op_index);
  if (!code && op->u.norm.groups == 1 && b->wants_half[side][op->out])
    b->half_stage[side][op->out] = (int32_t)b->program->n_stages - 1;
  return code;
}

static int add_op(builder *b, int32_t i)
{
  const kg_op *op = op_at(b, i);
  const kg_side side = side_of(b, i);
  kg_gpu_stage *stage;
  int32_t rotation;
  switch (op->kind) {
  case KG_OP_EMBED: return add_stage(b, KG_STAGE_EMBED_ROWS, side, op) ? add_adapters(b) : KG_ERR_MEMORY;
  case KG_OP_NORM: return add_norm(b, i);
  case KG_OP_SLICE: return is_folded(b, i) ? KG_OK : add_reader(b, KG_STAGE_COLUMNS, i);
  case KG_OP_CONCAT: return add_reader(b, KG_STAGE_COLUMNS, i);
  case KG_OP_LINEAR: return add_linear(b, i);
  case KG_OP_LINEAR_EACH: return add_reader(b, KG_STAGE_EACH, i);
  case KG_OP_ROPE:
    if (is_folded(b, i)) return KG_OK;
    if (only_attention_turns(b, i)) { /* attention reads what this reads */
      b->wants_float[side][op->in[0]] = true;
      return KG_OK;
    }
    rotation = find_rotation(b, side, &op->u.rope);
    stage = rotation == KG_NONE ? NULL : add_stage(b, KG_STAGE_ROPE, side, op);
    if (!stage) return KG_ERR_MEMORY;
    stage->rotation[0] = rotation;
    return KG_OK;
  case KG_OP_ATTENTION: return add_attention(b, i);
  case KG_OP_MOE:
    if (reads_form(b, op, true)) {
      if (add_half(b, side, op->in[0])) return KG_ERR_MEMORY;
      need_half(b, side, op->in[0]);
    }
    return add_stage(b, KG_STAGE_MOE, side, op) ? KG_OK : KG_ERR_MEMORY;
  case KG_OP_CONV: return add_stage(b, KG_STAGE_CONV, side, op) ? KG_OK : KG_ERR_MEMORY;
  default: return add_stage(b, KG_STAGE_COLUMNS, side, op) ? KG_OK : KG_ERR_MEMORY;
  }
}

/* The wanted rows of every value that the tail reads from before it. */
static int add_gathers(builder *b)
{
  for (int32_t v = 0; v < b->n_values; v++) {
    const kg_value *value = value_at(b, v);
    if (value->producer >= b->tail || value->last_use < b->tail) continue;
    kg_gpu_stage *stage = add_stage(b, KG_STAGE_GATHER, KG_WANTED_ROWS, NULL);
    if (!stage) return KG_ERR_MEMORY;
    stage->in[0] = stage->out = v;
    b->program->places[KG_WANTED_ROWS][v].is_alias = true;
    b->wants_float[KG_ALL_ROWS][v] = b->wants_float[KG_WANTED_ROWS][v] = true;
  }
  return KG_OK;
}

static size_t bytes_of(const builder *b, const kg_gpu_stage *linear)
{
  size_t n_bytes = 0;
  for (int i = 0; i < linear->n_parts; i++) n_bytes += b->exe->weights[linear->parts[i]->w[0]].matrix_bytes;
  return n_bytes;
}

/* Who follows a product of few rows should start with it where that pays for the room that it takes: a product that
 * reads much more, or attention, which fetches its cache meanwhile. */
static void find_early_starts(builder *b)
{
  kg_gpu_stage *before = NULL;
  for (size_t i = 0; i < b->program->n_stages; i++) {
    kg_gpu_stage *stage = &b->program->stages[i];
    if (stage->kind == KG_STAGE_NORM_ROWS || stage->kind == KG_STAGE_HALF || stage->kind == KG_STAGE_GATHER) continue;
    const bool is_product = stage->kind == KG_STAGE_LINEAR;
    if (before && is_product) before->starts_next = bytes_of(b, stage) > 4 * bytes_of(b, before);
    if (before && stage->kind == KG_STAGE_ATTENTION) before->starts_next = stage == before + 1;
    before = is_product ? stage : NULL;
  }
}

static int add_stages(builder *b)
{
  const int32_t logits = kg_plan_logits(b->exe->plan);
  for (int32_t i = 0; i < b->n_ops; i++) {
    if (i == b->tail && i && !b->traced && add_gathers(b)) return KG_ERR_MEMORY;
    if (!b->done[i] && add_op(b, i)) return KG_ERR_MEMORY;
  }
  for (size_t i = 0; i < b->program->n_stages; i++)
    if (b->program->stages[i].to_logits) return KG_OK;
  kg_gpu_stage *stage = add_stage(b, KG_STAGE_SCATTER, b->traced ? KG_ALL_ROWS : KG_WANTED_ROWS, NULL);
  if (!stage) return KG_ERR_MEMORY;
  stage->in[0] = stage->out = logits;
  return KG_OK;
}

/* ---- places ---- */

/* Memory of one form of one value, from the stage that writes it to the last that reads it. */
typedef struct span {
  size_t bytes, *place, *scale_place; /* a half's scales stand behind it */
  size_t scale_at;
  int32_t first, last;
} span;

typedef struct layout {
  builder *b;
  span *spans[KG_SIDES][2]; /* [values]; float and half */
  span *live;               /* sorted by place */
  size_t n_live, live_capacity;
} layout;

static void touch(span *s, int32_t stage)
{
  if (s->first < 0) s->first = stage;
  s->last = stage;
}

static void touch_value(layout *l, kg_side side, bool half, int32_t value, int32_t stage)
{
  if (value != KG_NONE) touch(&l->spans[side][half][value], stage);
}

static bool reads(const builder *b, const kg_gpu_stage *stage, bool half)
{
  /* Adapters read floats, whatever the product does. */
  const bool is_operation = stage->op && stage->kind != KG_STAGE_ADAPT_IN;
  return is_operation ? reads_form(b, stage->op, half) : !half;
}

static void touch_stage(layout *l, int32_t i)
{
  const builder *b = l->b;
  const kg_gpu_stage *stage = &b->program->stages[i];
  const kg_side side = stage->side, from = stage->kind == KG_STAGE_GATHER ? KG_ALL_ROWS : side;
  for (int half = 0; half < 2; half++)
    if (reads(b, stage, half)) touch_value(l, from, half, stage->in[0], i);
  if (stage->kind == KG_STAGE_GATHER) /* the tail may run several times, and gathers each time */
    touch_value(l, from, false, stage->in[0], (int32_t)b->program->n_stages - 1);
  for (int j = 1; j < 3; j++) touch_value(l, side, false, stage->in[j], i);
  touch_value(l, side, false, stage->residual, i);
  if (stage->fused_in != KG_NONE) touch_value(l, side, false, b->program->stages[stage->fused_in].in[0], i);
  if (stage->kind == KG_STAGE_HALF) {
    touch_value(l, side, true, stage->out, i);
    return;
  }
  if (stage->kind == KG_STAGE_NORM_ROWS) {
    const bool has_half = b->half_stage[side][stage->out] == i;
    if (has_half) touch_value(l, side, true, stage->out, i);
    if (b->wants_float[side][stage->out] || b->wants_adapting[side][stage->out] || !has_half)
      touch_value(l, side, false, stage->out, i);
    return;
  }
  if (stage->to_logits) return;
  if (stage->half != KG_NONE) touch_value(l, side, true, stage->out, i);
  touch_value(l, side, false, stage->out, i);
  if (stage->kind == KG_STAGE_ADAPT || (stage->kind == KG_STAGE_LINEAR && !stage->glu))
    for (int j = stage->kind == KG_STAGE_LINEAR; j < stage->n_parts; j++)
      touch_value(l, side, false, stage->parts[j]->out, i);
}

/* The lowest gap among the live spans. */
static int place_span(layout *l, span *s)
{
  size_t at = 0, i = 0;
  if (!kg_grow((void **)&l->live, &l->live_capacity, l->n_live + 1, sizeof *l->live))
    return kg_fail_memory(l->b->err, (l->n_live + 1) * sizeof *l->live, "the program");
  while (i < l->n_live && at + s->bytes > *l->live[i].place) {
    const size_t end = *l->live[i].place + l->live[i].bytes;
    at = end > at ? end : at;
    i++;
  }
  memmove(l->live + i + 1, l->live + i, (l->n_live - i) * sizeof *l->live);
  *s->place = at;
  if (s->scale_place) *s->scale_place = at + s->scale_at;
  l->live[i] = *s;
  l->n_live++;
  if (at + s->bytes > l->b->program->arena_bytes) l->b->program->arena_bytes = at + s->bytes;
  return KG_OK;
}

static void expire(layout *l, int32_t stage)
{
  size_t kept = 0;
  for (size_t i = 0; i < l->n_live; i++)
    if (l->live[i].last >= stage) l->live[kept++] = l->live[i];
  l->n_live = kept;
}

static size_t padded(size_t n) { return (n + 255) / 256 * 256; }

static void size_span(layout *l, kg_side side, bool half, int32_t value)
{
  kg_program *p = l->b->program;
  span *s = &l->spans[side][half][value];
  const size_t rows = (size_t)p->max_rows[side], width = (size_t)value_at(l->b, value)->width;
  s->first = -1;
  if (half) {
    const size_t columns = (width + 127) / 128 * 128; /* whole chunks, and of panels whole groups */
    s->scale_at = padded((rows > 1 ? (rows + KG_PANEL_ROWS - 1) / KG_PANEL_ROWS * KG_PANEL_ROWS : rows) * columns * 2);
    s->bytes = s->scale_at + padded(rows * sizeof(float));
    s->place = &p->places[side][value].half;
    s->scale_place = &p->places[side][value].half_scale;
  } else {
    s->bytes = padded(rows * width * sizeof(float));
    s->place = &p->places[side][value].at;
  }
}

/* Spans by the stage that begins them: stages write few values, so the lists are short. */
static int place_all(layout *l)
{
  const builder *b = l->b;
  const int32_t n_stages = (int32_t)b->program->n_stages;
  const size_t n_spans = (size_t)b->n_values * KG_SIDES * 2;
  span **next = kg_alloc_array(n_spans, sizeof *next), **head = kg_alloc_array((size_t)n_stages, sizeof *head);
  int code = next && head ? KG_OK : kg_fail_memory(b->err, n_spans * sizeof *next, "the program");
  span *base = l->spans[0][0];
  for (size_t i = 0; i < n_spans && !code; i++) {
    if (base[i].first < 0) continue;
    next[i] = head[base[i].first];
    head[base[i].first] = &base[i];
  }
  for (int32_t stage = 0; stage < n_stages && !code; stage++) {
    expire(l, stage);
    for (span *s = head[stage]; s && !code; s = next[s - base]) code = place_span(l, s);
  }
  kg_free(next);
  kg_free(head);
  return code;
}

static int lay_out(builder *b)
{
  const size_t n = (size_t)b->n_values;
  layout l = {.b = b};
  span *spans = kg_alloc_array(n * KG_SIDES * 2, sizeof *spans);
  if (!spans) return kg_fail_memory(b->err, n * KG_SIDES * 2 * sizeof *spans, "the program");
  for (int side = 0; side < KG_SIDES; side++)
    for (int half = 0; half < 2; half++) {
      l.spans[side][half] = spans + (size_t)(2 * side + half) * n;
      for (int32_t v = 0; v < b->n_values; v++) size_span(&l, (kg_side)side, half, v);
    }
  for (size_t i = 0; i < b->program->n_stages; i++) {
    kg_gpu_stage *stage = &b->program->stages[i];
    touch_stage(&l, (int32_t)i);
    if (stage->kind == KG_STAGE_NORM_ROWS)
      stage->has_reader = b->wants_float[stage->side][stage->out] || b->half_stage[stage->side][stage->out] == KG_NONE;
  }
  const int code = place_all(&l);
  kg_free(l.live);
  kg_free(spans);
  if (code) return code;
  for (size_t i = 0; i < b->program->n_rotations; i++) {
    kg_rotation_place *r = &b->program->rotations[i];
    r->table = b->program->arena_bytes;
    b->program->arena_bytes +=
        padded((size_t)b->program->max_rows[r->side] * (size_t)r->params->n_dims * sizeof(float));
  }
  return KG_OK;
}

/* ---- all of it ---- */

/* For all products alike: who makes a value measures it for all who read it, or for none. */
static int32_t find_max_few(const builder *b)
{
  for (int side = 0; side < KG_SIDES; side++)
    for (int32_t v = 0; v < b->n_values; v++)
      if (kg_cuda_linear_has_many(b->exe->stream, b->program->places[side][v].n_tiles)) return 1;
  return KG_LINEAR_FEW;
}

int kg_program_build(kg_executable *exe, bool traced, const bool *adapted, kg_program *out, kg_error *err)
{
  builder b = {.exe = exe, .program = out, .traced = traced, .adapted = adapted, .n_ops = kg_plan_op_count(exe->plan),
               .n_values = kg_plan_value_count(exe->plan), .tail = kg_plan_tail(exe->plan), .err = err};
  const size_t n = (size_t)b.n_values;
  const bool is_whole = kg_plan_is_bidirectional(exe->plan); /* and mostly all rows are wanted: of no wide head */
  const bool wants_many = is_whole && kg_plan_vocab_size(exe->plan) <= KG_NARROW_HEAD;
  out->max_rows[KG_ALL_ROWS] = traced && !is_whole ? few_rows(exe) : exe->pass_rows;
  out->max_rows[KG_WANTED_ROWS] = wants_many ? exe->pass_rows : few_rows(exe);
  const size_t n_flags = 6 * n + (size_t)b.n_ops;
  bool *flags = kg_alloc_array(n_flags, sizeof *flags);
  b.n_uses = kg_alloc_array(3 * n, sizeof *b.n_uses);
  for (int side = 0; side < KG_SIDES; side++) out->places[side] = kg_alloc_array(n, sizeof *out->places[side]);
  int code = KG_OK;
  if (!flags || !b.n_uses || !out->places[0] || !out->places[1])
    code = kg_fail_memory(err, n_flags + 3 * n * sizeof *b.n_uses, "the program");
  if (!code) {
    for (int side = 0; side < KG_SIDES; side++) {
      b.wants_float[side] = flags + (size_t)side * n;
      b.wants_half[side] = flags + (size_t)(2 + side) * n;
      b.wants_adapting[side] = flags + (size_t)(4 + side) * n;
      b.half_stage[side] = b.n_uses + (size_t)(1 + side) * n;
      for (size_t v = 0; v < n; v++) {
        b.half_stage[side][v] = KG_NONE;
        out->places[side][v] = (kg_value_place){SIZE_MAX, SIZE_MAX, SIZE_MAX, 0, false};
      }
    }
    b.done = flags + 6 * n;
    find_uses(&b);
    code = add_stages(&b);
    if (!code && !traced) find_early_starts(&b);
    out->max_few = find_max_few(&b);
    if (!code) code = lay_out(&b);
  }
  kg_free(flags);
  kg_free(b.n_uses);
  return code;
}

void kg_program_deinit(kg_program *program)
{
  kg_free(program->stages);
  kg_free(program->rotations);
  for (int side = 0; side < KG_SIDES; side++) kg_free(program->places[side]);
  (void)cudaFree(program->freqs);
}
