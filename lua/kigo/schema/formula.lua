-- formula.lua - a schema as a Boolean formula over atoms such as "a string is at most 5 characters long" or "the
-- property `a`, where there is one, fits the formula f". Formulas are hash-consed: equal ones are the same table, so
-- that the conjunction of the same schemas, met again by a recursive schema, is the same rule of the grammar. An atom
-- speaks of one type of value and holds for all others. `later` stands for a schema that is read when it is needed, so
-- formulas may be cyclic.
local refuse = require "kigo.schema.refuse"

local formula = {}

---The kinds of values that are told apart. The first three are single values.
formula.types = { "null", "true", "false", "number", "string", "array", "object" }

---@class kigo.schema.Formula
---@field id integer
---@field op string     "yes", "no", "all", "any", "one", "not", "later", "types", "values", or an atom's name
---@field type string?  of an atom: the type that it speaks of
---@field where string? of an atom: JSON pointer of the keyword it came from

---@class kigo.schema.Formulas
---@field yes kigo.schema.Formula
---@field no kigo.schema.Formula
---@field budget kigo.schema.Budget
local Formulas = {}
Formulas.__index = Formulas

---@param budget kigo.schema.Budget
---@return kigo.schema.Formulas
function formula.new(budget)
  local self = setmetatable({ _known = {}, _n = 0, budget = budget, _for_type = {}, _open = {} }, Formulas)
  self.yes, self.no = self:_make("yes", { op = "yes" }), self:_make("no", { op = "no" })
  return self
end

function Formulas:_make(key, node)
  local known = self._known[key]
  if known then return known end
  self.budget:spend("formulas", 1)
  self._n = self._n + 1
  node.id = self._n
  self._known[key] = node
  return node
end

---An atom. Two are the same where op and name are.
---@param op string
---@param type string         the type that it speaks of
---@param name string|number  tells atoms of one op apart
---@param fields table        becomes the node
---@return kigo.schema.Formula
function Formulas:atom(op, type, name, fields)
  fields.op, fields.type = op, type
  return self:_make(op .. "\0" .. name, fields)
end

local function by_id(a, b) return a.id < b.id end

