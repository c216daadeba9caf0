-- sample.lua - stages of sampler chains. `chain { top_k(40), temp(0.7) }` is a sampler: called with the logits and the
-- sequence it returns the next id. Any Lua function (logits, sequence) -> id is a sampler too.
local core = require "kigo.core"

local sample = {}

---A stage of a chain, as the engine reads it.
---@class kigo.Stage
---@field kind string
---@field value? number
---@field k? integer
---@field last? integer
---@field repeat? number
---@field frequency? number
---@field presence? number
---@field values? table<integer, number>

---@alias kigo.Sampler kigo.Chain|fun(logits: kigo.Tensor, seq: kigo.Sequence): integer

---Logits divided by `value` (1e-6 to 1e6); 0 keeps the best candidate alone.
---@param value number
---@return kigo.Stage
function sample.temp(value) return { kind = "temp", value = value } end

---Keep the k best; 0 keeps all.
---@param k integer
---@return kigo.Stage
function sample.top_k(k) return { kind = "top_k", k = k } end

---Keep the best candidates until their probabilities reach p (0 to 1; nucleus sampling).
---@param p number
---@return kigo.Stage
function sample.top_p(p) return { kind = "top_p", value = p } end

---Keep candidates with at least p (0 to 1) times the best one's probability.
---@param p number
---@return kigo.Stage
function sample.min_p(p) return { kind = "min_p", value = p } end

---Keep the candidates whose surprise is nearest to the entropy until their probabilities reach p (0 to 1).
---@param p number
---@return kigo.Stage
function sample.typical(p) return { kind = "typical", value = p } end

---@class kigo.PenaltyOptions
---@field last? integer        how many tokens back (64 unless given; -1: the whole timeline)
---@field repeat? number       positive logits are divided by it, others multiplied (1 unless given)
---@field frequency? number    subtracted once per occurrence
---@field presence? number     subtracted once

---Make the tokens that the timeline holds already less likely.
---@param options kigo.PenaltyOptions
---@return kigo.Stage
function sample.penalties(options)
  if type(options) ~= "table" then error("penalties: table expected, got " .. type(options), 2) end
  local stage = { kind = "penalties" }
  for name, value in pairs(options) do
    if name == "kind" then error("penalties: field 'kind' is unknown", 2) end
    stage[name] = value
  end
  return stage
end

---Add to the logits of ids: `bias { [17] = 2.5, [40] = -math.huge }`; -math.huge bans.
---@param values table<integer, number>
---@return kigo.Stage
function sample.bias(values)
  if type(values) ~= "table" then error("bias: table expected, got " .. type(values), 2) end
  return { kind = "bias", values = values }
end

---Keep the best candidate alone: no draw.
---@return kigo.Stage
function sample.greedy() return { kind = "greedy" } end

---The draw from what is left. Every chain ends with it, said or not; it must be the last stage.
---@return kigo.Stage
function sample.dist() return { kind = "dist" } end

---A sampler of these stages, in this order. The engine checks every field and names the stage in its error.
---@type fun(stages: kigo.Stage[]): kigo.Chain?, string?, integer?
sample.chain = core.chain

---@class kigo.SampleOptions
---@field temp? number               0: greedy; 1 unless given
---@field top_k? integer             0: all
---@field top_p? number
---@field min_p? number
---@field typical? number
---@field repeat_penalty? number
---@field frequency_penalty? number
---@field presence_penalty? number
---@field repeat_last? integer       how many tokens back the penalties look (64 unless given; -1: all)
---@field bias? table<integer, number>

---The chain for plain options: penalties and bias, then the filters on the model's own distribution (top_k, typical,
---top_p, min_p), then the temperature on what they leave. Only what is given is there: defaults are the caller's.
---@param options? kigo.SampleOptions
---@return kigo.Chain
function sample.from_options(options)
  options = options or {}
  if type(options) ~= "table" then error("options: table expected, got " .. type(options), 2) end
  local stages = {}
  local function add(stage) stages[#stages + 1] = stage end
  if options.repeat_penalty or options.frequency_penalty or options.presence_penalty then
    add { kind = "penalties", last = options.repeat_last, ["repeat"] = options.repeat_penalty,
          frequency = options.frequency_penalty, presence = options.presence_penalty }
  end
  if options.bias then add(sample.bias(options.bias)) end
  if options.temp == 0 then
    add(sample.greedy())
    return assert(core.chain(stages))
  end
  if options.top_k then add(sample.top_k(options.top_k)) end
  if options.typical then add(sample.typical(options.typical)) end
  if options.top_p then add(sample.top_p(options.top_p)) end
  if options.min_p then add(sample.min_p(options.min_p)) end
  if options.temp then add(sample.temp(options.temp)) end
  return assert(core.chain(stages))
end

return sample
