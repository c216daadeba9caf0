#include "program.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "vector_ops.h"

enum {
  TAIL_ROWS = 64,        /* rows of a tail pass when the logits go straight to where they are wanted */
  TAIL_ROWS_STORED = 16, /* when the logits stand in the arena first */
  ALIGNMENT = 64
};

/* Something to schedule: ready when its inputs are. */
typedef enum node_kind {
  NODE_ROW, NODE_PRODUCT, NODE_HEAD, NODE_ATTENTION, NODE_CONV, NODE_MIXTURE, NODE_TAP, NODE_ADAPT
} node_kind;

enum { NODE_PLACES = 3 };

typedef struct node {
  node_kind kind;
  bool done;
  int32_t reads[NODE_PLACES]; /* must be ready before; KG_NONE where unused */
  int32_t makes;              /* is ready afterwards, or KG_NONE */
  int32_t touches;            /* is written to, but not ready afterwards, or KG_NONE */
  kg_row_op row;
  kg_product product;
  int32_t index; /* op of an attention, of a convolution or of adapters, mixture, tapped value */
} node;

typedef struct builder {
  const kg_program_input *in;
  const kg_plan *plan;
  kg_program *program;
  int32_t n_ops, n_values;
  int32_t *place_of; /* by value; KG_NONE: none yet */
  int32_t *n_uses;   /* by value, of inputs of operations */
  int32_t *fused;    /* by op: the op that takes part in it instead, or KG_NONE */
  int32_t last_tap;  /* place that the tap before the next one makes: taps stand in the order of the operations */
  int32_t n_head;    /* ops [n_head, n_ops) are the head with its scalings; n_ops: not fused */
  node *nodes;
  size_t n_nodes, nodes_room;
  int32_t max_rows; /* of the section that is being built */
  kg_error *err;
} builder;

/* ---- growing the lists ---- */

static int no_memory(const builder *b) { return kg_fail_memory(b->err, sizeof(node), "the stages of the plan"); }

static int new_place(builder *b, size_t n_bytes, int32_t *out)
{
  kg_program *p = b->program;
  if (!kg_grow((void **)&p->places, &p->places_room, p->n_places + 1, sizeof *p->places)) return no_memory(b);
  p->places[p->n_places] =
      (kg_place){.n_bytes = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, .first = -1, .last = -1, .of = KG_NONE};
  *out = (int32_t)p->n_places++;
  return KG_OK;
}

/* Floats [rows][width], rows padded to whole vectors. */
static int new_rows(builder *b, int64_t n_rows, int64_t width, int32_t *out)
{
  const int64_t stride = kg_padded(width);
  size_t n_bytes;
  if (!kg_mul_size((size_t)n_rows, (size_t)stride * sizeof(float), &n_bytes))
    return kg_fail_memory(b->err, SIZE_MAX, "intermediate results");
  const int code = new_place(b, n_bytes, out);
  if (code) return code;
  b->program->places[*out].stride = stride;
  b->program->places[*out].is_rows = true;
  return KG_OK;
}

static int new_node(builder *b, node_kind kind, node **out)
{
  if (!kg_grow((void **)&b->nodes, &b->nodes_room, b->n_nodes + 1, sizeof *b->nodes)) return no_memory(b);
  node *n = &b->nodes[b->n_nodes++];
  memset(n, 0, sizeof *n);
  n->kind = kind;
  for (int i = 0; i < NODE_PLACES; i++) n->reads[i] = KG_NONE;
  n->makes = n->touches = KG_NONE;
  *out = n;
  return KG_OK;
}

/* A row operation from up to two places to one. */
static int new_row(builder *b, kg_row_kind kind, const kg_op *op, int32_t in0, int32_t in1, int32_t out, int64_t width,
                   node **made)
{
  node *n;
  const int code = new_node(b, NODE_ROW, &n);
  if (code) return code;
  n->row = (kg_row_op){
      .kind = kind, .op = op, .in = {in0, in1}, .out = out, .value = op ? op->out : KG_NONE, .width = width};
  n->reads[0] = in0;
  n->reads[1] = in1;
  n->makes = out;
  if (out != KG_NONE && b->program->places[out].is_rows) b->program->places[out].made_by_row = true;
  if (made) *made = n;
  return KG_OK;
}

