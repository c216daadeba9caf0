#define _GNU_SOURCE
#include "gguf.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "alloc.h"
#include "error.h"
#include "system.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are mapped and read as they are");

enum {
  KEY_MAX = 65535,      /* bytes of a metadata key */
  NAME_MAX_BYTES = 127, /* bytes of a tensor name */
  DEFAULT_ALIGNMENT = 32,
  ALIGNMENT_MAX = 1 << 16,
  HEADER_BYTES = 24,     /* magic, version, two counts */
  ENTRY_BYTES_MIN = 14,  /* key of one byte, type, value of one byte */
  TENSOR_BYTES_MIN = 33, /* name of one byte, one dimension, type, offset */
};

/* One file of a model. The bytes are a mapping of ours (fd >= 0) or borrowed from the caller of kg_gguf_parse. */
typedef struct file {
  char *path;
  const uint8_t *bytes;
  size_t n_bytes;
  int fd; /* -1: borrowed; kept open to see later whether the file was changed */
  struct timespec modified;
  kg_gguf_entry *entries;
  size_t n_entries;
  kg_gguf_entry const **by_key; /* the entries sorted by key; sorted, not hashed: no input makes it slow */
} file;

struct kg_gguf {
  file *files;
  size_t n_files, files_capacity;
  uint32_t version; /* of the first file */
  kg_gguf_tensor *tensors;
  size_t n_tensors, tensors_capacity;
  kg_gguf_tensor const **by_name; /* sorted by name */
  int32_t n_shares;               /* owners besides the one who opened it */
};

/* ---- the cursor: the only way to read a file's bytes ---- */

typedef struct cursor {
  const uint8_t *bytes;
  size_t n_bytes, at;
  const char *path; /* for errors */
  const char *kind; /* "key" or "tensor" while the description of one is read, else NULL */
  kg_string name;   /* its name */
  kg_error *err;
} cursor;

enum { OF_WHAT_MAX = KG_QUOTE_MAX + 16 };

static size_t left(const cursor *c)
{
  return c->n_bytes - c->at;
}

/* " of key X" or " of tensor X" while one is read, for messages. */
static const char *of_what(const cursor *c, char out[OF_WHAT_MAX])
{
  char quoted[KG_QUOTE_MAX];
  out[0] = '\0';
  if (c->kind) snprintf(out, OF_WHAT_MAX, " of %s %s", c->kind, kg_quote(quoted, c->name.data, c->name.size));
  return out;
}

/* Point at the next n bytes and step over them. */
static int take(cursor *c, uint64_t n, const char *what, const uint8_t **out)
{
  char of[OF_WHAT_MAX];
  if (n > left(c))
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: cut off at offset %zu: %s%s takes %" PRIu64 " bytes, %zu are left",
                   c->path, c->at, what, of_what(c, of), n, left(c));
  *out = c->bytes + c->at;
  c->at += (size_t)n; /* bounded: n bytes are left */
  return KG_OK;
}

static int read_u32(cursor *c, const char *what, uint32_t *out)
{
  const uint8_t *bytes = NULL;
  const int code = take(c, sizeof *out, what, &bytes);
  if (!code) memcpy(out, bytes, sizeof *out);
  return code;
}

static int read_u64(cursor *c, const char *what, uint64_t *out)
{
  const uint8_t *bytes = NULL;
  const int code = take(c, sizeof *out, what, &bytes);
  if (!code) memcpy(out, bytes, sizeof *out);
  return code;
}

static int read_string(cursor *c, const char *what, kg_string *out)
{
  uint64_t size = 0;
  const uint8_t *bytes = NULL;
  int code = read_u64(c, what, &size);
  if (!code) code = take(c, size, what, &bytes);
  if (!code) *out = (kg_string){(const char *)bytes, (size_t)size};
  return code;
}

/* A key or a tensor's name: 1 to max bytes without NUL. */
static int read_name(cursor *c, const char *what, size_t max, kg_string *out)
{
  const size_t at = c->at;
  char quoted[KG_QUOTE_MAX];
  const int code = read_string(c, what, out);
  if (code) return code;
  if (!out->size) return kg_fail(c->err, KG_ERR_FORMAT, "%s: empty %s at offset %zu", c->path, what, at);
  if (out->size > max)
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: %s at offset %zu has %zu bytes, the limit is %zu", c->path, what, at,
                   out->size, max);
  if (memchr(out->data, 0, out->size))
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: %s %s at offset %zu has a NUL byte", c->path, what,
                   kg_quote(quoted, out->data, out->size), at);
  return KG_OK;
}

/* A count of things that take at least item_bytes each: what the rest of the file cannot hold is refused, so that
 * memory is only ever allocated in proportion to bytes that are there. */
static int check_count(cursor *c, const char *what, uint64_t count, size_t item_bytes)
{
  char of[OF_WHAT_MAX];
  if (count <= left(c) / item_bytes) return KG_OK;
  return kg_fail(c->err, KG_ERR_FORMAT, "%s: offset %zu: %" PRIu64 " %s%s do not fit in the %zu bytes that are left",
                 c->path, c->at, count, what, of_what(c, of), left(c));
}

