/* adapters.c - adapters on the device: their numbers, brought over once for each of them, the program that adds them,
 * and what tells the kernels which rows have which ones. */
#include "executable.h"

#include <string.h>

/* An adapter on this device; the adapter drops it when it goes. */
typedef struct adapter_copy {
  kg_adapter_copy base; /* first: what the adapter knows of it */
  kg_adapter *adapter;
  kg_executable *exe;
  struct adapter_copy *next;
  unsigned char *block;       /* device: the parts by operation, then their numbers */
  bool is_counted;            /* the program adds it */
} adapter_copy;

struct kg_gpu_adapters {
  adapter_copy *copies;
  bool *adapted;              /* [values] by an adapter that some batch had: what the program adds to */
  kg_program program;         /* without stages: none was needed yet */
  unsigned char *host, *device; /* pinned, and on the device: tiles of all rows, of the wanted ones, entries */
  size_t wanted_at, entries_at; /* of the pass */
  float *down;                /* A x of the rows of a pass */
  int32_t stride;
};

static const size_t ALIGNMENT = 256;

/* ---- numbers ---- */

static void free_copy(adapter_copy *copy)
{
  adapter_copy **at = &copy->exe->adapters->copies;
  while (*at != copy) at = &(*at)->next;
  *at = copy->next;
  (void)kg_stream_use(copy->exe->stream, NULL);
  (void)cudaFree(copy->block);
  (void)cudaGetLastError();
  kg_free(copy);
}

static void drop(kg_adapter_copy *copy) { free_copy((adapter_copy *)copy); }

static const adapter_copy *find_copy(const kg_executable *exe, const kg_adapter *adapter)
{
  const adapter_copy *copy = exe->adapters->copies;
  while (copy && copy->adapter != adapter) copy = copy->next;
  return copy;
}

static size_t a_bytes(const kg_adapter_part *part) { return (size_t)part->rank * (size_t)part->cols * sizeof(float); }
static size_t b_bytes(const kg_adapter_part *part) { return (size_t)part->rank * (size_t)part->rows * sizeof(float); }

/* Where the numbers of each operation's part stand in the block, behind the parts. Operations that share a weight share
 * them. */
static int lay_out(const kg_executable *exe, const kg_adapter *adapter, size_t *places, size_t *n_bytes, kg_error *err)
{
  const int32_t n_ops = kg_plan_op_count(exe->plan);
  bool fits = kg_align_size((size_t)n_ops * sizeof(kg_adapt_part), ALIGNMENT, n_bytes);
  for (int32_t i = 0; i < n_ops && fits; i++) {
    const kg_adapter_part *part = kg_adapter_part_of(adapter, kg_plan_op(exe->plan, i));
    int32_t j = 0;
    while (part && j < i && kg_adapter_part_of(adapter, kg_plan_op(exe->plan, j)) != part) j++;
    if (!part) continue;
    places[i] = j < i ? places[j] : *n_bytes;
    if (j == i) /* bounded: these are in memory */
      fits = kg_align_size(*n_bytes + a_bytes(part), ALIGNMENT, n_bytes) &&
             kg_align_size(*n_bytes + b_bytes(part), ALIGNMENT, n_bytes);
  }
  return fits ? KG_OK : kg_fail_memory(err, SIZE_MAX, "an adapter on the device");
}

static int bring(const kg_executable *exe, unsigned char *to, const void *from, size_t n_bytes, kg_error *err)
{
  return kg_cuda_check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyHostToDevice, exe->stream->handle),
                       "bringing an adapter over", err);
}

