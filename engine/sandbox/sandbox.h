/* sandbox.h - an untrusted script, in this process or in a worker: one surface for both. */
#ifndef KG_SANDBOX_H
#define KG_SANDBOX_H

#include "script.h"

typedef struct kg_sandbox kg_sandbox;

typedef struct kg_sandbox_options {
  bool isolate;       /* in a process of its own */
  size_t memory;      /* bytes that the script may hold */
  size_t shared;      /* isolate: bytes of tensors that one call may take along */
  int64_t steps;      /* instructions that one call may spend */
  int64_t timeout_ns; /* time that one call may take */
} kg_sandbox_options;

typedef struct kg_sandbox_stats {
  uint64_t memory, memory_peak, steps; /* of the last answer: bytes held, most ever held, instructions of that call */
  uint64_t n_calls;
  int32_t pid;     /* 0: no process */
  uint32_t layers; /* KG_LAYER_* of worker.h */
  bool is_alive;   /* it may be called */
} kg_sandbox_stats;

/* A sandbox that has not started. The name stands in messages of the script. */
int kg_sandbox_new(const kg_sandbox_options *options, const char *name, const char *source, size_t n, kg_sandbox **out,
                   kg_error *err);
void kg_sandbox_free(kg_sandbox *sandbox); /* NULL allowed; kills and reaps its process */

/* Start anew: a fresh state (or process), and the script run once. What the script did wrong is in the answer, as in
 * kg_sandbox_ask. */
int kg_sandbox_start(kg_sandbox *sandbox, kg_error *err);

/* Begin a request: its bytes, with room for the head, to which values are added. */
kg_bytes *kg_sandbox_request(kg_sandbox *sandbox, kg_error *err);
/* Ask it. `head` is completed and put before the values; numbers of the tensors go along as copies, and come back where
 * the script changed them and its answer is KG_OK. KG_OK: there is an answer. KG_ERR_LIMIT, KG_ERR_SCRIPT: there is
 * none and will be none until it is started anew. Other errors are the engine's. */
int kg_sandbox_ask(kg_sandbox *sandbox, kg_request *head, kg_tensor *const *tensors, kg_error *err);

/* The answer, until the next request, and the bytes behind it. */
const kg_answer *kg_sandbox_answer(const kg_sandbox *sandbox);
const char *kg_sandbox_answer_bytes(const kg_sandbox *sandbox, size_t *n);

const kg_sandbox_options *kg_sandbox_get_options(const kg_sandbox *sandbox);
void kg_sandbox_get_stats(const kg_sandbox *sandbox, kg_sandbox_stats *out);

#endif
