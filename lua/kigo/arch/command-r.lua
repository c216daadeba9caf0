-- command-r.lua - Command R and R+: LayerNorm without biases, attention and feed-forward side by side on the same
-- normalized rows, a multiplier on the logits; R+ normalizes heads.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = {
  layers.layer_norm_epsilon,
  { key = "logit_scale", name = "logit_scale", type = "number", min = 1e-6, max = 1e6, default = 1 },
}

return arch.family("command-r", { rope = "pairs", rows = ROWS }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm", layers.layer_norm)
    local a = layers.self_attention(b, h, { head_norm = layers.layer_norm })
    x = b:out(x + (a + layers.gated(b, "silu", h)))
  end
  x = g:logits(g:norm(x, "output_norm", layers.layer_norm), "token_embd"):named("unscaled")
  return g:scale(x, hp.logit_scale, "logits")
end)
