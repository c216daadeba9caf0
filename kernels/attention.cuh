/* attention.cuh - what the kernels of attention share: places in the cache, joining splits, and products of tiles.
 *
 * A split's softmax is computed by itself; splits are joined in an order that only their positions decide. */
#pragma once

#include "attention.h"
#include "rotate.cuh"

enum { SPLIT = KG_ATTENTION_SPLIT, TILE = 16 /* rows of a product */ };

#define LOG2E 1.44269504088896340736f

static __device__ __forceinline__ void store(float *to, float x) { *to = x; }
/* What is no finite number in f16 would reach other rows: 0 * infinity. */
static __device__ __forceinline__ void store(__half *to, float x)
{
  *to = __float2half_rn(fminf(fmaxf(x, -65504.f), 65504.f));
}

/* Keys (plane 0) or values (plane 1) of a kv head at a position. Values that are parts of keys are no plane. */
template <typename T>
static __device__ __forceinline__ T *cache_row(const kg_attention_args &a, int pages, int kv_head, int plane, int pos)
{
  T *page = (T *)(a.pages[pages + pos / KG_PAGE] + a.layer_offset);
  const int before = kv_head * a.cached_dim + (plane ? a.head_dim : 0), dim = plane ? a.value_dim : a.head_dim;
  return page + (size_t)before * KG_PAGE + pos % KG_PAGE * dim;
}

static __device__ __forceinline__ int first_seen(const kg_attention_args &a, int pos)
{
  return a.window && pos >= a.window ? pos - a.window + 1 : 0;
}

/* ---- joining splits ---- */

static __device__ __forceinline__ float exp_2(float x)
{
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

static __device__ __forceinline__ float reciprocal(float x)
{
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* A softmax over some positions: the largest score (times log2 e), the sum of 2^(score - top), and of those times the
 * values. The factors that bring two of them to one top: exactly 1 and 0 where one of them saw nothing. */
struct factors {
  float top, all, next;
};

static __device__ __forceinline__ factors join_factors(float all, float next)
{
  const float top = fmaxf(all, next), base = top == -CUDART_INF_F ? 0 : top;
  return {top, exp_2(all - base), exp_2(next - base)};
}

/* What the sum of the values is multiplied by in the end. A sink takes its share of the softmax and gives nothing. */
static __device__ __forceinline__ float last_factor(float top, float sum, const float *sinks, int head)
{
  if (!sinks) return reciprocal(sum);
  const factors f = join_factors(top, sinks[head] * LOG2E);
  return f.all * reciprocal(fmaf(sum, f.all, f.next));
}

/* ---- products of tiles ----
 * Keys and values of a split stand in shared memory in panels of 64 channels: [64 positions][8 chunks of 8 channels],
 * chunk c of position r at c ^ r % 8, so that neither rows nor columns of chunks share banks. Lane (g, t) = (lane / 4,
 * lane % 4) of a product m16n8k16 has rows g and g + 8 and columns 2 t and 2 t + 1. */

enum { PANEL = 64 * 8 /* chunks */ };

/* Where channel c of a row of q stands in its tile of 16 rows, counted in numbers: as the lanes of a product want them.
 * (row, 0) and (0, c) add up. */
static __device__ __forceinline__ unsigned query_at(unsigned row, unsigned c)
{
  return c / 16 * 256 + row % 8 * 32 + c % 8 / 2 * 8 + c % 16 / 8 * 4 + row / 8 * 2 + c % 2;
}

static __device__ __forceinline__ unsigned shared_address(const void *at)
{
  return (unsigned)__cvta_generic_to_shared(at);
}

static __device__ __forceinline__ void copy_async(unsigned to, const void *from, bool exists)
{
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(exists ? 16 : 0) : "memory");
}

static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* All groups of copies of this thread are there but the last N. */
template <int N> static __device__ __forceinline__ void wait_copies()
{
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ void mma(float c[4], uint4 a, uint32_t b0, uint32_t b1)
{
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

/* Four matrices of 8 rows of a chunk, of which the lanes name the rows: as operand B for keys; transposed, for values.
 */
static __device__ __forceinline__ uint4 load_keys(unsigned at)
{
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

static __device__ __forceinline__ uint4 load_values(unsigned at)
{
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

static __device__ __forceinline__ uint32_t half_pair(float x, float y)
{
  const __half2 pair = __floats2half2_rn(x, y);
  return *(const uint32_t *)&pair;
}

/* ---- launching ---- */

template <typename... A>
static int run_shared(kg_stream *s, const char *name, void (*kernel)(A...), dim3 grid, unsigned cluster,
                      unsigned threads, size_t shared, kg_error *err, A... arguments)
{
  const int code =
      kg_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), name, err);
  return code ? code : run_clusters(s, name, kernel, grid, cluster, threads, shared, err, arguments...);
}
