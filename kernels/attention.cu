/* attention.cu - attention over the paged cache.
 *
 * With an f16 cache, on tensor cores: a warp takes 16 rows, which are pairs of a position and a query head of one kv
 * head, through one split of 64 positions (attend_split): S = Q K^T, softmax, O = P V, float32 sums. Decoding spreads
 * the splits of one position over warps and blocks and joins them in order (attention_splits); prefill takes many pairs
 * through the splits in order (attention_tiles). The numbers of a row are the same bit for bit: its own split's
 * function is, a row of a product knows nothing of the other rows, and a split of which a row sees nothing changes
 * nothing.
 *
 * Values that are narrower than keys or a part of them, and wide heads, are in attention_wide.cu. A float32 cache, and
 * heads that are no multiple of 8 wide, have a plain kernel (attention_rows). */
#include "attention.cuh"
#include "half.cuh"

enum { WRITTEN = 128 /* channels of a head that a warp takes */ };

/* cache_write: grid: (kv heads of all rows / 4, parts of a head); block: 4 warps, one each. twin: attention in
 * cpu/reference.c; f16 rounding where the cache is f16. */
template <typename T>
static __global__ void __launch_bounds__(128) cache_write(const __grid_constant__ kg_attention_args a)
{
  wait_for_previous();
  const int index = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (index >= a.n * a.n_kv_heads) return;
  const int row = index / a.n_kv_heads, head = index - row * a.n_kv_heads, pos = a.positions[row];
  const float *from_k = a.k + (size_t)index * a.head_dim, *from_v = a.v + (size_t)index * a.value_dim;
  T *k = cache_row<T>(a, a.row_pages[row], head, 0, pos), *v = cache_row<T>(a, a.row_pages[row], head, 1, pos);
  const int first = blockIdx.y * WRITTEN, end = first + WRITTEN;
#pragma unroll 2
  for (int i = first / 2 + lane; i < min(end, a.head_dim + 1) / 2; i += 32)
    rotate_pair(find_pair(a.k_rotation, from_k, a.head_dim, row, i), a.head_dim,
                [&](int c, float x) { store(k + c, x); });
#pragma unroll 4
  for (int c = first + lane; a.v && c < min(end, a.value_dim); c += 32) store(v + c, from_v[c]);
}

/* Channels c and c + 1 of a head's result. */
static __device__ __forceinline__ void store_pair(const kg_attention_args &a, int row, int head, int c, float2 v)
{
  const int column = head * a.head_dim + c;
  if (a.out) *(float2 *)(a.out + (size_t)row * a.n_heads * a.head_dim + column) = v;
  if (!a.half_out.panels) return;
  *panel_pair(a.half_out.panels, a.n_heads * a.head_dim / KG_BLOCK_COLS, row, column) =
      __floats2half2_rn(v.x * a.half_out.up, v.y * a.half_out.up);
  if (!column) a.half_out.undo[row] = undo_scale(a.half_out.up);
}

/* ---- a split on tensor cores ---- */

/* Where fetch finds a split. Read from the table one split ahead, and not touched until then: that takes long. */
struct split_place {
  int pages, kv_head, split;
  const unsigned char *page; /* of its first position */
};

static __device__ __forceinline__ split_place find_split(const kg_attention_args &a, int pages, int kv_head, int split)
{
  return {pages, kv_head, split, a.pages[pages + split * SPLIT / KG_PAGE]};
}

/* WARPS warps fetch the keys (plane 0) or values (plane 1) of a split, heads of at most 64 P channels. Positions that
 * nobody has written yet come along: their pages exist and hold finite numbers. Positions from `end` on need not exist.
 */
template <int P, int WARPS>
static __device__ __forceinline__ void fetch(const kg_attention_args &a, const split_place &at, int plane, int end,
                                             int warp, int lane, const uint4 *out)
{
  constexpr int STEP = 4 * WARPS; /* rows at a time: 8 lanes each */
  const int row = warp * 4 + lane / 8, c = lane % 8;
  const unsigned to = shared_address(out + row * 8), here = (c ^ row % 8) * 16;
  if (KG_PAGE % SPLIT == 0 && a.head_dim == 64 * P) {
    const int first_row = (2 * at.kv_head + plane) * KG_PAGE + at.split * SPLIT % KG_PAGE + row;
    const __half *from = (const __half *)(at.page + a.layer_offset) + first_row * 64 * P + 8 * c;
#pragma unroll
    for (int p = 0; p < P; p++)
#pragma unroll
      for (int r = 0; r < SPLIT; r += STEP)
        copy_async(to + p * PANEL * 16 + r * 128 + (here ^ r % 8 * 16), from + r * 64 * P + 64 * p, true);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < P * SPLIT / STEP; i++) {
    const int r = i * STEP % SPLIT, channel = i * STEP / SPLIT * 64 + 8 * c, pos = at.split * SPLIT + row + r;
    const bool exists = pos < end && channel < a.head_dim;
    const __half *from = (const __half *)at.page;
    if (exists) from = cache_row<__half>(a, at.pages, at.kv_head, plane, pos) + channel;
    copy_async(to + i * STEP / SPLIT * PANEL * 16 + r * 128 + (here ^ r % 8 * 16), from, exists);
  }
}

/* What rows g and g + 8 of M tiles see, counted from the first position of the split. */
template <int M> struct sight {
  int first[M][2], last[M][2];
  bool is_partial; /* some row does not see the whole split */
};

/* Warps that take a split together: each 64 / TEAM of its positions for the scores, then as many of its channels. They
 * exchange largest scores and weights; alone (TEAM is 1) a warp needs nothing of this. */
