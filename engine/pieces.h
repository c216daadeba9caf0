/* pieces.h - a vocabulary as constraints see it: what its tokens write, as trees of bytes in the order of a walk, so
 * that an automaton meets every beginning once. Control tokens, tokens that write nothing and those of more than
 * KG_PIECE_MAX bytes are not in them. */
#ifndef KG_PIECES_H
#define KG_PIECES_H

#include "kigo.h"

enum { KG_PIECE_MAX = 1024, KG_PIECE_SLICES = 4 };

typedef struct kg_piece_node {
  uint32_t skip;  /* the next node that is not below this one */
  int32_t id;     /* the first token that ends here, or -1 */
  uint16_t depth; /* bytes from the root, which is no node: 1 or more */
  uint8_t byte;
  bool has_same;  /* other tokens write the same: kg_pieces.same */
} kg_piece_node;

typedef struct kg_piece_tree {
  kg_piece_node *nodes;
  uint32_t n_nodes;
  uint32_t *counts; /* [n_nodes + 1]: tokens in the nodes before each, those that write the same included */
} kg_piece_tree;

/* Tokens of plain text: whole characters, none of them a control character, a quote or a backslash. Most tokens are,
 * and most automata that allow long texts allow them all, which is found out without a walk. */
typedef struct kg_piece_slice {
  uint32_t max_characters; /* of tokens in the slice */
  uint64_t *bits;          /* which they are */
  kg_piece_tree rest;      /* all others */
} kg_piece_slice;

typedef struct kg_pieces {
  int32_t *same;      /* [tokens of the vocabulary]: the next one that writes the same, or -1 */
  kg_piece_tree all;
  kg_piece_slice slices[KG_PIECE_SLICES]; /* of shorter tokens first; all plain tokens are in the last */
} kg_pieces;

/* The trees of this tokenizer, made where there are none yet; the tokenizer owns them. KG_ERR_UNSUPPORTED: its ids have
 * no text. */
int kg_tokenizer_pieces(kg_tokenizer *tokenizer, const kg_pieces **out, kg_error *err);
void kg_pieces_free(kg_pieces *pieces);

/* Reading plain text byte by byte: the state behind the byte, 0 at the start and between characters; negative: it is
 * none. */
enum { KG_PLAIN_STATES = 8 };
int kg_plain_step(int state, unsigned char byte);

#endif
