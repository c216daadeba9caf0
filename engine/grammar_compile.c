/* grammar_compile.c - kg_grammar_compile: which nodes are regular, which become lexemes, what can match at all and what
 * may be empty, and that no rule begins with itself. */
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "bits.h"
#include "error.h"
#include "grammar.h"
#include "utf8.h"

enum {
  /* Up to here a regular node becomes one lexeme without being told to: larger ones share the masks of their parts. */
  FUSED_SIZE = 512,
  FUSED_LOOPS = 8,
  FUSED_HEIGHT = 200,
  LEXEME_HEIGHT = 600, /* of one that was asked for: what bounds recursion */
  TEXTS_TREE = 8,      /* so many alternative texts are made a tree */
  TEXTS_DEPTH = 200
};

static const char *const KIND_NAMES[] = {"text", "class", "bytes", "multiple", "seq",  "alt",     "repeat",
                                         "rule", "and",   "not",   "regular",  "json", "members", "point"};

/* ---- children, of all kinds of nodes alike ---- */

static size_t count_children(const kg_grammar *g, kg_node node)
{
  const kg_grammar_node *x = &g->nodes[node];
  switch ((kg_node_kind)x->kind) {
  case KG_NODE_TEXT:
  case KG_NODE_CLASS:
  case KG_NODE_BYTES:
  case KG_NODE_MULTIPLE:
    return 0;
  case KG_NODE_SEQ:
  case KG_NODE_ALT:
  case KG_NODE_AND:
    return x->n;
  case KG_NODE_MEMBERS: {
    const kg_grammar_members *m = &g->members[x->n];
    return m->n_items + (m->separator != KG_NO_NODE) + (m->others != KG_NO_NODE); /* bounded: KG_MEMBERS_MAX + 2 */
  }
  default:
    return 1;
  }
}

static kg_node child_at(const kg_grammar *g, kg_node node, size_t i)
{
  const kg_grammar_node *x = &g->nodes[node];
  /* bounded: in memory */
  if (x->kind == KG_NODE_SEQ || x->kind == KG_NODE_ALT || x->kind == KG_NODE_AND) return g->children[x->at + i];
  if (x->kind != KG_NODE_MEMBERS) return x->child;
  const kg_grammar_members *m = &g->members[x->n];
  if (i < m->n_items) return kg_item_of(g, m, i)->node;
  return i == m->n_items && m->separator != KG_NO_NODE ? m->separator : m->others;
}

/* ---- properties that spread from children to parents ---- */

typedef enum property { REGULAR, POSSIBLE, NULLABLE } property;

enum { NEVER = UINT32_MAX };

static const uint64_t *required_items(const kg_grammar *g, const kg_grammar_members *m)
{
  return kg_needs_of(g, m, m->n_items);
}

static bool is_required(const kg_grammar *g, const kg_grammar_members *m, size_t i)
{
  return kg_has_bit(required_items(g, m), i);
}

static uint32_t count_required(const kg_grammar *g, const kg_grammar_members *m)
{
  uint32_t n = 0;
  /* bounded: KG_MEMBERS_MAX */
  for (size_t w = 0; w < m->n_words; w++) n += (uint32_t)__builtin_popcountll(required_items(g, m)[w]);
  return n;
}

/* How many members must come beside the required ones. */
static uint32_t count_spare(const kg_grammar *g, kg_node node)
{
  const kg_grammar_node *x = &g->nodes[node];
  if (x->kind != KG_NODE_MEMBERS) return 0;
  const kg_grammar_members *m = &g->members[x->n];
  const uint32_t n_required = count_required(g, m);
  return m->min > n_required ? m->min - n_required : 0;
}

/* What it is worth to the node that its i-th child has the property. *spare: members that are still wanted beside the
 * required ones; an item that may come is one of them, and `others` are as many as one likes. */
static uint32_t worth(const kg_grammar *g, kg_node node, size_t i, property p, uint32_t *spare)
{
  const kg_grammar_node *x = &g->nodes[node];
  if (x->kind != KG_NODE_MEMBERS) return !x->is_fused;
  const kg_grammar_members *m = &g->members[x->n];
  if (p != POSSIBLE) return 0;
  if (i < m->n_items && is_required(g, m, i)) return 1;
  if (i == m->n_items && m->separator != KG_NO_NODE) return 1;
  const uint32_t found = i < m->n_items && *spare ? 1 : *spare;
  *spare -= found;
  return found;
}

