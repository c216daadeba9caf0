#include "regular.h"

#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"

typedef enum re_kind { RE_NONE, RE_EMPTY, RE_SET, RE_CAT, RE_ALT, RE_AND, RE_NOT, RE_REPEAT, RE_MULTIPLE } re_kind;

enum {
  DEPTH_MAX = 1000,    /* of expressions: what bounds recursion */
  UNKNOWN = UINT32_MAX /* a step not taken yet, a state not made yet */
};

/* How many states are looked at to find out whether a state with an intersection or complement can still match. What
 * takes longer counts as alive; a dead end is found out when nothing fits any more. */
enum { ALIVE_BUDGET = 20000 };

typedef struct byte_set {
  uint64_t bits[4];
} byte_set;

/* NONE, EMPTY; SET: a = number of the set; CAT: a, then b, where a is no CAT; ALT, AND: b sorted operands from lists[a]
 * on; NOT: a; REPEAT: b to c times a; MULTIPLE: what may follow digits that leave the remainder b by a, c says how many
 * of them stand behind the point. */
typedef struct re_node {
  uint8_t kind;
  bool is_nullable;
  bool is_boolean; /* an intersection or complement is in it: it may be empty although it is not RE_NONE */
  uint16_t depth;  /* of what recursion goes into: not along the tails of CAT */
  uint32_t a, b, c;
  kg_state state;
} re_node;

typedef enum liveness { UNDECIDED, ALIVE, DEAD } liveness;

typedef struct dfa_state {
  kg_re re;
  uint8_t liveness;
} dfa_state;

struct kg_regular {
  kg_budget *budget;
  int status;
  kg_error error;

  re_node *nodes;
  size_t n_nodes, nodes_capacity;
  uint32_t *lists;
  size_t n_lists, lists_capacity;
  byte_set *sets;
  size_t n_sets, sets_capacity;
  kg_intern node_index, set_index;
  size_t n_frozen_nodes, n_frozen_lists, n_frozen_sets;

  uint8_t classes[256], class_bytes[256];
  uint32_t class_sizes[256];
  uint32_t n_classes; /* 0: not frozen */

  dfa_state *states;
  size_t n_states, states_capacity;
  kg_state *rows; /* [n_states][n_classes] */
  size_t rows_capacity;
  struct derivative {
    kg_re of, is;
    uint32_t class;
  } *derivatives; /* of the expressions that cost something */
  size_t n_derivatives, derivatives_capacity;
  kg_intern derivative_index;
  kg_re *scratch; /* a stack of operands */
  size_t n_scratch, scratch_capacity;
};

int kg_regular_status(kg_regular *regular, kg_error *err)
{
  const int status = regular->status;
  if (status && err) *err = regular->error;
  regular->status = KG_OK;
  return status;
}

/* Keep the first error. */
static bool failed(kg_regular *regular, int status)
{
  if (status && !regular->status) regular->status = status;
  return status != KG_OK;
}

static kg_error *error_of(kg_regular *regular) { return regular->status ? NULL : &regular->error; }

static bool grow(kg_regular *r, void **items, size_t *capacity, size_t need, size_t item_size)
{
  return !failed(r, kg_budget_grow(r->budget, items, capacity, need, item_size, error_of(r)));
}

/* ---- interning ---- */

static bool has_list(const re_node *node) { return node->kind == RE_ALT || node->kind == RE_AND; }

static uint32_t hash_node(const kg_regular *r, const re_node *node)
{
  const uint32_t words[4] = {node->kind, node->a, node->b, node->c};
  if (!has_list(node)) return kg_intern_hash(words, 4);
  return kg_intern_hash(&r->lists[node->a], node->b) ^ node->kind;
}

static bool same_node(const kg_regular *r, const re_node *x, const re_node *y)
{
  if (x->kind != y->kind || x->b != y->b || x->c != y->c) return false;
  if (!has_list(x)) return x->a == y->a;
  return !memcmp(&r->lists[x->a], &r->lists[y->a], x->b * sizeof *r->lists); /* bounded: in memory */
}

/* The number of this expression; a list of it that stands at the end of `lists` is dropped where it is known. */
static kg_re intern_node(kg_regular *r, re_node node)
{
  if (r->status) return KG_RE_NONE;
  if (node.depth > DEPTH_MAX) {
    failed(r, kg_fail(error_of(r), KG_ERR_FULL, "a regular expression is nested deeper than %d", DEPTH_MAX));
    return KG_RE_NONE;
  }
  const uint32_t hash = hash_node(r, &node);
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&r->node_index, hash, &at)) != KG_INTERN_NONE;) {
    if (!same_node(r, &node, &r->nodes[i])) continue;
    if (has_list(&node)) r->n_lists = node.a;
    return (kg_re)i;
  }
  node.state = UNKNOWN;
  if (r->n_nodes >= INT32_MAX || !grow(r, (void **)&r->nodes, &r->nodes_capacity, r->n_nodes + 1, sizeof node))
    return KG_RE_NONE;
  if (failed(r, kg_intern_add(&r->node_index, r->budget, hash, (int32_t)r->n_nodes, error_of(r)))) return KG_RE_NONE;
  r->nodes[r->n_nodes] = node;
  return (kg_re)r->n_nodes++;
}

static uint32_t hash_set(const byte_set *set)
{
  uint32_t words[sizeof *set / sizeof(uint32_t)];
  memcpy(words, set, sizeof words);
  return kg_intern_hash(words, sizeof words / sizeof *words);
}

static kg_re make_set(kg_regular *r, const byte_set *set)
{
  if (!(set->bits[0] | set->bits[1] | set->bits[2] | set->bits[3])) return KG_RE_NONE;
  const uint32_t hash = hash_set(set);
  size_t at = hash;
  int32_t i;
  while ((i = kg_intern_next(&r->set_index, hash, &at)) != KG_INTERN_NONE)
    if (!memcmp(&r->sets[i], set, sizeof *set)) break;
  if (i == KG_INTERN_NONE) {
    if (!grow(r, (void **)&r->sets, &r->sets_capacity, r->n_sets + 1, sizeof *set)) return KG_RE_NONE;
    if (failed(r, kg_intern_add(&r->set_index, r->budget, hash, (int32_t)r->n_sets, error_of(r)))) return KG_RE_NONE;
    r->sets[r->n_sets] = *set;
    i = (int32_t)r->n_sets++;
  }
  return intern_node(r, (re_node){.kind = RE_SET, .a = (uint32_t)i});
}

