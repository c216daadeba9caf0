-- traffic.lua - what a forward pass must move and compute: of weights, as counted in the file; of attention, as the
-- model says of its cache.
local traffic = {}

---Is this a table of which a token reads one row? With tied embeddings the table of tokens is the head too.
local function is_table(name, tied)
  return name == "position_embd.weight" or (name == "token_embd.weight" and not tied)
end

local function is_of_experts(name) return name:find "_exps%.weight$" or name:find "%.ffn_%l+%.%d+%.weight$" end

---Tensors that tokens need: all but parts that see images, and blocks that guess tokens.
local function needed(gguf)
  local arch, list = gguf:get "general.architecture", {}
  local guessing = gguf:get(arch .. ".nextn_predict_layers") or 0
  local blocks = guessing > 0 and gguf:get(arch .. ".block_count") - guessing or math.huge
  for _, tensor in ipairs(gguf:tensors()) do
    local block = tonumber(tensor.name:match "^blk%.(%d+)%.") or -1
    if block < blocks and not tensor.name:find "^v%." and not tensor.name:find "^mm%." then list[#list + 1] = tensor end
  end
  return list
end

---Bytes of the weights that every token needs, all tensors but tables of which it reads a row; and of those that belong
---to experts, of which it needs some.
---@param gguf kigo.Gguf
---@return integer shared
---@return integer experts
function traffic.tensor_bytes(gguf)
  local tied, shared, experts = not gguf:tensor "output.weight", 0, 0
  for _, tensor in ipairs(needed(gguf)) do
    if is_of_experts(tensor.name) then
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
  for _, tensor in ipairs(needed(gguf)) do
    local flops = #tensor.shape > 1 and tensor.name:find "%.weight$" and 2 or 0
    for _, dimension in ipairs(tensor.shape) do flops = flops * dimension end
    if tensor.name == "output.weight" or (tied and tensor.name == "token_embd.weight") then
      head = head + flops
    elseif not is_table(tensor.name, tied) then
      if is_of_experts(tensor.name) and experts and used then flops = flops * used / experts end
      layers = layers + flops
    end
  end
  return math.floor(layers), math.floor(head)
end

-- Positions that a token of a group's layers sees, of so many up to its own.
local function seen(group, positions)
  return group.window > 0 and math.min(group.window, positions) or positions
end

---Multiplications and additions of the attention of one token that sees so many positions; in layers with a window at
---most as many as that is wide.
---@param stats kigo.ModelStats
---@param positions integer
---@return integer
function traffic.attention_flops(stats, positions)
  local flops = 0
  for _, group in ipairs(stats.page_groups) do flops = flops + group.attention_flops * seen(group, positions) end
  return flops
end

---Those of all tokens of a prompt together, each of which sees itself and the ones before it.
---@param stats kigo.ModelStats
---@param tokens integer
---@return integer
function traffic.prompt_attention_flops(stats, tokens)
  local flops = 0
  for _, group in ipairs(stats.page_groups) do
    local most = seen(group, tokens) -- the first ones see 1, 2, 3 ... positions, the others as many as can be seen
    flops = flops + group.attention_flops * (most * (most + 1) // 2 + (tokens - most) * most)
  end
  return flops
end

---Bytes of the cache that a token reads which sees so many positions, in layers with a window as many as that is wide.
---@param stats kigo.ModelStats
---@param positions number
---@return number
function traffic.kv_bytes(stats, positions)
  local bytes = 0
  for _, group in ipairs(stats.page_groups) do
    bytes = bytes + seen(group, positions) * group.page_bytes / stats.page
  end
  return bytes
end

---Bytes of memory that the cache takes: its pages, and snapshots of what recurrent operations remember.
---@param stats kigo.ModelStats
---@return integer
function traffic.cache_bytes(stats) return stats.kv_bytes + stats.n_states * stats.state_bytes end

return traffic
