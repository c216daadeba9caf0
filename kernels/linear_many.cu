/* linear_many.cu - products for many rows on Hopper: warp groups multiply 64 rows of weights, from registers, with 128
 * rows of activations, from shared memory. The order of sums is that of linear.cu, step by step, and the tensor cores
 * give the same bits through both instructions (spec/step_spec.lua and cuda_spec.lua hold them to it), so that it does
 * not matter which of the two a row goes through.
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
  SUM_STRIDE = 64 * GROUPS + 4, /* the same of all rows of a block's tiles: where blocks read each other's */
  STAGES_MAX = 8
};

/* A stage: a chunk of N rows of x, and of 4 GROUPS tiles. */
template <int T, int N> struct stage {
  static constexpr int x_bytes = N / 8 * PANEL_BYTES, n_bytes = x_bytes + 4 * GROUPS * chunk<T>::n_bytes;
};

/* How a launch is cut. */
struct columns_shape {
  int n_tasks, n_columns, run, stages;
  int n_runs, runs_each; /* linear_runs: of a product, and of each block of a cluster */
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
 * nothing is decoded meanwhile: copies of them, which the compiler makes to have four in a row, would be given away, and
 * were (cuda_spec: the same bits every time). The other warp group decodes in that time. */
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
                 : "r"(a[i]), "r"(a[i + 1]), "r"(a[i + 2]), "r"(a[i + 3]), "r"(a[i + 4]), "r"(a[i + 5]),
                   "r"(a[i + 6]), "r"(a[i + 7])
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
static __device__ __forceinline__ void add_chunk(float (&c)[N / 2], const unsigned char *at, int block0, int n, int warp,
                                                 int lane, int adds, uint32_t &seen)
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
  int first, end; /* blocks */
};

