/* value.h - plain data on its way between two states of Lua, or two processes: nil, booleans, numbers, strings, tables
 * of these, and (to the script only) tensors by number. Everything is copied, no metamethod is called, and a reader
 * trusts nobody.
 *
 * A value is a byte that says what it is and its content, little-endian: integers and floats in 8 bytes, strings after
 * their length in 4, tables after the number of their elements 1..n and of their other pairs in 4 each. */
#ifndef KG_VALUE_H
#define KG_VALUE_H

#include <lua.h>

#include "tensor.h"

enum {
  KG_VALUE_BYTES = 256 << 10, /* of one message */
  KG_VALUE_DEPTH = 16,        /* of tables in tables */
  KG_VALUE_PAIRS = 4096,     /* keys that are no elements 1..n, in one message: keys chosen to collide cost n squared */
  KG_VALUE_ELEMENTS = 65536, /* elements 1..n, in one message */
  KG_VALUE_TENSORS = 4,      /* in one message */
  KG_VALUE_LIST = 64         /* values of one message at the top */
};

/* Append n bytes (NULL: zeros). KG_ERR_MEMORY: nothing changed. */
int kg_message_add(kg_bytes *bytes, const void *data, size_t n, kg_error *err);

typedef struct kg_value_writer {
  kg_bytes *out;
  int32_t n_pairs, n_elements;
  int32_t n_tensors, max_tensors;
  kg_tensor *tensors[KG_VALUE_TENSORS]; /* borrowed from their handles */
} kg_value_writer;

/* Append the value at index. KG_ERR_ARGUMENT: it is no plain data, or too much of it; `out` then holds a part. Raises
 * if the stack cannot grow. */
int kg_value_write(lua_State *L, int index, kg_value_writer *writer, kg_error *err);

/* Append n bytes as a string, for a message that no state has a hand in. */
int kg_value_write_text(kg_bytes *out, const char *text, size_t n, kg_error *err);

typedef struct kg_value_reader {
  const char *data, *end;
  int32_t n_pairs, n_elements;
  int32_t n_tensors; /* that there are; 0: none may come */
  kg_buffer *const *tensors;
  void (*push_tensor)(lua_State *L, kg_buffer *buffer);
} kg_value_reader;

/* Push the next value. KG_ERR_FORMAT: the bytes are none; what was pushed stays on the stack. Raises for want of
 * memory. */
int kg_value_push(lua_State *L, kg_value_reader *reader, kg_error *err);

#endif
