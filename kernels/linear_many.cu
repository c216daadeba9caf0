/* linear_many.cu - products for many rows on Hopper: warp groups multiply 64 rows of weights, from registers, with up
 * to 128 rows of activations, from shared memory. The order of sums is that of linear.cu, step by step, and the tensor
 * cores give the same bits through both instructions (spec/step_spec.lua and cuda_spec.lua hold them to it), so that it
 * does not matter which of the two a row goes through.
 *
 * Three kernels differ in how they cut a product: linear_columns takes whole rows of weights, which suits many rows of
 * x or many tiles; linear_local, for few of both, gives each run of columns a warp group; linear_runs, where the runs
 * are too long for that, a group in one of several blocks.
 *
 * x stands in panels (format.h), so that a bulk copy brings a piece of it in the form that wgmma reads: core matrices
 * of 8 rows x 16 bytes. */
#include "linear.cuh"

enum {
  GROUPS = 2,                   /* warp groups that multiply; each takes 4 tiles */
  CONSUMERS = 128 * GROUPS,     /* threads; one more group brings the data and gives them its registers */
  PANEL_BYTES = KG_CHUNK * 512, /* 8 rows of x, a chunk of their columns */
  STRIDE = 20,                  /* floats of a column's 16 rows where sums change hands, apart for the banks' sake */
  EXCHANGE_BYTES = 4 * GROUPS * 32 * STRIDE * sizeof(float),
  STAGES_MAX = 8
};

/* A stage: a chunk of N rows of x, and of 4 GROUPS tiles. */
template <int T, int N> struct stage {
  static constexpr int x_bytes = N / 8 * PANEL_BYTES, n_bytes = x_bytes + 4 * GROUPS * chunk<T>::n_bytes;
};

