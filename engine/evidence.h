/* evidence.h - what shows that a device computes with the weights of the file: asked of the device and its driver, not
 * of our own books. Backends that compute on the host tell nothing: KG_ERR_UNSUPPORTED. */
#ifndef KG_EVIDENCE_H
#define KG_EVIDENCE_H

#include "model.h"

int kg_model_device_info(const kg_model *model, kg_device_info *out, kg_error *err);
int kg_model_device_rates(const kg_model *model, kg_device_rates *out, kg_error *err);
/* From now on the device itself times every run (kg_model_stats.n_timed and timed_s), or no more. */
int kg_model_set_timing(kg_model *model, bool on, kg_error *err);

typedef struct kg_weights_check {
  int32_t n_weights;
  int64_t n_bytes;     /* compared: of the file where the device holds its bytes, of floats where it holds values */
  uint64_t device_sum; /* checksum of what came back from the device */
  uint64_t file_sum;   /* the same of the file */
  int32_t differs;     /* the first weight that is not the file's, or KG_NONE */
} kg_weights_check;

/* Bring every weight back from the device and compare it with the file, byte by byte, up to the first that differs;
 * checksums go over the same bytes. Takes about three seconds for 1 GB. */
int kg_model_check_weights(kg_model *model, kg_weights_check *out, kg_error *err);

/* Turn bits of one byte of a weight as the device holds it, for tests. */
int kg_model_flip_weight(kg_model *model, const char *name, size_t at, unsigned char mask, kg_error *err);

#endif
