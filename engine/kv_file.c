#include "kv_file.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "alloc.h"
#include "bytes.h"
#include "checksum.h"
#include "companion.h"
#include "error.h"
#include "outfile.h"
#include "sha256.h"
#include "system.h"

enum { VERSION = 3, BLOCK = 64, MAX_NAME = 64, MAX_DEVICE = 60, FILE_MODE = 0600 };

static const char magic[8] = "kigo-kv\n";

typedef struct kg_kv_header {
  char magic[8];
  uint32_t version, kv_type;
  uint64_t checksum; /* of the header with 0 here */
  char model[64];    /* SHA-256, hexadecimal */
  uint64_t seed, n_draws;
  int32_t n_tokens, n_cached; /* of the timeline; of it in the cache */
  uint64_t position_bytes[4]; /* cache of one position, all layers of a page group */
  uint64_t companion_bytes, state_bytes;
  int32_t prompt[2];          /* of the sequence */
  uint32_t n_ranges;
  uint32_t is_private;        /* 1: the cache may hold more than the tokens make of it */
  uint32_t n_adapters;
  uint32_t n_snapshots, snapshot_floats; /* behind the cache: each an int64 position, and the state there */
  char device[MAX_DEVICE];    /* what computed the cache: backend and variant; NUL-padded */
} kg_kv_header;

typedef struct kg_kv_adapter {
  char digest[64]; /* SHA-256 of its file, hexadecimal */
  char name[60];   /* NUL-padded: for messages */
  float scale;
} kg_kv_adapter;

_Static_assert(KG_PAGE_GROUPS == 4 && sizeof(kg_kv_range) == 12, "a format of files");
_Static_assert(sizeof(kg_kv_header) == 248 && sizeof(kg_kv_adapter) == 128,
               "no gaps: they are written as they stand in memory");

static uint64_t header_checksum(kg_kv_header header)
{
  kg_checksum sum;
  header.checksum = 0;
  kg_checksum_begin(&sum);
  kg_checksum_add(&sum, &header, sizeof header);
  return kg_checksum_end(&sum);
}

/* ---- the shape of a model's cache ---- */

static kg_kv_type kv_type(const kg_model *model)
{
  return kg_model_backend(model)->kv_type(kg_model_executable(model));
}

/* Bytes of one position in one attention operation. */
typedef struct row_bytes {
  size_t keys, values;
} row_bytes;

static row_bytes row_bytes_of(const kg_model *model, int32_t layer)
{
  const kg_attention_params *a = &kg_plan_layer(kg_model_plan(model), layer)->u.attention;
  const size_t element = kv_type(model) == KG_KV_F16 ? sizeof(uint16_t) : sizeof(float);
  /* bounded: widths of values */
  return (row_bytes){(size_t)kg_key_width(a) * element, (size_t)kg_value_width(a) * element};
}

static int32_t group_of(const kg_model *model, int32_t layer)
{
  return kg_plan_layer(kg_model_plan(model), layer)->u.attention.group;
}

/* By page group. Bounded: a page has many positions, and its size was checked. */
static void position_bytes(const kg_model *model, uint64_t out[KG_PAGE_GROUPS])
{
  for (int32_t g = 0; g < KG_PAGE_GROUPS; g++) out[g] = 0;
  for (int32_t layer = 0; layer < kg_plan_layer_count(kg_model_plan(model)); layer++) {
    const row_bytes bytes = row_bytes_of(model, layer);
    out[group_of(model, layer)] += bytes.keys + bytes.values; /* bounded: a page's bytes, which were checked */
  }
}

static size_t widest_row(const kg_model *model)
{
  size_t widest = 1;
  for (int32_t layer = 0; layer < kg_plan_layer_count(kg_model_plan(model)); layer++) {
    const row_bytes bytes = row_bytes_of(model, layer);
    if (bytes.keys > widest) widest = bytes.keys;
    if (bytes.values > widest) widest = bytes.values;
  }
  return widest;
}

/* Equal text: the same arithmetic. */
static void name_device(const kg_model *model, char out[MAX_DEVICE])
{
  kg_model_stats stats;
  kg_model_get_stats(model, &stats);
  memset(out, 0, MAX_DEVICE);
  snprintf(out, MAX_DEVICE, "%s %s", stats.device, stats.variant);
}

