-- Chat templates: conversations in, typed segments out. Only the segments that a template itself marks as control may
-- become control tokens; roles come from a fixed set and contents are plain text, whatever they spell.
--
-- The registry holds one module per format. A template module has
--   name
--   recognise(source, tokenizer) -> Template | nil, why   from the Jinja text of the model file
--   new(tokenizer, options) -> Template | nil, why         for a caller who asks for the format by name
local check = require "kigo.check"
local core = require "kigo.core"
local chatml = require "kigo.template.chatml"
local jinja = require "kigo.template.jinja"

---@alias kigo.Segment string|{ text: string }|{ control: string }

---@class kigo.Message
---@field role "system"|"user"|"assistant"|"tool"
---@field content string

---@class kigo.Template
---@field name string
---@field render kigo.Template.render
---@field continue kigo.Template.continue

---@alias kigo.Template.render fun(self, messages: kigo.Message[], options: { generate: boolean? }?): kigo.Segment[]?
---@alias kigo.Template.continue fun(self, messages: kigo.Message[]): kigo.Segment[]?, string?, integer?

local template = { registry = { chatml } }

---Any Jinja text as a template; kigo.template.jinja says what it can do.
template.compile = jinja.compile

---Mark a string among a template's variables as the template's own: it may become a control token.
template.own = jinja.own

---Add a format; later ones are asked first.
---@param module table
function template.register(module)
  for _, name in ipairs { "recognise", "new" } do
    if type(module[name]) ~= "function" then error("template module: no function " .. name, 2) end
  end
  table.insert(template.registry, 1, module)
end

local function names()
  local list = {}
  for i, module in ipairs(template.registry) do list[i] = module.name end
  return table.concat(list, ", ")
end

---A format asked for by name.
local function by_name(name, tokenizer)
  for _, module in ipairs(template.registry) do
    if module.name == name then
      local found, why = module.new(tokenizer)
      if found then return found end
      return nil, ("chat template %s does not fit this model: %s"):format(name, why), core.err.UNSUPPORTED
    end
  end
  return nil, ("no chat template is called %s; known: %s"):format(check.quoted(name), names()), core.err.UNSUPPORTED
end

---The chat template of a model.
---@param source string?        the file's tokenizer.chat_template
---@param tokenizer kigo.Tokenizer
---@param name string?          a format by name instead of the file's
---@return kigo.Template?
---@return string? message      names the fixes
---@return integer? code
function template.find(source, tokenizer, name)
  if name then return by_name(name, tokenizer) end
  local why = "the file has no tokenizer.chat_template"
  if source then
    local reasons = {}
    for _, module in ipairs(template.registry) do
      local found, reason = module.recognise(source, tokenizer)
      if found then return found end
      reasons[#reasons + 1] = ("not %s: %s"):format(module.name, reason)
    end
    why = table.concat(reasons, "; ")
  end
  return nil, ("the model's chat template is not one that kigo knows (%s). Name a known one (template = \"chatml\", "
    .. "--template chatml; known: %s), register a template module with kigo.template.register, or feed the segments "
    .. "of the prompt yourself"):format(why, names()), core.err.UNSUPPORTED
end

return template
