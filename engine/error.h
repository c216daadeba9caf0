/* error.h - making errors: one line, the offending value quoted, control bytes escaped. */
#ifndef KG_ERROR_H
#define KG_ERROR_H

#include "kigo.h"

/* Fill err (may be NULL) and return code, so that `return kg_fail(err, KG_ERR_..., "...")` reads well. */
int kg_fail(kg_error *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* KG_ERR_MEMORY for n_bytes that were wanted for `what`. */
int kg_fail_memory(kg_error *err, size_t n_bytes, const char *what);

/* Write bytes as a quoted, escaped, length-capped string into buffer, and return buffer. */
enum { KG_QUOTE_MAX = 96 };
const char *kg_quote(char buffer[KG_QUOTE_MAX], const char *bytes, size_t n);

#endif
