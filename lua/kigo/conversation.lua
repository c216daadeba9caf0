-- A conversation on one timeline: what was said stays in the key/value cache. Every turn the template renders the whole
-- conversation again. Where that begins with what stands on the timeline, as it does with most templates, only the rest
-- is fed, and answers stay as the ids that were sampled. Where it does not (templates drop old reasoning, trim contents
-- or put tools into the last message), the timeline goes back to the first token that differs.
local core = require "kigo.core"
local check = require "kigo.check"
local parse = require "kigo.parse"
local sequence = require "kigo.sequence"
local template = require "kigo.template"

local conversation = {}

---@class kigo.ChatOptions: kigo.GenerateOptions, kigo.RenderOptions   generate and parser are chosen here
---@field seed? integer                    of the random numbers; default 0
---@field prefix_cache? boolean            false: evaluate every token of the prompt (Model:sequence)
---@field adapters? (kigo.Adapter|kigo.Adapted)[]   of the timeline (Model:sequence)
---@field template? string|kigo.Template   instead of the file's: one by name, or any other
---@field format? string                   of the answers, by name (lua/kigo/parse/); default: what the template teaches
conversation.options = { seed = "integer", prefix_cache = "boolean", adapters = "table", template = "string|table",
  format = "string" }
for name, wanted in pairs(sequence.generate_options) do conversation.options[name] = wanted end
for name, wanted in pairs(template.render_options) do conversation.options[name] = wanted end
conversation.options.generate, conversation.options.parser = nil, nil

---@class kigo.ChatStats
---@field prompt_tokens integer   that were fed
---@field reused_tokens integer   of those, found in the prefix cache
---@field prompt_s number         seconds until the first token could be sampled
---@field tokens integer
---@field decode_s number         seconds for the rest

---@class kigo.ChatResult: kigo.Generated
---@field answer kigo.ParsedAnswer
---@field message kigo.Message     the answer as a message, to go on with
---@field stats kigo.ChatStats

---The template that the options name. Some files have another one for conversations with tools.
---@return kigo.Template?
---@return string? message
---@return integer? code
function conversation.template(model, options)
  if type(options.template) == "table" then return options.template end
  local name = options.template
  if not name and options.tools and model.gguf:get "tokenizer.chat_template.tool_use" then name = "tool_use" end
  return model:template(name)
end

---Render the messages up to the head of the answer.
local function render(tpl, messages, options)
  local wanted = check.pick(options, template.render_options)
  wanted.generate = true
  return tpl:render(messages, wanted)
end

local function new_sequence(model, options)
  return model:sequence { seed = options.seed or 0, prefix_cache = options.prefix_cache, adapters = options.adapters }
end

---Feed what is due of a prompt and generate the answer.
local function answer(seq, due, options, parser)
  local before, reused, t0 = seq:pos(), seq.stats.n_tokens_reused, core.now()
  local pos, message, code = seq:feed(due)
  if not pos then return nil, message, code end
  local done
  done, message, code = seq:step()
  if not done then return nil, message, code end
  local t1 = core.now()
  reused = seq.stats.n_tokens_reused - reused
  local wanted = check.pick(options, sequence.generate_options)
  wanted.parser = parser
  local result
  result, message, code = seq:generate(wanted)
  if not result then return nil, message, code end
  ---@cast result kigo.ChatResult
  result.stats = { prompt_tokens = pos - before, reused_tokens = reused, prompt_s = t1 - t0, tokens = result.n_tokens,
    decode_s = core.now() - t1 }
  return result
end

local function parser_of(model, tpl, segments, options)
  return model:parser { template = tpl, format = options.format, prompt = segments, tools = options.tools }
end

---Answer messages with a sequence of its own.
---@param model kigo.Model
---@param messages kigo.Message[]
---@param options kigo.ChatOptions
---@return kigo.ChatResult?
---@return string? message
---@return integer? code
function conversation.chat(model, messages, options)
  local tpl, message, code = conversation.template(model, options)
  if not tpl then return nil, message, code end
  local segments
  segments, message, code = render(tpl, messages, options)
  if not segments then return nil, message, code end
  local parser = parser_of(model, tpl, segments, options)
  local seq <close>, why, kind = new_sequence(model, options)
  if not seq then return nil, why, kind end
  local result
  result, message, code = answer(seq, segments, options, parser)
  if not result then return nil, message, code end
  result.message = parse.message(result.answer, messages)
  return result
end

-- ---- more than one turn ----

---@class kigo.Conversation
---@field model kigo.Model
---@field seq kigo.Sequence
---@field template kigo.Template
---@field messages kigo.Message[]   what was said so far
---@field _text string?   what stands on the timeline, control tokens spelled out; nil: there is no going on from it
local Conversation = {}
Conversation.__index = Conversation
Conversation.__name = "kigo.Conversation"

---@class kigo.ConversationOptions: kigo.ChatOptions
---@field system? string   the system message
local known = { system = "string" }
for name, wanted in pairs(conversation.options) do known[name] = wanted end

