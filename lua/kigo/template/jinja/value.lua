-- The values of a template: what Python's Jinja would hold, in Lua.
--
--   bool    Lua boolean            int, float   Lua integer, Lua float
--   str     see str.lua            none         value.none
--   list    { kind, n, [1..n] }    tuple        the same
--   dict    { kind, n, keys, values, index }: keys and values in order, and positions by value.key(key)
--   and undefined, range, view (of a dictionary), iterator, namespace, function, method, macro, loop, cycler, joiner
--
-- Every table has its kind in `kind`; templates reach none of these fields, only what operators, methods and attributes
-- of the kind offer. No value is nil.
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"

local value = {}

---@alias kigo.jinja.Value any

value.none = { kind = "none" }
local none = value.none

-- Python recurses about this deep before it gives up; so do printing, comparing and hashing here.
value.max_depth = 200

---@return string
function value.kind(v)
  local lua_type = type(v)
  if lua_type == "table" then return v.kind end
  if lua_type == "number" then return math.type(v) == "integer" and "int" or "float" end
  return "bool"
end
local kind = value.kind

local PYTHON_NAMES = { none = "NoneType", undefined = "Undefined", macro = "Macro", namespace = "Namespace",
  iterator = "generator", loop = "LoopContext" }

---The name of a value's type in messages.
---@return string
function value.type_name(v)
  local k = kind(v)
  return k == "view" and "dict_" .. v.what or PYTHON_NAMES[k] or k
end

---A list or tuple of what is in an array.
---@param items kigo.jinja.Value[]
---@param n? integer
---@return table
function value.list(items, n)
  items.kind, items.n = "list", n or #items
  return items
end

---@param items kigo.jinja.Value[]
---@param n? integer
---@return table
function value.tuple(items, n)
  items.kind, items.n = "tuple", n or #items
  return items
end

---What a name or attribute stands for that does not exist.
---@param message string|fun(): string   for whoever uses it
---@param fault_kind? "security"
---@return table
function value.undefined(message, fault_kind) return { kind = "undefined", message = message, fault = fault_kind } end

---Fail because of what is not defined.
---@param undefined table
function value.fail_undefined(undefined)
  local message = undefined.message
  fault.raise(undefined.fault or "undefined", type(message) == "function" and message() or message)
end

-- ---- numbers ----

