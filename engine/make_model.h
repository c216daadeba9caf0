/* make_model.h - model files of a known model's exact shape with random weights: for benchmarks and specs, where only
 * shapes and types matter. They load wherever the real ones do; what they say is noise. */
#ifndef KG_MAKE_MODEL_H
#define KG_MAKE_MODEL_H

#include "kigo.h"
#include "quant.h"

/* Write PATH with the shape of `like` ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b", "tiny"). Matrices are of `type`
 * (one that kg_quantize can write), vectors float32. The same seed gives the same file. `progress` (may be NULL) gets
 * "write" and the bytes of tensor data. On failure PATH is as it was. */
int kg_make_model(const char *path, const char *like, kg_type type, uint64_t seed, kg_progress progress, void *user,
                  kg_error *err);

#endif
