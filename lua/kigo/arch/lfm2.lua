-- lfm2.lua - LFM2: most blocks convolve the last few positions, gated before and behind; the others attend, with
-- normalized heads. Which is which stands in the heads of keys and values: a convolution has none.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local ROWS = layers.rows(layers.expert_rows(2, true), {
  { key = "attention.head_count_kv", name = "head_count_kv", type = "integer", min = 0, max = 1 << 16,
    per_block = true, relation = function(hp)
      if hp.head_count_kv == 0 then return "leaves no block with attention" end
      for _, n in ipairs(hp.head_count_kv_of) do
        if n ~= 0 and hp.head_count % n ~= 0 then
          return ("does not divide attention.head_count = %d"):format(hp.head_count)
        end
      end
    end },
  { key = "shortconv.l_cache", name = "conv_taps", type = "integer", min = 2, max = 64 },
  { key = "rope.freq_base", name = "rope_base", type = "number", min = 1, max = 1e12, default = 1e6 },
})

local function short_conv(b, h)
  local parts = b:linear(h, "shortconv.in_proj")
  return b:linear(b:conv(parts, "shortconv.conv", b.hp.conv_taps, true), "shortconv.out_proj")
end

return arch.family("lfm2", { rows = ROWS }, function(g, hp)
  local x = g:embed("token_embd")
  for i = 0, hp.block_count - 1 do
    local b, n_kv = g:block(i), hp.head_count_kv_of[i + 1]
    local h = b:norm(x, "attn_norm")
    if n_kv == 0 then
      x = x + short_conv(b, h)
    else
      x = x + layers.self_attention(b, h, { head_norm = true,
        attention = layers.with(hp.attention, { kv_heads = n_kv }) })
    end
    x = b:out(x + layers.gated_or_experts(b, b:norm(x, "ffn_norm")))
  end
  return g:logits(g:norm(x, "token_embd_norm"), "output", "token_embd")
end)
