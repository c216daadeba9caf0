/* companion.h - state that belongs to a timeline and moves with it: a constraint, what a sampler stage remembers, a
 * stream that follows. A companion is attached at a position and sees every token that is appended from there on; the
 * sequence asks all of them before it changes anything, and takes them along wherever it goes (sequence.c).
 * - Feed: each checks the tokens and goes on; one that refuses stops all, and none has changed.
 * - Rewind to a position: each goes back to what it was when the timeline first came there (so keep a log of small
 *   entries, indexed by position); those that were attached later are let go.
 * - Mark: it holds copies, so that going back to it also brings back what changed without a token (a number drawn, a
 *   stream finished) and companions that were detached since. Fork: it has copies.
 * - Save: it writes what it takes to make them again.
 * A companion refers to no sequence, and to nothing that may go before it: it holds references (kg_tokenizer_ref) or
 * copies. Copies in marks outlive sequence and model. */
#ifndef KG_COMPANION_H
#define KG_COMPANION_H

#include "sequence.h"

/* The first member of every companion. Who makes one sets `ops`; the rest is set when it is attached, copied or
 * loaded. */
struct kg_companion {
  const kg_companion_ops *ops;
  int64_t serial;     /* names it, its copies in forks and in marks alike */
  kg_companion *next; /* in order of attachment */
  int32_t from;       /* the timeline's position when it was attached: it has state for this one and later ones */
};

/* What a companion is made again from. */
typedef struct kg_companion_source {
  kg_string bytes;               /* that save wrote, from a file that is not to be trusted */
  kg_tokenizer *tokenizer;       /* NULL: the model has none */
  const int32_t *ids;            /* tokens of the timeline, which are in the model's vocabulary */
  int32_t n_ids, from;           /* load ends behind all of them: what depends on tokens alone is fed again */
} kg_companion_source;

/* Only feed, undo and what makes new ones may fail or allocate. */
struct kg_companion_ops {
  const char *name; /* of the kind; also in files */
  /* Append tokens at position pos (>= from). Failure has changed nothing; KG_ERR_ARGUMENT names token and position. */
  int (*feed)(kg_companion *companion, int32_t pos, const int32_t *ids, size_t n, kg_error *err);
  /* Take back the last feed, which was at pos, exactly: nothing else has happened since. NULL: as rewind. */
  void (*undo)(kg_companion *companion, int32_t pos);
  /* from <= pos <= where it stands: the state of the moment when pos was reached, without what was done there. */
  void (*rewind)(kg_companion *companion, int32_t pos);
  int (*copy)(const kg_companion *companion, kg_companion **out, kg_error *err); /* all but the fields of the base */
  void (*swap)(kg_companion *companion, kg_companion *copy); /* change places with a copy of it, all but the base */
  void (*free)(kg_companion *companion);
  /* Append to `out`. NULL: cannot be saved, and a sequence that has one is not (KG_ERR_UNSUPPORTED). */
  int (*save)(const kg_companion *companion, kg_bytes *out, kg_error *err);
  int (*load)(const kg_companion_source *source, kg_companion **out, kg_error *err);
};

/* Attach it at the sequence's position. Takes the companion; the caller still owns it after a failure. */
int kg_sequence_attach_take(kg_sequence *sequence, kg_companion *companion, kg_error *err);
/* Let go of one that is attached, and free it. */
int kg_sequence_detach(kg_sequence *sequence, kg_companion *companion, kg_error *err);
/* The first one of this kind behind `after` (NULL: of all), or NULL. Borrowed. */
kg_companion *kg_sequence_find_companion(const kg_sequence *sequence, const kg_companion_ops *ops,
                                         const kg_companion *after);

/* The kind of this name that files may have, or NULL. New kinds are added to the table in companion.c. */
const kg_companion_ops *kg_companion_find_kind(kg_string name);

/* ---- lists, for sequence.c ---- */

int kg_companions_feed(kg_companion *list, int32_t pos, const int32_t *ids, size_t n, kg_error *err);
/* How many of these ids, the first ones, a feed would take. Nothing changes. */
size_t kg_companions_would_feed(kg_companion *list, int32_t pos, const int32_t *ids, size_t n);
void kg_companions_rewind(kg_companion **list, int32_t pos);
int kg_companions_copy(const kg_companion *list, kg_companion **out, kg_error *err); /* on failure *out is NULL */
/* Make the list what `copies` are, and take these. Companions that are in both stay where they are in memory: others
 * may refer to them. */
void kg_companions_restore_take(kg_companion **list, kg_companion *copies);
void kg_companions_free(kg_companion *list);
/* Append one that was loaded and stands at the sequence's position; `from` is where it was attached. */
void kg_sequence_adopt(kg_sequence *sequence, kg_companion *companion, int32_t from);

#endif
