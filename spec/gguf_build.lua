-- gguf_build.lua - model files for specs, byte by byte: right ones, and ones that lie.
local support = require "spec.support"

local build = {}

---Numbers of the metadata value types and how string.pack writes them.
build.types = {
  u8 = { 0, "<B" }, i8 = { 1, "<b" }, u16 = { 2, "<I2" }, i16 = { 3, "<i2" }, u32 = { 4, "<I4" }, i32 = { 5, "<i4" },
  f32 = { 6, "<f" }, bool = { 7, "<B" }, string = { 8, "<s8" }, array = { 9 }, u64 = { 10, "<I8" }, i64 = { 11, "<i8" },
  f64 = { 12, "<d" },
}

---A metadata entry with a single value.
---@param key string
---@param type_name string
---@param value any
---@return string
function build.entry(key, type_name, value)
  local number, format = table.unpack(build.types[type_name])
  return string.pack("<s8I4", key, number) .. string.pack(format, value)
end

---A metadata entry with an array; `count` overrides its true length.
---@param key string
---@param type_name string
---@param values any[]
---@param count integer?
---@return string
function build.array(key, type_name, values, count)
  local number, format = table.unpack(build.types[type_name])
  local parts = { string.pack("<s8I4I4I8", key, 9, number, count or #values) }
  for _, value in ipairs(values) do parts[#parts + 1] = string.pack(format, value) end
  return table.concat(parts)
end

---Metadata entries from rows { key, type name, value }; a table as value makes an array.
---@param rows table[]
---@return string[]
function build.entries(rows)
  local entries = {}
  for i, row in ipairs(rows) do
    entries[i] = (type(row[3]) == "table" and build.array or build.entry)(row[1], row[2], row[3])
  end
  return entries
end

---@class spec.TensorRow
---@field name string
---@field dims integer[]
---@field type integer? number of the tensor type, default 0 (F32)
---@field offset integer? in the data section

---@param row spec.TensorRow
---@return string
function build.tensor(row)
  local parts = { string.pack("<s8I4", row.name, row.n_dims or #row.dims) }
  for _, size in ipairs(row.dims) do parts[#parts + 1] = string.pack("<j", size) end
  parts[#parts + 1] = string.pack("<I4j", row.type or 0, row.offset or 0)
  return table.concat(parts)
end

---What a file is made of; every field has a default, and the counts may lie.
---@class spec.File
---@field magic string?
---@field version integer?
---@field entries string[]? made by build.entry and build.array
---@field n_entries integer?
---@field tensors spec.TensorRow[]?
---@field n_tensors integer?
---@field alignment integer?
---@field data string? the data section

---@param f spec.File
---@return string
function build.file(f)
  local entries, tensors = f.entries or {}, {}
  for i, row in ipairs(f.tensors or {}) do tensors[i] = build.tensor(row) end
  local counts = string.pack("<jj", f.n_tensors or #tensors, f.n_entries or #entries)
  local head = (f.magic or "GGUF") .. string.pack("<I4", f.version or 3) .. counts
    .. table.concat(entries) .. table.concat(tensors)
  local alignment = f.alignment or 32
  return head .. ("\0"):rep(-#head % alignment) .. (f.data or "")
end

-- ---- whole files ----

-- Numbers in [-1, 1) from a fixed sequence, so that every run sees the same model.
local function noise()
  local x = 1
  return function()
    x = (x * 1103515245 + 12345) % 2147483648
    return x / 1073741824 - 1
  end
end

-- Float32 values that keep the magnitude of what goes through a matrix; vectors are near 1.
local function random_values(shape, next_noise)
  local n, list, root, is_vector = 1, {}, shape[1] ^ 0.5, #shape == 1
  for _, dim in ipairs(shape) do n = n * dim end
  for i = 1, n do
    local x = next_noise()
    list[i] = is_vector and 1 + 0.2 * x or x * 2 / root
  end
  return support.pack_floats(list)
end

-- Strings, booleans, integers (u32), floats (f32), or { type number, packed bytes }.
local function plain_entry(key, value)
  if type(value) == "string" then return build.entry(key, "string", value) end
  if type(value) == "boolean" then return build.entry(key, "bool", value and 1 or 0) end
  if type(value) == "table" then return string.pack("<s8I4", key, value[1]) .. value[2] end
  return build.entry(key, math.type(value) == "integer" and "u32" or "f32", value)
end

---A file of float32 tensors with random numbers.
---@param metadata table<string, any>
---@param tensors { name: string, shape: integer[], type?: integer, bytes?: string }[] bytes: given data instead
---@return string
function build.random(metadata, tensors)
  local entries, rows, data, offset, next_noise, keys = {}, {}, {}, 0, noise(), {}
  local alignment = metadata["general.alignment"] or 32
  for key in pairs(metadata) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do entries[i] = plain_entry(key, metadata[key]) end
  for i, tensor in ipairs(tensors) do
    rows[i] = { name = tensor.name, dims = tensor.shape, type = tensor.type, offset = offset }
    local bytes = tensor.bytes or random_values(tensor.shape, next_noise)
    data[i] = bytes .. ("\0"):rep(-#bytes % alignment)
    offset = offset + #data[i]
  end
  return build.file { entries = entries, tensors = rows, data = table.concat(data), alignment = alignment }
end

return build
