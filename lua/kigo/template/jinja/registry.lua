-- The filters and tests there are, by name. The files that define them fill these tables once; map, select and the like
-- look into them while a template runs.
local call = require "kigo.template.jinja.call"

local registry = {
  ---@type table<string, kigo.jinja.Function>
  filters = {},
  ---@type table<string, kigo.jinja.Function>
  tests = {},
}

local function definer(list)
  return function(names, signature, run)
    for name in names:gmatch "%S+" do list[name] = call.native(name, signature, run) end
  end
end

---Define a filter under one or more names; `self` of its function is the operand.
---@type fun(names: string, signature: string, run: fun(run: kigo.jinja.Run.State, operand: any, ...: any): any)
registry.filter = definer(registry.filters)

---Define a test; its function returns a Lua boolean.
---@type fun(names: string, signature: string, run: fun(run: kigo.jinja.Run.State, operand: any, ...: any): boolean)
registry.test = definer(registry.tests)

return registry
