-- How a template fails: a fault travels as a Lua error from wherever it happens to Template:render, which knows the
-- place.
---@class kigo.jinja.Fault
---@field kind kigo.jinja.Kind
---@field message string
---@field at integer?   byte position in the template
local Fault = {}
Fault.__name = "kigo.jinja.Fault"

local fault = {}

---Fail.
---@param kind kigo.jinja.Kind
---@param message string   a format where there are arguments
function fault.raise(kind, message, ...)
  if select("#", ...) > 0 then message = message:format(...) end
  error(setmetatable({ kind = kind, message = message }, Fault), 0)
end

---Refuse the text of a template.
---@param at integer       byte position
---@param message string   a format where there are arguments
function fault.syntax(at, message, ...)
  if select("#", ...) > 0 then message = message:format(...) end
  error(setmetatable({ kind = "syntax", message = message, at = at }, Fault), 0)
end

---@return boolean
function fault.is(value) return getmetatable(value) == Fault end

return fault