struct team {
  int rank, barrier;
  float *tops;    /* shared, [TEAM][16] */
  uint4 *weights; /* shared, [4][32] */
};

template <int TEAM> static __device__ __forceinline__ void sync_team(const team &of)
{
  if (TEAM > 1) asm volatile("bar.sync %0, %1;" ::"r"(of.barrier), "n"(32 * TEAM) : "memory");
}

/* 16 M rows (8 where H is 1: rows g alone), a split, heads of at most 64 P channels.
 * prepare(top): scores are known, nobody in the team needs the keys, the largest are top[tile][h] of rows g + 8 h;
 * after it the values must be there. take(p, out): out[tile][i][2 h + e] of those rows, channel 64 p + 8 (i + rank * 8
 * / TEAM) + 2 t + e; at last take_sum(sum[tile][2 h]). */
template <int P, int M, int H, int TEAM, typename Prepare, typename Take, typename TakeSum>
static __device__ __forceinline__ void attend_split(const kg_attention_args &a, const uint4 *q, const uint4 *keys,
                                                    const uint4 *values, int lane, const team &of, const sight<M> &seen,
                                                    Prepare prepare, Take take, TakeSum take_sum)
{
  static_assert(TEAM == 1 || M == 1, "a team has one tile");
  constexpr int N = 8 / TEAM; /* tiles of 8 positions, or channels, of a warp */
  const int tile0 = TEAM > 1 ? of.rank * N : 0;
  const unsigned key_row = shared_address(keys) + lane % 8 * 128 + tile0 * 1024, chunk = (lane / 8 ^ lane % 8) * 16;
  float s[M][N][4] = {};
#pragma unroll
  for (int j = 0; j < 2 * P; j++) {
    if (j && 32 * j >= a.head_dim) break;
    uint4 k[N]; /* positions 8 n..., channels 32 j...: two steps */
#pragma unroll
    for (int n = 0; n < N; n++) k[n] = load_keys(key_row + j / 2 * PANEL * 16 + n * 1024 + (chunk ^ j % 2 * 64));
#pragma unroll
    for (int step = 0; step < 2; step++) {
      uint4 x[M];
#pragma unroll
      for (int m = 0; m < M; m++) x[m] = q[(m * 4 * P + 2 * j + step) * 32 + lane];
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int m = 0; m < M; m++) mma(s[m][n], x[m], step ? k[n].z : k[n].x, step ? k[n].w : k[n].y);
    }
  }

  float top[M][2];
  const float unit = a.softcap > 0 ? LOG2E : a.scale * LOG2E;
  if (a.softcap > 0) { /* tanh x = 1 - 2 / (e^2x + 1); what that loses near 0 is 1e-7 of the cap */
    const float uncap = 2 * LOG2E * a.scale / a.softcap;
#pragma unroll
    for (int i = 0; i < M * N * 2 * H; i++) {
      float &x = s[i / (N * 2 * H)][i / (2 * H) % N][i % (2 * H)];
      x = fmaf(-2 * a.softcap, reciprocal(exp_2(x * uncap) + 1), a.softcap);
    }
  }
  if (seen.is_partial) {
#pragma unroll
    for (int i = 0; i < M * N * 2 * H; i++) {
      const int m = i / (N * 2 * H), n = i / (2 * H) % N, h = i % (2 * H) / 2,
                at = (tile0 + n) * 8 + lane % 4 * 2 + i % 2;
      if (at < seen.first[m][h] || at > seen.last[m][h]) s[m][n][i % (2 * H)] = -CUDART_INF_F;
    }
  }
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < H; h++) {
      float max[2] = {-CUDART_INF_F, -CUDART_INF_F};
#pragma unroll
      for (int i = 0; i < 2 * N; i++) max[i % 2] = fmaxf(max[i % 2], s[m][i / 2][2 * h + i % 2]);
      max[0] = fmaxf(max[0], max[1]);
      max[0] = fmaxf(max[0], __shfl_xor_sync(~0u, max[0], 1));
      top[m][h] = fmaxf(max[0], __shfl_xor_sync(~0u, max[0], 2));
      if (TEAM > 1 && lane % 4 == 0) of.tops[of.rank * 16 + 8 * h + lane / 4] = top[m][h];
    }
  sync_team<TEAM>(of);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < H; h++) {
#pragma unroll
      for (int r = 0; r < TEAM && TEAM > 1; r++) top[m][h] = fmaxf(top[m][h], of.tops[r * 16 + 8 * h + lane / 4]);
      top[m][h] *= unit;
    }
  prepare(top);

  uint4 w[M][4]; /* the weights, as q: four steps of 16 positions */
#pragma unroll
  for (int m = 0; m < M; m++) {
    uint32_t own[N / 2][4] = {};
#pragma unroll
    for (int h = 0; h < H; h++) {
      const float base = top[m][h] == -CUDART_INF_F ? 0 : top[m][h];
#pragma unroll
      for (int n = 0; n < N; n++)
        own[n / 2][n % 2 * 2 + h] =
            half_pair(exp_2(fmaf(s[m][n][2 * h], unit, -base)), exp_2(fmaf(s[m][n][2 * h + 1], unit, -base)));
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      w[m][i] = make_uint4(own[i][0], own[i][1], own[i][2], own[i][3]);
      if (TEAM > 1) of.weights[(tile0 / 2 + i) * 32 + lane] = w[m][i];
    }
  }
  sync_team<TEAM>(of);
#pragma unroll
  for (int i = 0; i < 4 && TEAM > 1; i++) w[0][i] = of.weights[i * 32 + lane];

  const unsigned value_row = shared_address(values) + (lane / 8 % 2 * 8 + lane % 8) * 128;
  const unsigned value_chunk = (lane / 16 ^ lane % 8 ^ tile0) * 16;
  float sum[M][4] = {};
