-- olmo2.lua - OLMo 2: norms behind the parts instead of before them, and over the whole of q and k. OLMo 3, whose files
-- say the same name, has windows in three of four blocks, where rotations are not stretched.
local arch = require "kigo.arch"
local layers = require "kigo.layers"
local rope = require "kigo.rope"

-- What files of others say beside yarn's own magnitude is all of it in these.
local function stretched(hp)
  return hp.rope_attn_factor == 1 and hp.rope or layers.with(hp.rope, { magnitude = hp.rope_attn_factor })
end

return arch.family("olmo2", { rows = layers.window_rows(4) }, function(g, hp)
  local attention_of, near, far = layers.windowed(hp), rope.plain(hp, hp.rope_base), stretched(hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local attention, sees_all = attention_of(i)
    local a = layers.self_attention(b, x, { row_norm = true, attention = attention,
      rope = sees_all and far or near })
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "silu", x), "post_ffw_norm"))
  end
  return g:logits(g:norm(x, "output_norm"), "output")
end)
