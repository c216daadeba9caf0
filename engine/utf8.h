/* utf8.h - one character of UTF-8 at a time, with a verdict on bytes that are none. Pure functions. */
#ifndef KG_UTF8_H
#define KG_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum kg_utf8_state {
  KG_UTF8_VALID,   /* the first *length bytes are one character */
  KG_UTF8_INVALID, /* the first *length bytes are none, whatever follows (the maximal invalid part of Unicode 3.9) */
  KG_UTF8_PARTIAL  /* all n bytes are the start of a character; *length is n */
} kg_utf8_state;

/* Judge the first character of n >= 1 bytes. *code_point is set when VALID. */
kg_utf8_state kg_utf8_next(const char *bytes, size_t n, uint32_t *code_point, size_t *length);
bool kg_utf8_is_valid(const char *bytes, size_t n);

#endif
