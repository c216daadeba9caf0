-- grid.lua - prefill and decode of several sequences together, at several lengths of context, beside the floor of the
-- device: the time in which it could at best move the bytes, or multiply the numbers, that the work needs.
local core = require "kigo.core"
local experts = require "kigo.bench.experts"
local figures = require "kigo.bench.figures"
local traffic = require "kigo.traffic"

local grid = {}

---@class kigo.bench.Row
---@field context integer               tokens of each sequence before decoding
---@field batch integer                 sequences
---@field prefill_s number?             of all of them together
---@field prefill_tokens_per_s number?
---@field prefill_share number?         of the floor; where the device's rates are known
---@field step_s number?                one given token each, logits left where they are
---@field draw_s number?                what drawing the best ids, each step's from the one before, adds to that
---@field decode_tokens_per_s number?   drawn and computed, of all sequences together, AHEAD of them in one round trip
---@field decode_share number?          of the floor
---@field expert_bytes number?          of the experts' weights that such a step reads, counted
---@field logits_hash string?           of the first sequence; the same in every batch
---@field note string?                  why there is nothing

local AHEAD = 16 -- as in kigo.GenerateOptions
local ENOUGH_S = 1 -- after so many seconds nothing is repeated once more

grid.FIRST_PROMPT = 32 -- tokens, of the time to the first token

