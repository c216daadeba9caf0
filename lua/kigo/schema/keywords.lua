-- keywords.lua - what each keyword of a schema says, as a formula. Keywords that nobody knows are annotations, as the
-- standard has it; known ones that cannot be enforced are refused.
local core = require "kigo.core"
local json = require "kigo.json"
local decimal = require "kigo.schema.decimal"
local document = require "kigo.schema.document"
local formats = require "kigo.schema.formats"
local object = require "kigo.schema.object"
local refuse = require "kigo.schema.refuse"
local regex = require "kigo.regex"
local unevaluated = require "kigo.schema.unevaluated"

local keywords = {}

---@class kigo.schema.Reader
---@field formulas kigo.schema.Formulas
---@field document kigo.schema.Document
---@field formats boolean
---@field patterns table<string, table|string>
local Reader = {}
Reader.__index = Reader

---@param formulas kigo.schema.Formulas
---@param doc kigo.schema.Document
---@param options { formats: boolean }
---@return kigo.schema.Reader
function keywords.reader(formulas, doc, options)
  return setmetatable({ formulas = formulas, document = doc, formats = options.formats, patterns = {} }, Reader)
end

local READ = {} -- keyword -> function(self, entry) -> formula

-- ---- what stands behind a keyword ----

-- One keyword at one place, while it is read.
---@class kigo.schema.Entry
---@field place kigo.schema.Place
---@field keyword string
---@field value any
---@field where string     JSON pointer

local function malformed(entry, wanted) refuse.malformed(entry.where, wanted .. " expected") end

local function number_of(entry, value)
  local found = decimal.is(value) and value or (type(value) == "number" and decimal.of(value)) or nil
  if not found then malformed(entry, "a number") end
  return found
end

local function count_of(entry)
  local count = number_of(entry, entry.value):to_integer()
  if not count or count < 0 then malformed(entry, "a non-negative integer") end
  return count
end

local function list_of(entry, value)
  if value == nil then value = entry.value end
  local is_empty = type(value) == "table" and next(value) == nil
  if not is_empty and not document.is_list(value) then malformed(entry, "a list") end
  return value
end

local function names_of(entry, value)
  local list = list_of(entry, value)
  for _, name in ipairs(list) do
    if type(name) ~= "string" or not utf8.len(name) then malformed(entry, "a list of strings") end
  end
  return list
end

local function keys_of(entry)
  if not document.is_object(entry.value) then malformed(entry, "an object") end
  return document.keys(entry.value, entry.where)
end

---The formula of a subschema, read when it is asked for.
---@param entry kigo.schema.Entry
---@param value any
---@param ... string|integer
---@return kigo.schema.Formula
function Reader:child(entry, value, ...)
  return self:at(self.document:inside(entry.place, value, entry.keyword, ...))
end

local MAX_REFERENCES = 200

-- A schema that is nothing but a reference is what it refers to: so that equal ones are told to be equal.
function Reader:follow(place)
  for _ = 1, MAX_REFERENCES do
    local schema = place.schema
    if type(schema) ~= "table" or schema["$ref"] == nil or next(schema, next(schema)) ~= nil then return place end
    place = self.document:resolve(schema["$ref"], place, "$ref")
  end
  refuse.unsupported(place.pointer .. "/$ref", ("more than %d references in a row"):format(MAX_REFERENCES))
end

-- No keyword but annotations.
local function says_nothing(schema)
  for keyword in pairs(schema) do
    if READ[keyword] then return false end
  end
  return true
end

---The formula of the schema at a place.
---@param place kigo.schema.Place
---@return kigo.schema.Formula
function Reader:at(place)
  place = self:follow(place)
  if place.schema == false then return self.formulas.no end
  if place.schema == true or says_nothing(place.schema) then return self.formulas.yes end
  local name = ("%p %s"):format(place.schema, place.base)
  return self.formulas:later(name, place.pointer, function() return self:read(place) end)
end

function Reader:children(entry)
  local parts = {}
  for i, value in ipairs(list_of(entry)) do parts[i] = self:child(entry, value, i - 1) end
  if #parts == 0 then malformed(entry, "a list that is not empty") end
  return parts
end

-- ---- values ----

local TYPES = { null = { "null" }, boolean = { "true", "false" }, number = { "number" }, integer = { "integer" },
  string = { "string" }, array = { "array" }, object = { "object" } }

