#define _GNU_SOURCE
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
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

/* Count a call. Must it fail, with errno as set here? *n_bytes (may be NULL) is what it may move: less in a short count. */
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
