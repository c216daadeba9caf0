#include "gguf_write.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "outfile.h"

enum { ALIGNMENT = 32 };

typedef struct buffer {
  char *data;
  size_t size, capacity;
} buffer;

struct kg_gguf_writer {
  kg_outfile *file;
  kg_error failure;     /* the first one; reported by the next call that can */
  buffer keys, tensors; /* encoded, without the header, which holds both counts */
  uint64_t n_keys, n_tensors, n_items_due;
  size_t *tensor_bytes; /* sizes of the tensors */
  size_t sizes_capacity;
  size_t data_bytes;    /* offset of the next tensor's description in the data section */
  bool described;       /* keys and descriptions are in the file */
  uint64_t current;     /* tensor that data is appended to */
  size_t current_bytes; /* of it that are in the file */
};

/* ---- encoding ---- */

static void append(kg_gguf_writer *w, buffer *b, const void *bytes, size_t n_bytes)
{
  size_t size;
  if (w->failure.code) return;
  if (!kg_add_size(b->size, n_bytes, &size) || !kg_grow((void **)&b->data, &b->capacity, size, 1)) {
    kg_fail_memory(&w->failure, n_bytes, "a file's metadata");
    return;
  }
  if (n_bytes) memcpy(b->data + b->size, bytes, n_bytes);
  b->size = size;
}

static void append_u32(kg_gguf_writer *w, buffer *b, uint32_t value)
{
  append(w, b, &value, sizeof value);
}

static void append_u64(kg_gguf_writer *w, buffer *b, uint64_t value)
{
  append(w, b, &value, sizeof value);
}

static void append_string(kg_gguf_writer *w, buffer *b, const char *bytes, size_t n_bytes)
{
  append_u64(w, b, n_bytes);
  append(w, b, bytes, n_bytes);
}

static void misuse(kg_gguf_writer *w, const char *what, const char *name)
{
  if (!w->failure.code) kg_fail(&w->failure, KG_ERR_ARGUMENT, "%s: %s: %s", kg_outfile_path(w->file), name, what);
}

static void append_named(kg_gguf_writer *w, const char *key, size_t n_bytes, kg_gguf_type type)
{
  if (w->n_tensors || w->n_items_due) misuse(w, "a key must come before tensors and after whole arrays", "a key");
  append_string(w, &w->keys, key, n_bytes);
  append_u32(w, &w->keys, (uint32_t)type);
  w->n_keys++;
}

static void append_key(kg_gguf_writer *w, const char *key, kg_gguf_type type)
{
  append_named(w, key, strlen(key), type);
}

void kg_gguf_write_u32(kg_gguf_writer *w, const char *key, uint32_t value)
{
  append_key(w, key, KG_GGUF_U32);
  append_u32(w, &w->keys, value);
}

void kg_gguf_write_f32(kg_gguf_writer *w, const char *key, float value)
{
  append_key(w, key, KG_GGUF_F32);
  append(w, &w->keys, &value, sizeof value);
}

void kg_gguf_write_bool(kg_gguf_writer *w, const char *key, bool value)
{
  const uint8_t byte = value;
  append_key(w, key, KG_GGUF_BOOL);
  append(w, &w->keys, &byte, sizeof byte);
}

void kg_gguf_write_string(kg_gguf_writer *w, const char *key, const char *value)
{
  append_key(w, key, KG_GGUF_STRING);
  append_string(w, &w->keys, value, strlen(value));
}

void kg_gguf_write_array(kg_gguf_writer *w, const char *key, kg_gguf_type type, const void *elements, uint64_t count)
{
  const size_t element_bytes = kg_gguf_type_bytes(type);
  size_t n_bytes = 0;
  append_key(w, key, KG_GGUF_ARRAY);
  if (!element_bytes || !kg_mul_size((size_t)count, element_bytes, &n_bytes)) misuse(w, "not an array of numbers", key);
  append_u32(w, &w->keys, (uint32_t)type);
  append_u64(w, &w->keys, count);
  append(w, &w->keys, elements, n_bytes);
}

void kg_gguf_write_strings(kg_gguf_writer *w, const char *key, uint64_t count)
{
  append_key(w, key, KG_GGUF_ARRAY);
  append_u32(w, &w->keys, KG_GGUF_STRING);
  append_u64(w, &w->keys, count);
  w->n_items_due = count;
}

void kg_gguf_write_item(kg_gguf_writer *w, const char *bytes, size_t n_bytes)
{
  if (w->n_items_due)
    w->n_items_due--;
  else
    misuse(w, "more strings than the array was announced with", "an array");
  append_string(w, &w->keys, bytes, n_bytes);
}

void kg_gguf_write_entry(kg_gguf_writer *w, const kg_gguf_entry *entry)
{
  append_named(w, entry->key.data, entry->key.size, entry->is_array ? KG_GGUF_ARRAY : entry->type);
  if (entry->is_array) {
    append_u32(w, &w->keys, (uint32_t)entry->type);
    append_u64(w, &w->keys, entry->count);
  }
  for (uint64_t i = 0; entry->strings && i < entry->count; i++)
    append_string(w, &w->keys, entry->strings[i].data, entry->strings[i].size);
  if (!entry->strings) append(w, &w->keys, entry->data, (size_t)entry->count * kg_gguf_type_bytes(entry->type));
}

