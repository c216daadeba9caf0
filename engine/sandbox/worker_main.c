/* worker_main.c - kigo-worker: one script that nobody trusts, in a process that has locked itself in. worker.c starts
 * it and gives it a socket, shared memory, its own process number and two sizes; nobody else has a use for it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "alloc.h"
#include "confine.h"
#include "error.h"
#include "worker.h"

enum {
  SOCKET = 3,
  OVERHEAD_BYTES = 2 << 20, /* beside what the script holds: messages, malloc's own */
  UNUSED = 10               /* from here on no descriptor is looked for that must move */
};

#ifdef __SANITIZE_ADDRESS__
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0:allocator_may_return_null=1"; }
#endif

/* The number in an argument; -1: there is none. */
static long long number(const char *text)
{
  char *end;
  errno = 0;
  const long long n = strtoll(text, &end, 10);
  return errno || end == text || *end || n < 0 ? -1 : n;
}

/* Everything or nothing: an end of the socket is our end. */
static bool move(bool is_read, void *bytes, size_t n)
{
  for (size_t done = 0; done < n;) {
    char *at = (char *)bytes + done;
    const ssize_t moved = is_read ? read(SOCKET, at, n - done) : write(SOCKET, at, n - done);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return false;
    done += (size_t)moved;
  }
  return true;
}

static void stay(kg_buffer *buffer) { (void)buffer; }

/* Read a request, answer it. False: the parent is gone, or there is nothing that we could say to it. */
static bool serve(kg_script *script, char *shared, size_t shared_bytes, kg_bytes *request, kg_bytes *answer)
{
  kg_frame frame;
  kg_request head;
  size_t offsets[KG_VALUE_TENSORS];
  kg_buffer buffers[KG_VALUE_TENSORS], *tensors[KG_VALUE_TENSORS];
  request->size = 0;
  if (!move(true, &frame, sizeof frame) || frame.magic != KG_FRAME_MAGIC || frame.size > KG_FRAME_MAX ||
      frame.size < sizeof head || kg_message_add(request, NULL, frame.size, NULL) ||
      !move(true, request->data, frame.size))
    return false;
  memcpy(&head, request->data, sizeof head);
  if (head.n_tensors > KG_VALUE_TENSORS || !kg_shared_layout(head.n_floats, head.n_tensors, shared_bytes, offsets))
    return false;
  for (uint32_t i = 0; i < head.n_tensors; i++) {
    buffers[i] = (kg_buffer){.ops = &kg_host_tensor_ops,
                             .data = shared + offsets[i],
                             .n = (int64_t)head.n_floats[i],
                             .n_refs = 1,
                             .release = stay};
    tensors[i] = &buffers[i];
  }
  if (kg_script_answer(script, request->data, request->size, tensors, answer, NULL)) return false;
  frame.size = (uint32_t)answer->size;
  return move(false, &frame, sizeof frame) && move(false, answer->data, answer->size);
}

/* Descriptors 0 to 2 lead nowhere (sanitizers keep the last for their reports), 3 is the socket. */
static bool arrange_descriptors(int socket)
{
  const int kept = fcntl(socket, F_DUPFD, UNUSED), nowhere = open("/dev/null", O_RDWR);
  if (kept < 0 || nowhere < 0) return false;
#ifdef __SANITIZE_ADDRESS__
  const int last = 1;
#else
  const int last = 2;
#endif
  for (int fd = 0; fd <= last; fd++)
    if (dup2(nowhere, fd) < 0) return false;
  return dup2(kept, SOCKET) == SOCKET;
}

/* For specs: `kigo-worker --try CALL` locks itself in and does what a script that had broken out of Lua would do next.
 * Zero: it got through. */
static int try_call(const char *name)
{
  enum { MEMORY = 8 << 20 };
  uint32_t layers;
  const pid_t parent = getppid();
  if (!arrange_descriptors(STDIN_FILENO) || kg_confine(SOCKET, SOCKET + 1, MEMORY, &layers, NULL)) return EXIT_FAILURE;
  bool through = false;
  if (!strcmp(name, "nothing")) through = true;
  if (!strcmp(name, "open")) through = open("/etc/hostname", O_RDONLY) >= 0;
  if (!strcmp(name, "socket")) through = socket(AF_INET, SOCK_STREAM, 0) >= 0;
  if (!strcmp(name, "fork")) through = fork() >= 0;
  if (!strcmp(name, "exec")) through = execl("/bin/true", "true", (char *)NULL) == 0;
  if (!strcmp(name, "kill")) through = kill(parent, 0) == 0;
  if (!strcmp(name, "write")) through = write(STDIN_FILENO, "x", 1) == 1;
  if (!strcmp(name, "code"))
    through = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
  if (!strcmp(name, "memory"))
    through = mmap(NULL, 4 * MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
  _exit(through ? EXIT_SUCCESS : EXIT_FAILURE);
}

int main(int argc, char **argv)
{
  if (argc == 3 && !strcmp(argv[1], "--try")) return try_call(argv[2]);
  long long numbers[5] = {0};
  for (int i = 0; i < 5; i++) numbers[i] = argc == 6 ? number(argv[i + 1]) : -1;
  for (int i = 0; i < 5; i++) {
    if (numbers[i] >= 0) continue;
    fputs("kigo-worker runs scripts for kigo.sandbox { isolate = true }; it is of no use by hand\n", stderr);
    return EXIT_FAILURE;
  }
  const size_t memory = (size_t)numbers[3], shared_bytes = (size_t)numbers[4];
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != (pid_t)numbers[2]) return EXIT_FAILURE; /* it is dead already */
  signal(SIGPIPE, SIG_IGN);
  mallopt(M_ARENA_MAX, 1); /* another arena would ask the system how many processors there are */
  char *shared = mmap(NULL, shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, (int)numbers[1], 0);
  if (shared == MAP_FAILED || !arrange_descriptors((int)numbers[0])) return EXIT_FAILURE;

  kg_hello hello = {.magic = KG_FRAME_MAGIC};
  kg_script *script = NULL;
  kg_error err;
  size_t most;
  hello.code = kg_add_size(memory, OVERHEAD_BYTES, &most) ? kg_confine(SOCKET, SOCKET + 1, most, &hello.layers, &err)
                                                          : kg_fail(&err, KG_ERR_ARGUMENT, "memory: too much");
  if (!hello.code) hello.code = kg_script_new(memory, &script, &err);
  if (hello.code) snprintf(hello.message, sizeof hello.message, "%.*s", (int)sizeof hello.message - 1, err.message);
  kg_bytes request = {0}, answer = {0};
  bool goes_on = move(false, &hello, sizeof hello) && !hello.code;
  while (goes_on) goes_on = serve(script, shared, shared_bytes, &request, &answer);
  _exit(EXIT_SUCCESS); /* nothing of ours outlives the process, and finalizers have no business here */
}
