-- gemma.lua - Gemma 4: <|tool_call>call:NAME{key:<|"|>text<|"|>,days:3}<tool_call|>, JSON but for its quotes, which are
-- a token and stand around values only.
local json = require "kigo.json"
local json_text = require "kigo.parse.json"

local OPEN, CLOSE, QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
local MAX_NAME, MAX_DEPTH = 256, 50

local read_value

---Items up to `close`, each read by `read_item`, in brackets of JSON.
local function read_items(reader, brackets, read_item)
  local items, close = {}, brackets:sub(2, 2)
  while not reader:literal(close) do
    items[#items + 1] = read_item()
    if not items[#items] or not (reader:literal "," or reader:peek() == close) then return nil end
  end
  return brackets:sub(1, 1) .. table.concat(items, ", ") .. close
end

local function read_key(reader)
  if reader:literal(QUOTE) then return reader:name({ QUOTE }, MAX_NAME) end
  local key = reader:run("[^:,{}]", nil, MAX_NAME)
  return key ~= "" and key or nil
end

local function read_object(reader, depth)
  return read_items(reader, "{}", function()
    local key = read_key(reader)
    if not key or not reader:literal ":" then return nil end
    local value = read_value(reader, depth)
    return value and json.encode(key) .. ": " .. value
  end)
end

function read_value(reader, depth)
  if depth == 0 then return nil end
  if reader:literal(QUOTE) then
    local text = reader:upto { QUOTE }
    return text and json.encode(text)
  end
  if reader:literal "{" then return read_object(reader, depth - 1) end
  if reader:literal "[" then
    return read_items(reader, "[]", function() return read_value(reader, depth - 1) end)
  end
  local word = reader:run("[-+%w.]", nil, 64)
  if word == "None" then return "null" end
  return word ~= "" and json_text.is_value(word) and word or nil
end

---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
local function read(reader, answer)
  if not reader:literal "call:" then return nil end
  local name = reader:name({ "{" }, MAX_NAME)
  if not name or name == "" then return nil end
  answer:call(name)
  local arguments = read_object(reader, MAX_DEPTH)
  if not arguments then return nil end
  answer:arguments(arguments)
  return reader:literal(CLOSE) or not reader:has_next()
end

return {
  { name = "gemma4", markers = { OPEN }, read = read,
    recognise = function(source) return source:find(OPEN, 1, true) ~= nil end },
}