static void add_range(byte_set *set, unsigned lo, unsigned hi)
{
  for (unsigned b = lo; b <= hi && b < 256; b++) kg_set_bit(set->bits, b);
}

static bool has_byte(const byte_set *set, unsigned byte) { return kg_has_bit(set->bits, byte); }

/* Ends of range i of a list of them. */
static uint32_t low_of(const uint32_t *ranges, size_t i) { return ranges[2 * i]; } /* bounded: in memory */
static uint32_t high_of(const uint32_t *ranges, size_t i) { return ranges[2 * i + 1]; } /* bounded: in memory */

/* Range n of a list with room for it: what range i of another one has within [lo, hi], less `minus` (at most lo). How
 * many there are then. */
static size_t add_within(uint32_t *out, size_t n, const uint32_t *ranges, size_t i, uint32_t lo, uint32_t hi,
                         uint32_t minus)
{
  const uint32_t from = low_of(ranges, i) > lo ? low_of(ranges, i) : lo;
  const uint32_t to = high_of(ranges, i) < hi ? high_of(ranges, i) : hi;
  if (from > to) return n;
  out[2 * n] = from - minus; /* bounded: in memory */
  out[2 * n + 1] = to - minus; /* bounded: in memory */
  return n + 1; /* bounded: in memory */
}

/* ---- expressions ---- */

/* bounded: DEPTH_MAX + 1 */
static uint16_t deeper(const kg_regular *r, kg_re a) { return (uint16_t)(r->nodes[a].depth + 1); }

kg_re kg_re_byte_ranges(kg_regular *r, const uint32_t *ranges, size_t n_ranges)
{
  byte_set set = {{0}};
  for (size_t i = 0; i < n_ranges; i++) add_range(&set, low_of(ranges, i), high_of(ranges, i));
  return make_set(r, &set);
}

static kg_re make_byte(kg_regular *r, unsigned char byte)
{
  byte_set set = {{0}};
  add_range(&set, byte, byte);
  return make_set(r, &set);
}

/* a is no CAT. */
static kg_re cat_one(kg_regular *r, kg_re a, kg_re b)
{
  if (a == KG_RE_NONE || b == KG_RE_NONE) return KG_RE_NONE;
  if (a == KG_RE_EMPTY) return b;
  if (b == KG_RE_EMPTY) return a;
  const re_node *x = &r->nodes[a], *y = &r->nodes[b];
  const uint16_t depth = deeper(r, a) > y->depth ? deeper(r, a) : y->depth;
  return intern_node(r, (re_node){.kind = RE_CAT,
                                  .is_nullable = x->is_nullable && y->is_nullable,
                                  .is_boolean = x->is_boolean || y->is_boolean,
                                  .depth = depth,
                                  .a = a,
                                  .b = b});
}

static bool push_scratch(kg_regular *r, kg_re item)
{
  if (!grow(r, (void **)&r->scratch, &r->scratch_capacity, r->n_scratch + 1, sizeof item)) return false;
  r->scratch[r->n_scratch++] = item;
  return true;
}

kg_re kg_re_cat(kg_regular *r, kg_re a, kg_re b)
{
  const size_t base = r->n_scratch;
  while (r->nodes[a].kind == RE_CAT) {
    if (!push_scratch(r, r->nodes[a].a)) break;
    a = r->nodes[a].b;
  }
  b = cat_one(r, a, b);
  while (r->n_scratch > base) b = cat_one(r, r->scratch[--r->n_scratch], b);
  return b;
}

kg_re kg_re_text(kg_regular *r, const char *bytes, size_t n)
{
  kg_re tail = KG_RE_EMPTY;
  while (n--) tail = cat_one(r, make_byte(r, (unsigned char)bytes[n]), tail);
  return tail;
}

static int by_number(const void *a, const void *b)
{
  const kg_re x = *(const kg_re *)a, y = *(const kg_re *)b;
  return (x > y) - (x < y);
}

static bool is_everything(const kg_regular *r, kg_re a)
{
  return r->nodes[a].kind == RE_NOT && r->nodes[a].a == KG_RE_NONE;
}

static bool is_nullable_all(const kg_regular *r, const kg_re *items, size_t n)
{
  for (size_t i = 0; i < n; i++)
    if (!r->nodes[items[i]].is_nullable) return false;
  return true;
}

/* Merge all sets among the n operands at scratch[base] into one that stands at the end; returns how many there are. */
static size_t merge_sets(kg_regular *r, size_t base, size_t n, re_kind kind)
{
  byte_set merged = {{0}};
  kg_re *items = r->scratch + base;
  size_t kept = 0, n_sets = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_re item = items[i];
    if (r->nodes[item].kind != RE_SET) {
      items[kept++] = item;
      continue;
    }
    const byte_set *set = &r->sets[r->nodes[item].a];
    for (int w = 0; w < 4; w++)
      merged.bits[w] = kind == RE_ALT || !n_sets ? merged.bits[w] | set->bits[w] : merged.bits[w] & set->bits[w];
    n_sets++;
  }
  if (n_sets) items[kept++] = make_set(r, &merged);
  return kept;
}

/* Sort the n operands at scratch[base] and let go of doubles. */
static size_t sort_unique(kg_regular *r, size_t base, size_t n)
{
  kg_re *items = r->scratch + base;
  size_t kept = 0;
  if (n > 1) qsort(items, n, sizeof *items, by_number);
  for (size_t i = 0; i < n; i++)
    if (!kept || items[kept - 1] != items[i]) items[kept++] = items[i];
  return kept;
}

