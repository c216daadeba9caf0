-- python.lua - what Python's literals and keyword arguments mean in JSON: 'it', True, [1, {'a': None}], f(a=1, b="x").
local json = require "kigo.json"
local json_text = require "kigo.parse.json"
local new_reader = require("kigo.parse.reader").new

local python = {}

local MAX_DEPTH = 50
local WORDS = { True = "true", False = "false", None = "null" }
local ESCAPES = { n = "\n", t = "\t", r = "\r", b = "\b", f = "\f", ["\\"] = "\\", ["'"] = "'", ['"'] = '"',
  ["\n"] = "" }

local read_value

---The rest of a string behind its opening quote.
local function read_string(reader, quote)
  local parts = {}
  while true do
    parts[#parts + 1] = reader:run("[^\\" .. quote .. "]")
    if reader:literal(quote) then return json.encode(table.concat(parts)) end
    if not reader:literal "\\" then return nil end
    local letter = reader:run(".", nil, 1)
    local code
    if letter == "u" then
      code = tonumber(reader:run("%x", nil, 4), 16)
    elseif letter == "x" then
      code = tonumber(reader:run("%x", nil, 2), 16)
    end
    parts[#parts + 1] = code and utf8.char(code) or ESCAPES[letter] or "\\" .. letter
  end
end

---Items up to `close`, each read by `read_item`, as a list of JSON texts.
local function read_items(reader, close, read_item)
  local items = {}
  reader:space()
  while not reader:literal(close) do
    items[#items + 1] = read_item()
    if not items[#items] then return nil end
    reader:space()
    if not reader:literal "," and reader:peek() ~= close then return nil end
    reader:space()
  end
  return items
end

local function read_pair(reader, depth)
  local quote = reader:any { "'", '"' }
  local key = quote and read_string(reader, quote)
  reader:space()
  if not key or not reader:literal ":" then return nil end
  local value = read_value(reader, depth)
  return value and key .. ": " .. value
end

function read_value(reader, depth)
  reader:space()
  local opening = reader:any { "'", '"', "[", "{" }
  if opening == "'" or opening == '"' then return read_string(reader, opening) end
  if depth == 0 then return nil end
  if opening == "[" then
    local items = read_items(reader, "]", function() return read_value(reader, depth - 1) end)
    return items and "[" .. table.concat(items, ", ") .. "]"
  elseif opening == "{" then
    local items = read_items(reader, "}", function() return read_pair(reader, depth - 1) end)
    return items and "{" .. table.concat(items, ", ") .. "}"
  end
  local word = reader:run("[-+%w_.]", nil, 64)
  word = WORDS[word] or word
  return word ~= "" and json_text.is_value(word) and word or nil
end

---Keyword arguments behind the opening parenthesis, up to the closing one.
---@param reader kigo.parse.Reader
---@return string?   a JSON object
function python.arguments(reader)
  local items = read_items(reader, ")", function()
    local name = reader:run("[%w_]", nil, 256)
    reader:space()
    if not name:find "^[%a_]" or not reader:literal "=" then return nil end
    local value = read_value(reader, MAX_DEPTH)
    return value and json.encode(name) .. ": " .. value
  end)
  return items and "{" .. table.concat(items, ", ") .. "}"
end

---What a text means that is a list or dict of Python's, as a whole.
---@param text string
---@return string?   JSON
function python.container(text)
  if not text:find "^[%[{]" then return nil end
  local whole = new_reader()
  whole:feed(text)
  whole:close()
  local value = read_value(whole, MAX_DEPTH)
  return value and not whole:has_next() and value or nil
end

-- ---- a format: [f(a=1), g()] between markers ----

local function read_call(reader, answer)
  local name = reader:run("[%w_.]", nil, 256)
  if name == "" or not reader:literal "(" then return nil end
  answer:call(name)
  local arguments = python.arguments(reader)
  if not arguments then return nil end
  answer:arguments(arguments)
  return true
end

local OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"

---@type kigo.parse.Format
python.format = {
  name = "pythonic", markers = { OPEN }, -- LFM2
  read = function(reader, answer)
    reader:space()
    if not reader:literal "[" or not read_items(reader, "]", function() return read_call(reader, answer) end) then
      return nil
    end
    reader:space()
    return reader:literal(CLOSE) or not reader:has_next()
  end,
  recognise = function(source) return source:find(OPEN, 1, true) ~= nil end,
}

return python
