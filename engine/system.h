/* system.h - the one table of the system calls that the library makes on files, maps and threads: each can be made to
 * fail by a test, is tried again when a signal interrupts it, goes on after short counts, and fails with one line that
 * names the file, the call and the system's words: KG_ERR_IO, "PATH: open failed: No such file or directory". `err` may
 * be NULL. Its counters and switches are mutable globals as those of alloc.h are (atomic, touched by every thread). */
#ifndef KG_SYSTEM_H
#define KG_SYSTEM_H

#include <pthread.h>
#include <sys/stat.h>
#include <sys/types.h>

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
  KG_SYS_MEMFD_CREATE,
  KG_SYS_FTRUNCATE,
  KG_SYS_FCNTL,
  KG_SYS_SOCKETPAIR,
  KG_SYS_POSIX_SPAWN,
  KG_SYS_PPOLL,
  KG_SYS_SEND,
  KG_SYS_RECV,
  KG_SYS_WAITPID,
  KG_SYS_N_CALLS,
} kg_sys_call;

int kg_sys_open(const char *path, int flags, int *fd, kg_error *err); /* O_CLOEXEC is added; *fd is -1 on failure */
/* Create a file at `temporary`, whose last six bytes are replaced by random ones; errors name `path`. */
int kg_sys_mkostemp(const char *path, char *temporary, int *fd, kg_error *err);
/* That nothing is there is no failure. */
int kg_sys_stat(const char *path, struct stat *out, bool *exists, kg_error *err);
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

/* Processes and what is shared with them; `name` stands in errors where a file has its path. */
/* Memory of a size that nobody can change, as a descriptor, and mapped here. */
int kg_sys_shared_memory(const char *name, size_t n_bytes, int *fd, void **out, kg_error *err);
int kg_sys_socketpair(const char *name, int fds[2], kg_error *err); /* a stream of bytes; neither end blocks */
/* Start a program with these arguments, the two descriptors and no environment, in a process group of its own. */
int kg_sys_spawn(const char *path, char *const *arguments, const int fds[2], pid_t *pid, kg_error *err);
/* Wait until the socket can be read (or written); false: the time is over. */
int kg_sys_wait_socket(const char *name, int fd, bool to_write, int64_t timeout_ns, bool *ready, kg_error *err);
/* Move what can be moved now, 0 bytes if that is nothing. *ended: the other side is gone. Never raises SIGPIPE. */
int kg_sys_send(const char *name, int fd, const void *bytes, size_t n_bytes, size_t *moved, bool *ended, kg_error *err);
int kg_sys_recv(const char *name, int fd, void *bytes, size_t n_bytes, size_t *moved, bool *ended, kg_error *err);
/* Reap the child: waits for its end, or just looks (*ended). Somebody else may have reaped it: that is its end too, and
 * *how is -1; else it is as waitpid gives it. */
int kg_sys_reap(const char *name, pid_t pid, bool wait, bool *ended, int *how, kg_error *err);

/* Whoever lets go of something can do nothing about a failure; advice may be refused. */
void kg_sys_munmap(const void *bytes, size_t n_bytes);
void kg_sys_madvise(void *from, size_t n_bytes, int advice);
void kg_sys_close(int fd);
void kg_sys_unlink(const char *path);

const char *kg_sys_name(kg_sys_call call);

/* Test switches. Let the n-th of these calls from now (1 = the next) fail with this error number, once, or from there
 * on for ever; nth 0 = never. Each call has its own switch. Error number KG_SYS_SHORT: read, write and getrandom move
 * one byte. munmap and close do their work even when they are told to fail, as the system's close does. */
enum { KG_SYS_SHORT = -1 };
void kg_sys_inject(kg_sys_call call, int64_t nth, int error, bool for_ever);
int64_t kg_sys_calls(kg_sys_call call); /* since the start, those that failed among them */

#endif
