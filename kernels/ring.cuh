/* ring.cuh - bringing weights to shared memory ahead of their use: bulk copies that report to a barrier on Hopper,
 * cp.async of every lane before it. */
#pragma once

#include "format.cuh"

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
  return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- barriers in shared memory (mbarrier), Hopper and later ---- */

static __device__ __forceinline__ void barrier_init(uint64_t *barrier, int arrivals)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#endif
}

/* After barrier_init, before copies report to it. */
static __device__ __forceinline__ void barriers_ready()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

static __device__ __forceinline__ void barrier_expect(uint64_t *barrier, uint32_t n_bytes)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(n_bytes)
               : "memory");
#endif
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *barrier)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

static __device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n"
               ".reg .pred done;\n"
               "again:\n"
               "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again;\n"
               "}\n" ::"r"(shared_address(barrier)),
               "r"(parity)
               : "memory");
#endif
}

/* One thread copies n_bytes (a multiple of 16, both sides aligned) and the barrier is told. */
static __device__ __forceinline__ void bulk_copy(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(n_bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

/* The same by all lanes of a warp; see copies_wait. */
static __device__ __forceinline__ void lanes_copy(void *to, const void *from, uint32_t n_bytes, int lane)
{
  for (uint32_t i = 16 * lane; i < n_bytes; i += 512)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to) + i), "l"((const char *)from + i)
                 : "memory");
}

static __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* ---- a chunk of a tile: KG_CHUNK blocks of 32 columns ---- */

/* Where its planes stand in shared memory. A chunk may reach into two blocks of 256. */
template <int T> struct chunk {
  static constexpr int h = KG_CHUNK * sizes<T>::q, s = h + KG_CHUNK * sizes<T>::h,
                       n_bytes = s + (sizes<T>::has_heads ? 2 : KG_CHUNK) * sizes<T>::s;
};

/* Bytes of the scales of blocks [block, block + n). */
template <int T> static __device__ __forceinline__ uint32_t scale_bytes(int block, int n)
{
  return (sizes<T>::has_heads ? (block + n - 1) / 8 - block / 8 + 1 : n) * sizes<T>::s;
}

template <int T> static __device__ __forceinline__ uint32_t chunk_bytes(int block, int n)
{
  return n * (sizes<T>::q + sizes<T>::h) + scale_bytes<T>(block, n);
}

/* f(to, from, bytes) for each plane of blocks [block, block + n) of a tile. */
template <int T, typename F>
static __device__ __forceinline__ void each_plane(const kg_matrix &m, int plane, int tile, int block, int n,
                                                  unsigned char *to, F f)
{
  const size_t at = (size_t)tile * m.n_blocks + block;
  f(to, m.q + plane * m.q_plane + at * sizes<T>::q, (uint32_t)(n * sizes<T>::q));
  if (sizes<T>::h) f(to + chunk<T>::h, m.h + plane * m.h_plane + at * sizes<T>::h, (uint32_t)(n * sizes<T>::h));
  if (!sizes<T>::s) return;
  const size_t s = (size_t)tile * (m.n_blocks / sizes<T>::s_blocks) + block / sizes<T>::s_blocks;
  f(to + chunk<T>::s, m.s + plane * m.s_plane + s * sizes<T>::s, scale_bytes<T>(block, n));
}

/* Block block0 + i of the chunk that begins with block0, as f16 fragments. */
template <int T>
static __device__ __forceinline__ void decode_chunk(const unsigned char *chunk_memory, int block0, int i, int lane,
                                                    uint32_t a[8])
{
  raw_tile raw;
  tile_scales scales;
  load_tile<T>(chunk_memory + i * sizes<T>::q, chunk_memory + chunk<T>::h + i * sizes<T>::h, lane, raw);
  const int s = sizes<T>::has_heads ? (block0 + i) / 8 - block0 / 8 : i;
  load_scales<T>(chunk_memory + chunk<T>::s + s * sizes<T>::s, block0 + i, lane / 4, scales);
  decode_tile<T>(raw, scales, a);
}
