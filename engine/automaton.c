#include "automaton.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"

/* Places that are no nodes. */
#define FRAME_END KG_NO_NODE          /* of the text */
#define FRAME_LEXEME (KG_NO_NODE - 1) /* data: the state of the lexeme that is being read */

enum {
  NO_ROW = UINT32_MAX,
  WAYS_MAX = 100000, /* most things that one step may look at */
  IN_SEPARATOR = 0,
  IN_ITEM = 1, /* extra of a frame of MEMBERS: IN_ITEM + i: reading item i; behind the last: another */
  MEMBER_WORDS = KG_MEMBERS_MAX / 32 + 4
};

/* What data and extra say: SEQ: extra: the next child. REPEAT: data: times so far, as far as they matter. MEMBERS:
 * data: the block of those that came; extra: as above. POINT: data: where its text began, with KG_POINTS_ASK. */
typedef struct frame {
  kg_node node;
  uint32_t data, extra;
  kg_set parents;
  uint32_t depth;
  bool has_points; /* it is within the text of a point */
} frame;

typedef struct set {
  uint32_t first, n; /* in frame_lists, sorted */
  uint32_t depth;
  bool is_complete, has_points;
  kg_set closures[2]; /* where reading goes on behind it, for PASS and STOP */
  uint32_t rows[2];   /* numbers of rows of steps; NO_ROW */
} set;

/* The items of MEMBERS that came: words are the items' bits, then how many came (as far as that matters), then the
 * first one that may come next, of ordered ones. */
typedef struct block {
  uint32_t at, n; /* in words */
} block;

typedef struct item {
  kg_node node; /* to go into; FRAME_END: go on behind `parents` instead */
  kg_set parents;
} item;

struct kg_automaton {
  kg_grammar *grammar; /* whose part it is */
  kg_regular *regular;
  kg_budget *budget;
  uint32_t n_classes, generation;
  int status;
  kg_error *err;

  frame *frames;
  size_t n_frames, frames_capacity;
  uint32_t *frame_lists;
  size_t n_frame_lists, frame_lists_capacity;
  set *sets;
  size_t n_sets, sets_capacity;
  kg_set *rows;
  size_t n_rows, rows_capacity;
  block *blocks;
  size_t n_blocks, blocks_capacity;
  uint32_t *words;
  size_t n_words, words_capacity;
  kg_intern frame_index, set_index, block_index;

  /* of the step that is being made */
  item *items;
  size_t n_items, items_capacity;
  kg_intern item_index;
  frame *found; /* what can be read next */
  size_t n_found, found_capacity;
  uint32_t *list;
  size_t list_capacity;
  kg_points points;
  const kg_asker *asker;
};

static bool failed(kg_automaton *a, int status)
{
  if (status && !a->status) a->status = status;
  return status != KG_OK;
}

#define ROOM(a, array, need)                                                                                           \
  (!failed(a, kg_budget_grow((a)->budget, (void **)&(a)->array, &(a)->array##_capacity, need, sizeof *(a)->array,      \
                             (a)->err)))

/* ---- interning ---- */

/* Frame number i of a set: its place in a->frames. */
static uint32_t frame_of(const kg_automaton *a, const set *s, uint32_t i)
{
  return a->frame_lists[s->first + i]; /* bounded: in memory, which the budget keeps below 2^32 */
}

static bool same_frame(const frame *x, const frame *y)
{
  return x->node == y->node && x->data == y->data && x->extra == y->extra && x->parents == y->parents;
}

static uint32_t hash_frame(const frame *x)
{
  const uint32_t words[4] = {x->node, x->data, x->extra, x->parents};
  return kg_intern_hash(words, 4);
}

static bool intern_frame(kg_automaton *a, frame made, uint32_t *out)
{
  const uint32_t hash = hash_frame(&made);
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&a->frame_index, hash, &at)) != KG_INTERN_NONE;) {
    if (!same_frame(&made, &a->frames[i])) continue;
    *out = (uint32_t)i;
    return true;
  }
  const set *parents = &a->sets[made.parents];
  const kg_grammar_node *node = made.node < FRAME_LEXEME ? &a->grammar->nodes[made.node] : NULL;
  made.depth = parents->depth + (node != NULL); /* bounded: by the option */
  made.has_points = parents->has_points || (node && node->kind == KG_NODE_POINT);
  if (!ROOM(a, frames, a->n_frames + 1)) return false;
  if (failed(a, kg_intern_add(&a->frame_index, a->budget, hash, (int32_t)a->n_frames, a->err))) return false;
  a->frames[a->n_frames] = made;
  *out = (uint32_t)a->n_frames++;
  return true;
}

