#include "tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "rank.h"
#include "vector.h"

/* ---- buffers ---- */

static void release_host(kg_buffer *buffer)
{
  kg_free(buffer->data);
  kg_free(buffer);
}

static int new_host_buffer(int64_t n, bool zeroed, kg_buffer **out, kg_error *err)
{
  size_t n_bytes;
  if (n < 0 || (uint64_t)n > SIZE_MAX || !kg_mul_size((size_t)n, sizeof(float), &n_bytes))
    return kg_fail(err, KG_ERR_ARGUMENT, "a buffer of %lld floats is impossible", (long long)n);
  kg_buffer *buffer = kg_alloc(sizeof *buffer);
  float *data = kg_alloc_aligned(n_bytes, 64);
  if (!buffer || !data) {
    kg_free(buffer);
    kg_free(data);
    return kg_fail_memory(err, n_bytes, "a tensor");
  }
  if (zeroed) memset(data, 0, n_bytes);
  *buffer = (kg_buffer){.ops = &kg_host_tensor_ops, .data = data, .n = n, .n_refs = 1, .release = release_host};
  *out = buffer;
  return KG_OK;
}

int kg_host_buffer_new(int64_t n, kg_buffer **out, kg_error *err) { return new_host_buffer(n, true, out, err); }

kg_buffer *kg_buffer_ref(kg_buffer *buffer)
{
  buffer->n_refs++;
  return buffer;
}

void kg_buffer_unref(kg_buffer *buffer)
{
  if (buffer && --buffer->n_refs == 0) buffer->release(buffer);
}

/* ---- operations on the host ---- */

static float *floats(const kg_buffer *b, int64_t at) { return (float *)b->data + at; }

static int check_span(const kg_buffer *b, int64_t at, int64_t n, kg_error *err)
{
  if (at >= 0 && n >= 0 && at <= b->n && n <= b->n - at) return KG_OK;
  return kg_fail(err, KG_ERR_ARGUMENT, "%lld floats from %lld on are outside a buffer of %lld", (long long)n,
                 (long long)at, (long long)b->n);
}

static int host_like(const kg_buffer *b, int64_t n, kg_buffer **out, kg_error *err)
{
  (void)b;
  return new_host_buffer(n, false, out, err);
}

static int host_read(const kg_buffer *b, int64_t at, int64_t n, float *out, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (!status && n) memcpy(out, floats(b, at), (size_t)n * sizeof *out);
  return status;
}

static int host_write(kg_buffer *b, int64_t at, int64_t n, const float *in, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (!status && n) memcpy(floats(b, at), in, (size_t)n * sizeof *in);
  return status;
}

static int host_copy(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n, kg_error *err)
{
  int status = check_span(to, to_at, n, err);
  if (!status) status = check_span(from, from_at, n, err);
  if (!status && n) memmove(floats(to, to_at), floats(from, from_at), (size_t)n * sizeof(float));
  return status;
}

static int host_fill(kg_buffer *b, int64_t at, int64_t n, float value, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (!status) kg_vector_get()->fill(floats(b, at), n, value);
  return status;
}

static int host_fill_at(kg_buffer *b, int64_t at, int64_t n, const int32_t *index, int64_t n_index, float value,
                        kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (status) return status;
  for (int64_t i = 0; i < n_index; i++)
    if (index[i] < 0 || index[i] >= n)
      return kg_fail(err, KG_ERR_ARGUMENT, "index %d is outside 0 to %lld", index[i], (long long)n - 1);
  float *x = floats(b, at);
  for (int64_t i = 0; i < n_index; i++) x[index[i]] = value;
  return KG_OK;
}

static int host_affine(kg_buffer *b, int64_t at, int64_t n, float factor, float offset, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (!status) kg_vector_get()->affine(floats(b, at), n, factor, offset);
  return status;
}

static int host_add(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, float factor, kg_error *err)
{
  int status = check_span(b, at, n, err);
  if (!status) status = check_span(o, o_at, n, err);
  if (!status) kg_vector_get()->add(floats(b, at), floats(o, o_at), n, factor);
  return status;
}

static int host_mul(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, kg_error *err)
{
  int status = check_span(b, at, n, err);
  if (!status) status = check_span(o, o_at, n, err);
  if (!status) kg_vector_get()->mul(floats(b, at), floats(o, o_at), n);
  return status;
}

static int host_argmax(const kg_buffer *b, int64_t at, int64_t n, int64_t *index, float *value, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (status) return status;
  if (!n) return kg_fail(err, KG_ERR_ARGUMENT, "argmax of no numbers");
  const kg_vector *vector = kg_vector_get();
  const float *x = floats(b, at);
  const int64_t best = vector->find(x, n, vector->max(x, n));
  *index = best < n ? best : 0; /* not found: all are NaN */
  *value = x[*index];
  return KG_OK;
}

