-- harmony.lua - gpt-oss: messages with a channel each, <|channel|>NAME<|message|>TEXT<|end|>. The channel analysis is
-- reasoning, final and commentary are content; a message with a recipient (to=functions.NAME) is a call.
local calls = require "kigo.parse.calls"
local json = require "kigo.json"

local MESSAGE = "<|message|>"
local HEADS = { "<|start|>", "<|channel|>" }
local ENDS = { "<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>" }
local MAX_HEAD = 512

---The end of a message, or the head of the next one where it is missing; true at the end of the answer.
local function read_end(reader)
  for _, head in ipairs(HEADS) do
    if reader:sees(head) then return true end
  end
  return reader:any(ENDS) or not reader:has_next()
end

---@return true?
local function read_call(reader, answer, recipient)
  local name = recipient:match "^functions%.(.+)$" or recipient
  answer:call(name)
  reader:space()
  if name == "python" and reader:peek() ~= "{" then -- the built-in tool takes code as it is
    local parts = {}
    reader:before(ENDS, function(text) parts[#parts + 1] = text end)
    answer:arguments('{"code": ' .. json.encode(table.concat(parts)) .. "}")
    return true
  end
  if not calls.arguments_of(reader, answer) then return nil end
  reader:space()
  return read_end(reader)
end

---Text of a channel up to the end of the message; the head of the next one, where the end is missing.
local function read_text(reader, answer, kind, is_first)
  local add = kind == "reasoning" and answer.reasoning or answer.content
  if not is_first then add(answer, "\n\n") end
  local marker = reader:before(ENDS, function(text) add(answer, text) end)
  return (marker == HEADS[1] or marker == HEADS[2]) and marker or nil
end

---The answer goes on where the prompt ended, behind <|start|>assistant.
---@param reader kigo.parse.Reader
---@param answer kigo.parse.Answer
---@param decode fun(text: string): table
local function run(reader, answer, decode)
  local seen = {}
  local marker = (reader:literal " to=" and " to=") or nil
  while true do
    marker = marker or reader:before(HEADS, function(text) answer:content(text) end)
    if not marker then return end
    reader:keep(marker)
    local rest = reader:name({ MESSAGE }, MAX_HEAD)
    local head = rest and marker .. rest
    local recipient = head and head:match " to=([^%s<]+)"
    local kind = head and head:match "<|channel|>%s*(%a+)" == "analysis" and "reasoning" or "content"
    marker = nil
    if not head then
      answer:content(reader:kept())
    elseif recipient and recipient ~= "all" then
      answer:block()
      if read_call(reader, answer, recipient) then answer:keep(decode) else answer:withdraw(reader:kept()) end
    else
      marker = read_text(reader, answer, kind, not seen[kind])
      seen[kind] = true
    end
  end
end

return {
  { name = "harmony", run = run,
    recognise = function(source)
      return source:find("<|channel|>", 1, true) ~= nil and source:find(MESSAGE, 1, true) ~= nil
    end },
}
