-- cohere2.lua - Command R7B and Command A: Command R whose blocks have windows and rotation, but for every fourth,
-- which sees everything and does not know positions.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local rows = layers.rows(require "kigo.arch.command-r".rows, layers.window_rows(4))

return arch.family("cohere2", { rope = "pairs", rows = rows }, function(g, hp)
  local attention_of = layers.windowed(hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm", layers.layer_norm)
    local attention, sees_all = attention_of(i)
    local a = layers.self_attention(b, h, { attention = attention, rope = not sees_all and hp.rope })
    x = b:out(x + (a + layers.gated(b, "silu", h)))
  end
  x = g:logits(g:norm(x, "output_norm", layers.layer_norm), "token_embd"):named("unscaled")
  return g:scale(x, hp.logit_scale, "logits")
end)
