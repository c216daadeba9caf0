#include "tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"

/* Text is measured in int32 in the tables of an encode call. */
static const size_t max_text_bytes = INT32_MAX - 1;

static const kg_tokenizer_kind *const kinds[] = {&kg_bpe_kind, &kg_spm_kind};

/* ---- growing arrays ---- */

void kg_tokens_deinit(kg_tokens *tokens)
{
  kg_free(tokens->ids);
  *tokens = (kg_tokens){0};
}

void kg_bytes_deinit(kg_bytes *bytes)
{
  kg_free(bytes->data);
  *bytes = (kg_bytes){0};
}

int kg_tokens_push(kg_tokens *tokens, int32_t id, kg_error *err)
{
  if (!kg_grow((void **)&tokens->ids, &tokens->capacity, tokens->n + 1, sizeof *tokens->ids))
    return kg_fail_memory(err, (tokens->n + 1) * sizeof *tokens->ids, "token ids");
  tokens->ids[tokens->n++] = id;
  return KG_OK;
}

/* ---- opening ---- */

static int find_kind(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  kg_string model;
  const int rc = kg_gguf_get_string(gguf, "tokenizer.ggml.model", &model, err);
  if (rc) return rc;
  char known[128] = "", quoted[KG_QUOTE_MAX];
  size_t used = 0;
  for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
    if (strlen(kinds[i]->model) == model.size && !memcmp(kinds[i]->model, model.data, model.size)) {
      tokenizer->kind = kinds[i];
      return KG_OK;
    }
    if (used < sizeof known)
      /* bounded: two short names; guarded above */
      used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", kinds[i]->model);
  }
  return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: tokenizer.ggml.model %s is not supported; known: %s",
                 kg_gguf_path(gguf), kg_quote(quoted, model.data, model.size), known);
}

/* The pre-tokenizer's name: the one that the caller forces, or the file's. */
static int read_pre(kg_tokenizer *tokenizer, const kg_gguf *gguf, const char *forced, kg_error *err)
{
  kg_string pre = {forced, forced ? strlen(forced) : 0};
  if (!forced && !kg_gguf_find(gguf, "tokenizer.ggml.pre")) return KG_OK;
  const int rc = forced ? KG_OK : kg_gguf_get_string(gguf, "tokenizer.ggml.pre", &pre, err);
  if (rc) return rc;
  tokenizer->pre = kg_copy_bytes(pre.data, pre.size);
  tokenizer->pre_size = pre.size;
  return tokenizer->pre ? KG_OK : kg_fail_memory(err, pre.size, "a name");
}

/* The id under the key, or -1 where the file has none. */
static int read_id(const kg_tokenizer *tokenizer, const kg_gguf *gguf, const char *key, int32_t *out, kg_error *err)
{
  *out = -1;
  if (!kg_gguf_find(gguf, key)) return KG_OK;
  int64_t id;
  const int rc = kg_gguf_get_int(gguf, key, 0, tokenizer->vocab.size - 1, &id, err);
  if (!rc) *out = (int32_t)id;
  return rc;
}

/* The kind's customary id, where the vocabulary has a token of that type there. */
static int32_t customary(const kg_tokenizer *tokenizer, int32_t id, kg_token_type type)
{
  return id >= 0 && id < tokenizer->vocab.size && tokenizer->vocab.types[id] == type ? id : -1;
}

static void add_end(kg_tokenizer *tokenizer, int32_t id)
{
  if (id < 0 || kg_tokenizer_is_end(tokenizer, id) || tokenizer->n_ends == KG_END_TOKENS_MAX) return;
  tokenizer->ends[tokenizer->n_ends++] = id;
}

/* A token that structures prompts is a control token even where a converter called it user-defined: otherwise anybody's
 * text could spell it. */
static void guard(kg_tokenizer *tokenizer, int32_t id)
{
  if (id >= 0 && tokenizer->vocab.types[id] == KG_TOKEN_USER_DEFINED) tokenizer->vocab.types[id] = KG_TOKEN_CONTROL;
}

static int read_special_ids(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                                     "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
                                     "tokenizer.ggml.unknown_token_id"};
  enum { BOS, EOS, EOT, EOM, UNKNOWN, N_KEYS };
  int32_t ids[N_KEYS];
  for (int i = 0; i < N_KEYS; i++) {
    const int rc = read_id(tokenizer, gguf, keys[i], &ids[i], err);
    if (rc) return rc;
  }
  const kg_tokenizer_kind *kind = tokenizer->kind;
  tokenizer->bos = ids[BOS] >= 0 ? ids[BOS] : customary(tokenizer, kind->bos, KG_TOKEN_CONTROL);
  tokenizer->eos = ids[EOS] >= 0 ? ids[EOS] : customary(tokenizer, kind->eos, KG_TOKEN_CONTROL);
  tokenizer->unknown = ids[UNKNOWN] >= 0 ? ids[UNKNOWN] : customary(tokenizer, kind->unknown, KG_TOKEN_UNKNOWN);
  guard(tokenizer, tokenizer->bos);
  for (int i = EOS; i <= EOM; i++) {
    const int32_t id = i == EOS ? tokenizer->eos : ids[i];
    guard(tokenizer, id);
    add_end(tokenizer, id);
  }
  return KG_OK;
}

