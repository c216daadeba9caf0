-- mistral.lua - [TOOL_CALLS] and either a JSON list of calls, or NAME[ARGS]{...} for each call, with [CALL_ID]ID
-- between name and arguments in some models.
local calls = require "kigo.parse.calls"

local OPEN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
local MAX_NAME = 256

local function read_named(reader, answer)
  local name, marker = reader:name({ ID, ARGUMENTS }, MAX_NAME)
  local id
  if marker == ID then id, marker = reader:name({ ARGUMENTS }, MAX_NAME) end
  name = name and name:match "^%s*(.-)%s*$"
  if not marker or name == "" then return nil end
  answer:call(name, id)
  return calls.arguments_of(reader, answer)
end

---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
local function read(reader, answer)
  reader:space()
  local first = reader:peek()
  local done
  if first == "[" or first == "{" then
    done = calls.objects(reader, answer)
  else
    done = read_named(reader, answer)
  end
  if not done then return nil end
  reader:space()
  return reader:sees(OPEN) or not reader:has_next()
end

return {
  { name = "mistral", markers = { OPEN }, read = read,
    recognise = function(source) return source:find(OPEN, 1, true) ~= nil end },
}
