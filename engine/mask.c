#include "mask.h"

#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"

enum {
  HEAVY_BYTES = 20, /* a lexeme that so many bytes may follow is walked by itself and its mask kept */
  PLAIN_MAX = 20,   /* characters of the longest slice with a limit */
  MASKS_BYTES = 32 << 20,
  FINAL_MASKS = 256
};

/* What a lexeme's state allows. */
typedef struct lexeme_mask {
  const kg_piece_tree *tree; /* that the exits are in: without tokens that are known to fit */
  uint64_t *bits;            /* tokens that the lexeme reads as a part of itself */
  uint32_t *exits;           /* nodes where it may be complete, and below which not all is in bits */
  size_t n_exits, exits_capacity;
} lexeme_mask;

/* States of a lexeme where plain text may stand, with its own (kg_plain_step). */
typedef struct places {
  struct place {
    kg_state state;
    uint32_t plain;
  } *items;
  size_t n, capacity;
} places;

typedef struct final_mask {
  kg_set set;
  kg_points points;
  uint64_t *bits; /* [n_words]; NULL: none */
} final_mask;

struct kg_masks {
  kg_masks *next;
  kg_tokenizer *tokenizer; /* one reference */
  const kg_pieces *pieces;
  kg_automaton *automaton;
  kg_regular *regular;
  const uint8_t *classes;
  uint32_t n_classes, generation;
  size_t n_words;

  uint32_t *of_state; /* by state of a lexeme: 0: not known; LIGHT; else its mask's number + FIRST_MASK */
  size_t of_state_capacity;
  lexeme_mask *lexemes;
  size_t n_lexemes, lexemes_capacity, lexeme_bytes;
  final_mask finals[FINAL_MASKS]; /* by hash of set and points */

  struct plain_step { /* how plain text may go on, by classes of bytes */
    uint8_t class, next;
  } plain[KG_PLAIN_STATES][256];
  uint32_t n_plain[KG_PLAIN_STATES];
  uint32_t *seen; /* [states of lexemes][KG_PLAIN_STATES]: the search that saw them last */
  size_t seen_capacity;
  uint32_t search;
  places between, within; /* two characters; one */

  kg_set path[KG_PIECE_MAX + 1]; /* of a walk, by depth */
  const kg_set *rows[KG_PIECE_MAX + 1];
  kg_state states[KG_PIECE_MAX + 1];
};

enum { UNKNOWN = 0, LIGHT = 1, FIRST_MASK = 2 };

size_t kg_masks_n_words(const kg_masks *m) { return m->n_words; }

static void drop_lexemes(kg_masks *m)
{
  for (size_t i = 0; i < m->n_lexemes; i++) {
    kg_free(m->lexemes[i].bits);
    kg_free(m->lexemes[i].exits);
  }
  m->n_lexemes = m->lexeme_bytes = 0;
  /* bounded: in memory */
  if (m->of_state) memset(m->of_state, 0, m->of_state_capacity * sizeof *m->of_state); /* UNKNOWN */
}

static void drop_finals(kg_masks *m)
{
  for (size_t i = 0; i < FINAL_MASKS; i++) {
    kg_free(m->finals[i].bits);
    m->finals[i].bits = NULL;
  }
}

void kg_masks_free(kg_masks *m)
{
  while (m) {
    kg_masks *next = m->next;
    drop_lexemes(m);
    drop_finals(m);
    kg_free(m->of_state);
    kg_free(m->lexemes);
    kg_free(m->seen);
    kg_free(m->between.items);
    kg_free(m->within.items);
    kg_tokenizer_free(m->tokenizer);
    kg_free(m);
    m = next;
  }
}

/* ---- walks ---- */

static void allow(const kg_masks *m, const kg_piece_node *node, uint64_t *bits)
{
  int32_t id = node->id;
  if (id < 0) return;
  kg_set_bit(bits, (size_t)id);
  if (!node->has_same) return;
  while ((id = m->pieces->same[id]) >= 0) kg_set_bit(bits, (size_t)id);
}

