/* driver.c - what the driver says about the device: memory in use, as the runtime and as the management library (NVML)
 * count it, times by its own clock, and the rates it reaches. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "executable.h"
#include "rates.h"

/* ---- NVML, opened at run time: no build needs it, and containers may lack it ----
 * Its types and functions as the library's public interface has them; 0 is success. */

typedef struct nvml_memory {
  unsigned long long total, free, used;
} nvml_memory;

typedef struct nvml_process {
  unsigned pid;
  unsigned long long used; /* all ones: not told */
  unsigned gpu_instance, compute_instance;
} nvml_process;

enum { NVML_SUCCESS = 0, MAX_PROCESSES = 256 };

typedef struct nvml {
  int (*init)(void);
  int (*shutdown)(void);
  int (*find)(const char *bus_id, void **device);
  int (*memory)(void *device, nvml_memory *out);
  int (*processes)(void *device, unsigned *count, nvml_process *out);
  const char *(*error)(int status);
} nvml;

static bool nvml_symbol(void *library, const char *name, void *out)
{
  void *symbol = dlsym(library, name);
  memcpy(out, &symbol, sizeof symbol); /* ISO C knows no conversion from object to function pointers */
  return symbol != NULL;
}

static bool nvml_load(void *library, nvml *n)
{
  return nvml_symbol(library, "nvmlInit_v2", &n->init) && nvml_symbol(library, "nvmlShutdown", &n->shutdown) &&
         nvml_symbol(library, "nvmlDeviceGetHandleByPciBusId_v2", &n->find) &&
         nvml_symbol(library, "nvmlDeviceGetMemoryInfo", &n->memory) &&
         nvml_symbol(library, "nvmlErrorString", &n->error) &&
         (nvml_symbol(library, "nvmlDeviceGetComputeRunningProcesses_v3", &n->processes) ||
          nvml_symbol(library, "nvmlDeviceGetComputeRunningProcesses_v2", &n->processes));
}

static int64_t memory_of_process(const nvml *n, void *device)
{
  nvml_process processes[MAX_PROCESSES];
  unsigned count = MAX_PROCESSES;
  if (n->processes(device, &count, processes) != NVML_SUCCESS) return KG_UNKNOWN;
  for (unsigned i = 0; i < count && i < MAX_PROCESSES; i++)
    if (processes[i].pid == (unsigned)getpid())
      return processes[i].used > INT64_MAX ? KG_UNKNOWN : (int64_t)processes[i].used;
  return KG_UNKNOWN; /* another name space of processes */
}

static void ask_nvml(const nvml *n, const char *bus_id, kg_device_info *out)
{
  nvml_memory memory;
  void *device;
  int status = n->init();
  if (status == NVML_SUCCESS) {
    status = n->find(bus_id, &device);
    if (status == NVML_SUCCESS) status = n->memory(device, &memory);
    if (status == NVML_SUCCESS) {
      out->managed_in_use = (int64_t)memory.used;
      out->process_in_use = memory_of_process(n, device);
    }
    (void)n->shutdown();
  }
  if (status != NVML_SUCCESS) snprintf(out->note, sizeof out->note, "NVML: %.100s", n->error(status));
}

/* ---- the device ---- */

int kg_gpu_device_info(const kg_executable *exe, kg_device_info *out, kg_error *err)
{
  size_t n_free = 0, n_total = 0;
  char bus_id[32];
  int kilohertz = 0;
  const int device = exe->stream->device;
  *out = (kg_device_info){.index = device, .managed_in_use = KG_UNKNOWN, .process_in_use = KG_UNKNOWN};
  int code = kg_stream_use(exe->stream, err);
  if (!code)
    code = kg_stream_wait(exe->stream, "asking the device", err); /* memory is given back in the queue's order */
  if (!code) code = kg_cuda_check(cudaMemGetInfo(&n_free, &n_total), "asking for the device's memory", err);
  if (!code) code = kg_cuda_check(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, device), "asking the device", err);
  if (!code)
    code = kg_cuda_check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device), "asking the device", err);
  if (code) return code;
  out->total = (int64_t)n_total;
  out->in_use = (int64_t)(n_total - n_free);
  /* A multiprocessor takes in at most 128 bytes a clock. */
  out->most_bytes_per_s = 128. * exe->stream->n_sms * kilohertz * 1e3;
  nvml n;
  void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library && nvml_load(library, &n))
    ask_nvml(&n, bus_id, out);
  else
    snprintf(out->note, sizeof out->note, "libnvidia-ml.so.1 %s", library ? "lacks functions" : "is not here");
  if (library) dlclose(library);
  return KG_OK;
}