/* The node of the n operands at scratch[base], which are sorted and more than one. */
static kg_re make_list(kg_regular *r, size_t base, size_t n, re_kind kind)
{
  /* bounded: in memory */
  if (!grow(r, (void **)&r->lists, &r->lists_capacity, r->n_lists + n, sizeof *r->lists)) return KG_RE_NONE;
  re_node node = {.kind = (uint8_t)kind, .is_boolean = kind == RE_AND, .a = (uint32_t)r->n_lists, .b = (uint32_t)n};
  node.is_nullable = kind == RE_AND;
  const kg_re *items = r->scratch + base;
  for (size_t i = 0; i < n; i++) {
    const kg_re item = items[i];
    const re_node *x = &r->nodes[item];
    r->lists[r->n_lists++] = item;
    if (deeper(r, item) > node.depth) node.depth = deeper(r, item);
    node.is_boolean |= x->is_boolean;
    node.is_nullable = kind == RE_AND ? node.is_nullable && x->is_nullable : node.is_nullable || x->is_nullable;
  }
  return intern_node(r, node);
}

/* Take apart those operands from scratch[base] on that are lists of the same kind; false: no memory. */
static bool flatten(kg_regular *r, size_t base, re_kind kind)
{
  const size_t n = r->n_scratch;
  for (size_t i = base; i < n; i++) {
    const re_node list = r->nodes[r->scratch[i]];
    if (list.kind != kind) continue;
    r->scratch[i] = r->lists[list.a];
    for (uint32_t j = 1; j < list.b; j++)
      if (!push_scratch(r, r->lists[list.a + j])) return false; /* bounded: in memory */
  }
  return true;
}

/* x{min,max} tail, of an operand. */
typedef struct run {
  kg_re item, x, tail;
  uint32_t min, max;
} run;

static bool is_run(const kg_regular *r, kg_re item, run *out)
{
  const re_node *node = &r->nodes[item];
  const kg_re head = node->kind == RE_CAT ? node->a : item;
  const re_node *repeat = &r->nodes[head];
  *out = (run){item, repeat->a, head == item ? KG_RE_EMPTY : node->b, repeat->b, repeat->c};
  return repeat->kind == RE_REPEAT;
}

static int by_run(const void *a, const void *b)
{
  const run *x = a, *y = b;
  if (x->x != y->x) return x->x < y->x ? -1 : 1;
  if (x->tail != y->tail) return x->tail < y->tail ? -1 : 1;
  return (x->min > y->min) - (x->min < y->min);
}

static bool same_run(const run *x, const run *y)
{
  /* bounded: KG_REPEAT_MAX or no limit */
  return x->x == y->x && x->tail == y->tail && (x->max == KG_NO_LIMIT || y->min <= x->max + 1);
}

/* Operands x{a,b}T and x{c,d}T whose counts touch become one: else bounded repeats within each other make alternatives
 * without end. Returns how many there are. */
static size_t merge_runs(kg_regular *r, size_t base, size_t n)
{
  run few[8], *runs = few, one;
  kg_re *items = r->scratch + base;
  size_t n_runs = 0, kept = 0;
  for (size_t i = 0; i < n; i++)
    if (is_run(r, items[i], &one)) n_runs++;
  if (n_runs < 2) return n;
  if (n_runs > sizeof few / sizeof few[0] && !(runs = kg_alloc_array(n_runs, sizeof *runs))) return n; /* no need to */
  n_runs = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_re item = items[i];
    if (is_run(r, item, &one))
      runs[n_runs++] = one;
    else
      items[kept++] = item;
  }
  qsort(runs, n_runs, sizeof *runs, by_run);
  for (size_t i = 0, next; i < n_runs; i = next) {
    run merged = runs[i];
    bool is_one = true;
    for (next = i; ++next < n_runs && same_run(&merged, &runs[next]); is_one = false)
      if (runs[next].max > merged.max) merged.max = runs[next].max; /* KG_NO_LIMIT is the largest */
    if (!is_one) merged.item = kg_re_cat(r, kg_re_repeat(r, merged.x, merged.min, merged.max), merged.tail);
    items = r->scratch + base; /* it may have moved */
    items[kept++] = merged.item;
  }
  if (runs != few) kg_free(runs);
  return kept;
}

/* The union of the operands from scratch[base] on, which are dropped. */
static kg_re close_alt(kg_regular *r, size_t base)
{
  kg_re made = KG_RE_NONE;
  if (!flatten(r, base, RE_ALT)) goto done;
  kg_re *items = r->scratch + base;
  size_t n = r->n_scratch - base, kept = 0;
  for (size_t i = 0; i < n; i++) {
    const kg_re item = items[i];
    if (is_everything(r, item)) {
      made = item;
      goto done;
    }
    if (item != KG_RE_NONE) items[kept++] = item;
  }
  n = merge_runs(r, base, merge_sets(r, base, kept, RE_ALT));
  n = sort_unique(r, base, n);
  items = r->scratch + base; /* it may have moved */
  if (n == 2 && items[0] == KG_RE_EMPTY && r->nodes[items[1]].is_nullable)
    made = items[1];
  else
    made = n == 0 ? KG_RE_NONE : n == 1 ? items[0] : make_list(r, base, n, RE_ALT);
done:
  r->n_scratch = base;
  return made;
}

static bool has_none(const kg_regular *r, size_t base)
{
  for (size_t i = base; i < r->n_scratch; i++)
    if (r->scratch[i] == KG_RE_NONE) return true;
  return false;
}

static bool is_among(const kg_re *items, size_t n, kg_re a) { return n && bsearch(&a, items, n, sizeof a, by_number); }

/* Is there an x among the n sorted operands at scratch[base], and "not x" or "not (x or ...)" too? Nothing is both:
 * without this a search through all states would have to find it. */
static bool contradicts(const kg_regular *r, size_t base, size_t n)
{
  const kg_re *items = r->scratch + base;
  for (size_t i = 0; i < n; i++) {
    if (r->nodes[items[i]].kind != RE_NOT) continue;
    const kg_re refused = r->nodes[items[i]].a;
    const re_node *list = &r->nodes[refused];
    if (is_among(items, n, refused)) return true;
    for (size_t j = 0; list->kind == RE_ALT && j < n; j++)
      if (is_among(r->lists + list->a, list->b, items[j])) return true;
  }
  return false;
}

