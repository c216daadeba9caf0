#include "make_model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "gguf_write.h"
#include "random.h"

typedef struct shape {
  const char *name;
  int32_t n_blocks, width, n_heads, n_kv_heads, head_size, ffn, context;
  int32_t n_vocab, control; /* control: id of the first of the three control tokens */
  bool tied;                /* the output matrix is the embedding */
} shape;

static const shape shapes[] = {
    {"qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 32768, 151936, 151643, true},
    {"qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 32768, 151936, 151643, true},
    {"qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 32768, 152064, 151643, false},
    {"tiny", 2, 64, 4, 2, 16, 128, 2048, 384, 381, true},
};

/* Types of the matrices, with the number that general.file_type has for such a file. */
static const struct {
  kg_type type;
  uint32_t file_type;
} file_types[] = {{KG_F32, 0},  {KG_F16, 1},  {KG_Q4_0, 2}, {KG_Q4_1, 3},
                  {KG_Q8_0, 7}, {KG_Q5_0, 8}, {KG_Q5_1, 9}, {KG_BF16, 32}};

/* ---- the vocabulary: bytes, a few merges, words that stand for themselves, control tokens ---- */

enum { N_BYTE_TOKENS = 256, TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_UNUSED = 5 };

static const char *const control_tokens[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};

#define SPACE "\xc4\xa0" /* how the alphabet below spells a space */
static const char *const merges[] = {SPACE " t",   SPACE " a", "h e",       "i n",        "r e",      "o n",
                                     SPACE "t he", "e r",      SPACE " s",  "a t",        SPACE " w", SPACE " o",
                                     "e n",        "n d",      "i t",       SPACE "a nd", "in g",     "o r",
                                     SPACE " c",   "i s",      SPACE " in", SPACE "o f"};
enum { N_MERGES = sizeof merges / sizeof merges[0] };

/* The bytes that the GPT-2 alphabet spells as the code point of the same number. */
static bool stands_for_itself(int byte)
{
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

static size_t put_utf8(int code_point, char *out) /* below 0x800 */
{
  if (code_point < 0x80) {
    out[0] = (char)code_point;
    return 1;
  }
  out[0] = (char)(0xc0 | code_point >> 6);
  out[1] = (char)(0x80 | (code_point & 0x3f));
  return 2;
}

/* GPT-2's order: the bytes that stand for themselves, then the others as U+0100 and up. */
static void write_byte_tokens(kg_gguf_writer *w)
{
  char text[2];
  for (int byte = 0; byte < 256; byte++)
    if (stands_for_itself(byte)) kg_gguf_write_item(w, text, put_utf8(byte, text));
  for (int byte = 0, other = 0x100; byte < 256; byte++)
    if (!stands_for_itself(byte)) kg_gguf_write_item(w, text, put_utf8(other++, text));
}

static void write_token(kg_gguf_writer *w, const shape *s, int32_t id)
{
  char text[48];
  int size;
  if (id < N_BYTE_TOKENS + N_MERGES) {
    const char *merge = merges[id - N_BYTE_TOKENS], *gap = strchr(merge, ' ');
    size = snprintf(text, sizeof text, "%.*s%s", (int)(gap - merge), merge, gap + 1);
  } else if (id < s->control) {
    size = snprintf(text, sizeof text, SPACE "w%d", (int)id);
  } else if (id < s->control + 3) {
    size = snprintf(text, sizeof text, "%s", control_tokens[id - s->control]);
  } else {
    size = snprintf(text, sizeof text, "[PAD%d]", (int)id);
  }
  kg_gguf_write_item(w, text, (size_t)size);
}

static int write_vocabulary(kg_gguf_writer *w, const shape *s, kg_error *err)
{
  int32_t *types = kg_alloc_array((size_t)s->n_vocab, sizeof *types);
  if (!types) return kg_fail_memory(err, (size_t)s->n_vocab * sizeof *types, "token types");
  for (int32_t id = 0; id < s->n_vocab; id++)
    types[id] = id < s->control ? TOKEN_NORMAL : id < s->control + 3 ? TOKEN_CONTROL : TOKEN_UNUSED;
  kg_gguf_write_string(w, "tokenizer.ggml.model", "gpt2");
  kg_gguf_write_string(w, "tokenizer.ggml.pre", "qwen2");
  kg_gguf_write_strings(w, "tokenizer.ggml.tokens", (uint64_t)s->n_vocab);
  write_byte_tokens(w);
  for (int32_t id = N_BYTE_TOKENS; id < s->n_vocab; id++) write_token(w, s, id);
  kg_gguf_write_array(w, "tokenizer.ggml.token_type", KG_GGUF_I32, types, (uint64_t)s->n_vocab);
  kg_free(types);
  kg_gguf_write_strings(w, "tokenizer.ggml.merges", N_MERGES);
  for (int i = 0; i < N_MERGES; i++) kg_gguf_write_item(w, merges[i], strlen(merges[i]));
  kg_gguf_write_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)s->control);
  kg_gguf_write_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)s->control + 2);
  kg_gguf_write_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)s->control);
  kg_gguf_write_bool(w, "tokenizer.ggml.add_bos_token", false);
  kg_gguf_write_string(
      w, "tokenizer.chat_template",
      "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
      "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
      "{% endif %}");
  return KG_OK;
}