static int value_place(builder *b, int32_t value, int32_t *out)
{
  if (b->place_of[value] == KG_NONE) {
    const int code = new_rows(b, b->max_rows, kg_plan_value(b->plan, value)->width, &b->place_of[value]);
    if (code) return code;
  }
  *out = b->place_of[value];
  return KG_OK;
}

/* The packed activations of a place in the format that a weight wants, a part for each of its planes, made once. */
static int packed_place(builder *b, int32_t place, const kg_packed *weight, int32_t *out)
{
  kg_program *p = b->program;
  const kg_activation_format format = b->in->kernels->format(weight->type);
  const int32_t parts = (int32_t)weight->planes;
  for (size_t i = 0; i < p->n_places; i++)
    if (p->places[i].of == place && p->places[i].format == format && p->places[i].parts == parts) {
      *out = (int32_t)i;
      return KG_OK;
    }
  size_t n_bytes, part_bytes = kg_terms_bytes(format, b->max_rows, weight->cols);
  part_bytes = (part_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (!kg_mul_size(part_bytes, (size_t)parts, &n_bytes))
    return kg_fail_memory(b->err, SIZE_MAX, "intermediate results");
  int code = new_place(b, n_bytes, out);
  if (code) return code;
  p->places[*out].of = place;
  p->places[*out].format = format;
  p->places[*out].parts = parts;
  p->places[*out].part_bytes = part_bytes;
  return new_row(b, KG_ROW_QUANTIZE, NULL, place, KG_NONE, *out, weight->cols, NULL);
}

/* ---- from operations to nodes ---- */

static int add_product(builder *b, int32_t op_index)
{
  const kg_op *op = kg_plan_op(b->plan, op_index);
  const kg_packed *weight = b->in->weights[op->w[0]];
  const int32_t adding = b->fused[op_index];
  const bool is_head = b->n_head <= op_index;
  int32_t x, packed, out = KG_NONE, residual = KG_NONE;
  int code;
  if ((code = value_place(b, op->in[0], &x)) || (code = packed_place(b, x, weight, &packed)))
    return code;
  if (adding != KG_NONE) {
    const kg_op *add = kg_plan_op(b->plan, adding);
    const int32_t other = add->in[0] == op->out ? add->in[1] : add->in[0];
    if ((code = value_place(b, other, &residual)) || (code = value_place(b, add->out, &out))) return code;
  } else if (!is_head) {
    if ((code = value_place(b, op->out, &out))) return code;
  }
  node *n;
  if ((code = new_node(b, is_head ? NODE_HEAD : NODE_PRODUCT, &n))) return code;
  n->product = (kg_product){.weight = op->w[0],
                            .bias = op->w[1],
                            .x = packed,
                            .residual = residual,
                            .out = out,
                            .planes = weight->planes,
                            .n_groups = weight->planes * weight->n_groups};
  n->reads[0] = packed;
  n->reads[1] = residual;
  n->makes = out;
  return KG_OK;
}

static int add_attention(builder *b, int32_t op_index)
{
  const kg_op *op = kg_plan_op(b->plan, op_index);
  int32_t q, k, v = KG_NONE, out, written, attended;
  int code;
  if ((code = value_place(b, op->in[0], &q)) || (code = value_place(b, op->in[1], &k)) ||
      (op->in[2] != KG_NONE && (code = value_place(b, op->in[2], &v))) || (code = value_place(b, op->out, &out)) ||
      (code = new_place(b, 0, &written)) || (code = new_place(b, 0, &attended)))
    return code;
  if ((code = new_row(b, KG_ROW_CACHE, op, k, v, written, 0, NULL))) return code;
  node *n;
  if ((code = new_node(b, NODE_ATTENTION, &n))) return code;
  n->index = op_index;
  n->reads[0] = q;
  n->reads[1] = written;
  n->makes = attended;
  n->touches = out;
  if ((code = new_row(b, KG_ROW_COMBINE, op, attended, KG_NONE, out, 0, NULL))) return code;
  b->program->places[out].made_by_row = false; /* mostly by the attention stage */
  return KG_OK;
}

static int add_conv(builder *b, int32_t op_index)
{
  const kg_op *op = kg_plan_op(b->plan, op_index);
  int32_t x, out;
  node *n;
  int code;
  if ((code = value_place(b, op->in[0], &x)) || (code = value_place(b, op->out, &out)) ||
      (code = new_node(b, NODE_CONV, &n)))
    return code;
  n->index = op_index;
  n->reads[0] = x;
  n->makes = out;
  return KG_OK;
}

static int add_mixture(builder *b, const kg_op *op)
{
  kg_program *p = b->program;
  const kg_moe_params *moe = &op->u.moe;
  const kg_packed *gate = b->in->weights[op->w[0]], *up = b->in->weights[op->w[1]], *down = b->in->weights[op->w[2]];
  const int64_t n_pairs = (int64_t)b->max_rows * moe->n_used;
  /* experts begin at whole panels */
  const int64_t panels = n_pairs / KG_PANEL + (moe->n_experts < n_pairs ? moe->n_experts : n_pairs) + 1;
  const kg_kernels *kernels = b->in->kernels;
  if (!kg_grow((void **)&p->mixtures, &p->mixtures_room, p->n_mixtures + 1, sizeof *p->mixtures)) return no_memory(b);
  const int32_t index = (int32_t)p->n_mixtures++;
  kg_mixture m = {.op = op};
  int32_t out;
  int code;
  const size_t ints = (size_t)n_pairs * sizeof(int32_t);
  if ((code = value_place(b, op->in[0], &m.x)) || (code = value_place(b, op->in[1], &m.router)) ||
      (code = value_place(b, op->out, &out)) || (code = new_place(b, ints, &m.chosen)) ||
      (code = new_place(b, ints, &m.shares)) || (code = new_place(b, ints, &m.pairs)) ||
      (code = new_place(b, ints, &m.slots)) ||
      (code = new_place(b, ((size_t)moe->n_experts + 1) * sizeof(int32_t), &m.bounds)) ||
      (code = new_rows(b, n_pairs, gate->rows, &m.gate)) || (code = new_rows(b, n_pairs, up->rows, &m.up)) ||
      (code = new_rows(b, n_pairs, down->rows, &m.down)))
    return code;
  const kg_activation_format formats[] = {kernels->format(gate->type), kernels->format(up->type)};
  for (int i = 0; i < 2; i++) {
    if (i && formats[1] == formats[0]) {
      m.x_packed[1] = m.x_packed[0];
      continue;
    }
    if ((code = new_place(b, kg_terms_bytes(formats[i], panels * KG_PANEL, gate->cols), &m.x_packed[i]))) return code;
    p->places[m.x_packed[i]].format = formats[i];
  }
  const kg_activation_format format = kernels->format(down->type);
  if ((code = new_place(b, kg_terms_bytes(format, panels * KG_PANEL, down->cols), &m.packed))) return code;
  p->places[m.packed].format = format;
  p->mixtures[index] = m;

  node *n;
  if ((code = new_row(b, KG_ROW_ROUTE, op, m.router, KG_NONE, m.chosen, 0, &n))) return code;
  n->row.index = index;
  if ((code = new_node(b, NODE_MIXTURE, &n))) return code;
  n->index = index;
  n->reads[0] = m.chosen;
  n->reads[1] = m.x;
  n->makes = m.down;
  if ((code = new_row(b, KG_ROW_MIX, op, m.down, KG_NONE, out, down->rows, &n))) return code;
  n->row.index = index;
  return KG_OK;
}

/* Cosines and sines stand in the order of the channels, hence by style. */
static int find_rotation(builder *b, const kg_rope_params *rope, int32_t *out)
{
  kg_program *p = b->program;
  for (*out = 0; *out < (int32_t)p->n_rotations; ++*out) {
    const kg_rope_params *other = p->rotations[*out];
    if (other->style == rope->style && kg_rope_angles_are_equal(other, rope)) return KG_OK;
  }
  if (!kg_grow((void **)&p->rotations, &p->rotations_room, p->n_rotations + 1, sizeof *p->rotations))
    return no_memory(b);
  p->rotations[p->n_rotations++] = rope;
  return KG_OK;
}

static int add_row(builder *b, const kg_op *op)
{
  static const struct {
    kg_op_kind op;
    kg_row_kind row;
    int n_inputs;
  } kinds[] = {{KG_OP_EMBED, KG_ROW_EMBED, 0}, {KG_OP_NORM, KG_ROW_NORM, 1},       {KG_OP_ROPE, KG_ROW_ROPE, 1},
               {KG_OP_GLU, KG_ROW_ACT, 2},     {KG_OP_ACT, KG_ROW_ACT, 1},         {KG_OP_ADD, KG_ROW_ADD, 2},
               {KG_OP_SCALE, KG_ROW_SCALE, 1}, {KG_OP_SOFTCAP, KG_ROW_SOFTCAP, 1}, {KG_OP_SLICE, KG_ROW_SLICE, 1},
               {KG_OP_CONCAT, KG_ROW_CONCAT, 2}};
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    if (kinds[i].op != op->kind) continue;
    int32_t in[2] = {KG_NONE, KG_NONE}, out;
    int code;
    for (int j = 0; j < kinds[i].n_inputs; j++)
      if ((code = value_place(b, op->in[j], &in[j]))) return code;
    if ((code = value_place(b, op->out, &out))) return code;
    node *n;
    if ((code = new_row(b, kinds[i].row, op, in[0], in[1], out, kg_plan_value(b->plan, op->out)->width, &n)))
      return code;
    return op->kind == KG_OP_ROPE ? find_rotation(b, &op->u.rope, &n->row.index) : KG_OK;
  }
  return kg_fail(b->err, KG_ERR_UNSUPPORTED, "the cpu backend has no operation \"%s\"", kg_op_name(op->kind));
}

