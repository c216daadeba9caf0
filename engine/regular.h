/* regular.h - regular languages over bytes, with intersection and complement, and their automata, which grow as they
 * are walked: a state is an expression for what may still come, a step is its derivative (Brzozowski 1964; Owens,
 * Reppy, Turon 2009). Expressions are interned, so equal ones are one state, wherever they stand.
 *
 * Expressions are made first; then kg_regular_freeze sorts the bytes into classes that no expression tells apart, and
 * states may be asked for. Errors are sticky: after one, functions return KG_RE_NONE or the dead state until
 * kg_regular_status has told it. */
#ifndef KG_REGULAR_H
#define KG_REGULAR_H

#include "intern.h"

typedef struct kg_regular kg_regular;
typedef uint32_t kg_re;    /* an expression */
typedef uint32_t kg_state; /* of an automaton */

enum { KG_RE_NONE, KG_RE_EMPTY }; /* nothing matches; the empty text alone does */
enum { KG_STATE_DEAD };           /* nothing can come that would match */
#define KG_REPEAT_MAX (1u << 30)
#define KG_NO_LIMIT UINT32_MAX

/* The budget is the caller's and outlives it. */
int kg_regular_new(kg_budget *budget, kg_regular **out, kg_error *err);
void kg_regular_free(kg_regular *regular);
/* KG_OK, or the error that something ran into since the last call. */
int kg_regular_status(kg_regular *regular, kg_error *err);

kg_re kg_re_byte_ranges(kg_regular *regular, const uint32_t *ranges, size_t n_ranges); /* lo, hi, lo, hi ... */
kg_re kg_re_text(kg_regular *regular, const char *bytes, size_t n);
/* One code point of these ranges, which are sorted and apart, as UTF-8. */
kg_re kg_re_class(kg_regular *regular, const uint32_t *ranges, size_t n_ranges);
/* The same as it may stand in a JSON string: by itself or escaped; `all`: escaped also where it need not be. */
kg_re kg_re_json_class(kg_regular *regular, const uint32_t *ranges, size_t n_ranges, bool all);
kg_re kg_re_cat(kg_regular *regular, kg_re a, kg_re b);
kg_re kg_re_alt(kg_regular *regular, const kg_re *items, size_t n);
kg_re kg_re_and(kg_regular *regular, const kg_re *items, size_t n);
kg_re kg_re_not(kg_regular *regular, kg_re a);
kg_re kg_re_repeat(kg_regular *regular, kg_re a, uint32_t min, uint32_t max); /* KG_NO_LIMIT */
/* Decimal numbers (digits, and perhaps a point and digits) that are whole multiples of k x 10^-places. How they are
 * laid out is not asked: leading zeros are fine, and so is nothing in front of the point. */
enum { KG_MULTIPLE_MAX = 1000000, KG_PLACES_MAX = 100 };
kg_re kg_re_multiple(kg_regular *regular, uint32_t k, uint32_t places);
bool kg_re_is_nullable(const kg_regular *regular, kg_re a);

/* No more expressions by the caller from here on. */
int kg_regular_freeze(kg_regular *regular, kg_error *err);
/* Forget all states, and the expressions that stepping made. */
void kg_regular_reset(kg_regular *regular);

uint32_t kg_regular_n_classes(const kg_regular *regular);
const uint8_t *kg_regular_classes(const kg_regular *regular); /* [256] */
uint8_t kg_regular_class_byte(const kg_regular *regular, uint32_t class); /* the lowest one in it */
uint32_t kg_regular_class_size(const kg_regular *regular, uint32_t class);

kg_state kg_regular_start(kg_regular *regular, kg_re a);
kg_state kg_regular_step(kg_regular *regular, kg_state state, uint32_t class);
/* What steps have found so far, for those in a hurry: [states][classes]; KG_STATE_ASK or more: only the step knows.
 * Good until the next step. */
#define KG_STATE_ASK 0x80000000u
const kg_state *kg_regular_rows(const kg_regular *regular);
bool kg_regular_accepts(const kg_regular *regular, kg_state state);
/* Is the empty text all that may still come? */
bool kg_regular_is_final(const kg_regular *regular, kg_state state);

#endif
