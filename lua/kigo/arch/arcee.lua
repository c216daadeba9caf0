-- arcee.lua - AFM 4.5B: LLaMA with a squared relu.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("arcee", { rope = "pairs" }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    x = b:out(x + layers.plain(b, "relu_squared", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