/* Allow the tokens of nodes [at, end), all below a node of this depth (0: the root) where the automaton is in `set`. */
static int walk(kg_masks *m, const kg_piece_tree *tree, uint32_t at, uint32_t end, uint32_t depth, kg_set set,
                kg_points points, uint64_t *bits, kg_error *err)
{
  kg_automaton *a = m->automaton;
  if (set == KG_SET_DEAD || set == KG_SET_END) return KG_OK;
  m->path[depth] = set;
  m->rows[depth] = kg_automaton_row(a, set, points);
  while (at < end) {
    const kg_piece_node *node = &tree->nodes[at];
    const uint32_t class = m->classes[node->byte], above = node->depth - 1;
    kg_set next = m->rows[above] ? m->rows[above][class] : KG_SET_UNKNOWN;
    if (next == KG_SET_UNKNOWN) {
      const int status = kg_automaton_step(a, m->path[above], class, points, NULL, &next, err);
      if (status) return status;
      for (uint32_t d = depth; d <= above; d++) m->rows[d] = kg_automaton_row(a, m->path[d], points); /* they moved */
    }
    if (next == KG_SET_DEAD) {
      at = node->skip;
      continue;
    }
    allow(m, node, bits);
    if (next == KG_SET_END) {
      at = node->skip;
      continue;
    }
    m->path[above + 1] = next; /* bounded: KG_PIECE_MAX */
    m->rows[above + 1] = kg_automaton_row(a, next, points); /* bounded: KG_PIECE_MAX */
    at++;
  }
  return KG_OK;
}

/* An exit while the nodes below it are walked. */
typedef struct open_exit {
  uint32_t end;      /* where the nodes below end */
  size_t n_exits;    /* with it */
  uint32_t n_denied; /* tokens denied before them */
} open_exit;

static bool add_exit(lexeme_mask *mask, uint32_t node)
{
  if (!kg_grow((void **)&mask->exits, &mask->exits_capacity, mask->n_exits + 1, sizeof *mask->exits)) return false;
  mask->exits[mask->n_exits++] = node;
  return true;
}

/* The mask of a lexeme in this state. Exits below which the lexeme allows all tokens itself are none. */
static int make_lexeme_mask(kg_masks *m, kg_state state, lexeme_mask *out, kg_error *err)
{
  open_exit open[KG_PIECE_MAX + 1];
  size_t n_open = 0;
  uint32_t at = 0, n_denied = 0;
  const kg_piece_tree *tree = out->tree;
  const kg_state *rows = kg_regular_rows(m->regular);
  m->states[0] = state;
  while (at < tree->n_nodes || n_open) {
    while (n_open && at >= open[n_open - 1].end) {
      n_open--;
      if (open[n_open].n_denied == n_denied) out->n_exits = open[n_open].n_exits - 1;
    }
    if (at >= tree->n_nodes) break;
    const kg_piece_node *node = &tree->nodes[at];
    const uint32_t class = m->classes[node->byte];
    const kg_state from = m->states[node->depth - 1];
    kg_state next = rows[(size_t)from * m->n_classes + class]; /* bounded: a table in memory */
    if (next >= KG_STATE_ASK) {
      next = kg_regular_step(m->regular, from, class);
      const int status = kg_regular_status(m->regular, err);
      if (status) return status;
      rows = kg_regular_rows(m->regular);
    }
    if (next == KG_STATE_DEAD) {
      n_denied += tree->counts[node->skip] - tree->counts[at]; /* bounded: nodes of a tree */
      at = node->skip;
      continue;
    }
    allow(m, node, out->bits);
    m->states[node->depth] = next;
    if (node->skip > at + 1 && kg_regular_accepts(m->regular, next)) { /* bounded: nodes of a tree */
      if (!add_exit(out, at)) return kg_fail_memory(err, out->n_exits, "a mask");
      open[n_open++] = (open_exit){node->skip, out->n_exits, n_denied};
    }
    at++;
  }
  return KG_OK;
}

/* ---- lexemes ---- */

