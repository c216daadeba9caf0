/* backend.h - what executes a plan. A backend compiles it once (packing the weights into its own layout) and then runs
 * batches of rows against a pool of key/value pages that it holds. It knows no GGUF metadata and no tokenizer.
 *
 * The rule that every backend keeps: the numbers of a row depend on that row's token, its position and the cached
 * rows of its own sequence, bit for bit; never on the other rows of the batch, on how a prompt was cut into batches,
 * or on the number of threads. So: fixed summation orders, attention split at fixed absolute positions. */
#ifndef KG_BACKEND_H
#define KG_BACKEND_H

#include "adapter.h"
#include "tensor.h"

#ifndef KG_PAGE
#define KG_PAGE 64 /* positions in a cache page; stress builds use 16, or 4 on the CPU. A divisor of 256 */
#endif

typedef enum kg_kv_type { KG_KV_F32, KG_KV_F16 } kg_kv_type;

typedef struct kg_backend_options {
  int32_t n_threads;      /* 0: one per available core */
  int32_t device;         /* which GPU */
  int32_t chunk;          /* most rows in one run */
  kg_kv_type kv_type;
  const char *variant;    /* force an instruction set ("generic", "avx2", ...); NULL: the best there is */
  kg_progress progress;   /* may be NULL; "load" in bytes packed */
  void *progress_user;
} kg_backend_options;

/* Leave the state of a sequence (plan.h) behind the first n_rows rows of a span in this slot of the backend. */
typedef struct kg_state_out {
  int32_t n_rows, slot;
} kg_state_out;

/* Consecutive rows of one sequence: rows [row, row + n_rows) of the batch hold its positions [pos, pos + n_rows). */
typedef struct kg_span {
  int32_t row, n_rows;
  int32_t pos;
  int32_t *const *pages;  /* page of position p in a page group of the plan is pages[group][p / KG_PAGE]; covers
                             pos + n_rows. Where none of the rows sees any position of it there may be none: KG_NONE */
  int32_t n_adapters;
  const kg_adapted *adapters; /* of its rows, applied in this order; 0: none */
  /* Of plans with states. Every slot that is written belongs to one span alone. */
  int32_t state;          /* slot of the state before the rows; KG_NONE: pos is 0 */
  int32_t n_states;
  const kg_state_out *states; /* by rows, ascending; the last one of all rows. That one's slot, and no other, may be
                                 `state` */
} kg_span;

/* Where the logits of one row go: vocab floats at `at` of a buffer made by this backend. */
typedef struct kg_wanted {
  int32_t row;            /* ascending over the array */
  kg_buffer *buffer;
  int64_t at;
} kg_wanted;

/* A value to copy out for all rows of the run: row r to floats [at + r * width ...) of the buffer. */
typedef struct kg_trace {
  int32_t value;
  kg_buffer *buffer;
  int64_t at;
} kg_trace;

/* Rows of one sequence that somebody looks at, and may write to, in the middle of a run. When `value` is there for
 * them and before anything reads it, `call` gets a copy of those that are computed (in the plan's tail: the wanted
 * ones): n_rows * width floats at the start of a buffer of this backend, which it may keep. What stands there when
 * it returns goes on. A call has rows of consecutive positions, from `pos` on; there may be several, in ascending
 * order. Calls come on the thread that started the run; they must not start another one, but may use tensors and
 * kg_backend.unembed. */
typedef struct kg_tap {
  int32_t value;
  int32_t row, n_rows;    /* of the batch, within one span */
  void (*call)(void *user, int32_t pos, int32_t n_rows, kg_buffer *rows);
  void *user;
} kg_tap;

