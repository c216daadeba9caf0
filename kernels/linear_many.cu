/* linear_many.cu - products for many rows on Hopper: warp groups multiply 64 rows of weights, from registers, with 128
 * rows of activations, from shared memory. The order of sums is that of linear.cu, step by step, and the tensor cores
 * give the same bits through both instructions (spec/step_spec.lua and cuda_spec.lua hold them to it), so that it does
 * not matter which of the two a row goes through.
 *
 * x stands in panels (format.h), so that a bulk copy brings a piece of it in the form that wgmma reads: core matrices
 * of 8 rows x 16 bytes. */
#include "linear.cuh"

enum {
  COLUMNS = KG_PANEL_ROWS,      /* rows of x of a block */
  GROUPS = 2,                   /* warp groups that multiply; each takes 4 tiles */
  CONSUMERS = 128 * GROUPS,     /* threads; one more group brings the data and gives them its registers */
  PANEL_BYTES = KG_CHUNK * 512, /* 8 rows of x, a chunk of their columns */
  X_BYTES = COLUMNS / 8 * PANEL_BYTES,
  EXCHANGE_BYTES = 64 * COLUMNS * sizeof(float), /* where sums change hands */
  STAGES_MAX = 4
};

template <int T, int D> static __host__ __device__ constexpr int stage_bytes()
{
  return X_BYTES + 4 * GROUPS * chunk<T>::n_bytes;
}

template <int T, int D> static __host__ __device__ constexpr int n_stages()
{
  constexpr int room = (224 << 10) - EXCHANGE_BYTES, n = room / stage_bytes<T, D>();
  return n > STAGES_MAX ? STAGES_MAX : n;
}

/* How a launch is cut. Where n_runs is not 1, a task is one run of a product: few rows of x and few tiles would leave
 * most of the device idle. Their sums go to memory, and join_runs adds them. */
struct columns_shape {
  int n_tasks, n_columns, run, n_runs;
  int n_rows; /* of all parts */
};

static __device__ __forceinline__ float4 add_four(float4 a, float4 b)
{
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
static __device__ __forceinline__ float4 scale_four(float4 a, float b)
{
  return make_float4(a.x * b, a.y * b, a.z * b, a.w * b);
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

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

/* The sums are whole now, and the weights read. Until then neither may be touched, which the compiler does not know of
 * registers that the tensor cores read: `seen` uses them here, so that they are not given to others before. Even so
 * nothing is decoded meanwhile: copies of them, which the compiler makes to have four in a row, would be given away, and
 * were (cuda_spec: the same bits every time). The other warp group decodes in that time. */
static __device__ __forceinline__ void multiply_wait(const uint32_t (&a)[8], uint32_t &seen)
{
  asm volatile("wgmma.wait_group.sync.aligned 0;\n"
               "lop3.b32 %0, %1, %2, %0, 0x96;\n"
               "lop3.b32 %0, %3, %4, %0, 0x96;\n"
               "lop3.b32 %0, %5, %6, %0, 0x96;\n"
               "lop3.b32 %0, %7, %8, %0, 0x96;\n"
               : "+r"(seen)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7])
               : "memory");
}

/* What one block computes, in turn: 4 GROUPS tiles of a part (gated: 4 of both parts) and COLUMNS rows of x. */
struct task {
  int part, tile, n0;
  int first, end; /* blocks */
  float *out;     /* where the bare sums of a run go, or NULL: the task is complete */
};

static __device__ __forceinline__ task task_at(const kg_linear_args &a, int index, const columns_shape &shape,
                                               int tiles)
{
  const int n_blocks = a.part[0].m.n_blocks;
  task t = {0, 0, index % shape.n_columns * COLUMNS, 0, n_blocks, NULL};
  index /= shape.n_columns;
  const int run = index % shape.n_runs;
  index /= shape.n_runs;
  size_t rows_before = 0;
  if (!a.gated)
    for (int n; index >= (n = (a.part[t.part].m.n_tiles + tiles - 1) / tiles); t.part++) {
      index -= n;
      rows_before += a.part[t.part].m.rows;
    }
  t.tile = index * tiles;
  if (shape.n_runs == 1) return t;
  t.first = run * shape.run;
  t.end = min(t.first + shape.run, n_blocks);
  t.out = a.scratch + ((size_t)run * shape.n_rows + rows_before) * a.n; /* [runs][parts][n][rows] */
  return t;
}

