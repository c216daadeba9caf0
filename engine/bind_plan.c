#include "bind.h"

void kg_bind_plan(lua_State *L)
{
  (void)L;
}
