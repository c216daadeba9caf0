/* kernels.c - which kernels this processor runs. */
#include "kernels.h"

#include <string.h>

#include "error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

size_t kg_activation_bytes(kg_activation_format format, int64_t n_rows, int64_t cols)
{
  if (format == KG_ACTIVATION_Q8) return (size_t)n_rows * (size_t)(cols / KG_BLOCK) * KG_Q8_ROW_BYTES;
  const size_t padded = ((size_t)cols + KG_FLOAT_BLOCK - 1) / KG_FLOAT_BLOCK * KG_FLOAT_BLOCK;
  return (size_t)n_rows * padded * (format == KG_ACTIVATION_BF16 ? 2 : 4);
}

/* ---- choice of a variant ---- */

typedef struct choice {
  const kg_kernels *kernels; /* NULL: not in this build */
  bool here;                 /* the processor and the system have the instructions */
} choice;

enum { N_VARIANTS = 5 };

#if defined(__x86_64__)
/* Sets that __builtin_cpu_supports does not know in every compiler. Both need what "avx2" asks of the system, no more. */
static bool has_f16c(void)
{
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static bool has_avxvnni(void)
{
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}
#endif

/* From the plainest to the best. */
static void list_choices(choice out[N_VARIANTS])
{
  memset(out, 0, N_VARIANTS * sizeof *out);
  out[0] = (choice){kg_kernels_generic, true};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vnni");
  out[1] = (choice){kg_kernels_avx2, avx2};
  out[2] = (choice){kg_kernels_avxvnni, avx2 && has_avxvnni()};
  out[3] = (choice){kg_kernels_avx512vnni, avx512};
  out[4] = (choice){kg_kernels_avx512bf16, avx512 && __builtin_cpu_supports("avx512bf16")};
#endif
}

const kg_kernels *kg_kernels_at(int index)
{
  choice choices[N_VARIANTS];
  list_choices(choices);
  for (int i = 0; i < N_VARIANTS; i++)
    if (choices[i].here && choices[i].kernels && index-- == 0) return choices[i].kernels;
  return NULL;
}

static int fail_unknown(const char *variant, kg_error *err)
{
  char names[KG_QUOTE_MAX] = "", quoted[KG_QUOTE_MAX];
  size_t n = 0;
  for (int i = 0; kg_kernels_at(i); i++) {
    const char *name = kg_kernels_at(i)->name;
    if (n + strlen(name) + 3 > sizeof names) break;
    if (i) memcpy(names + n, ", ", 2), n += 2;
    memcpy(names + n, name, strlen(name) + 1);
    n += strlen(name);
  }
  return kg_fail(err, KG_ERR_UNSUPPORTED, "kernels %s: not available here (there are: %s)",
                 kg_quote(quoted, variant, strlen(variant)), names);
}

int kg_kernels_find(const char *variant, const kg_kernels **out, kg_error *err)
{
  const kg_kernels *found = NULL;
  for (int i = 0; kg_kernels_at(i); i++)
    if (!variant || !strcmp(variant, kg_kernels_at(i)->name)) found = kg_kernels_at(i);
  if (!found) return fail_unknown(variant, err);
  *out = found;
  return KG_OK;
}
