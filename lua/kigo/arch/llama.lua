-- llama.lua - LLaMA 1 to 3 and what was built like it: Mistral, TinyLlama, SmolLM; with experts, Mixtral. Converters
-- permute the rows of the q and k weights of this architecture, so that rope turns neighbouring channels.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

return arch.family("llama", { rope = "pairs", rows = layers.expert_rows(1, true) }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm")
    local q, k, v = b:linear(h, "attn_q"), b:linear(h, "attn_k"), b:linear(h, "attn_v")
    local a = b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, hp.attention)
    x = x + b:linear(a, "attn_output")
    x = b:out(x + layers.gated_or_experts(b, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