/* ---- times by the device's clock ---- */

void kg_gpu_timer_deinit(kg_gpu_timer *t)
{
  if (t->begin) (void)cudaEventDestroy(t->begin);
  if (t->end) (void)cudaEventDestroy(t->end);
  *t = (kg_gpu_timer){0};
}

int kg_gpu_timer_init(kg_gpu_timer *t, kg_error *err)
{
  *t = (kg_gpu_timer){0};
  int code = kg_cuda_check(cudaEventCreate(&t->begin), "making an event", err);
  if (!code) code = kg_cuda_check(cudaEventCreate(&t->end), "making an event", err);
  if (code) kg_gpu_timer_deinit(t);
  return code;
}

int kg_gpu_timer_start(const kg_gpu_timer *t, const kg_stream *s, kg_error *err)
{
  return kg_cuda_check(cudaEventRecord(t->begin, s->handle), "timing", err);
}

int kg_gpu_timer_stop(const kg_gpu_timer *t, const kg_stream *s, kg_error *err)
{
  return kg_cuda_check(cudaEventRecord(t->end, s->handle), "timing", err);
}

int kg_gpu_timer_read(const kg_gpu_timer *t, double *seconds, kg_error *err)
{
  float ms = 0;
  int code = kg_cuda_check(cudaEventSynchronize(t->end), "timing", err);
  if (!code) code = kg_cuda_check(cudaEventElapsedTime(&ms, t->begin, t->end), "timing", err);
  *seconds = ms * 1e-3;
  return code;
}

int kg_gpu_set_timing(kg_executable *exe, bool on, kg_error *err)
{
  int code = kg_stream_use(exe->stream, err);
  if (code || on == (exe->timer.begin != NULL)) return code;
  if (on) return kg_gpu_timer_init(&exe->timer, err);
  kg_gpu_timer_deinit(&exe->timer);
  return KG_OK;
}

int kg_gpu_timing_begin(kg_executable *exe, kg_error *err)
{
  return exe->timer.begin ? kg_gpu_timer_start(&exe->timer, exe->stream, err) : KG_OK;
}

int kg_gpu_timing_end(kg_executable *exe, kg_error *err)
{
  return exe->timer.begin ? kg_gpu_timer_stop(&exe->timer, exe->stream, err) : KG_OK;
}

int kg_gpu_timing_add(kg_executable *exe, int64_t n_passes, kg_error *err)
{
  double seconds;
  if (!exe->timer.begin) return KG_OK;
  const int code = kg_gpu_timer_read(&exe->timer, &seconds, err);
  if (code) return code;
  exe->timed_s += seconds;
  exe->n_timed += n_passes;
  return KG_OK;
}

/* ---- rates ---- */

enum { RUNS = 9, COPIES = 4, ROUNDS = 4096 };

