-- sample.lua - stages of sampler chains. `chain { top_k(40), temp(0.7) }` is a sampler: called with the logits and the
-- sequence it returns the next id. Any Lua function (logits, sequence) -> id is a sampler too.
local core = require "kigo.core"
local check = require "kigo.check"

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
---@field phrases? kigo.Phrase[]
---@field probability? number
---@field threshold? number
---@field low? number
---@field high? number
---@field exponent? number
---@field multiplier? number
---@field base? number
---@field allowed? integer
---@field breakers? string[]
---@field tokenizer? kigo.Tokenizer
---@field tau? number
---@field eta? number

---Several ids; the last one gets the value where the timeline ends with the others.
---@class kigo.Phrase
---@field [integer] integer
---@field value number

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

---The tokens that text becomes in the middle of other text: one that spells it, or those that encode makes of it.
local function ids_of(text, tokenizer)
  if not tokenizer then error(("bias: %s is a text: give a tokenizer"):format(check.quoted(text)), 3) end
  local id = tokenizer:token(text)
  local ids = id and { id } or assert(tokenizer:encode(text, { continues = true }))
  return #ids > 0 and ids or error("bias: a text without tokens", 3)
end

---Add to the logits of ids, or of texts: `bias({ [" cat"] = 2.5, [40] = -math.huge }, tokenizer)`; -math.huge bans. A
---text of several tokens gets it for the last of them, where the timeline ends with the others: a ban keeps the text
---from being completed that way, without touching what else begins like it. Ids and texts that name the same token add
---up.
---@param values table<integer|string, number>
---@param tokenizer? kigo.Tokenizer   for texts
---@return kigo.Stage
function sample.bias(values, tokenizer)
  if type(values) ~= "table" then error("bias: table expected, got " .. type(values), 2) end
  local by_id, texts = {}, {}
  for key, value in pairs(values) do
    if type(key) == "string" then texts[#texts + 1] = key else by_id[key] = value end
  end
  if #texts == 0 then return { kind = "bias", values = values } end
  table.sort(texts) -- the same sums every time
  local phrases = {}
  for _, text in ipairs(texts) do
    local ids, value = ids_of(text, tokenizer), values[text]
    if type(value) ~= "number" then
      error(("bias: %s: number expected, got %s"):format(check.quoted(text), type(value)), 2)
    end
    if #ids == 1 then
      by_id[ids[1]] = (by_id[ids[1]] or 0) + value
    else
      ids.value = value
      phrases[#phrases + 1] = ids
    end
  end
  return { kind = "bias", values = by_id, phrases = phrases }
end

---Keep the logits that are at most n standard deviations of all of them below the best; 0 keeps all. What it keeps does
---not depend on the temperature.
---@param n number
---@return kigo.Stage
function sample.top_n_sigma(n) return { kind = "top_n_sigma", value = n } end

---Exclude top choices: with this probability (0 to 1), drop all candidates with a probability of `threshold` or more
---but the worst of them.
---@param probability number
---@param threshold? number   0.1 unless given; above 0.5 it does nothing
---@return kigo.Stage
function sample.xtc(probability, threshold)
  return { kind = "xtc", probability = probability, threshold = threshold }
end

---A temperature between low and high: the higher, the nearer the entropy is to that of a flat distribution.
---@param low number
---@param high number
---@param exponent? number   of the share of the entropy; 1 unless given
---@return kigo.Stage
function sample.dynatemp(low, high, exponent)
  return { kind = "dynatemp", low = low, high = high, exponent = exponent }
end

---@class kigo.DryOptions
---@field multiplier number      of the penalty: multiplier * base ^ (length - allowed); 0.8 is usual
---@field base? number           1.75 unless given
---@field allowed? integer       repetitions that are shorter are free (2 tokens unless given)
---@field last? integer          how many tokens back (-1, the whole timeline, unless given)
---@field breakers? string[]     texts behind which a repetition starts anew; with a tokenizer: newline, colon, quote
---and star
---@field tokenizer? kigo.Tokenizer   for the breakers

local BREAKERS = { "\n", ":", "\"", "*" }

---"Don't repeat yourself": make tokens less likely that would go on with a repetition, the longer it is.
---@param options kigo.DryOptions
---@return kigo.Stage
function sample.dry(options)
  if type(options) ~= "table" then error("dry: table expected, got " .. type(options), 2) end
  local stage = { kind = "dry" }
  for name, value in pairs(options) do
    if name == "kind" then error("dry: field 'kind' is unknown", 2) end
    stage[name] = value
  end
  if stage.tokenizer then stage.breakers = stage.breakers or BREAKERS end
  return stage
end

---Mirostat 2: hold the surprise of the text near tau bits a token, by cutting off candidates with a surprise above mu.
---What is drawn and fed moves mu; it belongs to the sequence and goes back with it. The last stage.
---@param tau number
---@param eta? number   how fast mu follows; 0.1 unless given
---@return kigo.Stage
function sample.mirostat(tau, eta) return { kind = "mirostat", tau = tau, eta = eta } end

---Keep the best candidate alone: no draw.
---@return kigo.Stage
function sample.greedy() return { kind = "greedy" } end

---The draw from what is left. Every chain ends with it, said or not; it must be the last stage.
---@return kigo.Stage
function sample.dist() return { kind = "dist" } end

---A sampler of these stages, in this order. The engine checks every field and names the stage in its error.
---@type fun(stages: kigo.Stage[]): kigo.Chain?, string?, integer?
sample.chain = core.chain

---Stages on a tensor: in place, on one row of logits. What the stages drop becomes -inf, what they change is changed,
---and nothing is drawn from it: `logits:apply_(kigo.min_p(0.05)):softmax():entropy()`. Numbers that stages draw
---themselves count on the sequence. A chain keeps its memory between calls; for a stage or a list of them one is made
---each time. It is done on the tensor's device, but for DRY and mirostat, and where logits are none or infinite: then
---the numbers come to the host for it and go back.
---@class kigo.Tensor
local Tensor = core.classes.Tensor

---@param stages kigo.Stage|kigo.Stage[]|kigo.Chain
---@param seq? kigo.Sequence   for stages that look at the history, draw or remember
---@return kigo.Tensor? self
---@return string? message
---@return integer? code
function Tensor:apply_(stages, seq)
  if type(stages) == "userdata" then return core.apply(stages, self, seq) end
  if type(stages) ~= "table" then error("apply_: stages expected, got " .. type(stages), 2) end
  local chain <close>, message, code = core.chain(stages.kind and { stages } or stages)
  if not chain then return nil, message, code end
  return core.apply(chain, self, seq)
end

---@class kigo.SampleOptions
---@field temp? number               0: greedy; 1 unless given
---@field top_k? integer             0: all
---@field top_p? number
---@field min_p? number
---@field typical? number
---@field top_n_sigma? number        0: all
---@field xtc_probability? number
---@field xtc_threshold? number      0.1 unless given
---@field dynatemp_range? number     the temperature goes from temp - range (at least 0) to temp + range
---@field dynatemp_exponent? number  1 unless given
---@field mirostat_tau? number       mirostat 2, in bits a token
---@field mirostat_eta? number       0.1 unless given
---@field dry_multiplier? number
---@field dry_base? number           1.75 unless given
---@field dry_allowed_length? integer  2 unless given
---@field dry_last? integer          how many tokens back DRY looks (-1 unless given: all)
---@field dry_breakers? string[]     newline, colon, quote and star unless given
---@field repeat_penalty? number
---@field frequency_penalty? number
---@field presence_penalty? number
---@field repeat_last? integer       how many tokens back the penalties look (64 unless given; -1: all)
---@field bias? table<integer|string, number>   by id or by text (kigo.bias)

-- What belongs to another option and means nothing without it.
local PARTS = { xtc_threshold = "xtc_probability", dynatemp_exponent = "dynatemp_range", mirostat_eta = "mirostat_tau",
  dry_base = "dry_multiplier", dry_allowed_length = "dry_multiplier", dry_last = "dry_multiplier",
  dry_breakers = "dry_multiplier" }

local function temperature(options)
  local range = options.dynatemp_range
  if not range then return options.temp and sample.temp(options.temp) end
  local middle = options.temp or 1
  return sample.dynatemp(math.max(0, middle - range), middle + range, options.dynatemp_exponent)
end

---What makes tokens more or less likely, whatever the temperature.
local function add_penalties(add, options, tokenizer)
  if options.repeat_penalty or options.frequency_penalty or options.presence_penalty then
    add { kind = "penalties", last = options.repeat_last, ["repeat"] = options.repeat_penalty,
          frequency = options.frequency_penalty, presence = options.presence_penalty }
  end
  if options.dry_multiplier then
    add(sample.dry { multiplier = options.dry_multiplier, base = options.dry_base, allowed = options.dry_allowed_length,
                     last = options.dry_last, breakers = options.dry_breakers, tokenizer = tokenizer })
  end
  if options.bias then add(sample.bias(options.bias, tokenizer)) end
end

---The chain for plain options: penalties, DRY and bias, then the filters on the model's own distribution (top_n_sigma,
---top_k, typical, top_p, min_p), XTC on what they leave, then the temperature, and mirostat behind it. Only what is
---given is there: defaults are the caller's. Temperature 0 takes the best one after the bias.
---@param options? kigo.SampleOptions
---@param tokenizer? kigo.Tokenizer   for the breakers of DRY and biases of texts
---@return kigo.Chain
function sample.from_options(options, tokenizer)
  options = options or {}
  if type(options) ~= "table" then error("options: table expected, got " .. type(options), 2) end
  for name, wanted in pairs(PARTS) do
    if options[name] ~= nil and options[wanted] == nil then error(("option %s wants %s"):format(name, wanted), 2) end
  end
  local stages = {}
  local function add(stage) stages[#stages + 1] = stage end
  add_penalties(add, options, tokenizer)
  if options.temp == 0 and not options.dynatemp_range then
    add(sample.greedy())
    return assert(core.chain(stages))
  end
  if options.top_n_sigma then add(sample.top_n_sigma(options.top_n_sigma)) end
  if options.top_k then add(sample.top_k(options.top_k)) end
  if options.typical then add(sample.typical(options.typical)) end
  if options.top_p then add(sample.top_p(options.top_p)) end
  if options.min_p then add(sample.min_p(options.min_p)) end
  if options.xtc_probability then add(sample.xtc(options.xtc_probability, options.xtc_threshold)) end
  add(temperature(options))
  if options.mirostat_tau then add(sample.mirostat(options.mirostat_tau, options.mirostat_eta)) end
  return assert(core.chain(stages))
end

return sample
