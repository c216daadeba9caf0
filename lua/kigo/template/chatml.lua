-- ChatML: <|im_start|>role, newline, content, <|im_end|>, newline. Only these two markers are control segments.
local check = require "kigo.check"
local core = require "kigo.core"

local START, FINISH = "<|im_start|>", "<|im_end|>"
local ROLES = { system = true, user = true, assistant = true, tool = true }

---@class kigo.ChatML: kigo.Template
---@field default_system string?   the system message of a conversation that has none
---@field plain_tools boolean      a tool's message is a turn like the others
local ChatML = {}
ChatML.__index = ChatML
ChatML.__name = "kigo.ChatML"

local chatml = { name = "chatml" }

---Both markers as control tokens, or nil and why not.
local function check_vocabulary(tokenizer)
  for _, marker in ipairs { START, FINISH } do
    if not tokenizer:control(marker) then return nil, "the vocabulary has no control token " .. marker end
  end
  return true
end

---@param tokenizer kigo.Tokenizer
---@param options? { default_system: string?, plain_tools: boolean? }
---@return kigo.ChatML?
---@return string? why
function chatml.new(tokenizer, options)
  local fits, why = check_vocabulary(tokenizer)
  if not fits then return nil, why end
  options = options or {}
  return setmetatable({ name = "chatml", default_system = options.default_system,
    plain_tools = options.plain_tools ~= false }, ChatML)
end

-- ---- recognition ----
-- The Jinja text is not run: what it prints is compared. Every printed expression is flattened to its literals with
-- {expressions} between them, and must be one that plain ChatML prints; outputs in branches about tools are let be,
-- because conversations with tools are refused when they are rendered.

local TURN = START .. "{message.role}\n{message.content}" .. FINISH .. "\n"
local FIRST_SYSTEM = START .. "system\n{messages[0].content}" .. FINISH .. "\n"
local DEFAULT_SYSTEM = "^" .. START:gsub("%p", "%%%0") .. "system\n([^{}]*)" .. FINISH:gsub("%p", "%%%0") .. "\n$"
local GENERATE = START .. "assistant\n"

-- Words of templates that change plain text or add to it: what they do is beyond a comparison.
local CONTRADICTIONS = { "think", "reasoning", "bos_token", "strftime", "replace", "strip", "trim", "split", "macro",
  "namespace", "raise_exception", "[INST]" }

---The value of a Jinja string literal.
local function unescape(text)
  return (text:gsub("\\(.)", function(c) return c == "n" and "\n" or c == "t" and "\t" or c end))
end

---`message['role']` and `message["role"]` are `message.role`.
local function normalise(expression)
  return (expression:gsub("%s+", ""):gsub("%[['\"]([%w_]+)['\"]%]", ".%1"))
end

