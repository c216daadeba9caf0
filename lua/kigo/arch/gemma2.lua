-- gemma2.lua - Gemma 2: norms before and behind every part, soft caps on scores and logits, and a window on every other
-- block, beginning with the first.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = layers.rows(layers.window_rows(2, 4096), {
  { key = "attn_logit_softcapping", name = "softcap", type = "number", min = 1e-3, max = 1e6, default = 50 },
  { key = "final_logit_softcapping", name = "final_softcap", type = "number", min = 1e-3, max = 1e6, default = 30 },
  layers.score_scale(46),
})

return arch.family("gemma2", { rows = ROWS }, function(g, hp)
  local attention_of = layers.windowed(hp)
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local attention = layers.with(attention_of(i), { softcap = hp.softcap })
    local a = layers.self_attention(b, b:norm(x, "attn_norm"), { attention = attention })
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "gelu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  return g:softcap(g:logits(g:norm(x, "output_norm"), "token_embd"):named("uncapped"), hp.final_softcap, "logits")
end)
