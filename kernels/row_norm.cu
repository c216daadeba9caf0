#include "format.cuh"
#include "row_norm.h"

/* row_norm: grid: rows; block: 128 threads. Once when a model is loaded: it need not be quick. */
template <int T>
static __global__ void __launch_bounds__(128) row_norm(kg_matrix m, const float *scale, float *out)
{
  __shared__ float shared[32];
  wait_for_previous();
  float sum = 0;
  for (int c = threadIdx.x; c < m.cols; c += blockDim.x) {
    const float v = weight_value<T>(m, 0, blockIdx.x, c) * scale[c];
    sum = fmaf(v, v, sum);
  }
  sum = block_sum(sum, shared);
  if (!threadIdx.x) raise_max(out, sqrtf(sum));
}

int kg_cuda_row_norm(kg_stream *s, const kg_matrix *m, const float *scale, float *out, kg_error *err)
{
  switch (m->type) {
#define CASE(T) case T: return run_kernel(s, "row_norm", row_norm<T>, dim3(m->rows), 128, 0, err, *m, scale, out);
    CASE(KG_F16) CASE(KG_BF16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q4_1) CASE(KG_Q5_0) CASE(KG_Q5_1)
    CASE(KG_IQ4_NL) CASE(KG_MXFP4) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K) CASE(KG_Q3_K) CASE(KG_Q2_K) CASE(KG_IQ4_XS)
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "norms of weights of type %d", (int)m->type);
  }
}