/* The intersection, likewise. */
static kg_re close_and(kg_regular *r, size_t base)
{
  kg_re made = KG_RE_NONE;
  if (has_none(r, base) || !flatten(r, base, RE_AND)) goto done;
  kg_re *items = r->scratch + base;
  size_t n = r->n_scratch - base, kept = 0;
  bool has_empty = false;
  for (size_t i = 0; i < n; i++) {
    const kg_re item = items[i];
    has_empty |= item == KG_RE_EMPTY;
    if (!is_everything(r, item)) items[kept++] = item;
  }
  if (has_empty) {
    made = is_nullable_all(r, items, kept) ? KG_RE_EMPTY : KG_RE_NONE;
    goto done;
  }
  n = sort_unique(r, base, merge_sets(r, base, kept, RE_AND));
  r->n_scratch = base + n; /* bounded: no more than were there */
  if (has_none(r, base) || contradicts(r, base, n)) goto done;
  made = n == 0 ? kg_re_not(r, KG_RE_NONE) : n == 1 ? r->scratch[base] : make_list(r, base, n, RE_AND);
done:
  r->n_scratch = base;
  return made;
}

/* False: no memory, and none of them is there. */
static bool push_all(kg_regular *r, const kg_re *items, size_t n)
{
  /* bounded: in memory */
  if (!grow(r, (void **)&r->scratch, &r->scratch_capacity, r->n_scratch + n, sizeof *items)) return false;
  if (n) memcpy(r->scratch + r->n_scratch, items, n * sizeof *items); /* bounded: in memory: grown above */
  r->n_scratch += n; /* bounded: as it was grown */
  return true;
}

kg_re kg_re_alt(kg_regular *r, const kg_re *items, size_t n)
{
  const size_t base = r->n_scratch;
  return push_all(r, items, n) ? close_alt(r, base) : KG_RE_NONE;
}

kg_re kg_re_and(kg_regular *r, const kg_re *items, size_t n)
{
  const size_t base = r->n_scratch;
  return push_all(r, items, n) ? close_and(r, base) : KG_RE_NONE;
}

kg_re kg_re_not(kg_regular *r, kg_re a)
{
  if (r->nodes[a].kind == RE_NOT) return r->nodes[a].a;
  return intern_node(
      r,
      (re_node){
          .kind = RE_NOT, .is_nullable = !r->nodes[a].is_nullable, .is_boolean = true, .depth = deeper(r, a), .a = a});
}

/* A count times a count; false where it is too large to tell. */
static bool multiply(uint32_t a, uint32_t b, uint32_t *out)
{
  if (a == KG_NO_LIMIT || b == KG_NO_LIMIT) {
    *out = a && b ? KG_NO_LIMIT : 0;
    return true;
  }
  const uint64_t product = (uint64_t)a * b; /* bounded: two of 32 bits */
  *out = (uint32_t)product;
  return product <= KG_REPEAT_MAX;
}

/* (a{b,c}){min,max} as a{..} of all counts that come out, if there are no gaps between them. */
static bool merge_repeats(const re_node *inner, uint32_t *min, uint32_t *max)
{
  uint32_t least, most, reach;
  if (inner->kind != RE_REPEAT || !multiply(inner->b, *min, &least) || !multiply(inner->c, *max, &most)) return false;
  if (!multiply(inner->c, *min, &reach)) return false;
  /* bounded: two of 32 bits */
  const uint64_t next = ((uint64_t)*min + 1) * inner->b; /* the least of one round more, which has the largest gap */
  if (reach != KG_NO_LIMIT && (uint64_t)reach + 1 < next && *max > *min) return false; /* bounded: 32 bits */
  *min = least;
  *max = most;
  return true;
}

kg_re kg_re_repeat(kg_regular *r, kg_re a, uint32_t min, uint32_t max)
{
  const re_node *x = &r->nodes[a];
  if (x->is_nullable) min = 0;
  if (max == 0 || a == KG_RE_EMPTY) return KG_RE_EMPTY;
  if (a == KG_RE_NONE) return min ? KG_RE_NONE : KG_RE_EMPTY;
  if (min == 1 && max == 1) return a;
  if (merge_repeats(x, &min, &max)) {
    a = x->a;
    x = &r->nodes[a];
    if (x->is_nullable) min = 0;
  }
  return intern_node(r, (re_node){.kind = RE_REPEAT,
                                  .is_nullable = !min,
                                  .is_boolean = x->is_boolean,
                                  .depth = deeper(r, a),
                                  .a = a,
                                  .b = min,
                                  .c = max});
}

/* `read`: BEFORE_POINT, or one more than the digits behind it; `places` of these count. */
enum { BEFORE_POINT = 0 };
static kg_re make_multiple(kg_regular *r, uint32_t k, uint32_t rest, uint32_t read, uint32_t places)
{
  uint64_t filled = rest; /* with zeros for the digits that are missing */
  for (uint32_t i = read == BEFORE_POINT ? 0 : read - 1; i < places; i++) filled = filled * 10 % k; /* bounded: by k */
  if (read == places + 1 && rest) return KG_RE_NONE; /* bounded: KG_PLACES_MAX; nothing but zeros may follow */
  return intern_node(r, (re_node){.kind = RE_MULTIPLE,
                                  .is_nullable = !filled,
                                  .is_boolean = true,
                                  .a = k,
                                  .b = rest,
                                  .c = read << 16 | places}); /* bounded: KG_PLACES_MAX + 1 */
}

kg_re kg_re_multiple(kg_regular *r, uint32_t k, uint32_t places)
{
  for (unsigned char digit = '0'; digit <= '9'; digit++) make_byte(r, digit); /* bytes that are told apart */
  make_byte(r, '.');
  return make_multiple(r, k, 0, BEFORE_POINT, places);
}

