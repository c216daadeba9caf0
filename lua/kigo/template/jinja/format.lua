-- Numbers and padding for both of Python's ways to format, and the first of them: "%s" % value.
local fault = require "kigo.template.jinja.fault"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local format = {}

local kind = value.kind

-- No real template wants more; Lua's own formats stop here.
local MAX_DIGITS = 99

---The digits of a finite or infinite number without its sign.
---@param x number       not negative
---@param type string    one of d x X o b e E f F g G
---@param precision integer?
---@return string
function format.digits(x, type, precision)
  if type == "d" then return tostring(x) end
  if type == "x" or type == "X" or type == "o" then return ("%" .. type):format(x) end
  if type == "b" then
    local bits = {}
    repeat
      table.insert(bits, 1, x & 1)
      x = x >> 1
    until x == 0
    return table.concat(bits)
  end
  if x ~= x or x == math.huge then
    local text = x ~= x and "nan" or "inf"
    return type:find "%u" and text:upper() or text
  end
  precision = precision or 6
  if precision > MAX_DIGITS then fault.raise("limit", "a format has more than %d digits", MAX_DIGITS) end
  return ("%." .. precision .. (type == "F" and "f" or type)):format(x + 0.0)
end

local function too_many_bits() fault.raise("limit", "an integer has more than 64 bits") end

---A float without its fraction, as an integer.
---@param x number
---@return integer
function format.truncated(x)
  if x ~= x then fault.raise("other", "cannot convert float NaN to integer") end
  if x == math.huge or x == -math.huge then fault.raise("other", "cannot convert float infinity to integer") end
  return math.tointeger(x < 0 and math.ceil(x) or math.floor(x)) or too_many_bits()
end

---A number as an integer for d, x and the like; nil for what is none.
---@return integer?
function format.integer(v)
  local x = value.number(v)
  if x == nil or math.type(x) == "integer" then return x end
  return format.truncated(x)
end

---Sign, or what stands for the missing one.
---@param x number
---@param positive string   "+", " " or ""
---@return string sign
---@return number magnitude
function format.sign(x, positive)
  if x < 0 or x == 0 and math.type(x) == "float" and 1 / x < 0 then
    if x == math.mininteger and math.type(x) == "integer" then too_many_bits() end
    return "-", -x
  end
  return positive, x
end

---Padding as trusted as the format.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param width integer
---@param align "<"|">"|"^"
---@param padding kigo.jinja.Str   one character
---@return kigo.jinja.Str
function format.pad(run, s, width, align, padding)
  local missing = width - str.length(s)
  if missing <= 0 then return s end
  local left = align == "<" and 0 or align == ">" and missing or missing // 2
  return str.concat(run, { str.rep(run, padding, left), s, str.rep(run, padding, missing - left) })
end

-- ---- "%s" % value ----

---@class kigo.jinja.Printf
---@field values any[]   what has not been used yet begins at `at`
---@field at integer
---@field n integer
---@field map table?     for %(name)s

local function next_value(state)
  if state.at > state.n then fault.raise("type", "not enough arguments for format string") end
  state.at = state.at + 1
  return state.values[state.at - 1]
end

local function named_value(run, state, name)
  if not state.map then fault.raise("type", "format requires a mapping") end
  state.at = state.n + 1
  local v = value.get(state.map, name, run)
  if v == nil then fault.raise("other", "no key for a name of the format") end
  return v
end

local function star(state)
  local x = next_value(state)
  if math.type(x) ~= "integer" then fault.raise("type", "* wants int") end
  return x
end

local function refuse_number(type, v)
  if kind(v) == "undefined" and not type:find "[xXo]" then value.fail_undefined(v) end
  fault.raise("type", "%%%s format: a number is required, not %s", type, value.type_name(v))
end

