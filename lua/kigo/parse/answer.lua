-- answer.lua - an answer in the making: a parser says what it found, deltas and the result come out.
--
-- Line breaks beside a marker, and white space that stands alone between markers, belong to the markup. A call is
-- begun before anybody knows that its block will fit the format to its end; when it does not, the calls of the block
-- are withdrawn and its text, as it was written, is content.
local answer = {}

---@class kigo.ToolCall
---@field id? string         where the model wrote one
---@field name string
---@field arguments string   JSON text as the model wrote it; of formats without JSON, what it means in JSON
---@field values table       the arguments decoded; null is kigo.json.null

---@class kigo.ParsedAnswer
---@field content string            what is no markup, "" where there is nothing else
---@field reasoning string?         what was thought before; nil: nothing
---@field tool_calls kigo.ToolCall[]

---What a piece of text brings. "call" begins call `index`, "arguments" adds to the JSON text of its arguments,
---"call_end" hands the whole call over; "withdrawn": it was none after all, forget it.
---@class kigo.ParseDelta
---@field type "content"|"reasoning"|"call"|"arguments"|"call_end"|"withdrawn"
---@field text string?             of content, reasoning and arguments
---@field index integer?           of the call, in result.tool_calls
---@field name string?             of a call that begins
---@field id string?               the same, where it is known by then
---@field call kigo.ToolCall?      of a call that ended

-- ---- text beside markup ----

---Content or reasoning: white space at its end is held until it is known what follows.
---@class kigo.parse.Text
local Text = {}
Text.__index = Text

local function new_text(emit)
  return setmetatable({ _emit = emit, _held = "", _fresh = true, _after_marker = false }, Text)
end

function Text:add(piece)
  if piece == "" then return end
  self._held = self._held .. piece
  if self._after_marker then self._held = self._held:gsub("^[\r\n]+", "") end
  local last = self._held:find "%S%s*$"
  if not last then return end
  self._emit(self._held:sub(1, last))
  self._held, self._fresh, self._after_marker = self._held:sub(last + 1), false, false
end

---A marker follows what was added.
function Text:mark()
  if not self._fresh then
    local last = self._held:find "[^\r\n][\r\n]*$"
    if last then self._emit(self._held:sub(1, last)) end
  end
  self._held, self._fresh, self._after_marker = "", true, true
end

---Nothing follows.
function Text:finish()
  if self._held ~= "" and not (self._fresh and self._after_marker) then self._emit(self._held) end
  self._held = ""
end

-- ---- the answer ----

---@class kigo.parse.Answer
---@field _deltas kigo.ParseDelta[]
local Answer = {}
Answer.__index = Answer

---@param options { hold: boolean? }   hold: calls come when nothing can withdraw them any more
---@return kigo.parse.Answer
function answer.new(options)
  local self = setmetatable({ _deltas = {}, _hold = options.hold, _parts = { content = {}, reasoning = {} },
    _calls = {} }, Answer)
  for _, kind in ipairs { "content", "reasoning" } do
    self["_" .. kind] = new_text(function(text)
      table.insert(self._parts[kind], text)
      table.insert(self._deltas, { type = kind, text = text })
    end)
  end
  return self
end

---@param text string
function Answer:content(text) self._content:add(text) end

---@param text string
function Answer:reasoning(text) self._reasoning:add(text) end

---Where a marker stood, content and reasoning lose the line breaks beside it.
function Answer:marker()
  self._content:mark()
  self._reasoning:mark()
end

function Answer:_tell(delta)
  table.insert(self._hold and self._block.deltas or self._deltas, delta)
end

---A block of calls begins. Until `keep` or `withdraw` nothing but calls may be added.
function Answer:block()
  self._block = { first = #self._calls + 1, deltas = {} }
end

---A call begins; the one before it is complete.
---@param name string
---@param id? string
function Answer:call(name, id)
  self._calls[#self._calls + 1] = { name = name, id = id, parts = {} }
  self:_tell { type = "call", index = #self._calls, name = name, id = id }
end

---More of the arguments of the call that began last.
---@param text string
function Answer:arguments(text)
  if text == "" then return end
  table.insert(self._calls[#self._calls].parts, text)
  self:_tell { type = "arguments", index = #self._calls, text = text }
end

---The id of the call that began last, where it came late.
---@param id string?
function Answer:identify(id)
  local call = self._calls[#self._calls]
  call.id = call.id or id
end

---The block fits the format.
---@param decode fun(text: string): table
function Answer:keep(decode)
  self:marker()
  table.move(self._block.deltas, 1, #self._block.deltas, #self._deltas + 1, self._deltas)
  for i = self._block.first, #self._calls do
    local call = self._calls[i]
    call.arguments, call.parts = table.concat(call.parts), nil
    call.values = decode(call.arguments)
    table.insert(self._deltas, { type = "call_end", index = i, call = call })
  end
  self._block = nil
end

---The block does not fit: what was read of it is content.
---@param text string
function Answer:withdraw(text)
  for i = #self._calls, self._block.first, -1 do
    self._calls[i] = nil
    if not self._hold then table.insert(self._deltas, { type = "withdrawn", index = i }) end
  end
  self._block = nil
  self:content(text)
end

---The deltas since the last time.
---@return kigo.ParseDelta[]
function Answer:take()
  local deltas = self._deltas
  self._deltas = {}
  return deltas
end

---Nothing follows.
function Answer:finish()
  self._content:finish()
  self._reasoning:finish()
end

---What is certain by now.
---@return kigo.ParsedAnswer
function Answer:result()
  local reasoning = table.concat(self._parts.reasoning)
  local n_calls = self._block and self._block.first - 1 or #self._calls
  return { content = table.concat(self._parts.content), reasoning = reasoning ~= "" and reasoning or nil,
    tool_calls = table.move(self._calls, 1, n_calls, 1, {}) }
end

return answer
