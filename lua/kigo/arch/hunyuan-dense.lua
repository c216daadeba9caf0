-- hunyuan-dense.lua - Hunyuan, dense and with experts: heads are normalized after they have turned.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("hunyuan-dense", { rows = layers.expert_rows(1, true) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"), { late_norm = true })
    local h = b:norm(x, "ffn_norm")
    x = b:out(x + layers.and_shared_expert(b, h, layers.gated_or_experts(b, h)))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