/* How a launch is cut. */
struct columns_shape {
  int n_tasks, n_columns, run, stages;
  int n_runs; /* of a product, where they are shared out */
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

static __device__ __forceinline__ float4 add_four(float4 a, float4 b)
{
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
static __device__ __forceinline__ float4 scale_four(float4 a, float b)
{
  return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}

/* Core matrices of B: neighbours in k are 128 bytes apart, in n a panel. */
static __device__ __forceinline__ uint64_t descriptor(uint32_t address)
{
  return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(128 >> 4) << 16 | (uint64_t)(PANEL_BYTES >> 4) << 32;
}

/* c (or nothing: a new run) + 64 x 16 of weights times 16 x 128 of x; ends with the next multiply_wait. */
static __device__ __forceinline__ void multiply(float (&c)[64], const uint32_t a[4], uint64_t b, int adds)
{
  asm volatile("{\n"
               ".reg .pred adds;\n"
               "setp.ne.b32 adds, %69, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "{%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n"
               "}\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
                 "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
                 "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
                 "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),
                 "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),
                 "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),
                 "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),
                 "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

/* The same for 64 rows of x. */
static __device__ __forceinline__ void multiply(float (&c)[32], const uint32_t a[4], uint64_t b, int adds)
{
  asm volatile("{\n"
               ".reg .pred adds;\n"
               "setp.ne.b32 adds, %37, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, adds, 1, 1, 0;\n"
               "}\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
                 "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
                 "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
                 "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

/* The same for 16 rows of x. */
static __device__ __forceinline__ void multiply(float (&c)[8], const uint32_t a[4], uint64_t b, int adds)
{
  asm volatile("{\n"
               ".reg .pred adds;\n"
               "setp.ne.b32 adds, %13, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 "
               "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, adds, 1, 1, 0;\n"
               "}\n"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));
}

/* Weights are numbers now, all of them, before the tensor cores get the first. */
template <int N> static __device__ __forceinline__ void settle(uint32_t (&a)[N])
{
#pragma unroll
  for (int i = 0; i < N; i += 8)
    asm volatile(""
                 : "+r"(a[i]), "+r"(a[i + 1]), "+r"(a[i + 2]), "+r"(a[i + 3]), "+r"(a[i + 4]), "+r"(a[i + 5]),
                   "+r"(a[i + 6]), "+r"(a[i + 7])
                 :
                 : "memory");
}

/* The sums are whole now, and the weights read. Until then neither may be touched, which the compiler does not know of
 * registers that the tensor cores read: `seen` uses them here, so that they are not given to others before. Even so
 * nothing is decoded meanwhile: copies of them, which the compiler makes to have four in a row, would be given away,
 * and were (cuda_spec: the same bits every time). The other warp group decodes in that time. */
template <int N> static __device__ __forceinline__ void multiply_wait(const uint32_t (&a)[N], uint32_t &seen)
{
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#pragma unroll
  for (int i = 0; i < N; i += 8)
    asm volatile("lop3.b32 %0, %1, %2, %0, 0x96;\n"
                 "lop3.b32 %0, %3, %4, %0, 0x96;\n"
                 "lop3.b32 %0, %5, %6, %0, 0x96;\n"
                 "lop3.b32 %0, %7, %8, %0, 0x96;\n"
                 : "+r"(seen)
                 : "r"(a[i]), "r"(a[i + 1]), "r"(a[i + 2]), "r"(a[i + 3]), "r"(a[i + 4]), "r"(a[i + 5]), "r"(a[i + 6]),
                   "r"(a[i + 7])
                 : "memory");
}

/* c += N blocks, from block `first` of a chunk on; c is nothing before unless it `adds`. */
template <int T, int N, int C>
static __device__ __forceinline__ void add_blocks(float (&c)[C], const unsigned char *chunk_memory, int block0,
                                                  int first, int lane, uint64_t b, int adds, uint32_t &seen)
{
  uint32_t weights[8 * N];
#pragma unroll
  for (int i = 0; i < N; i++)
    decode_chunk<T>(chunk_memory, block0, first + i, lane, *(uint32_t(*)[8])(weights + 8 * i));
  settle(weights);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int i = 0; i < N; i++) {
    multiply(c, weights + 8 * i, b + (first + i) * (512 >> 4), i || adds);
    multiply(c, weights + 8 * i + 4, b + (first + i) * (512 >> 4) + (256 >> 4), 1);
  }
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  multiply_wait(weights, seen);
}

/* c becomes the sum of blocks [block0, block0 + n) of 16 rows of weights, n at most KG_CHUNK, that stand in a stage, or
 * adds it. */
template <int T, int N>
static __device__ __forceinline__ void add_chunk(float (&c)[N / 2], const unsigned char *at, int block0, int n,
                                                 int warp, int lane, int adds, uint32_t &seen)
{
  const uint64_t b = descriptor(shared_address(at));
  const unsigned char *mine = at + stage<T, N>::x_bytes + warp * chunk<T>::n_bytes;
  if (n >= KG_CHUNK)
    add_blocks<T, KG_CHUNK>(c, mine, block0, 0, lane, b, adds, seen);
  else
#pragma unroll 1
    for (int i = 0; i < n; i++) add_blocks<T, 1>(c, mine, block0, i, lane, b, i || adds, seen);
}

/* What one block computes, in turn: 4 GROUPS tiles of a part (gated: 4 of both parts) and N rows of x. */
struct task {
  int part, tile, n0;
};

template <int N>
static __device__ __forceinline__ task task_at(const kg_linear_args &a, int index, const columns_shape &shape,
                                               int tiles)
{
  task t = {0, 0, index % shape.n_columns * N};
  index /= shape.n_columns;
  if (!a.gated)
    for (int n; index >= (n = (a.part[t.part].m.n_tiles + tiles - 1) / tiles); t.part++) index -= n;
  t.tile = index * tiles;
  return t;
}

/* A ring of stages, as those see it who fill it and those who read it. */
struct ring_place {
  int at, stages;
  uint32_t parity;

  __device__ __forceinline__ void next()
  {
    if (++at < stages) return;
    at = 0;
    parity ^= 1;
  }
};

/* A whole warp calls these and one thread of it does it. So the warp stays together, and what is the same for all of
 * its threads stands in registers of the warp, from which alone these instructions take numbers. */
static __device__ __forceinline__ void elect_expect(uint64_t *barrier, uint32_t n_bytes)
{
  asm volatile("{\n"
               ".reg .pred one;\n"
               "elect.sync _|one, 0xffffffff;\n"
               "@one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
               "}\n" ::"r"(shared_address(barrier)),
               "r"(n_bytes)
               : "memory");
}

static __device__ __forceinline__ void elect_copy(void *to, const void *from, uint32_t n_bytes, uint64_t *barrier)
{
  asm volatile("{\n"
               ".reg .pred one;\n"
               "elect.sync _|one, 0xffffffff;\n"
               "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n"
               "}\n" ::"r"(shared_address(to)),
               "l"(from), "r"(n_bytes), "r"(shared_address(barrier))
               : "memory");
}

/* What warp W of 4 brings of the stages of a task: those tiles that warps 2 W and 2 W + 1 multiply, the first x too.
 * Gated, the first half of each group multiplies the gate's tiles and the other the up's. One thread does it, in code
 * that knows W: then all addresses are the same for all threads of a warp as far as the compiler can see, and it takes
 * a third of the instructions; it must not take longer than the products. */
template <int T, int D, int N, int W> struct porter {
  static constexpr int EACH = GROUPS;
  const kg_linear_args &a;
  unsigned char *stages;
  uint64_t *full;
  /* Of the next chunk: */
  const unsigned char *x, *q[EACH], *h[EACH], *s[EACH];
  uint32_t x_bytes;
  int n_tiles, block;

  __device__ __forceinline__ porter(const kg_linear_args &a, unsigned char *stages, uint64_t *full)
      : a(a), stages(stages), full(full)
  {
  }

  __device__ __forceinline__ void begin(const task &t)
  {
    const kg_matrix &m = a.part[D == 2 ? W % 2 : t.part].m;
    const int tile = t.tile + W / D * EACH;
    n_tiles = m.n_tiles - tile;
    block = 0;
    x_bytes = W ? 0 : min(N / 8, (a.n + 7) / 8 - t.n0 / 8) * PANEL_BYTES;
    x = (const unsigned char *)a.x + kg_panel_at(t.n0, 0, m.n_blocks);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const size_t at = (size_t)(tile + i) * m.n_blocks;
      q[i] = m.q + at * sizes<T>::q;
      h[i] = m.h + at * sizes<T>::h;
      s[i] = m.s + at / sizes<T>::s_blocks * sizes<T>::s;
    }
  }

  /* The weights of this stage; x is announced with them. */
  __device__ __forceinline__ void bring_weights(int at)
  {
    const int n = min(KG_CHUNK, a.part[0].m.n_blocks - block);
    const uint32_t s_bytes = (sizes<T>::has_heads ? 1 : n) * sizes<T>::s, q_bytes = n * sizes<T>::q,
                   h_bytes = n * sizes<T>::h;
    unsigned char *to = stages + at * stage<T, N>::n_bytes + stage<T, N>::x_bytes + W * EACH * chunk<T>::n_bytes;
    elect_expect(full + at, x_bytes + max(0, min(EACH, n_tiles)) * (q_bytes + h_bytes + s_bytes));
#pragma unroll
    for (int i = 0; i < EACH; i++, to += chunk<T>::n_bytes) {
      if (i < n_tiles) {
        elect_copy(to, q[i], q_bytes, full + at);
        if (sizes<T>::h) elect_copy(to + chunk<T>::h, h[i], h_bytes, full + at);
        if (sizes<T>::s) elect_copy(to + chunk<T>::s, s[i], s_bytes, full + at);
      }
      q[i] += KG_CHUNK * sizes<T>::q;
      h[i] += KG_CHUNK * sizes<T>::h;
      if (!sizes<T>::has_heads)
        s[i] += KG_CHUNK * sizes<T>::s;
      else if (block & KG_CHUNK) /* two chunks have the heads of one block of 256 */
        s[i] += sizes<T>::s;
    }
    block += KG_CHUNK;
  }

  __device__ __forceinline__ void bring_x(int at)
  {
    if (W) return;
    elect_copy(stages + at * stage<T, N>::n_bytes, x, x_bytes, full + at);
    x += KG_PANEL_ROWS / 8 * PANEL_BYTES;
  }
};

/* All stages of all tasks of this block. Weights go ahead of the kernel before this one, x does not. */
template <int T, int D, int N, int W>
static __device__ __forceinline__ void bring(const kg_linear_args &a, const columns_shape &shape, unsigned char *stages,
                                             uint64_t *full, uint64_t *empty)
{
  const int n_blocks = a.part[0].m.n_blocks;
  porter<T, D, N, W> p(a, stages, full);
  ring_place place = {0, shape.stages, 1}; /* the first time round all are empty */
  bool waited = false;
  for (int index = blockIdx.x; index < shape.n_tasks; index += gridDim.x) {
    p.begin(task_at<N>(a, index, shape, 4 * GROUPS / D));
    if (!waited) {
      int n = 0;
      for (; n < shape.stages && p.block < n_blocks; n++) p.bring_weights(n);
      await_previous();
      for (; n; n--, place.next()) p.bring_x(place.at);
      waited = true;
    }
#pragma unroll 1
    for (; p.block < n_blocks; place.next()) {
      barrier_wait(empty + place.at, place.parity);
      p.bring_weights(place.at);
      p.bring_x(place.at);
    }
  }
}

/* Functions that are less common, once in the code: they are long. */
static __device__ __noinline__ float4 gated_four(int act, float limit, float alpha, float4 gate, float4 up)
{
  return make_float4(gated(act, limit, alpha, gate.x, up.x), gated(act, limit, alpha, gate.y, up.y),
                     gated(act, limit, alpha, gate.z, up.z), gated(act, limit, alpha, gate.w, up.w));
}

/* Gated: the warps of a group, by a barrier of their own, so that groups need not be at the same place. */
template <int D> static __device__ __forceinline__ void exchange_sync(int warp)
{
  if (D == 2)
    asm volatile("bar.sync %0, 128;" ::"r"(1 + warp / 4) : "memory");
  else
    __syncwarp();
}

/* Of those that a lane stores. */
template <int D> static __device__ __forceinline__ int first_column(int warp, int lane)
{
  return (D == 2 ? warp % 4 / 2 * 16 : 0) + lane / 4;
}

/* The scales of the columns that a lane will store: asked for early, because they take long. */
template <int D, int N>
static __device__ __forceinline__ void load_column_scales(const kg_linear_args &a, const task &t, int warp, int lane,
                                                          float (&scale)[N / 8 / D])
{
  constexpr int EACH = 4 / D;
  const int column0 = t.n0 + first_column<D>(warp, lane);
#pragma unroll
  for (int i = 0; i < N / 8 / D; i++) {
    const int column = column0 + 8 * (i / EACH * 4 + i % EACH);
    scale[i] = column < a.n ? a.x_scale[column] : 1;
  }
}

/* A thread's sums are of rows g and g + 8 of its warp's tile, and of columns 8 i + 2 t and 8 i + 2 t + 1. They leave by
 * way of shared memory, 32 columns at a time, so that four neighbours of a row of out are written at once, by 4 lanes a
 * column. Gated: a gate's warp finishes half of these columns and its up's warp the other. */
template <int D, int N>
static __device__ __forceinline__ void store_all(const kg_linear_args &a, const task &t, const float (&total)[N / 2],
                                                 const float (&scale)[N / 8 / D], float *exchange, int warp, int lane)
{
  constexpr int EACH = 4 / D, ROUNDS = N / 32; /* columns of a lane in a round */
  const kg_linear_part &part = a.part[t.part];
  const int tile = t.tile + (D == 2 ? warp / 4 * 2 + warp % 2 : warp), row = tile * 16 + 4 * (lane % 4),
            n_rows = part.m.rows;
  const int column0 = first_column<D>(warp, lane), n_columns = a.n - t.n0 - column0;
  const bool inside = row < n_rows; /* all four are: parts have a multiple of 4 rows */
  float *to = exchange + warp * 32 * STRIDE + 2 * (lane % 4) * STRIDE + lane / 4;
  const float *from = exchange + (D == 2 ? warp & ~2 : warp) * 32 * STRIDE + column0 * STRIDE + 4 * (lane % 4);
  const size_t at = (size_t)(t.n0 + column0) * n_rows + row;
  const float *residuals = a.residual ? a.residual + at : NULL;
  float *out = part.out + at;
  const size_t next = 8 * (size_t)n_rows; /* floats from a column of a lane to its next */
  const float4 none = make_float4(0, 0, 0, 0);
  float4 residual[2][EACH]; /* of this round and the next: all of these loads are under way at once */
  auto load_residuals = [&](int round) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int column = 4 * round + i;
      residual[round % 2][i] =
          residuals && inside && 8 * column < n_columns ? *(const float4 *)(residuals + column * next) : none;
    }
  };
  const float4 bias = part.bias && inside ? *(const float4 *)(part.bias + row) : none;
  const float4 up_bias = D == 2 && a.part[1].bias && inside ? *(const float4 *)(a.part[1].bias + row) : none;
  if (D == 1) load_residuals(0);
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    if (D == 1 && round + 1 < ROUNDS) load_residuals(round + 1);
    exchange_sync<D>(warp);
#pragma unroll
    for (int i = 0; i < 16; i++) to[(i / 4 * 8 + i % 2) * STRIDE + i % 4 / 2 * 8] = total[16 * round + i];
    exchange_sync<D>(warp);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int column = 4 * round + i;
      float4 v = scale_four(*(const float4 *)(from + 8 * i * STRIDE), scale[round * EACH + i]);
      if (part.bias) v = add_four(v, bias);
      if (D == 2) {
        float4 up = scale_four(*(const float4 *)(from + (2 * 32 + 8 * i) * STRIDE), scale[round * EACH + i]);
        if (a.part[1].bias) up = add_four(up, up_bias);
        v = a.act == KG_CUDA_SILU
                ? make_float4(gated(KG_CUDA_SILU, 0, 0, v.x, up.x), gated(KG_CUDA_SILU, 0, 0, v.y, up.y),
                              gated(KG_CUDA_SILU, 0, 0, v.z, up.z), gated(KG_CUDA_SILU, 0, 0, v.w, up.w))
                : gated_four(a.act, a.act_limit, a.act_alpha, v, up);
      }
      if (D == 1 && residuals) v = add_four(v, residual[round % 2][i]);
      if (!inside || 8 * column >= n_columns) continue;
      if (D == 2 && a.half.panels) {
        const int n = t.n0 + column0 + 8 * column;
        __half2 *pair = panel_pair(a.half.panels, n_rows / KG_BLOCK_COLS, n, row);
        pair[0] = __floats2half2_rn(v.x * a.half.up, v.y * a.half.up);
        pair[32] = __floats2half2_rn(v.z * a.half.up, v.w * a.half.up);
        if (row == 0) a.half.undo[n] = undo_scale(a.half.up);
        if (!part.out) continue;
      }
      *(float4 *)(a.out_rows ? a.out_rows[t.n0 + column0 + 8 * column] + row : out + column * next) = v;
    }
  }
}

