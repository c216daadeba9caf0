#include "bind.h"

void kg_bind_sequence(lua_State *L)
{
  (void)L;
}
