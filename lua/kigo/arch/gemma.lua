-- gemma.lua - Gemma 1: scaled embeddings, a gelu gate, heads wider than their share of the row. (Files hold the norm
-- weights with their 1 added.)
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("gemma", function(g, hp)
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    x = b:out(x + layers.gated(b, "gelu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "token_embd")
end)