#pragma unroll
  for (int p = 0; p < P; p++) {
    if (p && 64 * p >= a.head_dim) break;
    float out[M][N][4] = {};
#pragma unroll
    for (int step = 0; step < 4; step++) {
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        const uint4 v = load_values(value_row + p * PANEL * 16 + step * 2048 + (value_chunk ^ i * 16));
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma(out[m][i], w[m][step], v.x, v.y);
          mma(out[m][i + 1], w[m][step], v.z, v.w);
        }
      }
      if (!p)
#pragma unroll
        for (int m = 0; m < M; m++) mma(sum[m], w[m][step], 0x3c003c00, 0x3c003c00); /* times ones */
    }
    take(p, out);
  }
  take_sum(sum);
}

/* ---- decode ---- */

/* Blocks of a cluster send each other numbers and count the bytes that came (Hopper and later; else clusters is 1).
 * Addresses are those of this block's shared memory; the other's are alike. */

/* All threads: the counter is ready in all blocks of the cluster. */
static __device__ __forceinline__ void open_counter(uint64_t *counter, int clusters)
{
#if __CUDA_ARCH__ >= 900
  if (clusters == 1) return;
  if (!threadIdx.x)
    asm volatile(
        "mbarrier.init.shared.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(shared_address(counter))
        : "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}

static __device__ __forceinline__ void expect_bytes(uint64_t *counter, int n_bytes)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(counter)), "r"(n_bytes)
               : "memory");
#endif
}

static __device__ __forceinline__ void wait_bytes(uint64_t *counter, int round)
{
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n\t.reg .pred done;\nagain:\n\tmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n\t@!done bra "
               "again;\n\t}" ::"r"(shared_address(counter)),
               "r"(round & 1)
               : "memory");
#endif
}

/* Numbers to a place in block `rank`. */
static __device__ __forceinline__ void send(float4 *to, float4 v, int rank, int clusters, uint64_t *counter)
{
#if __CUDA_ARCH__ >= 900
  if (clusters > 1) {
    asm volatile(
        "{\n\t.reg .b32 to, counter;\n\tmapa.shared::cluster.u32 to, %0, %2;\n\tmapa.shared::cluster.u32 counter, %1, "
        "%2;\n\t"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [counter];\n\t}" ::"r"(
            shared_address(to)),
        "r"(shared_address(counter)), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
        : "memory");
    return;
  }
#endif
  *to = v;
}

