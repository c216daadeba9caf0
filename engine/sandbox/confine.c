#define _GNU_SOURCE
#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "alloc.h"
#include "error.h"
#include "worker.h"

#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = true };
#else
enum { SANITIZED = false };
#endif

enum { DATA_BYTES = 16 << 20 }; /* more than the program has before it reads a script */

/* Where memory runs out, this process is the one to go. That it cannot say so is no reason not to work. */
static void volunteer(void)
{
  const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  const ssize_t n = write(fd, "1000", 4);
  (void)n;
  close(fd);
}

static void close_descriptors(int first)
{
#ifdef SYS_close_range
  if (!syscall(SYS_close_range, (unsigned)first, ~0u, 0u)) return;
#endif
  const long n = sysconf(_SC_OPEN_MAX);
  for (int fd = first; fd < (n > 0 ? n : 65536); fd++) close(fd);
}

/* ---- limits ---- */

/* Bytes of address space in use; 0: unknown. */
static size_t address_bytes(void)
{
  unsigned long n_pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file) return 0;
  if (fscanf(file, "%lu", &n_pages) != 1) n_pages = 0;
  fclose(file);
  size_t n_bytes;
  return kg_mul_size(n_pages, (size_t)sysconf(_SC_PAGESIZE), &n_bytes) ? n_bytes : 0;
}

static int limit(int resource, rlim_t value)
{
  const struct rlimit both = {.rlim_cur = value, .rlim_max = value};
  return setrlimit((__rlimit_resource_t)resource, &both);
}

/* `now`: bytes of address space in use. */
static int set_limits(size_t now, size_t memory, uint32_t *layers, kg_error *err)
{
  size_t addresses, data;
  if (!SANITIZED && now && kg_add_size(now, memory, &addresses)) {
    if (limit(RLIMIT_AS, addresses)) return kg_fail(err, KG_ERR_UNSUPPORTED, "RLIMIT_AS: %s", strerror(errno));
    *layers |= KG_LAYER_ADDRESSES;
  }
  /* This one holds where nobody knows what is in use (no /proc), and for the heap alone. */
  if (!SANITIZED && kg_add_size(memory, DATA_BYTES, &data) && limit(RLIMIT_DATA, data))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "RLIMIT_DATA: %s", strerror(errno));
  /* Processor time is limited by the parent, call by call. */
  if (limit(RLIMIT_CORE, 0) || limit(RLIMIT_FSIZE, 0) || limit(RLIMIT_NPROC, 0) || limit(RLIMIT_MEMLOCK, 0) ||
      limit(RLIMIT_MSGQUEUE, 0) || limit(RLIMIT_NOFILE, SANITIZED ? 16 : 0))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "setrlimit: %s", strerror(errno));
  *layers |= KG_LAYER_LIMITS;
  return KG_OK;
}

/* ---- files: Landlock ---- */

/* The first words of what linux/landlock.h calls landlock_ruleset_attr; older headers know the first alone. */
typedef struct ruleset {
  uint64_t files, network, scopes;
} ruleset;

static bool forbid_files(void)
{
  enum { CREATE = 444, RESTRICT = 446, ASK_VERSION = 1 };                      /* the same on every processor */
  static const uint64_t files[] = {0, 0x1fff, 0x3fff, 0x7fff, 0x7fff, 0xffff}; /* rights that version i knows */
  const long version = syscall(CREATE, NULL, 0, ASK_VERSION);
  if (version < 1) return false;
  const ruleset rules = {.files = files[version < 5 ? version : 5],
                         .network = version >= 4 ? 3 : 0, /* TCP: bind, connect */
                         .scopes = version >= 6 ? 3 : 0}; /* abstract sockets and signals of others */
  const size_t size = version >= 6 ? sizeof rules : version >= 4 ? 2 * sizeof(uint64_t) : sizeof(uint64_t);
  const long fd = syscall(CREATE, &rules, size, 0);
  if (fd < 0) return false;
  const bool done = !syscall(RESTRICT, (int)fd, 0);
  close((int)fd);
  return done;
}

/* ---- system calls: seccomp ---- */

#if defined(__x86_64__)
static const uint32_t architecture = AUDIT_ARCH_X86_64, other_abi = 0x40000000; /* x32 */
#elif defined(__aarch64__)
static const uint32_t architecture = AUDIT_ARCH_AARCH64, other_abi = 0x7fffffff;
#else
static const uint32_t architecture = 0, other_abi = 0; /* none that we know */
#endif