---Runs that a figure is the median of: as many as asked for, fewer of what takes long.
local function repeated(repeats, measure)
  local seconds, sum = {}, 0
  repeat
    seconds[#seconds + 1] = measure()
    sum = sum + seconds[#seconds]
  until #seconds == repeats or sum > ENOUGH_S
  return figures.median(seconds)
end

local function close_all(seqs)
  for _, seq in ipairs(seqs) do seq:close() end
end

---Sequences with a prompt each that nobody computed yet. Every prompt is another one, so that no cache is shared.
local function open(model, batch, context)
  local seqs = setmetatable({}, { __close = close_all })
  for i = 1, batch do
    seqs[i] = figures.try(model:sequence { seed = i })
    figures.try(seqs[i]:feed(figures.some_ids(context, model.vocab_size, i)))
  end
  return seqs
end

local function step(model, seqs) figures.try(model:step(seqs)) end

---Seconds of the prefill; also the last sequences, computed.
local function measure_prefill(model, batch, context, repeats)
  local seqs
  local seconds = repeated(repeats, function()
    if seqs then close_all(seqs) end
    seqs = open(model, batch, context)
    return figures.timed(step, model, seqs)
  end)
  return seconds, seqs
end

local function push_all(seqs, ids)
  for i, seq in ipairs(seqs) do figures.try(seq:push(ids[i])) end
end

local function same_for_all(seqs, id)
  local ids = {}
  for i = 1, #seqs do ids[i] = id end
  return ids
end

---Back to the context, with one token more that is computed.
local function restart(model, seqs, context)
  for _, seq in ipairs(seqs) do figures.try(seq:rewind(context)) end
  push_all(seqs, same_for_all(seqs, 0))
  step(model, seqs)
end

---Draw the best ids, so many in a round trip where the device can.
local function draw(model, seqs, tokens, ahead)
  local greedy <close> = core.chain { { kind = "greedy" } }
  for i = 1, tokens do
    push_all(seqs, figures.try(model:draw(seqs, greedy, math.min(ahead, tokens - i + 1))))
  end
end

---Median seconds of a step with given ids, and a hash of what the first sequence ends with.
local function measure_steps(model, seqs, context, tokens)
  local seconds = {}
  restart(model, seqs, context)
  local meter = experts.meter(model)
  for i, id in ipairs(figures.some_ids(tokens, model.vocab_size, 0)) do
    push_all(seqs, same_for_all(seqs, id))
    seconds[i] = figures.timed(step, model, seqs)
  end
  return figures.median(seconds), figures.hash(seqs[1].logits:bytes()), meter and meter() / tokens
end

---What such a step reads of the experts, as the device's profile counts it.
local function measure_experts(model, seqs, context)
  restart(model, seqs, context)
  push_all(seqs, same_for_all(seqs, 0))
  local bytes = experts.profiled(model, seqs)
  restart(model, seqs, context)
  return bytes
end

---Seconds of a token that is drawn and computed, `ahead` of them in a round trip.
local function measure_draws(model, seqs, context, options, ahead)
  return repeated(options.repeats, function()
    restart(model, seqs, context)
    return figures.timed(draw, model, seqs, options.tokens, ahead)
  end) / options.tokens
end

-- ---- floors ----

---What a device can at best do in no less time than this.
local function floor_s(rates, bytes, flops)
  return math.max(bytes / rates.copy_bytes_per_s, flops / rates.tensor_flops)
end

local function prefill_floor(model, rates, batch, context)
  local layers, head = traffic.flops(model.gguf)
  local rows, stats = batch * context, model:stats()
  return floor_s(rates, traffic.weight_bytes(model.gguf, rows) + rows * traffic.kv_bytes(stats, 1),
    rows * layers + batch * (traffic.prompt_attention_flops(stats, context) + head))
end

local function decode_floor(model, rates, batch, context, expert_bytes)
  local layers, head = traffic.flops(model.gguf)
  local stats = model:stats()
  return floor_s(rates, traffic.tensor_bytes(model.gguf) + (expert_bytes or 0)
    + batch * traffic.kv_bytes(stats, context), batch * (layers + head + traffic.attention_flops(stats, context)))
end

-- ---- rows ----

---Does the cache of so many tokens fit, as far as one can tell? If not: why.
local function too_large(model, batch, context, tokens)
  if context + tokens + 1 > model.context then return ("the context ends at %d"):format(model.context) end
  local info = model:device_info()
  local stats = model:stats()
  if not info then return nil end
  local wanted = batch * traffic.kv_bytes(stats, context + tokens) - stats.kv_bytes
  if wanted > 0.9 * (info.total - info.in_use) then
    return ("%.1f GB more of cache are not free"):format(wanted / 1e9)
  end
end

local function measure_row(model, rates, options, batch, context)
  local row = { context = context, batch = batch }
  row.note = too_large(model, batch, context, options.tokens)
  if row.note then return row end
  local prefill_s, seqs = measure_prefill(model, batch, context, options.repeats)
  local opened <close> = seqs
  row.prefill_s, row.prefill_tokens_per_s = prefill_s, batch * context / prefill_s
  row.step_s, row.logits_hash, row.expert_bytes = measure_steps(model, opened, context, options.tokens)
  if not experts.all(model) then row.expert_bytes = nil
  elseif not row.expert_bytes then row.expert_bytes = measure_experts(model, opened, context) end
  row.draw_s = measure_draws(model, opened, context, options, 1) - row.step_s
  local token_s = measure_draws(model, opened, context, options, AHEAD)
  row.decode_tokens_per_s = batch / token_s
  if rates then
    row.prefill_share = prefill_floor(model, rates, batch, context) / prefill_s
    row.decode_share = decode_floor(model, rates, batch, context + options.tokens / 2,
      row.expert_bytes) / token_s
  end
  return row
end

---Seconds from a prompt to the id behind it.
local function measure_first_token(model, repeats)
  return repeated(math.max(repeats, 15), function()
    local seqs <close> = open(model, 1, grid.FIRST_PROMPT)
    return figures.timed(draw, model, seqs, 1, 1)
  end)
end

---Rows of all batches and contexts, after each batch ran without being counted: code is loaded and graphs are captured
---when they are first used.
---@param model kigo.Model
---@param rates { copy_bytes_per_s: number, tensor_flops: number }?
---@param options { batches: integer[], contexts: integer[], tokens: integer, repeats: integer }
---@return kigo.bench.Row[] rows
---@return number? first_token_s  of a prompt of 32 tokens, where the context holds it
function grid.measure(model, rates, options)
  local rows = {}
  for _, batch in ipairs(options.batches) do
    local seqs <close> = open(model, batch, math.max(1, math.min(grid.FIRST_PROMPT, model.context - AHEAD - 6)))
    draw(model, seqs, AHEAD + 2, AHEAD)
    draw(model, seqs, 3, 1)
  end
  local first_token_s = model.context >= grid.FIRST_PROMPT and measure_first_token(model, options.repeats) or nil
  for _, context in ipairs(options.contexts) do
    for _, batch in ipairs(options.batches) do rows[#rows + 1] = measure_row(model, rates, options, batch, context) end
  end
  return rows, first_token_s
end

---The stages of a decode step and of a prefill, at the first context.
---@return { what: string, stages: table[] }[]
function grid.stages(model, rows, options)
  local tables, context = {}, options.contexts[1]
  for _, batch in ipairs(options.batches) do
    if not too_large(model, batch, context, options.tokens) then
      local seqs <close> = open(model, batch, context)
      step(model, seqs)
      push_all(seqs, same_for_all(seqs, 0))
      local stages = figures.try(model:profile(seqs))
      for _, row in ipairs(rows) do
        if row.batch == batch and row.context == context and row.draw_s then
          stages[#stages + 1] = { name = "sample", count = 1, seconds = math.max(row.draw_s, 0),
            bytes = batch * model.vocab_size * 4 }
        end
      end
      tables[#tables + 1] = { what = ("decode, batch %d, context %d"):format(batch, context), stages = stages }
    end
  end
  local seqs <close> = open(model, 1, math.min(context, options.chunk))
  tables[#tables + 1] = { what = ("prefill of %d"):format(seqs[1]:pos()), stages = figures.try(model:profile(seqs)) }
  return tables
end

-- ---- for people ----

local function share(value) return value and ("%5.1f %%"):format(100 * value) or "" end

local function describe_rows(rows, add)
  add("%7s %5s %12s %12s %8s %10s %10s %12s %8s  %s", "context", "batch", "prefill ms", "tokens/s", "of floor",
    "step ms", "draw ms", "tokens/s", "of floor", "logits")
  for _, row in ipairs(rows) do
    if row.note then
      add("%7d %5d  %s", row.context, row.batch, row.note)
    else
      add("%7d %5d %12.2f %12.0f %8s %10.3f %10.3f %12.0f %8s  %s", row.context, row.batch, row.prefill_s * 1e3,
        row.prefill_tokens_per_s, share(row.prefill_share), row.step_s * 1e3, row.draw_s * 1e3,
        row.decode_tokens_per_s, share(row.decode_share), row.logits_hash)
    end
  end
end

local function describe_experts(about, add)
  for _, row in ipairs(about.rows) do
    if row.expert_bytes then
      add("experts      batch %d after %d: %s", row.batch, row.context,
        experts.describe(row.expert_bytes, about.expert_bytes))
    end
  end
end

local function describe_stages(about, add)
  for _, one in ipairs(about.stages or {}) do
    add("\n%s\n%-12s %5s %12s %12s %10s %9s", one.what, "stage", "count", "MB", "us", "GB/s", "of copies")
    local sum, bytes = 0, 0
    for _, stage in ipairs(one.stages) do
      local rate = stage.seconds > 0 and stage.bytes / stage.seconds or 0
      sum, bytes = sum + stage.seconds, bytes + stage.bytes
      add("%-12s %5d %12.3f %12.1f %10.0f %9s", stage.name, stage.count, stage.bytes / 1e6, stage.seconds * 1e6,
        rate / 1e9, share(rate / about.copy_bytes_per_s))
    end
    add("%-12s %5s %12.3f %12.1f %10.0f %9s", "together", "", bytes / 1e6, sum * 1e6, bytes / sum / 1e9,
      share(bytes / sum / about.copy_bytes_per_s))
  end
end

---The tables for people.
---@param about table  of kigo.bench
---@return string
function grid.describe(about)
  local out = {}
  local function add(...) out[#out + 1] = (string.format(...):gsub(" +$", "")) end
  add ""
  describe_rows(about.rows, add)
  local step_s = about.rows[1].step_s
  if about.first_token_s then
    add("first token  %.2f ms after a prompt of %d%s", about.first_token_s * 1e3, grid.FIRST_PROMPT,
      step_s and (", %.1f steps of the first row"):format(about.first_token_s / step_s) or "")
  end
  describe_experts(about, add)
  describe_stages(about, add)
  return table.concat(out, "\n") .. "\n"
end

return grid
