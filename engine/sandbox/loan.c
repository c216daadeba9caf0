#include "loan.h"

#include <lauxlib.h>
#include <string.h>

#include "alloc.h"
#include "bind.h"
#include "budget.h"
#include "error.h"

enum {
  FLOATS_PER_STEP = 16, /* of a whole-tensor operation */
  COLLECT_BYTES = 4096, /* smaller ones are not worth a step of the collector: their handles are garbage enough */
  HANDLE_BYTES = 512    /* what a tensor takes beside its numbers */
};

typedef struct loan {
  kg_buffer base;   /* what the handles of the state refer to */
  kg_buffer *inner; /* the numbers; NULL when the loan is over */
  kg_budget *budget;
  size_t n_bytes; /* charged; 0: the numbers are the lender's */
  bool was_changed;
} loan;

static const kg_tensor_ops loan_ops;

static loan *loan_of(const kg_buffer *buffer) { return (loan *)buffer->owner; }

/* What every operation begins with: pay for n numbers, and see that the loan runs. */
static int begin(const kg_buffer *buffer, int64_t n, kg_buffer **inner, kg_error *err)
{
  const loan *self = loan_of(buffer);
  if (!self->inner) return kg_fail(err, KG_ERR_ARGUMENT, "the tensor was lent for a call that is over");
  if (!kg_budget_spend(self->budget, n > 0 ? (uint64_t)n / FLOATS_PER_STEP + 1 : 1))
    return kg_fail(err, KG_ERR_ARGUMENT, "%s", self->budget->reason);
  *inner = self->inner;
  return KG_OK;
}

static int begin_change(kg_buffer *buffer, int64_t n, kg_buffer **inner, kg_error *err)
{
  const int status = begin(buffer, n, inner, err);
  if (!status) loan_of(buffer)->was_changed = true;
  return status;
}

/* Two of one operation must be of one device: their wrappers look the same. */
static int begin_second(const kg_buffer *buffer, const kg_buffer *first, kg_buffer **inner, kg_error *err)
{
  const int status = begin(buffer, 0, inner, err);
  if (status || (*inner)->ops == first->ops) return status;
  return kg_fail(err, KG_ERR_ARGUMENT, "the tensors are on two devices");
}

static void release(kg_buffer *buffer)
{
  loan *self = loan_of(buffer);
  kg_buffer_unref(self->inner);
  kg_budget_give(self->budget, self->n_bytes);
  kg_free(self);
}

/* Wrap numbers; takes `inner` also when it fails. */
static int wrap(kg_budget *budget, kg_buffer *inner, size_t n_bytes, kg_buffer **out, kg_error *err)
{
  loan *self = kg_alloc(sizeof *self);
  if (!self) {
    kg_buffer_unref(inner);
    return kg_fail_memory(err, sizeof *self, "a tensor");
  }
  *self = (loan){.base = {.ops = &loan_ops, .n = inner->n, .n_refs = 1, .release = release, .owner = self},
                 .inner = inner,
                 .budget = budget,
                 .n_bytes = n_bytes};
  *out = &self->base;
  return KG_OK;
}

/* Room for n floats of the script's own. Lua's collector does not see them: let it work as if they were its own. */
static int take_room(kg_budget *budget, int64_t n, size_t *n_bytes, kg_error *err)
{
  if (n < 0 || !kg_mul_size((size_t)n, sizeof(float), n_bytes) || !kg_add_size(*n_bytes, HANDLE_BYTES, n_bytes))
    return kg_fail(err, KG_ERR_ARGUMENT, "a tensor of %lld numbers is impossible", (long long)n);
  if (*n_bytes >= COLLECT_BYTES && *n_bytes <= budget->memory_max)
    lua_gc(budget->running, LUA_GCSTEP, (int)(*n_bytes / 1024));
  if (kg_budget_take(budget, *n_bytes)) return KG_OK;
  lua_gc(budget->running, LUA_GCCOLLECT, 0);
  return kg_budget_take(budget, *n_bytes) ? KG_OK : kg_fail_memory(err, *n_bytes, "a tensor of a script");
}

/* ---- operations ---- */

static int like(const kg_buffer *b, int64_t n, kg_buffer **out, kg_error *err)
{
  kg_buffer *inner, *made;
  kg_budget *budget = loan_of(b)->budget;
  size_t n_bytes;
  int status = begin(b, n, &inner, err);
  if (!status) status = take_room(budget, n, &n_bytes, err);
  if (status) return status;
  status = inner->ops->like(inner, n, &made, err);
  if (!status) status = wrap(budget, made, n_bytes, out, err);
  if (status) kg_budget_give(budget, n_bytes);
  return status;
}

