-- 10-best-of-n.lua - a batch: eight answers to one prompt at the same time, the likeliest wins. Each body is a plain
-- loop; all that wait for logits share a forward pass, and all branches share the cache pages of the prompt.
-- Run: build/kigo examples/10-best-of-n.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local prompt <close> = assert(model:sequence {})
local question = { { role = "user", content = "Write a haiku about the first frost." } }
assert(prompt:feed(model:template():render(question, { generate = true })))
assert(prompt:step()) -- the prompt is computed once, here

local answers, errors = model:batch({ errors = "collect" }, { 1, 2, 3, 4, 5, 6, 7, 8 }, function(_, seed)
  local branch = assert(prompt:fork { seed = seed }) -- closed with its body
  return assert(branch:generate { max = 64, temp = 0.9, logprobs = true })
end)

local best
for seed = 1, answers.n do
  local answer = answers[seed]
  print(answer and ("seed %d, mean log-probability %.2f"):format(seed, answer.mean_logprob) or errors[seed])
  if answer and (not best or answer.mean_logprob > best.mean_logprob) then best = answer end
end
local stats = model:stats()
print(("%d tokens in %d forward passes; the best:\n\n%s"):format(stats.n_tokens_evaluated, stats.n_steps, best.text))
