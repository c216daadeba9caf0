-- seed_oss.lua - Seed-OSS: LLaMA with biases on q, k and v.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("seed_oss", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    x = b:out(x + layers.gated(b, "silu", b:norm(x, "post_attention_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
