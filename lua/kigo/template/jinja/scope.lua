-- Where names live. A function of the template (the template itself, a macro, a recursive loop) has a frame: an array
-- of slots, and `up`, the frame around it. Loops and blocks have scopes inside the frame of their function: names that
-- they assign are theirs, begin with the value from outside, and are gone afterwards.

---@class kigo.jinja.Scope
---@field parent kigo.jinja.Scope?
---@field layout { size: integer }      slots of the frame, shared by the scopes of one function
---@field slots table<string, integer>  names of this scope
---@field is_soft boolean               an unknown filter is a fault only where it runs
local Scope = {}
Scope.__index = Scope

---@param parent kigo.jinja.Scope?
---@param is_function boolean
---@return kigo.jinja.Scope
function Scope.new(parent, is_function)
  return setmetatable({ parent = parent, slots = {}, layout = is_function and { size = 0 } or parent.layout,
    is_soft = false }, Scope)
end

---The slot of a name in this scope, made where there is none.
---@param name string
---@return integer
function Scope:declare(name)
  local slot = self.slots[name]
  if not slot then
    slot = self.layout.size + 1
    self.layout.size, self.slots[name] = slot, slot
  end
  return slot
end

---A slot without a name.
---@return integer
function Scope:reserve()
  self.layout.size = self.layout.size + 1
  return self.layout.size
end

---Where a name is: how many frames up, and its slot there; nil for a variable of the template.
---@param name string
---@return integer? hops
---@return integer? slot
function Scope:find(name)
  local scope, hops = self, 0
  while scope do
    local slot = scope.slots[name]
    if slot then return hops, slot end
    if scope.parent and scope.parent.layout ~= scope.layout then hops = hops + 1 end
    scope = scope.parent
  end
  return nil
end

-- ---- the names that a block assigns ----

local collect

local function collect_target(target, names)
  if target.type == "name" then
    names[target.name] = true
  elseif target.type == "tuple" then
    for _, item in ipairs(target.items) do collect_target(item, names) end
  end
end

local collectors = {
  set = function(node, names) collect_target(node.target, names) end,
  set_block = function(node, names) collect_target(node.target, names) end,
  macro = function(node, names) names[node.name] = true end,
  ["if"] = function(node, names)
    for _, branch in ipairs(node.branches) do collect(branch.body, names) end
    if node.otherwise then collect(node.otherwise, names) end
  end,
}

function collect(block, names)
  for _, node in ipairs(block) do
    local collector = collectors[node.type]
    if collector then collector(node, names) end
  end
end

local function sorted(set)
  local names = {}
  for name in pairs(set) do names[#names + 1] = name end
  table.sort(names)
  return names
end

---Names that the statements of a block assign in its own scope, in order.
---@param block table
---@return string[]
function Scope.assigned(block)
  local names = {}
  collect(block, names)
  return sorted(names)
end

---Names in the target of an assignment.
---@param target table
---@return string[]
function Scope.targets(target)
  local names = {}
  collect_target(target, names)
  return sorted(names)
end

---Does a part of the tree use this name?
---@param node table
---@param name string
---@return boolean
function Scope.mentions(node, name)
  if node.type == "name" and node.name == name then return true end
  for _, child in pairs(node) do
    if type(child) == "table" and Scope.mentions(child, name) then return true end
  end
  return false
end

return Scope
