-- minimax-m2.lua - MiniMax M2: experts everywhere, chosen by sigmoids; norms over the whole of q and k; a part of each
-- head turning.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("minimax-m2", { rows = layers.expert_rows(2, true) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { row_norm = true })
    x = b:out(x + layers.gated_or_experts(b, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