/* Texts that models use for structure: the ends of answers, then the openers of turns and the parts of
 * fill-in-the-middle prompts. */
typedef struct marker {
  const char *text;
  bool is_end;
} marker;

static const marker markers[] = {
    {"<|im_end|>", true}, {"<|eot_id|>", true}, {"<|eom_id|>", true}, {"<|endoftext|>", true},
    {"<|end_of_text|>", true}, {"<end_of_turn>", true}, {"<|end|>", true}, {"</s>", true}, {"<eos>", true},
    {"<|eos|>", true}, {"[EOS]", true}, {"<EOT>", true}, {"_<EOT>", true}, {"[EOT]", true}, {"<|EOT|>", true},
    {"<|return|>", true}, {"<|call|>", true}, {"<|calls|>", true}, {"<|flush|>", true}, {"<|end_of_turn|>", true},
    {"<|END_OF_TURN_TOKEN|>", true}, {"<turn|>", true}, {"<end_of_utterance>", true},
    {"<\xEF\xBD\x9C" "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>", true}, {"<|fim_pad|>", true},
    {"<fim_pad>", true}, {"<|repo_name|>", true}, {"<|file_sep|>", true},
    {"<|im_start|>", false}, {"<|im_sep|>", false}, {"<|start_header_id|>", false}, {"<|end_header_id|>", false},
    {"<start_of_turn>", false}, {"<|START_OF_TURN_TOKEN|>", false}, {"<|start_of_role|>", false},
    {"<|end_of_role|>", false}, {"<|start|>", false}, {"<|message|>", false}, {"<|channel|>", false},
    {"<|system|>", false}, {"<|user|>", false}, {"<|assistant|>", false}, {"<s>", false},
    {"<|begin_of_text|>", false}, {"<|startoftext|>", false}, {"<|fim_prefix|>", false}, {"<|fim_suffix|>", false},
    {"<|fim_middle|>", false}, {"<fim_prefix>", false}, {"<fim_suffix>", false}, {"<fim_middle>", false}};

static const marker *marker_find(kg_string text)
{
  if (text.size < 3 || (text.data[0] != '<' && text.data[0] != '[')) return NULL;
  for (size_t i = 0; i < sizeof markers / sizeof markers[0]; i++)
    if (strlen(markers[i].text) == text.size && !memcmp(markers[i].text, text.data, text.size))
      return &markers[i];
  return NULL;
}

static void find_markers(kg_tokenizer *tokenizer)
{
  kg_vocab *vocab = &tokenizer->vocab;
  bool has_return = false, has_call = false;
  int32_t message_end = -1;
  for (int32_t id = 0; id < vocab->size; id++) {
    if (vocab->types[id] != KG_TOKEN_CONTROL && vocab->types[id] != KG_TOKEN_USER_DEFINED) continue;
    const marker *m = marker_find(kg_vocab_piece(vocab, id));
    if (!m) continue;
    guard(tokenizer, id);
    has_return = has_return || !strcmp(m->text, "<|return|>");
    has_call = has_call || !strcmp(m->text, "<|call|>");
    if (!strcmp(m->text, "<|end|>"))
      message_end = id;
    else if (m->is_end)
      add_end(tokenizer, id);
  }
  /* In the Harmony format <|end|> ends one message of an answer that goes on. */
  if (!has_return || !has_call) add_end(tokenizer, message_end);
}

int kg_tokenizer_read_flag(const kg_gguf *gguf, const char *key, bool *out, kg_error *err)
{
  const kg_gguf_entry *entry = kg_gguf_find(gguf, key);
  if (!entry) return KG_OK;
  if (entry->is_array || entry->type != KG_GGUF_BOOL)
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s is %s%s, not a bool", kg_gguf_path(gguf), key,
                   entry->is_array ? "an array of " : "of type ", kg_gguf_type_name(entry->type));
  *out = kg_gguf_entry_int(entry, 0) != 0;
  return KG_OK;
}

