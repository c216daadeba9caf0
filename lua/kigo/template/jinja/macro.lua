-- Macros as values: {% macro %} makes one, and so does the body of {% call %}. They see the frame they were made in.
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local value = require "kigo.template.jinja.value"

---@class kigo.jinja.MacroDefinition
---@field name string?                         none for the body of {% call %}
---@field parameters string[]
---@field slots integer[]                     of the parameters
---@field defaults table<integer, kigo.jinja.Expression>
---@field caller integer?                     slots of special names, where the body uses them
---@field kwargs integer?
---@field varargs integer?
---@field enter (fun(frame: table, run: kigo.jinja.Run.State))?
---@field body kigo.jinja.Statement

---@class kigo.jinja.Macro
local Macro = {}
Macro.__index = Macro
Macro.kind = "macro"

local macro = {}

---@param definition kigo.jinja.MacroDefinition
---@param up table   the frame around it
---@return kigo.jinja.Macro
function macro.new(definition, up)
  return setmetatable({ name = definition.name, definition = definition, up = up }, Macro)
end

-- Take a keyword out of what is left of them.
local function take(rest, name)
  local v = rest and rest[name]
  if v ~= nil then rest[name] = nil end
  return v
end

local function copied(keywords)
  if not keywords then return nil end
  local rest = {}
  for name, v in pairs(keywords.map) do rest[name] = v end
  return rest
end

-- What the macro has no parameter for goes to kwargs and varargs, where the body uses them.
local function place_rest(self, frame, run, arguments, n, rest, keywords)
  local definition = self.definition
  if definition.caller then
    frame[definition.caller] = take(rest, "caller") or value.undefined "no caller defined"
  end
  if definition.kwargs then
    frame[definition.kwargs] = call.keyword_dict(run, keywords, rest)
  elseif rest and next(rest) then
    fault.raise("type", "macro '%s' takes no keyword argument '%s'", self.name or "caller", (next(rest)))
  end
  local count = #definition.parameters
  if definition.varargs then
    local more = math.max(n - count, 0)
    frame[definition.varargs] = value.tuple(table.move(arguments, count + 1, count + more, 1, {}), more)
  elseif n > count then
    fault.raise("type", "macro '%s' takes not more than %d argument(s)", self.name or "caller", count)
  end
end

local function place_parameters(definition, frame, arguments, n, rest)
  for i, name in ipairs(definition.parameters) do
    local v
    if i <= n then v = arguments[i] else v = take(rest, name) end
    if v == nil and not definition.defaults[i] then
      v = value.undefined(("parameter '%s' was not provided"):format(name))
    end
    frame[definition.slots[i]] = v
  end
end

---Call it: what it writes, as a string.
---@param run kigo.jinja.Run.State
---@param arguments any[]
---@param n integer
---@param keywords kigo.jinja.Keywords?
---@return kigo.jinja.Str
function Macro:invoke(run, arguments, n, keywords)
  local definition, frame, rest = self.definition, { up = self.up }, copied(keywords)
  place_parameters(definition, frame, arguments, n, rest)
  place_rest(self, frame, run, arguments, n, rest, keywords)
  run:enter()
  for i = 1, #definition.parameters do -- a default may use the parameters before it
    local slot = definition.slots[i]
    if frame[slot] == nil then frame[slot] = definition.defaults[i](frame, run) end
  end
  if definition.enter then definition.enter(frame, run) end
  local text = run:capture(definition.body, frame)
  run:leave()
  return text
end

return macro
