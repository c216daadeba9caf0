/* vector_ops.h - whole-tensor operations on the device; what they mean: kg_tensor_ops in tensor.h. Results that go to
 * the host are written to `out` in device memory. */
#ifndef KG_CUDA_VECTOR_OPS_H
#define KG_CUDA_VECTOR_OPS_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Was this library built for the current device? */
int kg_cuda_probe_kernels(kg_error *err);

int kg_cuda_fill(kg_stream *s, float *x, int64_t n, float value, kg_error *err);
int kg_cuda_fill_at(kg_stream *s, float *x, const int32_t *index, int64_t n_index, float value, kg_error *err);
int kg_cuda_affine(kg_stream *s, float *x, int64_t n, float factor, float offset, kg_error *err);
int kg_cuda_add(kg_stream *s, float *x, const float *o, int64_t n, float factor, kg_error *err);
int kg_cuda_mul(kg_stream *s, float *x, const float *o, int64_t n, kg_error *err);
int kg_cuda_softmax(kg_stream *s, const float *x, int64_t rows, int64_t n, bool log, float *out, kg_error *err);
/* *out: the greatest key of kg_argmax_key; 32-bit indices */
int kg_cuda_argmax(kg_stream *s, const float *x, int64_t n, unsigned long long *out, kg_error *err);

typedef struct kg_reduced {
  double sum;
  float min, max;
} kg_reduced;
int kg_cuda_reduce(kg_stream *s, const float *x, int64_t n, kg_reduced *out, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
