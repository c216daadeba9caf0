#include "backend.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "plugin.h"

/* "cuda" or "cuda:N" */
static bool parse_cuda(const char *name, int32_t *index)
{
  *index = 0;
  if (strncmp(name, "cuda", 4)) return false;
  if (!name[4]) return true;
  if (name[4] != ':' || !name[5]) return false;
  for (const char *c = name + 5; *c; c++) {
    if (*c < '0' || *c > '9' || *index > 99) return false;
    *index = *index * 10 + (*c - '0');
  }
  return true;
}

static int find_cuda(int32_t index, kg_device *out, kg_error *err)
{
  const kg_plugin *plugin;
  int code = kg_plugin_find(&plugin, err);
  if (!code) code = plugin->probe(index, err);
  if (code) return code;
  out->backend = plugin->backend;
  out->index = index;
  return KG_OK;
}

/* A build without CUDA has nothing to look for, unless the machine would have had something. */
static bool has_nvidia_device(void) { return !access("/dev/nvidiactl", F_OK); }

enum { MOST_DEVICES = 16 };

/* The first GPU that works; else the CPU stays, with a note that says what is wrong with the first. */
static void find_best(kg_device *out)
{
  kg_error reason, other;
  const int code = find_cuda(0, out, &reason);
  if (!code) return;
  for (int32_t i = 1; i < MOST_DEVICES && code == KG_ERR_DEVICE; i++)
    if (!find_cuda(i, out, &other)) return;
  if (code != KG_ERR_UNSUPPORTED || has_nvidia_device())
    snprintf(out->note, sizeof out->note, "no GPU: %.240s", reason.message);
}

int kg_device_find(const char *name, kg_device *out, kg_error *err)
{
  int32_t index;
  *out = (kg_device){.backend = &kg_backend_cpu};
  if (!strcmp(name, "cpu")) return KG_OK;
  if (!strcmp(name, "reference")) {
    out->backend = &kg_backend_reference;
    return KG_OK;
  }
  if (parse_cuda(name, &index)) return find_cuda(index, out, err);
  if (!strcmp(name, "auto")) {
    find_best(out);
    return KG_OK;
  }
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_UNSUPPORTED, "device %s is not known here; there are: auto, cpu, reference, cuda, cuda:N",
                 kg_quote(quoted, name, strlen(name)));
}

/* ---- checking batches ---- */

/* Positions that the plan can embed: tables of learned positions end somewhere. */
static int64_t position_count(const kg_plan *plan)
{
  int64_t n = KG_PLAN_MAX_CONTEXT;
  for (int32_t i = 0; i < kg_plan_op_count(plan); i++) {
    const kg_op *op = kg_plan_op(plan, i);
    if (op->kind != KG_OP_EMBED || op->w[1] == KG_NONE) continue;
    const int64_t rows = kg_plan_weight_at(plan, op->w[1])->rows;
    if (rows < n) n = rows;
  }
  return n;
}

static int check_rows(const kg_plan *plan, const kg_batch *batch, kg_error *err)
{
  const int64_t n_positions = position_count(plan);
  const int32_t vocab = kg_plan_token_count(plan), n_values = kg_plan_value_count(plan);
  for (int32_t i = 0; i < batch->n_rows; i++)
    if (batch->tokens[i] < 0 || batch->tokens[i] >= vocab || batch->positions[i] < 0 ||
        batch->positions[i] >= n_positions)
      return kg_fail(err, KG_ERR_ARGUMENT, "row %d: token %d of %d at position %d of %lld", i, batch->tokens[i], vocab,
                     batch->positions[i], (long long)n_positions);
  for (int32_t i = 0, last = -1; i < batch->n_wanted; last = batch->wanted[i++].row)
    if (batch->wanted[i].row <= last || batch->wanted[i].row >= batch->n_rows)
      return kg_fail(err, KG_ERR_ARGUMENT, "wanted row %d after %d, of %d", batch->wanted[i].row, last, batch->n_rows);
  for (int32_t i = 0; i < batch->n_traces; i++)
    if (batch->traces[i].value < 0 || batch->traces[i].value >= n_values)
      return kg_fail(err, KG_ERR_ARGUMENT, "trace of value %d of %d", batch->traces[i].value, n_values);
  return KG_OK;
}

static int check_taps(const kg_plan *plan, const kg_batch *batch, kg_error *err)
{
  const int32_t n_values = kg_plan_value_count(plan);
  for (int32_t i = 0; i < batch->n_taps; i++) {
    const kg_tap *tap = &batch->taps[i];
    int32_t s = 0;
    while (s < batch->n_spans && batch->spans[s].row + batch->spans[s].n_rows <= tap->row) s++;
    if (tap->value < 0 || tap->value >= n_values || tap->row < 0 || tap->n_rows < 1 || s == batch->n_spans ||
        tap->n_rows > batch->spans[s].row + batch->spans[s].n_rows - tap->row)
      return kg_fail(err, KG_ERR_ARGUMENT, "tap of value %d of %d for %d rows from %d", tap->value, n_values,
                     tap->n_rows, tap->row);
  }
  return KG_OK;
}