static __device__ __forceinline__ void sync_cluster(int clusters)
{
#if __CUDA_ARCH__ >= 900
  if (clusters > 1) {
    asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

/* Shared memory of attention_splits, in units of 16 bytes. A unit is 64 channels of a head; units go round the blocks
 * of a cluster. */
struct splits_layout {
  int counter, q, fresh, teams, cache, cache_of_team, partials, states, shares, end;
};

enum {
  SMALL_TEAMS = 10, /* most teams of two warps */
  TEAM_ROOM = 4 * 32 + 16,
  PARTIAL = 17 /* 64 channels, top and sum of a unit in a split */,
  STATE = 17
};

static __host__ __device__ __forceinline__ splits_layout lay_out_splits(int all_units, int pieces, int teams,
                                                                        int cluster_bits)
{
  const int clusters = 1 << cluster_bits, n_units = (all_units + clusters - 1) >> cluster_bits;
  splits_layout l;
  l.counter = 0;
  l.q = 1;
  l.fresh = l.q + 4 * pieces * 32; /* the row's own key and value, [2][64 pieces] */
  l.teams = l.fresh + 2 * 8 * pieces;
  l.cache = (l.teams + teams * TEAM_ROOM + 7) / 8 * 8;
  l.cache_of_team = 2 * pieces * PANEL;
  l.partials = l.cache + teams * l.cache_of_team;
  l.states = l.partials + n_units * teams * clusters * PARTIAL;
  l.shares = l.states + n_units * STATE;
  l.end = l.shares + n_units * KG_ATTENTION_SPREAD;
  return l;
}

/* attention_splits: up to 8 H query heads of one kv head of one row.
 * grid: (clusters * kv heads * groups of 16 query heads, rows), clusters blocks work together; block: TEAM warps per
 * split. moves keys and values once. twin: attend in cpu/reference.c; tolerance: f16 rounding of q, of the weights and,
 * where it is not in the cache, of the row's own key and value. */
template <int P, int H, int TEAM>
static __global__ void __launch_bounds__(TEAM == 4 ? 1024 / P : 32 * TEAM * SMALL_TEAMS, 1)
    attention_splits(const __grid_constant__ kg_attention_args a, int cluster_bits)
{
  extern __shared__ uint4 shared[];
  read_arguments(a);
  const int clusters = 1 << cluster_bits, warp = threadIdx.x / 32, warps = blockDim.x / 32, teams = warps / TEAM;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, team_index = warp / TEAM;
  const int group = a.n_heads / a.n_kv_heads, parts = (group + TILE - 1) / TILE, rank = blockIdx.x & (clusters - 1);
  const int kv_head = (blockIdx.x >> cluster_bits) / parts, part = (blockIdx.x >> cluster_bits) - kv_head * parts;
  const int head0 = kv_head * group + part * TILE, n_heads = min(TILE, group - part * TILE);
  const int row = a.is_alone ? blockIdx.y : a.few[blockIdx.y], pos = a.lasts[row], pages = a.row_pages[row];
  const int first = first_seen(a, pos), split0 = first / SPLIT, split1 = pos / SPLIT, stride = teams * clusters;
  const bool has_last = ((split1 - split0) / (unsigned)teams & (clusters - 1)) == rank;
  const int pieces = P < 4 ? P : (a.head_dim + 63) / 64, n_units = n_heads * pieces; /* 64 channels of a head */
  const splits_layout at = lay_out_splits(min(TILE, group) * pieces, P, teams, cluster_bits);
  uint4 *const keys = shared + at.cache + team_index * at.cache_of_team, *const values = keys + at.cache_of_team / 2;
  uint4 *const room = shared + at.teams + team_index * TEAM_ROOM;
  const team own_team = {warp % TEAM, 1 + team_index, (float *)(room + 4 * 32), room};
  float4 *const partials = (float4 *)(shared + at.partials); /* [units of this block][splits of a round][PARTIAL] */
  uint64_t *const counter = (uint64_t *)(shared + at.counter);

  /* What earlier steps wrote can come before the kernel before this one is done. */
  auto find = [&](int split) { return find_split(a, pages, kv_head, min(split, split1)); };
  auto fetch_plane = [&](int plane, const split_place &place, int split) {
    if (split <= split1) fetch<P, TEAM>(a, place, plane, pos + 1, own_team.rank, lane, plane ? values : keys);
    commit_copies();
  };
  int split = split0 + rank * teams + team_index;
  split_place place = find(split);
  if (!a.is_alone) await_previous();
  fetch_plane(0, place, split);
  fetch_plane(1, place, split);
  for (int i = threadIdx.x; i < 4 * P * 32; i += blockDim.x) shared[at.q + i] = make_uint4(0, 0, 0, 0);
  open_counter(counter, clusters);
  __syncthreads();

  /* q to f16, turned; the row's own key and value, which count as row n_heads. */
  const bool has_fresh = a.is_alone && has_last;
  const size_t own_row = ((size_t)row * a.n_kv_heads + kv_head) * a.head_dim;
  auto find_channels = [&](int i) {
    const int h = i / P, pair = min(i % P * 32 + lane, a.head_dim / 2 - 1);
    if (h == n_heads) return find_pair(a.k_rotation, a.k + own_row, a.head_dim, row, pair);
    return find_pair(a.q_rotation, a.q + ((size_t)row * a.n_heads + head0 + h) * a.head_dim, a.head_dim, row, pair);
  };
  channel_pair pair = find_channels(warp);
  __half *const q_halves = (__half *)(shared + at.q), *const fresh_halves = (__half *)(shared + at.fresh);
  if (a.is_alone) await_previous();
  let_next_start(); /* as in linear_tile.cuh */
#pragma unroll 1
  for (int i = warp; i < (n_heads + has_fresh) * P; i += warps) {
    const int h = i / P, c = 2 * min(i % P * 32 + lane, a.head_dim / 2 - 1);
    float2 value = make_float2(0, 0);
    if (h == n_heads) value = *(const float2 *)(a.v + own_row + c);
    if (i > warp) pair = find_channels(i);
    rotate_pair(pair, a.head_dim, [&](int channel, float x) {
      store(h == n_heads ? fresh_halves + channel : q_halves + query_at(h, 0) + query_at(0, channel), x);
    });
    if (h < n_heads) continue;
    store(fresh_halves + 64 * P + c, value.x);
    store(fresh_halves + 64 * P + c + 1, value.y);
  }
  __syncthreads();
  const uint4 *const fresh = shared + at.fresh;
  if (has_fresh && !part && threadIdx.x < a.head_dim / 4u) {
    const unsigned plane = threadIdx.x >= a.head_dim / 8u, c = threadIdx.x - (plane ? a.head_dim / 8u : 0);
    ((uint4 *)cache_row<__half>(a, pages, kv_head, plane, pos))[c] = fresh[plane * 8 * P + c];
  }

  float2 *const states = (float2 *)(shared + at.states);
  float largest = 0;
#pragma unroll 1
  for (int round = 0, base = split0; base <= split1; round++, base += stride, split += stride) {
    const int own = pos - split * SPLIT;
    if (split <= split1) {
      place = find(split + stride);
      sight<1> seen;
      seen.first[0][0] = seen.first[0][1] = first - split * SPLIT;
      seen.last[0][0] = seen.last[0][1] = own;
      seen.is_partial = seen.first[0][0] > 0 || own < SPLIT - 1;
      /* The row's own key and value instead of what stands in the cache: by the threads that copied that. */
      const bool patches = has_fresh && own < SPLIT && own / 4 % TEAM == own_team.rank && own % 4 == lane / 8;
      auto patch = [&](int plane) {
        for (int c = lane % 8; patches && 8 * c < a.head_dim; c += 8)
          (plane ? values : keys)[c / 8 * PANEL + own * 8 + (c % 8 ^ own % 8)] = fresh[plane * 8 * P + c];
      };
      wait_copies<1>();
      patch(0);
      sync_team<TEAM>(own_team);
      float own_top[2];
      auto prepare = [&](float(&top)[1][2]) {
        fetch_plane(0, place, split + stride);
        wait_copies<1>();
        patch(1);
        own_top[0] = top[0][0];
        own_top[1] = top[0][H - 1];
      };
      const int slot = rank * teams + team_index;
      auto to_unit = [&](int unit, int i, float4 v) {
        send(partials + ((unit >> cluster_bits) * stride + slot) * PARTIAL + i, v, unit & (clusters - 1), clusters,
             counter);
      };
      auto take = [&](int p, const float(&out)[1][8 / TEAM][4]) {
        constexpr int EACH = 4 / TEAM; /* pairs of tiles */
#pragma unroll
        for (int i = 0; i < H * EACH; i++) {
          const int h = i / EACH, j = i % EACH;
          if (g + 8 * h < n_heads)
            to_unit((g + 8 * h) * pieces + p, (own_team.rank * EACH + j) * 4 + t,
                    make_float4(out[0][2 * j][2 * h], out[0][2 * j][2 * h + 1], out[0][2 * j + 1][2 * h],
                                out[0][2 * j + 1][2 * h + 1]));
        }
      };
      auto take_sum = [&](const float(&sum)[1][4]) {
#pragma unroll
        for (int i = 0; i < H * P; i++)
          if (!own_team.rank && !t && g + i / P * 8 < n_heads && i % P < pieces)
            to_unit((g + i / P * 8) * pieces + i % P, 16, make_float4(own_top[i / P], sum[0][i / P * 2], 0, 0));
      };
      attend_split<P, 1, H, TEAM>(a, shared + at.q, keys, values, lane, own_team, seen, prepare, take, take_sum);
    } else
      for (int i = 0; i < 3; i++) sync_team<TEAM>(own_team); /* as often as the others: racecheck counts */
    const int n = min(stride, split1 - base + 1);
    const bool is_last = base + stride > split1;
    if (!is_last) {
      sync_team<TEAM>(own_team);
      fetch_plane(1, place, split + stride);
    }
    if (clusters == 1)
      __syncthreads();
    else if (rank < n_units) {
      if (!threadIdx.x)
        expect_bytes(counter, ((n_units - rank + clusters - 1) >> cluster_bits) * n * PARTIAL * (int)sizeof(float4));
      wait_bytes(counter, round);
    }
#pragma unroll 1
    for (int unit = rank + clusters * warp; unit < n_units; unit += clusters * warps) {
      const int h = unit / pieces,
                c = (unit - h * pieces) * 64 + lane / 8 * 16 + lane % 2 * 8 + lane / 2 % 4 * 2; /* as sent */
      const float *const in = (const float *)(partials + (unit >> cluster_bits) * stride * PARTIAL);
      float2 *const state = states + (unit >> cluster_bits) * STATE * 2;
      float4 *const shares = (float4 *)(shared + at.shares) + (unit >> cluster_bits) * KG_ATTENTION_SPREAD;
      float2 out = make_float2(0, 0); /* two channels a lane */
      float top = -CUDART_INF_F, sum = 0;
      if (base > split0) {
        out = state[lane];
        top = state[32].x;
        sum = state[32].y;
      }
      for (int s0 = 0; s0 < n; s0 += 32) { /* what the splits are multiplied by: each lane one of them */
        const float *own = in + min(s0 + lane, n - 1) * 4 * PARTIAL + 64;
        float all = own[0];
#pragma unroll 1
        for (int step = 1; step < 32 && step < n; step *= 2)
          all = fmaxf(all, __shfl_up_sync(~0u, all, step)); /* the first get their own */
        all = fmaxf(all, top);
        const float before = __shfl_up_sync(~0u, all, 1);
        const factors f = join_factors(lane ? before : top, own[0]);
        shares[s0 + lane] = make_float4(f.all, f.next, own[1], 0);
        top = __shfl_sync(~0u, f.top, min(31, n - 1 - s0));
      }
      __syncwarp();
#pragma unroll 8
      for (int s = 0; s < n; s++) {
        const float4 share = shares[s];
        const float2 next = ((const float2 *)(in + s * 4 * PARTIAL))[lane];
        sum = fmaf(share.z, share.y, sum * share.x);
        out.x = fmaf(next.x, share.y, out.x * share.x);
        out.y = fmaf(next.y, share.y, out.y * share.x);
      }
      __syncwarp();
      if (is_last) {
        const float factor = last_factor(top, sum, a.sinks, head0 + h);
        out = make_float2(out.x * factor, out.y * factor);
        if (c >= a.head_dim) continue;
        store_pair(a, row, head0 + h, c, out);
        largest = fmaxf(largest, fmaxf(fabsf(out.x), fabsf(out.y)));
      } else {
        state[lane] = out;
        if (!lane) state[32] = make_float2(top, sum);
      }
    }
    if (!is_last) sync_cluster(clusters); /* the next round writes its partials to the same place */
  }
  if (!a.out_max) return;
  largest = warp_max(largest);
  if (!lane) raise_max(a.out_max + row, largest);
}

/* ---- prefill ---- */

/* attention_tiles: pairs (position, query head) of one kv head, positions first, of one span.
 * grid: tiles of all spans * kv heads, the last first, because they see most, and every second row of blocks backwards,
 * so that each of the processors gets as much; block: WARPS warps of 16 M pairs, BLOCKS on a processor; shared: q, and
 * two splits of keys and values. moves the keys and values of all splits that its pairs see, from L2. twin: as
 * attention_splits, to which it is equal bit for bit. */
template <int P, int M, int WARPS, int BLOCKS>
static __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    attention_tiles(const __grid_constant__ kg_attention_args a, int processors)
{
  extern __shared__ uint4 shared[];
  constexpr int ROWS = TILE * M * WARPS, Q_CHUNKS = 4 * P * M * WARPS, SIDE = P * PANEL;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group = a.n_heads / a.n_kv_heads, wave = blockIdx.x / processors * processors;
  const int left = min((int)gridDim.x - wave, processors), place_in_wave = blockIdx.x - wave;
  const int order = wave + (wave / processors % 2 ? left - 1 - place_in_wave : place_in_wave),
            kv_head = order % a.n_kv_heads;
  int tile = (gridDim.x - 1 - order) / a.n_kv_heads, row0 = 0, n_pairs = 0;
  for (int s = 0; s < a.n_spans; s++) {
    row0 = a.spans[2 * s];
    n_pairs = a.spans[2 * s + 1] * group;
    const int n_tiles = (n_pairs + ROWS - 1) / ROWS;
    if (tile < n_tiles) break;
    tile -= n_tiles;
    n_pairs = 0;
  }
  await_previous(); /* blocks of the next kernel would upset the shares of the processors */
  if (!n_pairs) return;
  const int pair0 = tile * ROWS, pair1 = min(pair0 + ROWS, n_pairs); /* of the block */
  const int warp0 = pair0 + warp * TILE * M, warp1 = min(warp0 + TILE * M, n_pairs);
  /* What a pair sees: a span's positions are consecutive, and where rows look both ways all see the last of them. */
  const int pos0 = a.positions[row0], least = a.lasts[row0];
  auto sees = [&](int pair) { return max(pos0 + pair / group, least); };
  const int pages = a.row_pages[row0];

  uint4 *const cache = shared + Q_CHUNKS * 32; /* [2] keys, values */
  const int first = first_seen(a, sees(pair0)), last = sees(pair1 - 1);
  split_place place = find_split(a, pages, kv_head, first / SPLIT);
  auto fetch_next = [&]() {
    uint4 *to = cache + (place.split & 1) * 2 * SIDE;
    if (place.split <= last / SPLIT) {
      fetch<P, WARPS>(a, place, 0, last + 1, warp, lane, to);
      fetch<P, WARPS>(a, place, 1, last + 1, warp, lane, to + SIDE);
    }
    commit_copies();
    const int next = place.split + 1;
    if (next <= last / SPLIT) place = find_split(a, pages, kv_head, next);
    place.split = next;
  };
  fetch_next();

  uint4 *const q = shared + warp * 4 * P * M * 32;
  if (a.head_dim % 32)
    for (int i = lane; i < 4 * P * M * 32; i += 32) q[i] = make_uint4(0, 0, 0, 0);
  __syncwarp();
  static_assert(TILE * M <= 32, "a lane knows each row of its warp");
  const int pair_of_lane = min(warp0 + lane, n_pairs - 1); /* rows that do not exist are copies */
  const int row_of_lane = row0 + pair_of_lane / group, head_of_lane = kv_head * group + pair_of_lane % group;
#pragma unroll 8
  for (int i = 0; i < TILE * M * P; i++) {
    const int r = i / P, row = __shfl_sync(~0u, row_of_lane, r), head = __shfl_sync(~0u, head_of_lane, r);
    __half *to = (__half *)(q + r / TILE * 4 * P * 32) + query_at(r % TILE, 0);
    const float *from = a.q + ((size_t)row * a.n_heads + head) * a.head_dim;
    rotate_pair(find_pair(a.q_rotation, from, a.head_dim, row, min(i % P * 32 + lane, a.head_dim / 2 - 1)), a.head_dim,
                [&](int c, float x) { store(to + query_at(0, c), x); });
  }
  __syncwarp();

  float top[M][2], sum[M][2] = {}, out[P][M][8][4] = {};
  int row_pos[M][2];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[m][h] = -CUDART_INF_F;
      row_pos[m][h] = sees(warp0 + TILE * m + g + 8 * h);
    }
  const int all_see = sees(warp0), warp_first = first_seen(a, all_see), warp_last = sees(warp1 - 1);

#pragma unroll 1
  for (int split = first / SPLIT; split <= last / SPLIT; split++) {
    const int begin = split * SPLIT;
    fetch_next();
    wait_copies<1>();
    __syncthreads();
    if (warp0 < warp1 && begin <= warp_last && begin + SPLIT > warp_first) {
      sight<M> seen;
      seen.is_partial = begin + SPLIT - 1 > all_see || begin < first_seen(a, warp_last);
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          seen.first[m][h] = first_seen(a, row_pos[m][h]) - begin;
          seen.last[m][h] = row_pos[m][h] - begin;
        }
      float next_factor[M][2];
      auto prepare = [&](float(&next)[M][2]) {
        bool rises = false;
        float all_factor[M][2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const factors f = join_factors(top[m][h], next[m][h]);
            top[m][h] = f.top;
            all_factor[m][h] = f.all;
            next_factor[m][h] = f.next;
            rises = rises || f.all != 1;
          }
        if (!__any_sync(~0u, rises)) return;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            sum[m][h] *= all_factor[m][h];
#pragma unroll
            for (int i = 0; i < 16 * P; i++) out[i / 16][m][i / 2 % 8][2 * h + i % 2] *= all_factor[m][h];
          }
      };
      auto take_sum = [&](const float(&next)[M][4]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int h = 0; h < 2; h++) sum[m][h] = fmaf(next[m][2 * h], next_factor[m][h], sum[m][h]);
      };
      auto take = [&](int p, const float(&next)[M][8][4]) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
          for (int i = 0; i < 32; i++)
            out[p][m][i / 4][i % 4] = fmaf(next[m][i / 4][i % 4], next_factor[m][i % 4 / 2], out[p][m][i / 4][i % 4]);
      };
      attend_split<P, M, 2, 1>(a, q, cache + (split & 1) * 2 * SIDE, cache + (split & 1) * 2 * SIDE + SIDE, lane,
                               team(), seen, prepare, take, take_sum);
    }
    __syncthreads();
  }