static bool is_tapped(const builder *b, int32_t value) { return b->in->tapped && b->in->tapped[value]; }

static bool is_adapted(const builder *b, int32_t value) { return b->in->adapted && b->in->adapted[value]; }

/* Must the value stand in memory as what makes it leaves it? */
static bool is_stopped(const builder *b, int32_t value) { return is_tapped(b, value) || is_adapted(b, value); }

/* From here on the value stands where the tap puts it. */
static int add_tap(builder *b, int32_t value)
{
  int32_t out;
  int code = new_rows(b, b->max_rows, kg_plan_value(b->plan, value)->width, &out);
  node *n;
  if (code || (code = new_node(b, NODE_TAP, &n))) return code;
  n->index = value;
  n->reads[0] = value == b->in->given ? KG_NONE : b->place_of[value];
  n->reads[1] = b->last_tap;
  n->makes = b->place_of[value] = b->last_tap = out;
  b->program->has_taps = true;
  return KG_OK;
}

/* From here on the value stands where its adapters were added. */
static int add_adapters(builder *b, int32_t op_index)
{
  const kg_op *op = kg_plan_op(b->plan, op_index);
  int32_t out;
  int code = new_rows(b, b->max_rows, kg_plan_value(b->plan, op->out)->width, &out);
  node *n;
  if (code || (code = new_node(b, NODE_ADAPT, &n))) return code;
  n->index = op_index;
  n->reads[0] = op->kind == KG_OP_EMBED ? KG_NONE : b->place_of[op->in[0]];
  n->reads[1] = b->place_of[op->out];
  n->makes = b->place_of[op->out] = out;
  return KG_OK;
}

