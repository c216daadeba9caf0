/* device.h - what all kernels and their launchers share: streams, packed matrices as the device sees them, errors.
 * Launchers check their arguments, always take the stream, and return 0 or KG_ERR_*. */
#ifndef KG_CUDA_DEVICE_H
#define KG_CUDA_DEVICE_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "error.h"
#include "quant.h"

/* One device and the one queue of work on it. Buffers may outlive the executable: counted. */
typedef struct kg_stream {
  int device;
  cudaStream_t handle;
  /* What the kernels were compiled for, which may be less than the device is: */
  bool overlaps; /* they start before the one before is done, and in clusters (Hopper and later) */
  bool has_wgmma; /* they have Hopper's instructions for warp groups, which no other architecture has */
  int32_t n_sms, shared_max; /* multiprocessors, and the shared memory that a block may have */
  int32_t n_refs;
  /* Of its buffers: keeps what is given back, so that a tensor per token costs no call of the driver. */
  cudaMemPool_t pool;
  struct kg_draws *draws; /* draws.h, and */
  struct kg_answers *answers;      /* answers.h: made when first used */
  struct kg_block *spare;          /* buffer.c: memory that was given back, all of one size */
  int64_t row_floats;              /* that size: of the model's logits */
  int64_t spare_bytes, kept_bytes; /* how much that is, and how much it, and the pool, may be */
} kg_stream;

/* A matrix in fragment order (format.h), by value in the arguments of kernels. */
typedef struct kg_matrix {
  kg_type type;
  int32_t cols, rows, planes;
  int32_t n_tiles;   /* of 16 rows */
  int32_t n_blocks;  /* of 32 columns */
  const unsigned char *q, *h, *s;       /* main bits, high bits, scales, of plane 0 */
  size_t q_plane, h_plane, s_plane;     /* bytes from plane to plane */
} kg_matrix;

/* KG_OK, or an error that says what failed. cudaErrorMemoryAllocation becomes KG_ERR_MEMORY. The error of a call is
 * taken off the runtime, so that the next call starts clean. */
int kg_cuda_check(cudaError_t status, const char *what, kg_error *err);
/* After a launch. */
int kg_cuda_launched(const char *kernel, kg_error *err);
/* Device memory; the error says wanted and free bytes. */
int kg_cuda_alloc(size_t n_bytes, const char *what, void **out, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
