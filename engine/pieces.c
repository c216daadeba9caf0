#include "pieces.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"
#include "tokenizer.h"

/* ---- plain text ---- */

/* Of the states behind a byte of several: what the next one may be, and the state behind it. */
int kg_plain_step(int state, unsigned char byte)
{
  static const struct {
    uint8_t lo, hi, next;
  } within[KG_PLAIN_STATES] = {{0, 0, 0},       {0x80, 0xBF, 0}, {0x80, 0xBF, 1}, {0x80, 0xBF, 2},
                               {0xA0, 0xBF, 1}, {0x80, 0x9F, 1}, {0x90, 0xBF, 2}, {0x80, 0x8F, 2}};
  if (state) return byte < within[state].lo || byte > within[state].hi ? -1 : within[state].next;
  if (byte < 0x80) return byte < 0x20 || byte == '"' || byte == '\\' || byte == 0x7F ? -1 : 0;
  if (byte < 0xC2 || byte > 0xF4) return -1;
  if (byte < 0xE0) return 1;
  if (byte < 0xF0) return byte == 0xE0 ? 4 : byte == 0xED ? 5 : 2;
  return byte == 0xF0 ? 6 : byte == 0xF4 ? 7 : 3;
}

/* Characters of a plain text; UINT32_MAX: it is none. */
static uint32_t count_characters(kg_string text)
{
  uint32_t n = 0;
  int state = 0;
  for (size_t i = 0; i < text.size && state >= 0; i++) {
    state = kg_plain_step(state, (unsigned char)text.data[i]);
    n += state == 0; /* bounded: bytes of a piece */
  }
  return state ? UINT32_MAX : n;
}

/* ---- trees ---- */

typedef struct piece {
  kg_string text;
  int32_t id;
  uint32_t n_characters; /* UINT32_MAX: not plain */
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
static void lay_out(kg_piece_tree *tree, const piece *sorted, size_t n)
{
  uint32_t path[KG_PIECE_MAX + 1], n_nodes = 0, n_tokens = 0;
  size_t depth = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_string text = sorted[i].text;
    const size_t shared = i ? common(text, sorted[i - 1].text) : 0;
    if (i && same_text(&sorted[i], &sorted[i - 1])) {
      tree->nodes[n_nodes - 1].has_same = true;
      n_tokens++;
      continue;
    }
    while (depth > shared) tree->nodes[path[depth--]].skip = n_nodes;
    while (depth < text.size) {
      tree->counts[n_nodes] = n_tokens;
      path[++depth] = n_nodes;
      tree->nodes[n_nodes++] =
          (kg_piece_node){.id = -1, .depth = (uint16_t)depth, .byte = (uint8_t)text.data[depth - 1]};
    }
    tree->nodes[n_nodes - 1].id = sorted[i].id;
    n_tokens++;
  }
  while (depth) tree->nodes[path[depth--]].skip = n_nodes;
  tree->n_nodes = n_nodes;
  tree->counts[n_nodes] = n_tokens;
}

static int build_tree(kg_piece_tree *tree, const piece *sorted, size_t n, kg_error *err)
{
  size_t n_nodes = 0;
  /* bounded: bytes of the vocabulary */
  for (size_t i = 0; i < n; i++) n_nodes += sorted[i].text.size - (i ? common(sorted[i].text, sorted[i - 1].text) : 0);
  tree->nodes = kg_alloc_array(n_nodes, sizeof *tree->nodes);
  tree->counts = kg_alloc_array(n_nodes + 1, sizeof *tree->counts); /* bounded: bytes of the vocabulary */
  if (!tree->nodes || !tree->counts) return kg_fail_memory(err, n_nodes * sizeof *tree->nodes, "the vocabulary's tree");
  lay_out(tree, sorted, n);
  return KG_OK;
}

/* The slice, and a tree of what is not in it; `kept` has room for that. */
static int build_slice(kg_piece_slice *slice, const piece *sorted, size_t n, piece *kept, size_t n_ids, kg_error *err)
{
  size_t n_kept = 0;
  slice->bits = kg_alloc_array(kg_bit_words(n_ids), sizeof *slice->bits);
  if (!slice->bits) return kg_fail_memory(err, n_ids / 8, "the vocabulary's tree");
  for (size_t i = 0; i < n; i++) {
    if (sorted[i].n_characters <= slice->max_characters)
      kg_set_bit(slice->bits, (size_t)sorted[i].id);
    else
      kept[n_kept++] = sorted[i];
  }
  return build_tree(&slice->rest, kept, n_kept, err);
}

/* The tokens that may be in the trees, sorted. */
static size_t gather(const kg_tokenizer *tokenizer, piece *out)
{
  size_t n = 0;
  for (int32_t id = 0; id < tokenizer->vocab.size; id++) {
    bool after_special = false;
    const kg_string text = kg_tokenizer_piece(tokenizer, id, 0, &after_special);
    if (!text.size || text.size > KG_PIECE_MAX || kg_tokenizer_is_end(tokenizer, id)) continue;
    out[n++] = (piece){text, id, count_characters(text)};
  }
  if (n) qsort(out, n, sizeof *out, by_bytes_then_id);
  return n;
}

static int build(kg_pieces *pieces, const kg_tokenizer *tokenizer, kg_error *err)
{
  static const uint32_t characters[KG_PIECE_SLICES] = {4, 9, 20, KG_PIECE_MAX};
  const size_t size = (size_t)tokenizer->vocab.size;
  piece *sorted = kg_alloc_array(size, sizeof *sorted), *kept = kg_alloc_array(size, sizeof *kept);
  pieces->same = kg_alloc_array(size, sizeof *pieces->same);
  int status =
      sorted && kept && pieces->same ? KG_OK : kg_fail_memory(err, size * sizeof *sorted, "the vocabulary's tree");
  if (!status) {
    const size_t n = gather(tokenizer, sorted);
    /* bounded: in memory */
    memset(pieces->same, 0xFF, size * sizeof *pieces->same); /* -1 */
    for (size_t i = 1; i < n; i++)
      if (same_text(&sorted[i], &sorted[i - 1])) pieces->same[sorted[i - 1].id] = sorted[i].id;
    status = build_tree(&pieces->all, sorted, n, err);
    for (size_t i = 0; i < KG_PIECE_SLICES && !status; i++) {
      pieces->slices[i].max_characters = characters[i];
      status = build_slice(&pieces->slices[i], sorted, n, kept, size, err);
    }
  }
  kg_free(sorted);
  kg_free(kept);
  return status;
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

static void free_tree(kg_piece_tree *tree)
{
  kg_free(tree->nodes);
  kg_free(tree->counts);
}

void kg_pieces_free(kg_pieces *pieces)
{
  if (!pieces) return;
  kg_free(pieces->same);
  free_tree(&pieces->all);
  for (size_t i = 0; i < KG_PIECE_SLICES; i++) {
    kg_free(pieces->slices[i].bits);
    free_tree(&pieces->slices[i].rest);
  }
  kg_free(pieces);
}
