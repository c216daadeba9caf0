-- 02-sampler.lua - sampling is yours: a chain of stages in any order, or any Lua function (logits, seq) -> id.
-- Run: build/kigo examples/02-sampler.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local question = { { role = "user", content = "Write a haiku about a sleeping cat." } }

-- Stages run in the order given, each on what the one before left.
local chain <close> = kigo.chain { kigo.penalties { last = 64, ["repeat"] = 1.1 }, kigo.top_k(40), kigo.temp(0.7) }
print("A chain:\n" .. assert(model:chat(question, { seed = 2, sample = chain })).text .. "\n")

-- A function sees the logits as a tensor. A trailing _ works in place; small things come back as Lua values. This one
-- takes the best token where the model is sure of itself, and is the bolder the less sure it is.
local function curious(logits, seq)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.5 + 0.3 * entropy)):topk(64)
  return ids[seq.rng:choose_logits(scores)]
end
print("A function:\n" .. assert(model:chat(question, { seed = 2, sample = curious })).text)