enum {
  FORBIDDEN =
      SANITIZED ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS, /* a sanitizer must get its report out */
  FILTER_MAX = 64
};

typedef struct filter {
  struct sock_filter code[FILTER_MAX];
  unsigned short n;
} filter;

static void put(filter *f, struct sock_filter instruction)
{
  if (f->n < FILTER_MAX) f->code[f->n] = instruction;
  f->n++;
}

static void load_word(filter *f, size_t at)
{
  put(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)at));
}

static void give(filter *f, uint32_t verdict) { put(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, verdict)); }

static void skip_unless(filter *f, unsigned short test, uint32_t value, unsigned char n)
{
  put(f, (struct sock_filter)BPF_JUMP(BPF_JMP | test | BPF_K, value, 0, n));
}

static void allow(filter *f, uint32_t number)
{
  skip_unless(f, BPF_JEQ, number, 1);
  give(f, SECCOMP_RET_ALLOW);
}

/* Allowed where argument `i` (its low word) is `value`. */
static void allow_on(filter *f, uint32_t number, unsigned i, uint32_t value)
{
  skip_unless(f, BPF_JEQ, number, 4);
  load_word(f, offsetof(struct seccomp_data, args) + 8u * i);
  skip_unless(f, BPF_JEQ, value, 1);
  give(f, SECCOMP_RET_ALLOW);
  give(f, FORBIDDEN);
}

/* Allowed where argument `i` has none of these bits. */
static void allow_without(filter *f, uint32_t number, unsigned i, uint32_t bits)
{
  skip_unless(f, BPF_JEQ, number, 4);
  load_word(f, offsetof(struct seccomp_data, args) + 8u * i);
  skip_unless(f, BPF_JSET, bits, 1);
  give(f, FORBIDDEN);
  give(f, SECCOMP_RET_ALLOW);
}

static int forbid_calls(int socket, kg_error *err)
{
  /* What malloc, the clock and the end of a process need. */
  static const uint32_t plain[] = {SYS_munmap,        SYS_mremap,     SYS_brk,          SYS_madvise,
                                   SYS_exit,          SYS_exit_group, SYS_rt_sigreturn, SYS_restart_syscall,
                                   SYS_clock_gettime, SYS_futex};
  static const uint32_t sanitizers[] = {SYS_write, SYS_getpid, SYS_gettid, SYS_sched_yield, SYS_sigaltstack};
  enum { PROTECTION = 2 }; /* the argument of mmap and mprotect */
  filter f = {.n = 0};
  if (!architecture) return kg_fail(err, KG_ERR_UNSUPPORTED, "no filter of system calls for this processor");
  load_word(&f, offsetof(struct seccomp_data, arch));
  put(&f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0));
  give(&f, SECCOMP_RET_KILL_PROCESS);
  load_word(&f, offsetof(struct seccomp_data, nr));
  skip_unless(&f, BPF_JGE, other_abi, 1);
  give(&f, SECCOMP_RET_KILL_PROCESS);
  for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) allow(&f, plain[i]);
  for (size_t i = 0; SANITIZED && i < sizeof sanitizers / sizeof sanitizers[0]; i++) allow(&f, sanitizers[i]);
  allow_on(&f, SYS_read, 0, (uint32_t)socket);
  allow_on(&f, SYS_write, 0, (uint32_t)socket);
  allow_without(&f, SYS_mmap, PROTECTION, PROT_EXEC);
  allow_without(&f, SYS_mprotect, PROTECTION, PROT_EXEC);
  give(&f, FORBIDDEN);
  if (f.n > FILTER_MAX) return kg_fail(err, KG_ERR_UNSUPPORTED, "a filter of %d instructions", f.n);
  const struct sock_fprog program = {.len = f.n, .filter = f.code};
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "seccomp: %s", strerror(errno));
  return KG_OK;
}

int kg_confine(int socket, int first_fd, size_t memory, uint32_t *layers, kg_error *err)
{
  *layers = 0;
  close_descriptors(first_fd);
  (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    return kg_fail(err, KG_ERR_UNSUPPORTED, "no_new_privs: %s", strerror(errno));
  volunteer();
  const size_t now = address_bytes();
  if (forbid_files()) *layers |= KG_LAYER_LANDLOCK;
  int status = set_limits(now, memory, layers, err);
  if (!status) status = forbid_calls(socket, err);
  if (!status) *layers |= KG_LAYER_SECCOMP;
  return status;
}
