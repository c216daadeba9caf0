#include "draws.h"

#include <string.h>

#include "alloc.h"
#include "buffer.h"

struct kg_draws {
  unsigned char *staged, *there;  /* pinned and on the device: rows, programs, biases, histories */
  size_t n_bytes;
  unsigned char *scratch;         /* of all rows: their masses, then the rest */
  size_t scratch_bytes;
  kg_drawn *drawn;                /* [rows][steps], pinned: the device writes to it */
  size_t n_drawn;
  int32_t n_rows, n_vocab, n_steps; /* of this use */
  kg_sample_way way;
  kg_drawn *followed;               /* where results of this use are wanted; NULL: nowhere */
  int32_t n_there;                  /* steps of the use that was followed last that are there */
  cudaEvent_t *marks;               /* [n_marks] behind each step */
  int32_t n_marks;
};

static size_t align16(size_t n) { return (n + 15) / 16 * 16; }

void kg_draws_free(kg_draws *draws)
{
  if (!draws) return;
  (void)cudaFree(draws->there);
  (void)cudaFreeHost(draws->staged);
  (void)cudaFree(draws->scratch);
  (void)cudaFreeHost(draws->drawn);
  for (int32_t i = 0; i < draws->n_marks; i++) (void)cudaEventDestroy(draws->marks[i]);
  (void)cudaGetLastError();
  kg_free(draws->marks);
  kg_free(draws);
}

/* ---- room: nothing that is in use is given back before the stream has been waited for ---- */

static int reserve_staged(kg_stream *stream, size_t n_bytes, kg_error *err)
{
  kg_draws *d = stream->draws;
  if (n_bytes <= d->n_bytes) return KG_OK;
  n_bytes += n_bytes / 2;
  void *staged = NULL, *there = NULL;
  int code = kg_cuda_alloc(n_bytes, "draws", &there, err);
  if (!code && (code = kg_cuda_check(cudaMallocHost(&staged, n_bytes), "pinned memory for draws", err)))
    (void)cudaFree(there);
  if (!code && (code = kg_stream_wait(stream, "draws", err))) {
    (void)cudaFree(there);
    (void)cudaFreeHost(staged);
  }
  if (code) return code;
  (void)cudaFree(d->there);
  (void)cudaFreeHost(d->staged);
  d->staged = staged;
  d->there = there;
  d->n_bytes = n_bytes;
  return KG_OK;
}

static int reserve_scratch(kg_stream *stream, size_t n_bytes, kg_error *err)
{
  kg_draws *d = stream->draws;
  if (n_bytes <= d->scratch_bytes) return KG_OK;
  void *scratch;
  int code = kg_cuda_alloc(n_bytes, "draws", &scratch, err);
  if (code) return code;
  code = kg_stream_wait(stream, "draws", err);
  (void)cudaFree(code ? scratch : d->scratch);
  if (code) return code;
  d->scratch = scratch;
  d->scratch_bytes = n_bytes;
  return KG_OK;
}

static int reserve_drawn(kg_stream *stream, size_t n, kg_error *err)
{
  kg_draws *d = stream->draws;
  if (n <= d->n_drawn) return KG_OK;
  void *drawn;
  int code = kg_cuda_check(cudaMallocHost(&drawn, n * sizeof *d->drawn), "pinned memory for draws", err);
  if (code) return code;
  code = kg_stream_wait(stream, "draws", err);
  (void)cudaFreeHost(code ? drawn : d->drawn);
  if (code) return code;
  d->drawn = drawn;
  d->n_drawn = n;
  return KG_OK;
}

static int reserve_marks(kg_draws *d, int32_t n, kg_error *err)
{
  if (n <= d->n_marks) return KG_OK;
  cudaEvent_t *marks = kg_realloc_array(d->marks, (size_t)n, sizeof *marks);
  if (!marks) return kg_fail_memory(err, (size_t)n * sizeof *marks, "draws");
  d->marks = marks;
  for (; d->n_marks < n; d->n_marks++) {
    const int code =
        kg_cuda_check(cudaEventCreateWithFlags(&marks[d->n_marks], cudaEventDisableTiming), "making an event", err);
    if (code) return code;
  }
  return KG_OK;
}

/* ---- laying out ---- */

/* Scratch of one row, in bytes. */
static size_t row_bytes(int32_t n_vocab)
{
  return align16((size_t)n_vocab * sizeof(float)) + (size_t)kg_draw_group_count(n_vocab) * 16 +
         (size_t)KG_DRAW_LIST * 16;
}

