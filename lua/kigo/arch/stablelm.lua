-- stablelm.lua - StableLM 3B, 2 1.6B and 2 12B: LayerNorm with gated feed-forward, a part of each head turning. Where
-- there is no second norm, attention and feed-forward stand side by side; where heads are normalized, each has weights
-- of its own.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("stablelm", { rows = { layers.layer_norm_epsilon } }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm", layers.layer_norm)
    local behind = x + layers.self_attention(b, h, { head_norm = layers.layer_norm })
    if b:has_like_others "ffn_norm" then h = b:norm(behind, "ffn_norm", layers.layer_norm) end
    x = b:out(behind + layers.gated(b, "silu", h))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output", "token_embd")
end)
