#include "buffer.h"

#include <math.h>
#include <string.h>

#include "draws.h"
#include "host.h"
#include "vector_ops.h"

/* ---- errors and memory ---- */

int kg_cuda_check(cudaError_t status, const char *what, kg_error *err)
{
  if (status == cudaSuccess) return KG_OK;
  (void)cudaGetLastError(); /* off the runtime's slate; an error that sticks will come again */
  return kg_fail(err, status == cudaErrorMemoryAllocation ? KG_ERR_MEMORY : KG_ERR_DEVICE, "%s: %s", what,
                 cudaGetErrorString(status));
}

int kg_cuda_launched(const char *kernel, kg_error *err) { return kg_cuda_check(cudaPeekAtLastError(), kernel, err); }

static int fail_memory(size_t n_bytes, const char *what, kg_error *err)
{
  size_t n_free = 0, n_total = 0;
  (void)cudaGetLastError();
  if (cudaMemGetInfo(&n_free, &n_total)) (void)cudaGetLastError();
  return kg_fail(err, KG_ERR_MEMORY, "out of device memory: %zu bytes wanted for %s, %zu of %zu are free", n_bytes, what,
                 n_free, n_total);
}

int kg_cuda_alloc(size_t n_bytes, const char *what, void **out, kg_error *err)
{
  const cudaError_t status = cudaMalloc(out, n_bytes ? n_bytes : 1);
  if (status == cudaErrorMemoryAllocation) return fail_memory(n_bytes, what, err);
  return kg_cuda_check(status, what, err);
}

/* ---- mail: memory of operations whose results the host reads, made when first used ---- */

/* Pinned: the device writes to it. */
typedef struct kg_mail {
  kg_vector_room room;
  void *there;           /* what room points into */
  kg_reduced reduced;
  int32_t index[KG_TOP_MAX];
  float value[KG_TOP_MAX];
} kg_mail;

static int open_mail(kg_stream *stream, kg_error *err)
{
  if (stream->mail) return KG_OK;
  const size_t parts = KG_REDUCE_BLOCKS * sizeof(kg_reduced), exponents = (KG_REDUCE_BLOCKS + 1) * sizeof(kg_exponents);
  const size_t best = KG_DRAW_GROUPS * sizeof(kg_rank);
  const size_t list = KG_DRAW_LIST * sizeof(float), counter = 16, n_bytes = counter + parts + exponents + best + 2 * list;
  void *mail = NULL, *there = NULL;
  int code = kg_cuda_alloc(n_bytes, "operations on tensors", &there, err);
  if (!code) code = kg_cuda_check(cudaMemsetAsync(there, 0, counter, stream->handle), "clearing", err);
  if (!code) code = kg_cuda_check(cudaMallocHost(&mail, sizeof(kg_mail)), "pinned memory for results", err);
  if (code) {
    (void)cudaFree(there);
    return code;
  }
  unsigned char *at = there;
  kg_vector_room room = {.arrived = there};
  room.parts = (kg_reduced *)(at += counter);
  room.exponents = (kg_exponents *)(at += parts);
  room.best = (kg_rank *)(at += exponents);
  room.list_x = (float *)(at += best);
  room.list_ids = (int32_t *)(at += list);
  stream->mail = mail;
  *stream->mail = (kg_mail){.there = there, .room = room};
  return KG_OK;
}

static void close_mail(kg_mail *mail)
{
  if (!mail) return;
  (void)cudaFree(mail->there);
  (void)cudaFreeHost(mail);
}

/* ---- streams ---- */

enum { POOL_KEPT = 256 << 20 }; /* bytes that the pool of a stream keeps for later */

static int open_pool(kg_stream *stream, kg_error *err)
{
  const struct cudaMemPoolProps props = {.allocType = cudaMemAllocationTypePinned,
                                         .location = {.type = cudaMemLocationTypeDevice, .id = stream->device}};
  uint64_t kept = POOL_KEPT;
  int code = kg_cuda_check(cudaMemPoolCreate(&stream->pool, &props), "making a memory pool", err);
  if (code) return code;
  return kg_cuda_check(cudaMemPoolSetAttribute(stream->pool, cudaMemPoolAttrReleaseThreshold, &kept), "making a memory pool",
                       err);
}