typedef struct kg_batch {
  int32_t n_rows;         /* at most options.chunk */
  const int32_t *tokens;  /* [n_rows], checked against the vocabulary by the caller */
  const int32_t *positions; /* [n_rows] */
  int32_t n_spans;
  const kg_span *spans;   /* in row order, covering all rows */
  int32_t n_wanted;
  const kg_wanted *wanted;
  int32_t n_traces;       /* tracing computes what it shows for every row */
  const kg_trace *traces;   /* of what taps made of a value */
  int32_t n_taps;         /* fused stages that hide their values are split: the numbers stay the same, bit for bit */
  const kg_tap *taps;     /* those of one value are called in this order */
} kg_batch;

/* Of n rows that are computed together, of which row i is row source[i] of the batch (NULL: row i): the next ones that
 * belong to the tap and stand together in the batch, from row *first on. Returns how many; 0: no more. */
static inline int32_t kg_tap_rows(const kg_tap *tap, const int32_t *source, int32_t n, int32_t *first)
{
  int32_t at = *first, count = 0;
  while (at < n && (source ? source[at] : at) < tap->row) at++;
  *first = at;
  while (at + count < n) {
    const int32_t row = source ? source[at + count] : at + count;
    if (row >= tap->row + tap->n_rows || (count && source && row != source[at] + count)) break;
    count++;
  }
  return count;
}

/* Does this value stand on the way from value `from` (itself not) to the logits, where every operation reads one value?
 * `from` is kg_plan_residual. */
static inline bool kg_leads_from(const kg_plan *plan, int32_t from, int32_t value)
{
  int32_t v = kg_plan_logits(plan);
  while (v != KG_NONE && v != from && v != value) v = kg_plan_op(plan, kg_plan_value(plan, v)->producer)->in[0];
  return v != KG_NONE && v != from;
}

/* Draw n_draws ids for each row of a batch, each from the logits of a pass over the id before, without a round trip. */
typedef struct kg_run_ahead {
  int32_t n_draws;
  bool evaluates_first;   /* the batch's own rows are yet to be evaluated; else the first draw is from logits that are
                             there */
  const kg_draw *draws;   /* [rows] the first one of each; then pos and history go on, and n_draws is 0 */
  kg_drawn *drawn;        /* [rows][n_draws] results (see wait_ahead); behind a failed draw all fail */
} kg_run_ahead;

enum { KG_AHEAD_ROWS = 64 }; /* most rows of it */

/* Positions of a page, and the attention operation that they are wanted of, whose group the page belongs to. */
typedef struct kg_kv_rows {
  int32_t page, slot, n;
  int32_t layer;
} kg_kv_rows;

typedef struct kg_executable kg_executable; /* each backend defines its own */

/* ---- what a device's driver says ---- */

enum { KG_UNKNOWN = -1 };

/* A device as its driver describes it. Bytes; KG_UNKNOWN where the driver does not tell. */
typedef struct kg_device_info {
  int32_t index;
  int64_t total, in_use;     /* of all programs together, as the runtime counts them */
  int64_t managed_in_use;    /* the same, as the management library (NVML) counts them */
  int64_t process_in_use;    /* of this process, by NVML; unknown in most containers */
  char note[128];            /* why NVML does not tell; else empty */
  double most_bytes_per_s;   /* faster than this no data can reach the registers, wherever it comes from */
} kg_device_info;

/* Rates that a device reaches with nothing else to do. */
typedef struct kg_device_rates {
  double copy_bytes_per_s;   /* memory to memory, bytes read and bytes written */
  double tensor_flops;       /* products of registers: see kernels/rates.cu */
  char tensor_note[64];      /* which instruction that was */
} kg_device_rates;

/* What a weight looks like on the device, for comparing it with the file. */
enum { KG_FORM_FILE = 1,     /* a matrix, row by row: the bytes of the file */
       KG_FORM_FLOATS = 2 }; /* a vector: its values as float32 */

/* Stages of the same name of one pass. */
typedef struct kg_stage_time {
  char name[32];
  int32_t count;    /* stages */
  double bytes;     /* that they must move, together */
  double expert_bytes; /* of the file, in the experts out of several that they read */
  double seconds;   /* all of them, one after the other */
} kg_stage_time;