/* ---- rows between pages and a file ---- */

/* One direction: kv_read or kv_write of positions [pos, pos + n) of a layer, page by page; what has no page here is
 * left out. */
typedef struct rows_of {
  kg_model *model;
  const kg_page_table *pages;
  unsigned char *keys, *values; /* [BLOCK][row] */
  bool writes;
} rows_of;

static int move_rows(const rows_of *r, int32_t layer, int32_t pos, int32_t n, kg_error *err)
{
  const kg_backend *backend = kg_model_backend(r->model);
  kg_executable *exe = kg_model_executable(r->model);
  const row_bytes row = row_bytes_of(r->model, layer);
  const int32_t *pages = r->pages->ids[group_of(r->model, layer)];
  int status = KG_OK;
  for (int32_t done = 0; done < n && !status;) {
    const int32_t slot = (pos + done) % KG_PAGE, room = KG_PAGE - slot; /* bounded: positions are below 2^25 */
    /* bounded: positions are below 2^25 */
    const kg_kv_rows rows = {.page = pages[(pos + done) / KG_PAGE], .slot = slot,
                             .n = n - done < room ? n - done : room, .layer = layer};
    /* bounded: a block, of which there is room */
    unsigned char *keys = r->keys + (size_t)done * row.keys, *values = r->values + (size_t)done * row.values;
    if (rows.page != KG_NONE && r->writes) status = backend->kv_write(exe, &rows, keys, values, err);
    if (rows.page != KG_NONE && !r->writes) status = backend->kv_read(exe, &rows, keys, values, err);
    done += rows.n; /* bounded: at most n */
  }
  return status;
}

/* Room for keys and values of a block of the widest layer. */
static int make_room(rows_of *r, kg_error *err)
{
  const size_t widest = widest_row(r->model);
  r->keys = kg_alloc_array(2 * BLOCK, widest);
  if (!r->keys) return kg_fail_memory(err, 2 * BLOCK * widest, "cache rows");
  r->values = r->keys + BLOCK * widest; /* bounded: as it was allocated */
  return KG_OK;
}

/* ---- writing ---- */

typedef struct writer {
  kg_outfile *file;
  kg_checksum sum;
} writer;

static int put(writer *w, const void *bytes, size_t n, kg_error *err)
{
  kg_checksum_add(&w->sum, bytes, n);
  return n ? kg_outfile_write(w->file, bytes, n, err) : KG_OK;
}

static int append_companion(const kg_companion *companion, kg_bytes *out, kg_error *err)
{
  const kg_companion_ops *ops = companion->ops;
  if (!ops->save) return kg_fail(err, KG_ERR_UNSUPPORTED, "the sequence has a %s, which cannot be saved", ops->name);
  kg_bytes bytes = {0};
  const uint32_t name_size = (uint32_t)strlen(ops->name);
  int status = ops->save(companion, &bytes, err);
  const uint64_t size = bytes.size;
  if (!status) status = kg_bytes_append(out, &name_size, sizeof name_size, err);
  if (!status) status = kg_bytes_append(out, ops->name, name_size, err);
  if (!status) status = kg_bytes_append(out, &companion->from, sizeof companion->from, err);
  if (!status) status = kg_bytes_append(out, &size, sizeof size, err);
  if (!status) status = kg_bytes_append(out, bytes.data, bytes.size, err);
  kg_bytes_deinit(&bytes);
  return status;
}

/* What is there of the cache, to *out, which the caller frees: by group, and in order of positions. */
static int find_ranges(const kg_sequence *sequence, int32_t n_cached, kg_kv_range **out, size_t *n, kg_error *err)
{
  size_t capacity = 0;
  *out = NULL;
  *n = 0;
  for (int32_t g = 0; g < kg_plan_group_count(kg_model_plan(sequence->model)); g++) {
    kg_kv_range range = {.group = g};
    while ((range.end = kg_kv_held(&sequence->pages, g, n_cached, &range.from)) > range.from) {
      if (!kg_grow((void **)out, &capacity, *n + 1, sizeof **out))
        return kg_fail_memory(err, (*n + 1) * sizeof **out, "a saved sequence");
      (*out)[(*n)++] = range;
      range.from = range.end;
    }
  }
  return KG_OK;
}

