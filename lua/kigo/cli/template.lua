-- kigo template: what a model would really see of a conversation.
local common = require "kigo.cli.common"
local json = require "kigo.json"
local kigo = require "kigo"

-- On a terminal: control tokens, the template's own text, and what came from the context.
local CONTROL, OWN, CONTEXT, PLAIN = "\27[1;35m", "\27[36m", "\27[33m", "\27[0m"

local function read_file(path)
  local file = path == "-" and io.stdin or common.try(io.open(path, "rb"))
  local text = common.try(file:read "a")
  if file ~= io.stdin then file:close() end
  return text
end

---The variables of the template.
local function read_context(path)
  local context, message = json.decode(read_file(path))
  if context == nil then common.fail(path .. ": " .. message) end
  if not json.is_object(context) then common.fail(path .. ": an object of variables expected") end
  return context
end

---The template that the command line names, and a tokenizer where one is known.
local function find(path, options)
  local is_jinja = path:find "%.jinja$"
  if is_jinja and options.template then common.fail("--template is for models: a .jinja file is one template", 2) end
  if is_jinja and options.ids and not options.vocab then
    common.fail("--ids needs a vocabulary: give --vocab MODEL", 2)
  end
  local model = not is_jinja and path or options.vocab
  local gguf = model and common.try(kigo.open_gguf(model))
  local tokenizer = gguf and common.try(kigo.core.tokenizer(gguf, { pre = options.pre }))
  if is_jinja then return common.try(kigo.template.new(read_file(path), tokenizer, path)), tokenizer end
  return common.try(kigo.template.find(gguf, tokenizer, options.template)), tokenizer
end

local function write_colours(segments)
  for _, segment in ipairs(segments) do
    local colour = segment.control and CONTROL or segment.own and OWN or CONTEXT
    io.write(colour, segment.control or segment.text, PLAIN)
  end
  io.write "\n"
end

local function write_ids(segments, tokenizer)
  for _, id in ipairs(common.try(tokenizer:encode(segments))) do
    io.write(("%7d  %s\n"):format(id, common.quoted(tokenizer:piece(id))))
  end
end

return {
  name = "template", usage = "MODEL|FILE.jinja --context FILE.json [--now TIME] [--ids] ...",
  summary = "show what a model would really see of a conversation",
  arguments = { min = 1, max = 1 },
  options = {
    { name = "context", type = "string", argument = "FILE", required = true,
      help = "a JSON object of the template's variables: messages, add_generation_prompt ... (-: standard input)" },
    { name = "template", type = "string", argument = "NAME",
      help = "another template of the model's file, or a format of kigo's" },
    { name = "now", type = "string", argument = "TIME",
      help = 'the time that the template is told, like "2026-07-29 10:29:00" (default: the local time)' },
    { name = "ids", help = "show the tokens instead of the text" },
    { name = "vocab", type = "string", argument = "MODEL", help = "the vocabulary for a .jinja file" },
    common.pre_option,
  },
  notes = "In a pipe: exactly the text. On a terminal: control tokens, the template's own text and the context's text\n"
    .. "in three colours. What stands in the context never becomes a control token.",
  run = function(options, arguments)
    local template, tokenizer = find(arguments[1], options)
    local context = read_context(options.context)
    local segments = common.call(template.render_with, template, context, options.now)
    if options.ids then
      write_ids(segments, tokenizer)
    elseif kigo.core.is_terminal(1) then
      write_colours(segments)
    else
      io.write(kigo.template.text(segments))
    end
    return 0
  end,
}
