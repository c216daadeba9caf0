#include "utf8.h"

kg_utf8_state kg_utf8_next(const char *bytes, size_t n, uint32_t *code_point, size_t *length)
{
  const unsigned char *b = (const unsigned char *)bytes;
  const unsigned lead = b[0];
  *length = 1;
  if (lead < 0x80) {
    *code_point = lead;
    return KG_UTF8_VALID;
  }
  if (lead < 0xC2 || lead > 0xF4) return KG_UTF8_INVALID;
  const size_t want = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  /* The second byte is where overlong forms, surrogates and numbers above U+10FFFF show. */
  unsigned low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  uint32_t value = lead & (0x7Fu >> want);
  for (; *length < want; ++*length) {
    if (*length == n) return KG_UTF8_PARTIAL;
    const unsigned c = b[*length];
    if (c < low || c > high) return KG_UTF8_INVALID;
    value = value << 6 | (c & 0x3F); /* bounded: at most three times, from 5 bits or less */
    low = 0x80;
    high = 0xBF;
  }
  *code_point = value;
  return KG_UTF8_VALID;
}

bool kg_utf8_is_valid(const char *bytes, size_t n)
{
  uint32_t code_point;
  for (size_t i = 0, length; i < n; i += length)
    if (kg_utf8_next(bytes + i, n - i, &code_point, &length) != KG_UTF8_VALID) return false;
  return true;
}