/* How many of the children that count must have the property for the node to have it. */
static uint32_t threshold(const kg_grammar *g, kg_node node, property p)
{
  const kg_grammar_node *x = &g->nodes[node];
  if (x->is_fused && p == POSSIBLE) return x->is_possible ? 0 : NEVER;
  if (x->is_fused && p == NULLABLE) return kg_re_is_nullable(g->regular, x->re[0]) ? 0 : NEVER;
  if (x->kind == KG_NODE_MEMBERS) {
    const kg_grammar_members *m = &g->members[x->n];
    const uint32_t n_required = count_required(g, m);
    if (p == REGULAR || (p == POSSIBLE && n_required > m->max)) return NEVER;
    if (p == POSSIBLE) return n_required + (m->separator != KG_NO_NODE) + count_spare(g, node); /* bounded: <= 2^31 */
    return m->min || n_required ? NEVER : 0;
  }
  if (p == REGULAR) return x->kind == KG_NODE_POINT ? NEVER : (uint32_t)count_children(g, node);
  switch ((kg_node_kind)x->kind) {
  case KG_NODE_SEQ:
    return x->n;
  case KG_NODE_ALT:
    return x->n ? 1 : NEVER;
  case KG_NODE_REPEAT:
    return x->min ? 1 : 0;
  default:
    return 1;
  }
}

/* The nodes that each node is a child of. */
typedef struct parents {
  size_t *starts; /* [n_nodes + 1] */
  struct edge {
    kg_node parent;
    uint32_t i;
  } *edges;
} parents;

static void parents_free(parents *p)
{
  kg_free(p->starts);
  kg_free(p->edges);
}

static int find_parents(const kg_grammar *g, parents *out, kg_error *err)
{
  size_t n_edges = 0;
  out->starts = kg_alloc_array(g->n_nodes + 2, sizeof *out->starts); /* bounded: they are in memory */
  if (!out->starts) return kg_fail_memory(err, g->n_nodes, "a grammar");
  for (kg_node node = 0; node < g->n_nodes; node++) {
    const size_t n = count_children(g, node);
    for (size_t i = 0; i < n; i++) out->starts[child_at(g, node, i) + 2]++; /* bounded: in memory */
    n_edges += n; /* bounded: children, each of which is in memory */
  }
  out->edges = kg_alloc_array(n_edges, sizeof *out->edges);
  if (!out->edges) return kg_fail_memory(err, n_edges, "a grammar");
  for (size_t i = 1; i < g->n_nodes + 2; i++) out->starts[i] += out->starts[i - 1]; /* bounded: in memory */
  for (kg_node node = 0; node < g->n_nodes; node++) { /* starts[n + 1] moves on to become the end of n */
    const size_t n = count_children(g, node);
    for (size_t i = 0; i < n; i++)
      out->edges[out->starts[child_at(g, node, i) + 1]++] = (struct edge){node, (uint32_t)i}; /* bounded: in memory */
  }
  return KG_OK;
}

/* bounded: by 2^30, which is as much as matters */
static uint32_t add_capped(uint32_t a, uint32_t b) { return a > (1u << 30) - b ? 1u << 30 : a + b; }

/* Of a regular node, whose children have been measured. */
static void measure(kg_grammar *g, kg_node node)
{
  kg_grammar_node *x = &g->nodes[node];
  const size_t n = count_children(g, node);
  x->size = x->kind == KG_NODE_TEXT ? x->n : 1;
  x->loops = x->kind == KG_NODE_REPEAT && x->max > 1;
  x->height = 1;
  for (size_t i = 0; i < n; i++) {
    const kg_grammar_node *child = &g->nodes[child_at(g, node, i)];
    x->size = add_capped(x->size, child->size < 1u << 29 ? child->size : 1u << 29);
    x->loops = add_capped(x->loops, child->loops < 1u << 29 ? child->loops : 1u << 29);
    if (child->height >= x->height) x->height = child->height + 1; /* bounded: by the number of nodes */
  }
}

