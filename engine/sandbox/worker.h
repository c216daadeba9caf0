/* worker.h - a script in a process of its own, kigo-worker (worker_main.c): the side of the engine. The process is
 * taken to be hostile: what comes from it is checked, copied before it is looked at, and late answers end it.
 *
 * The two talk over a socket in frames, a kg_frame and its bytes, one answer to each request in turn, and share a block
 * of memory of fixed size for the numbers of tensors. */
#ifndef KG_WORKER_H
#define KG_WORKER_H

#include "script.h"

typedef struct kg_worker kg_worker;

enum { KG_FRAME_MAGIC = 0x6b677731, KG_FRAME_MAX = KG_VALUE_BYTES + 4096 };

typedef struct kg_frame {
  uint32_t magic, serial; /* of the request; the answer repeats it */
  uint32_t size;          /* bytes that follow, at most KG_FRAME_MAX */
} kg_frame;

/* What holds the process besides its own Lua state, as bits. */
enum {
  KG_LAYER_LIMITS = 1,    /* rlimits: memory, time, files, processes */
  KG_LAYER_ADDRESSES = 2, /* RLIMIT_AS among them (not in builds with AddressSanitizer, which reserve terabytes) */
  KG_LAYER_SECCOMP = 4,   /* no system calls but those that memory, one socket and the end need */
  KG_LAYER_LANDLOCK = 8   /* no files, where the kernel has it */
};

/* The first thing that the process sends, unasked. */
typedef struct kg_hello {
  uint32_t magic, layers;
  int32_t code; /* of what failed, or KG_OK */
  char message[128];
} kg_hello;

/* Where the numbers of n tensors lie in the shared memory; false: they do not fit into its n_bytes. */
bool kg_shared_layout(const uint64_t *n_floats, uint32_t n, size_t n_bytes, size_t *offsets);

/* Start a process and wait until it has locked itself in. KG_ERR_LIMIT: it took longer than timeout_ns. */
int kg_worker_start(size_t memory, size_t shared, int64_t timeout_ns, kg_worker **out, kg_error *err);
/* Kill it and wait for its end. NULL allowed. */
void kg_worker_stop(kg_worker *worker);

float *kg_worker_shared(kg_worker *worker, size_t offset);
uint32_t kg_worker_layers(const kg_worker *worker);
int32_t kg_worker_pid(const kg_worker *worker);

/* Send a request and wait for the answer, which is a kg_answer and what belongs to it, and nothing else. KG_ERR_LIMIT:
 * it did not come in time; KG_ERR_SCRIPT: the process ended or broke the rules of this protocol. After any failure only
 * stopping is left. */
int kg_worker_ask(kg_worker *worker, const kg_bytes *request, int64_t timeout_ns, kg_bytes *answer, kg_error *err);

#endif
