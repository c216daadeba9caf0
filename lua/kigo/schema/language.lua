-- language.lua - sets of texts as nodes of the grammar form (kigo.GrammarNode): made with the obvious simplified away,
-- and two questions about them: does a text belong, and is there any at all.
local core = require "kigo.core"
local refuse = require "kigo.schema.refuse"

local language = {}

local ANY = { "class", negate = true }

---Any character.
language.any = ANY
---Any text.
language.all = { "repeat", ANY, 0 }
---No text at all.
language.none = { "alt" }
---A decimal digit.
language.digit = { "class", 0x30, 0x39 }

---One after the other.
---@param ... any
---@return table|string
function language.seq(...)
  local node = { "seq" }
  for _, part in ipairs { ... } do
    if part == language.none then return language.none end
    if part ~= "" then node[#node + 1] = part end
  end
  if #node == 1 then return "" end
  return #node == 2 and node[2] or node
end

---Any of them.
---@param list table
---@return table|string
function language.alt(list)
  local node, seen = { "alt" }, {}
  for _, part in ipairs(list) do
    if part == language.all then return part end
    if part ~= language.none and not seen[part] then
      node[#node + 1], seen[part] = part, true
    end
  end
  if #node == 1 then return language.none end
  return #node == 2 and node[2] or node
end

---All of them at once.
---@param list table
---@return table|string
function language.both(list)
  local node, seen = { "and" }, {}
  for _, part in ipairs(list) do
    if part == language.none then return part end
    if part ~= language.all and not seen[part] then
      node[#node + 1], seen[part] = part, true
    end
  end
  if #node == 1 then return language.all end
  return #node == 2 and node[2] or node
end

---Every text that does not belong.
---@param part table|string
---@return table
function language.never(part)
  if part == language.none then return language.all end
  if part == language.all then return language.none end
  return { "not", part }
end

---From min to max times; without max: any number of times.
---@param part table|string
---@param min integer
---@param max integer?
---@return table|string
function language.times(part, min, max)
  if max == 0 then return "" end
  if min == 1 and max == 1 then return part end
  return { "repeat", part, min, max }
end

---Once or not at all.
---@param part table|string
---@return table|string
function language.maybe(part) return language.times(part, 0, 1) end

-- ---- does a text belong? ----
-- ends(node, i): the set of places j such that the node matches the characters i to j - 1.

local Matcher = {}
Matcher.__index = Matcher

local function in_ranges(node, code)
  for i = 2, #node, 2 do
    if code >= node[i] and code <= node[i + 1] then return true end
  end
  return false
end

local function same_keys(a, b)
  for key in pairs(a) do
    if not b[key] then return false end
  end
  for key in pairs(b) do
    if not a[key] then return false end
  end
  return true
end

local FORMS = {}

function FORMS.class(self, node, i)
  local code = self.codes[i]
  local inside = code ~= nil and in_ranges(node, code)
  return code ~= nil and inside ~= (node.negate == true) and { [i + 1] = true } or {}
end

FORMS.bytes = FORMS.class -- ours are all ASCII

function Matcher:step(node, from)
  local out = {}
  for i in pairs(from) do
    for j in pairs(self:ends(node, i)) do out[j] = true end
  end
  return out
end

function FORMS.seq(self, node, i)
  local at = { [i] = true }
  for k = 2, #node do at = self:step(node[k], at) end
  return at
end

function FORMS.alt(self, node, i)
  local out = {}
  for k = 2, #node do
    for j in pairs(self:ends(node[k], i)) do out[j] = true end
  end
  return out
end

FORMS["and"] = function(self, node, i)
  local out = self:ends(node[2], i)
  for k = 3, #node do
    local more, both = self:ends(node[k], i), {}
    for j in pairs(out) do both[j] = more[j] end
    out = both
  end
  return out
end

FORMS["not"] = function(self, node, i)
  local inside, out = self:ends(node[2], i), {}
  for j = i, #self.codes + 1 do
    if not inside[j] then out[j] = true end
  end
  return out
end

FORMS["repeat"] = function(self, node, i)
  local at, out = { [i] = true }, {}
  local n, min, max = 0, node[3], node[4] or math.huge
  while next(at) and n <= max do
    if n >= min then
      local grown = false
      for j in pairs(at) do grown, out[j] = grown or not out[j], true end
      if not grown then break end
    end
    local following = self:step(node[2], at)
    if n < min and same_keys(at, following) then n = min - 1 end -- all further rounds are alike
    at, n = following, n + 1
  end
  return out
end

FORMS.regular = function(self, node, i) return self:ends(node[2], i) end

function Matcher:literal(text, i)
  for _, code in utf8.codes(text) do
    if self.codes[i] ~= code then return {} end
    i = i + 1
  end
  return { [i] = true }
end

function Matcher:ends(node, i)
  if type(node) == "string" then return self:literal(node, i) end
  local known = self.memo[node]
  if not known then
    known = {}
    self.memo[node] = known
  end
  if not known[i] then known[i] = FORMS[node[1]](self, node, i) end
  return known[i]
end

---Does the whole text belong?
---@param node table|string
---@param text string   UTF-8
---@return boolean
function language.matches(node, text)
  if node == language.all then return true end
  if type(node) == "string" then return node == text end
  local codes = {}
  for _, code in utf8.codes(text) do codes[#codes + 1] = code end
  local matcher = setmetatable({ codes = codes, memo = {} }, Matcher)
  return matcher:ends(node, 1)[#codes + 1] == true
end

---Does the message of core.grammar say that nothing matches?
---@param message string
---@return boolean
function language.says_nothing(message) return message:find("matches nothing", 1, true) ~= nil end

---Is there no text at all that belongs? false where that takes too much work to find out.
---@param node table|string
---@return boolean
function language.is_empty(node)
  if node == language.none then return true end
  if type(node) == "string" or (node[1] ~= "and" and node[1] ~= "not" and node[1] ~= "alt") then return false end
  local grammar <close>, message, code = core.grammar { root = { "regular", node } }
  if code == core.err.MEMORY then refuse.failed(message, code) end
  return grammar == nil and language.says_nothing(message)
end

return language