static int put_range(writer *w, const rows_of *r, const kg_kv_range *range, kg_error *err)
{
  int status = KG_OK;
  for (int32_t pos = range->from; pos < range->end && !status; pos += BLOCK) {
    const int32_t left = range->end - pos, n = left < BLOCK ? left : BLOCK;
    for (int32_t layer = 0; layer < kg_plan_layer_count(kg_model_plan(r->model)) && !status; layer++) {
      if (group_of(r->model, layer) != range->group) continue;
      status = move_rows(r, layer, pos, n, err);
      const row_bytes row = row_bytes_of(r->model, layer);
      if (!status) status = put(w, r->keys, (size_t)n * row.keys, err); /* bounded: a block, in memory */
      if (!status) status = put(w, r->values, (size_t)n * row.values, err); /* bounded: a block, in memory */
    }
  }
  return status;
}

static int put_cache(writer *w, const kg_sequence *sequence, const kg_kv_range *ranges, size_t n_ranges, kg_error *err)
{
  rows_of r = {.model = sequence->model, .pages = &sequence->pages};
  int status = make_room(&r, err);
  for (size_t i = 0; i < n_ranges && !status; i++) status = put_range(w, &r, &ranges[i], err);
  kg_free(r.keys);
  return status;
}

/* ---- snapshots ---- */

static size_t snapshot_floats(const kg_model *model) { return (size_t)kg_plan_state_size(kg_model_plan(model)); }

static int put_snapshots(writer *w, const kg_sequence *sequence, uint32_t n, kg_error *err)
{
  const kg_model *model = sequence->model;
  const size_t n_floats = snapshot_floats(model);
  float *state = kg_alloc_array(n_floats, sizeof *state);
  int status = state ? KG_OK : kg_fail_memory(err, n_floats * sizeof *state, "a state");
  for (uint32_t i = 0; i < n && !status; i++) {
    const kg_snapshot *snapshot = &sequence->snapshots.at[i];
    const int64_t pos = snapshot->pos;
    status = kg_model_backend(model)->state_read(kg_model_executable(model), snapshot->slot, state, err);
    if (!status) status = put(w, &pos, sizeof pos, err);
    if (!status) status = put(w, state, n_floats * sizeof *state, err); /* bounded: in memory */
  }
  kg_free(state);
  return status;
}

static int describe(const kg_sequence *sequence, int32_t n_cached, size_t n_ranges, size_t companion_bytes,
                    size_t state_bytes, kg_kv_header *out, kg_error *err)
{
  char digest[KG_SHA256_HEX];
  const int status = kg_model_digest(sequence->model, digest, err);
  if (status) return status;
  *out = (kg_kv_header){.version = VERSION,
                        .kv_type = (uint32_t)kv_type(sequence->model),
                        .seed = sequence->seed,
                        .n_draws = kg_sequence_draws(sequence),
                        .n_tokens = kg_sequence_pos(sequence),
                        .n_cached = n_cached,
                        .companion_bytes = companion_bytes,
                        .state_bytes = state_bytes,
                        .prompt = {sequence->prompt[0], sequence->prompt[1]},
                        .n_ranges = (uint32_t)n_ranges, /* bounded: pages of a context, in each group */
                        .is_private = sequence->is_private,
                        .n_adapters = (uint32_t)sequence->n_adapters,
                        .n_snapshots = (uint32_t)kg_snapshots_count(&sequence->snapshots, n_cached),
                        .snapshot_floats = (uint32_t)snapshot_floats(sequence->model)};
  position_bytes(sequence->model, out->position_bytes);
  name_device(sequence->model, out->device);
  memcpy(out->magic, magic, sizeof magic);
  memcpy(out->model, digest, sizeof out->model);
  out->checksum = header_checksum(*out);
  return KG_OK;
}

static int put_adapter(writer *w, const kg_adapted *adapted, kg_error *err)
{
  kg_kv_adapter out = {.scale = adapted->scale};
  memcpy(out.digest, kg_adapter_digest(adapted->adapter), sizeof out.digest);
  snprintf(out.name, sizeof out.name, "%s", kg_adapter_name(adapted->adapter));
  return put(w, &out, sizeof out, err);
}