/* ---- metadata ---- */

static const struct {
  const char *name;
  size_t n_bytes; /* 0: no fixed size */
} value_types[] = {
    [KG_GGUF_U8] = {"u8", 1},       [KG_GGUF_I8] = {"i8", 1},     [KG_GGUF_U16] = {"u16", 2},
    [KG_GGUF_I16] = {"i16", 2},     [KG_GGUF_U32] = {"u32", 4},   [KG_GGUF_I32] = {"i32", 4},
    [KG_GGUF_F32] = {"f32", 4},     [KG_GGUF_BOOL] = {"bool", 1}, [KG_GGUF_STRING] = {"string", 0},
    [KG_GGUF_ARRAY] = {"array", 0}, [KG_GGUF_U64] = {"u64", 8},   [KG_GGUF_I64] = {"i64", 8},
    [KG_GGUF_F64] = {"f64", 8},
};

const char *kg_gguf_type_name(kg_gguf_type type)
{
  return (size_t)type < sizeof value_types / sizeof value_types[0] ? value_types[type].name : "unknown";
}

size_t kg_gguf_type_bytes(kg_gguf_type type)
{
  return (size_t)type < sizeof value_types / sizeof value_types[0] ? value_types[type].n_bytes : 0;
}

/* The type of entry's value (or of its elements). */
static int read_value_type(cursor *c, kg_gguf_entry *entry)
{
  char quoted[KG_QUOTE_MAX];
  uint32_t type;
  const int code = read_u32(c, "a value's type", &type);
  if (code) return code;
  if (type >= sizeof value_types / sizeof value_types[0])
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: key %s: unknown value type %" PRIu32 " (known are 0 to 12)", c->path,
                   kg_quote(quoted, entry->key.data, entry->key.size), type);
  entry->type = (kg_gguf_type)type;
  return KG_OK;
}

static int read_strings(cursor *c, kg_gguf_entry *entry)
{
  int code = check_count(c, "strings", entry->count, 8);
  if (code) return code;
  kg_string *strings = kg_alloc_array((size_t)entry->count, sizeof *strings);
  if (!strings) return kg_fail_memory(c->err, (size_t)entry->count * sizeof *strings, "metadata strings");
  entry->strings = strings; /* owned by the entry from here on */
  for (uint64_t i = 0; i < entry->count && !code; i++) code = read_string(c, "a string", &strings[i]);
  return code;
}

static int read_elements(cursor *c, kg_gguf_entry *entry)
{
  char quoted[KG_QUOTE_MAX];
  const size_t n_bytes = value_types[entry->type].n_bytes;
  int code = check_count(c, "array elements", entry->count, n_bytes);
  if (!code) code = take(c, entry->count * n_bytes, "a value", &entry->data); /* bounded: check_count: they are left */
  if (code || entry->type != KG_GGUF_BOOL) return code;
  for (uint64_t i = 0; i < entry->count; i++)
    if (entry->data[i] > 1)
      return kg_fail(c->err, KG_ERR_FORMAT, "%s: key %s: a bool is %d, not 0 or 1", c->path,
                     kg_quote(quoted, entry->key.data, entry->key.size), entry->data[i]);
  return KG_OK;
}

static int read_entry(cursor *c, kg_gguf_entry *entry)
{
  char quoted[KG_QUOTE_MAX];
  entry->count = 1;
  c->kind = NULL;
  int code = read_name(c, "metadata key", KEY_MAX, &entry->key);
  if (code) return code;
  c->kind = "key";
  c->name = entry->key;
  code = read_value_type(c, entry);
  if (code) return code;
  if (entry->type == KG_GGUF_ARRAY) {
    entry->is_array = true;
    code = read_value_type(c, entry);
    if (!code) code = read_u64(c, "an array's length", &entry->count);
    if (code) return code;
    if (entry->type == KG_GGUF_ARRAY)
      return kg_fail(c->err, KG_ERR_UNSUPPORTED, "%s: key %s: arrays of arrays are not supported", c->path,
                     kg_quote(quoted, entry->key.data, entry->key.size));
  }
  return entry->type == KG_GGUF_STRING ? read_strings(c, entry) : read_elements(c, entry);
}

static int compare_keys(const void *a, const void *b)
{
  const kg_string *x = &(*(const kg_gguf_entry *const *)a)->key, *y = &(*(const kg_gguf_entry *const *)b)->key;
  const int order = memcmp(x->data, y->data, x->size < y->size ? x->size : y->size);
  return order ? order : (x->size > y->size) - (x->size < y->size);
}