static int bring_parts(const kg_executable *exe, const kg_adapter *adapter, const size_t *places, unsigned char *block,
                       kg_adapt_part *parts, kg_error *err)
{
  const int32_t n_ops = kg_plan_op_count(exe->plan);
  int code = KG_OK;
  for (int32_t i = 0; i < n_ops && !code; i++) {
    const kg_adapter_part *part = kg_adapter_part_of(adapter, kg_plan_op(exe->plan, i));
    if (!part) continue;
    unsigned char *a = block + places[i], *b = a + (a_bytes(part) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    parts[i] = (kg_adapt_part){(const float *)a, (const float *)b, part->factor, part->rank};
    code = bring(exe, a, part->a, a_bytes(part), err);
    if (!code) code = bring(exe, b, part->b, b_bytes(part), err);
  }
  if (!code) code = bring(exe, block, parts, (size_t)n_ops * sizeof *parts, err);
  const int waited = kg_stream_wait(exe->stream, "bringing an adapter over", code ? NULL : err);
  return code ? code : waited;
}

/* Where it is not there yet. */
static int need_copy(kg_executable *exe, kg_adapter *adapter, bool *is_counted, kg_error *err)
{
  const adapter_copy *found = find_copy(exe, adapter);
  *is_counted = *is_counted && found && found->is_counted;
  if (found) return KG_OK;
  const size_t n_ops = (size_t)kg_plan_op_count(exe->plan);
  size_t n_bytes = 0, *places = kg_alloc_array(n_ops, sizeof *places);
  kg_adapt_part *parts = kg_alloc_array(n_ops, sizeof *parts);
  adapter_copy *copy = kg_alloc(sizeof *copy);
  void *block = NULL;
  int code = places && parts && copy ? lay_out(exe, adapter, places, &n_bytes, err)
                                     : kg_fail_memory(err, n_ops * sizeof *parts, "an adapter on the device");
  if (!code) code = kg_cuda_alloc(n_bytes, "an adapter", &block, err);
  if (!code) code = bring_parts(exe, adapter, places, block, parts, err);
  kg_free(places);
  kg_free(parts);
  if (code) {
    (void)cudaFree(block);
    (void)cudaGetLastError();
    kg_free(copy);
    return code;
  }
  *copy = (adapter_copy){{.drop = drop}, adapter, exe, exe->adapters->copies, block, false};
  exe->adapters->copies = copy;
  kg_adapter_attach(adapter, &copy->base);
  return KG_OK;
}

/* ---- the program ---- */

/* One program for all that anybody has asked for: batches that differ in their adapters run the same stages. */
static int need_program(kg_executable *exe, kg_error *err)
{
  kg_gpu_adapters *all = exe->adapters;
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan);
  bool *adapted = kg_alloc_array(n_values, sizeof *adapted), grows = !all->program.n_stages;
  if (!adapted) return kg_fail_memory(err, n_values, "a program with adapters");
  for (int32_t i = 0; i < kg_plan_op_count(exe->plan); i++) {
    const kg_op *op = kg_plan_op(exe->plan, i);
    bool *is_adapted = &adapted[op->out];
    *is_adapted = all->adapted[op->out];
    for (const adapter_copy *copy = all->copies; copy && !*is_adapted; copy = copy->next)
      *is_adapted = kg_adapter_part_of(copy->adapter, op) != NULL;
    grows = grows || *is_adapted != all->adapted[op->out];
  }
  kg_program program = {0};
  int code = grows ? kg_program_build(exe, false, adapted, &program, err) : KG_OK;
  kg_program *const made[] = {&program};
  if (!code && grows) code = kg_gpu_reserve(exe, made, 1, err);
  if (code || !grows)
    kg_program_deinit(&program);
  else {
    kg_program_deinit(&all->program);
    all->program = program;
    memcpy(all->adapted, adapted, n_values * sizeof *adapted);
    kg_gpu_forget_graphs(exe);
  }
  for (adapter_copy *copy = all->copies; copy && !code; copy = copy->next) copy->is_counted = true;
  kg_free(adapted);
  return code;
}

/* ---- room ---- */

static int32_t ranks_of(const kg_span *span)
{
  int32_t n = 0; /* bounded: KG_ADAPTERS_MAX times KG_ADAPTER_MAX_RANK */
  for (int32_t i = 0; i < span->n_adapters; i++)
    n += (kg_adapter_rank(span->adapters[i].adapter) + KG_ADAPT_RANKS - 1) / KG_ADAPT_RANKS * KG_ADAPT_RANKS;
  return n;
}

static int need_down(kg_executable *exe, const kg_batch *batch, kg_error *err)
{
  kg_gpu_adapters *all = exe->adapters;
  int32_t stride = all->stride;
  for (int32_t s = 0; s < batch->n_spans; s++)
    if (ranks_of(&batch->spans[s]) > stride) stride = ranks_of(&batch->spans[s]);
  if (stride == all->stride) return KG_OK;
  void *down;
  const size_t n = (size_t)KG_LINEAR_PARTS * (size_t)exe->pass_rows * (size_t)stride; /* bounded: 3 x 2^14 x 2^15 */
  const int code = kg_cuda_alloc(n * sizeof(float), "what adapters make of rows", &down, err);
  if (code) return code;
  kg_gpu_forget_graphs(exe);
  (void)cudaFree(all->down);
  all->down = down;
  all->stride = stride;
  return KG_OK;
}

/* As in meta: fixed for all passes of at most KG_FEW_ROWS rows, so that graphs find their tiles. Each row may be a
 * tile. */
static size_t place_rows(const kg_executable *exe, int32_t n_rows)
{
  kg_gpu_adapters *all = exe->adapters;
  const size_t rows = (size_t)(n_rows <= KG_FEW_ROWS ? KG_FEW_ROWS : exe->pass_rows);
  all->wanted_at = rows * sizeof(kg_adapt_tile);
  all->entries_at = 2 * all->wanted_at;
  return all->entries_at + rows * KG_ADAPTERS_MAX * sizeof(kg_adapt_entry);
}

static int need_rows(kg_executable *exe, kg_error *err)
{
  kg_gpu_adapters *all = exe->adapters;
  if (all->host) return KG_OK;
  const int32_t most = exe->pass_rows > KG_FEW_ROWS ? exe->pass_rows : KG_FEW_ROWS;
  const size_t n_bytes = place_rows(exe, most);
  void *host = NULL, *device = NULL;
  int code = kg_cuda_alloc(n_bytes, "the adapters of a step", &device, err);
  if (!code && (code = kg_cuda_check(cudaMallocHost(&host, n_bytes), "pinned memory for the adapters of a step", err)))
    (void)cudaFree(device);
  if (code) return code;
  all->host = host;
  all->device = device;
  return KG_OK;
}

