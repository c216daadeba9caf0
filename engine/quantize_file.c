#include "quantize_file.h"

#include <string.h>

#include "alloc.h"
#include "cpu/pool.h"
#include "error.h"
#include "gguf_write.h"
#include "quant.h"

enum { CHUNK_BLOCKS = 64 }; /* of 256 values: what a worker takes at once */
enum { CHUNK_VALUES = CHUNK_BLOCKS * 256, CHUNKS_PER_WORKER = 16 };

/* A part of a tensor: n_chunks chunks of values, read from `from`, written to `to`. */
typedef struct part {
  kg_pool *pool;
  const kg_type_info *from, *to;
  kg_type type;
  const uint8_t *in;
  uint8_t *out;
  float *values;       /* [workers][CHUNK_VALUES] */
  int64_t first, n_values; /* of the tensor */
  kg_error *failures;  /* [workers] the first of each */
} part;

typedef struct job {
  const kg_gguf *gguf;
  const kg_quantize_options *options;
  kg_gguf_writer *writer;
  part part;
  uint8_t *out;        /* bytes of a part */
  int64_t done, total; /* bytes */
} job;

/* ---- the description ---- */

static bool has_prefix(kg_string key, const char *prefix)
{
  const size_t n = strlen(prefix);
  return key.size >= n && !memcmp(key.data, prefix, n);
}

static bool is_key(kg_string key, const char *name) { return key.size == strlen(name) && has_prefix(key, name); }

/* Keys that this file says for itself, or by leaving them out: its data is aligned as by default. */
static bool is_ours(kg_string key)
{
  return has_prefix(key, "split.") || is_key(key, "general.alignment") || is_key(key, "general.file_type") ||
         is_key(key, "general.quantization_version");
}

static void write_keys(job *j)
{
  const uint32_t version = 2; /* of the block formats */
  for (size_t i = 0; i < kg_gguf_entry_count(j->gguf); i++) {
    const kg_gguf_entry *entry = kg_gguf_entry_at(j->gguf, i);
    if (!is_ours(entry->key)) kg_gguf_write_entry(j->writer, entry);
  }
  kg_gguf_write_u32(j->writer, "general.file_type", (uint32_t)j->options->file_type);
  kg_gguf_write_u32(j->writer, "general.quantization_version", version);
}

static int check_tensor(const kg_gguf_tensor *tensor, kg_type type, kg_error *err)
{
  const kg_type_info *from = kg_type_find((uint32_t)tensor->type), *to = kg_type_find((uint32_t)type);
  if (tensor->type == type) return KG_OK;
  if (!from->dequantize)
    return kg_fail(err, KG_ERR_UNSUPPORTED, "tensor %s: its type %s cannot be read", tensor->name, from->name);
  if (tensor->dims[0] % to->block_size)
    return kg_fail(err, KG_ERR_ARGUMENT, "tensor %s: rows of %lld values are not whole blocks of %s (%d)", tensor->name,
                   (long long)tensor->dims[0], to->name, (int)to->block_size);
  return KG_OK;
}

static int write_tensors(job *j, kg_error *err)
{
  for (size_t i = 0; i < kg_gguf_tensor_count(j->gguf); i++) {
    const kg_gguf_tensor *tensor = kg_gguf_tensor_at(j->gguf, i);
    const kg_type type = j->options->types[i];
    const kg_type_info *from = kg_type_find((uint32_t)tensor->type), *to = kg_type_find((uint32_t)type);
    const int code = check_tensor(tensor, type, err);
    if (code) return code;
    kg_gguf_write_tensor(j->writer, tensor->name, type, tensor->n_dims, tensor->dims);
    const size_t n_blocks = tensor->n_bytes / (size_t)from->block_bytes;
    /* bounded: no type takes more than 4 bytes a value, none less than a quarter of a byte, and the file exists */
    j->total += (int64_t)(n_blocks * (size_t)from->block_size / (size_t)to->block_size * (size_t)to->block_bytes);
  }
  return KG_OK;
}

/* ---- the data ---- */

static void convert(void *arg, int32_t worker)
{
  part *p = arg;
  float *values = p->values + (size_t)worker * CHUNK_VALUES;
  kg_error *err = &p->failures[worker];
  kg_phase phase = kg_phase_begin(p->pool, worker, (p->n_values + CHUNK_VALUES - 1) / CHUNK_VALUES, 1);
  int64_t first, last;
  while (kg_phase_next(&phase, &first, &last))
    for (int64_t at = first * CHUNK_VALUES; at < last * CHUNK_VALUES && at < p->n_values; at += CHUNK_VALUES) {
      const int64_t left = p->n_values - at, n = left < CHUNK_VALUES ? left : CHUNK_VALUES;
      p->from->dequantize(p->in + at / p->from->block_size * p->from->block_bytes, n / p->from->block_size, values);
      uint8_t *out = p->out + at / p->to->block_size * p->to->block_bytes;
      kg_error failure;
      if (!kg_quantize(p->type, values, n, out, &failure) || err->code) continue;
      kg_fail(err, KG_ERR_FORMAT, "in the %d values from %lld on: %s", (int)n, (long long)(p->first + at),
              failure.message);
    }
}

