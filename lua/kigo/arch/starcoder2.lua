-- starcoder2.lua - StarCoder 2: LayerNorm, biases everywhere, an ungated gelu. All models see 4,096 positions, but most
-- files do not say so.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("starcoder2", { rows = { layers.layer_norm_epsilon, layers.window_row(4096) } }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm", layers.layer_norm))
    x = b:out(x + layers.plain(b, "gelu", b:norm(x, "ffn_norm", layers.layer_norm)))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output", "token_embd")
end)