#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int pair = warp0 + TILE * m + g + 8 * h, row = row0 + pair / group, head = kv_head * group + pair % group;
      float largest = 0;
      if (pair < n_pairs) {
        const float factor = last_factor(top[m][h], sum[m][h], a.sinks, head);
#pragma unroll
        for (int i = 0; i < 8 * P; i++) {
          const int c = 8 * i + 2 * t;
          if (c >= a.head_dim) continue;
          const float2 v = make_float2(out[i / 8][m][i % 8][2 * h] * factor, out[i / 8][m][i % 8][2 * h + 1] * factor);
          store_pair(a, row, head, c, v);
          largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
        }
      }
      if (!a.out_max) continue;
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      if (!t && pair < n_pairs) raise_max(a.out_max + row, largest);
    }
}

/* ---- without tensor cores ---- */

enum { HEADS = 8, THREADS = 128 };

/* attention_rows: up to 8 query heads of one kv head of one row, split after split.
 * grid: (kv heads * groups of 8 query heads, rows, parts of 32 NC channels of values); block: 4 warps, two heads each,
 * NC channels a lane; shared: q [8][head_dim]. float32 sums. twin: attend in cpu/reference.c. */
template <typename T, int NC>
static __global__ void __launch_bounds__(THREADS) attention_rows(const __grid_constant__ kg_attention_args a)
{
  extern __shared__ float q_rows[];
  __shared__ float scores[HEADS][SPLIT];
  wait_for_previous();
  const int group = a.n_heads / a.n_kv_heads, parts = (group + HEADS - 1) / HEADS;
  const int kv_head = blockIdx.x / parts, part = blockIdx.x % parts, head0 = kv_head * group + part * HEADS;
  const int n_heads = min(HEADS, group - part * HEADS), row = blockIdx.y, pos = a.lasts[row],
            pages = a.row_pages[row];
  const int first = first_seen(a, pos), warp = threadIdx.x / 32, lane = threadIdx.x % 32,
            half_dim = (a.head_dim + 1) / 2, channel = blockIdx.z * 32 * NC + lane;
  const float unit = a.softcap > 0 ? LOG2E : a.scale * LOG2E;
  for (int i = threadIdx.x; i < n_heads * half_dim; i += THREADS) {
    const int h = i / half_dim;
    const float *from = a.q + ((size_t)row * a.n_heads + head0 + h) * a.head_dim;
    rotate_pair(find_pair(a.q_rotation, from, a.head_dim, row, i - h * half_dim), a.head_dim,
                [&](int c, float x) { q_rows[h * a.head_dim + c] = x; });
  }
  float top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {}, out[2][NC] = {};
  for (int split = first / SPLIT; split <= pos / SPLIT; split++) {
    const int begin = max(first, split * SPLIT), end = min(pos + 1, (split + 1) * SPLIT);
    __syncthreads();
    for (int i = threadIdx.x; i < n_heads * SPLIT; i += THREADS) {
      const int h = i / SPLIT, p = split * SPLIT + i % SPLIT;
      float dot = 0;
      if (p >= begin && p < end) {
        const T *key = cache_row<T>(a, pages, kv_head, 0, p);
        for (int c = 0; c < a.head_dim; c++) dot = fmaf(q_rows[h * a.head_dim + c], (float)key[c], dot);
        if (a.softcap > 0) dot = a.softcap * tanhf(dot * a.scale / a.softcap);
      } else
        dot = -CUDART_INF_F;
      scores[h][i % SPLIT] = dot * unit;
    }
    __syncthreads();
    for (int i = 0; i < 2; i++) {
      const int h = warp + 4 * i;
      if (h >= n_heads) continue;
      const float s0 = scores[h][lane], s1 = scores[h][lane + 32];
      const factors f = join_factors(top[i], warp_max(fmaxf(s0, s1)));
      const float base = f.top == -CUDART_INF_F ? 0 : f.top, w0 = exp_2(s0 - base), w1 = exp_2(s1 - base);
      __syncwarp();
      scores[h][lane] = w0;
      scores[h][lane + 32] = w1;
      __syncwarp();
      top[i] = f.top;
      sum[i] = fmaf(sum[i], f.all, warp_sum(w0 + w1));
#pragma unroll
      for (int c = 0; c < NC; c++) out[i][c] *= f.all;
      for (int p = begin; p < end; p++) {
        const T *value = cache_row<T>(a, pages, kv_head, a.v != NULL, p) + channel;
#pragma unroll
        for (int c = 0; c < NC; c++)
          if (channel + 32 * c < a.value_dim)
            out[i][c] = fmaf(scores[h][p - split * SPLIT], (float)value[32 * c], out[i][c]);
      }
    }
  }
  float largest = 0;
  for (int i = 0; i < 2; i++) {
    const int head = head0 + warp + 4 * i;
    if (warp + 4 * i >= n_heads) continue;
    const float factor = last_factor(top[i], sum[i], a.sinks, head);
#pragma unroll
    for (int c = 0; c < NC; c++) {
      if (channel + 32 * c >= a.value_dim) continue;
      const float value = out[i][c] * factor;
      a.out[((size_t)row * a.n_heads + head) * a.value_dim + channel + 32 * c] = value;
      largest = fmaxf(largest, fabsf(value));
    }
  }
  if (!a.out_max) return;
  largest = warp_max(largest);
  if (!lane) raise_max(a.out_max + row, largest);
}

