-- What `.name` and `[index]` reach: the methods and attributes of a value's kind, the items of lists, strings and
-- dictionaries; nothing else exists. As in Python's immutable sandbox, names that begin with "__" and methods that
-- would change a value are refused when they are used.
local fault = require "kigo.template.jinja.fault"
local methods = require "kigo.template.jinja.methods"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local attributes = {}

local kind = value.kind

local function set(words)
  local names = {}
  for word in words:gmatch "%S+" do names[word] = true end
  return names
end

local MUTATING = {
  list = set "append clear extend insert pop remove reverse sort",
  dict = set "clear pop popitem setdefault update",
}

local function unsafe(v, name)
  return value.undefined(("access to attribute '%s' of '%s' object is unsafe."):format(name, value.type_name(v)),
    "security")
end

-- 'dict object' has no attribute 'x'; None has no element 0. Most are never read: templates ask whether things exist.
local function missing(run, v, index)
  return value.undefined(function()
    local owner = v == value.none and "None" or value.type_name(v) .. " object"
    if kind(index) ~= "str" then return ("%s has no element %s"):format(owner, print.repr(run, index).text) end
    run:spend_bytes(#index.text)
    return ("'%s' has no attribute %s"):format(owner, print.quote(index.text))
  end)
end

---The function behind `v.name(...)`, or nil.
---@param v any
---@param name string
---@return kigo.jinja.Function?
function attributes.method(v, name)
  local of_kind = methods[kind(v)]
  return of_kind and of_kind[name]
end

-- Everything that has a name and is no item: a method with its object, an attribute; nil where there is none.
local function named(run, v, name)
  local method = attributes.method(v, name)
  if method then return { kind = "method", self = v, method = method } end
  local k = kind(v)
  if k == "loop" then return v:attribute(name) end
  if k == "namespace" then return value.get(v.dict, str.own(name), run) end
  if k == "tuple" and v.names and v.names[name] then return v[v.names[name]] end
  if k == "macro" and name == "name" and v.name then return str.own(v.name) end
  if name:sub(1, 2) == "__" then return unsafe(v, name) end
  local refused = MUTATING[k]
  return refused and refused[name] and unsafe(v, name) or nil
end

local function check_defined(v)
  if kind(v) == "undefined" then value.fail_undefined(v) end
end

---`v.name`
---@param run kigo.jinja.Run.State
---@param name kigo.jinja.Str
---@return any
function attributes.get(run, v, name)
  check_defined(v)
  local found = named(run, v, name.text)
  if found == nil and kind(v) == "dict" then found = value.get(v, name, run) end
  if found == nil then return missing(run, v, name) end
  return found
end

---What the filter `attr` reaches: no items.
---@param run kigo.jinja.Run.State
---@param name kigo.jinja.Str
---@return any
function attributes.attribute(run, v, name)
  check_defined(v)
  local found = named(run, v, name.text)
  if found == nil then return missing(run, v, name) end
  return found
end

-- ---- items and slices ----

local function whole(index)
  local x = value.number(index)
  return math.type(x) == "integer" and x or nil
end

local function string_item(run, s, i)
  run:spend_bytes(#s.text)
  local n = str.length(s)
  if i < 0 then i = i + n end
  if i < 0 or i >= n then return nil end
  return str.slice(s, i, i + 1)
end

local function list_item(list, i)
  if i < 0 then i = i + list.n end
  return list[i + 1]
end

local function range_item(range, i)
  if i < 0 then i = i + range.n end
  if i < 0 or i >= range.n then return nil end
  return range.start + i * range.step
end

-- An item, or nil where there is none.
local function item(run, v, index)
  local k = kind(v)
  if k == "dict" then
    local index_kind = kind(index)
    if index_kind == "list" or index_kind == "dict" then return nil end
    return value.get(v, index, run)
  end
  local i = whole(index)
  if not i then return nil end
  if k == "list" or k == "tuple" then return list_item(v, i) end
  if k == "str" then return string_item(run, v, i) end
  if k == "range" then return range_item(v, i) end
  return nil
end

---The item of a mapping alone; nil where there is none.
---@param run kigo.jinja.Run.State
---@return any
function attributes.mapped(run, v, key)
  check_defined(v)
  if kind(v) ~= "dict" then fault.raise("type", "'%s' object is no mapping", value.type_name(v)) end
  return value.get(v, key, run)
end

---`v[index]`
---@param run kigo.jinja.Run.State
---@return any
function attributes.item(run, v, index)
  check_defined(v)
  local found = item(run, v, index)
  if found == nil and kind(index) == "str" then found = named(run, v, index.text) end
  if found == nil then return missing(run, v, index) end
  return found
end

local function bound(v, name)
  if v == nil or v == value.none then return nil end
  local x = whole(v)
  if not x then fault.raise("type", "slice %s must be an integer or None", name) end
  return x
end

local function clamp(x, n, low, high)
  if x < 0 then x = x + n end
  return x < low and low or x > high and high or x
end

---First position (0-based), number, step and end of a slice of n items.
local function slice_of(n, from, to, step)
  step = step or 1
  if step == 0 then fault.raise("other", "slice step cannot be zero") end
  local low, high = 0, n
  if step < 0 then low, high = -1, n - 1 end
  local first = from and clamp(from, n, low, high) or step > 0 and low or high
  local stop = to and clamp(to, n, low, high) or step > 0 and high or low
  if step > 0 then return first, first < stop and (stop - first - 1) // step + 1 or 0, step, stop end
  return first, first > stop and (first - stop - 1) // -step + 1 or 0, step, stop
end

local function slice_string(run, s, from, to, step)
  run:spend_bytes(#s.text)
  local first, count, by = slice_of(str.length(s), from, to, step)
  if by == 1 then return str.slice(s, first, first + count) end
  run:spend(6 * str.length(s) + count)
  local characters, pieces = {}, {}
  for character in str.characters(s) do characters[#characters + 1] = character end
  for i = 1, count do pieces[i] = characters[first + (i - 1) * by + 1] end
  return str.concat(run, pieces, count)
end

local function slice_list(run, v, from, to, step)
  local first, count, by = slice_of(v.n, from, to, step)
  run:spend(count)
  local items = {}
  for i = 1, count do items[i] = v[first + (i - 1) * by + 1] end
  return (v.kind == "list" and value.list or value.tuple)(items, count)
end

---`v[from:to:step]`; nil stands for what is left out.
---@param run kigo.jinja.Run.State
---@return any
function attributes.slice(run, v, from, to, step)
  check_defined(v)
  local k = kind(v)
  if k ~= "str" and k ~= "list" and k ~= "tuple" and k ~= "range" then
    fault.raise("type", "'%s' object has no slices", value.type_name(v))
  end
  from, to, step = bound(from, "indices"), bound(to, "indices"), bound(step, "step")
  if k == "str" then return slice_string(run, v, from, to, step) end
  if k == "range" then
    local first, count, by, stop = slice_of(v.n, from, to, step)
    return value.range(v.start + first * v.step, v.start + stop * v.step, v.step * by, count)
  end
  return slice_list(run, v, from, to, step)
end

return attributes