template <int N>
static __device__ __forceinline__ task task_at(const kg_linear_args &a, int index, const columns_shape &shape,
                                               int tiles)
{
  task t = {0, 0, index % shape.n_columns * N, 0, a.part[0].m.n_blocks};
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

/* A whole warp calls these and one thread of it does it. So the warp stays together, and what is the same for all of its
 * threads stands in registers of the warp, from which alone these instructions take numbers. */
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
 * Gated, the first half of each group multiplies the gate's tiles and the other the up's. One thread does it, in code that
 * knows W: then all addresses are the same for all threads of a warp as far as the compiler can see, and it takes a third
 * of the instructions; it must not take longer than the products. */
template <int T, int D, int N, int W> struct porter {
  static constexpr int EACH = GROUPS;
  const kg_linear_args &a;
  unsigned char *stages;
  uint64_t *full;
  /* Of the next chunk: */
  const unsigned char *x, *q[EACH], *h[EACH], *s[EACH];
  uint32_t x_bytes;
  int n_tiles, block, end;

  __device__ __forceinline__ porter(const kg_linear_args &a, unsigned char *stages, uint64_t *full)
      : a(a), stages(stages), full(full)
  {
  }

  __device__ __forceinline__ void begin(const task &t)
  {
    const kg_matrix &m = a.part[D == 2 ? W % 2 : t.part].m;
    const int tile = t.tile + W / D * EACH;
    n_tiles = m.n_tiles - tile;
    block = t.first;
    end = t.end;
    x_bytes = W ? 0 : min(N / 8, (a.n + 7) / 8 - t.n0 / 8) * PANEL_BYTES;
    x = (const unsigned char *)a.x + kg_panel_at(t.n0, t.first, m.n_blocks);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const size_t at = (size_t)(tile + i) * m.n_blocks + t.first;
      q[i] = m.q + at * sizes<T>::q;
      h[i] = m.h + at * sizes<T>::h;
      s[i] = m.s + at / sizes<T>::s_blocks * sizes<T>::s;
    }
  }

  /* The weights of this stage; x is announced with them. */
  __device__ __forceinline__ void bring_weights(int at)
  {
    const int n = min(KG_CHUNK, end - block);
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

/* All stages of tasks `index`, index + step, ... Weights go ahead of the kernel before this one, x does not. */
template <int T, int D, int N, int W, typename Find>
static __device__ __forceinline__ void bring(const kg_linear_args &a, unsigned char *stages, uint64_t *full,
                                             uint64_t *empty, const columns_shape &shape, int index, int step, Find find)
{
  porter<T, D, N, W> p(a, stages, full);
  ring_place place = {0, shape.stages, 1}; /* the first time round all are empty */
  bool waited = false;
  for (; index < shape.n_tasks; index += step) {
    p.begin(find(index));
    if (!waited) {
      int n = 0;
      for (; n < shape.stages && p.block < p.end; n++) p.bring_weights(n);
      await_previous();
      for (; n; n--, place.next()) p.bring_x(place.at);
      waited = true;
    }
#pragma unroll 1
    while (p.block < p.end) {
      barrier_wait(empty + place.at, place.parity);
      p.bring_weights(place.at);
      p.bring_x(place.at);
      place.next();
    }
  }
}

/* By warp w. */
template <int T, int D, int N, typename Find>
static __device__ __forceinline__ void bring_all(const kg_linear_args &a, unsigned char *stages, uint64_t *full,
                                                 uint64_t *empty, const columns_shape &shape, int w, int index, int step,
                                                 Find find)
{
  if (w == 0)
    bring<T, D, N, 0>(a, stages, full, empty, shape, index, step, find);
  else if (w == 1)
    bring<T, D, N, 1>(a, stages, full, empty, shape, index, step, find);
  else if (w == 2)
    bring<T, D, N, 2>(a, stages, full, empty, shape, index, step, find);
  else
    bring<T, D, N, 3>(a, stages, full, empty, shape, index, step, find);
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

/* A thread's sums are of rows g and g + 8 of its warp's tile, and of columns 8 i + 2 t and 8 i + 2 t + 1. They leave by
 * way of shared memory, 32 columns at a time, so that four neighbours of a row of out are written at once, by 4 lanes a
 * column. Gated: a gate's warp finishes half of these columns and its up's warp the other. */
template <int D, int N>
static __device__ __forceinline__ void store_all(const kg_linear_args &a, const task &t, const float (&total)[N / 2],
                                                 float *exchange, int warp, int lane)
{
  constexpr int EACH = 4 / D, ROUNDS = N / 32; /* columns of a lane in a round */
  const kg_linear_part &part = a.part[t.part];
  const int tile = t.tile + (D == 2 ? warp / 4 * 2 + warp % 2 : warp), row = tile * 16 + 4 * (lane % 4),
            n_rows = part.m.rows;
  const int column0 = (D == 2 ? warp % 4 / 2 * 16 : 0) + lane / 4, n_columns = a.n - t.n0 - column0;
  const bool inside = row < n_rows; /* all four are: parts have a multiple of 4 rows */
  float *to = exchange + warp * 32 * STRIDE + 2 * (lane % 4) * STRIDE + lane / 4;
  const float *from = exchange + (D == 2 ? warp & ~2 : warp) * 32 * STRIDE + column0 * STRIDE + 4 * (lane % 4);
  const float *scales = a.x_scale + t.n0 + column0;
  const size_t at = (size_t)(t.n0 + column0) * n_rows + row;
  const float *residuals = a.residual ? a.residual + at : NULL;
  float *out = part.out + at;
  const size_t next = 8 * (size_t)n_rows; /* floats from a column of a lane to its next */
  const float4 none = make_float4(0, 0, 0, 0);
  float scale[ROUNDS * EACH];
  float4 residual[2][EACH]; /* of this round and the next: all of these loads are under way at once */
  auto load_residuals = [&](int round) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int column = 4 * round + i;
      residual[round % 2][i] =
          residuals && inside && 8 * column < n_columns ? *(const float4 *)(residuals + column * next) : none;
    }
  };
#pragma unroll
  for (int i = 0; i < ROUNDS * EACH; i++) {
    const int column = 8 * (i / EACH * 4 + i % EACH);
    scale[i] = column < n_columns ? scales[column] : 1;
  }
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

/* Blocks of a cluster: all have come here, and what they wrote to shared memory can be read by the others. */
static __device__ __forceinline__ void meet_cluster()
{
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

/* Four numbers from shared memory of block `rank` of the cluster. */
static __device__ __forceinline__ float4 read_from(const float *at, int rank)
{
  float4 v;
  asm volatile("{\n"
               ".reg .b32 there;\n"
               "mapa.shared::cluster.u32 there, %4, %5;\n"
               "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
               "}\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared_address(at)), "r"(rank)
               : "memory");
  return v;
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
  constexpr int TILES = 4 * GROUPS / D;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  auto find = [&](int index) { return task_at<N>(a, index, shape, TILES); };
  let_next_start();
  open_barriers(full, empty, shape.stages);
  if (warp >= 4 * GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    bring_all<T, D, N>(a, stages, full, empty, shape, warp - 4 * GROUPS, blockIdx.x, gridDim.x, find);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  await_previous();
  ring_place place = {0, shape.stages, 0};
  uint32_t seen = 0;
  for (int index = blockIdx.x; index < shape.n_tasks; index += gridDim.x) {
    const task t = find(index);
    float total[N / 2], c[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) c[i] = total[i] = 0; /* and of -0 and 0 becomes 0, as in linear_rows */
    for (int block0 = t.first, run_end = t.first; block0 < t.end; block0 += KG_CHUNK) {
      const int adds = block0 < run_end;
      if (!adds) run_end += shape.run;
      barrier_wait(full + place.at, place.parity);
      add_chunk<T, N>(c, stages + place.at * stage<T, N>::n_bytes, block0, t.end - block0, warp, lane, adds, seen);
      barrier_arrive(empty + place.at); /* every thread for what it has read itself */
      place.next();
      if (block0 + KG_CHUNK >= min(run_end, t.end)) join_run(total, c);
    }
    store_all<D, N>(a, t, total, (float *)(stages + shape.stages * stage<T, N>::n_bytes), warp, lane);
  }
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
#else
  wait_for_previous();
#endif
}

/* linear_runs: few rows of x and few tiles, which would leave most of the device idle: the runs of a product are shared out
 * among the blocks of a cluster, and each block adds those of some rows of x, from left to right.
 * grid: tasks * blocks of a cluster; block: as linear_columns. Shared: stages; sums of this block's runs, [run][N][SUM_STRIDE].
 * moves each weight once; twin: linear_rows, equal to the bit. */
template <int T, int N>
static __global__ void __launch_bounds__(CONSUMERS + 128, 1)
    linear_runs(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int blocks = (shape.n_runs + shape.runs_each - 1) / shape.runs_each, index = blockIdx.x / blocks,
            rank = blockIdx.x - index * blocks;
  task t = task_at<N>(a, index, shape, 4 * GROUPS);
  t.first = rank * shape.runs_each * shape.run;
  t.end = min(t.first + shape.runs_each * shape.run, t.end);
  float *sums = (float *)(stages + shape.stages * stage<T, N>::n_bytes);
  let_next_start();
  open_barriers(full, empty, shape.stages);
  if (warp >= 4 * GROUPS) {
    bring_all<T, 1, N>(a, stages, full, empty, shape, warp - 4 * GROUPS, index, shape.n_tasks, [&](int) { return t; });
    __syncwarp();
    meet_cluster();
    meet_cluster();
    return;
  }
  ring_place place = {0, shape.stages, 0};
  uint32_t seen = 0;
  float c[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; i++) c[i] = 0;
  for (int block0 = t.first, run_end = t.first, run = 0; block0 < t.end; block0 += KG_CHUNK) {
    const int adds = block0 < run_end;
    if (!adds) run_end += shape.run;
    barrier_wait(full + place.at, place.parity);
    add_chunk<T, N>(c, stages + place.at * stage<T, N>::n_bytes, block0, t.end - block0, warp, lane, adds, seen);
    barrier_arrive(empty + place.at);
    place.next();
    if (block0 + KG_CHUNK < min(run_end, t.end)) continue;
    float *to = sums + (run++ * N + 2 * (lane % 4)) * SUM_STRIDE + warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < N / 2; i++) to[(i / 4 * 8 + i % 2) * SUM_STRIDE + i % 4 / 2 * 8] = c[i];
  }
  const kg_linear_part &part = a.part[t.part];
  const int row = t.tile * 16 + 4 * lane, each = (a.n + blocks - 1) / blocks, end = min((rank + 1) * each, a.n);
  const bool inside = row < part.m.rows;
  const float4 none = make_float4(0, 0, 0, 0), bias = part.bias && inside ? *(const float4 *)(part.bias + row) : none;
  constexpr int AT_ONCE = 2; /* rows of x of a warp */
  float4 residual[AT_ONCE];
  float scale[AT_ONCE];
  auto load = [&](int n0) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int n = n0 + i * 4 * GROUPS;
      const bool exists = inside && n < end;
      residual[i] = a.residual && exists ? *(const float4 *)(a.residual + (size_t)n * part.m.rows + row) : none;
      scale[i] = exists ? a.x_scale[n] : 1;
    }
  };
  await_previous();
  load(rank * each + warp);
  meet_cluster();
#pragma unroll 1
  for (int n0 = rank * each + warp; n0 < end && inside; n0 += AT_ONCE * 4 * GROUPS) {
    float4 v[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) v[i] = none;
#pragma unroll 8
    for (int r = 0, owner = 0, at = 0; r < shape.n_runs; r++) {
#pragma unroll
      for (int i = 0; i < AT_ONCE; i++)
        v[i] = add_four(v[i], read_from(sums + (at * N + min(n0 + i * 4 * GROUPS, end - 1)) * SUM_STRIDE + 4 * lane, owner));
      if (++at < shape.runs_each) continue;
      at = 0;
      owner++;
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int n = n0 + i * 4 * GROUPS;
      if (n >= end) continue;
      v[i] = scale_four(v[i], scale[i]);
      if (part.bias) v[i] = add_four(v[i], bias);
      if (a.residual) v[i] = add_four(v[i], residual[i]);
      *(float4 *)(a.out_rows ? a.out_rows[n] + row : part.out + (size_t)n * part.m.rows + row) = v[i];
    }
    if (n0 + AT_ONCE * 4 * GROUPS < end) load(n0 + AT_ONCE * 4 * GROUPS);
  }
  __syncwarp();
  meet_cluster(); /* nobody leaves before all have read */
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
#else
  wait_for_previous();
#endif
}

enum { CLUSTER_MAX = 8 };

static int min_of(int a, int b) { return a < b ? a : b; }

template <typename K>
static int run_columns(kg_stream *s, const char *name, K kernel, const kg_linear_args *a, const columns_shape *shape,
                       int blocks, int cluster, size_t shared, kg_error *err)
{
  const int code = kg_cuda_check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared), name, err);
  return code ? code
              : run_clusters(s, name, kernel, dim3(blocks), cluster, CONSUMERS + 128, shared, err, *a, *shape);
}

