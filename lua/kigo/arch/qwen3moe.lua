-- qwen3moe.lua - Qwen 3 with experts: the best by probability, weighed by what they have of their sum.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("qwen3moe", { rows = layers.expert_rows(1, true) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { head_norm = true })
    x = b:out(x + layers.gated_or_experts(b, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