static int put_all(writer *w, const kg_sequence *sequence, const kg_kv_header *header, const kg_kv_range *ranges,
                   const kg_bytes *companions, kg_string state, kg_error *err)
{
  kg_checksum_begin(&w->sum);
  int status = put(w, header, sizeof *header, err);
  if (!status) status = put(w, ranges, header->n_ranges * sizeof *ranges, err); /* bounded: in memory */
  for (int32_t i = 0; i < sequence->n_adapters && !status; i++) status = put_adapter(w, &sequence->adapters[i], err);
  /* bounded: in memory */
  if (!status) status = put(w, sequence->tokens.ids, sequence->tokens.n * sizeof *sequence->tokens.ids, err);
  if (!status) status = put(w, companions->data, companions->size, err);
  if (!status) status = put(w, state.data, state.size, err);
  if (!status) status = put_cache(w, sequence, ranges, header->n_ranges, err);
  if (!status && header->n_snapshots) status = put_snapshots(w, sequence, header->n_snapshots, err);
  const uint64_t sum = kg_checksum_end(&w->sum);
  return status ? status : put(w, &sum, sizeof sum, err);
}

int kg_sequence_save(kg_sequence *sequence, const char *path, kg_string state, kg_error *err)
{
  kg_bytes companions = {0};
  kg_kv_range *ranges = NULL;
  size_t n_ranges = 0;
  const int32_t n_cached = kg_sequence_resume_point(sequence, sequence->n_evaluated);
  kg_kv_header header;
  writer w = {0};
  int status = kg_model_check_idle(sequence->model, err);
  if (!status && sequence->hooks)
    status = kg_fail(err, KG_ERR_UNSUPPORTED, "the sequence has hooks, which cannot be saved: close them first");
  for (const kg_companion *each = sequence->companions; each && !status; each = each->next)
    status = append_companion(each, &companions, err);
  if (!status) status = find_ranges(sequence, n_cached, &ranges, &n_ranges, err);
  if (!status) status = describe(sequence, n_cached, n_ranges, companions.size, state.size, &header, err);
  if (!status) status = kg_outfile_open(path, &w.file, err);
  if (!status) status = put_all(&w, sequence, &header, ranges, &companions, state, err);
  if (!status) status = kg_outfile_commit(w.file, FILE_MODE, err);
  kg_outfile_close(w.file);
  kg_free(ranges);
  kg_bytes_deinit(&companions);
  return status;
}

/* ---- reading ---- */

typedef struct reader {
  const char *path;
  int fd;
  size_t n_bytes; /* of the file */
  kg_checksum sum;
  kg_kv_header header;
  kg_kv_range *ranges; /* [header.n_ranges] */
} reader;

static int fail_cut(const reader *r, kg_error *err)
{
  return kg_fail(err, KG_ERR_FORMAT, "%s: the file is cut short, or longer than it says", r->path);
}

static int get(reader *r, void *out, size_t n, kg_error *err)
{
  size_t got;
  const int status = kg_sys_read(r->path, r->fd, out, n, &got, err);
  if (status) return status;
  if (got < n) return fail_cut(r, err);
  kg_checksum_add(&r->sum, out, n);
  return KG_OK;
}

static int open_file(reader *r, kg_error *err)
{
  struct stat info;
  int status = kg_sys_open(r->path, O_RDONLY | O_NONBLOCK, &r->fd, err); /* do not wait for the writer of a pipe */
  if (!status) status = kg_sys_fstat(r->path, r->fd, &info, err);
  if (status) return status;
  if (!S_ISREG(info.st_mode)) return kg_fail(err, KG_ERR_IO, "%s: is not a regular file", r->path);
  r->n_bytes = (size_t)info.st_size;
  return KG_OK;
}

