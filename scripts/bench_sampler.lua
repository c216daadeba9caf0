-- bench_sampler.lua - what a sampler written in Lua costs beside a chain of C stages, at a large vocabulary.
--   kigo scripts/bench_sampler.lua [VOCABULARY]
local core = require "kigo.core"
local sample = require "kigo.sample"

local vocabulary = math.tointeger(arg[1] or 151936)
local ROUNDS, CALLS = 9, 100

-- Normal numbers with a few likely tokens on top, as a model that knows what comes next makes them.
local function make_logits()
  local logits = core.zeros(vocabulary)
  for id = 0, vocabulary - 1 do
    local u, w = core.uniform(1, id, 0), core.uniform(1, id, 1)
    logits[id] = 2.5 * math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * w)
  end
  for i = 1, 40 do logits[i * 1000 % vocabulary] = 20 - i / 4 end
  return logits
end

-- What a sampler may ask of a sequence: its state and its random numbers, here without a model behind them.
local function make_sequence()
  local n_draws = 0
  local rng = {}
  function rng:choose(weights) -- luacheck: ignore 212
    local sum = 0
    for _, w in ipairs(weights) do sum = sum + w end
    local left = core.uniform(29, 0, n_draws) * sum
    n_draws = n_draws + 1
    for i, w in ipairs(weights) do
      left = left - w
      if left < 0 then return i end
    end
    return #weights
  end
  return { state = {}, rng = rng }
end

-- Temperature by entropy, the 64 best, one draw.
local function cautious(logits, seq)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.6 + 0.4 * entropy)):topk(64)
  local weights, best = {}, scores[1]
  for i, score in ipairs(scores) do weights[i] = math.exp(score - best) end
  return ids[seq.rng:choose(weights)]
end

local function median(numbers)
  table.sort(numbers)
  return numbers[(#numbers + 1) // 2]
end

local original, logits, seq = make_logits(), core.zeros(vocabulary), make_sequence()

-- Milliseconds per call on fresh logits; making them fresh is not counted.
local function measure(pick)
  local rounds = {}
  for round = 1, ROUNDS do
    local busy = 0
    for _ = 1, CALLS do
      logits:fill_(0):add_(original)
      local start = core.now()
      pick(logits, seq)
      busy = busy + core.now() - start
    end
    rounds[round] = busy / CALLS * 1000
  end
  return median(rounds)
end

-- The chain's draw needs a real sequence; without one it ranks its candidates and stops short of one random number.
local chain <close> = sample.chain { sample.top_k(40), sample.top_p(0.95), sample.min_p(0.05), sample.temp(0.7) }
local c_ms = measure(function(l) return chain:candidates(l) end)
local lua_ms = measure(cautious)
print(("vocabulary %d, medians of %d rounds of %d calls"):format(vocabulary, ROUNDS, CALLS))
print(("C chain (top_k 40, top_p 0.95, min_p 0.05, temp 0.7)   %.4f ms per token"):format(c_ms))
print(("Lua sampler (temperature by entropy, top-k 64, draw)   %.4f ms per token"):format(lua_ms))
print(("difference                                             %.4f ms per token"):format(lua_ms - c_ms))
