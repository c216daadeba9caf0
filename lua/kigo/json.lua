-- json.lua - plain data as JSON text, keys in order, for the reports of the program. Not lua-cjson: the one that Debian
-- has (2.1.0) rounds integers above 14 digits, cannot write an empty list, and lets bytes through that are no UTF-8;
-- the metadata of a model file holds all three.
local json = {}

local ESCAPES = {
  ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\b"] = "\\b", ["\f"] = "\\f",
}

---Whole UTF-8 with every byte that is none replaced.
local function valid_utf8(text)
  local out, at = {}, 1
  while true do
    local n, bad = utf8.len(text, at)
    if n then return table.concat(out) .. text:sub(at) end
    out[#out + 1] = text:sub(at, bad - 1) .. "\u{fffd}"
    at = bad + 1
  end
end

local function string_text(value)
  return '"' .. valid_utf8(value):gsub('[%c"\\\127]', function(c)
    return ESCAPES[c] or ("\\u%04x"):format(c:byte())
  end) .. '"'
end

local function number_text(value)
  if math.type(value) == "integer" then return tostring(value) end
  if value ~= value or value == math.huge or value == -math.huge then return "null" end
  return (("%.17g"):format(value))
end

local encode

local function sorted_keys(value)
  local keys = {}
  for key in pairs(value) do
    if type(key) ~= "string" then error("json: key " .. tostring(key) .. " is not a string", 0) end
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

local function is_number_list(list)
  for _, item in ipairs(list) do
    if type(item) ~= "number" then return false end
  end
  return #list > 0
end

local function table_text(value, indent)
  local parts, open, close = {}, "{", "}"
  if #value > 0 or getmetatable(value) == json.array_mt then
    open, close = "[", "]"
    for i, item in ipairs(value) do parts[i] = encode(item, indent + 1) end
  else
    for i, key in ipairs(sorted_keys(value)) do
      parts[i] = string_text(key) .. ": " .. encode(value[key], indent + 1)
    end
  end
  if #parts == 0 then return open .. close end
  local one_line = indent > 1 or is_number_list(value)
  if one_line then return open .. table.concat(parts, ", ") .. close end
  local margin = "\n" .. ("  "):rep(indent + 1)
  return open .. margin .. table.concat(parts, "," .. margin) .. "\n" .. ("  "):rep(indent) .. close
end

function encode(value, indent)
  local kind = type(value)
  if kind == "table" then
    if indent > 16 then error("json: nested too deeply", 0) end
    return table_text(value, indent)
  end
  if kind == "string" then return string_text(value) end
  if kind == "number" then return number_text(value) end
  if kind == "boolean" then return tostring(value) end
  error("json: cannot write a " .. kind, 0)
end

json.array_mt = {}

---Mark a table as a list, so that an empty one is [].
---@generic T: table
---@param list T
---@return T
function json.array(list) return setmetatable(list, json.array_mt) end

---JSON text of tables, strings, numbers and booleans. Numbers that JSON does not have are null.
---@param value any
---@return string
function json.encode(value) return encode(value, 0) end

return json
