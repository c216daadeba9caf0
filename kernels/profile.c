/* profile.c - what each stage of a pass takes by itself. Stages of one name (the products of gate and up of all layers,
 * say) run one after the other as a captured graph, again and again, by the device's clock. Before each round a read of
 * twice the last cache's size sees to it that weights come from memory, as they do in a step; what that read takes
 * alone is subtracted. */
#include <stdio.h>
#include <string.h>

#include "executable.h"
#include "rates.h"

enum { LAUNCHES = 5, MAX_ROUNDS = 100 };
static const double WANTED_S = 4e-3; /* of one launch */

typedef struct profiling {
  kg_executable *exe;
  kg_pass *pass;
  const kg_batch *batch;
  kg_gpu_timer timer;
  void *flood; /* memory to read */
  size_t flood_bytes;
  float *sink;
  kg_error *err;
} profiling;

/* ---- names ---- */

/* Parts of tensor names, and what people call the stage. */
static const struct {
  const char *tensor, *stage;
} names[] = {{"attn_q.", "qkv"},
             {"attn_k.", "qkv"},
             {"attn_v.", "qkv"},
             {"attn_qkv.", "qkv"},
             {"attn_q_a.", "latent"},
             {"attn_kv_a_mqa.", "latent"},
             {"attn_q_b.", "qkv"},
             {"attn_output.", "output"},
             {"shortconv.in_proj.", "conv_in"},
             {"shortconv.out_proj.", "conv_out"},
             {"ffn_gate.", "gate_up"},
             {"ffn_up.", "gate_up"},
             {"ffn_down.", "down"},
             {"ffn_gate_inp.", "router"},
             {"ffn_gate_shexp.", "gate_up"}, /* of experts that all rows have */
             {"ffn_up_shexp.", "gate_up"},
             {"ffn_down_shexp.", "down"},
             {"output.", "head"},
             {"token_embd.", "head"}};

static const char *name_of_product(const kg_plan *plan, const kg_gpu_stage *stage)
{
  const char *tensor = kg_plan_weight_at(plan, stage->parts[0]->w[0])->name;
  if (!strncmp(tensor, "blk.", 4) && strchr(tensor + 4, '.')) tensor = strchr(tensor + 4, '.') + 1;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (!strncmp(tensor, names[i].tensor, strlen(names[i].tensor))) return names[i].stage;
  return "product";
}

static const char *name_of(const kg_plan *plan, const kg_gpu_stage *stage)
{
  switch (stage->kind) {
  case KG_STAGE_EMBED_ROWS:
    return "embed";
  case KG_STAGE_GATHER:
    return "gather";
  case KG_STAGE_NORM_ROWS:
    return "norm";
  case KG_STAGE_HALF:
    return "round";
  case KG_STAGE_LINEAR:
    return name_of_product(plan, stage);
  case KG_STAGE_ADAPT_IN:
  case KG_STAGE_ADAPT:
    return "adapters";
  case KG_STAGE_EACH:
    return "heads";
  case KG_STAGE_ANGLES:
    return "angles";
  case KG_STAGE_ROPE:
    return "rope";
  case KG_STAGE_ATTENTION:
    return "attention";
  case KG_STAGE_MOE:
    return "experts";
  case KG_STAGE_CONV:
    return "convolution";
  case KG_STAGE_COLUMNS:
    return "columns";
  default:
    return "scatter";
  }
}

/* ---- bytes that a stage must move: weights and cache once, rows in and out ---- */

static double plane_bytes(const kg_executable *exe, int32_t weight)
{
  const kg_matrix *m = &exe->weights[weight].m;
  return (double)(m->q_plane + m->h_plane + m->s_plane);
}

static double width_of(const kg_executable *exe, int32_t value)
{
  return value == KG_NONE ? 0 : kg_plan_value(exe->plan, value)->width;
}

static double product_bytes(const kg_executable *exe, const kg_gpu_stage *stage, double n)
{
  const double x_bytes = stage->fused_in == KG_NONE && exe->weights[stage->op->w[0]].m.type != KG_F32 ? 2 : 4;
  double bytes =
      n * (x_bytes * width_of(exe, stage->in[0]) + 4 * width_of(exe, stage->out) + 4 * width_of(exe, stage->residual));
  for (int i = 0; i < stage->n_parts; i++) {
    bytes += plane_bytes(exe, stage->parts[i]->w[0]);
    if (i && !stage->glu) bytes += n * 4 * width_of(exe, stage->parts[i]->out);
  }
  return bytes;
}

static double expert_bytes(const kg_executable *exe, const kg_gpu_stage *stage, double n, int32_t n_touched)
{
  double bytes = n * 4 * (width_of(exe, stage->in[0]) + width_of(exe, stage->out));
  for (int i = 0; i < 3; i++) bytes += n_touched * plane_bytes(exe, stage->op->w[i]);
  return bytes;
}

