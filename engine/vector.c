#include "vector.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* Floats per double-precision addition: 128 rounds of float sums before they go into the double. A multiple of 32. */
enum { SUM_CHUNK = 4096 };

#define LANES 4
#define NAME "base"
#define FN(name) name##_base
#include "vector_loops.h"

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("avx2")
#define LANES 8
#define NAME "avx2"
#define FN(name) name##_avx2
#include "vector_loops.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl")
#define LANES 16
#define NAME "avx512"
#define FN(name) name##_avx512
#include "vector_loops.h"
#pragma GCC pop_options
#endif

/* Best first. */
static const kg_vector *const variants[] = {
#ifdef __x86_64__
    &table_avx512, &table_avx2,
#endif
    &table_base};

static bool runs_here(const kg_vector *variant)
{
#ifdef __x86_64__
  if (variant == &table_avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (variant == &table_avx2) return __builtin_cpu_supports("avx2");
#endif
  return variant == &table_base;
}

const kg_vector *kg_vector_get(void)
{
  const kg_vector *const *variant = variants;
  while (!runs_here(*variant)) variant++;
  return *variant;
}

const kg_vector *kg_vector_find(const char *name)
{
  for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++)
    if (!strcmp(variants[i]->name, name) && runs_here(variants[i])) return variants[i];
  return NULL;
}
