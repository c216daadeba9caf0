-- 09-stream.lua - the loop in the open: one token at a time, and text that is whole whenever it is shown. The stream
-- holds back halves of characters and of stop strings, however they are cut into tokens.
-- Run: build/kigo examples/09-stream.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local seq <close> = assert(model:sequence { seed = 3 })
assert(seq:feed(model:template():render({ { role = "user", content = "Write a haiku about rain." } },
  { generate = true })))

local pick <close> = kigo.chain { kigo.min_p(0.05), kigo.temp(0.7), kigo.dist() }
local out <close> = assert(kigo.stream(model.tokenizer, { stop = " the" }))
for _ = 1, 64 do
  local id = assert(pick(seq.logits, seq))
  io.write(out:add(id)) -- often "", now and then several characters at once
  if out.stopped then break end
  assert(seq:push(id))
end
io.write(out:finish(), "\n")
print(("(%d bytes, ended by: %s)"):format(#out.text, out.reason))
