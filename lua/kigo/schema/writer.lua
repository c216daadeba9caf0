-- writer.lua - formulas as rules of the grammar form: one rule for each formula that lists or objects may satisfy. What
-- is white space between tokens, and how characters of strings may be spelled, is settled here.
local language = require "kigo.schema.language"
local refuse = require "kigo.schema.refuse"
local scalar = require "kigo.schema.scalar"

local seq, alt, times = language.seq, language.alt, language.times

local writer = {}

local MAX_STATES = 1000   -- of a list whose items are counted
local MAX_SEQUENCES = 500 -- of different items, where places differ

---@class kigo.schema.Writer
---@field rules table<string, any>
local Writer = {}
Writer.__index = Writer

local function regular(...) return { "regular", seq(...) } end

---@param solver kigo.schema.Branches
---@param options { whitespace: integer, escapes: string, ordered: boolean, plain_numbers: boolean }
---@return kigo.schema.Writer
function writer.new(solver, options)
  local blanks = times({ "bytes", 0x09, 0x0A, 0x0D, 0x0D, 0x20, 0x20 }, 0, options.whitespace)
  return setmetatable({
    rules = {}, _solver = solver, _formulas = solver.formulas, _options = options,
    _nodes = {}, _queue = {}, _names = {}, _n_rules = 0,
    _blanks = blanks,
    _comma = regular(blanks, ",", blanks),
    _open = { ["{"] = regular("{", blanks), ["["] = regular("[", blanks) },
    _close = { ["}"] = regular(blanks, "}"), ["]"] = regular(blanks, "]") },
  }, Writer)
end

function Writer:_json(content) return seq('"', { "json", content, escapes = self._options.escapes }, '"') end

function Writer:_new_rule()
  self._formulas.budget:spend("rules", 1)
  self._n_rules = self._n_rules + 1
  return ("v%d"):format(self._n_rules)
end

-- ---- lists and objects in general ----