-- What an item like %05.1f makes of a number: the sign, the digits.
local function number_parts(v, item)
  local type = item.type
  local x = (type == "d" and format.integer or value.number)(v)
  if x == nil or type:find "[xXo]" and math.type(x) ~= "integer" then refuse_number(item.type, v) end
  local sign, magnitude = format.sign(x, item.flags:find("+", 1, true) and "+" or item.flags:find " " and " " or "")
  local digits = format.digits(magnitude, type, item.precision)
  if type:find "[dxXo]" and item.precision and item.precision > #digits then
    if item.precision > MAX_DIGITS then fault.raise("limit", "a format has more than %d digits", MAX_DIGITS) end
    digits = ("0"):rep(item.precision - #digits) .. digits
  end
  if item.flags:find("#", 1, true) and type:find "[xXo]" then digits = "0" .. type .. digits end
  return sign, digits
end

local function printf_number(run, v, item)
  local sign, digits = number_parts(v, item)
  if item.flags:find "0" and not item.flags:find("-", 1, true) and item.width > #sign + #digits then
    digits = str.rep(run, str.foreign "0", item.width - #sign - #digits).text .. digits
  end
  return str.foreign(sign .. digits)
end

local function printf_character(v)
  if kind(v) == "str" and str.length(v) == 1 then return v end
  local x = value.number(v)
  if math.type(x) ~= "integer" then fault.raise("type", "%c requires int or char") end
  if x < 0 or x > 0x10FFFF or x >= 0xD800 and x < 0xE000 then fault.raise("other", "%c arg not in range") end
  return str.foreign(utf8.char(x))
end

local function printf_item(run, v, item)
  local type = item.type
  local text
  if type == "s" or type == "r" or type == "a" then
    text = type == "s" and print.str(run, v) or print.repr(run, v)
    if item.precision then text = str.slice(text, 0, math.min(item.precision, str.length(text))) end
  elseif type == "c" then
    text = printf_character(v)
  else
    text = printf_number(run, v, item)
  end
  return format.pad(run, text, item.width, item.flags:find("-", 1, true) and "<" or ">", item.padding)
end

local CONVERSIONS = { i = "d", u = "d" }

-- The item behind a "%" at `at`: its value as text, and the position behind it.
local function printf_at(run, s, at, state)
  local text = s.text
  if text:sub(at, at) == "%" then return str.sub(s, at, at), at + 1 end
  local name
  if text:sub(at, at) == "(" then
    local stop = text:find(")", at, true)
    if not stop then fault.raise("other", "incomplete format key") end
    name, at = str.own(text:sub(at + 1, stop - 1)), stop + 1
  end
  local flags, width, dot, precision, type, stop = text:match("^([-+ #0]*)(%*?%d*)(%.?)(%*?%d*)[hlL]?(.?)()", at)
  if type == "" then fault.raise("other", "incomplete format") end
  type = CONVERSIONS[type] or type
  local item = { flags = flags, type = type, padding = state.padding }
  local v = name and named_value(run, state, name)
  item.width = width == "*" and star(state) or math.tointeger(tonumber(width)) or width == "" and 0
  if not item.width then fault.raise("limit", "a format is too wide") end
  if dot ~= "" then
    item.precision = precision == "*" and math.max(star(state), 0) or math.tointeger(tonumber(precision)) or 0
  end
  if item.width < 0 then item.width, item.flags = -item.width, flags .. "-" end
  if v == nil then v = next_value(state) end
  if not type:find "[dxXoeEfFgGcrsa]" then fault.raise("other", "unsupported format character") end
  return printf_item(run, v, item), stop
end

---`text % values`. Text of the template around values keeps its provenance, and so do strings put in whole; a format
---that is not the template's own makes all of it foreign.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param values any
---@return kigo.jinja.Str
function format.printf(run, s, values)
  local is_own, text, k = str.is_own(s), s.text, kind(values)
  local state = { at = 1, values = { values }, n = 1, padding = str.new(" ", is_own) }
  if k == "tuple" then state.values, state.n = values, values.n end
  if k == "dict" then state.map = values end
  local pieces, at = {}, 1
  run:spend_bytes(#text)
  while true do
    local percent = text:find("%", at, true)
    pieces[#pieces + 1] = str.sub(s, at, percent and percent - 1 or #text)
    if not percent then break end
    run:spend(4)
    pieces[#pieces + 1], at = printf_at(run, s, percent + 1, state)
  end
  if state.at <= state.n and k ~= "dict" and k ~= "list" and k ~= "undefined" and k ~= "range" then
    fault.raise("type", "not all arguments converted during string formatting")
  end
  local made = str.concat(run, pieces)
  return is_own and made or str.foreign(made.text)
end

return format
