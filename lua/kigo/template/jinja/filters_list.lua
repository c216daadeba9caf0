-- Filters of lists and other things with items. Those that Python writes as generators give their items one at a time,
-- and only once.
local attributes = require "kigo.template.jinja.attributes"
local call = require "kigo.template.jinja.call"
local case = require "kigo.template.jinja.unicode"
local fault = require "kigo.template.jinja.fault"
local operators = require "kigo.template.jinja.operators"
local print = require "kigo.template.jinja.print"
local sort = require "kigo.template.jinja.sort"
local registry = require "kigo.template.jinja.registry"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local define = registry.filter

local function truth(v) return v ~= nil and value.truth(v) end

local function given(v)
  if v == nil or v == value.none then return nil end
  return v
end

-- ---- keys: attributes with dots, letters without case ----

local function attribute_path(attribute)
  if kind(attribute) ~= "str" then return { attribute } end
  local path = {}
  for part in (attribute.text .. "."):gmatch "([^.]*)%." do
    path[#path + 1] = part:find "^%d+$" and #part < 18 and math.tointeger(tonumber(part)) or str.own(part)
  end
  return path
end

---A function from an item to what an attribute path reaches, or to itself.
local function getter(run, attribute, default)
  if given(attribute) == nil then return function(item) return item end end
  local path = attribute_path(attribute)
  return function(item)
    for _, part in ipairs(path) do
      item = attributes.item(run, item, part)
      if default ~= nil and kind(item) == "undefined" then item = default end
    end
    return item
  end
end

local function lower(run, v)
  if kind(v) ~= "str" then return v end
  run:spend_bytes(#v.text * 4)
  return str.like(v, case.lower(v.text))
end

local function key_getter(run, attribute, case_sensitive, default)
  local get = getter(run, attribute, default)
  if truth(case_sensitive) then return get end
  return function(item) return lower(run, get(item)) end
end

-- ---- whole lists ----

define("list", "", function(run, v)
  local items, n = value.items(run, v)
  run:spend(n)
  return value.list(table.move(items, 1, n, 1, {}), n)
end)

define("length count", "", function(_, v)
  local n = value.length(v)
  if not n then fault.raise("type", "object of type '%s' has no len()", value.type_name(v)) end
  return n
end)

define("first", "", function(_, v)
  local item = value.iterate(v)()
  if item == nil then return value.undefined "No first item, sequence was empty." end
  return item
end)

define("last", "", function(run, v)
  local k = kind(v)
  if k == "iterator" or k == "loop" then fault.raise("type", "'%s' object is not reversible", value.type_name(v)) end
  local items, n = value.items(run, v)
  if n == 0 then return value.undefined "No last item, sequence was empty." end
  return items[n]
end)

local function reversed(items, n)
  return value.iterator(function()
    n = n - 1
    return items[n + 1]
  end)
end

define("reverse", "", function(run, v)
  if kind(v) == "str" then
    run:spend_bytes(#v.text * 32)
    local characters = {}
    for character in str.characters(v) do table.insert(characters, character) end
    local n = #characters
    for i = 1, n // 2 do characters[i], characters[n + 1 - i] = characters[n + 1 - i], characters[i] end
    return str.concat(run, characters)
  end
  if not value.try_iterate(v) then fault.raise("other", "argument must be iterable") end
  return reversed(value.items(run, v))
end)

define("join", "d? attribute?", function(run, v, separator, attribute)
  separator = separator and print.str(run, separator) or str.empty
  local get, pieces = getter(run, attribute), {}
  for item in value.iterate(v) do
    run:spend(2)
    if pieces[1] then pieces[#pieces + 1] = separator end
    pieces[#pieces + 1] = print.str(run, get(item))
  end
  return str.concat(run, pieces)
end)

define("sum", "attribute? start?", function(run, v, attribute, start)
  local get, total = getter(run, attribute), start == nil and 0 or start
  if kind(total) == "str" then fault.raise("type", "sum() can't sum strings") end
  for item in value.iterate(v) do
    run:spend(1)
    total = operators.binary["+"](run, total, get(item))
  end
  return total
end)

local function extreme(name, better)
  define(name, "case_sensitive? attribute?", function(run, v, case_sensitive, attribute)
    local key, best, best_key = key_getter(run, attribute, case_sensitive), nil, nil
    for item in value.iterate(v) do
      local item_key = key(item)
      if best == nil or better(run, item_key, best_key) then best, best_key = item, item_key end
    end
    if best == nil then return value.undefined "No aggregated item, sequence was empty." end
    return best
  end)
end

extreme("min", function(run, a, b) return value.less(a, b, "<", run) end)
extreme("max", function(run, a, b) return value.less(b, a, ">", run) end)

-- ---- order ----

define("sort", "reverse? case_sensitive? attribute?", function(run, v, descending, case_sensitive, attribute)
  local items, n = value.items(run, v)
  local gets = {}
  if given(attribute) and kind(attribute) == "str" then
    for name in (attribute.text .. ","):gmatch "([^,]*)," do
      gets[#gets + 1] = key_getter(run, str.own(name), case_sensitive)
    end
  else
    gets[1] = key_getter(run, attribute, case_sensitive)
  end
  local function key(item) -- a list, also for one attribute: equal items of lists need no order
    local keys = {}
    for i, get in ipairs(gets) do keys[i] = get(item) end
    return value.list(keys)
  end
  return value.list(sort.sorted(run, items, n, key, truth(descending)), n)
end)

define("dictsort", "case_sensitive? by? reverse?", function(run, v, case_sensitive, by, descending)
  if kind(v) ~= "dict" then
    if kind(v) == "undefined" then value.fail_undefined(v) end
    fault.raise("other", "'%s object' has no attribute 'items'", value.type_name(v))
  end
  local what = by and call.string(by, "by").text or "key"
  if what ~= "key" and what ~= "value" then fault.raise("other", "You can only sort by either \"key\" or \"value\"") end
  local items, n = value.items(run, value.view(v, "items"))
  local key = key_getter(run, what == "key" and 0 or 1, case_sensitive)
  return value.list(sort.sorted(run, items, n, key, truth(descending)), n)
end)

define("unique", "case_sensitive? attribute?", function(run, v, case_sensitive, attribute)
  local key, seen, next_item = key_getter(run, attribute, case_sensitive), {}, value.iterate(v)
  return value.iterator(function()
    for item in next_item do
      run:spend(2)
      local name = value.key(key(item), run)
      if not seen[name] then
        seen[name] = true
        return item
      end
    end
    return nil
  end)
end)

-- A pair that also has names.
local function group(key, items)
  local pair = value.tuple({ key, value.list(items) }, 2)
  pair.names = { grouper = 1, list = 2 }
  return pair
end

define("groupby", "attribute default? case_sensitive?", function(run, v, attribute, default, case_sensitive)
  local get, key = getter(run, attribute, given(default)), key_getter(run, attribute, case_sensitive, given(default))
  local items, n = value.items(run, v)
  items = sort.sorted(run, items, n, key)
  local groups, members, last = {}, nil, nil
  for i = 1, n do
    local now = key(items[i])
    if not members or not value.equals(last, now, run) then
      members, last = {}, now
      groups[#groups + 1] = group(get(items[i]), members)
    end
    members[#members + 1] = items[i]
    groups[#groups][2].n = #members
  end
  return value.list(groups)
end)

-- ---- parts ----

define("items", "", function(_, v)
  if kind(v) == "undefined" then return value.iterator(function() return nil end) end
  if kind(v) ~= "dict" then fault.raise("type", "Can only get item pairs from a mapping.") end
  return value.iterator(value.iterate(value.view(v, "items")))
end)

define("batch", "linecount fill_with?", function(run, v, count, filler)
  local next_item = value.iterate(v)
  count = call.integer(count, "linecount")
  local is_over = false
  return value.iterator(function()
    if is_over then return nil end
    local row = {}
    run:spend(8)
    for item in next_item do
      run:spend(1)
      row[#row + 1] = item
      if #row == count then return value.list(row) end
    end
    is_over = true
    if #row == 0 then return nil end
    if given(filler) then
      run:spend(math.max(count - #row, 0))
      for i = #row + 1, count do row[i] = filler end
    end
    return value.list(row)
  end)
end)

define("slice", "slices fill_with?", function(run, v, slices, filler)
  local items, n = value.items(run, v)
  slices = call.integer(slices, "slices")
  if slices == 0 then fault.raise("other", "integer division or modulo by zero") end
  local size, extra, i, at = n // slices, n % slices, 0, 1
  return value.iterator(function()
    if i >= slices then return nil end
    local count = size + (i < extra and 1 or 0)
    local row = table.move(items, at, at + count - 1, 1, {})
    run:spend(count + 8)
    at, i = at + count, i + 1
    if given(filler) and i > extra then row[count + 1] = filler end
    return value.list(row)
  end)
end)

-- ---- one item at a time ----

local function named_function(list, what, name)
  name = call.string(name, what .. " name").text
  local found = list[name]
  if not found then fault.raise("other", "No %s named '%s' found.", what, name:sub(1, 40)) end
  return found
end

local function rest_of(arguments, n, from)
  return table.move(arguments, from, n, 1, {}), math.max(n - from + 1, 0)
end

-- map('upper'), map('replace', 'a', 'b'), map(attribute='x', default='y')
local function mapper(run, arguments, n, keywords)
  if n == 0 and keywords and keywords.map.attribute ~= nil then
    for _, name in ipairs(keywords.names) do
      if name ~= "attribute" and name ~= "default" then fault.raise("other", "unexpected argument '%s'", name) end
    end
    return getter(run, keywords.map.attribute, given(keywords.map.default))
  end
  if n == 0 then fault.raise("other", "map requires a filter argument") end
  local filter = named_function(registry.filters, "filter", arguments[1])
  local rest, count = rest_of(arguments, n, 2)
  return function(item)
    return call.invoke(run, filter, item, table.move(rest, 1, count, 1, {}), count, keywords)
  end
end

define("map", "...", function(run, v, arguments, n, keywords)
  local convert, next_item
  return value.iterator(function()
    if not next_item then
      next_item = value.truth(v) and value.iterate(v) or function() return nil end
      convert = mapper(run, arguments, n, keywords)
    end
    run:spend(2)
    local item = next_item()
    if item == nil then return nil end
    return convert(item)
  end)
end)

-- The condition of select('odd') or selectattr('x', 'equalto', 1); without a test, truth.
local function condition(run, arguments, n, keywords, by_attribute)
  local get, at = getter(run), 1
  if by_attribute then
    if n == 0 then fault.raise("other", "Missing parameter for attribute name") end
    get, at = getter(run, arguments[1]), 2
  end
  if n < at then return function(item) return value.truth(get(item)) end end
  local test = named_function(registry.tests, "test", arguments[at])
  local rest, count = rest_of(arguments, n, at + 1)
  return function(item)
    return value.truth(call.invoke(run, test, get(item), table.move(rest, 1, count, 1, {}), count, keywords))
  end
end

local function define_selection(name, by_attribute, wanted)
  define(name, "...", function(run, v, arguments, n, keywords)
    local accept, next_item
    return value.iterator(function()
      if not next_item then
        next_item = value.truth(v) and value.iterate(v) or function() return nil end
        accept = condition(run, arguments, n, keywords, by_attribute)
      end
      for item in next_item do
        run:spend(2)
        if accept(item) == wanted then return item end
      end
      return nil
    end)
  end)
end

define_selection("select", false, true)
define_selection("reject", false, false)
define_selection("selectattr", true, true)
define_selection("rejectattr", true, false)
