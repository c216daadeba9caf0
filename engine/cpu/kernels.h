/* kernels.h - what packing and the kernels share: the packed layouts, the layout of activations, the list of variants.
 *
 * Float types: a group is [k][16 rows] (F32, F16), or [k / 2][16 rows][2] (BF16: pairs are the operand of a dot
 * product), with cols padded by zeros to KG_FLOAT_BLOCK.
 *
 * Block types: a group is a list of units of unit_blocks blocks of 32 columns; the last unit may hold fewer. A unit is a
 * head (head_bytes: scales, whole even in a short unit) and then the codes of its blocks (block_bytes each). Codes are
 * unsigned, stored with their offset, in planes of 64-byte vectors. In a vector, bytes 4r to 4r + 3 belong to row r.
 * A block has 8 steps; step s are columns 4s to 4s + 3, byte i of a row column 4s + i.
 *   8 bits:  vector s is step s
 *   nibbles: vector j has step j in its low nibbles and step j + 4 in the high ones (j < 4)
 *   pairs:   vector j has step 4j + f in bits 2f and 2f + 1 (j < 2)
 *   bits:    one vector, step s in bit s
 *
 *   type         unit  head                                                        codes
 *   Q4_0 IQ4_NL     2  d[2][16] f16                                                nibbles
 *   Q4_1            2  {d[16], m[16]}[2] f16                                       nibbles
 *   Q5_0            2  d[2][16] f16                                                nibbles, bits (the fifth)
 *   Q5_1            2  {d[16], m[16]}[2] f16                                       nibbles, bits
 *   Q8_0            2  d[2][16] f16                                                8 bits, + 128
 *   MXFP4           4  e[4][16] bytes                                              nibbles
 *   Q2_K            8  d[16], dmin[16] f16, {min << 4 | scale}[16][16] bytes       pairs
 *   Q3_K            8  d[16] f16, (scale - 32)[16][16] bytes                       pairs, bits (the third)
 *   Q4_K            8  d[16], dmin[16] f16, scale[8][16] bytes, min[8][16] bytes   nibbles
 *   Q5_K            8  as Q4_K                                                     nibbles, bits
 *   Q6_K            8  d[16] f16, 32 bytes unused, scale[16][16] bytes             nibbles, pairs (the upper two)
 *   IQ4_XS          8  d[16] f16, 32 bytes unused, (scale - 32)[8][16] bytes       nibbles */
#ifndef KG_KERNELS_H
#define KG_KERNELS_H

#include "matmul.h"

enum {
  KG_BLOCK = 32,       /* columns in a block, whatever the file's blocks are */
  KG_FLOAT_BLOCK = 16, /* columns of float activations that stand together */
  KG_MAX_UNIT = 8
};

typedef struct kg_layout {
  int unit_blocks; /* 0: a float type */
  int head_bytes, block_bytes;
} kg_layout;

static inline kg_layout kg_layout_of(kg_type type)
{
  switch (type) {
  case KG_Q4_0:
  case KG_IQ4_NL: return (kg_layout){2, 64, 256};
  case KG_Q4_1: return (kg_layout){2, 128, 256};
  case KG_Q5_0: return (kg_layout){2, 64, 320};
  case KG_Q5_1: return (kg_layout){2, 128, 320};
  case KG_Q8_0: return (kg_layout){2, 64, 512};
  case KG_MXFP4: return (kg_layout){4, 64, 256};
  case KG_Q2_K: return (kg_layout){8, 320, 128};
  case KG_Q3_K: return (kg_layout){8, 288, 192};
  case KG_Q4_K: return (kg_layout){8, 320, 256};
  case KG_Q5_K: return (kg_layout){8, 320, 320};
  case KG_Q6_K: return (kg_layout){8, 320, 384};
  case KG_IQ4_XS: return (kg_layout){8, 192, 256};
  default: return (kg_layout){0, 0, 0};
  }
}

/* Activations: panels of KG_PANEL rows, the last one with what is left; a panel of `rows` rows is a list of blocks.
 * Float formats: [KG_FLOAT_BLOCK columns][rows], that is per block and row 16 columns; cols padded with zeros.
 * Q8: per block of 32 columns: codes int8 [rows][32], then eight fields of 4 bytes [field][rows]. */
enum {
  KG_Q8_SCALE,     /* float: x = scale * code */
  KG_Q8_SUM,       /* float: scale * (sum of the codes) */
  KG_Q8_SUM_LO,    /* float: the same of columns 0 to 15 */
  KG_Q8_SUM_HI,    /* ... and 16 to 31 */
  KG_Q8_TIMES_8,   /* int32: -8 * (sum of the codes); products of codes with an offset start from these */
  KG_Q8_TIMES_128, /* int32: -128 * sum */
  KG_Q8_TIMES_LO,  /* int32: -128 * sum of columns 0 to 15 */
  KG_Q8_TIMES_HI,
  KG_Q8_FIELDS
};
enum { KG_Q8_ROW_BYTES = KG_BLOCK + 4 * KG_Q8_FIELDS }; /* of a row in a block */

/* The values of the 4-bit codes of IQ4_NL and IQ4_XS + 128, and those of MXFP4 (doubled) + 16. */
static const uint8_t kg_iq4_codes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t kg_mxfp4_codes[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

/* The variants. Those that this build does not have are NULL. */
extern const kg_kernels *const kg_kernels_generic;
extern const kg_kernels *const kg_kernels_avx2;
extern const kg_kernels *const kg_kernels_avxvnni;
extern const kg_kernels *const kg_kernels_avx512vnni;
extern const kg_kernels *const kg_kernels_avx512bf16;

#endif
