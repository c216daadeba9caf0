-- traffic.lua - bytes that a forward pass must move, counted from the file.
local traffic = {}

---Is this a table of which a token reads one row? With tied embeddings the table of tokens is the head too.
local function is_table(name, tied)
  return name == "position_embd.weight" or (name == "token_embd.weight" and not tied)
end

---Bytes of weights that one token needs: all tensors but tables of which it reads a row, and its share of the experts.
---@param gguf kigo.Gguf
---@param rows? integer  of a batch that is computed together, default 1: with more rows more experts are touched
---@return integer
function traffic.weight_bytes(gguf, rows)
  local arch = gguf:get "general.architecture"
  local experts, used = gguf:get(arch .. ".expert_count"), gguf:get(arch .. ".expert_used_count")
  local tied, bytes = not gguf:tensor "output.weight", 0
  for _, tensor in ipairs(gguf:tensors()) do
    local share = 1
    if is_table(tensor.name, tied) then
      share = 0
    elseif tensor.name:find "_exps%." and experts and used then
      share = math.min(1, used * (rows or 1) / experts)
    end
    bytes = bytes + tensor.bytes * share
  end
  return math.floor(bytes)
end

---Multiplications and additions of one token's products with weights; attention is left out.
---@param gguf kigo.Gguf
---@return integer
function traffic.flops(gguf)
  local arch = gguf:get "general.architecture"
  local experts, used = gguf:get(arch .. ".expert_count"), gguf:get(arch .. ".expert_used_count")
  local tied, flops = not gguf:tensor "output.weight", 0
  for _, tensor in ipairs(gguf:tensors()) do
    local n, share = 1, 2
    for _, dimension in ipairs(tensor.shape) do n = n * dimension end
    if #tensor.shape < 2 or is_table(tensor.name, tied) then
      share = 0
    elseif tensor.name:find "_exps%." and experts and used then
      share = 2 * used / experts
    end
    flops = flops + n * share
  end
  return math.floor(flops)
end

return traffic
