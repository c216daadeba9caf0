/* bind.h - what the Lua bindings share. One file per object (bind_<object>.c), no logic of their own.
 *
 * Shape of every binding: the userdata is made closed with its metatable, then the resource is acquired, so an error in
 * between leaks nothing; every method goes through kg_check_open; parents are kept alive in user values. Whatever makes
 * a Lua value may run finalizers, and those may close any handle: the object is taken from its handle after the last
 * such call. Caller's mistakes raise at the Lua caller's line; the world's faults return nil, message, code. */
#ifndef KG_BIND_H
#define KG_BIND_H

#include <lauxlib.h>
#include <lua.h>

#include "kigo.h"

#define KG_CLASS_GGUF "kigo.Gguf"
#define KG_CLASS_TOKENIZER "kigo.Tokenizer"
#define KG_CLASS_STREAM "kigo.Stream"
#define KG_CLASS_PLAN "kigo.Plan"
#define KG_CLASS_MODEL "kigo.Model"
#define KG_CLASS_SEQUENCE "kigo.Sequence"
#define KG_CLASS_TENSOR "kigo.Tensor"
#define KG_CLASS_CHAIN "kigo.Chain"
#define KG_CLASS_SANDBOX "kigo.Sandbox"
#define KG_CLASS_GRAMMAR "kigo.Grammar"
#define KG_CLASS_MATCHER "kigo.Matcher"

/* Every userdata of ours starts with this; NULL = closed. */
typedef struct kg_handle {
  void *object;
} kg_handle;

/* Define a class: metatable `name` with __name, the metamethods, and __index = a table of methods, which Lua files
 * extend (core.classes["Sequence"]). Leaves nothing on the stack. Every metamethod has the method table as upvalue 1: a
 * class with properties passes its own __index in `metamethods` and falls back to it. */
void kg_class(lua_State *L, const char *name, const luaL_Reg *methods, const luaL_Reg *metamethods);
/* More methods of a class that there is. */
void kg_extend_class(lua_State *L, const char *name, const luaL_Reg *methods);

/* Push a closed handle of the class with n user values. */
kg_handle *kg_push_handle(lua_State *L, const char *name, int n_user_values);
/* The handle at index, of this class, open or closed. */
kg_handle *kg_check_handle(lua_State *L, int index, const char *name);
/* Its object; raises "NAME is closed" if it is. */
void *kg_check_open(lua_State *L, int index, const char *name);

/* As luaL_error and luaL_check*, but the position is the line of the first caller that is no file of this library:
 * there the mistake was made, however many of our own functions stand in between. */
int kg_error_at(lua_State *L, const char *format, ...);
void kg_check_type(lua_State *L, int index, int type);
void *kg_check_userdata(lua_State *L, int index, const char *name);
const char *kg_check_lstring(lua_State *L, int index, size_t *size);
const char *kg_check_string(lua_State *L, int index);
double kg_check_number(lua_State *L, int index);

/* Finish a failed call: KG_ERR_ARGUMENT raises, anything else returns nil, message, code (3 values). */
int kg_push_error(lua_State *L, const kg_error *err);
/* For properties and metamethods, which cannot return nil, message: always raises. */
int kg_raise(lua_State *L, const kg_error *err);

/* An integer argument or table field within [min, max], or an error that names it. */
int64_t kg_check_int(lua_State *L, int index, const char *name, int64_t min, int64_t max);
/* Options at index: nil, or a table with fields of this list (NULL-terminated). A misspelt one must not be ignored. */
void kg_check_fields(lua_State *L, int index, const char *const *allowed);
/* A field of the options at index (nil: none): the value or the default, range-checked, named in errors. A string stays
 * valid while the table does. */
int64_t kg_opt_int_field(lua_State *L, int index, const char *field, int64_t fallback, int64_t min, int64_t max);
double kg_opt_number_field(lua_State *L, int index, const char *field, double fallback, double min, double max);
const char *kg_opt_string_field(lua_State *L, int index, const char *field, const char *fallback);
bool kg_opt_bool_field(lua_State *L, int index, const char *field, bool fallback);

/* For progress functions, which are called while C owns things: pcall (kg_call_progress, function, light userdata of
 * the call) -> what the function returns. Pushing the arguments may run out of memory. */
typedef struct kg_progress_call {
  const char *what;
  int64_t done, total;
} kg_progress_call;
int kg_call_progress(lua_State *L);

/* core.set_company(f): where bodies run side by side (lua/kigo/pass.lua), those that want an answer from one device may
 * ask together. f(kind, ...) is called before a question that takes time, and may yield. kg_push_company pushes f;
 * false, with nothing pushed: there is none. kind: kg_look_kind (tensor, k); KG_COMPANY_PICK (chain, logits, seq),
 * where f returns the id if it was drawn; KG_COMPANY_APPLY (the same), where f says whether it was done. */
enum { KG_COMPANY_PICK = 10, KG_COMPANY_APPLY };
int kg_set_company(lua_State *L);
bool kg_push_company(lua_State *L);

/* Call f with all arguments while the collector rests: for readers that push many values between looks at their object,
 * which a finalizer might close. f raises for want of memory only. Not for what is called per token: restarting the
 * collector makes it take a step, a fraction of a millisecond. */
