/* tensor.h - handles to float32 numbers where they were computed. A tensor is a view of a reference-counted buffer;
 * its whole-tensor operations are dispatched to the buffer's owner, so that a device tensor stays on the device. */
#ifndef KG_TENSOR_H
#define KG_TENSOR_H

#include "draw.h"

enum { KG_TENSOR_DIMS = 4 };

typedef struct kg_buffer kg_buffer;

/* A question that a device computes an answer to. */
typedef enum kg_look_kind {
  KG_LOOK_REDUCE, /* entropy, reduce */
  KG_LOOK_BEST,   /* argmax */
  KG_LOOK_TOP     /* topk */
} kg_look_kind;

typedef struct kg_look {
  kg_look_kind kind;
  const kg_buffer *buffer;
  int64_t at, n, k;
} kg_look;

/* A chain on n logits. */
typedef struct kg_draw_use {
  kg_buffer *buffer;
  int64_t at, n;
  kg_draw draw;
  bool applies;   /* write what the stages leave of the logits to their place; else draw, and they are only read */
  kg_drawn drawn; /* the result; KG_DRAW_FAILED: it is left to the host, and nothing has changed */
} kg_draw_use;

/* Operations on n floats from index `at` of buffers. Host implementation: kg_host_tensor_ops. NaNs compare as
 * smaller than everything; ties go to the lower index. Elsewhere NaNs spread as in arithmetic: a row with a NaN or
 * +inf, or with nothing above -inf, has NaNs for its softmax. Equal input gives equal bits, wherever it stands. */
typedef struct kg_tensor_ops {
  /* a buffer of n floats on the same device, not zeroed, one reference */
  int (*like)(const kg_buffer *b, int64_t n, kg_buffer **out, kg_error *err);
  int (*read)(const kg_buffer *b, int64_t at, int64_t n, float *out, kg_error *err);
  int (*write)(kg_buffer *b, int64_t at, int64_t n, const float *in, kg_error *err);
  int (*copy)(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t n, kg_error *err);
  int (*fill)(kg_buffer *b, int64_t at, int64_t n, float value, kg_error *err);
  int (*fill_at)(kg_buffer *b, int64_t at, int64_t n, const int32_t *index, int64_t n_index, float value,
                 kg_error *err);
  /* x = x * factor + offset */
  int (*affine)(kg_buffer *b, int64_t at, int64_t n, float factor, float offset, kg_error *err);
  /* x += factor * o */
  int (*add)(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, float factor, kg_error *err);
  /* x *= o */
  int (*mul)(kg_buffer *b, int64_t at, const kg_buffer *o, int64_t o_at, int64_t n, kg_error *err);
  int (*argmax)(const kg_buffer *b, int64_t at, int64_t n, int64_t *index, float *value, kg_error *err);
  /* the k largest, descending, k <= n */
  int (*topk)(const kg_buffer *b, int64_t at, int64_t n, int64_t k, int32_t *index, float *value, kg_error *err);
  /* rows of `n` floats; max subtracted; log: log-probabilities */
  int (*softmax)(kg_buffer *to, int64_t to_at, const kg_buffer *from, int64_t from_at, int64_t rows, int64_t n,
                 bool log, kg_error *err);
  /* -sum p log p in nats of n probabilities (they are normalized by their sum); KG_ERR_ARGUMENT if one is negative */
  int (*entropy)(const kg_buffer *b, int64_t at, int64_t n, double *out, kg_error *err);
  /* min and max skip NaNs: +inf and -inf when nothing is left */
  int (*reduce)(const kg_buffer *b, int64_t at, int64_t n, double *sum, float *min, float *max, kg_error *err);
  /* Have several chains at work, on buffers of these operations; no buffer twice if one of its uses applies. NULL where
   * the numbers are on the host anyway. */
  int (*draw)(kg_draw_use *uses, size_t n, kg_error *err);
  /* Find the answers to many questions at once, so that they are known, as long as the numbers stay; what is not found
   * is found when it is asked. Both NULL where asking one by one takes no longer. */
  int (*look)(const kg_look *looks, size_t n, kg_error *err);
  bool (*knows)(const kg_look *look);
  /* bytes of dropped tensors like this one that may wait for a collection; NULL: as on the host */
  int64_t (*dropped_max)(const kg_buffer *b);
} kg_tensor_ops;

struct kg_buffer {
  const kg_tensor_ops *ops;
  void *data;      /* host: float[n] */
  int64_t n;       /* floats */
  int32_t n_refs;  /* one thread at a time, as everything else */
  void (*release)(kg_buffer *buffer);
  void *owner;     /* for release */
};

struct kg_tensor {
  kg_buffer *buffer; /* one reference */
  int64_t at;        /* first float */
  int n_dims;
  int64_t shape[KG_TENSOR_DIMS]; /* outermost first; row-major, contiguous */
};

extern const kg_tensor_ops kg_host_tensor_ops;

int kg_host_buffer_new(int64_t n, kg_buffer **out, kg_error *err); /* zeroed, 64-byte aligned, one reference */
kg_buffer *kg_buffer_ref(kg_buffer *buffer);
void kg_buffer_unref(kg_buffer *buffer); /* NULL allowed */

/* A view of `buffer` (takes its own reference). Errors: shape does not fit the buffer. */
int kg_tensor_view(kg_buffer *buffer, int64_t at, int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err);
/* A zeroed tensor on the host. */
int kg_tensor_new(int n_dims, const int64_t *shape, kg_tensor **out, kg_error *err);
/* A new tensor of the same shape and device. `copy`: with the same numbers, else zero. */
int kg_tensor_like(const kg_tensor *tensor, bool copy, kg_tensor **out, kg_error *err);
/* A new tensor with the softmax of every row (last dimension), or its logarithm. */
int kg_tensor_softmax(const kg_tensor *tensor, bool log, kg_tensor **out, kg_error *err);
/* Copy the numbers of a tensor to another one of the same size, wherever the two are. */
int kg_tensor_transfer(kg_tensor *to, const kg_tensor *from, kg_error *err);
/* "[48, 320]", for messages. */
enum { KG_SHAPE_MAX = 96 };
const char *kg_tensor_shape_text(const kg_tensor *tensor, char text[KG_SHAPE_MAX]);

#endif
