#define _GNU_SOURCE /* prlimit */
#include "worker.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "alloc.h"
#include "budget.h"
#include "error.h"
#include "plugin.h"
#include "system.h"

#define NAME "sandbox"
enum { TENSOR_ALIGNMENT = 64 };

struct kg_worker {
  pid_t pid; /* 0: reaped */
  int fd;
  void *shared;
  size_t shared_bytes;
  uint32_t serial, layers;
};

bool kg_shared_layout(const uint64_t *n_floats, uint32_t n, size_t n_bytes, size_t *offsets)
{
  size_t at = 0, size;
  for (uint32_t i = 0; i < n; i++) {
    offsets[i] = at;
    if (!kg_mul_size((size_t)n_floats[i], sizeof(float), &size) || !kg_align_size(size, TENSOR_ALIGNMENT, &size) ||
        !kg_add_size(at, size, &at) || at > n_bytes)
      return false;
  }
  return true;
}

float *kg_worker_shared(kg_worker *worker, size_t offset) { return (float *)((char *)worker->shared + offset); }

uint32_t kg_worker_layers(const kg_worker *worker) { return worker->layers; }

int32_t kg_worker_pid(const kg_worker *worker) { return (int32_t)worker->pid; }

/* ---- ends ---- */

/* The process is gone, or must go now: reap it, and say how it ended (-1: nobody knows). */
static int reap(kg_worker *worker)
{
  bool ended = false;
  int how = -1;
  if (!worker->pid) return how;
  /* Look first: a process that somebody else reaped has given its number away. */
  if (kg_sys_reap(NAME, worker->pid, false, &ended, &how, NULL) || !ended) {
    kill(worker->pid, SIGKILL);
    for (int tries = 0; !ended && tries < 3; tries++) (void)kg_sys_reap(NAME, worker->pid, true, &ended, &how, NULL);
  }
  worker->pid = 0;
  return how;
}

void kg_worker_stop(kg_worker *worker)
{
  if (!worker) return;
  (void)reap(worker);
  if (worker->fd >= 0) kg_sys_close(worker->fd);
  if (worker->shared) kg_sys_munmap(worker->shared, worker->shared_bytes);
  kg_free(worker);
}

/* The socket ended: why? */
static int fail_ended(kg_worker *worker, kg_error *err)
{
  /* It may close the socket a moment before it is dead. */
  const struct timespec moment = {.tv_nsec = 1000000};
  bool ended = false;
  int how = -1;
  for (int i = 0; i < 50 && !ended; i++) {
    if (kg_sys_reap(NAME, worker->pid, false, &ended, &how, NULL)) break;
    if (!ended) nanosleep(&moment, NULL);
  }
  if (ended)
    worker->pid = 0;
  else
    how = reap(worker);
  if (how >= 0 && WIFSIGNALED(how) && WTERMSIG(how) == SIGXCPU)
    return kg_fail(err, KG_ERR_LIMIT, "out of time: the worker's processor time is spent");
  if (how >= 0 && WIFSIGNALED(how))
    return kg_fail(err, KG_ERR_SCRIPT, "the worker died: %s%s", strsignal(WTERMSIG(how)),
                   WTERMSIG(how) == SIGSYS ? " (it made a system call that is not allowed)" : "");
  return kg_fail(err, KG_ERR_SCRIPT, "the worker ended");
}

/* ---- frames ---- */

/* Wait for the socket, until the deadline at most. */
static int wait_until(kg_worker *worker, bool to_write, int64_t deadline_ns, kg_error *err)
{
  for (bool ready = false; !ready;) {
    const int64_t left = deadline_ns - kg_budget_now();
    if (left <= 0) {
      (void)reap(worker);
      return kg_fail(err, KG_ERR_LIMIT, "out of time: the worker was killed");
    }
    const int status = kg_sys_wait_socket(NAME, worker->fd, to_write, left, &ready, err);
    if (status) return status;
  }
  return KG_OK;
}

static int send_all(kg_worker *worker, const void *bytes, size_t n, int64_t deadline_ns, kg_error *err)
{
  for (size_t done = 0; done < n;) {
    size_t moved;
    bool ended;
    int status = kg_sys_send(NAME, worker->fd, (const char *)bytes + done, n - done, &moved, &ended, err);
    if (!status && ended) status = fail_ended(worker, err);
    if (!status && !moved) status = wait_until(worker, true, deadline_ns, err);
    if (status) return status;
    done += moved;
  }
  return KG_OK;
}

static int recv_all(kg_worker *worker, void *bytes, size_t n, int64_t deadline_ns, kg_error *err)
{
  for (size_t done = 0; done < n;) {
    size_t moved;
    bool ended;
    int status = kg_sys_recv(NAME, worker->fd, (char *)bytes + done, n - done, &moved, &ended, err);
    if (!status && ended) status = fail_ended(worker, err);
    if (!status && !moved) status = wait_until(worker, false, deadline_ns, err);
    if (status) return status;
    done += moved;
  }
  return KG_OK;
}

/* A worker that ran wild between two calls would meet this; one that works spends no more than its call may take. */
static void limit_processor_time(const kg_worker *worker, int64_t timeout_ns)
{
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(worker->pid, &clock) || clock_gettime(clock, &used)) return;
  const struct rlimit limit = {.rlim_cur = (rlim_t)(used.tv_sec + timeout_ns / 1000000000 + 2),
                               .rlim_max = RLIM_INFINITY};
  (void)prlimit(worker->pid, RLIMIT_CPU, &limit, NULL);
}

