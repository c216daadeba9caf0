-- The recording half of receipts: it looks at an answer while it is generated.
local core = require "kigo.core"
local json = require "kigo.json"
local stages = require "kigo.receipt.stages"

local record = { FORMAT = "kigo receipt 1", TOP = 8 }

---@class kigo.Receipt
---@field format string             record.FORMAT
---@field digest string?            when it was read: what its text says
---@field time string               when it was made, in UTC
---@field versions table<string, string>
---@field device { name: string, variant: string, kv: string }
---@field model { files: { name: string, sha256: string }[] }
---@field adapters kigo.receipt.Adapter[]?   beside the model, in their order
---@field prompt integer[]          the whole timeline before the answer
---@field seed string               decimal: JSON readers lose digits of 64-bit numbers
---@field sampler kigo.receipt.Stage[]|string  the chain's stages; "script" for a sampler that only Lua knows
---@field sampled integer[]         every id drawn, the one that ended the answer too
---@field reason string             why the answer ended
---@field text string               what the ids say
---@field steps kigo.receipt.Step[] one per id drawn
---@field haiku { topic: string, word: string, minute: integer, nonce: string }?

---@class kigo.receipt.Adapter
---@field name string      of the file, for people
---@field sha256 string
---@field scale number

---@class kigo.receipt.Stage: kigo.Stage  without a tokenizer; and a bias has lists: ids, values, and bans for -inf
---@field ids? integer[]
---@field bans? integer[]
---@field phrases? { ids: integer[], value: number }[]
---@field banned_phrases? integer[][]

---@class kigo.receipt.Step
---@field ids integer[]     the best ids before the sampler saw the logits, best first
---@field logits number[]

local function base_name(path) return path:match "[^/]+$" or path end

---Names and SHA-256 of a model's files; computed once per model.
---@param model kigo.Model
---@return { name: string, sha256: string }[]?
---@return string? message
---@return integer? code
function record.model_files(model)
  if model.file_digests then return model.file_digests end
  if not model.path then error("receipt: the model was not opened by kigo.load", 2) end
  local files = json.array {}
  for i = 1, model.gguf:files() do
    local path = model.path:gsub("%-00001%-of%-(%d+)%.gguf$", ("-%05d-of-%%1.gguf"):format(i))
    local digest, message, code = core.sha256_file(path)
    if not digest then return nil, message, code end
    files[i] = { name = base_name(path), sha256 = digest }
  end
  local unchanged, message, code = model.gguf:check_unchanged() -- what was hashed is what was loaded
  if not unchanged then return nil, message, code end
  model.file_digests = files
  return files
end

---@param model kigo.Model
function record.device(model)
  local stats = model:stats()
  return { name = stats.device, variant = stats.variant, kv = stats.kv }
end

---@param seq kigo.Sequence
---@return kigo.receipt.Adapter[]?
local function adapters_of(seq)
  local list = json.array {}
  for i, each in ipairs(seq:adapters()) do
    list[i] = { name = each.adapter.name, sha256 = each.adapter.sha256, scale = each.scale }
    each.adapter:close()
  end
  return #list > 0 and list or nil
end

---Are these the adapters that the sequence has now?
local function are_there(adapters, seq)
  local now = adapters_of(seq) or {}
  local same = #now == #(adapters or {})
  for i, one in ipairs(now) do
    same = same and one.sha256 == adapters[i].sha256 and one.scale == adapters[i].scale
  end
  return same
end

---What records an answer while it is generated.
---@class kigo.receipt.Recorder
local Recorder = {}
Recorder.__index = Recorder

---@param seq kigo.Sequence   with the prompt on its timeline
---@param pick kigo.Sampler
---@return kigo.receipt.Recorder?
---@return string? message
---@return integer? code
function record.new(seq, pick)
  local model = seq.model
  if seq:constraint() then
    return nil, "receipt: the sequence is constrained, which a receipt does not tell", core.err.UNSUPPORTED
  end
  local files, message, code = record.model_files(model)
  if not files then return nil, message, code end
  return setmetatable({ model = model, seq = seq, made = {
    format = record.FORMAT, time = os.date "!%Y-%m-%dT%H:%M:%SZ", versions = { kigo = core.version, lua = _VERSION },
    device = record.device(model), model = { files = files }, adapters = adapters_of(seq),
    prompt = json.array(seq:tokens()), seed = ("%d"):format(seq:seed()), sampler = stages.of(pick),
    sampled = json.array {}, steps = json.array {},
  } }, Recorder)
end

---Note the best ids, before a sampler works on the logits. An answer is written under the same adapters from its first
---id to its last one: else nil, message, code.
---@param logits kigo.Tensor
---@return true?
---@return string? message
---@return integer? code
function Recorder:look(logits)
  if not are_there(self.made.adapters, self.seq) then
    return nil, "receipt: the sequence's adapters were changed within the answer", core.err.UNSUPPORTED
  end
  local ids, values = logits:topk(math.min(record.TOP, #logits))
  for i, value in ipairs(values) do values[i] = value + 0.0 end -- -0 and 0 are one number
  self.seen = { ids = ids, logits = values }
  return true
end

---@param id integer  what the sampler drew from them
function Recorder:drew(id)
  table.insert(self.made.steps, self.seen)
  table.insert(self.made.sampled, id)
end

---What the ids of an answer say.
---@param model kigo.Model
---@param made kigo.Receipt
---@return string
function record.text(model, made)
  local ids = table.move(made.sampled, 1, #made.sampled - (made.reason == "end" and 1 or 0), 1, {})
  return model.tokenizer and model.tokenizer:decode(ids) or ""
end

---@param reason string  why the answer ended
---@return kigo.Receipt
function Recorder:finish(reason)
  self.made.reason = reason
  self.made.text = record.text(self.model, self.made)
  return self.made
end

return record