static int add_op(builder *b, int32_t index)
{
  const kg_op *op = kg_plan_op(b->plan, index);
  kg_program *p = b->program;
  int code;
  if (b->fused[index] != KG_NONE && op->kind == KG_OP_ADD) /* its product adds */
    return is_tapped(b, op->out) ? add_tap(b, op->out) : KG_OK;
  if (index >= b->n_head && op->kind != KG_OP_LINEAR) {                  /* the head's stage scales */
    if (!kg_grow((void **)&p->post, &p->post_room, p->n_post + 1, sizeof *p->post)) return no_memory(b);
    p->post[p->n_post++] = op;
    return KG_OK;
  }
  switch (op->kind) {
  case KG_OP_LINEAR:
  case KG_OP_LINEAR_EACH:
    code = add_product(b, index);
    break;
  case KG_OP_ATTENTION:
    code = add_attention(b, index);
    break;
  case KG_OP_CONV:
    code = add_conv(b, index);
    break;
  case KG_OP_MOE:
    code = add_mixture(b, op);
    break;
  default:
    code = add_row(b, op);
  }
  if (!code && is_adapted(b, op->out)) code = add_adapters(b, index);
  if (!code && is_tapped(b, op->out)) code = add_tap(b, op->out);
  if (code || !b->in->traced) return code;
  node *n;
  if ((code = new_row(b, KG_ROW_TRACE, op, b->place_of[op->out], KG_NONE, KG_NONE,
                      kg_plan_value(b->plan, op->out)->width, &n)))
    return code;
  return KG_OK;
}

