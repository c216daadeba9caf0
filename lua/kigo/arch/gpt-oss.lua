-- gpt-oss.lua - gpt-oss: experts everywhere, biases everywhere, a sink for each head, a window on every other block,
-- beginning with the first.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ACT = { kind = "swiglu_clamped", limit = 7, alpha = 1.702 }

return arch.family("gpt-oss", function(g, hp)
  local global = layers.with(hp.attention, { window = 0 })
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { attention = i % 2 == 0 and hp.attention or global })
    local h = b:norm(x, "post_attention_norm")
    x = b:out(x + layers.gated_or_experts(b, h, { gate = "softmax_used", act = ACT }))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
