-- What a model said, taken apart: content, reasoning and tool calls, whole or while it arrives.
--
--   local parser = kigo.parse.new("hermes")          -- or model:parser(), which knows the model's format
--   for _, delta in ipairs(parser:add(text)) do ... end
--   for _, delta in ipairs(parser:finish()) do ... end
--   local answer = parser:result()                   -- answer.content, answer.reasoning, answer.tool_calls
--
-- Text that fits no format is content, as it was written; nothing a model writes is an error. Where a text is cut into
-- pieces does not matter. Control tokens must be spelled out in it: tokenizer:decode and kigo.stream do so with
-- { control = true }; model:chat and seq:generate with a parser take care of it.
--
-- A format is a table in a file beside this one:
--   name
--   recognise(source) -> boolean              does this chat template (the Jinja text) teach the format?
--   markers, read(reader, answer, marker, options) -> true | nil
--                                             texts that begin a block of calls, and the function that reads one from
--                                             behind its marker; nil: it does not fit
--   starts                                    a byte that may begin a block at the start of an answer
--   run(reader, answer, decode)               instead of all that: reads the whole answer
local check = require "kigo.check"
local json = require "kigo.json"
local new_answer = require("kigo.parse.answer").new
local new_reader = require("kigo.parse.reader").new

---@class kigo.parse.Format
---@field name string
---@field recognise fun(source: string): boolean
---@field markers string[]?
---@field read? fun(reader: kigo.parse.Reader, answer: kigo.parse.Answer, marker: string?, options: table): true?
---@field starts string?
---@field run? fun(reader: kigo.parse.Reader, answer: kigo.parse.Answer, decode: function)

---@class kigo.ParserOptions
---@field thinking? boolean       the prompt ends within a block of reasoning
---@field think? string[]         the two markers of reasoning; default <think> and </think>
---@field tools? table[]          the tools of the prompt: formats without JSON learn types from their schemas
---@field hold? boolean           calls come when they are complete, and are never withdrawn
local known_options = { thinking = "boolean", think = "table", tools = "table", hold = "boolean" }

local parse = { formats = {} }

-- A template may show several: the one that only one format uses is asked for first.
for _, name in ipairs { "harmony", "deepseek", "mistral", "gemma", "tagged", "marked", "llama3" } do
  for _, format in ipairs(require("kigo.parse." .. name)) do table.insert(parse.formats, format) end
end
table.insert(parse.formats, require("kigo.parse.python").format)
table.insert(parse.formats, { name = "plain", markers = {}, recognise = function() return true end })

---Add a format; later ones are asked first.
---@param format kigo.parse.Format
function parse.register(format)
  if type(format) ~= "table" or type(format.name) ~= "string" then error("format: no name", 2) end
  if type(format.recognise) ~= "function" then error("format: no function recognise", 2) end
  if type(format.run or format.read) ~= "function" then error("format: no function run or read", 2) end
  table.insert(parse.formats, 1, format)
end

local THINK = { "<think>", "</think>" }
local OTHER_THINK = { { "[THINK]", "[/THINK]" }, { "<|START_THINKING|>", "<|END_THINKING|>" },
  { "<seed:think>", "</seed:think>" }, { "<|channel>thought", "<channel|>" } }

---Which format a chat template teaches, and its markers of reasoning.
---@param source string?   nil: no template
---@return string name
---@return string[] think
function parse.recognise(source)
  source = source or ""
  local think = THINK
  for _, pair in ipairs(OTHER_THINK) do
    if source:find(pair[1], 1, true) then think = pair end
  end
  for _, format in ipairs(parse.formats) do
    if format.recognise(source) then return format.name, think end
  end
  return "plain", think
end

