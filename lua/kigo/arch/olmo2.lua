-- olmo2.lua - OLMo 2: norms behind the parts instead of before them, and over the whole of q and k.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("olmo2", function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local q, k, v = layers.qkv(b, x)
    q, k = b:rope(b:norm(q, "attn_q_norm"), hp.rope), b:rope(b:norm(k, "attn_k_norm"), hp.rope)
    local a = b:linear(b:attention(q, k, v, hp.attention), "attn_output")
    x = x + b:norm(a, "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "silu", x), "post_ffw_norm"))
  end
  return g:logits(g:norm(x, "output_norm"), "output")
end)
