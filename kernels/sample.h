/* sample.h - the kernels that draw from rows of logits: the chains of sampler.h, as draw.h defines them. A row is
 * prepared by many blocks (its prefix, the best of each group of ids, what the next stage needs of all), and one block
 * does the rest. All rows go together; each depends on itself alone. */
#ifndef KG_CUDA_SAMPLE_H
#define KG_CUDA_SAMPLE_H

#include "device.h"
#include "draw_block.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A row that draws, in device memory with everything that it points to. */
typedef struct kg_sample_row {
  kg_draw draw;       /* pos, n_draws and the history go on with every draw */
  kg_draw_row room;
  const float *logits;
  bool is_scaled; /* what is meant is logits * factor + offset */
  float factor, offset;
  int32_t *history;   /* of draw, with room for what is drawn */
  int32_t *tokens[2], *positions[2]; /* what the next step reads: its row and, counted from there, the position; or NULL */
  float *applied;     /* instead of drawing, write what the stages leave there; NULL: draw */
  kg_drawn *drawn;    /* where the next result goes; host memory that the device can write to */
  bool failed;        /* nothing more is drawn */
} kg_sample_row;

/* Draw once for each row. `sifts`: is there one whose candidates are to be sifted (kg_draw_sift)? */
int kg_cuda_sample(kg_stream *s, kg_sample_row *rows, int32_t n_rows, int32_t n_vocab, bool sifts, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
