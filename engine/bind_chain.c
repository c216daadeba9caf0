#include "bind.h"

void kg_bind_chain(lua_State *L)
{
  (void)L;
}