static int read(const kg_buffer *b, int64_t at, int64_t n, float *out, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin(b, n, &inner, err);
  return status ? status : inner->ops->read(inner, at, n, out, err);
}

static int write(kg_buffer *b, int64_t at, int64_t n, const float *in, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin_change(b, n, &inner, err);
  return status ? status : inner->ops->write(inner, at, n, in, err);
}

static int copy(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n, kg_error *err)
{
  kg_buffer *inner, *source;
  int status = begin_change(to, n, &inner, err);
  if (!status) status = begin_second(from, inner, &source, err);
  return status ? status : inner->ops->copy(inner, to_at, source, from_at, n, err);
}

static int fill(kg_buffer *b, int64_t at, int64_t n, float value, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin_change(b, n, &inner, err);
  return status ? status : inner->ops->fill(inner, at, n, value, err);
}

static int fill_at(kg_buffer *b, int64_t at, int64_t n, const int32_t *index, int64_t n_index, float value,
                   kg_error *err)
{
  kg_buffer *inner;
  const int status = begin_change(b, n_index, &inner, err);
  return status ? status : inner->ops->fill_at(inner, at, n, index, n_index, value, err);
}

static int affine(kg_buffer *b, int64_t at, int64_t n, float factor, float offset, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin_change(b, n, &inner, err);
  return status ? status : inner->ops->affine(inner, at, n, factor, offset, err);
}

static int add(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, float factor, kg_error *err)
{
  kg_buffer *inner, *operand;
  int status = begin_change(b, n, &inner, err);
  if (!status) status = begin_second(o, inner, &operand, err);
  return status ? status : inner->ops->add(inner, at, operand, o_at, n, factor, err);
}

static int mul(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, kg_error *err)
{
  kg_buffer *inner, *operand;
  int status = begin_change(b, n, &inner, err);
  if (!status) status = begin_second(o, inner, &operand, err);
  return status ? status : inner->ops->mul(inner, at, operand, o_at, n, err);
}

static int argmax(const kg_buffer *b, int64_t at, int64_t n, int64_t *index, float *value, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin(b, n, &inner, err);
  return status ? status : inner->ops->argmax(inner, at, n, index, value, err);
}

/* Sorting the best of many costs more than looking at them. */
static int topk(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value, kg_error *err)
{
  kg_buffer *inner;
  int status = begin(b, n, &inner, err);
  if (!status && k > 0) status = begin(b, k < n ? k * FLOATS_PER_STEP : n * FLOATS_PER_STEP, &inner, err);
  return status ? status : inner->ops->topk(inner, at, n, k, index, value, err);
}

static int softmax(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t rows, int64_t n,
                   bool log_wanted, kg_error *err)
{
  kg_buffer *inner, *source;
  int status = begin_change(to, to->n, &inner, err);
  if (!status) status = begin_second(from, inner, &source, err);
  return status ? status : inner->ops->softmax(inner, to_at, source, from_at, rows, n, log_wanted, err);
}

static int entropy(const kg_buffer *b, int64_t at, int64_t n, double *out, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin(b, n, &inner, err);
  return status ? status : inner->ops->entropy(inner, at, n, out, err);
}

static int reduce(const kg_buffer *b, int64_t at, int64_t n, double *sum, float *min, float *max, kg_error *err)
{
  kg_buffer *inner;
  const int status = begin(b, n, &inner, err);
  return status ? status : inner->ops->reduce(inner, at, n, sum, min, max, err);
}

static const kg_tensor_ops loan_ops = {.like = like,
                                       .read = read,
                                       .write = write,
                                       .copy = copy,
                                       .fill = fill,
                                       .fill_at = fill_at,
                                       .affine = affine,
                                       .add = add,
                                       .mul = mul,
                                       .argmax = argmax,
                                       .topk = topk,
                                       .softmax = softmax,
                                       .entropy = entropy,
                                       .reduce = reduce};

/* ---- handles ---- */

