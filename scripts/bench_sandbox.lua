-- bench_sandbox.lua - what a sandbox costs: starting it, a call, and a sampler's token at a large vocabulary, in this
-- process and
-- in a worker, beside the same sampler without one.
--   kigo scripts/bench_sandbox.lua [VOCABULARY]
local kigo = require "kigo"

local vocabulary = math.tointeger(arg[1] or 151936)
local SOURCE = [[
  function nothing() end
  return function(logits, s)
    local H = logits:softmax():entropy()
    local ids, scores = logits:mul_(1 / (0.6 + 0.4 * H)):topk(64)
    local weights = {}
    for i, score in ipairs(scores) do weights[i] = math.exp(score - scores[1]) end
    s.state.n = (s.state.n or 0) + 1
    return ids[1]
  end]]
local ROUNDS = 300

-- Seconds: the median of many, and the slowest one.
local function measure(f)
  local times = {}
  for i = 1, ROUNDS do
    local start = kigo.now()
    f(i)
    times[i] = kigo.now() - start
  end
  table.sort(times)
  return times[ROUNDS // 2], times[ROUNDS]
end

local logits = kigo.zeros(vocabulary)
for i = 1, 40 do logits[i * 1000 % vocabulary] = 20 - i / 4 end

local function show(what, unit, factor, middle, worst)
  print(("%-44s %8.3f %s, at worst %8.3f"):format(what, middle * factor, unit, worst * factor))
end

print(("vocabulary %d, medians of %d"):format(vocabulary, ROUNDS))
local plain, state = load(SOURCE)(), { state = {} }
show("sampler without a sandbox", "ms a token", 1e3, measure(function() plain(logits, state) end))
for _, strength in ipairs { { "in this process", false }, { "in a worker", true } } do
  local name, options = strength[1], { isolate = strength[2] }
  show("start and end " .. name, "ms", 1e3, measure(function() assert(kigo.sandbox(SOURCE, options)):close() end))
  local box <close> = assert(kigo.sandbox(SOURCE, options))
  show("call " .. name, "us", 1e6, measure(function() assert(box:call "nothing") end))
  local seen = {}
  show("sampler " .. name, "ms a token", 1e3, measure(function()
    local id
    id, seen = box:sample(nil, logits, nil, seen)
    assert(id)
  end))
end
