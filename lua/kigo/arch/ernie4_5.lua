-- ernie4_5.lua - ERNIE 4.5, dense and with experts: LLaMA; experts in some blocks, chosen with a bias, and a shared
-- one.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("ernie4_5", { rope = "pairs", rows = layers.expert_rows(1, true) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    local h = b:norm(x, "ffn_norm")
    local f = layers.gated_or_experts(b, h)
    x = b:out(x + (b:has "ffn_gate_inp" and layers.and_shared_expert(b, h, f) or f))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
