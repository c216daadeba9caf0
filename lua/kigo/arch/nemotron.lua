-- nemotron.lua - Nemotron 3 and 4, Minitron: LayerNorm (files hold its weights with their 1 added), a part of each head
-- turning, a squared relu.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("nemotron", { rows = { layers.layer_norm_epsilon } }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm", layers.layer_norm))
    x = b:out(x + layers.plain(b, "relu_squared", b:norm(x, "ffn_norm", layers.layer_norm)))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output", "token_embd")
end)
