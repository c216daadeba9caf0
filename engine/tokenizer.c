#include "tokenizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "pieces.h"
#include "unicode.h"
#include "utf8.h"

/* Text is measured in int32 in the tables of an encode call. */
static const size_t max_text_bytes = INT32_MAX - 1;

/* ---- a model without a vocabulary ---- */

static int open_none(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  (void)tokenizer, (void)gguf, (void)err;
  return KG_OK;
}

static void close_none(void *state) { (void)state; }

static const kg_tokenizer_kind none_kind = {.model = "none", .open = open_none, .close = close_none};
static const kg_tokenizer_kind no_vocab_kind = {.model = "no_vocab", .open = open_none, .close = close_none};

static const kg_tokenizer_kind *const kinds[] = {&kg_bpe_kind, &kg_spm_kind, &kg_gemma4_kind, &kg_wordpiece_kind,
                                                 &kg_unigram_kind, &kg_rwkv_kind, &none_kind, &no_vocab_kind};

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
      /* bounded: a few short names; guarded above */
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

/* The id under the key, or -1 where the file has none, or has one outside of the vocabulary that it can do without. */
static int read_id(const kg_tokenizer *tokenizer, const kg_gguf *gguf, const char *key, bool is_needed, int32_t *out,
                   kg_error *err)
{
  *out = -1;
  if (!kg_gguf_find(gguf, key)) return KG_OK;
  int64_t id;
  const int64_t last = tokenizer->vocab.size - 1;
  const int rc = kg_gguf_get_int(gguf, key, is_needed ? 0 : INT64_MIN, is_needed ? last : INT64_MAX, &id, err);
  if (!rc && id >= 0 && id <= last) *out = (int32_t)id;
  return rc;
}

