/* vector_avx512.c - the vector functions for AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define KG_VECTOR KG_VECTOR_AVX512
#define KG_VECTOR_OPS kg_vector_ops_avx512
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"
#include "vector_table.inc"
#endif