/* Is it worth a mask of its own? */
static int is_heavy(kg_masks *m, kg_state state, bool *out, kg_error *err)
{
  uint32_t n = 0;
  for (uint32_t c = 0; c < m->n_classes && n < HEAVY_BYTES; c++)
    /* bounded: 256 */
    if (kg_regular_step(m->regular, state, c) != KG_STATE_DEAD) n += kg_regular_class_size(m->regular, c);
  *out = n >= HEAVY_BYTES;
  return kg_regular_status(m->regular, err);
}

static bool grow_states(kg_masks *m, kg_state state)
{
  const size_t before = m->of_state_capacity;
  if (state < before) return true;
  if (!kg_grow((void **)&m->of_state, &m->of_state_capacity, (size_t)state + 1, sizeof *m->of_state)) return false;
  /* bounded: in memory */
  memset(m->of_state + before, 0, (m->of_state_capacity - before) * sizeof *m->of_state); /* UNKNOWN */
  return true;
}

/* ---- plain text ---- */

static bool look_at(kg_masks *m, kg_state state, uint32_t plain)
{
  places *list = plain ? &m->within : &m->between;
  /* bounded: 2^32 states times a few */
  const size_t at = (size_t)state * KG_PLAIN_STATES + plain, before = m->seen_capacity;
  if (at >= before) {
    if (!kg_grow((void **)&m->seen, &m->seen_capacity, at + 1, sizeof *m->seen)) return false;
    memset(m->seen + before, 0, (m->seen_capacity - before) * sizeof *m->seen); /* bounded: in memory */
  }
  if (m->seen[at] == m->search) return true;
  m->seen[at] = m->search;
  if (!kg_grow((void **)&list->items, &list->capacity, list->n + 1, sizeof *list->items)) return false;
  list->items[list->n++] = (struct place){state, plain};
  return true;
}

/* Take all steps of plain text from here; *fits is false where the lexeme does not. */
static int step_plain(kg_masks *m, struct place from, bool *fits, kg_error *err)
{
  for (uint32_t i = 0; i < m->n_plain[from.plain] && *fits; i++) {
    const struct plain_step step = m->plain[from.plain][i];
    const kg_state next = kg_regular_step(m->regular, from.state, step.class);
    *fits = next != KG_STATE_DEAD;
    if (*fits && !look_at(m, next, step.next)) return kg_fail_memory(err, m->between.n, "masks");
  }
  return kg_regular_status(m->regular, err);
}

/* How many characters plain texts may have for the lexeme to read all of them: up to PLAIN_MAX, or any number
 * (UINT32_MAX). */
static int count_plain(kg_masks *m, kg_state state, uint32_t *out, kg_error *err)
{
  bool fits = true;
  m->between.n = m->within.n = 0;
  m->search++;
  if (!look_at(m, state, 0)) return kg_fail_memory(err, 1, "masks");
  size_t at = 0;
  for (*out = 0; *out < PLAIN_MAX; ++*out) {
    const size_t end = m->between.n; /* of those that so many characters lead to */
    if (at == end) {
      *out = UINT32_MAX; /* no new ones: nor will there be */
      return KG_OK;
    }
    while ((at < end || m->within.n) && fits) {
      const struct place from = m->within.n ? m->within.items[--m->within.n] : m->between.items[at++];
      const int status = step_plain(m, from, &fits, err);
      if (status) return status;
    }
    if (!fits) break;
  }
  return KG_OK;
}

/* Bytes of a class lead to the same state, plain or not: one of them is enough. */
static void find_plain_steps(kg_masks *m)
{
  for (int state = 0; state < KG_PLAIN_STATES; state++)
    for (unsigned byte = 0; byte < 256; byte++) {
      const int next = kg_plain_step(state, (unsigned char)byte);
      bool is_new = next >= 0;
      for (uint32_t i = 0; i < m->n_plain[state] && is_new; i++)
        is_new = m->plain[state][i].class != m->classes[byte] || m->plain[state][i].next != next;
      if (is_new) m->plain[state][m->n_plain[state]++] = (struct plain_step){m->classes[byte], (uint8_t)next};
    }
}

