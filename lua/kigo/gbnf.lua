-- gbnf.lua - grammars in GBNF, the notation of llama.cpp's grammars:
--
--   root  ::= "yes" | "no" ws digit{1,3}     # a comment
--   digit ::= [0-9]
--   ws    ::= [ \t\n]*
--
-- Literals "..." and classes [...] and [^...] with the escapes \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH and
-- \UHHHHHHHH; "." is any character; groups ( ); quantifiers * + ? {n} {n,} {n,m}; alternatives |. A rule ends with its
-- line, but goes on to the next one within groups and behind "|" and "::=".
local core = require "kigo.core"
local check = require "kigo.check"

local gbnf = {}

local NESTING, SIZE, REPEAT_MAX = 60, 1 << 18, 1 << 20

---@class kigo.GbnfParser
---@field text string
---@field at integer
---@field depth integer
---@field rules table<string, kigo.GrammarNode>
local Parser = {}
Parser.__index = Parser

---Errors name the line and column of a byte.
local function fail(parser, message, at, code)
  at = math.min(at or parser.at, #parser.text + 1)
  local before = parser.text:sub(1, at - 1)
  local line = select(2, before:gsub("\n", "")) + 1
  local column = #before:match "[^\n]*$" + 1
  message = ("gbnf: line %d, column %d: %s"):format(line, column, check.printable(message))
  error({ code = code or core.err.FORMAT, message = message }, 0)
end

function Parser:take(pattern)
  local found = self.text:match("^" .. pattern, self.at)
  if found then self.at = self.at + #found end
  return found
end

function Parser:peek(pattern) return self.text:match("^" .. pattern, self.at) end

---Skip white space and comments; line ends too, where the rule may go on there.
function Parser:skip(over_lines)
  local space = over_lines and "[ \t\r\n]+" or "[ \t]+"
  while self:take(space) or self:take "#[^\n]*" do end
end

local ESCAPES = { n = "\n", r = "\r", t = "\t" }

---The character of an escape or the one that stands here, as a code point.
function Parser:character()
  local at = self.at
  if self:take "\\" then
    local digits = self:take "x%x%x" or self:take "u%x%x%x%x" or self:take "U%x%x%x%x%x%x%x%x"
    if digits then
      local value = tonumber(digits:sub(2), 16)
      if value > 0x10FFFF then fail(self, "there is no such character", at) end
      return value
    end
    local letter = self:take "[nrt\\\"%[%]%-^]"
    if not letter then fail(self, "an unknown escape", at) end
    return (ESCAPES[letter] or letter):byte()
  end
  local c = self:take "[\0-\x7F\xC2-\xF4][\x80-\xBF]*"
  if not c or not utf8.len(c) or utf8.len(c) > 1 then fail(self, "this is not UTF-8", at) end
  return utf8.codepoint(c)
end

local function spell(parser, code_point, at)
  if code_point >= 0xD800 and code_point < 0xE000 then fail(parser, "a surrogate is no character", at) end
  return utf8.char(code_point)
end

function Parser:literal(at)
  local parts = {}
  while not self:take '"' do
    if self.at > #self.text or self:peek "\n" then fail(self, "a text without an end", at) end
    local from = self.at
    parts[#parts + 1] = spell(self, self:character(), from)
  end
  return table.concat(parts)
end

function Parser:class(at)
  local node = { "class", negate = self:take "%^" ~= nil or nil }
  while not self:take "%]" do
    if self.at > #self.text or self:peek "\n" then fail(self, "a class without an end", at) end
    local from = self.at
    local lo = self:character()
    local hi = lo
    if self:peek "%-[^%]]" then
      self.at = self.at + 1
      hi = self:character()
      if hi < lo then fail(self, "a range that ends before it begins", from) end
    end
    node[#node + 1], node[#node + 2] = lo, hi
  end
  return node
end

---The counts of a quantifier that stands here; max nil: no limit.
function Parser:quantifier()
  local at = self.at
  local sign = self:take "[*+?]"
  if sign then return sign == "+" and 1 or 0, sign == "?" and 1 or nil, at end
  if not self:take "{" then return nil end
  local first, comma, second = self.text:match("^%s*(%d+)%s*(,?)%s*(%d*)%s*}", self.at)
  if not first then fail(self, "counts like {2}, {2,} or {2,4} expected", at) end
  self:take "[^}]*}"
  if #first > 9 or #second > 9 or tonumber(first) > REPEAT_MAX or (tonumber(second) or 0) > REPEAT_MAX then
    fail(self, ("a count above %d"):format(REPEAT_MAX), at, core.err.FULL)
  end
  local min, max = tonumber(first), comma == "" and tonumber(first) or tonumber(second)
  if max and max < min then fail(self, "counts in the wrong order", at) end
  return min, max, at
end

local NAME = "%a[%w_-]*"

---One element of a sequence, or nil where the sequence ends.
function Parser:element(in_group)
  local at = self.at
  if self:take '"' then return self:literal(at) end
  if self:take "%[" then return self:class(at) end
  if self:take "%." then return { "class", negate = true } end
  if self:take "%(" then
    self.depth = self.depth + 1
    if self.depth > NESTING then fail(self, ("groups nested deeper than %d"):format(NESTING), at, core.err.FULL) end
    self:skip(true)
    local node = self:alternatives(true)
    if not self:take "%)" then fail(self, "a group without an end", at) end
    self.depth = self.depth - 1
    return node
  end
  local name = self:peek(NAME)
  if name and not (self:peek(NAME .. "[ \t\r\n]*::=")) then
    self.at = at + #name
    self.used[name] = self.used[name] or at
    return { "rule", name }
  end
  if self:peek "[*+?{]" then fail(self, "a quantifier on nothing") end
  if name or self.at > #self.text or self:peek "[|\n\r]" or (in_group and self:peek "%)") then return nil end
  fail(self, ("%q is out of place"):format(self:peek "[%g ]" or "this byte"))
end

function Parser:sequence(in_group)
  local node = { "seq" }
  while true do
    local element = self:element(in_group)
    if not element then break end
    local min, max, at = self:quantifier()
    if min then element = { "repeat", element, min, max } end
    if min and self:peek "[*+?{]" then fail(self, "a quantifier on a quantifier", at) end
    node[#node + 1] = element
    self:skip(in_group)
  end
  return #node == 2 and node[2] or node
end

function Parser:alternatives(in_group)
  local node = { "alt", self:sequence(in_group) }
  while self:take "|" do
    self:skip(true)
    node[#node + 1] = self:sequence(in_group)
  end
  return #node == 2 and node[2] or node
end

function Parser:rule()
  local at = self.at
  local name = self:take(NAME)
  if not name then fail(self, "the name of a rule expected") end
  self:skip(false)
  if not self:take "::=" then fail(self, "::= expected") end
  if self.rules[name] then fail(self, ("rule %s is there already"):format(name), at) end
  self:skip(true)
  self.rules[name] = self:alternatives(false)
  if self.at <= #self.text and not self:peek "[\r\n]" and not self:peek(NAME .. "[ \t\r\n]*::=") then
    fail(self, "the end of the rule expected")
  end
end

---@class kigo.GbnfOptions: kigo.GrammarOptions
---@field points? string[]   names of rules whose texts functions judge (kigo.Point)

---The rules of a grammar in GBNF, as kigo.grammar takes them.
---@param text string
---@param options? { points: string[]? }
---@return table<string, kigo.GrammarNode>?
---@return string? message   names line and column
---@return integer? code     FORMAT, or FULL (limits)
function gbnf.parse(text, options)
  if #text > SIZE then return nil, ("gbnf: the grammar has more than %d bytes"):format(SIZE), core.err.FULL end
  local parser = setmetatable({ text = text, at = 1, depth = 0, rules = {}, used = {} }, Parser)
  local ok, fault = pcall(function()
    parser:skip(true)
    while parser.at <= #text do
      parser:rule()
      parser:skip(true)
    end
    for name, at in pairs(parser.used) do
      if not parser.rules[name] then fail(parser, ("rule %s is not there"):format(name), at) end
    end
    if not parser.rules.root then fail(parser, "there is no rule root", 1) end
  end)
  if not ok then
    if type(fault) ~= "table" then error(fault, 0) end
    return nil, fault.message, fault.code
  end
  local points = options and options.points or {}
  for key in pairs(points) do
    if math.type(key) ~= "integer" then
      error(("points: names of rules expected, got a field %q; functions go to constrain"):format(tostring(key)), 3)
    end
  end
  for _, name in ipairs(points) do
    local node = parser.rules[name]
    if not node then error(("points: the grammar has no rule %q"):format(tostring(name)), 3) end
    parser.rules[name] = { "point", node, name = name }
  end
  return parser.rules
end

return gbnf