static bool intern_set(kg_automaton *a, const uint32_t *frames, size_t n, kg_set *out)
{
  const uint32_t hash = kg_intern_hash(frames, n);
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&a->set_index, hash, &at)) != KG_INTERN_NONE;) {
    const set *known = &a->sets[i];
    /* bounded: in memory */
    if (known->n != n || (n && memcmp(a->frame_lists + known->first, frames, n * sizeof *frames))) continue;
    *out = (kg_set)i;
    return true;
  }
  set made = {.first = (uint32_t)a->n_frame_lists,
              .n = (uint32_t)n,
              .rows = {NO_ROW, NO_ROW},
              .closures = {KG_SET_UNKNOWN, KG_SET_UNKNOWN}};
  /* bounded: in memory */
  if (!ROOM(a, frame_lists, a->n_frame_lists + n) || !ROOM(a, sets, a->n_sets + 1)) return false;
  if (failed(a, kg_intern_add(&a->set_index, a->budget, hash, (int32_t)a->n_sets, a->err))) return false;
  for (size_t i = 0; i < n; i++) {
    const frame *x = &a->frames[frames[i]];
    a->frame_lists[a->n_frame_lists++] = frames[i];
    if (x->depth > made.depth) made.depth = x->depth;
    made.has_points |= x->has_points;
    made.is_complete |= x->node == FRAME_END;
  }
  a->sets[a->n_sets] = made;
  *out = (kg_set)a->n_sets++;
  return true;
}

/* The set of one frame of a node; *out is KG_SET_DEAD where that is too deep. */
static bool push(kg_automaton *a, kg_node node, uint32_t data, uint32_t extra, kg_set parents, kg_set *out)
{
  uint32_t made;
  *out = KG_SET_DEAD;
  if (a->sets[parents].depth >= a->grammar->options.depth) return true;
  return intern_frame(a, (frame){.node = node, .data = data, .extra = extra, .parents = parents}, &made) &&
         intern_set(a, &made, 1, out);
}

static int by_place(const void *x, const void *y)
{
  const frame *a = x, *b = y;
  if (a->node != b->node) return a->node < b->node ? -1 : 1;
  if (a->data != b->data) return a->data < b->data ? -1 : 1;
  if (a->extra != b->extra) return a->extra < b->extra ? -1 : 1;
  return (a->parents > b->parents) - (a->parents < b->parents);
}

static bool same_place(const frame *x, const frame *y)
{
  return x->node == y->node && x->data == y->data && x->extra == y->extra;
}

static int by_number(const void *x, const void *y)
{
  const uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
  return (a > b) - (a < b);
}

static size_t sort_unique(uint32_t *numbers, size_t n)
{
  size_t kept = 0;
  qsort(numbers, n, sizeof *numbers, by_number);
  for (size_t i = 0; i < n; i++)
    if (!kept || numbers[kept - 1] != numbers[i]) numbers[kept++] = numbers[i];
  return kept;
}

static bool unite(kg_automaton *a, frame *frames, size_t n, kg_set *out);

/* All parents of these frames, which stand at the same place. */
static bool unite_parents(kg_automaton *a, const frame *frames, size_t n, kg_set *out)
{
  size_t n_parents = 0;
  /* bounded: numbers of 32 bits, of frames in memory */
  for (size_t i = 0; i < n; i++) n_parents += a->sets[frames[i].parents].n;
  frame *parents = kg_alloc_array(n_parents, sizeof *parents);
  if (!parents) return !failed(a, kg_fail_memory(a->err, n_parents, "an automaton"));
  n_parents = 0;
  for (size_t i = 0; i < n; i++) {
    const set *s = &a->sets[frames[i].parents];
    for (uint32_t j = 0; j < s->n; j++) parents[n_parents++] = a->frames[frame_of(a, s, j)];
  }
  const bool is_done = unite(a, parents, n_parents, out);
  kg_free(parents);
  return is_done;
}

/* The set of these frames, whose order changes. Those at the same place become one that has the parents of all: so the
 * ways to read a text may be many and the frames few. The depth of the stack bounds the recursion. */
