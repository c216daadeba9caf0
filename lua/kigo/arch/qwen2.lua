-- qwen2.lua - Qwen 2 and 2.5: biases on q, k and v, small models with tied embeddings.
local arch = require "kigo.arch"

return arch.family("qwen2", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm")
    local q, k, v = b:linear(h, "attn_q"), b:linear(h, "attn_k"), b:linear(h, "attn_v")
    local a = b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, hp.attention)
    x = x + b:linear(a, "attn_output")
    h = b:norm(x, "ffn_norm")
    x = b:out(x + b:linear(b:glu("silu", b:linear(h, "ffn_gate"), b:linear(h, "ffn_up")), "ffn_down"))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