static int check_pages(const kg_plan *plan, const kg_batch *batch, int32_t s, const int32_t *n_pages, int32_t n_ahead,
                       kg_error *err)
{
  const kg_span *span = &batch->spans[s];
  const int32_t last = (span->pos + span->n_rows - 1 + n_ahead) / KG_PAGE;
  for (int32_t g = 0; g < kg_plan_group_count(plan); g++)
    for (int32_t p = kg_first_page(kg_plan_group_window(plan, g), span->pos); p <= last; p++)
      if (span->pages[g][p] < 0 || span->pages[g][p] >= n_pages[g])
        return kg_fail(err, KG_ERR_ARGUMENT, "span %d: page %d of %d in group %d", s, span->pages[g][p], n_pages[g], g);
  return KG_OK;
}

static int check_span(const kg_batch *batch, int32_t s, int32_t row, kg_error *err)
{
  const kg_span *span = &batch->spans[s];
  if (span->row != row || span->n_rows < 1 || span->n_rows > batch->n_rows - row)
    return kg_fail(err, KG_ERR_ARGUMENT, "span %d: %d rows from %d in a batch of %d", s, span->n_rows, span->row,
                   batch->n_rows);
  for (int32_t i = 0; i < span->n_rows; i++)
    if (batch->positions[row + i] != span->pos + i)
      return kg_fail(err, KG_ERR_ARGUMENT, "row %d: position %d, span %d says %d", row + i, batch->positions[row + i],
                     s, span->pos + i);
  return KG_OK;
}

int kg_batch_check(const kg_plan *plan, const kg_batch *batch, int32_t chunk, const int32_t *n_pages, int32_t n_ahead,
                   kg_error *err)
{
  if (batch->n_rows < 1 || batch->n_rows > chunk)
    return kg_fail(err, KG_ERR_ARGUMENT, "batch of %d rows, 1 to %d wanted", batch->n_rows, chunk);
  int code = check_rows(plan, batch, err);
  int32_t row = 0;
  for (int32_t s = 0; s < batch->n_spans && !code; s++) {
    code = check_span(batch, s, row, err);
    if (!code) code = check_pages(plan, batch, s, n_pages, n_ahead, err);
    row += batch->spans[s].n_rows;
  }
  if (!code && row != batch->n_rows)
    return kg_fail(err, KG_ERR_ARGUMENT, "spans cover %d rows of %d", row, batch->n_rows);
  return code ? code : check_taps(plan, batch, err);
}

static int check_states(const kg_batch *batch, int32_t s, int32_t n_slots, kg_error *err)
{
  const kg_span *span = &batch->spans[s];
  if (span->state == KG_NONE ? span->pos > 0 : span->state < 0 || span->state >= n_slots)
    return kg_fail(err, KG_ERR_ARGUMENT, "span %d: state %d of %d at position %d", s, span->state, n_slots, span->pos);
  int32_t before = 0;
  for (int32_t i = 0; i < span->n_states; before = span->states[i++].n_rows) {
    const kg_state_out *out = &span->states[i];
    const bool is_last = i == span->n_states - 1;
    if (out->n_rows <= before || out->n_rows > span->n_rows || is_last != (out->n_rows == span->n_rows) ||
        out->slot < 0 || out->slot >= n_slots || (!is_last && out->slot == span->state))
      return kg_fail(err, KG_ERR_ARGUMENT, "span %d: state %d of %d behind %d of %d rows", s, out->slot, n_slots,
                     out->n_rows, span->n_rows);
  }
  if (!span->n_states) return kg_fail(err, KG_ERR_ARGUMENT, "span %d: no place for the state behind it", s);
  return KG_OK;
}

int kg_batch_check_states(const kg_plan *plan, const kg_batch *batch, int32_t n_slots, kg_error *err)
{
  int code = KG_OK;
  for (int32_t s = 0; kg_plan_state_size(plan) && s < batch->n_spans && !code; s++)
    code = check_states(batch, s, n_slots, err);
  return code;
}

int kg_kv_rows_check(const kg_plan *plan, const kg_kv_rows *rows, const int32_t *n_pages, kg_error *err)
{
  if (rows->layer < 0 || rows->layer >= kg_plan_layer_count(plan))
    return kg_fail(err, KG_ERR_ARGUMENT, "layer %d of %d", rows->layer, kg_plan_layer_count(plan));
  const int32_t n = n_pages[kg_plan_layer(plan, rows->layer)->u.attention.group];
  if (rows->page >= 0 && rows->page < n && rows->slot >= 0 && rows->n >= 1 && rows->slot < KG_PAGE &&
      rows->n <= KG_PAGE - rows->slot)
    return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%d slots from %d of page %d of %d in layer %d", rows->n, rows->slot,
                 rows->page, n, rows->layer);
}
