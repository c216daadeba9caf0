-- document.lua - the schema as a document: where its subschemas stand, what they are called ($id, $anchor) and what a
-- $ref leads to. Nothing outside the document is ever looked for.
local json = require "kigo.json"
local decimal = require "kigo.schema.decimal"
local refuse = require "kigo.schema.refuse"
local uri = require "kigo.schema.uri"

local document = {}

local MAX_DEPTH = 64

-- How a keyword holds subschemas.
local HOLDERS = {
  properties = "map", patternProperties = "map", ["$defs"] = "map", definitions = "map", dependentSchemas = "map",
  dependencies = "map",
  allOf = "list", anyOf = "list", oneOf = "list", prefixItems = "list",
  items = "one", additionalItems = "one", additionalProperties = "one", unevaluatedItems = "one",
  unevaluatedProperties = "one", contains = "one", propertyNames = "one", ["not"] = "one", ["if"] = "one",
  ["then"] = "one", ["else"] = "one", contentSchema = "one",
}

-- The dialects that this front end reads. They differ where a keyword was renamed or took another form, and the old
-- forms are told by their shape; `id` names a schema in draft 4 only.
local DIALECTS = {
  ["http://json-schema.org/schema"] = true, ["http://json-schema.org/draft-04/schema"] = true,
  ["http://json-schema.org/draft-06/schema"] = true, ["http://json-schema.org/draft-07/schema"] = true,
  ["https://json-schema.org/draft/2019-09/schema"] = true, ["https://json-schema.org/draft/2020-12/schema"] = true,
}

---@class kigo.schema.Place
---@field schema table|boolean
---@field pointer string    JSON pointer in the document, with "#" in front
---@field base string       URI that references in it start from

---@class kigo.schema.Document
---@field root kigo.schema.Place
local Document = {}
Document.__index = Document

---A list of JSON: marked as one, or a Lua table with something at 1.
---@param value any
---@return boolean
function document.is_list(value)
  if type(value) ~= "table" or decimal.is(value) or value == json.null or json.is_object(value) then return false end
  return json.is_array(value) or #value > 0
end

---An object of JSON. An empty table that nobody marked is one.
---@param value any
---@return boolean
function document.is_object(value)
  if type(value) ~= "table" or decimal.is(value) or value == json.null then return false end
  return not document.is_list(value) and not json.is_array(value)
end

---Its keys, in the order of the text where there was one.
---@param object table
---@param where string
---@return string[]
function document.keys(object, where)
  for key in pairs(object) do
    if type(key) ~= "string" then
      refuse.malformed(where, "an object has the key " .. tostring(key) .. ", which is no string")
    end
    if not utf8.len(key) then refuse.malformed(where, ("the key %q is not UTF-8"):format(key:sub(1, 40))) end
  end
  return json.keys(object)
end

---@param pointer string
---@param token string|integer
---@return string
function document.pointer(pointer, token)
  return pointer .. "/" .. tostring(token):gsub("~", "~0"):gsub("/", "~1")
end

---@param value any
---@param where string
local function check_schema(value, where)
  if type(value) == "boolean" or document.is_object(value) then return end
  refuse.malformed(where, ("a schema is an object or a boolean, and this is a %s"):format(type(value)))
end

local function place(schema, pointer, base) return { schema = schema, pointer = pointer, base = base } end

---The place of a subschema.
---@param from kigo.schema.Place
---@param value any
---@param ... string|integer   keys that lead there
---@return kigo.schema.Place
function Document:inside(from, value, ...)
  local pointer = from.pointer
  for _, token in ipairs { ... } do pointer = document.pointer(pointer, token) end
  check_schema(value, pointer)
  local known = self._places[value] and self._places[value][from.base]
  if known then return known end
  return place(value, pointer, self:_base(value, from.base))
end

-- What names the schema: $id, and in draft 4 id.
function Document:_id(schema)
  local id = schema["$id"]
  if id == nil and self._old_id then id = schema.id end
  return type(id) == "string" and id or nil
end

function Document:_base(schema, base)
  local id = type(schema) == "table" and self:_id(schema)
  if not id or id:sub(1, 1) == "#" then return base end
  return (uri.resolve(base, id))
end

function Document:_check_dialect(schema, where)
  local dialect = schema["$schema"]
  if dialect == nil or self._any_dialect then return end
  local name = type(dialect) == "string" and dialect:gsub("#$", "") or ""
  if not DIALECTS[name] then
    refuse.unsupported(where .. "/$schema", ("unknown dialect %q"):format(tostring(dialect):sub(1, 100)))
  end
  return name
end

