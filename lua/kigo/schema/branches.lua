-- branches.lua - what a formula says of lists or objects, as alternatives, each a conjunction of atoms and negated
-- atoms that object.lua or array.lua can turn into grammar; and whether a formula is void, that is, provably satisfied
-- by nothing. A oneOf whose alternatives exclude each other needs no negations; to exclude each other, two of them need
-- a property that both ask for and whose schemas together are void.
local array = require "kigo.schema.array"
local language = require "kigo.schema.language"
local object = require "kigo.schema.object"
local refuse = require "kigo.schema.refuse"
local scalar = require "kigo.schema.scalar"

local branches = {}

local MAX_BRANCHES = 300
local VOID_DEPTH = 8 -- how deep properties are looked into for a contradiction

---@class kigo.schema.Branches
---@field formulas kigo.schema.Formulas
local Branches = {}
Branches.__index = Branches

---@param formulas kigo.schema.Formulas
---@return kigo.schema.Branches
function branches.new(formulas)
  return setmetatable({
    formulas = formulas, _branches = {}, _void = {}, _shapes = {}, _empty = {}, _depth = 0,
  }, Branches)
end

local function place_of(f)
  while not f.where and (f.of or f.list) do f = f.of or f.list[1] end
  return f.where or "#"
end

local function refuse_ways(where)
  refuse.unsupported(where, ("more than %d ways to combine its alternatives"):format(MAX_BRANCHES))
end

-- If property a is there, so are others: the grammar has that itself.
local function is_dependency(f)
  if f.op ~= "any" or #f.list ~= 2 then return false end
  local a, b = f.list[1], f.list[2]
  if b.op == "not" then a, b = b, a end
  if a.op ~= "not" or a.of.op ~= "required" then return false end
  for _, part in ipairs(b.op == "all" and b.list or { b }) do
    if part.op ~= "required" then return false end
  end
  return true
end

