-- Calls: functions of ours with their parameters, methods bound to a value, macros, loops.
local fault = require "kigo.template.jinja.fault"
local value = require "kigo.template.jinja.value"

---@class kigo.jinja.Function
---@field kind "function"
---@field name string
---@field parameters string[]   names; a call fills them by position or name
---@field required integer      how many have to be there
---@field variadic boolean      takes any arguments, as they come
---@field run fun(run: kigo.jinja.Run.State, self: any, ...: any): any

---@class kigo.jinja.Keywords
---@field names string[]
---@field map table<string, any>
---@field keys table<string, kigo.jinja.Str>   the names as strings that know where they came from

local call = {}

local kind = value.kind

---No keywords yet.
---@return kigo.jinja.Keywords
function call.keywords() return { names = {}, map = {}, keys = {} } end

---A function for templates. The parameters are names; those with "?" may be left out and are then nil; "..." takes
---whatever comes, as an array, its length and the keywords.
---@param name string
---@param signature string
---@param run fun(run: kigo.jinja.Run.State, self: any, ...: any): any
---@return kigo.jinja.Function
function call.native(name, signature, run)
  local native = { kind = "function", name = name, parameters = {}, required = 0, run = run,
    variadic = signature == "..." }
  for parameter, optional in signature:gmatch "([%a_]+)(%??)" do
    native.parameters[#native.parameters + 1] = parameter
    if optional == "" then native.required = native.required + 1 end
  end
  return native
end

local function place_keywords(native, placed, keywords)
  local parameters = native.parameters
  for _, name in ipairs(keywords.names) do
    local at
    for i, parameter in ipairs(parameters) do
      if parameter == name then at = i end
    end
    if not at then fault.raise("type", "%s() got an unexpected keyword argument '%s'", native.name, name) end
    if placed[at] ~= nil then fault.raise("type", "%s() got multiple values for argument '%s'", native.name, name) end
    placed[at] = keywords.map[name]
  end
end

---Call a function of ours. `self` is what its method or filter is of.
---@param run kigo.jinja.Run.State
---@param native kigo.jinja.Function
---@param self any
---@param arguments any[]
---@param n integer
---@param keywords kigo.jinja.Keywords?
---@return any
function call.invoke(run, native, self, arguments, n, keywords)
  if kind(self) == "str" then run:spend_bytes(#self.text) end -- most of what is done with a string reads all of it
  if native.variadic then return native.run(run, self, arguments, n, keywords) end
  local parameters = native.parameters
  if n > #parameters then
    fault.raise("type", "%s() takes %d arguments but %d were given", native.name, #parameters, n)
  end
  if keywords then
    arguments = table.move(arguments, 1, n, 1, {})
    place_keywords(native, arguments, keywords)
  end
  for i = 1, native.required do
    if arguments[i] == nil then
      fault.raise("type", "%s() misses its argument '%s'", native.name, parameters[i])
    end
  end
  return native.run(run, self, table.unpack(arguments, 1, #parameters))
end

---Call any value.
---@param run kigo.jinja.Run.State
---@param callee any
---@param arguments any[]
---@param n integer
---@param keywords kigo.jinja.Keywords?
---@return any
function call.value(run, callee, arguments, n, keywords)
  local k = kind(callee)
  if k == "macro" or k == "loop" or k == "joiner" then return callee:invoke(run, arguments, n, keywords) end
  if k == "function" then return call.invoke(run, callee, nil, arguments, n, keywords) end
  if k == "method" then return call.invoke(run, callee.method, callee.self, arguments, n, keywords) end
  if k == "undefined" then value.fail_undefined(callee) end
  fault.raise("type", "'%s' object is not callable", value.type_name(callee))
end

---Keywords as a dictionary; `map` may hold fewer than were given.
---@param run kigo.jinja.Run.State
---@param keywords kigo.jinja.Keywords?
---@param map? table<string, any>
---@param dict? table            what they are added to
---@return table
function call.keyword_dict(run, keywords, map, dict)
  dict = dict or value.dict()
  if not keywords then return dict end
  map = map or keywords.map
  for _, name in ipairs(keywords.names) do
    if map[name] ~= nil then value.set(dict, keywords.keys[name], map[name], run) end
  end
  return dict
end

---An integer argument, or the default where there is none.
---@param v any
---@param name string
---@param default integer?
---@return integer?
function call.integer(v, name, default)
  if v == nil then return default end
  local x = value.number(v)
  if math.type(x) ~= "integer" then
    if kind(v) == "undefined" then value.fail_undefined(v) end
    fault.raise("type", "%s: '%s' object cannot be interpreted as an integer", name, value.type_name(v))
  end
  return x
end

---A string argument.
---@param v any
---@param name string
---@return kigo.jinja.Str
function call.string(v, name)
  if kind(v) ~= "str" then
    fault.raise("type", "%s must be str, not %s", name, value.type_name(v))
  end
  return v
end

return call