static void gain(kg_grammar *g, kg_node node, property p)
{
  if (p == REGULAR) {
    g->nodes[node].is_regular = true;
    measure(g, node);
  } else if (p == POSSIBLE) {
    g->nodes[node].is_possible = true;
  } else {
    g->nodes[node].is_nullable = true;
  }
}

/* Find all nodes that have the property: the least set that the rules above close. */
static int spread(kg_grammar *g, const parents *up, property p, kg_error *err)
{
  uint32_t *missing = kg_alloc_array(g->n_nodes, sizeof *missing), *spare = kg_alloc_array(g->n_nodes, sizeof *spare);
  kg_node *queue = kg_alloc_array(g->n_nodes, sizeof *queue);
  size_t n = 0;
  if (missing && spare && queue) {
    for (kg_node node = 0; node < g->n_nodes; node++) {
      missing[node] = threshold(g, node, p);
      spare[node] = p == POSSIBLE ? count_spare(g, node) : 0;
      if (missing[node]) continue;
      gain(g, node, p);
      queue[n++] = node;
    }
    for (size_t at = 0; at < n; at++) {
      for (size_t e = up->starts[queue[at]]; e < up->starts[queue[at] + 1]; e++) { /* bounded: in memory */
        const struct edge edge = up->edges[e];
        if (!missing[edge.parent] || missing[edge.parent] == NEVER) continue;
        missing[edge.parent] -= worth(g, edge.parent, edge.i, p, &spare[edge.parent]);
        if (missing[edge.parent]) continue;
        gain(g, edge.parent, p);
        queue[n++] = edge.parent;
      }
    }
  }
  const bool has_memory = missing && spare && queue;
  kg_free(missing);
  kg_free(spare);
  kg_free(queue);
  return has_memory ? KG_OK : kg_fail_memory(err, g->n_nodes, "a grammar");
}

/* ---- lexemes ---- */

/* How characters are written: as they are, or in JSON strings, with all escapes or those needed. */
typedef enum spelling { PLAIN, JSON_ALL, JSON_NEEDED } spelling;

static int fail_utf8(kg_error *err, const char *bytes, size_t n)
{
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_FORMAT, "json: the text %s is not UTF-8", kg_quote(quoted, bytes, n));
}

/* One text; in JSON character by character, from its end on. */
static kg_re build_text(kg_grammar *g, spelling how, const char *bytes, size_t n)
{
  if (how == PLAIN) return kg_re_text(g->regular, bytes, n);
  kg_re tail = KG_RE_EMPTY;
  while (n) {
    size_t at = n - 1, length;
    while (at && (bytes[at] & 0xC0) == 0x80) at--;
    uint32_t c[2];
    kg_utf8_next(bytes + at, n - at, c, &length);
    c[1] = c[0];
    tail = kg_re_cat(g->regular, kg_re_json_class(g->regular, c, 1, how == JSON_ALL), tail);
    n = at;
  }
  return tail;
}

/* The end of the unit (byte or character) of the text that begins at `at`. */
static size_t unit_end(kg_string text, size_t at, spelling how)
{
  at++;
  if (how != PLAIN)
    while (at < text.size && (text.data[at] & 0xC0) == 0x80) at++;
  return at;
}

static bool same_span(kg_string x, kg_string y, size_t begin, size_t end)
{
  return x.size >= end && y.size >= end && !memcmp(x.data + begin, y.data + begin, end - begin);
}