static int read_all(kg_tokenizer *tokenizer, const kg_gguf *gguf, const char *pre, kg_error *err)
{
  int rc = find_kind(tokenizer, gguf, err);
  if (rc) return rc;
  tokenizer->add_bos = tokenizer->kind->add_bos;
  if ((rc = read_pre(tokenizer, gguf, pre, err))) return rc;
  if ((rc = kg_vocab_read(&tokenizer->vocab, gguf, tokenizer->kind->unmap, err))) return rc;
  if ((rc = read_special_ids(tokenizer, gguf, err))) return rc;
  find_markers(tokenizer);
  if ((rc = kg_vocab_index(&tokenizer->vocab, err))) return rc;
  if ((rc = tokenizer->kind->open(tokenizer, gguf, err))) return rc;
  if ((rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos, err))) return rc;
  tokenizer->add_bos = tokenizer->add_bos && tokenizer->bos >= 0;
  return KG_OK;
}

int kg_tokenizer_open(const kg_gguf *gguf, const char *pre, kg_tokenizer **out, kg_error *err)
{
  kg_tokenizer *tokenizer = kg_alloc_array(1, sizeof *tokenizer);
  if (!tokenizer) return kg_fail_memory(err, sizeof *tokenizer, "a tokenizer");
  const int rc = read_all(tokenizer, gguf, pre, err);
  if (rc) {
    kg_tokenizer_free(tokenizer);
    return rc;
  }
  *out = tokenizer;
  return KG_OK;
}

void kg_tokenizer_free(kg_tokenizer *tokenizer)
{
  if (!tokenizer) return;
  if (tokenizer->kind) tokenizer->kind->close(tokenizer->state);
  kg_vocab_deinit(&tokenizer->vocab);
  kg_free(tokenizer->pre);
  kg_free(tokenizer);
}

/* ---- encoding ---- */

/* Storage of one encode call. */
typedef struct encoding {
  const kg_tokenizer *tokenizer;
  kg_merger merger;
  kg_bytes joined;    /* neighbouring text segments as one text */
  bool after_special; /* nothing before, or a control or user-defined token */
  kg_tokens *out;
} encoding;

int kg_tokenizer_push_byte(const kg_tokenizer *tokenizer, unsigned char byte, kg_tokens *out, kg_error *err)
{
  int32_t id = tokenizer->vocab.byte_ids[byte];
  if (id < 0) id = tokenizer->unknown;
  if (id < 0) return kg_fail(err, KG_ERR_UNSUPPORTED, "the vocabulary has no token for the byte 0x%02X", byte);
  return kg_tokens_push(out, id, err);
}

static int encode_text(encoding *e, const char *text, size_t size, kg_error *err)
{
  const kg_tokenizer *tokenizer = e->tokenizer;
  int rc = KG_OK;
  for (size_t pos = 0; pos < size && !rc;) {
    size_t at = size;
    const int32_t id = kg_vocab_find_user_defined(&tokenizer->vocab, text, size, pos, &at);
    if (at > pos) {
      rc = tokenizer->kind->encode(tokenizer, text + pos, at - pos, e->after_special, &e->merger, e->out, err);
      e->after_special = false;
      pos = at;
    }
    if (id >= 0 && !rc) {
      rc = kg_tokens_push(e->out, id, err);
      e->after_special = true;
      pos += kg_vocab_piece(&tokenizer->vocab, id).size; /* bounded: it stands in the text at pos */
    }
  }
  return rc;
}

static int encode_control(encoding *e, const kg_segment *segment, kg_error *err)
{
  const int32_t id = kg_tokenizer_control_find(e->tokenizer, segment->text, segment->size);
  if (id < 0) {
    char quoted[KG_QUOTE_MAX];
    return kg_fail(err, KG_ERR_ARGUMENT, "%s is not a control token of this vocabulary",
                   kg_quote(quoted, segment->text, segment->size));
  }
  e->after_special = true;
  return kg_tokens_push(e->out, id, err);
}

/* The text segments from `first` on up to the next control segment are one text: where a template cuts it must not
 * change the ids. Moves *first behind them. */
static int encode_run(encoding *e, const kg_segment *segments, size_t n, size_t *first, kg_error *err)
{
  size_t last = *first, total = 0;
  for (; last < n && !segments[last].control; last++)
    if (!kg_add_size(total, segments[last].size, &total) || total > max_text_bytes)
      return kg_fail(err, KG_ERR_ARGUMENT, "text of more than %zu bytes cannot be encoded", max_text_bytes);
  const kg_segment *segment = &segments[*first];
  const bool is_one = last - *first == 1;
  *first = last;
  if (is_one) return encode_text(e, segment->text, segment->size, err);
  if (!kg_grow((void **)&e->joined.data, &e->joined.capacity, total, 1)) return kg_fail_memory(err, total, "encoding");
  e->joined.size = 0;
  for (; segment < segments + last; segment++) {
    if (segment->size) memcpy(e->joined.data + e->joined.size, segment->text, segment->size);
    e->joined.size += segment->size; /* bounded: up to total, a checked sum */
  }
  return encode_text(e, e->joined.data, e->joined.size, err);
}

