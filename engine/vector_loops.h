/* vector_loops.h - the body of vector.c for one instruction set; included once for each. The includer defines LANES
 * (floats in a register), NAME of the variant, and FN(name), which makes names unique. No guard: not for use
 * elsewhere. */

enum { FN(PARTS) = KG_VECTOR_BLOCK / LANES };

typedef float FN(vf) __attribute__((vector_size(LANES * 4)));
typedef int32_t FN(vi) __attribute__((vector_size(LANES * 4)));
typedef uint32_t FN(vu) __attribute__((vector_size(LANES * 4))); /* where bits may wrap around */
typedef double FN(vd) __attribute__((vector_size(LANES * 8)));
typedef uint64_t FN(vq) __attribute__((vector_size(LANES * 8)));

#define vf FN(vf)
#define vi FN(vi)
#define vu FN(vu)
#define vd FN(vd)
#define vq FN(vq)
#define EACH_PART _Pragma("GCC unroll 8") for (int part = 0; part < FN(PARTS); part++)

static inline vf FN(load)(const float *x)
{
  vf v;
  memcpy(&v, x, sizeof v);
  return v;
}

static inline void FN(store)(float *x, vf v)
{
  memcpy(x, &v, sizeof v);
}

static inline vf FN(splat)(float value)
{
  return value - (vf){0}; /* not value + 0: that would turn -0 into +0 */
}

static inline vf FN(masked)(vi mask, vf v)
{
  return (vf)(mask & (vi)v);
}

static inline vf FN(choose)(vi mask, vf yes, vf no)
{
  return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* Where the last block is short: a copy of it, padded. Returns the address of 32 floats. */
static inline const float *FN(block)(const float *x, int64_t at, int64_t n, float pad, float room[KG_VECTOR_BLOCK])
{
  if (n - at >= KG_VECTOR_BLOCK) return x + at;
  for (int i = 0; i < KG_VECTOR_BLOCK; i++) room[i] = at + i < n ? x[at + i] : pad;
  return room;
}

static inline float FN(tree_sum)(const vf acc[FN(PARTS)])
{
  float lanes[KG_VECTOR_BLOCK];
  memcpy(lanes, acc, sizeof lanes);
  for (int half = KG_VECTOR_BLOCK / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

/* e^x for x <= 0, within 2 ulp: 2^n * e^r with |r| <= ln(2) / 2; the coefficients are those of Moshier's Cephes. */
static inline vf FN(exp)(vf x)
{
  const vf shifted = x * 1.44269504088896341f + 12582912.0f; /* + 1.5 * 2^23 leaves an integer in the low bits */
  const vf n = shifted - 12582912.0f;
  const vf r = x - n * 0.693359375f - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const vf power = (vf)(((vu)shifted << 23) + 0x3f800000u);
  return FN(masked)(~(x < -86.5f), p * power); /* below, 2^n would leave the normal numbers; a NaN stays */
}

/* log(x) for normal x > 0, within 2 ulp: e * ln(2) + log(m) with m in [sqrt(1/2), sqrt(2)); coefficients as above. */
static inline vf FN(log)(vf x)
{
  const vi from_root = (vi)((vu)x - 0x3f3504f3u);
  const vf e = __builtin_convertvector(from_root >> 23, vf);
  const vf m = (vf)((from_root & 0x7fffff) + 0x3f3504f3) - 1.0f;
  const vf square = m * m;
  vf p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * square + e * -2.12194440e-4f - square * 0.5f;
  return m + p + e * 0.693359375f;
}

/* ---- elementwise: order does not matter, the tail is scalar ---- */

static void FN(fill)(float *x, int64_t n, float value)
{
  for (int64_t i = 0; i < n; i++) x[i] = value;
}

static void FN(affine)(float *x, int64_t n, float factor, float offset)
{
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) FN(store)(x + i, FN(load)(x + i) * factor + offset);
  for (; i < n; i++) x[i] = x[i] * factor + offset;
}

static void FN(scale)(float *x, int64_t n, float factor)
{
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) FN(store)(x + i, FN(load)(x + i) * factor);
  for (; i < n; i++) x[i] *= factor;
}

static void FN(scale_or_affine)(float *x, int64_t n, float factor, float offset)
{
  if (offset == 0.0f && !signbit(offset))
    FN(scale)(x, n, factor);
  else
    FN(affine)(x, n, factor, offset);
}

static void FN(divide)(float *x, int64_t n, float divisor)
{
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) FN(store)(x + i, FN(load)(x + i) / divisor);
  for (; i < n; i++) x[i] /= divisor;
}

