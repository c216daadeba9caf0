-- 11-self-consistency.lua - ask many times, believe the majority: what a question has one right answer for is voted on,
-- here the first line of a haiku.
-- Run: build/kigo examples/11-self-consistency.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local question = { { role = "user", content = "Write a haiku about snow." } }
local ids = assert(model.tokenizer:encode(model:template():render(question, { generate = true })))

-- The same question 24 times: the inputs differ in nothing, the sequences in their seeds (1, 2, 3 ...).
local inputs = {}
for i = 1, 24 do inputs[i] = ids end
local votes = assert(model:batch({ seed = 1 }, inputs, function(seq, input)
  assert(seq:feed(input))
  return assert(seq:generate { max = 64, temp = 0.3, stop = "\n" }).text
end))

local counts, lines = {}, {}
for i = 1, votes.n do
  local line = votes[i]
  if not counts[line] then lines[#lines + 1] = line end
  counts[line] = (counts[line] or 0) + 1
end
table.sort(lines, function(a, b) return counts[a] > counts[b] or counts[a] == counts[b] and a < b end)
for i = 1, math.min(#lines, 5) do print(("%3d of %d begin: %s"):format(counts[lines[i]], votes.n, lines[i])) end
print("the majority says: " .. lines[1])
