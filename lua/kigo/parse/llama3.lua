-- llama3.lua - Llama 3.1 to 3.3: an answer that is nothing but {"name": ..., "parameters": {...}} is a call; so are
-- more of them with ";" between. <|python_tag|> stands before such an object, before brave_search.call(query="...") and
-- its like, or before Python code, which is a call of `python` with the code as argument. Some write
-- <function=NAME>{...}.
local calls = require "kigo.parse.calls"
local json = require "kigo.json"
local json_text = require "kigo.parse.json"

local PYTHON_TAG, FUNCTION, FUNCTION_END = "<|python_tag|>", "<function=", "</function>"
local MAX_NAME = 256

---A known tool; any, where nobody said which there are.
local function accepting(options)
  return function(name) return next(options.schemas) == nil or options.schemas[name] ~= nil end
end

local function read_objects(reader, answer, options)
  repeat
    reader:space()
    if not calls.object(reader, answer, accepting(options)) then return nil end
    reader:space()
  until not reader:literal ";"
  return not reader:has_next()
end

---A value of Python's as JSON text: strings and numbers, the others that a call holds.
local function python_value(text)
  local quote, inner = text:match "^(['\"])(.*)%1$"
  if quote then return json.encode((inner:gsub("\\(['\"\\])", "%1"))) end
  local word = ({ True = "true", False = "false", None = "null" })[text] or text
  return json_text.is_value(word) and word or nil
end

---'query="a, b", count=3' as JSON, or nil where it is something else.
local function keyword_arguments(text)
  local parts, at = {}, 1
  while text:find("%S", at) do
    local key, first = text:match("^%s*([%a_][%w_]*)%s*=%s*()", at)
    if not key then return nil end
    local quote, stop = text:match("^['\"]", first), first
    if quote then
      repeat stop = (text:find("[\\" .. quote .. "]", stop + 1) or #text + 1)
        local is_escape = text:sub(stop, stop) == "\\"
        if is_escape then stop = stop + 1 end
      until not is_escape
    else
      stop = (text:find("[,%s]", first) or #text + 1) - 1
    end
    local value = python_value(text:sub(first, stop))
    local behind = text:match("^%s*()", stop + 1)
    if not value or (behind <= #text and text:sub(behind, behind) ~= ",") then return nil end
    parts[#parts + 1] = json.encode(key) .. ": " .. value
    at = behind + 1
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

---What follows the tag and is no JSON: a call of a built-in tool, else code.
local function read_code(reader, answer)
  local parts = {}
  reader:before({}, function(text) parts[#parts + 1] = text end)
  local code = table.concat(parts)
  local tool, inner = code:match "^([%a_][%w_]*)%.call%((.*)%)%s*$"
  local arguments = tool and keyword_arguments(inner)
  answer:call(arguments and tool or "python")
  answer:arguments(arguments or '{"code": ' .. json.encode(code) .. "}")
  return true
end

---<function=NAME>{...}</function>
local function read_function(reader, answer)
  local name = reader:upto({ ">" }, MAX_NAME)
  if not name or name == "" then return nil end
  answer:call(name)
  reader:space()
  if reader:peek() ~= "{" or not json_text.value(reader, function(text) answer:arguments(text) end) then return nil end
  reader:space()
  return reader:literal(FUNCTION_END) or not reader:has_next()
end

---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
---@param marker string?   nil: the answer begins with a brace
local function read(reader, answer, marker, options)
  if marker == FUNCTION then return read_function(reader, answer) end
  if not marker then return read_objects(reader, answer, options) end
  reader:space()
  if not reader:has_next() then return nil end
  if reader:peek() == "{" then return read_objects(reader, answer, options) end
  return read_code(reader, answer)
end

return {
  { name = "llama3", markers = { PYTHON_TAG, FUNCTION }, starts = "{", read = read,
    recognise = function(source)
      return source:find(PYTHON_TAG, 1, true) ~= nil
        or (source:find("<|start_header_id|>", 1, true) and source:find('"parameters"', 1, true)) ~= nil
    end },
}
