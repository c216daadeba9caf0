/* regex.h - regular expressions (PCRE2, with JIT where the machine allows it) with our allocator, limits and errors.
 * Text is UTF-8; \s, \d, \w and letters are those of Unicode. A regex is immutable and serves many threads. */
#ifndef KG_REGEX_H
#define KG_REGEX_H

#include "kigo.h"

typedef struct kg_regex kg_regex;
typedef struct kg_match kg_match; /* storage of one search at a time, for any regex */

int kg_regex_new(const char *pattern, kg_regex **out, kg_error *err);
void kg_regex_free(kg_regex *regex);
kg_match *kg_match_new(kg_error *err); /* NULL: no memory */
void kg_match_free(kg_match *match);

/* The first match of valid UTF-8 at or after `from`; an empty one only behind `from`. Without one *begin is `size`. */
int kg_regex_find(const kg_regex *regex, kg_match *match, const char *text, size_t size, size_t from, size_t *begin,
                  size_t *end, kg_error *err);

#endif
