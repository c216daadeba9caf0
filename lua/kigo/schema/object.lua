-- object.lua - a conjunction of statements about an object as the members that it may have: those with names that
-- somebody mentions, each with the formula of its value, and the others, in cells of names that fall under the same
-- patterns.
local language = require "kigo.schema.language"
local refuse = require "kigo.schema.refuse"
local scalar = require "kigo.schema.scalar"

local object = {}

local MAX_PATTERNS = 6

---The most names that one object may have.
object.max_names = 2000

---@class kigo.schema.Facts       what the literals say, sorted
---@field order string[]          names, in the order of their first mention
---@field properties table<string, kigo.schema.Formula[]>
---@field required table<string, string>  name -> JSON pointer
---@field matching kigo.schema.Formula[]
---@field others kigo.schema.Formula[]
---@field names kigo.schema.Formula[]     formulas that every name satisfies
---@field needs table<string, string[]>   a property asks for others
---@field witnesses table[]               { where, language = function, of }: a property that must be there
---@field min integer
---@field max integer?

local function mention(facts, name)
  if facts.properties[name] then return end
  facts.properties[name] = {}
  facts.order[#facts.order + 1] = name
end

local POSITIVE, NEGATIVE = {}, {}

function POSITIVE.property(_, facts, atom)
  mention(facts, atom.name)
  table.insert(facts.properties[atom.name], atom.of)
end

function POSITIVE.required(_, facts, atom)
  mention(facts, atom.name)
  facts.required[atom.name] = facts.required[atom.name] or atom.where
end

function POSITIVE.matching(_, facts, atom) table.insert(facts.matching, atom) end

function POSITIVE.others(_, facts, atom)
  local names = {}
  for name in pairs(atom.names) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do mention(facts, name) end
  table.insert(facts.others, atom)
end

function POSITIVE.names(_, facts, atom) table.insert(facts.names, atom.of) end
function POSITIVE.count_min(_, facts, atom)
  if atom.n > facts.min then facts.min, facts.min_where = atom.n, atom.where end
end
function POSITIVE.count_max(_, facts, atom) facts.max = math.min(facts.max or atom.n, atom.n) end

function NEGATIVE.property(F, facts, atom)
  mention(facts, atom.name)
  table.insert(facts.properties[atom.name], F:never(atom.of))
  facts.required[atom.name] = facts.required[atom.name] or atom.where
end

function NEGATIVE.required(F, facts, atom)
  mention(facts, atom.name)
  table.insert(facts.properties[atom.name], F.no)
end

function NEGATIVE.count_min(_, facts, atom) facts.max = math.min(facts.max or atom.n - 1, atom.n - 1) end
function NEGATIVE.count_max(_, facts, atom)
  if atom.n + 1 > facts.min then facts.min, facts.min_where = atom.n + 1, atom.where end
end

function NEGATIVE.matching(F, facts, atom)
  table.insert(facts.witnesses,
    { where = atom.where, of = F:never(atom.of), language = function() return atom.language end })
end

local function beyond(atom, name)
  if atom.names[name] then return false end
  for _, pattern in ipairs(atom.patterns) do
    if language.matches(pattern, name) then return false end
  end
  return true
end

local function sorted_names(set)
  local list = {}
  for name in pairs(set) do list[#list + 1] = name end
  table.sort(list)
  return list
end

function NEGATIVE.others(F, facts, atom)
  for _, name in ipairs(sorted_names(atom.names)) do mention(facts, name) end
  table.insert(facts.witnesses, { where = atom.where, of = F:never(atom.of), language = function()
    return language.never(language.alt { language.alt(sorted_names(atom.names)), language.alt(atom.patterns) })
  end })
end

function NEGATIVE.names(F, facts, atom)
  table.insert(facts.witnesses, { where = atom.where, of = F.yes, language = function()
    return scalar.strings(F:for_type(atom.of, "string", true))
  end })
end

-- If one property is there, others are: `any` of a negated `required` and one or several.
local function dependency(facts, literal)
  local a, b = literal.list[1], literal.list[2]
  if b.op == "not" then a, b = b, a end
  mention(facts, a.of.name)
  local needs = facts.needs[a.of.name] or {}
  for _, part in ipairs(b.op == "all" and b.list or { b }) do
    mention(facts, part.name)
    needs[#needs + 1] = part.name
  end
  facts.needs[a.of.name] = needs
end

local function collect(F, literals)
  local facts = { order = {}, properties = {}, required = {}, matching = {}, others = {}, names = {}, needs = {},
    witnesses = {}, min = 0 }
  for _, literal in ipairs(literals) do
    if literal.op == "property" then mention(facts, literal.name) end -- in the order in which they are declared
  end
  for _, literal in ipairs(literals) do
    if literal.op == "any" then
      dependency(facts, literal)
    elseif literal.op == "not" then
      NEGATIVE[literal.of.op](F, facts, literal.of)
    else
      POSITIVE[literal.op](F, facts, literal)
    end
  end
  if #facts.names > 0 then facts.name_formula = F:for_type(F:all(facts.names), "string") end
  return facts
end

---What a property's value must be.
---@return kigo.schema.Formula
local function value_of(F, facts, name)
  if facts.name_formula and not scalar.holds(facts.name_formula, name) then return F.no end
  local list = table.move(facts.properties[name] or {}, 1, #(facts.properties[name] or {}), 1, {})
  for _, atom in ipairs(facts.matching) do
    if language.matches(atom.language, name) then list[#list + 1] = atom.of end
  end
  for _, atom in ipairs(facts.others) do
    if beyond(atom, name) then list[#list + 1] = atom.of end
  end
  return F:all(list)
end

---Is it plain that no object is like that?
---@param solver kigo.schema.Branches
---@param branch kigo.schema.Formula
---@return boolean
function object.is_void(solver, branch)
  local known = solver._void[branch.id]
  if known ~= nil then return known end
  solver._void[branch.id] = false
  local F = solver.formulas
  local facts = collect(F, branch.op == "all" and branch.list or branch.op == "yes" and {} or { branch })
  local n, found = 0, facts.max ~= nil and facts.min > facts.max
  for name in pairs(facts.required) do
    n = n + 1
    F.budget:spend("work", 1)
    found = found or solver:is_void(value_of(F, facts, name))
  end
  found = found or (facts.max ~= nil and n > facts.max)
  solver._void[branch.id] = found
  return found
end

-- ---- names that nobody mentions ----

---@class kigo.schema.Cell
---@field key table|string              language of names
---@field value kigo.schema.Formula

local function patterns_of(facts)
  local list, seen = {}, {}
  local function add(pattern, where)
    if seen[pattern] then return end
    seen[pattern] = true
    list[#list + 1] = { language = pattern, where = where }
  end
  for _, atom in ipairs(facts.matching) do add(atom.language, atom.where) end
  for _, atom in ipairs(facts.others) do
    for _, pattern in ipairs(atom.patterns) do add(pattern, atom.where) end
  end
  return list
end

local function any_inside(patterns, inside)
  for _, pattern in ipairs(patterns) do
    if inside[pattern] then return true end
  end
  return false
end

local function cell_value(F, facts, inside)
  local list = {}
  for _, atom in ipairs(facts.matching) do
    if inside[atom.language] then list[#list + 1] = atom.of end
  end
  for _, atom in ipairs(facts.others) do
    if not any_inside(atom.patterns, inside) then list[#list + 1] = atom.of end
  end
  return F:all(list)
end

-- Every cell: the names in some of the patterns and in no other one. Cells of no names are left out where several
-- patterns would make many of them.
local function split(parts, patterns, at, inside, visit)
  if at > #patterns then return visit(parts, inside) end
  local pattern = patterns[at].language
  for _, is_in in ipairs { true, false } do
    local more = table.move(parts, 1, #parts, 1, {})
    more[#more + 1] = is_in and pattern or language.never(pattern)
    if at < 3 or not language.is_empty(language.both(more)) then
      inside[pattern] = is_in
      split(more, patterns, at + 1, inside, visit)
      inside[pattern] = nil
    end
  end
end

local function cells_of(F, facts)
  local patterns = patterns_of(facts)
  if #patterns > MAX_PATTERNS then
    refuse.unsupported(patterns[#patterns].where,
      ("more than %d patterns for the names of one object"):format(MAX_PATTERNS))
  end
  local parts = {}
  if facts.name_formula then parts[1] = scalar.strings(facts.name_formula) end
  if #facts.order > 0 then parts[#parts + 1] = language.never(language.alt(facts.order)) end
  local cells, by_value = {}, {}
  split(parts, patterns, 1, {}, function(languages, inside)
    local value = cell_value(F, facts, inside)
    if value == F.no then return end
    if not by_value[value] then
      by_value[value] = {}
      cells[#cells + 1] = value
    end
    table.insert(by_value[value], language.both(languages))
  end)
  for i, value in ipairs(cells) do cells[i] = { key = language.alt(by_value[value]), value = value } end
  return cells
end

-- ---- shapes ----

---@class kigo.schema.Object
---@field names string[]                        in the order of their first mention
---@field values table<string, kigo.schema.Formula>
---@field required table<string, any>
---@field needs table<string, string[]>
---@field cells kigo.schema.Cell[]              members of any other name, any number of them
---@field witness kigo.schema.Cell?             one more that must be there
---@field min integer
---@field max integer?

local function base_shape(F, facts)
  local closed
  if facts.name_formula then
    closed = scalar.values(facts.name_formula)
    for _, name in ipairs(closed or {}) do mention(facts, name) end
  end
  if #facts.order > object.max_names then
    refuse.unsupported("#", ("more than %d properties of one object"):format(object.max_names))
  end
  local values = {}
  for _, name in ipairs(facts.order) do
    F.budget:spend("work", 1 + #facts.matching + #facts.others)
    values[name] = value_of(F, facts, name)
  end
  return { names = facts.order, values = values, required = facts.required, needs = facts.needs,
    cells = closed and {} or cells_of(F, facts), min = facts.min, max = facts.max }
end

local function is_possible(F, shape)
  for name in pairs(shape.required) do
    if shape.values[name] == F.no then return false end
  end
  return not shape.max or shape.min <= shape.max
end

local function with(shape, changes)
  local copy = {}
  for key, value in pairs(shape) do copy[key] = value end
  for key, value in pairs(changes) do copy[key] = value end
  return copy
end

-- The shape with a property that must be there: one alternative for each name that it may have.
local function with_witness(F, shape, witness)
  local out, names = {}, witness.language()
  for _, name in ipairs(shape.names) do
    if shape.values[name] ~= F.no and language.matches(names, name) then
      local values, required = with(shape.values, {}), with(shape.required, { [name] = witness.where })
      values[name] = F:all { values[name], witness.of }
      if values[name] ~= F.no then out[#out + 1] = with(shape, { values = values, required = required }) end
    end
  end
  for _, cell in ipairs(shape.cells) do
    if witness.of ~= F.yes or shape.witness then
      refuse.unsupported(witness.where, "its negation asks for a property of unknown name, which could be overwritten")
    end
    out[#out + 1] = with(shape, { witness = { key = language.both { cell.key, names }, value = cell.value } })
  end
  return out
end

-- A name that is not mentioned may be written twice and count once; so the least number of members must not need two.
local function check_min(shape, where)
  local n = 0
  for _ in pairs(shape.required) do n = n + 1 end
  if shape.min <= n then
    shape.min = 0
  elseif shape.min > n + 1 and #shape.cells > 0 then
    refuse.unsupported(where, "more members than are required, of names that are free and might be repeated")
  end
end

---@param solver kigo.schema.Branches
---@param literals kigo.schema.Formula[]
---@return kigo.schema.Object[]
function object.shapes(solver, literals)
  local F = solver.formulas
  local facts = collect(F, literals)
  local first = base_shape(F, facts)
  if not is_possible(F, first) then return {} end
  local list = { first }
  for _, witness in ipairs(facts.witnesses) do
    local more = {}
    for _, shape in ipairs(list) do
      for _, one in ipairs(with_witness(F, shape, witness)) do
        F.budget:spend("work", #one.names + 1)
        more[#more + 1] = one
      end
    end
    list = more
  end
  for _, shape in ipairs(list) do check_min(shape, facts.min_where) end
  return list
end

return object
