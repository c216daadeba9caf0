-- gptneox.lua - GPT-NeoX, Pythia, Dolly 2: LayerNorm, biases, a part of each head turning; attention and feed-forward
-- side by side, each with its own norm of the same rows, unless the file says otherwise.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = {
  layers.layer_norm_epsilon,
  { key = "use_parallel_residual", name = "parallel", type = "boolean", default = true },
}

return arch.family("gptneox", { rows = ROWS }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    local a = layers.self_attention(b, b:norm(x, "attn_norm", layers.layer_norm))
    local behind = x + a
    local h = b:norm(hp.parallel and x or behind, "ffn_norm", layers.layer_norm)
    x = b:out(behind + layers.plain(b, "gelu_erf", h))
  end
  return g:logits(g:norm(x, "output_norm", layers.layer_norm), "output")
end)