static kg_re derive_multiple(kg_regular *r, const re_node *node, unsigned char byte)
{
  const uint32_t read = node->c >> 16, places = node->c & 0xFFFF;
  if (byte == '.') return read == BEFORE_POINT ? make_multiple(r, node->a, node->b, 1, places) : KG_RE_NONE;
  if (byte < '0' || byte > '9') return KG_RE_NONE;
  /* bounded: KG_PLACES_MAX */
  if (read == places + 1) return byte == '0' ? make_multiple(r, node->a, node->b, read, places) : KG_RE_NONE;
  const uint64_t rest = (uint64_t)node->b * 10 + (uint64_t)(byte - '0'); /* bounded: b < a <= KG_MULTIPLE_MAX */
  /* bounded: KG_PLACES_MAX + 1 */
  return make_multiple(r, node->a, (uint32_t)(rest % node->a), read == BEFORE_POINT ? read : read + 1, places);
}

bool kg_re_is_nullable(const kg_regular *r, kg_re a) { return r->nodes[a].is_nullable; }

/* ---- characters ---- */

/* A number's digits as bytes: `bits` of it select a byte, which follows `prefix`. */
typedef struct digit {
  uint8_t bits;
  enum { DIGIT_BYTE, DIGIT_HEX } kind;
  uint8_t first; /* BYTE: of digit 0; HEX: what is added to the digit */
  const char *prefix;
} digit;

static void add_digit(byte_set *set, const digit *d, unsigned value)
{
  value += d->first; /* bounded: a byte: `bits` of it and the digit's first */
  if (d->kind == DIGIT_BYTE) {
    add_range(set, value, value);
    return;
  }
  const unsigned char upper = (unsigned char)"0123456789ABCDEF"[value & 15],
                      lower = (unsigned char)"0123456789abcdef"[value & 15];
  add_range(set, upper, upper);
  add_range(set, lower, lower);
}

/* Numbers of these ranges, written with n digits. Digits with the same tail share it. */
static kg_re make_digits(kg_regular *r, const digit *digits, size_t n, const uint32_t *ranges, size_t n_ranges)
{
  if (!n_ranges) return KG_RE_NONE;
  if (!n) return KG_RE_EMPTY;
  unsigned below = 0;
  for (size_t i = 1; i < n; i++) below += digits[i].bits; /* bounded: 21 bits */
  uint32_t *inner = kg_alloc_array(n_ranges, 2 * sizeof *inner);
  if (!inner) {
    failed(r, kg_fail_memory(error_of(r), n_ranges, "a class of characters"));
    return KG_RE_NONE;
  }
  struct {
    kg_re tail;
    byte_set set;
  } groups[64];
  kg_re items[64], full = KG_RE_NONE; /* full: the tail where any may follow */
  size_t n_groups = 0;
  for (unsigned value = 0; value < 1u << digits->bits; value++) { /* bounded: at most 6 bits */
    const uint32_t lo = value << below, hi = lo + (1u << below) - 1; /* bounded: 21 bits */
    size_t n_inner = 0;
    for (size_t i = 0; i < n_ranges; i++) n_inner = add_within(inner, n_inner, ranges, i, lo, hi, lo);
    const bool is_all = n_inner == 1 && inner[0] == 0 && inner[1] == hi - lo;
    if (is_all && full == KG_RE_NONE) full = make_digits(r, digits + 1, n - 1, inner, n_inner);
    const kg_re tail = is_all ? full : make_digits(r, digits + 1, n - 1, inner, n_inner);
    if (tail == KG_RE_NONE) continue;
    size_t g = 0;
    while (g < n_groups && groups[g].tail != tail) g++;
    if (g == n_groups) {
      groups[n_groups].tail = tail;
      groups[n_groups++].set = (byte_set){{0}};
    }
    add_digit(&groups[g].set, digits, value);
  }
  kg_free(inner);
  for (size_t g = 0; g < n_groups; g++) items[g] = cat_one(r, make_set(r, &groups[g].set), groups[g].tail);
  const kg_re made = kg_re_alt(r, items, n_groups);
  return kg_re_cat(r, kg_re_text(r, digits->prefix, strlen(digits->prefix)), made);
}

/* The parts of the ranges within [lo, hi], less `minus`, as digits. */
static kg_re make_part(kg_regular *r, const digit *digits, size_t n, const uint32_t *ranges, size_t n_ranges,
                       uint32_t lo, uint32_t hi, uint32_t minus)
{
  uint32_t *part = kg_alloc_array(n_ranges, 2 * sizeof *part);
  size_t n_part = 0;
  if (!part) {
    failed(r, kg_fail_memory(error_of(r), n_ranges, "a class of characters"));
    return KG_RE_NONE;
  }
  for (size_t i = 0; i < n_ranges; i++) n_part = add_within(part, n_part, ranges, i, lo, hi, minus);
  const kg_re made = make_digits(r, digits, n, part, n_part);
  kg_free(part);
  return made;
}

enum { SURROGATE = 0xD800, AFTER_SURROGATES = 0xE000, ASTRAL = 0x10000, UNICODE_MAX = 0x10FFFF };

kg_re kg_re_class(kg_regular *r, const uint32_t *ranges, size_t n_ranges)
{
  static const digit two[] = {{5, DIGIT_BYTE, 0xC0, ""}, {6, DIGIT_BYTE, 0x80, ""}};
  static const digit three[] = {{4, DIGIT_BYTE, 0xE0, ""}, {6, DIGIT_BYTE, 0x80, ""}, {6, DIGIT_BYTE, 0x80, ""}};
  static const digit four[] = {
      {3, DIGIT_BYTE, 0xF0, ""}, {6, DIGIT_BYTE, 0x80, ""}, {6, DIGIT_BYTE, 0x80, ""}, {6, DIGIT_BYTE, 0x80, ""}};
  byte_set ascii = {{0}};
  for (size_t i = 0; i < n_ranges; i++)
    if (low_of(ranges, i) < 0x80)
      add_range(&ascii, low_of(ranges, i), high_of(ranges, i) < 0x80 ? high_of(ranges, i) : 0x7F);
  const kg_re items[5] = {make_set(r, &ascii), make_part(r, two, 2, ranges, n_ranges, 0x80, 0x7FF, 0),
                          make_part(r, three, 3, ranges, n_ranges, 0x800, SURROGATE - 1, 0),
                          make_part(r, three, 3, ranges, n_ranges, AFTER_SURROGATES, ASTRAL - 1, 0),
                          make_part(r, four, 4, ranges, n_ranges, ASTRAL, UNICODE_MAX, 0)};
  return kg_re_alt(r, items, 5);
}