static size_t mass_bytes(int32_t n_rows) { return (size_t)n_rows * KG_DRAW_BUCKETS * sizeof(uint64_t); }

static kg_draw_row row_room(const kg_draws *d, int32_t row)
{
  const int32_t n_vocab = d->n_vocab;
  unsigned char *at = d->scratch + mass_bytes(d->n_rows) + (size_t)row * row_bytes(n_vocab);
  kg_draw_row room = {.x = (float *)at, .mass = (uint64_t *)(d->scratch + mass_bytes(row))};
  at += align16((size_t)n_vocab * sizeof(float));
  room.best = (kg_rank *)at;
  at += (size_t)kg_draw_group_count(n_vocab) * 16;
  for (int i = 0; i < 2; i++) {
    room.list_x[i] = (float *)at;
    room.list_ids[i] = (int32_t *)at + KG_DRAW_LIST;
    at += (size_t)KG_DRAW_LIST * 8;
  }
  return room;
}

static size_t program_bytes(const kg_draw_program *program)
{
  return align16(sizeof *program) + 2 * align16((size_t)program->n_biases * 4) +
         align16((size_t)program->n_phrases * sizeof *program->phrases) + align16((size_t)program->n_phrase_ids * 4);
}

static size_t history_bytes(const kg_draw *draw, int32_t n_steps)
{
  return draw->program->last_n ? align16(((size_t)draw->n_history + (size_t)n_steps) * sizeof(int32_t)) : 0;
}

/* The first request with the same program: it is brought over once. */
static int32_t first_with(const kg_draw_request *requests, int32_t i)
{
  int32_t first = 0;
  while (requests[first].draw->program != requests[i].draw->program) first++;
  return first;
}

/* Writes to staged memory; what it says is where things will be on the device. */
typedef struct writer {
  unsigned char *staged, *there;
  size_t at;
} writer;

/* `spare` bytes are left behind it. */
static void *put(writer *w, const void *data, size_t n_bytes, size_t spare)
{
  void *there = w->there + w->at;
  if (n_bytes) memcpy(w->staged + w->at, data, n_bytes);
  w->at += align16(n_bytes + spare);
  return there;
}

static const kg_draw_program *write_program(writer *w, const kg_draw_program *program)
{
  const size_t bias_bytes = (size_t)program->n_biases * 4;
  kg_draw_program copy = *program;
  copy.bias_ids = put(w, program->bias_ids, bias_bytes, 0);
  copy.bias_values = put(w, program->bias_values, bias_bytes, 0);
  copy.phrases = put(w, program->phrases, (size_t)program->n_phrases * sizeof *program->phrases, 0);
  copy.phrase_ids = put(w, program->phrase_ids, (size_t)program->n_phrase_ids * 4, 0);
  return put(w, &copy, sizeof copy, 0);
}

static void write_rows(kg_draws *d, const kg_draw_request *requests)
{
  writer w = {d->staged, d->there, align16((size_t)d->n_rows * sizeof(kg_sample_row))};
  kg_sample_row *rows = (kg_sample_row *)d->staged;
  for (int32_t i = 0; i < d->n_rows; i++) {
    const kg_draw_request *r = &requests[i];
    const int32_t first = first_with(requests, i);
    rows[i] = (kg_sample_row){.draw = *r->draw,
                              .room = row_room(d, i),
                              .logits = r->logits,
                              .is_scaled = r->is_scaled,
                              .factor = r->factor,
                              .offset = r->offset,
                              .applied = r->applied,
                              .tokens = {r->tokens[0], r->tokens[1]},
                              .positions = {r->positions[0], r->positions[1]},
                              .drawn = d->drawn + (size_t)i * (size_t)d->n_steps};
    rows[i].draw.program = first < i ? rows[first].draw.program : write_program(&w, r->draw->program);
    if (r->draw->program->last_n)
      rows[i].history = put(&w, r->draw->history, (size_t)r->draw->n_history * sizeof(int32_t),
                            (size_t)d->n_steps * sizeof(int32_t));
    rows[i].draw.history = rows[i].history;
  }
}

/* ---- a use ---- */

static int open_draws(kg_stream *stream, kg_error *err)
{
  if (stream->draws) return KG_OK;
  stream->draws = kg_alloc_array(1, sizeof *stream->draws);
  return stream->draws ? KG_OK : kg_fail_memory(err, sizeof *stream->draws, "draws");
}

