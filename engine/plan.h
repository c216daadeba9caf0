/* plan.h - the forward pass as data: a straight list of operations over named values, declared once per model by
 * lua/kigo/arch/<family>.lua through the builder below, then compiled by a backend.
 *
 * A value is a float32 matrix (rows, width): one row per token of the step. Operations work on each row alone, but for
 * attention, which reads the key/value cache of the row's sequence, and recurrent ones, which read and write its state:
 * a fixed number of floats that stand for all positions before. Operations stand in execution order and
 * every value is written by exactly one of them. Weights point into the GGUF file, which the plan keeps open. */
#ifndef KG_PLAN_H
#define KG_PLAN_H

#include <string.h>

#include "gguf.h"

typedef struct kg_plan kg_plan;

enum { KG_NONE = -1 }; /* no value, no weight */

/* Limits that the builder enforces, so that a product of any three of these numbers fits int64_t. */
enum {
  KG_PLAN_MAX_OPS = 1 << 16,
  KG_PLAN_MAX_LAYERS = 1 << 12,
  KG_PLAN_MAX_WIDTH = 1 << 24,   /* of a value; columns and rows of a weight */
  KG_PLAN_MAX_EXPERTS = 1 << 10,
  KG_PLAN_MAX_CONTEXT = 1 << 24, /* positions are exact in float32 up to here */
  KG_PLAN_MAX_TAPS = 64,         /* of a convolution */
  KG_PLAN_MAX_STATE = 1 << 30,   /* floats of the state of one sequence */
  KG_PLAN_MAX_NAME = 200         /* bytes in the name of a value */
};

enum { KG_PAGE_GROUPS = 4 }; /* see kg_plan_group_count */

typedef struct kg_weight {
  const char *name; /* full tensor name, "blk.0.attn_q.weight" */
  kg_type type;
  int64_t cols;     /* input width: dims[0] */
  int64_t rows;     /* outputs: dims[1], 1 for vectors */
  int64_t planes;   /* experts: dims[2], else 1 */
  const void *data; /* plane by plane, row by row, as in the file; NULL where each plane is a tensor of its own */
  size_t n_bytes;
  const void *const *parts; /* [planes] those tensors' data, or NULL */
} kg_weight;

/* Numbers in it; the plan checked them against the file's bytes. */
static inline int64_t kg_weight_values(const kg_weight *w)
{
  return w->cols * w->rows * w->planes; /* bounded: 2^58 */
}

/* Rows of a plane as in the file. */
static inline const unsigned char *kg_weight_plane(const kg_weight *w, int64_t plane)
{
  if (w->parts) return w->parts[plane];
  return (const unsigned char *)w->data + w->n_bytes / (size_t)w->planes * (size_t)plane; /* bounded: in memory */
}

typedef struct kg_value {
  const char *name;  /* "blk.3.attn_q"; unique */
  int32_t width;
  int32_t producer;  /* op index */
  int32_t last_use;  /* index of the last op that reads it; its producer when nothing does; n_ops for the output */
} kg_value;

typedef enum kg_op_kind {
  KG_OP_EMBED,       /* out = rows of w[0] at the token ids; w[1] (optional) adds rows at the positions (gpt2), w[2]
                        (optional) its first row to all (the token types of bert: text that is no pair is of type 0) */
  KG_OP_NORM,        /* in[0]; w[0] scale, w[1] bias or none; u.norm */
  KG_OP_LINEAR,      /* out = in[0] * w[0]^T + w[1] (bias, optional) */
  KG_OP_LINEAR_EACH, /* in[0] in as many equal parts as w[0] has planes: each times its plane, side by side (heads) */
  KG_OP_ROPE,        /* in[0] rotated by position; u.rope */
  KG_OP_ATTENTION,   /* in = q, k, v (or none: u.attention); writes k, v of its rows to cache layer u.attention.layer,
                        then attends causally */
  KG_OP_GLU,         /* out = act(in[0]) * in[1]; u.act */
  KG_OP_ACT,         /* out = act(in[0]); u.act */
  KG_OP_MOE,         /* in = x, router logits; w[0..2] = gate, up, down experts; w[3..5] their biases or none; w[6] one
                        number per expert that is added to its score for the choice alone, or none; u.moe */
  KG_OP_ADD,         /* out = in[0] + in[1] */
  KG_OP_SCALE,       /* out = in[0] * u.scale */
  KG_OP_SOFTCAP,     /* out = u.scale * tanh(in[0] / u.scale) */
  KG_OP_SLICE,       /* some columns of in[0] (fused qkv of phi3, gpt2); u.slice */
  KG_OP_CONCAT,      /* in[0], in[1] side by side; u.concat */
  KG_OP_CONV         /* each channel by itself over the positions so far: the sum of w[0][channel][t] times in[0] of
                        taps - 1 - t positions before, zeros before the first, + w[1] (bias, optional); u.conv;
                        recurrent. Gated: in[0] is b, c and x side by side, b * x is convolved and the result
                        multiplied by c */
} kg_op_kind;

