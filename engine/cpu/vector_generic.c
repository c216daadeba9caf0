/* vector_generic.c - the vector functions for what every processor can do. */
#define KG_VECTOR KG_VECTOR_GENERIC
#define KG_VECTOR_OPS kg_vector_ops_generic
#include "vector_ops.h"

#include "lanes.h"

#include "vector_attention.inc"
#include "vector_rows.inc"
#include "vector_table.inc"
