/* grammar.h - a grammar as data: nodes and rules, checked and compiled for automaton.h. What is regular becomes an
 * expression of regular.h (a lexeme); recursive rules, members and points are left to a pushdown machine.
 * Text is bytes; characters are UTF-8. A grammar is counted by reference: matchers and constraints keep it. */
#ifndef KG_GRAMMAR_H
#define KG_GRAMMAR_H

#include "regular.h"

typedef struct kg_grammar kg_grammar;
typedef uint32_t kg_node;

typedef enum kg_node_kind {
  KG_NODE_TEXT,    /* bytes */
  KG_NODE_CLASS,   /* one character of ranges */
  KG_NODE_BYTES,   /* one byte of ranges */
  KG_NODE_MULTIPLE, /* decimal numbers that are multiples of one */
  KG_NODE_SEQ, KG_NODE_ALT,
  KG_NODE_REPEAT,
  KG_NODE_RULE,
  KG_NODE_AND, KG_NODE_NOT, /* of regular nodes */
  KG_NODE_REGULAR, /* its child as one lexeme */
  KG_NODE_JSON,    /* characters as they stand in a JSON string */
  KG_NODE_MEMBERS, /* different members in any order, with separators between them */
  KG_NODE_POINT    /* somebody else decides whether the text of the child will do */
} kg_node_kind;

enum {
  KG_MEMBERS_MAX = 4096,   /* items of one MEMBERS */
  KG_POINTS_MAX = 256,
  KG_RULE_NAME_MAX = 256,
  KG_STACK_MAX = 4000      /* frames that may be asked for: recursion over them must fit a C stack */
};

typedef struct kg_grammar_options {
  size_t memory;   /* bytes for the automaton that grows while it is used */
  uint32_t nodes;  /* most nodes */
  uint32_t depth;  /* most frames on a stack; deeper nesting is not allowed by the grammar then */
} kg_grammar_options;
extern const kg_grammar_options kg_grammar_defaults;

int kg_grammar_new(const kg_grammar_options *options, kg_grammar **out, kg_error *err);
kg_grammar *kg_grammar_ref(kg_grammar *grammar);
void kg_grammar_free(kg_grammar *grammar); /* gives one reference back */

/* ---- building: every function appends a node; nodes are numbered from 0 ---- */

int kg_grammar_add_text(kg_grammar *grammar, const char *bytes, size_t n, kg_node *out, kg_error *err);
/* CLASS or BYTES; ranges in any order. */
int kg_grammar_add_ranges(kg_grammar *grammar, kg_node_kind kind, const uint32_t *ranges, size_t n_ranges, bool negate,
                          kg_node *out, kg_error *err);
/* SEQ, ALT, AND */
int kg_grammar_add_list(kg_grammar *grammar, kg_node_kind kind, const kg_node *children, size_t n, kg_node *out,
                        kg_error *err);
/* NOT, REGULAR, JSON; all_escapes: of JSON */
int kg_grammar_add_unary(kg_grammar *grammar, kg_node_kind kind, kg_node child, bool all_escapes, kg_node *out,
                         kg_error *err);
int kg_grammar_add_repeat(kg_grammar *grammar, kg_node child, uint32_t min, uint32_t max, kg_node *out, kg_error *err);
/* Multiples of k x 10^-places: regular.h. */
int kg_grammar_add_multiple(kg_grammar *grammar, uint32_t k, uint32_t places, kg_node *out, kg_error *err);
/* A reference to a rule, which may be defined later. */
int kg_grammar_add_rule(kg_grammar *grammar, const char *name, size_t n, kg_node *out, kg_error *err);
int kg_grammar_add_point(kg_grammar *grammar, const char *name, size_t n, kg_node child, kg_node *out, kg_error *err);

typedef struct kg_member {
  kg_node node;
  bool is_required;
  const uint32_t *requires; /* items that must be there if this one is */
  size_t n_requires;
} kg_member;

