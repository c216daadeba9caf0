#include "grammar_file.h"

#include <string.h>

#include "alloc.h"
#include "bytes.h"
#include "error.h"

/* A node in a file; what belongs to it follows: bytes of texts and names, uint32s of ranges and lists. */
typedef struct saved_node {
  uint8_t kind, negate, all_escapes, unused;
  uint32_t n;        /* bytes, ranges, children, or members */
  uint32_t child;    /* as in kg_grammar_node; of MEMBERS: the separator */
  uint32_t min, max; /* of REPEAT, MULTIPLE and MEMBERS */
} saved_node;

typedef struct saved_head {
  uint64_t memory;
  uint32_t nodes, depth, n_nodes, n_rules;
} saved_head;

_Static_assert(sizeof(saved_node) == 20 && sizeof(saved_head) == 24, "no gaps: written as they stand in memory");

enum { NODES_MAX = 10000000 }; /* what Lua may ask for */
#define MEMORY_MAX (UINT64_C(1) << 32) /* bounded: a constant */

/* ---- saving ---- */

static int put_u32(kg_bytes *out, uint32_t number, kg_error *err)
{
  return kg_bytes_append(out, &number, sizeof number, err);
}

static int put_name(const kg_grammar *g, uint32_t at, uint32_t size, kg_bytes *out, kg_error *err)
{
  const int status = put_u32(out, size, err);
  return status ? status : kg_bytes_append(out, g->bytes + at, size, err);
}

/* What an item asks for is saved as it was closed: closing it again changes nothing. */
static int save_members(const kg_grammar *g, const kg_grammar_members *m, kg_bytes *out, kg_error *err)
{
  int status = put_u32(out, m->others, err);
  if (!status) status = put_u32(out, m->is_ordered, err);
  for (size_t i = 0; i < m->n_items && !status; i++) {
    const kg_grammar_item *item = &g->items[m->first_item + i]; /* bounded: in memory */
    status = put_u32(out, item->node, err);
    if (!status) status = put_u32(out, item->is_required, err);
    if (!status)
      /* bounded: in memory */
      status = kg_bytes_append(out, g->needs + m->first_needs + i * m->n_words, m->n_words * sizeof *g->needs, err);
  }
  return status;
}

static int save_node(const kg_grammar *g, const kg_grammar_node *x, kg_bytes *out, kg_error *err)
{
  saved_node head = {.kind = x->kind,
                     .negate = x->negate,
                     .all_escapes = x->all_escapes,
                     .n = x->n,
                     .child = x->child,
                     .min = x->min,
                     .max = x->max};
  const kg_grammar_members *m = x->kind == KG_NODE_MEMBERS ? &g->members[x->n] : NULL;
  if (m) {
    head.n = (uint32_t)m->n_items;
    head.child = m->separator;
    head.min = m->min;
    head.max = m->max;
  }
  const int status = kg_bytes_append(out, &head, sizeof head, err);
  if (status) return status;
  switch ((kg_node_kind)x->kind) {
  case KG_NODE_TEXT:
    return kg_bytes_append(out, g->bytes + x->at, x->n, err);
  case KG_NODE_CLASS:
  case KG_NODE_BYTES:
    return kg_bytes_append(out, g->ranges + x->at, (size_t)x->n * 2 * sizeof *g->ranges, err); /* bounded: in memory */
  case KG_NODE_SEQ:
  case KG_NODE_ALT:
  case KG_NODE_AND:
    return kg_bytes_append(out, g->children + x->at, x->n * sizeof *g->children, err); /* bounded: in memory */
  case KG_NODE_RULE:
    return put_name(g, g->rules[x->n].name_at, g->rules[x->n].name_size, out, err);
  case KG_NODE_POINT:
    return put_name(g, g->points[x->n].name_at, g->points[x->n].name_size, out, err);
  case KG_NODE_MEMBERS:
    return save_members(g, m, out, err);
  default:
    return KG_OK;
  }
}