/* Is this what a kg_answer may look like? */
static bool is_answer(const kg_bytes *bytes)
{
  kg_answer answer;
  if (bytes->size < sizeof answer) return false;
  memcpy(&answer, bytes->data, sizeof answer);
  const bool is_failure = answer.code == KG_ERR_SCRIPT || answer.code == KG_ERR_LIMIT || answer.code == KG_ERR_MEMORY ||
                          answer.code == KG_ERR_FORMAT;
  if (is_failure) return !answer.n_values && !answer.changed && bytes->size - sizeof answer <= KG_SCRIPT_TEXT_MAX;
  return answer.code == KG_OK && !answer.is_spent && answer.n_values <= KG_VALUE_LIST &&
         answer.changed < 1u << KG_VALUE_TENSORS;
}

int kg_worker_ask(kg_worker *worker, const kg_bytes *request, int64_t timeout_ns, kg_bytes *answer, kg_error *err)
{
  const int64_t now = kg_budget_now();
  const int64_t deadline_ns = timeout_ns < INT64_MAX - now ? now + timeout_ns : INT64_MAX;
  const kg_frame frame = {.magic = KG_FRAME_MAGIC, .serial = ++worker->serial, .size = (uint32_t)request->size};
  kg_frame got;
  answer->size = 0;
  limit_processor_time(worker, timeout_ns);
  int status = send_all(worker, &frame, sizeof frame, deadline_ns, err);
  if (!status) status = send_all(worker, request->data, request->size, deadline_ns, err);
  if (!status) status = recv_all(worker, &got, sizeof got, deadline_ns, err);
  if (status) return status;
  if (got.magic != KG_FRAME_MAGIC || got.serial != frame.serial || got.size > KG_FRAME_MAX)
    return kg_fail(err, KG_ERR_SCRIPT, "the worker sent what is no answer");
  status = kg_message_add(answer, NULL, got.size, err);
  if (!status) status = recv_all(worker, answer->data, got.size, deadline_ns, err);
  if (!status && !is_answer(answer)) status = kg_fail(err, KG_ERR_SCRIPT, "the worker sent what is no answer");
  return status;
}

/* ---- starting ---- */

static int find_program(char path[PATH_MAX], kg_error *err)
{
  if (kg_find_beside("kigo-worker", X_OK, path, PATH_MAX)) return KG_OK;
  return kg_fail(err, KG_ERR_UNSUPPORTED, "kigo-worker is not beside the program or library of kigo");
}

/* Start the process with one end of a socket and the shared memory. */
static int spawn(kg_worker *worker, size_t memory, kg_error *err)
{
  char path[PATH_MAX], text[5][24];
  int fds[2], ends[2], memory_fd;
  int status = find_program(path, err);
  if (!status) status = kg_sys_shared_memory(NAME, worker->shared_bytes, &memory_fd, &worker->shared, err);
  if (status) return status;
  status = kg_sys_socketpair(NAME, fds, err);
  if (!status) {
    worker->fd = fds[0];
    ends[0] = fds[1];
    ends[1] = memory_fd;
    snprintf(text[0], sizeof text[0], "%d", ends[0]);
    snprintf(text[1], sizeof text[1], "%d", ends[1]);
    snprintf(text[2], sizeof text[2], "%d", (int)getpid());
    snprintf(text[3], sizeof text[3], "%zu", memory);
    snprintf(text[4], sizeof text[4], "%zu", worker->shared_bytes);
    char *const arguments[] = {"kigo-worker", text[0], text[1], text[2], text[3], text[4], NULL};
    status = kg_sys_spawn(path, arguments, ends, &worker->pid, err);
    if (status) worker->pid = 0;
    kg_sys_close(fds[1]);
  }
  kg_sys_close(memory_fd);
  return status;
}

int kg_worker_start(size_t memory, size_t shared, int64_t timeout_ns, kg_worker **out, kg_error *err)
{
  kg_worker *worker = kg_alloc_array(1, sizeof *worker);
  if (!worker) return kg_fail_memory(err, sizeof *worker, "a worker");
  worker->fd = -1;
  worker->shared_bytes = shared;
  kg_hello hello;
  int status = spawn(worker, memory, err);
  const int64_t now = kg_budget_now();
  if (!status)
    status = recv_all(worker, &hello, sizeof hello, timeout_ns < INT64_MAX - now ? now + timeout_ns : INT64_MAX, err);
  if (!status && hello.magic != KG_FRAME_MAGIC) status = kg_fail(err, KG_ERR_SCRIPT, "kigo-worker is of another build");
  if (!status && hello.code) {
    hello.message[sizeof hello.message - 1] = 0;
    const bool is_memory = hello.code == KG_ERR_MEMORY; /* for the script's state; else it could not lock itself in */
    status = kg_fail(err, is_memory ? KG_ERR_MEMORY : KG_ERR_UNSUPPORTED, "kigo-worker: %s", hello.message);
  }
  if (status) {
    kg_worker_stop(worker);
    return status;
  }
  worker->layers = hello.layers;
  *out = worker;
  return KG_OK;
}
