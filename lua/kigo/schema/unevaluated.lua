-- unevaluated.lua - what unevaluatedProperties and unevaluatedItems leave to themselves. Which properties and items a
-- schema has looked at depends on which of its subschemas hold; each that looks at something is a condition, and for
-- every way in which the conditions can hold or not there is an ordinary statement about all the others.
local document = require "kigo.schema.document"
local refuse = require "kigo.schema.refuse"

local unevaluated = {}

local MAX_CONDITIONS = 6
local MAX_DEPTH = 50

---@class kigo.schema.Looked       at: under conditions
---@field conditions kigo.schema.Formula[]
---@field names string[]?          properties
---@field patterns table[]?
---@field all boolean?             all properties, or all items
---@field from integer?            the first item that is left
---@field of kigo.schema.Formula?  items that satisfy it

local Looks = {}
Looks.__index = Looks

function Looks:add(found)
  found.conditions = table.move(self.conditions, 1, #self.conditions, 1, {})
  self.list[#self.list + 1] = found
end

local OBJECTS, ARRAYS = {}, {}

function OBJECTS.properties(self, place, value)
  if document.is_object(value) then self:add { names = document.keys(value, place.pointer), patterns = {} } end
end

function OBJECTS.patternProperties(self, place, value)
  if not document.is_object(value) then return end
  local patterns = {}
  for i, key in ipairs(document.keys(value, place.pointer)) do patterns[i] = self.reader:pattern(key, place.pointer) end
  self:add { names = {}, patterns = patterns }
end

local function everything(self) self:add { all = true } end

OBJECTS.additionalProperties, OBJECTS.unevaluatedProperties = everything, everything

function ARRAYS.prefixItems(self, _, value)
  if document.is_list(value) then self:add { from = #value + 1 } end
end

function ARRAYS.items(self, _, value)
  if document.is_list(value) then self:add { from = #value + 1 } else self:add { all = true } end
end

ARRAYS.additionalItems = function(self, place)
  if document.is_list(place.schema.items) then self:add { all = true } end
end

ARRAYS.unevaluatedItems = everything

function ARRAYS.contains(self, place, value)
  self:add { of = self.reader:at(self.reader.document:inside(place, value, "contains")) }
end

-- What stands at the same value, under a condition.
function Looks:under(condition, place)
  self.conditions[#self.conditions + 1] = condition
  self:visit(place)
  self.conditions[#self.conditions] = nil
end

local JOINED = {}

JOINED["$ref"] = function(self, place, value)
  self:visit(self.reader.document:resolve(value, place, "$ref"))
end
JOINED["$dynamicRef"] = function(self, place, value)
  self:visit(self.reader.document:resolve(value, place, "$dynamicRef"))
end

function JOINED.allOf(self, place, value)
  for i, schema in ipairs(document.is_list(value) and value or {}) do
    self:visit(self.reader.document:inside(place, schema, "allOf", i - 1))
  end
end

local function alternatives(keyword)
  return function(self, place, value)
    for i, schema in ipairs(document.is_list(value) and value or {}) do
      local inner = self.reader.document:inside(place, schema, keyword, i - 1)
      self:under(self.reader:at(inner), inner)
    end
  end
end

JOINED.anyOf, JOINED.oneOf = alternatives "anyOf", alternatives "oneOf"

JOINED["if"] = function(self, place, value)
  local reader = self.reader
  local condition = reader.document:inside(place, value, "if")
  local holds = reader:at(condition)
  self:under(holds, condition)
  for keyword, when in pairs { ["then"] = holds, ["else"] = reader.formulas:never(holds) } do
    local schema = place.schema[keyword]
    if schema ~= nil then self:under(when, reader.document:inside(place, schema, keyword)) end
  end
end

function JOINED.dependentSchemas(self, place, value)
  if not document.is_object(value) then return end
  local reader = self.reader
  local is_object = reader:types({ "object" }, place.pointer)
  for _, key in ipairs(document.keys(value, place.pointer)) do
    local is_there = reader.formulas:all { is_object, reader:required(key, place.pointer) }
    self:under(is_there, reader.document:inside(place, value[key], "dependentSchemas", key))
  end
end

-- Everything that a schema looks at; `except`: the keyword that asks.
function Looks:visit(place, except)
  if type(place.schema) ~= "table" then return end
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then
    refuse.unsupported(self.where, ("schemas are combined more than %d deep"):format(MAX_DEPTH))
  end
  self.reader.formulas.budget:spend("work", 1)
  for _, group in ipairs { self.kinds, JOINED } do
    for keyword, look in pairs(group) do
      local value = place.schema[keyword]
      if value ~= nil and keyword ~= except then look(self, place, value) end
    end
  end
  self.depth = self.depth - 1
end

local function looked_at(reader, entry, kinds)
  local looks = setmetatable({
    reader = reader, kinds = kinds, list = {}, conditions = {}, depth = 0, where = entry.where,
  }, Looks)
  looks:visit(entry.place, entry.keyword)
  return looks.list
end

-- The formulas that decide who has looked, each once.
local function conditions_of(F, list, where)
  local seen, out = {}, {}
  for _, found in ipairs(list) do
    found.condition = F:all(found.conditions)
    if found.condition ~= F.yes and not seen[found.condition] then
      seen[found.condition] = true
      out[#out + 1] = found.condition
    end
  end
  table.sort(out, function(a, b) return a.id < b.id end)
  if #out > MAX_CONDITIONS then
    refuse.unsupported(where, ("what is left depends on more than %d subschemas"):format(MAX_CONDITIONS))
  end
  return out
end

-- For each way in which the conditions hold: that way, and what `statement` says of those who have looked then.
local function in_every_case(F, list, where, statement)
  local conditions, cases = conditions_of(F, list, where), {}
  for bits = 0, (1 << #conditions) - 1 do
    local parts, holds = {}, { [F.yes] = true }
    for i, condition in ipairs(conditions) do
      local is_true = bits >> (i - 1) & 1 == 1
      holds[condition] = is_true
      parts[i] = is_true and condition or F:never(condition)
    end
    local active = {}
    for _, found in ipairs(list) do active[#active + 1] = holds[found.condition] and found or nil end
    parts[#parts + 1] = statement(active)
    cases[#cases + 1] = F:all(parts)
  end
  return F:any(cases)
end

---What unevaluatedProperties says.
---@param reader kigo.schema.Reader
---@param entry kigo.schema.Entry
---@param child kigo.schema.Formula
---@return kigo.schema.Formula
function unevaluated.properties(reader, entry, child)
  local F = reader.formulas
  return in_every_case(F, looked_at(reader, entry, OBJECTS), entry.where, function(active)
    local names, patterns = {}, {}
    for _, found in ipairs(active) do
      if found.all then return F.yes end
      table.move(found.names, 1, #found.names, #names + 1, names)
      table.move(found.patterns, 1, #found.patterns, #patterns + 1, patterns)
    end
    return reader:others(names, patterns, child, entry.where)
  end)
end

---What unevaluatedItems says.
---@param reader kigo.schema.Reader
---@param entry kigo.schema.Entry
---@param child kigo.schema.Formula
---@return kigo.schema.Formula
function unevaluated.items(reader, entry, child)
  local F = reader.formulas
  return in_every_case(F, looked_at(reader, entry, ARRAYS), entry.where, function(active)
    local from, fits = 1, { child }
    for _, found in ipairs(active) do
      if found.all then return F.yes end
      from = math.max(from, found.from or 1)
      fits[#fits + 1] = found.of
    end
    return reader:rest(F:any(fits), from, entry.where)
  end)
end

return unevaluated