/* Sorted texts that agree in their first `at` bytes, as a tree, so that their beginnings are written once. */
static kg_re build_texts(kg_grammar *g, spelling how, const kg_string *texts, size_t n, size_t at, int depth)
{
  const kg_string first = texts[0], last = texts[n - 1];
  if (n == 1) return build_text(g, how, first.data + at, first.size - at);
  size_t end = at;
  while (end < first.size && depth < TEXTS_DEPTH && same_span(first, last, at, unit_end(first, end, how)))
    end = unit_end(first, end, how);
  kg_re *parts = kg_alloc_array(n, sizeof *parts);
  if (!parts) return UINT32_MAX;
  size_t n_parts = 0;
  for (size_t i = 0, next; i < n; i = next) {
    next = i + 1; /* bounded: at most n */
    if (texts[i].size > end && depth < TEXTS_DEPTH)
      while (next < n && same_span(texts[i], texts[next], end, unit_end(texts[i], end, how))) next++;
    /* bounded: at most n; texts in memory */
    parts[n_parts++] = next == i + 1 ? build_text(g, how, texts[i].data + end, texts[i].size - end)
                                     /* bounded: TEXTS_DEPTH */
                                     : build_texts(g, how, texts + i, next - i, end, depth + 1);
    if (parts[n_parts - 1] == UINT32_MAX) break;
  }
  kg_re made = parts[n_parts - 1];
  if (made != UINT32_MAX) {
    made = kg_re_alt(g->regular, parts, n_parts);
    made = kg_re_cat(g->regular, build_text(g, how, first.data + at, end - at), made);
  }
  kg_free(parts);
  return made;
}

static int by_bytes(const void *a, const void *b)
{
  const kg_string *x = a, *y = b;
  const size_t n = x->size < y->size ? x->size : y->size;
  const int order = n ? memcmp(x->data, y->data, n) : 0;
  return order ? order : (x->size > y->size) - (x->size < y->size);
}

static int build(kg_grammar *g, kg_node node, spelling how, kg_error *err);

/* Alternatives; those that are texts together, as a tree where they are many. */
static int build_list(kg_grammar *g, kg_node node, spelling how, kg_re *out, kg_error *err)
{
  const kg_grammar_node x = g->nodes[node];
  kg_re *parts = kg_alloc_array((size_t)x.n + 1, sizeof *parts); /* bounded: 32 bits */
  kg_string *texts = kg_alloc_array(x.n, sizeof *texts);
  size_t n = 0, n_texts = 0;
  int status = parts && texts ? KG_OK : kg_fail_memory(err, x.n, "a grammar");
  for (uint32_t i = 0; i < x.n && !status; i++) {
    const kg_node child = g->children[x.at + i]; /* bounded: in memory */
    const kg_grammar_node *c = &g->nodes[child];
    if (x.kind == KG_NODE_ALT && x.n >= TEXTS_TREE && c->kind == KG_NODE_TEXT) {
      texts[n_texts++] = (kg_string){g->bytes + c->at, c->n};
      if (how != PLAIN && !kg_utf8_is_valid(g->bytes + c->at, c->n)) status = fail_utf8(err, g->bytes + c->at, c->n);
      continue;
    }
    status = build(g, child, how, err);
    parts[n++] = g->nodes[child].re[how];
  }
  if (!status && n_texts) {
    qsort(texts, n_texts, sizeof *texts, by_bytes);
    parts[n] = build_texts(g, how, texts, n_texts, 0, 0);
    if (parts[n++] == UINT32_MAX) status = kg_fail_memory(err, n_texts, "a grammar");
  }
  if (!status && x.kind == KG_NODE_SEQ) {
    *out = KG_RE_EMPTY;
    while (n--) *out = kg_re_cat(g->regular, parts[n], *out);
  } else if (!status) {
    *out = x.kind == KG_NODE_ALT ? kg_re_alt(g->regular, parts, n) : kg_re_and(g->regular, parts, n);
  }
  kg_free(parts);
  kg_free(texts);
  return status;
}

static int by_range(const void *a, const void *b)
{
  const uint32_t *x = a, *y = b;
  return (x[0] > y[0]) - (x[0] < y[0]);
}

