#include "vector.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Floats per double-precision addition: 128 rounds of float sums before they go into the double. A multiple of 32. */
enum { SUM_CHUNK = 4096 };

#define LANES 4
#define FN(name) name##_base
#include "vector_loops.h"

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2")
#define LANES 8
#define FN(name) name##_avx2
#include "vector_loops.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl")
#define LANES 16
#define FN(name) name##_avx512
#include "vector_loops.h"
#pragma GCC pop_options
#endif

const kg_vector *kg_vector_get(void)
{
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return &table_avx512;
  if (__builtin_cpu_supports("avx2")) return &table_avx2;
#endif
  return &table_base;
}
