/* row_norm.h - how large a product can be at most. */
#ifndef KG_CUDA_ROW_NORM_H
#define KG_CUDA_ROW_NORM_H

#include "format.h"

#ifdef __cplusplus
extern "C" {
#endif

/* *out, on the device, becomes the largest Euclidean norm of the rows of a matrix whose columns are multiplied by
 * scale[cols], or what it is if that is larger. Not of float32. */
int kg_cuda_row_norm(kg_stream *s, const kg_matrix *m, const float *scale, float *out, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
