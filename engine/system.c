#define _GNU_SOURCE
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"

enum { TRIES = 1000 }; /* of a call that signals interrupt */

static struct {
  atomic_llong n_calls, fail_at; /* fail_at: value of n_calls that fails; 0 = none */
  atomic_int error;
  atomic_bool for_ever;
} faults[KG_SYS_N_CALLS];

const char *kg_sys_name(kg_sys_call call)
{
  static const char *const names[] = {
      [KG_SYS_OPEN] = "open",           [KG_SYS_MKOSTEMP] = "mkostemp",
      [KG_SYS_STAT] = "stat",           [KG_SYS_FSTAT] = "fstat",
      [KG_SYS_MMAP] = "mmap",           [KG_SYS_MUNMAP] = "munmap",
      [KG_SYS_MADVISE] = "madvise",     [KG_SYS_READ] = "read",
      [KG_SYS_WRITE] = "write",         [KG_SYS_FCHMOD] = "fchmod",
      [KG_SYS_FSYNC] = "fsync",         [KG_SYS_RENAME] = "rename",
      [KG_SYS_CLOSE] = "close",         [KG_SYS_UNLINK] = "unlink",
      [KG_SYS_GETRANDOM] = "getrandom", [KG_SYS_PTHREAD_CREATE] = "pthread_create",
      [KG_SYS_MEMFD_CREATE] = "memfd_create", [KG_SYS_FTRUNCATE] = "ftruncate",
      [KG_SYS_FCNTL] = "fcntl",         [KG_SYS_SOCKETPAIR] = "socketpair",
      [KG_SYS_POSIX_SPAWN] = "posix_spawn", [KG_SYS_PPOLL] = "ppoll",
      [KG_SYS_SEND] = "send",           [KG_SYS_RECV] = "recv",
      [KG_SYS_WAITPID] = "waitpid",
  };
  return (size_t)call < sizeof names / sizeof names[0] ? names[call] : "unknown";
}

void kg_sys_inject(kg_sys_call call, int64_t nth, int error, bool for_ever)
{
  atomic_store(&faults[call].error, error);
  atomic_store(&faults[call].for_ever, for_ever);
  atomic_store(&faults[call].fail_at, nth > 0 ? atomic_load(&faults[call].n_calls) + nth : 0);
}

int64_t kg_sys_calls(kg_sys_call call)
{
  return atomic_load(&faults[call].n_calls);
}

/* Count a call. Must it fail, with errno as set here? *n_bytes (may be NULL) is what it may move: less in a short
 * count. */
static bool injected(kg_sys_call call, size_t *n_bytes)
{
  const long long number = atomic_fetch_add_explicit(&faults[call].n_calls, 1, memory_order_relaxed) + 1;
  const long long at = atomic_load_explicit(&faults[call].fail_at, memory_order_relaxed);
  if (!at || number < at || (number > at && !atomic_load_explicit(&faults[call].for_ever, memory_order_relaxed)))
    return false;
  const int error = atomic_load_explicit(&faults[call].error, memory_order_relaxed);
  if (error == KG_SYS_SHORT) {
    if (n_bytes && *n_bytes > 1) *n_bytes = 1;
    return false;
  }
  errno = error;
  return true;
}

/* After a failure: is the call to be made again? */
static bool again(int *tries)
{
  return errno == EINTR && ++*tries < TRIES;
}

/* The end of a call that gave `result`: negative means that it failed as errno says. */
static int finish(kg_sys_call call, const char *path, long result, kg_error *err)
{
  if (result >= 0) return KG_OK;
  return kg_fail(err, KG_ERR_IO, "%s: %s failed: %s", path, kg_sys_name(call), strerror(errno));
}

int kg_sys_open(const char *path, int flags, int *fd, kg_error *err)
{
  int tries = 0;
  do *fd = injected(KG_SYS_OPEN, NULL) ? -1 : open(path, flags | O_CLOEXEC);
  while (*fd < 0 && again(&tries));
  return finish(KG_SYS_OPEN, path, *fd, err);
}

int kg_sys_mkostemp(const char *path, char *temporary, int *fd, kg_error *err)
{
  int tries = 0;
  do {
    memcpy(temporary + strlen(temporary) - 6, "XXXXXX", 6); /* a try that failed may have left a name */
    *fd = injected(KG_SYS_MKOSTEMP, NULL) ? -1 : mkostemp(temporary, O_CLOEXEC);
  } while (*fd < 0 && again(&tries));
  return finish(KG_SYS_MKOSTEMP, path, *fd, err);
}

int kg_sys_stat(const char *path, struct stat *out, bool *exists, kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_STAT, NULL) ? -1 : stat(path, out);
  while (result < 0 && again(&tries));
  *exists = result >= 0;
  return result < 0 && errno == ENOENT ? KG_OK : finish(KG_SYS_STAT, path, result, err);
}