/* The ranges sorted, apart, and turned round where the node says so. */
static int build_ranges(kg_grammar *g, const kg_grammar_node *x, spelling how, kg_re *out, kg_error *err)
{
  const uint32_t highest = x->kind == KG_NODE_CLASS ? 0x10FFFF : 255;
  if (how != PLAIN && x->kind == KG_NODE_BYTES) return kg_fail(err, KG_ERR_FORMAT, "json: a node of bytes is in it");
  uint32_t *ranges = kg_alloc_array((size_t)x->n + 1, 2 * sizeof *ranges); /* bounded: 32 bits */
  if (!ranges) return kg_fail_memory(err, x->n, "a class of characters");
  size_t n = 0;
  if (x->n) memcpy(ranges, g->ranges + x->at, (size_t)x->n * 2 * sizeof *ranges); /* bounded: in memory */
  qsort(ranges, x->n, 2 * sizeof *ranges, by_range);
  for (size_t i = 0; i < x->n; i++) {
    if (n && ranges[2 * i] <= ranges[2 * n - 1] + 1) { /* bounded: at most 0x10FFFF */
      if (ranges[2 * i + 1] > ranges[2 * n - 1]) ranges[2 * n - 1] = ranges[2 * i + 1]; /* bounded: in memory */
      continue;
    }
    ranges[2 * n] = ranges[2 * i]; /* bounded: in memory */
    ranges[2 * n++ + 1] = ranges[2 * i + 1]; /* bounded: in memory */
  }
  if (x->negate) { /* the gaps, in place: each is written behind what it was read from */
    uint32_t from = 0;
    size_t n_gaps = 0;
    for (size_t i = 0; i <= n; i++) {
      /* bounded: in memory; at most 0x10FFFF */
      const uint32_t lo = i < n ? ranges[2 * i] : highest + 1, hi = i < n ? ranges[2 * i + 1] : highest;
      if (lo > from) {
        ranges[2 * n_gaps] = from; /* bounded: in memory */
        ranges[2 * n_gaps++ + 1] = lo - 1; /* bounded: in memory */
      }
      from = hi + 1; /* bounded: 0x10FFFF */
    }
    n = n_gaps;
  }
  if (x->kind == KG_NODE_BYTES)
    *out = kg_re_byte_ranges(g->regular, ranges, n);
  else if (how == PLAIN)
    *out = kg_re_class(g->regular, ranges, n);
  else
    *out = kg_re_json_class(g->regular, ranges, n, how == JSON_ALL);
  kg_free(ranges);
  return KG_OK;
}

/* What is not `re`; in JSON: among the contents of strings. */
static kg_re build_not(kg_grammar *g, kg_re re, spelling how)
{
  const kg_re other = kg_re_not(g->regular, re);
  if (how == PLAIN) return other;
  const uint32_t any[2] = {0, 0x10FFFF};
  const kg_re character = kg_re_json_class(g->regular, any, 1, how == JSON_ALL);
  const kg_re both[2] = {kg_re_repeat(g->regular, character, 0, KG_NO_LIMIT), other};
  return kg_re_and(g->regular, both, 2);
}

/* Make the expression of a regular node. Its height bounds the recursion. */
static int build(kg_grammar *g, kg_node node, spelling how, kg_error *err)
{
  const kg_grammar_node x = g->nodes[node];
  if (x.re[how] != UINT32_MAX) return KG_OK;
  spelling inner = how;
  if (x.kind == KG_NODE_JSON) {
    if (how != PLAIN) return kg_fail(err, KG_ERR_FORMAT, "json: it stands in another one");
    inner = x.all_escapes ? JSON_ALL : JSON_NEEDED;
  }
  int status = KG_OK;
  kg_re re = KG_RE_NONE;
  if (x.kind >= KG_NODE_REPEAT && x.kind != KG_NODE_AND) {
    if ((status = build(g, x.child, inner, err))) return status;
    re = g->nodes[x.child].re[inner];
  }
  switch ((kg_node_kind)x.kind) {
  case KG_NODE_TEXT:
    if (how != PLAIN && !kg_utf8_is_valid(g->bytes + x.at, x.n)) return fail_utf8(err, g->bytes + x.at, x.n);
    re = build_text(g, how, g->bytes + x.at, x.n);
    break;
  case KG_NODE_CLASS:
  case KG_NODE_BYTES:
    status = build_ranges(g, &x, how, &re, err);
    break;
  case KG_NODE_MULTIPLE:
    if (how != PLAIN) return kg_fail(err, KG_ERR_FORMAT, "json: a node of multiples is in it");
    re = kg_re_multiple(g->regular, x.min, x.max);
    break;
  case KG_NODE_SEQ:
  case KG_NODE_ALT:
  case KG_NODE_AND:
    status = build_list(g, node, how, &re, err);
    break;
  case KG_NODE_REPEAT:
    re = kg_re_repeat(g->regular, re, x.min, x.max);
    break;
  case KG_NODE_NOT:
    re = build_not(g, re, how);
    break;
  default:
    break; /* the child's */
  }
  if (!status) status = kg_regular_status(g->regular, err);
  if (!status) g->nodes[node].re[how] = re;
  return status;
}

