/* kigo.h - the public C interface of kigo, a Lua-scriptable inference engine.
 *
 * The model of the engine, from file to text:
 *   kg_gguf       a validated, memory-mapped model file: metadata and a tensor table
 *   kg_tokenizer  text <-> token ids; only control segments may become control tokens
 *   kg_plan       the forward pass as a list of typed operations, declared by lua/kigo/arch/<family>.lua (plan.h)
 *   kg_model      a plan compiled for one device: packed weights, page pool of the key/value cache
 *   kg_sequence   one timeline of tokens with its cache pages and random numbers; fork and rewind are cheap
 *   kg_step       the only compute entry: advances any number of sequences at once
 *   kg_tensor     a handle to numbers where they were computed (logits, traced values)
 *   kg_chain      a sampler: stages applied in order to the logits, then one draw
 * A model is loaded through Lua, because its architecture is a Lua file: a C host opens a lua_State, calls
 * luaopen_kigo, runs kigo.load, and may then take the kg_model out with kg_lua_to_model.
 *
 * Conventions: fallible functions return 0 or a negative KG_ERR_* and fill `err` (which may be NULL); a failed call
 * leaves its objects as they were unless its comment says otherwise. Ids, layers and positions are 0-based.
 * No function prints, exits or aborts. An object is used by one thread at a time. */
#ifndef KIGO_H
#define KIGO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KG_API __attribute__((visibility("default")))
#define KG_VERSION "0.1.0"

/* ---- errors ---------------------------------------------------------------------------------------------- */

enum {
  KG_OK = 0,
  KG_ERR_ARGUMENT = -1,    /* the caller's mistake: a bad id, shape, option or a closed handle */
  KG_ERR_MEMORY = -2,      /* out of memory */
  KG_ERR_IO = -3,          /* the system refused: missing file, read error */
  KG_ERR_FORMAT = -4,      /* a file or text is malformed */
  KG_ERR_UNSUPPORTED = -5, /* well formed, but nothing here can handle it */
  KG_ERR_FULL = -6,        /* the context or the page pool is full */
  KG_ERR_DEVICE = -7,      /* a device or its driver failed */
  KG_ERR_NUMERIC = -8,     /* logits that are not numbers, or nothing left to draw from */
  KG_ERR_CANCELLED = -9,   /* the progress callback asked to stop */
  KG_ERR_SCRIPT = -10,     /* a script in a sandbox failed, or its process died */
  KG_ERR_LIMIT = -11       /* a script in a sandbox spent its instructions or its time */
};

enum { KG_ERROR_MAX = 1280 };

typedef struct kg_error {
  int code;                   /* KG_OK or KG_ERR_* */
  char message[KG_ERROR_MAX]; /* one line, control bytes escaped */
} kg_error;

/* "KG_ERR_FULL" -> "full": the short lower-case name of a code; "unknown" for others. */
KG_API const char *kg_error_name(int code);

/* Borrowed bytes, not NUL-terminated unless said so. */
typedef struct kg_string {
  const char *data;
  size_t size;
} kg_string;

/* ---- GGUF files (format: the public GGUF specification, versions 2 and 3) ---------------------------------- */

typedef struct kg_gguf kg_gguf;

/* Open a model file, or the first file of a split one ("name-00001-of-00003.gguf"; the rest are found beside it),
 * map it and validate all of it before anything points into it. Errors name the file and the place. */
KG_API int kg_gguf_open(const char *path, kg_gguf **out, kg_error *err);
KG_API void kg_gguf_close(kg_gguf *gguf);

/* ---- tokenizers -------------------------------------------------------------------------------------------- */

typedef struct kg_tokenizer kg_tokenizer;

/* A piece of a prompt. Text stays text, whatever it spells; a control segment must spell exactly one control token. */
typedef struct kg_segment {
  const char *text;
  size_t size;   /* bytes */
  bool control;
} kg_segment;

/* A growing array of token ids; zero-initialise, release with kg_tokens_deinit. */
typedef struct kg_tokens {
  int32_t *ids;
  size_t n, capacity;
} kg_tokens;
KG_API void kg_tokens_deinit(kg_tokens *tokens);

/* A growing array of bytes; zero-initialise, release with kg_bytes_deinit. */
typedef struct kg_bytes {
  char *data;
  size_t size, capacity;
} kg_bytes;
KG_API void kg_bytes_deinit(kg_bytes *bytes);

enum { KG_ENCODE_BOS = 1, /* begin as the file asks for: with exactly one BOS, also where the segments spell some */
       KG_DECODE_CONTROL = 2, /* spell control tokens out instead of leaving them out */
       KG_ENCODE_EOS = 4, /* end as the file asks for: with EOS or SEP, unless the segments end with it */
       KG_ENCODE_SPECIAL = 8, /* text that spells a control token becomes it: for text that is trusted */
       KG_ENCODE_CONTINUES = 16 /* the text goes on where other text stands: no space is put before it */ };

