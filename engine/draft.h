/* draft.h - ids that may follow a timeline, evaluated before anybody draws them. A draft (kg_sequence_expect) is a
 * guess of any origin that the caller will feed these ids next. The next pass that the sequence needs anyway takes them
 * along: their keys and values go to the cache behind the timeline's, their logits to rows beside the sequence's.
 * Feeding an id that the draft has there costs no pass then; anything else drops the rest, which is no more than a
 * shorter page table. So nobody can tell, but by the clock, whether a draft was there, or whether it was right:
 * - Every id is drawn at its own position of the timeline, from its own logits, by whatever draws: history, random
 *   numbers, companions and errors are those of a timeline that grows token by token.
 * - Rows count as evaluated when the timeline reaches them (kg_model_stats.n_tokens_evaluated), and those that it never
 *   reaches apart (n_tokens_dropped).
 * - A draft never makes a step fail: where pages, memory or positions are short it is cut, and so it is at the first id
 *   that a companion of the sequence (companion.h) refuses.
 * Steps with logits of every position or with traces, and draws ahead (ahead.h), leave drafts alone or drop them. */
#ifndef KG_DRAFT_H
#define KG_DRAFT_H

#include "sequence.h"

enum { KG_DRAFT_MAX = 64, /* ids of a draft: each has a row of logits */
       KG_LOOKUP_MAX = 16 /* ids of a pattern to look up */ };

/* What followed the last tokens of the timeline when they stood on it before: the longest run of `longest` to
 * `shortest` (1 to KG_LOOKUP_MAX) last tokens that is found, at its latest place, and up to `most` ids behind it, which
 * *ids borrows from the timeline. The number of them; 0: never. */
int32_t kg_sequence_lookup(const kg_sequence *sequence, int32_t longest, int32_t shortest, int32_t most,
                           const int32_t **ids);

/* ---- for sequence.c, step.c and ahead.c ---- */

/* Rows that a step should evaluate behind the pending ones, with room for their logits. Rows of an earlier step that
 * the timeline has not reached are dropped and asked for again. */
int32_t kg_draft_begin(kg_sequence *sequence);
int32_t kg_draft_id(const kg_sequence *sequence, int32_t pos); /* the expected id of a position behind the timeline */
/* Where the logits of that position go. */
int64_t kg_draft_logits_at(const kg_sequence *sequence, int32_t pos);
/* Rows of positions below `end` are there. */
void kg_draft_settle(kg_sequence *sequence, int32_t end);
/* The last `n` tokens of the timeline were fed just now: go along, or drop the draft where it says something else. */
void kg_draft_follow(kg_sequence *sequence, size_t n);
void kg_draft_drop(kg_sequence *sequence);
void kg_draft_drop_all(kg_model *model); /* that have rows, because their pages are needed */
bool kg_draft_is_open(const kg_sequence *sequence); /* are there ids that were not fed yet? */
/* Are the logits of the timeline's last token in a row of the draft? */
bool kg_draft_holds_logits(const kg_sequence *sequence);
/* Copy them from there to `to`, an own buffer or a fork's. */
int kg_draft_copy_logits(const kg_sequence *sequence, kg_buffer *to, kg_error *err);
int kg_draft_take_logits(kg_sequence *sequence, kg_error *err); /* to the sequence's own, if they are there */
void kg_draft_deinit(kg_sequence *sequence);

#endif
