/* prefix.h - which ids led to which cache pages: a tree of nodes, each KG_PAGE ids behind a parent (or none). Hashes
 * only find candidates: ids are compared one by one and parents are nodes themselves, so that no two prefixes are
 * ever taken for each other. A node has up to one page of every page group. It stays while somebody holds it, it has
 * a page, or others stand behind it; while it has one it may have the state behind its last id, too. Which pages it
 * has, and what becomes of them when nobody uses them, is kv.c's business. */
#ifndef KG_PREFIX_H
#define KG_PREFIX_H

#include "state.h"

typedef struct kg_prefix kg_prefix;

enum { KG_NO_PAGE = KG_NONE, KG_NO_NODE = KG_NONE };

kg_prefix *kg_prefix_new(kg_state_pool *states); /* NULL: no memory */
void kg_prefix_free(kg_prefix *prefix);

/* The node of these KG_PAGE ids behind `parent` (KG_NO_NODE: at the start), or KG_NO_NODE. */
int32_t kg_prefix_find(const kg_prefix *prefix, int32_t parent, const int32_t *ids);
/* The node behind `parent` whose ids begin most like these n; *n_common of them are the same. */
int32_t kg_prefix_find_like(const kg_prefix *prefix, int32_t parent, const int32_t *ids, int32_t n, int32_t *n_common);
/* A new one, which the caller holds. KG_NO_NODE: no memory. */
int32_t kg_prefix_add(kg_prefix *prefix, int32_t parent, const int32_t *ids);
void kg_prefix_hold(kg_prefix *prefix, int32_t node);
void kg_prefix_let_go(kg_prefix *prefix, int32_t node);
bool kg_prefix_has_children(const kg_prefix *prefix, int32_t node);

int32_t kg_prefix_page(const kg_prefix *prefix, int32_t node, int32_t group); /* or KG_NO_PAGE */
void kg_prefix_set_page(kg_prefix *prefix, int32_t node, int32_t group, int32_t page);
/* Take a page away from the node, which may be gone then. */
void kg_prefix_clear_page(kg_prefix *prefix, int32_t node, int32_t group);

/* The slot of the state behind the node's ids, or KG_NONE. Setting it takes a reference. */
int32_t kg_prefix_state(const kg_prefix *prefix, int32_t node);
void kg_prefix_set_state(kg_prefix *prefix, int32_t node, int32_t slot);
int32_t kg_prefix_state_count(const kg_prefix *prefix);

/* Forget all: no node has a page or is found any more. Those that are held stay until they are let go. */
void kg_prefix_forget(kg_prefix *prefix);

#endif
