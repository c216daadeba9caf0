/* format.h - how weights stand in device memory: tensor-core fragment order, weights as the M operand, so that one
 * layout and one summation order serve every number of rows of activations.
 *
 * A tile is 16 rows x 32 columns. Lane 4 g + t of a warp (g 0-7, t 0-3) holds rows g and g + 8, and of each the columns
 * of slots j = 0..7: column 4 t + (j & 3) + 16 (j >> 2). Slots 0-3 feed the first k16 step of the tensor cores, 4-7
 * the second; so each step covers 16 consecutive columns, which formats with scales per 16 need. Activations stand in
 * the same order (position 8 t + j of each block of 32), so that a lane's part is one 16-byte load.
 *
 * Planes, [tile][block of 32][lane] each, nothing widened:
 *   q  the low bits of both rows' slots. 16-bit types: 16 bytes a step, [step][lane]. 8 bits: 4 bytes of row g slots
 *      0-3, of slots 4-7, then row g + 8; biased by 128. 4 bits: a word per row. 2 bits: one word for both.
 *   h  the bits above: 2 a value for Q6_K (a word), 1 for Q5 and Q3_K (16 bits).
 *   s  scales. Blocks of 32: [tile][block][g] rows g and g + 8. Blocks of 256: the head of each row's block as in the
 *      file, [tile][block of 256][row].
 * Words hold pairs of slots (2 p, 2 p + 1) in their low and high halves: pair p of row r (0: g, 1: g + 8) of a word of
 * 4-bit values is at bit 4 p and 16 + 4 p; of 2-bit values at 2 P and 16 + 2 P, of 1-bit values at P and 8 + P, with
 * P = 4 r + p.
 * Codes of 5 bits (Q5) are cut otherwise, so that an instruction brings a pair to its place: each half of a lane's
 * words w0 and w1 has, from bit 0, 5 and 11 on, its slots of the pairs P = 0, 1, 2 and 3, 4, 5; the byte of h for this
 * half has that of pair 6 in its low bits. Pair 7 has its lowest bit in bit 10 of w0, the next in bit 10 of w1, the
 * others above pair 6.
 * F32 is not packed: rows as in the file.
 *
 * Activations of many rows stand in panels of 8 rows, the form that wgmma reads from shared memory, so that one copy
 * brings KG_PANEL_ROWS rows of a chunk of 4 blocks:
 *   [KG_PANEL_ROWS rows][chunk][8 rows][block][step][half of the step][row][16 bytes]
 * The first half of a step has slots 0 and 1 of lanes t = 0 to 3, the second slots 2 and 3: the k order of the tensor
 * cores. */
#ifndef KG_CUDA_FORMAT_H
#define KG_CUDA_FORMAT_H

#include "device.h"

enum { KG_TILE_ROWS = 16, KG_BLOCK_COLS = 32, KG_CHUNK = 4, KG_PANEL_ROWS = 128 };

typedef struct kg_format {
  int32_t q_bytes, h_bytes; /* of a tile's block */
  int32_t s_bytes;          /* of a tile's scales for s_blocks blocks */
  int32_t s_blocks;         /* 1 or 8 */
} kg_format;

/* Where what makes a value writes its f16 form, in panels, as its power of two is known before (bounds.c). */
typedef struct kg_half_out {
  void *panels; /* or NULL */
  float *undo;  /* [n] what undoes the power of two */
  float up;     /* the power of two */
} kg_half_out;

#ifdef __cplusplus
extern "C" {
#endif

/* False: a type that cannot be computed with. */
bool kg_format_find(kg_type type, kg_format *out);
/* Shape and plane sizes of a matrix; *n_bytes: of all its planes, each aligned to 256. False on overflow. */
bool kg_matrix_init(kg_matrix *m, kg_type type, int64_t cols, int64_t rows, int64_t planes, size_t *n_bytes);
/* Set q, h and s to their places in memory of n_bytes. */
void kg_matrix_place(kg_matrix *m, unsigned char *memory);

/* Where the 512 bytes of a row's panel and block begin. */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline size_t kg_panel_at(int row, int block, int n_blocks)
{
  const size_t n_chunks = (size_t)((n_blocks + KG_CHUNK - 1) / KG_CHUNK);
  const size_t chunk = (size_t)(row / KG_PANEL_ROWS) * n_chunks + (size_t)(block / KG_CHUNK);
  const size_t panel = chunk * (KG_PANEL_ROWS / 8) + (size_t)(row % KG_PANEL_ROWS / 8);
  return (panel * KG_CHUNK + (size_t)(block % KG_CHUNK)) * 512;
}

/* pack.cu: rows [16 tile0, 16 tile1) of a plane from file order (`raw`: the first of those rows, on the device) to
 * m's planes. */
int kg_cuda_pack(kg_stream *s, const kg_matrix *m, int32_t plane, int32_t tile0, int32_t tile1, const void *raw,
                 kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
