-- granite.lua - Granite 3, dense and with experts: LLaMA with multipliers on embeddings, scores, residuals and logits.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local function multiplier(key)
  return { key = key, name = key, type = "number", min = 1e-6, max = 1e6, default = 1 }
end

local ROWS = layers.rows(layers.expert_rows(1, true), {
  multiplier "embedding_scale",
  multiplier "residual_scale",
  multiplier "logit_scale",
  -- elsewhere this says something about the training; here, whether there is any rotation
  { key = "rope.scaling.finetuned", name = "is_turned", type = "boolean", default = true },
})

return arch.family("granite", { rope = "pairs", rows = ROWS }, function(g, hp)
  local rope = hp.is_turned and hp.rope
  local x = g:scale(g:embed("token_embd"), hp.embedding_scale)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + b:scale(layers.self_attention(b, b:norm(x, "attn_norm"), { rope = rope }), hp.residual_scale)
    local h = b:norm(x, "ffn_norm")
    x = b:out(x + b:scale(layers.and_shared_expert(b, h, layers.gated_or_experts(b, h)), hp.residual_scale))
  end
  x = g:logits(g:norm(x, "output_norm"), "output", "token_embd"):named("unscaled")
  return g:scale(x, 1 / hp.logit_scale, "logits")
end)