static bool unite(kg_automaton *a, frame *frames, size_t n, kg_set *out)
{
  uint32_t few[16], *list = few;
  size_t n_list = 0;
  if (n > 1) qsort(frames, n, sizeof *frames, by_place);
  if (n > sizeof few / sizeof few[0] && !(list = kg_alloc_array(n, sizeof *list)))
    return !failed(a, kg_fail_memory(a->err, n, "an automaton"));
  bool is_done = true;
  for (size_t i = 0, next; i < n && is_done; i = next) {
    frame made = frames[i];
    for (next = i; ++next < n && same_place(&made, &frames[next]);) {}
    if (frames[next - 1].parents != made.parents) is_done = unite_parents(a, frames + i, next - i, &made.parents);
    is_done = is_done && intern_frame(a, made, &list[n_list++]);
  }
  is_done = is_done && intern_set(a, list, n_list > 1 ? sort_unique(list, n_list) : n_list, out);
  if (list != few) kg_free(list);
  return is_done;
}

/* The set of all that was found from `base` on. */
static bool collect(kg_automaton *a, size_t base, kg_set *out)
{
  const size_t n = a->n_found - base;
  a->n_found = base;
  return unite(a, a->found + base, n, out);
}

static bool find(kg_automaton *a, kg_node node, uint32_t data, kg_set parents)
{
  if (!ROOM(a, found, a->n_found + 1)) return false;
  a->found[a->n_found++] = (frame){.node = node, .data = data, .parents = parents};
  return true;
}

static bool find_all(kg_automaton *a, kg_set from)
{
  const set *s = &a->sets[from];
  if (!ROOM(a, found, a->n_found + s->n)) return false; /* bounded: in memory */
  for (uint32_t i = 0; i < s->n; i++) a->found[a->n_found++] = a->frames[frame_of(a, s, i)];
  return true;
}

/* ---- members ---- */

static const kg_grammar_members *members_of(const kg_automaton *a, kg_node node)
{
  return &a->grammar->members[a->grammar->nodes[node].n];
}

static bool intern_block(kg_automaton *a, const uint32_t *words, size_t n, uint32_t *out)
{
  const uint32_t hash = kg_intern_hash(words, n);
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&a->block_index, hash, &at)) != KG_INTERN_NONE;) {
    /* bounded: in memory */
    if (a->blocks[i].n != n || memcmp(a->words + a->blocks[i].at, words, n * sizeof *words)) continue;
    *out = (uint32_t)i;
    return true;
  }
  if (!ROOM(a, words, a->n_words + n) || !ROOM(a, blocks, a->n_blocks + 1)) return false; /* bounded: in memory */
  if (failed(a, kg_intern_add(&a->block_index, a->budget, hash, (int32_t)a->n_blocks, a->err))) return false;
  memcpy(a->words + a->n_words, words, n * sizeof *words); /* bounded: in memory: grown above */
  a->blocks[a->n_blocks] = (block){(uint32_t)a->n_words, (uint32_t)n};
  a->n_words += n; /* bounded: as it was grown */
  *out = (uint32_t)a->n_blocks++;
  return true;
}

/* Words of a block of these members before how many came. */
static size_t bit_words_of(const kg_grammar_members *m) { return 2 * m->n_words; } /* bounded: KG_MEMBERS_MAX / 32 */

/* What came of the members, taken apart. */
typedef struct came {
  const kg_grammar_members *members;
  const kg_grammar *grammar;
  uint64_t bits[KG_MEMBERS_MAX / 64 + 1];
  uint64_t missing[KG_MEMBERS_MAX / 64 + 1]; /* must still come */
  uint32_t n, n_missing, next;
} came;

static const uint64_t *needs_of(const came *c, size_t i)
{
  return kg_needs_of(c->grammar, c->members, i);
}

static void read_block(const kg_automaton *a, kg_node node, uint32_t number, came *out)
{
  const kg_grammar_members *m = members_of(a, node);
  const block b = a->blocks[number];
  const uint32_t *words = a->words + b.at;
  out->members = m;
  out->grammar = a->grammar;
  memcpy(out->bits, words, bit_words_of(m) * sizeof *words); /* bounded: in memory */
  out->n = words[bit_words_of(m)];
  out->next = words[bit_words_of(m) + 1]; /* bounded: KG_MEMBERS_MAX */
  out->n_missing = 0;
  /* bounded: in memory */
  memcpy(out->missing, needs_of(out, m->n_items), m->n_words * sizeof *out->missing); /* those required anyway */
  for (size_t i = 0; i < m->n_items; i++) {
    if (!kg_has_bit(out->bits, i)) continue;
    for (size_t w = 0; w < m->n_words; w++) out->missing[w] |= needs_of(out, i)[w];
  }
  for (size_t w = 0; w < m->n_words; w++) {
    out->missing[w] &= ~out->bits[w];
    out->n_missing += (uint32_t)__builtin_popcountll(out->missing[w]); /* bounded: KG_MEMBERS_MAX */
  }
}

