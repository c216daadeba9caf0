-- The scripted half of kigo.Model: templates, parsers and chat. The class is made by engine/bind_model.c.
local core = require "kigo.core"
local batch = require "kigo.batch"
local check = require "kigo.check"
local conversation = require "kigo.conversation"
local parse = require "kigo.parse"
local pass = require "kigo.pass"
local template = require "kigo.template"
local values = require "kigo.values"

---@class kigo.Model
---@field path string
---@field gguf kigo.Gguf
---@field tokenizer kigo.Tokenizer?
local Model = core.classes.Model

local trace_names, new_sequence, logits_of = Model.trace, Model.sequence, Model.logits
local restore_now = Model.restore

---@class kigo.SequenceOptions
---@field seed? integer           of its random numbers; default 0
---@field prefix_cache? boolean   false: evaluate every token here, and leave nothing behind for others
---@field on_overflow? "error"|"shift"|fun(seq: kigo.Sequence, need: integer): boolean?   what to do when the context is
---full: lua/kigo/overflow.lua; default "error"
---@field keep? integer           tokens at the beginning that "shift" keeps; default 0
---@field adapters? (kigo.Adapter|kigo.Adapted)[]   at scale 1 unless they say so, as Sequence:adapt does; in this order
local sequence_options = { seed = "number", prefix_cache = "boolean", on_overflow = "string|function",
  keep = "integer", adapters = "table" }

---An adapter of a list, and its scale if it has one.
local function adapter_of(each)
  if type(each) == "table" then return each.adapter, each.scale end
  return each
end

---Turn the adapters of the options on.
---@return true?
---@return string? message
---@return integer? code
local function adapt(seq, adapters)
  for _, each in ipairs(adapters) do
    local done, message, code = seq:adapt(adapter_of(each))
    if not done then return nil, message, code end
  end
  return true
end

---A new timeline.
---@param options? kigo.SequenceOptions
---@return kigo.Sequence?   a to-be-closed handle
---@return string? message
---@return integer? code
function Model:sequence(options)
  local known = check.options(options, sequence_options)
  local policy = known.on_overflow
  if type(policy) == "string" and policy ~= "error" and policy ~= "shift" then
    error(('on_overflow: "error", "shift" or a function expected, got %q'):format(policy), 2)
  end
  local seq, message, code = pass.made(new_sequence(self, { seed = known.seed, prefix_cache = known.prefix_cache }))
  if seq and policy then seq.on_overflow, seq.keep = policy, known.keep end
  if seq and known.adapters then
    local done
    done, message, code = adapt(seq, known.adapters)
    if not done then
      seq:close()
      return nil, message, code
    end
  end
  return seq, message, code
end

---@class kigo.RestoreOptions
---@field adapters? (kigo.Adapter|kigo.Adapted)[]   those take part that the file names by their contents, in its order
---and at its scales
local restore_options = { adapters = "table" }

---A sequence that seq:save wrote: it goes on bit for bit as that one would have, on the same kind of device; its seed,
---random numbers, streams, adapters and state come with it. All of the file is checked first, and a refusal changes
---nothing: FORMAT for what is damaged or no such file, UNSUPPORTED for another model, KV type or version, or adapters
---that are not given, FULL where ctx or pool are too small. Where paths come from outside, the caller says which are
---allowed.
---@param path string
---@param options? kigo.RestoreOptions
---@return kigo.Sequence?   a to-be-closed handle
---@return string? message
---@return integer? code
function Model:restore(path, options)
  local adapters = {}
  for i, each in ipairs(check.options(options, restore_options).adapters or {}) do
    adapters[i] = adapter_of(each) or each -- what is none is refused there
  end
  return pass.made(pass.alone(self, restore_now, self, path, adapters))
end

---Evaluate what all of them wait for, in shared forward passes.
---@param sequences kigo.Sequence[]
---@return true?
---@return string? message
---@return integer? code
function Model:step(sequences) return pass.steps(self, sequences) end

---Sequence:draw of all of them, in shared forward passes; all or nothing.
---@param sequences kigo.Sequence[]
---@param chain kigo.Chain
---@param ahead? integer
---@return integer[]? ids
---@return string? message
---@return integer? code
function Model:draw(sequences, chain, ahead) return pass.draws(self, sequences, chain, ahead) end

