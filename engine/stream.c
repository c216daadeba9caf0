#include "stream.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "bytes.h"
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

/* All that ids change, but for the bytes of text, which only grow: what a stop string cuts away stays behind the text
 * until the stream goes another way. How much of each stop string matches follows from the end of the text. */
typedef struct moment {
  size_t size;     /* text, always whole characters: what is shown, then what is held back */
  uint32_t n_held; /* bytes at the end that may become a stop string */
  uint32_t n_cut;  /* bytes behind the text: the stop string that ended it */
  char partial[4]; /* the start of a character whose rest has not come; at most 3 bytes */
  uint8_t n_partial, reason;
  bool after_special, is_finished;
} moment;

struct kg_stream {
  int32_t n_refs;
  kg_tokenizer *tokenizer; /* one reference */
  stop_string *stops;
  size_t n_stops;
  unsigned flags; /* KG_DECODE_* */
  bool is_following;
  kg_bytes text;  /* size: of the state and of what it has cut */
  size_t n_read;  /* bytes handed out */
  moment now;
  moment *log; /* [n_added + 1] the state when so many ids had just been added; `now` may be finished since */
  size_t n_added, log_capacity;
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

/* Room for one entry of the log and n more bytes, each of which may turn into U+FFFD: afterwards nothing can fail. */
static int reserve(kg_stream *stream, size_t n, kg_error *err)
{
  const size_t n_log = stream->n_added + 2; /* bounded: each was added by itself */
  size_t need;
  if (kg_mul_size(n, REPLACEMENT_SIZE, &need) && kg_add_size(need, stream->now.size, &need) &&
      kg_grow((void **)&stream->text.data, &stream->text.capacity, need, 1) &&
      kg_grow((void **)&stream->log, &stream->log_capacity, n_log, sizeof *stream->log))
    return KG_OK;
  return kg_fail_memory(err, n, "the text of a stream");
}

int kg_stream_new(kg_tokenizer *tokenizer, const kg_string *stops, size_t n_stops, kg_stream **out, kg_error *err)
{
  kg_stream *stream = kg_alloc_array(1, sizeof *stream);
  if (!stream) return kg_fail_memory(err, sizeof *stream, "a stream");
  stream->n_refs = 1;
  stream->tokenizer = kg_tokenizer_ref(tokenizer);
  stream->now = (moment){.after_special = true};
  int rc = KG_OK;
  stream->stops = kg_alloc_array(n_stops, sizeof *stream->stops);
  if (!stream->stops) rc = kg_fail_memory(err, n_stops * sizeof *stream->stops, "stop strings");
  for (size_t i = 0; i < n_stops && !rc; i++) {
    stream->n_stops++;
    rc = stop_init(&stream->stops[i], stops[i], err);
  }
  if (!rc) rc = reserve(stream, 0, err);
  if (rc) {
    kg_stream_free(stream);
    return rc;
  }
  stream->log[0] = stream->now;
  *out = stream;
  return KG_OK;
}

kg_stream *kg_stream_ref(kg_stream *stream)
{
  stream->n_refs++;
  return stream;
}

void kg_stream_free(kg_stream *stream)
{
  if (!stream || --stream->n_refs) return;
  for (size_t i = 0; i < stream->n_stops; i++) {
    kg_free(stream->stops[i].bytes);
    kg_free(stream->stops[i].borders);
  }
  kg_free(stream->stops);
  kg_free(stream->log);
  kg_bytes_deinit(&stream->text);
  kg_tokenizer_free(stream->tokenizer);
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
  if (!kg_grow((void **)&copy->text.data, &copy->text.capacity, stream->text.size, 1) ||
      !kg_grow((void **)&copy->log, &copy->log_capacity, stream->n_added + 1, sizeof *copy->log)) {
    kg_stream_free(copy);
    return kg_fail_memory(err, stream->text.size, "the text of a stream");
  }
  for (size_t i = 0; i < stream->n_stops; i++) copy->stops[i].matched = stream->stops[i].matched;
  if (stream->text.size) memcpy(copy->text.data, stream->text.data, stream->text.size);
  memcpy(copy->log, stream->log, (stream->n_added + 1) * sizeof *copy->log); /* bounded: there was room */
  copy->text.size = stream->text.size;
  copy->n_read = stream->n_read;
  copy->now = stream->now;
  copy->n_added = stream->n_added;
  copy->flags = stream->flags;
  *out = copy;
  return KG_OK;
}

void kg_stream_swap(kg_stream *stream, kg_stream *other)
{
  const kg_stream was = *stream;
  *stream = *other;
  *other = was;
  other->n_refs = stream->n_refs; /* these belong to the place */
  stream->n_refs = was.n_refs;
  other->is_following = stream->is_following;
  stream->is_following = was.is_following;
}

int kg_stream_follow(kg_stream *stream, int32_t id, kg_error *err)
{
  const int rc = kg_tokenizer_check_id(stream->tokenizer, id, err);
  if (!rc) kg_tokenizer_piece(stream->tokenizer, id, 0, &stream->now.after_special);
  stream->log[0] = stream->now;
  return rc;
}

void kg_stream_spell_control(kg_stream *stream) { stream->flags |= KG_DECODE_CONTROL; }

void kg_stream_set_following(kg_stream *stream, bool is_following) { stream->is_following = is_following; }
bool kg_stream_is_following(const kg_stream *stream) { return stream->is_following; }

/* ---- text ---- */

/* Append one whole character. True when a stop string is complete; the text then ends before it. Of several that end
 * here the longest counts, so that the cut does not depend on how the text was split into tokens. */
static bool append(kg_stream *stream, const char *bytes, size_t n)
{
  size_t cut = 0;
  for (size_t i = 0; i < n; i++) {
    stream->text.data[stream->now.size++] = bytes[i];
    for (size_t k = 0; k < stream->n_stops; k++)
      if (stop_step(&stream->stops[k], bytes[i]) && stream->stops[k].size > cut) cut = stream->stops[k].size;
  }
  stream->text.size = stream->now.size;
  if (!cut) return false;
  stream->now.size -= cut;
  stream->now.n_cut = (uint32_t)cut;
  stream->now.reason = KG_STREAM_STOP;
  stream->now.n_partial = 0;
  return true;
}

/* Take the bytes apart into characters; an incomplete one at the end waits in `partial`. Room was reserved. */
static void take(kg_stream *stream, const char *bytes, size_t n)
{
  moment *now = &stream->now;
  while (n) {
    uint32_t code_point;
    size_t length;
    if (now->n_partial) { /* one byte more, then judge again */
      now->partial[now->n_partial++] = *bytes;
      const kg_utf8_state state = kg_utf8_next(now->partial, now->n_partial, &code_point, &length);
      if (state == KG_UTF8_PARTIAL) {
        bytes++;
        n--;
      } else if (state == KG_UTF8_VALID) {
        bytes++;
        n--;
        now->n_partial = 0;
        if (append(stream, now->partial, length)) return;
      } else { /* invalid before this byte, which starts something new */
        now->n_partial = 0;
        if (append(stream, replacement, REPLACEMENT_SIZE)) return;
      }
      continue;
    }
    const kg_utf8_state state = kg_utf8_next(bytes, n, &code_point, &length);
    if (state == KG_UTF8_PARTIAL) {
      memcpy(now->partial, bytes, length);
      now->n_partial = (uint8_t)length;
    } else if (append(stream, state == KG_UTF8_VALID ? bytes : replacement,
                      state == KG_UTF8_VALID ? length : REPLACEMENT_SIZE)) {
      return;
    }
    bytes += length; /* bounded: length <= n */
    n -= length;
  }
}

/* How much of the end may become a stop string. */
static uint32_t held(const kg_stream *stream)
{
  size_t n_held = 0;
  for (size_t k = 0; k < stream->n_stops; k++)
    if (stream->stops[k].matched > n_held) n_held = stream->stops[k].matched;
  return (uint32_t)n_held; /* a part of a stop string */
}

static bool is_open(const kg_stream *stream) { return stream->now.reason == KG_STREAM_OPEN; }

/* Take the next id; one that comes after the end is only counted. */
static int advance(kg_stream *stream, int32_t id, kg_error *err)
{
  moment *now = &stream->now;
  int rc = kg_tokenizer_check_id(stream->tokenizer, id, err);
  if (rc) return rc;
  bool after_special = now->after_special;
  kg_string piece = {"", 0};
  const bool is_end = kg_tokenizer_is_end(stream->tokenizer, id);
  if (is_open(stream) && !is_end) piece = kg_tokenizer_piece(stream->tokenizer, id, stream->flags, &after_special);
  if ((rc = reserve(stream, now->n_partial + piece.size, err))) return rc; /* bounded: 3 and 2^32 at most */
  if (is_open(stream) && is_end)
    now->reason = KG_STREAM_END;
  else if (is_open(stream)) {
    now->after_special = after_special;
    take(stream, piece.data, piece.size);
  }
  now->n_held = is_open(stream) ? held(stream) : now->reason == KG_STREAM_STOP ? 0 : now->n_held;
  stream->log[++stream->n_added] = *now;
  return KG_OK;
}

int kg_stream_feed(kg_stream *stream, const int32_t *ids, size_t n, kg_error *err)
{
  const size_t n_before = stream->n_added;
  int rc = KG_OK;
  for (size_t i = 0; i < n && !rc; i++) rc = advance(stream, ids[i], err);
  if (rc) kg_stream_take_back(stream, n_before);
  return rc;
}

int kg_stream_add(kg_stream *stream, int32_t id, kg_string *text, kg_error *err)
{
  if (stream->is_following)
    return kg_fail(err, KG_ERR_ARGUMENT, "the stream follows a sequence: what is pushed there comes here by itself");
  if (stream->now.is_finished) return kg_fail(err, KG_ERR_ARGUMENT, "the stream is finished");
  const int rc = advance(stream, id, err);
  if (!rc) *text = kg_stream_read(stream);
  return rc;
}

int kg_stream_finish(kg_stream *stream, kg_string *text, kg_error *err)
{
  moment *now = &stream->now;
  const int rc = reserve(stream, now->n_partial, err);
  if (rc) return rc;
  if (now->n_partial && now->reason != KG_STREAM_STOP) append(stream, replacement, REPLACEMENT_SIZE);
  now->n_partial = 0;
  now->n_held = 0;
  now->is_finished = true;
  if (is_open(stream)) now->reason = KG_STREAM_LENGTH;
  *text = kg_stream_read(stream);
  return KG_OK;
}

/* ---- going back ---- */

/* The state when n ids had been added. */
static void go_to(kg_stream *stream, const moment *to)
{
  stream->now = *to;
  stream->text.size = to->size + to->n_cut; /* bounded: both are bytes of the text */
  for (size_t k = 0; k < stream->n_stops; k++) { /* a proper part of it can match: look at as many bytes */
    stop_string *stop = &stream->stops[k];
    stop->matched = 0;
    const size_t first = to->size < stop->size ? 0 : to->size - stop->size + 1; /* bounded: not above the size */
    for (size_t i = first; i < to->size; i++)
      stop_step(stop, stream->text.data[i]);
  }
}

void kg_stream_rewind(kg_stream *stream, size_t n)
{
  assert(n <= stream->n_added);
  stream->n_added = n;
  go_to(stream, &stream->log[n]);
  const size_t n_shown = stream->now.size - stream->now.n_held;
  if (stream->n_read > n_shown) stream->n_read = n_shown; /* what was read of what is no more */
}

void kg_stream_take_back(kg_stream *stream, size_t n)
{
  assert(n <= stream->n_added);
  stream->n_added = n;
  if (!stream->now.is_finished) go_to(stream, &stream->log[n]); /* else they were only counted */
}

/* ---- questions ---- */

size_t kg_stream_count(const kg_stream *stream) { return stream->n_added; }

kg_stream_reason kg_stream_get_reason(const kg_stream *stream) { return (kg_stream_reason)stream->now.reason; }

kg_string kg_stream_text(const kg_stream *stream)
{
  return (kg_string){stream->text.data ? stream->text.data : "", stream->now.size - stream->now.n_held};
}

kg_string kg_stream_read(kg_stream *stream)
{
  const kg_string shown = kg_stream_text(stream);
  const size_t from = stream->n_read;
  stream->n_read = shown.size;
  return (kg_string){shown.data + from, shown.size - from};
}

/* ---- files ---- */

/* What is saved of a moment, and what happened since: all that does not follow from the ids. */
typedef struct saved {
  uint64_t n_stops, text_size, n_read;
  int64_t n_to_finish; /* ids from then on until it was finished; -1: it is open */
  uint32_t flags;
  uint8_t partial[4], n_partial, reason, after_special, is_finished;
  uint8_t unused[4];
} saved;

_Static_assert(sizeof(saved) == 48, "no gaps: it is written as it stands in memory");

/* After how many ids the stream was finished. */
static size_t count_when_finished(const kg_stream *stream)
{
  size_t n = stream->n_added;
  while (n && stream->log[n].is_finished) n--;
  return n;
}

int kg_stream_save(const kg_stream *stream, size_t n, kg_bytes *out, kg_error *err)
{
  const moment *then = &stream->log[n];
  saved head = {.n_stops = stream->n_stops,
                .text_size = then->size,
                .n_read = stream->n_read,
                .n_to_finish = -1,
                .flags = stream->flags,
                .n_partial = then->n_partial,
                .reason = then->reason,
                .after_special = then->after_special,
                .is_finished = then->is_finished};
  memcpy(head.partial, then->partial, then->n_partial);
  if (stream->now.is_finished && !then->is_finished) head.n_to_finish = (int64_t)(count_when_finished(stream) - n);
  int rc = kg_bytes_append(out, &head, sizeof head, err);
  for (size_t i = 0; i < stream->n_stops && !rc; i++) {
    const uint64_t size = stream->stops[i].size;
    rc = kg_bytes_append(out, &size, sizeof size, err);
    if (!rc) rc = kg_bytes_append(out, stream->stops[i].bytes, stream->stops[i].size, err);
  }
  return rc ? rc : kg_bytes_append(out, stream->text.data, then->size, err);
}

static int fail_load(kg_error *err) { return kg_fail(err, KG_ERR_FORMAT, "a saved stream is malformed"); }

static int load_stops(const saved *head, kg_string *from, kg_string **out, kg_error *err)
{
  if (head->n_stops > from->size) return fail_load(err); /* each takes more than a byte */
  kg_string *stops = kg_alloc_array((size_t)head->n_stops, sizeof *stops);
  if (!stops) return kg_fail_memory(err, (size_t)head->n_stops * sizeof *stops, "stop strings");
  *out = stops;
  for (size_t i = 0; i < head->n_stops; i++) {
    uint64_t size;
    if (!kg_take_into(from, &size, sizeof size)) return fail_load(err);
    stops[i] = (kg_string){kg_take(from, size), (size_t)size};
    if (!stops[i].data || !size || !kg_utf8_is_valid(stops[i].data, stops[i].size)) return fail_load(err);
  }
  return KG_OK;
}

/* The moment that it was saved from. */
static int load_moment(kg_stream *stream, const saved *head, kg_string text, kg_error *err)
{
  uint32_t code_point;
  size_t length = 0;
  const char *partial = (const char *)head->partial;
  if (!kg_utf8_is_valid(text.data, text.size) || head->n_partial > 3 || head->reason > KG_STREAM_LENGTH ||
      (head->is_finished && head->reason == KG_STREAM_OPEN) || head->n_read > SIZE_MAX)
    return fail_load(err);
  if (head->n_partial && (kg_utf8_next(partial, head->n_partial, &code_point, &length) != KG_UTF8_PARTIAL ||
                          length != head->n_partial || head->reason == KG_STREAM_STOP))
    return fail_load(err);
  if (!kg_grow((void **)&stream->text.data, &stream->text.capacity, text.size, 1))
    return kg_fail_memory(err, text.size, "the text of a stream");
  if (text.size) memcpy(stream->text.data, text.data, text.size);
  moment then = {.size = text.size, .n_partial = head->n_partial, .reason = head->reason,
                 .after_special = head->after_special, .is_finished = head->is_finished};
  memcpy(then.partial, head->partial, sizeof then.partial);
  go_to(stream, &then);
  if (then.reason != KG_STREAM_STOP && !then.is_finished) stream->now.n_held = held(stream);
  stream->log[0] = stream->now;
  stream->flags = head->flags & KG_DECODE_CONTROL;
  return KG_OK;
}

/* What came since. */
static int replay(kg_stream *stream, const saved *head, const int32_t *ids, size_t n_ids, kg_error *err)
{
  kg_string text;
  size_t n = n_ids;
  if (head->n_to_finish >= 0) n = (size_t)head->n_to_finish;
  if (n > n_ids) return fail_load(err);
  int rc = kg_stream_feed(stream, ids, n, err);
  if (!rc && head->n_to_finish >= 0) rc = kg_stream_finish(stream, &text, err);
  if (!rc) rc = kg_stream_feed(stream, ids + n, n_ids - n, err); /* bounded: see above */
  const size_t n_shown = kg_stream_text(stream).size;
  stream->n_read = head->n_read < n_shown ? (size_t)head->n_read : n_shown;
  return rc;
}

int kg_stream_load(kg_tokenizer *tokenizer, kg_string bytes, const int32_t *ids, size_t n_ids, kg_stream **out,
                   kg_error *err)
{
  saved head;
  kg_string *stops = NULL;
  kg_stream *stream = NULL;
  if (!kg_take_into(&bytes, &head, sizeof head)) return fail_load(err);
  int rc = load_stops(&head, &bytes, &stops, err);
  if (!rc && bytes.size != head.text_size) rc = fail_load(err);
  if (!rc) rc = kg_stream_new(tokenizer, stops, (size_t)head.n_stops, &stream, err);
  if (!rc) rc = load_moment(stream, &head, bytes, err);
  if (!rc) rc = replay(stream, &head, ids, n_ids, err);
  kg_free(stops);
  if (rc)
    kg_stream_free(stream);
  else
    *out = stream;
  return rc;
}