static void write_hyperparameters(kg_gguf_writer *w, const shape *s, uint32_t file_type)
{
  char name[64];
  snprintf(name, sizeof name, "random weights, shape of %s", s->name);
  kg_gguf_write_string(w, "general.architecture", "qwen2");
  kg_gguf_write_string(w, "general.name", name);
  kg_gguf_write_u32(w, "general.file_type", file_type);
  kg_gguf_write_u32(w, "general.quantization_version", 2);
  kg_gguf_write_u32(w, "qwen2.block_count", (uint32_t)s->n_blocks);
  kg_gguf_write_u32(w, "qwen2.context_length", (uint32_t)s->context);
  kg_gguf_write_u32(w, "qwen2.embedding_length", (uint32_t)s->width);
  kg_gguf_write_u32(w, "qwen2.feed_forward_length", (uint32_t)s->ffn);
  kg_gguf_write_u32(w, "qwen2.attention.head_count", (uint32_t)s->n_heads);
  kg_gguf_write_u32(w, "qwen2.attention.head_count_kv", (uint32_t)s->n_kv_heads);
  kg_gguf_write_f32(w, "qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
  kg_gguf_write_f32(w, "qwen2.rope.freq_base", 1e6f);
}

/* ---- the tensors ---- */

enum { CHUNK_VALUES = 1 << 20, TENSORS_PER_BLOCK = 12 };

typedef struct tensor {
  char name[48];
  kg_type type;
  int n_dims;
  int64_t dims[2];
  float mean, deviation; /* of its values */
} tensor;

typedef struct tensor_list {
  tensor *items;
  size_t n;
  kg_type type; /* of matrices */
} tensor_list;

/* A deviation of 1 / sqrt(columns) keeps what a matrix makes of normed rows at the scale of 1. */
static void add_matrix(tensor_list *list, const char *name, int64_t columns, int64_t rows)
{
  tensor *t = &list->items[list->n++];
  *t = (tensor){.type = list->type, .n_dims = 2, .dims = {columns, rows}, .deviation = 1 / sqrtf((float)columns)};
  snprintf(t->name, sizeof t->name, "%s.weight", name);
}

static void add_vector(tensor_list *list, const char *name, int64_t size, float mean, float deviation)
{
  tensor *t = &list->items[list->n++];
  *t = (tensor){.type = KG_F32, .n_dims = 1, .dims = {size, 1}, .mean = mean, .deviation = deviation};
  snprintf(t->name, sizeof t->name, "%s", name);
}

static void add_block(tensor_list *list, const shape *s, int block)
{
  const int64_t width = s->width, q = (int64_t)s->n_heads * s->head_size, kv = (int64_t)s->n_kv_heads * s->head_size;
  const struct {
    const char *name;
    int64_t columns, rows;
  } matrices[] = {{"attn_q", width, q},       {"attn_k", width, kv},       {"attn_v", width, kv},
                  {"attn_output", q, width},  {"ffn_gate", width, s->ffn}, {"ffn_up", width, s->ffn},
                  {"ffn_down", s->ffn, width}},
    vectors[] = {{"attn_norm.weight", 0, width},
                 {"ffn_norm.weight", 0, width},
                 {"attn_q.bias", 1, q},
                 {"attn_k.bias", 1, kv},
                 {"attn_v.bias", 1, kv}};
  char name[40];
  for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
    const bool is_bias = vectors[i].columns; /* biases are small, norms are one */
    snprintf(name, sizeof name, "blk.%d.%s", block, vectors[i].name);
    add_vector(list, name, vectors[i].rows, is_bias ? 0.0f : 1.0f, is_bias ? 0.02f : 0.0f);
  }
  for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
    snprintf(name, sizeof name, "blk.%d.%s", block, matrices[i].name);
    add_matrix(list, name, matrices[i].columns, matrices[i].rows);
  }
}

static int list_tensors(tensor_list *list, const shape *s, kg_error *err)
{
  const size_t n = 3 + (size_t)s->n_blocks * TENSORS_PER_BLOCK;
  list->items = kg_alloc_array(n, sizeof *list->items);
  if (!list->items) return kg_fail_memory(err, n * sizeof *list->items, "the tensor table");
  add_matrix(list, "token_embd", s->width, s->n_vocab);
  for (int block = 0; block < s->n_blocks; block++) add_block(list, s, block);
  add_vector(list, "output_norm.weight", s->width, 1, 0);
  if (!s->tied) add_matrix(list, "output", s->width, s->n_vocab);
  return KG_OK;
}

/* n values (a multiple of 4) from position `first` of stream number `stream`: the sum of four random bytes is close
 * enough to a gaussian, and cheap. */