static void FN(add)(float *x, const float *o, int64_t n, float factor)
{
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) FN(store)(x + i, FN(load)(x + i) + FN(load)(o + i) * factor);
  for (; i < n; i++) x[i] += o[i] * factor;
}

static void FN(mul)(float *x, const float *o, int64_t n)
{
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) FN(store)(x + i, FN(load)(x + i) * FN(load)(o + i));
  for (; i < n; i++) x[i] *= o[i];
}

/* ---- reductions ---- */

static float FN(max)(const float *x, int64_t n)
{
  vf acc[FN(PARTS)];
  float room[KG_VECTOR_BLOCK];
  EACH_PART acc[part] = FN(splat)(-INFINITY);
  for (int64_t at = 0; at < n; at += KG_VECTOR_BLOCK) {
    const float *block = FN(block)(x, at, n, -INFINITY, room);
    EACH_PART
    {
      const vf v = FN(load)(block + part * LANES);
      acc[part] = FN(choose)(v > acc[part], v, acc[part]); /* false for a NaN */
    }
  }
  memcpy(room, acc, sizeof room);
  float best = -INFINITY;
  for (int i = 0; i < KG_VECTOR_BLOCK; i++) best = room[i] > best ? room[i] : best;
  return best;
}

static float FN(min)(const float *x, int64_t n)
{
  vf acc[FN(PARTS)];
  float room[KG_VECTOR_BLOCK];
  EACH_PART acc[part] = FN(splat)(INFINITY);
  for (int64_t at = 0; at < n; at += KG_VECTOR_BLOCK) {
    const float *block = FN(block)(x, at, n, INFINITY, room);
    EACH_PART
    {
      const vf v = FN(load)(block + part * LANES);
      acc[part] = FN(choose)(v < acc[part], v, acc[part]);
    }
  }
  memcpy(room, acc, sizeof room);
  float best = INFINITY;
  for (int i = 0; i < KG_VECTOR_BLOCK; i++) best = room[i] < best ? room[i] : best;
  return best;
}

static double FN(sum)(const float *x, int64_t n)
{
  double total = 0;
  float room[KG_VECTOR_BLOCK];
  for (int64_t chunk = 0; chunk < n; chunk += SUM_CHUNK) {
    const int64_t end = chunk + SUM_CHUNK < n ? chunk + SUM_CHUNK : n;
    vf acc[FN(PARTS)];
    EACH_PART acc[part] = (vf){0};
    for (int64_t at = chunk; at < end; at += KG_VECTOR_BLOCK) {
      const float *block = FN(block)(x, at, end, 0, room);
      EACH_PART acc[part] += FN(load)(block + part * LANES);
    }
    total += FN(tree_sum)(acc);
  }
  return total;
}

static double FN(exp_sum)(const float *x, int64_t n, float max, float *out)
{
  double total = 0;
  float room[KG_VECTOR_BLOCK], e_room[KG_VECTOR_BLOCK];
  for (int64_t chunk = 0; chunk < n; chunk += SUM_CHUNK) {
    const int64_t end = chunk + SUM_CHUNK < n ? chunk + SUM_CHUNK : n;
    vf acc[FN(PARTS)];
    EACH_PART acc[part] = (vf){0};
    for (int64_t at = chunk; at < end; at += KG_VECTOR_BLOCK) {
      const float *block = FN(block)(x, at, end, -INFINITY, room);
      float *to = !out || end - at < KG_VECTOR_BLOCK ? e_room : out + at;
      EACH_PART
      {
        const vf e = FN(exp)(FN(load)(block + part * LANES) - max);
        acc[part] += e;
        FN(store)(to + part * LANES, e);
      }
      if (out && to == e_room) memcpy(out + at, e_room, (size_t)(end - at) * sizeof *out);
    }
    total += FN(tree_sum)(acc);
  }
  return total;
}

