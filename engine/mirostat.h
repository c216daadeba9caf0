/* mirostat.h - what the stage mirostat remembers: mu, along a timeline. It is a companion of the sequence, so it goes
 * back with every rewind, to a mark or to any position, and along into forks and files. All chains with the same tau
 * and eta share it: mu belongs to the timeline, not to a chain.
 *
 * A draw notes what mu becomes if its id is fed next. Tokens that nobody drew, of a prompt or a draft, leave mu
 * alone. */
#ifndef KG_MIROSTAT_H
#define KG_MIROSTAT_H

#include "companion.h"

extern const kg_companion_ops kg_mirostat_ops;

/* At the end of the timeline; 2 * tau where nothing was drawn yet, or where there is no sequence (NULL). */
float kg_mirostat_mu(const kg_sequence *sequence, float tau, float eta);
/* `id` was drawn at the end of the timeline, with this surprise. On failure nothing was noted. */
int kg_mirostat_note(kg_sequence *sequence, float tau, float eta, int32_t id, float surprise, kg_error *err);

#endif