-- What may differ from turn to turn.
local turn_options = check.pick(conversation.options, conversation.options)
for _, of_all in ipairs { "seed", "prefix_cache", "adapters", "template" } do turn_options[of_all] = nil end

---@param model kigo.Model
---@param options? kigo.ConversationOptions   the defaults of every turn
---@return kigo.Conversation?   a to-be-closed handle
---@return string? message
---@return integer? code
function conversation.new(model, options)
  options = check.options(options, known, 3)
  local tpl, message, code = conversation.template(model, options)
  if not tpl then return nil, message, code end
  local self = setmetatable({ model = model, template = tpl, _options = options }, Conversation)
  local done
  done, message, code = self:reset()
  if not done then return nil, message, code end
  return self
end

---Forget everything that was said.
---@return true?
---@return string? message
---@return integer? code
function Conversation:reset()
  self:close()
  local seq, message, code = new_sequence(self.model, self._options)
  if not seq then return nil, message, code end
  self.seq, self.messages, self._text = seq, {}, ""
  if self._options.system then self.messages[1] = { role = "system", content = self._options.system } end
  return true
end

---The segments behind the first n bytes of their text.
local function behind(segments, n)
  local rest = {}
  for _, segment in ipairs(segments) do
    local size = #(segment.control or segment.text)
    if n >= size then
      n = n - size
    elseif n == 0 then
      rest[#rest + 1] = segment
    elseif segment.control then
      return nil -- within a control token
    else
      rest[#rest + 1] = { text = segment.text:sub(n + 1), own = segment.own, special = segment.special }
      n = 0
    end
  end
  return rest
end

local function common_prefix(a, b)
  local n = 0
  while n < #a and n < #b and a[n + 1] == b[n + 1] do n = n + 1 end
  return n
end

---What has to be fed behind which position. Text can be cut where a control token begins and nowhere else: the ids of
---a text are not those of its parts.
---@return integer pos
---@return integer[]? due
---@return string? message
---@return integer? code
function Conversation:_due(segments)
  local tokenizer, here = self.model.tokenizer, self.seq:tokens()
  local text = template.text(segments)
  if self._text and text:sub(1, #self._text) == self._text then
    local rest = behind(segments, #self._text)
    local ids, message, code = tokenizer:encode(rest or {})
    if not ids then return #here, nil, message, code end
    if #here == 0 or (ids[1] and tokenizer:is_control(ids[1])) then return #here, ids end
  end
  local ids, message, code = tokenizer:encode(segments)
  if not ids then return #here, nil, message, code end
  local n = math.min(common_prefix(ids, here), #ids - 1) -- the last one is evaluated in any case
  return n, table.move(ids, n + 1, #ids, 1, {})
end

---The answer to these messages, on our timeline or, where it has to go back, on a copy that takes its place.
function Conversation:_answer(messages, options)
  local segments, message, code = render(self.template, messages, options)
  if not segments then return nil, message, code end
  local pos, due
  pos, due, message, code = self:_due(segments)
  if not due then return nil, message, code end
  local seq, mark = self.seq, self.seq:mark()
  if pos < seq:pos() then
    seq, message, code = seq:fork()
    if not seq then return nil, message, code end
    seq:rewind(pos)
  end
  local parser = parser_of(self.model, self.template, segments, options)
  local called, result, why, kind = pcall(answer, seq, due, options, parser)
  if not called or not result then
    if seq == self.seq then seq:rewind(mark) else seq:close() end
    if not called then error(result, 0) end
    return nil, why, kind
  end
  if seq ~= self.seq then
    self.seq:close()
    self.seq = seq
  end
  self._text = result.reason ~= "stop" and template.text(segments) .. result.spelled or nil
  return result
end

---Say something and generate the answer. When the prompt does not fit or is cancelled while it is evaluated, the
---conversation stays as it was; an answer that was cancelled or cut by the context stays as far as it came.
---@param words string|kigo.Message|kigo.Message[]   a text of the user's, or messages: the answers of tools
---@param options? kigo.ChatOptions   instead of the conversation's own, name by name
---@return kigo.ChatResult?
---@return string? message
---@return integer? code     kigo.err.FULL: reset, or use a model loaded with a larger ctx
function Conversation:say(words, options)
  if not self.seq then error("the conversation is closed", 2) end
  if type(words) == "string" then words = { role = "user", content = words } end
  if type(words) ~= "table" then error("text or messages expected, got " .. type(words), 2) end
  if not words.role and #words == 0 then error("messages: there are none", 2) end
  local merged = check.pick(self._options, turn_options)
  for name, value in pairs(check.options(options, turn_options)) do merged[name] = value end
  local messages = table.move(self.messages, 1, #self.messages, 1, {})
  for _, message in ipairs(words.role and { words } or words) do messages[#messages + 1] = message end
  local result, message, code = self:_answer(messages, merged)
  if not result then return nil, message, code end
  result.message = parse.message(result.answer, messages)
  messages[#messages + 1] = result.message
  self.messages = messages
  return result
end

function Conversation:close()
  if self.seq then self.seq:close() end
  self.seq = nil
end
Conversation.__close = Conversation.close
Conversation.__gc = Conversation.close

return conversation
