/* stream.h - from sampled ids to text: bytes are held back until they are whole UTF-8 and no half of a stop string. A
 * stream remembers the state behind every id, and goes back to any of them exactly. */
#ifndef KG_STREAM_H
#define KG_STREAM_H

#include "kigo.h"

typedef struct kg_stream kg_stream;

typedef enum kg_stream_reason { KG_STREAM_OPEN, KG_STREAM_STOP, KG_STREAM_END, KG_STREAM_LENGTH } kg_stream_reason;

/* Takes a reference to the tokenizer. Stop strings are copied; they must be UTF-8 and not empty. */
int kg_stream_new(kg_tokenizer *tokenizer, const kg_string *stops, size_t n_stops, kg_stream **out, kg_error *err);
kg_stream *kg_stream_ref(kg_stream *stream);
void kg_stream_free(kg_stream *stream); /* gives one reference back */

/* Say, before the first id, which token stands before it (the last of the prompt). SentencePiece writes a space before
 * every word: without this the stream starts a text and takes the first one away, after a token of ordinary text it
 * goes on with that text and leaves it. */
int kg_stream_follow(kg_stream *stream, int32_t id, kg_error *err);

/* Say, before the first id, that control tokens are shown as they are spelled; otherwise they are left out. */
void kg_stream_spell_control(kg_stream *stream);

/* Add one id; *text (borrowed until the next call) is what may be shown now, maybe empty. Invalid UTF-8 that no later
 * byte can complete is passed on as U+FFFD, one per maximal invalid part. An end token sets the reason to END, a
 * complete stop string to STOP (the stop string and what follows are not shown). Ids after that are ignored.
 * KG_ERR_ARGUMENT where the stream is finished, or follows a sequence. */
int kg_stream_add(kg_stream *stream, int32_t id, kg_string *text, kg_error *err);
/* Add ids, all or none, also to one that follows or is finished (which only counts them). What may be shown is left to
 * kg_stream_read. */
int kg_stream_feed(kg_stream *stream, const int32_t *ids, size_t n, kg_error *err);
/* What may be shown and was not given out yet (by any function); borrowed until the next call. */
kg_string kg_stream_read(kg_stream *stream);
/* Let go of what was held back; afterwards the stream is closed to new ids. What ended without a stop string or an end
 * token was cut at a length: the reason is LENGTH then. */
int kg_stream_finish(kg_stream *stream, kg_string *text, kg_error *err);
kg_stream_reason kg_stream_get_reason(const kg_stream *stream);
/* Everything shown so far. */
kg_string kg_stream_text(const kg_stream *stream);

size_t kg_stream_count(const kg_stream *stream); /* ids that were added */
/* Back to when n ids had just been added, n <= kg_stream_count. What was read is not read again. */
void kg_stream_rewind(kg_stream *stream, size_t n);
/* Take back the last kg_stream_feed, before which n ids had been added, and nothing else. */
void kg_stream_take_back(kg_stream *stream, size_t n);
/* A stream in the same state that follows nothing. */
int kg_stream_copy(const kg_stream *stream, kg_stream **out, kg_error *err);
/* Exchange two streams' contents; references and whom they follow stay. */
void kg_stream_swap(kg_stream *stream, kg_stream *other);
/* Bytes that make a stream which goes on as this one from when it had n ids; and one from such bytes, of the same
 * tokenizer, after the ids that came then. KG_ERR_FORMAT: the bytes say no stream. */
int kg_stream_save(const kg_stream *stream, size_t n, kg_bytes *out, kg_error *err);
int kg_stream_load(kg_tokenizer *tokenizer, kg_string bytes, const int32_t *ids, size_t n_ids, kg_stream **out,
                   kg_error *err);
/* Whether a sequence feeds it (follow.h). */
bool kg_stream_is_following(const kg_stream *stream);
void kg_stream_set_following(kg_stream *stream, bool is_following);

#endif
