-- bert.lua - BERT and what was trained like it (BGE, GTE, E5, MiniLM ...): embeddings. Every token sees all others;
-- norms stand behind the parts; positions are learned.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("bert", { rows = { layers.layer_norm_epsilon, layers.not_causal } }, function(g, hp)
  local attention = layers.with(hp.attention, { bidirectional = true })
  local x = g:norm(g:embed("token_embd", "position_embd", "token_types"), "token_embd_norm", layers.layer_norm)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local a = layers.self_attention(b, x, { rope = false, attention = attention })
    x = b:norm(x + a, "attn_output_norm", layers.layer_norm)
    x = b:out(b:norm(x + layers.plain(b, "gelu_erf", x), "layer_output_norm", layers.layer_norm))
  end
  return g:embedding(x)
end)
