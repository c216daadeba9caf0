/* rates.cu - tensor cores with nothing to wait for, and caches with nothing in them. */
#include "common.cuh"
#include "rates.h"

enum { CHAINS = 8, WARPS = 8, BLOCKS_PER_PROCESSOR = 2, FLOPS_PER_MMA = 2 * 16 * 8 * 16 };

/* tensor_loop: every warp keeps CHAINS independent products going; 16 warps on a multiprocessor hide what one waits for.
 * Operands are numbers of both signs near one, as power limits depend on the data; every second round takes away what the one
 * before added, so that sums stay finite. */
static __global__ void __launch_bounds__(WARPS * 32) tensor_loop(int n_rounds, float *sink)
{
  uint32_t a[4], b[2];
  float sum[CHAINS][4] = {};
  const uint32_t seed = (threadIdx.x + blockIdx.x * blockDim.x) * 2654435761u;
  for (int i = 0; i < 4; i++) a[i] = 0x38003800 | ((seed >> i) & 0x83ff83ff);
  for (int i = 0; i < 2; i++) b[i] = 0x38003800 | ((seed >> (i + 5)) & 0x83ff83ff);
#pragma unroll 1
  for (int round = 0; round < n_rounds; round++) {
#pragma unroll
    for (int c = 0; c < CHAINS; c++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                   : "+f"(sum[c][0]), "+f"(sum[c][1]), "+f"(sum[c][2]), "+f"(sum[c][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    for (int i = 0; i < 4; i++) a[i] ^= 0x80008000; /* the sign turns: what was added is taken away again */
  }
  float total = 0;
  for (int c = 0; c < CHAINS; c++)
    for (int i = 0; i < 4; i++) total += sum[c][i];
  if (total == 1.2345f) *sink = total; /* so that nothing above is superfluous */
}

int kg_cuda_tensor_loop(kg_stream *s, int n_processors, int n_rounds, float *sink, double *flops, kg_error *err)
{
  const int n_blocks = n_processors * BLOCKS_PER_PROCESSOR;
  if (n_blocks < 1 || n_rounds < 1) return kg_fail(err, KG_ERR_ARGUMENT, "a loop of %d rounds", n_rounds);
  *flops = (double)n_blocks * WARPS * n_rounds * CHAINS * FLOPS_PER_MMA;
  tensor_loop<<<n_blocks, WARPS * 32, 0, s->handle>>>(n_rounds, sink);
  return kg_cuda_launched("tensor_loop", err);
}

static __global__ void __launch_bounds__(1024) read_all(const uint4 *memory, size_t n, float *sink)
{
  uint32_t seen = 0;
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    const uint4 v = memory[i];
    seen |= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (seen == 0x9e3779b9) *sink = 1; /* so that nothing above is superfluous */
}

int kg_cuda_read_all(kg_stream *s, int n_processors, const void *memory, size_t n_bytes, float *sink, kg_error *err)
{
  if (n_processors < 1) return kg_fail(err, KG_ERR_ARGUMENT, "a device of %d processors", n_processors);
  read_all<<<2 * n_processors, 1024, 0, s->handle>>>((const uint4 *)memory, n_bytes / sizeof(uint4), sink);
  return kg_cuda_launched("read_all", err);
}
