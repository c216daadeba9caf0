-- The scripted half of kigo.Sequence: feeding text and templates, and generation on top of feed, step and push.
-- State has one home, C; this file adds methods to the class that engine/bind_sequence.c makes.
local core = require "kigo.core"
local check = require "kigo.check"
local logprobs = require "kigo.logprobs"
local overflow = require "kigo.overflow"
local pass = require "kigo.pass"
local receipt = require "kigo.receipt"
local sample = require "kigo.sample"
local speculate = require "kigo.speculate"
local values = require "kigo.values"

---@class kigo.Sequence
local Sequence = core.classes.Sequence

local feed_now, push_now, fork_now, hook_names = Sequence.feed, Sequence.push, Sequence.fork, Sequence.hook

local function feed_ids(seq, ids) return overflow.append(feed_now, seq, ids, #ids) end

---A token id list, as opposed to a list of segments.
local function is_ids(input) return type(input) == "table" and (#input == 0 or type(input[1]) == "number") end

---The model's tokenizer, or an error of the caller's caller.
local function need_tokenizer(model, level)
  return model.tokenizer or error("the model was loaded without a tokenizer; work with token ids", (level or 2) + 1)
end

---Append tokens, text or the segments of a template to the timeline; nothing is computed until a step. Text that
---opens a timeline gets the tokens that the model's file asks for there (BOS); segments and ids are taken as they are.
---On failure the sequence stays at its position.
---@param input integer[]|string|kigo.Segment[]
---@return integer? pos       position after the last token
---@return string? message
---@return integer? code      kigo.err.FULL when the context cannot hold them (seq.on_overflow: lua/kigo/overflow.lua)
function Sequence:feed(input)
  if is_ids(input) then return feed_ids(self, input) end
  if type(input) ~= "string" and type(input) ~= "table" then
    error("feed: ids, text or segments expected, got " .. type(input), 2)
  end
  local bos = type(input) == "string" and self:pos() == 0
  local ids, message, code = need_tokenizer(self.model):encode(input, { bos = bos })
  if not ids then return nil, message, code end
  return feed_ids(self, ids)
end

---Append one token, as feed does.
---@param id integer
---@return integer? pos
---@return string? message
---@return integer? code
function Sequence:push(id) return overflow.append(push_now, self, id, 1) end

---Evaluate what is pending. As everything that needs a forward pass: in a body of a scheduler the body waits for a pass
---that others share.
---@return true?
---@return string? message
---@return integer? code
function Sequence:step() return pass.step(self) end

---The id that chain(seq.logits, seq) gives, or nil, message, code. Up to `ahead` - 1 tokens further are drawn and
---evaluated in the same round trip to the device: a caller who pushes each id and draws again gets them without
---waiting, anybody else drops them. Nothing but the speed depends on it.
---@param chain kigo.Chain
---@param ahead? integer   1 to 1024; 1 unless given
---@return integer? id
---@return string? message
---@return integer? code
function Sequence:draw(chain, ahead) return pass.draw(self, chain, ahead) end

---A second timeline with the same past, whose cache pages are shared.
---@param options? { seed: integer? }   default: the same seed
---@return kigo.Sequence?   a to-be-closed handle
---@return string? message
---@return integer? code
function Sequence:fork(options)
  local fork, message, code = pass.made(fork_now(self, options))
  if fork and self.on_overflow then fork.on_overflow, fork.keep = self.on_overflow, self.keep end
  return fork, message, code
end

-- ---- a look inside ----

---Look at values of the forward pass of this sequence, and change them: until the hook is closed, every step of the
---sequence calls f for every one of them, with the rows of the tokens that it evaluates. Tokens that are evaluated
---already stay as they are, now and when the hook is gone (a model with recurrent state evaluates up to 16 of them
---again when it goes back). Prompts are cut: their rows come in several calls. Behind the last block's attention only
---rows are computed that lead to logits somebody wants, so that f sees the last one of a prompt there; model:trace
---shows them all. Hooks of one value are called in order of creation; forks have none. An error in f ends the step of
---this sequence, whose tokens stay pending, and is raised with a traceback when the others of the step are done.
---@param names string|string[]   of values (model:values()); "*" stands for any characters: "blk.14.out", "blk.*.out"
---@param f fun(x: kigo.Tensor, seq: kigo.Sequence, pos: integer, name: string)   x [rows, width], of positions from pos
---on, on the model's device: what f does to it in place goes on through the model; f may keep it
---@return kigo.Hook?   a to-be-closed handle; dropped, it stays until the sequence is closed
---@return string? message
---@return integer? code
function Sequence:hook(names, f)
  if type(f) ~= "function" then error("hook: function expected, got " .. type(f), 2) end
  return hook_names(self, values.match(self.model, names, "hook", 2), f)
end

-- ---- sampling options ----

-- Filters of kigo.SampleOptions (lua/kigo/sample.lua), whose names generate and chat take too.
local FILTERS = { top_k = "integer", top_p = "number", min_p = "number", typical = "number", top_n_sigma = "number",
  mirostat_tau = "number" }

local sample_options = {
  sample = "callable", temp = "number", repeat_penalty = "number", repeat_last = "integer",
  frequency_penalty = "number", presence_penalty = "number", bias = "table", mirostat_eta = "number",
  xtc_probability = "number", xtc_threshold = "number", dynatemp_range = "number", dynatemp_exponent = "number",
  dry_multiplier = "number", dry_base = "number", dry_allowed_length = "integer", dry_last = "integer",
  dry_breakers = "table",
}
for name, wanted in pairs(FILTERS) do sample_options[name] = wanted end

local DEFAULT_TEMP, DEFAULT_MIN_P = 0.8, 0.05

---The sampler that the options describe.
---@return kigo.Sampler
---@return boolean made  for this call alone
local function sampler(options, tokenizer)
  if options.sample then return options.sample, false end
  local stages = check.pick(options, sample_options)
  stages.temp = stages.temp or DEFAULT_TEMP
  if next(check.pick(options, FILTERS)) == nil then stages.min_p = DEFAULT_MIN_P end
  return sample.from_options(stages, tokenizer), true
end

-- ---- generation ----

---@class kigo.GenerateOptions: kigo.SampleOptions  temp is 0.8 and, when no filter is named, min_p is 0.05
---@field sample? kigo.Sampler     a chain or any function (logits, seq) -> id, instead of the others
---@field max? integer            most tokens to sample; default: what the context still holds
---@field stop? string|string[]   texts that end the answer; they are not part of it
---@field logprobs? boolean|integer  also report the log-probability of every sampled token; a number: and so many of
---the likeliest ones in its place
---@field receipt? boolean        also make a receipt of it (lua/kigo/receipt.lua)
---@field ahead? integer          most tokens that a chain draws in one round trip to the device (1 to 1024). Only the
---speed depends on it. Unless given: on a GPU 16, or 4 where somebody sees the text grow; elsewhere 1
---@field speculate? kigo.Speculator|boolean   guesses at what comes next (lua/kigo/speculate.lua); only the speed
---depends on it. true: what followed the same words before; unless given: what a constraint forces, where there is one
---@field constrain? kigo.Grammar|kigo.AnswerConstraint  what this answer must obey; behind it the sequence is free
---@field on_text? fun(text: string, id: integer?): boolean?  called after every token with the text that may be shown
---now (maybe ""), and with what was held back at the end (id is nil); false ends the answer
---@field parser? kigo.Parser     takes the answer apart (model:parser); it is used up by one answer
---@field on_delta? fun(delta: kigo.ParseDelta)   called with what the parser finds, as it comes
local generate_options = {
  max = "integer", stop = "string|table", logprobs = "boolean|integer", receipt = "boolean", on_text = "callable",
  parser = "table", on_delta = "callable", ahead = "integer", speculate = "callable|boolean",
  constrain = "any",
}
for name, wanted in pairs(sample_options) do generate_options[name] = wanted end

---A grammar with options: { grammar, after = "</think>" }.
---@class kigo.AnswerConstraint: kigo.ConstrainOptions
---@field [1] kigo.Grammar
local constrain_options = { [1] = "any", after = "string", within = "integer", points = "table" }

---@class kigo.Generated
---@field text string
---@field ids integer[]           the tokens of the answer, without the one that ended it; all on the timeline
---@field reason "stop"|"end"|"length"|"cancelled"
---@field n_tokens integer        #ids
---@field end_id integer?         the token that ended the answer, when reason is "end"; not on the timeline
---@field logprobs number[]?      of the ids, and of end_id when there is one
---@field top_logprobs kigo.Alternative[][]?  the likeliest in their places, best first
---@field mean_logprob number?
---@field receipt kigo.Receipt?
---@field speculated kigo.Speculated?  how well the speculator guessed
---@field answer kigo.ParsedAnswer?   what the parser found: content, reasoning and tool calls
---@field spelled string?             what the parser read: the text with control tokens spelled out

---One answer in the making. `next` samples a token; `result` is what generate returns.
---@class kigo.Generation
---@field result kigo.Generated
local Generation = {}
Generation.__index = Generation

function Generation:__close()
  if self.is_bound then pcall(self.seq.constrain, self.seq, nil) end -- the sequence may be closed
  self.out:close()
  if self.spelled then self.spelled:close() end
  if self.made_pick then self.pick:close() end
  if self.pace and not self.reason then pcall(self.pace.finish, self.pace) end -- the sequence may be closed
end

---Errors that are no strings are left as they are: their owner wants to know them again.
local function with_traceback(value)
  return type(value) == "string" and debug.traceback(value, 2) or value
end

---Call a function of the user's: its error reaches our caller with a traceback. The sequence is at its last token.
local function call(f, ...)
  local results = table.pack(xpcall(f, with_traceback, ...))
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

local function is_chain(pick) return type(pick) == "userdata" and getmetatable(pick).__name == "kigo.Chain" end

local AHEAD, AHEAD_SEEN, AHEAD_MAX = 16, 4, 1024

---How far to look ahead: not at all where something looks at the logits of every token.
---@param options kigo.GenerateOptions
---@param pick kigo.Sampler
---@param is_seen boolean  somebody is shown each token
---@return integer? ahead  nil: the sampler is a function, and called
local function look_ahead(model, options, pick, is_seen)
  if not is_chain(pick) or options.logprobs or options.receipt then return nil end
  if options.ahead then return options.ahead end
  if model:stats().device ~= "cuda" then return 1 end
  return is_seen and AHEAD_SEEN or AHEAD
end

---Constrain what follows, for the time of an answer.
local function bind(seq, wanted)
  local grammar, options = wanted, nil
  if type(wanted) == "table" then
    check.options(wanted, constrain_options, 4)
    grammar, options = wanted[1], { after = wanted.after, within = wanted.within, points = wanted.points }
  end
  local meta = type(grammar) == "userdata" and getmetatable(grammar)
  if not meta or meta.__name ~= "kigo.Grammar" then
    error(("constrain: a grammar expected (of kigo.json_schema, gbnf, regex or choice), got %s")
      :format(meta and meta.__name or type(grammar)), 4)
  end
  if seq:constraint() then
    error("constrain: the sequence has a constraint already; seq:constrain(nil) ends it", 4)
  end
  return seq:constrain(grammar, options)
end

---Start an answer; nil, message, code when the context cannot hold what is asked for.
---@param seq kigo.Sequence
---@param options kigo.GenerateOptions
---@param is_seen boolean
local function start(seq, options, is_seen)
  local model = seq.model
  if options.ahead and (options.ahead < 1 or options.ahead > AHEAD_MAX) then
    error(("ahead: %d is outside 1 to %d"):format(options.ahead, AHEAD_MAX), 3)
  end
  if not model.has_head then
    return nil, "the model has no head: it makes embeddings and cannot generate", core.err.UNSUPPORTED
  end
  local makes_room = overflow.has_policy(seq) and not options.receipt
  local room = makes_room and model.context or model.context - seq:pos()
  if options.max and options.max < 1 then error(("max: %d is not positive"):format(options.max), 3) end
  if options.max and options.max > room then
    return nil, ("%d tokens there and %d more (max) do not fit into the context of %d; ask for fewer, or load the "
      .. "model with a larger ctx"):format(seq:pos(), options.max, model.context), core.err.FULL
  end
  if room < 1 then
    return nil, ("the context of %d tokens is full"):format(model.context), core.err.FULL
  end
  local n_top = math.type(options.logprobs) and options.logprobs or nil
  if n_top and (n_top < 1 or n_top > model.vocab_size) then
    error(("logprobs: %d is outside 1 to %d"):format(n_top, model.vocab_size), 3)
  end
  local stop = options.stop
  if type(stop) == "string" then stop = { stop } end
  local timeline = seq:tokens()
  local tokenizer, last = need_tokenizer(model, 3), timeline[#timeline]
  local out = assert(core.stream(tokenizer, { stop = stop, after = last }))
  local spelled = options.parser and assert(core.stream(tokenizer, { stop = stop, after = last, control = true }))
  local pick, made_pick = sampler(options, model.tokenizer)
  local generation = setmetatable({ seq = seq, out = out, spelled = spelled, parser = options.parser,
    on_delta = options.on_delta, pick = pick, made_pick = made_pick, max = options.max or room, n_top = n_top,
    ahead = look_ahead(model, options, pick, is_seen), result = { text = "", ids = {}, n_tokens = 0,
      logprobs = options.logprobs and {} or nil, top_logprobs = n_top and {} or nil },
  }, Generation)
  local done, message, code = true, nil, nil
  if options.constrain then
    done, message, code = bind(seq, options.constrain)
    generation.is_bound = done ~= nil
  end
  if done and options.receipt then
    done, message, code = receipt.recorder(seq, pick)
    generation.recorder = done
  end
  if not done then
    generation:__close()
    return nil, message, code
  end
  generation.pace = speculate.pace(options.speculate, seq)
  return generation
end

---Have the sampler draw from the logits, which are there; an invalid id is its mistake and raises with the value.
local function pick_from(logits, seq, pick)
  local id, message, code = call(pick, logits, seq)
  if id == nil and math.type(code) == "integer" then return nil, message, code end
  local size = seq.model.vocab_size
  if math.type(id) ~= "integer" or id < 0 or id >= size then
    error(("the sampler returned %s, which is not a token id from 0 to %d")
      :format(type(id) == "string" and ("%q"):format(id) or tostring(id), size - 1), 0)
  end
  return id
end

function Generation:_sample()
  if self.pace then self.pace:before_draw(self.max - #self.result.ids - 1, call) end
  if self.ahead then
    local n = #self.result.ids
    -- Nobody waits for the first token's successors, and a guess goes on by itself.
    local ahead = (n == 0 or self.pace) and 1 or math.min(self.ahead, self.max - n)
    return call(self.seq.draw, self.seq, self.pick, ahead)
  end
  local done, message, code = self.seq:step()
  if not done then return nil, message, code end
  local logits = self.seq.logits
  local log_probs = self.result.logprobs and logits:log_softmax() -- before the sampler, which may work in place
  if self.recorder then
    done, message, code = self.recorder:look(logits)
    if not done then return nil, message, code end
  end
  local id
  id, message, code = pick_from(logits, self.seq, self.pick)
  if not id then return nil, message, code end
  if log_probs then
    table.insert(self.result.logprobs, log_probs[id])
    if self.n_top then table.insert(self.result.top_logprobs, logprobs.alternatives(log_probs, self.n_top)) end
    log_probs:close()
  end
  if self.recorder then self.recorder:drew(id) end
  return id
end

---Hand deltas to whom they concern.
function Generation:_tell(deltas)
  if not self.on_delta then return end
  for _, delta in ipairs(deltas) do call(self.on_delta, delta) end
end

---End the answer and let go of what the streams and the parser held back.
function Generation:_finish(reason)
  self.reason = reason
  local held = self.out:finish()
  local result = self.result
  if self.parser then
    self:_tell(self.parser:add(self.spelled:finish()))
    self:_tell(self.parser:finish())
    result.answer, result.spelled = self.parser:result(), self.spelled.text
  end
  if self.recorder then result.receipt = self.recorder:finish(reason) end
  if self.pace then result.speculated = self.pace:finish() end
  result.reason, result.text, result.n_tokens = reason, self.out.text, #result.ids
  if result.logprobs then
    local sum = 0
    for _, value in ipairs(result.logprobs) do sum = sum + value end
    result.mean_logprob = #result.logprobs > 0 and sum / #result.logprobs or 0
  end
  return held
end

---The next token: the text that may be shown now and its id; at the end the text that was held back and no id.
---nil when the answer is complete (`reason` is set), or nil, message, code when the engine failed.
---@return string? text
---@return integer|string|nil id
---@return integer? code
function Generation:next()
  if self.reason then return nil end
  local ids = self.result.ids
  if self.seq:is_over() then return self:_finish "end" end
  if #ids >= self.max then return self:_finish "length" end
  local id, message, code = self:_sample()
  if not id then return nil, message, code end
  local text = self.out:add(id)
  if self.parser then self:_tell(self.parser:add(self.spelled:add(id))) end
  if self.out.reason == "end" then
    self.result.end_id = id
    return text .. self:_finish "end"
  end
  local pushed
  pushed, message, code = self.seq:push(id)
  if not pushed then return nil, message, code end
  ids[#ids + 1] = id
  if self.out.stopped then
    self:_finish "stop"
  end
  return text, id
end

---Sample an answer onto the timeline. Every token of it is on the timeline, the end token is not.
---An error in the sampler or in on_text reaches the caller with a traceback; the sequence stays usable.
---@param options? kigo.GenerateOptions
---@return kigo.Generated?
---@return string? message
---@return integer? code   kigo.err.FULL, before anything is sampled, when the tokens there and max exceed the context
function Sequence:generate(options)
  options = check.options(options, generate_options)
  local generation <close>, message, code = start(self, options, (options.on_text or options.on_delta) ~= nil)
  if not generation then return nil, message, code end
  repeat
    local text, id, fault = generation:next()
    if fault then return nil, id, fault end
    if text and options.on_text and call(options.on_text, text, id) == false and not generation.reason then
      generation:_finish "cancelled"
    end
  until generation.reason
  return generation.result
end

local DRAFT_MAX = 64 -- ids that a pass takes along

---Compare a draft of any origin with what the sampler draws, in one pass (or one for 64 ids): the sampler runs behind
---every accepted id in order, with the sequence as it would stand without a draft. Accepted ids are on the timeline,
---and the id that was drawn behind them, which is the caller's to push, is not. Where the context is full that is the
---first one without a place. An error in the sampler leaves the timeline at the last accepted id, and so does a
---failure. The draft of an earlier Sequence:expect is forgotten.
---@param draft integer[]
---@param pick kigo.Sampler
---@return integer? n_accepted
---@return integer|string next_id, or a message
---@return integer? code
function Sequence:verify(draft, pick)
  if type(draft) ~= "table" then error("verify: ids expected, got " .. type(draft), 2) end
  check.options({ sampler = pick }, { sampler = "callable" })
  if pick == nil then error("verify: a sampler expected, got nil", 2) end
  self:expect(draft) -- which checks all of it
  local _ <close> = setmetatable({}, { __close = function() pcall(self.expect, self, {}) end })
  local is_drawn = is_chain(pick)
  for n = 0, math.huge do
    if n > 0 and self:pending() > 0 then -- further than the pass that was
      self:expect(table.move(draft, n + 1, math.min(#draft, n + DRAFT_MAX), 1, {}))
    end
    local id, message, code
    if is_drawn then
      id, message, code = self:draw(pick)
    else
      id, message, code = self:step()
      if id then id, message, code = pick_from(self.logits, self, pick) end
    end
    if not id then return nil, message, code end
    if id ~= draft[n + 1] or self:pos() == self.model.context then return n, id end
    id, message, code = self:push(id)
    if not id then return nil, message, code end
  end
end

---The same, a token at a time: `for i, text, id in seq:stream { max = 64 } do`. Text may be "" while the stream holds
---bytes back; the last round may bring held text without an id. A failure of the engine raises here.
---@param options? kigo.GenerateOptions
---@return fun(): integer?, string?, integer?
---@return nil
---@return nil
---@return kigo.Generation  closed when the loop is left
function Sequence:stream(options)
  options = check.options(options, generate_options)
  local generation, message = start(self, options, true)
  if not generation then error(message, 2) end
  local i = 0
  return function()
    local text, id, code = generation:next()
    if code then error(id, 2) end
    if not text then return nil end
    i = i + 1
    return i, text, id
  end, nil, nil, generation
end

return { class = Sequence, generate_options = generate_options }
