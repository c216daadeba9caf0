-- writer.lua - what templates written as Lua functions share: a list of segments in the making. Only what is written
-- with `control` may become a control token; `own` and `text` are plain text, the template's own and a message's.
local core = require "kigo.core"
local is_space = require("kigo.template.jinja.str").is_space

---@class kigo.template.Writer
---@field segments kigo.Segment[]
local Writer = {}
Writer.__index = Writer

local writer = {}

---@return kigo.template.Writer
function writer.new() return setmetatable({ segments = {} }, Writer) end

---@param token string?   spells one control token; nil: the vocabulary has none, and nothing is written
---@return kigo.template.Writer self
function Writer:control(token)
  if token then self.segments[#self.segments + 1] = { control = token } end
  return self
end

---@param text string   of the template
---@return kigo.template.Writer self
function Writer:own(text)
  self.segments[#self.segments + 1] = { text = text, own = true }
  return self
end

---@param text string   of a message
---@return kigo.template.Writer self
function Writer:text(text)
  self.segments[#self.segments + 1] = { text = text }
  return self
end

---The result of a template that cannot write such a conversation.
---@param format string
---@param ... any          values for the format
---@return nil
---@return string message
---@return integer code
function writer.refuse(format, ...) return nil, format:format(...), core.err.UNSUPPORTED end

---The system message that opens a conversation, apart from the turns.
---@param messages kigo.Message[]
---@return string? system
---@return kigo.Message[] turns
function writer.split_system(messages)
  if messages[1].role ~= "system" then return nil, messages end
  return messages[1].content, table.move(messages, 2, #messages, 1, {})
end

---Do user and assistant take turns, the user first?
---@param turns kigo.Message[]
---@return boolean
function writer.alternates(turns)
  for i, message in ipairs(turns) do
    if message.role ~= (i % 2 == 1 and "user" or "assistant") then return false end
  end
  return true
end

local CHARACTER = "[\0-\x7f\xc2-\xf4][\x80-\xbf]*"

---Without the white space around it, as Python's strip does it.
---@param text string
---@return string
function writer.trim(text)
  local first, last = 1, #text
  while true do
    local character = text:match("^" .. CHARACTER, first)
    if not character or not is_space(character) then break end
    first = first + #character
  end
  while true do
    local character = text:sub(math.max(first, last - 3), last):match(CHARACTER .. "$")
    if not character or not is_space(character) then break end
    last = last - #character
  end
  return text:sub(first, last)
end

return writer
