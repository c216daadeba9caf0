-- mistral3.lua - Ministral 3 and what its files are named after: LLaMA, but behind the context of the training queries
-- grow with their positions.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local rows = layers.rows(layers.temperature_rows, layers.expert_rows(1, true))

return arch.family("mistral3", { rope = "pairs", rows = rows }, function(g, hp)
  local query_rope = layers.growing(hp, hp.rope)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { query_rope = query_rope })
    x = b:out(x + layers.gated_or_experts(b, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
