#include "nfc.h"

#include <string.h>
#include <utf8proc.h>

#include "alloc.h"
#include "error.h"
#include "unicode.h"
#include "utf8.h"

/* No character below U+0300 changes, nor do they change each other; CC is the first byte of U+0300. */
enum { FIRST_LEAD = 0xCC };

/* Marks are sorted by exchanging neighbours: parts of this size bound that. */
enum { PART_BYTES = 256, PART_BYTES_MAX = 4096 };

bool kg_nfc_may_change(const char *text, size_t size)
{
  for (size_t i = 0; i < size; i++)
    if ((unsigned char)text[i] >= FIRST_LEAD) return true;
  return false;
}

static int append(const char *text, size_t size, kg_bytes *out, kg_error *err)
{
  size_t need;
  if (!kg_add_size(out->size, size, &need) || !kg_grow((void **)&out->data, &out->capacity, need, 1))
    return kg_fail_memory(err, size, "encoding");
  if (size) memcpy(out->data + out->size, text, size);
  out->size = need;
  return KG_OK;
}

/* Append the normal form of valid UTF-8. */
static int append_part(const char *text, size_t size, kg_bytes *out, kg_error *err)
{
  enum { EXPANSION = 4 }; /* no character decomposes into more */
  utf8proc_int32_t points[PART_BYTES_MAX * EXPANSION + 1]; /* a character is a byte or more; a NUL follows */
  const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  const utf8proc_ssize_t n = utf8proc_decompose((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)size, points,
                                                PART_BYTES_MAX * EXPANSION, options);
  if (n < 0 || n > PART_BYTES_MAX * EXPANSION) return append(text, size, out, err); /* cannot be: the part is small */
  const utf8proc_ssize_t n_bytes = utf8proc_reencode(points, n, options);
  return n_bytes < 0 ? append(text, size, out, err) : append((const char *)points, (size_t)n_bytes, out, err);
}

/* Marks and the later letters of Korean syllables join what stands before them. */
static bool may_join(uint32_t c)
{
  return kg_unicode_category(c) & KG_MARK || (c >= 0x1100 && c < 0x1200);
}

/* Append the normal form of text that begins with a character that joins nothing before it. */
static int append_parts(const char *text, size_t size, kg_bytes *out, kg_error *err)
{
  size_t begin = 0, at = 0, length;
  int rc = KG_OK;
  for (; at < size && !rc; at += length) {
    uint32_t c;
    const bool valid = kg_utf8_next(text + at, size - at, &c, &length) == KG_UTF8_VALID;
    if (valid && (at - begin < PART_BYTES || (may_join(c) && at - begin < PART_BYTES_MAX - 4))) continue;
    rc = append_part(text + begin, at - begin, out, err);
    begin = at;
    if (valid || rc) continue;
    rc = append(text + at, length, out, err);
    begin = at + length;
  }
  return rc ? rc : append_part(text + begin, size - begin, out, err);
}

int kg_nfc_append(const char *text, size_t size, kg_bytes *out, kg_error *err)
{
  int rc = KG_OK;
  for (size_t pos = 0; pos < size && !rc;) {
    /* ASCII characters are themselves; the last one before others may take their marks. */
    size_t ascii = pos, end;
    while (ascii < size && (unsigned char)text[ascii] < 0x80) ascii++;
    for (end = ascii; end < size && (unsigned char)text[end] >= 0x80;) end++;
    const size_t first = end > ascii && ascii > pos ? ascii - 1 : ascii;
    rc = append(text + pos, first - pos, out, err);
    const bool may_change = kg_nfc_may_change(text + first, end - first);
    if (!rc) rc = (may_change ? append_parts : append)(text + first, end - first, out, err);
    pos = end;
  }
  return rc;
}