/* ---- what to fuse ---- */

static void count_uses(builder *b)
{
  for (int32_t i = 0; i < b->n_ops; i++) {
    const kg_op *op = kg_plan_op(b->plan, i);
    for (int j = 0; j < KG_OP_INPUTS; j++)
      if (op->in[j] != KG_NONE) b->n_uses[op->in[j]]++;
  }
}

/* A product whose only reader adds it to something older is added by the product's own stage. */
static void fuse_residuals(builder *b, int32_t tail)
{
  const int32_t logits = kg_plan_logits(b->plan);
  for (int32_t i = 0; i < b->n_ops; i++) {
    const kg_op *add = kg_plan_op(b->plan, i);
    if (add->kind != KG_OP_ADD || add->in[0] == add->in[1]) continue;
    for (int j = 1; j >= 0; j--) {
      const int32_t value = add->in[j], other = add->in[1 - j];
      const int32_t producer = kg_plan_value(b->plan, value)->producer;
      if (kg_plan_op(b->plan, producer)->kind != KG_OP_LINEAR || b->n_uses[value] != 1 || value == logits ||
          is_stopped(b, value))
        continue;
      if (kg_plan_value(b->plan, other)->producer >= producer || (producer < tail) != (i < tail)) continue;
      b->fused[producer] = i;
      b->fused[i] = producer;
      break;
    }
  }
}

/* The last product, when only scalings stand between it and the logits. */
static int32_t find_head(const builder *b, int32_t tail)
{
  int32_t value = kg_plan_logits(b->plan), index = b->n_ops;
  while (index > tail && !is_stopped(b, value)) {
    const int32_t producer = kg_plan_value(b->plan, value)->producer;
    const kg_op *op = kg_plan_op(b->plan, producer);
    if (producer != index - 1 || b->n_uses[value] != (index < b->n_ops)) break;
    if (op->kind == KG_OP_LINEAR) return producer;
    if (op->kind != KG_OP_SCALE && op->kind != KG_OP_SOFTCAP) break;
    value = op->in[0];
    index = producer;
  }
  return b->n_ops;
}

/* ---- from nodes to stages ---- */

static void touch(builder *b, int32_t place, int32_t stage)
{
  if (place == KG_NONE) return;
  kg_place *p = &b->program->places[place];
  if (p->first < 0) p->first = stage;
  p->last = stage;
}

static bool is_ready(const builder *b, const node *n)
{
  if (n->done) return false;
  for (int i = 0; i < NODE_PLACES; i++)
    if (n->reads[i] != KG_NONE && !b->program->places[n->reads[i]].ready) return false;
  return true;
}

static void place_node(builder *b, node *n, int32_t stage)
{
  for (int i = 0; i < NODE_PLACES; i++) touch(b, n->reads[i], stage);
  touch(b, n->touches, stage);
  touch(b, n->makes, stage);
  n->done = true;
}

static int new_stage(builder *b, kg_cpu_stage_kind kind, int32_t first, kg_cpu_stage **out)
{
  kg_program *p = b->program;
  if (!kg_grow((void **)&p->stages, &p->stages_room, p->n_stages + 1, sizeof *p->stages)) return no_memory(b);
  *out = &p->stages[p->n_stages++];
  **out = (kg_cpu_stage){.kind = kind, .first = first, .end = first, .in = KG_NONE, .out = KG_NONE};
  return KG_OK;
}