/* The first token with a role of its own that is spelled so, or -1. */
static int32_t spelled(const kg_vocab *vocab, const char *text)
{
  for (int32_t id = 0; text && id < vocab->size; id++) {
    const kg_token_type type = vocab->types[id];
    if (type != KG_TOKEN_CONTROL && type != KG_TOKEN_UNKNOWN && type != KG_TOKEN_USER_DEFINED) continue;
    const kg_string piece = kg_vocab_piece(vocab, id);
    if (piece.size == strlen(text) && !memcmp(piece.data, text, piece.size)) return id;
  }
  return -1;
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

/* What the file calls them, in older files too, and Lua. */
typedef struct special_name {
  const char *name, *key, *old_key;
} special_name;

static const special_name special_names[KG_SPECIAL_COUNT] = {
    [KG_BOS] = {"bos", "tokenizer.ggml.bos_token_id", NULL},
    [KG_EOS] = {"eos", "tokenizer.ggml.eos_token_id", NULL},
    [KG_EOT] = {"eot", "tokenizer.ggml.eot_token_id", NULL},
    [KG_EOM] = {"eom", "tokenizer.ggml.eom_token_id", NULL},
    [KG_UNK] = {"unk", "tokenizer.ggml.unknown_token_id", NULL},
    /* with this spelling in the format, and as one would write it in some files */
    [KG_SEP] = {"sep", "tokenizer.ggml.seperator_token_id", "tokenizer.ggml.separator_token_id"},
    [KG_PAD] = {"pad", "tokenizer.ggml.padding_token_id", NULL},
    [KG_CLS] = {"cls", "tokenizer.ggml.cls_token_id", NULL},
    [KG_MASK] = {"mask", "tokenizer.ggml.mask_token_id", NULL},
    [KG_FIM_PREFIX] = {"fim_prefix", "tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
    [KG_FIM_SUFFIX] = {"fim_suffix", "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
    [KG_FIM_MIDDLE] = {"fim_middle", "tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
    [KG_FIM_PAD] = {"fim_pad", "tokenizer.ggml.fim_pad_token_id", NULL},
    [KG_FIM_REPO] = {"fim_repo", "tokenizer.ggml.fim_rep_token_id", NULL},
    [KG_FIM_FILE] = {"fim_file", "tokenizer.ggml.fim_sep_token_id", NULL},
};

kg_special kg_special_find(const char *name)
{
  for (int i = KG_NO_SPECIAL + 1; i < KG_SPECIAL_COUNT; i++)
    if (!strcmp(special_names[i].name, name)) return (kg_special)i;
  return KG_NO_SPECIAL;
}

/* Text that a vocabulary of this kind does not cover may become the unknown token, so that is no control token, unless
 * it is another special token as well. */
static void set_unknown(kg_tokenizer *tokenizer)
{
  const int32_t id = tokenizer->special[KG_UNK];
  if (id < 0 || !tokenizer->kind->texts[KG_UNK]) return;
  for (int i = KG_NO_SPECIAL + 1; i < KG_SPECIAL_COUNT; i++)
    if (i != KG_UNK && tokenizer->special[i] == id) return;
  if (tokenizer->vocab.types[id] == KG_TOKEN_CONTROL) tokenizer->vocab.types[id] = KG_TOKEN_UNKNOWN;
}

static int read_special_ids(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  int32_t *special = tokenizer->special;
  special[KG_NO_SPECIAL] = -1;
  for (int i = KG_NO_SPECIAL + 1; i < KG_SPECIAL_COUNT; i++) {
    /* Public files name paddings behind the end of the vocabulary, and the like; a wrong EOS is another matter. */
    const bool is_needed = i <= KG_UNK;
    int rc = read_id(tokenizer, gguf, special_names[i].key, is_needed, &special[i], err);
    if (!rc && special[i] < 0 && special_names[i].old_key)
      rc = read_id(tokenizer, gguf, special_names[i].old_key, is_needed, &special[i], err);
    if (rc) return rc;
    if (special[i] < 0) special[i] = spelled(&tokenizer->vocab, tokenizer->kind->texts[i]);
  }
  if (special[KG_BOS] < 0) special[KG_BOS] = special[KG_CLS];
  set_unknown(tokenizer);
  for (int i = KG_NO_SPECIAL + 1; i < KG_SPECIAL_COUNT; i++)
    if (i != KG_UNK) guard(tokenizer, special[i]);
  for (int i = KG_EOS; i <= KG_EOM; i++) add_end(tokenizer, special[i]);
  return KG_OK;
}

/* Texts that models use for structure: the ends of answers, then the openers of turns and the parts of
 * fill-in-the-middle prompts. */
typedef struct marker {
  const char *text;
  bool is_end;
  kg_special special; /* what it is where the file does not say */
} marker;

/* U+FF5C and U+2581, as DeepSeek's vocabularies write bars and spaces. */
#define BAR "\xEF\xBD\x9C"
#define GAP "\xE2\x96\x81"

static const marker markers[] = {
    {"<|im_end|>", true, 0}, {"<|eot_id|>", true, 0}, {"<|eom_id|>", true, 0}, {"<|endoftext|>", true, 0},
    {"<|end_of_text|>", true, 0}, {"<end_of_turn>", true, 0}, {"<|end|>", true, 0}, {"</s>", true, 0},
    {"<eos>", true, 0}, {"<|eos|>", true, 0}, {"[EOS]", true, 0}, {"<EOT>", true, 0}, {"_<EOT>", true, 0},
    {"[EOT]", true, 0}, {"<|EOT|>", true, 0}, {"<|return|>", true, 0}, {"<|call|>", true, 0}, {"<|calls|>", true, 0},
    {"<|flush|>", true, 0}, {"<|end_of_turn|>", true, 0}, {"<|END_OF_TURN_TOKEN|>", true, 0}, {"<turn|>", true, 0},
    {"<end_of_utterance>", true, 0}, {"<" BAR "end" GAP "of" GAP "sentence" BAR ">", true, 0},
    {"<|fim_pad|>", true, KG_FIM_PAD}, {"<fim_pad>", true, KG_FIM_PAD}, {"<fim-pad>", true, KG_FIM_PAD},
    {"<|repo_name|>", true, KG_FIM_REPO}, {"<|file_sep|>", true, KG_FIM_FILE},
    {"<|im_start|>", false, 0}, {"<|im_sep|>", false, 0}, {"<|start_header_id|>", false, 0},
    {"<|end_header_id|>", false, 0}, {"<start_of_turn>", false, 0}, {"<|START_OF_TURN_TOKEN|>", false, 0},
    {"<|start_of_role|>", false, 0}, {"<|end_of_role|>", false, 0}, {"<|start|>", false, 0}, {"<|message|>", false, 0},
    {"<|channel|>", false, 0}, {"<|turn>", false, 0}, {"<|system|>", false, 0}, {"<|user|>", false, 0},
    {"<|assistant|>", false, 0}, {"<s>", false, 0}, {"<|begin_of_text|>", false, 0}, {"<|startoftext|>", false, 0},
    {"<|fim_prefix|>", false, KG_FIM_PREFIX}, {"<fim_prefix>", false, KG_FIM_PREFIX},
    {"<fim-prefix>", false, KG_FIM_PREFIX}, {"<|code_prefix|>", false, KG_FIM_PREFIX},
    {"[PREFIX]", false, KG_FIM_PREFIX}, {"<" BAR "fim" GAP "begin" BAR ">", false, KG_FIM_PREFIX},
    {"<|fim_suffix|>", false, KG_FIM_SUFFIX}, {"<fim_suffix>", false, KG_FIM_SUFFIX},
    {"<fim-suffix>", false, KG_FIM_SUFFIX}, {"<|code_suffix|>", false, KG_FIM_SUFFIX},
    {"[SUFFIX]", false, KG_FIM_SUFFIX}, {"<" BAR "fim" GAP "hole" BAR ">", false, KG_FIM_SUFFIX},
    {"<|fim_middle|>", false, KG_FIM_MIDDLE}, {"<fim_middle>", false, KG_FIM_MIDDLE},
    {"<fim-middle>", false, KG_FIM_MIDDLE}, {"<|code_middle|>", false, KG_FIM_MIDDLE},
    {"[MIDDLE]", false, KG_FIM_MIDDLE}, {"<" BAR "fim" GAP "end" BAR ">", false, KG_FIM_MIDDLE}};

static const marker *marker_find(kg_string text)
{
  if (text.size < 3 || (text.data[0] != '<' && text.data[0] != '[' && text.data[0] != '_')) return NULL;
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
    if (m->special && tokenizer->special[m->special] < 0) tokenizer->special[m->special] = id;
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

int kg_tokenizer_read_scores(const kg_tokenizer *tokenizer, const kg_gguf *gguf, const kg_gguf_entry **scores,
                             kg_error *err)
{
  static const char key[] = "tokenizer.ggml.scores";
  const int rc = kg_gguf_get_array(gguf, key, KG_GGUF_F32, scores, err);
  if (rc) return rc;
  const int32_t size = tokenizer->vocab.size;
  if ((*scores)->count != (uint64_t)size)
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s has %llu elements for %d tokens", kg_gguf_path(gguf), key,
                   (unsigned long long)(*scores)->count, size);
  for (int32_t id = 0; id < size; id++)
    if (isnan(kg_gguf_entry_double(*scores, (uint64_t)id)))
      return kg_fail(err, KG_ERR_FORMAT, "%s: %s[%d] is not a number", kg_gguf_path(gguf), key, id);
  return KG_OK;
}

/* ---- white space around special tokens ---- */

static bool contains(const char *text, size_t size, const char *word)
{
  const size_t n = strlen(word);
  for (size_t i = 0; i < size && n <= size - i; i++) {
    size_t k = 0;
    while (k < n && (text[i + k] | 0x20) == word[k]) k++; /* bounded: within the text */
    if (k == n) return true;
  }
  return false;
}

static bool has_name(const kg_gguf *gguf, const char *key, const char *word)
{
  kg_string name;
  return kg_gguf_find(gguf, key) && !kg_gguf_get_string(gguf, key, &name, NULL) &&
         contains(name.data, name.size, word);
}

/* Files do not say which tokens swallow white space. Public models in which some do: Phi-3 (what follows its special
 * tokens, but for three of them), and all with a mask token of RoBERTa's or ModernBERT's making (what precedes it). */
static uint8_t strip_of(const kg_tokenizer *tokenizer, bool is_phi3, int32_t id)
{
  static const char *const plain[] = {"<s>", "<unk>", "<|endoftext|>"};
  const kg_token_type type = tokenizer->vocab.types[id];
  const kg_string piece = kg_vocab_piece(&tokenizer->vocab, id);
  if (type != KG_TOKEN_CONTROL && type != KG_TOKEN_USER_DEFINED && type != KG_TOKEN_UNKNOWN) return 0;
  if (piece.size == 6 && !memcmp(piece.data, "<mask>", 6)) return KG_STRIP_LEFT;
  const bool is_modern = tokenizer->pre_size == 11 && !memcmp(tokenizer->pre, "modern-bert", 11);
  if (is_modern && piece.size == 6 && !memcmp(piece.data, "[MASK]", 6)) return KG_STRIP_LEFT;
  if (!is_phi3) return 0;
  for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++)
    if (piece.size == strlen(plain[i]) && !memcmp(piece.data, plain[i], piece.size)) return 0;
  return KG_STRIP_RIGHT;
}

static int find_strips(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  /* Its architecture serves Phi-4 too, whose vocabulary is of another kind. */
  const bool is_phi3 = tokenizer->kind == &kg_spm_kind &&
                       (has_name(gguf, "general.architecture", "phi3") || has_name(gguf, "general.name", "phi-3") ||
                        has_name(gguf, "general.name", "phi3"));
  for (int32_t id = 0; id < vocab->size; id++) {
    const uint8_t strip = strip_of(tokenizer, is_phi3, id);
    if (!strip) continue;
    if (!tokenizer->strips) tokenizer->strips = kg_alloc_array((size_t)vocab->size, 1);
    if (!tokenizer->strips) return kg_fail_memory(err, (size_t)vocab->size, "token types");
    tokenizer->strips[id] = strip;
  }
  return KG_OK;
}

static bool strips(const kg_tokenizer *tokenizer, int32_t id, unsigned side)
{
  return tokenizer->strips && id >= 0 && tokenizer->strips[id] & side;
}

static bool is_white(const char *text, size_t size, size_t *length)
{
  uint32_t c;
  if (kg_utf8_next(text, size, &c, length) != KG_UTF8_VALID) return false;
  return kg_unicode_category(c) & KG_WHITE;
}

/* How many bytes of white space the text begins with, and ends with. */
static size_t white_before(const char *text, size_t size)
{
  size_t at = 0;
  for (size_t length; at < size && is_white(text + at, size - at, &length); at += length)
    ;
  return at;
}

static size_t white_behind(const char *text, size_t size)
{
  size_t end = size;
  while (end) {
    size_t at = end - 1, length;
    while (at && end - at < 4 && ((unsigned char)text[at] & 0xC0) == 0x80) at--;
    if (!is_white(text + at, end - at, &length) || length != end - at) break;
    end = at;
  }
  return size - end;
}

/* ---- reading a file ---- */

/* As many ids as the model has, none with text. */
static int count_ids(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  char key[128];
  kg_string architecture;
  int64_t size = 0;
  int rc = kg_gguf_get_string(gguf, "general.architecture", &architecture, err);
  if (rc) return rc;
  snprintf(key, sizeof key, "%.*s.vocab_size", architecture.size > 100 ? 100 : (int)architecture.size,
           architecture.data);
  const kg_gguf_tensor *table = kg_gguf_tensor_find(gguf, "token_embd.weight");
  if (kg_gguf_find(gguf, key) || !table)
    rc = kg_gguf_get_int(gguf, key, 1, INT32_MAX - 1, &size, err);
  else
    size = table->dims[1];
  if (!rc && size > INT32_MAX - 1)
    rc = kg_fail(err, KG_ERR_FORMAT, "%s: a vocabulary of %lld tokens", kg_gguf_path(gguf), (long long)size);
  return rc ? rc : kg_vocab_init_mute(&tokenizer->vocab, (int32_t)size, err);
}

/* What the file says about the frame of a text, as far as there are such tokens. */
static int read_frame(kg_tokenizer *tokenizer, const kg_gguf *gguf, kg_error *err)
{
  int rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_bos_token", &tokenizer->add_bos, err);
  if (!rc) rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_eos_token", &tokenizer->add_eos, err);
  if (!rc) rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.add_sep_token", &tokenizer->add_sep, err);
  tokenizer->add_bos = tokenizer->add_bos && tokenizer->special[KG_BOS] >= 0;
  tokenizer->add_eos = tokenizer->add_eos && tokenizer->special[KG_EOS] >= 0;
  tokenizer->add_sep = tokenizer->add_sep && tokenizer->special[KG_SEP] >= 0;
  return rc;
}

static int read_all(kg_tokenizer *tokenizer, const kg_gguf *gguf, const char *pre, kg_error *err)
{
  int rc = find_kind(tokenizer, gguf, err);
  if (rc) return rc;
  const kg_tokenizer_kind *kind = tokenizer->kind;
  tokenizer->add_bos = kind->add_bos;
  tokenizer->add_eos = kind->add_eos;
  tokenizer->add_sep = kind->add_sep;
  if ((rc = read_pre(tokenizer, gguf, pre, err))) return rc;
  rc = kind->unmap ? kg_vocab_read(&tokenizer->vocab, gguf, kind->unmap, kind->unmap_user, err)
                   : count_ids(tokenizer, gguf, err);
  if (rc) return rc;
  if ((rc = read_special_ids(tokenizer, gguf, err))) return rc;
  find_markers(tokenizer);
  if ((rc = find_strips(tokenizer, gguf, err))) return rc;
  if ((rc = kg_vocab_index(&tokenizer->vocab, err))) return rc;
  if ((rc = kind->open(tokenizer, gguf, err))) return rc;
  return read_frame(tokenizer, gguf, err);
}

int kg_tokenizer_open(const kg_gguf *gguf, const kg_tokenizer_options *options, kg_tokenizer **out, kg_error *err)
{
  kg_tokenizer *tokenizer = kg_alloc_array(1, sizeof *tokenizer);
  if (!tokenizer) return kg_fail_memory(err, sizeof *tokenizer, "a tokenizer");
  tokenizer->n_refs = 1;
  tokenizer->normalize = options && options->normalize;
  const int rc = read_all(tokenizer, gguf, options ? options->pre : NULL, err);
  if (rc) {
    kg_tokenizer_free(tokenizer);
    return rc;
  }
  *out = tokenizer;
  return KG_OK;
}

kg_tokenizer *kg_tokenizer_ref(kg_tokenizer *tokenizer)
{
  tokenizer->n_refs++;
  return tokenizer;
}

void kg_tokenizer_free(kg_tokenizer *tokenizer)
{
  if (!tokenizer || --tokenizer->n_refs) return;
  if (tokenizer->kind) tokenizer->kind->close(tokenizer->state);
  kg_vocab_deinit(&tokenizer->vocab);
  kg_pieces_free(tokenizer->pieces);
  kg_free(tokenizer->pre);
  kg_free(tokenizer->strips);
  kg_free(tokenizer);
}

static int fail_mute(const kg_tokenizer *tokenizer, kg_error *err)
{
  return kg_fail(err, KG_ERR_UNSUPPORTED, "the model has no vocabulary (tokenizer.ggml.model is \"%s\"): it works on "
                 "ids, which have no text", tokenizer->kind->model);
}

/* ---- encoding ---- */

/* Storage of one encode call. */
typedef struct encoding {
  const kg_tokenizer *tokenizer;
  const kg_trie *specials; /* what is cut out of text */
  kg_merger merger;
  kg_bytes joined;    /* neighbouring text segments as one text */
  bool after_special; /* nothing before, or a control or user-defined token */
  bool strip_next;    /* white space that follows belongs to the token before */
  kg_tokens *out;
} encoding;

int kg_tokenizer_push_unknown(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_tokens *out,
                              kg_error *err)
{
  const int32_t id = tokenizer->special[KG_UNK];
  if (id >= 0 && tokenizer->vocab.types[id] != KG_TOKEN_CONTROL) return kg_tokens_push(out, id, err);
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_UNSUPPORTED, "the vocabulary has no token for %s", kg_quote(quoted, text, size));
}

int kg_tokenizer_push_byte(const kg_tokenizer *tokenizer, unsigned char byte, kg_tokens *out, kg_error *err)
{
  const int32_t id = tokenizer->vocab.byte_ids[byte];
  if (id >= 0) return kg_tokens_push(out, id, err);
  const char text = (char)byte;
  return kg_tokenizer_push_unknown(tokenizer, &text, 1, out, err);
}

/* Append a token that text was cut for. */
static int push_special(encoding *e, int32_t id, kg_error *err)
{
  e->after_special = true;
  e->strip_next = strips(e->tokenizer, id, KG_STRIP_RIGHT);
  return kg_tokens_push(e->out, id, err);
}

/* Text between two special tokens, of which the second is `next` (-1: it ends here). */
static int encode_plain(encoding *e, const char *text, size_t size, int32_t next, kg_error *err)
{
  const size_t before = e->strip_next ? white_before(text, size) : 0;
  text += before; /* bounded: a part of the text */
  size -= before;
  if (strips(e->tokenizer, next, KG_STRIP_LEFT)) size -= white_behind(text, size);
  if (!size) return KG_OK;
  const bool after_special = e->after_special;
  e->after_special = e->strip_next = false;
  return e->tokenizer->kind->encode(e->tokenizer, text, size, after_special, &e->merger, e->out, err);
}

/* Text that stands before the special token `next` (-1: none). */
static int encode_text(encoding *e, const char *text, size_t size, int32_t next, kg_error *err)
{
  int rc = KG_OK;
  for (size_t pos = 0; pos < size && !rc;) {
    size_t at = size;
    const int32_t id = kg_vocab_find_first(e->specials, text, size, pos, &at);
    if (at > pos) rc = encode_plain(e, text + pos, at - pos, id < 0 ? next : id, err);
    if (id < 0 || rc) break;
    rc = push_special(e, id, err);
    pos = at + kg_vocab_piece(&e->tokenizer->vocab, id).size; /* bounded: it stands in the text there */
  }
  return rc;
}

static int find_control(const encoding *e, const kg_segment *segment, int32_t *id, kg_error *err)
{
  *id = kg_tokenizer_control_find(e->tokenizer, segment->text, segment->size);
  if (*id >= 0) return KG_OK;
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_ARGUMENT, "%s is not a control token of this vocabulary",
                 kg_quote(quoted, segment->text, segment->size));
}

/* The text segments from `first` on up to the next control segment are one text: where a template cuts it must not
 * change the ids. Moves *first behind them. */
static int encode_run(encoding *e, const kg_segment *segments, size_t n, size_t *first, kg_error *err)
{
  size_t last = *first, total = 0;
  for (; last < n && !segments[last].control; last++)
    if (!kg_add_size(total, segments[last].size, &total) || total > max_text_bytes)
      return kg_fail(err, KG_ERR_ARGUMENT, "text of more than %zu bytes cannot be encoded", max_text_bytes);
  int32_t next = -1;
  const int rc = last < n ? find_control(e, &segments[last], &next, err) : KG_OK;
  if (rc) return rc;
  const kg_segment *segment = &segments[*first];
  const bool is_one = last - *first == 1;
  *first = last;
  if (is_one) return encode_text(e, segment->text, segment->size, next, err);
  if (!kg_grow((void **)&e->joined.data, &e->joined.capacity, total, 1)) return kg_fail_memory(err, total, "encoding");
  e->joined.size = 0;
  for (; segment < segments + last; segment++) {
    if (segment->size) memcpy(e->joined.data + e->joined.size, segment->text, segment->size);
    e->joined.size += segment->size; /* bounded: up to total, a checked sum */
  }
  return encode_text(e, e->joined.data, e->joined.size, next, err);
}

static int encode_segments(encoding *e, const kg_segment *segments, size_t n, kg_error *err)
{
  int rc = KG_OK;
  for (size_t i = 0; i < n && !rc;) {
    int32_t id;
    if (!segments[i].control)
      rc = encode_run(e, segments, n, &i, err);
    else if (!(rc = find_control(e, &segments[i++], &id, err)))
      rc = push_special(e, id, err);
  }
  return rc;
}

/* Of several BOS from index `first` on all but one go: a template that writes its own, or writes two, does no harm. */
static void keep_one_bos(kg_tokens *tokens, size_t first, int32_t bos)
{
  size_t from = first;
  while (from + 1 < tokens->n && tokens->ids[from + 1] == bos) from++; /* bounded: ids that there are */
  size_t to = first;
  while (from < tokens->n) tokens->ids[to++] = tokens->ids[from++];
  tokens->n = to;
}

/* The file's last token of a text, unless it stands there. */
static int push_end(const kg_tokenizer *tokenizer, size_t n_before, kg_tokens *out, kg_error *err)
{
  const bool is_sep = !tokenizer->add_eos && tokenizer->add_sep && tokenizer->kind->add_sep;
  if (!tokenizer->add_eos && !is_sep) return KG_OK;
  const int32_t id = tokenizer->special[is_sep ? KG_SEP : KG_EOS];
  return out->n > n_before && out->ids[out->n - 1] == id ? KG_OK : kg_tokens_push(out, id, err);
}

int kg_tokenizer_encode(const kg_tokenizer *tokenizer, const kg_segment *segments, size_t n_segments, unsigned flags,
                        kg_tokens *out, kg_error *err)
{
  if (!tokenizer->kind->encode) return fail_mute(tokenizer, err);
  const kg_vocab *vocab = &tokenizer->vocab;
  encoding e = {.tokenizer = tokenizer, .after_special = !(flags & KG_ENCODE_CONTINUES), .out = out,
                .specials = flags & KG_ENCODE_SPECIAL ? &vocab->specials : &vocab->user_defined};
  const size_t n_before = out->n;
  const int32_t bos = tokenizer->special[KG_BOS];
  const bool begins = flags & KG_ENCODE_BOS && tokenizer->add_bos;
  int rc = begins ? kg_tokens_push(out, bos, err) : KG_OK;
  if (!rc) rc = encode_segments(&e, segments, n_segments, err);
  if (!rc && begins) keep_one_bos(out, n_before, bos);
  if (!rc && flags & KG_ENCODE_EOS) rc = push_end(tokenizer, n_before, out, err);
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
  case KG_TOKEN_UNKNOWN: /* stands for text that is not known any more */
    *after_special = false;
    break;
  case KG_TOKEN_USER_DEFINED: *after_special = true; return piece;
  default: /* control, unused */
    if (!tokenizer->kind->spaced_words)
      *after_special = true;
    else if (flags & KG_DECODE_CONTROL)
      *after_special = false;
  }
  if (!(flags & KG_DECODE_CONTROL)) piece.size = 0;
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
  if (!tokenizer->kind->encode) return fail_mute(tokenizer, err);
  const size_t size_before = out->size;
  bool after_special = true;
  for (size_t i = 0; i < n; i++) {
    int rc = kg_tokenizer_check_id(tokenizer, ids[i], err);
    const kg_string piece = rc ? (kg_string){0} : kg_tokenizer_piece(tokenizer, ids[i], flags, &after_special);
    size_t need = 0;
    if (!rc && (!kg_add_size(out->size, piece.size, &need) ||
                (need > out->capacity && !kg_grow((void **)&out->data, &out->capacity, need, 1))))
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

int32_t kg_tokenizer_bos(const kg_tokenizer *tokenizer) { return tokenizer->special[KG_BOS]; }

int32_t kg_tokenizer_eos(const kg_tokenizer *tokenizer) { return tokenizer->special[KG_EOS]; }

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

int32_t kg_tokenizer_find(const kg_tokenizer *tokenizer, const char *text, size_t size)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  const int32_t id = kg_vocab_find(vocab, &vocab->texts, text, size);
  return id < 0 && size == 1 ? vocab->byte_ids[(unsigned char)*text] : id;
}

static bool writes_text(kg_token_type type)
{
  return type == KG_TOKEN_NORMAL || type == KG_TOKEN_USER_DEFINED || type == KG_TOKEN_BYTE;
}

/* Looks at every piece, which takes a fraction of a millisecond: a tree of them would be for ever in memory, and knows
 * but one of several equal pieces. */
int kg_tokenizer_with_prefix(const kg_tokenizer *tokenizer, const char *text, size_t size, kg_tokens *out,
                             kg_error *err)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  const size_t n_before = out->n;
  for (int32_t id = 0; id < vocab->size; id++) {
    const kg_string piece = kg_vocab_piece(vocab, id);
    if (!writes_text(vocab->types[id]) || piece.size < size || (size && memcmp(piece.data, text, size))) continue;
    const int rc = kg_tokens_push(out, id, err);
    if (!rc) continue;
    out->n = n_before;
    return rc;
  }
  return KG_OK;
}

int32_t kg_tokenizer_control_find(const kg_tokenizer *tokenizer, const char *text, size_t size)
{
  return kg_vocab_find(&tokenizer->vocab, &tokenizer->vocab.controls, text, size);
}

int32_t kg_tokenizer_control_first(const kg_tokenizer *tokenizer, const char *text, size_t size, size_t from,
                                   size_t *at)
{
  const kg_vocab *vocab = &tokenizer->vocab;
  for (;;) {
    const int32_t id = kg_vocab_find_first(&vocab->specials, text, size, from, at);
    if (id < 0 || vocab->types[id] == KG_TOKEN_CONTROL) return id;
    from = *at + kg_vocab_piece(vocab, id).size; /* bounded: it stands in the text there */
  }
}
