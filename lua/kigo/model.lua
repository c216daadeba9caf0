-- The scripted half of kigo.Model: templates and chat. The class is made by engine/bind_model.c.
local core = require "kigo.core"
local check = require "kigo.check"
local conversation = require "kigo.conversation"
local sequence = require "kigo.sequence"
local template = require "kigo.template"

---@class kigo.Model
---@field path string
---@field gguf kigo.Gguf
---@field tokenizer kigo.Tokenizer?
local Model = core.classes.Model

---The model's chat template, or a format by name.
---@param name? string
---@return kigo.Template?
---@return string? message   names the fixes
---@return integer? code     kigo.err.UNSUPPORTED when the file's template is not one that kigo knows
function Model:template(name)
  local tokenizer = self.tokenizer
  if not tokenizer then return nil, "the model has no tokenizer, hence no chat template", core.err.UNSUPPORTED end
  local source = self.gguf:get "tokenizer.chat_template"
  return template.find(type(source) == "string" and source or nil, tokenizer, name)
end

---@class kigo.ChatOptions: kigo.GenerateOptions
---@field seed? integer       of the random numbers; default 0
---@field template? string    a format by name instead of the file's
local chat_options = { seed = "integer", template = "string" }
for name, wanted in pairs(sequence.generate_options) do chat_options[name] = wanted end

---@class kigo.ChatStats
---@field prompt_tokens integer
---@field prompt_s number     seconds until the first token could be sampled
---@field tokens integer
---@field decode_s number     seconds for the rest

---@class kigo.ChatResult: kigo.Generated
---@field stats kigo.ChatStats

---Answer a conversation with a sequence of its own.
---@param messages kigo.Message[]
---@param options? kigo.ChatOptions
---@return kigo.ChatResult?
---@return string? message
---@return integer? code
function Model:chat(messages, options)
  options = check.options(options, chat_options)
  local tpl, message, code = self:template(options.template)
  if not tpl then return nil, message, code end
  local segments
  segments, message, code = tpl:render(messages, { generate = true })
  if not segments then return nil, message, code end
  local seq <close>, why, kind = self:sequence { seed = options.seed or 0 }
  if not seq then return nil, why, kind end
  return conversation.answer(seq, segments, check.pick(options, sequence.generate_options))
end

---A conversation that stays on one timeline from turn to turn.
---@param options? kigo.ConversationOptions
---@return kigo.Conversation?
---@return string? message
---@return integer? code
function Model:conversation(options)
  return conversation.new(self, options)
end

return Model
