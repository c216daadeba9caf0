#include "grammar.h"

#include <string.h>

#include "alloc.h"
#include "automaton.h"
#include "bits.h"
#include "error.h"
#include "mask.h"

const kg_grammar_options kg_grammar_defaults = {.memory = (size_t)64 << 20, .nodes = 200000, .depth = 2000};

int kg_grammar_new(const kg_grammar_options *options, kg_grammar **out, kg_error *err)
{
  kg_grammar *g = kg_alloc_array(1, sizeof *g);
  if (!g) return kg_fail_memory(err, sizeof *g, "a grammar");
  g->n_refs = 1;
  g->options = options ? *options : kg_grammar_defaults;
  g->budget.limit = g->options.memory;
  const int status = kg_regular_new(&g->budget, &g->regular, err);
  if (status)
    kg_grammar_free(g);
  else
    *out = g;
  return status;
}

kg_grammar *kg_grammar_ref(kg_grammar *g)
{
  g->n_refs++;
  return g;
}

void kg_grammar_free(kg_grammar *g)
{
  if (!g || --g->n_refs) return;
  kg_masks_free(g->masks);
  kg_automaton_free(g->automaton);
  kg_regular_free(g->regular);
  kg_free(g->nodes);
  kg_free(g->children);
  kg_free(g->bytes);
  kg_free(g->ranges);
  kg_free(g->rules);
  kg_intern_free(&g->rule_index, &g->budget);
  kg_free(g->members);
  kg_free(g->items);
  kg_free(g->needs);
  kg_free(g->points);
  kg_free(g);
}

/* ---- building ---- */

