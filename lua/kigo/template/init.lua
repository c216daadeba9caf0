-- Chat templates: conversations in, typed segments out. Only what a template itself writes may become control tokens;
-- what stands in messages, tools and variables is plain text, whatever it spells.
--
-- The template of a model is the Jinja text in its file, run as it is (lua/kigo/template/jinja/). Beside it there are
-- formats written as Lua functions, each asked for by name: a table with
--   name
--   render(messages, options) -> segments | nil, message, code
--              messages hold a role and a string as content; options: generate, bos_token, eos_token, variables
--   roles      those that it knows; default system, user, assistant
--   controls   tokens without which a vocabulary is not made for it
local check = require "kigo.check"
local core = require "kigo.core"
local jinja = require "kigo.template.jinja"
local json = require "kigo.json"
local messages_of = require "kigo.template.messages"

---Text, whatever it spells, or the spelling of one control token. `own`: the template wrote the text.
---@alias kigo.Segment string|{ text: string, own: boolean? }|{ control: string }

---@class kigo.RenderOptions
---@field generate? boolean          end with the head of the assistant's turn
---@field tools? table[]             what may be called: { type = "function", ["function"] = { name = ..., ... } }
---@field documents? table[]
---@field enable_thinking? boolean
---@field variables? table           any other variable of the template, by name
---@field now? string                "2026-07-29 10:29:00": the time that a template is told; default: the local time
local render_options = { generate = "boolean", tools = "table", documents = "table", enable_thinking = "boolean",
  variables = "table", now = "string" }

---@class kigo.TemplateFormat
---@field name string
---@field render fun(messages: kigo.Message[], options: table): kigo.Segment[]?, string?, integer?
---@field roles? string[]
---@field controls? string[]

local template = { formats = {}, render_options = render_options }

---Any Jinja text as a template; kigo.template.jinja says what it can do.
template.compile = jinja.compile

---Mark a string among a template's variables as the template's own: it may become a control token.
template.own = jinja.own

for _, name in ipairs { "chatml", "llama3", "gemma", "mistral", "phi" } do
  for _, format in ipairs(require("kigo.template." .. name)) do table.insert(template.formats, format) end
end

---Add a format; later ones are found first.
---@param format kigo.TemplateFormat
function template.register(format)
  if type(format) ~= "table" then error("format: table expected, got " .. type(format), 2) end
  if type(format.name) ~= "string" then error("format: no name", 2) end
  if type(format.render) ~= "function" then error("format: no function render", 2) end
  table.insert(template.formats, 1, format)
end

-- ---- templates ----

---@class kigo.Template
---@field name string      of a format, or of a template in the file; "chat_template" is the file's first
---@field source string?   Jinja text
local Template = {}
Template.__index = Template
Template.__name = "kigo.Template"

---The variables of a template, named as those who write templates know them.
local function variables_of(messages, options)
  local variables = { messages = messages, add_generation_prompt = options.generate or false,
    tools = options.tools or json.null, documents = options.documents or json.null,
    enable_thinking = options.enable_thinking }
  for name, value in pairs(options.variables or {}) do variables[name] = value end
  return variables
end

---Render. What Jinja raises for variables or the time is the mistake of the caller at this level; what else raises, a
---function of the user's too, is left as it is.
local function render(self, variables, now, level)
  local all = {}
  for name, text in pairs(self._tokens) do all[name] = text end
  for name, value in pairs(variables) do all[name] = value end
  if not self.source then return self._render(all) end
  local called, segments, message, code = pcall(self._render, all, now)
  if called then return segments, message, code end
  local raised = type(segments) == "string" and segments:match "^[^\n]-:%d+: (.*)$" or ""
  local is_mistake = raised:find "^variables" or raised:find "^option "
  error(is_mistake and raised or segments, is_mistake and level + 1 or 0)
end

---A whole conversation as segments.
---@param messages kigo.Message[]
---@param options? kigo.RenderOptions
---@return kigo.Segment[]?
---@return string? message   what the template raised, or where it failed
---@return integer? code
function Template:render(messages, options)
  messages_of.check(messages, 2)
  options = check.options(options, render_options)
  local segments, message, code = render(self, variables_of(messages, options), options.now, 2)
  return segments, message, code
end

---The same from nothing but variables: messages, add_generation_prompt and whatever else the template reads. Those for
---the special tokens (bos_token ...) are added where they are missing.
---@param variables table
---@param now? string   the time that the template is told
---@return kigo.Segment[]?
---@return string? message
---@return integer? code
function Template:render_with(variables, now)
  if type(variables) ~= "table" then error("variables: table expected, got " .. type(variables), 2) end
  local segments, message, code = render(self, variables, now, 2)
  return segments, message, code
end

---The same as plain text, control tokens spelled out. Only for eyes: text cannot say what may become a control token.
---@param messages kigo.Message[]
---@param options? kigo.RenderOptions
---@return string?
---@return string? message
---@return integer? code
function Template:text(messages, options)
  local segments, message, code = self:render(messages, options)
  if not segments then return nil, message, code end
  return template.text(segments)
end

---Segments as plain text.
---@param segments kigo.Segment[]
---@return string
function template.text(segments)
  local parts = {}
  for i, segment in ipairs(segments) do
    parts[i] = type(segment) == "string" and segment or segment.control or segment.text
  end
  return table.concat(parts)
end

-- ---- of Jinja ----

-- Tokens that templates are told by name, and what the tokenizer calls them.
local TOKENS = { bos_token = "bos", eos_token = "eos", unk_token = "unk", pad_token = "pad", sep_token = "sep",
  cls_token = "cls", mask_token = "mask" }

