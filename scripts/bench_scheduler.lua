-- bench_scheduler.lua - what the scheduler costs: bodies that sample in Lua, with a loop of their own or a chain at the
-- end, beside bodies that draw with a chain in C, and a step of bodies that do nothing else beside the plain
-- model:step of the same sequences.
--   kigo scripts/bench_scheduler.lua [--model FILE | --like SHAPE] [--batch 32] [--steps 200] [--device D]
-- SHAPE: of kigo make-model; "tiny" unless given. The kinds take their steps in turn; all figures are medians.
local kigo = require "kigo"
local figures = require "kigo.bench.figures"

local options = { batch = "32", steps = "200", like = "tiny" }
for i = 1, #arg, 2 do options[arg[i]:match "^%-%-(%a+)$"] = arg[i + 1] end
local BATCH, STEPS, PROMPT = math.tointeger(options.batch), math.tointeger(options.steps), 8

-- Temperature by entropy, the 64 best, one draw.
local function cautious(logits, seq)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.6 + 0.4 * entropy)):topk(64)
  return ids[seq.rng:choose_logits(scores)]
end

-- The stages of everyday use.
local chain <close> = kigo.chain { kigo.top_k(40), kigo.top_p(0.95), kigo.min_p(0.05), kigo.temp(0.7) }

local best <close> = kigo.chain { kigo.top_k(64) }

local kinds = {
  chain = function(seq) return assert(seq:draw(chain)) end,
  lua = function(seq) return cautious(seq.logits, seq) end,
  mixed = function(seq)
    local entropy = seq.logits:softmax():entropy()
    return assert(best(seq.logits:mul_(1 / (0.6 + 0.4 * entropy)), seq))
  end,
  nothing = function(seq)
    assert(seq:step())
    return 5
  end,
}

local function prompt_of(i)
  local ids = {}
  for k = 1, PROMPT do ids[k] = (i * 31 + k * 17) % 256 end
  return ids
end

-- Bodies that all decode, and a function that takes one step of them.
local function bodies(model, pick)
  local scheduler = kigo.scheduler(model, { max = BATCH })
  local n_decoding = 0
  for i = 1, BATCH do
    scheduler:spawn(function()
      local seq = assert(model:sequence { seed = i })
      assert(seq:feed(prompt_of(i)))
      assert(seq:step())
      n_decoding = n_decoding + 1
      while true do assert(seq:push(pick(seq))) end
    end)
  end
  repeat assert(scheduler:step()) until n_decoding == BATCH
  return function() assert(scheduler:step()) end, scheduler
end

-- The same for a loop without bodies.
local function plain(model)
  local seqs = {}
  for i = 1, BATCH do
    seqs[i] = assert(model:sequence { seed = i })
    assert(seqs[i]:feed(prompt_of(i)))
  end
  assert(model:step(seqs))
  return function()
    for i = 1, BATCH do assert(seqs[i]:push(5)) end
    assert(model:step(seqs))
  end
end

local function open()
  local path = options.model
  if not path then
    path = os.tmpname()
    assert(kigo.core.make_model(path, { like = options.like }))
  end
  local model = assert(kigo.load(path, { device = options.device, prefix_cache = false }))
  if not options.model then os.remove(path) end
  return model
end

local model <close> = open()
local stats = model:stats()
print(("%s on %s (%s, %d threads), vocabulary %d: %d sequences, %d steps"):format(options.model or options.like,
  stats.device, stats.variant, stats.n_threads, model.vocab_size, BATCH, STEPS))
local ORDER = { "chain", "lua", "mixed", "nothing", "plain" }
local steps, seconds, schedulers = {}, {}, {}
for _, name in ipairs(ORDER) do
  if name == "plain" then steps.plain = plain(model) else steps[name], schedulers[name] = bodies(model, kinds[name]) end
  seconds[name] = {}
end
for round = -1, STEPS do -- the first two warm up
  for _, name in ipairs(ORDER) do
    local t0 = kigo.now()
    steps[name]()
    if round > 0 then seconds[name][round] = kigo.now() - t0 end
  end
end
for _, scheduler in pairs(schedulers) do scheduler:close() end

-- Of each round, since its steps had the same weather.
local function median_of(f)
  local list = {}
  for i = 1, STEPS do list[i] = f(i) end
  return figures.median(list)
end
local function show(what, name)
  local s = median_of(function(i) return seconds[name][i] end)
  print(("%-58s %10.1f us a step %10.1f tokens/s"):format(what, s * 1e6, BATCH / s))
end
show("bodies that draw with a chain (top_k, top_p, min_p, temp)", "chain")
show("bodies that sample in Lua (entropy, top-k 64, draw)", "lua")
show("bodies that sample in Lua (entropy, then a chain: top-k 64)", "mixed")
show("bodies that only step", "nothing")
show("model:step of the same sequences, without a scheduler", "plain")
for _, name in ipairs { "chain", "nothing" } do
  print(("Lua sampling keeps %.3f of the speed of bodies with %s, with a chain at the end %.3f"):format(
    median_of(function(i) return seconds[name][i] / seconds.lua[i] end),
    name, median_of(function(i) return seconds[name][i] / seconds.mixed[i] end)))
end
print(("the scheduler takes %.2f us per sequence and step"):format(median_of(function(i)
  return (seconds.nothing[i] - seconds.plain[i]) / BATCH * 1e6
end)))
