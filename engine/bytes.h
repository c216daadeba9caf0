/* bytes.h - plain bytes in and out: what companions write to files and read from them. */
#ifndef KG_BYTES_H
#define KG_BYTES_H

#include "kigo.h"

/* KG_ERR_MEMORY, and nothing has changed. */
int kg_bytes_append(kg_bytes *out, const void *bytes, size_t n, kg_error *err);

/* The next n bytes, which are taken off the front; NULL: there are not as many. `from->data` must not be NULL. */
const char *kg_take(kg_string *from, uint64_t n);
/* The same, copied to `out`; false where there are not as many. */
bool kg_take_into(kg_string *from, void *out, size_t n);

#endif