/* A run is complete: its sum joins the others. */
template <int C> static __device__ __forceinline__ void join_run(float (&total)[C], const float (&c)[C])
{
#pragma unroll
  for (int i = 0; i < C; i++) total[i] += c[i];
}

/* Blocks of a cluster: all have come here, and what they wrote can be read by the others. */
static __device__ __forceinline__ void meet_cluster()
{
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

static __device__ __forceinline__ void open_barriers(uint64_t *full, uint64_t *empty, int stages)
{
  if (threadIdx.x == 0)
    for (int i = 0; i < stages; i++) {
      barrier_init(full + i, 4);
      barrier_init(empty + i, CONSUMERS);
    }
  barriers_ready();
  __syncthreads();
}

#endif

/* linear_columns: grid: as many blocks as run at once, each takes tasks in turn; block: GROUPS warp groups that
 * multiply and one that brings. Shared: stages of x and weights, room for sums that change hands. moves each weight
 * once per N rows, from the second-level cache; twin: linear_rows, equal to the bit. */
template <int T, int D, int N>
static __global__ void __launch_bounds__(CONSUMERS + 128, 1)
    linear_columns(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32; /* the same for all, one may see */
  const int n_blocks = a.part[0].m.n_blocks;
  let_next_start();
  open_barriers(full, empty, shape.stages);
  if (warp >= 4 * GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 4 * GROUPS) bring<T, D, N, 0>(a, shape, stages, full, empty);
    if (warp == 4 * GROUPS + 1) bring<T, D, N, 1>(a, shape, stages, full, empty);
    if (warp == 4 * GROUPS + 2) bring<T, D, N, 2>(a, shape, stages, full, empty);
    if (warp == 4 * GROUPS + 3) bring<T, D, N, 3>(a, shape, stages, full, empty);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  await_previous();
  ring_place place = {0, shape.stages, 0};
  uint32_t seen = 0;
  for (int index = blockIdx.x; index < shape.n_tasks; index += gridDim.x) {
    const task t = task_at<N>(a, index, shape, 4 * GROUPS / D);
    float total[N / 2], c[N / 2], scale[N / 8 / D];
    load_column_scales<D, N>(a, t, warp, lane, scale);
#pragma unroll
    for (int i = 0; i < N / 2; i++) c[i] = total[i] = 0; /* and of -0 and 0 becomes 0, as in linear_rows */
    for (int block0 = 0, run_end = 0; block0 < n_blocks; block0 += KG_CHUNK) {
      const int adds = block0 < run_end;
      if (!adds) run_end += shape.run;
      barrier_wait(full + place.at, place.parity);
      add_chunk<T, N>(c, stages + place.at * stage<T, N>::n_bytes, block0, n_blocks - block0, warp, lane, adds, seen);
      barrier_arrive(empty + place.at); /* every thread for what it has read itself */
      place.next();
      if (block0 + KG_CHUNK >= min(run_end, n_blocks)) join_run(total, c);
    }
    store_all<D, N>(a, t, total, scale, (float *)(stages + shape.stages * stage<T, N>::n_bytes), warp, lane);
  }
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
#else
  wait_for_previous();
#endif
}

/* linear_runs: few rows of x and few tiles, which would leave most of the device idle: each run of a product has a warp
 * group of its own, GROUPS of them in a block, and the blocks of a cluster have all runs of 4 tiles. Then each block
 * adds those of some rows of x, from left to right. Sums meet in the second-level cache: from each other's shared
 * memory blocks read several times more slowly. grid: tasks * blocks of a cluster; block: a warp group per run and one
 * that brings. Shared: stages, a chunk of each run. moves each weight once; twin: linear_rows, equal to the bit. */
enum {
  CLUSTER_MAX = 8,
  RUNS_ROWS = 64,
  RUNS_TILES = 4,
  RUNS_OUT = 16 * RUNS_TILES,
  RUNS_X = RUNS_ROWS / 8 * PANEL_BYTES
};

template <int T> static constexpr int run_chunk = RUNS_X + RUNS_TILES * chunk<T>::n_bytes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Blocks of columns of a run, none where it does not exist. */
struct run_blocks {
  int first, end;
};

static __device__ __forceinline__ run_blocks find_run(const kg_linear_args &a, const columns_shape &shape, int run)
{
  const int n_blocks = a.part[0].m.n_blocks, first = min(run * shape.run, n_blocks);
  return {first, min(first + shape.run, n_blocks)};
}

/* Warp W of 4 brings tiles W % 2 * 2 and the next of run W / 2 of this block; x, if it is the first to. */
template <int T, int W>
static __device__ __forceinline__ void bring_run(const kg_linear_args &a, const task &t, const columns_shape &shape,
                                                 int first_run, unsigned char *stages, uint64_t *full, uint64_t *empty)
{
  constexpr int EACH = RUNS_TILES * GROUPS / 4, RUN = W / (4 / GROUPS), TILE = W % (4 / GROUPS) * EACH;
  const kg_matrix &m = a.part[t.part].m;
  const run_blocks run = find_run(a, shape, first_run + RUN);
  const int n_chunks = shape.run / KG_CHUNK, n_tiles = m.n_tiles - t.tile - TILE;
  const uint32_t x_bytes = TILE ? 0 : (a.n + 7) / 8 * PANEL_BYTES;
  auto bring_weights = [&](int c, int at) {
    const int block = run.first + c * KG_CHUNK, n = max(0, min(KG_CHUNK, run.end - block));
    const uint32_t s_bytes = (sizes<T>::has_heads ? 1 : n) * sizes<T>::s;
    const uint32_t bytes = n ? x_bytes + max(0, min(EACH, n_tiles)) * (n * (sizes<T>::q + sizes<T>::h) + s_bytes) : 0;
    unsigned char *to = stages + (at * GROUPS + RUN) * run_chunk<T> + RUNS_X + TILE * chunk<T>::n_bytes;
    elect_expect(full + at, bytes);
#pragma unroll
    for (int i = 0; i < EACH; i++, to += chunk<T>::n_bytes) {
      if (!n || i >= n_tiles) continue;
      const size_t from = (size_t)(t.tile + TILE + i) * m.n_blocks + block;
      elect_copy(to, m.q + from * sizes<T>::q, n * sizes<T>::q, full + at);
      if (sizes<T>::h) elect_copy(to + chunk<T>::h, m.h + from * sizes<T>::h, n * sizes<T>::h, full + at);
      if (sizes<T>::s) elect_copy(to + chunk<T>::s, m.s + from / sizes<T>::s_blocks * sizes<T>::s, s_bytes, full + at);
    }
  };
  auto bring_x = [&](int c, int at) {
    const int block = run.first + c * KG_CHUNK;
    if (TILE || block >= run.end) return;
    elect_copy(stages + (at * GROUPS + RUN) * run_chunk<T>, (const char *)a.x + kg_panel_at(0, block, m.n_blocks),
               x_bytes, full + at);
  };
  const int ahead = min(shape.stages, n_chunks);
#pragma unroll 1
  for (int c = 0; c < ahead; c++) bring_weights(c, c);
  await_previous();
#pragma unroll 1
  for (int c = 0; c < ahead; c++) bring_x(c, c);
  ring_place place = {0, shape.stages, 0};
#pragma unroll 1
  for (int c = ahead; c < n_chunks; c++, place.next()) {
    barrier_wait(empty + place.at, place.parity);
    bring_weights(c, place.at);
    bring_x(c, place.at);
  }
}

#endif

template <int T>
static __global__ void __launch_bounds__(CONSUMERS + 128, 1)
    linear_runs(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  constexpr int N = RUNS_ROWS;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int blocks = (shape.n_runs + GROUPS - 1) / GROUPS, index = blockIdx.x / blocks,
            rank = blockIdx.x - index * blocks;
  const task t = task_at<N>(a, index, shape, RUNS_TILES);
  float *sums = a.scratch + (size_t)index * shape.n_runs * N * RUNS_OUT; /* [run][N][RUNS_OUT] */
  let_next_start();
  open_barriers(full, empty, shape.stages);
  if (warp >= 4 * GROUPS) {
    if (warp == 4 * GROUPS) bring_run<T, 0>(a, t, shape, rank * GROUPS, stages, full, empty);
    if (warp == 4 * GROUPS + 1) bring_run<T, 1>(a, t, shape, rank * GROUPS, stages, full, empty);
    if (warp == 4 * GROUPS + 2) bring_run<T, 2>(a, t, shape, rank * GROUPS, stages, full, empty);
    if (warp == 4 * GROUPS + 3) bring_run<T, 3>(a, t, shape, rank * GROUPS, stages, full, empty);
    __syncwarp();
    meet_cluster();
    return;
  }
  await_previous();
  ring_place place = {0, shape.stages, 0};
  uint32_t seen = 0;
  float c[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) c[i] = 0;
  const int run = rank * GROUPS + warp / 4;
  const run_blocks mine = find_run(a, shape, run);
#pragma unroll 1
  for (int block = mine.first, i = 0; i < shape.run; i += KG_CHUNK, block += KG_CHUNK, place.next()) {
    const unsigned char *at = stages + (place.at * GROUPS + warp / 4) * run_chunk<T>,
                        *weights = at + RUNS_X + warp % 4 * chunk<T>::n_bytes;
    const uint64_t b = descriptor(shared_address(at));
    const int n = mine.end - block;
    barrier_wait(full + place.at, place.parity);
    if (n >= KG_CHUNK)
      add_blocks<T, KG_CHUNK>(c, weights, block, 0, lane, b, i, seen);
    else
#pragma unroll 1
      for (int j = 0; j < n; j++) add_blocks<T, 1>(c, weights, block, j, lane, b, i || j, seen);
    barrier_arrive(empty + place.at);
  }
  if (mine.first < mine.end) {
    float *to = sums + (run * N + 2 * (lane % 4)) * RUNS_OUT + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      if (i / 4 * 8 + 2 * (lane % 4) + i % 2 < a.n) to[(i / 4 * 8 + i % 2) * RUNS_OUT + i % 4 / 2 * 8] = c[i];
  }
  const kg_linear_part &part = a.part[t.part];
  const int row = t.tile * 16 + 4 * (threadIdx.x % 16), each = (a.n + blocks - 1) / blocks;
  const int first = rank * each + threadIdx.x / 16, end = min((rank + 1) * each, a.n);
  const bool inside = row < part.m.rows;
  const float4 none = make_float4(0, 0, 0, 0), bias = part.bias && inside ? *(const float4 *)(part.bias + row) : none;
  float4 residual = none;
  float scale = 1;
  auto load = [&](int n) {
    const bool exists = inside && n < end;
    residual = a.residual && exists ? *(const float4 *)(a.residual + (size_t)n * part.m.rows + row) : none;
    scale = exists ? a.x_scale[n] : 1;
  };
  load(first);
  __syncwarp();
  meet_cluster();
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
#pragma unroll 1
  for (int n = first; n < end && inside; n += CONSUMERS / 16) {
    float4 each_run[GROUPS * CLUSTER_MAX], v = none; /* all of these loads are under way at once */
#pragma unroll
    for (int r = 0; r < GROUPS * CLUSTER_MAX; r++)
      if (r < shape.n_runs)
        each_run[r] = __ldcg((const float4 *)(sums + (r * N + n) * RUNS_OUT + 4 * (threadIdx.x % 16)));
#pragma unroll
    for (int r = 0; r < GROUPS * CLUSTER_MAX; r++)
      if (r < shape.n_runs) v = add_four(v, each_run[r]);
    v = scale_four(v, scale);
    if (part.bias) v = add_four(v, bias);
    if (a.residual) v = add_four(v, residual);
    *(float4 *)(a.out_rows ? a.out_rows[n] + row : part.out + (size_t)n * part.m.rows + row) = v;
    load(n + CONSUMERS / 16);
  }
#else
  wait_for_previous();
#endif
}

/* linear_local: few rows of x, few tiles and few columns, of which everything stands in shared memory at once: 4 tiles
 * and LOCAL_ROWS rows of x a block, a warp group for each run. grid: tasks; block: a warp group per run and one that
 * brings. Shared: chunks of x and weights; sums, [run][LOCAL_ROWS] [LOCAL_STRIDE]. moves each weight once per
 * LOCAL_ROWS rows; twin: linear_rows, equal to the bit. */
enum {
  LOCAL_ROWS = 16,
  LOCAL_RUNS = 7,
  LOCAL_CHUNKS = 16,
  LOCAL_STRIDE = 64 + 4,
  LOCAL_X = LOCAL_ROWS / 8 * PANEL_BYTES
};

template <int T> static constexpr int local_chunk = LOCAL_X + 4 * chunk<T>::n_bytes;

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/* Warp W of 4 brings tile W, the first x too. */
template <int T, int W>
static __device__ __forceinline__ void bring_local(const kg_linear_args &a, const task &t, unsigned char *chunks,
                                                   uint64_t *full)
{
  const kg_matrix &m = a.part[t.part].m;
  const size_t at = (size_t)(t.tile + W) * m.n_blocks;
  const bool exists = t.tile + W < m.n_tiles;
  const uint32_t x_bytes = W ? 0 : min(LOCAL_ROWS / 8, (a.n + 7) / 8 - t.n0 / 8) * PANEL_BYTES;
  const unsigned char *x = (const unsigned char *)a.x + kg_panel_at(t.n0, 0, m.n_blocks);
#pragma unroll 1
  for (int c = 0, block = 0; block < m.n_blocks; c++, block += KG_CHUNK) {
    const int n = min(KG_CHUNK, m.n_blocks - block);
    const uint32_t s_bytes = (sizes<T>::has_heads ? 1 : n) * sizes<T>::s;
    unsigned char *to = chunks + c * local_chunk<T> + LOCAL_X + W * chunk<T>::n_bytes;
    elect_expect(full + c, x_bytes + (exists ? n * (sizes<T>::q + sizes<T>::h) + s_bytes : 0));
    if (!exists) continue;
    elect_copy(to, m.q + (at + block) * sizes<T>::q, n * sizes<T>::q, full + c);
    if (sizes<T>::h) elect_copy(to + chunk<T>::h, m.h + (at + block) * sizes<T>::h, n * sizes<T>::h, full + c);
    if (sizes<T>::s)
      elect_copy(to + chunk<T>::s, m.s + (at + block) / sizes<T>::s_blocks * sizes<T>::s, s_bytes, full + c);
  }
  await_previous();
#pragma unroll 1
  for (int c = 0; !W && c * KG_CHUNK < m.n_blocks; c++, x += KG_PANEL_ROWS / 8 * PANEL_BYTES)
    elect_copy(chunks + c * local_chunk<T>, x, x_bytes, full + c);
}

#endif

template <int T>
static __global__ void __launch_bounds__(128 * (LOCAL_RUNS + 1), 1)
    linear_local(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char chunks[];
  __shared__ uint64_t full[LOCAL_CHUNKS];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const task t = task_at<LOCAL_ROWS>(a, blockIdx.x, shape, 4);
  const int n_blocks = a.part[0].m.n_blocks, n_chunks = (n_blocks + KG_CHUNK - 1) / KG_CHUNK;
  float *sums = (float *)(chunks + n_chunks * local_chunk<T>);
  let_next_start();
  if (threadIdx.x == 0)
    for (int i = 0; i < n_chunks; i++) barrier_init(full + i, 4);
  barriers_ready();
  __syncthreads();
  const int w = warp - 4 * shape.n_runs;
  if (w == 0) bring_local<T, 0>(a, t, chunks, full);
  if (w == 1) bring_local<T, 1>(a, t, chunks, full);
  if (w == 2) bring_local<T, 2>(a, t, chunks, full);
  if (w == 3) bring_local<T, 3>(a, t, chunks, full);
  uint32_t seen = 0;
  if (w < 0) {
    const int run = warp / 4, first = run * shape.run, end = min(first + shape.run, n_blocks);
    float c[LOCAL_ROWS / 2];
#pragma unroll
    for (int i = 0; i < LOCAL_ROWS / 2; i++) c[i] = 0;
#pragma unroll 1
    for (int block0 = first; block0 < end; block0 += KG_CHUNK) {
      const unsigned char *at = chunks + block0 / KG_CHUNK * local_chunk<T>;
      barrier_wait(full + block0 / KG_CHUNK, 0);
#pragma unroll 1
      for (int i = 0; i < min(KG_CHUNK, end - block0); i++)
        add_blocks<T, 1>(c, at + LOCAL_X + warp % 4 * chunk<T>::n_bytes, block0, i, lane,
                         descriptor(shared_address(at)), i || block0 > first, seen);
    }
    float *to = sums + (run * LOCAL_ROWS + 2 * (lane % 4)) * LOCAL_STRIDE + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < LOCAL_ROWS / 2; i++) to[(i / 4 * 8 + i % 2) * LOCAL_STRIDE + i % 4 / 2 * 8] = c[i];
  }
  const kg_linear_part &part = a.part[t.part];
  const int n = t.n0 + threadIdx.x / 16, row = t.tile * 16 + 4 * (threadIdx.x % 16);
  const bool stores = threadIdx.x < 16 * LOCAL_ROWS && n < a.n && row < part.m.rows;
  const float4 none = make_float4(0, 0, 0, 0);
  const size_t at = (size_t)n * part.m.rows + row;
  float4 bias = none, residual = none, v = none;
  float scale = 1;
  if (stores) {
    if (part.bias) bias = *(const float4 *)(part.bias + row);
    await_previous();
    if (a.residual) residual = *(const float4 *)(a.residual + at);
    scale = a.x_scale[n];
  }
  __syncthreads();
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
  if (!stores) return;
  const float *from = sums + threadIdx.x / 16 * LOCAL_STRIDE + 4 * (threadIdx.x % 16);
#pragma unroll 7
  for (int r = 0; r < shape.n_runs; r++) v = add_four(v, *(const float4 *)(from + r * LOCAL_ROWS * LOCAL_STRIDE));
  v = scale_four(v, scale);
  if (part.bias) v = add_four(v, bias);
  if (a.residual) v = add_four(v, residual);
  *(float4 *)(a.out_rows ? a.out_rows[n] + row : part.out + at) = v;
#else
  wait_for_previous();
#endif
}