/* Behind item i (n_items: another member). */
static bool write_block(kg_automaton *a, const came *before, size_t i, uint32_t *out)
{
  const kg_grammar_members *m = before->members;
  uint32_t words[MEMBER_WORDS] = {0};
  uint64_t bits[KG_MEMBERS_MAX / 64 + 1];
  memcpy(bits, before->bits, sizeof bits);
  if (i < m->n_items) kg_set_bit(bits, i);
  memcpy(words, bits, bit_words_of(m) * sizeof *words); /* bounded: in memory */
  const uint32_t matters = m->max == KG_NO_LIMIT ? m->min : m->max;
  words[bit_words_of(m)] = before->n < matters ? before->n + 1 : matters; /* bounded: 32 bits, as `matters` */
  words[bit_words_of(m) + 1] = m->is_ordered ? (uint32_t)(i < m->n_items ? i + 1 : i) : 0; /* bounded: KG_MEMBERS_MAX */
  return intern_block(a, words, bit_words_of(m) + 2, out); /* bounded: KG_MEMBERS_MAX */
}

static bool empty_block(kg_automaton *a, kg_node node, uint32_t *out)
{
  const uint32_t words[MEMBER_WORDS] = {0};
  return intern_block(a, words, bit_words_of(members_of(a, node)) + 2, out); /* bounded: KG_MEMBERS_MAX */
}

/* Would there still be room for all that must come behind one more member, of which `n_missing` must come? */
static bool has_room(const came *c, uint32_t n_missing)
{
  return c->members->max == KG_NO_LIMIT || (c->n < c->members->max && n_missing <= c->members->max - c->n - 1);
}

static uint32_t count_usable(const came *c, size_t from)
{
  uint32_t n = 0;
  /* bounded: KG_MEMBERS_MAX */
  for (size_t i = from; i < c->members->n_items; i++) n += kg_item_of(c->grammar, c->members, i)->is_usable;
  return n;
}

static bool may_add(const came *c, size_t i)
{
  const kg_grammar_members *m = c->members;
  if (kg_has_bit(c->bits, i) || !kg_item_of(c->grammar, m, i)->is_usable) return false;
  if (m->is_ordered && i < c->next) return false;
  uint32_t n_missing = 0;
  for (size_t w = 0; w < m->n_words; w++) {
    uint64_t missing = (c->missing[w] | needs_of(c, i)[w]) & ~c->bits[w];
    if (w == i / 64) missing &= ~kg_bit(i);
    n_missing += (uint32_t)__builtin_popcountll(missing); /* bounded: KG_MEMBERS_MAX */
    if (!m->is_ordered || !missing) continue;
    if (w < i / 64 || (w == i / 64 && (missing & (kg_bit(i) - 1)))) return false; /* too late for it */
  }
  if (m->is_ordered && m->others == KG_NO_NODE && c->n < m->min && count_usable(c, i) < m->min - c->n) return false;
  return has_room(c, n_missing);
}

static bool may_add_other(const came *c)
{
  if (c->members->others == KG_NO_NODE || (c->members->is_ordered && c->n_missing)) return false;
  return has_room(c, c->n_missing);
}

static bool may_close(const came *c) { return c->n >= c->members->min && !c->n_missing; }

static bool may_add_any(const came *c)
{
  if (may_add_other(c)) return true;
  for (size_t i = 0; i < c->members->n_items; i++)
    if (may_add(c, i)) return true;
  return false;
}

/* ---- what can be read next ---- */

/* Remember to look at this, unless it was looked at. */
static bool look(kg_automaton *a, kg_node node, kg_set parents)
{
  const uint32_t words[2] = {node, parents}, hash = kg_intern_hash(words, 2);
  size_t at = hash;
  if (parents == KG_SET_DEAD) return true; /* too deep */
  for (int32_t i; (i = kg_intern_next(&a->item_index, hash, &at)) != KG_INTERN_NONE;)
    if (a->items[i].node == node && a->items[i].parents == parents) return true;
  if (a->n_items >= WAYS_MAX)
    return !failed(a, kg_fail(a->err, KG_ERR_FULL, "the grammar can be read in more than %d ways here", WAYS_MAX));
  if (!ROOM(a, items, a->n_items + 1)) return false;
  if (failed(a, kg_intern_add(&a->item_index, a->budget, hash, (int32_t)a->n_items, a->err))) return false;
  a->items[a->n_items++] = (item){node, parents};
  return true;
}

static bool go_on(kg_automaton *a, kg_set parents) { return look(a, FRAME_END, parents); }

