#include "bind.h"

void kg_bind_tokenizer(lua_State *L)
{
  (void)L;
}