typedef enum kg_act_kind {
  KG_ACT_SILU,     /* x / (1 + exp(-x)) */
  KG_ACT_GELU,     /* tanh form */
  KG_ACT_GELU_ERF,
  KG_ACT_RELU,
  KG_ACT_SWIGLU_CLAMPED /* gated only (gpt-oss): g = min(g, limit), u = clamp(u, -limit, limit);
                           g / (1 + exp(-alpha g)) * (u + 1) */
} kg_act_kind;

typedef struct kg_act { kg_act_kind kind; float limit, alpha; } kg_act;

typedef struct kg_norm_params {
  float epsilon;
  int32_t groups;     /* normalized independently in `groups` equal parts of the row (per-head norms); 1 = whole row.
                         w[0] has width / groups elements, or a row of so many for each group; w[1] too */
  bool subtract_mean; /* LayerNorm; else RMSNorm */
} kg_norm_params;

typedef enum kg_rope_style { KG_ROPE_HALVES, KG_ROPE_PAIRS } kg_rope_style; /* (i, i+n/2) or (2i, 2i+1) turn together */

typedef struct kg_rope_params {
  kg_rope_style style;
  int32_t n_heads, head_dim;
  int32_t n_dims;              /* rotated channels at the start of each head, even */
  const float *inverse_freqs;  /* [n_dims / 2]: angle = position * inverse_freqs[i]; all scaling is folded in */
  float magnitude;             /* multiplies cos and sin (yarn); else 1 */
  float growth;                /* and so does 1 + growth * log(1 + floor(position / growth_length)); 0: not */
  int32_t growth_length;
} kg_rope_params;

/* What cos and sin are multiplied by at this position. */
double kg_rope_magnitude(const kg_rope_params *params, int32_t position);
/* Do both turn by the same angles and magnitudes at every position? Which channels turn together may differ. */
static inline bool kg_rope_angles_are_equal(const kg_rope_params *a, const kg_rope_params *b)
{
  return a->n_dims == b->n_dims && a->magnitude == b->magnitude && a->growth == b->growth &&
         a->growth_length == b->growth_length &&
         !memcmp(a->inverse_freqs, b->inverse_freqs, (size_t)(a->n_dims / 2) * sizeof *a->inverse_freqs);
}

typedef struct kg_attention_params {
  int32_t layer;               /* cache layer, 0-based, one per attention op; set by kg_plan_attention */
  int32_t n_heads, n_kv_heads; /* n_heads a multiple of n_kv_heads; head h reads kv head h / (n_heads / n_kv_heads) */
  int32_t head_dim;            /* of queries and keys */
  int32_t value_dim;           /* of values and results */
  bool values_in_keys; /* there is no v: the first value_dim channels of each head's keys are its values, and the
                          cache holds the keys alone; set by kg_plan_attention */
  float scale;                 /* multiplies q.k */
  float softcap;               /* scores = softcap * tanh(scores / softcap); 0: none */
  int32_t window;              /* sees positions p - window < j <= p; 0: all j <= p */
  int32_t group;               /* whose cache pages hold its keys and values; set by kg_plan_finish */
  bool is_bidirectional;       /* sees the whole sequence (bert); then all layers do, and no window */
  /* w[0]: one sink logit per head, or none */
} kg_attention_params;

typedef enum kg_moe_gate {
  KG_MOE_SOFTMAX,       /* softmax over all experts, then the best n_used */
  KG_MOE_SOFTMAX_USED,  /* the best n_used by logit, softmax over those */
  KG_MOE_SIGMOID
} kg_moe_gate;

/* Experts are ranked by their scores: logits for KG_MOE_SOFTMAX_USED, else what the gate makes of all of them; plus
 * w[6]. The best n_used are chosen, best first, ties to the lower index. With groups (equal parts of the experts, side
 * by side) only those of the best n_groups_used groups can be, a group being as good as the sum of its best
 * group_top. */
typedef struct kg_moe_params {
  int32_t n_experts, n_used;
  int32_t n_groups, n_groups_used; /* n_groups 1: none */
  int32_t group_top;               /* 1 or 2 */
  kg_moe_gate gate;
  bool normalize;       /* divide the used weights by their sum */
  float scale;          /* multiplies the used weights */
  kg_act act;
} kg_moe_params;