static int host_topk(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (status) return status;
  if (k < 0 || k > n || n > INT32_MAX)
    return kg_fail(err, KG_ERR_ARGUMENT, "the %lld best of %lld numbers are impossible", (long long)k, (long long)n);
  const size_t n_room = kg_rank_room(n, k);
  kg_rank *room = kg_alloc(n_room * sizeof *room);
  if (!room) return kg_fail_memory(err, n_room * sizeof *room, "topk");
  const float *x = floats(b, at);
  kg_rank_top(x, n, k, room);
  for (int64_t i = 0; i < k; i++) {
    index[i] = kg_rank_index(room[i]);
    value[i] = x[index[i]];
  }
  kg_free(room);
  return KG_OK;
}

static int host_softmax(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t rows, int64_t n,
                        bool log_wanted, kg_error *err)
{
  int64_t count;
  if (rows < 0 || n < 0 || __builtin_mul_overflow(rows, n, &count))
    return kg_fail(err, KG_ERR_ARGUMENT, "softmax of %lld rows of %lld", (long long)rows, (long long)n);
  int status = check_span(to, to_at, count, err);
  if (!status) status = check_span(from, from_at, count, err);
  if (status) return status;
  const kg_vector *vector = kg_vector_get();
  for (int64_t row = 0; row < rows; row++) {
    const float *x = floats(from, from_at + row * n);
    float *out = floats(to, to_at + row * n);
    const float max = vector->max(x, n);
    if (log_wanted) {
      const double sum = vector->exp_sum(x, n, max, NULL);
      if (out != x) memmove(out, x, (size_t)n * sizeof *out);
      vector->affine(out, n, 1, -max); /* two steps: x - max is exact where it matters */
      vector->affine(out, n, 1, (float)-log(sum));
    } else {
      const double sum = vector->exp_sum(x, n, max, out);
      vector->affine(out, n, (float)(1 / sum), 0);
    }
  }
  return KG_OK;
}

static int host_entropy(const kg_buffer *b, int64_t at, int64_t n, double *out, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (status) return status;
  const kg_vector *vector = kg_vector_get();
  const float *p = floats(b, at);
  const float min = vector->min(p, n);
  if (min < 0)
    return kg_fail(err, KG_ERR_ARGUMENT,
                   "entropy wants probabilities, but one is %g (take the softmax of logits first)", (double)min);
  double sum, p_log_p;
  vector->entropy_sums(p, n, &sum, &p_log_p);
  if (sum == 0) return kg_fail(err, KG_ERR_ARGUMENT, "entropy wants probabilities, but their sum is 0");
  *out = log(sum) - p_log_p / sum;
  return KG_OK;
}

static int host_reduce(const kg_buffer *b, int64_t at, int64_t n, double *sum, float *min, float *max, kg_error *err)
{
  const int status = check_span(b, at, n, err);
  if (status) return status;
  const kg_vector *vector = kg_vector_get();
  if (sum) *sum = vector->sum(floats(b, at), n);
  if (min) *min = vector->min(floats(b, at), n);
  if (max) *max = vector->max(floats(b, at), n);
  return KG_OK;
}

const kg_tensor_ops kg_host_tensor_ops = {.like = host_like,
                                          .read = host_read,
                                          .write = host_write,
                                          .copy = host_copy,
                                          .fill = host_fill,
                                          .fill_at = host_fill_at,
                                          .affine = host_affine,
                                          .add = host_add,
                                          .mul = host_mul,
                                          .argmax = host_argmax,
                                          .topk = host_topk,
                                          .softmax = host_softmax,
                                          .entropy = host_entropy,
                                          .reduce = host_reduce};

/* ---- tensors ---- */

static int shape_count(int n_dims, const int64_t *shape, int64_t *count, kg_error *err)
{
  if (n_dims < 1 || n_dims > KG_TENSOR_DIMS)
    return kg_fail(err, KG_ERR_ARGUMENT, "a tensor has 1 to %d dimensions, not %d", KG_TENSOR_DIMS, n_dims);
  int64_t product = 1;
  for (int i = 0; i < n_dims; i++)
    if (shape[i] < 0 || __builtin_mul_overflow(product, shape[i], &product))
      return kg_fail(err, KG_ERR_ARGUMENT, "dimension %d of a tensor: %lld is impossible", i, (long long)shape[i]);
  *count = product;
  return KG_OK;
}

/* Takes the buffer, also when it fails. */
static int take_buffer(kg_buffer *buffer, int64_t at, int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err)
{
  kg_tensor *tensor = kg_alloc(sizeof *tensor);
  if (!tensor) {
    kg_buffer_unref(buffer);
    return kg_fail_memory(err, sizeof *tensor, "a tensor handle");
  }
  *tensor = (kg_tensor){.buffer = buffer, .at = at, .n_dims = n_dims};
  memcpy(tensor->shape, shape, (size_t)n_dims * sizeof *shape);
  *out = tensor;
  return KG_OK;
}

