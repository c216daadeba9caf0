-- 05-look-inside.lua - every value of the forward pass has a name, and a script can read it: here, how the stream that
-- the blocks add to grows from block to block. Run: build/kigo examples/05-look-inside.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local ids = model.tokenizer:encode "Write a haiku about wild geese in flight."

local values, names = assert(model:trace(ids, "blk.*.out"))
for _, name in ipairs(names) do
  local last = values[name]:row(#ids - 1)
  print(("%-12s largest %8.3f   smallest %8.3f"):format(name, last:max(), last:min()))
end