int kg_grammar_save(const kg_grammar *g, kg_bytes *out, kg_error *err)
{
  const saved_head head = {.memory = g->options.memory,
                           .nodes = g->options.nodes,
                           .depth = g->options.depth,
                           .n_nodes = g->start,
                           .n_rules = (uint32_t)g->n_rules}; /* compiling added the start behind */
  int status = kg_bytes_append(out, &head, sizeof head, err);
  for (size_t i = 0; i < g->start && !status; i++) status = save_node(g, &g->nodes[i], out, err);
  for (size_t i = 0; i < g->n_rules && !status; i++) {
    status = put_u32(out, g->rules[i].node, err);
    if (!status) status = put_name(g, g->rules[i].name_at, g->rules[i].name_size, out, err);
  }
  return status ? status : put_u32(out, g->nodes[g->start].n, err); /* the rule where matching starts */
}

/* ---- loading ---- */

typedef struct loader {
  kg_grammar *grammar;
  kg_string left;
  kg_error *err;
} loader;

static int fail_load(const loader *l) { return kg_fail(l->err, KG_ERR_FORMAT, "a saved grammar is malformed"); }

static int take_name(loader *l, kg_string *out)
{
  uint32_t size;
  if (!kg_take_into(&l->left, &size, sizeof size)) return fail_load(l);
  *out = (kg_string){kg_take(&l->left, size), size};
  return out->data ? KG_OK : fail_load(l);
}

/* `n` uint32s; the caller frees them. */
static int take_numbers(loader *l, uint64_t n, uint32_t **out)
{
  const char *bytes = n <= UINT32_MAX ? kg_take(&l->left, n * sizeof **out) : NULL; /* bounded: 2^34 */
  if (!bytes) return fail_load(l);
  *out = kg_alloc_array((size_t)n, sizeof **out);
  if (!*out) return kg_fail_memory(l->err, (size_t)n * sizeof **out, "a grammar");
  memcpy(*out, bytes, (size_t)n * sizeof **out); /* bounded: in memory */
  return KG_OK;
}

static int load_list(loader *l, const saved_node *x)
{
  uint32_t *children = NULL;
  int status = take_numbers(l, x->n, &children);
  kg_node made;
  if (!status) status = kg_grammar_add_list(l->grammar, (kg_node_kind)x->kind, children, x->n, &made, l->err);
  kg_free(children);
  return status;
}

static int load_ranges(loader *l, const saved_node *x)
{
  uint32_t *ranges = NULL;
  int status = take_numbers(l, (uint64_t)x->n * 2, &ranges); /* bounded: 2^33 */
  kg_node made;
  if (!status)
    status = kg_grammar_add_ranges(l->grammar, (kg_node_kind)x->kind, ranges, x->n, x->negate, &made, l->err);
  kg_free(ranges);
  return status;
}

/* One member: what its row of bits asks for as numbers, into `requires`, which has room for all. */
static int load_item(loader *l, size_t n_items, kg_member *out, uint32_t *requires)
{
  uint32_t is_required;
  if (!kg_take_into(&l->left, &out->node, sizeof out->node) ||
      !kg_take_into(&l->left, &is_required, sizeof is_required))
    return fail_load(l);
  out->is_required = is_required;
  out->requires = requires;
  for (size_t word = 0; word <= n_items / 64; word++) {
    uint64_t bits;
    if (!kg_take_into(&l->left, &bits, sizeof bits)) return fail_load(l);
    for (size_t bit = 0; bit < 64; bit++)
      /* bounded: below n_items + 64 */
      if (bits >> bit & 1 && word * 64 + bit < n_items) requires[out->n_requires++] = (uint32_t)(word * 64 + bit);
  }
  return KG_OK;
}

static int load_items(loader *l, const saved_node *x, kg_member *items, uint32_t *requires)
{
  kg_node others, made;
  uint32_t is_ordered;
  if (!kg_take_into(&l->left, &others, sizeof others) || !kg_take_into(&l->left, &is_ordered, sizeof is_ordered))
    return fail_load(l);
  for (size_t i = 0; i < x->n; i++) {
    const int status = load_item(l, x->n, &items[i], requires + i * x->n); /* bounded: within the room for n * n */
    if (status) return status;
  }
  const kg_members m = {.items = items,
                        .n_items = x->n,
                        .separator = x->child == KG_NO_NODE ? NULL : &x->child,
                        .others = others == KG_NO_NODE ? NULL : &others,
                        .min = x->min,
                        .max = x->max,
                        .is_ordered = is_ordered};
  return kg_grammar_add_members(l->grammar, &m, &made, l->err);
}

