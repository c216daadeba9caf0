-- qwen2.lua - Qwen 2 and 2.5: LLaMA with biases on q, k and v; small models with tied embeddings.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("qwen2", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    x = b:out(x + layers.gated(b, "silu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
