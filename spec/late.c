/* late.c - for specs: a kigo whose device "cuda" is the CPU backend with a run_ahead like a GPU's, which comes back
 * before its draws are there. core.lose_draws(step) has the next one lose its draws from that step on (0 is the first),
 * as a device does that fails in the middle: waiting for them fails, and what their passes wrote is spoiled. -1:
 * run_ahead itself fails.
 *
 * All is computed at once, as later calls find it on a stream; the draws alone are handed out when they are waited
 * for. */
#include <assert.h>
#include <lua.h>
#include <math.h>
#include <string.h>

#include "ahead.h"
#include "alloc.h"
#include "error.h"
#include "kigo.h"
#include "plugin.h"

enum { NOTHING = KG_AHEAD_MAX, DEVICES = 16 };

/* An executable and the look ahead that is under way there, if drawn is not NULL. */
typedef struct device {
  const kg_executable *exe;
  const kg_plan *plan;
  kg_drawn *drawn, *to;   /* [n_rows][n_draws] what was drawn, and where it is wanted */
  int32_t n_rows, n_draws, n_there, lost_from;
} device;

static device devices[DEVICES]; /* of a process that runs specs on one thread */
static int32_t lose_from = NOTHING;
static kg_backend backend;

static device *device_of(const kg_executable *exe)
{
  int i = 0;
  while (i < DEVICES && devices[i].exe != exe) i++;
  return i < DEVICES ? &devices[i] : NULL;
}

static void end_look(device *d)
{
  kg_free(d->drawn);
  d->drawn = NULL;
}

static int compile(const kg_plan *plan, const kg_backend_options *options, kg_executable **out, kg_error *err)
{
  device *d = device_of(NULL);
  if (!d) return kg_fail(err, KG_ERR_MEMORY, "more than %d models", DEVICES);
  const int code = kg_backend_cpu.compile(plan, options, out, err);
  if (!code) *d = (device){.exe = *out, .plan = plan};
  return code;
}

static void release(kg_executable *exe)
{
  if (exe) {
    end_look(device_of(exe));
    device_of(exe)->exe = NULL;
  }
  kg_backend_cpu.release(exe);
}

/* Position `pos` of the span in all layers. */
static void spoil_position(kg_executable *exe, const kg_plan *plan, const kg_span *span, int32_t pos)
{
  unsigned char nan[1024];
  memset(nan, 0xff, sizeof nan); /* of either type */
  for (int32_t layer = 0; layer < kg_plan_layer_count(plan); layer++) {
    const kg_attention_params *p = &kg_plan_layer(plan, layer)->u.attention;
    assert((size_t)kg_key_width(p) * 4 <= sizeof nan && (size_t)kg_value_width(p) * 4 <= sizeof nan);
    const kg_kv_rows rows = {span->pages[p->group][pos / KG_PAGE], pos % KG_PAGE, 1, layer};
    (void)kg_backend_cpu.kv_write(exe, &rows, nan, nan, NULL);
  }
}

/* What the passes wrote that draw `from` and those behind it come from. */
static void spoil(kg_executable *exe, const kg_plan *plan, const kg_batch *batch, const kg_run_ahead *ahead,
                  int32_t from)
{
  float nan[1024];
  memset(nan, 0xff, sizeof nan);
  assert(kg_plan_state_size(plan) <= 1024);
  for (int32_t i = 0; i < batch->n_rows; i++) {
    const kg_span *span = &batch->spans[i];
    const int32_t pos = ahead->draws[i].pos, first = pos - ahead->evaluates_first, end = pos + ahead->n_draws - 1;
    if (first == end) continue; /* drawn from what was there */
    for (int32_t p = pos + from - 1 > first ? pos + from - 1 : first; p < end; p++) spoil_position(exe, plan, span, p);
    if (kg_plan_state_size(plan)) (void)kg_backend_cpu.state_write(exe, span->state, nan, NULL);
    float *const logits = (float *)batch->wanted[i].buffer->data + batch->wanted[i].at;
    for (int32_t id = 0; id < kg_plan_vocab_size(plan); id++) logits[id] = NAN;
  }
}

static int run_ahead(kg_executable *exe, const kg_batch *batch, const kg_run_ahead *ahead, kg_error *err)
{
  device *d = device_of(exe);
  assert(!d->drawn); /* the last one was waited for */
  const int32_t lost_from = lose_from;
  lose_from = NOTHING;
  const size_t n = (size_t)batch->n_rows * (size_t)ahead->n_draws;
  kg_drawn *drawn = kg_alloc_array(n, sizeof *drawn);
  if (!drawn) return kg_fail_memory(err, n * sizeof *drawn, "drawing late");
  kg_run_ahead own = *ahead;
  own.drawn = drawn;
  int code = kg_run_ahead_on_host(exe, &kg_backend_cpu, batch, &own, kg_plan_vocab_size(d->plan), err);
  if (code || lost_from < ahead->n_draws) spoil(exe, d->plan, batch, ahead, code ? 0 : lost_from);
  if (!code && lost_from < 0) code = kg_fail(err, KG_ERR_DEVICE, "the device failed, as it was told to");
  if (code)
    kg_free(drawn);
  else
    *d = (device){exe, d->plan, drawn, ahead->drawn, batch->n_rows, ahead->n_draws, 0, lost_from};
  return code;
}

static int wait_ahead(kg_executable *exe, int32_t step, kg_error *err)
{
  device *d = device_of(exe);
  for (; d->n_there <= step; d->n_there++) {
    if (d->drawn && d->n_there == d->lost_from) end_look(d);
    if (!d->drawn) return kg_fail(err, KG_ERR_DEVICE, "draw %d ahead is lost", d->n_there + 1);
    for (int32_t i = 0; i < d->n_rows; i++) d->to[i * d->n_draws + d->n_there] = d->drawn[i * d->n_draws + d->n_there];
  }
  if (d->n_there == d->n_draws) end_look(d);
  return KG_OK;
}

/* ---- in the places of what the linker's --wrap takes out ---- */

static int probe(int32_t index, kg_error *err)
{
  return index ? kg_fail(err, KG_ERR_DEVICE, "there is one device") : KG_OK;
}

int __wrap_kg_plugin_find(const kg_plugin **out, kg_error *err);
int __wrap_kg_plugin_find(const kg_plugin **out, kg_error *err)
{
  static const kg_plugin plugin = {KG_PLUGIN_ABI, KG_PAGE, &backend, probe};
  (void)err;
  backend = kg_backend_cpu;
  backend.compile = compile;
  backend.release = release;
  backend.run_ahead = run_ahead;
  backend.wait_ahead = wait_ahead;
  *out = &plugin;
  return KG_OK;
}

static int lose_draws(lua_State *L)
{
  lose_from = (int32_t)lua_tointeger(L, 1);
  return 0;
}

int __real_luaopen_kigo_core(lua_State *L);
int __wrap_luaopen_kigo_core(lua_State *L);
int __wrap_luaopen_kigo_core(lua_State *L)
{
  const int n = __real_luaopen_kigo_core(L);
  lua_pushcfunction(L, lose_draws);
  lua_setfield(L, -2, "lose_draws");
  return n;
}