static int index_entries(file *f, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  f->by_key = kg_alloc_array(f->n_entries, sizeof *f->by_key);
  if (!f->by_key) return kg_fail_memory(err, f->n_entries * sizeof *f->by_key, "the metadata index");
  for (size_t i = 0; i < f->n_entries; i++) f->by_key[i] = &f->entries[i];
  if (f->n_entries) qsort(f->by_key, f->n_entries, sizeof *f->by_key, compare_keys);
  for (size_t i = 1; i < f->n_entries; i++)
    if (!compare_keys(&f->by_key[i - 1], &f->by_key[i]))
      return kg_fail(err, KG_ERR_FORMAT, "%s: key %s appears twice", f->path,
                     kg_quote(quoted, f->by_key[i]->key.data, f->by_key[i]->key.size));
  return KG_OK;
}

static int read_entries(file *f, cursor *c, uint64_t count)
{
  int code = check_count(c, "metadata entries", count, ENTRY_BYTES_MIN);
  if (code) return code;
  f->entries = kg_alloc_array((size_t)count, sizeof *f->entries);
  if (!f->entries) return kg_fail_memory(c->err, (size_t)count * sizeof *f->entries, "metadata");
  f->n_entries = (size_t)count;
  for (size_t i = 0; i < f->n_entries && !code; i++) code = read_entry(c, &f->entries[i]);
  c->kind = NULL;
  return code ? code : index_entries(f, c->err);
}

static const kg_gguf_entry *find_entry(const file *f, const char *key)
{
  const kg_gguf_entry wanted = {.key = {key, strlen(key)}}, *pointer = &wanted;
  if (!f->n_entries) return NULL;
  kg_gguf_entry const **found = bsearch(&pointer, f->by_key, f->n_entries, sizeof *f->by_key, compare_keys);
  return found ? *found : NULL;
}

/* ---- tensors ---- */

static int read_dims(cursor *c, kg_gguf_tensor *tensor, uint64_t *n_values)
{
  uint32_t n_dims;
  int code = read_u32(c, "the number of dimensions", &n_dims);
  if (code) return code;
  if (n_dims < 1 || n_dims > 4)
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s has %" PRIu32 " dimensions, 1 to 4 are allowed", c->path,
                   tensor->name, n_dims);
  tensor->n_dims = (int)n_dims;
  *n_values = 1;
  for (uint32_t i = 0; i < 4; i++) {
    uint64_t size = 1;
    if (i < n_dims) code = read_u64(c, "a dimension", &size);
    if (code) return code;
    if (!size || size > INT64_MAX)
      return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s: dimension %" PRIu32 " is %" PRIu64, c->path, tensor->name,
                     i, size);
    if (__builtin_mul_overflow(*n_values, size, n_values) || *n_values > INT64_MAX)
      return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s: the product of its dimensions overflows", c->path,
                     tensor->name);
    tensor->dims[i] = (int64_t)size;
  }
  return KG_OK;
}

static int read_tensor_type(cursor *c, kg_gguf_tensor *tensor, uint64_t n_values)
{
  uint32_t number;
  const int code = read_u32(c, "a tensor's type", &number);
  if (code) return code;
  const kg_type_info *info = kg_type_find(number);
  if (!info)
    return kg_fail(c->err, KG_ERR_UNSUPPORTED, "%s: tensor %s has the unknown type %" PRIu32, c->path, tensor->name,
                   number);
  if (tensor->dims[0] % info->block_size)
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s: rows of %" PRId64 " values are not whole blocks of %d (%s)",
                   c->path, tensor->name, tensor->dims[0], (int)info->block_size, info->name);
  if (!kg_type_bytes(info, n_values, &tensor->n_bytes))
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s: its size in bytes overflows", c->path, tensor->name);
  tensor->type = (kg_type)number;
  return KG_OK;
}

/* Read a tensor's description; `offset` is relative to the data section until place_tensors. */
static int read_tensor(cursor *c, kg_gguf_tensor *tensor)
{
  uint64_t n_values = 0;
  c->kind = NULL;
  int code = read_name(c, "tensor name", NAME_MAX_BYTES, &c->name);
  if (code) return code;
  c->kind = "tensor";
  tensor->name = kg_copy_bytes(c->name.data, c->name.size);
  if (!tensor->name) return kg_fail_memory(c->err, c->name.size, "a tensor's name");
  code = read_dims(c, tensor, &n_values);
  if (!code) code = read_tensor_type(c, tensor, n_values);
  if (!code) code = read_u64(c, "a tensor's offset", &tensor->offset);
  return code;
}

static int read_tensors(kg_gguf *gguf, cursor *c, uint64_t count)
{
  int code = check_count(c, "tensors", count, TENSOR_BYTES_MIN);
  if (code) return code;
  size_t total;
  if (!kg_add_size(gguf->n_tensors, (size_t)count, &total) ||
      !kg_grow((void **)&gguf->tensors, &gguf->tensors_capacity, total, sizeof *gguf->tensors))
    return kg_fail_memory(c->err, (size_t)count * sizeof *gguf->tensors, "the tensor table");
  while (gguf->n_tensors < total && !code) {
    kg_gguf_tensor *tensor = &gguf->tensors[gguf->n_tensors++];
    memset(tensor, 0, sizeof *tensor);
    tensor->file = (int)gguf->n_files - 1;
    code = read_tensor(c, tensor);
  }
  return code;
}

