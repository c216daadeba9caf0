/* The kernels for AVX2 with 256-bit byte products (AVX-VNNI). */
#include "kernels.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)
#define KG_KERNELS kg_kernels_avxvnni
#include "kernels_body.h"
#else
const kg_kernels *const kg_kernels_avxvnni = NULL;
#endif