template <typename K>
static int run_columns(kg_stream *s, const char *name, K kernel, const kg_linear_args *a, const columns_shape *shape,
                       int blocks, int cluster, size_t shared, kg_error *err)
{
  const int code =
      kg_cuda_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), name, err);
  return code ? code : run_clusters(s, name, kernel, dim3(blocks), cluster, CONSUMERS + 128, shared, err, *a, *shape);
}

/* Stages that fit beside `others` bytes: no more than there are chunks. */
template <int T, int N> static int stages_beside(const kg_stream *s, size_t others, int n_blocks)
{
  const size_t room = (size_t)s->shared_max - 1024 - others;
  return min(min((int)(room / stage<T, N>::n_bytes), STAGES_MAX), (n_blocks + KG_CHUNK - 1) / KG_CHUNK);
}

static columns_shape shape_of(const kg_linear_args *a, int n_rows, int tiles)
{
  columns_shape shape = {};
  shape.n_columns = (a->n + n_rows - 1) / n_rows;
  shape.run = kg_cuda_linear_run(&a->part[0].m);
  for (int i = 0; i < (a->gated ? 1 : a->n_parts); i++)
    shape.n_tasks += (a->part[i].m.n_tiles + tiles - 1) / tiles * shape.n_columns;
  return shape;
}

