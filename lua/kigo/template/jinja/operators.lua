-- Arithmetic, comparison and membership, as Python does them. Integers have 64 bits: more is a fault, never a wrong
-- number.
local fault = require "kigo.template.jinja.fault"
local format = require "kigo.template.jinja.format"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local operators = {}

local kind, number = value.kind, value.number

local function refuse(operator, a, b)
  for _, v in ipairs { a, b } do
    if kind(v) == "undefined" then value.fail_undefined(v) end
  end
  if operator == "+" and kind(a) == "str" then
    fault.raise("type", 'can only concatenate str (not "%s") to str', value.type_name(b))
  end
  fault.raise("type", "unsupported operand type(s) for %s: '%s' and '%s'", operator, value.type_name(a),
    value.type_name(b))
end

local function overflow() fault.raise("limit", "an integer has more than 64 bits") end

---Both as numbers of the same kind of arithmetic; nil where one is none.
local function numbers(a, b)
  local x, y = number(a), number(b)
  if x and y then return x, y end
  return nil
end

local function both_integers(x, y) return math.type(x) == "integer" and math.type(y) == "integer" end

---@type table<string, fun(run: kigo.jinja.Run.State, a: any, b: any): any>
operators.binary = {}
local binary = operators.binary

-- ---- + and * also join and repeat ----

local function join_lists(run, a, b)
  run:spend(a.n + b.n)
  local items = table.move(a, 1, a.n, 1, {})
  table.move(b, 1, b.n, a.n + 1, items)
  return (a.kind == "list" and value.list or value.tuple)(items, a.n + b.n)
end

local function integer_sum(x, y)
  local sum = x + y
  if (x ~ sum) & (y ~ sum) < 0 then overflow() end
  return sum
end

binary["+"] = function(run, a, b)
  local k = kind(a)
  if k == "str" and kind(b) == "str" then return str.add(run, a, b) end
  local x, y = numbers(a, b)
  if x then return both_integers(x, y) and integer_sum(x, y) or x + y end
  if (k == "list" or k == "tuple") and k == kind(b) then return join_lists(run, a, b) end
  refuse("+", a, b)
end

local function repeat_items(run, v, n)
  n = math.max(n, 0)
  if v.n > 0 and n > run.left // v.n then fault.raise("limit", "a list of %d times %d items is too long", n, v.n) end
  run:spend(n * v.n)
  local items = {}
  for i = 0, n - 1 do table.move(v, 1, v.n, i * v.n + 1, items) end
  return (v.kind == "list" and value.list or value.tuple)(items, n * v.n)
end

local function repeated(run, v, n)
  n = number(n)
  if math.type(n) ~= "integer" then return nil end
  local k = kind(v)
  if k == "str" then return str.rep(run, v, n) end
  return (k == "list" or k == "tuple") and repeat_items(run, v, n) or nil
end

local function integer_product(x, y)
  local product = x * y
  if math.abs((x + 0.0) * y - product) > 0x1p61 then overflow() end -- rounding is less, wrapping around more
  return product
end

binary["*"] = function(run, a, b)
  local x, y = numbers(a, b)
  if x then return both_integers(x, y) and integer_product(x, y) or x * y end
  return repeated(run, a, b) or repeated(run, b, a) or refuse("*", a, b)
end

-- ---- the rest of arithmetic ----

binary["-"] = function(_, a, b)
  local x, y = numbers(a, b)
  if not x then refuse("-", a, b) end
  if not both_integers(x, y) then return x - y end
  local difference = x - y
  if (x ~ y) & (x ~ difference) < 0 then overflow() end
  return difference
end

local function divisible(operator, a, b)
  local x, y = numbers(a, b)
  if not x then refuse(operator, a, b) end
  if y == 0 then fault.raise("other", "division by zero") end
  return x, y
end

binary["/"] = function(_, a, b)
  local x, y = divisible("/", a, b)
  return x / y
end

local function float_modulo(x, y)
  local rest = math.fmod(x, y)
  if rest == 0 then return y < 0 and -0.0 or 0.0 end
  return (rest < 0) ~= (y < 0) and rest + y or rest
end

