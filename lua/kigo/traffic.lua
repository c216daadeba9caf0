-- traffic.lua - bytes that a forward pass must move, counted from the file.
local traffic = {}

---Is this a table of which a token reads one row? With tied embeddings the table of tokens is the head too.
local function is_table(name, tied)
  return name == "position_embd.weight" or (name == "token_embd.weight" and not tied)
end

---Bytes of the weights that every token needs, all tensors but tables of which it reads a row; and of those that belong
---to experts, of which it needs some.
---@param gguf kigo.Gguf
---@return integer shared
---@return integer experts
function traffic.tensor_bytes(gguf)
  local tied, shared, experts = not gguf:tensor "output.weight", 0, 0
  for _, tensor in ipairs(gguf:tensors()) do
    if tensor.name:find "_exps%.weight$" or tensor.name:find "%.ffn_%l+%.%d+%.weight$" then
      experts = experts + tensor.bytes
    elseif not is_table(tensor.name, tied) then
      shared = shared + tensor.bytes
    end
  end
  return shared, experts
end

---Bytes of weights that one token needs, with its share of the experts.
---@param gguf kigo.Gguf
---@param rows? integer  of a batch that is computed together, default 1: with more rows more experts are touched, as
---many as can be
---@return integer
function traffic.weight_bytes(gguf, rows)
  local arch, shared, experts = gguf:get "general.architecture", traffic.tensor_bytes(gguf)
  local count, used = gguf:get(arch .. ".expert_count"), gguf:get(arch .. ".expert_used_count")
  local share = count and used and math.min(1, used * (rows or 1) / count) or 1
  return math.floor(shared + experts * share)
end

---Multiplications and additions of one token's products with weights.
---@param gguf kigo.Gguf
---@return integer layers
---@return integer head   which only rows need whose logits are wanted
function traffic.flops(gguf)
  local arch = gguf:get "general.architecture"
  local experts, used = gguf:get(arch .. ".expert_count"), gguf:get(arch .. ".expert_used_count")
  local tied, layers, head = not gguf:tensor "output.weight", 0, 0
  for _, tensor in ipairs(gguf:tensors()) do
    local flops = #tensor.shape > 1 and 2 or 0
    for _, dimension in ipairs(tensor.shape) do flops = flops * dimension end
    if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight") then
      head = head + flops
    elseif not is_table(tensor.name, tied) then
      if tensor.name:find "_exps%." and experts and used then flops = flops * used / experts end
      layers = layers + flops
    end
  end
  return math.floor(layers), math.floor(head)
end

---The same of one token's attention to so many positions, in all layers.
---@param gguf kigo.Gguf
---@param positions number
---@return number
function traffic.attention_flops(gguf, positions)
  local function of_arch(key) return gguf:get(gguf:get "general.architecture" .. "." .. key) end
  local heads = of_arch "attention.head_count"
  local width = of_arch "attention.key_length" and heads * of_arch "attention.key_length" or of_arch "embedding_length"
  return 4 * of_arch "block_count" * width * positions
end

---Bytes of the cache that a token reads which sees so many positions, in layers with a window as many as that is wide.
---@param stats kigo.ModelStats
---@param positions number
---@return number
function traffic.kv_bytes(stats, positions)
  local bytes = 0
  for _, group in ipairs(stats.page_groups) do
    local seen = group.window > 0 and math.min(group.window, positions) or positions
    bytes = bytes + seen * group.page_bytes / stats.page
  end
  return bytes
end

return traffic