/* Different experts that the mixture which ran last chose; of many rows, in its last part. */
static int count_experts(const profiling *p, const kg_moe_params *moe, int32_t n, int32_t *n_touched)
{
  bool touched[KG_PLAN_MAX_EXPERTS] = {false};
  int32_t chosen[KG_MOE_ROWS]; /* as run.c cuts them */
  const int32_t n_part = KG_MOE_ROWS / moe->n_used, n_last = n ? (n - 1) % n_part + 1 : 0;
  const int32_t n_pairs = n_last * moe->n_used;
  int code =
      kg_cuda_check(cudaMemcpyAsync(chosen, p->exe->arena + p->exe->moe.experts, (size_t)n_pairs * sizeof *chosen,
                                    cudaMemcpyDeviceToHost, p->exe->stream->handle),
                    "profiling", p->err);
  if (!code) code = kg_stream_wait(p->exe->stream, "profiling", p->err);
  *n_touched = 0;
  for (int32_t i = 0; i < n_pairs && !code; i++) {
    *n_touched += !touched[chosen[i]];
    touched[chosen[i]] = true;
  }
  return code;
}

static double attention_bytes(const profiling *p, const kg_gpu_stage *stage, double n)
{
  const kg_attention_params *a = &stage->op->u.attention;
  const double keys = kg_key_width(a), values = kg_value_width(a), element = p->exe->half ? 2 : 4;
  double positions = n; /* written */
  for (int32_t s = 0; s < p->batch->n_spans; s++) {
    const kg_span *span = &p->batch->spans[s];
    const int32_t all = span->pos + span->n_rows, seen = a->window ? a->window + span->n_rows - 1 : all;
    positions += seen < all ? seen : all;
  }
  return positions * (keys + values) * element +
         n * 4 * (keys + values + (double)a->n_heads * (a->head_dim + a->value_dim));
}

static int32_t rows_of(const profiling *p, const kg_gpu_stage *stage)
{
  return stage->side == KG_ALL_ROWS ? p->batch->n_rows : p->batch->n_wanted;
}

static double bytes_of(const profiling *p, const kg_gpu_stage *stage, int32_t n_touched)
{
  const kg_executable *exe = p->exe;
  const double n = rows_of(p, stage);
  switch (stage->kind) {
  case KG_STAGE_LINEAR:
    return product_bytes(exe, stage, n);
  case KG_STAGE_MOE:
    return expert_bytes(exe, stage, n, n_touched);
  case KG_STAGE_EACH: {
    const int32_t weight = stage->op->w[0];
    return plane_bytes(exe, weight) * exe->weights[weight].m.planes +
           n * 4 * (width_of(exe, stage->in[0]) + width_of(exe, stage->out));
  }
  case KG_STAGE_ATTENTION:
    return attention_bytes(p, stage, n);
  case KG_STAGE_HALF:
    return n * 6 * width_of(exe, stage->out);
  case KG_STAGE_ANGLES:
    return n * 4 * kg_gpu_pass_program(p->pass)->rotations[stage->rotation[0]].params->n_dims;
  case KG_STAGE_EMBED_ROWS: {
    const kg_weight *table = kg_plan_weight_at(exe->plan, stage->op->w[0]);
    return n * ((double)table->n_bytes / (double)table->rows + 4 * width_of(exe, stage->out));
  }
  default:
    return n * 4 * (width_of(exe, stage->in[0]) + width_of(exe, stage->in[1]) + width_of(exe, stage->out));
  }
}

/* ---- time ---- */

/* Every stage of this name, or, with no name, none. */
static int enqueue_round(profiling *p, const char *name)
{
  const kg_program *program = kg_gpu_pass_program(p->pass);
  int code = kg_cuda_read_all(p->exe->stream, p->flood, p->flood_bytes, p->sink, p->err);
  for (size_t i = 0; i < program->n_stages && !code; i++)
    if (name && !strcmp(name, name_of(p->exe->plan, &program->stages[i])))
      code = kg_gpu_pass_stage(p->pass, &program->stages[i], p->err);
  return code;
}

/* *n_nodes: what a round adds to the device's work. */
static int capture(profiling *p, const char *name, int n_rounds, cudaGraphExec_t *out, size_t *n_nodes)
{
  cudaStream_t stream = p->exe->stream->handle;
  cudaGraph_t graph = NULL;
  int code =
      kg_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing a graph", p->err);
  if (code) return code;
  for (int i = 0; i < n_rounds && !code; i++) code = enqueue_round(p, name);
  const cudaError_t status = cudaStreamEndCapture(stream, &graph);
  if (!code) code = kg_cuda_check(status, "capturing a graph", p->err);
  if (!code) code = kg_cuda_check(cudaGraphGetNodes(graph, NULL, n_nodes), "looking at a graph", p->err);
  if (!code) code = kg_cuda_check(cudaGraphInstantiate(out, graph, 0), "making a graph", p->err);
  if (graph) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  return code;
}

