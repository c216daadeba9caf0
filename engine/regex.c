#include "regex.h"

#include <string.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "alloc.h"
#include "error.h"

/* Against expressions that go astray. Ours are linear; the interpreter counts a step back as a match. */
enum { MATCH_LIMIT = 200 * 1000 * 1000, HEAP_LIMIT_KB = 64 * 1024 };

struct kg_regex {
  pcre2_code *code;
  pcre2_match_context *limits;
};

struct kg_match {
  pcre2_match_data *data;
};

static void *take(PCRE2_SIZE n_bytes, void *unused)
{
  (void)unused;
  return kg_alloc(n_bytes);
}

static void give(void *block, void *unused)
{
  (void)unused;
  kg_free(block);
}

static int fail(int code, const char *what, kg_error *err)
{
  PCRE2_UCHAR message[128];
  if (code == PCRE2_ERROR_NOMEMORY) return kg_fail_memory(err, 0, what);
  pcre2_get_error_message(code, message, sizeof message);
  return kg_fail(err, KG_ERR_UNSUPPORTED, "%s: %s", what, (const char *)message);
}

/* PCRE2's \s also matches U+180E, which is no white space any more: spell the property. */
static char *spell_white_space(const char *pattern)
{
  static const char has[] = "\\p{White_Space}", has_not[] = "\\P{White_Space}";
  const size_t size = strlen(pattern), longest = sizeof has - 1;
  char *out = kg_alloc_array(size + 1, longest), *to = out;
  if (!out) return NULL;
  for (size_t i = 0; i < size; i++) {
    const char next = pattern[i] == '\\' ? pattern[i + 1] : 0;
    if (next == 's' || next == 'S') {
      memcpy(to, next == 's' ? has : has_not, longest);
      to += longest;
    } else {
      *to++ = pattern[i];
      if (next) *to++ = next;
    }
    i += next != 0;
  }
  *to = 0;
  return out;
}

static int compile(kg_regex *regex, const char *pattern, pcre2_general_context *memory, kg_error *err)
{
  pcre2_compile_context *context = pcre2_compile_context_create(memory);
  regex->limits = pcre2_match_context_create(memory);
  if (!context || !regex->limits) {
    pcre2_compile_context_free(context);
    return kg_fail_memory(err, 0, "a regular expression");
  }
  pcre2_set_match_limit(regex->limits, MATCH_LIMIT);
  pcre2_set_heap_limit(regex->limits, HEAP_LIMIT_KB);
  char *spelled = spell_white_space(pattern);
  int code = PCRE2_ERROR_HEAP_FAILED;
  PCRE2_SIZE at;
  if (spelled)
    regex->code = pcre2_compile((PCRE2_SPTR)spelled, PCRE2_ZERO_TERMINATED,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY, &code, &at, context);
  kg_free(spelled);
  pcre2_compile_context_free(context);
  if (!regex->code && code == PCRE2_ERROR_HEAP_FAILED) return kg_fail_memory(err, 0, "a regular expression");
  if (!regex->code) return fail(code, pattern, err);
  pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE); /* where it cannot, the interpreter gives the same matches */
  return KG_OK;
}

int kg_regex_new(const char *pattern, kg_regex **out, kg_error *err)
{
  kg_regex *regex = kg_alloc_array(1, sizeof *regex);
  /* Contexts and patterns copy the functions, so that this one need not live on. */
  pcre2_general_context *memory = pcre2_general_context_create(take, give, NULL);
  const int rc = regex && memory ? compile(regex, pattern, memory, err)
                                 : kg_fail_memory(err, sizeof *regex, "a regular expression");
  pcre2_general_context_free(memory);
  if (rc) {
    kg_regex_free(regex);
    return rc;
  }
  *out = regex;
  return KG_OK;
}

void kg_regex_free(kg_regex *regex)
{
  if (!regex) return;
  pcre2_code_free(regex->code);
  pcre2_match_context_free(regex->limits);
  kg_free(regex);
}

kg_match *kg_match_new(kg_error *err)
{
  kg_match *match = kg_alloc_array(1, sizeof *match);
  pcre2_general_context *memory = pcre2_general_context_create(take, give, NULL);
  if (match && memory) match->data = pcre2_match_data_create(1, memory); /* the whole match, no groups */
  pcre2_general_context_free(memory);
  if (match && match->data) return match;
  kg_match_free(match);
  kg_fail_memory(err, sizeof *match, "a regular expression's match");
  return NULL;
}

void kg_match_free(kg_match *match)
{
  if (!match) return;
  pcre2_match_data_free(match->data);
  kg_free(match);
}

int kg_regex_find(const kg_regex *regex, kg_match *match, const char *text, size_t size, size_t from, size_t *begin,
                  size_t *end, kg_error *err)
{
  const int code = pcre2_match(regex->code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY_ATSTART,
                               match->data, regex->limits);
  if (code == PCRE2_ERROR_NOMATCH) {
    *begin = *end = size;
    return KG_OK;
  }
  if (code < 0) return fail(code, "a pre-tokenizer's regular expression", err);
  const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match->data); /* code 0: more groups than room, which is right */
  *begin = span[0];
  *end = span[1];
  return KG_OK;
}
