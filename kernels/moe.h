/* moe.h - choosing experts and joining what they gave; their products are kg_cuda_linear with planes. */
#ifndef KG_CUDA_MOE_H
#define KG_CUDA_MOE_H

#include "linear.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kg_route_args {
  const float *logits;   /* [n][n_experts] */
  const float *bias;     /* [n_experts], for the choice alone, or NULL */
  int32_t n, n_experts, n_used;
  int32_t n_groups, n_groups_used, group_top; /* as in kg_moe_params */
  int32_t gate;          /* 0: softmax over all, 1: over the used ones, 2: sigmoid (kg_moe_gate) */
  bool normalize;
  float scale;
  int32_t *experts;      /* [n][n_used], best first */
  float *weights;        /* [n][n_used] */
} kg_route_args;
int kg_cuda_route(kg_stream *s, const kg_route_args *a, kg_error *err);

/* Sort rows [0, n) by their planes, of which there are n_planes, into groups of at most groups->rows. */
int kg_cuda_group(kg_stream *s, const int32_t *planes, int32_t n, int32_t n_planes, const kg_linear_groups *groups,
                  kg_error *err);

/* out[i] = sum over u of weights[i][u] * in[i * n_used + u], in this order */
int kg_cuda_mix(kg_stream *s, const float *in, const float *weights, int32_t n, int32_t n_used, int32_t width,
                float *out, kg_error *err);

#ifdef __cplusplus
}
#endif

#endif