static bool wants_lexeme(const kg_grammar_node *x)
{
  return x->kind <= KG_NODE_MULTIPLE || (x->kind >= KG_NODE_AND && x->kind <= KG_NODE_JSON);
}

/* Make lexemes of the regular nodes that are reached from the start without going into one. */
static int fuse(kg_grammar *g, kg_error *err)
{
  uint8_t *is_seen = kg_alloc_array(g->n_nodes, 1);
  kg_node *stack = kg_alloc_array(g->n_nodes, sizeof *stack);
  int status = is_seen && stack ? KG_OK : kg_fail_memory(err, g->n_nodes, "a grammar");
  size_t n = 0;
  if (!status) {
    stack[n++] = g->start;
    is_seen[g->start] = 1;
  }
  while (n && !status) {
    const kg_node node = stack[--n];
    const kg_grammar_node *x = &g->nodes[node];
    const bool is_wanted = wants_lexeme(x);
    if (is_wanted && !x->is_regular)
      status = kg_fail(err, KG_ERR_FORMAT, "%s: what is in it is not regular (a recursive rule, members or a point)",
                       KIND_NAMES[x->kind]);
    else if (is_wanted && x->height > LEXEME_HEIGHT)
      status = kg_fail(err, KG_ERR_FULL, "%s: it is nested deeper than %d", KIND_NAMES[x->kind], LEXEME_HEIGHT);
    else if (is_wanted ||
             (x->is_regular && x->size <= FUSED_SIZE && x->loops <= FUSED_LOOPS && x->height <= FUSED_HEIGHT)) {
      g->nodes[node].is_fused = true;
      status = build(g, node, PLAIN, err);
    } else {
      const size_t n_children = count_children(g, node);
      for (size_t i = 0; i < n_children; i++) {
        const kg_node child = child_at(g, node, i);
        if (is_seen[child]) continue;
        is_seen[child] = 1;
        stack[n++] = child;
      }
    }
  }
  kg_free(is_seen);
  kg_free(stack);
  return status;
}

/* ---- checks ---- */

static const char *rule_name(const kg_grammar *g, uint32_t rule, char quoted[KG_QUOTE_MAX])
{
  return kg_quote(quoted, g->bytes + g->rules[rule].name_at, g->rules[rule].name_size);
}

/* Every reference gets its rule's node. */
static int resolve_rules(kg_grammar *g, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  for (uint32_t i = 0; i < g->n_rules; i++)
    if (g->rules[i].node == KG_NO_NODE)
      return kg_fail(err, KG_ERR_FORMAT, "rule %s is not defined", rule_name(g, i, quoted));
  for (size_t i = 0; i < g->n_nodes; i++)
    if (g->nodes[i].kind == KG_NODE_RULE) g->nodes[i].child = g->rules[g->nodes[i].n].node;
  return KG_OK;
}

/* Can matching of the node go into its i-th child before any byte is read? */
static bool is_first(const kg_grammar *g, kg_node node, size_t i)
{
  const kg_grammar_node *x = &g->nodes[node];
  if (x->kind != KG_NODE_SEQ) return true;
  while (i-- > 0)
    if (!g->nodes[child_at(g, node, i)].is_nullable) return false;
  return true;
}

typedef struct walk {
  kg_node node;
  uint32_t next; /* child to look at */
} walk;

static int fail_left_recursion(const kg_grammar *g, const walk *stack, size_t n, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  while (n > 1 && g->nodes[stack[n - 1].node].kind != KG_NODE_RULE) n--;
  return kg_fail(err, KG_ERR_FORMAT, "rule %s begins with itself (left recursion); write a repeat instead",
                 rule_name(g, g->nodes[stack[n - 1].node].n, quoted));
}

