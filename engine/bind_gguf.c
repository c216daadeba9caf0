#include "bind.h"

void kg_bind_gguf(lua_State *L)
{
  (void)L;
}