static bool enter_child(kg_automaton *a, kg_node seq, uint32_t i, kg_set parents)
{
  const kg_grammar_node *x = &a->grammar->nodes[seq];
  const kg_node child = a->grammar->children[x->at + i]; /* bounded: in memory */
  if (i + 1 == x->n) return look(a, child, parents); /* bounded: the node's children; nothing to come back for */
  return push(a, seq, 0, i + 1, parents, &parents) && look(a, child, parents); /* bounded: the node's children */
}

static bool enter_repeat(kg_automaton *a, kg_node node, uint32_t count, kg_set parents)
{
  const kg_grammar_node *x = &a->grammar->nodes[node];
  if (count >= x->min && !go_on(a, parents)) return false;
  if (count >= x->max) return true;
  if (count + 1 == x->max) return look(a, x->child, parents); /* bounded: count < max */
  const uint32_t matters = x->max == KG_NO_LIMIT ? x->min : x->max;
  /* bounded: count < max */
  return push(a, node, count + 1 < matters ? count + 1 : matters, 0, parents, &parents) && look(a, x->child, parents);
}

static bool enter_item(kg_automaton *a, kg_node node, uint32_t number, size_t i, kg_node child, kg_set parents)
{
  /* bounded: KG_MEMBERS_MAX */
  return push(a, node, number, (uint32_t)(IN_ITEM + i), parents, &parents) && look(a, child, parents);
}

static bool enter_items(kg_automaton *a, kg_node node, uint32_t number, kg_set parents)
{
  came c;
  read_block(a, node, number, &c);
  const kg_grammar_members *m = c.members;
  for (size_t i = 0; i < m->n_items; i++)
    if (may_add(&c, i) && !enter_item(a, node, number, i, kg_item_of(a->grammar, m, i)->node, parents))
      return false;
  return !may_add_other(&c) || enter_item(a, node, number, m->n_items, m->others, parents);
}

static bool enter_members(kg_automaton *a, kg_node node, kg_set parents)
{
  uint32_t number;
  if (!empty_block(a, node, &number)) return false;
  if (a->grammar->nodes[node].is_nullable && !go_on(a, parents)) return false;
  return enter_items(a, node, number, parents);
}

/* Behind item i. */
static bool leave_item(kg_automaton *a, kg_node node, uint32_t number, size_t i, kg_set parents)
{
  came c;
  read_block(a, node, number, &c);
  if (!write_block(a, &c, i, &number)) return false;
  read_block(a, node, number, &c);
  if (may_close(&c) && !go_on(a, parents)) return false;
  if (c.members->separator == KG_NO_NODE) return enter_items(a, node, number, parents);
  if (!may_add_any(&c)) return true;
  return push(a, node, number, IN_SEPARATOR, parents, &parents) && look(a, c.members->separator, parents);
}

static bool leave_point(kg_automaton *a, const frame *x)
{
  if (a->points == KG_POINTS_PASS) return go_on(a, x->parents);
  if (a->points == KG_POINTS_STOP) return true;
  bool answer = false;
  const uint32_t point = a->grammar->nodes[x->node].n;
  if (failed(a, a->asker->ask(a->asker->user, point, x->data, a->asker->end, &answer, a->err))) return false;
  return !answer || go_on(a, x->parents);
}

/* Go on behind what the frame was waiting for. */
static bool leave(kg_automaton *a, frame x)
{
  if (x.node == FRAME_END) return find(a, FRAME_END, 0, KG_SET_DEAD);
  switch ((kg_node_kind)a->grammar->nodes[x.node].kind) {
  case KG_NODE_SEQ:
    return enter_child(a, x.node, x.extra, x.parents);
  case KG_NODE_REPEAT:
    return enter_repeat(a, x.node, x.data, x.parents);
  case KG_NODE_MEMBERS:
    if (x.extra == IN_SEPARATOR) return enter_items(a, x.node, x.data, x.parents);
    return leave_item(a, x.node, x.data, x.extra - IN_ITEM, x.parents);
  default:
    return leave_point(a, &x);
  }
}

static bool enter_lexeme(kg_automaton *a, kg_re re, kg_set parents)
{
  const kg_state state = kg_regular_start(a->regular, re);
  if (failed(a, kg_regular_status(a->regular, a->err))) return false;
  if (kg_regular_accepts(a->regular, state) && !go_on(a, parents)) return false;
  return kg_regular_is_final(a->regular, state) || find(a, FRAME_LEXEME, state, parents);
}

