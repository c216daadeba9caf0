/* states.c - device memory of the slots that hold the states of sequences. Slots are made in slabs, one per growth, and
 * never move. */
#include "executable.h"

int kg_gpu_state_reserve(kg_executable *exe, int32_t n_slots, kg_error *err)
{
  if (n_slots <= exe->n_states) return KG_OK;
  const size_t n_new = (size_t)(n_slots - exe->n_states);
  size_t n_bytes, slot_bytes;
  if (!kg_align_size(exe->state_floats * sizeof(float), 256, &slot_bytes) || !kg_mul_size(n_new, slot_bytes, &n_bytes))
    return kg_fail_memory(err, SIZE_MAX, "states of sequences");
  int code = kg_stream_use(exe->stream, err);
  if (code) return code;
  float **states = kg_realloc_array(exe->states, (size_t)n_slots, sizeof *states);
  if (!states) return kg_fail_memory(err, (size_t)n_slots * sizeof *states, "the table of states");
  exe->states = states;
  void *block;
  code = kg_gpu_slab_new(exe, n_bytes, "states of sequences", &block, err);
  if (code) return code;
  for (size_t i = 0; i < n_new; i++)
    states[(size_t)exe->n_states + i] = (float *)((unsigned char *)block + i * slot_bytes);
  exe->n_states = n_slots;
  return KG_OK;
}

static int check_slot(const kg_executable *exe, int32_t slot, kg_error *err)
{
  if (slot >= 0 && slot < exe->n_states) return kg_stream_use(exe->stream, err);
  return kg_fail(err, KG_ERR_ARGUMENT, "state %d of %d", slot, exe->n_states);
}

int kg_gpu_state_copy(kg_executable *exe, int32_t to, int32_t from, kg_error *err)
{
  const size_t n_bytes = exe->state_floats * sizeof(float);
  int code = check_slot(exe, to, err);
  if (!code && from != KG_NONE) code = check_slot(exe, from, err);
  if (code) return code;
  return kg_cuda_check(from == KG_NONE ? cudaMemsetAsync(exe->states[to], 0, n_bytes, exe->stream->handle)
                                       : cudaMemcpyAsync(exe->states[to], exe->states[from], n_bytes,
                                                         cudaMemcpyDeviceToDevice, exe->stream->handle),
                       "copying a state", err);
}

int kg_gpu_state_read(kg_executable *exe, int32_t slot, float *out, kg_error *err)
{
  int code = check_slot(exe, slot, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(out, exe->states[slot], exe->state_floats * sizeof(float),
                                         cudaMemcpyDeviceToHost, exe->stream->handle),
                         "reading a state", err);
  return code ? code : kg_stream_wait(exe->stream, "reading a state", err);
}

int kg_gpu_state_write(kg_executable *exe, int32_t slot, const float *in, kg_error *err)
{
  int code = check_slot(exe, slot, err);
  if (!code)
    code = kg_cuda_check(cudaMemcpyAsync(exe->states[slot], in, exe->state_floats * sizeof(float),
                                         cudaMemcpyHostToDevice, exe->stream->handle),
                         "writing a state", err);
  return code ? code : kg_stream_wait(exe->stream, "writing a state", err);
}
