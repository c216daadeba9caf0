#include "bind.h"

void kg_bind_tensor(lua_State *L)
{
  (void)L;
}
