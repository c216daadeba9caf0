#include "sandbox.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "worker.h"

enum {
  SOURCE_MAX = KG_VALUE_BYTES - 4096, /* of the script, in a message with its name and head */
  NAME_MAX_BYTES = 1024,
  GRACE = 10 /* a worker ends its script itself, with the line where it was; this part of the time later it is killed */
};

/* Starting takes milliseconds, on a busy machine more; the script's own time is counted from then on. */
static const int64_t START_TIMEOUT_NS = 10000000000;

struct kg_sandbox {
  kg_sandbox_options options;
  kg_script *script; /* one of these, or none: it is not alive */
  kg_worker *worker;
  kg_bytes load, request, answer;
  kg_buffer *copies[KG_VALUE_TENSORS]; /* of tensors, for the script to work on; host memory stays for the next call */
  kg_answer head;                      /* of the answer */
  kg_error end;                        /* why it is not alive */
  uint64_t n_calls;
};

int kg_sandbox_new(const kg_sandbox_options *options, const char *name, const char *source, size_t n, kg_sandbox **out,
                   kg_error *err)
{
  const size_t n_name = strlen(name);
  if (n > SOURCE_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "a script has at most %d bytes, not %zu", SOURCE_MAX, n);
  if (n_name > NAME_MAX_BYTES)
    return kg_fail(err, KG_ERR_ARGUMENT, "name: at most %d bytes, not %zu", NAME_MAX_BYTES, n_name);
  kg_sandbox *sandbox = kg_alloc_array(1, sizeof *sandbox);
  if (!sandbox) return kg_fail_memory(err, sizeof *sandbox, "a sandbox");
  sandbox->options = *options;
  kg_fail(&sandbox->end, KG_ERR_SCRIPT, "the sandbox was not started");
  int status = kg_message_add(&sandbox->load, NULL, sizeof(kg_request), err);
  if (!status) status = kg_value_write_text(&sandbox->load, name, n_name, err);
  if (!status) status = kg_value_write_text(&sandbox->load, source, n, err);
  if (status)
    kg_sandbox_free(sandbox);
  else
    *out = sandbox;
  return status;
}

/* Let go of what runs; `why` is what callers hear from now on. */
static void end(kg_sandbox *sandbox, const kg_error *why)
{
  kg_script_free(sandbox->script);
  kg_worker_stop(sandbox->worker);
  sandbox->script = NULL;
  sandbox->worker = NULL;
  if (why) sandbox->end = *why;
}

/* Let go of the copies: of all, or of those whose device may be gone before the next call. */
static void release_copies(kg_sandbox *sandbox, bool all)
{
  for (int32_t i = 0; i < KG_VALUE_TENSORS; i++) {
    if (!sandbox->copies[i] || (!all && sandbox->copies[i]->ops == &kg_host_tensor_ops)) continue;
    kg_buffer_unref(sandbox->copies[i]);
    sandbox->copies[i] = NULL;
  }
}

void kg_sandbox_free(kg_sandbox *sandbox)
{
  if (!sandbox) return;
  end(sandbox, NULL);
  release_copies(sandbox, true);
  kg_bytes_deinit(&sandbox->load);
  kg_bytes_deinit(&sandbox->request);
  kg_bytes_deinit(&sandbox->answer);
  kg_free(sandbox);
}

kg_bytes *kg_sandbox_request(kg_sandbox *sandbox, kg_error *err)
{
  sandbox->request.size = 0;
  return kg_message_add(&sandbox->request, NULL, sizeof(kg_request), err) ? NULL : &sandbox->request;
}

/* ---- asking ---- */

/* There is an answer. A script that was ended by its limits may have left anything behind: it does not run again. */
static void finish(kg_sandbox *sandbox)
{
  memcpy(&sandbox->head, sandbox->answer.data, sizeof sandbox->head);
  sandbox->n_calls++;
  if (!sandbox->head.is_spent) return;
  kg_error why;
  const size_t n = sandbox->answer.size - sizeof sandbox->head;
  kg_fail(&why, KG_ERR_LIMIT, "the sandbox is spent (%.*s): restart it", n < 200 ? (int)n : 200,
          sandbox->answer.data + sizeof sandbox->head);
  end(sandbox, &why);
}

/* There is none and will be none. */
static int finish_worker(kg_sandbox *sandbox, const kg_error *err)
{
  kg_error why;
  kg_fail(&why, err->code, "the sandbox has ended (%.200s): restart it", err->message);
  end(sandbox, &why);
  return err->code;
}

static int copy_tensor(const kg_tensor *tensor, kg_buffer **copy, kg_error *err)
{
  const kg_tensor_ops *ops = tensor->buffer->ops;
  const int64_t n = tensor->shape[0];
  if (!*copy || (*copy)->ops != ops || (*copy)->n != n) {
    kg_buffer_unref(*copy);
    *copy = NULL;
    const int status = ops->like(tensor->buffer, n, copy, err);
    if (status) return status;
  }
  return ops->copy(*copy, 0, tensor->buffer, tensor->at, n, err);
}

