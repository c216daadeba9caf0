#include "buffer.h"

#include <math.h>
#include <string.h>

#include "answers.h"
#include "backend.h"
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
  return kg_fail(err, KG_ERR_MEMORY, "out of device memory: %zu bytes wanted for %s, %zu of %zu are free", n_bytes,
                 what, n_free, n_total);
}

int kg_cuda_alloc(size_t n_bytes, const char *what, void **out, kg_error *err)
{
  const cudaError_t status = cudaMalloc(out, n_bytes ? n_bytes : 1);
  if (status == cudaErrorMemoryAllocation) return fail_memory(n_bytes, what, err);
  return kg_cuda_check(status, what, err);
}

/* ---- blocks: memory of numbers ---- */

/* Shared by the buffers whose numbers it holds, and by those that are to be computed from these numbers as they are. */
typedef struct kg_block {
  float *data;
  int64_t n;
  int32_t n_refs;
  bool is_fresh;  /* the numbers are those of a pass */
  unsigned asked; /* about them, while they are */
  int32_t asked_k;
  kg_known *known;       /* of all of them as one row; made when first asked */
  struct kg_block *next; /* of the spare ones */
} kg_block;

static void free_block(const kg_stream *stream, kg_block *block)
{
  (void)cudaSetDevice(stream->device);
  (void)cudaFreeAsync(block->data, stream->handle);
  (void)cudaGetLastError();
  kg_free(block->known);
  kg_free(block);
}

static void free_spare(kg_stream *stream)
{
  for (kg_block *block = stream->spare, *next; block; block = next) {
    next = block->next;
    free_block(stream, block);
  }
  stream->spare = NULL;
  stream->spare_bytes = 0;
}

static cudaError_t take_memory(kg_stream *stream, size_t n_bytes, void **out)
{
  cudaError_t status = cudaMallocFromPoolAsync(out, n_bytes ? n_bytes : 1, stream->pool, stream->handle);
  if (status != cudaErrorMemoryAllocation || !stream->spare) return status;
  (void)cudaGetLastError();
  free_spare(stream);
  return cudaMallocFromPoolAsync(out, n_bytes ? n_bytes : 1, stream->pool, stream->handle);
}

/* Its numbers are left open. The stream's device must be in use. */
static int new_block(kg_stream *stream, int64_t n, kg_block **out, kg_error *err)
{
  size_t n_bytes;
  if (n < 0 || !kg_mul_size((size_t)n, sizeof(float), &n_bytes))
    return kg_fail(err, KG_ERR_ARGUMENT, "a buffer of %lld floats is impossible", (long long)n);
  kg_block *block = stream->spare;
  if (block && n == stream->row_floats) {
    stream->spare = block->next;
    stream->spare_bytes -= (int64_t)n_bytes;
    *out = block;
    return KG_OK;
  }
  block = kg_alloc_array(1, sizeof *block);
  if (!block) return kg_fail_memory(err, sizeof *block, "a tensor");
  void *data;
  const cudaError_t status = take_memory(stream, n_bytes, &data);
  if (status) {
    kg_free(block);
    return status == cudaErrorMemoryAllocation ? fail_memory(n_bytes, "a tensor", err)
                                               : kg_cuda_check(status, "a tensor", err);
  }
  *block = (kg_block){.data = data, .n = n, .n_refs = 1};
  *out = block;
  return KG_OK;
}

/* The numbers are about to be others. */
static void forget(kg_block *block)
{
  block->is_fresh = false;
  block->asked = 0;
  block->asked_k = 0;
  if (block->known) block->known->asked = 0;
}

static void unref_block(kg_stream *stream, kg_block *block)
{
  if (!block || --block->n_refs) return;
  const int64_t n_bytes = block->n * (int64_t)sizeof(float);
  if (block->n != stream->row_floats || n_bytes > stream->kept_bytes - stream->spare_bytes) {
    free_block(stream, block);
    return;
  }
  forget(block);
  block->n_refs = 1;
  block->next = stream->spare;
  stream->spare = block;
  stream->spare_bytes += n_bytes;
}

/* ---- streams ---- */

enum {
  KEPT_MIN = 256 << 20, /* bytes that a stream keeps for later, at least, ... */
  KEPT_SHARE = 128      /* ... or this part of the device's memory */
};

static int open_pool(kg_stream *stream, kg_error *err)
{
  const struct cudaMemPoolProps props = {.allocType = cudaMemAllocationTypePinned,
                                         .location = {.type = cudaMemLocationTypeDevice, .id = stream->device}};
  size_t n_free, n_total;
  int code = kg_cuda_check(cudaMemGetInfo(&n_free, &n_total), "asking the device", err);
  if (!code) code = kg_cuda_check(cudaMemPoolCreate(&stream->pool, &props), "making a memory pool", err);
  if (code) return code;
  stream->kept_bytes = n_total / KEPT_SHARE > KEPT_MIN ? (int64_t)(n_total / KEPT_SHARE) : KEPT_MIN;
  uint64_t kept = (uint64_t)stream->kept_bytes;
  return kg_cuda_check(cudaMemPoolSetAttribute(stream->pool, cudaMemPoolAttrReleaseThreshold, &kept),
                       "making a memory pool", err);
}