static int add_lexeme_mask(kg_masks *m, kg_state state, kg_error *err)
{
  if (m->lexeme_bytes > MASKS_BYTES) drop_lexemes(m);
  uint32_t n_characters = 0;
  lexeme_mask made = {.tree = &m->pieces->all, .bits = kg_alloc_array(m->n_words, sizeof *made.bits)};
  int status = made.bits ? count_plain(m, state, &n_characters, err) : kg_fail_memory(err, m->n_words * 8, "a mask");
  for (size_t i = KG_PIECE_SLICES; i-- > 0 && !status && made.tree == &m->pieces->all;) {
    const kg_piece_slice *slice = &m->pieces->slices[i];
    if (slice->max_characters > n_characters) continue;
    made.tree = &slice->rest;
    memcpy(made.bits, slice->bits, m->n_words * sizeof *made.bits); /* bounded: in memory */
  }
  if (!status) status = make_lexeme_mask(m, state, &made, err);
  if (!status && !kg_grow((void **)&m->lexemes, &m->lexemes_capacity, m->n_lexemes + 1, sizeof made))
    status = kg_fail_memory(err, m->n_lexemes, "a mask");
  if (status) {
    kg_free(made.bits);
    kg_free(made.exits);
    return status;
  }
  m->lexemes[m->n_lexemes] = made;
  m->lexeme_bytes += (m->n_words + made.exits_capacity) * sizeof *made.bits; /* bounded: they are in memory */
  m->of_state[state] = FIRST_MASK + (uint32_t)m->n_lexemes++; /* bounded: masks in memory */
  return KG_OK;
}

/* The mask of the lexeme, or NULL where it is better walked with everything else. Good until the next call. */
static int get_lexeme_mask(kg_masks *m, kg_state state, const lexeme_mask **out, kg_error *err)
{
  *out = NULL;
  if (!grow_states(m, state)) return kg_fail_memory(err, state, "masks");
  if (m->of_state[state] == UNKNOWN) {
    bool heavy;
    int status = is_heavy(m, state, &heavy, err);
    if (!status && heavy) status = add_lexeme_mask(m, state, err);
    if (status) return status;
    if (!heavy) m->of_state[state] = LIGHT;
  }
  if (m->of_state[state] != LIGHT) *out = &m->lexemes[m->of_state[state] - FIRST_MASK];
  return KG_OK;
}

/* Allow what the lexeme allows, and what goes on behind it. */
static int allow_lexeme(kg_masks *m, const lexeme_mask *mask, kg_set parents, kg_points points, uint64_t *bits,
                        kg_error *err)
{
  for (size_t w = 0; w < m->n_words; w++) bits[w] |= mask->bits[w];
  if (!mask->n_exits) return KG_OK;
  kg_set behind;
  int status = kg_automaton_resume(m->automaton, parents, points, NULL, &behind, err);
  for (size_t i = 0; i < mask->n_exits && !status; i++) {
    const kg_piece_node *node = &mask->tree->nodes[mask->exits[i]];
    /* bounded: nodes of a tree */
    status = walk(m, mask->tree, mask->exits[i] + 1, node->skip, node->depth, behind, points, bits, err);
  }
  return status;
}

/* ---- whole masks ---- */

static int make_mask(kg_masks *m, kg_set set, kg_points points, uint64_t *bits, kg_error *err)
{
  uint64_t done = 0;
  const uint32_t n = kg_automaton_n_lexemes(m->automaton, set);
  for (uint32_t i = 0; i < n && i < 64; i++) {
    const kg_lexeme lexeme = kg_automaton_lexeme(m->automaton, set, i);
    const lexeme_mask *mask = NULL;
    int status = lexeme.state ? get_lexeme_mask(m, lexeme.state, &mask, err) : KG_OK;
    if (!status && mask) status = allow_lexeme(m, mask, lexeme.parents, points, bits, err);
    if (status) return status;
    if (mask) done |= UINT64_C(1) << i; /* bounded: i is below 64 */
  }
  kg_set light = set;
  int status = done ? kg_automaton_without(m->automaton, set, done, &light, err) : KG_OK;
  if (!status) status = walk(m, &m->pieces->all, 0, m->pieces->all.n_nodes, 0, light, points, bits, err);
  return status;
}