-- Brackets around nothing, or around `some`, which is not empty.
function Writer:_bracketed(open, close, may_be_empty, some)
  local inside = {}
  if may_be_empty then inside[1] = close end
  if some ~= language.none then inside[#inside + 1] = seq(some, self._close[close]) end
  return seq(self._open[open], alt(inside))
end

-- ---- objects ----

function Writer:_key(name)
  local known = self._names[name]
  if not known then
    known = regular(self:_json(name), self._blanks, ":", self._blanks)
    self._names[name] = known
  end
  return known
end

function Writer:_cell(cell)
  return seq(regular(self:_json(cell.key), self._blanks, ":", self._blanks), self:_value(cell.value))
end

-- Names whose members may be written: a value is possible, and so are all members that they ask for.
local function writable_names(F, shape)
  local possible = {}
  for _, name in ipairs(shape.names) do possible[name] = shape.values[name] ~= F.no end
  local changed = true
  while changed do
    changed = false
    for name, needs in pairs(shape.needs) do
      for _, needed in ipairs(needs) do
        if possible[name] and not possible[needed] then possible[name], changed = false, true end
      end
    end
  end
  local names, index = {}, {}
  for _, name in ipairs(shape.names) do
    if possible[name] then
      names[#names + 1] = name
      index[name] = #names
    end
  end
  return names, index
end

function Writer:_members(shape)
  local names, index = writable_names(self._formulas, shape)
  local items = {}
  for i, name in ipairs(names) do
    local needs = {}
    for _, needed in ipairs(shape.needs[name] or {}) do needs[#needs + 1] = index[needed] end
    items[i] = { seq(self:_key(name), self:_value(shape.values[name])), required = shape.required[name] ~= nil or nil,
      requires = #needs > 0 and needs or nil }
  end
  for name in pairs(shape.required) do
    if not index[name] then return nil end
  end
  if shape.witness then items[#items + 1] = { self:_cell(shape.witness), required = true } end
  return items
end

function Writer:_object(shape)
  local items = self:_members(shape)
  if not items then return language.none end
  local others = {}
  for i, cell in ipairs(shape.cells) do others[i] = self:_cell(cell) end
  local may_be_empty = shape.min == 0
  for _, item in ipairs(items) do may_be_empty = may_be_empty and not item.required end
  if shape.max == 0 or (#items == 0 and #others == 0) then
    return may_be_empty and self:_bracketed("{", "}", true, language.none) or language.none
  end
  return self:_bracketed("{", "}", may_be_empty, {
    "members", items, separator = self._comma, others = #others > 0 and alt(others) or nil,
    min = math.max(shape.min, 1), max = shape.max, ordered = self._options.ordered or nil,
  })
end

-- ---- lists ----

-- Items `from` and on, each with a comma in front; at most 20 in one expression, because nesting has a limit.
function Writer:_items_from(shape, from)
  if shape.max and from > shape.max then return "" end
  local may_end = shape.min < from
  if from > #shape.places then
    if shape.rest == self._formulas.no then return may_end and "" or language.none end
    local min, max = math.max(0, shape.min - from + 1), shape.max and shape.max - from + 1
    return times(seq(self._comma, self:_value(shape.rest)), min, max)
  end
  local more = language.none
  if shape.places[from] ~= self._formulas.no then
    local rest = self:_items_from(shape, from + 1)
    if from % 20 == 0 then
      local name = self:_new_rule()
      self.rules[name] = rest
      rest = { "rule", name }
    end
    more = seq(self._comma, self:_value(shape.places[from]), rest)
  end
  return may_end and alt { "", more } or more
end

function Writer:_plain_list(shape)
  local first = shape.places[1] or shape.rest
  local some = language.none
  if first ~= self._formulas.no and shape.max ~= 0 then some = seq(self:_value(first), self:_items_from(shape, 2)) end
  return self:_bracketed("[", "]", shape.min == 0, some)
end

-- Different items, all places alike: members without keys.
function Writer:_set(shape)
  local items = {}
  for i, value in ipairs(shape.choices[1]) do items[i] = { self:_value(value) } end
  if #items == 0 or shape.max == 0 then return self:_bracketed("[", "]", shape.min == 0, language.none) end
  return self:_bracketed("[", "]", shape.min == 0,
    { "members", items, separator = self._comma, min = math.max(shape.min, 1), max = shape.max })
end

-- Different items at places that differ: every sequence of them.
function Writer:_sequences(shape)
  local count = 0
  local used = {}
  local function from(i)
    count = count + 1
    if count > MAX_SEQUENCES then
      refuse.unsupported(shape.unique, ("more than %d ways to choose different items"):format(MAX_SEQUENCES))
    end
    local ways = {}
    if i > shape.min then ways[1] = self._close["]"] end
    local may_go_on = not shape.max or i <= shape.max
    for _, value in ipairs(may_go_on and (shape.choices[i] or shape.choices[#shape.choices]) or {}) do
      if not used[value] then
        used[value] = true
        ways[#ways + 1] = seq(i > 1 and self._comma or "", self:_value(value), from(i + 1))
        used[value] = nil
      end
    end
    return alt(ways)
  end
  return seq(self._open["["], from(1))
end

-- ---- lists whose items are counted ---- A state is the place of the next item and, for each thing that is counted,
-- how many there were; places and counts stand still where more makes no difference. `cap` is the place from which on
-- all places are alike.

local function ceiling(one) return one.max or one.min end

local function state_name(place, counts) return place .. ":" .. table.concat(counts, ",") end

-- What the next item may be: its formula and the counts behind it, for each choice of what it counts for.
function Writer:_choices(shape, place, counts)
  local F = self._formulas
  local base = shape.places[place] or shape.rest
  local list = { { value = base, counts = counts } }
  for k, one in ipairs(shape.some) do
    if place >= one.from and (one.max or counts[k] < one.min) then
      local more = {}
      for _, choice in ipairs(list) do
        local plain = one.max and F:all { choice.value, F:never(one.of) } or choice.value
        more[#more + 1] = { value = plain, counts = choice.counts }
        if counts[k] < ceiling(one) then
          local raised = table.move(choice.counts, 1, #choice.counts, 1, {})
          raised[k] = raised[k] + 1
          more[#more + 1] = { value = F:all { choice.value, one.of }, counts = raised }
        end
      end
      list = more
    end
  end
  return list
end

local function may_end(shape, place, counts)
  if place <= shape.min then return false end
  for k, one in ipairs(shape.some) do
    if counts[k] < one.min then return false end
  end
  return true
end

function Writer:_counted_list(shape)
  local F = self._formulas
  local cap = math.max(#shape.places, shape.min, shape.max or 0) + 1
  for _, one in ipairs(shape.some) do cap = math.max(cap, one.from) end
  cap = math.max(cap, 2)
  local rules, n = {}, 0
  local visit
  local function state(place, counts)
    local name = state_name(place, counts)
    if not rules[name] then
      n = n + 1
      if n > MAX_STATES then
        refuse.unsupported(shape.some[1].where, ("more than %d combinations of places and counts"):format(MAX_STATES))
      end
      rules[name] = self:_new_rule()
      self.rules[rules[name]] = visit(place, counts)
    end
    return { "rule", rules[name] }
  end
  function visit(place, counts)
    local loops, ways = {}, {}
    if may_end(shape, place, counts) then ways[1] = self._close["]"] end
    for _, choice in ipairs((not shape.max or place <= shape.max) and self:_choices(shape, place, counts) or {}) do
      if choice.value ~= F.no then
        local item = seq(place > 1 and self._comma or "", self:_value(choice.value))
        if place == cap and state_name(place, choice.counts) == state_name(place, counts) then
          loops[#loops + 1] = item
        else
          ways[#ways + 1] = seq(item, state(math.min(place + 1, cap), choice.counts))
        end
      end
    end
    return seq(#loops > 0 and times(alt(loops), 0) or "", alt(ways))
  end
  local zeros = {}
  for k = 1, #shape.some do zeros[k] = 0 end
  return seq(self._open["["], state(1, zeros))
end

function Writer:_array(shape)
  if shape.unique then
    return #shape.places == 0 and self:_set(shape) or self:_sequences(shape)
  end
  return #shape.some > 0 and self:_counted_list(shape) or self:_plain_list(shape)
end

-- ---- values ----

local WORDS = { "null", "true", "false" }

-- Everything that is no list and no object, as one lexeme.
function Writer:_scalars(f)
  local F, list = self._formulas, {}
  for _, word in ipairs(WORDS) do
    if F:for_type(f, word) == F.yes then list[#list + 1] = word end
  end
  local numbers, strings = F:for_type(f, "number"), F:for_type(f, "string")
  if numbers ~= F.no then
    list[#list + 1] = self._options.plain_numbers and scalar.plain_numbers(numbers) or scalar.numbers(numbers)
  end
  if strings ~= F.no then
    local content = scalar.strings(strings)
    if content ~= language.none then list[#list + 1] = self:_json(content) end
  end
  local node = alt(list)
  return node == language.none and node or { "regular", node }
end

---The node of a formula; its rule is written later.
---@param f kigo.schema.Formula
function Writer:_value(f)
  local known = self._nodes[f]
  if known then return known end
  local F = self._formulas
  local node
  if F:for_type(f, "array") == F.no and F:for_type(f, "object") == F.no then
    node = self:_scalars(f)
  else
    node = { "rule", self:_new_rule() }
    self._queue[#self._queue + 1] = { formula = f, name = node[2] }
  end
  self._nodes[f] = node
  return node
end

function Writer:_rule(f)
  local list = { self:_scalars(f) }
  for _, kind in ipairs { "object", "array" } do
    local write = kind == "object" and self._object or self._array
    for _, branch in ipairs(self._solver:of(self._formulas:for_type(f, kind), kind)) do
      for _, shape in ipairs(self._solver:shapes(branch, kind)) do list[#list + 1] = write(self, shape) end
    end
  end
  return alt(list)
end

---The rules of a grammar whose texts are the values that satisfy a formula.
---@param f kigo.schema.Formula
---@return table<string, any>
function Writer:write(f)
  self.rules.root = seq(self._blanks, self:_value(f))
  while #self._queue > 0 do
    local next_one = table.remove(self._queue)
    self.rules[next_one.name] = self:_rule(next_one.formula)
  end
  return self.rules
end

return writer
