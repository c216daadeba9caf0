/* follow.h - streams that follow a sequence: each token of the timeline goes to them, and they go where it goes. */
#ifndef KG_FOLLOW_H
#define KG_FOLLOW_H

#include "companion.h"
#include "stream.h"

extern const kg_companion_ops kg_follow_companion;

/* Feed the stream from now on with what is appended to the sequence, and take it along. The sequence takes a reference;
 * KG_ERR_ARGUMENT where the stream follows one already. What a rewind lets go of is as it was when it was attached. */
int kg_sequence_attach_stream(kg_sequence *sequence, kg_stream *stream, kg_error *err);
/* KG_ERR_ARGUMENT: it does not follow this sequence. */
int kg_sequence_detach_stream(kg_sequence *sequence, kg_stream *stream, kg_error *err);
/* The i-th stream (0-based) in order of attachment, borrowed; NULL: there are no more. */
kg_stream *kg_sequence_stream(const kg_sequence *sequence, size_t i);

#endif
