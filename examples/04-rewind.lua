-- 04-rewind.lua - a transaction: try until the answer pleases, rewinding everything that a try has done.
-- Run: build/kigo examples/04-rewind.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local seq <close> = assert(model:sequence { seed = 10 })
local question = { { role = "user", content = "Write a haiku about the sea." } }
assert(seq:feed(model:template():render(question, { generate = true })))

local mark = seq:mark()
for try = 1, 8 do
  local text = assert(seq:generate { max = 64, temp = 0.6 + 0.1 * try }).text
  if not text:find "%f[%a]the%f[%A]" then
    print(('try %d does without "the":\n%s'):format(try, text))
    break
  end
  print(('try %d says "the"; back to position %d'):format(try, mark.pos))
  seq:rewind(mark)
end
