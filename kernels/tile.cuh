/* tile.cuh - a tile of weights in shared memory: brought there before the kernel before is done, read by a warp for
 * each run. What linear_tile and linear_few share. */
#pragma once

#include "linear.cuh"

/* A kernel finds its arguments in memory, 64 bytes at a time: so these are few, and all read before it waits. */
struct tile_part {
  const unsigned char *q, *h, *s;
  const float *bias;
  float *out;
  int32_t rows, n_tiles;
  bool is_other; /* of the second type */
};

/* Here, and not where it is used. */
static __device__ __forceinline__ void read_now(int32_t &x) { asm volatile("" : "+r"(x)); }
static __device__ __forceinline__ void read_now(float &x) { asm volatile("" : "+f"(x)); }
template <typename X> static __device__ __forceinline__ void read_now(X *&x)
{
  asm volatile("" : "+l"(x));
  __builtin_assume(__isGlobal(x)); /* loads that may be of any memory take longer */
}

/* The same of an address in shared memory. */
static __device__ __forceinline__ void hold(unsigned char *&x)
{
  uint32_t at = shared_address(x);
  asm volatile("" : "+r"(at));
  x = (unsigned char *)__cvta_shared_to_generic(at);
}

/* Are scales unpacked before the codes are? Of heads, where two numbers say it. */
template <int T>
static constexpr bool unpacks_scales = sizes<T>::has_heads && !(traits<T>::has_16 && traits<T>::has_min);

/* Scale and offset, or the scales of both steps, of a row of a block of 32, from the heads of its block of 256. To
 * [8 rows g]: of rows g and g + 8, then the others. */
template <int T>
static __device__ __forceinline__ void unpack_scale(const unsigned char *heads, int block, int row, uint2 *to)
{
  float scale[2], minimum[2] = {0, 0};
  head_scales<T>(heads + row * sizes<T>::head, block % 8, scale, minimum);
  __half *at = (__half *)(to + row % 8) + row / 8;
  at[0] = __float2half_rn(scale[0]);
  if (traits<T>::has_min || traits<T>::has_16) at[2] = __float2half_rn(traits<T>::has_16 ? scale[1] : -minimum[0]);
}

template <int T> static __device__ __forceinline__ tile_scales unpacked_scales(const uint2 *from, int g)
{
  const uint2 v = from[g];
  tile_scales out;
#pragma unroll
  for (int row = 0; row < 2; row++) {
    const __half2 a = row ? __high2half2(as_half2(v.x)) : __low2half2(as_half2(v.x));
    const __half2 b = row ? __high2half2(as_half2(v.y)) : __low2half2(as_half2(v.y));
    out.scale[row][0] = a;
    if (traits<T>::has_16) out.scale[row][1] = b;
    if (traits<T>::has_min) out.offset[row][0] = b;
  }
  return out;
}

/* A number to its place in the first block of the cluster, whose shared memory is laid out as this one's. */
static __device__ __forceinline__ void send_first(float *to, float x, uint64_t *counter)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n"
               ".reg .b32 to, counter;\n"
               "mapa.shared::cluster.u32 to, %0, 0;\n"
               "mapa.shared::cluster.u32 counter, %1, 0;\n"
               "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %2, [counter];\n"
               "}\n" ::"r"(shared_address(to)),
               "r"(shared_address(counter)), "r"(__float_as_uint(x))
               : "memory");
#endif
}

/* These weights are unpacked before what follows: the compiler cannot put it off, since a word of memory that somebody
 * might look at depends on all of them. */
template <int N> static __device__ __forceinline__ void settle_here(const uint32_t (&codes)[N][8], uint32_t *word)
{
  uint32_t all = 0;
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int k = 0; k < 8; k++) all ^= codes[i][k];
  asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(shared_address(word)), "r"(all) : "memory");
  __syncwarp(); /* other lanes write there next */
}

