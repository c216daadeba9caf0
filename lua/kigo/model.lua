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

local trace_names = Model.trace

---"blk.*.out" as a pattern of Lua's: "*" stands for any characters, everything else for itself.
local function to_lua_pattern(pattern)
  return "^" .. pattern:gsub("[^%w_*]", "%%%0"):gsub("%*", ".*") .. "$"
end

---The values of the model that the patterns name, in order of computation; a pattern that names none raises.
local function matching_values(model, patterns)
  if type(patterns) == "string" then patterns = { patterns } end
  if type(patterns) ~= "table" then error("trace: names or patterns expected, got " .. type(patterns), 3) end
  local all, wanted, names = model:values(), {}, {}
  for _, pattern in ipairs(patterns) do
    if type(pattern) ~= "string" then error("trace: names or patterns expected, got " .. type(pattern), 3) end
    local lua_pattern, found = to_lua_pattern(pattern), false
    for i, name in ipairs(all) do
      if name:find(lua_pattern) then wanted[i], found = true, true end
    end
    if not found then error(("trace: the model has no value %q; model:values() lists them"):format(pattern), 3) end
  end
  for i, name in ipairs(all) do
    if wanted[i] then names[#names + 1] = name end
  end
  return names
end

---Look inside: the values of the forward pass over these tokens, on a sequence of its own.
---@param ids integer[]
---@param patterns string|string[]   names of values; "*" stands for any characters: "blk.*.out"
---@param f? fun(value: kigo.Tensor, name: string): any   what to keep of each value; default: the value itself
---@return table<string, any>? values  by name; a value is a tensor [#ids, width]
---@return string[]|string names       those that were named, in order of computation; or the message
---@return integer? code
function Model:trace(ids, patterns, f)
  local names = matching_values(self, patterns)
  local values, message, code = trace_names(self, ids, names)
  if not values then return nil, message, code end
  if f then
    for _, name in ipairs(names) do values[name] = f(values[name], name) end
  end
  return values, names
end

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
