/* mask.h - which tokens an automaton allows: the vocabulary's tree walked along with it. What a lexeme allows by
 * itself, whatever surrounds it, is kept by the lexeme's state, with the places in the tree where it may be complete
 * and what surrounds it must be asked; whole masks are kept by set. (After Willard and Louf 2023, Dong et al. 2024.)
 * Both are kept within a limit of memory, and dropped when it is reached. */
#ifndef KG_MASK_H
#define KG_MASK_H

#include "automaton.h"
#include "pieces.h"
#include "tokenizer.h"

typedef struct kg_masks kg_masks;

/* The masks of a grammar for this tokenizer, made where there are none yet; the grammar owns them and keeps a reference
 * to the tokenizer. */
int kg_grammar_masks(kg_grammar *grammar, kg_tokenizer *tokenizer, kg_masks **out, kg_error *err);
void kg_masks_free(kg_masks *masks); /* of the whole list */

/* Tokens whose text fits behind the set, as bits (token i: bit i % 64 of word i / 64); end tokens are not among them.
 * Good until the next call. KG_ERR_FULL as in automaton.h. */
int kg_masks_get(kg_masks *masks, kg_set set, kg_points points, const uint64_t **out, kg_error *err);
size_t kg_masks_n_words(const kg_masks *masks);
/* The same with a space in front, which the tokens do not write: what is allowed at the start of a text. A token that
 * loses its space there fits by the rest of it. `out` is the caller's. */
int kg_masks_get_stripped(kg_masks *masks, kg_set set, kg_points points, uint64_t *out, kg_error *err);

#endif
