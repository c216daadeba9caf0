/* system.h - the one table of the system calls that the library makes on files, maps and threads: each can be made to fail
 * by a test, is tried again when a signal interrupts it, goes on after short counts, and fails with one line that names the
 * file, the call and the system's words: KG_ERR_IO, "PATH: open failed: No such file or directory". `err` may be NULL.
 * Its counters and switches are mutable globals as those of alloc.h are (atomic, touched by every thread). */
#ifndef KG_SYSTEM_H
#define KG_SYSTEM_H

#include <pthread.h>
#include <sys/stat.h>

#include "kigo.h"

typedef enum kg_sys_call {
  KG_SYS_OPEN,
  KG_SYS_MKOSTEMP,
  KG_SYS_STAT,
  KG_SYS_FSTAT,
  KG_SYS_MMAP,
  KG_SYS_MUNMAP,
  KG_SYS_MADVISE,
  KG_SYS_READ,
  KG_SYS_WRITE,
  KG_SYS_FCHMOD,
  KG_SYS_FSYNC,
  KG_SYS_RENAME,
  KG_SYS_CLOSE,
  KG_SYS_UNLINK,
  KG_SYS_GETRANDOM,
  KG_SYS_PTHREAD_CREATE,
  KG_SYS_N_CALLS,
} kg_sys_call;

int kg_sys_open(const char *path, int flags, int *fd, kg_error *err); /* O_CLOEXEC is added; *fd is -1 on failure */
/* Create a file at `temporary`, whose last six bytes are replaced by random ones; errors name `path`. */
int kg_sys_mkostemp(const char *path, char *temporary, int *fd, kg_error *err);
int kg_sys_stat(const char *path, struct stat *out, bool *exists, kg_error *err); /* that nothing is there is no failure */
int kg_sys_fstat(const char *path, int fd, struct stat *out, kg_error *err);
/* Map a whole file read-only. */
int kg_sys_mmap(const char *path, int fd, size_t n_bytes, const void **out, kg_error *err);
/* Read until the buffer is full or the file ends; *got < n_bytes means the end. */
int kg_sys_read(const char *path, int fd, void *bytes, size_t n_bytes, size_t *got, kg_error *err);
int kg_sys_write(const char *path, int fd, const void *bytes, size_t n_bytes, kg_error *err); /* all of them */
int kg_sys_fchmod(const char *path, int fd, mode_t mode, kg_error *err);
int kg_sys_fsync(const char *path, int fd, kg_error *err);
int kg_sys_rename(const char *from, const char *path, kg_error *err);
int kg_sys_getrandom(void *bytes, size_t n_bytes, kg_error *err);
/* The error number, as pthread_create gives it: the caller knows which thread it is. */
int kg_sys_pthread_create(pthread_t *thread, void *(*run)(void *), void *arg);

/* Whoever lets go of something can do nothing about a failure; advice may be refused. */
void kg_sys_munmap(const void *bytes, size_t n_bytes);
void kg_sys_madvise(void *from, size_t n_bytes, int advice);
void kg_sys_close(int fd);
void kg_sys_unlink(const char *path);

const char *kg_sys_name(kg_sys_call call);

/* Test switches. Let the n-th of these calls from now (1 = the next) fail with this error number, once, or from there on
 * for ever; nth 0 = never. Each call has its own switch. Error number KG_SYS_SHORT: read, write and getrandom move one
 * byte. munmap and close do their work even when they are told to fail, as the system's close does. */
enum { KG_SYS_SHORT = -1 };
void kg_sys_inject(kg_sys_call call, int64_t nth, int error, bool for_ever);
int64_t kg_sys_calls(kg_sys_call call); /* since the start, those that failed among them */

#endif
