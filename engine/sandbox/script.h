/* script.h - one untrusted script in a lua_State of its own. What it is asked and what it answers are messages of
 * bytes, so that it does not matter whether it runs in this process or in a worker (worker.c): the caller speaks with
 * both in the same way.
 *
 * A request is a kg_request and the values of value.h behind it; an answer is a kg_answer and, where its code is KG_OK,
 * values, else the text of the error. Both sides are the same build on the same machine. */
#ifndef KG_SCRIPT_H
#define KG_SCRIPT_H

#include "value.h"

typedef struct kg_script kg_script;

typedef enum kg_request_kind {
  KG_REQUEST_LOAD,  /* values: name of the script, its text -> nothing. The first request, and only that. */
  KG_REQUEST_CALL,  /* name of a global function or nil (the one that the script returned), arguments -> results */
  KG_REQUEST_SAMPLE /* name or nil, logits, state or nil -> id, state or nil: f(logits, s), s with state, rng and pos */
} kg_request_kind;

typedef struct kg_request {
  uint32_t kind, n_values, n_tensors, reserved;
  int64_t steps, timeout_ns;           /* what this call may spend */
  uint64_t seed, draws;                /* sample: random numbers are those of kg_uniform at pos, from this draw on */
  int64_t pos;                         /* tokens on the timeline */
  uint64_t n_floats[KG_VALUE_TENSORS]; /* sizes of the tensors */
} kg_request;

typedef struct kg_answer {
  int32_t code;                         /* KG_OK or one of KG_ERR_* */
  uint32_t n_values, changed, is_spent; /* changed: a bit for each tensor; is_spent: the script will never run again */
  uint64_t draws, memory, memory_peak, steps;
} kg_answer;

enum { KG_SCRIPT_TEXT_MAX = 4096 }; /* of an error */

/* A state with the environment of library.h, nothing loaded. `memory`: bytes that it may hold. */
int kg_script_new(size_t memory, kg_script **out, kg_error *err);
void kg_script_free(kg_script *script);

/* Answer a request; `tensors` are its numbers, borrowed. What the script does wrong is in the answer, never in the
 * status: KG_ERR_MEMORY when the answer cannot be held, KG_ERR_FORMAT for a malformed request. */
int kg_script_answer(kg_script *script, const char *request, size_t n, kg_buffer *const *tensors, kg_bytes *answer,
                     kg_error *err);

#endif