/* Columns [first, first + width) of each of `groups` equal parts of the row, side by side. */
typedef struct kg_slice_params { int32_t first, width, groups; } kg_slice_params;

/* For each of `groups` equal parts of in[0]: that part, then the same part of in[1], or all of it. */
typedef struct kg_concat_params {
  int32_t groups;
  bool is_shared; /* in[1] is the same for all groups */
} kg_concat_params;

/* The state is the last taps - 1 rows of what is convolved, the oldest first: [taps - 1][width]. */
typedef struct kg_conv_params {
  int32_t taps;
  bool is_gated;
  int64_t state_at; /* of the operation in the state of the plan, floats; set by kg_plan_conv */
} kg_conv_params;

/* Floats of a position in the cache of an attention operation: its keys, and its values. */
static inline int32_t kg_key_width(const kg_attention_params *p) { return p->n_kv_heads * p->head_dim; }
static inline int32_t kg_value_width(const kg_attention_params *p)
{
  return p->values_in_keys ? 0 : p->n_kv_heads * p->value_dim;
}

enum { KG_OP_INPUTS = 3, KG_OP_WEIGHTS = 7 };

typedef struct kg_op {
  kg_op_kind kind;
  int32_t out;                 /* value */
  int32_t in[KG_OP_INPUTS];    /* values, KG_NONE where unused */
  int32_t w[KG_OP_WEIGHTS];    /* weights, KG_NONE where unused */
  union {
    kg_norm_params norm;
    kg_rope_params rope;
    kg_attention_params attention;
    kg_act act;
    kg_moe_params moe;
    float scale;
    kg_slice_params slice;
    kg_concat_params concat;
    kg_conv_params conv;
  } u;
} kg_op;

/* ---- building: each call appends one operation and returns its value in *out ----
 *
 * A failed call leaves the plan as it was. KG_ERR_ARGUMENT is what only the calling code can get wrong (ids, names, a
 * finished plan); KG_ERR_FORMAT are numbers that come from the file and do not fit together (shapes, widths,
 * parameters); KG_ERR_UNSUPPORTED is a tensor of a type that cannot be computed with. */

/* An empty plan over an open file. The plan shares the file (kg_gguf_share) until it is freed; bytes that were given to
 * kg_gguf_parse must stay that long. */
int kg_plan_new(kg_gguf *gguf, kg_plan **out, kg_error *err);
void kg_plan_free(kg_plan *plan);

/* The weight with this tensor name, checked for a computable type and for the shape (cols, rows, planes; 0 = any);
 * the error names tensor, shape there and shape wanted. The same name gives the same index. */
int kg_plan_weight(kg_plan *plan, const char *name, int64_t cols, int64_t rows, int64_t planes, int32_t *out,
                   kg_error *err);
/* The same for a weight whose planes are matrices of their own in the file, of one type and shape (old files of
 * mixtures have them): names[n], n >= 2. It is called after the first of them. */
int kg_plan_weight_stack(kg_plan *plan, const char *const *names, int32_t n, int32_t *out, kg_error *err);
/* Does the file have a tensor of this name? */
bool kg_plan_has_weight(const kg_plan *plan, const char *name);

/* `name` is the new value's name; when it is taken the call fails with KG_ERR_ARGUMENT. */
int kg_plan_embed(kg_plan *plan, const char *name, int32_t table, int32_t positions, int32_t types, int32_t *out,
                  kg_error *err);
int kg_plan_norm(kg_plan *plan, const char *name, int32_t x, int32_t scale, int32_t bias, const kg_norm_params *params,
                 int32_t *out, kg_error *err);
int kg_plan_linear(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t bias, int32_t *out,
                   kg_error *err);
int kg_plan_linear_each(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t *out, kg_error *err);
/* Copies inverse_freqs. */
int kg_plan_rope(kg_plan *plan, const char *name, int32_t x, const kg_rope_params *params, int32_t *out, kg_error *err);
/* v KG_NONE: values in keys. */
int kg_plan_attention(kg_plan *plan, const char *name, int32_t q, int32_t k, int32_t v, int32_t sinks,
                      const kg_attention_params *params, int32_t *out, kg_error *err);
int kg_plan_glu(kg_plan *plan, const char *name, int32_t gate, int32_t up, const kg_act *act, int32_t *out,
                kg_error *err);
int kg_plan_act(kg_plan *plan, const char *name, int32_t x, const kg_act *act, int32_t *out, kg_error *err);
int kg_plan_moe(kg_plan *plan, const char *name, int32_t x, int32_t router, const int32_t weights[KG_OP_WEIGHTS],
                const kg_moe_params *params, int32_t *out, kg_error *err);