/* Do the header's sizes add up to the file's? n_snapshots and snapshot_floats were checked against their largest. */
static bool is_whole(const reader *r)
{
  const kg_kv_header *h = &r->header;
  const size_t snapshot_bytes = sizeof(int64_t) + h->snapshot_floats * sizeof(float); /* bounded: 2^33 */
  size_t sum = sizeof *h + (size_t)h->n_tokens * sizeof(int32_t) + sizeof(uint64_t); /* bounded: 2^31 tokens, ranges */
  /* bounded: 2^3 adapters, 2^32 ranges */
  sum += h->n_adapters * sizeof(kg_kv_adapter) + (size_t)h->n_ranges * sizeof *r->ranges;
  for (uint32_t i = 0; i < h->n_ranges; i++) {
    const kg_kv_range *range = &r->ranges[i];
    size_t cache;
    if (!kg_mul_size((size_t)(range->end - range->from), h->position_bytes[range->group], &cache) ||
        !kg_add_size(sum, cache, &sum))
      return false;
  }
  return kg_add_size(sum, h->n_snapshots * snapshot_bytes, &sum) && /* bounded: 2^8 * 2^33 */
         kg_add_size(sum, h->companion_bytes, &sum) && kg_add_size(sum, h->state_bytes, &sum) && sum == r->n_bytes;
}

static bool is_place(const kg_kv_header *h, int32_t pos) { return pos >= 0 && pos <= h->n_tokens; }

/* Do the ranges come one after the other? */
static bool are_ranges(const reader *r)
{
  for (uint32_t i = 0; i < r->header.n_ranges; i++) {
    const kg_kv_range *range = &r->ranges[i];
    if (range->group < 0 || range->group >= KG_PAGE_GROUPS || range->from < 0 || range->from >= range->end ||
        range->end > r->header.n_cached)
      return false;
    if (i && (range->group < range[-1].group || (range->group == range[-1].group && range->from <= range[-1].end)))
      return false;
  }
  return true;
}

static int fail_impossible(const reader *r, kg_error *err)
{
  return kg_fail(err, KG_ERR_FORMAT, "%s: the header says impossible things", r->path);
}

static int read_ranges(reader *r, kg_error *err)
{
  const size_t n = r->header.n_ranges;
  if (n > r->n_bytes / sizeof *r->ranges) return fail_cut(r, err);
  r->ranges = kg_alloc_array(n, sizeof *r->ranges);
  if (!r->ranges) return kg_fail_memory(err, n * sizeof *r->ranges, "a saved sequence");
  const int status = get(r, r->ranges, n * sizeof *r->ranges, err); /* bounded: in memory */
  return status || are_ranges(r) ? status : fail_impossible(r, err);
}

/* What the file itself must keep to, whatever the model. */
static int read_header(reader *r, kg_error *err)
{
  kg_kv_header *h = &r->header;
  kg_checksum_begin(&r->sum);
  if (r->n_bytes < sizeof *h) return kg_fail(err, KG_ERR_FORMAT, "%s: is no saved sequence: too short", r->path);
  int status = get(r, h, sizeof *h, err);
  if (status) return status;
  if (memcmp(h->magic, magic, sizeof magic))
    return kg_fail(err, KG_ERR_FORMAT, "%s: is no saved sequence: it begins with other bytes", r->path);
  if (h->version != VERSION)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: version %u of the format; this kigo reads version %d", r->path,
                   (unsigned)h->version, VERSION);
  if (h->checksum != header_checksum(*h)) return kg_fail(err, KG_ERR_FORMAT, "%s: the header is damaged", r->path);
  if (h->kv_type > KG_KV_F16 || h->is_private > 1 || h->n_adapters > KG_ADAPTERS_MAX ||
      h->n_snapshots > KG_SNAPSHOTS_MAX || h->snapshot_floats > KG_PLAN_MAX_STATE || h->n_tokens < 0 ||
      !is_place(h, h->n_cached) || !is_place(h, h->prompt[0]) || !is_place(h, h->prompt[1]))
    return fail_impossible(r, err);
  status = read_ranges(r, err);
  return status || is_whole(r) ? status : fail_cut(r, err);
}

static const char *kv_name(uint32_t type) { return type == KG_KV_F16 ? "f16" : "f32"; }

