-- phi2.lua - Phi 1, 1.5 and 2: attention and feed-forward side by side on the same normalized rows, LayerNorm, biases
-- everywhere, a part of each head turning.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("phi2", { rows = { layers.layer_norm_epsilon } }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm", layers.layer_norm)
    x = b:out(x + (layers.self_attention(b, h) + layers.plain(b, "gelu", h)))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output")
end)
