#include "error.h"

#include <stdarg.h>
#include <stdio.h>

const char *kg_error_name(int code)
{
  static const char *const names[] = {"ok",   "argument", "memory",  "io",       "format",
                                      "unsupported", "full", "device", "numeric", "cancelled",
                                      "script", "limit"};
  const int n_names = (int)(sizeof names / sizeof names[0]);
  return code <= 0 && -code < n_names ? names[-code] : "unknown";
}

int kg_fail(kg_error *err, int code, const char *format, ...)
{
  if (!err) return code;
  err->code = code;
  va_list args;
  va_start(args, format);
  vsnprintf(err->message, sizeof err->message, format, args);
  va_end(args);
  for (char *c = err->message; *c; c++)
    if ((unsigned char)*c < 32 || *c == 127) *c = '?';
  return code;
}

int kg_fail_memory(kg_error *err, size_t n_bytes, const char *what)
{
  return kg_fail(err, KG_ERR_MEMORY, "out of memory: %zu bytes wanted for %s", n_bytes, what);
}

const char *kg_quote(char buffer[KG_QUOTE_MAX], const char *bytes, size_t n)
{
  const size_t room = KG_QUOTE_MAX - 6; /* an escape, an ellipsis, the closing quote and NUL */
  size_t used = 0;
  buffer[used++] = '"';
  size_t i = 0;
  for (; i < n && used + 4 < room; i++) {
    const unsigned char c = (unsigned char)bytes[i];
    if (c < 32 || c == 127 || c == '"' || c == '\\')
      used += (size_t)snprintf(buffer + used, 5, "\\x%02x", c);
    else
      buffer[used++] = (char)c;
  }
  if (i < n) used += (size_t)snprintf(buffer + used, 4, "...");
  buffer[used++] = '"';
  buffer[used] = 0;
  return buffer;
}
