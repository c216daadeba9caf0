-- gemma3.lua - Gemma 3 (text): five blocks with a window and a rotation of their own to each that sees everything,
-- normalized heads, norms before and behind every part.
local arch = require "kigo.arch"
local layers = require "kigo.layers"
local rope = require "kigo.rope"

local ROWS = layers.rows(layers.window_rows(6), {
  { key = "rope.freq_base", name = "rope_base", type = "number", min = 1, max = 1e12, default = 1e6 },
  { key = "rope.freq_base_swa", name = "rope_base_local", type = "number", min = 1, max = 1e12, default = 1e4 },
  { key = "final_logit_softcapping", name = "final_softcap", type = "number", min = 0, max = 1e6, default = 0 },
  layers.score_scale(62),
})

return arch.family("gemma3", { rows = ROWS }, function(g, hp)
  local attention_of, near = layers.windowed(hp), rope.plain(hp, hp.rope_base_local)
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local attention, sees_all = attention_of(i)
    local a = layers.self_attention(b, b:norm(x, "attn_norm"), { head_norm = true, attention = attention,
      rope = sees_all and hp.rope or near })
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "gelu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  x = g:norm(x, "output_norm")
  if hp.final_softcap == 0 then return g:logits(x, "output", "token_embd") end
  return g:softcap(g:logits(x, "output", "token_embd"):named("uncapped"), hp.final_softcap, "logits")
end)
