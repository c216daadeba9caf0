-- nomic-bert.lua - nomic-embed-text: BERT with rotation instead of learned positions and a gated feed-forward.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("nomic-bert", { rows = { layers.layer_norm_epsilon, layers.not_causal } }, function(g, hp)
  local attention = layers.with(hp.attention, { bidirectional = true })
  local x = g:norm(g:embed("token_embd", nil, "token_types"), "token_embd_norm", layers.layer_norm)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = b:norm(x + layers.self_attention(b, x, { attention = attention }), "attn_output_norm", layers.layer_norm)
    x = b:out(b:norm(x + layers.gated(b, "silu", x), "layer_output_norm", layers.layer_norm))
  end
  return g:embedding(x)
end)
