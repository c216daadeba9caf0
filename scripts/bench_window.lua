-- bench_window.lua - the memory that keys and values take where layers have windows, beside what they would take if
-- every layer kept all, and what going back costs.
--   kigo scripts/bench_window.lua [MODEL] [--tokens 32000] [--device cpu] [--kv f16]
-- Without MODEL: a made one with the blocks, the window and the context of Gemma 3 4B, but narrow.
local kigo = require "kigo"
local core = kigo.core

local options = { tokens = 32000, kv = "f16" }
local path
for i, word in ipairs(arg) do
  local name = word:match "^%-%-(%a+)$"
  if name then options[name] = math.tointeger(arg[i + 1]) or arg[i + 1] end
  if i == 1 and not name then path = word end
end

---34 blocks, of which every sixth sees everything, the others 1024 positions.
local function narrow_gemma()
  local build = require "spec.gguf_build"
  local n, width, head, ffn, vocab = 34, 16, 8, 16, 64
  local metadata = { ["general.architecture"] = "gemma3", ["gemma3.context_length"] = 131072,
    ["gemma3.embedding_length"] = width, ["gemma3.block_count"] = n, ["gemma3.feed_forward_length"] = ffn,
    ["gemma3.attention.head_count"] = 1, ["gemma3.attention.head_count_kv"] = 1, ["gemma3.attention.key_length"] = head,
    ["gemma3.attention.value_length"] = head, ["gemma3.attention.layer_norm_rms_epsilon"] = 1e-6,
    ["gemma3.attention.sliding_window"] = 1024 }
  local tensors = { { name = "token_embd.weight", shape = { width, vocab } },
    { name = "output_norm.weight", shape = { width } } }
  local shapes = { attn_norm = { width }, attn_q = { width, head }, attn_k = { width, head }, attn_v = { width, head },
    attn_output = { head, width }, attn_q_norm = { head }, attn_k_norm = { head }, post_attention_norm = { width },
    ffn_norm = { width }, ffn_gate = { width, ffn }, ffn_up = { width, ffn }, ffn_down = { ffn, width },
    post_ffw_norm = { width } }
  for i = 0, n - 1 do
    for name, shape in pairs(shapes) do
      tensors[#tensors + 1] = { name = ("blk.%d.%s.weight"):format(i, name), shape = shape }
    end
  end
  local made = os.tmpname()
  local file <close> = assert(io.open(made, "wb"))
  assert(file:write(build.random(metadata, tensors)))
  return made
end

local made = not path and narrow_gemma()
local model <close> = assert(kigo.load(path or made, { device = options.device, kv = options.kv, tokenizer = false,
  ctx = options.tokens + 100, pool = options.tokens + 100 }))
if made then os.remove(made) end

local ids = {}
for i = 1, options.tokens do ids[i] = math.floor(core.uniform(1, i, 0) * model.vocab_size) end
local seq <close> = assert(model:sequence {})
assert(seq:feed(ids))
local start = kigo.now()
assert(seq:step())
print(("%d tokens in %.1f s"):format(options.tokens, kigo.now() - start))

local stats, full = model:stats(), 0
local pages = (options.tokens - 1) // stats.page + 1
for _, group in ipairs(stats.page_groups) do
  full = full + pages * group.page_bytes
  print(("window %7s: %5d pages of %d bytes, %d in use"):format(group.window > 0 and group.window or "none",
    group.n_pages, group.page_bytes, group.n_pages_used))
end
print(("keys and values take %.2f MB: %.1f %% of the %.2f MB that every layer would need for all positions"):format(
  stats.kv_bytes / 1e6, 100 * stats.kv_bytes / full, full / 1e6))

local chain <close> = kigo.chain { kigo.greedy() }
for _ = 1, 60 do seq:push(assert(seq:draw(chain))) end
for _, pos in ipairs { options.tokens + 20, options.tokens, options.tokens // 2 } do
  seq:rewind(pos)
  start = kigo.now()
  local rows = seq:pending()
  assert(seq:step())
  print(("back to %d: %d rows computed, %.1f ms"):format(pos, rows, 1000 * (kigo.now() - start)))
end
