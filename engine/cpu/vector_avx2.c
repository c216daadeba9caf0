/* vector_avx2.c - the vector functions for AVX2 with FMA and F16C. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define KG_VECTOR KG_VECTOR_AVX2
#define KG_VECTOR_OPS kg_vector_ops_avx2
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"
#include "vector_table.inc"
#endif
