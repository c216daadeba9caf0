-- glm4moe.lua - GLM 4.5 and 4.6, Air: experts chosen as DeepSeek V3 does, a part of each head turning. The last blocks
-- of a file may be there to guess several tokens at once.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = layers.rows(layers.expert_rows, {
  { key = "nextn_predict_layers", name = "guessing_blocks", type = "integer", min = 0, max = 1023, default = 0,
    relation = function(hp)
      if hp.guessing_blocks >= hp.block_count then
        return ("leaves nothing of block_count = %d"):format(hp.block_count)
      end
    end },
})

return arch.family("glm4moe", { rows = ROWS }, function(g, hp)
  local x, n = g:embed("token_embd"), hp.block_count - hp.guessing_blocks
  for i = 0, n - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { head_norm = true })
    x = b:out(x + layers.chosen_experts(b, b:norm(x, "post_attention_norm"), i))
  end
  for i = n, hp.block_count - 1 do g:leave_out(i) end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
