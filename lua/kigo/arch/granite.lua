-- granite.lua - Granite 3, dense and with experts: LLaMA with multipliers on embeddings, scores, residuals and logits.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local function multiplier(key, name, default)
  return { key = key, name = name, type = "number", min = 1e-6, max = 1e6, default = default }
end

local ROWS = {
  multiplier("embedding_scale", "embedding_scale", 1),
  multiplier("residual_scale", "residual_scale", 1),
  multiplier("logit_scale", "logit_scale", 1),
  multiplier("attention.scale", "attention_scale", function(hp) return hp.head_dim ^ -0.5 end),
}

return arch.family("granite", { rope = "pairs", rows = ROWS }, function(g, hp)
  local attention = layers.with(hp.attention, { scale = hp.attention_scale })
  local x = g:scale(g:embed("token_embd"), hp.embedding_scale)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + b:scale(layers.self_attention(b, b:norm(x, "attn_norm"), { attention = attention }), hp.residual_scale)
    local h = b:norm(x, "ffn_norm")
    local f = layers.gated_or_experts(b, h, { gate = "softmax", normalize = true })
    x = b:out(x + b:scale(layers.and_shared_expert(b, h, f), hp.residual_scale))
  end
  x = g:logits(g:norm(x, "output_norm"), "output", "token_embd"):named("unscaled")
  return g:scale(x, 1 / hp.logit_scale, "logits")
end)
