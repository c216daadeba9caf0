-- gguf_bytes.lua - GGUF files as strings, for specs that need one with something special or something wrong in it.
local gguf_bytes = {}

local function pack_string(s) return string.pack("<s8", s) end

-- Metadata values: strings, booleans, Lua integers (u32), floats (f32), or { type number, packed bytes }.
local function pack_value(value)
  if type(value) == "string" then return string.pack("<I4", 8) .. pack_string(value) end
  if type(value) == "boolean" then return string.pack("<I4B", 7, value and 1 or 0) end
  if type(value) == "table" then return string.pack("<I4", value[1]) .. value[2] end
  if math.type(value) == "integer" then return string.pack("<I4I4", 4, value) end
  return string.pack("<I4f", 6, value)
end

---Numbers in [-1, 1) from a fixed sequence.
---@param seed integer
---@return fun(): number
function gguf_bytes.noise(seed)
  local x = seed
  return function()
    x = (x * 1103515245 + 12345) % 2147483648
    return x / 1073741824 - 1
  end
end

-- A matrix of float32 with values that keep the magnitude of what goes through it; vectors are near 1.
local function values(tensor, noise)
  local n, list = 1, {}
  for _, dim in ipairs(tensor.shape) do n = n * dim end
  local is_vector = #tensor.shape == 1
  for i = 1, n do
    local x = noise()
    list[i] = string.pack("<f", is_vector and 1 + 0.2 * x or x * 2 / tensor.shape[1] ^ 0.5)
  end
  return table.concat(list)
end

---A file of float32 tensors with random numbers.
---@param metadata table<string, any>
---@param tensors { name: string, shape: integer[], type?: integer, bytes?: string }[] bytes: given data instead
---@return string
function gguf_bytes.make(metadata, tensors)
  local header, data, offset, noise, keys = {}, {}, 0, gguf_bytes.noise(1), {}
  for key in pairs(metadata) do keys[#keys + 1] = key end
  table.sort(keys)
  local entries = {}
  for i, key in ipairs(keys) do entries[i] = pack_string(key) .. pack_value(metadata[key]) end
  for i, tensor in ipairs(tensors) do
    header[i] = pack_string(tensor.name) .. string.pack("<I4", #tensor.shape)
    for _, dim in ipairs(tensor.shape) do header[i] = header[i] .. string.pack("<I8", dim) end
    header[i] = header[i] .. string.pack("<I4I8", tensor.type or 0, offset)
    local bytes = tensor.bytes or values(tensor, noise)
    bytes = bytes .. ("\0"):rep(-#bytes % 32)
    data[i], offset = bytes, offset + #bytes
  end
  local head = "GGUF" .. string.pack("<I4I8I8", 3, #tensors, #keys) .. table.concat(entries) .. table.concat(header)
  return head .. ("\0"):rep(-#head % 32) .. table.concat(data)
end

---Metadata and tensors of a one-block model of this architecture, to be changed by specs before make.
---@param architecture string
---@return table<string, any> metadata
---@return table[] tensors
function gguf_bytes.model(architecture)
  local a = architecture .. "."
  local metadata = {
    ["general.architecture"] = architecture,
    [a .. "context_length"] = 64, [a .. "embedding_length"] = 32, [a .. "block_count"] = 1,
    [a .. "attention.head_count"] = 4, [a .. "attention.head_count_kv"] = 2,
    [a .. "attention.layer_norm_rms_epsilon"] = 1e-5,
  }
  local tensors = {
    { name = "token_embd.weight", shape = { 32, 40 } }, { name = "output_norm.weight", shape = { 32 } },
    { name = "blk.0.attn_norm.weight", shape = { 32 } }, { name = "blk.0.attn_q.weight", shape = { 32, 32 } },
    { name = "blk.0.attn_k.weight", shape = { 32, 16 } }, { name = "blk.0.attn_v.weight", shape = { 32, 16 } },
    { name = "blk.0.attn_output.weight", shape = { 32, 32 } }, { name = "blk.0.ffn_norm.weight", shape = { 32 } },
    { name = "blk.0.ffn_gate.weight", shape = { 32, 48 } }, { name = "blk.0.ffn_up.weight", shape = { 32, 48 } },
    { name = "blk.0.ffn_down.weight", shape = { 48, 32 } },
  }
  return metadata, tensors
end

return gguf_bytes