/* Is everything there where rows see everything, and nothing where nobody looks? */
static bool fits_groups(const reader *r, const kg_plan *plan)
{
  const kg_kv_header *h = &r->header;
  int32_t n_whole = 0, n_wanted = 0;
  for (uint32_t i = 0; i < h->n_ranges; i++) {
    const kg_kv_range *range = &r->ranges[i];
    if (range->group >= kg_plan_group_count(plan)) return false;
    /* bounded: the ranges */
    n_whole += !kg_plan_group_window(plan, range->group) && !range->from && range->end == h->n_cached;
  }
  /* bounded: the groups */
  for (int32_t g = 0; g < kg_plan_group_count(plan) && h->n_cached; g++) n_wanted += !kg_plan_group_window(plan, g);
  return n_whole == n_wanted;
}

/* Does it fit this model? */
static int check_model(const reader *r, kg_model *model, kg_error *err)
{
  const kg_kv_header *h = &r->header;
  const kg_plan *plan = kg_model_plan(model);
  char digest[KG_SHA256_HEX];
  uint64_t bytes[KG_PAGE_GROUPS];
  const int status = kg_model_digest(model, digest, err);
  if (status) return status;
  if (memcmp(h->model, digest, sizeof h->model))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: saved with another model, of SHA-256 %.64s; this one's is %s", r->path,
                   h->model, digest);
  if (h->kv_type != (uint32_t)kv_type(model))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: saved with kv = \"%s\"; this model is loaded with \"%s\"", r->path,
                   kv_name(h->kv_type), kv_name((uint32_t)kv_type(model)));
  position_bytes(model, bytes);
  if (memcmp(h->position_bytes, bytes, sizeof bytes) || h->snapshot_floats != snapshot_floats(model))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: saved with another layout of the model's cache", r->path);
  if (h->n_tokens > kg_model_context(model))
    return kg_fail(err, KG_ERR_FULL,
                   "%s: %d tokens do not fit into the context of %d; load the model with a larger ctx", r->path,
                   h->n_tokens, kg_model_context(model));
  return fits_groups(r, plan) ? KG_OK : fail_impossible(r, err);
}

/* One of this digest that the sequence has not yet; NULL: none. */
static kg_adapter *find_adapter(const kg_kv_needs *needs, const kg_sequence *sequence, const char digest[64])
{
  for (size_t i = 0; i < needs->n_adapters; i++)
    if (!memcmp(kg_adapter_digest(needs->adapters[i]), digest, 64) &&
        kg_sequence_scale_of(sequence, needs->adapters[i]) == 0)
      return needs->adapters[i];
  return NULL;
}

static int get_adapter(reader *r, const kg_kv_needs *needs, kg_sequence *sequence, kg_error *err)
{
  kg_kv_adapter in;
  char name[KG_QUOTE_MAX], digest[KG_QUOTE_MAX];
  const int status = get(r, &in, sizeof in, err);
  if (status) return status;
  if (!isfinite(in.scale) || in.scale == 0)
    return kg_fail(err, KG_ERR_FORMAT, "%s: an adapter at scale %g", r->path, (double)in.scale);
  kg_adapter *adapter = find_adapter(needs, sequence, in.digest);
  if (adapter) return kg_sequence_adapt(sequence, adapter, in.scale, err);
  in.name[sizeof in.name - 1] = 0;
  return kg_fail(err, KG_ERR_UNSUPPORTED,
                 "%s: was saved under the adapter %s, SHA-256 %s: open that file, and name it in the option adapters",
                 r->path, kg_quote(name, in.name, strlen(in.name)),
                 kg_quote(digest, in.digest, sizeof in.digest));
}

static int get_tokens(reader *r, kg_sequence *sequence, kg_error *err)
{
  const size_t n = (size_t)r->header.n_tokens;
  kg_tokens *tokens = &sequence->tokens;
  if (!kg_grow((void **)&tokens->ids, &tokens->capacity, n, sizeof *tokens->ids))
    return kg_fail_memory(err, n * sizeof *tokens->ids, "the timeline");
  const int status = get(r, tokens->ids, n * sizeof *tokens->ids, err); /* bounded: in memory */
  if (!status) tokens->n = n;
  return status;
}