typedef struct kg_members {
  const kg_member *items;
  size_t n_items;
  const kg_node *separator, *others; /* NULL: none */
  uint32_t min, max;                 /* of all members; KG_NO_LIMIT */
  bool is_ordered;
} kg_members;
int kg_grammar_add_members(kg_grammar *grammar, const kg_members *members, kg_node *out, kg_error *err);

int kg_grammar_define(kg_grammar *grammar, const char *name, size_t n, kg_node node, kg_error *err);
/* Check everything and compile; the rule is where matching starts. No nodes may be added afterwards. */
int kg_grammar_compile(kg_grammar *grammar, const char *start, size_t n, kg_error *err);

/* ---- the compiled grammar, for automaton.c ---- */

#define KG_NO_NODE UINT32_MAX

typedef struct kg_grammar_item { /* of MEMBERS */
  kg_node node;
  bool is_required, is_usable; /* usable: it and all that it asks for can match something */
} kg_grammar_item;

typedef struct kg_grammar_members {
  size_t first_item, n_items; /* in items */
  size_t first_needs;         /* in needs: n_items rows of n_words: what each item asks for, itself included; and a
                                 row of those that are required */
  size_t n_words;             /* of 64 bits, in a set of items */
  kg_node separator, others;  /* KG_NO_NODE: none */
  uint32_t min, max;
  bool is_ordered;
} kg_grammar_members;

typedef struct kg_grammar_node {
  uint8_t kind;
  bool is_regular, is_possible, is_nullable; /* possible: something matches */
  bool is_fused;                             /* a lexeme: its expression is `re` */
  bool negate, all_escapes;
  kg_node child;     /* REPEAT, NOT, REGULAR, JSON, POINT; RULE: the rule's node */
  uint32_t at, n;    /* TEXT: in bytes; CLASS, BYTES: in ranges (pairs); lists: in children; RULE: number of the rule;
                        MEMBERS: number; POINT: number of the name */
  uint32_t min, max; /* REPEAT; MULTIPLE: k, places */
  uint32_t size, loops, height; /* of regular ones: what tells whether they are fused */
  kg_re re[3];       /* as bytes; in JSON strings with all escapes; with those needed */
} kg_grammar_node;

struct kg_grammar {
  int32_t n_refs;
  kg_grammar_options options;
  kg_grammar_node *nodes;
  size_t n_nodes, nodes_capacity;
  kg_node *children;
  size_t n_children, children_capacity;
  char *bytes;
  size_t n_bytes, bytes_capacity;
  uint32_t *ranges;
  size_t n_ranges, ranges_capacity;
  struct kg_grammar_rule {
    uint32_t name_at, name_size; /* in bytes */
    kg_node node;                /* KG_NO_NODE: not defined */
  } *rules;
  size_t n_rules, rules_capacity;
  kg_intern rule_index;
  kg_grammar_members *members;
  size_t n_members, members_capacity;
  kg_grammar_item *items;
  size_t n_items, items_capacity;
  uint64_t *needs;
  size_t n_needs, needs_capacity;
  struct kg_grammar_point {
    uint32_t name_at, name_size;
  } *points;
  size_t n_points, points_capacity;
  kg_node start;

  kg_budget budget; /* of everything here, regular and the automaton */
  kg_regular *regular;
  struct kg_automaton *automaton; /* made on first use */
  struct kg_masks *masks;         /* likewise, one per tokenizer */
  bool is_judging;                /* a judge is being asked, amid a matcher's reading (matcher.h) */
};

/* Item i of these members. */
static inline kg_grammar_item *kg_item_of(const kg_grammar *grammar, const kg_grammar_members *members, size_t i)
{
  return &grammar->items[members->first_item + i]; /* bounded: in memory */
}

/* What item i asks for, a set of items; i = n_items: those that must come anyway. */
static inline const uint64_t *kg_needs_of(const kg_grammar *grammar, const kg_grammar_members *members, size_t i)
{
  return grammar->needs + members->first_needs + i * members->n_words; /* bounded: in memory */
}

kg_string kg_grammar_point_name(const kg_grammar *grammar, uint32_t point);

#endif
