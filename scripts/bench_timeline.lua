-- bench_timeline.lua - what going back costs, and what a file does: marks, forks, saved sequences, beside computing
-- them again.
--   kigo scripts/bench_timeline.lua MODEL [--device cpu] [--tokens 500] [--rounds 5]
-- Every figure is the median of the rounds. The first save of a model also takes the SHA-256 of its file.
local kigo = require "kigo"

local options = { tokens = 500, rounds = 5 }
for i, word in ipairs(arg) do
  local name = word:match "^%-%-(%a+)$"
  if name then options[name] = math.tointeger(arg[i + 1]) or arg[i + 1] end
end
local path = assert(arg[1], "usage: kigo scripts/bench_timeline.lua MODEL")
local MANY = 1000 -- marks and rewinds are too short for one of them to be timed

local model <close> = assert(kigo.load(path, { device = options.device, prefix_cache = false }))
local stats = model:stats()
print(("%s on %s (%s), %d threads, %d tokens"):format(path, stats.device, stats.variant, stats.n_threads,
  options.tokens))

local prompt = {}
for i = 1, options.tokens do prompt[i] = math.floor(kigo.core.uniform(1, i, 0) * model.vocab_size) end

local figures = {}

---Note the seconds that f takes, and give what it returns.
local function timed(name, f)
  local t0 = kigo.now()
  local result = f()
  figures[name] = figures[name] or {}
  table.insert(figures[name], kigo.now() - t0)
  return result
end

local function median(numbers)
  table.sort(numbers)
  return numbers[(#numbers + 1) // 2]
end

local function computed()
  local seq = assert(model:sequence {})
  assert(seq:feed(prompt))
  assert(seq:step())
  return seq
end

local file = os.tmpname()
local first <close> = computed()
timed("first save", function() return assert(first:save(file)) end)
for _ = 1, options.rounds do
  local seq <close> = timed("compute", computed)
  timed("marks", function()
    for _ = 1, MANY do seq:mark() end
  end)
  local mark = seq:mark()
  timed("rewinds", function()
    for _ = 1, MANY do seq:rewind(mark) end
  end)
  timed("fork", function() return assert(seq:fork()) end):close()
  timed("save", function() return assert(seq:save(file)) end)
  timed("restore", function() return assert(model:restore(file)) end):close()
end

local size = assert(io.open(file, "rb"))
local n_bytes = size:seek "end"
size:close()
os.remove(file)
print(("file %.1f MB; mark %.2f us, rewind %.2f us, fork %.0f us; save %.1f ms (the first %.0f), restore %.1f ms; "
  .. "computing it again %.0f ms"):format(n_bytes / 1e6, median(figures.marks) / MANY * 1e6,
  median(figures.rewinds) / MANY * 1e6, median(figures.fork) * 1e6, median(figures.save) * 1e3,
  median(figures["first save"]) * 1e3, median(figures.restore) * 1e3, median(figures.compute) * 1e3))
