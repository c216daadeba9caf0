-- layers.lua - parts that several architectures share, on top of kigo.graph. A part takes the block's graph b first and
-- finds out from the file what form its weights have.
local layers = {}

---q, k and v: three projections, or columns of one where the file has "attn_qkv".
---@param b kigo.Graph
---@param h kigo.Value
---@return kigo.Value q
---@return kigo.Value k
---@return kigo.Value v
function layers.qkv(b, h)
  if not b:has "attn_qkv" then return b:linear(h, "attn_q"), b:linear(h, "attn_k"), b:linear(h, "attn_v") end
  local fused, hp = b:linear(h, "attn_qkv"), b.hp
  local n, n_kv = hp.head_count * hp.head_dim, hp.head_count_kv * hp.head_dim
  return b:slice(fused, 0, n, "attn_q"), b:slice(fused, n, n_kv, "attn_k"), b:slice(fused, n + n_kv, n_kv, "attn_v")
end

---q and k with each head normalized, where the file has weights for that.
---@param b kigo.Graph
---@param q kigo.Value
---@param k kigo.Value
---@param params? kigo.NormParameters
---@param kv_heads? integer   default hp.head_count_kv
---@return kigo.Value q
---@return kigo.Value k
function layers.head_norms(b, q, k, params, kv_heads)
  if not b:has_like_others "attn_q_norm" then return q, k end
  local function norm(x, name, heads)
    return b:norm(x, name, { groups = heads, subtract_mean = params and params.subtract_mean })
  end
  return norm(q, "attn_q_norm", b.hp.head_count), norm(k, "attn_k_norm", kv_heads or b.hp.head_count_kv)
end

---Rows of families whose queries grow with their positions, so that attention stays as sharp: layers.growing.
---@type kigo.HyperparameterRow[]
layers.temperature_rows = {
  { key = "attention.temperature_scale", name = "temperature_scale", type = "number", min = 0, max = 1e3, default = 0 },
  { key = "attention.temperature_length", name = "temperature_length", type = "integer", min = 1, max = 1 << 24,
    default = function(hp) return hp.rope_original end, default_text = "rope.scaling.original_context_length" },
}

---A rotation that makes them grow; the same one where the file says that they do not.
---@param hp kigo.Hyperparameters
---@param params kigo.RopeParameters
---@return kigo.RopeParameters
function layers.growing(hp, params)
  if hp.temperature_scale == 0 then return params end
  return layers.with(params, { growth = hp.temperature_scale, growth_length = hp.temperature_length })
end

---@class kigo.SelfAttention
---@field rope? kigo.RopeParameters|false   default hp.rope; false: no rotation
---@field query_rope? kigo.RopeParameters   of queries; default the same
---@field attention? kigo.AttentionParameters   default hp.attention
---@field head_norm? boolean|kigo.NormParameters   normalize the heads of q and k (layers.head_norms)
---@field late_norm? boolean   the same after they have turned
---@field row_norm? boolean    normalize all of q and all of k

---Attention of normalized rows h over their own sequence, projected back.
---@param b kigo.Graph
---@param h kigo.Value
---@param options? kigo.SelfAttention
---@return kigo.Value
function layers.self_attention(b, h, options)
  options = options or {}
  local attention = options.attention or b.hp.attention
  local q, k, v = layers.qkv(b, h)
  local head_norm = options.head_norm
  if head_norm then q, k = layers.head_norms(b, q, k, head_norm ~= true and head_norm or nil, attention.kv_heads) end
  if options.row_norm then q, k = b:norm(q, "attn_q_norm"), b:norm(k, "attn_k_norm") end
  local rope = options.rope
  if rope == nil then rope = b.hp.rope end
  if rope then q, k = b:rope(q, options.query_rope or rope), b:rope(k, rope) end
  if options.late_norm then q, k = layers.head_norms(b, q, k) end
  return b:linear(b:attention(q, k, v, attention), "attn_output")
end

