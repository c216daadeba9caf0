-- deepseek.lua - formats whose calls stand between control tokens: DeepSeek V3, R1 and V3.1, and Kimi K2.
local calls = require "kigo.parse.calls"

local MAX_NAME = 256

---V3 and R1: function<sep>NAME, and the arguments as a fenced block. V3.1: NAME<sep> and the arguments.
local function read_deepseek_call(reader, answer)
  local head = reader:name({ "<｜tool▁sep｜>" }, MAX_NAME)
  if not head or head == "" then return nil end
  if head ~= "function" then
    answer:call(head)
    return calls.arguments_of(reader, answer)
  end
  local name = reader:name({ "\n" }, MAX_NAME)
  if not name or name == "" or not reader:literal "```json" then return nil end
  answer:call(name)
  if not calls.arguments_of(reader, answer) then return nil end
  reader:space()
  return reader:literal "```"
end

---functions.NAME:0, where the whole is the id of the call.
local function read_kimi_call(reader, answer)
  local id = reader:name({ "<|tool_call_argument_begin|>" }, MAX_NAME)
  id = id and id:match "^%s*(.-)%s*$"
  local name = id and (id:match "^functions%.(.+):%d+$" or id:match "^(.+):%d+$" or id)
  if not name or name == "" then return nil end
  answer:call(name, id)
  return calls.arguments_of(reader, answer)
end

---@param format table   begin, finish: of all calls; call, call_end: of each
---@return kigo.parse.Format
local function sections(format)
  local function read_call(reader, answer)
    if not format.read_call(reader, answer) then return nil end
    reader:space()
    return reader:literal(format.call_end) or not reader:has_next()
  end
  -- The token around all calls is forgotten now and then.
  local function read(reader, answer, marker)
    if marker == format.call then return read_call(reader, answer) end
    reader:space()
    repeat
      if not reader:literal(format.call) or not read_call(reader, answer) then return nil end
      reader:space()
    until reader:literal(format.finish) or not reader:has_next()
    return true
  end
  return { name = format.name, markers = { format.begin, format.call }, read = read,
    recognise = function(source) return source:find(format.call, 1, true) ~= nil end }
end

return {
  sections { name = "deepseek", begin = "<｜tool▁calls▁begin｜>", finish = "<｜tool▁calls▁end｜>",
    call = "<｜tool▁call▁begin｜>", call_end = "<｜tool▁call▁end｜>", read_call = read_deepseek_call },
  sections { name = "kimi", begin = "<|tool_calls_section_begin|>", finish = "<|tool_calls_section_end|>",
    call = "<|tool_call_begin|>", call_end = "<|tool_call_end|>", read_call = read_kimi_call },
}
