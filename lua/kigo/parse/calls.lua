-- calls.lua - calls written as JSON objects: {"name": ..., "arguments": {...}}, keys in any order, or a list of them.
local json = require "kigo.parse.json"

local calls = {}

local NAME = { name = true, tool_name = true }
local ARGUMENTS = { arguments = true, parameters = true }
local ID = { id = true, tool_call_id = true }

local function drop() end

---Arguments that an object holds as a text: {"arguments": "{\"days\": 3}"}.
local function read_quoted(reader)
  local text = json.text(reader)
  text = text and json.unescape(text:sub(2, -2))
  return text and json.is_object(text) and text or nil
end

---The arguments of a call: an object, a text that holds one, or null for none.
---@param reader kigo.parse.Reader
---@param sink fun(text: string)   gets the object, where it is one as it comes
---@return true?   nil: they are none
function calls.arguments(reader, sink)
  reader:space()
  local next = reader:peek()
  if next == "{" then return json.value(reader, sink) end
  local text
  if next == '"' then
    text = read_quoted(reader)
  elseif reader:literal "null" then
    text = "{}"
  end
  if text then sink(text) end
  return text and true or nil
end

---The arguments of the call that began last.
---@return true?
function calls.arguments_of(reader, answer)
  return calls.arguments(reader, function(text) answer:arguments(text) end)
end

---One object.
---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
---@param accepts? fun(name: string): boolean   where nothing but the object's form says that it is a call: it needs
---arguments, and no keys beside those of calls
---@return true?   nil: it is no call
function calls.object(reader, answer, accepts)
  if not reader:literal "{" then return nil end
  local name, id, early, complete
  local function begin() answer:call(name, id) end
  local read = {}
  function read.name()
    if name then return nil end
    name = json.string(reader)
    if not name or name == "" or (accepts and not accepts(name)) then return nil end
    if early then
      begin()
      answer:arguments(early)
    end
    return true
  end
  function read.arguments()
    if complete then return nil end
    complete = true
    if name then
      begin()
      return calls.arguments_of(reader, answer)
    end
    local parts = {}
    if not calls.arguments(reader, function(text) parts[#parts + 1] = text end) then return nil end
    early = table.concat(parts)
    return true
  end
  local function read_id()
    if reader:peek() ~= '"' then return json.value(reader, drop) end
    id = json.string(reader)
    return id and true
  end
  local done = json.object(reader, function(key)
    if NAME[key] then return read.name() end
    if ARGUMENTS[key] then return read.arguments() end
    if ID[key] then return read_id() end
    return (not accepts or key == "type") and json.value(reader, drop)
  end)
  if not (done and name) or (accepts and not complete) then return nil end
  if not complete then
    begin()
    answer:arguments "{}"
  end
  answer:identify(id)
  return true
end

---One object or a list of them.
---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
---@return true?
function calls.objects(reader, answer)
  if not reader:literal "[" then return calls.object(reader, answer) end
  return json.array(reader, function() return calls.object(reader, answer) end)
end

return calls
