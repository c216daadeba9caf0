-- random_grammar.lua - grammars at random, texts that they might accept, and a slow matcher that knows nothing of
-- automata: what specs compare engine/grammar.h and its neighbours with.
local core = require "kigo.core"
local json = require "kigo.json"

local random_grammar = {}

-- ---- random numbers ----

---@param seed integer
---@return fun(n: integer): integer  1 to n
function random_grammar.dice(seed)
  local i = 0
  return function(n)
    i = i + 1
    return 1 + math.floor(core.uniform(seed, i, 7) * n)
  end
end

-- ---- grammars ----

local TEXTS = { "a", "b", "ab", "ba", "abc", "", "é", "aé", "\"", "{", "}", ",", "\n" }
local CLASSES = {
  { "class", 0x61, 0x63 }, { "class", 0x61, 0x61, negate = true }, { "class", 0xE0, 0xFF, 0x62, 0x62 },
  { "bytes", 0x61, 0x62 }, { "bytes", 0x80, 0xFF }, { "class", negate = true }, { "class", 0x61, 0x7A },
}

local node

local function list(kind, roll, depth, options)
  local made = { kind }
  for i = 1, roll(3) do made[i + 1] = node(roll, depth - 1, options) end
  return made
end

local function members(roll, depth, options)
  local items = {}
  for i = 1, roll(3) do items[i] = { node(roll, depth - 1, options), required = roll(2) == 1 } end
  if #items > 1 and roll(3) == 1 then items[1].requires = { 2 } end
  local made = { "members", items, separator = roll(4) > 1 and "," or nil, ordered = roll(4) == 1 or nil }
  if roll(3) == 1 then made.others = node(roll, depth - 1, options) end
  if roll(3) == 1 then made.min = roll(3) - 1 end
  if roll(3) == 1 then made.max = (made.min or 0) + roll(3) end
  return made
end