/* A warp of the group that brings x and weights: warp w of 4 the tiles 2 w and 2 w + 1 of a task, the first x too. One
 * thread does it: a copy's instruction wants its numbers from one thread, and lanes would take turns. */
template <int T, int D>
static __device__ __forceinline__ void bring(const kg_linear_args &a, const columns_shape &shape, unsigned char *stages,
                                             uint64_t *full, uint64_t *empty, int w)
{
  constexpr int TILES = 4 * GROUPS / D, EACH = GROUPS;
  const int n_blocks = a.part[0].m.n_blocks;
  int at = 0;
  uint32_t parity = 1; /* the first time round all are empty */
  for (int index = blockIdx.x; index < shape.n_tasks; index += gridDim.x) {
    const task t = task_at(a, index, shape, TILES);
    const uint32_t x_bytes = w ? 0 : min(COLUMNS / 8, (a.n + 7) / 8 - t.n0 / 8) * PANEL_BYTES;
    const kg_matrix &m = a.part[D == 2 ? w * EACH / TILES : t.part].m;
    const int tile = t.tile + (D == 2 ? w * EACH % TILES : w * EACH), n_tiles = max(0, min(EACH, m.n_tiles - tile));
#pragma unroll 1
    for (int block = t.first; block < t.end; block += KG_CHUNK) {
      const int n = min(KG_CHUNK, t.end - block);
      unsigned char *x = stages + at * stage_bytes<T, D>(), *weights = x + X_BYTES + w * EACH * chunk<T>::n_bytes;
      barrier_wait(empty + at, parity);
      barrier_expect(full + at, x_bytes + n_tiles * chunk_bytes<T>(block, n));
      if (x_bytes) bulk_copy(x, (const char *)a.x + kg_panel_at(t.n0, block, n_blocks), x_bytes, full + at);
#pragma unroll
      for (int i = 0; i < EACH; i++)
        if (i < n_tiles)
          each_plane<T>(m, 0, tile + i, block, n, weights + i * chunk<T>::n_bytes,
                        [&](unsigned char *to, const unsigned char *from, uint32_t n_bytes) {
                          bulk_copy(to, from, n_bytes, full + at);
                        });
      if (++at == n_stages<T, D>()) {
        at = 0;
        parity ^= 1;
      }
    }
  }
}

/* Functions that are less common, once in the code: they are long. */
static __device__ __noinline__ float4 gated_four(int act, float limit, float alpha, float4 gate, float4 up)
{
  return make_float4(gated(act, limit, alpha, gate.x, up.x), gated(act, limit, alpha, gate.y, up.y),
                     gated(act, limit, alpha, gate.z, up.z), gated(act, limit, alpha, gate.w, up.w));
}

static __device__ __forceinline__ void consumers_sync()
{
  asm volatile("bar.sync 1, %0;" ::"n"((int)CONSUMERS) : "memory");
}

/* A thread's sums are of rows g and g + 8 of its warp's tile, and of columns 8 i + 2 t and 8 i + 2 t + 1. They leave by
 * way of shared memory, 32 columns at a time, so that four neighbours of a row of out are written at once, by 4 lanes a
 * column. Gated: a gate's warp finishes half of these columns and its up's warp the other. */