int kg_stream_new(int device, kg_stream **out, kg_error *err)
{
  kg_stream *stream = kg_alloc_array(1, sizeof *stream);
  if (!stream) return kg_fail_memory(err, sizeof *stream, "a stream");
  stream->device = device;
  stream->n_refs = 1;
  int major = 0;
  const struct { enum cudaDeviceAttr attribute; int *out; } questions[] = {
    {cudaDevAttrComputeCapabilityMajor, &major},
    {cudaDevAttrMultiProcessorCount, &stream->n_sms},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, &stream->shared_max}};
  int code = kg_cuda_check(cudaSetDevice(device), "choosing the device", err);
  for (size_t i = 0; i < sizeof questions / sizeof *questions && !code; i++)
    code = kg_cuda_check(cudaDeviceGetAttribute(questions[i].out, questions[i].attribute, device), "asking the device", err);
  stream->overlaps = major >= 9;
  stream->has_wgmma = major == 9;
  if (!code)
    code = kg_cuda_check(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking), "making a stream", err);
  if (!code) code = open_pool(stream, err);
  if (code) {
    if (stream->pool) (void)cudaMemPoolDestroy(stream->pool);
    if (stream->handle) (void)cudaStreamDestroy(stream->handle);
    (void)cudaGetLastError();
    kg_free(stream);
    return code;
  }
  *out = stream;
  return KG_OK;
}

kg_stream *kg_stream_ref(kg_stream *stream)
{
  stream->n_refs++;
  return stream;
}

void kg_stream_unref(kg_stream *stream)
{
  if (!stream || --stream->n_refs) return;
  (void)cudaSetDevice(stream->device);
  (void)cudaStreamSynchronize(stream->handle);
  kg_draws_free(stream->draws);
  close_mail(stream->mail);
  (void)cudaStreamDestroy(stream->handle);
  (void)cudaMemPoolDestroy(stream->pool);
  (void)cudaGetLastError();
  kg_free(stream);
}

int kg_stream_use(const kg_stream *stream, kg_error *err)
{
  return kg_cuda_check(cudaSetDevice(stream->device), "choosing the device", err);
}

int kg_stream_wait(const kg_stream *stream, const char *what, kg_error *err)
{
  return kg_cuda_check(cudaStreamSynchronize(stream->handle), what, err);
}

/* ---- buffers ---- */

static const kg_tensor_ops cuda_tensor_ops;

static kg_stream *stream_of(const kg_buffer *b) { return b->owner; }
static float *floats(const kg_buffer *b, int64_t at) { return (float *)b->data + at; }
static bool is_ours(const kg_buffer *b) { return b->ops == &cuda_tensor_ops; }

static void release_buffer(kg_buffer *buffer)
{
  kg_stream *stream = stream_of(buffer);
  (void)cudaSetDevice(stream->device);
  (void)cudaFreeAsync(buffer->data, stream->handle);
  (void)cudaGetLastError();
  kg_stream_unref(stream);
  kg_free(buffer);
}

int kg_cuda_buffer_new(kg_stream *stream, int64_t n, kg_buffer **out, kg_error *err)
{
  size_t n_bytes;
  if (n < 0 || !kg_mul_size((size_t)n, sizeof(float), &n_bytes))
    return kg_fail(err, KG_ERR_ARGUMENT, "a buffer of %lld floats is impossible", (long long)n);
  int code = kg_stream_use(stream, err);
  if (code) return code;
  kg_buffer *buffer = kg_alloc(sizeof *buffer);
  if (!buffer) return kg_fail_memory(err, sizeof *buffer, "a tensor");
  void *data = NULL;
  const cudaError_t status = cudaMallocFromPoolAsync(&data, n_bytes ? n_bytes : 1, stream->pool, stream->handle);
  if (status) {
    kg_free(buffer);
    if (status == cudaErrorMemoryAllocation) return fail_memory(n_bytes, "a tensor", err);
    return kg_cuda_check(status, "a tensor", err);
  }
  *buffer = (kg_buffer){.ops = &cuda_tensor_ops, .data = data, .n = n, .n_refs = 1, .release = release_buffer,
                        .owner = kg_stream_ref(stream)};
  *out = buffer;
  return KG_OK;
}

