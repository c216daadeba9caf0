-- The text of a template as tokens, with the white space that tags take away: trim_blocks (a block or comment takes the
-- newline behind it), lstrip_blocks (and the blanks before it, from the start of the line), "-" and "+" inside a tag.
--
-- A token is { type, value, at }: type "data", "name", "string", "integer", "float", "variable_begin", "variable_end",
-- "block_begin", "block_end", "eof", or the operator itself; at is its byte position in the normalised text.
local case = require "kigo.template.jinja.unicode"
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"

---@class kigo.jinja.Token
---@field type string
---@field value any
---@field at integer

local lexer = {}

---@class kigo.jinja.Lexer
---@field source string
---@field at integer
---@field tokens kigo.jinja.Token[]
---@field at_line_start boolean   the tag before took everything up to a line's start
local Lexer = {}
Lexer.__index = Lexer

function Lexer:emit(kind, value, at)
  self.tokens[#self.tokens + 1] = { type = kind, value = value, at = at }
end

local function after_space(source, at)
  while true do
    local stop = source:match("^[%s\x1c-\x1f]*()", at)
    local wide = source:match("^[\xc2-\xf4][\x80-\xbf]+", stop)
    if not (wide and str.is_space(wide)) then return stop end
    at = stop + #wide
  end
end

-- ---- text between tags ----

-- What stays of the text before a tag with this sign.
function Lexer:stripped(text, sign, is_variable)
  if sign == "-" then
    local _, last = str.strip_bounds(text, nil, false, true)
    return text:sub(1, last)
  end
  if sign == "+" or is_variable then return text end
  local line = text:match "^.*\n()" or 1
  if line == 1 and not self.at_line_start then return text end
  local first, last = str.strip_bounds(text:sub(line), nil, true, false)
  return first > last and text:sub(1, line - 1) or text
end

function Lexer:data(from, to, sign, is_variable)
  local text = self:stripped(self.source:sub(from, to), sign, is_variable)
  if text ~= "" then self:emit("data", text, from) end
end

-- The end of a block or comment whose closing mark begins at `at`: the position behind it, or nil.
local function block_end(source, at, mark)
  if source:sub(at, at + 1) == mark then return at + (source:sub(at + 2, at + 2) == "\n" and 3 or 2) end
  if source:sub(at + 1, at + 2) ~= mark then return nil end
  local sign = source:sub(at, at)
  if sign == "+" then return at + 3 end
  return sign == "-" and after_space(source, at + 3) or nil
end

function Lexer:leave_tag(stop)
  self.at_line_start = self.source:byte(stop - 1) == 10
  self.at = stop
end

-- ---- comments and raw blocks ----

function Lexer:comment(at, from)
  local mark = self.source:find("#}", from, true)
  if not mark then fault.syntax(at, "a comment has no end") end
  local sign = mark > from and self.source:sub(mark - 1, mark - 1)
  self:leave_tag(block_end(self.source, (sign == "-" or sign == "+") and mark - 1 or mark, "#}"))
end

-- Where a raw block's content begins, if the block at `at` is one.
local function raw_begin(source, at)
  local stop = source:match("^{%%[-+]?%s*raw%s*()", at)
  if not stop then return nil end
  if source:sub(stop, stop + 1) == "%}" then return stop + 2 end
  return source:sub(stop, stop + 2) == "-%}" and after_space(source, stop + 3) or nil
end

function Lexer:raw(at, from)
  self:leave_tag(from)
  local search = from
  while true do
    local tag, sign, stop = self.source:match("(){%%([-+]?)%s*endraw%s*()", search)
    if not tag then fault.syntax(at, "a raw block has no end") end
    local after = block_end(self.source, stop, "%}")
    if after then
      self:data(from, tag - 1, sign, false)
      return self:leave_tag(after)
    end
    search = tag + 1
  end
end

-- ---- inside tags ----

local OPERATORS = {}
for operator in ("+ - * / // % ** ~ [ ] ( ) { } == != > >= < <= = . : | , ;"):gmatch "%S+" do
  OPERATORS[operator] = true
end

local CLOSING = { ["("] = ")", ["["] = "]", ["{"] = "}" }

local SIMPLE_ESCAPES = { a = "\a", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", v = "\v", ["\\"] = "\\",
  ["'"] = "'", ['"'] = '"', ["\n"] = "" }
local HEX_DIGITS = { x = 2, u = 4, U = 8 }

-- The escape sequence behind a backslash at `at`: its text and where it ends.
local function escape(body, at, place)
  local c = body:sub(at, at)
  if SIMPLE_ESCAPES[c] then return SIMPLE_ESCAPES[c], at + 1 end
  local n, base = HEX_DIGITS[c], 16
  local digits
  if n then
    digits = body:match("^" .. ("%x"):rep(n), at + 1)
    if not digits then fault.syntax(place, "\\%s wants %d hexadecimal digits", c, n) end
    at = at + 1
  else
    digits, base = body:match("^[0-7][0-7]?[0-7]?", at), 8
    if not digits then return "\\" .. c, at + 1 end
  end
  local code = tonumber(digits, base)
  if code > 0x10FFFF or code >= 0xD800 and code < 0xE000 then fault.syntax(place, "no character has this number") end
  return utf8.char(code), at + #digits
end

local function unescape(body, place)
  if not body:find("\\", 1, true) then return body end
  local parts, at = {}, 1
  while true do
    local slash = body:find("\\", at, true)
    parts[#parts + 1] = body:sub(at, (slash or 0) - 1)
    if not slash then return table.concat(parts) end
    parts[#parts + 1], at = escape(body, slash + 1, place)
  end
end

function Lexer:string(at, quote)
  local search = at + 1
  while true do
    local stop = self.source:find("[\\" .. quote .. "]", search)
    if not stop then fault.syntax(at, "a string has no end") end
    if self.source:sub(stop, stop) == quote then
      self:emit("string", unescape(self.source:sub(at + 1, stop - 1), at), at)
      self.at = stop + 1
      return
    end
    search = stop + 2
  end
end

local BASES = { b = 2, o = 8, x = 16 }

local function integer_value(text, at)
  local letter, digits = text:match "^0(%a)(.+)$"
  local value
  if letter then
    value = #digits <= 15 and tonumber(digits, BASES[letter:lower()])
  else
    value = math.tointeger(tonumber(text))
  end
  if not value then fault.syntax(at, "the integer %s has more than 64 bits", text:sub(1, 40)) end
  return value
end

local function match_float(source, at)
  if source:sub(at - 1, at - 1) == "." then return nil end
  return source:match("^[%d_]*%d%.%d[%d_]*[eE][+-]?%d[%d_]*", at) or source:match("^[%d_]*%d[eE][+-]?%d[%d_]*", at)
    or source:match("^[%d_]*%d%.%d[%d_]*", at)
end

local function match_integer(source, at)
  return source:match("^0[bB][01_]*[01]", at) or source:match("^0[oO][0-7_]*[0-7]", at)
    or source:match("^0[xX][%x_]*%x", at) or source:match("^[1-9][%d_]*", at) or source:match("^0[0_]*", at)
end

function Lexer:number(at)
  local text = match_float(self.source, at)
  local kind = text and "float" or "integer"
  text = (text or match_integer(self.source, at)):gsub("_$", "")
  if text:find("__", 1, true) then fault.syntax(at, "two underscores in a number") end
  self.at = at + #text
  local digits = text:gsub("_", "")
  self:emit(kind, kind == "float" and tonumber(digits) + 0.0 or integer_value(digits, at), at)
end

function Lexer:name(at)
  local name = self.source:match("^[%w_\x80-\xff]+", at)
  for _, c in utf8.codes(name) do
    if c >= 0x80 and not case.is.alnum(utf8.char(c)) then
      fault.syntax(at, "no name has the character %s", utf8.char(c))
    end
  end
  self:emit("name", name, at)
  self.at = at + #name
end

function Lexer:operator(at, open)
  local operator = self.source:sub(at, at + 1)
  if not OPERATORS[operator] then operator = self.source:sub(at, at) end
  if not OPERATORS[operator] then
    fault.syntax(at, "unexpected %s", self.source:match("^[\0-\x7f\xc2-\xf4][\x80-\xbf]*", at))
  end
  if CLOSING[operator] then
    open[#open + 1] = CLOSING[operator]
  elseif operator == ")" or operator == "]" or operator == "}" then
    if open[#open] ~= operator then fault.syntax(at, "unexpected '%s'", operator) end
    open[#open] = nil
  end
  self:emit(operator, operator, at)
  self.at = at + #operator
end

-- The end of a {{ tag at `at`, or nil.
local function variable_end(source, at)
  if source:sub(at, at + 1) == "}}" then return at + 2 end
  return source:sub(at, at + 2) == "-}}" and after_space(source, at + 3) or nil
end

function Lexer:tag(begin_at, is_variable)
  local source, open = self.source, {}
  while true do
    local at = after_space(source, self.at)
    if at > #source then fault.syntax(begin_at, "a tag has no end") end
    if #open == 0 then
      local stop
      if is_variable then stop = variable_end(source, at) else stop = block_end(source, at, "%}") end
      if stop then
        self:emit(is_variable and "variable_end" or "block_end", nil, at)
        return self:leave_tag(stop)
      end
    end
    local c = source:sub(at, at)
    if c == "'" or c == '"' then
      self:string(at, c)
    elseif c:find "%d" then
      self:number(at)
    elseif c:find "[%a_\x80-\xff]" then
      self:name(at)
    else
      self:operator(at, open)
    end
  end
end

-- ---- all of it ----

-- Text up to the tag at `at`, and the tag.
function Lexer:until_tag(at)
  local source, from = self.source, self.at
  local opener, sign = source:sub(at, at + 1), source:match("^[-+]", at + 2) or ""
  self:data(from, at - 1, sign, opener == "{{")
  local inside = at + 2 + #sign
  if opener == "{#" then return self:comment(at, inside) end
  local raw_at = opener == "{%" and raw_begin(source, at)
  if raw_at then return self:raw(at, raw_at) end
  self:emit(opener == "{{" and "variable_begin" or "block_begin", nil, at)
  self.at = inside
  self:tag(at, opener == "{{")
end

---One kind of newline, and none at the end.
---@param source string
---@return string
function lexer.normalise(source)
  if source:find("\r", 1, true) then source = source:gsub("\r\n?", "\n") end
  return (source:gsub("\n$", ""))
end

---All tokens of a normalised text; the last one is "eof".
---@param source string
---@return kigo.jinja.Token[]
function lexer.tokens(source)
  local self = setmetatable({ source = source, at = 1, tokens = {}, at_line_start = true }, Lexer)
  while true do
    local at = source:find("{[{%%#]", self.at)
    if not at then break end
    self:until_tag(at)
  end
  if self.at <= #source then self:emit("data", source:sub(self.at), self.at) end
  self:emit("eof", nil, #source + 1)
  return self.tokens
end

return lexer