static void fill(float *out, int64_t n, uint64_t seed, uint32_t stream, uint64_t first, float mean, float deviation)
{
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const float scale = deviation / sqrtf(4 * (256.0f * 256.0f - 1) / 12); /* variance of four uniform bytes */
  for (int64_t i = 0; i < n; i += 4) {
    const uint64_t at = (first + (uint64_t)i) / 4;
    const uint32_t counter[4] = {(uint32_t)at, (uint32_t)(at >> 32), stream, 0};
    uint32_t bits[4];
    kg_philox(key, counter, bits);
    for (int j = 0; j < 4; j++) {
      const uint32_t pairs = (bits[j] & 0xff00ff) + (bits[j] >> 8 & 0xff00ff);
      out[i + j] = mean + scale * (float)((int)((pairs & 0xffff) + (pairs >> 16)) - 510);
    }
  }
}

typedef struct output {
  kg_gguf_writer *writer;
  float *values; /* CHUNK_VALUES */
  void *blocks;  /* their blocks: no type is larger than float32 */
  kg_progress progress;
  void *user;
  int64_t done, total; /* bytes */
} output;

static int write_tensor(output *o, const tensor *t, uint64_t seed, uint32_t stream, kg_error *err)
{
  const kg_type_info *info = kg_type_find((uint32_t)t->type);
  const int64_t n = t->dims[0] * t->dims[1];
  for (int64_t first = 0; first < n; first += CHUNK_VALUES) {
    const int64_t n_chunk = n - first < CHUNK_VALUES ? n - first : CHUNK_VALUES;
    const size_t n_bytes = (size_t)(n_chunk / info->block_size * info->block_bytes);
    fill(o->values, n_chunk, seed, stream, (uint64_t)first, t->mean, t->deviation);
    int code = kg_quantize(t->type, o->values, n_chunk, o->blocks, err);
    if (!code) code = kg_gguf_writer_data(o->writer, o->blocks, n_bytes, err);
    if (code) return code;
    o->done += (int64_t)n_bytes;
    if (o->progress && o->progress(o->user, "write", o->done, o->total))
      return kg_fail(err, KG_ERR_CANCELLED, "cancelled after %lld of %lld bytes", (long long)o->done,
                     (long long)o->total);
  }
  return KG_OK;
}

static int write_tensors(output *o, const tensor_list *list, uint64_t seed, kg_error *err)
{
  int code = KG_OK;
  for (size_t i = 0; i < list->n; i++) {
    const tensor *t = &list->items[i];
    const kg_type_info *info = kg_type_find((uint32_t)t->type);
    kg_gguf_write_tensor(o->writer, t->name, t->type, t->n_dims, t->dims);
    o->total += t->dims[0] * t->dims[1] / info->block_size * info->block_bytes;
  }
  for (size_t i = 0; i < list->n && !code; i++) code = write_tensor(o, &list->items[i], seed, (uint32_t)i, err);
  return code;
}

static const shape *find_shape(const char *name, kg_error *err)
{
  char known[128] = "";
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    if (!strcmp(shapes[i].name, name)) return &shapes[i];
    const size_t used = strlen(known);
    snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", shapes[i].name);
  }
  char quoted[KG_QUOTE_MAX];
  kg_fail(err, KG_ERR_ARGUMENT, "like: unknown model %s; known are %s", kg_quote(quoted, name, strlen(name)), known);
  return NULL;
}

int kg_make_model(const char *path, const char *like, kg_type type, uint64_t seed, kg_progress progress, void *user,
                  kg_error *err)
{
  const shape *s = find_shape(like, err);
  const size_t n_types = sizeof file_types / sizeof file_types[0];
  size_t at = 0;
  if (!s) return KG_ERR_ARGUMENT;
  while (at < n_types && file_types[at].type != type) at++;
  if (at == n_types)
    return kg_fail(err, KG_ERR_ARGUMENT, "type: weights can be of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0");

  output o = {.progress = progress, .user = user};
  tensor_list list = {.type = type};
  int code = kg_gguf_writer_open(path, &o.writer, err);
  if (!code) code = list_tensors(&list, s, err);
  if (!code) {
    o.values = kg_alloc_array(CHUNK_VALUES, sizeof *o.values);
    o.blocks = kg_alloc_array(CHUNK_VALUES, sizeof *o.values);
    if (!o.values || !o.blocks) code = kg_fail_memory(err, 2 * CHUNK_VALUES * sizeof *o.values, "chunks of weights");
  }
  if (!code) {
    write_hyperparameters(o.writer, s, file_types[at].file_type);
    code = write_vocabulary(o.writer, s, err);
  }
  if (!code) code = write_tensors(&o, &list, seed, err);
  if (!code) code = kg_gguf_writer_commit(o.writer, err);
  kg_free(o.values);
  kg_free(o.blocks);
  kg_free(list.items);
  kg_gguf_writer_close(o.writer);
  return code;
}
