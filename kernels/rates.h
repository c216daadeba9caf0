/* rates.h - what a device reaches with nothing else to do: the ceilings that benchmarks print beside their results. */
#ifndef KG_CUDA_RATES_H
#define KG_CUDA_RATES_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which instruction kg_cuda_tensor_loop repeats. */
#define KG_TENSOR_LOOP "mma.sync m16n8k16, f16 to f32, from registers"

/* Enqueue n_rounds of tensor-core products on every multiprocessor, all operands in registers; *flops: what they come
 * to. `sink`: a float of device memory. */
int kg_cuda_tensor_loop(kg_stream *s, int n_rounds, float *sink, double *flops, kg_error *err);

/* The same with Hopper's instruction. Where the build has no code for it, sink[1] is not set to 1. */
#define KG_WARP_GROUP_LOOP "wgmma m64n256k16, f16 to f32, A in registers"
int kg_cuda_warp_group_loop(kg_stream *s, int n_rounds, float *sink, double *flops, kg_error *err);

/* Enqueue reading n_bytes of device memory (a multiple of 16): what caches held before is gone afterwards. */
int kg_cuda_read_all(kg_stream *s, const void *memory, size_t n_bytes, float *sink, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