/* One stage of all row operations that are ready or become so by one another. */
static int schedule_rows(builder *b, bool *progress)
{
  kg_program *p = b->program;
  kg_cpu_stage *stage = NULL;
  for (bool again = true; again;) {
    again = false;
    for (size_t i = 0; i < b->n_nodes; i++) {
      node *n = &b->nodes[i];
      if (n->kind != NODE_ROW || !is_ready(b, n)) continue;
      int code;
      if (!stage && (code = new_stage(b, KG_CPU_STAGE_ROWS, (int32_t)p->n_rows, &stage))) return code;
      if (!kg_grow((void **)&p->rows, &p->rows_room, p->n_rows + 1, sizeof *p->rows)) return no_memory(b);
      p->rows[p->n_rows++] = n->row;
      stage->end = (int32_t)p->n_rows;
      place_node(b, n, (int32_t)p->n_stages - 1);
      if (n->row.kind == KG_ROW_ROUTE) touch(b, p->mixtures[n->row.index].shares, (int32_t)p->n_stages - 1);
      if (n->row.kind == KG_ROW_MIX) {
        touch(b, p->mixtures[n->row.index].shares, (int32_t)p->n_stages - 1);
        touch(b, p->mixtures[n->row.index].slots, (int32_t)p->n_stages - 1);
      }
      if (n->makes != KG_NONE) p->places[n->makes].ready = true;
      *progress = again = true;
    }
  }
  return KG_OK;
}

/* One stage of all products that are ready. */
static int schedule_products(builder *b, bool *progress)
{
  kg_program *p = b->program;
  kg_cpu_stage *stage = NULL;
  for (size_t i = 0; i < b->n_nodes; i++) {
    node *n = &b->nodes[i];
    if ((n->kind != NODE_PRODUCT && n->kind != NODE_HEAD) || !is_ready(b, n)) continue;
    if (n->kind == NODE_HEAD && stage) continue; /* the head has a stage of its own */
    int code;
    if (!stage &&
        (code = new_stage(b, n->kind == NODE_HEAD ? KG_CPU_STAGE_HEAD : KG_CPU_STAGE_PRODUCTS, (int32_t)p->n_products,
                          &stage)))
      return code;
    if (!kg_grow((void **)&p->products, &p->products_room, p->n_products + 1, sizeof *p->products)) return no_memory(b);
    p->products[p->n_products++] = n->product;
    stage->end = (int32_t)p->n_products;
    stage->n_groups += n->product.n_groups;
    place_node(b, n, (int32_t)p->n_stages - 1);
    *progress = true;
    if (n->kind == NODE_HEAD) break;
  }
  if (stage)
    for (int32_t i = stage->first; i < stage->end; i++)
      if (p->products[i].out != KG_NONE) p->places[p->products[i].out].ready = true;
  return KG_OK;
}

static int schedule_mixture(builder *b, node *n)
{
  static const kg_cpu_stage_kind steps[] = {KG_CPU_STAGE_SORT, KG_CPU_STAGE_PAIRS_IN, KG_CPU_STAGE_EXPERTS_UP,
                                            KG_CPU_STAGE_PAIRS_ACT, KG_CPU_STAGE_EXPERTS_DOWN};
  kg_program *p = b->program;
  const kg_mixture *m = &p->mixtures[n->index];
  const int32_t places[] = {m->chosen,      m->pairs, m->slots, m->bounds, m->x,   m->x_packed[0],
                            m->x_packed[1], m->gate,  m->up,    m->packed, m->down};
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    kg_cpu_stage *stage;
    const int code = new_stage(b, steps[i], n->index, &stage);
    if (code) return code;
    /* all of them live through all steps: simple, and nothing else stands in memory with them */
    for (size_t j = 0; j < sizeof places / sizeof places[0]; j++) touch(b, places[j], (int32_t)p->n_stages - 1);
  }
  place_node(b, n, (int32_t)p->n_stages - 1);
  p->places[n->makes].ready = true;
  return KG_OK;
}

static int schedule_adapters(builder *b, node *n)
{
  kg_cpu_stage *stage;
  int code = new_stage(b, KG_CPU_STAGE_ADAPT_IN, n->index, &stage);
  if (code) return code;
  stage->in = n->reads[0];
  if ((code = new_stage(b, KG_CPU_STAGE_ADAPT_OUT, n->index, &stage))) return code;
  stage->in = n->reads[1];
  stage->out = n->makes;
  place_node(b, n, (int32_t)b->program->n_stages - 1);
  b->program->places[n->makes].ready = true;
  return KG_OK;
}