static int find_alignment(const file *f, size_t *out, kg_error *err)
{
  const kg_gguf_entry *entry = find_entry(f, "general.alignment");
  if (!entry) return KG_OK;
  if (entry->is_array || entry->type != KG_GGUF_U32)
    return kg_fail(err, KG_ERR_FORMAT, "%s: general.alignment is of type %s%s, not u32", f->path,
                   entry->is_array ? "array of " : "", kg_gguf_type_name(entry->type));
  const int64_t value = kg_gguf_entry_int(entry, 0);
  if (value < 1 || value > ALIGNMENT_MAX || (value & (value - 1)))
    return kg_fail(err, KG_ERR_FORMAT, "%s: general.alignment is %" PRId64 ", not a power of two up to %d", f->path,
                   value, ALIGNMENT_MAX);
  *out = (size_t)value;
  return KG_OK;
}

static int compare_offsets(const void *a, const void *b)
{
  const uint64_t x = (*(const kg_gguf_tensor *const *)a)->offset, y = (*(const kg_gguf_tensor *const *)b)->offset;
  return (x > y) - (x < y);
}

/* Refuse tensors of one file that share bytes. */
static int check_overlap(const file *f, const kg_gguf_tensor *tensors, size_t n, kg_error *err)
{
  if (n < 2) return KG_OK;
  kg_gguf_tensor const **sorted = kg_alloc_array(n, sizeof *sorted);
  if (!sorted) return kg_fail_memory(err, n * sizeof *sorted, "the check of tensor offsets");
  for (size_t i = 0; i < n; i++) sorted[i] = &tensors[i];
  qsort(sorted, n, sizeof *sorted, compare_offsets);
  int code = KG_OK;
  for (size_t i = 1; i < n && !code; i++)
    if (sorted[i]->offset - sorted[i - 1]->offset < sorted[i - 1]->n_bytes)
      code = kg_fail(err, KG_ERR_FORMAT, "%s: tensors %s and %s overlap at offset %" PRIu64, f->path,
                     sorted[i - 1]->name, sorted[i]->name, sorted[i]->offset);
  kg_free(sorted);
  return code;
}

/* Turn the offsets of the last file's tensors, which start at `first`, into checked pointers. */
static int place_tensors(kg_gguf *gguf, size_t first, const cursor *c, size_t alignment)
{
  const file *f = &gguf->files[gguf->n_files - 1];
  size_t data_at = 0;
  if (!kg_align_size(c->at, alignment, &data_at))
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: the data section overflows", f->path);
  for (size_t i = first; i < gguf->n_tensors; i++) {
    kg_gguf_tensor *tensor = &gguf->tensors[i];
    size_t start, end;
    if (tensor->offset % alignment)
      return kg_fail(c->err, KG_ERR_FORMAT, "%s: tensor %s: offset %" PRIu64 " is not a multiple of the alignment %zu",
                     f->path, tensor->name, tensor->offset, alignment);
    if (!kg_add_size(data_at, tensor->offset, &start) || !kg_add_size(start, tensor->n_bytes, &end) || end > f->n_bytes)
      return kg_fail(c->err, KG_ERR_FORMAT,
                     "%s: tensor %s: %zu bytes at offset %" PRIu64 " of the data section (at %zu) end behind the "
                     "file's %zu bytes",
                     f->path, tensor->name, tensor->n_bytes, tensor->offset, data_at, f->n_bytes);
    tensor->offset = start;
    tensor->data = f->bytes + start;
  }
  return check_overlap(f, gguf->tensors + first, gguf->n_tensors - first, c->err);
}

static int compare_names(const void *a, const void *b)
{
  return strcmp((*(const kg_gguf_tensor *const *)a)->name, (*(const kg_gguf_tensor *const *)b)->name);
}

static int index_tensors(kg_gguf *gguf, kg_error *err)
{
  const size_t n = gguf->n_tensors;
  gguf->by_name = kg_alloc_array(n, sizeof *gguf->by_name);
  if (!gguf->by_name) return kg_fail_memory(err, n * sizeof *gguf->by_name, "the tensor index");
  for (size_t i = 0; i < n; i++) gguf->by_name[i] = &gguf->tensors[i];
  if (n) qsort(gguf->by_name, n, sizeof *gguf->by_name, compare_names);
  for (size_t i = 1; i < n; i++)
    if (!compare_names(&gguf->by_name[i - 1], &gguf->by_name[i]))
      return kg_fail(err, KG_ERR_FORMAT, "%s: tensor %s appears twice", gguf->files[gguf->by_name[i]->file].path,
                     gguf->by_name[i]->name);
  return KG_OK;
}

/* ---- one file ---- */

