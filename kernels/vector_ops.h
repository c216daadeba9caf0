/* vector_ops.h - whole-tensor operations on the device; what they mean: kg_tensor_ops in tensor.h. Results that go to
 * the host are written to `out` in memory of the host that the device can write to; they are there once the stream has
 * been waited for. Sums have one order for each n. */
#ifndef KG_CUDA_VECTOR_OPS_H
#define KG_CUDA_VECTOR_OPS_H

#include "device.h"
#include "draw_block.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Was this library built for the current device? */
int kg_cuda_probe_kernels(kg_error *err);

/* What a reduction knows; a part of the array first, then all of it. */
typedef struct kg_reduced {
  double sum, p_log_p;  /* of x; of x * log(x), with 0 for x below the normal numbers */
  float min, max;       /* NaNs skipped */
  kg_rank best;
} kg_reduced;

enum {
  KG_REDUCE_BLOCKS = 128,   /* parts of a row */
  KG_TOP_MAX = KG_DRAW_SMALL,
  KG_FILL_MAX = 512         /* indices of one kg_cuda_fill_at */
};

/* What a softmax is made with. */
typedef struct kg_exponents {
  double sum;            /* of exp(x - max) */
  float max;
  float factor, log_sum; /* 1 / sum and log(sum), of whole rows */
} kg_exponents;

/* Memory that operations of one stream share. */
typedef struct kg_vector_room {
  kg_reduced *parts;      /* [KG_REDUCE_BLOCKS] on the device, as all of it */
  kg_exponents *exponents; /* [KG_REDUCE_BLOCKS + 1] */
  unsigned *arrived;      /* zero between operations */
  kg_rank *best;          /* [KG_DRAW_GROUPS] */
  float *list_x;          /* [KG_DRAW_LIST] */
  int32_t *list_ids;
} kg_vector_room;

int kg_cuda_fill(kg_stream *s, float *x, int64_t n, float value, kg_error *err);
int kg_cuda_fill_at(kg_stream *s, float *x, const int32_t *index /* host */, int32_t n_index, float value, kg_error *err);
int kg_cuda_affine(kg_stream *s, float *x, int64_t n, float factor, float offset, kg_error *err);
int kg_cuda_add(kg_stream *s, float *x, const float *o, int64_t n, float factor, kg_error *err);
int kg_cuda_mul(kg_stream *s, float *x, const float *o, int64_t n, kg_error *err);
int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out, const kg_vector_room *room,
                    kg_error *err);
/* n below 2^31 where `best` is wanted. */
int kg_cuda_reduce(kg_stream *s, const float *x, int64_t n, kg_reduced *out, const kg_vector_room *room, kg_error *err);
/* The k best, best first; k at most KG_TOP_MAX and n, n at most KG_DRAW_VOCAB_MAX. */
int kg_cuda_top(kg_stream *s, const float *x, int32_t n, int32_t k, int32_t *index, float *value, const kg_vector_room *room,
                kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
