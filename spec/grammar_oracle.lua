-- grammar_oracle.lua - what rules of the grammar form mean, as simply as it can be said and without the engine: the set
-- of places where a match that begins at i may end. Slow; for short texts.
local oracle = {}

local Matcher = {}
Matcher.__index = Matcher

local FORMS = {}

local function one_of(node, code)
  if not code then return false end
  for i = 2, #node, 2 do
    if code >= node[i] and code <= node[i + 1] then return not node.negate end
  end
  return node.negate == true
end

function FORMS.class(self, node, i) return one_of(node, self.codes[i]) and { [i + 1] = true } or {} end
FORMS.bytes = FORMS.class -- for ASCII

local function from_each(self, node, starts)
  local out = {}
  for i in pairs(starts) do
    for j in pairs(self:ends(node, i)) do out[j] = true end
  end
  return out
end

function FORMS.seq(self, node, i)
  local at = { [i] = true }
  for k = 2, #node do at = from_each(self, node[k], at) end
  return at
end

function FORMS.alt(self, node, i)
  local out = {}
  for k = 2, #node do
    for j in pairs(self:ends(node[k], i)) do out[j] = true end
  end
  return out
end

FORMS["repeat"] = function(self, node, i)
  local seen, out = {}, {}
  local queue = { { i, 0 } }
  local most, length = node[4] or math.huge, #self.codes + 2
  while #queue > 0 do
    local at, n = table.unpack(table.remove(queue))
    local key = at .. ":" .. math.min(n, node[3] + length) -- more rounds than characters are all alike
    if not seen[key] then
      seen[key] = true
      if n >= node[3] then out[at] = true end
      if n < most and n < node[3] + length then
        for j in pairs(self:ends(node[2], at)) do
          local rounds = j == at and node[3] > n + 1 and node[3] or n + 1 -- an empty round may be any number of them
          queue[#queue + 1] = { j, rounds }
        end
      end
    end
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

function FORMS.regular(self, node, i) return self:ends(node[2], i) end
function FORMS.rule(self, node, i) return self:ends(self.rules[node[2]] or error("no rule " .. node[2]), i) end

-- Decimal numbers that are multiples of k x 10^-places.
function FORMS.multiple(self, node, i)
  local k, places, out = node[2], node[3] or 0, {}
  local rest, behind = 0, nil -- behind: digits behind the point
  while true do
    local filled = rest
    for _ = 1, places - (behind or 0) do filled = filled * 10 % k end
    if filled == 0 then out[i] = true end
    local code = self.codes[i]
    if code == 0x2E and not behind then
      behind = 0
    elseif not code or code < 0x30 or code > 0x39 or (behind == places and code ~= 0x30) then
      return out
    elseif behind ~= places then
      rest, behind = (rest * 10 + code - 0x30) % k, behind and behind + 1
    end
    i = i + 1
  end
end

local SHORT = { b = 8, f = 12, n = 10, r = 13, t = 9, ["/"] = 47, ["\\"] = 92, ['"'] = 34 }

-- One character of a JSON string at place i: its code and the place behind it.
local function json_character(codes, i)
  local code = codes[i]
  if not code or code < 0x20 or code == 0x22 then return nil end
  if code ~= 0x5C then return code, i + 1 end
  local escape = codes[i + 1] and codes[i + 1] < 128 and string.char(codes[i + 1])
  if SHORT[escape] then return SHORT[escape], i + 2 end
  local function unit(at)
    local text = {}
    for k = at, at + 5 do text[#text + 1] = codes[k] and codes[k] < 128 and string.char(codes[k]) or "?" end
    return tonumber(table.concat(text):match "^\\u(%x%x%x%x)$" or "", 16)
  end
  local high = unit(i)
  if not high then return nil end
  if high < 0xD800 or high > 0xDFFF then return high, i + 6 end
  local low = unit(i + 6)
  if high > 0xDBFF or not low or low < 0xDC00 or low > 0xDFFF then return nil end
  return 0x10000 + (high - 0xD800 << 10) + low - 0xDC00, i + 12
end

function FORMS.json(self, node, i)
  local codes, places = {}, { i }
  while true do
    local code, behind = json_character(self.codes, places[#places])
    if not code then break end
    codes[#codes + 1], places[#places + 1] = code, behind
  end
  local out = {}
  for k in pairs(setmetatable({ codes = codes, memo = {} }, Matcher):ends(node[2], 1)) do out[places[k]] = true end
  return out
end

function FORMS.members(self, node, i)
  local items, out, seen = node[2], {}, {}
  local min, max = node.min or 0, node.max or math.huge
  local function complete(used)
    for k, item in ipairs(items) do
      if item.required and not used[k] then return false end
      for _, needed in ipairs(used[k] and item.requires or {}) do
        if not used[needed] then return false end
      end
    end
    return true
  end
  local function visit(at, n, used, name)
    local key = ("%d:%d:%s"):format(at, n, name)
    if seen[key] then return end
    seen[key] = true
    if n >= min and complete(used) then out[at] = true end
    if n >= max then return end
    for start in pairs(n == 0 and { [at] = true } or self:ends(node.separator, at)) do
      for k, item in ipairs(items) do
        if not used[k] then
          local more, list = { [k] = true }, {}
          for u in pairs(used) do more[u] = true end
          for u in pairs(more) do list[#list + 1] = u end
          table.sort(list)
          for j in pairs(self:ends(item[1], start)) do visit(j, n + 1, more, table.concat(list, ",")) end
        end
      end
      for j in pairs(node.others and self:ends(node.others, start) or {}) do visit(j, n + 1, used, name) end
    end
  end
  visit(i, 0, {}, "")
  return out
end

function Matcher:ends(node, i)
  if type(node) == "string" then
    for _, code in utf8.codes(node) do
      if self.codes[i] ~= code then return {} end
      i = i + 1
    end
    return { [i] = true }
  end
  local known = self.memo[node] or {}
  self.memo[node] = known
  if not known[i] then known[i] = FORMS[node[1]](self, node, i) end
  return known[i]
end

---Do the rules match the whole text?
---@param rules table<string, any>
---@param text string   UTF-8
---@return boolean
function oracle.accepts(rules, text)
  local codes = {}
  for _, code in utf8.codes(text) do codes[#codes + 1] = code end
  local matcher = setmetatable({ codes = codes, memo = {}, rules = rules }, Matcher)
  return matcher:ends(rules.root, 1)[#codes + 1] == true
end

return oracle
