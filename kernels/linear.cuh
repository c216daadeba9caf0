/* linear.cuh - what the families of products share: of one row (linear_one.cu), of any number (linear.cu), of few and
 * of many on Hopper (linear_few.cu, linear_many.cu). */
#pragma once

#include "act.cuh"
#include "half.cuh"
#include "ring.cuh"

/* Types that one meets often: they have kernels for gates and for many rows; the others, to build faster, compute gates
 * in two steps and take 8 rows at a time. */
static constexpr bool is_common(int type)
{
  return type == KG_F16 || type == KG_Q8_0 || type == KG_Q4_0 || type == KG_Q5_0 || type == KG_Q4_K ||
         type == KG_Q5_K || type == KG_Q6_K;
}

static __device__ __forceinline__ void mma_f16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_tf32(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* acc (4 a column tile: rows g, g + 8, each columns 2 t and 2 t + 1) += a block of weights times activations. A bf16
 * weight and an f16 activation are both tf32 numbers, exactly. */
template <int T> static __device__ __forceinline__ void add_block(float acc[4], const uint32_t a[8], uint4 x)
{
  const uint32_t b[4] = {x.x, x.y, x.z, x.w};
  if constexpr (T == KG_BF16) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
      const float2 v = __half22float2(as_half2(b[p]));
      const uint32_t low = a[2 * p], high = a[2 * p + 1],
                     w[4] = {low << 16, high << 16, low & 0xffff0000, high & 0xffff0000};
      mma_tf32(acc, w, __float_as_uint(v.x), __float_as_uint(v.y));
    }
  } else {
    mma_f16(acc, a, b[0], b[1]);
    mma_f16(acc, a + 4, b[2], b[3]);
  }
}

/* What is added to the product of row `row` of part `d` with row `n` of x. */
struct addends {
  float bias, up_bias, residual;
};

static __device__ __forceinline__ addends find_addends(const kg_linear_args &a, int d, int plane, int row, int n,
                                                       bool exists)
{
  addends add = {0, 0, 0};
  const kg_linear_part &part = a.part[d];
  if (!exists || row >= part.m.rows) return add;
  if (part.bias) add.bias = part.bias[(size_t)plane * part.m.rows + row];
  if (a.gated && a.part[1].bias) add.up_bias = a.part[1].bias[(size_t)plane * part.m.rows + row];
  if (a.residual) add.residual = a.residual[(size_t)n * part.m.rows + row];
  return add;
}

/* What becomes of a product that is scaled. */
static __device__ __forceinline__ float finish(const kg_linear_args &a, int d, float value, float up, addends add)
{
  if (a.part[d].bias) value += add.bias;
  if (a.gated) value = gated(a.act, a.act_limit, a.act_alpha, value, a.part[1].bias ? up + add.up_bias : up);
  return a.residual ? value + add.residual : value;
}

/* Where it goes. */
static __device__ __forceinline__ void put(const kg_linear_args &a, int d, int row, int n, float value)
{
  const kg_linear_part &part = a.part[d];
  if (a.out_rows)
    a.out_rows[n][row] = value;
  else
    part.out[(size_t)n * part.m.rows + row] = value;
}

static __device__ __forceinline__ float store(const kg_linear_args &a, int d, int row, int n, float value, float up,
                                              addends add)
{
  value = finish(a, d, value, up, add);
  put(a, d, row, n, value);
  return value;
}

/* Its f16 form in panels: column c of `width` of row n. */
static __device__ __forceinline__ void put_half(const kg_half_out &to, int width, int n, int c, float value)
{
  ((__half *)panel_pair(to.panels, width / KG_BLOCK_COLS, n, c & ~1))[c & 1] = __float2half_rn(value * to.up);
  if (c == 0) to.undo[n] = undo_scale(to.up);
}

/* Which part a tile of a launch belongs to; *tile becomes its number there. */
template <int D> static __device__ __forceinline__ int part_of(const kg_linear_args &a, int *tile)
{
  int d = 0;
  if (D == 1)
    while (*tile >= a.part[d].m.n_tiles) *tile -= a.part[d++].m.n_tiles;
  return d;
}

/* A warp's way through blocks [first, end) of each of its block's tiles (every gridDim.x-th), one chunk of all D
 * matrices after the other: chunks go to the slots of a ring ahead of their use. */
