-- glm4.lua - GLM 4 (0414): norms before and behind every part, a part of each head turning, gate and up in one.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("glm4", { rope = "pairs" }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + b:norm(layers.self_attention(b, b:norm(x, "attn_norm")), "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "silu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
