-- 03-fork.lua - best of four: forks share the cache pages of the prompt, the likeliest answer wins.
-- Run: build/kigo examples/03-fork.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local prompt <close> = assert(model:sequence {})
local question = { { role = "user", content = "Write a haiku about the first frost." } }
assert(prompt:feed(model:template():render(question, { generate = true })))
assert(prompt:step()) -- the prompt is computed once, here

local best
for seed = 1, 4 do
  local branch <close> = assert(prompt:fork { seed = seed })
  local answer = assert(branch:generate { max = 64, temp = 0.9, logprobs = true })
  print(("seed %d, mean log-probability %.2f"):format(seed, answer.mean_logprob))
  if not best or answer.mean_logprob > best.mean_logprob then best = answer end
end
print("\n" .. best.text)