template <int T, int D> struct warp_stream {
  static constexpr int slot_bytes = D * chunk<T>::n_bytes;
  const kg_linear_args &a;
  const int n_tiles, first, end, slots;
  int plane, tile, block; /* of the next chunk to fetch */
  int at;                 /* slot that is read */
  uint32_t parity;

  __device__ __forceinline__ warp_stream(const kg_linear_args &a, int tile, int n_tiles, int first, int end, int slots)
      : a(a), n_tiles(n_tiles), first(first), end(end), slots(slots), plane(0), tile(first < end ? tile : n_tiles),
        block(first), at(0), parity(0)
  {
  }

  /* The next chunk to this slot, if there is one. */
  __device__ __forceinline__ void fetch(unsigned char *slot, uint64_t *ready, int lane)
  {
    if (tile >= n_tiles) return;
    const int n = min(KG_CHUNK, end - block);
    int part_tile = tile;
    const int d0 = part_of<D>(a, &part_tile);
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      barrier_expect(ready, D * chunk_bytes<T>(block, n));
#endif
#pragma unroll
      for (int d = 0; d < D; d++)
        each_plane<T>(a.part[d0 + d].m, plane, part_tile, block, n, slot + d * chunk<T>::n_bytes,
                      [&](unsigned char *to, const unsigned char *from, uint32_t n_bytes) {
#if __CUDA_ARCH__ >= 900
                        bulk_copy(to, from, n_bytes, ready);
#else
                        lanes_copy(to, from, n_bytes, lane);
#endif
                      });
#if __CUDA_ARCH__ >= 900
    }
#endif
    block += KG_CHUNK;
    if (block < end) return;
    block = first;
    tile += gridDim.x;
  }

  __device__ __forceinline__ void open(unsigned char *ring, uint64_t *ready, int lane)
  {
    if (lane == 0)
      for (int i = 0; i < slots; i++) barrier_init(ready + i, 1);
    barriers_ready();
    __syncwarp();
    for (int i = 0; i < slots; i++) fetch(ring + i * slot_bytes, ready + i, lane);
  }

  /* Wait for the next chunk. */
  __device__ __forceinline__ const unsigned char *next(unsigned char *ring, uint64_t *ready)
  {
#if __CUDA_ARCH__ >= 900
    barrier_wait(ready + at, parity);
#else
    copies_wait();
    __syncwarp();
#endif
    return ring + at * slot_bytes;
  }

  /* It was read: its slot takes another. */
  __device__ __forceinline__ void release(unsigned char *ring, uint64_t *ready, int lane)
  {
    __syncwarp();
    fetch(ring + at * slot_bytes, ready + at, lane);
    if (++at < slots) return;
    at = 0;
    parity ^= 1;
  }
};

/* The types of a's matrices, if there are no more than two: one may be both. */
static inline bool two_types(const kg_linear_args *a, int *low, int *high)
{
  *low = *high = a->part[0].m.type;
  for (int i = 1; i < a->n_parts; i++) {
    const int type = a->part[i].m.type;
    if (*low != *high && type != *low && type != *high) return false;
    *low = min(*low, type);
    *high = max(*high, type);
  }
  return true;
}

/* Tiles of a launch: of all its matrices, gated of one of them. */
static inline int count_tiles(const kg_linear_args *a)
{
  int n = a->part[0].m.n_tiles;
  for (int i = 1; i < a->n_parts && !a->gated; i++) n += a->part[i].m.n_tiles;
  return n;
}

/* How a product is cut: tiles in turn, a warp for each run of blocks, slots of their rings, shared memory in bytes. */
typedef struct kg_linear_shape {
  int n_tiles, run, n_warps, slots;
  size_t shared;
  bool in_turns; /* blocks go from tile to tile, so that their rings are never empty */
} kg_linear_shape;

/* linear.cu: with slots of slot_bytes; x_bytes of a block, sum_bytes of each warp. */
void kg_cuda_linear_shape(const kg_stream *s, const kg_linear_args *a, int min_warps, size_t slot_bytes, size_t x_bytes,
                          size_t sum_bytes, kg_linear_shape *out);

template <typename K>
static int run_turns(kg_stream *s, const char *name, K kernel, const kg_linear_args *a, const kg_linear_shape *shape,
                     int n_columns, kg_error *err)
{
  const int threads = 32 * shape->n_warps;
  int each_sm = 1, blocks = shape->n_tiles;
  int code = kg_cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape->shared), name, err);
  if (!code && shape->in_turns)
    code = kg_cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each_sm, kernel, threads, shape->shared), name,
                         err);
  if (code) return code;
  if (shape->in_turns && blocks > each_sm * s->n_sms && each_sm > 0) blocks = each_sm * s->n_sms;
  return run_kernel(s, name, kernel, dim3(blocks, n_columns), threads, shape->shared, err, *a, shape->n_tiles,
                    shape->run, shape->slots);
}

/* linear_one.cu: one row that comes as float32. */
int kg_cuda_linear_one(kg_stream *s, const kg_linear_args *a, kg_error *err);
/* The same of matrices of two types that often stand together; *done: false where it cannot. */
int kg_cuda_linear_mixed(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err);
/* linear_few.cu: up to KG_LINEAR_FEW rows in panels; *done: false where it cannot. */
int kg_cuda_linear_few(kg_stream *s, const kg_linear_args *a, bool *done, kg_error *err);
/* linear_many.cu: the same products for many rows in panels, on devices that have its instructions
 * (kg_stream.has_wgmma), of matrices with tiles for it (kg_cuda_linear_many_tiles). */
int kg_cuda_linear_many(kg_stream *s, const kg_linear_args *a, kg_error *err);
