-- Speculation: guesses at what comes next, evaluated in the pass that the sequence needs anyway. A guess that is right
-- saves passes; one that is wrong costs some rows of one. What is said never depends on it: every id is drawn by the
-- sampler, at its own position, from its own logits (engine/draft.h).
--
-- A speculator is any function (seq, n) -> ids: at most n ids that may follow the timeline, or none. Those made here:
--
--   seq:generate { speculate = kigo.prompt_lookup {} }           what followed the same words before
--   seq:generate { speculate = kigo.ngrams {} }                  what mostly follows such words here
--   seq:generate { speculate = kigo.draft_model(small) }         what a smaller model with the same vocabulary says
--   seq:generate { speculate = kigo.first_of { a, b } }          b where a knows nothing
--   seq:generate { speculate = kigo.forced() }                   what the sequence's constraint leaves no choice about
--
-- A constrained sequence takes the last one unless told otherwise (speculate = false).
local core = require "kigo.core"
local check = require "kigo.check"

local speculate = {}

---@alias kigo.Speculator fun(seq: kigo.Sequence, n: integer): integer[]

---A speculator that says how many ids it is good for.
---@class kigo.MadeSpeculator
---@field max integer   ids of a draft, at most
---@field first integer? ids of the first draft, before anything is known of their worth
---@field private _draft kigo.Speculator
local Made = {}
Made.__index = Made
function Made:__call(seq, n) return self._draft(seq, n) end

local MAX, LIMIT = 16, 64

local function in_range(name, value, low, high)
  if value < low or value > high then error(("%s: %d is outside %d to %d"):format(name, value, low, high), 3) end
  return value
end

local function made(draft, max, more)
  local self = more or {}
  self.max, self._draft = max, draft
  return setmetatable(self, Made)
end

---@class kigo.PromptLookupOptions
---@field longest? integer    most last tokens to look for; default 6, at most 16
---@field shortest? integer   fewest; default 2
---@field max? integer        ids of a draft, at most; default 16
local lookup_options = { longest = "integer", shortest = "integer", max = "integer" }

---What followed the last tokens when they stood on the timeline before: good where answers repeat what was said, as
---summaries, corrections and code do.
---@param options? kigo.PromptLookupOptions
---@return kigo.MadeSpeculator
function speculate.prompt_lookup(options)
  options = check.options(options, lookup_options)
  local longest = in_range("longest", options.longest or 6, 1, 16)
  local shortest = in_range("shortest", options.shortest or math.min(2, longest), 1, longest)
  local max = in_range("max", options.max or MAX, 1, LIMIT)
  return made(function(seq, n) return seq:lookup(longest, shortest, n) end, max)
end

-- ---- what mostly follows ----

-- Up to three ids as one number; ids are below 2^21, or two contexts may share a guess.
local function context(ids, last, order)
  local key = order
  for i = last - order + 1, last do key = key << 21 ~ ids[i] end
  return key
end

---What was learnt from one timeline: the ids, and for each context the id that follows it most, with its lead.
local function new_memory() return { ids = {}, next = {}, lead = {} } end

local function learn(memory, order, i)
  local ids = memory.ids
  for n = 1, math.min(order, i - 1) do
    local key, id = context(ids, i - 1, n), ids[i]
    local lead = memory.lead[key] or 0
    if memory.next[key] == id then
      memory.lead[key] = lead + 1
    elseif lead <= 1 then
      memory.next[key], memory.lead[key] = id, 1
    else
      memory.lead[key] = lead - 1
    end
  end
end

local OVERLAP = 8 -- tokens that show that a timeline goes on from where it was learnt