/* ---- launching ---- */

static int write_cache(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  return run_kernel(s, "cache_write", a->half ? cache_write<__half> : cache_write<float>,
                    dim3((a->n * a->n_kv_heads + 3) / 4, (max(a->head_dim, a->value_dim) + WRITTEN - 1) / WRITTEN), 128,
                    0, err, *a);
}

template <typename T> static int launch_rows(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  const dim3 grid(a->n_kv_heads * ((a->n_heads / a->n_kv_heads + HEADS - 1) / HEADS), a->n, (a->value_dim + 255) / 256);
  const size_t shared = HEADS * (size_t)a->head_dim * sizeof(float);
  const auto kernel = a->value_dim <= 64    ? attention_rows<T, 2>
                      : a->value_dim <= 128 ? attention_rows<T, 4>
                                            : attention_rows<T, 8>;
  return run_kernel(s, "attention_rows", kernel, grid, THREADS, shared, err, *a);
}

/* Shared memory of a block of attention_splits. */
template <int P> static size_t splits_bytes(const kg_attention_args *a, int teams, int cluster_bits)
{
  const int pieces = P < 4 ? P : (a->head_dim + 63) / 64, n_heads = min(TILE, a->n_heads / a->n_kv_heads);
  return (size_t)lay_out_splits(n_heads * pieces, P, teams, cluster_bits).end * sizeof(uint4);
}

