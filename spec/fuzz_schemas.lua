-- fuzz_schemas.lua - schemas that nobody wrote: compiled or refused by name, and what tokens drawn by chance write
-- under the mask of one that is compiled is JSON, and allowed by its rules as the oracle reads them.
local kigo = require "kigo"
local fuzz = require "spec.fuzz"
local models = require "spec.fuzz_models"
local oracle = require "spec.grammar_oracle"
local schema = require "kigo.schema"
local schemas = require "spec.schemas"
local vocabulary = require "spec.fixtures.vocabulary"

local json = kigo.json

local NAMES = { "a", "b", "ab", "", "é", "a b" }
local PATTERNS = { "^a", "b$", "^.{2,3}$", "a.*b", "[^a-c]", "^(a|b)*$", "(?!a)b", "\\d+", "^$" }
local TYPES = { "null", "boolean", "integer", "number", "string", "array", "object" }
local NUMBERS = { 0, 1, 2, -1, 1.5, 10, 0.01, 1e20, -2.5 }
local FORMATS = { "date", "time", "uuid", "ipv4", "email", "uri", "hostname", "duration", "nobody-knows" }

local function list_of(dice, n, item)
  local list = json.array {}
  for i = 1, dice:roll(n) do list[i] = item() end
  return list
end

local function value(dice, depth)
  local kind = dice:roll(depth > 0 and 6 or 4)
  if kind == 1 then return dice:pick { true, false, json.null } end
  if kind == 2 then return dice:pick(NUMBERS) end
  if kind < 5 then return dice:pick(NAMES) end
  if kind == 5 then return list_of(dice, 3, function() return value(dice, depth - 1) end) end
  local fields = json.object {}
  for _ = 1, dice:roll(3) do fields[dice:pick(NAMES)] = value(dice, depth - 1) end
  return fields
end

local make

local function map_of(dice, keys, depth)
  local fields = json.object {}
  for _ = 1, dice:roll(3) do fields[dice:pick(keys)] = make(dice, depth - 1) end
  return fields
end

local function some(list) return function(dice) return dice:pick(list) end end
local function count(dice) return dice:roll(4) - 1 end
local function inner(dice, depth) return make(dice, depth - 1) end
local function inners(dice, depth) return list_of(dice, 3, function() return make(dice, depth - 1) end) end
local function names(dice) return list_of(dice, 2, function() return dice:pick(NAMES) end) end

local KEYWORDS = {
  type = function(dice) return dice:once_in(3) and list_of(dice, 3, function() return dice:pick(TYPES) end)
    or dice:pick(TYPES) end,
  enum = function(dice) return list_of(dice, 4, function() return value(dice, 1) end) end,
  const = function(dice) return value(dice, 2) end,
  minimum = some(NUMBERS), maximum = some(NUMBERS), exclusiveMinimum = some(NUMBERS), exclusiveMaximum = some(NUMBERS),
  multipleOf = some { 1, 3, 0.5, 0.01, 7, 1e-9 },
  minLength = count, maxLength = count, minItems = count, maxItems = count, minProperties = count,
  maxProperties = count, pattern = some(PATTERNS), format = some(FORMATS), uniqueItems = some { true, false },
  minContains = count, maxContains = count,
  items = inner, contains = inner, additionalProperties = inner, propertyNames = inner, ["not"] = inner,
  ["if"] = inner, ["then"] = inner, ["else"] = inner, unevaluatedItems = inner, unevaluatedProperties = inner,
  prefixItems = inners, allOf = inners, anyOf = inners, oneOf = inners,
  properties = function(dice, depth) return map_of(dice, NAMES, depth) end,
  patternProperties = function(dice, depth) return map_of(dice, PATTERNS, depth) end,
  dependentSchemas = function(dice, depth) return map_of(dice, NAMES, depth) end,
  required = names,
  dependentRequired = function(dice) return json.object { [dice:pick(NAMES)] = names(dice) } end,
  ["$ref"] = some { "#", "#/$defs/x", "#/$defs/y", "#/$defs/none", "x.json" },
}

local ORDER = {}
for keyword in pairs(KEYWORDS) do ORDER[#ORDER + 1] = keyword end
table.sort(ORDER)

function make(dice, depth)
  if depth < 0 then return not dice:once_in(4) end
  local fields = json.object {}
  for _ = 1, dice:roll(3) do
    local keyword = dice:pick(ORDER)
    fields[keyword] = KEYWORDS[keyword](dice, depth)
  end
  return fields
end

local function make_text(dice, seeds)
  if dice:once_in(4) then return fuzz.mutate(dice, seeds, ORDER) end
  local root = make(dice, 2)
  if type(root) == "table" then root["$defs"] = json.object { x = make(dice, 1), y = make(dice, 1) } end
  return schemas.text(root, {})
end

local writers = {}
for _, name in ipairs { "qwen2", "spm" } do
  local gguf <close> = assert(kigo.core.parse_gguf(vocabulary.file(models.vocabularies[name]), name))
  writers[#writers + 1] = schemas.writer(assert(kigo.core.tokenizer(gguf)))
end

-- What is written ends, or goes on for longer than we look; it never comes to a dead end. Languages that are empty for
-- reasons that take too long to find are found out here: their automaton grows over its limit.
local function write(rules, grammar, text)
  for i, writer in ipairs(writers) do
    local called, written = pcall(writer.write, writer, grammar, fuzz.dice(#text, i), 8, 60)
    if not called and not written:find("needs more than its", 1, true) then error(written, 0) end
    if called and written and #written < 120 then
      schemas.read(written) -- raises where it is no JSON
      if not oracle.accepts(rules, written) then error("not allowed: " .. written) end
    end
  end
end

return {
  seeds = {
    [[{ "type": "object", "properties": { "a": { "type": "string", "minLength": 1 }, "b": { "$ref": "#" } } }]],
    [[{ "oneOf": [{ "required": ["a"] }, { "required": ["b"] }], "unevaluatedProperties": { "type": "integer" } }]],
    [[{ "$defs": { "n": { "minimum": 1, "multipleOf": 0.5 } }, "prefixItems": [{ "$ref": "#/$defs/n" }, true] }]],
  },
  make = make_text,
  try = function(text)
    local rules, message, code = schema.rules(text, { whitespace = #text % 3 })
    if not rules then return fuzz.accepted(rules, message, code) end
    local grammar <close> = fuzz.accepted(kigo.json_schema(text, { whitespace = #text % 3 }))
    if grammar then write(rules, grammar, text) end
    return grammar ~= false
  end,
}