static int schedule_other(builder *b, bool *progress)
{
  kg_program *p = b->program;
  for (size_t i = 0; i < b->n_nodes && !*progress; i++) {
    node *n = &b->nodes[i];
    if (n->kind == NODE_ROW || n->kind == NODE_PRODUCT || n->kind == NODE_HEAD || !is_ready(b, n)) continue;
    *progress = true;
    if (n->kind == NODE_MIXTURE) return schedule_mixture(b, n);
    if (n->kind == NODE_ADAPT) return schedule_adapters(b, n);
    const bool is_attention = n->kind == NODE_ATTENTION;
    const kg_cpu_stage_kind other = n->kind == NODE_CONV ? KG_CPU_STAGE_CONV : KG_CPU_STAGE_TAP;
    kg_cpu_stage *stage;
    const int code = new_stage(b, is_attention ? KG_CPU_STAGE_ATTENTION : other, n->index, &stage);
    if (code) return code;
    stage->in = n->reads[0];
    stage->out = is_attention ? n->touches : n->makes;
    place_node(b, n, (int32_t)p->n_stages - 1);
    p->places[n->makes].ready = true;
  }
  return KG_OK;
}

static int schedule(builder *b)
{
  for (bool progress = true; progress;) {
    progress = false;
    int code = schedule_rows(b, &progress);
    if (!code) code = schedule_products(b, &progress);
    if (!code && !progress) code = schedule_other(b, &progress);
    if (code) return code;
  }
  for (size_t i = 0; i < b->n_nodes; i++)
    if (!b->nodes[i].done) return kg_fail(b->err, KG_ERR_ARGUMENT, "the plan's operations are not in execution order");
  b->n_nodes = 0;
  return KG_OK;
}

/* ---- memory ---- */

static bool overlaps_in_time(const kg_place *a, const kg_place *b)
{
  return a->first <= b->last && b->first <= a->last;
}

/* First fit: the lowest offset at which the place meets no earlier placed one that lives at the same time. */
static size_t find_offset(const kg_place *places, const int32_t *placed, size_t n_placed, const kg_place *place)
{
  size_t at = 0;
  for (size_t i = 0; i < n_placed; i++) { /* `placed` is sorted by offset */
    const kg_place *other = &places[placed[i]];
    if (!overlaps_in_time(place, other) || other->offset + other->n_bytes <= at) continue;
    if (other->offset >= at + place->n_bytes) break;
    at = other->offset + other->n_bytes;
  }
  return at;
}

