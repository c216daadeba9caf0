-- embed.lua - texts as vectors: the value that the model's head reads, behind the last norm, made into one row a text.
local core = require "kigo.core"
local check = require "kigo.check"
local pass = require "kigo.pass"
local pooling = require "kigo.pooling"

local Model = core.classes.Model
local trace_rows = Model.trace_rows

local GROUP_TOKENS, GROUP_SIZE = 8192, 64 -- of texts that share forward passes: their rows stand in memory together

-- <architecture>.pooling_type in files
local OF_FILE = { [0] = "mean", [1] = "mean", [2] = "cls", [3] = "last" }

---@class kigo.EmbedOptions
---@field pooling? "mean"|"last"|"cls"   what a text's vector is made of: the mean of all tokens, the last or the first
---one; default: what the file says (its pooling_type), else the mean
---@field normalize? boolean             to length 1; default true
local embed_options = { pooling = "string", normalize = "boolean" }

local function pooling_of(model, name)
  if name then return pooling.named(name, 3) end
  local architecture = model.gguf and model.gguf:get "general.architecture"
  local kind = architecture and model.gguf:get(architecture .. ".pooling_type") or 0
  if OF_FILE[kind] then return pooling.kinds[OF_FILE[kind]] end
  return nil, ("the file's pooling_type %s is not one of 0 to 3: say which pooling is meant"):format(tostring(kind)),
    core.err.UNSUPPORTED
end

local function is_ids(input) return type(input) == "table" and type(input[1]) == "number" end

---A text's ids, with what the file asks for before and behind it.
local function ids_of(model, input)
  if is_ids(input) then return input end
  if type(input) ~= "string" then error("embed: text, ids or a list of them expected, got " .. type(input), 4) end
  local tokenizer = model.tokenizer or error("the model was loaded without a tokenizer; work with token ids", 4)
  return tokenizer:encode(input, { bos = true, eos = true })
end

local function close_all(list)
  for _, handle in ipairs(list) do handle:close() end
end

---A sequence for each text, with the text on it.
local function fed_sequences(model, texts)
  local sequences = setmetatable({}, { __close = close_all })
  for i, ids in ipairs(texts) do
    local seq, message, code = model:sequence {}
    if not seq then
      close_all(sequences)
      return nil, message, code
    end
    sequences[i] = seq
    local fed
    fed, message, code = seq:feed(ids)
    if not fed then
      close_all(sequences)
      return nil, message, code
    end
  end
  return sequences
end

---All rows of `value`, a tensor a text.
local function all_rows(model, value, sequences, texts)
  local rows, message, code = pass.alone(model, trace_rows, model, sequences, value)
  if not rows then return nil, message, code end
  local list, at = {}, 0
  for i, ids in ipairs(texts) do
    list[i] = rows:rows(at, #ids)
    at = at + #ids
  end
  rows:close() -- the parts hold what they show
  return list
end

---The last row of `value`, likewise. Steps compute no more of it, nor of what comes behind: a large head for every row.
local function last_rows(model, value, sequences)
  local list = {}
  for i, seq in ipairs(sequences) do
    local hook, message, code = seq:hook(value, function(x) list[i] = x end)
    if not hook then return nil, message, code end
  end
  local done, message, code = pass.steps(model, sequences)
  if not done then return nil, message, code end
  return list
end

---Some texts that go through the model together, as a vector each.
local function vectors_of(model, value, texts, pool, normalize)
  local sequences <close>, why, fault = fed_sequences(model, texts)
  if not sequences then return nil, why, fault end
  local list, message, code = (pool == pooling.kinds.last and last_rows or all_rows)(model, value, sequences, texts)
  if not list then return nil, message, code end
  local vectors = {}
  for i, rows in ipairs(list) do
    local vector
    vector, message, code = pool(rows)
    rows:close()
    if vector and normalize then vector, message, code = pooling.to_length_one(vector) end
    if not vector then return nil, message, code end
    vectors[i] = vector
  end
  return vectors
end

---Texts [first, last] that go through the model together.
local function group_from(texts, first)
  local last, n = first, #texts[first]
  while last < #texts and last - first + 1 < GROUP_SIZE and n + #texts[last + 1] <= GROUP_TOKENS do
    last = last + 1
    n = n + #texts[last]
  end
  return last
end

---A text as a vector [width] on the model's device; of a list of texts a list of them. Texts share forward passes.
---@param input string|integer[]|(string|integer[])[]   text begins and ends as the file asks for (BOS, EOS); ids are
---taken as they are
---@param options? kigo.EmbedOptions
---@return kigo.Tensor|kigo.Tensor[]|nil
---@return string? message
---@return integer? code
function Model:embed(input, options)
  options = check.options(options, embed_options)
  local pool, message, code = pooling_of(self, options.pooling)
  if not pool then return nil, message, code end
  local _, value = self:residual()
  if not value then return nil, "this model's head does not read one value of its own", core.err.UNSUPPORTED end
  local is_one = type(input) == "string" or is_ids(input)
  local texts, vectors = {}, {}
  if not is_one and type(input) ~= "table" then
    error("embed: text, ids or a list of them expected, got " .. type(input), 2)
  end
  for i, text in ipairs(is_one and { input } or input) do
    texts[i], message, code = ids_of(self, text)
    if not texts[i] then return nil, message, code end
    if #texts[i] == 0 then error(("embed: text %d has no tokens"):format(i), 2) end
  end
  local first = 1
  while first <= #texts do
    local last = group_from(texts, first)
    local group = table.move(texts, first, last, 1, {})
    local made, why, fault = vectors_of(self, value, group, pool, options.normalize ~= false)
    if not made then return nil, why, fault end
    table.move(made, 1, #made, first, vectors)
    first = last + 1
  end
  return is_one and vectors[1] or vectors
end