/* Stages that fit beside `others` bytes: no more than there are chunks. */
template <int T, int N> static int stages_beside(const kg_stream *s, size_t others, int n_blocks)
{
  const size_t room = (size_t)s->shared_max - 1024 - others;
  return min_of(min_of((int)(room / stage<T, N>::n_bytes), STAGES_MAX), (n_blocks + KG_CHUNK - 1) / KG_CHUNK);
}

/* Shares out runs where that pays and where their sums fit. */
template <int T, int N> static bool share_runs(const kg_stream *s, const kg_linear_args *a, columns_shape *shape, size_t *shared)
{
  const int n_runs = (a->part[0].m.n_blocks + shape->run - 1) / shape->run;
  const int each = (n_runs + CLUSTER_MAX - 1) / CLUSTER_MAX;
  const size_t sums = (size_t)each * N * SUM_STRIDE * sizeof(float);
  if (a->gated || n_runs < 2 || 2 * shape->n_tasks > s->n_sms || shape->n_columns > 1 ||
      sums + 2 * stage<T, N>::n_bytes + 1024 > (size_t)s->shared_max)
    return false;
  shape->n_runs = n_runs;
  shape->runs_each = each;
  shape->stages = stages_beside<T, N>(s, sums, each * shape->run);
  *shared = sums + (size_t)shape->stages * stage<T, N>::n_bytes;
  return true;
}

