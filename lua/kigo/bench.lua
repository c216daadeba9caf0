-- bench.lua - how fast a model runs here, beside what the memory of this machine allows.
local core = require "kigo.core"
local check = require "kigo.check"
local kigo = require "kigo"
local traffic = require "kigo.traffic"

local bench = {}

---@class kigo.bench.Options
---@field prompt_tokens? integer  tokens of the prefill, default 512
---@field tokens? integer         tokens of the decode, default 128
---@field repeats? integer        every figure is the median of so many runs, default 5
---@field load kigo.load.Options? how to load the model
local known = { prompt_tokens = "integer", tokens = "integer", repeats = "integer", load = "table" }

local BANDWIDTH_MB = 512 -- read per measurement: far more than any cache holds

local function median(values)
  table.sort(values)
  local n = #values
  return n % 2 == 1 and values[n // 2 + 1] or (values[n // 2] + values[n // 2 + 1]) / 2
end

---Token ids without meaning, the same ones every time.
local function some_ids(n, vocab_size)
  local ids = {}
  for i = 1, n do ids[i] = math.floor(core.uniform(1, i, 0) * vocab_size) end
  return ids
end

---A 64-bit hash of a tensor's bytes (FNV-1a over words): two runs that differ in one bit differ here.
---@param bytes string
---@return string
function bench.hash(bytes)
  local h, prime = 0xcbf29ce484222325, 0x100000001b3
  for at = 1, #bytes - 7, 8 do h = (h ~ string.unpack("<i8", bytes, at)) * prime end
  for at = #bytes - #bytes % 8 + 1, #bytes do h = (h ~ bytes:byte(at)) * prime end
  return ("%016x"):format(h)
end

---Peak resident memory of this process in bytes, or nil where the system does not tell.
---@return integer?
function bench.peak_memory()
  local file = io.open "/proc/self/status"
  if not file then return nil end
  local kilobytes = file:read("a"):match "VmHWM:%s*(%d+) kB"
  file:close()
  return kilobytes and math.tointeger(kilobytes) * 1024
end

---Seconds that a call takes; a failure is thrown as { message, code } for bench.measure.
local function timed(f, ...)
  local t0 = core.now()
  local result, message, code = f(...)
  if result == nil then error({ message = message, code = code }, 0) end
  return core.now() - t0, result
end

local function measure_prefill(model, ids, repeats)
  local seconds, hash, kv_bytes = {}, nil, nil
  for i = 1, repeats do
    local seq <close> = select(2, timed(model.sequence, model, { seed = 1 }))
    timed(seq.feed, seq, ids)
    seconds[i] = timed(seq.step, seq)
    hash, kv_bytes = bench.hash(seq.logits:bytes()), model:stats().kv_bytes
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

---The context that the measurements need; a failure is thrown where the model's is smaller.
local function context(path, n_prompt, n)
  local gguf <close> = select(2, timed(kigo.open_gguf, path))
  local wanted = math.max(n_prompt, n + 1)
  local limit = gguf:get((gguf:get "general.architecture" or "") .. ".context_length")
  if math.type(limit) == "integer" and wanted > limit then
    error({ message = ("%s: a prefill of %d tokens and a decode of %d do not fit into its context of %d"):format(path,
      n_prompt, n, limit), code = core.err.FULL }, 0)
  end
  return wanted
end

---The figures, filled in as they are measured.
local function run(path, options)
  local n_prompt, n, repeats = options.prompt_tokens or 512, options.tokens or 128, options.repeats or 5
  local load = check.pick(options.load or {},
    { device = "", variant = "", threads = "", kv = "", pre = "", progress = "" })
  load.ctx = (options.load or {}).ctx or context(path, n_prompt, n)
  local load_s, opened = timed(kigo.load, path, load)
  local model <close> = opened
  local stats = model:stats()
  local about = { model = path, note = stats.note, file_bytes = model.gguf:bytes(),
    parameters = model.gguf:parameters(), device = stats.device, variant = stats.variant, threads = stats.n_threads,
    packed_bytes = stats.weight_bytes, weight_bytes_per_token = traffic.weight_bytes(model.gguf), repeats = repeats,
    prompt_tokens = n_prompt, decode_tokens = n }
  local prefill_s
  prefill_s, about.logits_hash, about.kv_bytes = measure_prefill(model, some_ids(n_prompt, model.vocab_size), repeats)
  about.prefill_tokens_per_s = n_prompt / prefill_s
  about.kv_bytes_per_token = math.floor(about.kv_bytes / n_prompt * n / 2)
  measure_decode(model, n) -- warm up
  about.peak_bytes = bench.peak_memory() -- of one model's load and use, before the bandwidth's own buffer
  measure_decode_and_bandwidth(model, about)
  about.load_s = measure_load(model, path, load, { load_s }, repeats)
  return about
end

---Measure a model file.
---@param path string
---@param options? kigo.bench.Options
---@return table<string, string|number>? figures  flat
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

local function size(bytes)
  if bytes >= 1e9 then return ("%.2f GB"):format(bytes / 1e9) end
  return ("%.1f MB"):format(bytes / 1e6)
end

---The figures as a table for people.
---@param about table
---@return string
function bench.describe(about)
  local out = {}
  local function add(name, ...) out[#out + 1] = ("%-12s %s"):format(name, string.format(...)) end
  add("model", "%s (%s, %.1f M parameters)", about.model, size(about.file_bytes), about.parameters / 1e6)
  add("device", "%s (%s), %d threads", about.device, about.variant, about.threads)
  add("load", "%.3f s", about.load_s)
  add("prefill", "%.1f tokens/s (%d tokens)", about.prefill_tokens_per_s, about.prompt_tokens)
  add("decode", "%.1f tokens/s (%d tokens)", about.decode_tokens_per_s, about.decode_tokens)
  add("reads", "%s a token, %s/s: %.0f %% of the %s/s that memory gives", size(about.weight_bytes_per_token
    + about.kv_bytes_per_token), size(about.decode_bytes_per_s), 100 * about.bandwidth_share,
    size(about.bandwidth_bytes_per_s))
  if about.peak_bytes then
    add("memory", "%s at the peak, %.0f %% of file and cache (%s + %s)", size(about.peak_bytes),
      100 * about.peak_bytes / (about.file_bytes + about.kv_bytes), size(about.file_bytes), size(about.kv_bytes))
  end
  add("logits", "%s", about.logits_hash)
  add("runs", "medians of %d", about.repeats)
  return table.concat(out, "\n") .. "\n"
end

return bench
