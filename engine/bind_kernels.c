/* bind_kernels.c - the CPU kernels in Lua, without a model: for specs and for comparing instruction sets. */
#include <string.h>
#include <strings.h>

#include "bind.h"
#include "cpu/matmul.h"

enum { TYPE_NUMBERS = 64 };

/* Everything of a test product; userdata memory is Lua's, so that an error in between leaks nothing. */
typedef struct test {
  const kg_kernels *kernels;
  kg_packed weight;
  int64_t plane;
} test;

static const char *field_bytes(lua_State *L, const char *field, size_t *n)
{
  lua_getfield(L, 1, field);
  const char *bytes = lua_tolstring(L, -1, n);
  lua_pop(L, 1); /* the table keeps it */
  return bytes;
}

static kg_type field_type(lua_State *L)
{
  const char *name = kg_opt_string_field(L, 1, "type", "");
  for (uint32_t number = 0; number < TYPE_NUMBERS; number++) {
    const kg_type_info *info = kg_type_find(number);
    if (info && !strcasecmp(info->name, name)) return (kg_type)number;
  }
  kg_error_at(L, "type: unknown tensor type '%s'", name);
  return KG_F32; /* not reached */
}

/* 64-byte aligned memory on Lua's stack. */
static void *push_aligned(lua_State *L, size_t n_bytes)
{
  const uintptr_t block = (uintptr_t)lua_newuserdatauv(L, n_bytes + 64, 0);
  return (void *)((block + 63) & ~(uintptr_t)63);
}

/* Read variant, type, shape and the blocks `w` of all planes, and pack them, piece groups at a time. Leaves the packed
 * bytes on the stack. */
static int set_up(lua_State *L, test *t, kg_error *err)
{
  size_t n_bytes, plane_bytes;
  kg_check_type(L, 1, LUA_TTABLE);
  const kg_type type = field_type(L);
  const int64_t cols = kg_opt_int_field(L, 1, "cols", 0, 1, 1 << 20);
  const int64_t rows = kg_opt_int_field(L, 1, "rows", 0, 1, 1 << 20);
  const int64_t planes = kg_opt_int_field(L, 1, "planes", 1, 1, 1024);
  const int64_t piece = kg_opt_int_field(L, 1, "piece", 1 << 20, 1, 1 << 20);
  t->plane = kg_opt_int_field(L, 1, "plane", 0, 0, planes - 1);
  int code = kg_kernels_find(kg_opt_string_field(L, 1, "variant", NULL), &t->kernels, err);
  if (!code) code = kg_packed_init(&t->weight, type, cols, rows, planes, err);
  if (code) return code;
  const char *blocks = field_bytes(L, "w", &n_bytes);
  if (!kg_type_bytes(kg_type_find((uint32_t)type), (uint64_t)(cols * rows), &plane_bytes) || !blocks ||
      n_bytes != plane_bytes * (size_t)planes)
    kg_error_at(L, "w: %I bytes expected, got %I", (lua_Integer)(plane_bytes * (size_t)planes),
                (lua_Integer)(blocks ? n_bytes : 0));
  t->weight.data = push_aligned(L, t->weight.n_bytes);
  for (int64_t plane = 0; plane < planes; plane++)
    for (int64_t g = 0; g < t->weight.n_groups; g += piece) {
      const int64_t end = g + piece < t->weight.n_groups ? g + piece : t->weight.n_groups;
      kg_pack(&t->weight, plane, g, end, blocks + (size_t)plane * plane_bytes);
    }
  return KG_OK;
}

/* A copy of float32 numbers given as bytes, exactly n of them; NULL when the field is absent and may be. */
static float *field_floats(lua_State *L, const char *field, int64_t n, bool needed)
{
  size_t n_bytes;
  const char *bytes = field_bytes(L, field, &n_bytes);
  if (!bytes && !needed) return NULL;
  if (!bytes || n_bytes != 4 * (size_t)n)
    kg_error_at(L, "%s: %I bytes expected, got %I", field, (lua_Integer)(4 * n), (lua_Integer)(bytes ? n_bytes : 0));
  float *copy = push_aligned(L, n_bytes);
  memcpy(copy, bytes, n_bytes);
  return copy;
}

/* core.test_matmul{ type=, cols=, rows=, w=blocks, x=float32 bytes [n][cols], n=, variant=, planes=, plane=, bias=,
 * residual=, piece=groups at once } -> float32 bytes [n][rows], or nil, message, code */
static int test_matmul(lua_State *L)
{
  kg_error err;
  test t;
  if (set_up(L, &t, &err)) return kg_push_error(L, &err);
  const kg_packed *weight = &t.weight;
  const int64_t n = kg_opt_int_field(L, 1, "n", 1, 1, 4096);
  const int64_t piece = kg_opt_int_field(L, 1, "piece", 1 << 20, 1, 1 << 20);
  const float *x = field_floats(L, "x", n * weight->cols, true);
  const float *bias = field_floats(L, "bias", weight->rows, false);
  const float *residual = field_floats(L, "residual", n * weight->rows, false);
  const kg_activation_format format = t.kernels->format(weight->type);
  void *activations = push_aligned(L, kg_activation_bytes(format, n, weight->cols));
  float *out = push_aligned(L, 4 * (size_t)(n * weight->rows));
  for (int64_t row = 0; row < n; row++) /* one by one: rows of a panel may come from different threads */
    t.kernels->quantize(format, x, weight->cols, n, weight->cols, row, row + 1, activations);
  const kg_matmul m = {.weight = weight, .plane = t.plane, .x = activations, .n_rows = n, .bias = bias,
                       .residual = residual, .residual_stride = weight->rows, .out = out, .out_stride = weight->rows};
  for (int64_t g = 0; g < weight->n_groups; g += piece)
    t.kernels->matmul(&m, g, g + piece < weight->n_groups ? g + piece : weight->n_groups);
  lua_pushlstring(L, (const char *)out, 4 * (size_t)(n * weight->rows));
  return 1;
}

/* core.test_packed_row{ type=, cols=, rows=, w=, row=, variant=, planes=, plane= } -> the row as float32 bytes */
static int test_packed_row(lua_State *L)
{
  kg_error err;
  test t;
  if (set_up(L, &t, &err)) return kg_push_error(L, &err);
  const int64_t row = kg_opt_int_field(L, 1, "row", 0, 0, t.weight.rows - 1);
  float *out = push_aligned(L, 4 * (size_t)t.weight.cols);
  t.kernels->dequantize_row(&t.weight, t.plane, row, out);
  lua_pushlstring(L, (const char *)out, 4 * (size_t)t.weight.cols);
  return 1;
}

/* core.kernel_variants() -> names of the instruction sets that this processor runs, from the plainest to the best */
static int kernel_variants(lua_State *L)
{
  lua_newtable(L);
  for (int i = 0; kg_kernels_at(i); i++) {
    lua_pushstring(L, kg_kernels_at(i)->name);
    lua_rawseti(L, -2, i + 1);
  }
  return 1;
}

void kg_bind_kernels(lua_State *L)
{
  static const luaL_Reg functions[] = {{"test_matmul", test_matmul},
                                       {"test_packed_row", test_packed_row},
                                       {"kernel_variants", kernel_variants},
                                       {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
