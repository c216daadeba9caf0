-- "{}".format(...): the fields of a format string, and the format specifications behind their colons.
local attributes = require "kigo.template.jinja.attributes"
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local format = require "kigo.template.jinja.format"
local methods = require "kigo.template.jinja.methods"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local function refuse(message, ...) fault.raise("other", message, ...) end

-- ---- specifications: [[fill]align][sign][#][0][width][,][.precision][type] ----

local CHARACTER = "[\0-\x7f\xc2-\xf4][\x80-\xbf]*"

local function parse_spec(text)
  local fill, align, at = text:match("^(" .. CHARACTER .. ")([<>=^])()")
  if not fill then align, at = text:match "^([<>=^]?)()" end
  local sign, alternate, zero, width, group, precision, type, stop =
    text:match("^([-+ ]?)(#?)(0?)(%d*)([,_]?)(%.?%d*)([a-zA-Z%%]?)()", at)
  if stop <= #text or precision == "." then refuse "invalid format specifier" end
  if #width > 9 or #precision > 9 then fault.raise("limit", "a format is too wide") end
  if align == "" then align = nil end
  if zero == "0" and not align then align, fill = "=", fill or "0" end
  return { fill = fill or zero == "0" and "0" or " ", align = align, sign = sign, alternate = alternate ~= "",
    width = math.tointeger(tonumber(width)) or 0, group = group, type = type,
    precision = math.tointeger(tonumber((precision:sub(2)))) }
end

local function format_string(run, s, spec, padding)
  if spec.type ~= "" and spec.type ~= "s" then refuse("unknown format code '%s' for a string", spec.type) end
  if spec.align == "=" or spec.sign ~= "" or spec.group ~= "" then refuse "not allowed in string format specifier" end
  if spec.precision then s = str.slice(s, 0, math.min(spec.precision, str.length(s))) end
  return format.pad(run, s, spec.width, spec.align or "<", padding)
end

local function grouped(digits, separator)
  local whole, rest = digits:match "^(%d+)(.*)$"
  if separator == "" or not whole then return digits end
  whole = whole:reverse():gsub("%d%d%d", "%0" .. separator):reverse()
  return whole:gsub("^[,_]", "") .. rest
end

-- Python's repr-like format of a float without a type, or with a precision alone.
local function plain_float(x, precision)
  if not precision then return value.float_text(x) end
  local digits = format.digits(x, "g", math.max(precision, 1))
  return digits:find "[.ein]" and digits or digits .. ".0"
end

local function number_digits(x, spec)
  local type = spec.type
  if math.type(x) == "integer" then
    if type == "" or type == "n" then type = "d" end
    if type == "c" then
      if x > 0x10FFFF then refuse "%c arg not in range" end
      return utf8.char(x)
    end
    if type:find "[dxXob]" then
      if spec.precision then refuse "precision not allowed in integer format specifier" end
      return (spec.alternate and type ~= "d" and "0" .. type or "") .. format.digits(x, type)
    end
  elseif type == "" then
    return plain_float(x, spec.precision)
  end
  if type == "%" then return format.digits(x * 100.0, "f", spec.precision) .. "%" end
  if type == "n" then type = "g" end
  if not type:find "[eEfFgG]" then refuse("unknown format code '%s'", type) end
  return format.digits(x, type, spec.precision)
end

local function format_number(run, x, spec, padding)
  local sign, magnitude = format.sign(x, spec.sign == "-" and "" or spec.sign)
  local digits = grouped(number_digits(magnitude, spec), spec.group)
  if spec.align == "=" then
    digits = format.pad(run, str.foreign(digits), spec.width - #sign, ">", str.foreign(spec.fill)).text
  end
  return format.pad(run, str.foreign(sign .. digits), spec.width, spec.align or ">", padding)
end

-- format(v, spec)
local function format_value(run, v, spec_text, is_own)
  if spec_text == "" then return print.str(run, v) end
  local spec, k = parse_spec(spec_text), kind(v)
  local padding = str.new(spec.fill, is_own)
  if k == "str" or k == "undefined" then return format_string(run, print.str(run, v), spec, padding) end
  local x = value.number(v)
  if not x then fault.raise("type", "unsupported format string passed to %s.__format__", value.type_name(v)) end
  if k == "bool" and spec.type == "" then return format_string(run, print.str(run, v), spec, padding) end
  return format_number(run, x, spec, padding)
end

-- ---- fields ----

---@class kigo.jinja.Fields
---@field arguments table       a tuple
---@field map table             a dictionary
---@field automatic integer?    number of the next {}
---@field is_own boolean        is the format the template's own?

local function argument(run, fields, name)
  if name == "" then
    if not fields.automatic then refuse "cannot switch from manual field specification to automatic field numbering" end
    name, fields.automatic = tostring(fields.automatic), fields.automatic + 1
  elseif name:find "^%d+$" then
    if fields.automatic and fields.automatic > 0 then
      refuse "cannot switch from automatic field numbering to manual field specification"
    end
    fields.automatic = nil
  end
  local v
  local i = name:find "^%d+$" and math.tointeger(tonumber(name))
  if i then v = fields.arguments[i + 1] else v = attributes.mapped(run, fields.map, str.own(name)) end
  if v == nil then refuse "the format has a field without an argument" end
  return v
end

-- name.attribute[item]...
local function field_value(run, fields, text)
  local name, at = text:match "^([^.%[]*)()"
  local v = argument(run, fields, name)
  while at <= #text do
    local attribute, after = text:match("^%.([^.%[]+)()", at)
    if attribute then
      v = attributes.get(run, v, str.own(attribute))
    else
      local index
      index, after = text:match("^%[([^%]]+)%]()", at)
      if not index then refuse "empty attribute in format string" end
      v = attributes.item(run, v, index:find "^%d+$" and math.tointeger(tonumber(index)) or str.own(index))
    end
    at = after
  end
  return v
end

local braces

-- name!conversion:specification
local function split_field(body)
  local name, rest = body:match "^([^!:]*)(.*)$"
  local conversion, spec = rest:match "^!(.)(.*)$"
  spec = spec or rest
  if conversion and not conversion:find "[rsa]" then refuse "unknown conversion specifier" end
  if spec ~= "" and spec:sub(1, 1) ~= ":" then refuse "expected ':' after conversion specifier" end
  return name, conversion, spec:sub(2)
end

-- The inside of a field: its value as text. What a specification takes from the arguments pads with their provenance.
local function field(run, body, fields, depth)
  local name, conversion, spec_text = split_field(body)
  local v, spec = field_value(run, fields, name), str.new(spec_text, fields.is_own)
  if conversion then v = (conversion == "s" and print.str or print.repr)(run, v) end
  if spec_text:find("{", 1, true) then spec = braces(run, spec, fields, depth + 1) end
  return format_value(run, v, spec.text, str.is_own(spec))
end

-- Where the field that begins behind `at` ends.
local function closing(text, at)
  local open = 1
  while open > 0 do
    local brace = text:find("[{}]", at)
    if not brace then refuse "expected '}' before end of string" end
    open = open + (text:byte(brace) == 123 and 1 or -1)
    at = brace + 1
  end
  return at - 1
end

function braces(run, s, fields, depth)
  if depth > 2 then refuse "max string recursion exceeded" end
  local text, pieces, at = s.text, {}, 1
  run:spend_bytes(#text * 4)
  while true do
    local brace = text:find("[{}]", at)
    pieces[#pieces + 1] = str.sub(s, at, brace and brace - 1 or #text)
    if not brace then break end
    run:spend(4)
    if text:byte(brace) == text:byte(brace + 1) then
      pieces[#pieces + 1] = str.sub(s, brace, brace)
      at = brace + 2
    else
      if text:byte(brace) == 125 then refuse "single '}' encountered in format string" end
      local stop = closing(text, brace + 1)
      pieces[#pieces + 1] = field(run, text:sub(brace + 1, stop - 1), fields, depth)
      at = stop + 1
    end
  end
  return str.concat(run, pieces)
end

-- As with "%": a format that is not the template's own makes all of it foreign.
local function format_braces(run, s, arguments, map)
  local is_own = str.is_own(s)
  local made = braces(run, s, { arguments = arguments, map = map, automatic = 0, is_own = is_own }, 1)
  return is_own and made or str.foreign(made.text)
end

methods.str.format = call.native("format", "...", function(run, s, arguments, n, keywords)
  return format_braces(run, s, value.tuple(arguments, n), call.keyword_dict(run, keywords))
end)

methods.str.format_map = call.native("format_map", "mapping", function(run, s, mapping)
  return format_braces(run, s, value.tuple({}, 0), mapping)
end)
