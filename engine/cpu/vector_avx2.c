/* vector_avx2.c - the vector functions for AVX2 with FMA and F16C. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define KG_VECTOR KG_VECTOR_AVX2
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"

const kg_vector_ops kg_vector_ops_avx2 = {.norm = norm,
                                        .act = act,
                                        .add = add,
                                        .add_scaled = add_scaled,
                                        .scale = scale,
                                        .softcap = softcap,
                                        .split_terms = split_terms,
                                        .sum_terms = sum_terms,
                                        .rope = rope,
                                        .cache_write = cache_write,
                                        .attend = attend,
                                        .attend_split = attend_split,
                                        .combine = combine};
#endif
