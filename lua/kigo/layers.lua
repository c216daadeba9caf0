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

---@class kigo.SelfAttention
---@field rope? kigo.RopeParameters|false   default hp.rope; false: no rotation
---@field attention? kigo.AttentionParameters   default hp.attention
---@field head_norm? boolean|kigo.NormParameters   normalize the heads of q and k (layers.head_norms)

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
  local rope = options.rope
  if rope == nil then rope = b.hp.rope end
  if rope then q, k = b:rope(q, rope), b:rope(k, rope) end
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

---act(up), projected down.
---@param b kigo.Graph
---@param act kigo.Act
---@param h kigo.Value
---@return kigo.Value
function layers.plain(b, act, h) return b:linear(b:act(act, b:linear(h, "ffn_up")), "ffn_down") end

---The experts of a block as the file counts them, or its gated feed-forward where it has none.
---@param b kigo.Graph
---@param h kigo.Value
---@param params? table  of kigo.MoeParameters, beside experts, used and act "silu"
---@return kigo.Value
function layers.gated_or_experts(b, h, params)
  local hp = b.hp
  if hp.expert_count == 0 or not b:has "ffn_gate_inp" then return layers.gated(b, "silu", h) end
  return b:moe(h, layers.with({ experts = hp.expert_count, used = hp.expert_used_count, act = "silu" }, params or {}))
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