-- Alternatives that stand there twice, and those that nothing satisfies, go.
function Branches:_tidy(list, kind, where)
  local out, seen = {}, {}
  for _, branch in ipairs(list) do
    if branch ~= self.formulas.no and not seen[branch] then
      seen[branch] = true
      out[#out + 1] = branch
    end
  end
  if seen[self.formulas.yes] then return { self.formulas.yes } end
  local kept = {}
  for _, branch in ipairs(out) do
    if not self:_is_void_branch(branch, kind) then kept[#kept + 1] = branch end
  end
  if #kept > MAX_BRANCHES then refuse_ways(where) end
  return kept
end

function Branches:_product(lists, kind, where)
  local out = { self.formulas.yes }
  for _, list in ipairs(lists) do
    if #out * #list > 10 * MAX_BRANCHES then refuse_ways(where) end
    local combined = {}
    for _, a in ipairs(out) do
      for _, b in ipairs(list) do combined[#combined + 1] = self.formulas:all { a, b } end
    end
    out = self:_tidy(combined, kind, where)
  end
  return out
end

-- Exactly one, of what satisfies `base` too: that may be what makes them exclude each other.
function Branches:_one(f, base, kind)
  local out = {}
  for i, part in ipairs(f.list) do
    local found = self:_product({ { base }, self:of(part, kind) }, kind, f.where)
    for k, other in ipairs(f.list) do
      if k ~= i and #self:_product({ found, self:of(other, kind) }, kind, f.where) > 0 then
        found = self:_product({ found, self:of(f.never[k], kind) }, kind, f.where)
      end
    end
    table.move(found, 1, #found, #out + 1, out)
  end
  return self:_tidy(out, kind, f.where)
end

-- All of them: first what has one alternative, last what must be exactly one.
function Branches:_all(f, kind)
  local lists, plain, ones = {}, {}, {}
  for _, part in ipairs(f.list) do
    if part.op == "one" then
      ones[#ones + 1] = part
    else
      local list = self:of(part, kind)
      if #list == 1 then plain[#plain + 1] = list[1] else lists[#lists + 1] = list end
    end
  end
  table.insert(lists, 1, { self.formulas:all(plain) })
  local found = self:_product(lists, kind, place_of(f))
  for _, one in ipairs(ones) do
    local more = {}
    for _, base in ipairs(found) do
      local list = self:_one(one, base, kind)
      table.move(list, 1, #list, #more + 1, more)
    end
    found = self:_tidy(more, kind, one.where)
  end
  return found
end

---The alternatives of what a formula says of one type.
---@param f kigo.schema.Formula      made by Formulas:for_type
---@param kind "array"|"object"
---@return kigo.schema.Formula[]     each `yes`, a literal, or `all` of literals
function Branches:of(f, kind)
  local found = self._branches[f]
  if found then return found end
  if f.op == "no" then
    found = {}
  elseif f.op == "any" and not is_dependency(f) then
    found = {}
    for _, part in ipairs(f.list) do
      for _, branch in ipairs(self:of(part, kind)) do found[#found + 1] = branch end
      if #found > 10 * MAX_BRANCHES then refuse_ways(place_of(f)) end
    end
    found = self:_tidy(found, kind, place_of(f))
  elseif f.op == "all" then
    found = self:_all(f, kind)
  elseif f.op == "one" then
    found = self:_one(f, self.formulas.yes, kind)
  else
    found = { f }
  end
  self._branches[f] = found
  return found
end

local SHAPES = { array = array.shapes, object = object.shapes }

---The shapes (array.lua, object.lua) of an alternative.
---@param branch kigo.schema.Formula
---@param kind "array"|"object"
function Branches:shapes(branch, kind)
  local known = self._shapes[kind .. branch.id]
  if not known then
    self.formulas.budget:spend("work", 1)
    local literals = branch.op == "all" and branch.list or branch.op == "yes" and {} or { branch }
    known = SHAPES[kind](self, literals)
    self._shapes[kind .. branch.id] = known
  end
  return known
end

-- ---- void ----

function Branches:_is_void_branch(branch, kind)
  for _, literal in ipairs(branch.op == "all" and branch.list or { branch }) do
    if literal.op == "no" then return true end
  end
  return (kind == "array" and array or object).is_void(self, branch)
end

-- A language of strings or numbers is asked about once.
function Branches:_is_empty(f, languages)
  local known = self._empty[f]
  if known == nil then
    local values = scalar.values(f)
    if values then known = #values == 0 else known = language.is_empty(languages(f)) end
    self._empty[f] = known
  end
  return known
end

function Branches:_find_void(f)
  local F = self.formulas
  for _, single in ipairs { "null", "true", "false" } do
    if F:for_type(f, single) == F.yes then return false end
  end
  local numbers, strings = F:for_type(f, "number"), F:for_type(f, "string")
  if numbers ~= F.no and not self:_is_empty(numbers, scalar.numbers) then return false end
  if strings ~= F.no and not self:_is_empty(strings, scalar.strings) then return false end
  for _, kind in ipairs { "array", "object" } do
    local part = F:for_type(f, kind)
    if part ~= F.no then
      for _, branch in ipairs(self:of(part, kind)) do
        if not self:_is_void_branch(branch, kind) then return false end
      end
    end
  end
  return true
end

---Is it proved that nothing satisfies the formula?
---@param f kigo.schema.Formula
---@return boolean
function Branches:is_void(f)
  if f == self.formulas.yes or f == self.formulas.no then return f == self.formulas.no end
  local known = self._void[f]
  if known ~= nil then return known end
  if self._depth >= VOID_DEPTH then return false end
  self._void[f] = false -- what contains itself is taken to be satisfied by something
  self._depth = self._depth + 1
  local found = self:_find_void(f)
  self._depth = self._depth - 1
  self._void[f] = found
  return found
end

return branches
