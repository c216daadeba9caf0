-- `loop` inside {% for %}: where the loop is, and its neighbours. Items are taken one at a time, since what a loop over
-- an iterator sees may depend on what its body did before.
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local value = require "kigo.template.jinja.value"

---@class kigo.jinja.Loop
---@field index0 integer
---@field current any
---@field before any
local Loop = {}
Loop.__index = Loop
Loop.kind = "loop"

---@param iterable any
---@param next_item fun(): any
---@param depth integer        loops of this recursive loop around it
---@param again? fun(run: kigo.jinja.Run.State, iterable: any, depth: integer): any   the recursive loop itself
---@return kigo.jinja.Loop
function Loop.new(iterable, next_item, depth, again)
  return setmetatable({ iterable = iterable, next_item = next_item, depth0 = depth, again = again, index0 = -1,
    ahead = {}, first_ahead = 1, last_ahead = 0 }, Loop)
end

function Loop:fetch()
  if self.finished then return nil end
  local item = self.next_item()
  self.finished = item == nil
  return item
end

---What comes next; it stays ahead until it is its turn.
function Loop:peek()
  if self.first_ahead > self.last_ahead then
    local item = self:fetch()
    if item == nil then return nil end
    self.last_ahead = self.first_ahead
    self.ahead[self.last_ahead] = item
  end
  return self.ahead[self.first_ahead]
end

---Go on to the next item.
---@return boolean is_there
function Loop:advance()
  local item
  if self.first_ahead <= self.last_ahead then
    item = self.ahead[self.first_ahead]
    self.ahead[self.first_ahead] = nil
    self.first_ahead = self.first_ahead + 1
  else
    item = self:fetch()
  end
  if item == nil then return false end
  self.index0 = self.index0 + 1
  self.before, self.current = self.current, item
  return true
end

---Items in all. Those of an iterator have to be taken to be counted.
---@return integer
function Loop:length()
  if self.n then return self.n end
  self.n = value.kind(self.iterable) ~= "loop" and value.length(self.iterable) or nil
  if not self.n then
    for item in function() return self:fetch() end do
      self.last_ahead = self.last_ahead + 1
      self.ahead[self.last_ahead] = item
    end
    self.n = self.index0 + 1 + self.last_ahead - self.first_ahead + 1
  end
  return self.n
end

local function or_undefined(item, what)
  if item == nil then return value.undefined("there is no " .. what .. " item") end
  return item
end

local properties = {
  index = function(self) return self.index0 + 1 end,
  index0 = function(self) return self.index0 end,
  revindex = function(self) return self:length() - self.index0 end,
  revindex0 = function(self) return self:length() - self.index0 - 1 end,
  first = function(self) return self.index0 == 0 end,
  last = function(self) return self:peek() == nil end,
  length = function(self) return self:length() end,
  depth = function(self) return self.depth0 + 1 end,
  depth0 = function(self) return self.depth0 end,
  previtem = function(self) return or_undefined(self.before, "previous") end,
  nextitem = function(self) return or_undefined(self:peek(), "next") end,
}

local methods = {
  cycle = call.native("cycle", "...", function(_, self, arguments, n)
    if n == 0 then fault.raise("type", "no items for cycling given") end
    return arguments[self.index0 % n + 1]
  end),
  changed = call.native("changed", "...", function(run, self, arguments, n)
    local now = value.tuple(table.move(arguments, 1, n, 1, {}), n)
    local changed = not self.last_seen or not value.equals(self.last_seen, now, run)
    self.last_seen = now
    return changed
  end),
}

---@param name string
---@return any
function Loop:attribute(name)
  if properties[name] then return properties[name](self) end
  return methods[name] and { kind = "method", self = self, method = methods[name] }
end

---loop(children): the recursive loop over other items.
function Loop:invoke(run, arguments, n)
  if not self.again then fault.raise("type", "the loop is not recursive") end
  if n ~= 1 then fault.raise("type", "loop() takes one argument") end
  return self.again(run, arguments[1], self.depth0 + 1)
end

return Loop
