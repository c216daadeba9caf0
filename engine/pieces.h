/* pieces.h - a vocabulary as constraints see it: what its tokens write, as one tree of bytes in the order of a walk, so
 * that an automaton meets every beginning once. Control tokens, tokens that write nothing and those of more than
 * KG_PIECE_MAX bytes are not in it. */
#ifndef KG_PIECES_H
#define KG_PIECES_H

#include "kigo.h"

enum { KG_PIECE_MAX = 1024 };

typedef struct kg_piece_node {
  uint32_t skip;  /* the next node that is not below this one */
  int32_t id;     /* the first token that ends here, or -1 */
  uint16_t depth; /* bytes from the root, which is no node: 1 or more */
  uint8_t byte;
  bool has_same;  /* other tokens write the same: kg_pieces.same */
} kg_piece_node;

typedef struct kg_pieces {
  kg_piece_node *nodes;
  uint32_t n_nodes;
  uint32_t *counts; /* [n_nodes + 1]: tokens in the nodes before each, those that write the same included */
  int32_t *same;    /* [tokens of the vocabulary]: the next one that writes the same, or -1 */
} kg_pieces;

/* The tree of this tokenizer, made where there is none yet; the tokenizer owns it. KG_ERR_UNSUPPORTED: its ids have no
 * text. */
int kg_tokenizer_pieces(kg_tokenizer *tokenizer, const kg_pieces **out, kg_error *err);
void kg_pieces_free(kg_pieces *pieces);

/* The first child of the root that is this byte, or UINT32_MAX. */
uint32_t kg_pieces_find(const kg_pieces *pieces, unsigned char byte);

#endif
