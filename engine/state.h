/* state.h - snapshots of the states of sequences: what the recurrent operations of a plan remember behind a position
 * (plan.h). The backend holds them in slots of one size; this module counts who refers to which. A slot is written by
 * the run that makes it and never again while somebody refers to it, so that forks and marks share snapshots.
 *
 * Rows of a sequence can be computed from position p on only with a snapshot of p; before position 0 all is zero. A
 * sequence keeps some of those that it passes: the last two, and fewer and fewer before, so that going back d positions
 * computes at most d (or KG_SNAPSHOT_GAP) again, with a number of snapshots that grows as the logarithm of its length.
 *
 * Which ones it has depends on how its rows were cut into runs. That is no matter as long as rows that are computed
 * again are what they were. Where they may not be (under hooks that came or went) snapshots are regular: those behind
 * multiples of KG_SNAPSHOT_GAP, of the latest positions all, and beside them the one behind the last row to go on from.
 * `free` below is where that begins: up to there they may be anywhere. */
#ifndef KG_STATE_H
#define KG_STATE_H

#include "backend.h"

enum {
  KG_SNAPSHOT_GAP = 16,      /* positions between snapshots that never matter */
  KG_SNAPSHOTS_REGULAR = 96, /* that a sequence keeps, where it keeps just these */
  KG_SNAPSHOTS_MAX = 176     /* of a sequence: the regular ones (elsewhere two for each doubling of its length), those
                                behind the ids of a draft, and those for the prefix cache while they come */
};

typedef struct kg_state_pool kg_state_pool;

typedef struct kg_snapshot {
  int32_t pos, slot;
} kg_snapshot;

/* Zero-initialise. Each holds one reference to its slot. */
typedef struct kg_snapshots {
  int32_t n;
  kg_snapshot at[KG_SNAPSHOTS_MAX]; /* by position, ascending; none of 0 */
} kg_snapshots;

/* NULL in *out: the plan has no states. What follows takes NULL for a pool: there is nothing to take or to drop. */
int kg_states_new(const kg_backend *backend, kg_executable *exe, const kg_plan *plan, kg_state_pool **out,
                  kg_error *err);
/* Another holder of the pool, who may drop references when model and backend are gone. Each frees it. */
kg_state_pool *kg_states_hold(kg_state_pool *pool);
void kg_states_free(kg_state_pool *pool);
/* A slot with one reference, and anything in it. */
int kg_states_take(kg_state_pool *pool, int32_t *slot, kg_error *err);
void kg_states_ref(kg_state_pool *pool, int32_t slot);  /* one more reference */
void kg_states_drop(kg_state_pool *pool, int32_t slot); /* one reference; KG_NONE allowed */
int32_t kg_states_count(const kg_state_pool *pool);     /* slots that exist in the backend */
int32_t kg_states_used(const kg_state_pool *pool);      /* that somebody refers to */

/* Runs shall leave the states behind multiples of so many positions too, for the prefix cache. */
void kg_states_want_every(kg_state_pool *pool, int32_t n_positions);
int32_t kg_states_every(const kg_state_pool *pool); /* 0: no prefix cache */
/* Should a run leave the state behind position `pos`, of a timeline of n tokens? */
bool kg_states_wants(const kg_state_pool *pool, int32_t pos, int32_t n, int32_t free);
/* The slot, and its reference, is the snapshot of this position from now on. */
void kg_snapshots_put_take(kg_state_pool *pool, kg_snapshots *snapshots, int32_t pos, int32_t slot);
/* Those behind `end` go. */
void kg_snapshots_cut(kg_state_pool *pool, kg_snapshots *snapshots, int32_t end);
/* Those go that a timeline of n tokens needs no more. */
void kg_snapshots_thin(kg_state_pool *pool, kg_snapshots *snapshots, int32_t n, int32_t free);
/* Those of positions up to `end` are shared by `to`, beside its own. */
void kg_snapshots_share(kg_state_pool *pool, const kg_snapshots *from, int32_t end, kg_snapshots *to);
/* How many there are of positions up to `end`. */
int32_t kg_snapshots_count(const kg_snapshots *snapshots, int32_t end);
/* The last position up to `pos` that has one, which is regular or up to `free`; 0: none has. */
int32_t kg_snapshots_before(const kg_snapshots *snapshots, int32_t pos, int32_t free);
/* The slot of this very position, or KG_NONE. */
int32_t kg_snapshots_slot(const kg_snapshots *snapshots, int32_t pos);

#endif