int kg_sys_fstat(const char *path, int fd, struct stat *out, kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_FSTAT, NULL) ? -1 : fstat(fd, out);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_FSTAT, path, result, err);
}

int kg_sys_mmap(const char *path, int fd, size_t n_bytes, const void **out, kg_error *err)
{
  void *bytes;
  int tries = 0;
  do bytes = injected(KG_SYS_MMAP, NULL) ? MAP_FAILED : mmap(NULL, n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  while (bytes == MAP_FAILED && again(&tries));
  *out = bytes == MAP_FAILED ? NULL : bytes;
  return finish(KG_SYS_MMAP, path, bytes == MAP_FAILED ? -1 : 0, err);
}

/* The two below count tries from the last byte that moved. */
int kg_sys_read(const char *path, int fd, void *bytes, size_t n_bytes, size_t *got, kg_error *err)
{
  *got = 0;
  for (int tries = 0; *got < n_bytes;) {
    size_t wanted = n_bytes - *got;
    const ssize_t n = injected(KG_SYS_READ, &wanted) ? -1 : read(fd, (char *)bytes + *got, wanted);
    if (n < 0 && again(&tries)) continue;
    if (n < 0) return finish(KG_SYS_READ, path, n, err);
    if (!n) break;
    *got += (size_t)n;
    tries = 0;
  }
  return KG_OK;
}

int kg_sys_write(const char *path, int fd, const void *bytes, size_t n_bytes, kg_error *err)
{
  int tries = 0;
  for (size_t done = 0; done < n_bytes;) {
    size_t wanted = n_bytes - done;
    ssize_t n = injected(KG_SYS_WRITE, &wanted) ? -1 : write(fd, (const char *)bytes + done, wanted);
    if (n < 0 && again(&tries)) continue;
    if (!n) {
      errno = EIO; /* nothing moved and nothing was said: never try that for ever */
      n = -1;
    }
    if (n < 0) return finish(KG_SYS_WRITE, path, n, err);
    done += (size_t)n;
    tries = 0;
  }
  return KG_OK;
}

int kg_sys_fchmod(const char *path, int fd, mode_t mode, kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_FCHMOD, NULL) ? -1 : fchmod(fd, mode);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_FCHMOD, path, result, err);
}

int kg_sys_fsync(const char *path, int fd, kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_FSYNC, NULL) ? -1 : fsync(fd);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_FSYNC, path, result, err);
}

int kg_sys_rename(const char *from, const char *path, kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_RENAME, NULL) ? -1 : rename(from, path);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_RENAME, path, result, err);
}

int kg_sys_getrandom(void *bytes, size_t n_bytes, kg_error *err)
{
  int tries = 0;
  for (size_t done = 0; done < n_bytes;) {
    size_t wanted = n_bytes - done;
    const ssize_t n = injected(KG_SYS_GETRANDOM, &wanted) ? -1 : getrandom((char *)bytes + done, wanted, 0);
    if (n < 0 && again(&tries)) continue;
    if (n < 0) return finish(KG_SYS_GETRANDOM, "random bytes", n, err);
    done += (size_t)n;
    tries = 0;
  }
  return KG_OK;
}

int kg_sys_pthread_create(pthread_t *thread, void *(*run)(void *), void *arg)
{
  return injected(KG_SYS_PTHREAD_CREATE, NULL) ? errno : pthread_create(thread, NULL, run, arg);
}

/* ---- processes ---- */

static int make_memory(const char *name, size_t n_bytes, int *fd, kg_error *err)
{
  int result, tries = 0;
  do *fd = injected(KG_SYS_MEMFD_CREATE, NULL) ? -1 : memfd_create("kigo", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  while (*fd < 0 && again(&tries));
  if (*fd < 0) return finish(KG_SYS_MEMFD_CREATE, name, *fd, err);
  do result = injected(KG_SYS_FTRUNCATE, NULL) ? -1 : ftruncate(*fd, (off_t)n_bytes);
  while (result < 0 && again(&tries));
  if (result < 0) return finish(KG_SYS_FTRUNCATE, name, result, err);
  do result = injected(KG_SYS_FCNTL, NULL) ? -1 : fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_FCNTL, name, result, err);
}

int kg_sys_shared_memory(const char *name, size_t n_bytes, int *fd, void **out, kg_error *err)
{
  int status = make_memory(name, n_bytes, fd, err);
  if (!status) {
    *out = injected(KG_SYS_MMAP, NULL) ? MAP_FAILED : mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    status = finish(KG_SYS_MMAP, name, *out == MAP_FAILED ? -1 : 0, err);
  }
  if (status && *fd >= 0) kg_sys_close(*fd);
  if (status) {
    *fd = -1;
    *out = NULL;
  }
  return status;
}

