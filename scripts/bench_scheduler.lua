-- bench_scheduler.lua - what the scheduler costs: bodies that sample in Lua beside bodies that draw with a chain in C,
-- and a step of bodies that do nothing else beside the plain model:step of the same sequences.
--   kigo scripts/bench_scheduler.lua [--model FILE | --like SHAPE] [--batch 32] [--tokens 24] [--repeats 3]
--     [--device D]   SHAPE: of kigo make-model; "tiny" unless given. Medians of all steps; the kinds take turns.
local kigo = require "kigo"
local figures = require "kigo.bench.figures"

local options = { batch = "32", tokens = "24", repeats = "3", like = "tiny" }
for i = 1, #arg, 2 do options[arg[i]:match "^%-%-(%a+)$"] = arg[i + 1] end
local BATCH, TOKENS = math.tointeger(options.batch), math.tointeger(options.tokens)
local REPEATS, PROMPT = math.tointeger(options.repeats), 8

-- Temperature by entropy, the 64 best, one draw.
local function cautious(logits, seq)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.6 + 0.4 * entropy)):topk(64)
  local weights, best = {}, scores[1]
  for i, score in ipairs(scores) do weights[i] = math.exp(score - best) end
  return ids[seq.rng:choose(weights)]
end

-- The stages of everyday use.
local chain <close> = kigo.chain { kigo.top_k(40), kigo.top_p(0.95), kigo.min_p(0.05), kigo.temp(0.7) }

local kinds = {
  chain = function(seq) return assert(seq:draw(chain)) end,
  lua = function(seq) return cautious(seq.logits, seq) end,
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

-- Append the seconds of every step in which all bodies decode.
local function run_bodies(model, pick, seconds)
  local scheduler <close> = kigo.scheduler(model, { max = BATCH })
  local n_decoding = 0
  for i = 1, BATCH do
    scheduler:spawn(function()
      local seq = assert(model:sequence { seed = i })
      assert(seq:feed(prompt_of(i)))
      assert(seq:step())
      n_decoding = n_decoding + 1
      for _ = 1, TOKENS do assert(seq:push(pick(seq))) end
    end)
  end
  local more = true
  while more do
    local counts, t0 = n_decoding == BATCH and scheduler.n_ended == 0, kigo.now()
    more = assert(scheduler:step() ~= nil) and scheduler.n_ended < BATCH
    if counts and scheduler.n_ended == 0 then seconds[#seconds + 1] = kigo.now() - t0 end
  end
end

-- The same for a loop without bodies.
local function run_plain(model, seconds)
  local seqs = {}
  for i = 1, BATCH do
    seqs[i] = assert(model:sequence { seed = i })
    assert(seqs[i]:feed(prompt_of(i)))
  end
  assert(model:step(seqs))
  for _ = 1, TOKENS do
    local t0 = kigo.now()
    for i = 1, BATCH do assert(seqs[i]:push(5)) end
    assert(model:step(seqs))
    seconds[#seconds + 1] = kigo.now() - t0
  end
  for i = 1, BATCH do seqs[i]:close() end
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
print(("%s on %s (%s, %d threads), vocabulary %d: %d sequences, %d tokens, %d repeats"):format(
  options.model or options.like, stats.device, stats.variant, stats.n_threads, model.vocab_size, BATCH, TOKENS,
  REPEATS))
local seconds = { chain = {}, lua = {}, nothing = {}, plain = {} }
run_plain(model, {}) -- warm up
for _ = 1, REPEATS do
  for _, name in ipairs { "chain", "lua", "nothing" } do run_bodies(model, kinds[name], seconds[name]) end
  run_plain(model, seconds.plain)
end
local medians = {}
for name, list in pairs(seconds) do medians[name] = figures.median(list) end
local function show(what, s) print(("%-58s %10.1f us a step %10.1f tokens/s"):format(what, s * 1e6, BATCH / s)) end
show("bodies that draw with a chain (top_k, top_p, min_p, temp)", medians.chain)
show("bodies that sample in Lua (entropy, top-k 64, draw)", medians.lua)
show("bodies that only step", medians.nothing)
show("model:step of the same sequences, without a scheduler", medians.plain)
print(("Lua sampling keeps %.3f of the chain's speed"):format(medians.chain / medians.lua))
print(("the scheduler takes %.2f us per sequence and step"):format((medians.nothing - medians.plain) / BATCH * 1e6))
