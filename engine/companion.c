#include "companion.h"

#include <assert.h>
#include <string.h>

#include "alloc.h"
#include "constraint.h"
#include "follow.h"
#include "mirostat.h"

/* ---- one ---- */

static kg_companion **end_of(kg_companion **list)
{
  while (*list) list = &(*list)->next;
  return list;
}

void kg_sequence_adopt(kg_sequence *sequence, kg_companion *companion, int32_t from)
{
  companion->serial = kg_model_next_serial(sequence->model);
  companion->from = from;
  companion->next = NULL;
  *end_of(&sequence->companions) = companion;
}

int kg_sequence_attach_take(kg_sequence *sequence, kg_companion *companion, kg_error *err)
{
  const int status = kg_model_check_idle(sequence->model, err);
  if (!status) kg_sequence_adopt(sequence, companion, kg_sequence_pos(sequence));
  return status;
}

static void free_one(kg_companion *companion) { companion->ops->free(companion); }

int kg_sequence_detach(kg_sequence *sequence, kg_companion *companion, kg_error *err)
{
  const int status = kg_model_check_idle(sequence->model, err);
  if (status) return status;
  kg_companion **at = &sequence->companions;
  while (*at != companion) {
    assert(*at);
    at = &(*at)->next;
  }
  *at = companion->next;
  free_one(companion);
  return KG_OK;
}

kg_companion *kg_sequence_find_companion(const kg_sequence *sequence, const kg_companion_ops *ops,
                                         const kg_companion *after)
{
  kg_companion *companion = after ? after->next : sequence->companions;
  while (companion && companion->ops != ops) companion = companion->next;
  return companion;
}

const kg_companion_ops *kg_companion_find_kind(kg_string name)
{
  static const kg_companion_ops *const kinds[] = {&kg_follow_companion, &kg_mirostat_ops, &kg_constraint_companion};
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (strlen(kinds[i]->name) == name.size && !memcmp(kinds[i]->name, name.data, name.size)) return kinds[i];
  return NULL;
}

/* ---- all ---- */

static void undo(kg_companion *companion, int32_t pos)
{
  (companion->ops->undo ? companion->ops->undo : companion->ops->rewind)(companion, pos);
}

int kg_companions_feed(kg_companion *list, int32_t pos, const int32_t *ids, size_t n, kg_error *err)
{
  for (kg_companion *companion = list; companion; companion = companion->next) {
    const int status = companion->ops->feed(companion, pos, ids, n, err);
    if (!status) continue;
    for (kg_companion *fed = list; fed != companion; fed = fed->next) undo(fed, pos);
    return status;
  }
  return KG_OK;
}

/* Free one that the timeline does not have where it goes. Others may hold what it is about. */
static void let_go(kg_companion *companion)
{
  companion->ops->rewind(companion, companion->from);
  free_one(companion);
}

static bool would_feed(kg_companion *list, int32_t pos, const int32_t *ids, size_t n)
{
  if (kg_companions_feed(list, pos, ids, n, NULL)) return false;
  for (kg_companion *fed = list; fed; fed = fed->next) undo(fed, pos);
  return true;
}

size_t kg_companions_would_feed(kg_companion *list, int32_t pos, const int32_t *ids, size_t n)
{
  if (!n || !list || would_feed(list, pos, ids, n)) return n;
  size_t taken = 0, refused = n;
  while (refused - taken > 1) { /* a feed can be taken back once, so each tries from the start */
    const size_t half = taken + (refused - taken) / 2;
    if (would_feed(list, pos, ids, half))
      taken = half;
    else
      refused = half;
  }
  return taken;
}

void kg_companions_rewind(kg_companion **list, int32_t pos)
{
  while (*list) {
    kg_companion *companion = *list;
    if (companion->from <= pos) {
      companion->ops->rewind(companion, pos);
      list = &companion->next;
    } else {
      *list = companion->next;
      let_go(companion);
    }
  }
}

int kg_companions_copy(const kg_companion *list, kg_companion **out, kg_error *err)
{
  kg_companion *copies = NULL, **end = &copies;
  *out = NULL;
  for (const kg_companion *companion = list; companion; companion = companion->next) {
    const int status = companion->ops->copy(companion, end, err);
    if (status) {
      *end = NULL;
      kg_companions_free(copies);
      return status;
    }
    **end = *companion;
    (*end)->next = NULL;
    end = &(*end)->next;
  }
  *out = copies;
  return KG_OK;
}

/* Take the companion of this serial out of the list; NULL: it is not there. */
static kg_companion *take_out(kg_companion **list, int64_t serial)
{
  while (*list && (*list)->serial != serial) list = &(*list)->next;
  kg_companion *found = *list;
  if (found) *list = found->next;
  return found;
}

void kg_companions_restore_take(kg_companion **list, kg_companion *copies)
{
  kg_companion *old = *list, **end = list;
  while (copies) {
    kg_companion *copy = copies, *same = take_out(&old, copy->serial);
    copies = copy->next;
    if (same) {
      same->ops->swap(same, copy);
      free_one(copy);
    }
    *end = same ? same : copy;
    (*end)->next = NULL;
    end = &(*end)->next;
  }
  *end = NULL;
  while (old) {
    kg_companion *companion = old;
    old = companion->next;
    let_go(companion);
  }
}

void kg_companions_free(kg_companion *list)
{
  while (list) {
    kg_companion *companion = list;
    list = companion->next;
    free_one(companion);
  }
}