static int report(job *j, size_t n_bytes, kg_error *err)
{
  const kg_quantize_options *o = j->options;
  j->done += (int64_t)n_bytes;
  if (!o->progress || !o->progress(o->progress_user, "quantize", j->done, j->total)) return KG_OK;
  return kg_fail(err, KG_ERR_CANCELLED, "cancelled after %lld of %lld bytes", (long long)j->done, (long long)j->total);
}

/* n values of a tensor from value `at` on: converted by all workers, then written. */
static int write_part(job *j, const kg_gguf_tensor *tensor, int64_t at, int64_t n, kg_error *err)
{
  part *p = &j->part;
  const int32_t n_workers = kg_pool_size(p->pool);
  p->in = (const uint8_t *)tensor->data + at / p->from->block_size * p->from->block_bytes;
  p->out = j->out;
  p->first = at;
  p->n_values = n;
  memset(p->failures, 0, (size_t)n_workers * sizeof *p->failures);
  kg_pool_run(p->pool, convert, p);
  for (int32_t i = 0; i < n_workers; i++)
    if (p->failures[i].code)
      return kg_fail(err, p->failures[i].code, "tensor %s: %s", tensor->name, p->failures[i].message);
  kg_gguf_release_pages(j->gguf, p->in, (size_t)(n / p->from->block_size * p->from->block_bytes));
  const size_t n_bytes = (size_t)(n / p->to->block_size * p->to->block_bytes);
  const int code = kg_gguf_writer_data(j->writer, j->out, n_bytes, err);
  return code ? code : report(j, n_bytes, err);
}

static int write_tensor(job *j, size_t index, kg_error *err)
{
  const kg_gguf_tensor *tensor = kg_gguf_tensor_at(j->gguf, index);
  part *p = &j->part;
  p->type = j->options->types[index];
  p->from = kg_type_find((uint32_t)tensor->type);
  p->to = kg_type_find((uint32_t)p->type);
  if (tensor->type == p->type) {
    const int code = kg_gguf_writer_data(j->writer, tensor->data, tensor->n_bytes, err);
    return code ? code : report(j, tensor->n_bytes, err);
  }
  const int64_t n = (int64_t)(tensor->n_bytes / (size_t)p->from->block_bytes) * p->from->block_size;
  const int64_t n_part = (int64_t)kg_pool_size(p->pool) * CHUNKS_PER_WORKER * CHUNK_VALUES;
  int code = KG_OK;
  for (int64_t at = 0; at < n && !code; at += n_part)
    code = write_part(j, tensor, at, n - at < n_part ? n - at : n_part, err);
  return code;
}

static int prepare(job *j, kg_error *err)
{
  int code = kg_pool_new(j->options->n_threads, &j->part.pool, err);
  if (code) return code;
  const size_t n = (size_t)kg_pool_size(j->part.pool);
  j->part.values = kg_alloc_array(n * CHUNK_VALUES, sizeof(float)); /* at most 1,024 workers */
  j->part.failures = kg_alloc_array(n, sizeof(kg_error));
  j->out = kg_alloc_array(n * CHUNKS_PER_WORKER * CHUNK_VALUES, sizeof(float)); /* no type is larger */
  if (j->part.values && j->part.failures && j->out) return KG_OK;
  return kg_fail_memory(err, n * (CHUNKS_PER_WORKER + 1) * CHUNK_VALUES * sizeof(float), "chunks of weights");
}

int kg_quantize_file(const kg_gguf *in, const char *path, const kg_quantize_options *options, kg_error *err)
{
  job j = {.gguf = in, .options = options};
  int code = kg_gguf_check_unchanged(in, err);
  if (!code) code = kg_gguf_writer_open(path, &j.writer, err);
  if (!code) code = prepare(&j, err);
  if (!code) {
    write_keys(&j);
    code = write_tensors(&j, err);
  }
  for (size_t i = 0; i < kg_gguf_tensor_count(in) && !code; i++) code = write_tensor(&j, i, err);
  if (!code) code = kg_gguf_check_unchanged(in, err);
  if (!code) code = kg_gguf_writer_commit(j.writer, err);
  kg_free(j.part.values);
  kg_free(j.part.failures);
  kg_free(j.out);
  kg_pool_free(j.part.pool);
  kg_gguf_writer_close(j.writer);
  return code;
}