/* The file's BOS, unless the segments start with it themselves. */
static int encode_bos(encoding *e, const kg_segment *segments, size_t n, kg_error *err)
{
  const kg_tokenizer *tokenizer = e->tokenizer;
  if (!tokenizer->add_bos) return KG_OK;
  if (n && segments[0].control &&
      kg_tokenizer_control_find(tokenizer, segments[0].text, segments[0].size) == tokenizer->bos)
    return KG_OK;
  return kg_tokens_push(e->out, tokenizer->bos, err);
}

int kg_tokenizer_encode(const kg_tokenizer *tokenizer, const kg_segment *segments, size_t n_segments, unsigned flags,
                        kg_tokens *out, kg_error *err)
{
  encoding e = {.tokenizer = tokenizer, .after_special = true, .out = out};
  const size_t n_before = out->n;
  int rc = flags & KG_ENCODE_BOS ? encode_bos(&e, segments, n_segments, err) : KG_OK;
  for (size_t i = 0; i < n_segments && !rc;) {
    if (segments[i].control)
      rc = encode_control(&e, &segments[i++], err);
    else
      rc = encode_run(&e, segments, n_segments, &i, err);
  }
  if (rc) out->n = n_before;
  kg_merger_deinit(&e.merger);
  kg_bytes_deinit(&e.joined);
  return rc;
}

/* ---- decoding ---- */

kg_string kg_tokenizer_piece(const kg_tokenizer *tokenizer, int32_t id, unsigned flags, bool *after_special)
{
  const kg_token_type type = tokenizer->vocab.types[id];
  kg_string piece = kg_vocab_piece(&tokenizer->vocab, id);
  switch (type) {
  case KG_TOKEN_NORMAL:
  case KG_TOKEN_BYTE:
    if (*after_special && tokenizer->space_prefix && piece.size && piece.data[0] == ' ') {
      piece.data++;
      piece.size--;
    }
    *after_special = false;
    return piece;
  case KG_TOKEN_USER_DEFINED: break;
  default: /* control, unknown, unused */
    if (!(flags & KG_DECODE_CONTROL)) piece.size = 0;
  }
  *after_special = true;
  return piece;
}

int kg_tokenizer_check_id(const kg_tokenizer *tokenizer, int32_t id, kg_error *err)
{
  if (id >= 0 && id < tokenizer->vocab.size) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "token id %d is outside 0 to %d", id, tokenizer->vocab.size - 1);
}

int kg_tokenizer_decode(const kg_tokenizer *tokenizer, const int32_t *ids, size_t n, unsigned flags, kg_bytes *out,
                        kg_error *err)
{
  const size_t size_before = out->size;
  bool after_special = true;
  for (size_t i = 0; i < n; i++) {
    int rc = kg_tokenizer_check_id(tokenizer, ids[i], err);
    const kg_string piece = rc ? (kg_string){0} : kg_tokenizer_piece(tokenizer, ids[i], flags, &after_special);
    size_t need = 0;
    if (!rc && (!kg_add_size(out->size, piece.size, &need) ||
                !kg_grow((void **)&out->data, &out->capacity, need, 1)))
      rc = kg_fail_memory(err, need, "decoded text");
    if (rc) {
      out->size = size_before;
      return rc;
    }
    if (piece.size) memcpy(out->data + out->size, piece.data, piece.size);
    out->size = need;
  }
  return KG_OK;
}

/* ---- questions ---- */

int32_t kg_tokenizer_size(const kg_tokenizer *tokenizer) { return tokenizer->vocab.size; }

int32_t kg_tokenizer_bos(const kg_tokenizer *tokenizer) { return tokenizer->bos; }

int32_t kg_tokenizer_eos(const kg_tokenizer *tokenizer) { return tokenizer->eos; }

bool kg_tokenizer_is_end(const kg_tokenizer *tokenizer, int32_t id)
{
  for (size_t i = 0; i < tokenizer->n_ends; i++)
    if (tokenizer->ends[i] == id) return true;
  return false;
}

bool kg_tokenizer_is_control(const kg_tokenizer *tokenizer, int32_t id)
{
  return id >= 0 && id < tokenizer->vocab.size && tokenizer->vocab.types[id] == KG_TOKEN_CONTROL;
}

int32_t kg_tokenizer_control_find(const kg_tokenizer *tokenizer, const char *text, size_t size)
{
  return kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.controls, text, size);
}
