/* answers.h - what is asked about rows of numbers on a device: together, with one wait for all. Belongs to a stream. */
#ifndef KG_CUDA_ANSWERS_H
#define KG_CUDA_ANSWERS_H

#include "vector_ops.h"

typedef struct kg_answers kg_answers;

/* What is known about a row. */
typedef struct kg_known {
  unsigned asked; /* KG_ASK_* of what is there, as long as the row stays as it is */
  int32_t k;      /* of KG_ASK_TOP: how many */
  kg_answer answer;
} kg_known;

typedef struct kg_question {
  const float *x;  /* device */
  unsigned asked;  /* KG_ASK_* */
  int32_t k;       /* of KG_ASK_TOP */
  kg_known *known; /* takes the answers */
} kg_question;

enum { KG_QUESTIONS_MAX = 256 };

/* Room for so many rows, at most KG_LOOK_ROWS, on the device. */
int kg_answers_room(kg_stream *stream, int64_t n_rows, const kg_vector_room **out, kg_error *err);
/* Enqueue the questions, at most KG_QUESTIONS_MAX, about rows of n numbers; see kg_cuda_look. */
int kg_answers_ask(kg_stream *stream, const kg_question *questions, int32_t n_questions, int64_t n, kg_error *err);
/* The stream has been waited for: what the same questions have as answers. */
void kg_answers_take(const kg_stream *stream, const kg_question *questions, int32_t n_questions);
void kg_answers_free(kg_answers *answers); /* NULL allowed */

#endif