int kg_tensor_view(kg_buffer *buffer, int64_t at, int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err)
{
  int64_t count;
  int status = shape_count(n_dims, shape, &count, err);
  if (!status) status = check_span(buffer, at, count, err);
  return status ? status : take_buffer(kg_buffer_ref(buffer), at, n_dims, shape, out, err);
}

int kg_tensor_new(int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err)
{
  int64_t count;
  kg_buffer *buffer;
  int status = shape_count(n_dims, shape, &count, err);
  if (!status) status = kg_host_buffer_new(count, &buffer, err);
  return status ? status : take_buffer(buffer, 0, n_dims, shape, out, err);
}

/* Of the same shape and device, the numbers left open. */
static int new_like(const kg_tensor *tensor, kg_tensor **out, kg_error *err)
{
  kg_buffer *buffer;
  const int status = tensor->buffer->ops->like(tensor->buffer, kg_tensor_count(tensor), &buffer, err);
  return status ? status : take_buffer(buffer, 0, tensor->n_dims, tensor->shape, out, err);
}

int kg_tensor_like(const kg_tensor *tensor, bool copy, kg_tensor **out, kg_error *err)
{
  kg_tensor *made;
  int status = new_like(tensor, &made, err);
  if (status) return status;
  const int64_t n = kg_tensor_count(tensor);
  const kg_tensor_ops *ops = tensor->buffer->ops;
  status =
      copy ? ops->copy(made->buffer, 0, tensor->buffer, tensor->at, n, err) : ops->fill(made->buffer, 0, n, 0, err);
  if (status)
    kg_tensor_free(made);
  else
    *out = made;
  return status;
}

int kg_tensor_softmax(const kg_tensor *tensor, bool log_wanted, kg_tensor **out, kg_error *err)
{
  kg_tensor *made;
  int status = new_like(tensor, &made, err);
  if (status) return status;
  const int64_t n = tensor->shape[tensor->n_dims - 1];
  const int64_t rows = n ? kg_tensor_count(tensor) / n : 0;
  status = tensor->buffer->ops->softmax(made->buffer, 0, tensor->buffer, tensor->at, rows, n, log_wanted, err);
  if (status)
    kg_tensor_free(made);
  else
    *out = made;
  return status;
}

void kg_tensor_free(kg_tensor *tensor)
{
  if (!tensor) return;
  kg_buffer_unref(tensor->buffer);
  kg_free(tensor);
}

int64_t kg_tensor_count(const kg_tensor *tensor)
{
  int64_t count = 1;
  for (int i = 0; i < tensor->n_dims; i++) count *= tensor->shape[i];
  return count;
}

int kg_tensor_read(const kg_tensor *tensor, int64_t at, int64_t n, float *out, kg_error *err)
{
  const int64_t count = kg_tensor_count(tensor);
  if (at < 0 || n < 0 || at > count || n > count - at)
    return kg_fail(err, KG_ERR_ARGUMENT, "%lld numbers from %lld on are outside a tensor of %lld", (long long)n,
                   (long long)at, (long long)count);
  return tensor->buffer->ops->read(tensor->buffer, tensor->at + at, n, out, err);
}

int kg_tensor_transfer(kg_tensor *to, const kg_tensor *from, kg_error *err)
{
  enum { PIECE = 4096 };
  float piece[PIECE];
  const int64_t n = kg_tensor_count(from);
  if (kg_tensor_count(to) != n)
    return kg_fail(err, KG_ERR_ARGUMENT, "%lld numbers do not fit a tensor of %lld", (long long)n,
                   (long long)kg_tensor_count(to));
  if (to->buffer->ops == from->buffer->ops)
    return to->buffer->ops->copy(to->buffer, to->at, from->buffer, from->at, n, err);
  if (to->buffer->ops == &kg_host_tensor_ops) return kg_tensor_read(from, 0, n, floats(to->buffer, to->at), err);
  if (from->buffer->ops == &kg_host_tensor_ops)
    return to->buffer->ops->write(to->buffer, to->at, n, floats(from->buffer, from->at), err);
  int status = KG_OK;
  for (int64_t at = 0; at < n && !status; at += PIECE) { /* from one device to another one */
    const int64_t count = n - at < PIECE ? n - at : PIECE;
    status = kg_tensor_read(from, at, count, piece, err);
    if (!status) status = to->buffer->ops->write(to->buffer, to->at + at, count, piece, err);
  }
  return status;
}

const char *kg_tensor_shape_text(const kg_tensor *tensor, char text[KG_SHAPE_MAX])
{
  int used = 0;
  for (int i = 0; i < tensor->n_dims; i++)
    used += snprintf(text + used, (size_t)(KG_SHAPE_MAX - used), "%s%lld", i ? ", " : "[", (long long)tensor->shape[i]);
  snprintf(text + used, (size_t)(KG_SHAPE_MAX - used), "]");
  return text;
}