---"'<|im_start|>' + message['role']" -> "<|im_start|>{message.role}"
local function flatten(expression)
  local out, at = {}, 1
  while true do
    local first, last, quote = expression:find("(['\"])", at)
    local between = expression:sub(at, (first or 0) - 1)
    for term in between:gmatch "[^+]+" do
      if term:find "%S" then out[#out + 1] = "{" .. normalise(term) .. "}" end
    end
    if not first then break end
    if between:find "[%[(]%s*$" then -- a key or an argument: part of an expression, not printed text
      local close = expression:find("[%])]", last)
      local head = between:match "([^+]*)$"
      if between:find "[^+%s]" then out[#out] = nil end
      out[#out + 1] = "{" .. normalise(head .. expression:sub(first, close or -1)) .. "}"
      at = (close or #expression) + 1
    else
      local stop = last + 1
      while stop <= #expression and expression:sub(stop, stop) ~= quote do
        stop = stop + (expression:sub(stop, stop) == "\\" and 2 or 1)
      end
      out[#out + 1] = unescape(expression:sub(last + 1, stop - 1))
      at = stop + 1
    end
  end
  return table.concat(out)
end

---Every output of the template: { text = flattened, about_tools = boolean } in order.
---@return table[]
local function outputs(source)
  local list, about = {}, {} -- about: stack of open blocks, true where a condition of the chain names tools
  for kind, body in source:gsub("{#.-#}", ""):gmatch "{([{%%])[-+]?%s*(.-)%s*[-+]?[}%%]}" do
    if kind == "{" then
      local about_tools = false
      for _, named in ipairs(about) do about_tools = about_tools or named end
      list[#list + 1] = { text = flatten(body), about_tools = about_tools }
    else
      local word = body:match "^%a+"
      if word == "if" or word == "for" then
        about[#about + 1] = word == "if" and body:find("tool", 1, true) ~= nil
      elseif word == "elif" and #about > 0 then
        about[#about] = about[#about] or body:find("tool", 1, true) ~= nil
      elseif word == "endif" or word == "endfor" then
        about[#about] = nil
      end
    end
  end
  return list
end

---What a plain template prints, or nil and the first contradiction.
local function read_outputs(source)
  local seen, default_system = {}, nil
  for _, output in ipairs(outputs(source)) do
    local text = output.text
    local system = text:match(DEFAULT_SYSTEM)
    if system then
      default_system = system
    elseif text == TURN or text == GENERATE or text == FIRST_SYSTEM then
      seen[text] = true
    elseif not output.about_tools then
      return nil, "it prints " .. check.quoted(text)
    end
  end
  if not seen[TURN] then return nil, ("no turn of %srole, newline, content, %s, newline"):format(START, FINISH) end
  if not seen[GENERATE] then return nil, "no generation prompt " .. START .. "assistant" end
  return { default_system = default_system }
end

---Does this Jinja text print plain ChatML?
---@param source string
---@param tokenizer kigo.Tokenizer
---@return kigo.ChatML?
---@return string? why
function chatml.recognise(source, tokenizer)
  if not (source:find(START, 1, true) and source:find(FINISH, 1, true)) then return nil, "no " .. START .. " in it" end
  for _, word in ipairs(CONTRADICTIONS) do
    if source:find(word, 1, true) then return nil, "it uses " .. word end
  end
  local options, why = read_outputs(source)
  if not options then return nil, why end
  options.plain_tools = not source:find("tool", 1, true)
  return chatml.new(tokenizer, options)
end

-- ---- rendering ----

local function check_messages(messages, level)
  level = level + 1
  if type(messages) ~= "table" then error("messages: table expected, got " .. type(messages), level) end
  if #messages == 0 then error("messages: there are none", level) end
  for i, message in ipairs(messages) do
    local function refuse(...) error(("message %d: "):format(i) .. string.format(...), level + 1) end
    if type(message) ~= "table" then refuse("table expected, got %s", type(message)) end
    if not ROLES[message.role] then
      refuse("role %q is not one of system, user, assistant, tool", tostring(message.role))
    end
    if type(message.content) ~= "string" then refuse("content: string expected, got %s", type(message.content)) end
  end
end

local function append_turn(segments, role, content)
  segments[#segments + 1] = { control = START }
  segments[#segments + 1] = { text = role .. "\n" .. content }
  segments[#segments + 1] = { control = FINISH }
  segments[#segments + 1] = { text = "\n" }
end

---Append the turns; nil, message, code where the model's own template treats tools in a way this one does not know.
function ChatML:_append(segments, messages)
  for i, message in ipairs(messages) do
    if message.tool_calls or (message.role == "tool" and not self.plain_tools) then
      return nil, ("message %d: this model's template has its own form for tools, which the chatml template does not "
        .. "write"):format(i), core.err.UNSUPPORTED
    end
    append_turn(segments, message.role, message.content)
  end
  return segments
end

local function append_prompt(segments)
  segments[#segments + 1] = { control = START }
  segments[#segments + 1] = { text = "assistant\n" }
end

---A whole conversation as segments.
---@param messages kigo.Message[]
---@param options? { generate: boolean? }   generate: end with the head of the assistant's turn
---@return kigo.Segment[]?
---@return string? message
---@return integer? code
function ChatML:render(messages, options)
  check_messages(messages, 2)
  local segments = {}
  if self.default_system and messages[1].role ~= "system" then append_turn(segments, "system", self.default_system) end
  local done, message, code = self:_append(segments, messages)
  if not done then return nil, message, code end
  if options and options.generate then append_prompt(segments) end
  return segments
end

---What follows an answer that stands on the timeline without its end token: the end of that turn, new messages, and
---the head of the next answer. Sampled answers are continued this way, by their ids, never by their text.
---@param messages kigo.Message[]
---@return kigo.Segment[]?
---@return string? message
---@return integer? code
function ChatML:continue(messages)
  check_messages(messages, 2)
  local segments = { { control = FINISH }, { text = "\n" } }
  local done, message, code = self:_append(segments, messages)
  if not done then return nil, message, code end
  append_prompt(segments)
  return segments
end

return chatml