static bool enter(kg_automaton *a, kg_node node, kg_set parents)
{
  const kg_grammar_node *x = &a->grammar->nodes[node];
  if (!x->is_possible) return true;
  if (x->is_fused) return enter_lexeme(a, x->re[0], parents);
  switch ((kg_node_kind)x->kind) {
  case KG_NODE_SEQ:
    return x->n ? enter_child(a, node, 0, parents) : go_on(a, parents);
  case KG_NODE_ALT:
    for (uint32_t i = 0; i < x->n; i++)
      if (!look(a, a->grammar->children[x->at + i], parents)) return false; /* bounded: in memory */
    return true;
  case KG_NODE_REPEAT:
    return enter_repeat(a, node, 0, parents);
  case KG_NODE_MEMBERS:
    return enter_members(a, node, parents);
  case KG_NODE_POINT: {
    const uint32_t begin = a->points == KG_POINTS_ASK ? (uint32_t)a->asker->end : 0;
    return push(a, node, begin, 0, parents, &parents) && look(a, x->child, parents);
  }
  default:
    return look(a, x->child, parents);
  }
}

/* Where reading goes on behind the frames of a set, if that is known. */
static kg_set known_closure(const kg_automaton *a, kg_set parents)
{
  return a->points == KG_POINTS_ASK ? KG_SET_UNKNOWN : a->sets[parents].closures[a->points];
}

static bool look_at(kg_automaton *a, item x)
{
  if (x.node != FRAME_END) return enter(a, x.node, x.parents);
  const kg_set known = known_closure(a, x.parents);
  if (known != KG_SET_UNKNOWN) return find_all(a, known);
  for (uint32_t i = 0; i < a->sets[x.parents].n; i++)
    if (!leave(a, a->frames[frame_of(a, &a->sets[x.parents], i)])) return false;
  return true;
}

/* Look at all that is to be looked at, and make a set of what was found. */
static bool close_over(kg_automaton *a, kg_node node, kg_set parents, kg_set *out)
{
  const size_t base = a->n_found;
  a->n_items = 0;
  bool is_done = look(a, node, parents);
  for (size_t i = 0; i < a->n_items && is_done; i++) is_done = look_at(a, a->items[i]);
  if (a->item_index.n_slots > 1024)
    kg_intern_free(&a->item_index, a->budget);
  else
    kg_intern_clear(&a->item_index);
  is_done = is_done && collect(a, base, out);
  a->n_found = base;
  return is_done;
}

static bool resume(kg_automaton *a, kg_set parents, kg_set *out)
{
  *out = known_closure(a, parents);
  if (*out != KG_SET_UNKNOWN) return true;
  if (!close_over(a, FRAME_END, parents, out)) return false;
  if (a->points != KG_POINTS_ASK) a->sets[parents].closures[a->points] = *out;
  return true;
}

/* ---- steps ---- */

/* The lexeme x behind a byte of the class. */
static bool step_lexeme(kg_automaton *a, frame x, uint32_t class)
{
  const kg_state next = kg_regular_step(a->regular, x.data, class);
  if (failed(a, kg_regular_status(a->regular, a->err))) return false;
  if (next == KG_STATE_DEAD) return true;
  kg_set behind;
  if (kg_regular_accepts(a->regular, next) && !(resume(a, x.parents, &behind) && find_all(a, behind))) return false;
  return kg_regular_is_final(a->regular, next) || find(a, FRAME_LEXEME, next, x.parents);
}

static bool make_step(kg_automaton *a, kg_set from, uint32_t class, kg_set *out)
{
  const size_t base = a->n_found;
  bool is_done = true;
  for (uint32_t i = 0; i < a->sets[from].n && is_done; i++) {
    const frame x = a->frames[frame_of(a, &a->sets[from], i)];
    if (x.node == FRAME_LEXEME) is_done = step_lexeme(a, x, class);
  }
  is_done = is_done && collect(a, base, out);
  a->n_found = base;
  return is_done;
}

static bool make_row(kg_automaton *a, kg_set from)
{
  if (a->sets[from].rows[a->points] != NO_ROW) return true;
  if (!ROOM(a, rows, (a->n_rows + 1) * a->n_classes)) return false; /* bounded: rows in memory times at most 256 */
  /* bounded: in memory: grown above */
  memset(a->rows + a->n_rows * a->n_classes, 0xFF, a->n_classes * sizeof *a->rows); /* KG_SET_UNKNOWN */
  a->sets[from].rows[a->points] = (uint32_t)a->n_rows++;
  return true;
}

/* The step from a set that has a row. */
static kg_set *step_of(const kg_automaton *a, kg_set from, uint32_t class, kg_points points)
{
  return &a->rows[(size_t)a->sets[from].rows[points] * a->n_classes + class]; /* bounded: in memory */
}