typedef struct kg_tokenizer_options {
  const char *pre; /* name of a pre-tokenizer that goes before the file's tokenizer.ggml.pre; NULL: the file's */
  bool normalize;  /* bring text into Unicode's form C where the model's own tokenizer does; then not every text comes
                      back from its ids as it was */
} kg_tokenizer_options;

/* Build the tokenizer that the file describes. It copies what it needs: the file may be closed afterwards. `options`
 * may be NULL. */
KG_API int kg_tokenizer_open(const kg_gguf *gguf, const kg_tokenizer_options *options, kg_tokenizer **out,
                             kg_error *err);
KG_API void kg_tokenizer_free(kg_tokenizer *tokenizer);
/* Append the ids of the segments to `out`; on failure `out` is unchanged. Invalid UTF-8 is encoded as bytes. */
KG_API int kg_tokenizer_encode(const kg_tokenizer *tokenizer, const kg_segment *segments, size_t n_segments,
                               unsigned flags, kg_tokens *out, kg_error *err);
/* Append the bytes of the ids to `out` (not always whole UTF-8; kg_stream in stream.h holds halves back). */
KG_API int kg_tokenizer_decode(const kg_tokenizer *tokenizer, const int32_t *ids, size_t n, unsigned flags,
                               kg_bytes *out, kg_error *err);
KG_API int32_t kg_tokenizer_size(const kg_tokenizer *tokenizer);
KG_API int32_t kg_tokenizer_bos(const kg_tokenizer *tokenizer); /* -1: none */
KG_API int32_t kg_tokenizer_eos(const kg_tokenizer *tokenizer); /* -1: none */
/* Does this id end an answer (eos, end of turn, end of message)? */
KG_API bool kg_tokenizer_is_end(const kg_tokenizer *tokenizer, int32_t id);
KG_API bool kg_tokenizer_is_control(const kg_tokenizer *tokenizer, int32_t id);
/* The first control token that trusted text spells at or after `from`: its id and place, or -1. The longest there
 * counts, and tokens are taken out of the text from left to right as KG_ENCODE_SPECIAL does it. */
KG_API int32_t kg_tokenizer_control_first(const kg_tokenizer *tokenizer, const char *text, size_t size, size_t from,
                                          size_t *at);
/* The control token with exactly this text, or -1. */
KG_API int32_t kg_tokenizer_control_find(const kg_tokenizer *tokenizer, const char *text, size_t size);

/* ---- tensors ----------------------------------------------------------------------------------------------- */

/* float32 numbers on the device that computed them; more operations in tensor.h. */
typedef struct kg_tensor kg_tensor;

KG_API void kg_tensor_free(kg_tensor *tensor);
KG_API int64_t kg_tensor_count(const kg_tensor *tensor); /* product of the shape */
/* Copy n floats from flat index `at` to host memory. */
KG_API int kg_tensor_read(const kg_tensor *tensor, int64_t at, int64_t n, float *out, kg_error *err);

/* ---- models, sequences and the step ------------------------------------------------------------------------ */

typedef struct kg_model kg_model;
typedef struct kg_sequence kg_sequence;

/* Returns nonzero to cancel. `done` of `total` units of `what` ("load": bytes, "prefill": tokens). It may look at
 * models and sequences; calls that change them or start a step fail, and it must not free any. */
typedef int (*kg_progress)(void *user, const char *what, int64_t done, int64_t total);

typedef struct kg_model_stats {
  const char *device;         /* "cpu", "reference", "cuda" */
  const char *note;           /* why device "auto" is not a GPU; empty where it is one or was not asked for */
  const char *variant;        /* instruction set or device name, for people */
  const char *kv;             /* type of the key/value cache: "f32", "f16" */
  size_t weight_bytes;        /* packed weights held by the device */
  size_t kv_bytes;            /* page pool as allocated now */
  int32_t n_threads;          /* 0 where it does not apply */
  int64_t n_tokens_evaluated; /* tokens that went through the forward pass since the model was opened */
  int64_t n_steps;            /* forward passes */
  int64_t n_tokens_reused;    /* not counted above: their rows were found in the prefix cache */
  int64_t n_tokens_dropped;   /* not counted above: drawn and evaluated ahead of the caller, who went another way */
  int64_t n_steps_dropped;    /* and passes of nothing but such tokens */
  int64_t n_timed;            /* passes timed by the device itself, dropped ones too (kg_model_set_timing) */
  double timed_s;             /* what those took there */
  int64_t expert_bytes;       /* of the file, in experts out of several that products read; -1: not counted */
} kg_model_stats;