static void follow_generation(kg_masks *m)
{
  if (m->generation == kg_automaton_generation(m->automaton)) return;
  m->generation = kg_automaton_generation(m->automaton);
  drop_lexemes(m);
  drop_finals(m);
}

int kg_masks_get(kg_masks *m, kg_set set, kg_points points, const uint64_t **out, kg_error *err)
{
  follow_generation(m);
  const uint32_t words[2] = {set, points};
  final_mask *kept = &m->finals[kg_intern_hash(words, 2) % FINAL_MASKS];
  if (!kept->bits || kept->set != set || kept->points != points) {
    uint64_t *bits = kept->bits ? kept->bits : kg_alloc_array(m->n_words, sizeof *bits);
    if (!bits) return kg_fail_memory(err, m->n_words * sizeof *bits, "a mask");
    kept->bits = NULL;
    memset(bits, 0, m->n_words * sizeof *bits); /* bounded: in memory */
    const int status = make_mask(m, set, points, bits, err);
    if (status) {
      kg_free(bits);
      return status;
    }
    *kept = (final_mask){set, points, bits};
  }
  *out = kept->bits;
  return KG_OK;
}

static bool is_stripped(const kg_masks *m, int32_t id)
{
  const kg_token_type type = m->tokenizer->vocab.types[id];
  return (type == KG_TOKEN_NORMAL || type == KG_TOKEN_BYTE) && kg_vocab_piece(&m->tokenizer->vocab, id).data[0] == ' ';
}

int kg_masks_get_stripped(kg_masks *m, kg_set set, kg_points points, uint64_t *out, kg_error *err)
{
  const uint64_t *whole;
  const kg_piece_tree *tree = &m->pieces->all;
  uint32_t space = 0;
  while (space < tree->n_nodes && tree->nodes[space].byte != ' ') space = tree->nodes[space].skip;
  int status = kg_masks_get(m, set, points, &whole, err);
  if (status) return status;
  memcpy(out, whole, m->n_words * sizeof *out); /* bounded: in memory */
  if (space == tree->n_nodes) return KG_OK;
  uint64_t *behind = kg_alloc_array(m->n_words, sizeof *behind);
  if (!behind) return kg_fail_memory(err, m->n_words * sizeof *behind, "a mask");
  const uint32_t end = tree->nodes[space].skip;
  status = walk(m, tree, space + 1, end, 1, set, points, behind, err);
  for (uint32_t at = space; at < end && !status; at++)
    for (int32_t id = tree->nodes[at].id; id >= 0; id = m->pieces->same[id]) {
      const uint64_t bit = kg_bit((size_t)id);
      if (is_stripped(m, id)) out[id / 64] = (out[id / 64] & ~bit) | (behind[id / 64] & bit);
    }
  kg_free(behind);
  return status;
}

/* ---- making ---- */

int kg_grammar_masks(kg_grammar *grammar, kg_tokenizer *tokenizer, kg_masks **out, kg_error *err)
{
  for (*out = grammar->masks; *out; *out = (*out)->next)
    if ((*out)->tokenizer == tokenizer) return KG_OK;
  const kg_pieces *pieces;
  kg_automaton *automaton;
  int status = kg_tokenizer_pieces(tokenizer, &pieces, err);
  if (!status) status = kg_grammar_automaton(grammar, &automaton, err);
  if (status) return status;
  kg_masks *m = kg_alloc_array(1, sizeof *m);
  if (!m) return kg_fail_memory(err, sizeof *m, "masks");
  m->tokenizer = kg_tokenizer_ref(tokenizer);
  m->pieces = pieces;
  m->automaton = automaton;
  m->regular = grammar->regular;
  m->classes = kg_regular_classes(grammar->regular);
  m->n_classes = kg_regular_n_classes(grammar->regular);
  m->generation = kg_automaton_generation(automaton);
  m->n_words = kg_bit_words((size_t)tokenizer->vocab.size);
  find_plain_steps(m);
  m->next = grammar->masks;
  grammar->masks = m;
  *out = m;
  return KG_OK;
}
