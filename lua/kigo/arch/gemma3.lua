-- gemma3.lua - Gemma 3 (text): five blocks with a window and a rotation of their own to each that sees everything,
-- normalized heads, norms before and behind every part.
local arch = require "kigo.arch"
local layers = require "kigo.layers"
local rope = require "kigo.rope"

local ROWS = {
  { key = "attention.sliding_window", name = "window", type = "integer", min = 0, max = 1 << 24, default = 0 },
  { key = "rope.freq_base", name = "rope_base", type = "number", min = 1, max = 1e12, default = 1e6 },
  { key = "rope.freq_base_swa", name = "rope_base_local", type = "number", min = 1, max = 1e12, default = 1e4 },
  { key = "final_logit_softcapping", name = "final_softcap", type = "number", min = 0, max = 1e6, default = 0 },
}
local GLOBAL_EVERY = 6

-- The largest model, of 62 blocks, scales its scores by the row's share of a head; files do not say so.
local function score_scale(hp)
  return (hp.block_count == 62 and hp.embedding_length // hp.head_count or hp.head_dim) ^ -0.5
end

return arch.family("gemma3", { rows = ROWS }, function(g, hp)
  local attention = layers.with(hp.attention, { scale = score_scale(hp) })
  local global = { head_norm = true, attention = layers.with(attention, { window = 0 }) }
  local near = { head_norm = true, attention = attention, rope = rope.plain(hp, hp.rope_base_local) }
  local x = g:scale(g:embed("token_embd"), hp.embedding_length ^ 0.5)
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local a = layers.self_attention(b, b:norm(x, "attn_norm"), (i + 1) % GLOBAL_EVERY == 0 and global or near)
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "gelu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  x = g:norm(x, "output_norm")
  if hp.final_softcap == 0 then return g:logits(x, "output", "token_embd") end
  return g:softcap(g:logits(x, "output", "token_embd"):named("uncapped"), hp.final_softcap, "logits")
end)
