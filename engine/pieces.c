#include "pieces.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"

typedef struct piece {
  kg_string text;
  int32_t id;
} piece;

static int by_bytes_then_id(const void *a, const void *b)
{
  const piece *x = a, *y = b;
  const size_t n = x->text.size < y->text.size ? x->text.size : y->text.size;
  const int order = memcmp(x->text.data, y->text.data, n);
  if (order) return order;
  if (x->text.size != y->text.size) return x->text.size < y->text.size ? -1 : 1;
  return (x->id > y->id) - (x->id < y->id);
}

static bool same_text(const piece *x, const piece *y)
{
  return x->text.size == y->text.size && !memcmp(x->text.data, y->text.data, x->text.size);
}

static size_t common(kg_string x, kg_string y)
{
  size_t n = 0;
  while (n < x.size && n < y.size && x.data[n] == y.data[n]) n++;
  return n;
}

/* Lay out the nodes of sorted pieces: each adds those bytes that it does not share with the one before. `path`: the
 * open node of each depth. */
static void lay_out(kg_pieces *pieces, const piece *sorted, size_t n, uint32_t *path)
{
  uint32_t n_nodes = 0;
  size_t depth = 0;
  uint32_t n_tokens = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_string text = sorted[i].text;
    if (i && same_text(&sorted[i], &sorted[i - 1])) {
      pieces->nodes[n_nodes - 1].has_same = true;
      pieces->same[sorted[i - 1].id] = sorted[i].id;
      n_tokens++;
      continue;
    }
    const size_t shared = i ? common(text, sorted[i - 1].text) : 0;
    while (depth > shared) pieces->nodes[path[depth--]].skip = n_nodes;
    while (depth < text.size) {
      pieces->counts[n_nodes] = n_tokens;
      path[++depth] = n_nodes;
      pieces->nodes[n_nodes++] =
          (kg_piece_node){.id = -1, .depth = (uint16_t)depth, .byte = (uint8_t)text.data[depth - 1]};
    }
    pieces->nodes[n_nodes - 1].id = sorted[i].id;
    n_tokens++;
  }
  while (depth) pieces->nodes[path[depth--]].skip = n_nodes;
  pieces->n_nodes = n_nodes;
  pieces->counts[n_nodes] = n_tokens;
}

/* The tokens that may be in the tree, sorted, and how many nodes they need. */
static size_t gather(const kg_tokenizer *tokenizer, piece *out, size_t *n_nodes)
{
  size_t n = 0;
  for (int32_t id = 0; id < tokenizer->vocab.size; id++) {
    bool after_special = false;
    const kg_string text = kg_tokenizer_piece(tokenizer, id, 0, &after_special);
    if (text.size && text.size <= KG_PIECE_MAX && !kg_tokenizer_is_end(tokenizer, id)) out[n++] = (piece){text, id};
  }
  if (n) qsort(out, n, sizeof *out, by_bytes_then_id);
  *n_nodes = 0;
  for (size_t i = 0; i < n; i++) *n_nodes += out[i].text.size - (i ? common(out[i].text, out[i - 1].text) : 0);
  return n;
}

static int build(kg_pieces *pieces, const kg_tokenizer *tokenizer, kg_error *err)
{
  const size_t size = (size_t)tokenizer->vocab.size;
  piece *sorted = kg_alloc_array(size, sizeof *sorted);
  if (!sorted) return kg_fail_memory(err, size * sizeof *sorted, "the vocabulary's tree");
  size_t n_nodes;
  const size_t n = gather(tokenizer, sorted, &n_nodes);
  uint32_t path[KG_PIECE_MAX + 1] = {0};
  pieces->nodes = kg_alloc_array(n_nodes, sizeof *pieces->nodes);
  pieces->counts = kg_alloc_array(n_nodes + 1, sizeof *pieces->counts);
  pieces->same = kg_alloc_array(size, sizeof *pieces->same);
  const bool is_there = pieces->nodes && pieces->counts && pieces->same;
  if (is_there) {
    memset(pieces->same, 0xFF, size * sizeof *pieces->same); /* -1 */
    lay_out(pieces, sorted, n, path);
  }
  kg_free(sorted);
  return is_there ? KG_OK : kg_fail_memory(err, n_nodes * sizeof *pieces->nodes, "the vocabulary's tree");
}

int kg_tokenizer_pieces(kg_tokenizer *tokenizer, const kg_pieces **out, kg_error *err)
{
  if (!tokenizer->kind->encode)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "the model has no vocabulary: its ids have no text to constrain");
  if (!tokenizer->pieces) {
    kg_pieces *pieces = kg_alloc_array(1, sizeof *pieces);
    if (!pieces) return kg_fail_memory(err, sizeof *pieces, "the vocabulary's tree");
    const int status = build(pieces, tokenizer, err);
    if (status) {
      kg_pieces_free(pieces);
      return status;
    }
    tokenizer->pieces = pieces;
  }
  *out = tokenizer->pieces;
  return KG_OK;
}

void kg_pieces_free(kg_pieces *pieces)
{
  if (!pieces) return;
  kg_free(pieces->nodes);
  kg_free(pieces->counts);
  kg_free(pieces->same);
  kg_free(pieces);
}

uint32_t kg_pieces_find(const kg_pieces *pieces, unsigned char byte)
{
  for (uint32_t i = 0; i < pieces->n_nodes; i = pieces->nodes[i].skip)
    if (pieces->nodes[i].byte == byte) return i;
  return UINT32_MAX;
}