-- The parts of nested conjunctions (or disjunctions) in one sorted list; nil where one of them decides the whole.
local function flatten(op, list, neutral, deciding)
  local parts, seen = {}, {}
  local function add(part)
    if part == deciding then return false end
    if part == neutral or seen[part] then return true end
    if part.op == op then
      for _, inner in ipairs(part.list) do
        if not add(inner) then return false end
      end
      return true
    end
    seen[part], parts[#parts + 1] = true, part
    return true
  end
  for _, part in ipairs(list) do
    if not add(part) then return nil end
  end
  for _, part in ipairs(parts) do
    if part.op == "not" and seen[part.of] then return nil end
  end
  table.sort(parts, by_id)
  return parts
end

function Formulas:_junction(op, list, neutral, deciding)
  local parts = flatten(op, list, neutral, deciding)
  if not parts then return deciding end
  if #parts == 0 then return neutral end
  if #parts == 1 then return parts[1] end
  self.budget:spend("work", #parts)
  local ids = {}
  for i, part in ipairs(parts) do ids[i] = part.id end
  return self:_make(op .. "\0" .. table.concat(ids, " "), { op = op, list = parts })
end

---@param list kigo.schema.Formula[]
---@return kigo.schema.Formula
function Formulas:all(list) return self:_junction("all", list, self.yes, self.no) end

---@param list kigo.schema.Formula[]
---@return kigo.schema.Formula
function Formulas:any(list) return self:_junction("any", list, self.no, self.yes) end

---@param part kigo.schema.Formula
---@return kigo.schema.Formula
function Formulas:never(part)
  if part == self.yes then return self.no end
  if part == self.no then return self.yes end
  if part.op == "not" then return part.of end
  return self:_make("not\0" .. part.id, { op = "not", of = part })
end

---Exactly one of them.
---@param list kigo.schema.Formula[]
---@param where string
---@return kigo.schema.Formula
function Formulas:one(list, where)
  if #list == 1 then return list[1] end
  local ids = {}
  for i, part in ipairs(list) do ids[i] = part.id end
  return self:_make("one\0" .. table.concat(ids, " "), { op = "one", list = list, where = where })
end

---The formula that `read` makes of a place in the document, once somebody asks for it.
---@param name string                       of the place
---@param where string                      its JSON pointer
---@param read fun(): kigo.schema.Formula
---@return kigo.schema.Formula
function Formulas:later(name, where, read)
  return self:_make("later\0" .. name, { op = "later", read = read, where = where })
end

-- What `later` stands for.
local function resolve(node)
  if not node.formula then node.formula = node.read() end
  return node.formula
end

-- ---- the part of a formula that speaks of one type ---- It has no `later`, `types` and `values`, and `not` only in
-- front of atoms; `one` has its parts' negations beside them.

local SPECIAL = {}

function SPECIAL.yes(self, _, _, negative) return negative and self.no or self.yes end
function SPECIAL.no(self, _, _, negative) return negative and self.yes or self.no end

local function each(self, list, type, negative)
  local parts = {}
  for i, part in ipairs(list) do parts[i] = self:for_type(part, type, negative) end
  return parts
end

function SPECIAL.all(self, node, type, negative)
  local parts = each(self, node.list, type, negative)
  return negative and self:any(parts) or self:all(parts)
end

function SPECIAL.any(self, node, type, negative)
  local parts = each(self, node.list, type, negative)
  return negative and self:all(parts) or self:any(parts)
end

SPECIAL["not"] = function(self, node, type, negative) return self:for_type(node.of, type, not negative) end

function SPECIAL.later(self, node, type, negative)
  local mark = node.id .. type
  if self._open[mark] then
    refuse.unsupported(node.where, "$ref leads back to itself and reads nothing on the way")
  end
  self._open[mark] = true
  local found = self:for_type(resolve(node), type, negative)
  self._open[mark] = nil
  return found
end

function SPECIAL.types(self, node, type, negative)
  local found = self.no
  if node.set[type] then
    found = self.yes
  elseif type == "number" and node.set.integer then
    found = self:atom("integer", "number", "", { where = node.where })
  end
  return negative and self:never(found) or found
end

function SPECIAL.values(self, node, type, negative)
  local list = node[type]
  local found = self.no
  if list == true then
    found = self.yes
  elseif list then
    local names = {}
    for i, value in ipairs(list) do names[i] = ("%d:%s"):format(#tostring(value), tostring(value)) end
    found = self:atom("values_of", type, type .. "\0" .. table.concat(names), { values = list, where = node.where })
  end
  return negative and self:never(found) or found
end

-- Not exactly one: none, or two at least.
local function not_one(self, yes, no)
  local cases = { self:all(no) }
  for i = 1, #yes do
    for k = i + 1, #yes do cases[#cases + 1] = self:all { yes[i], yes[k] } end
  end
  return self:any(cases)
end

function SPECIAL.one(self, node, type, negative)
  local yes, no, sure = {}, {}, 0
  for _, part in ipairs(node.list) do
    local holds = self:for_type(part, type, false)
    if holds == self.yes then sure = sure + 1 end
    if holds ~= self.no then
      yes[#yes + 1], no[#no + 1] = holds, self:for_type(part, type, true)
    end
  end
  self.budget:spend("work", #yes * #yes)
  if negative then return not_one(self, yes, no) end
  if sure > 1 or #yes == 0 then return self.no end
  if #yes == 1 then return yes[1] end
  if sure == 1 then
    local others = {}
    for i, part in ipairs(yes) do others[#others + 1] = part ~= self.yes and no[i] or nil end
    return self:all(others)
  end
  local ids = {}
  for i, part in ipairs(yes) do ids[i] = part.id end
  return self:_make("one of\0" .. table.concat(ids, " "), { op = "one", list = yes, never = no, where = node.where })
end

---What the formula says of values of one type.
---@param node kigo.schema.Formula
---@param type string        one of formula.types
---@param negative boolean?  of its negation instead
---@return kigo.schema.Formula
function Formulas:for_type(node, type, negative)
  local special = SPECIAL[node.op]
  if not special then -- an atom, true of all other types
    if node.type ~= type then return negative and self.no or self.yes end
    return negative and self:never(node) or node
  end
  local key = ("%d %s %s"):format(node.id, type, negative and "-" or "+")
  local found = self._for_type[key]
  if not found then
    self.budget:spend("work", 1)
    self.budget:enter()
    found = special(self, node, type, negative)
    self.budget:leave()
    self._for_type[key] = found
  end
  return found
end

return formula
