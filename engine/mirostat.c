#include "mirostat.h"

#include <math.h>
#include <string.h>

#include "alloc.h"
#include "bytes.h"
#include "error.h"

#define MU_MAX 1e6f /* far outside of what surprises can be: it stays a number whatever happens */

/* From position pos on. */
typedef struct change {
  int32_t pos;
  float mu;
} change;

/* What the last draw would make of it. */
typedef struct note {
  int32_t pos; /* where the id would be fed; -1: none */
  int32_t id;
  float mu;
} note;

typedef struct mirostat {
  kg_companion base;
  float tau, eta;
  change *log; /* ascending */
  size_t n, capacity;
  note note;
} mirostat;

/* ---- mu ---- */

static mirostat *find(const kg_sequence *sequence, float tau, float eta)
{
  kg_companion *found = NULL;
  while ((found = kg_sequence_find_companion(sequence, &kg_mirostat_ops, found))) {
    mirostat *m = (mirostat *)found;
    if (m->tau == tau && m->eta == eta) return m;
  }
  return NULL;
}

float kg_mirostat_mu(const kg_sequence *sequence, float tau, float eta)
{
  const mirostat *m = sequence ? find(sequence, tau, eta) : NULL;
  return m && m->n ? m->log[m->n - 1].mu : 2 * tau; /* bounded: floats */
}

static mirostat *create(float tau, float eta, kg_error *err)
{
  mirostat *m = kg_alloc_array(1, sizeof *m);
  if (!m) {
    (void)kg_fail_memory(err, sizeof *m, "the state of mirostat");
    return NULL;
  }
  m->base.ops = &kg_mirostat_ops;
  m->tau = tau;
  m->eta = eta;
  m->note.pos = -1;
  return m;
}

int kg_mirostat_note(kg_sequence *sequence, float tau, float eta, int32_t id, float surprise, kg_error *err)
{
  mirostat *m = find(sequence, tau, eta);
  if (!m) {
    m = create(tau, eta, err);
    if (!m) return KG_ERR_MEMORY;
    const int status = kg_sequence_attach_take(sequence, &m->base, err);
    if (status) {
      kg_mirostat_ops.free(&m->base);
      return status;
    }
  }
  const float mu = kg_mirostat_mu(sequence, tau, eta) - eta * (surprise - tau); /* bounded: floats */
  m->note = (note){kg_sequence_pos(sequence), id, fminf(fmaxf(mu, -MU_MAX), MU_MAX)};
  return KG_OK;
}

/* ---- the companion ---- */

static int feed(kg_companion *companion, int32_t pos, const int32_t *ids, size_t n, kg_error *err)
{
  mirostat *m = (mirostat *)companion;
  if (!n || m->note.pos != pos || m->note.id != ids[0]) return KG_OK;
  if (!kg_grow((void **)&m->log, &m->capacity, m->n + 1, sizeof *m->log))
    return kg_fail_memory(err, (m->n + 1) * sizeof *m->log, "the state of mirostat");
  m->log[m->n++] = (change){pos + 1, m->note.mu}; /* bounded: positions are below 2^24 */
  return KG_OK;
}

static void forget_behind(mirostat *m, int32_t pos)
{
  while (m->n && m->log[m->n - 1].pos > pos) m->n--;
}

/* The note stays: it was there before the feed. */
static void undo(kg_companion *companion, int32_t pos) { forget_behind((mirostat *)companion, pos); }

static void rewind_to(kg_companion *companion, int32_t pos)
{
  mirostat *m = (mirostat *)companion;
  forget_behind(m, pos);
  m->note.pos = -1;
}

static int copy(const kg_companion *companion, kg_companion **out, kg_error *err)
{
  const mirostat *m = (const mirostat *)companion;
  mirostat *made = create(m->tau, m->eta, err);
  if (!made) return KG_ERR_MEMORY;
  if (!kg_grow((void **)&made->log, &made->capacity, m->n, sizeof *m->log)) {
    kg_free(made);
    return kg_fail_memory(err, m->n * sizeof *m->log, "the state of mirostat");
  }
  if (m->n) memcpy(made->log, m->log, m->n * sizeof *m->log); /* bounded: in memory */
  made->n = m->n;
  made->note = m->note;
  *out = &made->base;
  return KG_OK;
}

static void swap(kg_companion *companion, kg_companion *other)
{
  mirostat *a = (mirostat *)companion, *b = (mirostat *)other;
  mirostat kept = *a;
  const kg_companion base_a = a->base, base_b = b->base;
  *a = *b;
  *b = kept;
  a->base = base_a;
  b->base = base_b;
}

static void release(kg_companion *companion)
{
  kg_free(((mirostat *)companion)->log);
  kg_free(companion);
}

/* ---- in files ---- */

/* What stands before the log. */
typedef struct saved {
  float tau, eta;
  note note;
} saved;

static int save(const kg_companion *companion, kg_bytes *out, kg_error *err)
{
  const mirostat *m = (const mirostat *)companion;
  const saved head = {m->tau, m->eta, m->note};
  const int status = kg_bytes_append(out, &head, sizeof head, err);
  return status ? status
                : kg_bytes_append(out, m->log, m->n * sizeof *m->log, err); /* bounded: an array that there is */
}

static bool is_mu(float mu) { return mu >= -MU_MAX && mu <= MU_MAX; }

static bool is_sound(const mirostat *m, const kg_companion_source *source)
{
  if (!(m->tau >= 0 && m->tau <= 1e3f && m->eta >= 0 && m->eta <= 10)) return false;
  if (m->note.pos < -1 || m->note.pos > source->n_ids || !is_mu(m->note.mu)) return false;
  for (size_t i = 0; i < m->n; i++) {
    const int32_t after = i ? m->log[i - 1].pos : source->from;
    if (m->log[i].pos <= after || m->log[i].pos > source->n_ids || !is_mu(m->log[i].mu)) return false;
  }
  return true;
}

static int load(const kg_companion_source *source, kg_companion **out, kg_error *err)
{
  saved head;
  kg_string bytes = source->bytes;
  if (!kg_take_into(&bytes, &head, sizeof head) || bytes.size % sizeof(change))
    return kg_fail(err, KG_ERR_FORMAT, "mirostat: %zu bytes are no state of it", source->bytes.size);
  mirostat *m = create(head.tau, head.eta, err);
  if (!m) return KG_ERR_MEMORY;
  m->note = head.note;
  m->n = bytes.size / sizeof(change);
  if (!kg_grow((void **)&m->log, &m->capacity, m->n, sizeof *m->log)) {
    kg_free(m);
    return kg_fail_memory(err, bytes.size, "the state of mirostat");
  }
  if (bytes.size) memcpy(m->log, bytes.data, bytes.size);
  if (is_sound(m, source)) {
    *out = &m->base;
    return KG_OK;
  }
  release(&m->base);
  return kg_fail(err, KG_ERR_FORMAT, "mirostat: its state does not fit the timeline");
}

const kg_companion_ops kg_mirostat_ops = {.name = "mirostat",
                                          .feed = feed,
                                          .undo = undo,
                                          .rewind = rewind_to,
                                          .copy = copy,
                                          .swap = swap,
                                          .free = release,
                                          .save = save,
                                          .load = load};