function node(roll, depth, options)
  local kind = depth <= 0 and roll(4) or roll(16)
  if kind <= 3 then return TEXTS[roll(#TEXTS)] end
  if kind == 4 then return CLASSES[roll(#CLASSES)] end
  if kind <= 7 then return list("seq", roll, depth, options) end
  if kind <= 9 then return list("alt", roll, depth, options) end
  if kind <= 11 then
    local min = roll(3) - 1
    return { "repeat", node(roll, depth - 1, options), min, roll(2) == 1 and min + roll(3) - 1 or nil }
  end
  local regular = { regular = true }
  if kind == 12 then return { "regular", node(roll, depth - 1, regular) } end
  if kind == 13 then return { "and", node(roll, depth - 1, regular), node(roll, depth - 1, regular) } end
  if kind == 14 then return { "not", node(roll, depth - 1, regular) } end
  if options.regular then return { "json", { "repeat", CLASSES[roll(2)], 0, roll(3) } } end
  if kind == 15 then return members(roll, depth, options) end
  return { "seq", ("ab{"):sub(roll(3)):sub(1, 1), { "rule", roll(2) == 1 and "root" or "other" } }
end

---@param seed integer
---@return table<string, kigo.GrammarNode> rules
function random_grammar.make(seed)
  local roll = random_grammar.dice(seed)
  return { root = node(roll, 4, {}), other = { "alt", node(roll, 2, {}), "b" } }
end

-- ---- the slow matcher: from a node and a place to the set of places where it may end ----

---@class kigo.spec.SlowMatcher
local Slow = {}
Slow.__index = Slow

---@param rules table<string, kigo.GrammarNode>
---@param text string
function random_grammar.accepts(rules, text)
  local slow = setmetatable({ rules = rules, text = text, known = {}, open = {} }, Slow)
  return slow:ends(rules.root, 1)[#text + 1] == true
end

local function union(into, from)
  for place in pairs(from) do into[place] = true end
end

---The character at a place, if it is one: code point and the place behind it.
local function character(text, at)
  local c = text:match("^[\0-\x7F\xC2-\xF4][\x80-\xBF]*", at)
  if not c then return nil end
  for n = #c, 1, -1 do
    if utf8.len(c:sub(1, n)) == 1 then return utf8.codepoint(c), at + n end
  end
end

local function in_ranges(ranges, value)
  for i = 2, #ranges, 2 do
    if ranges[i] <= value and value <= ranges[i + 1] then return true end
  end
  return false
end

function Slow:from_all(inner, places)
  local out = {}
  for place in pairs(places) do union(out, self:ends(inner, place)) end
  return out
end

local kinds = {}

function kinds.class(self, x, at)
  local c, behind = character(self.text, at)
  return c and in_ranges(x, c) ~= (x.negate or false) and { [behind] = true } or {}
end

function kinds.bytes(self, x, at)
  local byte = self.text:byte(at)
  return byte and in_ranges(x, byte) and { [at + 1] = true } or {}
end

function kinds.seq(self, x, at)
  local places = { [at] = true }
  for i = 2, #x do places = self:from_all(x[i], places) end
  return places
end

function kinds.alt(self, x, at)
  local out = {}
  for i = 2, #x do union(out, self:ends(x[i], at)) end
  return out
end

kinds["repeat"] = function(self, x, at)
  local min, max = x[3] or 0, x[4]
  local out, places = {}, { [at] = true }
  for count = 0, max or min + #self.text + 1 do
    if count >= min then union(out, places) end
    if not next(places) then break end
    places = self:from_all(x[2], places)
  end
  return out
end

function kinds.rule(self, x, at)
  local key = x[2] .. "@" .. at
  if not self.known[key] then
    assert(not self.open[key], "left recursion")
    self.open[key] = true
    self.known[key] = self:ends(self.rules[x[2]], at)
    self.open[key] = nil
  end
  return self.known[key]
end

function kinds.regular(self, x, at) return self:ends(x[2], at) end

kinds["and"] = function(self, x, at)
  local out = self:ends(x[2], at)
  for i = 3, #x do
    local other, both = self:ends(x[i], at), {}
    for place in pairs(out) do both[place] = other[place] end
    out = both
  end
  return out
end

kinds["not"] = function(self, x, at)
  local inner, out = self:ends(x[2], at), {}
  for place = at, #self.text + 1 do out[place] = not inner[place] or nil end
  return out
end

function kinds.json(self, x, at)
  local out = {}
  for place = at, #self.text + 1 do
    local content = self.text:sub(at, place - 1)
    local plain = not content:gsub("\\.", ""):find '["\\%c]' and utf8.len(content)
    local decoded = plain and json.decode('"' .. content .. '"')
    if type(decoded) == "string" and utf8.len(decoded) and not content:find "\\u[dD][89a-fA-F]" then
      local inner = setmetatable({ rules = self.rules, text = decoded, known = {}, open = {} }, Slow)
      out[place] = inner:ends(x[2], 1)[#decoded + 1]
    end
  end
  return out
end

local function may_end(x, used, count)
  if count < (x.min or 0) then return false end
  for i, item in ipairs(x[2]) do
    if item.required and not used[i] then return false end
    for _, other in ipairs(used[i] and item.requires or {}) do
      if not used[other] then return false end
    end
  end
  return true
end

function Slow:more_members(x, at, used, count, last, out)
  if may_end(x, used, count) then out[at] = true end
  if x.max and count >= x.max then return end
  local starts = { [at] = true }
  if count > 0 and x.separator then starts = self:ends(x.separator, at) end
  for start in pairs(starts) do
    for i, item in ipairs(x[2]) do
      if not used[i] and (not x.ordered or i > last) then
        used[i] = true
        for behind in pairs(self:ends(item[1], start)) do self:more_members(x, behind, used, count + 1, i, out) end
        used[i] = nil
      end
    end
    if x.others then
      for behind in pairs(self:ends(x.others, start)) do
        -- what reads nothing may come as often as it is needed
        if behind > at or count < (x.min or 0) + #x[2] then
          self:more_members(x, behind, used, count + 1, #x[2], out)
        end
      end
    end
  end
end

function kinds.members(self, x, at)
  local out = {}
  self:more_members(x, at, {}, 0, 0, out)
  return out
end

function Slow:ends(x, at)
  if type(x) == "string" then return self.text:sub(at, at + #x - 1) == x and { [at + #x] = true } or {} end
  return kinds[x[1]](self, x, at)
end

-- ---- texts ----

local ALPHABET = { "a", "b", "c", "é", "\"", "{", "}", ",", "\\", "\n", "\xC3", "\xA9", "z" }

---Texts at random, short ones.
function random_grammar.text(roll)
  local parts = {}
  for i = 1, roll(8) - 1 do parts[i] = ALPHABET[roll(roll(2) == 1 and 3 or #ALPHABET)] end
  return table.concat(parts)
end

---A text of the node if luck has it: alternatives and counts at random, intersections and complements by chance.
function random_grammar.derive(rules, x, roll, depth)
  depth = depth or 12
  if depth == 0 then return "" end
  local function inner(y) return random_grammar.derive(rules, y, roll, depth - 1) end
  if type(x) == "string" then return x end
  local kind = x[1]
  if kind == "class" then return x.negate and "b" or utf8.char(x[2] + roll(x[3] - x[2] + 1) - 1) end
  if kind == "bytes" then return string.char(x[2] + roll(x[3] - x[2] + 1) - 1) end
  if kind == "alt" then return x[2] and inner(x[1 + roll(#x - 1)]) or "" end
  if kind == "rule" then return inner(rules[x[2]]) end
  if kind == "not" then return random_grammar.text(roll) end
  if kind == "seq" then
    local parts = {}
    for i = 2, #x do parts[#parts + 1] = inner(x[i]) end
    return table.concat(parts)
  elseif kind == "repeat" then
    local parts, n = {}, x[3] + roll(1 + (x[4] or x[3] + 2) - x[3]) - 1
    for i = 1, n do parts[i] = inner(x[2]) end
    return table.concat(parts)
  elseif kind == "members" then
    local parts = {}
    for _, item in ipairs(x[2]) do
      if item.required or roll(2) == 1 then table.insert(parts, roll(#parts + 1), inner(item[1])) end
    end
    if x.others and roll(2) == 1 then table.insert(parts, roll(#parts + 1), inner(x.others)) end
    return table.concat(parts, x.separator or "")
  end
  return inner(x[2])
end

return random_grammar