enum { KG_PROFILE_MAX = 64 };
typedef struct kg_profile {
  int32_t n;
  kg_stage_time stages[KG_PROFILE_MAX]; /* in the order in which they first run */
} kg_profile;

/* Bytes in the file of one expert's part of a weight. */
static inline int64_t kg_expert_bytes(const kg_weight *w)
{
  return (int64_t)(w->n_bytes / (size_t)w->planes);
}

typedef struct kg_backend {
  const char *name;
  /* Compile the plan, which must outlive the executable. Copies the weights, from a file that was just found to be
   * unchanged; kg_gguf_release_pages after each part. */
  int (*compile)(const kg_plan *plan, const kg_backend_options *options, kg_executable **out, kg_error *err);
  void (*release)(kg_executable *exe); /* NULL allowed */
  int (*run)(kg_executable *exe, const kg_batch *batch, kg_error *err);
  /* NULL where the host is near enough. One row a span, each wanted; the spans' pages reach n_draws - 1 positions on,
   * and their states stay in one slot, before and behind. The wanted buffers end with the logits of the last pass. On
   * failure they hold anything, and so do pages from the rows' positions on. */
  int (*run_ahead)(kg_executable *exe, const kg_batch *batch, const kg_run_ahead *ahead, kg_error *err);
  /* NULL where that is, or where run_ahead waits for its draws. Else it may come back while they are still being made:
   * those of steps [0, step] are in ahead->drawn when this comes back with KG_OK for the latest run_ahead, the logits
   * with those of the last step. `drawn` must stay until the last step has been waited for, or waiting has failed.
   * Failure: nothing more is written there, the draws behind those that were there are lost, and it is as if run_ahead
   * had failed with the passes that they come from. The last step has been waited for before another run_ahead, or
   * lost; all other calls wait by themselves for what they need. */
  int (*wait_ahead)(kg_executable *exe, int32_t step, kg_error *err);
  /* The logits that follow from n_rows rows of kg_plan_residual, which is there, as a run computes them: x
   * [n_rows][width] and logits [n_rows][vocab] are buffers of this backend. Allowed within the call of a tap. */
  int (*unembed)(kg_executable *exe, const kg_buffer *x, int64_t at, int32_t n_rows, kg_buffer *logits,
                 int64_t logits_at, kg_error *err);
  /* Make pages [0, n_pages) of a group of the plan exist; existing ones keep their content. Failure changes nothing. */
  int (*kv_reserve)(kg_executable *exe, int32_t group, int32_t n_pages, kg_error *err);
  /* Copy a page of a group (all its layers), as much of it as n_positions need. */
  int (*kv_copy)(kg_executable *exe, int32_t group, int32_t to, int32_t from, int32_t n_positions, kg_error *err);
  size_t (*page_bytes)(const kg_executable *exe, int32_t group); /* of one page */
  /* The slots that hold the states of sequences: make slots [0, n) exist, copy one (KG_NONE: all zeros), bring one over
   * or take it in: kg_plan_state_size floats, the same on every backend. For plans that have states. */
  int (*state_reserve)(kg_executable *exe, int32_t n_slots, kg_error *err);
  int (*state_copy)(kg_executable *exe, int32_t to, int32_t from, kg_error *err);
  int (*state_read)(kg_executable *exe, int32_t slot, float *out, kg_error *err);
  int (*state_write)(kg_executable *exe, int32_t slot, const float *in, kg_error *err);
  kg_kv_type (*kv_type)(const kg_executable *exe); /* of the elements below, whatever was asked for */
  /* Copy slots [slot, slot + n) of a page out of or into the cache of one attention operation (by its number in
   * kg_plan_layer): keys [n][kg_key_width] and values [n][kg_value_width], bit for bit but for what is written and is
   * no finite number. The same on every backend. */
  int (*kv_read)(kg_executable *exe, const kg_kv_rows *rows, void *keys, void *values, kg_error *err);
  int (*kv_write)(kg_executable *exe, const kg_kv_rows *rows, const void *keys, const void *values, kg_error *err);
  /* Packed bytes of a weight as the device holds them. */
  size_t (*weight_bytes)(const kg_executable *exe, int32_t weight);
  int (*weight_read)(const kg_executable *exe, int32_t weight, size_t at, size_t n, void *out, kg_error *err);
  int (*weight_write)(kg_executable *exe, int32_t weight, size_t at, size_t n, const void *in, kg_error *err);
  int (*buffer_new)(kg_executable *exe, int64_t n_floats, kg_buffer **out, kg_error *err); /* may outlive exe */
  /* Fill device, variant, weight_bytes, kv_bytes, n_threads; n_timed and timed_s where runs are timed. */
  void (*get_stats)(const kg_executable *exe, kg_model_stats *out);

  /* The rest is NULL for backends that compute on the host. */
  int (*device_info)(const kg_executable *exe, kg_device_info *out, kg_error *err);
  /* Takes a while, and up to 2 GB of the device's memory meanwhile. */
  int (*device_rates)(const kg_executable *exe, kg_device_rates *out, kg_error *err);
  /* Have the device itself time every run from now on, or no more. */
  int (*set_timing)(kg_executable *exe, bool on, kg_error *err);
  /* Forms (KG_FORM_*) that the device holds of a weight. */
  unsigned (*weight_forms)(const kg_executable *exe, int32_t weight);
  /* Bring rows [row, row + n_rows), counted over all planes, back and turn them into one of these forms, on the host
   * and without the code that packed them. For KG_FORM_FLOATS a row is one of the weight's rows too. */
  int (*weight_unpack)(kg_executable *exe, int32_t weight, unsigned form, int64_t row, int64_t n_rows, void *out,
                       kg_error *err);
  /* Run each stage of the batch many times by itself. The batch is one pass; the cache rows and logits that it would
   * write are undefined afterwards. */
  int (*profile)(kg_executable *exe, const kg_batch *batch, kg_profile *out, kg_error *err);
} kg_backend;

