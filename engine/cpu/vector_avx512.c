/* vector_avx512.c - the vector functions for AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define KG_VECTOR KG_VECTOR_AVX512
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"

const kg_vector_ops kg_vector_ops_avx512 = {.norm = norm,
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
