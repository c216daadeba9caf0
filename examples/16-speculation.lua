-- 16-speculation.lua - guesses that save passes. What is said is the same with and without: every token is drawn from
-- its own logits, a guess only has them computed earlier.
-- Run: build/kigo examples/16-speculation.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local question = { { role = "user", content = 'Write a haiku about the first drops that includes the word "nine".' } }
local endless = {} -- no token may end the answer: a small model that goes on and on repeats itself
for _, name in ipairs { "eos", "eot", "eom" } do
  local id = model.tokenizer[name]
  if id then endless[id] = -math.huge end
end

local function ramble(speculator)
  local seq <close> = assert(model:sequence { seed = 3 })
  assert(seq:feed(model:template():render(question, { generate = true })))
  return assert(seq:generate { temp = 0, bias = endless, max = 200, speculate = speculator })
end

local plain = ramble()
print(plain.text:match "^[^\n]*\n[^\n]*\n[^\n]*" .. "\n...")

-- what followed the same tokens before
local looked_up = ramble(kigo.prompt_lookup { shortest = 1 })
assert(looked_up.text == plain.text)
print(("prompt lookup: the same %d tokens in %d passes"):format(#plain.ids, looked_up.speculated.n_passes))

-- any function (seq, n) -> ids will do: here, what was said last time
local first = #model.tokenizer:encode(model:template():render(question, { generate = true }))
local again = ramble(function(seq, n)
  local from = seq:pos() - first + 1
  return table.move(plain.ids, from, math.min(from + n - 1, #plain.ids), 1, {})
end)
assert(again.text == plain.text)
print(("what was said before: %d passes"):format(again.speculated.n_passes))
