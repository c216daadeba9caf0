/* draws.h - the memory of draws on a device: rows with their programs, histories and scratch. Belongs to a stream, one
 * use after the other. */
#ifndef KG_CUDA_DRAWS_H
#define KG_CUDA_DRAWS_H

#include "sample.h"

typedef struct kg_draws kg_draws;

/* One row of a use. */
typedef struct kg_draw_request {
  const kg_draw *draw;     /* host */
  const float *logits;     /* device */
  bool is_scaled;          /* see kg_sample_row */
  float factor, offset;
  float *applied;          /* device: write what the stages leave there instead of drawing; NULL: draw */
  int32_t *tokens[2], *positions[2]; /* see kg_sample_row */
} kg_draw_request;

/* Bring the requests over, for `n_steps` draws of each. The use before has been waited for, or is followed: then it is
 * waited for here. */
int kg_draws_begin(kg_stream *stream, const kg_draw_request *requests, int32_t n_rows, int32_t n_vocab, int32_t n_steps,
                   kg_error *err);
/* What kernels of the next draw are launched with, to know a captured one by; rows NULL: no draw. */
typedef struct kg_draws_key {
  const void *rows;
  int32_t n_rows;
  kg_sample_way way;
} kg_draws_key;
kg_draws_key kg_draws_launch_key(const kg_stream *stream);
/* Enqueue the next draw of every row. */
int kg_draws_next(kg_stream *stream, kg_error *err);
/* What row `row` has drawn, n_steps of it, once the stream has been waited for. */
const kg_drawn *kg_draws_of(const kg_stream *stream, int32_t row);

/* ---- a use that goes on while the host does ---- */

/* Behind draw `step` of a use, which may be waited for. */
int kg_draws_mark(kg_stream *stream, int32_t step, kg_error *err);
/* All draws of the use are enqueued and marked: from now on they are brought to `to` ([rows][steps]) as they are waited
 * for, which must stay until the last one is, or waiting fails. NULL: those that are not there are lost. */
void kg_draws_follow(kg_stream *stream, kg_drawn *to);
/* Draws [0, step] of the use that was followed last are there. Failure: the others never will be. */
int kg_draws_wait(kg_stream *stream, int32_t step, kg_error *err);
/* Wait for all that is followed, if anything is: then nothing is any more. */
int kg_draws_finish(kg_stream *stream, kg_error *err);
void kg_draws_free(kg_draws *draws); /* NULL allowed */

#endif
