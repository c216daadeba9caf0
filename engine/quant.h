/* quant.h - the tensor types of GGUF files and their conversion to and from float32.
 * Block layouts follow the public GGUF/GGML type definitions; specs compare every type bit for bit with gguf-py. */
#ifndef KG_QUANT_H
#define KG_QUANT_H

#include "kigo.h"

typedef enum kg_type { /* numbers as in the file */
  KG_F32 = 0, KG_F16 = 1, KG_Q4_0 = 2, KG_Q4_1 = 3, KG_Q5_0 = 6, KG_Q5_1 = 7, KG_Q8_0 = 8, KG_Q8_1 = 9,
  KG_Q2_K = 10, KG_Q3_K = 11, KG_Q4_K = 12, KG_Q5_K = 13, KG_Q6_K = 14, KG_Q8_K = 15,
  KG_IQ2_XXS = 16, KG_IQ2_XS = 17, KG_IQ3_XXS = 18, KG_IQ1_S = 19, KG_IQ4_NL = 20, KG_IQ3_S = 21, KG_IQ2_S = 22,
  KG_IQ4_XS = 23, KG_I8 = 24, KG_I16 = 25, KG_I32 = 26, KG_I64 = 27, KG_F64 = 28, KG_IQ1_M = 29, KG_BF16 = 30,
  KG_TQ1_0 = 34, KG_TQ2_0 = 35, KG_MXFP4 = 39, KG_NVFP4 = 40
} kg_type;

typedef struct kg_type_info {
  const char *name;    /* "Q4_K" */
  int32_t block_size;  /* values in a block */
  int32_t block_bytes;
  /* n_blocks blocks to float32; NULL for types that can be listed but not computed with. */
  void (*dequantize)(const void *blocks, int64_t n_blocks, float *out);
} kg_type_info;

/* The type's description, or NULL for a number that no known type has. */
const kg_type_info *kg_type_find(uint32_t type);

/* Can weights of this type take part in a forward pass? (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K,
 * IQ4_NL, IQ4_XS, MXFP4) */
bool kg_type_is_computable(kg_type type);

/* Bytes of n values; n must be a multiple of the block size. False on overflow or a broken block. */
bool kg_type_bytes(const kg_type_info *info, uint64_t n, size_t *out);

/* n float32 values to blocks of any computable type; n a multiple of the block size. Q4_0 to Q8_0 round to nearest on a
 * grid from the extreme values; the others look for the grid with the least squares of errors in each group of values.
 * KG_ERR_ARGUMENT: another type, or a value that is not finite or above 65504 in a type of blocks. */
int kg_quantize(kg_type type, const float *values, int64_t n, void *out, kg_error *err);

/* The sixteen levels of IQ4_NL and IQ4_XS, denser around zero, and those of MXFP4, doubled. */
extern const int8_t kg_iq4_levels[16], kg_mxfp4_levels[16];

float kg_f16_to_f32(uint16_t half);
uint16_t kg_f32_to_f16(float value); /* round to nearest even */
float kg_bf16_to_f32(uint16_t bits);
uint16_t kg_f32_to_bf16(float value); /* round to nearest even; NaN stays NaN */

#endif
