-- All filters by name: those of any value and of numbers are here, others in filters_text.lua, filters_list.lua and
-- wordwrap.lua.
local attributes = require "kigo.template.jinja.attributes"
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local format = require "kigo.template.jinja.format"
local operators = require "kigo.template.jinja.operators"
local print = require "kigo.template.jinja.print"
local registry = require "kigo.template.jinja.registry"
local str = require "kigo.template.jinja.str"
local tojson = require "kigo.template.jinja.tojson"
local value = require "kigo.template.jinja.value"
require "kigo.template.jinja.filters_list"
require "kigo.template.jinja.filters_text"
require "kigo.template.jinja.wordwrap"

local kind = value.kind

local define = registry.filter

-- ---- any value ----

define("default d", "default_value? boolean?", function(_, v, default, also_false)
  if kind(v) == "undefined" or also_false ~= nil and value.truth(also_false) and not value.truth(v) then
    if default == nil then return str.empty end
    return default
  end
  return v
end)

define("string safe", "", function(run, v) return print.str(run, v) end)
define("pprint", "", function(run, v) return print.repr(run, v) end)
define("tojson", "ensure_ascii? indent? separators? sort_keys?", tojson)

define("attr", "name", function(run, v, name)
  return attributes.attribute(run, v, call.string(name, "attribute name"))
end)

-- ---- numbers ----

define("abs", "", function(_, v)
  local x = value.number(v)
  if not x then fault.raise("type", "bad operand type for abs(): '%s'", value.type_name(v)) end
  return math.type(x) == "float" and math.abs(x) or x < 0 and operators.negative(x) or x
end)

-- Python's float(text); nil for what is none.
local function parse_float(text)
  local first, last = str.strip_bounds(text, nil, true, true)
  text = text:sub(first, last):lower()
  local sign, word = text:match "^([+-]?)(%a+)$"
  if word == "inf" or word == "infinity" then return sign == "-" and -math.huge or math.huge end
  if word == "nan" then return 0 / 0 end
  if text:find "^_" or text:find "_$" or text:find("__", 1, true) then return nil end
  text = text:gsub("_", "")
  if not text:find "^[+-]?%d*%.?%d*e?[+-]?%d*$" then return nil end
  local x = tonumber((text:gsub("^%+", "")))
  return x and x + 0.0
end

local function truncated(x, default)
  if x == nil or x ~= x then return default end
  return format.truncated(x)
end

local PREFIXES = { [2] = "^0[bB]", [8] = "^0[oO]", [16] = "^0[xX]" }

-- Python's int(text, base); nil for what is none.
local function parse_integer(text, base)
  local first, last = str.strip_bounds(text, nil, true, true)
  local sign, digits = text:sub(first, last):match "^([+-]?)(%w[%w_]*)$"
  if not digits or digits:find "_$" or digits:find("__", 1, true) then return nil end
  digits = digits:gsub("_", "")
  if PREFIXES[base] then digits = digits:gsub(PREFIXES[base], "") end
  local x = 0
  for digit in digits:gmatch "." do
    local d = tonumber(digit, base)
    if not d then return nil end
    if x > (math.maxinteger - d) // base then fault.raise("limit", "an integer has more than 64 bits") end
    x = x * base + d
  end
  return sign == "-" and -x or x
end

define("int", "default? base?", function(run, v, default, base)
  if default == nil then default = 0 end
  base = call.integer(base, "base", 10)
  if kind(v) == "undefined" then value.fail_undefined(v) end
  if kind(v) == "str" then
    run:spend_bytes(#v.text)
    local x = base >= 2 and base <= 36 and parse_integer(v.text, base)
    if x then return x end
    local y = parse_float(v.text)
    if y == math.huge or y == -math.huge or y ~= y then return default end
    return truncated(y, default)
  end
  local x = value.number(v)
  if math.type(x) == "integer" then return x end
  return truncated(x, default)
end)

define("float", "default?", function(run, v, default)
  if default == nil then default = 0.0 end
  if kind(v) == "undefined" then value.fail_undefined(v) end
  if kind(v) == "str" then
    run:spend_bytes(#v.text)
    local x = parse_float(v.text)
    if x == nil then return default end
    return x
  end
  local x = value.number(v)
  if x == nil then return default end
  return x + 0.0
end)

local function round_common(x, precision)
  if math.type(x) == "integer" and precision >= 0 then return x end
  if x ~= x or math.abs(x) == math.huge then return x end
  if precision > 22 then return x end
  if precision >= 0 then -- printf rounds as Python does: to the nearest, ties to even
    local text = ("%." .. precision .. "f"):format(x)
    return tonumber(text:find(".", 1, true) and text or text .. ".0")
  end
  local unit = 10.0 ^ math.min(-precision, 308)
  local scaled = math.abs(x) / unit
  local floor = math.floor(scaled)
  local rest = scaled - floor
  local rounded = ((rest > 0.5 or rest == 0.5 and floor % 2 == 1) and floor + 1 or floor) * unit
  if x < 0 or 1 / x < 0 then rounded = -rounded end
  return math.type(x) == "integer" and math.tointeger(rounded) or rounded
end

define("round", "precision? method?", function(_, v, precision, method)
  local x = value.number(v)
  precision = call.integer(precision, "precision", 0)
  local name = method and call.string(method, "method").text or "common"
  if name ~= "common" and name ~= "ceil" and name ~= "floor" then
    fault.raise("other", "method must be common, ceil or floor")
  end
  if not x then
    if name ~= "common" and kind(v) == "undefined" then value.fail_undefined(v) end
    fault.raise("type", "type %s doesn't define __round__ method", value.type_name(v))
  end
  if name == "common" then return round_common(x, precision) end
  local unit = 10.0 ^ precision
  if unit == 0 then fault.raise("other", "float division by zero") end
  local scaled = x * unit
  if scaled ~= scaled or math.abs(scaled) == math.huge then fault.raise("other", "cannot convert float to integer") end
  return math[name](scaled) / unit
end)

-- Python's float(v).
local function to_float(v)
  local x = kind(v) == "str" and parse_float(v.text) or value.number(v)
  if x then return x + 0.0 end
  if kind(v) == "str" then fault.raise("other", "could not convert string to float") end
  if kind(v) == "undefined" then value.fail_undefined(v) end
  fault.raise("type", "float() argument must be a string or a real number, not '%s'", value.type_name(v))
end

local UNITS = { { "kB", "KiB" }, { "MB", "MiB" }, { "GB", "GiB" }, { "TB", "TiB" }, { "PB", "PiB" }, { "EB", "EiB" },
  { "ZB", "ZiB" }, { "YB", "YiB" } }

define("filesizeformat", "binary?", function(_, v, binary)
  local x, base = to_float(v), 1000
  local is_binary = binary ~= nil and value.truth(binary)
  if is_binary then base = 1024 end
  if x == 1 then return str.foreign "1 Byte" end
  if x < base then return str.foreign(("%d Bytes"):format(format.truncated(x))) end
  local power, names = base, UNITS[1]
  for i = 2, #UNITS do
    if x < power * base then break end
    power, names = power * base, UNITS[i]
  end
  return str.foreign(("%.1f %s"):format(x / power, names[is_binary and 2 or 1]))
end)

-- ---- what a template may not have ----

define("random", "", function() fault.raise("other", "a template has no random numbers") end)
define("urlize", "...", function() fault.raise("other", "links are not made here") end)

return registry.filters
