-- smollm3.lua - SmolLM 3: LLaMA whose every fourth block does not know positions.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local WITHOUT_ROPE = 4

return arch.family("smollm3", { rope = "pairs" }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local rope = (i + 1) % WITHOUT_ROPE ~= 0 and hp.rope
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { rope = rope })
    x = b:out(x + layers.gated(b, "silu", b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
