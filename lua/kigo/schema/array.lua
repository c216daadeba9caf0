-- array.lua - a conjunction of statements about a list: a formula for each of its first places, one for all behind
-- them, limits of its length, and how many of its items satisfy further formulas.
local refuse = require "kigo.schema.refuse"
local scalar = require "kigo.schema.scalar"

local array = {}

local MAX_PLACES = 1000

---@class kigo.schema.Some       how many items, from one place on, satisfy a formula
---@field of kigo.schema.Formula
---@field from integer           place, from 1
---@field min integer
---@field max integer?
---@field where string

---@class kigo.schema.Array
---@field places kigo.schema.Formula[]   of the first items
---@field rest kigo.schema.Formula       of all further ones
---@field min integer
---@field max integer?
---@field some kigo.schema.Some[]
---@field unique string?                 JSON pointer of the keyword that asks for different items

local POSITIVE, NEGATIVE = {}, {}

local function limit_min(shape, n) shape.min = math.max(shape.min, n) end
local function limit_max(shape, n) shape.max = math.min(shape.max or n, n) end

function POSITIVE.item(_, shape, atom) table.insert(shape.items, atom) end
function POSITIVE.items(_, shape, atom) table.insert(shape.tails, atom) end
function POSITIVE.size_min(_, shape, atom) limit_min(shape, atom.n) end
function POSITIVE.size_max(_, shape, atom) limit_max(shape, atom.n) end
function POSITIVE.unique(_, shape, atom) shape.unique = atom.where end

local function some(shape, atom, of)
  for _, known in ipairs(shape.some) do
    if known.of == of and known.from == atom.from then return known end
  end
  local new = { of = of, from = atom.from, min = 0, where = atom.where }
  table.insert(shape.some, new)
  return new
end

local function at_least(F, shape, atom, of, n)
  if n <= 0 then return end
  if of == F.yes then return limit_min(shape, atom.from - 1 + n) end
  local one = some(shape, atom, of)
  one.min = math.max(one.min, n)
end

local function at_most(F, shape, atom, of, n)
  if n <= 0 then
    if n < 0 then shape.max = -1 end
    return table.insert(shape.tails, { from = atom.from, of = F:never(of) })
  end
  if of == F.yes then return limit_max(shape, atom.from - 1 + n) end
  local one = some(shape, atom, of)
  one.max = math.min(one.max or n, n)
end

function POSITIVE.some_min(F, shape, atom) at_least(F, shape, atom, atom.of, atom.n) end
function POSITIVE.some_max(F, shape, atom) at_most(F, shape, atom, atom.of, atom.n) end

function NEGATIVE.item(F, shape, atom)
  limit_min(shape, atom.i)
  table.insert(shape.items, { i = atom.i, of = F:never(atom.of) })
end

function NEGATIVE.items(F, shape, atom) at_least(F, shape, atom, F:never(atom.of), 1) end
function NEGATIVE.size_min(_, shape, atom) limit_max(shape, atom.n - 1) end
function NEGATIVE.size_max(_, shape, atom) limit_min(shape, atom.n + 1) end
function NEGATIVE.some_min(F, shape, atom) at_most(F, shape, atom, atom.of, atom.n - 1) end
function NEGATIVE.some_max(F, shape, atom) at_least(F, shape, atom, atom.of, atom.n + 1) end
function NEGATIVE.unique(_, shape, atom) shape.repeated = atom.where end

local function collect(F, literals)
  local shape = { items = {}, tails = {}, min = 0, some = {} }
  for _, literal in ipairs(literals) do
    if literal.op == "not" then
      NEGATIVE[literal.of.op](F, shape, literal.of)
    else
      POSITIVE[literal.op](F, shape, literal)
    end
  end
  return shape
end

-- The formula of the item at place i.
local function item_at(F, facts, i)
  local list = {}
  for _, atom in ipairs(facts.items) do
    if atom.i == i then list[#list + 1] = atom.of end
  end
  for _, atom in ipairs(facts.tails) do
    if atom.from <= i then list[#list + 1] = atom.of end
  end
  return F:all(list)
end

local function places_told_apart(facts)
  local n = 0
  for _, atom in ipairs(facts.items) do n = math.max(n, atom.i) end
  for _, atom in ipairs(facts.tails) do n = math.max(n, atom.from - 1) end
  return n
end

---Is it plain that no list is like that?
---@param solver kigo.schema.Branches
---@param branch kigo.schema.Formula
---@return boolean
function array.is_void(solver, branch)
  local known = solver._void[branch.id]
  if known ~= nil then return known end
  solver._void[branch.id] = false
  local F = solver.formulas
  local facts = collect(F, branch.op == "all" and branch.list or branch.op == "yes" and {} or { branch })
  local found = facts.max ~= nil and facts.min > facts.max
  local n = math.min(facts.min, places_told_apart(facts) + 1, MAX_PLACES)
  for i = 1, n do
    F.budget:spend("work", 1)
    found = found or solver:is_void(item_at(F, facts, i))
  end
  for _, one in ipairs(facts.some) do found = found or (one.min > 0 and solver:is_void(one.of)) end
  solver._void[branch.id] = found
  return found
end

---The values of a formula, where they are finitely many and no lists or objects.
---@param F kigo.schema.Formulas
---@param f kigo.schema.Formula
---@return table[]?   formulas, each of one value
local function values_of(F, f)
  if F:for_type(f, "array") ~= F.no or F:for_type(f, "object") ~= F.no then return nil end
  local out = {}
  for _, single in ipairs { "null", "true", "false" } do
    if F:for_type(f, single) == F.yes then
      out[#out + 1] = F:atom("values", nil, single .. ":3:nil", { [single] = true })
    end
  end
  for _, kind in ipairs { "number", "string" } do
    local values = scalar.values(F:for_type(f, kind))
    if not values then return nil end
    for _, value in ipairs(values) do
      local name = ("%s:%d:%s"):format(kind, #tostring(value), tostring(value))
      out[#out + 1] = F:atom("values", nil, name, { [kind] = { value } })
    end
  end
  return out
end

local function check_unique(F, shape)
  if shape.max and shape.max <= 1 then
    shape.unique = nil
    return
  end
  if #shape.some > 0 then refuse.unsupported(shape.unique, "uniqueItems beside contains is not supported") end
  shape.choices = {}
  local rest_counts = not shape.max or shape.max > #shape.places
  for i = 1, #shape.places + (rest_counts and 1 or 0) do
    local values = values_of(F, shape.places[i] or shape.rest)
    if not values then
      refuse.unsupported(shape.unique, "items of which there are not just finitely many cannot be told apart")
    end
    shape.choices[i] = values
  end
end

---@param solver kigo.schema.Branches
---@param literals kigo.schema.Formula[]
---@return kigo.schema.Array[]
function array.shapes(solver, literals)
  local F = solver.formulas
  local facts = collect(F, literals)
  if facts.repeated then refuse.unsupported(facts.repeated, "the negation of uniqueItems is not supported") end
  local n = places_told_apart(facts)
  if n > MAX_PLACES then refuse.unsupported("#", ("more than %d places of one list"):format(MAX_PLACES)) end
  local shape = { places = {}, rest = item_at(F, facts, n + 1), min = facts.min, max = facts.max, some = facts.some,
    unique = facts.unique }
  for i = 1, n do
    shape.places[i] = item_at(F, facts, i)
    if shape.places[i] == F.no then limit_max(shape, i - 1) end
  end
  if shape.rest == F.no then limit_max(shape, n) end
  if shape.max and shape.min > shape.max then return {} end
  if shape.unique then check_unique(F, shape) end
  return { shape }
end

return array
