#include "answers.h"

#include <string.h>

#include "buffer.h"
#include "host.h"

struct kg_answers {
  void *there; /* what room points into */
  kg_vector_room room;
  int32_t n_rows;  /* of the room */
  kg_answer *mail; /* [n_mail], pinned: the device writes to it */
  int32_t n_mail;
};

void kg_answers_free(kg_answers *answers)
{
  if (!answers) return;
  (void)cudaFree(answers->there);
  (void)cudaFreeHost(answers->mail);
  (void)cudaGetLastError();
  kg_free(answers);
}

/* ---- room: one row at first, then a few, then as many as there can be ---- */

static int64_t rounded(int64_t n, int64_t most) { return n <= 1 ? 1 : n <= 8 ? 8 : most; }

static int open_answers(kg_stream *stream, kg_error *err)
{
  if (stream->answers) return KG_OK;
  stream->answers = kg_alloc_array(1, sizeof *stream->answers);
  return stream->answers ? KG_OK : kg_fail_memory(err, sizeof *stream->answers, "operations on tensors");
}

int kg_answers_room(kg_stream *stream, int64_t n_rows, const kg_vector_room **out, kg_error *err)
{
  int code = open_answers(stream, err);
  if (code) return code;
  kg_answers *a = stream->answers;
  *out = &a->room;
  if (n_rows <= a->n_rows) return KG_OK;
  n_rows = rounded(n_rows, KG_LOOK_ROWS);
  const size_t rows = (size_t)n_rows, parts = rows * KG_REDUCE_PARTS * sizeof(kg_reduced);
  const size_t exponents = rows * (KG_REDUCE_PARTS + 1) * sizeof(kg_exponents),
               best = rows * KG_DRAW_GROUPS * sizeof(kg_rank);
  const size_t counters = KG_LOOK_ROWS * sizeof(unsigned);
  void *there;
  code = kg_cuda_alloc(counters + parts + exponents + best, "operations on tensors", &there, err);
  if (code) return code;
  code = kg_cuda_check(cudaMemsetAsync(there, 0, counters, stream->handle), "clearing", err);
  if (!code) code = kg_stream_wait(stream, "operations on tensors", err); /* for what uses the room that there is */
  (void)cudaFree(code ? there : a->there);
  if (code) return code;
  unsigned char *at = a->there = there;
  a->n_rows = (int32_t)n_rows;
  a->room.arrived = there;
  a->room.parts = (kg_reduced *)(at += counters);
  a->room.exponents = (kg_exponents *)(at += parts);
  a->room.best = (kg_rank *)(at + exponents);
  return KG_OK;
}

static int reserve_mail(kg_stream *stream, int32_t n, kg_error *err)
{
  kg_answers *a = stream->answers;
  if (n <= a->n_mail) return KG_OK;
  n = (int32_t)rounded(n, n <= KG_LOOK_ROWS ? KG_LOOK_ROWS : KG_QUESTIONS_MAX);
  void *mail;
  int code = kg_cuda_check(cudaMallocHost(&mail, (size_t)n * sizeof *a->mail), "pinned memory for answers", err);
  if (code) return code;
  code = kg_stream_wait(stream, "answers", err);
  (void)cudaFreeHost(code ? mail : a->mail);
  if (code) return code;
  a->mail = mail;
  a->n_mail = n;
  return KG_OK;
}

/* ---- asking ---- */

/* Those who ask the same as question `first`, from there on, that are not done yet. */
static int ask_alike(kg_stream *stream, const kg_question *questions, int32_t n_questions, int32_t first, int64_t n,
                     bool *done, const kg_vector_room *room, kg_error *err)
{
  kg_row_list rows;
  int32_t n_rows = 0, k = 0;
  const unsigned asked = questions[first].asked;
  for (int32_t i = first; i < n_questions && n_rows < KG_LOOK_ROWS; i++) {
    if (done[i] || questions[i].asked != asked) continue;
    rows.x[n_rows] = questions[i].x;
    rows.answer[n_rows++] = &stream->answers->mail[i];
    if (questions[i].k > k) k = questions[i].k;
    done[i] = true;
  }
  return kg_cuda_look(stream, &rows, n_rows, n, asked, k, room, err);
}

int kg_answers_ask(kg_stream *stream, const kg_question *questions, int32_t n_questions, int64_t n, kg_error *err)
{
  bool done[KG_QUESTIONS_MAX] = {false};
  const kg_vector_room *room;
  int code = kg_answers_room(stream, n_questions < KG_LOOK_ROWS ? n_questions : KG_LOOK_ROWS, &room, err);
  if (!code) code = reserve_mail(stream, n_questions, err);
  for (int32_t i = 0; i < n_questions && !code; i++)
    if (!done[i]) code = ask_alike(stream, questions, n_questions, i, n, done, room, err);
  return code;
}

void kg_answers_take(const kg_stream *stream, const kg_question *questions, int32_t n_questions)
{
  for (int32_t i = 0; i < n_questions; i++) {
    const kg_question *q = &questions[i];
    const kg_answer *mail = &stream->answers->mail[i];
    kg_known *known = q->known;
    known->asked |= q->asked;
    if (q->asked & KG_ASK_ROW) known->answer.row = mail->row;
    if (q->asked & KG_ASK_PROBS) known->answer.probs = mail->probs;
    if (!(q->asked & KG_ASK_TOP)) continue;
    known->k = q->k;
    memcpy(known->answer.index, mail->index, (size_t)q->k * sizeof *mail->index);
    memcpy(known->answer.value, mail->value, (size_t)q->k * sizeof *mail->value);
  }
}