---Does a prompt end within a block of reasoning, so that the answer goes on there?
---@param prompt string
---@param think? string[]
---@return boolean
function parse.is_thinking(prompt, think)
  local tail = prompt:match "^.*%S" or ""
  local open = (think or THINK)[1]
  return tail:sub(-#open) == open
end

---@param name string
---@return kigo.parse.Format
local function format_named(name)
  local names = {}
  for i, format in ipairs(parse.formats) do
    if format.name == name then return format end
    names[i] = format.name
  end
  error(("no format of answers is called %s; known: %s"):format(check.quoted(name), table.concat(names, ", ")), 3)
end

---The schemas of the arguments by tool and name.
local function schemas_of(tools)
  local schemas = {}
  for _, tool in ipairs(tools or {}) do
    local f = type(tool) == "table" and (tool["function"] or tool)
    local parameters = type(f) == "table" and type(f.name) == "string" and f.parameters
    if f and type(f.name) == "string" then
      schemas[f.name] = type(parameters) == "table" and type(parameters.properties) == "table" and parameters.properties
        or {}
    end
  end
  return schemas
end

---An answer as a message, in the form that templates and other programs expect. Calls without an id get one, which no
---earlier message has.
---@param answer kigo.ParsedAnswer
---@param earlier? kigo.Message[]
---@return kigo.Message
function parse.message(answer, earlier)
  local n = 0
  for _, message in ipairs(earlier or {}) do
    n = n + (type(message.tool_calls) == "table" and #message.tool_calls or 0)
  end
  local calls = {}
  for i, call in ipairs(answer.tool_calls) do
    calls[i] = { id = call.id or ("call%05d"):format(n + i), type = "function",
      ["function"] = { name = call.name, arguments = call.values } } -- whose keys are in the model's order
  end
  return { role = "assistant", content = answer.content, reasoning_content = answer.reasoning,
    tool_calls = #calls > 0 and calls or nil }
end

-- ---- reading an answer ----

---Reasoning at the start of the answer.
local function read_reasoning(reader, answer, options)
  local open, close = options.think[1], options.think[2]
  local space = reader:space()
  if not reader:literal(open) and not options.thinking then return answer:content(space) end
  answer:marker()
  reader:before({ close }, function(text) answer:reasoning(text) end)
  answer:marker()
end

local function read_block(format, reader, answer, marker, options)
  reader:keep(marker or "")
  answer:block()
  if format.read(reader, answer, marker, options) then
    answer:keep(json.decode)
  else
    answer:withdraw(reader:kept())
  end
end

local function read_answer(format, reader, answer, options)
  read_reasoning(reader, answer, options)
  if format.starts then
    answer:content(reader:space())
    if reader:peek() == format.starts then read_block(format, reader, answer, nil, options) end
  end
  while true do
    local marker = reader:before(format.markers, function(text) answer:content(text) end)
    if not marker then return end
    read_block(format, reader, answer, marker, options)
  end
end

---@class kigo.Parser
---@field format string   its name
local Parser = {}
Parser.__index = Parser
Parser.__name = "kigo.Parser"

---A parser of one answer.
---@param name string     a format: "hermes", "llama3", ...; "plain" knows reasoning and no calls
---@param options? kigo.ParserOptions
---@return kigo.Parser
function parse.new(name, options)
  if type(name) ~= "string" then error("format: string expected, got " .. type(name), 2) end
  local format = format_named(name)
  options = check.options(options, known_options)
  local settings = { thinking = options.thinking, think = options.think or THINK, schemas = schemas_of(options.tools) }
  local self = setmetatable({ format = name, _reader = new_reader(), _answer = new_answer(options) }, Parser)
  self._run = coroutine.create(function()
    if format.run then return format.run(self._reader, self._answer, json.decode) end
    return read_answer(format, self._reader, self._answer, settings)
  end)
  return self
end

---Go on reading; an error can only come from a format of the user's.
function Parser:_resume()
  if coroutine.status(self._run) ~= "suspended" then return end
  local done, message = coroutine.resume(self._run)
  if not done then error(type(message) == "string" and debug.traceback(self._run, message) or message, 0) end
end

---More of the answer.
---@param text string
---@return kigo.ParseDelta[] deltas   what it brought, maybe nothing yet
function Parser:add(text)
  if type(text) ~= "string" then error("text: string expected, got " .. type(text), 2) end
  if self._finished then error("the parser is finished", 2) end
  if text ~= "" then
    self._reader:feed(text)
    self:_resume()
  end
  return self._answer:take()
end

---The answer is complete.
---@return kigo.ParseDelta[] deltas   what was held back until now
function Parser:finish()
  if not self._finished then
    self._finished = true
    self._reader:close()
    self:_resume()
    self._answer:finish()
  end
  return self._answer:take()
end

---What was found so far; whole after `finish`.
---@return kigo.ParsedAnswer
function Parser:result() return self._answer:result() end

---A whole answer at once.
---@param name string
---@param text string
---@param options? kigo.ParserOptions
---@return kigo.ParsedAnswer
function parse.text(name, text, options)
  local parser = parse.new(name, options)
  parser:add(text)
  parser:finish()
  return parser:result()
end

return parse
