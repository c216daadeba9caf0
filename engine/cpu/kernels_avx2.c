/* The kernels for AVX2 with FMA and F16C (compile flags: CMakeLists.txt). */
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define KG_KERNELS kg_kernels_avx2
#include "kernels_body.h"
#else
const kg_kernels *const kg_kernels_avx2 = NULL;
#endif