/* Seconds of a round; 0 where stages of this name have nothing to do in this pass. */
static int time_rounds(profiling *p, const char *name, int n_rounds, double *seconds)
{
  cudaGraphExec_t graph = NULL;
  double times[LAUNCHES] = {0};
  size_t n_nodes = 0;
  int code = capture(p, name, n_rounds, &graph, &n_nodes);
  if (code) return code;
  for (int run = -1; run < LAUNCHES && !code; run++) { /* the first does not count */
    code = kg_gpu_timer_start(&p->timer, p->exe->stream, p->err);
    if (!code) code = kg_cuda_check(cudaGraphLaunch(graph, p->exe->stream->handle), "launching a graph", p->err);
    if (!code) code = kg_gpu_timer_stop(&p->timer, p->exe->stream, p->err);
    if (!code) code = kg_gpu_timer_read(&p->timer, &times[run < 0 ? 0 : run], p->err);
  }
  (void)cudaGraphExecDestroy(graph);
  *seconds = kg_gpu_median(times, LAUNCHES) / n_rounds;
  if (name && n_nodes <= (size_t)n_rounds) *seconds = 0;
  return code;
}

static int time_stage(profiling *p, kg_stage_time *t)
{
  double once, flood;
  int code = time_rounds(p, t->name, 1, &once);
  if (code || once == 0) return code;
  const double wanted = WANTED_S / once;
  const int n_rounds = wanted < 2 ? 2 : wanted > MAX_ROUNDS ? MAX_ROUNDS : (int)wanted;
  code = time_rounds(p, NULL, n_rounds, &flood);
  if (!code) code = time_rounds(p, t->name, n_rounds, &t->seconds);
  t->seconds = t->seconds > flood ? t->seconds - flood : 0;
  return code;
}

/* ---- all of it ---- */

static kg_stage_time *find(kg_profile *out, const char *name)
{
  for (int32_t i = 0; i < out->n; i++)
    if (!strcmp(out->stages[i].name, name)) return &out->stages[i];
  if (out->n == KG_PROFILE_MAX) return NULL;
  kg_stage_time *t = &out->stages[out->n++];
  *t = (kg_stage_time){0};
  snprintf(t->name, sizeof t->name, "%s", name);
  return t;
}

static int open_profiling(profiling *p)
{
  const int device = p->exe->stream->device;
  int cache = 0;
  void *sink = NULL;
  int code = kg_gpu_timer_init(&p->timer, p->err);
  if (!code)
    code = kg_cuda_check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "asking the device", p->err);
  p->flood_bytes = 2 * (size_t)(cache > 0 ? cache : 64 << 20);
  if (!code) code = kg_cuda_alloc(p->flood_bytes, "profiling", &p->flood, p->err);
  if (!code) code = kg_cuda_alloc(sizeof *p->sink, "profiling", &sink, p->err);
  p->sink = sink;
  if (!code)
    code = kg_cuda_check(cudaMemsetAsync(p->flood, 0, p->flood_bytes, p->exe->stream->handle), "profiling", p->err);
  return code ? code : kg_gpu_pass_new(p->exe, p->batch, &p->pass, p->err);
}

static void close_profiling(profiling *p)
{
  (void)kg_stream_wait(p->exe->stream, "profiling", NULL);
  kg_gpu_pass_free(p->pass);
  (void)cudaFree(p->flood);
  (void)cudaFree(p->sink);
  (void)cudaGetLastError();
  kg_gpu_timer_deinit(&p->timer);
}

int kg_gpu_profile(kg_executable *exe, const kg_batch *batch, kg_profile *out, kg_error *err)
{
  profiling p = {.exe = exe, .batch = batch, .err = err};
  out->n = 0;
  int code = kg_gpu_run(exe, batch, err); /* kernels are loaded, values are numbers */
  if (!code) code = open_profiling(&p);
  const kg_program *program = code ? NULL : kg_gpu_pass_program(p.pass);
  for (size_t i = 0; !code && i < program->n_stages; i++) {
    const kg_gpu_stage *stage = &program->stages[i];
    kg_stage_time *t = find(out, name_of(exe->plan, stage));
    int32_t n_touched = 0;
    code = kg_gpu_pass_stage(p.pass, stage, err);
    if (!code && stage->kind == KG_STAGE_MOE)
      code = count_experts(&p, &stage->op->u.moe, rows_of(&p, stage), &n_touched);
    if (!t || code) continue;
    for (int w = 0; w < 3 && n_touched && stage->op->u.moe.n_experts > 1; w++)
      t->expert_bytes += (double)n_touched * (double)kg_expert_bytes(kg_plan_weight_at(exe->plan, stage->op->w[w]));
    t->count++;
    t->bytes += bytes_of(&p, stage, n_touched);
  }
  int32_t kept = 0;
  for (int32_t i = 0; i < out->n && !code; i++) {
    code = time_stage(&p, &out->stages[i]);
    if (out->stages[i].seconds > 0) out->stages[kept++] = out->stages[i];
  }
  out->n = kept;
  close_profiling(&p);
  return code;
}
