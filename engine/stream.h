/* stream.h - from sampled ids to text: bytes are held back until they are whole UTF-8 and no half of a stop string. */
#ifndef KG_STREAM_H
#define KG_STREAM_H

#include "kigo.h"

typedef struct kg_stream kg_stream;

typedef enum kg_stream_reason { KG_STREAM_OPEN, KG_STREAM_STOP, KG_STREAM_END, KG_STREAM_LENGTH } kg_stream_reason;

/* The tokenizer must outlive the stream. Stop strings are copied; they must be UTF-8 and not empty. */
int kg_stream_new(const kg_tokenizer *tokenizer, const kg_string *stops, size_t n_stops, kg_stream **out,
                  kg_error *err);
void kg_stream_free(kg_stream *stream);

/* Say, before the first id, which token stands before it (the last of the prompt). SentencePiece writes a space before
 * every word: without this the stream starts a text and takes the first one away, after a token of ordinary text it
 * goes on with that text and leaves it. */
int kg_stream_follow(kg_stream *stream, int32_t id, kg_error *err);

/* Say, before the first id, that control tokens are shown as they are spelled; otherwise they are left out. */
void kg_stream_spell_control(kg_stream *stream);

/* Add one id; *text (borrowed until the next call) is what may be shown now, maybe empty. Invalid UTF-8 that no later
 * byte can complete is passed on as U+FFFD, one per maximal invalid part. An end token sets the reason to END, a
 * complete stop string to STOP (the stop string and what follows are not shown). Ids after that are ignored. */
int kg_stream_add(kg_stream *stream, int32_t id, kg_string *text, kg_error *err);
/* Let go of what was held back; afterwards the stream is closed to new ids. What ended without a stop string or an end
 * token was cut at a length: the reason is LENGTH then. */
int kg_stream_finish(kg_stream *stream, kg_string *text, kg_error *err);
kg_stream_reason kg_stream_get_reason(const kg_stream *stream);
/* Everything shown so far. */
kg_string kg_stream_text(const kg_stream *stream);
/* A copy of the state at this moment, to rewind to. */
int kg_stream_copy(const kg_stream *stream, kg_stream **out, kg_error *err);

#endif