/* The first things in it; again after a reset. */
static bool prepare(kg_automaton *a)
{
  if (a->n_sets) return true;
  kg_set made;
  uint32_t end = 0;
  if (!intern_set(a, NULL, 0, &made)) return false;                                           /* KG_SET_DEAD */
  if (!intern_frame(a, (frame){.node = FRAME_END}, &end) || !intern_set(a, &end, 1, &made)) { /* KG_SET_END */
    a->n_frames = a->n_sets = a->n_frame_lists = 0;
    kg_intern_clear(&a->frame_index);
    kg_intern_clear(&a->set_index);
    return false;
  }
  return true;
}

static bool begin(kg_automaton *a, kg_points points, const kg_asker *asker, kg_error *err)
{
  a->status = KG_OK;
  a->err = err;
  a->points = points;
  a->asker = asker;
  a->n_found = 0;
  return prepare(a);
}

static int finish(kg_automaton *a, bool is_done)
{
  a->err = NULL;
  a->asker = NULL;
  return is_done ? KG_OK : a->status;
}

int kg_automaton_start(kg_automaton *a, kg_points points, const kg_asker *asker, kg_set *out, kg_error *err)
{
  return finish(a, begin(a, points, asker, err) && close_over(a, a->grammar->start, KG_SET_END, out));
}

int kg_automaton_step(kg_automaton *a, kg_set from, uint32_t class, kg_points points, const kg_asker *asker,
                      kg_set *out, kg_error *err)
{
  if (from == KG_SET_DEAD || from == KG_SET_END) {
    *out = KG_SET_DEAD;
    return KG_OK;
  }
  if (points != KG_POINTS_ASK && a->sets[from].rows[points] != NO_ROW) {
    *out = *step_of(a, from, class, points);
    if (*out != KG_SET_UNKNOWN) return KG_OK;
  }
  if (!begin(a, points, asker, err)) return finish(a, false);
  const bool is_done = make_step(a, from, class, out) && (points == KG_POINTS_ASK || make_row(a, from));
  if (is_done && points != KG_POINTS_ASK) *step_of(a, from, class, points) = *out;
  return finish(a, is_done);
}

const kg_set *kg_automaton_row(const kg_automaton *a, kg_set from, kg_points points)
{
  const uint32_t row = a->sets[from].rows[points];
  return row == NO_ROW ? NULL : step_of(a, from, 0, points);
}

bool kg_automaton_is_complete(const kg_automaton *a, kg_set s) { return a->sets[s].is_complete; }

bool kg_automaton_has_points(const kg_automaton *a, kg_set s) { return a->sets[s].has_points; }

/* ---- lexemes ---- */

uint32_t kg_automaton_n_lexemes(const kg_automaton *a, kg_set s) { return a->sets[s].n; }

kg_lexeme kg_automaton_lexeme(const kg_automaton *a, kg_set s, uint32_t i)
{
  const frame *x = &a->frames[frame_of(a, &a->sets[s], i)];
  if (x->node != FRAME_LEXEME) return (kg_lexeme){KG_STATE_DEAD, KG_SET_DEAD};
  return (kg_lexeme){x->data, x->parents};
}

int kg_automaton_without(kg_automaton *a, kg_set from, uint64_t lexemes, kg_set *out, kg_error *err)
{
  if (!begin(a, KG_POINTS_PASS, NULL, err)) return finish(a, false);
  const set s = a->sets[from];
  size_t n = 0;
  bool is_done = ROOM(a, list, s.n);
  for (uint32_t i = 0; i < s.n && is_done; i++)
    if (i >= 64 || !(lexemes >> i & 1)) a->list[n++] = frame_of(a, &s, i);
  is_done = is_done && intern_set(a, a->list, n, out);
  return finish(a, is_done);
}

int kg_automaton_resume(kg_automaton *a, kg_set parents, kg_points points, const kg_asker *asker, kg_set *out,
                        kg_error *err)
{
  return finish(a, begin(a, points, asker, err) && resume(a, parents, out));
}

/* ---- points ---- */

/* What rewriting makes of sets that it has seen. */
typedef struct rewriting {
  struct rewritten {
    kg_set from, to;
  } *seen;
  size_t n, capacity;
  const kg_asker *asker; /* NULL: forget where texts began; else leave out the frames of points that say no */
} rewriting;

static bool rewrite(kg_automaton *a, rewriting *r, kg_set from, kg_set *out);

