#include "follow.h"

#include "alloc.h"
#include "error.h"

typedef struct follower {
  kg_companion base;
  kg_stream *stream; /* one reference */
  size_t n_before;   /* ids that it had when it was attached */
} follower;

/* Takes a reference. */
static int create(kg_stream *stream, size_t n_before, kg_companion **out, kg_error *err)
{
  follower *made = kg_alloc_array(1, sizeof *made);
  if (!made) return kg_fail_memory(err, sizeof *made, "a stream that follows");
  made->base.ops = &kg_follow_companion;
  made->stream = kg_stream_ref(stream);
  made->n_before = n_before;
  kg_stream_set_following(stream, true);
  *out = &made->base;
  return KG_OK;
}

static void release(kg_companion *companion)
{
  follower *self = (follower *)companion;
  kg_stream_set_following(self->stream, false);
  kg_stream_free(self->stream);
  kg_free(self);
}

/* bounded: tokens in memory */
static size_t count_at(const follower *self, int32_t pos) { return self->n_before + (size_t)(pos - self->base.from); }

static int feed(kg_companion *companion, int32_t pos, const int32_t *ids, size_t n, kg_error *err)
{
  (void)pos;
  return kg_stream_feed(((follower *)companion)->stream, ids, n, err);
}

static void undo(kg_companion *companion, int32_t pos)
{
  follower *self = (follower *)companion;
  kg_stream_take_back(self->stream, count_at(self, pos));
}

static void rewind_to(kg_companion *companion, int32_t pos)
{
  follower *self = (follower *)companion;
  kg_stream_rewind(self->stream, count_at(self, pos));
}

static int copy(const kg_companion *companion, kg_companion **out, kg_error *err)
{
  const follower *self = (const follower *)companion;
  kg_stream *twin;
  int status = kg_stream_copy(self->stream, &twin, err);
  if (status) return status;
  status = create(twin, self->n_before, out, err);
  kg_stream_free(twin);
  return status;
}

static void swap(kg_companion *companion, kg_companion *other)
{
  kg_stream_swap(((follower *)companion)->stream, ((follower *)other)->stream);
}

static int save(const kg_companion *companion, kg_bytes *out, kg_error *err)
{
  const follower *self = (const follower *)companion;
  return kg_stream_save(self->stream, self->n_before, out, err);
}

static int load(const kg_companion_source *source, kg_companion **out, kg_error *err)
{
  kg_stream *stream;
  if (!source->tokenizer)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "a stream follows, and the model has no tokenizer here");
  const int32_t *ids = source->ids + source->from; /* bounded: at most n_ids */
  int status =
      kg_stream_load(source->tokenizer, source->bytes, ids, (size_t)(source->n_ids - source->from), &stream, err);
  if (status) return status;
  status = create(stream, 0, out, err);
  kg_stream_free(stream);
  return status;
}

const kg_companion_ops kg_follow_companion = {.name = "stream",
                                              .feed = feed,
                                              .undo = undo,
                                              .rewind = rewind_to,
                                              .copy = copy,
                                              .swap = swap,
                                              .free = release,
                                              .save = save,
                                              .load = load};

int kg_sequence_attach_stream(kg_sequence *sequence, kg_stream *stream, kg_error *err)
{
  kg_companion *companion;
  if (kg_stream_is_following(stream)) return kg_fail(err, KG_ERR_ARGUMENT, "the stream follows a sequence already");
  int status = create(stream, kg_stream_count(stream), &companion, err);
  if (status) return status;
  status = kg_sequence_attach_take(sequence, companion, err);
  if (status) release(companion);
  return status;
}

int kg_sequence_detach_stream(kg_sequence *sequence, kg_stream *stream, kg_error *err)
{
  kg_companion *companion = NULL;
  do companion = kg_sequence_find_companion(sequence, &kg_follow_companion, companion);
  while (companion && ((follower *)companion)->stream != stream);
  if (!companion) return kg_fail(err, KG_ERR_ARGUMENT, "the stream does not follow this sequence");
  return kg_sequence_detach(sequence, companion, err);
}

kg_stream *kg_sequence_stream(const kg_sequence *sequence, size_t i)
{
  const kg_companion *companion = NULL;
  do companion = kg_sequence_find_companion(sequence, &kg_follow_companion, companion);
  while (companion && i--);
  return companion ? ((const follower *)companion)->stream : NULL;
}