int kg_stream_new(int device, kg_stream **out, kg_error *err)
{
  kg_stream *stream = kg_alloc_array(1, sizeof *stream);
  if (!stream) return kg_fail_memory(err, sizeof *stream, "a stream");
  stream->device = device;
  stream->n_refs = 1;
  const struct { enum cudaDeviceAttr attribute; int *out; } questions[] = {
    {cudaDevAttrMultiProcessorCount, &stream->n_sms},
    {cudaDevAttrMaxSharedMemoryPerBlockOptin, &stream->shared_max}};
  int code = kg_cuda_check(cudaSetDevice(device), "choosing the device", err);
  for (size_t i = 0; i < sizeof questions / sizeof *questions && !code; i++)
    code = kg_cuda_check(cudaDeviceGetAttribute(questions[i].out, questions[i].attribute, device),
                         "asking the device", err);
  if (!code)
    code = kg_cuda_check(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking), "making a stream", err);
  if (!code) code = kg_cuda_find_build(stream, err);
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
  kg_answers_free(stream->answers);
  free_spare(stream);
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

enum {
  QUESTIONS = 3, /* kinds of KG_ASK_* */
  HABIT = 4,     /* rows long a question is expected to be asked again */
  TOP_SPARE = 16 /* best ones that are asked for beyond those of scaled numbers */
};

/* Where a buffer's numbers come from. What it holds does not change when they are computed or moved, so that this is
 * done to const ones too. */
typedef struct device_buffer {
  kg_buffer base;   /* data: the block's, or NULL */
  kg_block *block;  /* NULL: the numbers are open, or to be computed */
  kg_block *source; /* the numbers are to be its softmax, in rows of `width`; NULL: they are there */
  int64_t width;
  bool is_log;
  bool is_scaled; /* the numbers are block * factor + offset */
  float factor, offset;
  uint8_t habit[QUESTIONS]; /* passes for which the question is still expected, of what it was asked about their rows */
  int32_t habit_k;
} device_buffer;

static const kg_tensor_ops cuda_tensor_ops;

static kg_stream *stream_of(const kg_buffer *b) { return b->owner; }
static float *floats(const kg_buffer *b, int64_t at) { return (float *)b->data + at; }
static bool is_ours(const kg_buffer *b) { return b->ops == &cuda_tensor_ops; }
static bool is_whole(const kg_buffer *b, int64_t at, int64_t n) { return !at && n == b->n; }
static device_buffer *inside(const kg_buffer *b) { return (device_buffer *)b; }

/* Takes the block, NULL too. */
static void set_block(device_buffer *b, kg_block *block)
{
  unref_block(stream_of(&b->base), b->block);
  b->block = block;
  b->base.data = block ? block->data : NULL;
}

static void drop_source(device_buffer *b)
{
  unref_block(stream_of(&b->base), b->source);
  b->source = NULL;
}

static void release_buffer(kg_buffer *buffer)
{
  kg_stream *stream = stream_of(buffer);
  set_block(inside(buffer), NULL);
  drop_source(inside(buffer));
  kg_stream_unref(stream);
  kg_free(buffer);
}

/* Without a block. */
static int new_buffer(kg_stream *stream, int64_t n, kg_buffer **out, kg_error *err)
{
  device_buffer *b = kg_alloc_array(1, sizeof *b);
  if (!b) return kg_fail_memory(err, sizeof *b, "a tensor");
  b->base = (kg_buffer){
      .ops = &cuda_tensor_ops, .n = n, .n_refs = 1, .release = release_buffer, .owner = kg_stream_ref(stream)};
  *out = &b->base;
  return KG_OK;
}

int kg_cuda_buffer_new(kg_stream *stream, int64_t n, kg_buffer **out, kg_error *err)
{
  kg_block *block;
  kg_buffer *buffer;
  int code = kg_stream_use(stream, err);
  if (!code) code = new_block(stream, n, &block, err);
  if (code) return code;
  code = new_buffer(stream, n, &buffer, err);
  if (code) {
    unref_block(stream, block);
    return code;
  }
  set_block(inside(buffer), block);
  *out = buffer;
  return KG_OK;
}

static int check_span(const kg_buffer *b, int64_t at, int64_t n, kg_error *err)
{
  if (at >= 0 && n >= 0 && at <= b->n && n <= b->n - at) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%lld floats from %lld on are outside a buffer of %lld", (long long)n,
                 (long long)at, (long long)b->n);
}