static bool has_character(const uint32_t *ranges, size_t n_ranges, uint32_t character)
{
  for (size_t i = 0; i < n_ranges; i++)
    if (low_of(ranges, i) <= character && character <= high_of(ranges, i)) return true;
  return false;
}

/* What stands behind the backslash, and which character that is. */
static const char JSON_SHORT[] = "\"\\/bfnrt", JSON_SHORT_FOR[] = "\"\\/\b\f\n\r\t";

kg_re kg_re_json_class(kg_regular *r, const uint32_t *ranges, size_t n_ranges, bool all)
{
  static const digit bmp[] = {
      {4, DIGIT_HEX, 0, "\\u"}, {4, DIGIT_HEX, 0, ""}, {4, DIGIT_HEX, 0, ""}, {4, DIGIT_HEX, 0, ""}};
  static const digit pair[] = {{0, DIGIT_HEX, 13, "\\u"}, {2, DIGIT_HEX, 8, ""},     {4, DIGIT_HEX, 0, ""},
                               {4, DIGIT_HEX, 0, ""},     {0, DIGIT_HEX, 13, "\\u"}, {2, DIGIT_HEX, 12, ""},
                               {4, DIGIT_HEX, 0, ""},     {4, DIGIT_HEX, 0, ""}};
  static const uint32_t plain_parts[] = {0x20, 0x21, 0x23, 0x5B, 0x5D, UNICODE_MAX}; /* but '"' and '\\' */
  static const uint32_t controls[] = {0, 7, 11, 11, 14, 31};
  const size_t base = r->n_scratch;
  for (size_t p = 0; p < 3; p++) { /* the ranges' parts, one by one: a class of at most two ranges each */
    uint32_t *part = kg_alloc_array(n_ranges, 2 * sizeof *part);
    size_t n = 0;
    if (!part) {
      failed(r, kg_fail_memory(error_of(r), n_ranges, "a class of characters"));
      break;
    }
    for (size_t i = 0; i < n_ranges; i++)
      n = add_within(part, n, ranges, i, low_of(plain_parts, p), high_of(plain_parts, p), 0);
    push_scratch(r, kg_re_class(r, part, n));
    kg_free(part);
  }
  byte_set shorts = {{0}};
  for (size_t i = 0; JSON_SHORT[i]; i++)
    if (has_character(ranges, n_ranges, (unsigned char)JSON_SHORT_FOR[i]) && (all || JSON_SHORT[i] != '/'))
      add_range(&shorts, (unsigned char)JSON_SHORT[i], (unsigned char)JSON_SHORT[i]);
  push_scratch(r, cat_one(r, make_byte(r, '\\'), make_set(r, &shorts)));
  if (all) {
    push_scratch(r, make_part(r, bmp, 4, ranges, n_ranges, 0, SURROGATE - 1, 0));
    push_scratch(r, make_part(r, bmp, 4, ranges, n_ranges, AFTER_SURROGATES, ASTRAL - 1, 0));
    push_scratch(r, make_part(r, pair, 8, ranges, n_ranges, ASTRAL, UNICODE_MAX, ASTRAL));
  } else {
    for (size_t p = 0; p < 3; p++)
      push_scratch(r, make_part(r, bmp, 4, ranges, n_ranges, low_of(controls, p), high_of(controls, p), 0));
  }
  return close_alt(r, base);
}

/* ---- derivatives ---- */

static kg_re derive(kg_regular *r, kg_re a, uint32_t class);

/* By a CAT: its first part's derivative and the rest, and so on along its tail while the parts may be empty. */
static kg_re derive_cat(kg_regular *r, kg_re a, uint32_t class)
{
  const size_t base = r->n_scratch;
  for (;;) {
    const re_node cat = r->nodes[a];
    if (cat.kind != RE_CAT) {
      push_scratch(r, derive(r, a, class));
      break;
    }
    const kg_re head = derive(r, cat.a, class);
    if (head != KG_RE_NONE) push_scratch(r, kg_re_cat(r, head, cat.b));
    if (!r->nodes[cat.a].is_nullable) break;
    a = cat.b;
  }
  return close_alt(r, base);
}

static kg_re derive_list(kg_regular *r, kg_re a, uint32_t class)
{
  const re_node list = r->nodes[a];
  const size_t base = r->n_scratch;
  for (uint32_t i = 0; i < list.b && !r->status; i++) {
    const kg_re item = derive(r, r->lists[list.a + i], class); /* bounded: in memory */
    if (item == KG_RE_NONE && list.kind == RE_ALT) continue;
    if (!push_scratch(r, item) || item == KG_RE_NONE) break;
  }
  return list.kind == RE_ALT ? close_alt(r, base) : close_and(r, base);
}

static kg_re derive_repeat(kg_regular *r, kg_re a, uint32_t class)
{
  const re_node repeat = r->nodes[a];
  const uint32_t min = repeat.b ? repeat.b - 1 : 0, max = repeat.c == KG_NO_LIMIT ? KG_NO_LIMIT : repeat.c - 1;
  const kg_re first = derive(r, repeat.a, class);
  if (first == KG_RE_NONE) return KG_RE_NONE;
  return kg_re_cat(r, first, kg_re_repeat(r, repeat.a, min, max));
}

