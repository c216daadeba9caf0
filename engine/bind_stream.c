#include "bind.h"

void kg_bind_stream(lua_State *L)
{
  (void)L;
}
