/* matmul.h - products of packed weights with rows of activations: the part of the CPU backend that is bound by memory
 * (one row) or by arithmetic (many rows). One packed layout serves every instruction set and every number of rows.
 *
 * A weight is a [rows][cols] matrix of one GGUF type, maybe several of them (`planes`: experts), packed in groups of
 * KG_GROUP rows (layouts: pack.c). Groups are the unit of threading: threads take ranges of groups, of packing as of
 * products. Activations are first brought into the format that the weight's kernel reads, once for all weights that
 * share them.
 *
 * out[n][r] is a pure function of weight row r and activation row n: the same bits whatever the number of rows, the
 * row's place among them, or the range of groups. Variants with fused multiply-add (all but "generic") agree bit for
 * bit, except where "avx512bf16" multiplies BF16 weights.
 *
 * Nothing here allocates (but kg_packed_memory), fails or keeps state: all of it may run on any number of threads. */
#ifndef KG_MATMUL_H
#define KG_MATMUL_H

#include "kigo.h"
#include "quant.h"

enum {
  KG_GROUP = 16, /* weight rows in a group */
  KG_PANEL = 16  /* activation rows in a panel */
};

/* ---- weights ---- */

typedef struct kg_packed {
  kg_type type;
  int64_t cols, rows, planes;
  int64_t n_groups;     /* of one plane: rows / KG_GROUP, rounded up; the rows that are missing are zeros */
  size_t group_bytes;   /* a multiple of 64 */
  size_t plane_bytes;   /* n_groups * group_bytes */
  size_t n_bytes;       /* planes * plane_bytes; above the file's bytes by 4 % at most, and the zeros */
  unsigned char *data;  /* n_bytes, 64-byte aligned; the caller's, who sets it after kg_packed_init */
} kg_packed;

/* Fill everything but `data` (which becomes NULL). Errors: a type that cannot be computed with (KG_ERR_UNSUPPORTED), a
 * shape that is empty, not whole blocks, or too large (KG_ERR_FORMAT). */
int kg_packed_init(kg_packed *packed, kg_type type, int64_t cols, int64_t rows, int64_t planes, kg_error *err);

/* Memory for packed weights, 64-byte aligned, in large pages where the system gives them; NULL on failure. Not zeroed,
 * and resident only as far as it was written. Release with kg_free. Several weights may share a block. */
void *kg_packed_memory(size_t n_bytes);

/* Pack groups [group0, group1) of a plane. `blocks` is the plane's first row as in the file (any alignment); only the
 * rows of these groups are read: rows [group0 * KG_GROUP, group1 * KG_GROUP), at row * (bytes of a row). */
void kg_pack(const kg_packed *packed, int64_t plane, int64_t group0, int64_t group1, const void *blocks);

/* ---- activations ---- */

typedef enum kg_activation_format {
  KG_ACTIVATION_F32,  /* as they are; for F32, F16 and BF16 weights */
  KG_ACTIVATION_BF16, /* rounded to bfloat16; for BF16 weights where the instruction set multiplies them */
  KG_ACTIVATION_Q8    /* 8-bit codes in blocks of 32: scale = max|x| / 127; for all block types */
} kg_activation_format;

/* Bytes of n_rows rows in a format (a buffer of this size serves fewer rows too). 64-byte aligned memory is wanted. */
size_t kg_activation_bytes(kg_activation_format format, int64_t n_rows, int64_t cols);

/* ---- products ---- */

/* out[n][r] = dot(weight row r, x row n) [+ bias[r]] [+ residual[n][r]], added in this order. */
typedef struct kg_matmul {
  const kg_packed *weight;
  int64_t plane;
  const void *x;           /* n_rows activation rows, made by `quantize` with the same n_rows and cols */
  int64_t n_rows;
  const float *bias;       /* [rows] or NULL */
  const float *residual;   /* row n at n * residual_stride, or NULL; may be `out` itself */
  int64_t residual_stride; /* floats */
  float *out;              /* row n at n * out_stride; element r is weight row r */
  int64_t out_stride;      /* floats */
} kg_matmul;

/* The kernels of one instruction set. */
typedef struct kg_kernels {
  const char *name; /* "generic", "avx2", "avxvnni", "avx512vnni", "avx512bf16" */

  /* The format in which `matmul` reads activations for weights of this type. */
  kg_activation_format (*format)(kg_type type);

  /* Convert rows [row0, row1) of the n_rows rows at x (row n at n * x_stride floats, cols floats each) and store them
   * where `matmul` expects them in `out`, which is the buffer of all n_rows rows. For KG_ACTIVATION_Q8 cols is a multiple
   * of 32. Rows that are not finite give products that are not finite. */
  void (*quantize)(kg_activation_format format, const float *x, int64_t x_stride, int64_t n_rows, int64_t cols,
                   int64_t row0, int64_t row1, void *out);

  /* Products with weight rows of groups [group0, group1); writes only their columns of `out`. */
  void (*matmul)(const kg_matmul *m, int64_t group0, int64_t group1);

  /* One weight row as float32 (for embedding tables), the bits that dequantizing the file's row gives. */
  void (*dequantize_row)(const kg_packed *weight, int64_t plane, int64_t row, float *out);
} kg_kernels;

/* The best kernels that this processor runs, or those of a variant by name. KG_ERR_UNSUPPORTED: unknown or not available
 * here; the error lists those that are. */
int kg_kernels_find(const char *variant, const kg_kernels **out, kg_error *err);

/* The index-th available variant, from "generic" to the best; NULL past the end. */
const kg_kernels *kg_kernels_at(int index);

#endif
