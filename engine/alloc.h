/* alloc.h - the one allocator of the engine, so that failures can be injected and leaks counted.
 * Its counters and those of system.h are the only mutable globals of the core (atomic, touched by every thread). */
#ifndef KG_ALLOC_H
#define KG_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* All return NULL on failure, on overflow of count * size, and where a failure was injected. Zero sizes give a
 * non-NULL block. kg_realloc_array leaves the old block alone when it fails. Blocks are released with kg_free. */
void *kg_alloc(size_t n_bytes);
void *kg_alloc_array(size_t count, size_t size);  /* zeroed */
void *kg_realloc_array(void *block, size_t count, size_t size);
void *kg_alloc_aligned(size_t n_bytes, size_t alignment); /* power of two; not zeroed */
void kg_free(void *block);
char *kg_copy_bytes(const char *bytes, size_t n); /* n bytes and a NUL */

/* Make room for `need` items in *items (which holds *capacity of them); grows by half. False: nothing changed. */
bool kg_grow(void **items, size_t *capacity, size_t need, size_t item_size);

/* Checked arithmetic for values that come from outside: false on overflow, *out untouched. */
bool kg_add_size(size_t a, size_t b, size_t *out);
bool kg_mul_size(size_t a, size_t b, size_t *out);
bool kg_align_size(size_t n, size_t alignment, size_t *out); /* alignment: a power of two */

/* Test switches. Fail the n-th allocation from now (1 = the next) once, or from there on for ever; 0 = never. */
void kg_alloc_inject(int64_t nth, bool for_ever);
int64_t kg_alloc_live(void);  /* blocks not yet released */
int64_t kg_alloc_calls(void); /* allocations since the start */

#endif
