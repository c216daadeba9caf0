-- qwen3.lua - Qwen 3: the heads of q and k are normalized before they turn.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("qwen3", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { head_norm = true })
    x = b:out(x + layers.gated(b, "silu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