---How the special tokens are spelled.
---@param tokenizer kigo.Tokenizer?
---@return table<string, string>
local function special_tokens(tokenizer)
  local tokens = {}
  for name, field in pairs(TOKENS) do
    local id = tokenizer and tokenizer[field]
    tokens[name] = id and tokenizer:piece(id) or nil
  end
  return tokens
end

-- Roles that templates write between their markers; like the markers they count as the template's own.
local OWN_ROLES = { system = true, developer = true, user = true, assistant = true, tool = true, ipython = true }

---A message as the template gets it; its keys keep their order.
local function with_own_role(message)
  if type(message) ~= "table" or not OWN_ROLES[message.role] then return message end
  local copy = json.is_object(message) and setmetatable({}, getmetatable(message)) or {}
  for field, value in pairs(message) do copy[field] = value end
  copy.tool_calls = messages_of.ordered(message.tool_calls)
  copy.role = jinja.own(message.role)
  return copy
end

---Mark what is the template's own among its variables (the spellings of special tokens, and known roles), and put the
---keys of tools into order.
local function prepare(variables)
  for name in pairs(TOKENS) do
    if type(variables[name]) == "string" then variables[name] = jinja.own(variables[name]) end
  end
  if type(variables.messages) == "table" and #variables.messages > 0 then
    local messages = {}
    for i, message in ipairs(variables.messages) do messages[i] = with_own_role(message) end
    variables.messages = messages
  end
  variables.tools = messages_of.ordered(variables.tools)
  return variables
end

---What a template wrote, as segments. Its own text may spell control tokens of the vocabulary.
---@param runs kigo.jinja.Text
---@param tokenizer kigo.Tokenizer?
---@return kigo.Segment[]
local function to_segments(runs, tokenizer)
  local segments = {}
  for _, run in ipairs(runs) do
    local parts = run.own and tokenizer and tokenizer:segments(run.text) or { { text = run.text } }
    for _, part in ipairs(parts) do
      part.own = part.text and run.own or nil
      segments[#segments + 1] = part
    end
  end
  return segments
end

---A template from Jinja text.
---@param source string
---@param tokenizer? kigo.Tokenizer   nil: only text is wanted
---@param name? string
---@return kigo.Template?
---@return string? message   names line and column
---@return integer? code
function template.new(source, tokenizer, name)
  name = name or "chat_template"
  local compiled, message, code = jinja.compile(source, { name = name })
  if not compiled then return nil, message, code end
  local function render_jinja(variables, now)
    local runs, why, kind = compiled:render(prepare(variables), { now = now })
    if not runs then return nil, why, kind end
    return to_segments(runs, tokenizer)
  end
  return setmetatable({ name = name, source = source, _tokens = special_tokens(tokenizer), _render = render_jinja },
    Template)
end

-- ---- of Lua ----

local DEFAULT_ROLES = { "system", "user", "assistant" }

local function of_format(format, tokenizer)
  for _, text in ipairs(format.controls or {}) do
    if not tokenizer:control(text) then
      return nil, ("chat template %s does not fit this model: the vocabulary has no control token %s"):format(
        format.name, text), core.err.UNSUPPORTED
    end
  end
  local roles = {}
  for _, role in ipairs(format.roles or DEFAULT_ROLES) do roles[role] = true end
  local function render_lua(variables)
    messages_of.check(variables.messages, 1)
    local plain, why = messages_of.plain(variables.messages, roles)
    if not plain then
      return nil, ("the %s template does not write %s"):format(format.name, why), core.err.UNSUPPORTED
    end
    return format.render(plain, { generate = variables.add_generation_prompt or false,
      bos_token = variables.bos_token, eos_token = variables.eos_token, variables = variables })
  end
  return setmetatable({ name = format.name, _tokens = special_tokens(tokenizer), _render = render_lua }, Template)
end

-- ---- finding one ----

---The Jinja texts of a model file by name.
---@param gguf kigo.Gguf
---@return table<string, string>
---@return string[] names   sorted
local function sources_of(gguf)
  local sources, names = {}, {}
  for _, entry in ipairs(gguf:entries()) do
    local name = entry.key:match "^tokenizer%.chat_template%.(.+)$"
      or (entry.key == "tokenizer.chat_template" and "chat_template")
    if name and entry.type == "string" and not entry.is_array then
      sources[name] = gguf:get(entry.key)
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return sources, names
end

local function format_names()
  local names = {}
  for i, format in ipairs(template.formats) do names[i] = format.name end
  return table.concat(names, ", ")
end

---The chat template of a model: the file's own, or another one by name.
---@param gguf kigo.Gguf
---@param tokenizer kigo.Tokenizer
---@param name string?   of a template in the file ("tool_use"), of a format ("chatml")
---@return kigo.Template?
---@return string? message   names the fixes
---@return integer? code
function template.find(gguf, tokenizer, name)
  local sources, names = sources_of(gguf)
  local source = sources[name or "chat_template"] or (not name and sources.default)
  if source then return template.new(source, tokenizer, name) end
  for _, format in ipairs(template.formats) do
    if format.name == name then return of_format(format, tokenizer) end
  end
  local in_file = #names > 0 and "the file has " .. table.concat(names, ", ") or "the file has none"
  if name then
    return nil, ("no chat template is called %s: %s; written in Lua are %s"):format(check.quoted(name), in_file,
      format_names()), core.err.UNSUPPORTED
  end
  return nil, ("the model's file has no chat template. Name one (template = \"chatml\", --template chatml; known: %s), "
    .. "register one of your own with kigo.template.register, or feed the segments of the prompt yourself"):format(
      format_names()), core.err.UNSUPPORTED
end

return template