int kg_sys_socketpair(const char *name, int fds[2], kg_error *err)
{
  int result, tries = 0;
  do result = injected(KG_SYS_SOCKETPAIR, NULL) ? -1 : socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);
  while (result < 0 && again(&tries));
  return finish(KG_SYS_SOCKETPAIR, name, result, err);
}

int kg_sys_spawn(const char *path, char *const *arguments, const int fds[2], pid_t *pid, kg_error *err)
{
  static char *const no_environment[] = {NULL};
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t signals;
  int error = posix_spawn_file_actions_init(&actions);
  if (error) goto no_actions;
  error = posix_spawnattr_init(&attributes);
  if (error) goto no_attributes;
  /* All descriptors of ours close on exec; one that is duplicated to itself stays. */
  for (int i = 0; !error && i < 2; i++) error = posix_spawn_file_actions_adddup2(&actions, fds[i], fds[i]);
  sigemptyset(&signals);
  if (!error) error = posix_spawnattr_setsigmask(&attributes, &signals);
  sigfillset(&signals);
  if (!error) error = posix_spawnattr_setsigdefault(&attributes, &signals);
  if (!error)
    error = posix_spawnattr_setflags(&attributes,
                                     POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  for (int tries = 0; !error;) {
    error = injected(KG_SYS_POSIX_SPAWN, NULL)
                ? errno
                : posix_spawn(pid, path, &actions, &attributes, arguments, no_environment);
    if (error != EINTR || ++tries >= TRIES) break;
    error = 0;
  }
  posix_spawnattr_destroy(&attributes);
no_attributes:
  posix_spawn_file_actions_destroy(&actions);
no_actions:
  errno = error;
  return finish(KG_SYS_POSIX_SPAWN, path, error ? -1 : 0, err);
}

int kg_sys_wait_socket(const char *name, int fd, bool to_write, int64_t timeout_ns, bool *ready, kg_error *err)
{
  struct pollfd poll = {.fd = fd, .events = to_write ? POLLOUT : POLLIN};
  const struct timespec time = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
  const int result = injected(KG_SYS_PPOLL, NULL) ? -1 : ppoll(&poll, 1, &time, NULL);
  *ready = result > 0;
  if (result < 0 && errno == EINTR) return KG_OK; /* not ready, and the caller's clock goes on */
  return finish(KG_SYS_PPOLL, name, result, err);
}

/* The end of a send or recv that gave n. */
static int finish_moving(kg_sys_call call, const char *name, ssize_t n, size_t *moved, bool *ended, kg_error *err)
{
  *moved = n > 0 ? (size_t)n : 0;
  *ended = (n < 0 && (errno == EPIPE || errno == ECONNRESET)) || (n == 0 && call == KG_SYS_RECV);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return KG_OK;
  return *ended ? KG_OK : finish(call, name, n, err);
}

int kg_sys_send(const char *name, int fd, const void *bytes, size_t n_bytes, size_t *moved, bool *ended, kg_error *err)
{
  const ssize_t n =
      injected(KG_SYS_SEND, &n_bytes) ? -1 : send(fd, bytes, n_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
  return finish_moving(KG_SYS_SEND, name, n, moved, ended, err);
}

int kg_sys_recv(const char *name, int fd, void *bytes, size_t n_bytes, size_t *moved, bool *ended, kg_error *err)
{
  const ssize_t n = injected(KG_SYS_RECV, &n_bytes) ? -1 : recv(fd, bytes, n_bytes, MSG_DONTWAIT);
  return finish_moving(KG_SYS_RECV, name, n, moved, ended, err);
}

int kg_sys_reap(const char *name, pid_t pid, bool wait, bool *ended, int *how, kg_error *err)
{
  pid_t result;
  int tries = 0;
  do result = injected(KG_SYS_WAITPID, NULL) ? -1 : waitpid(pid, how, wait ? 0 : WNOHANG);
  while (result < 0 && again(&tries));
  *ended = result == pid || (result < 0 && errno == ECHILD);
  if (result != pid) *how = -1;
  return *ended ? KG_OK : finish(KG_SYS_WAITPID, name, result, err);
}

void kg_sys_munmap(const void *bytes, size_t n_bytes)
{
  (void)injected(KG_SYS_MUNMAP, NULL);
  munmap((void *)(uintptr_t)bytes, n_bytes);
}

void kg_sys_madvise(void *from, size_t n_bytes, int advice)
{
  if (!injected(KG_SYS_MADVISE, NULL)) madvise(from, n_bytes, advice);
}

void kg_sys_close(int fd)
{
  (void)injected(KG_SYS_CLOSE, NULL);
  close(fd); /* never again: after EINTR the number may be somebody else's */
}

void kg_sys_unlink(const char *path)
{
  int result, tries = 0;
  do result = injected(KG_SYS_UNLINK, NULL) ? -1 : unlink(path);
  while (result < 0 && again(&tries));
}
