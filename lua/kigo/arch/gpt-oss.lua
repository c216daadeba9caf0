-- gpt-oss.lua - gpt-oss: experts everywhere, biases everywhere, a sink for each head, a window on every other block,
-- beginning with the first.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ACT = { kind = "swiglu_clamped", limit = 7, alpha = 1.702 }

local rows = layers.rows(layers.window_rows(2), layers.expert_rows(3, false))

return arch.family("gpt-oss", { rows = rows }, function(g, hp)
  local attention_of = layers.windowed(hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { attention = attention_of(i) })
    local h = b:norm(x, "post_attention_norm")
    x = b:out(x + layers.gated_or_experts(b, h, { act = ACT }))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