#define GROW(g, array, need, err)                                                                                      \
  kg_budget_grow(&(g)->budget, (void **)&(g)->array, &(g)->array##_capacity, need, sizeof *(g)->array, err)

static int add_node(kg_grammar *g, kg_grammar_node node, kg_node *out, kg_error *err)
{
  if (g->n_nodes >= g->options.nodes)
    return kg_fail(err, KG_ERR_FULL, "the grammar has more than %u nodes", g->options.nodes);
  const int status = GROW(g, nodes, g->n_nodes + 1, err);
  if (status) return status;
  for (int mode = 0; mode < 3; mode++) node.re[mode] = UINT32_MAX;
  g->nodes[g->n_nodes] = node;
  *out = (kg_node)g->n_nodes++;
  return KG_OK;
}

static int check_node(const kg_grammar *g, kg_node node, kg_error *err)
{
  return node < g->n_nodes ? KG_OK : kg_fail(err, KG_ERR_ARGUMENT, "node %u is not there", node);
}

/* Copy bytes; all of them are below 4 GiB, because the budget is. */
static int add_bytes(kg_grammar *g, const char *bytes, size_t n, uint32_t *at, kg_error *err)
{
  size_t need;
  if (!kg_add_size(g->n_bytes, n, &need) || need > UINT32_MAX)
    return kg_fail(err, KG_ERR_FULL, "the grammar has more than 4 GiB of text");
  const int status = GROW(g, bytes, need, err);
  if (status) return status;
  *at = (uint32_t)g->n_bytes;
  if (n) memcpy(g->bytes + g->n_bytes, bytes, n);
  g->n_bytes = need;
  return KG_OK;
}

int kg_grammar_add_text(kg_grammar *g, const char *bytes, size_t n, kg_node *out, kg_error *err)
{
  kg_grammar_node node = {.kind = KG_NODE_TEXT, .n = (uint32_t)n};
  const int status = add_bytes(g, bytes, n, &node.at, err);
  return status ? status : add_node(g, node, out, err);
}

int kg_grammar_add_ranges(kg_grammar *g, kg_node_kind kind, const uint32_t *ranges, size_t n_ranges, bool negate,
                          kg_node *out, kg_error *err)
{
  const uint32_t highest = kind == KG_NODE_CLASS ? 0x10FFFF : 255;
  for (size_t i = 0; i < n_ranges; i++)
    if (ranges[2 * i] > ranges[2 * i + 1] || ranges[2 * i + 1] > highest) /* bounded: the ranges are in memory */
      /* bounded: in memory */
      return kg_fail(err, KG_ERR_ARGUMENT, "range %zu: %u to %u is not within 0 to %u", i + 1, ranges[2 * i],
                     ranges[2 * i + 1], highest); /* bounded: in memory */
  size_t more, need;
  if (!kg_mul_size(n_ranges, 2, &more) || !kg_add_size(g->n_ranges, more, &need) || need > UINT32_MAX)
    return kg_fail(err, KG_ERR_FULL, "the grammar has too many ranges");
  const int status = GROW(g, ranges, need, err);
  if (status) return status;
  const kg_grammar_node node = {
      .kind = (uint8_t)kind, .at = (uint32_t)g->n_ranges, .n = (uint32_t)n_ranges, .negate = negate};
  if (more) memcpy(g->ranges + g->n_ranges, ranges, more * sizeof *ranges); /* bounded: in memory: grown above */
  g->n_ranges = need;
  return add_node(g, node, out, err);
}

int kg_grammar_add_list(kg_grammar *g, kg_node_kind kind, const kg_node *children, size_t n, kg_node *out,
                        kg_error *err)
{
  size_t need;
  for (size_t i = 0; i < n; i++) {
    const int status = check_node(g, children[i], err);
    if (status) return status;
  }
  if (!kg_add_size(g->n_children, n, &need) || need > UINT32_MAX)
    return kg_fail(err, KG_ERR_FULL, "the grammar has too many nodes");
  const int status = GROW(g, children, need, err);
  if (status) return status;
  const kg_grammar_node node = {.kind = (uint8_t)kind, .at = (uint32_t)g->n_children, .n = (uint32_t)n};
  if (n) memcpy(g->children + g->n_children, children, n * sizeof *children); /* bounded: in memory: grown above */
  g->n_children = need;
  return add_node(g, node, out, err);
}

int kg_grammar_add_unary(kg_grammar *g, kg_node_kind kind, kg_node child, bool all_escapes, kg_node *out, kg_error *err)
{
  const int status = check_node(g, child, err);
  if (status) return status;
  return add_node(g, (kg_grammar_node){.kind = (uint8_t)kind, .child = child, .all_escapes = all_escapes}, out, err);
}

int kg_grammar_add_repeat(kg_grammar *g, kg_node child, uint32_t min, uint32_t max, kg_node *out, kg_error *err)
{
  const int status = check_node(g, child, err);
  if (status) return status;
  if (min > max || min > KG_REPEAT_MAX || (max != KG_NO_LIMIT && max > KG_REPEAT_MAX))
    return kg_fail(err, KG_ERR_ARGUMENT, "a repeat of %u to %u times: 0 to %u are possible, the least first", min, max,
                   KG_REPEAT_MAX);
  return add_node(g, (kg_grammar_node){.kind = KG_NODE_REPEAT, .child = child, .min = min, .max = max}, out, err);
}

int kg_grammar_add_multiple(kg_grammar *g, uint32_t k, uint32_t places, kg_node *out, kg_error *err)
{
  if (k < 1 || k > KG_MULTIPLE_MAX || places > KG_PLACES_MAX)
    return kg_fail(err, KG_ERR_ARGUMENT, "multiples of %u at %u places: 1 to %d at 0 to %d are possible", k, places,
                   KG_MULTIPLE_MAX, KG_PLACES_MAX);
  return add_node(g, (kg_grammar_node){.kind = KG_NODE_MULTIPLE, .min = k, .max = places}, out, err);
}

/* The rule of this name, made where there is none. */
static int find_rule(kg_grammar *g, const char *name, size_t n, uint32_t *out, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  if (n < 1 || n > KG_RULE_NAME_MAX)
    return kg_fail(err, KG_ERR_FORMAT, "rule %s: a name has 1 to %d bytes", kg_quote(quoted, name, n),
                   KG_RULE_NAME_MAX);
  uint32_t words[KG_RULE_NAME_MAX / sizeof(uint32_t) + 1] = {0}; /* bounded: a constant */
  memcpy(words, name, n);
  const uint32_t hash = kg_intern_hash(words, n / sizeof *words + 1); /* bounded: n is at most KG_RULE_NAME_MAX */
  size_t at = hash;
  for (int32_t i; (i = kg_intern_next(&g->rule_index, hash, &at)) != KG_INTERN_NONE;)
    if (g->rules[i].name_size == n && !memcmp(g->bytes + g->rules[i].name_at, name, n)) {
      *out = (uint32_t)i;
      return KG_OK;
    }
  uint32_t name_at;
  int status = add_bytes(g, name, n, &name_at, err);
  if (!status) status = GROW(g, rules, g->n_rules + 1, err);
  if (!status) status = kg_intern_add(&g->rule_index, &g->budget, hash, (int32_t)g->n_rules, err);
  if (status) return status;
  g->rules[g->n_rules] = (struct kg_grammar_rule){name_at, (uint32_t)n, KG_NO_NODE};
  *out = (uint32_t)g->n_rules++;
  return KG_OK;
}

int kg_grammar_add_rule(kg_grammar *g, const char *name, size_t n, kg_node *out, kg_error *err)
{
  kg_grammar_node node = {.kind = KG_NODE_RULE};
  const int status = find_rule(g, name, n, &node.n, err);
  return status ? status : add_node(g, node, out, err);
}

int kg_grammar_define(kg_grammar *g, const char *name, size_t n, kg_node node, kg_error *err)
{
  uint32_t rule;
  int status = check_node(g, node, err);
  if (!status) status = find_rule(g, name, n, &rule, err);
  if (status) return status;
  char quoted[KG_QUOTE_MAX];
  if (g->rules[rule].node != KG_NO_NODE)
    return kg_fail(err, KG_ERR_FORMAT, "rule %s is defined twice", kg_quote(quoted, name, n));
  g->rules[rule].node = node;
  return KG_OK;
}

int kg_grammar_add_point(kg_grammar *g, const char *name, size_t n, kg_node child, kg_node *out, kg_error *err)
{
  int status = check_node(g, child, err);
  if (status) return status;
  uint32_t i = 0;
  while (i < g->n_points && (g->points[i].name_size != n || memcmp(g->bytes + g->points[i].name_at, name, n))) i++;
  if (i == g->n_points) {
    if (i >= KG_POINTS_MAX) return kg_fail(err, KG_ERR_FULL, "the grammar has more than %d points", KG_POINTS_MAX);
    uint32_t at;
    if ((status = add_bytes(g, name, n, &at, err))) return status;
    if ((status = GROW(g, points, g->n_points + 1, err))) return status;
    g->points[g->n_points++] = (struct kg_grammar_point){at, (uint32_t)n};
  }
  return add_node(g, (kg_grammar_node){.kind = KG_NODE_POINT, .child = child, .n = i}, out, err);
}

kg_string kg_grammar_point_name(const kg_grammar *g, uint32_t point)
{
  return (kg_string){g->bytes + g->points[point].name_at, g->points[point].name_size};
}

/* ---- members ---- */

/* Add what the items in the set ask for, until all is in it. */
static void close_set(uint64_t *bits, const uint64_t *needs, size_t n_items, size_t n_words)
{
  for (bool has_changed = true; has_changed;) {
    has_changed = false;
    for (size_t i = 0; i < n_items; i++) {
      if (!kg_has_bit(bits, i)) continue;
      for (size_t w = 0; w < n_words; w++) {
        has_changed |= (needs[i * n_words + w] & ~bits[w]) != 0; /* bounded: rows of a matrix in memory */
        bits[w] |= needs[i * n_words + w]; /* bounded: rows of a matrix in memory */
      }
    }
  }
}

static int check_members(const kg_grammar *g, const kg_members *m, kg_error *err)
{
  if (m->n_items > KG_MEMBERS_MAX)
    return kg_fail(err, KG_ERR_FULL, "%zu members are more than %d", m->n_items, KG_MEMBERS_MAX);
  if (m->min > m->max) return kg_fail(err, KG_ERR_ARGUMENT, "members: from %u to %u of them", m->min, m->max);
  int status = m->separator ? check_node(g, *m->separator, err) : KG_OK;
  if (!status && m->others) status = check_node(g, *m->others, err);
  for (size_t i = 0; i < m->n_items && !status; i++) {
    status = check_node(g, m->items[i].node, err);
    for (size_t j = 0; j < m->items[i].n_requires && !status; j++)
      if (m->items[i].requires[j] >= m->n_items)
        /* bounded: KG_MEMBERS_MAX */
        status = kg_fail(err, KG_ERR_ARGUMENT, "member %zu requires member %u of %zu", i + 1,
                         m->items[i].requires[j] + 1, m->n_items); /* bounded: it may wrap: a figure in a message */
  }
  return status;
}

int kg_grammar_add_members(kg_grammar *g, const kg_members *m, kg_node *out, kg_error *err)
{
  int status = check_members(g, m, err);
  if (status) return status;
  const size_t n = m->n_items, n_words = n / 64 + 1;
  /* bounded: by KG_MEMBERS_MAX, and what is there is in memory */
  if ((status = GROW(g, items, g->n_items + n, err))) return status;
  /* bounded: KG_MEMBERS_MAX squared more than what is in memory */
  if ((status = GROW(g, needs, g->n_needs + (n + 1) * n_words, err))) return status;
  if ((status = GROW(g, members, g->n_members + 1, err))) return status;
  g->members[g->n_members] = (kg_grammar_members){.first_item = g->n_items,
                                                  .n_items = n,
                                                  .first_needs = g->n_needs,
                                                  .n_words = n_words,
                                                  .min = m->min,
                                                  .max = m->max,
                                                  .separator = m->separator ? *m->separator : KG_NO_NODE,
                                                  .others = m->others ? *m->others : KG_NO_NODE,
                                                  .is_ordered = m->is_ordered};
  uint64_t *needs = g->needs + g->n_needs, *required = needs + n * n_words; /* bounded: in memory: grown above */
  memset(needs, 0, (n + 1) * n_words * sizeof *needs); /* bounded: in memory: grown above */
  bool has_requires = false;
  for (size_t i = 0; i < n; i++) {
    const kg_member *item = &m->items[i];
    /* bounded: in memory: grown above */
    g->items[g->n_items + i] = (kg_grammar_item){.node = item->node, .is_required = item->is_required};
    kg_set_bit(needs + i * n_words, i); /* bounded: in memory */
    if (item->is_required) kg_set_bit(required, i);
    /* bounded: in memory */
    for (size_t j = 0; j < item->n_requires; j++) kg_set_bit(needs + i * n_words, item->requires[j]);
    has_requires |= item->n_requires > 0;
  }
  if (has_requires)
    for (size_t i = 0; i <= n; i++) close_set(needs + i * n_words, needs, n, n_words); /* bounded: in memory */
  g->n_items += n; /* bounded: as it was grown */
  g->n_needs += (n + 1) * n_words; /* bounded: as it was grown */
  return add_node(g, (kg_grammar_node){.kind = KG_NODE_MEMBERS, .n = (uint32_t)g->n_members++}, out, err);
}