---The shortest decimal digits that give this float, as Python writes it.
---@param x number
---@return string
function value.float_text(x)
  if x ~= x then return "nan" end
  if x == math.huge then return "inf" elseif x == -math.huge then return "-inf" end
  if x == 0 then return 1 / x < 0 and "-0.0" or "0.0" end
  local digits
  for precision = math.abs(x) < 2.3e-308 and 0 or 14, 16 do
    digits = ("%." .. precision .. "e"):format(x)
    if tonumber(digits) == x then break end
  end
  local sign, lead, rest, exponent = digits:match "^(-?)(%d)%.?(%d*)e([+-]%d+)$"
  exponent, rest = math.tointeger(tonumber(exponent)), rest:gsub("0+$", "")
  if exponent < -4 or exponent >= 16 then
    return ("%s%s%se%s%02d"):format(sign, lead, rest ~= "" and "." .. rest or "", exponent < 0 and "-" or "+",
      math.abs(exponent))
  end
  if exponent < 0 then return sign .. "0." .. ("0"):rep(-exponent - 1) .. lead .. rest end
  local all = lead .. rest .. ("0"):rep(exponent - #rest)
  local fraction = all:sub(exponent + 2)
  return sign .. all:sub(1, exponent + 1) .. "." .. (fraction == "" and "0" or fraction)
end

---A number in which true is 1 and false 0; nil for what is no number.
---@return number?
function value.number(v)
  if type(v) == "number" then return v end
  if v == true then return 1 elseif v == false then return 0 end
  return nil
end

-- ---- dictionaries ----

local function tuple_key(tuple, run, depth)
  run:spend(4 * tuple.n)
  if depth > value.max_depth then fault.raise("recursion", "a tuple is nested too deeply") end
  local parts = {}
  for i = 1, tuple.n do
    local item = tuple[i]
    local part = kind(item) == "tuple" and tuple_key(item, run, depth + 1) or value.key(item, run)
    local tag = math.type(part) or type(part)
    part = part == none and "" or tostring(part)
    parts[i] = ("%s%d:%s"):format(tag, #part, part)
  end
  return "\0t" .. table.concat(parts)
end

---What a dictionary is indexed with: equal values have equal keys.
---@param run kigo.jinja.Run.State   pays for tuples, which may hold much
---@return any
function value.key(v, run)
  local k = kind(v)
  if k == "str" then return v.text:byte() == 0 and "\0s" .. v.text or v.text end
  if k == "int" or k == "none" then return v end
  if k == "bool" then return v and 1 or 0 end
  if k == "float" then return v ~= v and none or math.tointeger(v) or v end
  if k == "tuple" then return tuple_key(v, run, 1) end
  if k == "undefined" then return value.undefined end -- all are equal
  if k == "list" or k == "dict" then fault.raise("type", "unhashable type: '%s'", value.type_name(v)) end
  return v
end

---@return table
function value.dict() return { kind = "dict", n = 0, keys = {}, values = {}, index = {} } end

---Set an entry; only while the dictionary is being made.
---@param dict table
---@param key kigo.jinja.Value
---@param item kigo.jinja.Value
---@param run kigo.jinja.Run.State
function value.set(dict, key, item, run)
  local name = value.key(key, run)
  local i = dict.index[name]
  if not i then
    i = dict.n + 1
    dict.n, dict.index[name], dict.keys[i] = i, i, key
  end
  dict.values[i] = item
end

---@param dict table
---@param key kigo.jinja.Value
---@param run kigo.jinja.Run.State
---@return kigo.jinja.Value?
function value.get(dict, key, run) return dict.values[dict.index[value.key(key, run)]] end

---A live look at a dictionary: its "keys", "values" or "items".
---@param dict table
---@param what "keys"|"values"|"items"
---@return table
function value.view(dict, what) return { kind = "view", dict = dict, what = what } end

---n integers.
---@param start integer
---@param stop integer
---@param step integer
---@param n integer
---@return table
function value.range(start, stop, step, n)
  return { kind = "range", start = start, stop = stop, step = step, n = n }
end

-- ---- truth, equality, order ----

---Number of items, or nil where there is no such thing.
---@return integer?
function value.length(v)
  local k = kind(v)
  if k == "list" or k == "tuple" or k == "dict" then return v.n end
  if k == "str" then return str.length(v) end
  if k == "undefined" then return 0 end
  if k == "view" then return v.dict.n end
  if k == "range" then return v.n end
  if k == "loop" then return v:length() end
  return nil
end

---@return boolean
function value.truth(v)
  if v == true or v == false then return v end
  if type(v) == "number" then return v ~= 0 end
  local k = v.kind
  if k == "str" then return v.text ~= "" end
  if k == "none" or k == "undefined" then return false end
  if k == "loop" then return true end
  local n = value.length(v)
  return n == nil or n > 0
end

local equals

local function equal_items(a, b, run, depth)
  if a.n ~= b.n then return false end
  for i = 1, a.n do
    if not equals(a[i], b[i], run, depth) then return false end
  end
  return true
end

local function equal_dicts(a, b, run, depth)
  if a.n ~= b.n then return false end
  for key, i in pairs(a.index) do
    local j = b.index[key]
    if not j or not equals(a.values[i], b.values[j], run, depth) then return false end
  end
  return true
end

-- Lua compares long strings byte by byte where their lengths agree.
local function equal_text(a, b, run)
  if #a ~= #b then return false end
  if #a > 256 then run:spend_bytes(#a) end
  return a == b
end

local function equal_ranges(a, b)
  return a.n == b.n and (a.n == 0 or a.start == b.start and (a.n == 1 or a.step == b.step))
end

function equals(a, b, run, depth)
  run:spend(1)
  if rawequal(a, b) then return true end
  if depth > value.max_depth then fault.raise("recursion", "values are nested too deeply to compare") end
  local x, y = value.number(a), value.number(b)
  if x or y then return x == y end
  local k = a.kind
  if k ~= b.kind then return false end
  if k == "str" then return equal_text(a.text, b.text, run) end
  if k == "list" or k == "tuple" then return equal_items(a, b, run, depth + 1) end
  if k == "dict" then return equal_dicts(a, b, run, depth + 1) end
  if k == "range" then return equal_ranges(a, b) end
  return k == "undefined"
end

---Python's ==; where a character came from makes no difference.
---@param run kigo.jinja.Run.State
---@return boolean
function value.equals(a, b, run) return equals(a, b, run, 1) end

local function refuse_order(a, b, operator)
  for _, v in ipairs { a, b } do
    if kind(v) == "undefined" then value.fail_undefined(v) end
  end
  fault.raise("type", "'%s' not supported between instances of '%s' and '%s'", operator, value.type_name(a),
    value.type_name(b))
end

local function less(a, b, operator, run, depth)
  local x, y = value.number(a), value.number(b)
  if x and y then return x < y end
  local k = kind(a)
  if k ~= kind(b) then refuse_order(a, b, operator) end
  if k == "str" then
    run:spend_bytes(math.min(#a.text, #b.text))
    return a.text < b.text
  end
  if k ~= "list" and k ~= "tuple" then refuse_order(a, b, operator) end
  if depth > value.max_depth then fault.raise("recursion", "values are nested too deeply to compare") end
  for i = 1, math.min(a.n, b.n) do
    if not equals(a[i], b[i], run, depth + 1) then return less(a[i], b[i], operator, run, depth + 1) end
  end
  return a.n < b.n
end

---Python's <, or what is made of it: the operator is named in the message of a refusal.
---@param operator string
---@param run kigo.jinja.Run.State
---@return boolean
function value.less(a, b, operator, run)
  run:spend(1)
  return less(a, b, operator, run, 1)
end

---Python's <=. Not the opposite of <: with NaN both are false.
---@return boolean
function value.less_or_equal(a, b, operator, run)
  local x, y = value.number(a), value.number(b)
  if x and y then return x <= y end
  return value.less(a, b, operator, run) or value.equals(a, b, run)
end

-- ---- iteration ----

---An iterator: it gives each item once.
---@param next_item fun(): kigo.jinja.Value?
---@return table
function value.iterator(next_item) return { kind = "iterator", next = next_item } end

local function each_item(items)
  local i = 0
  return function()
    i = i + 1
    if i > items.n then return nil end
    return items[i]
  end
end

-- The i-th item of a view.
local function view_item(view, i)
  local dict = view.dict
  if view.what == "items" then return value.tuple({ dict.keys[i], dict.values[i] }, 2) end
  return dict[view.what][i]
end

local function each_of(n, item)
  local i = 0
  return function()
    i = i + 1
    if i > n then return nil end
    return item(i)
  end
end

---A function that returns the next item, or nil; nil for what has no items.
---@return (fun(): kigo.jinja.Value?)?
function value.try_iterate(v)
  local k = kind(v)
  if k == "list" or k == "tuple" then return each_item(v) end
  if k == "str" then return str.characters(v) end
  if k == "dict" then return each_of(v.n, function(i) return v.keys[i] end) end
  if k == "iterator" then return v.next end
  if k == "view" then return each_of(v.dict.n, function(i) return view_item(v, i) end) end
  if k == "range" then return each_of(v.n, function(i) return v.start + (i - 1) * v.step end) end
  if k == "undefined" then return function() return nil end end
  if k == "loop" then
    return function()
      if not v:advance() then return nil end
      return value.tuple({ v.current, v }, 2)
    end
  end
  return nil
end

---The same, or a fault.
---@return fun(): kigo.jinja.Value?
function value.iterate(v)
  local next_item = value.try_iterate(v)
  if not next_item then fault.raise("type", "'%s' object is not iterable", value.type_name(v)) end
  return next_item
end

---All items as an array.
---@param run kigo.jinja.Run.State
---@return kigo.jinja.Value[] items
---@return integer n
function value.items(run, v)
  local k = kind(v)
  if k == "list" or k == "tuple" then return v, v.n end
  local items, n, next_item = {}, 0, value.iterate(v)
  for item in next_item do
    n = n + 1
    items[n] = item
    run:spend(6)
  end
  return items, n
end

return value
