/* vector_generic.c - the vector functions for what every processor can do. */
#define KG_VECTOR KG_VECTOR_GENERIC
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"

const kg_vector_ops kg_vector_ops_generic = {.norm = norm,
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
