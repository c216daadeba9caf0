/* automaton.h - a compiled grammar at work: a pushdown machine that follows all ways to read a text at once.
 * A frame is a place in the grammar with the frames it goes back to, its parents; frames that agree but for their
 * parents are one with all of them (a graph-structured stack; Tomita 1985). A *set* of frames, which are lexemes being
 * read or the end, is a state: everything that can be known about what may follow. Frames and sets are interned and
 * steps are kept, so that the machine becomes an automaton where it is used. All numbers (sets) are good until
 * kg_automaton_reset. */
#ifndef KG_AUTOMATON_H
#define KG_AUTOMATON_H

#include "grammar.h"

typedef struct kg_automaton kg_automaton;
typedef uint32_t kg_set;

enum { KG_SET_DEAD, KG_SET_END }; /* nothing fits; nothing may follow, and the text is complete */

/* What happens where the text of a point is complete. */
typedef enum kg_points {
  KG_POINTS_PASS, /* goes on */
  KG_POINTS_STOP, /* does not */
  KG_POINTS_ASK   /* somebody is asked. Steps are not kept, and sets know where the points' texts began */
} kg_points;

/* Does the text of the point, from byte `begin` to `end` of all that was read, do? Failure stops the step. */
typedef struct kg_asker {
  int (*ask)(void *user, uint32_t point, size_t begin, size_t end, bool *answer, kg_error *err);
  void *user;
  size_t end; /* bytes read, the one of the step included */
} kg_asker;

/* The automaton of a compiled grammar, made where there is none; the grammar owns it. */
int kg_grammar_automaton(kg_grammar *grammar, kg_automaton **out, kg_error *err);
void kg_automaton_free(kg_automaton *automaton);
/* Forget everything: when a step returned KG_ERR_FULL. The generation changes. */
void kg_automaton_reset(kg_automaton *automaton);
uint32_t kg_automaton_generation(const kg_automaton *automaton);

/* asker: with KG_POINTS_ASK only. KG_ERR_FULL: the memory is used up; the automaton is as good as before. */
int kg_automaton_start(kg_automaton *automaton, kg_points points, const kg_asker *asker, kg_set *out, kg_error *err);
int kg_automaton_step(kg_automaton *automaton, kg_set set, uint32_t class, kg_points points, const kg_asker *asker,
                      kg_set *out, kg_error *err);
/* The step where it is known: KG_SET_UNKNOWN otherwise. */
#define KG_SET_UNKNOWN UINT32_MAX
const kg_set *kg_automaton_row(const kg_automaton *automaton, kg_set set, kg_points points); /* NULL: none yet */
bool kg_automaton_is_complete(const kg_automaton *automaton, kg_set set); /* may the text end here? */
/* A set that was made with KG_POINTS_ASK as those for the other two are. */
int kg_automaton_forget_texts(kg_automaton *automaton, kg_set set, kg_set *out, kg_error *err);
/* The set without those ways to read that are within the text of a point of which the asker says that it cannot become
 * a good one. */
int kg_automaton_ask_open(kg_automaton *automaton, kg_set set, const kg_asker *asker, kg_set *out, kg_error *err);
bool kg_automaton_has_points(const kg_automaton *automaton, kg_set set);

/* ---- for masks ---- */

/* The lexemes of a set, each with its state and the frames behind it; the end has the state KG_STATE_DEAD. */
typedef struct kg_lexeme {
  kg_state state;
  kg_set parents;
} kg_lexeme;
uint32_t kg_automaton_n_lexemes(const kg_automaton *automaton, kg_set set);
kg_lexeme kg_automaton_lexeme(const kg_automaton *automaton, kg_set set, uint32_t i);
/* The set without some of its lexemes (by a bit each; only the first 64 can be left out). */
int kg_automaton_without(kg_automaton *automaton, kg_set set, uint64_t lexemes, kg_set *out, kg_error *err);
/* Where reading goes on when a lexeme with these parents is complete. */
int kg_automaton_resume(kg_automaton *automaton, kg_set parents, kg_points points, const kg_asker *asker, kg_set *out,
                        kg_error *err);

#endif
