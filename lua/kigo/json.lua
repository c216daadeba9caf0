-- json.lua - plain data as JSON text and back: reports of the program, variables of templates. Not lua-cjson: the one
-- that Debian has (2.1.0) rounds integers above 14 digits, cannot write an empty list, forgets the order of keys, and
-- lets bytes through that are no UTF-8; model files and conversations hold all of these.
local core = require "kigo.core"
local check = require "kigo.check"

local json = {}

local ESCAPES = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\b"] = "\\b", ["\f"] = "\\f",
}

---Whole UTF-8 with every byte that is none replaced.
---@param text string
---@return string
function json.valid_utf8(text)
  if utf8.len(text) then return text end
  local out, at = {}, 1
  while true do
    local n, bad = utf8.len(text, at)
    if n then return table.concat(out) .. text:sub(at) end
    out[#out + 1] = text:sub(at, bad - 1) .. "\u{fffd}"
    at = bad + 1
  end
end

local function string_text(value)
  return '"' .. json.valid_utf8(value):gsub('[%c"\\\127]', function(c)
    return ESCAPES[c] or ("\\u%04x"):format(c:byte())
  end) .. '"'
end

local function number_text(value)
  if math.type(value) == "integer" then return tostring(value) end
  if value ~= value or value == math.huge or value == -math.huge then return "null" end
  return (("%.17g"):format(value))
end

local encode

local OBJECT = "kigo.json.object"

---The keys of a table with string keys: those that it was read with in their order, then all others sorted.
---@param value table
---@return string[]
function json.keys(value)
  local meta, keys, seen = getmetatable(value), {}, {}
  for _, key in ipairs(meta and meta.__name == OBJECT and meta.keys or {}) do
    if value[key] ~= nil then keys[#keys + 1], seen[key] = key, true end
  end
  local known = #keys
  local more = {}
  for key in pairs(value) do
    if type(key) ~= "string" then error("json: key " .. tostring(key) .. " is not a string", 0) end
    if not seen[key] then more[#more + 1] = key end
  end
  table.sort(more)
  return table.move(more, 1, #more, known + 1, keys)
end

local function is_number_list(list)
  for _, item in ipairs(list) do
    if type(item) ~= "number" then return false end
  end
  return #list > 0
end

local function table_text(value, indent)
  local parts, open, close = {}, "{", "}"
  if #value > 0 or json.is_array(value) then
    open, close = "[", "]"
    for i, item in ipairs(value) do parts[i] = encode(item, indent + 1) end
  else
    for i, key in ipairs(json.keys(value)) do
      parts[i] = string_text(key) .. ": " .. encode(value[key], indent + 1)
    end
  end
  if #parts == 0 then return open .. close end
  local one_line = indent > 1 or is_number_list(value)
  if one_line then return open .. table.concat(parts, ", ") .. close end
  local margin = "\n" .. ("  "):rep(indent + 1)
  return open .. margin .. table.concat(parts, "," .. margin) .. "\n" .. ("  "):rep(indent) .. close
end

function encode(value, indent)
  local kind = type(value)
  if kind == "table" then
    if value == json.null then return "null" end
    if indent > 16 then error("json: nested too deeply", 0) end
    return table_text(value, indent)
  end
  if kind == "string" then return string_text(value) end
  if kind == "number" then return number_text(value) end
  if kind == "boolean" then return tostring(value) end
  error("json: cannot write a " .. kind, 0)
end

local ARRAY = {}

---Mark a table as a list, so that an empty one is [].
---@generic T: table
---@param list T
---@return T
function json.array(list) return setmetatable(list, ARRAY) end

---Is the table marked as a list?
---@param value table
---@return boolean
function json.is_array(value) return getmetatable(value) == ARRAY end

---Mark a table with string keys as an object, whose keys come in this order.
---@generic T: table
---@param fields T
---@param keys? string[]
---@return T
function json.object(fields, keys) return setmetatable(fields, { __name = OBJECT, keys = keys or {} }) end

---Is the table marked as an object?
---@param value table
---@return boolean
function json.is_object(value)
  local meta = getmetatable(value)
  return type(meta) == "table" and meta.__name == OBJECT
end

---What null is in Lua.
json.null = setmetatable({}, { __name = "kigo.json.null", __tostring = function() return "null" end })

---JSON text of tables, strings, numbers and booleans. Numbers that JSON does not have are null.
---@param value any
---@return string
function json.encode(value) return encode(value, 0) end

-- ---- reading ----

local MAX_DEPTH = 64

---@class kigo.json.Reader
---@field text string
---@field at integer
---@field to_number? fun(text: string): any
local Reader = {}
Reader.__index = Reader

function Reader:fail(what)
  local _, lines = self.text:sub(1, self.at - 1):gsub("\n", "")
  error({ message = ("%s at byte %d (line %d)"):format(what, self.at, lines + 1) }, 0)
end

function Reader:skip_blanks() self.at = self.text:match("^[ \t\r\n]*()", self.at) end

function Reader:expect(character)
  if self.text:sub(self.at, self.at) ~= character then self:fail("'" .. character .. "' expected") end
  self.at = self.at + 1
end

local UNESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ["/"] = "/", ["\\"] = "\\", ['"'] = '"' }

-- \uXXXX behind the backslash at `at`; two of them where they are the halves of a pair.
function Reader:unicode_escape()
  local high = tonumber(self.text:match("^u(%x%x%x%x)", self.at) or "", 16)
  if not high then self:fail "four hexadecimal digits expected" end
  self.at = self.at + 5
  if high < 0xD800 or high > 0xDFFF then return utf8.char(high) end
  local low = tonumber(self.text:match("^\\u(%x%x%x%x)", self.at) or "", 16)
  if high > 0xDBFF or not low or low < 0xDC00 or low > 0xDFFF then return "\u{fffd}" end
  self.at = self.at + 6
  return utf8.char(0x10000 + (high - 0xD800 << 10) + low - 0xDC00)
end

function Reader:string()
  self:expect '"'
  local parts = {}
  while true do
    local stop = self.text:find('[\0-\x1f"\\]', self.at)
    parts[#parts + 1] = self.text:sub(self.at, (stop or #self.text + 1) - 1)
    self.at = stop or #self.text + 1
    local character = self.text:sub(self.at, self.at)
    if character ~= '"' and character ~= "\\" then self:fail "a string has no end" end
    self.at = self.at + 1
    if character == '"' then return table.concat(parts) end
    local plain = UNESCAPES[self.text:sub(self.at, self.at)]
    parts[#parts + 1] = plain or self:unicode_escape()
    if plain then self.at = self.at + 1 end
  end
end

function Reader:number()
  local whole, rest = self.text:match("^(-?%d+)(%.?%d*[eE]?[+-]?%d*)", self.at)
  if not whole or whole:find "^-?0%d" then self:fail "a value expected" end
  local text, number = whole .. rest, nil
  local is_float = rest:find "^%.%d+$" or rest:find "^%.%d+[eE][+-]?%d+$" or rest:find "^[eE][+-]?%d+$"
  if self.to_number and (rest == "" or is_float) then
    number = self.to_number(text)
    if number == nil then self:fail "a number is out of range" end
  elseif rest == "" then
    number = math.tointeger(tonumber(whole))
    if not number or math.type(tonumber(whole)) ~= "integer" then self:fail "an integer of more than 64 bits" end
  elseif is_float then
    number = tonumber(text) + 0.0
  else
    self:fail "a number is malformed"
  end
  self.at = self.at + #text
  return number
end

function Reader:array(depth)
  local list = {}
  self:expect "["
  self:skip_blanks()
  if self.text:sub(self.at, self.at) == "]" then
    self.at = self.at + 1
    return json.array(list)
  end
  while true do
    list[#list + 1] = self:value(depth + 1)
    self:skip_blanks()
    if self.text:sub(self.at, self.at) ~= "," then break end
    self.at = self.at + 1
  end
  self:expect "]"
  return json.array(list)
end

function Reader:object(depth)
  local fields, keys = {}, {}
  self:expect "{"
  self:skip_blanks()
  if self.text:sub(self.at, self.at) == "}" then
    self.at = self.at + 1
    return json.object(fields, keys)
  end
  while true do
    self:skip_blanks()
    local key = self:string()
    self:skip_blanks()
    self:expect ":"
    if fields[key] == nil then keys[#keys + 1] = key end
    fields[key] = self:value(depth + 1)
    self:skip_blanks()
    if self.text:sub(self.at, self.at) ~= "," then break end
    self.at = self.at + 1
  end
  self:expect "}"
  return json.object(fields, keys)
end

local WORDS = { ["true"] = true, ["false"] = false, null = json.null }

function Reader:value(depth)
  if depth > MAX_DEPTH then self:fail(("nested more than %d levels deep"):format(MAX_DEPTH)) end
  self:skip_blanks()
  local first = self.text:sub(self.at, self.at)
  if first == "{" then return self:object(depth) end
  if first == "[" then return self:array(depth) end
  if first == '"' then return self:string() end
  local word = self.text:match("^%l+", self.at)
  if word and WORDS[word] ~= nil then
    self.at = self.at + #word
    return WORDS[word]
  end
  return self:number()
end

---The value of a JSON text: objects keep the order of their keys, [] and {} differ, null is json.null, and numbers are
---integers or floats as they are written.
---@param text string
---@param options? { number?: fun(text: string): any }  what makes a value of a number's text instead; nil: out of range
---@return any value
---@return string? message   names the place; the value is nil then
---@return integer? code     kigo.err.FORMAT
function json.decode(text, options)
  if type(text) ~= "string" then error("text: string expected, got " .. type(text), 2) end
  local to_number = check.options(options, { number = "function" }).number
  local reader = setmetatable({ text = json.valid_utf8(text), at = 1, to_number = to_number }, Reader)
  local good, value = pcall(function()
    local whole = reader:value(1)
    reader:skip_blanks()
    if reader.at <= #reader.text then reader:fail "something follows the value" end
    return whole
  end)
  if good then return value end
  if type(value) ~= "table" then error(value, 0) end
  return nil, value.message, core.err.FORMAT
end

return json
