-- gguf_edit.lua - a model file taken apart, so that specs can change one thing of it and put it together again.
local build = require "spec.gguf_build"

local edit = {}

-- By number: what string.unpack reads, or nil for arrays.
local FORMATS = {}
for name, row in pairs(build.types) do FORMATS[row[1]] = { name = name, format = row[2] } end

---@class spec.GgufEntry
---@field key string
---@field type string     of the value, or of an array's elements
---@field is_array boolean
---@field count integer
---@field value any        of one that is no array
---@field last_size integer  bytes of the last element
---@field raw string      all behind the key, as it stands in the file

---@class spec.GgufParts
---@field entries spec.GgufEntry[]
---@field tensors spec.TensorRow[]
---@field data string
---@field alignment integer

local function read_entry(bytes, at)
  local key, start = string.unpack("<s8", bytes, at)
  local number, after = string.unpack("<I4", bytes, start)
  local count, is_array, last, value = 1, number == build.types.array[1], nil, nil
  at = after
  if is_array then number, count, at = string.unpack("<I4I8", bytes, at) end
  local kind = FORMATS[number]
  for _ = 1, count do
    last = at
    value, at = string.unpack(kind.format, bytes, at)
  end
  return { key = key, type = kind.name, is_array = is_array, count = count, value = not is_array and value or nil,
    last_size = at - last, raw = bytes:sub(start, at - 1) }, at
end

local function read_tensor(bytes, at)
  local name, n, after = string.unpack("<s8I4", bytes, at)
  local row = { name = name, dims = {} }
  at = after
  for i = 1, n do row.dims[i], at = string.unpack("<I8", bytes, at) end
  row.type, row.offset, at = string.unpack("<I4I8", bytes, at)
  return row, at
end

---@param bytes string  of a good file
---@return spec.GgufParts
function edit.read(bytes)
  local parts = { entries = {}, tensors = {}, alignment = 32 }
  local n_tensors, n_entries, at = string.unpack("<I8I8", bytes, 9)
  for i = 1, n_entries do
    parts.entries[i], at = read_entry(bytes, at)
    if parts.entries[i].key == "general.alignment" then parts.alignment = parts.entries[i].value end
  end
  for i = 1, n_tensors do parts.tensors[i], at = read_tensor(bytes, at) end
  parts.data = bytes:sub(at + -(at - 1) % parts.alignment)
  return parts
end

---@param parts spec.GgufParts
---@return string
function edit.write(parts)
  local entries = {}
  for i, entry in ipairs(parts.entries) do entries[i] = string.pack("<s8", entry.key) .. entry.raw end
  return build.file { entries = entries, tensors = parts.tensors, data = parts.data, alignment = parts.alignment }
end

---The parts with other entries or tensors; what is not named is shared with the original.
---@param parts spec.GgufParts
---@param changes table
---@return spec.GgufParts
function edit.with(parts, changes)
  local copy = {}
  for name, value in pairs(parts) do copy[name] = value end
  for name, value in pairs(changes) do copy[name] = value end
  return copy
end

---The name in general.architecture.
---@param parts spec.GgufParts
---@return string
function edit.architecture(parts)
  for _, entry in ipairs(parts.entries) do
    if entry.key == "general.architecture" then return entry.value end
  end
end

---The file where its architecture's keys say something else: { type name, value or list } by key, false for nothing.
---@param parts spec.GgufParts
---@param changes table<string, table|false>  keys without the architecture
---@return spec.GgufParts
function edit.said(parts, changes)
  local prefix, entries = edit.architecture(parts) .. ".", {}
  for _, entry in ipairs(parts.entries) do
    local key = entry.key:sub(1, #prefix) == prefix and entry.key:sub(#prefix + 1)
    if not key or changes[key] == nil then entries[#entries + 1] = entry end
  end
  for key, value in pairs(changes) do
    local full = prefix .. key
    local raw = value and build.entries { { full, table.unpack(value) } }[1]:sub(9 + #full)
    if raw then entries[#entries + 1] = { key = full, raw = raw } end
  end
  return edit.with(parts, { entries = entries })
end

---A list whose i-th item is another one, or is left out.
---@generic T
---@param list T[]
---@param i integer
---@param item T?
---@return T[]
function edit.replaced(list, i, item)
  local copy = table.move(list, 1, #list, 1, {})
  if item then copy[i] = item else table.remove(copy, i) end
  return copy
end

return edit