function Reader:types(names, where)
  local set, sorted = {}, {}
  for _, name in ipairs(names) do
    for _, kind in ipairs(TYPES[name]) do set[kind] = true end
  end
  for kind in pairs(set) do sorted[#sorted + 1] = kind end
  table.sort(sorted)
  return self.formulas:atom("types", nil, table.concat(sorted, " "), { set = set, where = where })
end

-- A value as { type, value }, scalars only.
local function scalar(value)
  if value == json.null then return "null" end
  if type(value) == "boolean" then return tostring(value) end
  if type(value) == "string" then return "string", value end
  if decimal.is(value) then return "number", value end
  if type(value) == "number" and value == value and math.abs(value) ~= math.huge then
    return "number", decimal.of(value)
  end
end

function Reader:list_constant(value, where)
  local F = self.formulas
  local parts = {
    self:types({ "array" }, where),
    F:atom("size_min", "array", #value, { n = #value, where = where }),
    F:atom("size_max", "array", #value, { n = #value, where = where }),
  }
  for i, item in ipairs(value) do
    local child = self:constant(item, document.pointer(where, i - 1))
    parts[#parts + 1] = F:atom("item", "array", i .. " " .. child.id, { i = i, of = child, where = where })
  end
  return F:all(parts)
end

function Reader:object_constant(value, where)
  local keys = document.keys(value, where)
  local parts = { self:types({ "object" }, where), self:others(keys, {}, self.formulas.no, where) }
  for _, key in ipairs(keys) do
    parts[#parts + 1] = self:required(key, where)
    parts[#parts + 1] = self:property(key, self:constant(value[key], document.pointer(where, key)), where)
  end
  return self.formulas:all(parts)
end

---One value.
---@param value any
---@param where string
---@return kigo.schema.Formula
function Reader:constant(value, where)
  local read = (document.is_list(value) or json.is_array(value)) and self.list_constant
    or document.is_object(value) and self.object_constant or self.scalar_constant
  self.formulas.budget:enter()
  local found = read(self, value, where)
  self.formulas.budget:leave()
  return found
end

function Reader:scalar_constant(value, where) return self:scalars({ value }, where) end

---One of several values that are neither lists nor objects.
function Reader:scalars(values, where)
  local node, names = { where = where }, {}
  for _, value in ipairs(values) do
    local kind, plain = scalar(value)
    if not kind or (kind == "string" and not utf8.len(plain)) then
      refuse.malformed(where, "a value of JSON expected, got a " .. type(value))
    end
    if plain then
      node[kind] = node[kind] or {}
      table.insert(node[kind], plain)
    else
      node[kind] = true
    end
    names[#names + 1] = ("%s:%d:%s"):format(kind, #tostring(plain), tostring(plain))
  end
  return self.formulas:atom("values", nil, table.concat(names), node)
end

-- ---- objects ----

function Reader:required(name, where)
  return self.formulas:atom("required", "object", name, { name = name, where = where })
end

function Reader:property(name, child, where)
  return self.formulas:atom("property", "object", #name .. ":" .. name .. child.id,
    { name = name, of = child, where = where })
end

---Every property that is not among the names and matches none of the patterns fits.
---@param names string[]
---@param patterns table[]     languages
---@param child kigo.schema.Formula
---@param where string
function Reader:others(names, patterns, child, where)
  local set, parts = {}, {}
  for _, name in ipairs(names) do
    if not set[name] then parts[#parts + 1] = #name .. ":" .. name end
    set[name] = true
  end
  table.sort(parts)
  for _, pattern in ipairs(patterns) do parts[#parts + 1] = ("%p"):format(pattern) end
  return self.formulas:atom("others", "object", table.concat(parts, " ") .. " of " .. child.id,
    { names = set, patterns = patterns, of = child, where = where })
end

---The strings in which a pattern is found.
function Reader:pattern(text, where)
  if type(text) ~= "string" then refuse.malformed(where, "a string expected") end
  local node = self.patterns[text]
  if not node then
    local message, code
    node, message, code = regex.parse(text, { anchored = false, lenient = true })
    if not node then
      if code == core.err.FORMAT then refuse.malformed(where, message) end
      refuse.unsupported(where, message)
    end
    if type(node) == "string" then node = { "seq", node } end -- one table, so that it can be told from others
    self.patterns[text] = node
  end
  return node
end

-- Counts above this are counts that nothing here reaches.
local MAX_COUNT = 1000000000

-- A limit of length or size; `op` ends in _min or _max.
local function size(op, type)
  return function(self, entry)
    local n = count_of(entry)
    if n > MAX_COUNT then
      if op:find "_max$" then return self.formulas.yes end
      refuse.unsupported(entry.where, ("more than %d"):format(MAX_COUNT))
    end
    return self.formulas:atom(op, type, n, { n = n, where = entry.where })
  end
end


-- ---- keywords of all types ----

READ["$ref"] = function(self, entry) return self:at(self.document:resolve(entry.value, entry.place, "$ref")) end
READ["$dynamicRef"] = function(self, entry)
  return self:at(self.document:resolve(entry.value, entry.place, "$dynamicRef"))
end
READ["$recursiveRef"] = function(_, entry) refuse.unsupported(entry.where, "$recursiveRef is not supported") end

function READ.type(self, entry)
  local names = entry.value
  if type(names) == "string" then names = { names } end
  for _, name in ipairs(names_of(entry, names)) do
    if not TYPES[name] then refuse.malformed(entry.where, ("unknown type %q"):format(name:sub(1, 40))) end
  end
  return self:types(names, entry.where)
end

local MAX_COMPOUNDS = 300 -- each makes an alternative

function READ.const(self, entry) return self:constant(entry.value, entry.where) end

function READ.enum(self, entry)
  local plain, parts = {}, {}
  for i, value in ipairs(list_of(entry)) do
    if scalar(value) then
      plain[#plain + 1] = value
    elseif #parts == MAX_COMPOUNDS then
      refuse.unsupported(entry.where, ("more than %d lists and objects"):format(MAX_COMPOUNDS))
    else
      parts[#parts + 1] = self:constant(value, document.pointer(entry.where, i - 1))
    end
  end
  if #plain > 0 then parts[#parts + 1] = self:scalars(plain, entry.where) end
  return self.formulas:any(parts)
end

function READ.allOf(self, entry) return self.formulas:all(self:children(entry)) end
function READ.anyOf(self, entry) return self.formulas:any(self:children(entry)) end
function READ.oneOf(self, entry) return self.formulas:one(self:children(entry), entry.where) end
READ["not"] = function(self, entry) return self.formulas:never(self:child(entry, entry.value)) end

READ["if"] = function(self, entry)
  local F, schema = self.formulas, entry.place.schema
  if schema["then"] == nil and schema["else"] == nil then return F.yes end
  local condition = self:child(entry, entry.value)
  local function branch(keyword)
    if schema[keyword] == nil then return F.yes end
    return self:at(self.document:inside(entry.place, schema[keyword], keyword))
  end
  return F:any { F:all { condition, branch "then" }, F:all { F:never(condition), branch "else" } }
end

-- ---- numbers ----

local function bound(low, open)
  return function(self, entry)
    local schema, is_open = entry.place.schema, open
    if type(entry.value) == "boolean" and open then return self.formulas.yes end -- draft 4: read with the limit itself
    if not open and schema[low and "exclusiveMinimum" or "exclusiveMaximum"] == true then is_open = true end
    local value = number_of(entry, entry.value)
    return self.formulas:atom("range", "number", ("%s%s%s"):format(low and ">" or "<", is_open and "" or "=", value),
      { value = value, low = low, open = is_open, where = entry.where })
  end
end

READ.minimum, READ.exclusiveMinimum = bound(true, false), bound(true, true)
READ.maximum, READ.exclusiveMaximum = bound(false, false), bound(false, true)

function READ.multipleOf(self, entry)
  local value = number_of(entry, entry.value)
  if value.negative or value:is_zero() then malformed(entry, "a number above 0") end
  local k, places = value:as_divisor()
  return self.formulas:atom("multiple", "number", tostring(value), { k = k, places = places, where = entry.where })
end

-- ---- strings ----


READ.minLength, READ.maxLength = size("length_min", "string"), size("length_max", "string")

function READ.pattern(self, entry)
  local node = self:pattern(entry.value, entry.where)
  return self.formulas:atom("text", "string", ("%p"):format(node), { language = node, where = entry.where })
end

function READ.format(self, entry)
  if type(entry.value) ~= "string" then malformed(entry, "a string") end
  if not self.formats then return self.formulas.yes end
  local node, why = formats.get(entry.value)
  if why then refuse.unsupported(entry.where, why) end
  if not node then return self.formulas.yes end
  return self.formulas:atom("text", "string", "format " .. entry.value, { language = node, where = entry.where })
end

-- ---- lists ----

READ.minItems, READ.maxItems = size("size_min", "array"), size("size_max", "array")

function Reader:positions(entry)
  local parts = {}
  for i, value in ipairs(list_of(entry)) do
    local child = self:child(entry, value, i - 1)
    parts[i] = self.formulas:atom("item", "array", i .. " " .. child.id, { i = i, of = child, where = entry.where })
  end
  return self.formulas:all(parts)
end

function Reader:rest(child, from, where)
  return self.formulas:atom("items", "array", from .. " " .. child.id, { from = from, of = child, where = where })
end

READ.prefixItems = Reader.positions

function READ.items(self, entry)
  if document.is_list(entry.value) then return self:positions(entry) end -- before 2020-12
  local prefix = entry.place.schema.prefixItems
  return self:rest(self:child(entry, entry.value), type(prefix) == "table" and #prefix + 1 or 1, entry.where)
end

function READ.additionalItems(self, entry)
  local items = entry.place.schema.items
  if not document.is_list(items) then return self.formulas.yes end
  return self:rest(self:child(entry, entry.value), #items + 1, entry.where)
end

local function count_beside(entry, keyword)
  local value = entry.place.schema[keyword]
  if value == nil then return nil end
  return count_of { value = value, where = document.pointer(entry.place.pointer, keyword) }
end

function READ.contains(self, entry)
  local F, child = self.formulas, self:child(entry, entry.value)
  local function some(op, n)
    return F:atom(op, "array", ("%d 1 %d"):format(n, child.id), { n = n, from = 1, of = child, where = entry.where })
  end
  local most = count_beside(entry, "maxContains")
  return F:all { some("some_min", count_beside(entry, "minContains") or 1), most and some("some_max", most) or F.yes }
end

function READ.uniqueItems(self, entry)
  if type(entry.value) ~= "boolean" then malformed(entry, "a boolean") end
  if not entry.value then return self.formulas.yes end
  return self.formulas:atom("unique", "array", "", { where = entry.where })
end

-- ---- properties ----

READ.minProperties, READ.maxProperties = size("count_min", "object"), size("count_max", "object")

function READ.required(self, entry)
  local parts = {}
  for i, name in ipairs(names_of(entry)) do parts[i] = self:required(name, entry.where) end
  return self.formulas:all(parts)
end

function READ.properties(self, entry)
  local parts, keys = {}, keys_of(entry)
  if #keys > object.max_names then refuse.unsupported(entry.where, ("more than %d"):format(object.max_names)) end
  for i, key in ipairs(keys) do
    parts[i] = self:property(key, self:child(entry, entry.value[key], key), document.pointer(entry.where, key))
  end
  return self.formulas:all(parts)
end

function READ.patternProperties(self, entry)
  local parts = {}
  for i, key in ipairs(keys_of(entry)) do
    local where = document.pointer(entry.where, key)
    local node, child = self:pattern(key, where), self:child(entry, entry.value[key], key)
    parts[i] = self.formulas:atom("matching", "object", ("%p %d"):format(node, child.id),
      { language = node, of = child, where = where })
  end
  return self.formulas:all(parts)
end

function READ.additionalProperties(self, entry)
  local schema, patterns, names = entry.place.schema, {}, {}
  if document.is_object(schema.properties) then names = document.keys(schema.properties, entry.where) end
  if document.is_object(schema.patternProperties) then
    for i, key in ipairs(document.keys(schema.patternProperties, entry.where)) do
      patterns[i] = self:pattern(key, entry.where)
    end
  end
  return self:others(names, patterns, self:child(entry, entry.value), entry.where)
end

function READ.propertyNames(self, entry)
  local child = self:child(entry, entry.value)
  return self.formulas:atom("names", "object", child.id, { of = child, where = entry.where })
end

-- If the value is an object with that property, then.
function Reader:implies(name, consequence, where)
  local F = self.formulas
  return F:any { F:never(self:types({ "object" }, where)), F:never(self:required(name, where)), consequence }
end

function Reader:all_required(entry, list)
  local parts = {}
  for i, name in ipairs(names_of(entry, list)) do parts[i] = self:required(name, entry.where) end
  return self.formulas:all(parts)
end

function READ.dependentRequired(self, entry)
  local parts = {}
  for i, key in ipairs(keys_of(entry)) do
    parts[i] = self:implies(key, self:all_required(entry, entry.value[key]), entry.where)
  end
  return self.formulas:all(parts)
end

-- `dependencies` is what both were before 2019-09.
local function dependent(self, entry)
  local parts = {}
  for i, key in ipairs(keys_of(entry)) do
    local value = entry.value[key]
    local is_names = entry.keyword == "dependencies" and document.is_list(value)
    local consequence = is_names and self:all_required(entry, value) or self:child(entry, value, key)
    parts[i] = self:implies(key, consequence, entry.where)
  end
  return self.formulas:all(parts)
end

READ.dependentSchemas, READ.dependencies = dependent, dependent

-- What the rest of the schema has looked at depends on which of its parts hold: see unevaluated.lua.
function READ.unevaluatedProperties(self, entry)
  local child = self:child(entry, entry.value)
  return child == self.formulas.yes and child or unevaluated.properties(self, entry, child)
end

function READ.unevaluatedItems(self, entry)
  local child = self:child(entry, entry.value)
  return child == self.formulas.yes and child or unevaluated.items(self, entry, child)
end

---@param place kigo.schema.Place
---@return kigo.schema.Formula
function Reader:read(place)
  local present, parts = {}, {}
  for keyword in pairs(place.schema) do
    if READ[keyword] then present[#present + 1] = keyword end
  end
  table.sort(present)
  for i, keyword in ipairs(present) do
    local where = document.pointer(place.pointer, keyword)
    parts[i] = READ[keyword](self, { place = place, keyword = keyword, value = place.schema[keyword], where = where })
  end
  return self.formulas:all(parts)
end

return keywords
