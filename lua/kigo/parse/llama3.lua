-- llama3.lua - Llama 3.1 to 3.3: an answer that is nothing but {"name": ..., "parameters": {...}} is a call; so are
-- more of them with ";" between. <|python_tag|> stands before such an object, before brave_search.call(query="...") and
-- its like, or before Python code, which is a call of `python` with the code as argument. Some write
-- <function=NAME>{...}.
local calls = require "kigo.parse.calls"
local json = require "kigo.json"
local new_reader = require("kigo.parse.reader").new
local python = require "kigo.parse.python"

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

---'brave_search.call(query="a")': the tool and its arguments, or nil where it is other code.
local function builtin_call(code)
  local tool, behind = code:match "^([%a_][%w_]*)%.call%(()"
  if not tool then return nil end
  local reader = new_reader()
  reader:feed(code:sub(behind))
  reader:close()
  local arguments = python.arguments(reader)
  reader:space()
  if arguments and not reader:has_next() then return tool, arguments end
end

---What follows the tag and is no JSON: a call of a built-in tool, else code.
local function read_code(reader, answer)
  local parts = {}
  reader:before({}, function(text) parts[#parts + 1] = text end)
  local code = table.concat(parts)
  local tool, arguments = builtin_call(code)
  answer:call(tool or "python")
  answer:arguments(arguments or '{"code": ' .. json.encode(code) .. "}")
  return true
end

---<function=NAME>{...}</function>
local function read_function(reader, answer)
  local name = reader:name({ ">" }, MAX_NAME)
  if not name or name == "" then return nil end
  answer:call(name)
  if not calls.arguments_of(reader, answer) then return nil end
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
