-- starcoder2.lua - StarCoder 2: LayerNorm, biases everywhere, an ungated gelu. All models see 4,096 positions, but most
-- files do not say so.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = {
  layers.layer_norm_epsilon,
  { key = "attention.sliding_window", name = "window", type = "integer", min = 0, max = 1 << 24, default = 4096 },
}

return arch.family("starcoder2", { rows = ROWS }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm", layers.layer_norm))
    x = b:out(x + layers.plain(b, "gelu", b:norm(x, "ffn_norm", layers.layer_norm)))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output", "token_embd")
end)
