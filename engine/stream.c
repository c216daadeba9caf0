#include "stream.h"

#include <string.h>

#include "alloc.h"
#include "error.h"
#include "tokenizer.h"
#include "utf8.h"

/* A stop string and how much of it the text ends with: the automaton of Knuth, Morris and Pratt, so that each byte of
 * text is looked at once. */
typedef struct stop_string {
  char *bytes;
  uint32_t *borders; /* of its first i + 1 bytes: the longest proper prefix that is also their suffix */
  size_t size, matched;
} stop_string;

struct kg_stream {
  const kg_tokenizer *tokenizer;
  stop_string *stops;
  size_t n_stops;
  kg_bytes text;  /* always whole characters: what was shown, then what is held back */
  size_t n_shown;
  char partial[4]; /* the start of a character whose rest has not come; at most 3 bytes */
  size_t n_partial;
  unsigned flags; /* KG_DECODE_* */
  bool after_special, is_finished;
  kg_stream_reason reason;
};

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */
enum { REPLACEMENT_SIZE = 3 };

/* ---- stop strings ---- */

static int stop_init(stop_string *stop, kg_string text, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  if (!text.size || text.size > UINT32_MAX || !kg_utf8_is_valid(text.data, text.size))
    return kg_fail(err, KG_ERR_ARGUMENT, "stop string %s: UTF-8 of at least one byte expected",
                   kg_quote(quoted, text.data, text.size));
  stop->size = text.size;
  stop->bytes = kg_copy_bytes(text.data, text.size);
  stop->borders = kg_alloc_array(text.size, sizeof *stop->borders);
  if (!stop->bytes || !stop->borders) return kg_fail_memory(err, text.size * sizeof *stop->borders, "a stop string");
  for (size_t i = 1, border = 0; i < stop->size; i++) {
    while (border && stop->bytes[i] != stop->bytes[border]) border = stop->borders[border - 1];
    if (stop->bytes[i] == stop->bytes[border]) border++;
    stop->borders[i] = (uint32_t)border;
  }
  return KG_OK;
}

/* Look at the next byte of text; true when the stop string is complete. */
static bool stop_step(stop_string *stop, char byte)
{
  while (stop->matched && stop->bytes[stop->matched] != byte) stop->matched = stop->borders[stop->matched - 1];
  if (stop->bytes[stop->matched] == byte) stop->matched++;
  return stop->matched == stop->size;
}

/* ---- life ---- */

int kg_stream_new(const kg_tokenizer *tokenizer, const kg_string *stops, size_t n_stops, kg_stream **out, kg_error *err)
{
  kg_stream *stream = kg_alloc_array(1, sizeof *stream);
  if (!stream) return kg_fail_memory(err, sizeof *stream, "a stream");
  stream->tokenizer = tokenizer;
  stream->after_special = true;
  int rc = KG_OK;
  stream->stops = kg_alloc_array(n_stops, sizeof *stream->stops);
  if (!stream->stops) rc = kg_fail_memory(err, n_stops * sizeof *stream->stops, "stop strings");
  for (size_t i = 0; i < n_stops && !rc; i++) {
    stream->n_stops++;
    rc = stop_init(&stream->stops[i], stops[i], err);
  }
  if (rc) {
    kg_stream_free(stream);
    return rc;
  }
  *out = stream;
  return KG_OK;
}

void kg_stream_free(kg_stream *stream)
{
  if (!stream) return;
  for (size_t i = 0; i < stream->n_stops; i++) {
    kg_free(stream->stops[i].bytes);
    kg_free(stream->stops[i].borders);
  }
  kg_free(stream->stops);
  kg_bytes_deinit(&stream->text);
  kg_free(stream);
}

int kg_stream_copy(const kg_stream *stream, kg_stream **out, kg_error *err)
{
  kg_string *stops = kg_alloc_array(stream->n_stops, sizeof *stops);
  if (!stops) return kg_fail_memory(err, stream->n_stops * sizeof *stops, "stop strings");
  for (size_t i = 0; i < stream->n_stops; i++) stops[i] = (kg_string){stream->stops[i].bytes, stream->stops[i].size};
  kg_stream *copy = NULL;
  int rc = kg_stream_new(stream->tokenizer, stops, stream->n_stops, &copy, err);
  kg_free(stops);
  if (rc) return rc;
  for (size_t i = 0; i < stream->n_stops; i++) copy->stops[i].matched = stream->stops[i].matched;
  if (!kg_grow((void **)&copy->text.data, &copy->text.capacity, stream->text.size, 1)) {
    kg_stream_free(copy);
    return kg_fail_memory(err, stream->text.size, "the text of a stream");
  }
  if (stream->text.size) memcpy(copy->text.data, stream->text.data, stream->text.size);
  copy->text.size = stream->text.size;
  copy->n_shown = stream->n_shown;
  memcpy(copy->partial, stream->partial, sizeof copy->partial);
  copy->n_partial = stream->n_partial;
  copy->flags = stream->flags;
  copy->after_special = stream->after_special;
  copy->is_finished = stream->is_finished;
  copy->reason = stream->reason;
  *out = copy;
  return KG_OK;
}

