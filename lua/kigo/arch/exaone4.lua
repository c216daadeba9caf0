-- exaone4.lua - EXAONE 4: norms behind the parts, normalized heads; the larger model has windows in three of four
-- blocks, and no rotation in the others.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("exaone4", { rows = layers.window_rows(4) }, function(g, hp)
  local attention_of = layers.windowed(hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local attention, sees_all = attention_of(i)
    local rope = (hp.window == 0 or not sees_all) and hp.rope
    local a = layers.self_attention(b, x, { head_norm = true, attention = attention, rope = rope })
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "silu", x), "post_ffw_norm"))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