static int by_size(const void *a, const void *b)
{
  const double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

double kg_gpu_median(double *values, size_t n)
{
  qsort(values, n, sizeof *values, by_size);
  return values[n / 2];
}

static int measure_copy(const kg_stream *s, const kg_gpu_timer *t, double *rate, kg_error *err)
{
  size_t n_free = 0, n_total = 0, n_bytes = (size_t)1 << 30;
  void *from = NULL, *to = NULL;
  double seconds[RUNS] = {0};
  int code = kg_cuda_check(cudaMemGetInfo(&n_free, &n_total), "asking for the device's memory", err);
  if (!code && n_free / 4 < n_bytes) n_bytes = n_free / 4 / 4096 * 4096;
  if (!code) code = kg_cuda_alloc(n_bytes, "measuring", &from, err);
  if (!code) code = kg_cuda_alloc(n_bytes, "measuring", &to, err);
  if (!code) code = kg_cuda_check(cudaMemsetAsync(from, 0x5a, n_bytes, s->handle), "measuring", err);
  for (int run = -1; run < RUNS && !code; run++) { /* the first does not count */
    code = kg_gpu_timer_start(t, s, err);
    for (int i = 0; i < COPIES && !code; i++)
      code = kg_cuda_check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDeviceToDevice, s->handle), "measuring", err);
    if (!code) code = kg_gpu_timer_stop(t, s, err);
    if (!code) code = kg_gpu_timer_read(t, &seconds[run < 0 ? 0 : run], err);
  }
  if (!code) *rate = 2. * COPIES * (double)n_bytes / kg_gpu_median(seconds, RUNS);
  (void)cudaFree(from);
  (void)cudaFree(to);
  return code;
}

/* The rate of one of the loops of rates.h. */
typedef int (*tensor_loop)(kg_stream *s, int n_rounds, float *sink, double *flops, kg_error *err);

static int measure_loop(kg_stream *s, const kg_gpu_timer *t, tensor_loop loop, float *sink, double *rate, kg_error *err)
{
  double seconds[RUNS] = {0}, flops = 0;
  int code = KG_OK;
  for (int run = -1; run < RUNS && !code; run++) {
    code = kg_gpu_timer_start(t, s, err);
    if (!code) code = loop(s, ROUNDS, sink, &flops, err);
    if (!code) code = kg_gpu_timer_stop(t, s, err);
    if (!code) code = kg_gpu_timer_read(t, &seconds[run < 0 ? 0 : run], err);
  }
  if (!code) *rate = flops / kg_gpu_median(seconds, RUNS);
  return code;
}

/* The better one of the instructions that this build has for this device. */
static int measure_tensor(kg_stream *s, const kg_gpu_timer *t, kg_device_rates *out, kg_error *err)
{
  void *sink = NULL;
  float seen[2] = {0};
  double of_groups = 0;
  int code = kg_cuda_alloc(sizeof seen, "measuring", &sink, err);
  if (!code) code = kg_cuda_check(cudaMemsetAsync(sink, 0, sizeof seen, s->handle), "measuring", err);
  if (!code) code = measure_loop(s, t, kg_cuda_tensor_loop, sink, &out->tensor_flops, err);
  if (!code) code = measure_loop(s, t, kg_cuda_warp_group_loop, sink, &of_groups, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(seen, sink, sizeof seen, cudaMemcpyDeviceToHost, s->handle), "measuring", err);
  if (!code) code = kg_stream_wait(s, "measuring", err);
  (void)cudaFree(sink);
  snprintf(out->tensor_note, sizeof out->tensor_note, "%s", KG_TENSOR_LOOP);
  if (code || seen[1] != 1 || of_groups < out->tensor_flops) return code;
  out->tensor_flops = of_groups;
  snprintf(out->tensor_note, sizeof out->tensor_note, "%s", KG_WARP_GROUP_LOOP);
  return KG_OK;
}

int kg_gpu_device_rates(const kg_executable *exe, kg_device_rates *out, kg_error *err)
{
  kg_gpu_timer timer;
  *out = (kg_device_rates){0};
  int code = kg_stream_use(exe->stream, err);
  if (!code) code = kg_gpu_timer_init(&timer, err);
  if (code) return code;
  code = measure_copy(exe->stream, &timer, &out->copy_bytes_per_s, err);
  if (!code) code = measure_tensor(exe->stream, &timer, out, err);
  const int waited = kg_stream_wait(exe->stream, "measuring", code ? NULL : err);
  kg_gpu_timer_deinit(&timer);
  return code ? code : waited;
}
