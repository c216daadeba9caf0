-- 23-adapters.lua - a low-rank adapter beside the model, at a scale of its own for each sequence; all share the passes.
-- Training makes better ones (peft, then llama.cpp's convert_lora_to_gguf.py); this one is made by hand, of rank 1: it
-- adds to what a block gives the difference between winter prompts and summer prompts.
-- Run: build/kigo examples/23-adapters.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local INPUT, OUTPUT, MATRIX = "blk.2.ffn_act", "blk.2.out", "blk.2.ffn_down.weight" -- what MATRIX reads and leads to

local function prompt(subject)
  return model:template():render({ { role = "user", content = "Write a haiku about " .. subject .. "." } },
    { generate = true })
end

---The last row of both values, summed over prompts.
local function sums(...)
  local x, y
  for _, subject in ipairs { ... } do
    local seen = assert(model:trace(assert(model.tokenizer:encode(prompt(subject))), { INPUT, OUTPUT }))
    local in_row, out_row = seen[INPUT]:row(#seen[INPUT] - 1), seen[OUTPUT]:row(#seen[OUTPUT] - 1)
    x, y = x and x:add_(in_row) or in_row:clone(), y and y:add_(out_row) or out_row:clone()
  end
  return x, y
end

local x, winter = sums("snow", "the first frost", "winter rain", "ice on the pond")
local other, summer = sums("summer heat", "fireflies", "a summer noon", "the beach")
x:add_(other)
local square = 0
for i = 0, #x - 1 do square = square + x[i] ^ 2 end
local a = x:mul_(8 / square)                                          -- how much the input looks like those eight
local b = kigo.zeros(#winter, 1)                                      -- and where the result goes then
for i = 0, #winter - 1 do b:row(i):fill_((winter[i] - summer[i]) / 4) end

local path = os.tmpname()
assert(kigo.core.write_gguf(path, {
  { "general.type", "adapter" }, { "adapter.type", "lora" }, { "adapter.lora.alpha", 1.0 },
  { "general.architecture", model.gguf:get "general.architecture" },
}, { { MATRIX .. ".lora_a", a }, { MATRIX .. ".lora_b", b } }))
local adapter <close> = assert(model:adapter(path))
os.remove(path)

local scales = { -1, 0, 1 }
local poems = assert(model:batch(nil, scales, function(seq, scale)
  assert(seq:adapt(adapter, scale))
  assert(seq:feed(prompt "the evening"))
  return assert(seq:generate { max = 64, temp = 0 }).text
end))
for i, scale in ipairs(scales) do print(("scale %g:\n%s\n"):format(scale, poems[i])) end