template <int P, int TEAM>
static int launch_teams(kg_stream *s, const kg_attention_args *a, int teams, int cluster_bits, kg_error *err)
{
  const int group = a->n_heads / a->n_kv_heads, parts = (group + TILE - 1) / TILE;
  const dim3 grid(a->n_kv_heads * parts << cluster_bits, a->is_alone ? a->n : a->n_few);
  return run_shared(s, "attention_splits", group > 8 ? attention_splits<P, 2, TEAM> : attention_splits<P, 1, TEAM>,
                    grid, 1 << cluster_bits, 32 * TEAM * teams, splits_bytes<P>(a, teams, cluster_bits), err, *a,
                    cluster_bits);
}

/* How many warps and blocks share a row changes nothing but time. */
template <int P> static int launch_splits(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  const int group = a->n_heads / a->n_kv_heads, parts = (group + TILE - 1) / TILE,
            n_rows = a->is_alone ? a->n : a->n_few;
  const int n_splits = a->window ? min(a->max_splits, a->window / SPLIT + 2) : a->max_splits;
  const int64_t n_units = (int64_t)n_rows * a->n_kv_heads * parts;
  int teams = 8 / P, bits = 0;
  const auto shared = [&]() { return splits_bytes<P>(a, teams, bits); };
  if constexpr (P == 1)
    /* A block for each row and head fills the device: small teams, so many that all splits are computed in one
     * round. */
    if (n_units > s->n_sms / 2 && n_units <= s->n_sms) {
      teams = min(SMALL_TEAMS, n_splits);
      while (teams > 1 && shared() > (size_t)s->shared_max) teams--;
      return launch_teams<P, 2>(s, a, teams, bits, err);
    }
  while (s->overlaps && bits < 3 && 2 << bits < n_splits && n_units << (bits + 1) <= s->n_sms) bits++;
  while (teams > 1 && shared() > (size_t)s->shared_max) teams /= 2;
  while (teams > 2 && teams << bits >= 2 * n_splits) teams /= 2;
  /* Where blocks or their clusters fill the device, two of them share a processor. */
  const bool is_full = bits ? n_units << bits > s->n_sms / 2 : n_units > s->n_sms;
  while (is_full && teams > 2 && 2 * (shared() + 1024) > (size_t)s->shared_max) teams /= 2;
  return launch_teams<P, 4>(s, a, teams, bits, err);
}

