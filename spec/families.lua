-- families.lua - architectures beyond those that kigo ships, declared for the specs: together their fixtures reach
-- every operation of plan.h (per-head norms, learned positions, LayerNorm, slices, soft caps, windows, sinks, biased
-- experts).
local arch = require "kigo.arch"

local families = {}

local function feed_forward(b, act, h)
  return b:linear(b:glu(act, b:linear(h, "ffn_gate"), b:linear(h, "ffn_up")), "ffn_down")
end

local function qkv(b, h)
  return b:linear(h, "attn_q"), b:linear(h, "attn_k"), b:linear(h, "attn_v")
end

families.qwen3 = arch.family("qwen3", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = qkv(b, b:norm(x, "attn_norm"))
    q = b:norm(q, "attn_q_norm", { groups = hp.head_count })
    k = b:norm(k, "attn_k_norm", { groups = hp.head_count_kv })
    x = x + b:linear(b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, hp.attention), "attn_output")
    x = b:out(x + feed_forward(b, "silu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)

-- q, k and v as slices of one projection
local function fused_qkv(b, hp, h)
  local fused = b:linear(h, "attn_qkv")
  local n, n_kv = hp.head_count * hp.head_dim, hp.head_count_kv * hp.head_dim
  return b:slice(fused, 0, n, "q"), b:slice(fused, n, n_kv, "k"), b:slice(fused, n + n_kv, n_kv, "v")
end

families.phi3 = arch.family("phi3", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = fused_qkv(b, hp, b:norm(x, "attn_norm"))
    x = x + b:linear(b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, hp.attention), "attn_output")
    local both = b:linear(b:norm(x, "ffn_norm"), "ffn_up")
    local half = both.width // 2
    local h = b:glu("silu", b:slice(both, 0, half, "gate"), b:slice(both, half, half, "up"))
    x = b:out(x + b:linear(h, "ffn_down"))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)

families.gpt2 = arch.family("gpt2", {
  rows = { { key = "attention.layer_norm_epsilon", name = "norm_epsilon", type = "number", min = 1e-12, max = 1 } },
}, function(g, hp)
  local layer_norm = { subtract_mean = true }
  local x = g:embed("token_embd", "position_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = fused_qkv(b, hp, b:norm(x, "attn_norm", layer_norm))
    x = x + b:linear(b:attention(q, k, v, hp.attention), "attn_output")
    x = b:out(x + b:linear(b:act("gelu", b:linear(b:norm(x, "ffn_norm", layer_norm), "ffn_up")), "ffn_down"))
  end
  return g:logits(g:norm(x, "output_norm", layer_norm), "output", "token_embd")
end)

local function windowed(params, i, softcap)
  local copy = { softcap = softcap }
  for key, value in pairs(params) do copy[key] = value end
  if i % 2 == 1 then copy.window = 0 end -- even layers see the window only
  return copy
end

families.gemma2 = arch.family("gemma2", {
  rows = {
    { key = "attn_logit_softcapping", name = "softcap", type = "number", min = 1e-3, max = 1e6 },
    { key = "final_logit_softcapping", name = "final_softcap", type = "number", min = 1e-3, max = 1e6 },
  },
}, function(g, hp)
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = qkv(b, b:norm(x, "attn_norm"))
    local a = b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, windowed(hp.attention, i, hp.softcap))
    x = x + b:norm(b:linear(a, "attn_output"), "post_attention_norm")
    x = b:out(x + b:norm(feed_forward(b, "gelu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  x = g:logits(g:norm(x, "output_norm"), "output", "token_embd"):named("uncapped")
  return g:softcap(x, hp.final_softcap, "logits")
end)

-- Yarn (Peng et al. 2023) with the usual beta of 32 and 1: slow frequencies are interpolated, fast ones kept.
local function yarn(hp)
  local n, base = hp.rope_dims, hp.rope_base
  local function turns(beta) return n * math.log(hp.rope_original / (beta * 2 * math.pi)) / (2 * math.log(base)) end
  local low, high = math.max(0, math.floor(turns(32))), math.min(n - 1, math.ceil(turns(1)))
  local freqs = {}
  for i = 0, n // 2 - 1 do
    local slow = math.min(1, math.max(0, (i - low) / math.max(0.001, high - low)))
    freqs[i + 1] = base ^ (-2 * i / n) * (slow / hp.rope_scale + 1 - slow)
  end
  return { style = "halves", head_dim = hp.head_dim, dims = n, inverse_freqs = freqs,
    magnitude = 1 + 0.1 * math.log(hp.rope_scale) }
end

families["gpt-oss"] = arch.family("gpt-oss", {
  rows = {
    { key = "rope.scaling.type", name = "rope_scaling", type = "string", one_of = { yarn = true } },
    { key = "rope.scaling.original_context_length", name = "rope_original", type = "integer", min = 1, max = 1 << 24 },
  },
}, function(g, hp)
  local rope, act = yarn(hp), { kind = "swiglu_clamped", limit = 7, alpha = 1.702 }
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = qkv(b, b:norm(x, "attn_norm"))
    x = x + b:linear(b:attention(b:rope(q, rope), b:rope(k, rope), v, windowed(hp.attention, i)), "attn_output")
    x = b:out(x + b:moe(b:norm(x, "post_attention_norm"),
      { experts = hp.expert_count, used = hp.expert_used_count, gate = "softmax_used", act = act }))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)

---The fixtures that they open.
families.fixtures = { "qwen3", "phi3", "gpt2", "gemma2", "gptoss", "gptoss_mxfp4" }

local names = { "qwen3", "phi3", "gpt2", "gemma2", "gpt-oss" }

---Make kigo.arch know them; call families.remove afterwards.
function families.add()
  for _, name in ipairs(names) do arch.families[name] = families[name] end
end

function families.remove()
  for _, name in ipairs(names) do arch.families[name] = nil end
end

return families