static int get_bytes(reader *r, size_t n, kg_bytes *out, kg_error *err)
{
  size_t size;
  if (!n) return KG_OK;
  if (!kg_add_size(out->size, n, &size) || !kg_grow((void **)&out->data, &out->capacity, size, 1))
    return kg_fail_memory(err, n, "a saved sequence");
  const int status = get(r, out->data + out->size, n, err);
  if (!status) out->size = size;
  return status;
}

static int get_range(reader *r, const rows_of *to, const kg_kv_range *range, kg_error *err)
{
  int status = KG_OK;
  for (int32_t pos = range->from; pos < range->end && !status; pos += BLOCK) {
    const int32_t left = range->end - pos, n = left < BLOCK ? left : BLOCK;
    for (int32_t layer = 0; layer < kg_plan_layer_count(kg_model_plan(to->model)) && !status; layer++) {
      if (group_of(to->model, layer) != range->group) continue;
      const row_bytes row = row_bytes_of(to->model, layer);
      status = get(r, to->keys, (size_t)n * row.keys, err); /* bounded: a block, of which there is room */
      /* bounded: a block, of which there is room */
      if (!status) status = get(r, to->values, (size_t)n * row.values, err);
      if (!status) status = move_rows(to, layer, pos, n, err);
    }
  }
  return status;
}

static int get_cache(reader *r, kg_sequence *sequence, kg_error *err)
{
  kg_model *model = sequence->model;
  const kg_kv_header *h = &r->header;
  rows_of to = {.model = model, .pages = &sequence->pages, .writes = true};
  int status = kg_kv_restore(kg_model_kv(model), &sequence->pages, h->n_cached, r->ranges, h->n_ranges, err);
  if (!status) status = make_room(&to, err);
  for (uint32_t i = 0; i < h->n_ranges && !status; i++) status = get_range(r, &to, &r->ranges[i], err);
  kg_free(to.keys);
  if (status) return status;
  sequence->n_evaluated = sequence->n_made = h->n_cached;
  memcpy(sequence->prompt, h->prompt, sizeof sequence->prompt);
  return KG_OK;
}

static int get_snapshots(reader *r, kg_sequence *sequence, kg_error *err)
{
  const kg_model *model = sequence->model;
  kg_state_pool *pool = kg_model_states(model);
  const size_t n_floats = snapshot_floats(model);
  if (!r->header.n_snapshots) return KG_OK;
  if (!pool) return kg_fail(err, KG_ERR_FORMAT, "%s: has states, which this model has not", r->path);
  float *state = kg_alloc_array(n_floats, sizeof *state);
  int status = state ? KG_OK : kg_fail_memory(err, n_floats * sizeof *state, "a state");
  int64_t before = 0;
  for (uint32_t i = 0; i < r->header.n_snapshots && !status; i++) {
    int64_t pos;
    int32_t slot = KG_NONE;
    status = get(r, &pos, sizeof pos, err);
    if (!status) status = get(r, state, n_floats * sizeof *state, err); /* bounded: in memory */
    if (!status && (pos <= before || pos > r->header.n_cached))
      status = kg_fail(err, KG_ERR_FORMAT, "%s: has a state of position %lld behind %lld, of %d", r->path,
                       (long long)pos, (long long)before, r->header.n_cached);
    if (!status) status = kg_states_take(pool, &slot, err);
    if (status) break;
    before = pos;
    kg_snapshots_put_take(pool, &sequence->snapshots, (int32_t)pos, slot);
    status = kg_model_backend(model)->state_write(kg_model_executable(model), slot, state, err);
  }
  kg_free(state);
  return status;
}

static int check_end(reader *r, kg_error *err)
{
  const uint64_t sum = kg_checksum_end(&r->sum);
  uint64_t said;
  const int status = get(r, &said, sizeof said, err);
  if (status || said == sum) return status;
  return kg_fail(err, KG_ERR_FORMAT, "%s: the file is damaged: its checksum is another one", r->path);
}

static int check_tokens(const reader *r, const kg_sequence *sequence, kg_error *err)
{
  const int32_t vocab = kg_plan_token_count(kg_model_plan(sequence->model));
  for (size_t i = 0; i < sequence->tokens.n; i++)
    if (sequence->tokens.ids[i] < 0 || sequence->tokens.ids[i] >= vocab)
      return kg_fail(err, KG_ERR_FORMAT, "%s: id %d at %zu is outside the vocabulary", r->path,
                     sequence->tokens.ids[i], i);
  return KG_OK;
}