static int check_span(const kg_buffer *b, int64_t at, int64_t n, kg_error *err)
{
  if (at >= 0 && n >= 0 && at <= b->n && n <= b->n - at) return kg_stream_use(stream_of(b), err);
  return kg_fail(err, KG_ERR_ARGUMENT, "%lld floats from %lld on are outside a buffer of %lld", (long long)n,
                 (long long)at, (long long)b->n);
}

int kg_cuda_buffer_check(const kg_buffer *buffer, int64_t at, int64_t n, const char *what, kg_error *err)
{
  if (is_ours(buffer) && at >= 0 && n <= buffer->n && at <= buffer->n - n) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%s: %lld floats at %lld do not fit a device buffer of %lld", what, (long long)n,
                 (long long)at, (long long)buffer->n);
}

/* ---- moving ---- */

static int cuda_like(const kg_buffer *b, int64_t n, kg_buffer **out, kg_error *err)
{
  return kg_cuda_buffer_new(stream_of(b), n, out, err);
}

static int download(const kg_stream *s, void *out, const void *in, size_t n_bytes, kg_error *err)
{
  const int code =
      kg_cuda_check(cudaMemcpyAsync(out, in, n_bytes, cudaMemcpyDeviceToHost, s->handle), "reading a tensor", err);
  return code ? code : kg_stream_wait(s, "reading a tensor", err);
}

static int cuda_read(const kg_buffer *b, int64_t at, int64_t n, float *out, kg_error *err)
{
  const int code = check_span(b, at, n, err);
  return code || !n ? code : download(stream_of(b), out, floats(b, at), (size_t)n * sizeof *out, err);
}

static int upload(const kg_stream *s, void *out, const void *in, size_t n_bytes, kg_error *err)
{
  const int code =
      kg_cuda_check(cudaMemcpyAsync(out, in, n_bytes, cudaMemcpyHostToDevice, s->handle), "writing a tensor", err);
  return code ? code : kg_stream_wait(s, "writing a tensor", err); /* the caller's memory may go after this */
}

static int cuda_write(kg_buffer *b, int64_t at, int64_t n, const float *in, kg_error *err)
{
  const int code = check_span(b, at, n, err);
  if (!code && n == 1) return kg_cuda_fill(stream_of(b), floats(b, at), 1, *in, err); /* no need to wait */
  return code || !n ? code : upload(stream_of(b), floats(b, at), in, (size_t)n * sizeof *in, err);
}

/* Memory for the length of one operation. */
typedef struct temporary {
  const kg_stream *stream;
  void *data;
} temporary;

static int take(temporary *t, const kg_stream *stream, size_t n_bytes, kg_error *err)
{
  t->stream = stream;
  const cudaError_t status = cudaMallocFromPoolAsync(&t->data, n_bytes ? n_bytes : 1, stream->pool, stream->handle);
  return status == cudaErrorMemoryAllocation ? fail_memory(n_bytes, "an operation on tensors", err)
                                             : kg_cuda_check(status, "an operation on tensors", err);
}

static void give_back(temporary *t)
{
  if (t->data && cudaFreeAsync(t->data, t->stream->handle)) (void)cudaGetLastError();
}

/* Numbers of another buffer as device memory that stream `s` may read: the buffer's own, waited for, or a copy. */
static int operand(const kg_stream *s, const kg_buffer *o, int64_t at, int64_t n, temporary *t, const float **out,
                   kg_error *err)
{
  if (is_ours(o)) {
    const int code = check_span(o, at, n, err);
    if (code || stream_of(o) == s) {
      *out = floats(o, at);
      return code;
    }
    if (stream_of(o)->device == s->device) {
      *out = floats(o, at);
      return kg_stream_wait(stream_of(o), "an operation on tensors", err);
    }
  }
  float *copy = kg_alloc((size_t)n * sizeof *copy);
  if (!copy) return kg_fail_memory(err, (size_t)n * sizeof *copy, "an operation on tensors");
  int code = o->ops->read(o, at, n, copy, err);
  if (!code) code = kg_stream_use(s, err);
  if (!code) code = take(t, s, (size_t)n * sizeof *copy, err);
  if (!code) code = upload(s, t->data, copy, (size_t)n * sizeof *copy, err);
  kg_free(copy);
  *out = t->data;
  return code;
}

