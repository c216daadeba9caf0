-- bench.lua - how fast a model runs here, beside what the memory of this machine allows.
local core = require "kigo.core"
local check = require "kigo.check"
local experts = require "kigo.bench.experts"
local figures = require "kigo.bench.figures"
local grid = require "kigo.bench.grid"
local kigo = require "kigo"
local traffic = require "kigo.traffic"

local bench = {}
local median, some_ids, timed = figures.median, figures.some_ids, figures.timed

---@class kigo.bench.Options
---@field prompt_tokens? integer  tokens of the prefill, default 512
---@field tokens? integer         tokens of the decode, default 128
---@field repeats? integer        every figure is the median of so many runs, default 5
---@field batches? integer[]      so many sequences together, and
---@field contexts? integer[]     after so many tokens each: a table of all of them (lua/kigo/bench/grid.lua), which a
---GPU gets without being asked (1, 8, 64 and 512, 4096)
---@field stages? boolean         on a GPU: where the time goes
---@field load kigo.load.Options? how to load the model
local known = { prompt_tokens = "integer", tokens = "integer", repeats = "integer", batches = "table",
  contexts = "table", stages = "boolean", load = "table" }

local BANDWIDTH_MB = 512 -- read per measurement: far more than any cache holds

---Peak resident memory of this process in bytes, or nil where the system does not tell.
---@return integer?
function bench.peak_memory()
  local file = io.open "/proc/self/status"
  if not file then return nil end
  local kilobytes = file:read("a"):match "VmHWM:%s*(%d+) kB"
  file:close()
  return kilobytes and math.tointeger(kilobytes) * 1024
end

local function measure_prefill(model, ids, repeats)
  local seconds, hash, kv_bytes = {}, nil, nil
  for i = 1, repeats do
    local seq <close> = select(2, timed(model.sequence, model, { seed = 1 }))
    timed(seq.feed, seq, ids)
    seconds[i] = timed(seq.step, seq)
    hash, kv_bytes = figures.hash(seq.logits:bytes()), traffic.cache_bytes(model:stats())
  end
  return median(seconds), hash, kv_bytes
end

local function decode(seq, n)
  for _ = 1, n do
    local pushed, message, code = seq:push((seq.logits:argmax()))
    if pushed then pushed, message, code = seq:step() end
    if not pushed then return nil, message, code end
  end
  return true
end

---Seconds for n tokens after the first one.
local function measure_decode(model, n)
  local seq <close> = select(2, timed(model.sequence, model, { seed = 1 }))
  timed(seq.feed, seq, some_ids(1, model.vocab_size))
  timed(seq.step, seq)
  return (timed(decode, seq, n))
end

---Bytes of weights that a token of the decode needs: what all need, and the experts that were read for it.
local function count_weight_bytes(model, about)
  local shared, all = traffic.tensor_bytes(model.gguf)
  local meter = experts.meter(model)
  measure_decode(model, about.decode_tokens) -- a warm-up too
  about.weight_bytes_per_token = shared
  if all == 0 then return end
  about.expert_bytes, about.expert_bytes_per_token = all, meter() / (about.decode_tokens + 1)
  about.weight_bytes_per_token = math.floor(shared + about.expert_bytes_per_token)
end

---Decode and read memory in turn, so that both see the same weather: machines share their memory with others.
local function measure_decode_and_bandwidth(model, about)
  local seconds, rates, shares = {}, {}, {}
  local bytes = about.weight_bytes_per_token + about.kv_bytes_per_token
  for i = 1, about.repeats do
    seconds[i] = measure_decode(model, about.decode_tokens)
    rates[i] = core.read_bandwidth(math.max(1, about.threads), BANDWIDTH_MB)
    shares[i] = bytes * about.decode_tokens / seconds[i] / rates[i]
  end
  about.decode_tokens_per_s = about.decode_tokens / median(seconds)
  about.decode_bytes_per_s = about.decode_tokens_per_s * bytes
  about.bandwidth_bytes_per_s, about.bandwidth_share = median(rates), median(shares)
end

---Close the model and load it again and again; `seconds` holds what the first load took.
local function measure_load(model, path, options, seconds, repeats)
  for i = 2, repeats do
    model:close()
    collectgarbage() -- the closed model's file goes with its handle
    seconds[i], model = timed(kigo.load, path, options)
  end
  model:close()
  return median(seconds)
end

-- ---- one sequence ----

---The figures of one sequence, filled in as they are measured.
local function measure_one(model, about, path, options, load, load_s)
  local n_prompt, n = options.prompt_tokens or 512, options.tokens or 128
  if math.max(n_prompt, n + 1) > model.context then
    error({ message = ("%s: a prefill of %d tokens and a decode of %d do not fit into its context of %d"):format(path,
      n_prompt, n, model.context), code = core.err.FULL }, 0)
  end
  about.prompt_tokens, about.decode_tokens = n_prompt, n
  local prefill_s
  prefill_s, about.logits_hash, about.kv_bytes = measure_prefill(model, some_ids(n_prompt, model.vocab_size),
    about.repeats)
  about.prefill_tokens_per_s = n_prompt / prefill_s
  about.kv_bytes_per_token = math.floor(traffic.kv_bytes(model:stats(), n / 2))
  count_weight_bytes(model, about)
  about.peak_bytes = bench.peak_memory() -- of one model's load and use, before the bandwidth's own buffer
  measure_decode_and_bandwidth(model, about)
  about.load_s = measure_load(model, path, load, { load_s }, about.repeats)
end

-- ---- several sequences ----

local BATCHES, CONTEXTS = { 1, 8, 64 }, { 512, 4096 }
local GRID_TOKENS, DEVICE_CHUNK = 64, 2048

