/* The kernels for AVX-512 with byte products (F, BW, VNNI). */
#include "kernels.h"

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define KG_KERNELS kg_kernels_avx512vnni
#include "kernels_body.h"
#else
const kg_kernels *const kg_kernels_avx512vnni = NULL;
#endif
