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

---A call while its object is read; it begins as soon as its name is known and its arguments come.
---@class kigo.parse.Call
---@field early string?      arguments that came before the name
---@field complete boolean?  the arguments were read
local Call = {}
Call.__index = Call

function Call:read_name()
  if self.name then return nil end
  self.name = json.string(self.reader)
  if not self.name or self.name == "" or not self.accepts(self.name) then return nil end
  if self.early then
    self.answer:call(self.name, self.id)
    self.answer:arguments(self.early)
  end
  return true
end

function Call:read_arguments()
  if self.complete then return nil end
  self.complete = true
  if self.name then
    self.answer:call(self.name, self.id)
    return calls.arguments_of(self.reader, self.answer)
  end
  local parts = {}
  if not calls.arguments(self.reader, function(text) parts[#parts + 1] = text end) then return nil end
  self.early = table.concat(parts)
  return true
end

function Call:read_id()
  if self.reader:peek() ~= '"' then return json.value(self.reader, drop) end
  self.id = json.string(self.reader)
  return self.id and true
end

function Call:read_field(key)
  if NAME[key] then return self:read_name() end
  if ARGUMENTS[key] then return self:read_arguments() end
  if ID[key] then return self:read_id() end
  return (not self.is_bare or key == "type") and json.value(self.reader, drop)
end

local function any() return true end

---One object.
---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
---@param accepts? fun(name: string): boolean   given where nothing but its form says that an object is a call: it needs
---such a name and arguments, and has no keys beside those of calls
---@return true?   nil: it is no call
function calls.object(reader, answer, accepts)
  if not reader:literal "{" then return nil end
  local call = setmetatable({ reader = reader, answer = answer, accepts = accepts or any, is_bare = accepts ~= nil },
    Call)
  local done = json.object(reader, function(key) return call:read_field(key) end)
  if not done or not call.name or (call.is_bare and not call.complete) then return nil end
  if not call.complete then
    answer:call(call.name, call.id)
    answer:arguments "{}"
  end
  answer:identify(call.id)
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