function Document:_name(at, inherited)
  local schema = at.schema
  local function anchor(name, dynamic)
    if type(name) ~= "string" then return end
    local key = at.base .. "#" .. name
    self._anchors[key] = self._anchors[key] or at
    if dynamic then
      self._dynamic[name] = (self._dynamic[name] or 0) + 1
      self._is_dynamic[key] = true
    end
  end
  if at.base ~= inherited or at.pointer == "#" then self._resources[at.base] = self._resources[at.base] or at end
  local id = self:_id(schema)
  if id and id:sub(1, 1) == "#" then anchor(id:sub(2)) end
  anchor(schema["$anchor"])
  anchor(schema["$dynamicAnchor"], true)
end

local function visit_children(at, visit)
  for keyword, value in pairs(at.schema) do
    local holds = HOLDERS[keyword]
    if holds == "map" and document.is_object(value) then
      for _, key in ipairs(document.keys(value, document.pointer(at.pointer, keyword))) do
        visit(value[key], document.pointer(document.pointer(at.pointer, keyword), key))
      end
    elseif holds and document.is_list(value) then
      for i, item in ipairs(value) do
        visit(item, document.pointer(document.pointer(at.pointer, keyword), i - 1))
      end
    elseif holds == "one" then
      visit(value, document.pointer(at.pointer, keyword))
    end
  end
end

function Document:_scan(schema, pointer, base, depth)
  if not document.is_object(schema) then return end
  self.budget:spend("places", 1)
  if depth > MAX_DEPTH then
    refuse.unsupported(pointer, ("schemas are nested more than %d levels deep"):format(MAX_DEPTH))
  end
  self:_check_dialect(schema, pointer)
  local at = place(schema, pointer, self:_base(schema, base))
  local known = self._places[schema] or {}
  if known[base] then return end -- the same Lua table in a second place
  known[base], self._places[schema] = at, known
  self:_name(at, base)
  visit_children(at, function(child, child_pointer) self:_scan(child, child_pointer, at.base, depth + 1) end)
end

---@param schema table|boolean
---@param budget kigo.schema.Budget
---@param any_dialect boolean   read it as it is, whatever $schema says
---@return kigo.schema.Document
function document.new(schema, budget, any_dialect)
  check_schema(schema, "#")
  local self = setmetatable({
    _places = {}, _resources = {}, _anchors = {}, _dynamic = {}, _is_dynamic = {}, budget = budget,
    _any_dialect = any_dialect,
  }, Document)
  if type(schema) == "table" then
    local dialect = self:_check_dialect(schema, "#")
    self._old_id = dialect == "http://json-schema.org/draft-04/schema"
  end
  self.root = place(schema, "#", self:_base(schema, ""))
  self:_scan(schema, "#", "", 1)
  return self
end

local function step(value, token)
  token = token:gsub("~1", "/"):gsub("~0", "~")
  if document.is_list(value) then return token:find "^%d+$" and value[math.tointeger(tonumber(token)) + 1], token end
  if document.is_object(value) then return value[token], token end
  return nil, token
end

function Document:_walk(from, pointer, where, ref)
  local at = from
  local value, here = from.schema, from.pointer
  local base = from.base -- the one that the value at hand inherits
  for token in pointer:gmatch "/([^/]*)" do
    base = at and at.base or base
    value, token = step(value, token)
    if value == nil then refuse.malformed(where, ("%q leads nowhere"):format(ref:sub(1, 200))) end
    here = document.pointer(here, token)
    at = type(value) == "table" and self._places[value] and self._places[value][base]
  end
  check_schema(value, here)
  return at or place(value, here, self:_base(value, base))
end

---Where a reference leads.
---@param ref any                   what stands behind $ref
---@param from kigo.schema.Place    where it stands
---@param keyword string            "$ref" or "$dynamicRef"
---@return kigo.schema.Place
function Document:resolve(ref, from, keyword)
  local where = document.pointer(from.pointer, keyword)
  if type(ref) ~= "string" then refuse.malformed(where, "a string expected") end
  local absolute, fragment = uri.resolve(from.base, ref)
  local resource = self._resources[absolute]
  if not resource then
    refuse.unsupported(where, ("%q is not in this document, and no other is read"):format(ref:sub(1, 200)))
  end
  fragment = uri.decode(fragment or "")
  if fragment == "" then return resource end
  if fragment:sub(1, 1) == "/" then return self:_walk(resource, fragment, where, ref) end
  local key = absolute .. "#" .. fragment
  local found = self._anchors[key]
  if not found then refuse.malformed(where, ("no schema is called %q"):format(ref:sub(1, 200))) end
  if keyword == "$dynamicRef" and self._is_dynamic[key] and self._dynamic[fragment] > 1 then
    refuse.unsupported(where, "which of several schemas is meant depends on the way that led here")
  end
  return found
end

return document
