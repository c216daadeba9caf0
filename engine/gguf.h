/* gguf.h - reading GGUF files: a bounds-checked parser over a read-only mapping. Nothing is trusted before all of it
 * was validated; afterwards every pointer below stays valid until kg_gguf_close. Versions 2 and 3, little-endian. */
#ifndef KG_GGUF_H
#define KG_GGUF_H

#include "kigo.h"
#include "quant.h"
#include "sha256.h"

typedef enum kg_gguf_type { /* numbers as in the file */
  KG_GGUF_U8, KG_GGUF_I8, KG_GGUF_U16, KG_GGUF_I16, KG_GGUF_U32, KG_GGUF_I32, KG_GGUF_F32, KG_GGUF_BOOL,
  KG_GGUF_STRING, KG_GGUF_ARRAY, KG_GGUF_U64, KG_GGUF_I64, KG_GGUF_F64
} kg_gguf_type;

/* One metadata entry. Scalars have count 1; arrays are flat (nested arrays are refused). */
typedef struct kg_gguf_entry {
  kg_string key;
  kg_gguf_type type;        /* type of the value, or of an array's elements; never KG_GGUF_ARRAY */
  bool is_array;
  uint64_t count;
  const uint8_t *data;      /* raw little-endian elements, unaligned; NULL for strings */
  const kg_string *strings; /* the strings when type is KG_GGUF_STRING */
} kg_gguf_entry;

typedef struct kg_gguf_tensor {
  const char *name;  /* NUL-terminated copy, no NUL inside */
  kg_type type;
  int n_dims;        /* 1 to 4 */
  int64_t dims[4];   /* dims[0] is the row length; unused ones are 1 */
  const void *data;  /* in the mapping; aligned as the file is, at least 1 */
  size_t n_bytes;
  uint64_t offset;   /* of the data from the start of its file */
  int file;          /* index of the split file it stands in */
} kg_gguf_tensor;

/* Parse bytes that the caller keeps alive until the close (tests, embedded models). `name` stands in error texts. */
int kg_gguf_parse(const void *bytes, size_t n_bytes, const char *name, kg_gguf **out, kg_error *err);

/* One more owner of the same open file: each calls kg_gguf_close, the last one closes it. Returns its argument. */
kg_gguf *kg_gguf_share(kg_gguf *gguf);

const char *kg_gguf_path(const kg_gguf *gguf);
uint32_t kg_gguf_version(const kg_gguf *gguf);
int kg_gguf_file_count(const kg_gguf *gguf);
size_t kg_gguf_file_bytes(const kg_gguf *gguf); /* all files together */

/* SHA-256 of the file as it was mapped; of a split one, of the parts' SHA-256 in hexadecimal, one after the other.
 * Reads all of it. KG_ERR_IO where a file was changed since. */
int kg_gguf_digest(const kg_gguf *gguf, char hex[KG_SHA256_HEX], kg_error *err);

size_t kg_gguf_entry_count(const kg_gguf *gguf);
const kg_gguf_entry *kg_gguf_entry_at(const kg_gguf *gguf, size_t index);
const kg_gguf_entry *kg_gguf_find(const kg_gguf *gguf, const char *key); /* NULL: absent */

size_t kg_gguf_tensor_count(const kg_gguf *gguf);
const kg_gguf_tensor *kg_gguf_tensor_at(const kg_gguf *gguf, size_t index);
const kg_gguf_tensor *kg_gguf_tensor_find(const kg_gguf *gguf, const char *name); /* NULL: absent */

/* Element i of an entry as a number; the caller has checked i < count and that the type is a number or a bool.
 * Integers that do not fit are reported by kg_gguf_get_int below, not here. */
int64_t kg_gguf_entry_int(const kg_gguf_entry *entry, uint64_t i);  /* u64 above INT64_MAX gives INT64_MAX */
double kg_gguf_entry_double(const kg_gguf_entry *entry, uint64_t i);
bool kg_gguf_type_is_integer(kg_gguf_type type); /* BOOL counts */
const char *kg_gguf_type_name(kg_gguf_type type);
size_t kg_gguf_type_bytes(kg_gguf_type type); /* of one value; 0: strings and arrays have no fixed size */

/* Typed access to scalars with the file, key, value and limits in the error. KG_ERR_FORMAT when absent. */
int kg_gguf_get_int(const kg_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out, kg_error *err);
int kg_gguf_get_string(const kg_gguf *gguf, const char *key, kg_string *out, kg_error *err);
/* An array entry with this element type, or an error. */
int kg_gguf_get_array(const kg_gguf *gguf, const char *key, kg_gguf_type type, const kg_gguf_entry **out,
                      kg_error *err);

/* Tell the system that this part of a tensor will not be read soon (its resident pages may go): called while packing,
 * so that packed and mapped weights never stand in memory together. Reading it again is allowed. */
void kg_gguf_release_pages(const kg_gguf *gguf, const void *data, size_t n_bytes);
/* The same of whole files, metadata included: megabytes where the vocabulary is large. */
void kg_gguf_release_all_pages(const kg_gguf *gguf);

/* Re-check size and modification time of the mapped files; KG_ERR_IO "model file changed: PATH" if they differ. */
int kg_gguf_check_unchanged(const kg_gguf *gguf, kg_error *err);

#endif