static int check_left_recursion(const kg_grammar *g, kg_error *err)
{
  enum { NEW, OPEN, DONE };
  uint8_t *colors = kg_alloc_array(g->n_nodes, 1);
  walk *stack = kg_alloc_array(g->n_nodes, sizeof *stack);
  int status = colors && stack ? KG_OK : kg_fail_memory(err, g->n_nodes, "a grammar");
  for (kg_node root = 0; root < g->n_nodes && !status; root++) {
    if (colors[root]) continue;
    size_t n = 0;
    stack[n++] = (walk){root, 0};
    colors[root] = OPEN;
    while (n && !status) {
      walk *top = &stack[n - 1];
      const bool is_leaf = g->nodes[top->node].is_fused || !g->nodes[top->node].is_possible;
      if (is_leaf || top->next >= count_children(g, top->node) || !is_first(g, top->node, top->next)) {
        colors[top->node] = DONE;
        n--;
        continue;
      }
      const kg_node child = child_at(g, top->node, top->next++);
      if (colors[child] == OPEN) status = fail_left_recursion(g, stack, n, err);
      if (colors[child] != NEW) continue;
      colors[child] = OPEN;
      stack[n++] = (walk){child, 0};
    }
  }
  kg_free(colors);
  kg_free(stack);
  return status;
}

/* Can everything come that comes with the i-th item? */
static bool is_usable(const kg_grammar *g, const kg_grammar_members *m, size_t i)
{
  const uint64_t *needs = kg_needs_of(g, m, i);
  for (size_t j = 0; j < m->n_items; j++)
    if (kg_has_bit(needs, j) && !g->nodes[kg_item_of(g, m, j)->node].is_possible) return false;
  return true;
}

static int settle_members(kg_grammar *g, kg_grammar_members *m, kg_error *err)
{
  size_t n_usable = 0;
  if (m->others != KG_NO_NODE && !g->nodes[m->others].is_possible) m->others = KG_NO_NODE;
  for (size_t i = 0; i < m->n_items; i++) {
    const bool is = is_usable(g, m, i);
    kg_item_of(g, m, i)->is_usable = is;
    n_usable += is; /* bounded: by the items */
  }
  if (m->others == KG_NO_NODE && n_usable < m->min)
    return kg_fail(err, KG_ERR_FORMAT, "members: at least %u must come, but only %zu can", m->min, n_usable);
  return KG_OK;
}

/* Repeats of what may be empty: to come less often is to be empty now and then. */
static void settle_repeats(kg_grammar *g)
{
  for (size_t i = 0; i < g->n_nodes; i++) {
    kg_grammar_node *x = &g->nodes[i];
    if (x->kind == KG_NODE_REPEAT && g->nodes[x->child].is_nullable) x->min = 0;
  }
}

static int settle(kg_grammar *g, kg_error *err)
{
  for (size_t i = 0; i < g->n_nodes; i++) {
    kg_grammar_node *x = &g->nodes[i];
    if (x->is_fused) x->is_possible = kg_regular_start(g->regular, x->re[0]) != KG_STATE_DEAD;
  }
  return kg_regular_status(g->regular, err);
}

static int compile(kg_grammar *g, parents *up, kg_error *err)
{
  int status = find_parents(g, up, err);
  if (!status) status = spread(g, up, REGULAR, err);
  if (!status) status = fuse(g, err);
  if (!status) status = kg_regular_freeze(g->regular, err);
  if (!status) status = settle(g, err);
  if (!status) status = spread(g, up, POSSIBLE, err);
  if (!status) status = spread(g, up, NULLABLE, err);
  if (status) return status;
  if (!g->nodes[g->start].is_possible) return kg_fail(err, KG_ERR_FORMAT, "the grammar matches nothing");
  for (size_t i = 0; i < g->n_nodes; i++)
    if (g->nodes[i].kind == KG_NODE_MEMBERS && g->nodes[i].is_possible &&
        (status = settle_members(g, &g->members[g->nodes[i].n], err)))
      return status;
  settle_repeats(g);
  return check_left_recursion(g, err);
}

int kg_grammar_compile(kg_grammar *g, const char *start, size_t n, kg_error *err)
{
  parents up = {0};
  kg_node node;
  int status = kg_grammar_add_rule(g, start, n, &node, err);
  if (!status) status = resolve_rules(g, err);
  if (status) return status;
  g->start = node;
  status = compile(g, &up, err);
  parents_free(&up);
  return status;
}
