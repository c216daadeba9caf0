-- deepseek2.lua - DeepSeek V2, V2 Lite, V3, R1 and what is built like them. Keys and values of all heads come from one
-- short row per token, which is what the cache holds: queries are brought to where that row is ("attn_k_b", a plane
-- per head), and results are brought back ("attn_v_b"). Older files have the two as one weight, "attn_kv_b": keys and
-- values are made with it for each head then. Experts in groups, and one that all tokens share.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local DIM = 1 << 16

local rows = {
  { key = "attention.value_length", name = "value_dim", type = "integer", min = 1, max = DIM,
    default = function(hp) return hp.head_dim end, default_text = "attention.key_length" },
  { key = "rope.dimension_count", name = "rope_dims", type = "integer", min = 2, max = DIM,
    relation = function(hp) if hp.rope_dims % 2 ~= 0 then return "is not even" end end },
  -- the width of a head and yarn make the scale here, and rotations are not scaled
  { key = "attention.scale", name = "attention_scale", type = "number", one_of = { [0] = true }, default = 0 },
  { key = "rope.scaling.attn_factor", name = "rope_attn_factor", type = "number", one_of = { true }, default = 1 },
  { key = "rope.scaling.yarn_attn_factor", name = "rope_yarn_attn_factor", type = "number", one_of = { true },
    default = 1 },
  { key = "attention.kv_lora_rank", name = "kv_rank", type = "integer", min = 1, max = DIM },
  -- of a head as the projections make it; in newer files the keys without "_mla" say what is cached
  { key = "attention.key_length_mla", name = "key_dim_mla", type = "integer", min = 1, max = DIM,
    default = function(hp) return hp.head_dim end, default_text = "attention.key_length",
    relation = function(hp)
      if hp.key_dim_mla <= hp.rope_dims then return "is not more than rope.dimension_count" end
      if hp.key_dim_mla % 2 ~= 0 then return "is not even" end
    end },
  { key = "attention.value_length_mla", name = "value_dim_mla", type = "integer", min = 1, max = DIM,
    default = function(hp) return hp.value_dim end, default_text = "attention.value_length" },
}

-- Queries that grow with their positions, where the file says so: a rotation by nothing.
local function tempered(b, q)
  local hp, still = b.hp, {}
  if hp.temperature_scale == 0 then return q end
  for i = 1, hp.key_dim_mla // 2 do still[i] = 0 end
  return b:rope(q, layers.growing(hp, { style = "halves", head_dim = hp.key_dim_mla, inverse_freqs = still }),
    "attn_q_tempered")
end

-- The queries of all heads, without and with rotation.
local function queries(b, h, rope)
  local hp = b.hp
  local q
  if b:has_like_others "attn_q_a" then
    q = b:linear(b:norm(b:linear(h, "attn_q_a"), "attn_q_a_norm"), "attn_q_b")
  else
    q = b:linear(h, "attn_q")
  end
  q = tempered(b, q)
  local plain = hp.key_dim_mla - hp.rope_dims
  return b:slice(q, 0, plain, "attn_q_plain", hp.head_count),
    b:rope(b:slice(q, plain, hp.rope_dims, "attn_q_turning", hp.head_count), rope)
end

local function attention(b, h, rope, scale)
  local hp = b.hp
  local n, plain = hp.head_count, hp.key_dim_mla - hp.rope_dims
  local q, q_turned = queries(b, h, rope)
  local compressed = b:linear(h, "attn_kv_a_mqa")
  local kv = b:norm(b:slice(compressed, 0, hp.kv_rank, "attn_kv"), "attn_kv_a_norm")
  local k_turned = b:rope(b:slice(compressed, hp.kv_rank, hp.rope_dims, "attn_k_turning"), rope)
  if b:has_like_others "attn_kv_b" then
    local both = b:linear(kv, "attn_kv_b")
    local k = b:slice(both, 0, plain, "attn_k_plain", n)
    local v = b:slice(both, plain, hp.value_dim_mla, "attn_v", n)
    local out = b:attention(b:concat(q, q_turned, "attn_q_all", n), b:concat(k, k_turned, "attn_k_all", n, true), v,
      { heads = n, kv_heads = n, head_dim = hp.key_dim_mla, value_dim = hp.value_dim_mla, scale = scale })
    return b:linear(out, "attn_output")
  end
  local q_all = b:concat(b:linear_each(q, "attn_k_b"), q_turned, "attn_q_all", n)
  local out = b:attention(q_all, b:concat(kv, k_turned, "attn_k_all"), nil,
    { heads = n, kv_heads = 1, head_dim = hp.kv_rank + hp.rope_dims, value_dim = hp.kv_rank, scale = scale })
  return b:linear(b:linear_each(out, "attn_v_b"), "attn_output")
end

rows = layers.rows(rows, layers.temperature_rows, layers.chosen_expert_rows(1))

return arch.family("deepseek2", { rope = "pairs", rows = rows }, function(g, hp)
  local rope = layers.with(hp.rope, { head_dim = hp.rope_dims, magnitude = 1 })
  -- what yarn elsewhere does to queries and keys is done to the scores here
  local stretched = hp.rope_scaling == "yarn" and 1 + hp.yarn_log_multiplier * math.log(hp.rope_scale) or 1
  local scale = stretched ^ 2 / hp.key_dim_mla ^ 0.5
  local x = g:embed "token_embd"
  for i = 0, layers.without_guessing(g) - 1 do
    local b = g:block(i)
    x = x + attention(b, b:norm(x, "attn_norm"), rope, scale)
    x = b:out(x + layers.chosen_experts(b, b:norm(x, "ffn_norm"), i))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