int kg_stream_follow(kg_stream *stream, int32_t id, kg_error *err)
{
  const int rc = kg_tokenizer_check_id(stream->tokenizer, id, err);
  if (!rc) kg_tokenizer_piece(stream->tokenizer, id, 0, &stream->after_special);
  return rc;
}

void kg_stream_spell_control(kg_stream *stream) { stream->flags |= KG_DECODE_CONTROL; }

/* ---- text ---- */

/* Room for n more bytes, each of which may turn into U+FFFD: afterwards nothing can fail. */
static int reserve(kg_stream *stream, size_t n, kg_error *err)
{
  size_t need;
  if (kg_mul_size(n, REPLACEMENT_SIZE, &need) && kg_add_size(need, stream->text.size, &need) &&
      kg_grow((void **)&stream->text.data, &stream->text.capacity, need, 1))
    return KG_OK;
  return kg_fail_memory(err, n, "the text of a stream");
}

/* Append one whole character. True when a stop string is complete; the text then ends before it. Of several that end
 * here the longest counts, so that the cut does not depend on how the text was split into tokens. */
static bool append(kg_stream *stream, const char *bytes, size_t n)
{
  size_t cut = 0;
  for (size_t i = 0; i < n; i++) {
    stream->text.data[stream->text.size++] = bytes[i];
    for (size_t k = 0; k < stream->n_stops; k++)
      if (stop_step(&stream->stops[k], bytes[i]) && stream->stops[k].size > cut) cut = stream->stops[k].size;
  }
  if (!cut) return false;
  stream->text.size -= cut;
  stream->reason = KG_STREAM_STOP;
  stream->n_partial = 0;
  return true;
}

/* Take the bytes apart into characters; an incomplete one at the end waits in `partial`. Room was reserved. */
static void take(kg_stream *stream, const char *bytes, size_t n)
{
  while (n) {
    uint32_t code_point;
    size_t length;
    if (stream->n_partial) { /* one byte more, then judge again */
      stream->partial[stream->n_partial++] = *bytes;
      const kg_utf8_state state = kg_utf8_next(stream->partial, stream->n_partial, &code_point, &length);
      if (state == KG_UTF8_PARTIAL) {
        bytes++;
        n--;
      } else if (state == KG_UTF8_VALID) {
        bytes++;
        n--;
        stream->n_partial = 0;
        if (append(stream, stream->partial, length)) return;
      } else { /* invalid before this byte, which starts something new */
        stream->n_partial = 0;
        if (append(stream, replacement, REPLACEMENT_SIZE)) return;
      }
      continue;
    }
    const kg_utf8_state state = kg_utf8_next(bytes, n, &code_point, &length);
    if (state == KG_UTF8_PARTIAL) {
      memcpy(stream->partial, bytes, length);
      stream->n_partial = length;
    } else if (append(stream, state == KG_UTF8_VALID ? bytes : replacement,
                      state == KG_UTF8_VALID ? length : REPLACEMENT_SIZE)) {
      return;
    }
    bytes += length; /* bounded: length <= n */
    n -= length;
  }
}

/* Show all but the last n_held bytes. */
static kg_string show(kg_stream *stream, size_t n_held)
{
  const size_t from = stream->n_shown;
  stream->n_shown = stream->text.size - n_held;
  return (kg_string){stream->text.data ? stream->text.data + from : "", stream->n_shown - from};
}

int kg_stream_add(kg_stream *stream, int32_t id, kg_string *text, kg_error *err)
{
  int rc = kg_tokenizer_check_id(stream->tokenizer, id, err);
  if (rc) return rc;
  if (stream->is_finished) return kg_fail(err, KG_ERR_ARGUMENT, "the stream is finished");
  *text = (kg_string){"", 0};
  if (stream->reason != KG_STREAM_OPEN) return KG_OK;
  if (kg_tokenizer_is_end(stream->tokenizer, id)) {
    stream->reason = KG_STREAM_END;
    return KG_OK;
  }
  bool after_special = stream->after_special;
  const kg_string piece = kg_tokenizer_piece(stream->tokenizer, id, stream->flags, &after_special);
  if ((rc = reserve(stream, stream->n_partial + piece.size, err))) return rc; /* bounded: 3 and 2^32 at most */
  stream->after_special = after_special;
  take(stream, piece.data, piece.size);

  size_t n_held = 0;
  for (size_t k = 0; k < stream->n_stops && stream->reason == KG_STREAM_OPEN; k++)
    if (stream->stops[k].matched > n_held) n_held = stream->stops[k].matched;
  *text = show(stream, n_held);
  return KG_OK;
}

int kg_stream_finish(kg_stream *stream, kg_string *text, kg_error *err)
{
  const int rc = reserve(stream, stream->n_partial, err);
  if (rc) return rc;
  if (stream->n_partial && stream->reason != KG_STREAM_STOP) append(stream, replacement, REPLACEMENT_SIZE);
  stream->n_partial = 0;
  stream->is_finished = true;
  if (stream->reason == KG_STREAM_OPEN) stream->reason = KG_STREAM_LENGTH;
  *text = show(stream, 0);
  return KG_OK;
}

kg_stream_reason kg_stream_get_reason(const kg_stream *stream) { return stream->reason; }

kg_string kg_stream_text(const kg_stream *stream)
{
  return (kg_string){stream->text.data ? stream->text.data : "", stream->n_shown};
}