---Run a body for every input, each in a coroutine with a sequence of its own: body(seq, input, i). All that wait for
---logits share forward passes; each computes what it would compute alone, bit for bit. Sequences that a body makes are
---closed with it, but for those that it returns.
---@param options? kigo.BatchOptions
---@param inputs any[]
---@param body fun(seq: kigo.Sequence, input: any, i: integer): any
---@return table? results   by input: the first value that its body returned, nil where it failed; n: #inputs
---@return table|string errors   by input, of those that failed: the error with its traceback, or the message that came
---with nil; or the message
---@return integer? code    kigo.err.CANCELLED: a progress function wants no more
function Model:batch(options, inputs, body) return batch.run(self, options, inputs, body) end

---The logits after every position, on a sequence of its own.
---@param ids integer[]
---@return kigo.Tensor? logits   [#ids, vocab_size]
---@return string? message
---@return integer? code
function Model:logits(ids) return pass.alone(self, logits_of, self, ids) end

---Add what stands under names of blocks under their numbers, where no block has two.
local function add_layers(kept, names)
  local by_layer = {}
  for _, name in ipairs(names) do
    local layer = values.layer(name)
    if layer then
      if by_layer[layer] then return end
      by_layer[layer] = name
    end
  end
  for layer, name in pairs(by_layer) do kept[layer] = kept[name] end
end

---Look inside: the values of the forward pass over these tokens, on a sequence of its own.
---@param ids integer[]
---@param patterns string|string[]   names of values; "*" stands for any characters: "blk.*.out"
---@param f? fun(value: kigo.Tensor, name: string, layer: integer?): any   what to keep of each; default: the value
---@return table<string|integer, any>? kept  by name, and by block (0-based) where no block has two; a value is a tensor
---[#ids, width]
---@return string[]|string names       those that were named, in order of computation; or the message
---@return integer? code
function Model:trace(ids, patterns, f)
  local names = values.match(self, patterns, "trace", 2)
  local kept, message, code = pass.alone(self, trace_names, self, ids, names)
  if not kept then return nil, message, code end
  if f then
    for _, name in ipairs(names) do kept[name] = f(kept[name], name, values.layer(name)) end
  end
  add_layers(kept, names)
  return kept, names
end

---The model's chat template, or another one by name.
---@param name? string       of a template in the file ("tool_use"), or of a format ("chatml")
---@return kigo.Template?
---@return string? message   names the fixes
---@return integer? code     kigo.err.UNSUPPORTED where there is none, kigo.err.FORMAT where it is no Jinja
function Model:template(name)
  if not self.tokenizer then return nil, "the model has no tokenizer, hence no chat template", core.err.UNSUPPORTED end
  return template.find(self.gguf, self.tokenizer, name)
end

---@class kigo.ModelParserOptions
---@field format? string             by name; default: the one that the template teaches
---@field template? kigo.Template    default: the model's own
---@field prompt? kigo.Segment[]|string   what the answer follows: does it end within a block of reasoning?
---@field tools? table[]
---@field hold? boolean              tell of calls when they are complete
local parser_options = { format = "string", template = "table", prompt = "table|string", tools = "table",
  hold = "boolean" }

---A parser of one answer: content, reasoning and tool calls.
---@param options? kigo.ModelParserOptions
---@return kigo.Parser
function Model:parser(options)
  options = check.options(options, parser_options)
  local source = options.template and options.template.source or self.gguf:get "tokenizer.chat_template"
  local format, think = parse.recognise(type(source) == "string" and source or nil)
  local prompt = options.prompt or ""
  if type(prompt) == "table" then prompt = template.text(prompt) end
  return parse.new(options.format or format, { think = think, thinking = parse.is_thinking(prompt, think),
    tools = options.tools, hold = options.hold })
end

---Answer a conversation with a sequence of its own.
---@param messages kigo.Message[]
---@param options? kigo.ChatOptions
---@return kigo.ChatResult?
---@return string? message
---@return integer? code
function Model:chat(messages, options)
  return conversation.chat(self, messages, check.options(options, conversation.options))
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
