/* shared.h - marks small functions that the engine and the kernels of a GPU both compile. The arithmetic of such a
 * function is the same on both, bit for bit: no fused multiply-adds, IEEE division, denormal numbers kept. */
#ifndef KG_SHARED_H
#define KG_SHARED_H

#ifdef __CUDACC__
#define KG_SHARED static __host__ __device__ __forceinline__
#else
#define KG_SHARED static inline
#endif

#endif