int kg_plan_add(kg_plan *plan, const char *name, int32_t a, int32_t b, int32_t *out, kg_error *err);
int kg_plan_scale(kg_plan *plan, const char *name, int32_t x, float factor, int32_t *out, kg_error *err);
int kg_plan_softcap(kg_plan *plan, const char *name, int32_t x, float cap, int32_t *out, kg_error *err);
int kg_plan_slice(kg_plan *plan, const char *name, int32_t x, const kg_slice_params *params, int32_t *out,
                  kg_error *err);
int kg_plan_concat(kg_plan *plan, const char *name, int32_t a, int32_t b, const kg_concat_params *params, int32_t *out,
                   kg_error *err);
int kg_plan_conv(kg_plan *plan, const char *name, int32_t x, int32_t weight, int32_t bias, bool is_gated, int32_t *out,
                 kg_error *err);
/* Give a value another name, which must be free. */
int kg_plan_rename(kg_plan *plan, int32_t value, const char *name, kg_error *err);
/* Name the value that holds the logits and close the plan: no operation may follow. Without a head it is not logits but
 * what the model makes of its tokens: nothing can be drawn from it. */
int kg_plan_finish(kg_plan *plan, int32_t logits, int32_t context_length, bool has_head, kg_error *err);

/* ---- reading: pointers are valid until the next building call ---- */

const kg_gguf *kg_plan_gguf(const kg_plan *plan);
int32_t kg_plan_op_count(const kg_plan *plan);
const kg_op *kg_plan_op(const kg_plan *plan, int32_t index);
int32_t kg_plan_value_count(const kg_plan *plan);
const kg_value *kg_plan_value(const kg_plan *plan, int32_t index);
int32_t kg_plan_value_find(const kg_plan *plan, const char *name); /* KG_NONE: absent */
int32_t kg_plan_weight_count(const kg_plan *plan);
const kg_weight *kg_plan_weight_at(const kg_plan *plan, int32_t index);
int32_t kg_plan_logits(const kg_plan *plan);         /* the output value; KG_NONE before kg_plan_finish */
int32_t kg_plan_vocab_size(const kg_plan *plan);     /* its width */
bool kg_plan_has_head(const kg_plan *plan);
int32_t kg_plan_token_count(const kg_plan *plan);    /* ids are below it: the vocabulary's, or those that tables hold */
bool kg_plan_is_bidirectional(const kg_plan *plan);  /* a token's numbers depend on the tokens behind it */
int32_t kg_plan_context_length(const kg_plan *plan); /* what the file says */
int32_t kg_plan_layer_count(const kg_plan *plan);    /* attention operations = cache layers */
/* The attention operation of a cache layer. */
const kg_op *kg_plan_layer(const kg_plan *plan, int32_t layer);
/* Attention operations that see equally far are a group, which has cache pages of its own: what none of them can see
 * any more need not be kept. If any see everything, group 0 does. 1 to KG_PAGE_GROUPS: the last one takes all windows
 * that are left. Of a finished plan. */
int32_t kg_plan_group_count(const kg_plan *plan);
/* Positions that a row of the group sees at most, its own included; 0: all before it. */
int32_t kg_plan_group_window(const kg_plan *plan, int32_t group);
/* Multiplications and additions of a row's attention to one position, in all operations of the group. */
int64_t kg_plan_group_flops(const kg_plan *plan, int32_t group);
/* Floats that recurrent operations keep of a sequence, all of them together, behind each position: the operations'
 * parts one after the other. 0: the plan has none. Before the first position all are zero. */
int64_t kg_plan_state_size(const kg_plan *plan);
/* Index of the first operation that may run on the wanted rows alone: all ops from here on work row by row and lead
 * to nothing but the logits. (The op after the last attention or recurrent one.) */
int32_t kg_plan_tail(const kg_plan *plan);
/* What the blocks add to, behind the last of them: the value that leads to the logits through nothing but operations on
 * one value each, the last norm among them where there is one, and the head's product. KG_NONE where no value does. */
int32_t kg_plan_residual(const kg_plan *plan);
/* What the head's product reads: the residual behind its norm. KG_NONE where there is no residual. Without a head,
 * where there is none, the last value. */
int32_t kg_plan_hidden(const kg_plan *plan);
const char *kg_op_name(kg_op_kind kind);

/* The first so many of an operation's weights are matrices, the others vectors. */
static inline int kg_op_matrices(kg_op_kind kind)
{
  switch (kind) {
  case KG_OP_EMBED:
  case KG_OP_MOE: return 3;
  case KG_OP_LINEAR:
  case KG_OP_LINEAR_EACH: return 1;
  default: return 0;
  }
}

#endif