template <int D>
static __device__ __forceinline__ void store_all(const kg_linear_args &a, const task &t, const float (&total)[64],
                                                 float *exchange, int warp, int lane)
{
  constexpr int STRIDE = 20,
                EACH = 4 / D; /* floats of a column's 16 rows, apart for the banks' sake; columns of a lane */
  const kg_linear_part &part = a.part[t.part];
  const int tile = t.tile + (D == 2 ? warp % 4 : warp), row = tile * 16 + 4 * (lane % 4), n_rows = part.m.rows;
  const int column0 = (D == 2 ? warp / 4 * 16 : 0) + lane / 4, n_columns = a.n - t.n0 - column0;
  const bool inside = row < n_rows; /* all four are: parts have a multiple of 4 rows */
  float *to = exchange + warp * 32 * STRIDE + 2 * (lane % 4) * STRIDE + lane / 4;
  const float *from = exchange + (D == 2 ? warp % 4 : warp) * 32 * STRIDE + column0 * STRIDE + 4 * (lane % 4);
  const float *scales = a.x_scale + t.n0 + column0;
  const size_t at = (size_t)(t.n0 + column0) * n_rows + row;
  const bool bare = D == 1 && t.out;
  const float *residuals = a.residual && !bare ? a.residual + at : NULL;
  float *out = (bare ? t.out : part.out) + at;
  const size_t next = 8 * (size_t)n_rows; /* floats from a column of a lane to its next */
  const float4 none = make_float4(0, 0, 0, 0);
  const float4 bias = part.bias && !bare && inside ? *(const float4 *)(part.bias + row) : none;
  const float4 up_bias = D == 2 && a.part[1].bias && inside ? *(const float4 *)(a.part[1].bias + row) : none;
#pragma unroll
  for (int i0 = 0; i0 < 16; i0 += 4) {
    float4 residual[EACH];
    float scale[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) { /* all of these loads are under way at once */
      const int column = 8 * (i0 + i);
      const bool exists = inside && column < n_columns;
      scale[i] = exists && !bare ? scales[column] : 1;
      residual[i] = exists && residuals ? *(const float4 *)(residuals + (i0 + i) * next) : none;
    }
    if (D == 2)
      consumers_sync();
    else
      __syncwarp();
#pragma unroll
    for (int i = 0; i < 16; i++) to[(i / 4 * 8 + i % 2) * STRIDE + i % 4 / 2 * 8] = total[4 * i0 + i];
    if (D == 2)
      consumers_sync();
    else
      __syncwarp();
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const int column = 8 * (i0 + i);
      float4 v = scale_four(*(const float4 *)(from + 8 * i * STRIDE), scale[i]);
      if (part.bias && !bare) v = add_four(v, bias);
      if (D == 2) {
        float4 up = scale_four(*(const float4 *)(from + (4 * 32 + 8 * i) * STRIDE), scale[i]);
        if (a.part[1].bias) up = add_four(up, up_bias);
        v = a.act == KG_CUDA_SILU
                ? make_float4(gated(KG_CUDA_SILU, 0, 0, v.x, up.x), gated(KG_CUDA_SILU, 0, 0, v.y, up.y),
                              gated(KG_CUDA_SILU, 0, 0, v.z, up.z), gated(KG_CUDA_SILU, 0, 0, v.w, up.w))
                : gated_four(a.act, a.act_limit, a.act_alpha, v, up);
      }
      if (residuals) v = add_four(v, residual[i]);
      if (!inside || column >= n_columns) continue;
      *(float4 *)(a.out_rows && !bare ? a.out_rows[t.n0 + column0 + column] + row : out + (i0 + i) * next) = v;
    }
  }
  if (D == 2) consumers_sync();
}

/* A run is complete: its sum joins the others. */
static __device__ __forceinline__ void join_run(float (&total)[64], const float (&c)[64])
{
#pragma unroll
  for (int i = 0; i < 64; i++) total[i] += c[i];
}

#endif

/* linear_columns: grid: as many blocks as run at once, each takes tasks in turn; block: GROUPS warp groups that
 * multiply and one that brings. Shared: stages of x and weights, room for sums that change hands. moves each weight
 * once per 128 rows, from the second-level cache; twin: linear_rows, equal to the bit. */
template <int T, int D>
static __global__ void __launch_bounds__(CONSUMERS + 128, 1)
    linear_columns(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  constexpr int TILES = 4 * GROUPS / D;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0)
    for (int i = 0; i < n_stages<T, D>(); i++) {
      barrier_init(full + i, 4);
      barrier_init(empty + i, CONSUMERS);
    }
  barriers_ready();
  __syncthreads();
  wait_for_previous();
  if (warp >= 4 * GROUPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (lane == 0) bring<T, D>(a, shape, stages, full, empty, warp - 4 * GROUPS);
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  const int mine = X_BYTES + warp * chunk<T>::n_bytes; /* this warp's weights in a stage */
  int at = 0;
  uint32_t parity = 0, seen = 0;
  for (int index = blockIdx.x; index < shape.n_tasks; index += gridDim.x) {
    const task t = task_at(a, index, shape, TILES);
    float total[64], c[64];
#pragma unroll
    for (int i = 0; i < 64; i++) c[i] = total[i] = 0; /* and of -0 and 0 becomes 0, as in linear_rows */
    for (int block0 = t.first; block0 < t.end; block0 += KG_CHUNK) {
      const unsigned char *stage = stages + at * stage_bytes<T, D>();
      const uint64_t b = descriptor(shared_address(stage));
      uint64_t *done = empty + at;
      barrier_wait(full + at, parity);
#pragma unroll
      for (int i = 0; i < KG_CHUNK; i++) {
        if (block0 + i >= t.end) break;
        uint32_t weights[8];
        decode_chunk<T>(stage + mine, block0, i, lane, weights);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        multiply(c, weights, b + i * (512 >> 4), i || block0 % shape.run);
        multiply(c, weights + 4, b + i * (512 >> 4) + (256 >> 4), 1);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        multiply_wait(weights, seen);
      }
      barrier_arrive(done); /* every thread for what it has read itself */
      if (++at == n_stages<T, D>()) {
        at = 0;
        parity ^= 1;
      }
      if ((block0 + KG_CHUNK) % shape.run == 0 || block0 + KG_CHUNK >= t.end) join_run(total, c);
    }
    store_all<D>(a, t, total, (float *)(stages + n_stages<T, D>() * stage_bytes<T, D>()), warp, lane);
  }
  if (a.n < 0) a.part[0].out[0] = __uint_as_float(seen); /* never: see multiply_wait */
#else
  wait_for_previous();
#endif
}