local function grid_options(options)
  return { batches = options.batches or BATCHES, tokens = options.tokens or GRID_TOKENS, repeats = options.repeats or 5,
    contexts = options.contexts or (options.prompt_tokens and { options.prompt_tokens }) or CONTEXTS,
    chunk = DEVICE_CHUNK }
end

---The table of all batches and contexts; on a GPU beside what the device reaches.
local function measure_grid(model, about, options)
  local wanted = grid_options(options)
  about.decode_tokens = wanted.tokens
  local rates = model:device_rates()
  if rates then
    about.copy_bytes_per_s, about.tensor_flops, about.tensor_note = rates.copy_bytes_per_s, rates.tensor_flops,
      rates.tensor_note
  end
  about.expert_bytes = experts.all(model)
  about.rows, about.first_token_s = grid.measure(model, rates, wanted)
  if options.stages then about.stages = grid.stages(model, about.rows, wanted) end
end

-- ---- all of it ----

---The context that the measurements need, or what the model has.
local function context(path, options)
  local gguf <close> = select(2, timed(kigo.open_gguf, path))
  local wanted = math.max(options.prompt_tokens or 512, (options.tokens or 128) + 1)
  local of_grid = grid_options(options)
  wanted = math.max(wanted, grid.FIRST_PROMPT + of_grid.tokens + 2)
  for _, one in ipairs(of_grid.contexts) do wanted = math.max(wanted, one + of_grid.tokens + 2) end
  local limit = gguf:get((gguf:get "general.architecture" or "") .. ".context_length")
  return math.type(limit) == "integer" and limit > 0 and math.min(wanted, limit) or wanted
end

local function run(path, options)
  local load = check.pick(options.load or {}, { device = "", variant = "", threads = "", kv = "", progress = "" })
  load.ctx = (options.load or {}).ctx or context(path, options)
  load.prefix_cache = false -- a prompt is measured more than once
  local load_s, model = timed(kigo.load, path, load)
  if model:stats().device == "cuda" then -- the first load has woken the driver; long prompts in larger pieces
    model:close()
    load.chunk = DEVICE_CHUNK
    load_s, model = timed(kigo.load, path, load)
  end
  local opened <close> = model
  local stats = opened:stats()
  local about = { model = path, note = stats.note, file_bytes = opened.gguf:bytes(),
    parameters = opened.gguf:parameters(), device = stats.device, variant = stats.variant, threads = stats.n_threads,
    packed_bytes = stats.weight_bytes, load_s = load_s, repeats = options.repeats or 5 }
  if stats.device == "cuda" or options.batches or options.contexts then
    measure_grid(opened, about, options)
  else
    measure_one(opened, about, path, options, load, load_s)
  end
  return about
end

---Measure a model file.
---@param path string
---@param options? kigo.bench.Options
---@return table? figures  numbers and texts by name; of a table also `rows` (kigo.bench.Row) and `stages`
---@return string? message
---@return integer? code
function bench.measure(path, options)
  options = check.options(options, known)
  local done, about = pcall(run, path, options)
  if not done then
    if type(about) == "table" and about.message then return nil, about.message, about.code end
    error(about, 0)
  end
  return about
end

-- ---- for people ----

local function size(bytes)
  if bytes >= 1e9 then return ("%.2f GB"):format(bytes / 1e9) end
  return ("%.1f MB"):format(bytes / 1e6)
end

local function describe_one(about, add)
  add("prefill", "%.1f tokens/s (%d tokens)", about.prefill_tokens_per_s, about.prompt_tokens)
  add("decode", "%.1f tokens/s (%d tokens)", about.decode_tokens_per_s, about.decode_tokens)
  add("reads", "%s a token, %s/s: %.0f %% of the %s/s that memory gives", size(about.weight_bytes_per_token
    + about.kv_bytes_per_token), size(about.decode_bytes_per_s), 100 * about.bandwidth_share,
    size(about.bandwidth_bytes_per_s))
  if about.expert_bytes then
    add("experts", "%s", experts.describe(about.expert_bytes_per_token, about.expert_bytes))
  end
  if about.peak_bytes then
    add("memory", "%s at the peak, %.0f %% of file and cache (%s + %s)", size(about.peak_bytes),
      100 * about.peak_bytes / (about.file_bytes + about.kv_bytes), size(about.file_bytes), size(about.kv_bytes))
  end
  add("logits", "%s", about.logits_hash)
end

local function describe_device(about, add)
  if not about.copy_bytes_per_s then return end
  add("weights", "%s packed", size(about.packed_bytes))
  add("copies", "%s/s from memory to memory, read and written", size(about.copy_bytes_per_s))
  add("products", "%.0f TFLOP/s of tensor cores (%s)", about.tensor_flops / 1e12, about.tensor_note)
end

---The figures as a table for people.
---@param about table
---@return string
function bench.describe(about)
  local out = {}
  local function add(name, ...) out[#out + 1] = ("%-12s %s"):format(name, string.format(...)) end
  add("model", "%s (%s, %.1f M parameters)", about.model, size(about.file_bytes), about.parameters / 1e6)
  add("device", about.threads > 0 and "%s (%s), %d threads" or "%s (%s)", about.device, about.variant, about.threads)
  add("load", "%.3f s", about.load_s)
  if about.rows then
    describe_device(about, add)
    add("runs", "medians; of %d prefills, fewer where one takes long, and %d tokens", about.repeats,
      about.decode_tokens)
    return table.concat(out, "\n") .. "\n" .. grid.describe(about)
  end
  describe_one(about, add)
  add("runs", "medians of %d", about.repeats)
  return table.concat(out, "\n") .. "\n"
end

return bench