---A copy of parameters with other fields.
---@generic T
---@param params T
---@param changes table
---@return T
function layers.with(params, changes)
  local copy = {}
  for name, value in pairs(params) do copy[name] = value end
  for name, value in pairs(changes) do copy[name] = value end
  return copy
end

---act(gate) * up, projected down. Without "ffn_gate", gate and up are the halves of "ffn_up".
---@param b kigo.Graph
---@param act kigo.Act
---@param h kigo.Value
---@return kigo.Value
function layers.gated(b, act, h)
  if b:has "ffn_gate" then
    return b:linear(b:glu(act, b:linear(h, "ffn_gate"), b:linear(h, "ffn_up")), "ffn_down")
  end
  local both = b:linear(h, "ffn_up")
  local half = both.width // 2
  local gate, up = b:slice(both, 0, half, "ffn_gate_half"), b:slice(both, half, half, "ffn_up_half")
  return b:linear(b:glu(act, gate, up), "ffn_down")
end

---act(up), projected down; "relu_squared" beside the activations of graphs.
---@param b kigo.Graph
---@param act kigo.Act
---@param h kigo.Value
---@return kigo.Value
function layers.plain(b, act, h)
  local up = b:linear(h, "ffn_up")
  return b:linear(act == "relu_squared" and b:glu("relu", up, up) or b:act(act, up), "ffn_down")
end

---The row of families that have a window of this width where files do not say it.
---@param width integer
---@return kigo.HyperparameterRow
function layers.window_row(width)
  return { key = "attention.sliding_window", name = "window", type = "integer", min = 0, max = 1 << 24,
    default = width }
end

---Rows of families in which some blocks have a window and others see everything: every `every`-th, unless the file says
---which (a number like this, or for each block whether it has the window).
---@param every integer
---@param width? integer  of the window, as in layers.window_row; default 0
---@return kigo.HyperparameterRow[]
function layers.window_rows(every, width)
  return {
    layers.window_row(width or 0),
    { key = "attention.sliding_window_pattern", name = "windowed", type = "boolean", default = every, per_block = true,
      expand = function(n, blocks)
        local list = {}
        for i = 1, blocks do list[i] = n == 0 or i % n ~= 0 end
        return list
      end },
  }
end

---Which attention a block of such a family has.
---@param hp kigo.Hyperparameters
---@return fun(i: integer): kigo.AttentionParameters, boolean   of block i; does it see everything?
function layers.windowed(hp)
  local all = layers.with(hp.attention, { window = 0 })
  return function(i)
    local sees_all = hp.window == 0 or not hp.windowed_of[i + 1]
    return sees_all and all or hp.attention, sees_all
  end
end