/* join_runs: the sums of all runs of a product, from left to right, and what linear_columns would have done with them.
 * grid: (rows of all parts / 4 / 128, n); a thread: four neighbours of a row of out. */
static __global__ void __launch_bounds__(128)
    join_runs(const __grid_constant__ kg_linear_args a, const columns_shape shape)
{
  wait_for_previous();
  int row = 4 * (blockIdx.x * blockDim.x + threadIdx.x), d = 0;
  const int n = blockIdx.y;
  if (row >= shape.n_rows) return;
  size_t rows_before = 0;
  while (row >= a.part[d].m.rows) {
    row -= a.part[d].m.rows;
    rows_before += a.part[d++].m.rows;
  }
  const kg_linear_part &part = a.part[d];
  const size_t at = (size_t)n * part.m.rows + row, run = (size_t)shape.n_rows * a.n;
  const float *sums = a.scratch + rows_before * a.n + at;
  const float4 none = make_float4(0, 0, 0, 0), residual = a.residual ? *(const float4 *)(a.residual + at) : none;
  float4 v = none;
#pragma unroll 4
  for (int i = 0; i < shape.n_runs; i++) v = add_four(v, *(const float4 *)(sums + i * run));
  v = scale_four(v, a.x_scale[n]);
  if (part.bias) v = add_four(v, *(const float4 *)(part.bias + row));
  if (a.residual) v = add_four(v, residual);
  *(float4 *)(a.out_rows ? a.out_rows[n] + row : part.out + at) = v;
}

template <int T, int D> static int launch(kg_stream *s, const kg_linear_args *a, kg_error *err)
{
  constexpr int TILES = 4 * GROUPS / D, shared = n_stages<T, D>() * stage_bytes<T, D>() + (int)EXCHANGE_BYTES;
  columns_shape shape = {};
  shape.n_columns = (a->n + COLUMNS - 1) / COLUMNS;
  shape.run = kg_cuda_linear_run(&a->part[0].m);
  shape.n_runs = 1;
  for (int i = 0; i < (D == 2 ? 1 : a->n_parts); i++) {
    shape.n_tasks += (a->part[i].m.n_tiles + TILES - 1) / TILES * shape.n_columns;
    shape.n_rows += a->part[i].m.rows;
  }
  const int n_runs = (a->part[0].m.n_blocks + shape.run - 1) / shape.run;
  const size_t wanted = (size_t)n_runs * (size_t)shape.n_rows * (size_t)a->n;
  if (D == 1 && wanted <= a->scratch_floats && 2 * shape.n_tasks < s->n_sms) shape.n_runs = n_runs;
  shape.n_tasks *= shape.n_runs;
  int code =
      kg_cuda_check(cudaFuncSetAttribute(linear_columns<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
                    "linear_columns", err);
  if (!code)
    code =
        run_kernel(s, "linear_columns", linear_columns<T, D>, dim3(shape.n_tasks < s->n_sms ? shape.n_tasks : s->n_sms),
                   CONSUMERS + 128, shared, err, *a, shape);
  if (code || shape.n_runs == 1) return code;
  return run_kernel(s, "join_runs", join_runs, dim3((shape.n_rows / 4 + 127) / 128, a->n), 128, 0, err, *a, shape);
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
