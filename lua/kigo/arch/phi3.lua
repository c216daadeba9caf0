-- phi3.lua - Phi 3, 3.5 and 4: q, k and v in one weight, gate and up in another; longrope for long contexts.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("phi3", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    x = b:out(x + layers.gated(b, "silu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