binary["//"] = function(_, a, b)
  local x, y = divisible("//", a, b)
  if both_integers(x, y) then
    if x == math.mininteger and y == -1 then overflow() end
    return x // y
  end
  x, y = x + 0.0, y + 0.0
  local quotient = (x - float_modulo(x, y)) / y
  if quotient == 0 then return 1 / (x / y) < 0 and -0.0 or 0.0 end
  local floor = math.floor(quotient) + 0.0
  return quotient - floor > 0.5 and floor + 1.0 or floor
end

binary["%"] = function(run, a, b)
  if kind(a) == "str" then return format.printf(run, a, b) end
  local x, y = divisible("%", a, b)
  if both_integers(x, y) then return x % y end
  return float_modulo(x + 0.0, y + 0.0)
end

local function integer_power(base, exponent)
  local result = 1
  while exponent > 0 do
    if exponent & 1 == 1 then result = integer_product(result, base) end
    exponent = exponent >> 1
    if exponent > 0 then base = integer_product(base, base) end
  end
  return result
end

binary["**"] = function(_, a, b)
  local x, y = numbers(a, b)
  if not x then refuse("** or pow()", a, b) end
  if both_integers(x, y) and y >= 0 then
    if x == 0 or x == 1 then return y == 0 and 1 or x end
    if x == -1 then return y % 2 == 0 and 1 or -1 end
    return integer_power(x, y)
  end
  if x == 0 and y < 0 then fault.raise("other", "0.0 cannot be raised to a negative power") end
  local power = (x + 0.0) ^ y
  if power ~= power and x == x and y == y then fault.raise("type", "complex numbers are not supported") end
  if (power == math.huge or power == -math.huge) and math.abs(x) < math.huge and math.abs(y) < math.huge then
    fault.raise("other", "a number is too large")
  end
  return power
end

local function signed(v, sign)
  local x = number(v)
  if x then
    if x == math.mininteger and math.type(x) == "integer" and sign == "-" then overflow() end
    return sign == "-" and -x or x
  end
  if kind(v) == "undefined" then value.fail_undefined(v) end
  fault.raise("type", "bad operand type for unary %s: '%s'", sign, value.type_name(v))
end

function operators.negative(v) return signed(v, "-") end
function operators.positive(v) return signed(v, "+") end

---`~`: all as text, one after the other.
---@param run kigo.jinja.Run.State
---@param values any[]
---@return kigo.jinja.Str
function operators.join(run, values)
  for i, v in ipairs(values) do values[i] = print.str(run, v) end
  return str.concat(run, values)
end

-- ---- comparison ----

local function in_string(run, item, text)
  if kind(item) ~= "str" then
    fault.raise("type", "'in <string>' requires string as left operand, not %s", value.type_name(item))
  end
  run:spend_search(text.text, item.text)
  return text.text:find(item.text, 1, true) ~= nil
end

local function in_range(item, range)
  local x = math.tointeger(number(item))
  if not x or range.n == 0 then return false end
  local offset = x - range.start
  return offset % range.step == 0 and offset // range.step >= 0 and offset // range.step < range.n
end

local function in_dict(run, item, dict) return value.get(dict, item, run) ~= nil end

---`item in container`.
---@param run kigo.jinja.Run.State
---@return boolean
function operators.contains(run, container, item)
  local k = kind(container)
  if k == "str" then return in_string(run, item, container) end
  if k == "dict" then return in_dict(run, item, container) end
  if k == "view" and container.what == "keys" then return in_dict(run, item, container.dict) end
  if k == "range" then return in_range(item, container) end
  local next_item = value.try_iterate(container)
  if not next_item then
    fault.raise("type", "argument of type '%s' is not iterable", value.type_name(container))
  end
  for candidate in next_item do
    run:spend(1)
    if value.equals(candidate, item, run) then return true end
  end
  return false
end

---@type table<string, fun(run: kigo.jinja.Run.State, a: any, b: any): boolean>
operators.compare = {
  ["=="] = function(run, a, b) return value.equals(a, b, run) end,
  ["!="] = function(run, a, b) return not value.equals(a, b, run) end,
  ["<"] = function(run, a, b) return value.less(a, b, "<", run) end,
  [">"] = function(run, a, b) return value.less(b, a, ">", run) end,
  ["<="] = function(run, a, b) return value.less_or_equal(a, b, "<=", run) end,
  [">="] = function(run, a, b) return value.less_or_equal(b, a, ">=", run) end,
  ["in"] = function(run, a, b) return operators.contains(run, b, a) end,
  ["not in"] = function(run, a, b) return not operators.contains(run, b, a) end,
}

return operators
