/* buffer.h - buffers in device memory with the operations of tensor.h, and the streams that they share. */
#ifndef KG_CUDA_BUFFER_H
#define KG_CUDA_BUFFER_H

#include "answers.h"
#include "device.h"
#include "tensor.h"

int kg_stream_new(int device, kg_stream **out, kg_error *err);
kg_stream *kg_stream_ref(kg_stream *stream);
void kg_stream_unref(kg_stream *stream); /* NULL allowed */
/* Make the stream's device the current one of this thread. */
int kg_stream_use(const kg_stream *stream, kg_error *err);
int kg_stream_wait(const kg_stream *stream, const char *what, kg_error *err);

/* n floats, not zeroed, one reference. */
int kg_cuda_buffer_new(kg_stream *stream, int64_t n, kg_buffer **out, kg_error *err);
/* Is it one of ours, with room for [at, at + n)? */
int kg_cuda_buffer_check(const kg_buffer *buffer, int64_t at, int64_t n, const char *what, kg_error *err);
/* The numbers of one of ours, in device memory, until something is done to it. */
int kg_cuda_buffer_numbers(const kg_buffer *buffer, const float **out, kg_error *err);
/* A pass, or what else knows no tensors, is about to write all of [at, at + n). `keeps`: but looks at it first. */
int kg_cuda_buffer_claim(kg_buffer *buffer, int64_t at, int64_t n, bool keeps, float **out, kg_error *err);
/* A pass has written the whole buffer: what will be asked about it, as it was asked about those before. */
bool kg_cuda_buffer_expects(const kg_buffer *buffer, kg_question *out);

#endif