/* Give every place an offset: local ones in the workers' memory, stage by stage, the others in the arena. */
static int lay_out(builder *b)
{
  kg_program *p = b->program;
  int32_t *placed = kg_alloc_array(p->n_places, sizeof *placed);
  size_t n_placed = 0;
  if (!placed) return no_memory(b);
  for (size_t i = 0; i < p->n_places; i++) {
    kg_place *place = &p->places[i];
    place->local = place->is_rows && place->made_by_row && place->first == place->last;
    if (place->first < 0 || !place->n_bytes) continue;
    if (place->local) continue;
    place->offset = find_offset(p->places, placed, n_placed, place);
    size_t at = n_placed++;
    for (; at > 0 && p->places[placed[at - 1]].offset > place->offset; at--) placed[at] = placed[at - 1];
    placed[at] = (int32_t)i;
    const size_t end = place->offset + place->n_bytes;
    if (end > p->arena_bytes) p->arena_bytes = end;
  }
  kg_free(placed);
  for (size_t s = 0; s < p->n_stages; s++) {
    size_t at = 0;
    for (size_t i = 0; i < p->n_places; i++) {
      kg_place *place = &p->places[i];
      if (!place->local || place->first != (int32_t)s) continue;
      place->n_bytes = (size_t)place->stride * sizeof(float);
      place->stride = 0;
      place->offset = at;
      at += (place->n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    if (at > p->local_bytes) p->local_bytes = at;
  }
  return KG_OK;
}

/* ---- the whole ---- */

/* Values of the body that the tail reads get a place of the tail's rows, filled first in every pass. */
static int gather_tail(builder *b, int32_t tail)
{
  for (int32_t v = 0; v < b->n_values; v++) {
    const kg_value *value = kg_plan_value(b->plan, v);
    if (value->producer >= tail || value->last_use < tail) continue;
    const int32_t from = b->place_of[v];
    int32_t to;
    int code = new_rows(b, b->max_rows, value->width, &to);
    if (!code) code = new_row(b, KG_ROW_GATHER, NULL, from, KG_NONE, to, value->width, NULL);
    if (code) return code;
    b->place_of[v] = to;
  }
  return KG_OK;
}

static int store_logits(builder *b)
{
  const int32_t logits = kg_plan_logits(b->plan);
  return new_row(b, KG_ROW_LOGITS, NULL, b->place_of[logits], KG_NONE, KG_NONE, kg_plan_vocab_size(b->plan), NULL);
}

/* A tail alone: what leads from the given value to the logits. */
static int build_given(builder *b)
{
  kg_program *p = b->program;
  const int32_t given = b->in->given, first = kg_plan_value(b->plan, given)->producer + 1;
  count_uses(b);
  b->n_head = find_head(b, first - 1);
  p->body_rows = p->tail_rows = b->max_rows = b->in->max_rows < TAIL_ROWS ? b->in->max_rows : TAIL_ROWS;
  int code = add_tap(b, given);
  for (int32_t i = first; i < b->n_ops && !code; i++)
    if (kg_leads_from(b->plan, given, kg_plan_op(b->plan, i)->out)) code = add_op(b, i);
  if (!code && b->n_head == b->n_ops) code = store_logits(b);
  if (!code) code = schedule(b);
  return code ? code : lay_out(b);
}

static int build(builder *b)
{
  kg_program *p = b->program;
  const int32_t tail = kg_plan_tail(b->plan);
  int code;
  count_uses(b);
  b->n_head = b->n_ops;
  if (!b->in->traced) {
    fuse_residuals(b, tail);
    b->n_head = find_head(b, tail);
  }
  const bool stored = b->n_head == b->n_ops;
  p->body_rows = b->in->max_rows;
  p->tail_rows = stored ? TAIL_ROWS_STORED : TAIL_ROWS;
  if (p->tail_rows > p->body_rows) p->tail_rows = p->body_rows;

  b->max_rows = p->body_rows;
  if ((code = new_row(b, KG_ROW_ANGLES, NULL, KG_NONE, KG_NONE, KG_NONE, 0, NULL))) return code;
  for (int32_t i = 0; i < tail; i++)
    if ((code = add_op(b, i))) return code;
  if ((code = schedule(b))) return code;
  p->n_body = (int32_t)p->n_stages;

  b->max_rows = p->tail_rows;
  b->last_tap = KG_NONE;
  if ((code = gather_tail(b, tail))) return code;
  for (int32_t i = tail; i < b->n_ops; i++)
    if ((code = add_op(b, i))) return code;
  if ((stored && (code = store_logits(b))) || (code = schedule(b))) return code;
  /* The tail runs several times: what it gathers from the body must outlive all of it. */
  for (size_t i = 0; i < p->n_places; i++)
    if (p->places[i].first >= 0 && p->places[i].first < p->n_body && p->places[i].last >= p->n_body)
      p->places[i].last = (int32_t)p->n_stages - 1;
  return lay_out(b);
}

int kg_program_build(const kg_program_input *input, kg_program *out, kg_error *err)
{
  memset(out, 0, sizeof *out);
  builder b = {.in = input, .plan = input->plan, .program = out, .last_tap = KG_NONE, .err = err};
  b.n_ops = kg_plan_op_count(input->plan);
  b.n_values = kg_plan_value_count(input->plan);
  b.place_of = kg_alloc_array((size_t)b.n_values, sizeof *b.place_of);
  b.n_uses = kg_alloc_array((size_t)b.n_values, sizeof *b.n_uses);
  b.fused = kg_alloc_array((size_t)b.n_ops, sizeof *b.fused);
  int code = KG_OK;
  if (!b.place_of || !b.n_uses || !b.fused) {
    code = no_memory(&b);
  } else {
    for (int32_t i = 0; i < b.n_values; i++) b.place_of[i] = KG_NONE;
    for (int32_t i = 0; i < b.n_ops; i++) b.fused[i] = KG_NONE;
    code = input->given == KG_NONE ? build(&b) : build_given(&b);
  }
  kg_free(b.place_of);
  kg_free(b.n_uses);
  kg_free(b.fused);
  kg_free(b.nodes);
  if (code) kg_program_deinit(out);
  return code;
}

void kg_program_deinit(kg_program *program)
{
  kg_free(program->stages);
  kg_free(program->rows);
  kg_free(program->products);
  kg_free(program->mixtures);
  kg_free(program->places);
  kg_free(program->post);
  kg_free(program->rotations);
  memset(program, 0, sizeof *program);
}
