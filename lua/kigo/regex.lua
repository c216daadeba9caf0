-- regex.lua - regular expressions as grammars: what a text must be, not where it is found. The subset that is a regular
-- language, in ECMAScript's notation:
--
--   a . [a-z] [^a-z] \d \D \w \W \s \S \n \t \r \f \v \0 \xHH \uHHHH \u{H...} \cX \p{L} \P{Nd} and escaped punctuation
--   XY X|Y (X) (?:X) (?<name>X)                names and numbers of groups mean nothing here
--   X* X+ X? X{n} X{n,} X{n,m}                 lazy ones (X*?) match the same texts
--   ^ $                                        at the ends of alternatives; elsewhere nothing matches
--   (?=X) (?!X)                                anywhere outside of repeats: what follows them must (not) begin with X
--
-- "." is any character but the ends of lines (\n \r U+2028 U+2029); with `dotall` any. \d \w \s are ASCII, with
-- `unicode` by Unicode. Refused by name: backreferences, lookbehind, \b \B, modes.
local core = require "kigo.core"
local check = require "kigo.check"

local regex = {}

local NESTING, SIZE, CLASS_RANGES = 60, 1 << 16, 4000
local REPEAT_MAX = 1 << 20

---@class kigo.RegexParser
---@field text string
---@field at integer
local Parser = {}
Parser.__index = Parser

local function fail(parser, code, message, at)
  error({ code = code, message = ("regex: %s at %d"):format(check.printable(message), at or parser.at) }, 0)
end

local function malformed(parser, message, at) fail(parser, core.err.FORMAT, message, at) end

local function unsupported(parser, what, at)
  fail(parser, core.err.UNSUPPORTED, what .. " is not supported", at)
end

function Parser:peek(pattern) return self.text:match("^" .. pattern, self.at) end

function Parser:take(pattern)
  local found = self.text:match("^" .. pattern, self.at)
  if found then self.at = self.at + #found end
  return found
end

-- ---- classes: sorted lists of ranges { lo, hi, lo, hi ... } ----

local MAX = 0x10FFFF