static kg_re derive_once(kg_regular *r, kg_re a, uint32_t class)
{
  const re_node node = r->nodes[a];
  switch ((re_kind)node.kind) {
  case RE_SET:
    return has_byte(&r->sets[node.a], r->class_bytes[class]) ? KG_RE_EMPTY : KG_RE_NONE;
  case RE_CAT:
    return derive_cat(r, a, class);
  case RE_ALT:
  case RE_AND:
    return derive_list(r, a, class);
  case RE_NOT:
    return kg_re_not(r, derive(r, node.a, class));
  case RE_REPEAT:
    return derive_repeat(r, a, class);
  case RE_MULTIPLE:
    return derive_multiple(r, &node, r->class_bytes[class]);
  default:
    return KG_RE_NONE;
  }
}

/* What remains of the texts of `a` that begin with a byte of the class. */
static kg_re derive(kg_regular *r, kg_re a, uint32_t class)
{
  const re_kind kind = r->nodes[a].kind;
  if (r->status) return KG_RE_NONE;
  if (!has_list(&r->nodes[a]) && kind != RE_REPEAT) return derive_once(r, a, class);
  const uint32_t words[2] = {a, class}, hash = kg_intern_hash(words, 2);
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&r->derivative_index, hash, &at)) != KG_INTERN_NONE;)
    if (r->derivatives[i].of == a && r->derivatives[i].class == class) return r->derivatives[i].is;
  const kg_re is = derive_once(r, a, class);
  if (r->status ||
      !grow(r, (void **)&r->derivatives, &r->derivatives_capacity, r->n_derivatives + 1, sizeof *r->derivatives))
    return KG_RE_NONE;
  if (failed(r, kg_intern_add(&r->derivative_index, r->budget, hash, (int32_t)r->n_derivatives, error_of(r))))
    return KG_RE_NONE;
  r->derivatives[r->n_derivatives++] = (struct derivative){a, is, class};
  return is;
}

/* ---- states ---- */

static bool is_complete(const kg_regular *r, kg_state state) { return r->nodes[r->states[state].re].is_nullable; }

/* The state of an expression. */
static kg_state state_of(kg_regular *r, kg_re re)
{
  if (r->status) return KG_STATE_DEAD;
  if (r->nodes[re].state != UNKNOWN) return r->nodes[re].state;
  if (!r->n_states && re != KG_RE_NONE) state_of(r, KG_RE_NONE); /* which is the first: KG_STATE_DEAD */
  const size_t n = r->n_states;
  if (!grow(r, (void **)&r->states, &r->states_capacity, n + 1, sizeof *r->states)) return KG_STATE_DEAD;
  /* bounded: states in memory times at most 256 */
  if (!grow(r, (void **)&r->rows, &r->rows_capacity, (n + 1) * r->n_classes, sizeof *r->rows)) return KG_STATE_DEAD;
  const bool is_decided = !r->nodes[re].is_boolean || r->nodes[re].is_nullable;
  r->states[n] = (dfa_state){.re = re, .liveness = re == KG_RE_NONE ? DEAD : is_decided ? ALIVE : UNDECIDED};
  /* bounded: in memory: grown above */
  memset(r->rows + n * r->n_classes, re == KG_RE_NONE ? 0 : 0xFF, r->n_classes * sizeof *r->rows); /* UNKNOWN */
  r->nodes[re].state = (kg_state)n;
  r->n_states++;
  return (kg_state)n;
}

/* What is known of a step. */
static kg_state *step_of(const kg_regular *r, kg_state state, uint32_t class)
{
  return &r->rows[(size_t)state * r->n_classes + class]; /* bounded: in memory */
}

/* The next state, of which it may not be known yet whether it is dead. */
static kg_state step_undecided(kg_regular *r, kg_state state, uint32_t class)
{
  const kg_state known = *step_of(r, state, class);
  if (known != UNKNOWN) return known & ~KG_STATE_ASK;
  kg_state next = state_of(r, derive(r, r->states[state].re, class));
  if (r->status) return KG_STATE_DEAD;
  if (r->states[next].liveness == DEAD) next = KG_STATE_DEAD; /* rows are read without asking */
  *step_of(r, state, class) = r->states[next].liveness == UNDECIDED ? next | KG_STATE_ASK : next;
  return next;
}

typedef struct visit {
  kg_state state;
  uint32_t from; /* place in the queue */
} visit;

typedef struct search {
  visit *queue;
  size_t n, capacity;
  uint8_t *is_seen; /* by state */
  size_t seen_capacity;
} search;

static bool enqueue(kg_regular *r, search *s, kg_state state, uint32_t from)
{
  if (r->states[state].liveness == DEAD) return true;
  const size_t before = s->seen_capacity;
  if (state >= before) {
    /* bounded: they are in memory */
    if (!kg_grow((void **)&s->is_seen, &s->seen_capacity, r->n_states + 64, 1)) goto fail;
    memset(s->is_seen + before, 0, s->seen_capacity - before);
  }
  if (s->is_seen[state]) return true;
  if (!kg_grow((void **)&s->queue, &s->capacity, s->n + 1, sizeof *s->queue)) goto fail;
  s->is_seen[state] = 1;
  s->queue[s->n++] = (visit){state, from};
  return true;
fail:
  failed(r, kg_fail_memory(error_of(r), s->n, "an automaton"));
  return false;
}

/* Does anything match from this state on? Breadth first, until a state is found that is known to be alive. */
static void decide(kg_regular *r, kg_state state)
{
  search s = {0};
  size_t found = SIZE_MAX;
  enqueue(r, &s, state, 0);
  for (size_t i = 0; i < s.n && found == SIZE_MAX && !r->status; i++) {
    const kg_state at = s.queue[i].state;
    if (r->states[at].liveness == ALIVE || i >= ALIVE_BUDGET) found = i;
    for (uint32_t c = 0; c < r->n_classes && found == SIZE_MAX; c++)
      if (!enqueue(r, &s, step_undecided(r, at, c), (uint32_t)i)) break;
  }
  if (found != SIZE_MAX && !r->status) {
    if (found >= ALIVE_BUDGET) found = 0;
    for (size_t i = found;; i = s.queue[i].from) {
      r->states[s.queue[i].state].liveness = ALIVE;
      if (!i) break;
    }
  } else if (!r->status) {
    for (size_t i = 0; i < s.n; i++) r->states[s.queue[i].state].liveness = DEAD;
  }
  kg_free(s.queue);
  kg_free(s.is_seen);
}