static int load_members(loader *l, const saved_node *x)
{
  if (x->n > KG_MEMBERS_MAX || x->n > l->left.size) return fail_load(l); /* each takes more than a byte */
  kg_member *items = kg_alloc_array(x->n, sizeof *items);
  uint32_t *requires = kg_alloc_array((size_t)x->n * x->n, sizeof *requires); /* bounded: KG_MEMBERS_MAX squared */
  const int status = items && requires ? load_items(l, x, items, requires)
                                       : kg_fail_memory(l->err, (size_t)x->n * x->n * sizeof *requires, "a grammar");
  kg_free(items);
  kg_free(requires);
  return status;
}

static int load_node(loader *l)
{
  saved_node x;
  kg_node made;
  kg_string text;
  int status;
  if (!kg_take_into(&l->left, &x, sizeof x)) return fail_load(l);
  switch (x.kind) {
  case KG_NODE_TEXT:
    text = (kg_string){kg_take(&l->left, x.n), x.n};
    return text.data ? kg_grammar_add_text(l->grammar, text.data, text.size, &made, l->err) : fail_load(l);
  case KG_NODE_CLASS:
  case KG_NODE_BYTES:
    return load_ranges(l, &x);
  case KG_NODE_SEQ:
  case KG_NODE_ALT:
  case KG_NODE_AND:
    return load_list(l, &x);
  case KG_NODE_REPEAT:
    return kg_grammar_add_repeat(l->grammar, x.child, x.min, x.max, &made, l->err);
  case KG_NODE_MULTIPLE:
    return kg_grammar_add_multiple(l->grammar, x.min, x.max, &made, l->err);
  case KG_NODE_RULE:
    status = take_name(l, &text);
    return status ? status : kg_grammar_add_rule(l->grammar, text.data, text.size, &made, l->err);
  case KG_NODE_NOT:
  case KG_NODE_REGULAR:
  case KG_NODE_JSON:
    return kg_grammar_add_unary(l->grammar, (kg_node_kind)x.kind, x.child, x.all_escapes, &made, l->err);
  case KG_NODE_POINT:
    status = take_name(l, &text);
    return status ? status : kg_grammar_add_point(l->grammar, text.data, text.size, x.child, &made, l->err);
  case KG_NODE_MEMBERS:
    return load_members(l, &x);
  default:
    return fail_load(l);
  }
}

static int load_rules(loader *l, uint32_t n_rules)
{
  kg_string start = {0};
  const kg_string all = l->left;
  uint32_t first, node;
  int status = KG_OK;
  for (uint32_t i = 0; i < n_rules && !status; i++) {
    kg_string name;
    if (!kg_take_into(&l->left, &node, sizeof node)) return fail_load(l);
    status = take_name(l, &name);
    if (!status && node != KG_NO_NODE) status = kg_grammar_define(l->grammar, name.data, name.size, node, l->err);
  }
  if (status) return status;
  if (!kg_take_into(&l->left, &first, sizeof first) || l->left.size || first >= n_rules) return fail_load(l);
  l->left = all; /* once more, for the name of the first one */
  for (uint32_t i = 0; i <= first && !status; i++) {
    kg_take_into(&l->left, &node, sizeof node);
    status = take_name(l, &start);
  }
  return status ? status : kg_grammar_compile(l->grammar, start.data, start.size, l->err);
}

static int load_all(loader *l)
{
  saved_head head;
  if (!kg_take_into(&l->left, &head, sizeof head) || head.memory > MEMORY_MAX || head.nodes > NODES_MAX ||
      head.depth > KG_STACK_MAX || head.n_nodes > l->left.size / sizeof(saved_node))
    return fail_load(l);
  const kg_grammar_options options = {.memory = (size_t)head.memory, .nodes = head.nodes, .depth = head.depth};
  int status = kg_grammar_new(&options, &l->grammar, l->err);
  if (status) return status;
  for (uint32_t i = 0; i < head.n_nodes && !status; i++) status = load_node(l);
  return status ? status : load_rules(l, head.n_rules);
}

int kg_grammar_load(kg_string bytes, kg_grammar **out, kg_error *err)
{
  loader l = {.left = bytes, .err = err};
  const int status = load_all(&l);
  if (!status) {
    *out = l.grammar;
    return KG_OK;
  }
  kg_grammar_free(l.grammar);
  return status == KG_ERR_ARGUMENT ? fail_load(&l) : status; /* the caller's mistakes are the file's here */
}
