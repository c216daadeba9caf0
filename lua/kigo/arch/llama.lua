-- llama.lua - LLaMA 1 to 3 and what was built like it: Mistral, TinyLlama, SmolLM; with experts, Mixtral. Converters
-- permute the rows of the q and k weights of this architecture, so that rope turns neighbouring channels.
local arch = require "kigo.arch"

local function feed_forward(b, hp, h)
  if hp.expert_count > 0 then
    return b:moe(h, { experts = hp.expert_count, used = hp.expert_used_count, gate = "softmax", normalize = true,
      act = "silu" })
  end
  return b:linear(b:glu("silu", b:linear(h, "ffn_gate"), b:linear(h, "ffn_up")), "ffn_down")
end

return arch.family("llama", { rope = "pairs" }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local h = b:norm(x, "attn_norm")
    local q, k, v = b:linear(h, "attn_q"), b:linear(h, "attn_k"), b:linear(h, "attn_v")
    local a = b:attention(b:rope(q, hp.rope), b:rope(k, hp.rope), v, hp.attention)
    x = x + b:linear(a, "attn_output")
    x = b:out(x + feed_forward(b, hp, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
