-- budget.lua - how much work a schema may cause. Schemas come from strangers, and small ones can stand for a lot.
local refuse = require "kigo.schema.refuse"

local budget = {}

---@class kigo.schema.Budget
local Budget = {}
Budget.__index = Budget

-- Real schemas of 20 KB need a hundredth of this; what needs more takes longer than a request should.
local LIMITS = { places = 100000, formulas = 100000, work = 1000000, rules = 20000 }
local MAX_DEPTH = 500

---@return kigo.schema.Budget
function budget.new()
  local left = {}
  for name, limit in pairs(LIMITS) do left[name] = limit end
  return setmetatable({ _left = left, _depth = 0 }, Budget)
end

---Take n of what is left.
---@param name "places"|"formulas"|"work"|"rules"
---@param n integer
function Budget:spend(name, n)
  local left = self._left[name] - n
  if left < 0 then refuse.unsupported("#", ("the schema is too large: more than %d %s"):format(LIMITS[name], name)) end
  self._left[name] = left
end

---One schema within another, by way of allOf, $ref and the like.
function Budget:enter()
  self._depth = self._depth + 1
  if self._depth > MAX_DEPTH then
    refuse.unsupported("#", ("schemas are combined more than %d deep"):format(MAX_DEPTH))
  end
end

function Budget:leave() self._depth = self._depth - 1 end

return budget