/* kg_mass of a register of weights: added to a number of [0, 2^52), 2^52 leaves its nearest integer in the low bits. No
 * function, because its result is wider than registers may be. */
#define MASS(weight) ((vq)(__builtin_convertvector((weight) * scale, vd) + 0x1p52) - 0x4330000000000000u)

static uint64_t FN(weigh)(const float *x, int64_t n, float max, float scale, float *out, uint64_t *moment)
{
  vq acc = {0}, acc_moment = {0};
  float room[KG_VECTOR_BLOCK], e_room[KG_VECTOR_BLOCK];
  for (int64_t at = 0; at < n; at += KG_VECTOR_BLOCK) {
    const float *block = FN(block)(x, at, n, -INFINITY, room);
    float *to = n - at < KG_VECTOR_BLOCK ? e_room : out + at;
    EACH_PART
    {
      const vf d = FN(load)(block + part * LANES) - max;
      const vf e = FN(exp)(d);
      acc += MASS(e);
      if (moment) acc_moment += MASS(FN(masked)(~(e == 0.0f), e * -d)); /* 0 * inf is nothing, not NaN */
      FN(store)(to + part * LANES, e);
    }
    if (to == e_room) memcpy(out + at, e_room, (size_t)(n - at) * sizeof *out);
  }
  uint64_t total = 0, total_moment = 0;
  for (int i = 0; i < LANES; i++) {
    total += acc[i];
    total_moment += acc_moment[i];
  }
  if (moment) *moment = total_moment;
  return total;
}

/* kg_whole of a register of doubles. */
#define WHOLE(number) ((vq)((number) + 0x1p52) - 0x4330000000000000u)

static uint64_t FN(spread)(const float *x, int64_t n, float max, double scale, uint64_t *squares)
{
  vq acc = {0}, acc_square = {0};
  float room[KG_VECTOR_BLOCK];
  for (int64_t at = 0; at < n; at += KG_VECTOR_BLOCK) {
    const float *block = FN(block)(x, at, n, -INFINITY, room);
    EACH_PART
    {
      const vf v = FN(load)(block + part * LANES);
      const vf there = FN(choose)(v > -INFINITY, v, FN(splat)(max)); /* what is not is no distance away */
      const vd distance = (max - __builtin_convertvector(there, vd)) * scale;
      const vd whole = (distance + 0x1p52) - 0x1p52;
      acc += WHOLE(whole);
      acc_square += WHOLE(whole * whole); /* below 2^45: exact */
    }
  }
  uint64_t sum = 0, sum_square = 0;
  for (int i = 0; i < LANES; i++) {
    sum += acc[i];
    sum_square += acc_square[i];
  }
  *squares = sum_square;
  return sum;
}

static int64_t FN(count_finite)(const float *x, int64_t n, float *min)
{
  vf least[FN(PARTS)];
  vi count[FN(PARTS)] = {0};
  float room[KG_VECTOR_BLOCK];
  EACH_PART least[part] = FN(splat)(INFINITY);
  for (int64_t at = 0; at < n; at += KG_VECTOR_BLOCK) {
    const float *block = FN(block)(x, at, n, -INFINITY, room);
    EACH_PART
    {
      const vf v = FN(load)(block + part * LANES);
      const vi is_there = v > -INFINITY;
      count[part] -= is_there;
      least[part] = FN(choose)(is_there & (v < least[part]), v, least[part]);
    }
  }
  int32_t counts[KG_VECTOR_BLOCK];
  int64_t total = 0;
  memcpy(room, least, sizeof room);
  memcpy(counts, count, sizeof counts);
  *min = INFINITY;
  for (int i = 0; i < KG_VECTOR_BLOCK; i++) {
    *min = room[i] < *min ? room[i] : *min;
    total += counts[i];
  }
  return total;
}