/* Remember the tensor's size and the place of the next one. */
static bool add_tensor_bytes(kg_gguf_writer *w, size_t n_bytes)
{
  size_t end;
  if (!kg_add_size(w->data_bytes, n_bytes, &end) || !kg_align_size(end, ALIGNMENT, &end)) return false;
  if (!kg_grow((void **)&w->tensor_bytes, &w->sizes_capacity, (size_t)w->n_tensors + 1, sizeof *w->tensor_bytes)) {
    kg_fail_memory(&w->failure, sizeof *w->tensor_bytes, "the tensor table");
    return true;
  }
  w->tensor_bytes[w->n_tensors++] = n_bytes;
  w->data_bytes = end;
  return true;
}

void kg_gguf_write_tensor(kg_gguf_writer *w, const char *name, kg_type type, int n_dims, const int64_t *dims)
{
  const kg_type_info *info = kg_type_find((uint32_t)type);
  size_t n_values = 1, n_bytes = 0;
  if (w->failure.code) return;
  if (!info || n_dims < 1 || n_dims > 4 || w->described) {
    misuse(w, "unknown type, dimensions or order", name);
    return;
  }
  append_string(w, &w->tensors, name, strlen(name));
  append_u32(w, &w->tensors, (uint32_t)n_dims);
  for (int i = 0; i < n_dims; i++) {
    append_u64(w, &w->tensors, (uint64_t)dims[i]);
    if (dims[i] < 1 || !kg_mul_size(n_values, (size_t)dims[i], &n_values)) misuse(w, "bad dimensions", name);
  }
  append_u32(w, &w->tensors, (uint32_t)type);
  append_u64(w, &w->tensors, w->data_bytes);
  if (dims[0] % info->block_size || !kg_type_bytes(info, n_values, &n_bytes) || !add_tensor_bytes(w, n_bytes))
    misuse(w, "rows are not whole blocks or too large", name);
}

/* ---- the file ---- */

static int write_all(kg_gguf_writer *w, const void *bytes, size_t n_bytes)
{
  return w->failure.code ? w->failure.code : kg_outfile_write(w->file, bytes, n_bytes, &w->failure);
}

static int write_padding(kg_gguf_writer *w, size_t written)
{
  static const char zeros[ALIGNMENT];
  return write_all(w, zeros, (ALIGNMENT - written % ALIGNMENT) % ALIGNMENT);
}

/* Write the header, keys and descriptions, once. */
static void write_description(kg_gguf_writer *w)
{
  if (w->described) return;
  w->described = true;
  if (w->n_items_due) misuse(w, "fewer strings than the array was announced with", "an array");
  const uint32_t version = 3;
  buffer head = {0};
  append(w, &head, "GGUF", 4);
  append_u32(w, &head, version);
  append_u64(w, &head, w->n_tensors);
  append_u64(w, &head, w->n_keys);
  write_all(w, head.data, head.size);
  write_all(w, w->keys.data, w->keys.size);
  write_all(w, w->tensors.data, w->tensors.size);
  write_padding(w, head.size + w->keys.size + w->tensors.size);
  kg_free(head.data);
}

static int report(const kg_gguf_writer *w, kg_error *err)
{
  if (err && w->failure.code) *err = w->failure;
  return w->failure.code;
}

int kg_gguf_writer_data(kg_gguf_writer *w, const void *bytes, size_t n_bytes, kg_error *err)
{
  write_description(w);
  if (w->current >= w->n_tensors || n_bytes > w->tensor_bytes[w->current] - w->current_bytes)
    misuse(w, "more data than the tensor was described with", "tensor data");
  if (write_all(w, bytes, n_bytes)) return report(w, err);
  w->current_bytes += n_bytes;
  if (w->current_bytes == w->tensor_bytes[w->current]) {
    write_padding(w, w->current_bytes);
    w->current++;
    w->current_bytes = 0;
  }
  return report(w, err);
}

int kg_gguf_writer_commit(kg_gguf_writer *w, kg_error *err)
{
  write_description(w);
  if (w->current < w->n_tensors) misuse(w, "less data than the tensors were described with", "tensor data");
  if (!w->failure.code) kg_outfile_commit(w->file, 0644, &w->failure);
  return report(w, err);
}

int kg_gguf_writer_open(const char *path, kg_gguf_writer **out, kg_error *err)
{
  kg_gguf_writer *w = kg_alloc_array(1, sizeof *w);
  if (!w) return kg_fail_memory(err, sizeof *w, "a file writer");
  const int code = kg_outfile_open(path, &w->file, err);
  if (code)
    kg_gguf_writer_close(w);
  else
    *out = w;
  return code;
}

void kg_gguf_writer_close(kg_gguf_writer *w)
{
  if (!w) return;
  kg_outfile_close(w->file);
  kg_free(w->keys.data);
  kg_free(w->tensors.data);
  kg_free(w->tensor_bytes);
  kg_free(w);
}
