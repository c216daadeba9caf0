/* prefix.h - which cache pages hold which tokens: a tree of whole pages, found by the ids that led to them. A page is
 * known by its parent, the page before it (or none), and its own KG_PAGE ids. Hashes only find candidates: ids are
 * compared one by one and parents are pages themselves, so that no two prefixes are ever taken for each other.
 * A page that nobody uses any more rests here, the one that was left longest ago first in line to go. As whoever uses a
 * page uses its parents too and leaves them later, children are always ahead of their parents in that line.
 * The reference counts are kv.c's, as is everything that is said to the backend. */
#ifndef KG_PREFIX_H
#define KG_PREFIX_H

#include "backend.h"

typedef struct kg_prefix kg_prefix;

enum { KG_NO_PAGE = -1 };

kg_prefix *kg_prefix_new(void); /* NULL: no memory */
void kg_prefix_free(kg_prefix *prefix);
/* Be able to know pages [0, n_pages). False: no memory, and nothing has changed. */
bool kg_prefix_grow(kg_prefix *prefix, int32_t n_pages);

bool kg_prefix_knows(const kg_prefix *prefix, int32_t page);
/* The page that holds these KG_PAGE ids behind `parent` (KG_NO_PAGE: at the start), or KG_NO_PAGE. */
int32_t kg_prefix_find(const kg_prefix *prefix, int32_t parent, const int32_t *ids);
/* The page behind `parent` whose ids begin most like these n; *n_common of them are the same. */
int32_t kg_prefix_find_like(const kg_prefix *prefix, int32_t parent, const int32_t *ids, int32_t n, int32_t *n_common);
void kg_prefix_add(kg_prefix *prefix, int32_t page, int32_t parent, const int32_t *ids);
void kg_prefix_remove(kg_prefix *prefix, int32_t page); /* one without children, which nobody uses or only its writer */
bool kg_prefix_has_children(const kg_prefix *prefix, int32_t page);

void kg_prefix_rest(kg_prefix *prefix, int32_t page); /* its last user has left */
void kg_prefix_wake(kg_prefix *prefix, int32_t page); /* somebody uses it again */
int32_t kg_prefix_oldest(const kg_prefix *prefix);    /* of those that rest, or KG_NO_PAGE; it has no children */
int32_t kg_prefix_resting(const kg_prefix *prefix);   /* how many rest */

#endif