KG_API void kg_model_close(kg_model *model); /* sequences of it must be closed before */
KG_API int32_t kg_model_vocab_size(const kg_model *model);
KG_API int32_t kg_model_context(const kg_model *model); /* positions a sequence may hold */
KG_API void kg_model_get_stats(const kg_model *model, kg_model_stats *out);
/* Set or clear (NULL) the callback that kg_step calls between chunks. */
KG_API void kg_model_set_progress(kg_model *model, kg_progress progress, void *user);

KG_API int kg_sequence_new(kg_model *model, uint64_t seed, kg_sequence **out, kg_error *err);
KG_API void kg_sequence_free(kg_sequence *sequence);
/* Append tokens to the timeline; nothing is computed until a step. KG_ERR_FULL names the tokens there, the new ones
 * and the limit. On failure the sequence stays at its position. */
KG_API int kg_sequence_feed(kg_sequence *sequence, const int32_t *ids, size_t n, kg_error *err);
/* Tokens on the timeline; the position of the next one. */
KG_API int32_t kg_sequence_pos(const kg_sequence *sequence);
/* The timeline's ids, borrowed until it changes. */
KG_API const int32_t *kg_sequence_tokens(const kg_sequence *sequence);
KG_API uint64_t kg_sequence_seed(const kg_sequence *sequence);
/* A second timeline that shares the cache pages of the first; with the same seed it draws the same numbers. */
KG_API int kg_sequence_fork(const kg_sequence *sequence, uint64_t seed, kg_sequence **out, kg_error *err);
/* Shorten the timeline to `pos` tokens. Drawing starts there as if nobody had drawn; the logits are computed again when
 * they are asked for. */
KG_API int kg_sequence_rewind(kg_sequence *sequence, int32_t pos, kg_error *err);
/* Evaluate the pending tokens of all these sequences of one model, in shared forward passes. Afterwards
 * kg_sequence_logits of each is ready. Results do not depend on who shares the step or how prompts were cut.
 * On failure what was evaluated stays evaluated, every timeline keeps its tokens, and the call may be repeated. */
KG_API int kg_step(kg_model *model, kg_sequence *const *sequences, size_t n, kg_error *err);
/* The logits [vocab] after the last token; steps the sequence alone when tokens are pending. The caller frees the
 * handle; the numbers live until the next step of this sequence, which writes to the same buffer.
 * KG_ERR_ARGUMENT on an empty timeline. */
KG_API int kg_sequence_logits(kg_sequence *sequence, kg_tensor **out, kg_error *err);

/* ---- sampling ---------------------------------------------------------------------------------------------- */

typedef struct kg_chain kg_chain;

/* Draw the next id for the sequence from its logits with the chain (made by kg_chain_new in sampler.h, or from Lua
 * tables by kigo.chain). The draw depends on logits, the timeline, its seed and its position only. */
KG_API int kg_chain_pick(kg_chain *chain, const kg_tensor *logits, kg_sequence *sequence, int32_t *id, kg_error *err);

/* The same from the sequence's own logits, which are computed where they are missing. Up to `ahead` - 1 tokens further
 * are drawn and evaluated in the same round trip, where the device gains by it: a caller who feeds each id and draws
 * again gets them without waiting, and nobody else notices (ahead.h says more). 1: none. */
KG_API int kg_sequence_draw(kg_sequence *sequence, kg_chain *chain, int32_t ahead, int32_t *id, kg_error *err);

/* These ids may follow the timeline, instead of those of an earlier draft; n = 0: none, and at most 64 are kept. The
 * next pass that the sequence needs takes them along, and feeding them costs no pass then; a wrong guess costs time and
 * nothing else (draft.h). KG_ERR_ARGUMENT for ids outside the vocabulary; on failure the earlier draft stays. */
KG_API int kg_sequence_expect(kg_sequence *sequence, const int32_t *ids, size_t n, kg_error *err);

/* ---- Lua --------------------------------------------------------------------------------------------------- */

struct lua_State;

/* Open the module: pushes the table that `require "kigo"` returns. */
KG_API int luaopen_kigo(struct lua_State *L);
/* The C core alone, as lua/kigo/init.lua requires it: pushes the table of `require "kigo.core"`. */
KG_API int luaopen_kigo_core(struct lua_State *L);
/* The model behind a Lua value, borrowed, or NULL when it is not an open kigo.Model. */
KG_API kg_model *kg_lua_to_model(struct lua_State *L, int index);

#ifdef __cplusplus
}
#endif

#endif