static int read_header(cursor *c, uint32_t *version, uint64_t *n_tensors, uint64_t *n_entries)
{
  const uint8_t *magic;
  char quoted[KG_QUOTE_MAX];
  if (!c->n_bytes) return kg_fail(c->err, KG_ERR_FORMAT, "%s: the file is empty", c->path);
  if (c->n_bytes >= 4 && memcmp(c->bytes, "GGUF", 4))
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: not a GGUF file: it starts with %s instead of \"GGUF\"", c->path,
                   kg_quote(quoted, (const char *)c->bytes, 4));
  if (c->n_bytes < HEADER_BYTES)
    return kg_fail(c->err, KG_ERR_FORMAT, "%s: cut off at offset %zu: the header takes %d bytes", c->path, c->n_bytes,
                   HEADER_BYTES);
  int code = take(c, 4, "the magic", &magic);
  if (!code) code = read_u32(c, "the version", version);
  if (code) return code;
  const uint32_t swapped = __builtin_bswap32(*version);
  if (swapped >= 1 && swapped <= 3)
    return kg_fail(c->err, KG_ERR_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian ones are supported",
                   c->path);
  if (*version < 2 || *version > 3)
    return kg_fail(c->err, KG_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu32 "; 2 and 3 are supported", c->path,
                   *version);
  code = read_u64(c, "the number of tensors", n_tensors);
  return code ? code : read_u64(c, "the number of metadata entries", n_entries);
}

/* Parse the last file of gguf->files and append its tensors. */
static int parse_file(kg_gguf *gguf, kg_error *err)
{
  file *f = &gguf->files[gguf->n_files - 1];
  cursor c = {.bytes = f->bytes, .n_bytes = f->n_bytes, .path = f->path, .err = err};
  const size_t first = gguf->n_tensors;
  uint64_t n_tensors = 0, n_entries = 0;
  uint32_t version = 0;
  size_t alignment = DEFAULT_ALIGNMENT;
  int code = read_header(&c, &version, &n_tensors, &n_entries);
  if (!code) code = read_entries(f, &c, n_entries);
  if (!code) code = read_tensors(gguf, &c, n_tensors);
  if (!code) code = find_alignment(f, &alignment, err);
  if (!code) code = place_tensors(gguf, first, &c, alignment);
  if (!code && gguf->n_files == 1) gguf->version = version;
  return code;
}

/* Append a file without bytes; on failure gguf is unchanged. */
static int add_file(kg_gguf *gguf, const char *path, kg_error *err)
{
  if (!kg_grow((void **)&gguf->files, &gguf->files_capacity, gguf->n_files + 1, sizeof *gguf->files))
    return kg_fail_memory(err, sizeof *gguf->files, "the list of files");
  char *copy = kg_copy_bytes(path, strlen(path));
  if (!copy) return kg_fail_memory(err, strlen(path) + 1, "a path");
  gguf->files[gguf->n_files++] = (file){.path = copy, .fd = -1};
  return KG_OK;
}

static void file_deinit(file *f)
{
  for (size_t i = 0; i < f->n_entries; i++) kg_free((void *)f->entries[i].strings);
  kg_free(f->entries);
  kg_free(f->by_key);
  if (f->fd >= 0) {
    if (f->bytes) kg_sys_munmap(f->bytes, f->n_bytes);
    kg_sys_close(f->fd);
  }
  kg_free(f->path);
}

/* Open and map a regular file; what was acquired belongs to f, whatever the result. */
static int map_file(file *f, kg_error *err)
{
  struct stat info;
  int code = kg_sys_open(f->path, O_RDONLY | O_NONBLOCK, &f->fd, err); /* a pipe must not make us wait for its writer */
  if (!code) code = kg_sys_fstat(f->path, f->fd, &info, err);
  if (code) return code;
  if (S_ISDIR(info.st_mode)) return kg_fail(err, KG_ERR_IO, "%s: is a directory, not a file", f->path);
  if (!S_ISREG(info.st_mode)) return kg_fail(err, KG_ERR_IO, "%s: is not a regular file", f->path);
  if (info.st_size <= 0) return kg_fail(err, KG_ERR_FORMAT, "%s: the file is empty", f->path);
  f->n_bytes = (size_t)info.st_size;
  f->modified = info.st_mtim;
  const void *bytes;
  code = kg_sys_mmap(f->path, f->fd, f->n_bytes, &bytes, err);
  f->bytes = bytes;
  return code;
}

static int open_file(kg_gguf *gguf, const char *path, kg_error *err)
{
  int code = add_file(gguf, path, err);
  if (!code) code = map_file(&gguf->files[gguf->n_files - 1], err);
  return code ? code : parse_file(gguf, err);
}

/* ---- split files ---- */

enum { SUFFIX_ROOM = 64 }; /* "-00001-of-00003.gguf", NUL, and slack for what a compiler fears an int may print */

/* An integer of the file's metadata that describes the split. */
static int split_value(const file *f, const char *key, int64_t min, int64_t max, int64_t *out, kg_error *err)
{
  const kg_gguf_entry *entry = find_entry(f, key);
  if (!entry)
    return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is missing, but the file is part of a split model", f->path, key);
  if (entry->is_array || !kg_gguf_type_is_integer(entry->type) || entry->type == KG_GGUF_BOOL)
    return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is not an integer", f->path, key);
  *out = kg_gguf_entry_int(entry, 0);
  if (*out >= min && *out <= max) return KG_OK;
  return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is %" PRId64 ", allowed are %" PRId64 " to %" PRId64, f->path, key,
                 *out, min, max);
}

