-- bench_sampler.lua - what a sampler written in Lua costs beside a chain of C stages, and what each stage costs, at a
-- large vocabulary; with a model, what samplers cost beside its forward passes, on any device.
--   kigo scripts/bench_sampler.lua [VOCABULARY]
--   kigo scripts/bench_sampler.lua --model FILE [--device cuda]
local kigo = require "kigo"
local core = require "kigo.core"
local sample = require "kigo.sample"

local options = {}
for i, word in ipairs(arg) do
  local name = word:match "^%-%-(%a+)$"
  if name then options[name] = arg[i + 1] end
end
local vocabulary = math.tointeger(options.model and 0 or arg[1] or 151936)
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

-- The same without a loop: the same ids.
local function brief(logits, seq)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.6 + 0.4 * entropy)):topk(64)
  return ids[seq.rng:choose_logits(scores)]
end

local function median(numbers)
  table.sort(numbers)
  return numbers[(#numbers + 1) // 2]
end

-- The stages of everyday use.
local function everyday()
  return sample.chain { sample.top_k(40), sample.top_p(0.95), sample.min_p(0.05), sample.temp(0.7) }
end

-- ---- the samplers alone ----

-- A function that gives milliseconds per call on fresh logits; making them fresh is not counted.
local function measuring(original, seq)
  local logits = core.zeros(vocabulary)
  return function(pick)
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
end

local function compare_alone()
  local measure = measuring(make_logits(), make_sequence())

  -- The chain's draw needs a real sequence; without one it ranks its candidates and stops short of one random number.
  local chain <close> = everyday()
  local c_ms = measure(function(l) return chain:candidates(l) end)
  local lua_ms = measure(cautious)
  print(("vocabulary %d, medians of %d rounds of %d calls"):format(vocabulary, ROUNDS, CALLS))
  print(("C chain (top_k 40, top_p 0.95, min_p 0.05, temp 0.7)   %.4f ms per token"):format(c_ms))
  print(("Lua sampler (temperature by entropy, top-k 64, draw)   %.4f ms per token"):format(lua_ms))
  print(("difference                                             %.4f ms per token"):format(lua_ms - c_ms))
end

-- ---- every stage alone ----

-- A model that is there for its timelines alone.
local function make_model()
  local path = os.tmpname()
  assert(core.make_model(path, { like = "tiny" }))
  local model = assert(kigo.load(path, { device = "cpu", ctx = 2048, threads = 1 }))
  os.remove(path)
  return model
end

-- Tokens of which all sequences come again.
local function feed_history(seq, n)
  local ids = {}
  for i = 1, n do ids[i] = math.floor(core.uniform(3, i % 700, i // 1400) * 64) end
  assert(seq:feed(ids))
end

local function compare_stages()
  local model <close> = make_model()
  local seq <close> = assert(model:sequence { seed = 1 })
  feed_history(seq, model.context)
  local measure = measuring(make_logits(), seq)
  local biases = {}
  for id = 1, 50 do biases[id] = 1 end
  local phrases = {}
  for i = 1, 50 do phrases[i] = { i, i + 1, value = 1 } end
  print(("every stage alone, then the draw; history: %d tokens; on a tensor: what is left goes back to it")
    :format(seq:pos()))
  for _, row in ipairs {
    { "no stage: the draw", {} }, { "greedy", { sample.greedy() } }, { "temp 0.7", { sample.temp(0.7) } },
    { "top_k 40", { sample.top_k(40) } }, { "top_p 0.95", { sample.top_p(0.95) } },
    { "min_p 0.05", { sample.min_p(0.05) } }, { "typical 0.95", { sample.typical(0.95) } },
    { "top_n_sigma 1", { sample.top_n_sigma(1) } }, { "xtc 1, 0.1", { sample.xtc(1, 0.1) } },
    { "min_p 0.05, xtc 1, 0.1", { sample.min_p(0.05), sample.xtc(1, 0.1) } },
    { "dynatemp 0.5 to 1.5", { sample.dynatemp(0.5, 1.5) } }, { "mirostat 5", { sample.mirostat(5) } },
    { "penalties, the last 64", { sample.penalties { ["repeat"] = 1.1 } } },
    { "penalties, all", { sample.penalties { last = -1, ["repeat"] = 1.1 } } },
    { "dry, all", { sample.dry { multiplier = 0.8 } } }, { "bias, 50 ids", { sample.bias(biases) } },
    { "bias, 50 phrases", { { kind = "bias", values = {}, phrases = phrases } } },
  } do
    local chain <close> = assert(sample.chain(row[2]))
    local drawn = measure(function(logits) assert(chain(logits, seq)) end)
    local applied = measure(function(logits) assert(logits:apply_(chain, seq)) end)
    print(("  %-26s %.4f ms drawn   %.4f ms on a tensor"):format(row[1], drawn, applied))
  end
end

-- ---- the samplers beside a model ----

local TOKENS, FIRST_PROMPT = 64, 32

local function prompt(model, n, seed)
  local ids = {}
  for i = 1, n do ids[i] = math.floor(core.uniform(seed, i, 0) * model.vocab_size) end
  return ids
end

-- What stands before the tokens that are measured.
local function context_of(model) return math.min(512, model.context - TOKENS) end

-- Seconds per token of every sequence: the median of three runs, after one to warm up.
local function measure_decode(model, n, next_ids)
  local first <close> = assert(model:sequence {})
  first:feed(prompt(model, context_of(model), 1))
  assert(first:step())
  local runs = {}
  for run = 0, 3 do
    local seqs = {}
    for i = 1, n do seqs[i] = first:fork { seed = i } end
    local t0 = core.now()
    for _ = 1, TOKENS do
      local ids = next_ids(seqs)
      for i = 1, n do seqs[i]:push(ids[i]) end
    end
    if run > 0 then runs[run] = (core.now() - t0) / TOKENS end
    for i = 1, n do seqs[i]:close() end
  end
  return median(runs)
end

-- A sampler as a function, for every sequence in turn.
local function each(model, pick)
  return function(seqs)
    assert(model:step(seqs))
    local ids = {}
    for i, seq in ipairs(seqs) do ids[i] = pick(seq.logits, seq) end
    return ids
  end
end

local function measure_first_token(model, chain)
  local times = {}
  for i = 1, 15 do
    local seq <close> = assert(model:sequence { seed = i })
    local ids = prompt(model, FIRST_PROMPT, i)
    local t0 = core.now()
    seq:feed(ids)
    assert(seq:draw(chain))
    times[i] = core.now() - t0
  end
  return median(times)
end

local function compare_with_model()
  local model <close> = assert(kigo.load(options.model, { device = options.device }))
  local stats = model:stats()
  print(("%s on %s (%s), context %d"):format(options.model, stats.device, stats.variant,
    context_of(model)))
  local chain <close> = everyday()
  local one
  for _, n in ipairs { 1, 8, 64 } do
    local function show(what, next_ids)
      local s = measure_decode(model, n, next_ids)
      print(("batch %2d  %-48s %9.1f us a step %9.0f tokens/s"):format(n, what, s * 1e6, n / s))
      return s
    end
    local alone = show("no sampler: passes alone", each(model, function() return 5 end))
    local lua = show("Lua sampler (entropy, top-k 64, draw)", each(model, cautious))
    local short = show("the same with rng:choose_logits", each(model, brief))
    print(("          Lua samplers keep %.2f and %.2f of the speed"):format(alone / lua, alone / short))
    show("C chain called on the logits", each(model, chain))
    local single = show("C chain, a token per round trip", function(seqs) return assert(model:draw(seqs, chain, 1)) end)
    one = one or single
    for _, ahead in ipairs { 4, 16 } do
      show(("C chain, %d tokens per round trip"):format(ahead), function(seqs)
        return assert(model:draw(seqs, chain, ahead))
      end)
    end
  end
  local first = measure_first_token(model, chain)
  print(("first token after %d: %.1f us, %.2f decode steps"):format(FIRST_PROMPT, first * 1e6, first / one))
end

if options.model then
  compare_with_model()
else
  compare_alone()
  compare_stages()
end