template <int T, int D, int N> static int launch_columns(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  constexpr int TILES = 4 * GROUPS / D;
  columns_shape shape = {};
  shape.n_columns = (a->n + N - 1) / N;
  shape.run = kg_cuda_linear_run(&a->part[0].m);
  for (int i = 0; i < (D == 2 ? 1 : a->n_parts); i++)
    shape.n_tasks += (a->part[i].m.n_tiles + TILES - 1) / TILES * shape.n_columns;
  size_t shared;
  if constexpr (N == 64 && D == 1)
    if (share_runs<T, N>(s, a, &shape, &shared)) {
      const int cluster = (shape.n_runs + shape.runs_each - 1) / shape.runs_each;
      return run_columns(s, "linear_runs", linear_runs<T, N>, a, &shape, shape.n_tasks * cluster, cluster, shared, err);
    }
  shape.stages = stages_beside<T, N>(s, EXCHANGE_BYTES, a->part[0].m.n_blocks);
  shared = (size_t)shape.stages * stage<T, N>::n_bytes + EXCHANGE_BYTES;
  return run_columns(s, "linear_columns", linear_columns<T, D, N>, a, &shape, min_of(shape.n_tasks, s->n_sms), 1, shared,
                     err);
}

template <int T, int D> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  return a->n <= 64 ? launch_columns<T, D, 64>(s, a, err) : launch_columns<T, D, 128>(s, a, err);
}

int kg_cuda_linear_many(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  switch (a->part[0].m.type) {
#define CASE(T) case T: return a->gated ? launch<T, 2>(s, a, err) : launch<T, 1>(s, a, err);
    CASE(KG_F16) CASE(KG_Q8_0) CASE(KG_Q4_0) CASE(KG_Q5_0) CASE(KG_Q4_K) CASE(KG_Q5_K) CASE(KG_Q6_K)
#undef CASE
  default: return kg_fail(err, KG_ERR_UNSUPPORTED, "many rows with weights of type %d", (int)a->part[0].m.type);
  }
}
