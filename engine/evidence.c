#include "evidence.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

enum { PIECE_BYTES = 4 << 20, PIECE_ROWS = 16 };

static int fail_untold(const kg_model *model, kg_error *err)
{
  return kg_fail(err, KG_ERR_UNSUPPORTED, "the backend %s computes on the host: there is no device to ask",
                 kg_model_backend(model)->name);
}

int kg_model_device_info(const kg_model *model, kg_device_info *out, kg_error *err)
{
  const kg_backend *backend = kg_model_backend(model);
  if (!backend->device_info) return fail_untold(model, err);
  return backend->device_info(kg_model_executable(model), out, err);
}

int kg_model_device_rates(const kg_model *model, kg_device_rates *out, kg_error *err)
{
  const kg_backend *backend = kg_model_backend(model);
  if (!backend->device_rates) return fail_untold(model, err);
  return backend->device_rates(kg_model_executable(model), out, err);
}

int kg_model_set_timing(kg_model *model, bool on, kg_error *err)
{
  const kg_backend *backend = kg_model_backend(model);
  const int status = kg_model_check_idle(model, err);
  if (status) return status;
  if (!backend->set_timing) return fail_untold(model, err);
  return backend->set_timing(kg_model_executable(model), on, err);
}

/* ---- weights ---- */

typedef struct comparison {
  kg_model *model;
  const kg_backend *backend;
  kg_weights_check *out;
  unsigned char *piece; /* what came back */
  float *values;        /* of the file, where the device holds values */
  kg_error *err;
} comparison;

/* FNV-1a over words of eight bytes, the rest byte by byte. */
static uint64_t add_to_sum(uint64_t sum, const void *bytes, size_t n)
{
  const unsigned char *at = bytes;
  const uint64_t prime = 0x100000001b3;
  for (; n >= sizeof sum; n -= sizeof sum, at += sizeof sum) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    sum = (sum ^ word) * prime;
  }
  for (; n; n--) sum = (sum ^ *at++) * prime;
  return sum;
}

static void compare(comparison *c, int32_t weight, const void *of_file, size_t n)
{
  kg_weights_check *out = c->out;
  out->device_sum = add_to_sum(out->device_sum, c->piece, n);
  out->file_sum = add_to_sum(out->file_sum, of_file, n);
  out->n_bytes += (int64_t)n;
  if (out->differs == KG_NONE && memcmp(c->piece, of_file, n)) out->differs = weight;
}

/* Rows [row, row + n), all of one plane, in one of the forms. */
static int compare_rows(comparison *c, int32_t index, unsigned form, int64_t row, int64_t n)
{
  const kg_weight *weight = kg_plan_weight_at(kg_model_plan(c->model), index);
  const kg_type_info *info = kg_type_find((uint32_t)weight->type);
  const size_t row_bytes = weight->n_bytes / (size_t)(weight->rows * weight->planes);
  const unsigned char *of_file = kg_weight_plane(weight, row / weight->rows) + (size_t)(row % weight->rows) * row_bytes;
  const int status = c->backend->weight_unpack(kg_model_executable(c->model), index, form, row, n, c->piece, c->err);
  if (status) return status;
  if (form == KG_FORM_FILE)
    compare(c, index, of_file, (size_t)n * row_bytes);
  else {
    info->dequantize(of_file, n * weight->cols / info->block_size, c->values);
    compare(c, index, c->values, (size_t)(n * weight->cols) * sizeof(float));
  }
  kg_gguf_release_pages(kg_plan_gguf(kg_model_plan(c->model)), of_file, (size_t)n * row_bytes);
  return KG_OK;
}

/* How many rows of a weight are compared together: whole tiles, about PIECE_BYTES as floats. */
static int64_t rows_of_piece(const kg_weight *weight)
{
  const int64_t rows = PIECE_BYTES / 4 / weight->cols / PIECE_ROWS * PIECE_ROWS;
  return rows ? rows : PIECE_ROWS;
}

static int compare_weight(comparison *c, int32_t index)
{
  const kg_weight *weight = kg_plan_weight_at(kg_model_plan(c->model), index);
  const unsigned forms = c->backend->weight_forms(kg_model_executable(c->model), index);
  const int64_t all = weight->rows * weight->planes, step = rows_of_piece(weight);
  int status = KG_OK;
  for (unsigned form = KG_FORM_FILE; form <= KG_FORM_FLOATS; form++)
    for (int64_t row = 0, n; row < all && forms & form && !status; row += n) {
      const int64_t left = weight->rows - row % weight->rows; /* in the plane */
      n = left < step ? left : step;
      status = compare_rows(c, index, form, row, n);
    }
  return status;
}

int kg_model_check_weights(kg_model *model, kg_weights_check *out, kg_error *err)
{
  comparison c = {.model = model, .backend = kg_model_backend(model), .out = out, .err = err};
  const kg_plan *plan = kg_model_plan(model);
  int status = kg_model_check_idle(model, err);
  if (status) return status;
  if (!c.backend->weight_unpack) return fail_untold(model, err);
  size_t most = 0, n_bytes;
  *out = (kg_weights_check){.n_weights = kg_plan_weight_count(plan), .differs = KG_NONE};
  for (int32_t i = 0; i < out->n_weights; i++) {
    const kg_weight *weight = kg_plan_weight_at(plan, i);
    const size_t n = (size_t)rows_of_piece(weight) * (size_t)weight->cols; /* at most 16 * 2^24, or PIECE_BYTES / 4 */
    most = n > most ? n : most;
  }
  if (!kg_mul_size(most, sizeof(float), &n_bytes)) return kg_fail_memory(err, SIZE_MAX, "comparing weights");
  c.piece = kg_alloc(n_bytes);
  c.values = kg_alloc(n_bytes);
  if (!c.piece || !c.values) status = kg_fail_memory(err, n_bytes, "comparing weights");
  if (!status) status = kg_gguf_check_unchanged(kg_plan_gguf(plan), err);
  for (int32_t i = 0; i < out->n_weights && out->differs == KG_NONE && !status; i++) status = compare_weight(&c, i);
  kg_free(c.piece);
  kg_free(c.values);
  return status;
}

int kg_model_flip_weight(kg_model *model, const char *name, size_t at, unsigned char mask, kg_error *err)
{
  const kg_plan *plan = kg_model_plan(model);
  const kg_backend *backend = kg_model_backend(model);
  kg_executable *exe = kg_model_executable(model);
  unsigned char byte;
  int status = kg_model_check_idle(model, err);
  if (status) return status;
  for (int32_t i = 0; i < kg_plan_weight_count(plan); i++) {
    if (strcmp(kg_plan_weight_at(plan, i)->name, name)) continue;
    status = backend->weight_read(exe, i, at, 1, &byte, err);
    byte ^= mask;
    kg_kv_forget(kg_model_kv(model));
    return status ? status : backend->weight_write(exe, i, at, 1, &byte, err);
  }
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_ARGUMENT, "there is no weight %s", kg_quote(quoted, name, strlen(name)));
}