static kg_state decided(kg_regular *r, kg_state state)
{
  if (r->status) return KG_STATE_DEAD;
  if (r->states[state].liveness == UNDECIDED) decide(r, state);
  return r->status || r->states[state].liveness == DEAD ? KG_STATE_DEAD : state;
}

kg_state kg_regular_start(kg_regular *r, kg_re a) { return decided(r, state_of(r, a)); }

kg_state kg_regular_step(kg_regular *r, kg_state state, uint32_t class)
{
  const kg_state next = step_undecided(r, state, class), sure = decided(r, next);
  if (!r->status) *step_of(r, state, class) = sure;
  return sure;
}

const kg_state *kg_regular_rows(const kg_regular *r) { return r->rows; }

bool kg_regular_accepts(const kg_regular *r, kg_state state) { return is_complete(r, state); }

bool kg_regular_is_final(const kg_regular *r, kg_state state) { return r->states[state].re == KG_RE_EMPTY; }

/* ---- making and freezing ---- */

int kg_regular_new(kg_budget *budget, kg_regular **out, kg_error *err)
{
  kg_regular *r = kg_alloc_array(1, sizeof *r);
  if (!r) return kg_fail_memory(err, sizeof *r, "an automaton");
  r->budget = budget;
  if (grow(r, (void **)&r->nodes, &r->nodes_capacity, 2, sizeof *r->nodes)) {
    intern_node(r, (re_node){.kind = RE_NONE});
    intern_node(r, (re_node){.kind = RE_EMPTY, .is_nullable = true});
  }
  const int status = kg_regular_status(r, err);
  if (status)
    kg_regular_free(r);
  else
    *out = r;
  return status;
}

void kg_regular_free(kg_regular *r)
{
  if (!r) return;
  kg_budget *budget = r->budget;
  kg_budget_free(budget, (void **)&r->nodes, &r->nodes_capacity, sizeof *r->nodes);
  kg_budget_free(budget, (void **)&r->lists, &r->lists_capacity, sizeof *r->lists);
  kg_budget_free(budget, (void **)&r->sets, &r->sets_capacity, sizeof *r->sets);
  kg_budget_free(budget, (void **)&r->states, &r->states_capacity, sizeof *r->states);
  kg_budget_free(budget, (void **)&r->rows, &r->rows_capacity, sizeof *r->rows);
  kg_budget_free(budget, (void **)&r->derivatives, &r->derivatives_capacity, sizeof *r->derivatives);
  kg_budget_free(budget, (void **)&r->scratch, &r->scratch_capacity, sizeof *r->scratch);
  kg_intern_free(&r->node_index, budget);
  kg_intern_free(&r->set_index, budget);
  kg_intern_free(&r->derivative_index, budget);
  kg_free(r);
}

/* Bytes that are in the same sets are one class. */
static void find_classes(kg_regular *r)
{
  uint32_t n = 1;
  memset(r->classes, 0, sizeof r->classes);
  for (size_t s = 0; s < r->n_sets && n < 256; s++) {
    uint32_t inside[256], seen_outside[256] = {0}; /* of each class: the number of its part within the set */
    memset(inside, 0xFF, sizeof inside);
    for (unsigned b = 0; b < 256; b++) seen_outside[r->classes[b]] |= !has_byte(&r->sets[s], b);
    for (unsigned b = 0; b < 256; b++) {
      const uint8_t class = r->classes[b];
      if (!has_byte(&r->sets[s], b) || !seen_outside[class]) continue;
      if (inside[class] == UNKNOWN) inside[class] = n++; /* bounded: every class has a byte */
      r->classes[b] = (uint8_t)inside[class];
    }
  }
  r->n_classes = n;
  memset(r->class_sizes, 0, sizeof r->class_sizes);
  for (unsigned b = 256; b-- > 0;) {
    r->class_bytes[r->classes[b]] = (uint8_t)b;
    r->class_sizes[r->classes[b]]++;
  }
}

int kg_regular_freeze(kg_regular *r, kg_error *err)
{
  if (!r->status) {
    find_classes(r);
    r->n_frozen_nodes = r->n_nodes;
    r->n_frozen_lists = r->n_lists;
    r->n_frozen_sets = r->n_sets;
  }
  return kg_regular_status(r, err);
}

void kg_regular_reset(kg_regular *r)
{
  r->status = KG_OK;
  r->n_nodes = r->n_frozen_nodes;
  r->n_lists = r->n_frozen_lists;
  r->n_sets = r->n_frozen_sets;
  r->n_scratch = 0;
  kg_intern_clear(&r->node_index);
  for (size_t i = 0; i < r->n_nodes; i++) {
    r->nodes[i].state = UNKNOWN;
    kg_intern_add(&r->node_index, r->budget, hash_node(r, &r->nodes[i]), (int32_t)i, NULL); /* there is room */
  }
  kg_intern_clear(&r->set_index);
  for (size_t i = 0; i < r->n_sets; i++)
    kg_intern_add(&r->set_index, r->budget, hash_set(&r->sets[i]), (int32_t)i, NULL);
  kg_budget_free(r->budget, (void **)&r->derivatives, &r->derivatives_capacity, sizeof *r->derivatives);
  kg_intern_free(&r->derivative_index, r->budget);
  kg_budget_free(r->budget, (void **)&r->states, &r->states_capacity, sizeof *r->states);
  kg_budget_free(r->budget, (void **)&r->rows, &r->rows_capacity, sizeof *r->rows);
  r->n_derivatives = r->n_states = 0;
}

uint32_t kg_regular_n_classes(const kg_regular *r) { return r->n_classes; }

const uint8_t *kg_regular_classes(const kg_regular *r) { return r->classes; }

uint8_t kg_regular_class_byte(const kg_regular *r, uint32_t class) { return r->class_bytes[class]; }

uint32_t kg_regular_class_size(const kg_regular *r, uint32_t class) { return r->class_sizes[class]; }
