/* sequence.h - one timeline: tokens, cache pages, seed. Rows [0, n_evaluated) were computed; the rest is pending.
 *
 * Resume points. What is left of earlier rows may be less than all of them: position c is a resume point while
 * everything is there that a row at c, or one behind it, reads of rows before c. n_evaluated is one always, and 0 is
 * one always. Whatever goes back to a position, or comes to one without computing it (rewind, fork, a found prefix, a
 * file, and the last row once more when its logits are gone), goes to the largest resume point that is not behind it,
 * and the rows from there on are pending again. They are rows like any others:
 * - Ids stay, and everything that belongs to ids: companions were fed them, random numbers are a function of the
 *   position, logits are wanted where they would have been (kg_step_item.from). Rows have the same bits as before.
 * - They are evaluated, so they count as evaluated, in progress and in stats; they may be found in the prefix cache;
 *   steps that trace all rows of a step trace these too.
 * - A hook sees none of them that were made before its time (kg_hook.from). */
#ifndef KG_SEQUENCE_H
#define KG_SEQUENCE_H

#include "model.h"

typedef struct kg_passes kg_passes; /* ahead.c */
typedef struct kg_companion kg_companion; /* companion.h */
typedef struct kg_companion_ops kg_companion_ops;

/* Draws that are made ahead of the caller, by one chain; none where passes is NULL. */
typedef struct kg_future {
  int32_t row;             /* of the passes: its draws */
  int32_t n_alone;         /* so many draws look no further: somebody looked at logits in between */
  int32_t at;              /* the draw that belongs to the timeline as it is */
  bool is_taken;           /* somebody has asked for it */
  int32_t state;           /* slot that the rows to come work in, while they are computed; else KG_NONE */
  bool evaluates_first;    /* the rows before it were evaluated with the others */
  uint64_t n_draws;        /* numbers drawn before the first one */
  kg_chain *chain;         /* one reference */
  kg_passes *passes;       /* likewise */
} kg_future;

/* Ids that may follow the timeline (draft.h); none where n is 0. The first n_rows of them are in the cache, as those of
 * the timeline, with their logits in rows of `logits`. */
typedef struct kg_draft {
  int32_t *ids;            /* [n], of KG_DRAFT_MAX */
  int32_t n, at;           /* ids [0, at) are the timeline's last tokens */
  int32_t n_rows;
  kg_buffer *logits;       /* a row per id, made on first use */
  struct kg_sequence *next, **link; /* the model's list of sequences with rows of a draft; link is NULL beside it */
} kg_draft;

typedef struct kg_hook kg_hook; /* hook.h */
typedef struct kg_family kg_family;

struct kg_sequence {
  kg_model *model;
  kg_family *family;       /* the same for a sequence and its forks, with the places of their marks; one reference */
  kg_companion *companions;
  kg_hook *hooks;          /* in order of creation; NULL: none */
  bool is_private;         /* from its first hook on, forks too: a page of it may depend on more than the tokens, so
                              that none may serve another sequence with the same ones, nor another's page this one, and
                              all are kept, seen or not: evaluated again they might be others */
  kg_tokens tokens;        /* the timeline */
  int32_t n_evaluated;     /* tokens whose rows were computed, or found: a resume point, but while rows drawn ahead are
                              taken one by one, of which the last alone leaves a state */
  int32_t n_made;          /* tokens whose rows were, at some time; those behind n_evaluated will be made again */
  int32_t n_public;        /* leading ones whose rows were computed here from their ids alone, or found: others may
                              have them (kv.h) */
  kg_adapted adapters[KG_ADAPTERS_MAX]; /* all rows in the pages are theirs; each one reference */
  int32_t n_adapters;
  bool is_apart;           /* takes nothing from the prefix cache and leaves nothing there */
  kg_page_table pages;
  int32_t prompt[2];       /* where the latest stretch of rows begins and ends that were evaluated several at a time:
                              places to come back to, a chat's last turn for one */
  bool is_in_prompt;       /* it may grow */
  int64_t n_unmarked;      /* marks of the family that were gone when pages were last let go */
  kg_snapshots snapshots;  /* of models with states, from which rows can be computed on */
  int32_t snapshots_free;  /* up to there they are at any positions (state.h): the rows before it, computed again, are
                              the same, or came with them from a file; INT32_MAX where it is not private */
  int64_t rows_serial;     /* of the circumstances under which its rows are computed: forks and marks with the same one
                              have rows, and states, that depend on the ids alone */
  uint64_t seed;
  uint64_t n_draws;        /* random numbers drawn at position draw_pos; a new position starts at 0 */
  int32_t draw_pos;
  kg_buffer *logits;       /* vocab floats, made on first use */
  kg_future future;
  kg_draft draft;
  int32_t logits_pos;      /* tokens on the timeline when the logits were computed; -1: none */
  int32_t banned_pos;      /* the same where the constraint's bans are in them (constraint.h); -1: they are not */
  int64_t n_tokens_evaluated, n_tokens_reused, n_drafted, n_accepted; /* kigo.SequenceStats in lua/kigo/meta.lua */
  struct {                 /* bookkeeping of the step that runs */
    int64_t serial;
    int32_t pos, end;      /* of its rows, those of the draft at the end */
    int32_t next;          /* of the first one that is yet to be evaluated */
    int64_t row;           /* index of its first row in the step */
    int32_t n_rows;        /* rows in the run that is being filled */
    int32_t span;          /* theirs */
    bool is_over;          /* a hook failed: it takes no further part in the step */
  } step;
};

