-- qwen2moe.lua - Qwen 1.5 and 2 with experts: Qwen 2, and beside the chosen experts one that all tokens share, with a
-- gate of its own.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("qwen2moe", { rows = layers.expert_rows(1, false) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + layers.self_attention(b, b:norm(x, "attn_norm"))
    local h = b:norm(x, "ffn_norm")
    local chosen = layers.gated_or_experts(b, h)
    local shared = b:moe(h, { experts = 1, used = 1, gate = "sigmoid", act = "silu" }, "ffn_shared",
      "ffn_gate_inp_shexp", "_shexp")
    x = b:out(x + (chosen + shared))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