static kg_sample_way way_of(const kg_draw_request *request)
{
  const kg_draw_program *program = request->draw->program;
  if (kg_draw_sift_of(program) != KG_SIFT_NOTHING) return KG_SAMPLE_SIFT;
  return kg_draw_picks(program) && !request->applied ? KG_SAMPLE_PICK : KG_SAMPLE_DRAW;
}

int kg_draws_begin(kg_stream *stream, const kg_draw_request *requests, int32_t n_rows, int32_t n_vocab, int32_t n_steps,
                   kg_error *err)
{
  size_t n_bytes = align16((size_t)n_rows * sizeof(kg_sample_row));
  kg_sample_way way = KG_SAMPLE_PICK;
  for (int32_t i = 0; i < n_rows; i++) {
    if (first_with(requests, i) == i) n_bytes += program_bytes(requests[i].draw->program);
    n_bytes += history_bytes(requests[i].draw, n_steps);
    if (way_of(&requests[i]) > way) way = way_of(&requests[i]);
  }
  int code = open_draws(stream, err);
  if (!code) code = kg_draws_finish(stream, err);
  if (!code) code = reserve_staged(stream, n_bytes, err);
  if (!code) code = reserve_scratch(stream, mass_bytes(n_rows) + (size_t)n_rows * row_bytes(n_vocab), err);
  if (!code) code = reserve_drawn(stream, (size_t)n_rows * (size_t)n_steps, err);
  if (code) return code;
  kg_draws *d = stream->draws;
  d->n_rows = n_rows;
  d->n_vocab = n_vocab;
  d->n_steps = n_steps;
  d->way = way;
  write_rows(d, requests);
  code = kg_cuda_check(cudaMemcpyAsync(d->there, d->staged, n_bytes, cudaMemcpyHostToDevice, stream->handle),
                       "bringing draws over", err);
  if (code || way != KG_SAMPLE_SIFT) return code;
  return kg_cuda_check(cudaMemsetAsync(d->scratch, 0, mass_bytes(n_rows), stream->handle), "clearing", err);
}

kg_draws_key kg_draws_launch_key(const kg_stream *stream)
{
  const kg_draws *d = stream->draws;
  return (kg_draws_key){d->there, d->n_rows, d->way};
}

int kg_draws_next(kg_stream *stream, kg_error *err)
{
  const kg_draws *d = stream->draws;
  return kg_cuda_sample(stream, (kg_sample_row *)d->there, d->n_rows, d->n_vocab, d->way, err);
}

/* ---- a use that goes on while the host does ---- */

int kg_draws_mark(kg_stream *stream, int32_t step, kg_error *err)
{
  kg_draws *d = stream->draws;
  const int code = reserve_marks(d, d->n_steps, err);
  return code ? code : kg_cuda_check(cudaEventRecord(d->marks[step], stream->handle), "marking a draw", err);
}

void kg_draws_follow(kg_stream *stream, kg_drawn *to)
{
  stream->draws->followed = to;
  stream->draws->n_there = 0;
}

int kg_draws_wait(kg_stream *stream, int32_t step, kg_error *err)
{
  kg_draws *d = stream->draws;
  for (; d->n_there <= step; d->n_there++) {
    if (!d->followed) return kg_fail(err, KG_ERR_DEVICE, "draw %d ahead is lost", d->n_there + 1);
    const int code = kg_cuda_check(cudaEventSynchronize(d->marks[d->n_there]), "steps ahead", err);
    if (code) {
      d->followed = NULL;
      return code;
    }
    for (int32_t i = 0; i < d->n_rows; i++) {
      const size_t at = (size_t)i * (size_t)d->n_steps + (size_t)d->n_there;
      d->followed[at] = d->drawn[at];
    }
    if (d->n_there == d->n_steps - 1) d->followed = NULL;
  }
  return KG_OK;
}

int kg_draws_finish(kg_stream *stream, kg_error *err)
{
  const kg_draws *d = stream->draws;
  return d && d->followed ? kg_draws_wait(stream, d->n_steps - 1, err) : KG_OK;
}

const kg_drawn *kg_draws_of(const kg_stream *stream, int32_t row)
{
  return stream->draws->drawn + (size_t)row * (size_t)stream->draws->n_steps;
}
