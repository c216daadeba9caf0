-- bench_speculate.lua - what speculation gains where an answer repeats its prompt, and what the prefix cache saves of a
-- prompt that comes twice.
--   kigo scripts/bench_speculate.lua MODEL [--device cpu] [--prompt 256] [--tokens 128] [--rounds 5]
-- The answer is a corrected copy of the prompt: a sampler of Lua's writes it out with one token in 16 changed, so that
-- what is accepted does not depend on what the model knows. Every figure is the median of the rounds, which take turns.
local kigo = require "kigo"

local options = { prompt = 256, tokens = 128, rounds = 5 }
for i, word in ipairs(arg) do
  local name = word:match "^%-%-(%a+)$"
  if name then options[name] = math.tointeger(arg[i + 1]) or arg[i + 1] end
end
local path = assert(arg[1], "usage: kigo scripts/bench_speculate.lua MODEL")
local EDIT = 16

local model <close> = assert(kigo.load(path, { device = options.device }))
local stats = model:stats()
print(("%s on %s (%s), %d threads"):format(path, stats.device, stats.variant, stats.n_threads))

local prompt = {}
for i = 1, options.prompt do prompt[i] = math.floor(kigo.core.uniform(1, i, 0) * model.vocab_size) end

local function copyist(_, seq)
  local i = seq:pos() - options.prompt
  local id = prompt[i % options.prompt + 1]
  return i % EDIT == EDIT - 1 and (id + 1) % model.vocab_size or id
end

local function median(numbers)
  table.sort(numbers)
  return numbers[(#numbers + 1) // 2]
end

local speculators = { { "none" }, { "prompt lookup", kigo.prompt_lookup {} }, { "n-grams", kigo.ngrams {} } }
local figures = {}
for _ = 1, options.rounds do
  for _, one in ipairs(speculators) do
    local name, speculator = one[1], one[2]
    local seq <close> = assert(model:sequence {})
    assert(seq:feed(prompt))
    assert(seq:step())
    local t0, before = kigo.now(), model:stats().n_steps
    local result = assert(seq:generate { sample = copyist, max = options.tokens, speculate = speculator })
    local all = figures[name] or { seconds = {} }
    figures[name] = all
    table.insert(all.seconds, kigo.now() - t0)
    all.passes, all.text = model:stats().n_steps - before, result.text
    all.drafted, all.accepted = seq.stats.n_drafted, seq.stats.n_accepted
    assert(all.text == figures.none.text, "speculation has changed the answer")
  end
end

local base = median(figures.none.seconds)
print(("\n%-14s %10s %8s %8s %9s %15s %8s"):format("speculation", "tokens/s", "passes", "drafted", "accepted",
  "tokens per pass", "speed"))
for _, one in ipairs(speculators) do
  local all = figures[one[1]]
  local seconds = median(all.seconds)
  print(("%-14s %10.1f %8d %8d %9d %15.2f %7.2fx"):format(one[1], options.tokens / seconds, all.passes, all.drafted,
    all.accepted, options.tokens / all.passes, base / seconds))
end

-- ---- the same prompt again ----

local function first_logits(cached)
  local seq <close> = assert(model:sequence { prefix_cache = cached })
  assert(seq:feed(prompt))
  local t0 = kigo.now()
  assert(seq:step())
  return kigo.now() - t0, seq.stats
end

local without, with, last = {}, {}, nil
for i = 1, options.rounds do
  without[i] = first_logits(false)
  with[i], last = first_logits(true)
end
print(("\na prompt of %d tokens again: %.2f ms; with the prefix cache %.2f ms (%d tokens evaluated, %d reused)"):format(
  options.prompt, median(without) * 1e3, median(with) * 1e3, last.n_tokens_evaluated, last.n_tokens_reused))
