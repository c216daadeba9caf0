/* The kernels in plain C with vectors of four lanes: for processors without a set of their own, and for comparison. */
#define KG_KERNELS kg_kernels_generic
#include "kernels_body.h"