kg_model *kg_sequence_model(const kg_sequence *sequence);
/* Tokens that a step has to evaluate before the logits are those of the last one: those that were not, or, when they
 * all were (after a rewind), those from the last resume point before the end on. All of them where tokens look both
 * ways. */
int32_t kg_sequence_pending(const kg_sequence *sequence);
/* The largest resume point that is not behind `pos`, nor behind n_evaluated. */
int32_t kg_sequence_resume_point(const kg_sequence *sequence, int32_t pos);
/* Rows from there on are pending, and not in the pages, from now on. Nothing may be drawn ahead, nor drafted, behind
 * it. */
void kg_sequence_go_back(kg_sequence *sequence, int32_t pos);
/* Give all cache pages back: the timeline stays, and is evaluated again when somebody asks for what lies behind it.
 * Logits that are there stay too, as somebody may have written to them; nobody can tell but by the clock. A private
 * sequence keeps its pages: evaluated again they might be others. */
int kg_sequence_release(kg_sequence *sequence, kg_error *err);
/* Are the logits those of the last token, but its rows not in the cache, or its state not there? Nothing can be
 * computed behind it then. */
bool kg_sequence_is_released(const kg_sequence *sequence);
/* Give back what is there behind the last position, of the timeline or its draft, whose keys and values are good. */
void kg_sequence_trim(kg_sequence *sequence);
/* So many tokens more have their keys and values in the pages, and the snapshots that came with them are there: others
 * may find them, and what no row to come needs is let go. */
void kg_sequence_evaluated(kg_sequence *sequence, int32_t n_tokens);
/* Find rows of pending tokens in the prefix cache. The last token's is evaluated in any case, for its logits. */
void kg_sequence_reuse(kg_sequence *sequence);
/* Have nothing to do with the prefix cache from now on: all work is done here, and for this sequence alone. */
void kg_sequence_stay_apart(kg_sequence *sequence);
/* Have an adapter of the model take part at this scale, finite; 0: no more. All rows of a timeline are made under the
 * same adapters: those that are there are given back and evaluated again when somebody asks for what lies behind them,
 * as are the logits. New adapters come last, which is the order in which they are applied. Nothing happens where the
 * scale is as it was. Forks have the same; rewinding changes nothing. KG_ERR_ARGUMENT: another model's, a scale that is
 * no number, or one more than KG_ADAPTERS_MAX. KG_ERR_UNSUPPORTED: tokens were evaluated that cannot be again
 * (is_private). */
int kg_sequence_adapt(kg_sequence *sequence, kg_adapter *adapter, float scale, kg_error *err);
/* The scale of an adapter; 0: it takes no part. */
float kg_sequence_scale_of(const kg_sequence *sequence, const kg_adapter *adapter);
/* Bring the logits up to date, as kg_sequence_logits does, without making a handle. */
int kg_sequence_evaluate(kg_sequence *sequence, kg_error *err);
int kg_sequence_ensure_logits(kg_sequence *sequence, kg_error *err); /* a buffer for them */
/* Tokens that both timelines begin with. */
int32_t kg_sequence_common(const kg_sequence *sequence, const kg_sequence *other);

/* A moment of a timeline: its position, the random numbers drawn there, and copies of its companions. */
typedef struct kg_mark {
  const kg_model *model;   /* of a closed one: a mark for kg_mark_free only */
  kg_family *family;       /* one reference: while the mark is there they keep the pages that rows behind it see */
  int32_t pos;
  uint64_t hash;           /* of the tokens before it */
  uint64_t n_draws;
  kg_companion *companions;
  kg_state_pool *states;   /* the model's, held */
  kg_snapshots snapshots;
  int64_t rows_serial, epoch; /* of the sequence and of its pages, as then */
} kg_mark;

int kg_sequence_mark(const kg_sequence *sequence, kg_mark **out, kg_error *err);
/* Go back to a mark of this sequence or of one that it shares its past with, as often as one likes. KG_ERR_ARGUMENT:
 * the mark is another sequence's, or this one has gone another way since. On failure nothing has changed. */
int kg_sequence_rewind_to(kg_sequence *sequence, const kg_mark *mark, kg_error *err);
void kg_mark_free(kg_mark *mark);
/* Where drawing stands at the current position, and going back there. */
uint64_t kg_sequence_draws(const kg_sequence *sequence);
void kg_sequence_set_draws(kg_sequence *sequence, uint64_t n_draws);
/* The next uniform number in [0, 1) of this seed, position and draw; counts the draw. */
double kg_sequence_uniform(kg_sequence *sequence);

#endif
