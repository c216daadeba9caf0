-- glm4.lua - GLM 4 (0414) and the text of GLM 4.1V: norms before and behind every part, a part of each head turning,
-- gate and up in one. Converters permute q and k of the first alone.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = {
  { key = "rope.dimension_sections", name = "rope_sections", type = "table", default = {}, default_text = "none",
    relation = function(hp)
      for _, n in ipairs(hp.rope_sections) do
        if math.type(n) ~= "integer" then return "is no array of integers" end
      end
    end },
}

return arch.family("glm4", { rope = "pairs", rows = ROWS }, function(g, hp)
  local is_permuted = (hp.rope_sections[1] or 0) == 0
  local rope = is_permuted and hp.rope or layers.with(hp.rope, { style = "halves" })
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b = g:block(i)
    x = x + b:norm(layers.self_attention(b, b:norm(x, "attn_norm"), { rope = rope }), "post_attention_norm")
    x = b:out(x + b:norm(layers.gated(b, "silu", b:norm(x, "ffn_norm")), "post_ffw_norm"))
  end
  return g:logits(g:norm(x, "output_norm"), "output", "token_embd")
end)