static int cuda_copy(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(to, to_at, n, err);
  if (code || !n) return code;
  code = operand(stream_of(to), from, from_at, n, &t, &in, err);
  if (!code) code = kg_stream_use(stream_of(to), err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(floats(to, to_at), in, (size_t)n * sizeof *in, cudaMemcpyDeviceToDevice,
                                         stream_of(to)->handle),
                         "copying a tensor", err);
  give_back(&t);
  return code;
}

/* ---- arithmetic ---- */

static int cuda_fill(kg_buffer *b, int64_t at, int64_t n, float value, kg_error *err)
{
  const int code = check_span(b, at, n, err);
  return code || !n ? code : kg_cuda_fill(stream_of(b), floats(b, at), n, value, err);
}

static int cuda_fill_at(kg_buffer *b, int64_t at, int64_t n, const int32_t *index, int64_t n_index, float value,
                        kg_error *err)
{
  int code = check_span(b, at, n, err);
  for (int64_t i = 0; i < n_index && !code; i++)
    if (index[i] < 0 || index[i] >= n)
      code = kg_fail(err, KG_ERR_ARGUMENT, "index %d is outside 0 to %lld", index[i], (long long)n - 1);
  for (int64_t i = 0; i < n_index && !code; i += KG_FILL_MAX) {
    const int64_t left = n_index - i;
    code = kg_cuda_fill_at(stream_of(b), floats(b, at), index + i, (int32_t)(left < KG_FILL_MAX ? left : KG_FILL_MAX),
                           value, err);
  }
  return code;
}

static int cuda_affine(kg_buffer *b, int64_t at, int64_t n, float factor, float offset, kg_error *err)
{
  const int code = check_span(b, at, n, err);
  return code || !n ? code : kg_cuda_affine(stream_of(b), floats(b, at), n, factor, offset, err);
}

static int cuda_add(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, float factor, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = operand(stream_of(b), o, o_at, n, &t, &in, err);
  if (!code) code = kg_cuda_add(stream_of(b), floats(b, at), in, n, factor, err);
  give_back(&t);
  return code;
}

static int cuda_mul(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = operand(stream_of(b), o, o_at, n, &t, &in, err);
  if (!code) code = kg_cuda_mul(stream_of(b), floats(b, at), in, n, err);
  give_back(&t);
  return code;
}

/* The whole of x in one number or few: what the device wrote to the mail. */
static int reduce(const kg_buffer *b, int64_t at, int64_t n, const kg_reduced **out, kg_error *err)
{
  kg_stream *s = stream_of(b);
  int code = check_span(b, at, n, err);
  if (!code) code = open_mail(s, err);
  if (!code) code = kg_cuda_reduce(s, floats(b, at), n, &s->mail->reduced, &s->mail->room, err);
  *out = code ? NULL : &s->mail->reduced;
  return code ? code : kg_stream_wait(s, "reading a tensor", err);
}

static int cuda_argmax(const kg_buffer *b, int64_t at, int64_t n, int64_t *index, float *value, kg_error *err)
{
  const kg_reduced *all;
  if (!n || n > INT32_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "argmax of %lld numbers", (long long)n);
  const int code = reduce(b, at, n, &all, err);
  if (code) return code;
  *index = kg_rank_index(all->best);
  *value = kg_rank_value(all->best); /* a NaN where all are */
  return KG_OK;
}

static int cuda_softmax(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t rows, int64_t n,
                        bool log_wanted, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int64_t count;
  if (rows < 0 || n < 0 || __builtin_mul_overflow(rows, n, &count))
    return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows of %lld", (long long)rows, (long long)n);
  int code = check_span(to, to_at, count, err);
  if (code || !count) return code;
  code = open_mail(stream_of(to), err);
  if (!code) code = operand(stream_of(to), from, from_at, count, &t, &in, err);
  if (!code) code = kg_cuda_softmax(stream_of(to), in, rows, n, log_wanted, floats(to, to_at), &stream_of(to)->mail->room, err);
  give_back(&t);
  return code;
}