int kg_cuda_buffer_check(const kg_buffer *buffer, int64_t at, int64_t n, const char *what, kg_error *err)
{
  if (is_ours(buffer) && at >= 0 && n <= buffer->n && at <= buffer->n - n) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%s: %lld floats at %lld do not fit a device buffer of %lld", what, (long long)n,
                 (long long)at, (long long)buffer->n);
}

/* ---- numbers that are there, and may be written to ---- */

/* Questions about the numbers of a pass, when these come to an end. */
static void note_habits(device_buffer *b)
{
  const kg_block *block = b->block;
  if (!block || !block->is_fresh) return;
  if (block->asked & KG_ASK_TOP) b->habit_k = block->asked_k;
  for (int i = 0; i < QUESTIONS; i++)
    if (block->asked & 1u << i)
      b->habit[i] = HABIT;
    else if (b->habit[i])
      b->habit[i]--;
}

/* Go on in another block, or in the same with other numbers. */
static void move_to(device_buffer *b, kg_block *block)
{
  note_habits(b);
  forget(block);
  if (block != b->block) set_block(b, block);
  drop_source(b);
  b->is_scaled = false;
}

static int compute_softmax(device_buffer *b, kg_error *err)
{
  kg_stream *s = stream_of(&b->base);
  const int64_t n_rows = b->source->n / b->width;
  const kg_vector_room *room;
  kg_block *block;
  int code = kg_answers_room(s, n_rows < KG_LOOK_ROWS ? n_rows : KG_LOOK_ROWS, &room, err);
  if (!code) code = new_block(s, b->source->n, &block, err);
  if (code) return code;
  code = kg_cuda_softmax(s, b->source->data, n_rows, b->width, b->is_log, block->data, room, err);
  if (code) {
    unref_block(s, block);
    return code;
  }
  move_to(b, block);
  return KG_OK;
}

static int scale(device_buffer *b, kg_error *err)
{
  kg_stream *s = stream_of(&b->base);
  kg_block *block = b->block;
  int code = block->n_refs > 1 ? new_block(s, b->base.n, &block, err) : KG_OK;
  if (code) return code;
  code = kg_cuda_affine(s, b->block->data, b->base.n, b->factor, b->offset, block->data, err);
  if (!code)
    move_to(b, block);
  else if (block != b->block)
    unref_block(s, block);
  return code;
}

/* Have the numbers in the block. */
static int settle(const kg_buffer *buffer, kg_error *err)
{
  device_buffer *b = inside(buffer);
  kg_block *block;
  if (b->block && !b->is_scaled) return KG_OK;
  int code = kg_stream_use(stream_of(buffer), err);
  if (code) return code;
  if (b->source) return compute_softmax(b, err);
  if (b->is_scaled) return scale(b, err);
  code = new_block(stream_of(buffer), buffer->n, &block, err);
  if (!code) set_block(b, block);
  return code;
}

/* Have a block that is the buffer's alone, because numbers [at, at + n) are about to be written. */
static int own(kg_buffer *buffer, int64_t at, int64_t n, kg_error *err)
{
  device_buffer *b = inside(buffer);
  kg_stream *s = stream_of(buffer);
  const bool keeps = !is_whole(buffer, at, n);
  int code = keeps ? settle(buffer, err) : KG_OK;
  if (!code) code = kg_stream_use(s, err);
  kg_block *block = b->block;
  if (!code && (!block || block->n_refs > 1)) {
    code = new_block(s, buffer->n, &block, err);
    if (!code && keeps)
      code = kg_cuda_check(cudaMemcpyAsync(block->data, b->block->data, (size_t)buffer->n * sizeof(float),
                                           cudaMemcpyDeviceToDevice, s->handle),
                           "copying a tensor", err);
  }
  if (!code)
    move_to(b, block);
  else if (block != b->block)
    unref_block(s, block);
  return code;
}

/* The same where the old numbers count, whatever is written. */
static int own_and_keep(kg_buffer *buffer, kg_error *err)
{
  const int code = settle(buffer, err);
  return code ? code : own(buffer, 0, 0, err);
}

int kg_cuda_buffer_numbers(const kg_buffer *buffer, const float **out, kg_error *err)
{
  const int code = settle(buffer, err);
  *out = buffer->data;
  return code;
}

/* ---- rows of passes ---- */

int kg_cuda_buffer_claim(kg_buffer *buffer, int64_t at, int64_t n, bool keeps, float **out, kg_error *err)
{
  const int code = keeps ? own_and_keep(buffer, err) : own(buffer, at, n, err);
  if (code) return code;
  inside(buffer)->block->is_fresh = !keeps && is_whole(buffer, at, n);
  *out = floats(buffer, at);
  return KG_OK;
}

