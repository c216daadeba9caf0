-- Lua data as values of a template. All strings are foreign, but those that the caller marked with jinja.own.
local json = require "kigo.json"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local variables = {}

-- Lua values inside one another; cycles end here too.
local MAX_DEPTH = 80

---What jinja.own makes of a string.
---@class kigo.jinja.Own
---@field text string
local Own = { __name = "kigo.jinja.Own" }

---@param text string
---@return kigo.jinja.Own
function variables.own(text) return setmetatable({ text = text }, Own) end

local function refuse(path, what) error(("variables%s: %s"):format(path, what), 0) end

local convert

local function is_list(table)
  if json.is_array(table) then return true end
  if json.is_object(table) then return false end
  return #table > 0 or next(table) == nil
end

local function convert_list(from, path, depth)
  local items, n = {}, #from
  for i = 1, n do items[i] = convert(from[i], path .. "[" .. i .. "]", depth + 1) end
  for key in pairs(from) do
    if math.type(key) ~= "integer" or key < 1 or key > n then
      refuse(path, "a list has the key " .. tostring(key))
    end
  end
  return value.list(items, n)
end

local function convert_dict(from, path, depth)
  local dict = value.dict()
  for key in pairs(from) do
    if type(key) ~= "string" then refuse(path, "the key " .. tostring(key) .. " is not a string") end
  end
  for _, key in ipairs(json.keys(from)) do
    value.set(dict, str.foreign(json.valid_utf8(key)), convert(from[key], path .. "." .. key, depth + 1))
  end
  return dict
end

---@param v any
---@param path string   for messages
---@param depth integer
---@return any
function convert(v, path, depth)
  local lua_type = type(v)
  if lua_type == "string" then return str.foreign(json.valid_utf8(v)) end
  if lua_type == "number" or lua_type == "boolean" then return v end
  if lua_type ~= "table" then refuse(path, "a " .. lua_type .. " cannot be a variable") end
  if v == json.null then return value.none end
  if getmetatable(v) == Own then return str.own(json.valid_utf8(v.text)) end
  if depth > MAX_DEPTH then refuse(path:sub(1, 60), "nested too deeply") end
  return (is_list(v) and convert_list or convert_dict)(v, path, depth)
end

---The variables of a template by name. Raises a message for data that is none.
---@param from table
---@return table<string, any>
function variables.from(from)
  local made = {}
  for name, v in pairs(from) do
    if type(name) ~= "string" then refuse("", "the name " .. tostring(name) .. " is not a string") end
    made[name] = convert(v, "." .. name, 1)
  end
  return made
end

return variables
