-- glm4moe.lua - GLM 4.5 and 4.6, Air: experts chosen as DeepSeek V3 does, a part of each head turning. The last blocks
-- of a file may be there to guess several tokens at once.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("glm4moe", { rows = layers.chosen_expert_rows(2) }, function(g)
  local x = g:embed("token_embd")
  for i = 0, layers.without_guessing(g) - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { head_norm = true })
    x = b:out(x + layers.chosen_experts(b, b:norm(x, "post_attention_norm"), i))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