extern const kg_backend kg_backend_reference; /* cpu/reference.c */
extern const kg_backend kg_backend_cpu;       /* cpu/cpu.c */

/* The first page number that rows from `pos` on need of a group with this window. */
static inline int32_t kg_first_page(int32_t window, int32_t pos)
{
  return window && pos >= window ? (pos - window + 1) / KG_PAGE : 0;
}

/* The caller's promises about a batch, for executables of `chunk` rows with n_pages[group] pages: a bug elsewhere
 * becomes KG_ERR_ARGUMENT instead of a wild write. The spans' rows may be followed by n_ahead more. */
int kg_batch_check(const kg_plan *plan, const kg_batch *batch, int32_t chunk, const int32_t *n_pages, int32_t n_ahead,
                   kg_error *err);
int kg_batch_check_states(const kg_plan *plan, const kg_batch *batch, int32_t n_slots, kg_error *err);
int kg_kv_rows_check(const kg_plan *plan, const kg_kv_rows *rows, const int32_t *n_pages, kg_error *err);

/* What a device name means here. */
typedef struct kg_device {
  const kg_backend *backend;
  int32_t index;          /* which GPU; 0 elsewhere */
  char note[256];         /* why "auto" means the CPU where a GPU was looked for; else empty */
} kg_device;

/* "reference", "cpu", "cuda", "cuda:N", or "auto": the first GPU where there is one that works, else the CPU. Other
 * names: KG_ERR_UNSUPPORTED. A GPU that is asked for by name and cannot be used: KG_ERR_DEVICE, or
 * KG_ERR_UNSUPPORTED where kigo was built without CUDA. */
int kg_device_find(const char *name, kg_device *out, kg_error *err);

#endif
