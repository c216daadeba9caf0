/* kv_file.h - a sequence in a file: its tokens, cache rows, generator, adapters, companions and the user's state. What
 * comes back goes on bit for bit as the one that was saved would have, on the same kind of device.
 *
 * The file does not depend on backends nor on the size of pages. All numbers are little-endian:
 *   header      kg_kv_header (kv_file.c): magic, version, its checksum, SHA-256 of the model, KV type, all sizes
 *   ranges      what is there of the cache, by page group (plan.h) and in order: int32 group, first position, position
 *               behind the last. All positions where rows see everything
 *   adapters    [n_adapters] kg_kv_adapter (kv_file.c): SHA-256, name and scale, in their order
 *   tokens      [n_tokens] int32
 *   companions  each: uint32 size and text of its kind; int32 position; uint64 size and bytes
 *   state       bytes of the caller's
 *   cache       for every range, for every 64 positions of it: for each attention operation of the group their keys,
 *               then their values, [positions][n_kv_heads][head_dim], float32 or float16
 *   snapshots   [n_snapshots] int64 position, by which they are in order; float32 [kg_plan_state_size]
 *   checksum    XXH64 of everything before it, uint64
 * Model and adapters are named by their contents: the same file under another name fits. On another kind of device the
 * sequence goes on with the cache rows as they were computed where it was saved. Restored rows are published to nobody
 * (kv.h). Not in the file: hooks, what somebody has written to the logits (they are computed again), ids drawn ahead,
 * drafts. */
#ifndef KG_KV_FILE_H
#define KG_KV_FILE_H

#include "sequence.h"

/* Write it as outfile.h does: what stood at `path` stays until the new file is whole. Nobody else may read the file
 * (mode 0600). `state` is stored as it is. KG_ERR_UNSUPPORTED: it has hooks, or a companion that cannot be saved. */
int kg_sequence_save(kg_sequence *sequence, const char *path, kg_string state, kg_error *err);
/* What a file may need of what is open: a tokenizer for companions (may be NULL), and adapters of the model, of which
 * those are taken that it was saved under. */
typedef struct kg_kv_needs {
  kg_tokenizer *tokenizer;
  kg_adapter *const *adapters;
  size_t n_adapters;
} kg_kv_needs;

/* A new sequence of the model from a file, all of which is checked first.
 * Appends the caller's bytes to `state`. Nothing is left behind by a failure:
 * KG_ERR_IO           the file cannot be read
 * KG_ERR_FORMAT       it is none of these, is cut short, damaged, or says impossible things
 * KG_ERR_UNSUPPORTED  it is of another version, model or KV type, has companions that are unknown here, or adapters
 *                     that are not among those given
 * KG_ERR_FULL         the model's context or pool is too small for it */
int kg_sequence_restore(kg_model *model, const char *path, const kg_kv_needs *needs, kg_bytes *state,
                        kg_sequence **out, kg_error *err);

#endif
