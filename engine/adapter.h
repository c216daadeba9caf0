/* adapter.h - low-rank adapters (LoRA) beside a model: what training has added to some of its matrices, as a product of
 * two thin ones. A row that goes through an adapted product W x gets W x + scale * alpha / rank * B (A x), where the
 * sequence that it belongs to says which adapters it wants and at which scale (sequence.h); the model's own weights
 * stay as they are.
 * The file is a GGUF with general.type "adapter", adapter.type "lora", the model's general.architecture, and
 * adapter.lora.alpha (0: rank, so that the factor is the scale alone). Beside a matrix NAME of the model with `cols`
 * inputs and `rows` outputs it has NAME.lora_a [rank][cols] and NAME.lora_b [rows][rank]; for the table of token
 * embeddings NAME.lora_a is [tokens][rank], of which a token takes a row in place of A x. Where the head reads that
 * table too (a tied one), the head stays as it is, as it does for those who write such files.
 * All of a file is checked and brought to float32 when it is opened. An open adapter knows its plan by address only, to
 * compare: it may outlive it. */
#ifndef KG_ADAPTER_H
#define KG_ADAPTER_H

#include "plan.h"
#include "sha256.h"

typedef struct kg_adapter kg_adapter;

enum { KG_ADAPTER_MAX_RANK = 4096, KG_ADAPTERS_MAX = 8 /* of one sequence */ };

/* What an adapter does to one matrix. */
typedef struct kg_adapter_part {
  int32_t rank;        /* 0: nothing */
  bool is_table;       /* of an embedding */
  int32_t cols, rows;  /* of the matrix; of a table: the tokens, the width of a row */
  float factor;        /* alpha / rank */
  const float *a;      /* [rank][cols]; of a table [cols][rank] */
  const float *b;      /* [rank][rows]: the columns of B one after the other */
} kg_adapter_part;

/* An adapter of a sequence. */
typedef struct kg_adapted {
  kg_adapter *adapter;
  float scale;         /* finite, not 0 */
} kg_adapted;

/* What a backend made of an adapter, for as long as it lives: `drop` is called when it goes, and frees this too. */
typedef struct kg_adapter_copy {
  struct kg_adapter_copy *next;
  void (*drop)(struct kg_adapter_copy *copy);
} kg_adapter_copy;

/* An open file against a finished plan; `gguf` is read here and not kept.
 * KG_ERR_FORMAT       a tensor without its other half, of a matrix that the model has not, of another shape, with a
 *                     number that is not finite; no tensors at all; metadata that is missing or says other things
 * KG_ERR_UNSUPPORTED  it adapts experts, or what is no matrix; it is another kind of adapter, or of another family */
int kg_adapter_new(const kg_plan *plan, const kg_gguf *gguf, kg_adapter **out, kg_error *err);
kg_adapter *kg_adapter_ref(kg_adapter *adapter); /* its argument */
void kg_adapter_unref(kg_adapter *adapter);      /* NULL allowed */

const kg_plan *kg_adapter_plan(const kg_adapter *adapter);
const char *kg_adapter_path(const kg_adapter *adapter);
const char *kg_adapter_name(const kg_adapter *adapter);   /* its path without folders */
/* SHA-256 of its file, KG_SHA256_HEX bytes: names its contents. */
const char *kg_adapter_digest(const kg_adapter *adapter);
double kg_adapter_alpha(const kg_adapter *adapter);
int32_t kg_adapter_rank(const kg_adapter *adapter);      /* the largest of its parts */
int32_t kg_adapter_part_count(const kg_adapter *adapter);
size_t kg_adapter_bytes(const kg_adapter *adapter);      /* in memory */
/* What it does to this operation of the plan, or NULL. */
const kg_adapter_part *kg_adapter_part_of(const kg_adapter *adapter, const kg_op *op);

void kg_adapter_attach(kg_adapter *adapter, kg_adapter_copy *copy);
void kg_adapter_detach(kg_adapter *adapter, kg_adapter_copy *copy); /* where it is attached: it is not dropped */

#endif
