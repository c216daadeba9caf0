-- sampler.lua - samplers written in Lua that have a name and remember things: `kigo.sampler(f, { state = { ... } })`.
-- Any function (logits, seq) -> id samples too; this one's state lives with each sequence, in seq.state under the
-- sampler's name, so marks, forks and files take it along (a rewind to a bare position leaves it as it is), and what it
-- returns is checked where it is called.
local core = require "kigo.core"
local check = require "kigo.check"

---@class kigo.LuaSampler
---@field name string
---@overload fun(logits: kigo.Tensor, seq: kigo.Sequence): integer?, string?, integer?
local LuaSampler = { __name = "kigo.LuaSampler" }
LuaSampler.__index = LuaSampler

---@class kigo.LuaSamplerOptions
---@field name? string   in messages and of its state; unless given, where the function stands ("script.lua:12").
---Samplers of one name share their state
---@field state? table   what it remembers at first: numbers, strings, booleans and tables of these. Each sequence has
---its own
local options_known = { name = "string", state = "table" }

local function place_of(f)
  local about = debug.getinfo(f, "S")
  return about.what == "C" and "a function in C" or ("%s:%d"):format(about.short_src, about.linedefined)
end

---A sampler of this function, which gets its state as third argument: `function(logits, seq, state) ... return id end`.
---@param f fun(logits: kigo.Tensor, seq: kigo.Sequence, state: table): integer?, string?, integer?
---@param options? kigo.LuaSamplerOptions
---@return kigo.LuaSampler
local function new(f, options)
  if type(f) ~= "function" then error("sampler: function expected, got " .. type(f), 2) end
  options = check.options(options, options_known)
  local done, state = pcall(core.copy_plain, options.state or {}, "sampler: state")
  if not done then error(state, 0) end -- it tells the line
  return setmetatable({ name = options.name or place_of(f), _f = f, _state = state }, LuaSampler)
end

---What it remembers of a sequence: a table that belongs to the sequence.
---@param seq kigo.Sequence
---@return table
function LuaSampler:state(seq)
  local all = seq.state
  if all[self.name] == nil then all[self.name] = core.copy_plain(self._state, "state") end
  return all[self.name]
end

---One more of the same name, function and first state; sequences keep what they remember. With another name it has a
---state of its own on every sequence.
---@param options? kigo.LuaSamplerOptions   what is different
---@return kigo.LuaSampler
function LuaSampler:clone(options)
  options = check.options(options, options_known)
  return new(self._f, { name = options.name or self.name, state = options.state or self._state })
end

local function say(value) return type(value) == "string" and ("%q"):format(value) or tostring(value) end

---An id, or the fault of a chain that the function called; anything else is the function's mistake.
local function checked(name, n, id, message, code)
  if math.type(id) == "integer" and id >= 0 and id < n then return id end
  if id == nil and math.type(code) == "integer" then return nil, message, code end
  error(("the sampler %s returned %s, which is not a token id from 0 to %d"):format(name,
    id == nil and "nothing" or say(id), n - 1), 3)
end

function LuaSampler:__call(logits, seq)
  return checked(self.name, #logits, self._f(logits, seq, self:state(seq)))
end

function LuaSampler:__tostring() return ("kigo.LuaSampler (%s)"):format(self.name) end

return { new = new }