/* Open part number `part` (from 0) of `count` beside the first one and check that it is that. */
static int open_part(kg_gguf *gguf, const char *first_path, size_t stem, int64_t part, int64_t count, kg_error *err)
{
  const size_t room = stem + SUFFIX_ROOM; /* bounded: a path in memory */
  int64_t number, total;
  char *path = kg_alloc(room);
  if (!path) return kg_fail_memory(err, room, "a path");
  memcpy(path, first_path, stem);
  snprintf(path + stem, room - stem, "-%05d-of-%05d.gguf", (int)part + 1, (int)count); /* bounded: at most 65535 */
  int code = open_file(gguf, path, err);
  kg_free(path);
  if (code) return code;
  const file *f = &gguf->files[gguf->n_files - 1];
  code = split_value(f, "split.no", part, part, &number, err);
  return code ? code : split_value(f, "split.count", count, count, &total, err);
}

/* When the first file says that it is one of several, open the others. */
static int open_other_parts(kg_gguf *gguf, bool has_path, kg_error *err)
{
  const file *first = &gguf->files[0];
  int64_t number, count, n_tensors;
  if (!find_entry(first, "split.count")) return KG_OK;
  int code = split_value(first, "split.count", 0, UINT16_MAX, &count, err);
  if (code || count < 2) return code;
  code = split_value(first, "split.no", 0, count - 1, &number, err);
  if (!code) code = split_value(first, "split.tensors.count", 0, INT32_MAX, &n_tensors, err);
  if (code) return code;
  if (number)
    return kg_fail(err, KG_ERR_UNSUPPORTED,
                   "%s: this is part %" PRId64 " of a model in %" PRId64 " files: open the first one", first->path,
                   number + 1, count); /* bounded: at most 65535 */
  if (!has_path)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: one of %" PRId64 " files: a split model is opened by its path",
                   first->path, count);
  char suffix[SUFFIX_ROOM];
  snprintf(suffix, sizeof suffix, "-00001-of-%05d.gguf", (int)count);
  const size_t length = strlen(first->path), suffix_length = strlen(suffix);
  if (length < suffix_length || strcmp(first->path + length - suffix_length, suffix))
    return kg_fail(err, KG_ERR_FORMAT, "%s: the first of %" PRId64 " files: its name must end in %s", first->path,
                   count, suffix);
  for (int64_t part = 1; part < count && !code;
       part++) /* add_file moves the list, so the path is looked up each time */
    code = open_part(gguf, gguf->files[0].path, length - suffix_length, part, count, err);
  if (!code && (uint64_t)n_tensors != gguf->n_tensors)
    code = kg_fail(err, KG_ERR_FORMAT,
                   "%s: split.tensors.count is %" PRId64 ", but the %" PRId64 " files hold %zu tensors",
                   gguf->files[0].path, n_tensors, count, gguf->n_tensors);
  return code;
}

/* ---- opening and closing ---- */

/* Take the parsed files over, or close them after a failure. */
static int finish_open(kg_gguf *gguf, int code, kg_gguf **out, kg_error *err)
{
  if (!code) code = index_tensors(gguf, err);
  if (code)
    kg_gguf_close(gguf);
  else
    *out = gguf;
  return code;
}

int kg_gguf_open(const char *path, kg_gguf **out, kg_error *err)
{
  kg_gguf *gguf = kg_alloc_array(1, sizeof *gguf);
  if (!gguf) return kg_fail_memory(err, sizeof *gguf, "a model file");
  int code = open_file(gguf, path, err);
  if (!code) code = open_other_parts(gguf, true, err);
  return finish_open(gguf, code, out, err);
}

int kg_gguf_parse(const void *bytes, size_t n_bytes, const char *name, kg_gguf **out, kg_error *err)
{
  kg_gguf *gguf = kg_alloc_array(1, sizeof *gguf);
  if (!gguf) return kg_fail_memory(err, sizeof *gguf, "a model file");
  int code = add_file(gguf, name, err);
  if (!code) {
    gguf->files[0].bytes = bytes;
    gguf->files[0].n_bytes = n_bytes;
    code = parse_file(gguf, err);
  }
  if (!code) code = open_other_parts(gguf, false, err);
  return finish_open(gguf, code, out, err);
}

void kg_gguf_close(kg_gguf *gguf)
{
  if (!gguf || gguf->n_shares-- > 0) return;
  for (size_t i = 0; i < gguf->n_tensors; i++) kg_free((void *)gguf->tensors[i].name);
  kg_free(gguf->tensors);
  kg_free(gguf->by_name);
  for (size_t i = 0; i < gguf->n_files; i++) file_deinit(&gguf->files[i]);
  kg_free(gguf->files);
  kg_free(gguf);
}

