-- falcon.lua - Falcon 7B and 40B: attention and feed-forward side by side on normalized rows; the larger models have a
-- second norm, for attention.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("falcon", { rows = { layers.layer_norm_epsilon } }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm", layers.layer_norm)
    local second = b:has_like_others "attn_norm_2" and b:norm(x, "attn_norm_2", layers.layer_norm)
    x = b:out(x + (layers.self_attention(b, second or h) + layers.plain(b, "gelu_erf", h)))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output", "token_embd")
end)