kg_buffer *kg_loan_push(lua_State *L, kg_buffer *buffer)
{
  kg_buffer *made;
  kg_error err;
  kg_tensor **slot = kg_push_tensor(L);
  const int64_t n = buffer->n;
  if (wrap(kg_budget_of(L), kg_buffer_ref(buffer), 0, &made, &err)) kg_raise(L, &err);
  if (kg_tensor_view(made, 0, 1, &n, slot, &err)) {
    kg_buffer_unref(made);
    kg_raise(L, &err);
  }
  return made;
}

bool kg_loan_end(kg_buffer *buffer)
{
  loan *self = loan_of(buffer);
  const bool was_changed = self->was_changed;
  kg_buffer_unref(self->inner);
  self->inner = NULL;
  kg_buffer_unref(buffer);
  return was_changed;
}

/* A row of n zeros of the script's own, pushed; its buffer. */
static kg_buffer *push_zeros(lua_State *L, int64_t n)
{
  kg_budget *budget = kg_budget_of(L);
  kg_buffer *inner, *made;
  kg_error err;
  size_t n_bytes;
  kg_tensor **slot = kg_push_tensor(L);
  kg_budget_charge(L, (uint64_t)n / FLOATS_PER_STEP + 1);
  int status = take_room(budget, n, &n_bytes, &err);
  if (status) kg_raise(L, &err);
  status = kg_host_buffer_new(n, &inner, &err);
  if (!status) status = wrap(budget, inner, n_bytes, &made, &err);
  if (status) {
    kg_budget_give(budget, n_bytes);
    kg_raise(L, &err);
  }
  status = kg_tensor_view(made, 0, 1, &n, slot, &err);
  kg_buffer_unref(made);
  if (status) kg_raise(L, &err);
  return made; /* the handle's */
}

/* kigo.zeros(n) -> Tensor */
static int zeros(lua_State *L)
{
  push_zeros(L, kg_check_int(L, 1, "size", 0, INT32_MAX));
  return 1;
}

/* kigo.tensor { numbers } -> Tensor */
static int tensor(lua_State *L)
{
  luaL_checktype(L, 1, LUA_TTABLE);
  const lua_Unsigned n = lua_rawlen(L, 1);
  kg_budget_charge(L, n);
  if (n > INT32_MAX) return luaL_error(L, "tensor: %I numbers are too many", (LUAI_UACINT)n);
  kg_buffer *buffer = push_zeros(L, (int64_t)n);
  float *x = loan_of(buffer)->inner->data; /* on the host */
  for (lua_Unsigned i = 0; i < n; i++) {
    lua_rawgeti(L, 1, (lua_Integer)i + 1);
    if (lua_type(L, -1) != LUA_TNUMBER)
      return luaL_error(L, "tensor: element %I: number expected, got %s", (LUAI_UACINT)i + 1, luaL_typename(L, -1));
    x[i] = (float)lua_tonumber(L, -1);
    lua_pop(L, 1);
  }
  return 1;
}

/* Take every method from the class that is not listed: those here work through kg_tensor_ops alone, and make no views,
 * which are handles that nobody pays for. */
static void keep_methods(lua_State *L)
{
  static const char *const kept[] = {"shape", "argmax", "topk", "softmax", "log_softmax", "entropy", "sum",   "min",
                                     "max",   "mul_",   "add_", "fill_",   "clone",       "totable", "bytes", "close"};
  luaL_getsubtable(L, LUA_REGISTRYINDEX, "kigo.classes");
  lua_getfield(L, -1, "Tensor");
  lua_pushnil(L);
  while (lua_next(L, -2)) {
    lua_pop(L, 1);
    size_t i = 0, n = sizeof kept / sizeof kept[0];
    while (i < n && strcmp(kept[i], lua_tostring(L, -1))) i++;
    if (i < n) continue;
    lua_pushvalue(L, -1);
    lua_pushnil(L);
    lua_rawset(L, -4);
  }
  lua_pop(L, 2);
}

void kg_loan_open(lua_State *L)
{
  lua_newtable(L);
  kg_bind_tensor(L);
  lua_pop(L, 1); /* its functions make tensors that nobody pays for */
  luaL_getmetatable(L, KG_CLASS_TENSOR);
  lua_pushboolean(L, false);
  lua_setfield(L, -2, "__metatable");
  lua_pop(L, 1);
  keep_methods(L);
  static const luaL_Reg functions[] = {{"tensor", tensor}, {"zeros", zeros}, {NULL, NULL}};
  luaL_newlib(L, functions);
  lua_setfield(L, -2, "kigo");
}