static int ask_here(kg_sandbox *sandbox, const kg_bytes *request, kg_tensor *const *tensors, uint32_t n, kg_error *err)
{
  int status = KG_OK;
  for (uint32_t i = 0; !status && i < n; i++) status = copy_tensor(tensors[i], &sandbox->copies[i], err);
  if (!status)
    status = kg_script_answer(sandbox->script, request->data, request->size, sandbox->copies, &sandbox->answer, err);
  kg_answer answer = {0};
  if (!status) memcpy(&answer, sandbox->answer.data, sizeof answer);
  for (uint32_t i = 0; !status && i < n; i++) {
    kg_tensor *tensor = tensors[i];
    if (answer.changed & 1u << i)
      status = tensor->buffer->ops->copy(tensor->buffer, tensor->at, sandbox->copies[i], 0, tensor->shape[0], err);
  }
  release_copies(sandbox, false);
  return status;
}

static int ask_worker(kg_sandbox *sandbox, const kg_bytes *request, kg_tensor *const *tensors, const size_t *offsets,
                      uint32_t n, kg_error *err)
{
  const int64_t timeout_ns = sandbox->options.timeout_ns, grace_ns = timeout_ns / GRACE;
  int status = KG_OK;
  for (uint32_t i = 0; !status && i < n; i++)
    status = tensors[i]->buffer->ops->read(tensors[i]->buffer, tensors[i]->at, tensors[i]->shape[0],
                                           kg_worker_shared(sandbox->worker, offsets[i]), err);
  if (!status && kg_worker_ask(sandbox->worker, request, timeout_ns + grace_ns, &sandbox->answer, err))
    return finish_worker(sandbox, err);
  kg_answer answer = {0};
  if (!status) memcpy(&answer, sandbox->answer.data, sizeof answer);
  for (uint32_t i = 0; !status && i < n; i++) /* any number is a number: nothing there to check */
    if (answer.changed & 1u << i)
      status = tensors[i]->buffer->ops->write(tensors[i]->buffer, tensors[i]->at, tensors[i]->shape[0],
                                              kg_worker_shared(sandbox->worker, offsets[i]), err);
  return status;
}

/* `request` has room for the head in front. */
static int ask(kg_sandbox *sandbox, kg_bytes *request, kg_request *head, kg_tensor *const *tensors, kg_error *err)
{
  size_t offsets[KG_VALUE_TENSORS];
  head->steps = sandbox->options.steps;
  head->timeout_ns = sandbox->options.timeout_ns;
  for (uint32_t i = 0; i < head->n_tensors; i++) head->n_floats[i] = (uint64_t)tensors[i]->shape[0];
  memcpy(request->data, head, sizeof *head);
  if (sandbox->worker && !kg_shared_layout(head->n_floats, head->n_tensors, sandbox->options.shared, offsets))
    return kg_fail(err, KG_ERR_ARGUMENT, "the tensors take more than the %zu bytes of option tensors",
                   sandbox->options.shared);
  const int status = sandbox->worker ? ask_worker(sandbox, request, tensors, offsets, head->n_tensors, err)
                                     : ask_here(sandbox, request, tensors, head->n_tensors, err);
  if (!status) finish(sandbox);
  return status;
}

int kg_sandbox_ask(kg_sandbox *sandbox, kg_request *head, kg_tensor *const *tensors, kg_error *err)
{
  if (!sandbox->script && !sandbox->worker) return kg_fail(err, sandbox->end.code, "%s", sandbox->end.message);
  return ask(sandbox, &sandbox->request, head, tensors, err);
}

int kg_sandbox_start(kg_sandbox *sandbox, kg_error *err)
{
  const kg_sandbox_options *options = &sandbox->options;
  kg_error why;
  kg_fail(&why, KG_ERR_SCRIPT, "the sandbox could not be started");
  end(sandbox, &why);
  const int status = options->isolate
                         ? kg_worker_start(options->memory, options->shared, START_TIMEOUT_NS, &sandbox->worker, err)
                         : kg_script_new(options->memory, &sandbox->script, err);
  if (status) return status;
  kg_request head = {.kind = KG_REQUEST_LOAD, .n_values = 2};
  const int asked = ask(sandbox, &sandbox->load, &head, NULL, err);
  if (!asked && sandbox->head.code) end(sandbox, &why); /* half a script is none */
  return asked;
}

const kg_answer *kg_sandbox_answer(const kg_sandbox *sandbox) { return &sandbox->head; }

const char *kg_sandbox_answer_bytes(const kg_sandbox *sandbox, size_t *n)
{
  *n = sandbox->answer.size - sizeof sandbox->head;
  return sandbox->answer.data + sizeof sandbox->head;
}

const kg_sandbox_options *kg_sandbox_get_options(const kg_sandbox *sandbox) { return &sandbox->options; }

void kg_sandbox_get_stats(const kg_sandbox *sandbox, kg_sandbox_stats *out)
{
  *out = (kg_sandbox_stats){.memory = sandbox->head.memory,
                            .memory_peak = sandbox->head.memory_peak,
                            .steps = sandbox->head.steps,
                            .n_calls = sandbox->n_calls,
                            .pid = sandbox->worker ? kg_worker_pid(sandbox->worker) : 0,
                            .layers = sandbox->worker ? kg_worker_layers(sandbox->worker) : 0,
                            .is_alive = sandbox->script || sandbox->worker};
}
