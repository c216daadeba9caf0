/* unicode.h - what characters are: the general categories of one Unicode version (scripts/unicode_tables.py pins it),
 * with white space as categories of its own. Sets of categories are bit masks. */
#ifndef KG_UNICODE_H
#define KG_UNICODE_H

#include <stdint.h>

/* Bits by utf8proc's numbers of categories. White space is in KG_SPACE or KG_NEWLINE and in no other set. */
#define KG_LETTER (0x1Fu << 1)  /* Lu Ll Lt Lm Lo */
#define KG_MARK (0x7u << 6)     /* Mn Mc Me */
#define KG_DIGIT (1u << 9)      /* Nd */
#define KG_NUMBER (0x7u << 9)   /* Nd Nl No */
#define KG_SPACE (1u << 30)     /* white space but CR and LF */
#define KG_NEWLINE (1u << 31)   /* CR and LF */
#define KG_WHITE (KG_SPACE | KG_NEWLINE)
/* \w of regular expressions: also Nl, Pc and symbols that are alphabetic */
#define KG_WORD (KG_LETTER | KG_MARK | KG_DIGIT | 1u << 10 | 1u << 12 | 1u << 28)

extern const unsigned char kg_category_blocks[];
extern const char kg_categories[];

enum { KG_CATEGORY_BLOCK = 128, KG_CATEGORY_ZERO = '(' };

/* The category of a code point up to U+10FFFF, as a mask of one bit. */
static inline uint32_t kg_unicode_category(uint32_t code_point)
{
  const unsigned block = kg_category_blocks[code_point / KG_CATEGORY_BLOCK];
  return 1u << (kg_categories[block * KG_CATEGORY_BLOCK + code_point % KG_CATEGORY_BLOCK] - KG_CATEGORY_ZERO);
}

/* The same for characters below U+0080, which are the first block. */
static inline uint32_t kg_ascii_category(unsigned char c)
{
  return 1u << (kg_categories[c] - KG_CATEGORY_ZERO);
}

#endif