kg_gguf *kg_gguf_share(kg_gguf *gguf)
{
  gguf->n_shares++;
  return gguf;
}

/* ---- questions ---- */

const char *kg_gguf_path(const kg_gguf *gguf)
{
  return gguf->files[0].path;
}

uint32_t kg_gguf_version(const kg_gguf *gguf)
{
  return gguf->version;
}

int kg_gguf_file_count(const kg_gguf *gguf)
{
  return (int)gguf->n_files;
}

size_t kg_gguf_file_bytes(const kg_gguf *gguf)
{
  size_t total = 0;
  for (size_t i = 0; i < gguf->n_files; i++) total += gguf->files[i].n_bytes; /* bounded: all are mapped */
  return total;
}

size_t kg_gguf_entry_count(const kg_gguf *gguf)
{
  return gguf->files[0].n_entries;
}

const kg_gguf_entry *kg_gguf_entry_at(const kg_gguf *gguf, size_t index)
{
  return &gguf->files[0].entries[index];
}

const kg_gguf_entry *kg_gguf_find(const kg_gguf *gguf, const char *key)
{
  return find_entry(&gguf->files[0], key);
}

size_t kg_gguf_tensor_count(const kg_gguf *gguf)
{
  return gguf->n_tensors;
}

const kg_gguf_tensor *kg_gguf_tensor_at(const kg_gguf *gguf, size_t index)
{
  return &gguf->tensors[index];
}

const kg_gguf_tensor *kg_gguf_tensor_find(const kg_gguf *gguf, const char *name)
{
  const kg_gguf_tensor wanted = {.name = name}, *pointer = &wanted;
  if (!gguf->n_tensors) return NULL;
  kg_gguf_tensor const **found =
      bsearch(&pointer, gguf->by_name, gguf->n_tensors, sizeof *gguf->by_name, compare_names);
  return found ? *found : NULL;
}

/* ---- typed values ---- */

#define LOAD(type)                                                                                                     \
  type value;                                                                                                          \
  memcpy(&value, entry->data + i * sizeof value, sizeof value) /* bounded: i < entry->count, all of it is there */

int64_t kg_gguf_entry_int(const kg_gguf_entry *entry, uint64_t i)
{
  switch (entry->type) {
  case KG_GGUF_U8:
  case KG_GGUF_BOOL: return entry->data[i];
  case KG_GGUF_I8: return (int8_t)entry->data[i];
  case KG_GGUF_U16: {
    LOAD(uint16_t);
    return value;
  }
  case KG_GGUF_I16: {
    LOAD(int16_t);
    return value;
  }
  case KG_GGUF_U32: {
    LOAD(uint32_t);
    return value;
  }
  case KG_GGUF_I32: {
    LOAD(int32_t);
    return value;
  }
  case KG_GGUF_I64: {
    LOAD(int64_t);
    return value;
  }
  case KG_GGUF_U64: {
    LOAD(uint64_t);
    return value > INT64_MAX ? INT64_MAX : (int64_t)value;
  }
  default: {
    const double value = kg_gguf_entry_double(entry, i); /* saturates; NaN gives 0 */
    if (value != value) return 0;
    return value >= 0x1p63 ? INT64_MAX : value <= -0x1p63 ? INT64_MIN : (int64_t)value;
  }
  }
}

double kg_gguf_entry_double(const kg_gguf_entry *entry, uint64_t i)
{
  switch (entry->type) {
  case KG_GGUF_F32: {
    LOAD(float);
    return (double)value;
  }
  case KG_GGUF_F64: {
    LOAD(double);
    return value;
  }
  case KG_GGUF_U64: {
    LOAD(uint64_t);
    return (double)value;
  }
  case KG_GGUF_STRING:
  case KG_GGUF_ARRAY: return 0; /* the caller has checked that it is a number */
  default: return (double)kg_gguf_entry_int(entry, i);
  }
}

#undef LOAD

bool kg_gguf_type_is_integer(kg_gguf_type type)
{
  return type != KG_GGUF_F32 && type != KG_GGUF_F64 && type != KG_GGUF_STRING && type != KG_GGUF_ARRAY;
}

/* The entry, or an error that says what was wanted of it ("an integer"). */
static int get_entry(const kg_gguf *gguf, const char *key, const char *wanted, const kg_gguf_entry **out, kg_error *err)
{
  *out = kg_gguf_find(gguf, key);
  if (*out) return KG_OK;
  return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is missing (%s)", kg_gguf_path(gguf), key, wanted);
}

static int fail_kind(const kg_gguf *gguf, const kg_gguf_entry *entry, const char *key, const char *wanted,
                     kg_error *err)
{
  return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is %s%s, not %s", kg_gguf_path(gguf), key,
                 entry->is_array ? "an array of " : "of type ", kg_gguf_type_name(entry->type), wanted);
}

