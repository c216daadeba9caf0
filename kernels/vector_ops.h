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
/* What the kernels for the stream's device can do: sets overlaps and has_wgmma. The device may be newer than the
 * code. */
int kg_cuda_find_build(kg_stream *s, kg_error *err);

/* What a reduction knows; a part of the array first, then all of it. */
typedef struct kg_reduced {
  double sum, p_log_p;  /* of x; of x * log(x), with 0 for x below the normal numbers */
  float min, max;       /* NaNs skipped */
  kg_rank best;
} kg_reduced;

enum {
  KG_REDUCE_PARTS = 128, /* of a row at most */
  KG_LOOK_ROWS = 64,     /* that are looked at together */
  KG_TOP_MAX = KG_DRAW_SMALL,
  KG_FILL_MAX = 512 /* indices of one kg_cuda_fill_at */
};

/* What a softmax is made with. */
typedef struct kg_exponents {
  double sum;            /* of exp(x - max) */
  float max;
  float factor, log_sum; /* 1 / sum and log(sum), of whole rows */
} kg_exponents;

/* What may be asked of a row. */
enum {
  KG_ASK_ROW = 1,   /* its numbers reduced */
  KG_ASK_PROBS = 2, /* its softmax reduced */
  KG_ASK_TOP = 4    /* its best */
};

typedef struct kg_answer {
  kg_reduced row, probs;
  int32_t index[KG_TOP_MAX]; /* best first */
  float value[KG_TOP_MAX];
} kg_answer;

/* Device memory that operations of one stream share, for each row that is looked at. */
typedef struct kg_vector_room {
  kg_reduced *parts;       /* [rows][KG_REDUCE_PARTS] */
  kg_exponents *exponents; /* [rows][KG_REDUCE_PARTS + 1], that of the whole row last */
  unsigned *arrived;       /* [rows], zero between operations */
  kg_rank *best;           /* [rows][KG_DRAW_GROUPS] */
} kg_vector_room;

/* Rows by their first numbers, and where the answers go. */
typedef struct kg_row_list {
  const float *x[KG_LOOK_ROWS];
  kg_answer *answer[KG_LOOK_ROWS]; /* host memory that the device can write to */
} kg_row_list;

int kg_cuda_fill(kg_stream *s, float *x, int64_t n, float value, kg_error *err);
int kg_cuda_fill_at(kg_stream *s, float *x, const int32_t *index /* host */, int32_t n_index, float value,
                    kg_error *err);
/* out = x * factor + offset; out may be x. */
int kg_cuda_affine(kg_stream *s, const float *x, int64_t n, float factor, float offset, float *out, kg_error *err);
int kg_cuda_add(kg_stream *s, float *x, const float *o, int64_t n, float factor, kg_error *err);
int kg_cuda_mul(kg_stream *s, float *x, const float *o, int64_t n, kg_error *err);
/* The room is that of KG_LOOK_ROWS rows, or of as many as there are. */
int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out,
                    const kg_vector_room *room, kg_error *err);
/* Answer the same questions about rows of n numbers. `best` of a reduction means nothing from n = 2^31 on. For
 * KG_ASK_TOP: k is at most KG_TOP_MAX and n, and n at most KG_DRAW_VOCAB_MAX. */
int kg_cuda_look(kg_stream *s, const kg_row_list *rows, int32_t n_rows, int64_t n, unsigned asked, int32_t k,
                 const kg_vector_room *room, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
