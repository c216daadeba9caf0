-- marked.lua - formats whose calls are JSON between two markers: a table of them.
local calls = require "kigo.parse.calls"

---@param format { name: string, open: string, close: string? }   close: none where the answer ends there
---@return kigo.parse.Format
local function marked(format)
  local function read(reader, answer)
    reader:space()
    if not calls.objects(reader, answer) then return nil end
    reader:space()
    if not format.close then return true end
    return reader:literal(format.close) or not reader:has_next() -- an answer may end where the closing marker is due
  end
  return { name = format.name, markers = { format.open }, read = read,
    recognise = function(source) return source:find(format.open, 1, true) ~= nil end }
end

return {
  marked { name = "tool_calls", open = "<tool_calls>", close = "</tool_calls>" }, -- Apriel
  marked { name = "hermes", open = "<tool_call>", close = "</tool_call>" }, -- Hermes, Qwen2.5, Qwen3, Granite 4, MiMo
  marked { name = "gigachat", open = "<|function_call|>" }, -- GigaChat 3.1
  marked { name = "command", open = "<|START_ACTION|>", close = "<|END_ACTION|>" }, -- Command R7B and A
}