static void FN(entropy_sums)(const float *p, int64_t n, double *sum, double *p_log_p)
{
  double total = 0, total_log = 0;
  float room[KG_VECTOR_BLOCK];
  for (int64_t chunk = 0; chunk < n; chunk += SUM_CHUNK) {
    const int64_t end = chunk + SUM_CHUNK < n ? chunk + SUM_CHUNK : n;
    vf acc[FN(PARTS)], acc_log[FN(PARTS)];
    EACH_PART acc[part] = acc_log[part] = (vf){0};
    for (int64_t at = chunk; at < end; at += KG_VECTOR_BLOCK) {
      const float *block = FN(block)(p, at, end, 0, room);
      EACH_PART
      {
        const vf v = FN(load)(block + part * LANES);
        acc[part] += v;
        acc_log[part] += FN(masked)(~(v < 1.17549435e-38f), v * FN(log)(v)); /* denormals weigh nothing */
      }
    }
    total += FN(tree_sum)(acc);
    total_log += FN(tree_sum)(acc_log);
  }
  *sum = total;
  *p_log_p = total_log;
}

/* ---- searches ---- */

static inline bool FN(any)(vi mask)
{
  int64_t words[LANES / 2];
  memcpy(words, &mask, sizeof words);
  int64_t all = 0;
  for (int i = 0; i < LANES / 2; i++) all |= words[i];
  return all != 0;
}

static int64_t FN(find)(const float *x, int64_t n, float value)
{
  int64_t at = 0;
  for (; at + KG_VECTOR_BLOCK <= n; at += KG_VECTOR_BLOCK) {
    vi hit = {0};
    EACH_PART hit |= FN(load)(x + at + part * LANES) == value;
    if (FN(any)(hit)) break;
  }
  while (at < n && x[at] != value) at++;
  return at;
}

static int64_t FN(find_above)(const float *x, int64_t n, float value)
{
  int64_t at = 0;
  for (; at + KG_VECTOR_BLOCK <= n; at += KG_VECTOR_BLOCK) {
    vi hit = {0};
    EACH_PART hit |= FN(load)(x + at + part * LANES) > value;
    if (FN(any)(hit)) return at;
  }
  for (int64_t i = at; i < n; i++)
    if (x[i] > value) return at;
  return n;
}

static int64_t FN(count_nan)(const float *x, int64_t n)
{
  int64_t at = 0, count = 0;
  for (; at + KG_VECTOR_BLOCK <= n; at += KG_VECTOR_BLOCK) {
    vi hit = {0};
    EACH_PART
    {
      const vf v = FN(load)(x + at + part * LANES);
      hit |= v != v;
    }
    if (!FN(any)(hit)) continue;
    for (int i = 0; i < KG_VECTOR_BLOCK; i++) count += x[at + i] != x[at + i];
  }
  for (; at < n; at++) count += x[at] != x[at];
  return count;
}

static const kg_vector FN(table) = {.name = NAME,
                                    .fill = FN(fill),
                                    .affine = FN(scale_or_affine),
                                    .divide = FN(divide),
                                    .add = FN(add),
                                    .mul = FN(mul),
                                    .max = FN(max),
                                    .min = FN(min),
                                    .sum = FN(sum),
                                    .find = FN(find),
                                    .find_above = FN(find_above),
                                    .count_nan = FN(count_nan),
                                    .count_finite = FN(count_finite),
                                    .spread = FN(spread),
                                    .exp_sum = FN(exp_sum),
                                    .weigh = FN(weigh),
                                    .entropy_sums = FN(entropy_sums)};

#undef vf
#undef vi
#undef vu
#undef MASS
#undef WHOLE
#undef vd
#undef vq
#undef EACH_PART
#undef LANES
#undef NAME
#undef FN
