-- json.lua - JSON (RFC 8259) read from a text that is still arriving: each part is checked as it comes and passed on as
-- it was written. What is no JSON, and what kigo.json cannot hold (integers of more than 64 bits, deep nesting), makes
-- these functions return nil; the reader stands where it was noticed.
local new_reader = require("kigo.parse.reader").new

local json = {}

local MAX_DEPTH = 60 -- less than kigo.json takes
local MAX_STRING = 1 << 16 -- bytes of keys and names, which are kept

-- ---- strings ----

local ESCAPED = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

---The code point of \uXXXX at `at` in text, with its second half where it has one, and the place behind it.
local function code_point(text, at)
  local code = tonumber(text:sub(at + 2, at + 5), 16)
  if code < 0xD800 or code > 0xDFFF then return code, at + 6 end
  local low = tonumber(text:match("^\\u(%x%x%x%x)", at + 6) or "", 16)
  if code > 0xDBFF or not low or low < 0xDC00 or low > 0xDFFF then return 0xFFFD, at + 6 end
  return 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00), at + 12
end

---What a string means: the text between its quotes, checked before.
---@param text string
---@return string
function json.unescape(text)
  local parts, at = {}, 1
  while true do
    local place = text:find("\\", at, true)
    parts[#parts + 1] = text:sub(at, (place or 0) - 1)
    if not place then return table.concat(parts) end
    local letter = text:sub(place + 1, place + 1)
    if letter == "u" then
      local code
      code, at = code_point(text, place)
      parts[#parts + 1] = utf8.char(code)
    else
      parts[#parts + 1], at = ESCAPED[letter], place + 2
    end
  end
end

local function read_escape(reader, sink)
  if not reader:literal "\\" then return nil end
  local letter = reader:peek()
  if ESCAPED[letter] then
    sink("\\" .. reader:run("[%w%p]", nil, 1))
    return true
  end
  if letter ~= "u" then return nil end
  local digits = reader:run("u", nil, 1) .. reader:run("%x", nil, 4)
  sink("\\" .. digits)
  return #digits == 5
end

---The rest of a string behind its opening quote. Escapes are passed on whole.
local function read_string(reader, sink)
  while true do
    reader:run("[^\0-\31\"\\]", sink)
    if reader:literal '"' then
      sink '"'
      return true
    end
    if not read_escape(reader, sink) then return nil end
  end
end

---A string that is wanted for what it means: a key, a name.
---@param reader kigo.parse.Reader
---@return string?
function json.string(reader)
  if not reader:literal '"' then return nil end
  local parts, size = {}, 0
  local done = read_string(reader, function(text)
    size = size + #text
    if size <= MAX_STRING then parts[#parts + 1] = text end
  end)
  if not done or size > MAX_STRING then return nil end
  return json.unescape(table.concat(parts):sub(1, -2))
end

-- ---- values ----

local read_value

local function read_number(reader, sink)
  local text = reader:run "[-+.%deE]"
  sink(text)
  local whole, rest = text:match "^-?(%d+)(.*)$"
  if not whole or (#whole > 1 and whole:sub(1, 1) == "0") then return nil end
  if rest == "" then return math.type(tonumber(text)) == "integer" or nil end
  if rest:find "^%.%d+$" then return true end
  return rest:gsub("^%.%d+", ""):find "^[eE][-+]?%d+$" and true or nil
end

local function read_word(reader, sink)
  local word = reader:run("%a", nil, 6)
  sink(word)
  return word == "true" or word == "false" or word == "null" or nil
end

local function read_space(reader, sink) reader:run("[ \t\r\n]", sink) end

---The items of an array or object up to `close`, each read by `read_item`.
local function read_items(reader, sink, close, read_item)
  read_space(reader, sink)
  if reader:literal(close) then
    sink(close)
    return true
  end
  while read_item() do
    read_space(reader, sink)
    local found = reader:any { ",", close }
    if not found then return nil end
    sink(found)
    if found == close then return true end
    read_space(reader, sink)
  end
end

local function read_pair(reader, sink, depth)
  if not reader:literal '"' then return nil end
  sink '"'
  if not read_string(reader, sink) then return nil end
  read_space(reader, sink)
  if not reader:literal ":" then return nil end
  sink ":"
  read_space(reader, sink)
  return read_value(reader, sink, depth)
end

function read_value(reader, sink, depth)
  local opening = reader:any { '"', "{", "[" }
  if not opening then
    local next = reader:peek()
    if next:find "[-%d]" then return read_number(reader, sink) end
    return next:find "%a" and read_word(reader, sink) or nil
  end
  sink(opening)
  if opening == '"' then return read_string(reader, sink) end
  if depth == 0 then return nil end
  if opening == "{" then
    return read_items(reader, sink, "}", function() return read_pair(reader, sink, depth - 1) end)
  end
  return read_items(reader, sink, "]", function() return read_value(reader, sink, depth - 1) end)
end

---A value, as it is written.
---@param reader kigo.parse.Reader
---@param sink fun(text: string)   gets it as it comes
---@return true?   nil: it is none
function json.value(reader, sink) return read_value(reader, sink, MAX_DEPTH) end

---A value as one text.
---@param reader kigo.parse.Reader
---@return string?
function json.text(reader)
  local parts = {}
  if not json.value(reader, function(text) parts[#parts + 1] = text end) then return nil end
  return table.concat(parts)
end

---Is this text, as a whole, a JSON value?
---@param text string
---@return boolean
function json.is_value(text)
  local whole = new_reader()
  whole:feed(text)
  whole:close()
  whole:space()
  if not json.text(whole) then return false end
  whole:space()
  return not whole:has_next()
end

---Is this text, as a whole, a JSON object?
---@param text string
---@return boolean
function json.is_object(text) return text:find "^%s*{" ~= nil and json.is_value(text) end

---The keys and values of an object whose brace was read: `read(key)` reads each value.
---@param reader kigo.parse.Reader
---@param read fun(key: string): any   nil or false: it does not fit
---@return true?
function json.object(reader, read)
  local function drop() end
  return read_items(reader, drop, "}", function()
    local key = json.string(reader)
    if not key then return nil end
    reader:space()
    if not reader:literal ":" then return nil end
    reader:space()
    return read(key)
  end)
end

---The values of an array whose bracket was read: `read()` reads each.
---@param reader kigo.parse.Reader
---@param read fun(): any   nil or false: it does not fit
---@return true?
function json.array(reader, read)
  local function drop() end
  return read_items(reader, drop, "]", read)
end

return json
