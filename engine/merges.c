#include "merges.h"

#include <string.h>

#include "alloc.h"
#include "error.h"

static int malformed_merge(const kg_gguf *gguf, uint64_t index, kg_string text, kg_error *err)
{
  char quoted[KG_QUOTE_MAX];
  return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.merges[%llu] is %s, not two pieces and a space",
                 kg_gguf_path(gguf), (unsigned long long)index, kg_quote(quoted, text.data, text.size));
}

/* Enter one "left right". Merges of texts that are not in the vocabulary, or that would make a control token, can
 * never yield an id: they are left out. `buffer` has room for the text. */
static int add_merge(kg_merges *merges, const kg_vocab *vocab, const kg_gguf *gguf, uint64_t index, kg_string text,
                     kg_unmap unmap, char *buffer, kg_error *err)
{
  const char *space = text.size > 2 ? memchr(text.data + 1, ' ', text.size - 2) : NULL;
  if (!space) return malformed_merge(gguf, index, text, err);
  const size_t left_size = (size_t)(space - text.data), right_size = text.size - left_size - 1;
  const size_t n_left = unmap(text.data, left_size, buffer);
  const size_t n_right = unmap(space + 1, right_size, buffer + n_left);
  const int32_t left = kg_vocab_find(vocab, &vocab->texts, buffer, n_left);
  const int32_t right = kg_vocab_find(vocab, &vocab->texts, buffer + n_left, n_right);
  /* bounded: both parts are inside of one text */
  const int32_t id = kg_vocab_find(vocab, &vocab->texts, buffer, n_left + n_right);
  if (left < 0 || right < 0 || id < 0) return KG_OK;
  const uint64_t hash = kg_merges_hash(merges, left, right);
  uint64_t bit;
  *kg_merges_filter(merges, hash, &bit) |= bit;
  kg_merge_rule *slot = kg_merges_slot(merges, hash, left, right);
  if (slot->left < 0) *slot = (kg_merge_rule){left, right, id, (uint32_t)index}; /* of repeated ones the first counts */
  return KG_OK;
}

int kg_merges_read(kg_merges *merges, const kg_vocab *vocab, const kg_gguf *gguf, kg_unmap unmap, kg_error *err)
{
  const kg_gguf_entry *list;
  int rc = kg_gguf_get_array(gguf, "tokenizer.ggml.merges", KG_GGUF_STRING, &list, err);
  if (rc) return rc;
  if (list->count > INT32_MAX)
    return kg_fail(err, KG_ERR_FORMAT, "%s: tokenizer.ggml.merges has %llu elements, more than %d", kg_gguf_path(gguf),
                   (unsigned long long)list->count, INT32_MAX);
  size_t n_slots = 8, longest = 0;
  while (n_slots < list->count + list->count / 2) n_slots *= 2; /* bounded: count < 2^31 */
  for (uint64_t i = 0; i < list->count; i++)
    if (list->strings[i].size > longest) longest = list->strings[i].size;
  merges->slots = kg_alloc_array(n_slots, sizeof *merges->slots);
  merges->filter = kg_alloc_array(n_slots / 8, sizeof *merges->filter); /* eight bits a slot */
  merges->filter_mask = n_slots / 8 - 1;
  char *buffer = kg_alloc(longest);
  if (!merges->slots || !merges->filter || !buffer) {
    kg_free(buffer);
    return kg_fail_memory(err, n_slots * sizeof *merges->slots, "merges");
  }
  for (size_t i = 0; i < n_slots; i++) merges->slots[i].left = -1;
  merges->mask = n_slots - 1;
  merges->seed = vocab->seed;
  for (uint64_t i = 0; i < list->count && !rc; i++)
    rc = add_merge(merges, vocab, gguf, i, list->strings[i], unmap, buffer, err);
  kg_free(buffer);
  return rc;
}

void kg_merges_deinit(kg_merges *merges)
{
  kg_free(merges->slots);
  kg_free(merges->filter);
}