static int cuda_reduce(const kg_buffer *b, int64_t at, int64_t n, double *sum, float *min, float *max, kg_error *err)
{
  const kg_reduced *all;
  const int code = reduce(b, at, n, &all, err);
  if (code) return code;
  if (sum) *sum = all->sum;
  if (min) *min = all->min;
  if (max) *max = all->max;
  return KG_OK;
}

static int cuda_entropy(const kg_buffer *b, int64_t at, int64_t n, double *out, kg_error *err)
{
  const kg_reduced *all;
  const int code = reduce(b, at, n, &all, err);
  if (code) return code;
  if (all->min < 0)
    return kg_fail(err, KG_ERR_ARGUMENT,
                   "entropy wants probabilities, but one is %g (take the softmax of logits first)", (double)all->min);
  if (all->sum == 0) return kg_fail(err, KG_ERR_ARGUMENT, "entropy wants probabilities, but their sum is 0");
  *out = log(all->sum) - all->p_log_p / all->sum;
  return KG_OK;
}

/* A chain on a row: `applied` is where its stages' work goes, or NULL for a draw. */
static int run_chain(const kg_buffer *b, int64_t at, int64_t n, const kg_draw *draw, float *applied, kg_drawn *out,
                     kg_error *err)
{
  kg_stream *s = stream_of(b);
  *out = (kg_drawn){0, KG_DRAW_FAILED};
  int code = check_span(b, at, n, err);
  if (code || n < 1 || n > KG_DRAW_VOCAB_MAX) return code;
  const kg_draw_request request = {.draw = draw, .logits = floats(b, at), .applied = applied};
  code = kg_draws_begin(s, &request, 1, (int32_t)n, 1, err);
  if (!code) code = kg_draws_next(s, err);
  if (!code) code = kg_stream_wait(s, "drawing", err);
  if (!code) *out = kg_draws_of(s, 0)[0];
  return code;
}

static int cuda_draw(const kg_buffer *b, int64_t at, int64_t n, const kg_draw *draw, kg_drawn *out, kg_error *err)
{
  return run_chain(b, at, n, draw, NULL, out, err);
}

static int cuda_apply(kg_buffer *b, int64_t at, int64_t n, const kg_draw *draw, kg_drawn *out, kg_error *err)
{
  return run_chain(b, at, n, draw, floats(b, at), out, err);
}

/* More of them than a block sorts are ranked on the host, over a copy. */
static int top_of_copy(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value, kg_error *err)
{
  kg_buffer *copy;
  int code = kg_host()->host_buffer_new(n, &copy, err);
  if (code) return code;
  code = cuda_read(b, at, n, copy->data, err);
  if (!code) code = copy->ops->topk(copy, 0, n, k, index, value, err);
  copy->release(copy);
  return code;
}

static int cuda_topk(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value, kg_error *err)
{
  kg_stream *s = stream_of(b);
  int code = check_span(b, at, n, err);
  if (code) return code;
  if (k < 1 || k > KG_TOP_MAX || k > n || n > KG_DRAW_VOCAB_MAX) return top_of_copy(b, at, n, k, index, value, err);
  code = open_mail(s, err);
  if (code) return code;
  kg_mail *mail = s->mail;
  code = kg_cuda_top(s, floats(b, at), (int32_t)n, (int32_t)k, mail->index, mail->value, &mail->room, err);
  if (!code) code = kg_stream_wait(s, "reading a tensor", err);
  if (code) return code;
  memcpy(index, mail->index, (size_t)k * sizeof *index);
  memcpy(value, mail->value, (size_t)k * sizeof *value);
  return KG_OK;
}

static const kg_tensor_ops cuda_tensor_ops = {.like = cuda_like,
                                              .read = cuda_read,
                                              .write = cuda_write,
                                              .copy = cuda_copy,
                                              .fill = cuda_fill,
                                              .fill_at = cuda_fill_at,
                                              .affine = cuda_affine,
                                              .add = cuda_add,
                                              .mul = cuda_mul,
                                              .argmax = cuda_argmax,
                                              .topk = cuda_topk,
                                              .softmax = cuda_softmax,
                                              .entropy = cuda_entropy,
                                              .reduce = cuda_reduce,
                                              .draw = cuda_draw,
                                              .apply = cuda_apply};
