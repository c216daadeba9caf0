-- 20-untrusted-sampler.lua - a sampler from somebody you do not know, in a process of its own: it sees the logits, a
-- table of its own and random numbers, and nothing else.
-- Run: build/kigo examples/20-untrusted-sampler.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

-- What they sent. It is a sampler like any other: s.state, s.rng and s:pos() are there.
local theirs = [[
  return function(logits, s)
    s.state.sure = (s.state.sure or 0) + (logits:softmax():max() > 0.9 and 1 or 0)
    local ids, scores = logits:mul_(1 / 0.7):topk(40)
    return ids[s.rng:choose_logits(scores)]
  end]]

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local limits = { isolate = true, memory = "8M", instructions = 1000000, timeout = 0.2 } -- the last two for each token
local box <close> = assert(kigo.sandbox(theirs, limits))

local seq <close> = assert(model:sequence { seed = 2 })
local question = { { role = "user", content = "Write a haiku about a river." } }
assert(seq:feed(model:template():render(question, { generate = true })))
print("Theirs:\n" .. assert(seq:generate { sample = box:sampler(), max = 64 }).text)
print(("It was sure of itself %d times, and holds %d KiB.\n"):format(seq.state.sure, box:stats().memory // 1024))

-- Somebody else is not so kind. The process ends; the sequence is where it was, and goes on without it.
local explosion = "return function() return ('a'):rep(60):find(('.-'):rep(18) .. 'b') end"
local bomb <close> = assert(kigo.sandbox(explosion, limits))
local answer, message = seq:generate { sample = bomb:sampler(), max = 64 }
print("A bomb:\n" .. tostring(answer) .. ": " .. message)