bool kg_cuda_buffer_expects(const kg_buffer *buffer, kg_question *out)
{
  const device_buffer *b = inside(buffer);
  unsigned asked = 0;
  if (!b->block || !b->block->is_fresh) return false;
  for (int i = 0; i < QUESTIONS; i++) asked |= b->habit[i] ? 1u << i : 0;
  if (!asked) return false;
  if (!b->block->known) b->block->known = kg_alloc_array(1, sizeof *b->block->known);
  *out = (kg_question){b->block->data, asked, b->habit_k, b->block->known};
  return b->block->known != NULL;
}

/* ---- moving ---- */

/* Memory is taken when there are numbers for it. */
static int cuda_like(const kg_buffer *b, int64_t n, kg_buffer **out, kg_error *err)
{
  size_t n_bytes;
  if (n < 0 || !kg_mul_size((size_t)n, sizeof(float), &n_bytes))
    return kg_fail(err, KG_ERR_ARGUMENT, "a buffer of %lld floats is impossible", (long long)n);
  return new_buffer(stream_of(b), n, out, err);
}

static int download(const kg_stream *s, void *out, const void *in, size_t n_bytes, kg_error *err)
{
  const int code =
      kg_cuda_check(cudaMemcpyAsync(out, in, n_bytes, cudaMemcpyDeviceToHost, s->handle), "reading a tensor", err);
  return code ? code : kg_stream_wait(s, "reading a tensor", err);
}

static int cuda_read(const kg_buffer *b, int64_t at, int64_t n, float *out, kg_error *err)
{
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = settle(b, err);
  if (!code) code = kg_stream_use(stream_of(b), err);
  return code ? code : download(stream_of(b), out, floats(b, at), (size_t)n * sizeof *out, err);
}

static int upload(const kg_stream *s, void *out, const void *in, size_t n_bytes, kg_error *err)
{
  const int code =
      kg_cuda_check(cudaMemcpyAsync(out, in, n_bytes, cudaMemcpyHostToDevice, s->handle), "writing a tensor", err);
  return code ? code : kg_stream_wait(s, "writing a tensor", err); /* the caller's memory may go after this */
}

static int cuda_write(kg_buffer *b, int64_t at, int64_t n, const float *in, kg_error *err)
{
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = own(b, at, n, err);
  if (!code && n == 1) return kg_cuda_fill(stream_of(b), floats(b, at), 1, *in, err); /* no need to wait */
  return code ? code : upload(stream_of(b), floats(b, at), in, (size_t)n * sizeof *in, err);
}

/* What an operation reads, for its length. */
typedef struct temporary {
  const kg_stream *stream;
  void *data;   /* a copy, or NULL */
  bool is_lent; /* it is another stream's, where it may be written over or given back when the operation returns */
} temporary;

static int take(temporary *t, kg_stream *stream, size_t n_bytes, kg_error *err)
{
  t->stream = stream;
  const cudaError_t status = take_memory(stream, n_bytes, &t->data);
  return status == cudaErrorMemoryAllocation ? fail_memory(n_bytes, "an operation on tensors", err)
                                             : kg_cuda_check(status, "an operation on tensors", err);
}

/* The end of the operation, whose code this passes on. */
static int give_back(temporary *t, int code, kg_error *err)
{
  if (t->data && cudaFreeAsync(t->data, t->stream->handle)) (void)cudaGetLastError();
  return code || !t->is_lent ? code : kg_stream_wait(t->stream, "an operation on tensors", err);
}

/* Numbers of another buffer, which are settled where it is ours, as device memory that stream `s` may read: the
 * buffer's own, waited for, or a copy. */
