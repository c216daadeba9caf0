-- refuse.lua - how a compile ends early: a refusal is thrown where it is found and caught at the entrance.
local core = require "kigo.core"
local json = require "kigo.json"

local refuse = {}

---@class kigo.schema.Refusal
---@field message string
---@field code integer
local Refusal = {}

---Is this what was thrown a refusal, and no fault of ours?
---@param value any
---@return boolean
function refuse.is(value) return getmetatable(value) == Refusal end

-- Pointers and names come from strangers: one line, and not all of a long one.
local function plain(text, most)
  text = json.valid_utf8(text):gsub("%c", function(c) return ("\\x%02x"):format(c:byte()) end)
  if #text <= most then return text end
  return text:sub(1, utf8.offset(text, 0, most) - 1) .. "..."
end

local function throw(where, why, code)
  local message = ("json schema: %s: %s"):format(plain(where, 500), plain(why, 500))
  error(setmetatable({ message = message, code = code }, Refusal), 0)
end

---The keyword at a JSON pointer cannot be enforced.
---@param where string   JSON pointer of the keyword
---@param why string
function refuse.unsupported(where, why) throw(where, why, core.err.UNSUPPORTED) end

---What stands there is no schema.
---@param where string
---@param why string
function refuse.malformed(where, why) throw(where, why, core.err.FORMAT) end

---Something else went wrong: no memory.
---@param message string
---@param code integer
function refuse.failed(message, code) throw("#", message, code) end

return refuse