int kg_call_at_rest(lua_State *L, lua_CFunction f);

/* A Lua array of token ids as a userdata-held buffer (garbage collected), pushed on the stack; *n ids. Every element
 * must be an integer that fits int32; the error names the index. */
int32_t *kg_check_ids(lua_State *L, int index, size_t *n);
void kg_push_ids(lua_State *L, const int32_t *ids, size_t n);
/* An empty array in userdata: what is put in is released with it. */
kg_tokens *kg_push_tokens(lua_State *L);

/* Plain data (bind_plain.c). Replace the value on top by a deep copy, or by bytes that say it; what is no plain data
 * raises, with its path, which begins with `name`. */
void kg_copy_plain(lua_State *L, const char *name);
void kg_push_plain_bytes(lua_State *L, const char *name);
/* Push the value that the bytes say. False, with nothing pushed: they say none. */
bool kg_read_plain(lua_State *L, kg_string bytes);

/* Constructors that other bindings use. Each pushes one value. */
kg_tensor **kg_push_tensor(lua_State *L); /* closed tensor handle: store the tensor in it */
kg_tensor *kg_check_tensor(lua_State *L, int index);
/* So many numbers are about to be made into a tensor. Lua sees a handle of a few bytes where we hold megabytes, so we
 * collect when the tensors made since the last time add up: to a multiple of Lua's own memory, which is what a
 * collection costs, or to `most` bytes where that is not 0, for those that are counted apart (dropped_max in
 * tensor.h). */
void kg_count_garbage(lua_State *L, int64_t n_floats, int64_t most);
kg_sequence *kg_check_sequence(lua_State *L, int index);
kg_tokenizer *kg_check_tokenizer(lua_State *L, int index);
void kg_push_tokenizer(lua_State *L, kg_tokenizer *tokenizer); /* a handle with a reference of its own */
kg_gguf *kg_check_gguf(lua_State *L, int index);
struct kg_grammar *kg_check_grammar(lua_State *L, int index);
/* The adapters of the list at index (nil: none), all of the model at model_index, in userdata, which is pushed: for a
 * call that comes before any other of Lua's. */
struct kg_adapter **kg_check_adapters(lua_State *L, int index, int model_index, size_t *n);

enum { KG_SEQUENCE_HOOKS = 6 }; /* user value of a sequence: nil, or a table whose keys are its hooks */

/* model:restore(path, adapters), arguments from index 2 on, for bind_model.c. */
int kg_restore_sequence(lua_State *L, int model_index);

/* A closed sequence handle of the model at index. */
kg_handle *kg_push_sequence(lua_State *L, int model_index);

/* rng:integer(n), rng:choose(weights) and rng:choose_logits(logits), arguments from index 2 on, over any source of
 * uniform numbers in [0, 1). */
int kg_rng_integer(lua_State *L, double (*uniform)(void *), void *source);
int kg_rng_choose(lua_State *L, double (*uniform)(void *), void *source);
int kg_rng_choose_logits(lua_State *L, double (*uniform)(void *), void *source);

/* Around everything that may step the model at index, with nothing left on the stack in between: its progress function
 * runs on this thread; an error in it is raised by kg_end_step. kg_begin_step refuses a step inside a step. */
void kg_begin_step(lua_State *L, int model_index);
void kg_end_step(lua_State *L, int model_index);
/* In between, from a callback of the engine's: f with the light userdata `argument`, on the stack of the thread that
 * steps the model (a userdata). False when f raised: kg_end_step raises the first such error, strings with a
 * traceback. */
bool kg_call_in_step(void *model, lua_CFunction f, void *argument);
/* Called before a sequence is made: now and then, have the collector free those that were forgotten. */
void kg_collect_sequences(lua_State *L, int model_index);
/* Free the model at index if its handle is closed and its last sequence is gone. */
void kg_release_model(lua_State *L, int model_index);

/* One per file: define the classes and add the functions to the core table on top of the stack. */
void kg_bind_system(lua_State *L);
void kg_bind_gguf(lua_State *L);
void kg_bind_tokenizer(lua_State *L);
void kg_bind_stream(lua_State *L);
void kg_bind_plan(lua_State *L);
void kg_bind_model(lua_State *L);
void kg_bind_evidence(lua_State *L);
void kg_bind_inside(lua_State *L);
void kg_bind_sequence(lua_State *L);
void kg_bind_tensor(lua_State *L);
void kg_bind_chain(lua_State *L);
void kg_bind_kernels(lua_State *L);
void kg_bind_cpu(lua_State *L);
void kg_bind_unicode(lua_State *L);
void kg_bind_plain(lua_State *L);
void kg_bind_sandbox(lua_State *L);
void kg_bind_grammar(lua_State *L);
void kg_bind_constraint(lua_State *L); /* after the sequence */
void kg_bind_adapter(lua_State *L); /* after model and sequence */

/* A field of the table on top of the stack. */
void kg_set_number(lua_State *L, const char *field, double value);
void kg_set_integer(lua_State *L, const char *field, lua_Integer value);
void kg_set_string(lua_State *L, const char *field, const char *value);
void kg_set_boolean(lua_State *L, const char *field, bool value);

#endif