---Learn what the timeline says since last time. A timeline that went back is read again from there; its old ways are
---remembered, as guesses may be.
local function follow(memory, seq, order)
  local ids = memory.ids
  for i = #ids, seq:pos() + 1, -1 do ids[i] = nil end
  local from = math.max(#ids - OVERLAP, 0)
  local new = seq:tokens(from)
  for i = from + 1, #ids do
    if ids[i] ~= new[i - from] then
      ids, from, new = {}, 0, seq:tokens()
      memory.ids = ids
      break
    end
  end
  for i = #ids + 1, from + #new do
    ids[i] = new[i - from]
    learn(memory, order, i)
  end
end

---@class kigo.NgramsOptions
---@field order? integer   most tokens that the next one is guessed from; default 3, at most 3
---@field max? integer     ids of a draft, at most; default 16
local ngram_options = { order = "integer", max = "integer" }

---What mostly follows the last one to three tokens, as far as the timeline has shown, id by id.
---@param options? kigo.NgramsOptions
---@return kigo.MadeSpeculator
function speculate.ngrams(options)
  options = check.options(options, ngram_options)
  local order = in_range("order", options.order or 3, 1, 3)
  local max = in_range("max", options.max or MAX, 1, LIMIT)
  local memories = setmetatable({}, { __mode = "k" }) -- by sequence
  return made(function(seq, n)
    local memory = memories[seq] or new_memory()
    memories[seq] = memory
    follow(memory, seq, order)
    local ids = memory.ids
    local here = table.move(ids, math.max(1, #ids - order + 1), #ids, 1, {})
    local draft = {}
    for _ = 1, n do
      local id
      for length = math.min(order, #here), 1, -1 do
        id = memory.next[context(here, #here, length)]
        if id then break end
      end
      if not id then break end
      draft[#draft + 1], here[#here + 1] = id, id
    end
    return draft
  end, max)
end

-- ---- a smaller model ----

local function vocabulary(model) return model.gguf and model.gguf:get "tokenizer.ggml.tokens" end

---Do ids mean the same to both? Files pad their vocabularies differently; the texts count.
local function speaks_like(a, b)
  local ours, theirs = vocabulary(a), vocabulary(b)
  if not (ours and theirs) then return a.vocab_size == b.vocab_size end
  for i = 1, math.min(#ours, #theirs) do
    if ours[i] ~= theirs[i] then return false end
  end
  return true
end

---A speculator that asks another model. It has timelines of that model; close it when they are not needed any more.
---@class kigo.DraftModel: kigo.MadeSpeculator
---@field private _sequences table<kigo.Sequence, kigo.Sequence>
local DraftModel = setmetatable({}, { __index = Made })
DraftModel.__index, DraftModel.__call = DraftModel, Made.__call

function DraftModel:close()
  for seq, own in pairs(self._sequences) do
    own:close()
    self._sequences[seq] = nil
  end
end
DraftModel.__close = DraftModel.close

---The draft model's timeline for a sequence, brought to where that stands; nil where there is no room for it.
local function beside(self, seq, model)
  local own = self._sequences[seq]
  local is_open, n_common = pcall(function() return own:common(seq) end) -- a scheduler closes what its bodies made
  if not is_open then
    own = model:sequence {}
    if not own then return nil end
    self._sequences[seq], n_common = own, 0
  end
  own:rewind(n_common)
  local due = seq:tokens(own:pos())
  for _, id in ipairs(due) do
    if id >= model.vocab_size then return nil end -- the file's padding
  end
  return own:feed(due) and own
end

---@class kigo.DraftModelOptions
---@field sample? kigo.Chain   how the draft model draws; default: what it finds likeliest
---@field max? integer         ids of a draft, at most; default 8
local draft_model_options = { sample = "callable", max = "integer" }

---What another model with the same vocabulary says. Its timelines follow and go back with the sequences that ask.
---@param model kigo.Model
---@param options? kigo.DraftModelOptions
---@return kigo.DraftModel   a to-be-closed handle
function speculate.draft_model(model, options)
  options = check.options(options, draft_model_options)
  local meta = type(model) == "userdata" and getmetatable(model)
  if not meta or meta.__name ~= "kigo.Model" then error("draft_model: a model expected, got " .. type(model), 2) end
  local chain = options.sample or core.chain { { kind = "greedy" } }
  local max = in_range("max", options.max or 8, 1, LIMIT)
  local known = setmetatable({}, { __mode = "k" }) -- models that were compared
  local self = setmetatable({ max = max, _sequences = setmetatable({}, { __mode = "k" }) }, DraftModel)
  function self._draft(seq, n)
    local target = seq.model
    if known[target] == nil then known[target] = speaks_like(target, model) end
    if not known[target] then error("the draft model has another vocabulary", 0) end
    local own = beside(self, seq, model)
    local ids = {}
    for i = 1, own and n or 0 do
      local id = own:draw(chain)
      if not id or id >= target.vocab_size then break end
      ids[i] = id
      if i < n and not own:push(id) then break end
    end
    return ids
  end
  return self
end

-- ---- no choice ----

---The ids that the sequence's constraint forces: mostly what is drawn, but a text may have other tokens too.
---@return kigo.MadeSpeculator
function speculate.forced()
  return made(function(seq) return seq:forced() or {} end, LIMIT, { first = LIMIT })
end

-- ---- several ----

---The first one of these that has a guess.
---@param speculators kigo.Speculator[]
---@return kigo.MadeSpeculator
function speculate.first_of(speculators)
  if type(speculators) ~= "table" then error("first_of: a list expected, got " .. type(speculators), 2) end
  local max, first = 1, nil
  for i, one in ipairs(speculators) do
    check.options({ [i] = one }, { [i] = "callable" })
    local is_made = type(one) == "table"
    max = math.max(max, is_made and one.max or MAX)
    first = is_made and one.first or first
  end
  return made(function(seq, n)
    for _, one in ipairs(speculators) do
      local ids = one(seq, n)
      if #ids > 0 then return ids end
    end
    return {}
  end, max, { first = first })
end

-- ---- how far to guess ----

---How many ids to guess: more where guesses are right, fewer where not, none for some passes where they never are.
---@class kigo.Pace
---@field n_passes integer
local Pace = {}
Pace.__index = Pace

local FIRST, MISSES, REST_MOST = 4, 3, 16

---What an option of this name means for a sequence, or nil.
---@param option kigo.Speculator|boolean?   true: prompt_lookup; nil: what a constraint forces, where there is one
---@param seq kigo.Sequence
---@return kigo.Pace?
function speculate.pace(option, seq)
  if option == false then return nil end
  local draft = option == true and speculate.prompt_lookup() or option
  if seq:constraint() then draft = draft and speculate.first_of { speculate.forced(), draft } or speculate.forced() end
  if not draft then return nil end
  local is_made, stats = type(draft) == "table", seq.stats
  local max = is_made and math.min(draft.max or MAX, LIMIT) or MAX
  local first = is_made and draft.first or FIRST
  return setmetatable({ seq = seq, draft = draft, max = max, n = math.min(first, max), misses = 0, rest = 0,
    n_passes = 0, first = stats, last = stats }, Pace)
end

---Learn from how far the last guess went.
function Pace:_adapt()
  local stats = self.seq.stats
  local drafted, accepted = stats.n_drafted - self.last.n_drafted, stats.n_accepted - self.last.n_accepted
  self.last = stats
  if drafted == 0 then return end
  if accepted == drafted then
    self.n = math.min(self.max, 2 * self.n)
  else
    self.n = math.min(self.max, accepted + 1)
  end
  self.misses = accepted == 0 and self.misses + 1 or 0
  if self.misses >= MISSES then self.rest = math.min(REST_MOST, 1 << math.min(self.misses - MISSES, 8)) end
end

---Before an id is drawn: where that takes a pass, have it take a guess along.
---@param room integer   ids that may still be pushed behind the drawn one
---@param call fun(f: function, ...): any   calls the user's function
function Pace:before_draw(room, call)
  local seq = self.seq
  if seq:pending() == 0 then return end
  self.n_passes = self.n_passes + 1
  self:_adapt()
  if self.rest > 0 then
    self.rest = self.rest - 1
    return
  end
  local n = math.min(self.n, room)
  if n < 1 then return end
  local ids = call(self.draft, seq, n)
  if type(ids) ~= "table" then error("the speculator returned " .. type(ids) .. " instead of ids", 0) end
  if #ids > n then ids = table.move(ids, 1, n, 1, {}) end
  if #ids > 0 then call(seq.expect, seq, ids) end
end

---@class kigo.Speculated
---@field n_drafted integer    ids guessed and evaluated
---@field n_accepted integer   of those, drawn
---@field n_passes integer     forward passes that the answer took

---Forget the rest of the last guess.
---@return kigo.Speculated
function Pace:finish()
  self.seq:expect {}
  local stats = self.seq.stats
  return { n_drafted = stats.n_drafted - self.first.n_drafted, n_accepted = stats.n_accepted - self.first.n_accepted,
    n_passes = self.n_passes }
end

return speculate
