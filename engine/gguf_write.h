/* gguf_write.h - writing GGUF files, version 3: all keys, then all tensors' descriptions, then their data.
 *
 * The file is written under a temporary name beside its place and appears there, whole, with kg_gguf_writer_commit: no
 * reader ever sees half a file. The describing functions cannot fail by themselves: the writer remembers what went
 * wrong first and kg_gguf_writer_data and _commit report it. */
#ifndef KG_GGUF_WRITE_H
#define KG_GGUF_WRITE_H

#include "gguf.h"

typedef struct kg_gguf_writer kg_gguf_writer;

int kg_gguf_writer_open(const char *path, kg_gguf_writer **out, kg_error *err);
/* Without a commit before, the temporary file is removed and PATH is as it was. */
void kg_gguf_writer_close(kg_gguf_writer *writer);

void kg_gguf_write_u32(kg_gguf_writer *writer, const char *key, uint32_t value);
void kg_gguf_write_f32(kg_gguf_writer *writer, const char *key, float value);
void kg_gguf_write_bool(kg_gguf_writer *writer, const char *key, bool value);
void kg_gguf_write_string(kg_gguf_writer *writer, const char *key, const char *value);
/* An array of `count` numbers of a type with a fixed size, little-endian as in memory. */
void kg_gguf_write_array(kg_gguf_writer *writer, const char *key, kg_gguf_type type, const void *elements,
                         uint64_t count);
/* An array of `count` strings, which the next `count` calls of kg_gguf_write_item add. */
void kg_gguf_write_strings(kg_gguf_writer *writer, const char *key, uint64_t count);
void kg_gguf_write_item(kg_gguf_writer *writer, const char *bytes, size_t n_bytes);
/* A key with its value as another file has it. */
void kg_gguf_write_entry(kg_gguf_writer *writer, const kg_gguf_entry *entry);

/* Describe the next tensor; dims[0] is the row length. No key may follow. */
void kg_gguf_write_tensor(kg_gguf_writer *writer, const char *name, kg_type type, int n_dims, const int64_t *dims);

/* Append to the tensors' data, in the order of their descriptions; padding goes between them by itself, so one call
 * must not reach from one tensor into the next. */
int kg_gguf_writer_data(kg_gguf_writer *writer, const void *bytes, size_t n_bytes, kg_error *err);

/* All data is there: make it durable and put the file in its place. */
int kg_gguf_writer_commit(kg_gguf_writer *writer, kg_error *err);

#endif
