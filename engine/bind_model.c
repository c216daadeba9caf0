#include "bind.h"

void kg_bind_model(lua_State *L)
{
  (void)L;
}
