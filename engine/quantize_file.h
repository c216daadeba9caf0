/* quantize_file.h - a model file again with its tensors in other types. */
#ifndef KG_QUANTIZE_FILE_H
#define KG_QUANTIZE_FILE_H

#include "gguf.h"

typedef struct kg_quantize_options {
  const kg_type *types;  /* [tensors of the file], in its order; who has the type already is copied as it is */
  int32_t file_type;     /* for general.file_type, as the GGUF specification numbers mixtures */
  int32_t n_threads;     /* 0: one per available core */
  kg_progress progress;  /* may be NULL; "quantize" in bytes written */
  void *progress_user;
} kg_quantize_options;

/* Write PATH: the file's keys and tensors in their order, a split file as one. Errors name the tensor:
 * KG_ERR_UNSUPPORTED where its type cannot be read, KG_ERR_ARGUMENT where its rows are not whole blocks of the wanted
 * type, KG_ERR_FORMAT where it holds numbers that the type cannot. On failure PATH is as it was. */
int kg_quantize_file(const kg_gguf *in, const char *path, const kg_quantize_options *options, kg_error *err);

#endif
