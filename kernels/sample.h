/* sample.h - the kernels that draw from rows of logits: the chains of sampler.h, as draw.h defines them. A row is
 * prepared by many blocks (its prefix, the best of each group of ids, what the next stage needs of all), and one block
 * does the rest; where that is to take the best one, the last of the many does it. All rows go together; each depends
 * on itself alone. */
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
  int32_t *tokens[2], *positions[2]; /* what the next step reads: its token and position, as a row and as a wanted one;
                                        or NULL */
  float *applied;     /* instead of drawing, write what the stages leave there; NULL: draw */
  kg_drawn *drawn;    /* where the next result goes; host memory that the device can write to */
  bool failed;        /* nothing more is drawn */
  uint32_t n_picked;  /* picking: blocks that are done, */
  kg_rank picked;     /* and the best of theirs; both zero between draws */
} kg_sample_row;

/* What is done for all rows of a draw, since some of them need it. */
typedef enum kg_sample_way {
  KG_SAMPLE_PICK, /* none needs more than the best one (kg_draw_picks) */
  KG_SAMPLE_DRAW,
  KG_SAMPLE_SIFT  /* candidates are sifted before (kg_draw_sift) */
} kg_sample_way;

/* Draw once for each row. The pass between one draw and the next must have begun behind the first (embed_rows). */
int kg_cuda_sample(kg_stream *s, kg_sample_row *rows, int32_t n_rows, int32_t n_vocab, kg_sample_way way,
                   kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