local function merged(ranges)
  local pairs_, out = {}, {}
  for i = 1, #ranges, 2 do pairs_[#pairs_ + 1] = { ranges[i], ranges[i + 1] } end
  table.sort(pairs_, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(pairs_) do
    if #out > 0 and range[1] <= out[#out] + 1 then
      out[#out] = math.max(out[#out], range[2])
    else
      out[#out + 1], out[#out + 2] = range[1], range[2]
    end
  end
  return out
end

local function inverted(ranges)
  local out, from = {}, 0
  ranges = merged(ranges)
  for i = 1, #ranges, 2 do
    if ranges[i] > from then out[#out + 1], out[#out + 2] = from, ranges[i] - 1 end
    from = ranges[i + 1] + 1
  end
  if from <= MAX then out[#out + 1], out[#out + 2] = from, MAX end
  return out
end

local ASCII = {
  d = { 0x30, 0x39 }, w = { 0x30, 0x39, 0x41, 0x5A, 0x5F, 0x5F, 0x61, 0x7A },
  s = { 0x09, 0x0D, 0x20, 0x20, 0xA0, 0xA0, 0x1680, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x202F,
        0x205F, 0x205F, 0x3000, 0x3000, 0xFEFF, 0xFEFF },
}
local UNICODE = { d = { "Nd" }, w = { "L", "M", "Nd", "Nl", "Pc" } }

local LONG_NAMES = {
  Letter = "L", Lowercase_Letter = "Ll", Uppercase_Letter = "Lu", Titlecase_Letter = "Lt", Modifier_Letter = "Lm",
  Other_Letter = "Lo", Mark = "M", Nonspacing_Mark = "Mn", Spacing_Mark = "Mc", Enclosing_Mark = "Me", Number = "N",
  Decimal_Number = "Nd", digit = "Nd", Letter_Number = "Nl", Other_Number = "No", Punctuation = "P", Symbol = "S",
  Separator = "Z", Other = "C", Control = "Cc",
}

local function property(self, negate)
  local at = self.at
  local name = self:take "{[%w_=]+}" or self:take "%a"
  if not name then malformed(self, "\\p without a name") end
  name = name:gsub("[{}]", ""):gsub("^General_Category=", ""):gsub("^gc=", "")
  if name == "Any" then return negate and {} or { 0, MAX } end
  if name == "ASCII" then return negate and { 0x80, MAX } or { 0, 0x7F } end
  local ranges = core.unicode.ranges(LONG_NAMES[name] or name)
  if not ranges then unsupported(self, ("\\p{%s}"):format(name), at) end
  return negate and inverted(ranges) or ranges
end

local function shorthand(self, letter)
  local lower = letter:lower()
  local ranges = ASCII[lower]
  if self.unicode and UNICODE[lower] then
    ranges = { 0x5F, 0x5F }
    if lower == "d" then ranges = {} end
    for _, name in ipairs(UNICODE[lower]) do
      local more = core.unicode.ranges(name)
      table.move(more, 1, #more, #ranges + 1, ranges)
    end
  end
  return letter == lower and ranges or inverted(ranges)
end

local CONTROLS = { n = 0x0A, t = 0x09, r = 0x0D, f = 0x0C, v = 0x0B }

local function code_point(self, digits, at)
  local value = tonumber(digits, 16)
  if value > MAX then malformed(self, "no such character", at) end
  return value
end

---What a backslash and what follows it stand for: a code point, or ranges.
---@return integer? character
---@return integer[]? ranges
function Parser:escape()
  local at = self.at - 1
  local letter = self:take "."
  if not letter then malformed(self, "a backslash at the end", at) end
  if letter:find "[dDwWsS]" then return nil, shorthand(self, letter) end
  if letter:find "[pP]" then return nil, property(self, letter == "P") end
  if CONTROLS[letter] then return CONTROLS[letter] end
  if letter == "0" and not self:peek "%d" then return 0 end
  if letter == "x" then
    return code_point(self, self:take "%x%x" or malformed(self, "\\x without two digits", at), at)
  elseif letter == "c" then
    return (self:take "%a" or malformed(self, "\\c without a letter", at)):upper():byte() - 64
  end
  if letter == "u" then
    local digits = self:take "{%x+}"
    if digits then return code_point(self, digits:sub(2, -2), at) end
    local unit = code_point(self, self:take "%x%x%x%x" or malformed(self, "\\u without four digits", at), at)
    local low = unit >= 0xD800 and unit < 0xDC00 and self:peek "\\u([dD][cCdDeEfF]%x%x)"
    if low then
      self.at = self.at + 6
      return 0x10000 + ((unit - 0xD800) << 10) + (tonumber(low, 16) - 0xDC00)
    end
    return unit
  end
  if letter:find "[1-9]" then unsupported(self, "a backreference", at) end
  if letter == "k" then unsupported(self, "a backreference", at) end
  if letter:find "[bBAZzG]" then unsupported(self, "\\" .. letter, at) end
  if letter:find "[%w\x80-\xff]" then unsupported(self, "\\" .. letter, at) end
  return letter:byte()
end

function Parser:character()
  local c = self:take "[\0-\x7F\xC2-\xFD][\x80-\xBF]*"
  if not c then malformed(self, "the pattern is not UTF-8") end
  local ok, value = pcall(utf8.codepoint, c)
  if not ok or utf8.len(c) ~= 1 then malformed(self, "the pattern is not UTF-8") end
  return value
end

---One member of a class: a code point, or ranges.
function Parser:class_atom()
  if self:take "\\" then
    if self:take "b" then return 8 end
    if self:take "-" then return 0x2D end
    return self:escape()
  end
  return self:character()
end

function Parser:class()
  local at, negate, ranges = self.at - 1, self:take "%^" ~= nil, {}
  while not self:take "%]" do
    if self.at > #self.text then malformed(self, "a class without an end", at) end
    if self:peek "%[:%a+:%]" then unsupported(self, "a POSIX class", self.at) end
    local lo, many = self:class_atom()
    if many then
      table.move(many, 1, #many, #ranges + 1, ranges)
    else
      local hi = lo
      if self:peek "%-[^%]]" then
        local dash = self.at
        self.at = dash + 1
        hi = self:class_atom()
        if not hi then
          hi, self.at = lo, dash -- [a-\d]: the dash is one
          ranges[#ranges + 1], ranges[#ranges + 2] = 0x2D, 0x2D
          self.at = dash + 1
        elseif hi < lo then
          malformed(self, "a range that ends before it begins", dash)
        end
      end
      ranges[#ranges + 1], ranges[#ranges + 2] = lo, hi
    end
    if #ranges > 2 * CLASS_RANGES then malformed(self, "a class that is too large", at) end
  end
  return negate and inverted(ranges) or merged(ranges)
end

-- ---- patterns ----

local function class(ranges) return { "class", table.unpack(ranges) } end

local ANY = { "class", negate = true }
local ALL = { "repeat", ANY, 0 }
local LINE = { "class", 0x0A, 0x0A, 0x0D, 0x0D, 0x2028, 0x2029, negate = true }

---An item of a sequence; "^", "$" and lookaheads are { "begin" }, { "end" }, { "ahead", node, negate }.
function Parser:atom()
  local at = self.at
  if self:take "%^" then return { "begin" } end
  if self:take "%$" then return { "end" } end
  if self:take "%." then return self.dotall and ANY or LINE end
  if self:take "%[" then return class(self:class()) end
  if self:take "\\" then
    local character, ranges = self:escape()
    if not character then return class(ranges) end
    return character < 0x80 and string.char(character) or class { character, character }
  end
  if self:take "%(" then return self:group(at) end
  if self:peek "[*+?]" or self:peek "{%d*,?%d*}" then malformed(self, "a quantifier on nothing") end
  if self:peek "[{}%]]" and not self.lenient then malformed(self, ("a single %q"):format(self:peek ".")) end
  local character = self:character()
  return character < 0x80 and string.char(character) or utf8.char(character)
end

function Parser:group(at)
  local kind = "group"
  if self:take "%?:" then
    kind = "group"
  elseif self:take "%?=" then
    kind = "ahead"
  elseif self:take "%?!" then
    kind = "not_ahead"
  elseif self:peek "%?<[=!]" then
    unsupported(self, "lookbehind", at)
  elseif self:peek "%?P?<" then
    if not self:take "%?P?<[%a_$][%w_$]*>" then malformed(self, "a group with no name", at) end
  elseif self:peek "%?" then
    unsupported(self, ("(%s"):format(self:peek "%?.?"), at)
  end
  self.depth = self.depth + 1
  if self.depth > NESTING then fail(self, core.err.FULL, ("groups nested deeper than %d"):format(NESTING), at) end
  local inner = self:alternatives()
  self.depth = self.depth - 1
  if not self:take "%)" then malformed(self, "a group without an end", at) end
  if kind == "group" then return inner end
  return { "ahead", inner, kind == "not_ahead" }
end

---The counts of a quantifier that stands here.
---@return integer? min
---@return integer? max  nil: no limit
function Parser:quantifier()
  local at = self.at
  local sign = self:take "[*+?]"
  local min, max
  if sign then
    min, max = sign == "+" and 1 or 0, sign == "?" and 1 or nil
  else
    local counts = self:take "{%d+,?%d*}"
    if not counts then return nil end
    local first, comma, second = counts:match "{(%d+)(,?)(%d*)}"
    if #first > 9 or #second > 9 then fail(self, core.err.FULL, "a count that is too large", at) end
    min, max = tonumber(first), comma == "" and tonumber(first) or tonumber(second)
    if min > REPEAT_MAX or (max or 0) > REPEAT_MAX then
      fail(self, core.err.FULL, ("a count above %d"):format(REPEAT_MAX), at)
    end
    if max and max < min then malformed(self, "counts in the wrong order", at) end
  end
  if self:take "%+" then unsupported(self, "a possessive quantifier", at) end
  self:take "%?"
  return min, max
end

local function is_assertion(node)
  return type(node) == "table" and (node[1] == "begin" or node[1] == "end" or node[1] == "ahead")
end

---Does an anchor or lookahead stand anywhere in it?
local function is_anchored(node) return type(node) == "table" and node.anchored == true end

function Parser:sequence()
  local items, anchored = {}, false
  while self.at <= #self.text and not self:peek "[|)]" do
    local at = self.at
    local node = self:atom()
    local min, max = self:quantifier()
    if min then
      if is_assertion(node) or is_anchored(node) then unsupported(self, "a repeated anchor or lookahead", at) end
      node = { "repeat", node, min, max }
      if self:peek "[*+?]" or self:peek "{%d+,?%d*}" then malformed(self, "a quantifier on a quantifier") end
    end
    anchored = anchored or is_assertion(node) or is_anchored(node)
    items[#items + 1] = node
  end
  if #items == 1 and not is_assertion(items[1]) then return items[1] end
  return { "seq", items = items, anchored = anchored }
end

function Parser:alternatives()
  local first = self:sequence()
  if not self:peek "|" then return first end
  local list, anchored = { first }, is_anchored(first)
  while self:take "|" do
    list[#list + 1] = self:sequence()
    anchored = anchored or is_anchored(list[#list])
  end
  return { "alt", items = list, anchored = anchored }
end

-- ---- from what was parsed to nodes ----

-- Anchors and lookaheads talk about what stands before and behind them. So a tree with some is built from its end on: a
-- node for it and everything that follows, which they can be intersected with.

local function is_plain(tree)
  return type(tree) == "string" or not tree.anchored and not is_assertion(tree)
end

---A tree without anchors as a node; neighbouring texts are joined.
local function plain(tree)
  if type(tree) == "string" then return tree end
  if tree[1] == "repeat" then return { "repeat", plain(tree[2]), tree[3], tree[4] } end
  if not tree.items then return tree end
  local node = { tree[1] }
  for _, item in ipairs(tree.items) do
    local made = plain(item)
    if tree[1] == "seq" and type(made) == "string" and type(node[#node]) == "string" and #node > 1 then
      node[#node] = node[#node] .. made
    else
      node[#node + 1] = made
    end
  end
  return node
end

local NOTHING = { "alt" }
local NOT_EMPTY = { "repeat", ANY, 1 }

local function has_begin(tree)
  if type(tree) == "string" then return false end
  if tree[1] == "begin" then return true end
  if tree[1] == "ahead" then return has_begin(tree[2]) end
  for _, item in ipairs(tree.items or {}) do
    if has_begin(item) then return true end
  end
  return false
end

local function any_has_begin(items, from)
  for i = from, #items do
    if has_begin(items[i]) then return true end
  end
  return false
end

local build

---The items from i on and the tail. `known`: what was built already.
local function build_items(parser, items, i, is_start, tail, known)
  if i > #items then return tail end
  local key = is_start and i or -i
  if known[key] then return known[key] end
  local item, node = items[i]
  local kind = type(item) == "table" and item[1]
  local function rest(from, start) return build_items(parser, items, from, start, tail, known) end
  if kind == "begin" then
    node = is_start and rest(i + 1, true) or NOTHING
  elseif kind == "end" then
    node = { "and", rest(i + 1, is_start), "" }
  elseif kind == "ahead" then
    local found = build(parser, item[2], is_start, ALL)
    node = { "and", rest(i + 1, is_start), found }
    if item[3] then -- ALL changes nothing, but makes what is used up plain: "not (ALL or ...)" and ALL
      node = { "and", rest(i + 1, is_start), ALL, { "not", found } }
    end
  elseif not is_plain(item) then
    if any_has_begin(items, i + 1) then unsupported(parser, "^ behind a group with anchors") end
    node = build(parser, item, is_start, rest(i + 1, false))
  elseif is_start and any_has_begin(items, i + 1) then -- it may match nothing
    local made = plain(item)
    node = { "alt", { "seq", { "and", made, "" }, rest(i + 1, true) },
      { "seq", { "and", made, NOT_EMPTY }, rest(i + 1, false) } }
  else
    local run = { "seq" }
    while i <= #items and is_plain(items[i]) do
      run[#run + 1] = plain(items[i])
      i = i + 1
    end
    run[#run + 1] = rest(i, false)
    node = run
  end
  known[key] = node
  return node
end

---The tree and the tail that follows it.
---@param is_start boolean  nothing was read before
function build(parser, tree, is_start, tail)
  if is_plain(tree) then return { "seq", plain(tree), tail } end
  if tree[1] == "alt" then
    local node = { "alt" }
    for i, item in ipairs(tree.items) do node[i + 1] = build(parser, item, is_start, tail) end
    return node
  end
  return build_items(parser, tree.items or { tree }, 1, is_start, tail, {})
end

---@class kigo.RegexOptions
---@field anchored? boolean   the whole text must match; default true. False: a match somewhere in it will do, as for
---the `pattern` of JSON Schema
---@field unicode? boolean    \d \w by Unicode
---@field dotall? boolean     "." is also the end of a line
---@field lenient? boolean    a single { } or ] stands for itself

---The node of a grammar (kigo.GrammarNode) for a pattern; regular.
---@param pattern string
---@param options? kigo.RegexOptions
---@return kigo.GrammarNode?
---@return string? message   names the place
---@return integer? code     FORMAT, UNSUPPORTED (what is not regular, by name), FULL (limits)
function regex.parse(pattern, options)
  options = options or {}
  if #pattern > SIZE then
    return nil, ("regex: the pattern has more than %d bytes"):format(SIZE), core.err.FULL
  end
  local parser = setmetatable({ text = pattern, at = 1, depth = 0, unicode = options.unicode,
    dotall = options.dotall, lenient = options.lenient }, Parser)
  local ok, result = pcall(function()
    local tree = parser:alternatives()
    if parser.at <= #pattern then malformed(parser, "a group's end without its beginning") end
    if options.anchored ~= false then return { "regular", build(parser, tree, true, "") } end
    -- somewhere: at the start, or behind something
    local at_start, behind = build(parser, tree, true, ALL), build(parser, tree, false, ALL)
    return { "regular", { "alt", at_start, { "seq", ANY, ALL, behind } } }
  end)
  if not ok then
    if type(result) ~= "table" then error(result, 0) end
    return nil, result.message, result.code
  end
  return result
end

return regex