static __device__ __forceinline__ void cluster_arrive()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void cluster_wait()
{
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

/* Bytes that lanes are apart in a block's planes of low and high bits, and that threads of four are in its scales. */
template <int T> struct steps {
  static constexpr int q = traits<T>::q_bits == 16 ? 16 : sizes<T>::q / 32, h = sizes<T>::h / 32;
  static constexpr int s = unpacks_scales<T> ? sizeof(uint2) : sizes<T>::has_heads ? 0 : sizes<T>::s / 8;
};

/* What a block of a cluster has of a tile of D matrices: blocks of columns [b0, b1), each matrix with its planes one
 * behind the other; and its warps of those: a run [first, first + n_mine). */
template <int T, int D> struct tile_cut {
  static constexpr int SB = sizes<T>::s_blocks;
  int rank, b0, b1, s0, my_run, first, n_mine;
  uint32_t q_bytes, h_bytes, s_bytes, each; /* of a matrix */

  __device__ __forceinline__ tile_cut(int n_blocks, int run, int cluster_bits)
  {
    const int n_warps = blockDim.x / 32;
    rank = blockIdx.x & ((1 << cluster_bits) - 1);
    my_run = rank * n_warps + threadIdx.x / 32;
    first = my_run * run;
    b0 = rank * n_warps * run;
    b1 = min(n_blocks, b0 + n_warps * run);
    n_mine = min(run, n_blocks - first);
    s0 = b0 / SB;
    q_bytes = (b1 - b0) * sizes<T>::q;
    h_bytes = (b1 - b0) * sizes<T>::h;
    s_bytes = ((b1 + SB - 1) / SB - s0) * sizes<T>::s;
    each = q_bytes + h_bytes + s_bytes;
  }

  /* By one thread; `ready` is told. */
  __device__ __forceinline__ void bring(const tile_part *part, int tile, int n_blocks, unsigned char *to,
                                        uint64_t *ready) const
  {
    barrier_expect(ready, D * each);
#pragma unroll
    for (int d = 0; d < D; d++, to += each) {
      const tile_part &p = part[d];
      const size_t at = (size_t)tile * n_blocks + b0;
      bulk_copy(to, p.q + at * sizes<T>::q, q_bytes, ready);
      if (sizes<T>::h) bulk_copy(to + q_bytes, p.h + at * sizes<T>::h, h_bytes, ready);
      if (sizes<T>::s)
        bulk_copy(to + q_bytes + h_bytes, p.s + ((size_t)tile * (n_blocks / SB) + s0) * sizes<T>::s, s_bytes, ready);
    }
  }

  /* Scales of heads, by the warp that needs them, to [D][blocks][8]: each once, where the codes' lanes would do it four
   * times. */
  __device__ __forceinline__ void unpack_scales(const unsigned char *weights, uint2 *scales) const
  {
#pragma unroll
    for (int d = 0; d < D; d++)
      for (int i = threadIdx.x % 32; i < n_mine * 16; i += 32) {
        const int b = first + i / 16;
        unpack_scale<T>(weights + d * each + q_bytes + h_bytes + (b / SB - s0) * sizes<T>::s, b, i % 16,
                        scales + (d * (b1 - b0) + b - b0) * 8);
      }
    __syncwarp();
  }
};

/* Where a warp's run stands in shared memory. HELD: the lane's own addresses, made before the wait: half of what
 * follows it would be the same arithmetic otherwise. */
template <int T, int D, bool HELD> struct tile_run {
  unsigned char *q[D], *h[D], *s[D];
  int first, s0, lane;

  __device__ __forceinline__ tile_run(const tile_cut<T, D> &cut, unsigned char *weights, uint2 *scales)
      : first(cut.first), s0(cut.s0), lane(threadIdx.x % 32)
  {
#pragma unroll
    for (int d = 0; d < D; d++) {
      const int b = cut.first - cut.b0;
      unsigned char *at = weights + d * cut.each;
      q[d] = at + b * sizes<T>::q + (HELD ? lane * steps<T>::q : 0);
      h[d] = at + cut.q_bytes + b * sizes<T>::h + (HELD ? lane * steps<T>::h : 0);
      s[d] = (unpacks_scales<T> ? (unsigned char *)(scales + (d * (cut.b1 - cut.b0) + b) * 8)
                                : at + cut.q_bytes + cut.h_bytes + (sizes<T>::has_heads ? 0 : b * sizes<T>::s)) +
             (HELD ? lane / 4 * steps<T>::s : 0);
      if (HELD) hold(q[d]), hold(h[d]), hold(s[d]);
    }
  }

  /* Block i of it, of matrix d. */
  __device__ __forceinline__ void unpack(int i, int d, uint32_t codes[8]) const
  {
    const int other_lane = HELD ? 0 : lane;
    raw_tile raw;
    tile_scales scales;
    load_tile<T>(q[d] + i * sizes<T>::q, h[d] + i * sizes<T>::h, other_lane, raw);
    if (unpacks_scales<T>)
      scales = unpacked_scales<T>((const uint2 *)(s[d] + i * 64), other_lane / 4);
    else if (sizes<T>::has_heads)
      load_scales<T>(s[d] + ((first + i) / sizes<T>::s_blocks - s0) * sizes<T>::s, first + i, lane / 4, scales);
    else
      load_scales<T>(s[d] + i * sizes<T>::s, first + i, other_lane / 4, scales);
    decode_tile<T>(raw, scales, codes);
  }
};

/* ---- launching ---- */

/* Shared memory of what a block has of a tile of D matrices: n blocks of columns, and their scales, unpacked too. */
template <int T, int D> static size_t tile_cut_bytes(int n)
{
  const int n_scales = (n + sizes<T>::s_blocks - 1) / sizes<T>::s_blocks + (sizes<T>::s_blocks > 1);
  const size_t unpacked = unpacks_scales<T> ? (size_t)n * 64 : 0;
  return D * ((size_t)n * (sizes<T>::q + sizes<T>::h) + (size_t)n_scales * sizes<T>::s + unpacked);
}

/* The matrices of a product, of type T or of another one. */
template <int T> static void find_parts(const kg_linear_args *a, tile_part *out)
{
  for (int i = 0; i < a->n_parts; i++) {
    const kg_linear_part &p = a->part[i];
    out[i] = {p.m.q, p.m.h, p.m.s, p.bias, p.out, p.m.rows, p.m.n_tiles, (int)p.m.type != T};
  }
}