---The row of families whose largest model, of so many blocks, scales its scores by the row's share of a head; files do
---not say so.
---@param blocks integer
---@return kigo.HyperparameterRow
function layers.score_scale(blocks)
  return { key = "attention.scale", name = "attention_scale", type = "number", unset = 0, min = 1e-6, max = 1e6,
    default = function(hp)
      return (hp.block_count == blocks and hp.embedding_length // hp.head_count or hp.head_dim) ^ -0.5
    end, default_text = ("attention.key_length ^ -0.5; of %d blocks another"):format(blocks) }
end

-- How router logits become weights, by the numbers in files.
local GATES = { "softmax", "sigmoid", "softmax_used" }

---Rows that say how experts are chosen and weighed.
---@param gate integer        what the family does where its files do not say: 1 softmax, 2 sigmoid, 3 softmax_used
---@param normalize boolean   likewise
---@return kigo.HyperparameterRow[]
function layers.expert_rows(gate, normalize)
  return {
    { key = "expert_gating_func", name = "gate", type = "integer", one_of = { true, true, true }, default = gate },
    { key = "expert_weights_norm", name = "experts_normalize", type = "boolean", default = normalize },
    { key = "expert_weights_scale", name = "experts_scale", type = "number", min = 0, max = 1e6, default = 1 },
  }
end

---The experts of a block as the file's numbers say, or its gated feed-forward where it has none.
---@param b kigo.Graph
---@param h kigo.Value
---@param params? table  of kigo.MoeParameters, instead of what the numbers say
---@return kigo.Value
function layers.gated_or_experts(b, h, params)
  local hp = b.hp
  if hp.expert_count == 0 or not b:has "ffn_gate_inp" then return layers.gated(b, "silu", h) end
  return b:moe(h, layers.with({ experts = hp.expert_count, used = hp.expert_used_count, act = "silu",
    gate = GATES[hp.gate], normalize = hp.experts_normalize,
    scale = hp.experts_scale ~= 0 and hp.experts_scale or 1 }, params or {}))
end

---What some experts made, and what the one that all tokens share adds where the block has it.
---@param b kigo.Graph
---@param h kigo.Value
---@param chosen kigo.Value
---@return kigo.Value
function layers.and_shared_expert(b, h, chosen)
  if not b:has_like_others "ffn_gate_shexp" then return chosen end
  local shared = b:glu("silu", b:linear(h, "ffn_gate_shexp"), b:linear(h, "ffn_up_shexp"))
  return chosen + b:linear(shared, "ffn_down_shexp")
end

---Several lists of rows in one.
---@param ... kigo.HyperparameterRow[]
---@return kigo.HyperparameterRow[]
function layers.rows(...)
  local all = {}
  for _, rows in ipairs { ... } do table.move(rows, 1, #rows, #all + 1, all) end
  return all
end

---Rows of families that choose experts as DeepSeek does, for layers.chosen_experts.
---@param gate integer
---@return kigo.HyperparameterRow[]
function layers.chosen_expert_rows(gate)
  return layers.rows(layers.expert_rows(gate, false), {
    { key = "leading_dense_block_count", name = "dense_blocks", type = "integer", min = 0, max = 1024, default = 0 },
    { key = "expert_group_count", name = "expert_groups", type = "integer", min = 1, max = 1024, default = 1 },
    { key = "expert_group_used_count", name = "expert_groups_used", type = "integer", min = 1, max = 1024,
      default = function(hp) return hp.expert_groups end, default_text = "expert_group_count" },
    { key = "nextn_predict_layers", name = "guessing_blocks", type = "integer", min = 0, max = 1023, default = 0,
      relation = function(hp)
        if hp.guessing_blocks >= hp.block_count then
          return ("leaves nothing of block_count = %d"):format(hp.block_count)
        end
      end },
  })
end

---How many blocks make logits; those behind them are there to guess several tokens at once, and are left out.
---@param g kigo.Graph
---@return integer
function layers.without_guessing(g)
  local n = g.hp.block_count - g.hp.guessing_blocks
  for i = n, g.hp.block_count - 1 do g:leave_out(i) end
  return n
end

---A gated feed-forward in the first blocks, behind them experts as the file's numbers say, and a shared one.
---@param b kigo.Graph
---@param h kigo.Value
---@param i integer  the block
---@return kigo.Value
function layers.chosen_experts(b, h, i)
  local hp = b.hp
  if i < hp.dense_blocks or hp.expert_count == 0 then return layers.gated(b, "silu", h) end
  b:wants "ffn_gate_inp"
  local has_bias = b:has_like_others("exp_probs_b", "bias")
  if hp.gate == 2 then b:wants("exp_probs_b", "bias") end
  return layers.and_shared_expert(b, h, layers.gated_or_experts(b, h, { groups = hp.expert_groups,
    groups_used = hp.expert_groups_used, group_top = has_bias and 2 or 1 }))
end

---The hyperparameter row of families with LayerNorm: its epsilon has a key of its own.
---@type kigo.HyperparameterRow
layers.layer_norm_epsilon = { key = "attention.layer_norm_epsilon", name = "norm_epsilon", type = "number",
  min = 1e-13, max = 1 }

---The row of families whose tokens see each other both ways.
---@type kigo.HyperparameterRow
layers.not_causal = { key = "attention.causal", name = "causal", type = "boolean", one_of = { [false] = true },
  default = false }

---Norm parameters of families with LayerNorm.
---@type kigo.NormParameters
layers.layer_norm = { subtract_mean = true }

return layers