static int operand(kg_stream *s, const kg_buffer *o, int64_t at, int64_t n, temporary *t, const float **out,
                   kg_error *err)
{
  if (is_ours(o) && stream_of(o)->device == s->device) {
    *out = floats(o, at);
    t->stream = s;
    t->is_lent = stream_of(o) != s;
    return t->is_lent ? kg_stream_wait(stream_of(o), "an operation on tensors", err) : KG_OK;
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

/* Make b ready for numbers [at, at + n) that come from as many of o. */
static int prepare(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, bool keeps, temporary *t,
                   const float **in, kg_error *err)
{
  const bool is_near = is_ours(o) && stream_of(o)->device == stream_of(b)->device;
  int code = is_ours(o) ? check_span(o, o_at, n, err) : KG_OK;
  if (!code && is_ours(o)) code = settle(o, err); /* before b changes: it may come from b */
  if (!code && !is_near) code = operand(stream_of(b), o, o_at, n, t, in, err);
  if (!code) code = keeps || o == b ? own_and_keep(b, err) : own(b, at, n, err);
  return code || !is_near ? code : operand(stream_of(b), o, o_at, n, t, in, err);
}

/* Both have the same block, until one of them is written to. */
static int share(kg_buffer *to, const kg_buffer *from, kg_error *err)
{
  device_buffer *b = inside(to);
  const device_buffer *source = inside(from);
  const int code = settle(from, err);
  if (code) return code;
  source->block->n_refs++;
  set_block(b, source->block);
  drop_source(b);
  b->is_scaled = false;
  for (int i = 0; i < QUESTIONS; i++)
    if (b->habit[i] < source->habit[i]) b->habit[i] = source->habit[i];
  if (b->habit_k < source->habit_k) b->habit_k = source->habit_k;
  return KG_OK;
}

/* Can all of `to` refer to the block of all of `from`? */
static bool are_alike(const kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n)
{
  return is_ours(from) && to != from && stream_of(to) == stream_of(from) && is_whole(to, to_at, n) &&
         is_whole(from, from_at, n);
}

static int cuda_copy(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(to, to_at, n, err);
  if (code || !n) return code;
  if (are_alike(to, to_at, from, from_at, n)) return share(to, from, err);
  code = prepare(to, to_at, from, from_at, n, false, &t, &in, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(floats(to, to_at), in, (size_t)n * sizeof *in, cudaMemcpyDeviceToDevice,
                                         stream_of(to)->handle),
                         "copying a tensor", err);
  return give_back(&t, code, err);
}

/* ---- arithmetic ---- */

static int cuda_fill(kg_buffer *b, int64_t at, int64_t n, float value, kg_error *err)
{
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = own(b, at, n, err);
  return code ? code : kg_cuda_fill(stream_of(b), floats(b, at), n, value, err);
}

static int cuda_fill_at(kg_buffer *b, int64_t at, int64_t n, const int32_t *index, int64_t n_index, float value,
                        kg_error *err)
{
  int code = check_span(b, at, n, err);
  for (int64_t i = 0; i < n_index && !code; i++)
    if (index[i] < 0 || index[i] >= n)
      code = kg_fail(err, KG_ERR_ARGUMENT, "index %d is outside 0 to %lld", index[i], (long long)n - 1);
  if (code || !n_index) return code;
  code = own_and_keep(b, err);
  for (int64_t i = 0; i < n_index && !code; i += KG_FILL_MAX) {
    const int64_t left = n_index - i;
    code = kg_cuda_fill_at(stream_of(b), floats(b, at), index + i, (int32_t)(left < KG_FILL_MAX ? left : KG_FILL_MAX),
                           value, err);
  }
  return code;
}

/* Logits that a pass has made are scaled when somebody looks, and maybe never: the next pass makes others. */
static int cuda_affine(kg_buffer *buffer, int64_t at, int64_t n, float factor, float offset, kg_error *err)
{
  device_buffer *b = inside(buffer);
  int code = check_span(buffer, at, n, err);
  if (code || !n) return code;
  if (is_whole(buffer, at, n) && b->block && b->block->is_fresh && !b->is_scaled) {
    b->is_scaled = true;
    b->factor = factor;
    b->offset = offset;
    return KG_OK;
  }
  code = own_and_keep(buffer, err);
  return code ? code
              : kg_cuda_affine(stream_of(buffer), floats(buffer, at), n, factor, offset, floats(buffer, at), err);
}

static int cuda_add(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, float factor, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = prepare(b, at, o, o_at, n, true, &t, &in, err);
  if (!code) code = kg_cuda_add(stream_of(b), floats(b, at), in, n, factor, err);
  return give_back(&t, code, err);
}

static int cuda_mul(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, kg_error *err)
{
  temporary t = {0};
  const float *in;
  int code = check_span(b, at, n, err);
  if (code || !n) return code;
  code = prepare(b, at, o, o_at, n, true, &t, &in, err);
  if (!code) code = kg_cuda_mul(stream_of(b), floats(b, at), in, n, err);
  return give_back(&t, code, err);
}

/* Put off, where it can be, until somebody asks for more than the device says of it anyway. */
static int cuda_softmax(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t rows, int64_t n,
                        bool log_wanted, kg_error *err)
{
  temporary t = {0};
  const float *in;
  const kg_vector_room *room;
  int64_t count;
  if (rows < 0 || n < 0 || __builtin_mul_overflow(rows, n, &count))
    return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows of %lld", (long long)rows, (long long)n);
  int code = check_span(to, to_at, count, err);
  if (code || !count) return code;
  if (are_alike(to, to_at, from, from_at, count)) {
    code = settle(from, err);
    if (code) return code;
    device_buffer *b = inside(to);
    kg_block *source = inside(from)->block;
    source->n_refs++;
    set_block(b, NULL);
    drop_source(b);
    b->is_scaled = false;
    b->source = source;
    b->width = n;
    b->is_log = log_wanted;
    return KG_OK;
  }
  code = prepare(to, to_at, from, from_at, count, false, &t, &in, err);
  if (!code) code = kg_answers_room(stream_of(to), rows < KG_LOOK_ROWS ? rows : KG_LOOK_ROWS, &room, err);
  if (!code) code = kg_cuda_softmax(stream_of(to), in, rows, n, log_wanted, floats(to, to_at), room, err);
  return give_back(&t, code, err);
}

/* ---- questions ---- */

/* Which block is asked what, for an answer to a question about numbers of a buffer. */
typedef struct target {
  kg_block *block;
  unsigned asked;
  int32_t k;
  bool is_ready; /* else the numbers have to be settled first */
} target;

static bool can_rank(int64_t n, int64_t k) { return k >= 1 && k <= KG_TOP_MAX && k <= n && n <= KG_DRAW_VOCAB_MAX; }

static target target_of(const kg_look *look)
{
  const device_buffer *b = inside(look->buffer);
  const bool whole = is_whole(look->buffer, look->at, look->n);
  const int64_t n = look->n, k = look->kind == KG_LOOK_TOP ? look->k : 1, more = k + TOP_SPARE < n ? k + TOP_SPARE : n;
  if (look->kind != KG_LOOK_TOP && b->source && !b->is_log && b->width == n && whole)
    return (target){b->source, KG_ASK_PROBS, 0, true};
  if (look->kind != KG_LOOK_REDUCE && b->is_scaled && whole && can_rank(n, more) && b->factor > 0 &&
      b->factor < INFINITY && fabsf(b->offset) < INFINITY)
    return (target){b->block, KG_ASK_TOP, (int32_t)more, true};
  const unsigned asked = look->kind == KG_LOOK_TOP ? KG_ASK_TOP : KG_ASK_ROW;
  return (target){b->block, asked, look->kind == KG_LOOK_TOP ? (int32_t)k : 0, b->block && !b->is_scaled};
}

static bool is_known(const kg_known *known, unsigned asked, int32_t k)
{
  return known && (known->asked & asked) == asked && (!(asked & KG_ASK_TOP) || known->k >= k);
}

/* Note that a whole block is asked about. NULL: no memory. */
static kg_known *note_asked(const target *t)
{
  if (!t->block->known) t->block->known = kg_alloc_array(1, sizeof *t->block->known);
  t->block->asked |= t->asked;
  if (t->k > t->block->asked_k) t->block->asked_k = t->k;
  return t->block->known;
}

static int settle_target(const kg_look *look, target *t, kg_error *err)
{
  if (t->is_ready) return KG_OK;
  const int code = settle(look->buffer, err);
  t->block = inside(look->buffer)->block;
  return code;
}

/* The answers are kept with the block, or come to `elsewhere`. */
static int answer(const kg_look *look, target *t, kg_known *elsewhere, const kg_known **out, kg_error *err)
{
  kg_stream *s = stream_of(look->buffer);
  int code = settle_target(look, t, err);
  if (code) return code;
  kg_known *known = is_whole(look->buffer, look->at, look->n) ? note_asked(t) : NULL;
  if (!known) {
    elsewhere->asked = 0;
    known = elsewhere;
  }
  *out = known;
  if (is_known(known, t->asked, t->k)) return KG_OK;
  const kg_question question = {t->block->data + look->at, t->asked, t->k, known};
  code = kg_stream_use(s, err);
  if (!code) code = kg_answers_ask(s, &question, 1, look->n, err);
  if (!code) code = kg_stream_wait(s, "reading a tensor", err);
  if (!code) kg_answers_take(s, &question, 1);
  return code;
}

static bool cuda_knows(const kg_look *look)
{
  const target t = target_of(look);
  return t.is_ready && is_whole(look->buffer, look->at, look->n) && is_known(t.block->known, t.asked, t.k);
}

static bool can_look(const kg_look *look)
{
  return is_whole(look->buffer, look->at, look->n) && look->n > 0 &&
         (look->kind != KG_LOOK_TOP || can_rank(look->n, look->k));
}

/* As many of the questions as are about rows like that of `first`, at once. Their numbers are settled. */
static int look_alike(const kg_look *looks, size_t n, size_t first, bool *done, kg_error *err)
{
  kg_question questions[KG_LOOK_ROWS];
  int32_t n_questions = 0;
  kg_stream *s = stream_of(looks[first].buffer);
  int code = kg_stream_use(s, err);
  for (size_t i = first; i < n && n_questions < KG_LOOK_ROWS && !code; i++) {
    const kg_look *look = &looks[i];
    if (done[i] || stream_of(look->buffer) != s || look->n != looks[first].n) continue;
    done[i] = true;
    const target t = target_of(look);
    kg_known *known = note_asked(&t);
    if (known && !is_known(known, t.asked, t.k))
      questions[n_questions++] = (kg_question){t.block->data, t.asked, t.k, known};
  }
  if (code || !n_questions) return code;
  code = kg_answers_ask(s, questions, n_questions, looks[first].n, err);
  if (!code) code = kg_stream_wait(s, "reading tensors", err);
  if (!code) kg_answers_take(s, questions, n_questions);
  return code;
}

static int cuda_look(const kg_look *looks, size_t n, kg_error *err)
{
  bool *done = kg_alloc_array(n, sizeof *done);
  if (!done) return kg_fail_memory(err, n * sizeof *done, "questions about tensors");
  int code = KG_OK;
  for (size_t i = 0; i < n; i++) done[i] = !can_look(&looks[i]);
  for (size_t i = 0; i < n && !code; i++) { /* first: this may give back a block that another one would ask about */
    if (done[i]) continue;
    target t = target_of(&looks[i]);
    code = settle_target(&looks[i], &t, err);
  }
  for (size_t i = 0; i < n && !code; i++)
    if (!done[i]) code = look_alike(looks, n, i, done, err);
  kg_free(done);
  return code;
}

/* Numbers [at, at + n) in few of them. */
static int reduce(const kg_look *look, kg_reduced *out, kg_error *err)
{
  kg_known elsewhere;
  const kg_known *known;
  int code = check_span(look->buffer, look->at, look->n, err);
  if (code) return code;
  target t = target_of(look);
  code = answer(look, &t, &elsewhere, &known, err);
  if (!code) *out = t.asked & KG_ASK_PROBS ? known->answer.probs : known->answer.row;
  return code;
}

/* The k best of scaled numbers, from the best of those that are not: scaling keeps the order, but may make numbers
 * alike. False: there is doubt. */
static bool rank_scaled(const device_buffer *b, const kg_known *known, int32_t n_known, int32_t k, int32_t *index,
                        float *value)
{
  kg_rank ranks[KG_TOP_MAX];
  float scaled[KG_TOP_MAX];
  int32_t order[KG_TOP_MAX];
  for (int32_t i = 0; i < n_known; i++) {
    int32_t at = i;
    scaled[i] = known->answer.value[i] * b->factor + b->offset;
    if (scaled[i] != scaled[i]) return false;
    ranks[i] = kg_rank_make(scaled[i], (uint32_t)known->answer.index[i]);
    for (; at && ranks[order[at - 1]] < ranks[i]; at--) order[at] = order[at - 1];
    order[at] = i;
  }
  if (n_known < b->base.n && !(scaled[n_known - 1] < scaled[k - 1])) return false;
  for (int32_t i = 0; i < k; i++) {
    index[i] = known->answer.index[order[i]];
    value[i] = scaled[order[i]];
  }
  return true;
}

/* The k best, as few as a block ranks. */
static int find_top(const kg_look *look, int32_t k, int32_t *index, float *value, kg_error *err)
{
  kg_known elsewhere;
  const kg_known *known;
  for (;;) {
    const device_buffer *b = inside(look->buffer);
    const bool was_scaled = b->is_scaled;
    target t = target_of(look);
    int code = answer(look, &t, &elsewhere, &known, err);
    if (code) return code;
    if (!was_scaled || !t.is_ready) break;
    if (rank_scaled(b, known, t.k, k, index, value)) return KG_OK;
    code = settle(look->buffer, err);
    if (code) return code;
  }
  memcpy(index, known->answer.index, (size_t)k * sizeof *index);
  memcpy(value, known->answer.value, (size_t)k * sizeof *value);
  return KG_OK;
}

static int cuda_argmax(const kg_buffer *b, int64_t at, int64_t n, int64_t *index, float *value, kg_error *err)
{
  const kg_look look = {KG_LOOK_BEST, b, at, n, 0};
  kg_known elsewhere;
  const kg_known *known;
  kg_reduced all;
  int32_t best;
  if (!n || n > INT32_MAX) return kg_fail(err, KG_ERR_ARGUMENT, "argmax of %lld numbers", (long long)n);
  int code = check_span(b, at, n, err);
  if (code) return code;
  target t = target_of(&look);
  if (t.asked == KG_ASK_TOP) {
    code = answer(&look, &t, &elsewhere, &known, err);
    if (!code && rank_scaled(inside(b), known, t.k, 1, &best, value)) {
      *index = best;
      return KG_OK;
    }
    if (!code) code = settle(b, err);
    if (code) return code;
  }
  code = reduce(&look, &all, err);
  if (code) return code;
  *index = kg_rank_index(all.best);
  *value = kg_rank_value(all.best); /* a NaN where all are */
  return KG_OK;
}

static int cuda_reduce(const kg_buffer *b, int64_t at, int64_t n, double *sum, float *min, float *max, kg_error *err)
{
  const kg_look look = {KG_LOOK_REDUCE, b, at, n, 0};
  kg_reduced all;
  const int code = reduce(&look, &all, err);
  if (code) return code;
  if (sum) *sum = all.sum;
  if (min) *min = all.min;
  if (max) *max = all.max;
  return KG_OK;
}

static int cuda_entropy(const kg_buffer *b, int64_t at, int64_t n, double *out, kg_error *err)
{
  const kg_look look = {KG_LOOK_REDUCE, b, at, n, 0};
  kg_reduced all;
  const int code = reduce(&look, &all, err);
  if (code) return code;
  if (all.min < 0)
    return kg_fail(err, KG_ERR_ARGUMENT,
                   "entropy wants probabilities, but one is %g (take the softmax of logits first)", (double)all.min);
  if (all.sum == 0) return kg_fail(err, KG_ERR_ARGUMENT, "entropy wants probabilities, but their sum is 0");
  *out = log(all.sum) - all.p_log_p / all.sum;
  return KG_OK;
}

/* ---- chains ---- */

/* Have numbers to begin with, that may be written to where the chain applies. Kernels of chains can scale. */
static int prepare_use(const kg_draw_use *use, kg_error *err)
{
  const device_buffer *b = inside(use->buffer);
  const bool is_own = is_whole(use->buffer, use->at, use->n) && b->block && b->block->n_refs == 1;
  if (b->is_scaled && (is_own || !use->applies)) return KG_OK;
  return use->applies ? own_and_keep(use->buffer, err) : settle(use->buffer, err);
}

static kg_draw_request request_of(const kg_draw_use *use)
{
  const device_buffer *b = inside(use->buffer);
  float *row = floats(use->buffer, use->at);
  return (kg_draw_request){.draw = &use->draw,
                           .logits = row,
                           .is_scaled = b->is_scaled,
                           .factor = b->factor,
                           .offset = b->offset,
                           .applied = use->applies ? row : NULL};
}

/* As many of the uses as are of rows like that of `first`, at once. */
static int draw_alike(kg_draw_use *uses, size_t n, size_t first, bool *done, kg_error *err)
{
  kg_draw_request requests[KG_AHEAD_ROWS];
  kg_draw_use *drawing[KG_AHEAD_ROWS];
  int32_t n_rows = 0;
  kg_stream *s = stream_of(uses[first].buffer);
  int code = kg_stream_use(s, err);
  for (size_t i = first; i < n && n_rows < KG_AHEAD_ROWS && !code; i++) {
    kg_draw_use *use = &uses[i];
    if (done[i] || stream_of(use->buffer) != s || use->n != uses[first].n) continue;
    done[i] = true;
    code = prepare_use(use, err);
    if (code) return code;
    drawing[n_rows] = use;
    requests[n_rows++] = request_of(use);
  }
  if (!code) code = kg_draws_begin(s, requests, n_rows, (int32_t)uses[first].n, 1, err);
  if (!code) code = kg_draws_next(s, err);
  if (!code) code = kg_stream_wait(s, "drawing", err);
  for (int32_t i = 0; i < n_rows && !code; i++) {
    kg_draw_use *use = drawing[i];
    use->drawn = kg_draws_of(s, i)[0];
    if (use->applies && use->drawn.status >= 0) move_to(inside(use->buffer), inside(use->buffer)->block);
  }
  return code;
}

static int cuda_draw(kg_draw_use *uses, size_t n, kg_error *err)
{
  bool *done = kg_alloc_array(n, sizeof *done);
  if (!done) return kg_fail_memory(err, n * sizeof *done, "draws");
  int code = KG_OK;
  for (size_t i = 0; i < n && !code; i++) {
    uses[i].drawn = (kg_drawn){0, KG_DRAW_FAILED};
    done[i] = uses[i].n < 1 || uses[i].n > KG_DRAW_VOCAB_MAX;
    code = check_span(uses[i].buffer, uses[i].at, uses[i].n, err);
  }
  for (size_t i = 0; i < n && !code; i++)
    if (!done[i]) code = draw_alike(uses, n, i, done, err);
  kg_free(done);
  return code;
}

/* More of them than a block sorts are ranked on the host, over a copy. */
static int top_of_copy(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value,
                       kg_error *err)
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
  const kg_look look = {KG_LOOK_TOP, b, at, n, k};
  const int code = check_span(b, at, n, err);
  if (code) return code;
  return can_rank(n, k) ? find_top(&look, (int32_t)k, index, value, err) : top_of_copy(b, at, n, k, index, value, err);
}

static int64_t cuda_dropped_max(const kg_buffer *b) { return stream_of(b)->kept_bytes; }

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
                                              .look = cuda_look,
                                              .knows = cuda_knows,
                                              .dropped_max = cuda_dropped_max};
