/* The kernels for AVX-512 with byte products, and BF16 products for BF16 weights. */
#include "kernels.h"

#if defined(__AVX512BW__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)
#define KG_KERNELS kg_kernels_avx512bf16
#include "kernels_body.h"
#else
const kg_kernels *const kg_kernels_avx512bf16 = NULL;
#endif
