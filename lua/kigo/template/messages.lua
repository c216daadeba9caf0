-- messages.lua - what a conversation may look like. A mistake in it is the caller's and raises.
local check = require "kigo.check"
local json = require "kigo.json"

---A part of a content: { type = "text", text = "..." }; what other types hold is between caller and template.
---@alias kigo.ContentPart { type: string, text: string? }

---@class kigo.Message
---@field role string                 "system", "user", "assistant", "tool" or what else the template knows
---@field content string|kigo.ContentPart[]|nil   may be absent beside tool_calls
---@field name string?
---@field reasoning_content string?
---@field tool_calls table[]?         { id = ..., ["function"] = { name = ..., arguments = table or JSON text } }
---@field tool_call_id string?        of a tool's answer

local messages = {}

local function is_list(value) return type(value) == "table" and (#value > 0 or next(value) == nil) end

local function check_content(message, refuse)
  local content = message.content
  if type(content) == "string" then return end
  if content == nil or content == json.null then
    if not message.tool_calls then refuse "content: a string or a list of parts is missing" end
    return
  end
  if not is_list(content) then refuse("content: string or list of parts expected, got %s", type(content)) end
  for i, part in ipairs(content) do
    if type(part) ~= "table" then refuse("content part %d: table expected, got %s", i, type(part)) end
    if type(part.type) ~= "string" then refuse("content part %d: a type is missing", i) end
    if part.type == "text" and type(part.text) ~= "string" then refuse("content part %d: a text is missing", i) end
  end
end

local function check_calls(message, refuse)
  local calls = message.tool_calls
  if calls == nil or calls == json.null then return end
  if not is_list(calls) then refuse("tool_calls: list expected, got %s", type(calls)) end
  for i, call in ipairs(calls) do
    if type(call) ~= "table" then refuse("tool call %d: table expected, got %s", i, type(call)) end
    local f = call["function"] or call
    if type(f) ~= "table" or type(f.name) ~= "string" then refuse("tool call %d: the function's name is missing", i) end
  end
end

---@param list any
---@param level integer   stack level of the function to blame
function messages.check(list, level)
  level = level + 1
  if type(list) ~= "table" then error("messages: table expected, got " .. type(list), level) end
  if #list == 0 then error("messages: there are none", level) end
  for i, message in ipairs(list) do
    local function refuse(...) error(("message %d: "):format(i) .. string.format(...), level + 2) end
    if type(message) ~= "table" then error(("message %d: table expected, got %s"):format(i, type(message)), level) end
    if type(message.role) ~= "string" or message.role == "" then
      error(("message %d: a role is missing"):format(i), level)
    end
    check_content(message, refuse)
    check_calls(message, refuse)
    for _, field in ipairs { "reasoning_content", "name", "tool_call_id" } do
      local value = message[field]
      if value ~= nil and value ~= json.null and type(value) ~= "string" then
        error(("message %d: %s: string expected, got %s"):format(i, field, type(value)), level)
      end
    end
  end
end

-- ---- the order of keys ----

-- A template writes tools and calls as JSON, key by key, in the order in which models have seen them everywhere. Lua
-- tables have no order, so where the caller gave none (json.decode and json.object do), these come first, in this one.
local RANKS, RANKED = {}, { "id", "type", "function", "name", "description", "parameters", "arguments", "properties",
  "required" }
for rank, key in ipairs(RANKED) do RANKS[key] = rank end

-- An empty table is a list, but not under these.
local OBJECTS = { ["function"] = true, parameters = true, arguments = true, properties = true }

local MAX_DEPTH = 64 -- no template reads deeper, and a cycle ends

---@param value any
---@param name? string|integer   the key under which it stands
---@param depth? integer
---@return any   a copy, where it is a plain table
function messages.ordered(value, name, depth)
  depth = depth or 1
  if type(value) ~= "table" or getmetatable(value) or depth > MAX_DEPTH then return value end
  local copy, keys = {}, {}
  for key, item in pairs(value) do
    copy[key] = messages.ordered(item, key, depth + 1)
    keys[#keys + 1] = key
  end
  if #value > 0 or (#keys == 0 and not OBJECTS[name]) then return copy end
  for _, key in ipairs(keys) do
    if type(key) ~= "string" then return copy end -- the template will say what is wrong with it
  end
  table.sort(keys, function(a, b)
    local first, second = RANKS[a] or math.huge, RANKS[b] or math.huge
    if first ~= second then return first < second end
    return a < b
  end)
  return json.object(copy, keys)
end

-- ---- plain ones ----

---For templates that know nothing but texts of a few roles: the messages with contents as strings, or why not.
---@param list kigo.Message[]
---@param roles table<string, boolean>
---@return kigo.Message[]?
---@return string? why
function messages.plain(list, roles)
  local plain = {}
  for i, message in ipairs(list) do
    local parts = {}
    if not roles[message.role] then return nil, ("message %d: role %s"):format(i, check.quoted(message.role)) end
    if type(message.tool_calls) == "table" and #message.tool_calls > 0 then
      return nil, ("message %d: tool calls"):format(i)
    end
    for k, part in ipairs(type(message.content) == "table" and message.content or {}) do
      if part.type ~= "text" then return nil, ("message %d: content of type %s"):format(i, check.quoted(part.type)) end
      parts[k] = part.text
    end
    plain[i] = { role = message.role,
      content = type(message.content) == "string" and message.content or table.concat(parts) }
  end
  return plain
end

return messages