int kg_gguf_get_int(const kg_gguf *gguf, const char *key, int64_t min, int64_t max, int64_t *out, kg_error *err)
{
  const kg_gguf_entry *entry;
  const int code = get_entry(gguf, key, "an integer", &entry, err);
  if (code) return code;
  if (entry->is_array || !kg_gguf_type_is_integer(entry->type) || entry->type == KG_GGUF_BOOL)
    return fail_kind(gguf, entry, key, "an integer", err);
  uint64_t bits = 0;
  if (entry->type == KG_GGUF_U64) memcpy(&bits, entry->data, sizeof bits);
  const int64_t value = kg_gguf_entry_int(entry, 0);
  if (bits > INT64_MAX)
    return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is %" PRIu64 ", allowed are %" PRId64 " to %" PRId64,
                   kg_gguf_path(gguf), key, bits, min, max);
  if (value < min || value > max)
    return kg_fail(err, KG_ERR_FORMAT, "%s: key %s is %" PRId64 ", allowed are %" PRId64 " to %" PRId64,
                   kg_gguf_path(gguf), key, value, min, max);
  *out = value;
  return KG_OK;
}

int kg_gguf_get_string(const kg_gguf *gguf, const char *key, kg_string *out, kg_error *err)
{
  const kg_gguf_entry *entry;
  const int code = get_entry(gguf, key, "a string", &entry, err);
  if (code) return code;
  if (entry->is_array || entry->type != KG_GGUF_STRING) return fail_kind(gguf, entry, key, "a string", err);
  *out = entry->strings[0];
  return KG_OK;
}

int kg_gguf_get_array(const kg_gguf *gguf, const char *key, kg_gguf_type type, const kg_gguf_entry **out, kg_error *err)
{
  char wanted[32];
  const kg_gguf_entry *entry;
  snprintf(wanted, sizeof wanted, "an array of %s", kg_gguf_type_name(type));
  const int code = get_entry(gguf, key, wanted, &entry, err);
  if (code) return code;
  if (!entry->is_array || entry->type != type) return fail_kind(gguf, entry, key, wanted, err);
  *out = entry;
  return KG_OK;
}

/* ---- the mapping ---- */

void kg_gguf_release_pages(const kg_gguf *gguf, const void *data, size_t n_bytes)
{
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)data;
  for (size_t i = 0; i < gguf->n_files; i++) {
    const file *f = &gguf->files[i];
    const uintptr_t base = (uintptr_t)f->bytes;
    if (f->fd < 0 || start < base || start - base > f->n_bytes || n_bytes > f->n_bytes - (start - base)) continue;
    /* bounded: addresses in our mapping, which does not end the address space */
    const uintptr_t from = (start + page - 1) / page * page, to = (start + n_bytes) / page * page;
    if (from < to) kg_sys_madvise((void *)from, to - from, MADV_DONTNEED); /* advice: the pages are clean */
    return;
  }
}

void kg_gguf_release_all_pages(const kg_gguf *gguf)
{
  for (size_t i = 0; i < gguf->n_files; i++)
    if (gguf->files[i].fd >= 0)
      kg_sys_madvise((void *)(uintptr_t)gguf->files[i].bytes, gguf->files[i].n_bytes, MADV_DONTNEED);
}

int kg_gguf_check_unchanged(const kg_gguf *gguf, kg_error *err)
{
  for (size_t i = 0; i < gguf->n_files; i++) {
    const file *f = &gguf->files[i];
    struct stat info;
    if (f->fd < 0) continue;
    const int code = kg_sys_fstat(f->path, f->fd, &info, err);
    if (code) return code;
    if ((size_t)info.st_size != f->n_bytes || info.st_mtim.tv_sec != f->modified.tv_sec ||
        info.st_mtim.tv_nsec != f->modified.tv_nsec)
      return kg_fail(err, KG_ERR_IO, "model file changed: %s", f->path);
  }
  return KG_OK;
}

static void hash_file(const kg_gguf *gguf, const file *f, char hex[KG_SHA256_HEX])
{
  enum { PIECE = 16 << 20 };
  const uint8_t *bytes = f->bytes;
  kg_sha256 sha;
  kg_sha256_begin(&sha);
  for (size_t at = 0; at < f->n_bytes;) {
    const size_t n = f->n_bytes - at < PIECE ? f->n_bytes - at : PIECE;
    kg_sha256_add(&sha, bytes + at, n);
    kg_gguf_release_pages(gguf, bytes + at, n);
    at += n; /* bounded: by the size */
  }
  kg_sha256_end(&sha, hex);
}

int kg_gguf_digest(const kg_gguf *gguf, char hex[KG_SHA256_HEX], kg_error *err)
{
  kg_sha256 all;
  kg_sha256_begin(&all);
  int code = kg_gguf_check_unchanged(gguf, err); /* reading what a shorter file lost is fatal */
  for (size_t i = 0; i < gguf->n_files && !code; i++) {
    hash_file(gguf, &gguf->files[i], hex);
    kg_sha256_add(&all, hex, KG_SHA256_HEX - 1);
    code = kg_gguf_check_unchanged(gguf, err);
  }
  if (!code && gguf->n_files > 1) kg_sha256_end(&all, hex);
  return code;
}
