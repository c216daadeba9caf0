/* dry.h - what the stage DRY looks for: repetitions along a timeline, and the texts that end them.
 *
 * A breaker is a text, like a newline, behind which words come again for good reasons. Where a breaker ends in a token,
 * wherever it began, no match goes on to the tokens before: only those behind it are compared. A token that holds a
 * whole breaker is never held back. */
#ifndef KG_DRY_H
#define KG_DRY_H

#include "kigo.h"

enum { KG_DRY_BREAKERS = 128, KG_DRY_BREAKER_SIZE = 256 };

/* Borrowed. A tokenizer where n > 0; texts of 1 to KG_DRY_BREAKER_SIZE bytes. */
typedef struct kg_breakers {
  const kg_tokenizer *tokenizer;
  const kg_string *texts;
  int32_t n;
} kg_breakers;

/* Does the token hold a whole breaker? */
bool kg_dry_is_breaker(const kg_breakers *breakers, int32_t id);
/* How many of the last tokens stand behind the last breaker: `most`, or fewer. */
int32_t kg_dry_tail(const kg_breakers *breakers, const int32_t *tokens, int32_t n, int32_t most);

/* lengths[i] = how many tokens that end with the one i places before the last, i in [1, n), are the last ones too. */
void kg_dry_match(const int32_t *tokens, int32_t n, int32_t *lengths);
/* multiplier * base ^ exponent, at most 1e6. */
float kg_dry_penalty(float multiplier, float base, int32_t exponent);

#endif