/* The frame with its parents rewritten; *is_kept is false where it goes. */
static bool rewrite_frame(kg_automaton *a, rewriting *r, frame x, uint32_t *out, bool *is_kept)
{
  *is_kept = true;
  if (x.node < FRAME_LEXEME && a->grammar->nodes[x.node].kind == KG_NODE_POINT) {
    const uint32_t point = a->grammar->nodes[x.node].n;
    if (r->asker && failed(a, r->asker->ask(r->asker->user, point, x.data, r->asker->end, is_kept, a->err)))
      return false;
    if (!r->asker) x.data = 0;
    if (!*is_kept) return true;
  }
  if (x.has_points && !rewrite(a, r, x.parents, &x.parents)) return false;
  if (x.parents == KG_SET_DEAD && x.node != FRAME_END) {
    *is_kept = false;
    return true;
  }
  return intern_frame(a, x, out);
}

/* The depth of the stack bounds the recursion. */
static bool rewrite(kg_automaton *a, rewriting *r, kg_set from, kg_set *out)
{
  *out = from;
  if (!a->sets[from].has_points) return true;
  for (size_t i = 0; i < r->n; i++)
    if (r->seen[i].from == from) {
      *out = r->seen[i].to;
      return true;
    }
  const uint32_t n = a->sets[from].n;
  uint32_t *frames = kg_alloc_array(n, sizeof *frames);
  if (!frames) return !failed(a, kg_fail_memory(a->err, n, "an automaton"));
  size_t n_kept = 0;
  bool is_done = true;
  for (uint32_t i = 0; i < n && is_done; i++) {
    bool is_kept;
    is_done = rewrite_frame(a, r, a->frames[frame_of(a, &a->sets[from], i)], &frames[n_kept], &is_kept);
    n_kept += is_kept; /* bounded: at most n */
  }
  is_done = is_done && intern_set(a, frames, sort_unique(frames, n_kept), out);
  kg_free(frames);
  if (is_done && kg_grow((void **)&r->seen, &r->capacity, r->n + 1, sizeof *r->seen))
    r->seen[r->n++] = (struct rewritten){from, *out};
  return is_done;
}

static int rewrite_all(kg_automaton *a, const kg_asker *asker, kg_set from, kg_set *out, kg_error *err)
{
  rewriting r = {.asker = asker};
  const int status = finish(a, begin(a, KG_POINTS_ASK, asker, err) && rewrite(a, &r, from, out));
  kg_free(r.seen);
  return status;
}

int kg_automaton_forget_texts(kg_automaton *a, kg_set from, kg_set *out, kg_error *err)
{
  return rewrite_all(a, NULL, from, out, err);
}

int kg_automaton_ask_open(kg_automaton *a, kg_set from, const kg_asker *asker, kg_set *out, kg_error *err)
{
  return rewrite_all(a, asker, from, out, err);
}

/* ---- making ---- */

int kg_grammar_automaton(kg_grammar *g, kg_automaton **out, kg_error *err)
{
  if (!g->automaton) {
    kg_automaton *a = kg_alloc_array(1, sizeof *a);
    if (!a) return kg_fail_memory(err, sizeof *a, "an automaton");
    a->grammar = g;
    a->regular = g->regular;
    a->budget = &g->budget;
    a->n_classes = kg_regular_n_classes(g->regular);
    g->automaton = a;
  }
  *out = g->automaton;
  return KG_OK;
}

#define RELEASE(a, array) kg_budget_free((a)->budget, (void **)&(a)->array, &(a)->array##_capacity, sizeof *(a)->array)

static void release(kg_automaton *a)
{
  RELEASE(a, frames);
  RELEASE(a, frame_lists);
  RELEASE(a, sets);
  RELEASE(a, rows);
  RELEASE(a, blocks);
  RELEASE(a, words);
  RELEASE(a, items);
  RELEASE(a, found);
  RELEASE(a, list);
  kg_intern_free(&a->frame_index, a->budget);
  kg_intern_free(&a->set_index, a->budget);
  kg_intern_free(&a->block_index, a->budget);
  kg_intern_free(&a->item_index, a->budget);
  a->n_frames = a->n_frame_lists = a->n_sets = a->n_rows = a->n_blocks = a->n_words = a->n_items = a->n_found = 0;
}

void kg_automaton_free(kg_automaton *a)
{
  if (!a) return;
  release(a);
  kg_free(a);
}

void kg_automaton_reset(kg_automaton *a)
{
  release(a);
  kg_regular_reset(a->regular);
  a->generation++;
}

uint32_t kg_automaton_generation(const kg_automaton *a) { return a->generation; }
