-- refuse.lua - how a compile ends early: a refusal is thrown where it is found and caught at the entrance.
local core = require "kigo.core"

local refuse = {}

---@class kigo.schema.Refusal
---@field message string
---@field code integer
local Refusal = {}

---Is this what was thrown a refusal, and no fault of ours?
---@param value any
---@return boolean
function refuse.is(value) return getmetatable(value) == Refusal end

local function throw(where, why, code)
  error(setmetatable({ message = ("json schema: %s: %s"):format(where, why), code = code }, Refusal), 0)
end

---The keyword at a JSON pointer cannot be enforced.
---@param where string   JSON pointer of the keyword
---@param why string
function refuse.unsupported(where, why) throw(where, why, core.err.UNSUPPORTED) end

---What stands there is no schema.
---@param where string
---@param why string
function refuse.malformed(where, why) throw(where, why, core.err.FORMAT) end

return refuse