template <int P, int M, int WARPS, int BLOCKS> struct tiles {
  static constexpr int ROWS = TILE * M * WARPS;
  static constexpr size_t SHARED = (4 * P * M * WARPS + 64 * P) * 32 * sizeof(uint4);

  static int launch(kg_stream *s, const kg_attention_args *a, kg_error *err)
  {
    const int64_t most =
        (int64_t)a->span_rows * (a->n_heads / a->n_kv_heads) / ROWS + a->n_spans; /* blocks that find nothing leave */
    return run_shared(s, "attention_tiles", attention_tiles<P, M, WARPS, BLOCKS>, dim3((unsigned)most * a->n_kv_heads),
                      1, 32 * WARPS, SHARED, err, *a, s->n_sms);
  }
};

template <int P, typename Tiles> static int launch_products(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  /* Where one of the two does not fit, none of them, so that all rows have the same numbers. */
  if (max((size_t)Tiles::SHARED, splits_bytes<P>(a, 1, 0)) > (size_t)s->shared_max) {
    const int code = write_cache(s, a, err);
    return code ? code : launch_rows<__half>(s, a, err);
  }
  int code = a->is_alone ? KG_OK : write_cache(s, a, err);
  if (!code && (a->is_alone || a->n_few)) code = launch_splits<P>(s, a, err);
  if (!code && !a->is_alone && a->n_spans) code = Tiles::launch(s, a, err);
  return code;
}

int kg_cuda_attention(kg_stream *s, const kg_attention_args *a, kg_error *err)
{
  if (a->n < 1 || a->n > 65535 || a->head_dim < 1 || a->head_dim > KG_ATTENTION_MAX_DIM || a->value_dim < 1 ||
      a->value_dim > KG_ATTENTION_MAX_DIM)
    return kg_fail(err, KG_ERR_ARGUMENT, "attention of %d rows, heads of %d, values of %d", a->n, a->head_dim,
                   a->value_dim);
  if (kg_cuda_attention_is_even(a)) {
    if (a->head_dim <= 64) return launch_products<1, tiles<1, 1, 4, 3>>(s, a, err);
    if (a->head_dim <= 128) return launch_products<2, tiles<2, 1, 4, 2>>(s, a, err);
    return launch_products<4, tiles<4, 1, 4, 1>>(s, a, err);
  }
  const int code = write_cache(s, a, err);
  if (code) return code;
  if (kg_cuda_attention_is_wide(s, a)) return kg_cuda_attention_wide(s, a, err);
  return a->half ? launch_rows<__half>(s, a, err) : launch_rows<float>(s, a, err);
}