/* True where sharing out runs pays. */
template <int T> static bool launch_runs(kg_stream *s, const kg_linear_args *a, int *code, kg_error *err)
{
  columns_shape shape = shape_of(a, RUNS_ROWS, RUNS_TILES);
  shape.n_runs = (a->part[0].m.n_blocks + shape.run - 1) / shape.run;
  const int cluster = (shape.n_runs + GROUPS - 1) / GROUPS;
  const size_t sums = (size_t)shape.n_tasks * (size_t)shape.n_runs * RUNS_ROWS * RUNS_OUT;
  if (a->gated || a->n > RUNS_ROWS || cluster < 2 || cluster > CLUSTER_MAX || sums > a->scratch_floats ||
      shape.n_tasks > s->n_sms)
    return false;
  const int room = (s->shared_max - 1024) / (GROUPS * run_chunk<T>);
  shape.stages = min(min(room, STAGES_MAX), shape.run / KG_CHUNK);
  *code = run_columns(s, "linear_runs", linear_runs<T>, a, &shape, shape.n_tasks * cluster, cluster,
                      (size_t)shape.stages * GROUPS * run_chunk<T>, err);
  return true;
}

/* True where it pays, and where everything fits. */
template <int T> static bool launch_local(kg_stream *s, const kg_linear_args *a, int *code, kg_error *err)
{
  columns_shape shape = shape_of(a, LOCAL_ROWS, 4);
  const int n_blocks = a->part[0].m.n_blocks, n_chunks = (n_blocks + KG_CHUNK - 1) / KG_CHUNK;
  shape.n_runs = (n_blocks + shape.run - 1) / shape.run;
  if (a->gated || shape.n_runs > LOCAL_RUNS || n_chunks > LOCAL_CHUNKS || shape.n_tasks > s->n_sms) return false;
  const size_t shared =
      (size_t)n_chunks * local_chunk<T> + (size_t)shape.n_runs * LOCAL_ROWS * LOCAL_STRIDE * sizeof(float);
  if (shared + 1024 > (size_t)s->shared_max || shape.n_runs < 2) return false;
  *code = kg_cuda_check(cudaFuncSetAttribute(linear_local<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                        "linear_local", err);
  if (!*code)
    *code = run_kernel(s, "linear_local", linear_local<T>, dim3(shape.n_tasks), 128 * (shape.n_runs + 1), shared, err,
                       *a, shape);
  return true;
}

template <int T, int D, int N> static int launch_columns(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  columns_shape shape = shape_of(a, N, 4 * GROUPS / D);
  shape.stages = stages_beside<T, N>(s, EXCHANGE_BYTES, a->part[0].m.n_blocks);
  return run_columns(s, "linear_columns", linear_columns<T, D, N>, a, &shape, min(shape.n_tasks, s->n_sms), 1,
                     (size_t)shape.stages * stage<T, N>::n_bytes + EXCHANGE_BYTES, err);
}

template <int T, int D> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  int code;
  if (D == 1 && (launch_local<T>(s, a, &code, err) || launch_runs<T>(s, a, &code, err))) return code;
  return a->n <= 64 ? launch_columns<T, D, 64>(s, a, err) : launch_columns<T, D, 128>(s, a, err);
}

size_t kg_cuda_linear_scratch(const kg_stream *s, const kg_matrix *m, int32_t n_tiles)
{
  const int n_runs = (m->n_blocks + kg_cuda_linear_run(m) - 1) / kg_cuda_linear_run(m);
  const int n_tasks = n_tiles / RUNS_TILES + KG_LINEAR_PARTS; /* each part may have one that is not full */
  if (n_runs < 2 || n_tasks > s->n_sms + KG_LINEAR_PARTS) return 0;
  return (size_t)n_tasks * (size_t)n_runs * RUNS_ROWS * RUNS_OUT;
}

int kg_cuda_linear_many(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  bool done;
  const int code = kg_cuda_linear_few(s, a, &done, err);
  if (code || done) return code;
  switch (a->part[0].m.type) {
#define CASE(T) case T: return a->gated ? launch<T, 2>(s, a, err) : launch<T, 1>(s, a, err);
    CASE(KG_F16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q5_0) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K)
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "many rows with weights of type %d", (int)a->part[0].m.type);
  }
}
