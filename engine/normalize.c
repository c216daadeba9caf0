#include "normalize.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"
#include "utf8.h"

static const char charsmap_key[] = "tokenizer.ggml.precompiled_charsmap";
static const char space_mark[] = "\xE2\x96\x81"; /* U+2581 */
static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

/* No replaced text is longer: real tables have a few characters, and a walk along a malformed one must end. */
enum { KEY_MAX = 256 };

size_t kg_unmap_spaces(const char *text, size_t n, char *out)
{
  size_t used = 0;
  for (size_t i = 0; i < n;) {
    const bool is_mark = n - i >= 3 && !memcmp(text + i, space_mark, 3);
    out[used++] = is_mark ? ' ' : text[i];
    i += is_mark ? 3 : 1; /* bounded: the mark is there */
  }
  return used;
}

/* ---- reading ---- */

static uint32_t read_u32(const uint8_t *b)
{
  /* bounded: bytes, moved within 32 bits */
  return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* The blob: size of the double array in bytes, the double array, the replacements. */
static int read_charsmap(kg_normalizer *normalizer, const kg_gguf *gguf, const kg_gguf_entry *entry, kg_error *err)
{
  const uint64_t count = entry->count;
  if (!entry->is_array || (entry->type != KG_GGUF_U8 && entry->type != KG_GGUF_I8))
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s is not an array of bytes", kg_gguf_path(gguf), charsmap_key);
  if (!count) return KG_OK;
  const uint64_t n_bytes = count < 4 ? 0 : read_u32(entry->data);
  if (count < 4 || n_bytes > count - 4 || n_bytes % 4 || !n_bytes)
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s has %llu bytes, of which its table takes %llu", kg_gguf_path(gguf),
                   charsmap_key, (unsigned long long)count, (unsigned long long)n_bytes);
  const uint8_t *data = entry->data + 4, *texts = data + n_bytes;
  normalizer->n_units = (size_t)(n_bytes / 4);
  normalizer->n_texts = (size_t)(count - 4 - n_bytes);
  if (!normalizer->n_texts || texts[normalizer->n_texts - 1])
    return kg_fail(err, KG_ERR_FORMAT, "%s: %s does not end with a whole text", kg_gguf_path(gguf), charsmap_key);
  normalizer->units = kg_alloc_array(normalizer->n_units, sizeof *normalizer->units);
  normalizer->texts = kg_copy_bytes((const char *)texts, normalizer->n_texts);
  if (!normalizer->units || !normalizer->texts) return kg_fail_memory(err, (size_t)count, charsmap_key);
  for (size_t i = 0; i < normalizer->n_units; i++) normalizer->units[i] = read_u32(data + i * 4); /* bounded: in data */
  return KG_OK;
}

int kg_normalizer_read(kg_normalizer *normalizer, const kg_gguf *gguf, bool squeeze, kg_error *err)
{
  normalizer->squeeze = squeeze;
  const int rc = kg_tokenizer_read_flag(gguf, "tokenizer.ggml.remove_extra_whitespaces", &normalizer->squeeze, err);
  const kg_gguf_entry *entry = kg_gguf_find(gguf, charsmap_key);
  return rc || !entry ? rc : read_charsmap(normalizer, gguf, entry, err);
}

void kg_normalizer_deinit(kg_normalizer *normalizer)
{
  kg_free(normalizer->units);
  kg_free(normalizer->texts);
}

/* ---- replacing ---- */

/* Units of a double array: a leaf holds a value in 31 bits; an inner one the label that leads to it (the top bit is
 * clear), whether a leaf follows (bit 8), and how far its children are (22 bits, in steps of 256 if bit 9 is set). */
static uint32_t children_of(uint32_t unit) { return unit >> 10 << (unit & 0x200 ? 8 : 0); /* bounded: may wrap */ }
static bool leads_by(uint32_t unit, unsigned char byte) { return (unit & 0x800000FFu) == byte; }

/* The longest replaced text that this one starts with: its size in *length and its replacement; *length 0: none. */
static int find_replacement(const kg_normalizer *normalizer, const char *text, size_t size, size_t *length,
                            kg_string *out, kg_error *err)
{
  *length = 0;
  if (!normalizer->units) return KG_OK;
  if (size > KEY_MAX) size = KEY_MAX;
  size_t value = 0;
  uint32_t at = children_of(normalizer->units[0]);
  for (size_t i = 0; i < size; i++) {
    at ^= (unsigned char)text[i];
    if (at >= normalizer->n_units) goto malformed;
    const uint32_t unit = normalizer->units[at];
    if (!leads_by(unit, (unsigned char)text[i])) break;
    at ^= children_of(unit);
    if (!(unit & 0x100)) continue;
    if (at >= normalizer->n_units) goto malformed;
    value = normalizer->units[at] & 0x7FFFFFFFu;
    *length = i + 1; /* bounded: i < size */
  }
  if (!*length) return KG_OK;
  if (value >= normalizer->n_texts) goto malformed;
  out->data = normalizer->texts + value; /* bounded: value < n_texts */
  out->size = strlen(out->data); /* ended: the last byte of all is a NUL */
  return KG_OK;
malformed:
  return kg_fail(err, KG_ERR_FORMAT, "%s points outside of itself", charsmap_key);
}

/* The normal form of what the text starts with, and how many bytes that takes. */
static int next_part(const kg_normalizer *normalizer, const char *text, size_t size, bool replace_invalid,
                     kg_string *part, size_t *length, kg_error *err)
{
  const int rc = find_replacement(normalizer, text, size, length, part, err);
  if (rc || *length) return rc;
  uint32_t c;
  const bool is_valid = kg_utf8_next(text, size, &c, length) == KG_UTF8_VALID;
  if (!is_valid) *length = 1;
  *part = is_valid || !replace_invalid ? (kg_string){text, *length} : (kg_string){replacement, 3};
  return KG_OK;
}

static int append(kg_bytes *out, kg_string part, kg_error *err)
{
  size_t need;
  if (!kg_add_size(out->size, part.size, &need) || !kg_grow((void **)&out->data, &out->capacity, need, 1))
    return kg_fail_memory(err, part.size, "encoding");
  if (part.size) out->size += kg_unmap_spaces(part.data, part.size, out->data + out->size); /* bounded: need */
  return KG_OK;
}

int kg_normalizer_run(const kg_normalizer *normalizer, const char *text, size_t size, bool prefix,
                      bool replace_invalid, kg_bytes *out, kg_error *err)
{
  const size_t n_before = out->size;
  bool after_space = normalizer->squeeze, is_empty = true;
  for (size_t i = 0, length; i < size; i += length) {
    kg_string part;
    int rc = next_part(normalizer, text + i, size - i, replace_invalid, &part, &length, err);
    if (rc) return rc;
    /* Spaces in front of everything go whole; the first thing that stays gets the space of its own. */
    if (is_empty && normalizer->squeeze && part.size == 1 && part.data[0] == ' ') continue;
    if (is_empty && prefix && (rc = append(out, (kg_string){" ", 1}, err))) return rc;
    is_empty = false;
    for (; after_space && part.size && part.data[0] == ' '; part.data++) part.size--;
    if (part.size) after_space = normalizer->squeeze && part.data[part.size - 1] == ' ';
    if ((rc = append(out, part, err))) return rc;
  }
  while (normalizer->squeeze && out->size > n_before && out->data[out->size - 1] == ' ') out->size--;
  return KG_OK;
}
