-- gemma2.lua - Gemma 2: norms before and behind every part, soft caps on scores and logits, and a window on every other
-- block, beginning with the first.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = {
  { key = "attn_logit_softcapping", name = "softcap", type = "number", min = 1e-3, max = 1e6, default = 50 },
  { key = "final_logit_softcapping", name = "final_softcap", type = "number", min = 1e-3, max = 1e6, default = 30 },
  { key = "attention.sliding_window", name = "window", type = "integer", min = 0, max = 1 << 24, default = 4096 },
}

-- The largest model, of 46 blocks, scales its scores by the row's share of a head; files do not say so.
local function score_scale(hp)
  return (hp.block_count == 46 and hp.embedding_length // hp.head_count or hp.head_dim) ^ -0.5
end

return arch.family("gemma2", { rows = ROWS }, function(g, hp)
  local global = layers.with(hp.attention, { softcap = hp.softcap, window = 0, scale = score_scale(hp) })
  local windowed = layers.with(global, { window = hp.window })
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local a = layers.self_attention(b, b:norm(x, "attn_norm"), { attention = i % 2 == 0 and windowed or global })
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "gelu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  return g:softcap(g:logits(g:norm(x, "output_norm"), "token_embd"):named("uncapped"), hp.final_softcap, "logits")
end)
