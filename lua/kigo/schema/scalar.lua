-- scalar.lua - what a formula says of strings and numbers, as a language: Boolean operations on formulas are operations
-- on languages. Where only finitely many values can come into question, each is tried instead.
local language = require "kigo.schema.language"
local number = require "kigo.schema.number"
local refuse = require "kigo.schema.refuse"

local scalar = {}

-- ---- does a value satisfy an atom? ----

local HOLDS = {}

function HOLDS.values_of(atom, value)
  if not atom.known then
    atom.known = {}
    for _, one in ipairs(atom.values) do atom.known[tostring(one)] = true end
  end
  return atom.known[tostring(value)] == true
end

function HOLDS.range(atom, value)
  local order = value:compare(atom.value)
  if order == 0 then return not atom.open end
  return (order > 0) == atom.low
end

function HOLDS.integer(_, value) return value:is_integer() end

function HOLDS.multiple(atom, value)
  if not atom.k then refuse.unsupported(atom.where, "a number of more than 15 digits") end
  return value:is_multiple(atom.k, atom.places)
end

function HOLDS.length_min(atom, value) return utf8.len(value) >= atom.n end
function HOLDS.length_max(atom, value) return utf8.len(value) <= atom.n end
function HOLDS.text(atom, value) return language.matches(atom.language, value) end

local function holds(f, value)
  local op = f.op
  if op == "yes" or op == "no" then return op == "yes" end
  if op == "not" then return not holds(f.of, value) end
  if op == "all" or op == "any" then
    for _, part in ipairs(f.list) do
      if holds(part, value) ~= (op == "all") then return op == "any" end
    end
    return op == "all"
  end
  if op == "one" then
    local n = 0
    for _, part in ipairs(f.list) do n = n + (holds(part, value) and 1 or 0) end
    return n == 1
  end
  return HOLDS[op](f, value)
end

---Does a string or a number satisfy what a formula says of its type?
---@param f kigo.schema.Formula
---@param value string|kigo.schema.Decimal
---@return boolean
function scalar.holds(f, value) return holds(f, value) end

-- ---- finitely many ----

local MAX_CANDIDATES = 10000

-- Values among which all that satisfy the formula are; nil: there may be others.
local function candidates(f)
  if f.op == "no" then return {} end
  if f.op == "values_of" then return f.values end
  if f.op == "all" then
    local best
    for _, part in ipairs(f.list) do
      local found = candidates(part)
      if found and (not best or #found < #best) then best = found end
    end
    return best
  end
  if f.op ~= "any" and f.op ~= "one" then return nil end
  local out, seen = {}, {}
  for _, part in ipairs(f.list) do
    local found = candidates(part)
    if not found or #out + #found > MAX_CANDIDATES then return nil end
    for _, value in ipairs(found) do
      local name = tostring(value)
      if not seen[name] then seen[name], out[#out + 1] = true, value end
    end
  end
  return out
end

---All values that satisfy what a formula says of strings or numbers, where these are finitely many.
---@param f kigo.schema.Formula
---@return (string|kigo.schema.Decimal)[]?
function scalar.values(f)
  local found, out, seen = candidates(f), {}, {}
  if not found then return nil end
  for _, value in ipairs(found) do
    local name = tostring(value)
    if not seen[name] and holds(f, value) then out[#out + 1] = value end
    seen[name] = true
  end
  return out
end

-- ---- strings ----

local STRINGS = {}

function STRINGS.values_of(atom) return language.alt(atom.values) end
function STRINGS.length_min(atom) return language.times(language.any, atom.n) end
function STRINGS.length_max(atom) return language.times(language.any, 0, atom.n) end
function STRINGS.text(atom) return atom.language end

-- ---- numbers ----

-- Languages of numbers are exact among the texts of a domain: the one with exponents where only limits are asked about.
local function needs_plain(f)
  if f.op == "integer" or f.op == "multiple" then return true end
  if f.op == "not" then return needs_plain(f.of) end
  for _, part in ipairs(f.list or {}) do
    if needs_plain(part) then return true end
  end
  return false
end

local NUMBERS = {}

function NUMBERS.values_of(atom)
  local list = {}
  for i, value in ipairs(atom.values) do list[i] = number.exactly(value) end
  return language.alt(list)
end

function NUMBERS.range(atom)
  local beyond = atom.low and number.above or number.below
  return beyond(atom.value, not atom.open)
end

function NUMBERS.integer() return number.integer end
function NUMBERS.multiple(atom) return number.multiple(atom.k, atom.places, atom.where) end

-- ---- both ----

-- Lengths of one conjunction are one range; the others stay.
local function fold_lengths(list)
  local min, max, others = 0, nil, {}
  for _, part in ipairs(list) do
    local inner, negative = part, false
    if part.op == "not" then inner, negative = part.of, true end
    if inner.op == "length_min" and not negative then
      min = math.max(min, inner.n)
    elseif inner.op == "length_max" and negative then
      min = math.max(min, inner.n + 1)
    elseif inner.op == "length_max" or inner.op == "length_min" then
      local limit = negative and inner.n - 1 or inner.n
      max = math.min(max or limit, limit)
    else
      others[#others + 1] = part
    end
  end
  return min, max, others
end

local build

local function build_list(list, atoms)
  local out = {}
  for i, part in ipairs(list) do out[i] = build(part, atoms) end
  return out
end

local function build_all(f, atoms)
  local min, max, others = fold_lengths(f.list)
  if max and min > max then return language.none end
  local parts = build_list(others, atoms)
  if min > 0 or max then parts[#parts + 1] = language.times(language.any, min, max) end
  return language.both(parts)
end

-- Part i and none of the others. What is in two of them is in none of these.
local function build_one(f, atoms)
  local parts, list = build_list(f.list, atoms), {}
  for i, part in ipairs(parts) do
    local others = {}
    for k, other in ipairs(parts) do
      if k ~= i then others[#others + 1] = other end
    end
    list[i] = language.both { part, language.never(language.alt(others)) }
  end
  return language.alt(list)
end

function build(f, atoms)
  if f.op == "yes" then return language.all end
  if f.op == "no" then return language.none end
  if f.op == "not" then return language.never(build(f.of, atoms)) end
  if f.op == "all" then return build_all(f, atoms) end
  if f.op == "any" then return language.alt(build_list(f.list, atoms)) end
  if f.op == "one" then return build_one(f, atoms) end
  return atoms[f.op](f)
end

---The contents of the strings that satisfy a formula.
---@param f kigo.schema.Formula   what a formula says of strings
---@return table|string
function scalar.strings(f)
  local values = scalar.values(f)
  if values then return language.alt(values) end
  return build(f, STRINGS)
end

---The texts of the numbers that satisfy a formula, in any spelling.
---@param f kigo.schema.Formula   what a formula says of numbers
---@return table|string
function scalar.numbers(f)
  if f.op == "yes" then return number.any end
  local values = scalar.values(f)
  if values then return NUMBERS.values_of { values = values } end
  if f.op == "integer" then return number.integer end
  return language.both { needs_plain(f) and number.plain or number.limited, build(f, NUMBERS) }
end

---The same, without exponents, and whole numbers without a point.
---@param f kigo.schema.Formula
---@return table|string
function scalar.plain_numbers(f)
  if f.op == "yes" then return number.tidy end
  return language.both { number.tidy, scalar.numbers(f) }
end

return scalar
