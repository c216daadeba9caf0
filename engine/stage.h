/* stage.h - the stages of a sampler chain as they are given, and the same for devices. What each does, with its source
 * and the ranges of its parameters, stands in draw.h. */
#ifndef KG_STAGE_H
#define KG_STAGE_H

#include "draw.h"
#include "dry.h"

typedef enum kg_sampler_stage kg_stage_kind;

/* A bias for the last of n >= 2 ids, where the timeline ends with the others. */
typedef struct kg_phrase {
  const int32_t *ids;
  int32_t n;
  float value;
} kg_phrase;

/* A stage uses the fields of its kind. Pointers are borrowed for the length of a call, but in a copy. */
typedef struct kg_stage {
  kg_stage_kind kind;
  float value;                        /* temperature, top-p, min-p, typical, top-n-sigma */
  int32_t k;                          /* top-k */
  int32_t last_n;                     /* penalties, DRY: history length; -1: all */
  float repeat, frequency, presence;  /* penalties */
  const int32_t *bias_ids;            /* bias */
  const float *bias_values;
  int32_t n_bias;
  const kg_phrase *phrases;
  int32_t n_phrases;
  float probability, threshold;       /* XTC */
  float low, high, exponent;          /* dynamic temperature */
  float multiplier, base;             /* DRY */
  int32_t allowed;
  const kg_string *breakers;
  int32_t n_breakers;                 /* none without a tokenizer */
  kg_tokenizer *tokenizer;
  float tau, eta;                     /* mirostat */
} kg_stage;

const char *kg_stage_name(kg_stage_kind kind);

/* Check every parameter; the error names stage and parameter. */
int kg_stages_check(const kg_stage *stages, size_t n, kg_error *err);
/* Copies with all that they point to, and a reference of each tokenizer. */
int kg_stages_copy(const kg_stage *stages, size_t n, kg_stage **out, kg_error *err);
void kg_stages_free(kg_stage *stages, size_t n);

/* The same for devices; *is_plain is false where they cannot run it. Zero-initialised storage, and
 * kg_draw_program_deinit also after a failure. */
int kg_draw_program_init(kg_draw_program *program, const kg_stage *stages, size_t n, bool *is_plain, kg_error *err);
void kg_draw_program_deinit(kg_draw_program *program);

#endif