static int open_adapters(kg_executable *exe, kg_error *err)
{
  if (exe->adapters) return KG_OK;
  const size_t n_values = (size_t)kg_plan_value_count(exe->plan);
  kg_gpu_adapters *all = kg_alloc_array(1, sizeof *all);
  bool *adapted = kg_alloc_array(n_values, sizeof *adapted);
  if (!all || !adapted) {
    kg_free(all);
    kg_free(adapted);
    return kg_fail_memory(err, n_values + sizeof *all, "adapters");
  }
  all->adapted = adapted;
  exe->adapters = all;
  return KG_OK;
}

void kg_gpu_adapters_close(kg_executable *exe)
{
  kg_gpu_adapters *all = exe->adapters;
  if (!all) return;
  while (all->copies) {
    kg_adapter_detach(all->copies->adapter, &all->copies->base);
    free_copy(all->copies);
  }
  kg_program_deinit(&all->program);
  (void)cudaFree(all->device);
  (void)cudaFreeHost(all->host);
  (void)cudaFree(all->down);
  kg_free(all->adapted);
  kg_free(all);
  exe->adapters = NULL;
}

/* ---- a batch ---- */

static bool is_adapted(const kg_batch *batch)
{
  for (int32_t s = 0; s < batch->n_spans; s++)
    if (batch->spans[s].n_adapters) return true;
  return false;
}

int kg_gpu_adapters_prepare(kg_executable *exe, const kg_batch *batch, const kg_program **program, kg_error *err)
{
  bool is_counted = true;
  *program = NULL;
  if (!is_adapted(batch)) return KG_OK;
  int code = open_adapters(exe, err);
  for (int32_t s = 0; s < batch->n_spans && !code; s++)
    for (int32_t i = 0; i < batch->spans[s].n_adapters && !code; i++)
      code = need_copy(exe, batch->spans[s].adapters[i].adapter, &is_counted, err);
  if (!code) code = need_down(exe, batch, err);
  if (!code) code = need_rows(exe, err);
  if (!code && !is_counted) code = need_program(exe, err);
  if (!code) *program = &exe->adapters->program;
  return code;
}

/* ---- rows of a pass ---- */

/* The tiles of a span's rows [first, first + n), counted from the pass. Returns how many. */
static int32_t cut(kg_adapt_tile *tiles, int32_t first, int32_t n, int32_t entry, int32_t n_adapters)
{
  int32_t n_tiles = 0;
  for (int32_t at = 0; at < n; at += KG_ADAPT_ROWS)
    tiles[n_tiles++] = (kg_adapt_tile){first + at, n - at < KG_ADAPT_ROWS ? n - at : KG_ADAPT_ROWS, entry, n_adapters};
  return n_tiles;
}

int kg_gpu_adapters_bring(kg_executable *exe, const kg_batch *batch, kg_adapted_rows *rows, kg_error *err)
{
  kg_gpu_adapters *all = exe->adapters;
  (void)place_rows(exe, rows->n_rows);
  kg_adapt_tile *tiles = (kg_adapt_tile *)all->host, *wanted_tiles = (kg_adapt_tile *)(all->host + all->wanted_at);
  kg_adapt_entry *entries = (kg_adapt_entry *)(all->host + all->entries_at);
  int32_t n_entries = 0, wanted = 0, first;
  for (int32_t s = 0; s < batch->n_spans; s++) {
    const kg_span *span = &batch->spans[s];
    const int32_t n = kg_rows_of_span(span, rows->row0, rows->n_rows, &first);
    if (n < 1) continue;
    if (ranks_of(span) > rows->n_ranks) rows->n_ranks = ranks_of(span);
    rows->n_tiles += cut(tiles + rows->n_tiles, first, n, n_entries, span->n_adapters);
    for (; wanted < rows->n_wanted && batch->wanted[rows->wanted0 + wanted].row < rows->row0 + first + n; wanted++)
      wanted_tiles[wanted] =
          (kg_adapt_tile){wanted % exe->fused.max_rows[KG_WANTED_ROWS], 1, n_entries, span->n_adapters};
    for (int32_t i = 0; i < span->n_adapters; i++)
      entries[n_entries++] = (kg_adapt_entry){(const kg_adapt_part *)find_copy(exe, span->adapters[i].adapter)->block,
                                              span->adapters[i].scale};
  }
  return kg_cuda_check(cudaMemcpyAsync(all->device, all->host, all->entries_at + (size_t)n_entries * sizeof *entries,
                                       cudaMemcpyHostToDevice, exe->stream->handle),
                       "bringing the adapters of rows over", err);
}

void kg_gpu_adapters_set(const kg_executable *exe, bool is_wanted, int32_t first, kg_adapt_args *a)
{
  const kg_gpu_adapters *all = exe->adapters;
  a->tiles = (const kg_adapt_tile *)(all->device + (is_wanted ? all->wanted_at : 0)) + first;
  a->entries = (const kg_adapt_entry *)(all->device + all->entries_at);
  a->down = all->down;
  a->stride = all->stride;
}
