-- kigo: a Lua-scriptable inference engine for language models.
--
--   local kigo = require "kigo"
--   local model <close> = assert(kigo.load("model.gguf"))
--   print(model:chat({ { role = "user", content = "A haiku about the moon." } }, { seed = 29 }).text)
--
-- The caller's mistakes raise; the world's faults (a missing file, no memory, a full context) return nil, a message
-- and a code from kigo.err. Ids and positions are 0-based as in the file, Lua arrays 1-based.
local core = require "kigo.core"
local arch = require "kigo.arch"
local check = require "kigo.check"
local constraint = require "kigo.constraint"
local json = require "kigo.json"
local parse = require "kigo.parse"
local quantize = require "kigo.quantize"
local receipt = require "kigo.receipt"
local sample = require "kigo.sample"
local perplexity = require "kigo.perplexity"
local scheduler = require "kigo.scheduler"
local sampler = require "kigo.sampler"
local sandbox = require "kigo.sandbox"
local speculate = require "kigo.speculate"
local steering = require "kigo.steering"
local schema = require "kigo.schema"
local template = require "kigo.template"
require "kigo.model"    -- the scripted methods of kigo.Model
require "kigo.sequence" -- and of kigo.Sequence
require "kigo.logprobs" -- of both: how likely texts are
require "kigo.embed"    -- and texts as vectors

---@class kigo
---@field version string
---@field err kigo.err
local kigo = {
  version = core.version,
  err = core.err,
  core = core,
  template = template,
  parse = parse,
  json = json,
  receipt = receipt,
  perplexity = perplexity.measure,
  steering = steering,
  quantize = quantize,
  json_schema = schema.grammar,
  -- tensors, text and time
  tensor = core.tensor,
  zeros = core.zeros,
  stream = core.stream,
  now = core.now,
  scheduler = scheduler.new,
  -- scripts that nobody trusts
  sandbox = sandbox.new,
  -- constraints
  grammar = core.grammar,
  gbnf = constraint.gbnf,
  regex = constraint.regex,
  choice = constraint.choice,
  -- samplers
  chain = sample.chain,
  greedy = sample.greedy,
  temp = sample.temp,
  top_k = sample.top_k,
  top_p = sample.top_p,
  min_p = sample.min_p,
  typical = sample.typical,
  top_n_sigma = sample.top_n_sigma,
  xtc = sample.xtc,
  dynatemp = sample.dynatemp,
  mirostat = sample.mirostat,
  penalties = sample.penalties,
  dry = sample.dry,
  bias = sample.bias,
  dist = sample.dist,
  sampler = sampler.new,
  -- speculators
  prompt_lookup = speculate.prompt_lookup,
  ngrams = speculate.ngrams,
  draft_model = speculate.draft_model,
  forced = speculate.forced,
  first_of = speculate.first_of,
}

---@class kigo.load.Options
---@field device? string     "auto" (default), "cpu", "reference", "cuda" or "cuda:N"
---@field variant? string    instruction set of the CPU backend; the best one by default
---@field threads? integer   default: one per available core
---@field ctx? integer       positions a sequence may hold; default: what the file says, at most 4096
---@field pool? integer      positions that all sequences may hold together; default: no limit but memory
---@field chunk? integer     most rows per forward pass
---@field prefix_cache? boolean|integer  keep cache pages of closed and rewound sequences for prompts that begin alike
---(default true). Pages go first to whoever wants them for something else. A number: positions for whose sake the cache
---may take memory that sequences do not need; default: as many as one of them may hold (ctx)
---@field kv? string         type of the key/value cache: "f32", "f16" or "auto"
---@field tokenizer? boolean false: load without one (model.tokenizer is nil), for work on ids alone
---@field pre? string        a pre-tokenizer's name, instead of the file's tokenizer.ggml.pre
---@field normalize? boolean see kigo.TokenizerOptions; default false
---@field progress? kigo.Progress  called while loading and during long steps; true cancels
local load_options = {
  device = "string", variant = "string", threads = "integer", ctx = "integer", pool = "integer", chunk = "integer",
  prefix_cache = "boolean|integer", kv = "string", tokenizer = "boolean", pre = "string", normalize = "boolean",
  progress = "function",
}

---A message that names its file, once.
local function naming(path, message)
  if message:find(path, 1, true) then return message end
  return path .. ": " .. message
end

---The tokenizer the file describes; false where it describes none or none is wanted.
local function open_tokenizer(gguf, options)
  if options.tokenizer == false or gguf:get "tokenizer.ggml.model" == nil then return false end
  return core.tokenizer(gguf, { pre = options.pre, normalize = options.normalize })
end

---Load a model: open the file, build the plan of its architecture, compile the plan for a device.
---The model has the fields `path`, `gguf` and, where the file describes one, `tokenizer`.
---@param path string          a GGUF file, or the first file of a split one
---@param options? kigo.load.Options
---@return kigo.Model? model   a to-be-closed handle
---@return string? message     names the file
---@return integer? code       one of kigo.err
function kigo.load(path, options)
  if type(path) ~= "string" then error("path: string expected, got " .. type(path), 2) end
  options = check.options(options, load_options)
  local gguf, message, code = core.open_gguf(path)
  if not gguf then return nil, naming(path, message), code end
  local plan, tokenizer, model, mistake
  plan, message, code = arch.build(gguf, options.ctx)
  if plan then
    tokenizer, message, code = open_tokenizer(gguf, options)
  end
  if tokenizer ~= nil then
    local compile = check.pick(options, load_options)
    compile.tokenizer, compile.pre, compile.normalize = nil, nil, nil
    local called
    called, model, message, code = pcall(core.model, plan, compile)
    if not called then mistake, model = model, nil end
  end
  if not model then
    if plan then plan:close() end
    gguf:close()
    if mistake then error(mistake, 0) end -- it tells the caller's line
    return nil, naming(path, message), code
  end
  model.path, model.gguf, model.tokenizer = path, gguf, tokenizer or nil
  return model
end

---Open a model file to look into it: metadata and tensors, no weights loaded.
---@param path string
---@return kigo.Gguf? gguf   a to-be-closed handle
---@return string? message
---@return integer? code
function kigo.open_gguf(path)
  local gguf, message, code = core.open_gguf(path)
  if not gguf then return nil, naming(path, message), code end
  return gguf
end

return kigo