/* ---- companions in a file ---- */

static int load_companion(const reader *r, kg_string *from, kg_sequence *sequence, kg_tokenizer *tokenizer,
                          kg_error *err)
{
  uint32_t name_size;
  uint64_t size;
  kg_companion_source source = {
      .tokenizer = tokenizer, .ids = sequence->tokens.ids, .n_ids = kg_sequence_pos(sequence)};
  const char *name = NULL;
  if (kg_take_into(from, &name_size, sizeof name_size) && name_size <= MAX_NAME) name = kg_take(from, name_size);
  if (name && kg_take_into(from, &source.from, sizeof source.from) && kg_take_into(from, &size, sizeof size))
    source.bytes.data = kg_take(from, size);
  if (!source.bytes.data || source.from < 0 || source.from > source.n_ids)
    return kg_fail(err, KG_ERR_FORMAT, "%s: companions are malformed", r->path);
  source.bytes.size = size;
  char quoted[KG_QUOTE_MAX];
  const kg_companion_ops *ops = kg_companion_find_kind((kg_string){name, name_size});
  if (!ops)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: has a companion of kind %s, which this kigo does not know", r->path,
                   kg_quote(quoted, name, name_size));
  kg_companion *companion;
  const int status = ops->load(&source, &companion, err);
  if (!status) kg_sequence_adopt(sequence, companion, source.from);
  return status;
}

/* ---- a whole file ---- */

/* What was computed elsewhere must not be computed again here: nobody may take these pages away. */
static void judge_rows(const reader *r, kg_sequence *sequence)
{
  char device[MAX_DEVICE];
  name_device(sequence->model, device);
  const bool is_other_device = memcmp(device, r->header.device, sizeof device) != 0;
  sequence->is_private = r->header.n_cached && (r->header.is_private || is_other_device);
  if (sequence->is_private) sequence->snapshots_free = r->header.n_cached;
}

static int read_all(reader *r, kg_sequence *sequence, const kg_kv_needs *needs, kg_bytes *state, kg_error *err)
{
  kg_bytes companions = {0};
  int status = KG_OK;
  for (uint32_t i = 0; i < r->header.n_adapters && !status; i++) status = get_adapter(r, needs, sequence, err);
  if (!status) status = get_tokens(r, sequence, err);
  if (!status) status = get_bytes(r, r->header.companion_bytes, &companions, err);
  if (!status) status = get_bytes(r, r->header.state_bytes, state, err);
  if (!status) status = get_cache(r, sequence, err);
  if (!status) status = get_snapshots(r, sequence, err);
  /* There, or to where there is a state, and the whole of each page: they may have been of another size there. */
  if (!status) kg_sequence_go_back(sequence, r->header.n_cached);
  if (!status) status = check_end(r, err);
  if (!status) status = check_tokens(r, sequence, err);
  kg_string left = {companions.data ? companions.data : "", companions.size};
  while (!status && left.size) status = load_companion(r, &left, sequence, needs->tokenizer, err);
  kg_bytes_deinit(&companions);
  if (!status) kg_sequence_set_draws(sequence, r->header.n_draws);
  judge_rows(r, sequence);
  return status;
}

int kg_sequence_restore(kg_model *model, const char *path, const kg_kv_needs *needs, kg_bytes *state,
                        kg_sequence **out, kg_error *err)
{
  reader r = {.path = path, .fd = -1};
  kg_sequence *sequence = NULL;
  const size_t state_before = state->size;
  int status = kg_model_check_idle(model, err);
  if (!status) status = open_file(&r, err);
  if (!status) status = read_header(&r, err);
  if (!status) status = check_model(&r, model, err);
  if (!status) status = kg_sequence_new(model, r.header.seed, &sequence, err);
  if (!status) status = read_all(&r, sequence, needs, state, err);
  if (r.fd >= 0) kg_sys_close(r.fd);
  kg_free(r.ranges);
  if (status) {
    state->size = state_before;
    kg_sequence_free(sequence);
  } else
    *out = sequence;
  return status;
}
