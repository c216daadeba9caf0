-- A conversation on one timeline: what was said stays in the key/value cache, and answers stay as the ids that were
-- sampled. They are never made into tokens a second time.
local core = require "kigo.core"
local check = require "kigo.check"
local sequence = require "kigo.sequence"

local conversation = {}

---Feed a prompt and generate; the result with its stats.
---@param seq kigo.Sequence
---@param prompt kigo.Segment[]|integer[]|string
---@param options? kigo.GenerateOptions
---@return kigo.ChatResult?
---@return string? message
---@return integer? code
function conversation.answer(seq, prompt, options)
  local before, t0 = seq:pos(), core.now()
  local pos, message, code = seq:feed(prompt)
  if not pos then return nil, message, code end
  local done
  done, message, code = seq:step()
  if not done then return nil, message, code end
  local t1 = core.now()
  local result
  result, message, code = seq:generate(options)
  if not result then return nil, message, code end
  ---@cast result kigo.ChatResult
  result.stats = { prompt_tokens = pos - before, prompt_s = t1 - t0, tokens = result.n_tokens,
    decode_s = core.now() - t1 }
  return result
end

---@class kigo.Conversation
---@field model kigo.Model
---@field seq kigo.Sequence
---@field template kigo.Template
local Conversation = {}
Conversation.__index = Conversation
Conversation.__name = "kigo.Conversation"

---@class kigo.ConversationOptions: kigo.GenerateOptions
---@field seed? integer
---@field template? string   a format by name instead of the file's
---@field system? string     the system message
local known = { seed = "integer", template = "string", system = "string" }
for name, wanted in pairs(sequence.generate_options) do known[name] = wanted end

---@param model kigo.Model
---@param options? kigo.ConversationOptions   sampling options are the defaults of every answer
---@return kigo.Conversation?   a to-be-closed handle
---@return string? message
---@return integer? code
function conversation.new(model, options)
  options = check.options(options, known, 3)
  local tpl, message, code = model:template(options.template)
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
  local seq, message, code = self.model:sequence { seed = self._options.seed or 0 }
  if not seq then return nil, message, code end
  self.seq = seq
  return true
end

---The new turn's segments: the whole head of the conversation first, later what follows the last answer.
function Conversation:_render(text)
  local user = { role = "user", content = text }
  if self.seq:pos() > 0 then return self.template:continue { user } end
  if not self._options.system then return self.template:render({ user }, { generate = true }) end
  return self.template:render({ { role = "system", content = self._options.system }, user }, { generate = true })
end

---Say something and generate the answer. When the prompt does not fit or is cancelled while it is evaluated, the
---conversation stays as it was; an answer that was cancelled or cut by the context stays as far as it came.
---@param text string
---@param options? kigo.GenerateOptions   instead of the conversation's own, name by name
---@return kigo.ChatResult?
---@return string? message
---@return integer? code     kigo.err.FULL: reset, or use a model loaded with a larger ctx
function Conversation:say(text, options)
  if not self.seq then error("the conversation is closed", 2) end
  local merged = check.pick(self._options, sequence.generate_options)
  for name, value in pairs(check.options(options, sequence.generate_options)) do merged[name] = value end
  local segments, message, code = self:_render(text)
  if not segments then return nil, message, code end
  local mark = self.seq:mark()
  local result
  result, message, code = conversation.answer(self.seq, segments, merged)
  if not result then
    self.seq:rewind(mark)
    return nil, message, code
  end
  return result
end

function Conversation:close()
  if self.seq then self.seq:close() end
  self.seq = nil
end
Conversation.__close = Conversation.close
Conversation.__gc = Conversation.close

return conversation
