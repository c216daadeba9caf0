/* embed.c - kigo in a C program: Lua loads the model (an architecture is a Lua file), C runs the loop.
 *
 * usage: embed MODEL.gguf [TEXT]       prints TEXT and 32 more tokens, each the likeliest
 * build: cc embed.c -I/path/to/kigo/engine -L/path/to/kigo/build -lkigo -llua5.4 */
#include <kigo.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The likeliest id after the timeline, or a negative error code. */
static int likeliest(kg_sequence *sequence, int32_t *id, kg_error *err)
{
  kg_tensor *logits;
  int rc = kg_sequence_logits(sequence, &logits, err);
  if (rc) return rc;
  const int64_t n = kg_tensor_count(logits);
  float *values = malloc((size_t)n * sizeof *values);
  rc = values ? kg_tensor_read(logits, 0, n, values, err) : KG_ERR_MEMORY;
  if (!rc) {
    *id = 0;
    for (int32_t i = 1; i < n; i++)
      if (values[i] > values[*id]) *id = i;
  }
  free(values);
  kg_tensor_free(logits);
  return rc;
}

/* Feed the text, choose 32 tokens, and show the whole timeline. */
static int complete(kg_model *model, const kg_tokenizer *tokenizer, const char *text, kg_error *err)
{
  kg_sequence *sequence = NULL;
  kg_tokens ids = {0};
  kg_bytes shown = {0};
  const kg_segment prompt = {.text = text, .size = strlen(text)};
  int rc = kg_sequence_new(model, 0, &sequence, err);
  if (!rc) rc = kg_tokenizer_encode(tokenizer, &prompt, 1, KG_ENCODE_BOS, &ids, err);
  if (!rc) rc = kg_sequence_feed(sequence, ids.ids, ids.n, err);
  for (int i = 0; i < 32 && !rc; i++) {
    int32_t id;
    rc = likeliest(sequence, &id, err);
    if (rc || kg_tokenizer_is_end(tokenizer, id)) break;
    rc = kg_sequence_feed(sequence, &id, 1, err);
  }
  if (!rc)
    rc = kg_tokenizer_decode(tokenizer, kg_sequence_tokens(sequence), (size_t)kg_sequence_pos(sequence), 0, &shown, err);
  if (!rc) printf("%.*s\n", (int)shown.size, shown.data);
  kg_bytes_deinit(&shown);
  kg_tokens_deinit(&ids);
  kg_sequence_free(sequence);
  return rc;
}

int main(int argc, char **argv)
{
  if (argc < 2) {
    fprintf(stderr, "usage: %s MODEL.gguf [TEXT]\n", argv[0]);
    return 2;
  }
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "kigo", luaopen_kigo, 0);
  lua_getfield(L, -1, "load");
  lua_pushstring(L, argv[1]);
  if (lua_pcall(L, 1, 2, 0) || !kg_lua_to_model(L, -2)) { /* model, or nil and a message */
    fprintf(stderr, "embed: %s\n", lua_tostring(L, -1));
    lua_close(L);
    return 1;
  }

  kg_error err = {0};
  kg_gguf *gguf = NULL;
  kg_tokenizer *tokenizer = NULL;
  int rc = kg_gguf_open(argv[1], &gguf, &err);
  if (!rc) rc = kg_tokenizer_open(gguf, NULL, &tokenizer, &err);
  if (!rc) rc = complete(kg_lua_to_model(L, -2), tokenizer, argc > 2 ? argv[2] : "", &err);
  if (rc) fprintf(stderr, "embed: %s\n", err.message);
  kg_tokenizer_free(tokenizer);
  kg_gguf_close(gguf);
  lua_close(L); /* closes the model */
  return rc ? 1 : 0;
}
