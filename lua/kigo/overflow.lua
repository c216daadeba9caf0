-- overflow.lua - what becomes of a sequence whose context is full. The default is an error with the code kigo.err.FULL,
-- and the sequence is as it was. seq.on_overflow (also an option of model:sequence) names another policy; it may be
-- changed at any time, and forks take it along:
--   "error"               the default
--   "shift"               forget the oldest tokens behind the first seq.keep (default 0) and evaluate the rest again;
--                         seq.shifted counts them. What is attached behind those first tokens is let go, as with any
--                         rewind; a constrained sequence is not shifted
--   function(seq, need)   make room for `need` tokens, by rewinding and feeding, and return true; else it is an error
local core = require "kigo.core"

local overflow = {}

---@class kigo.Sequence
---@field on_overflow? "error"|"shift"|fun(seq: kigo.Sequence, need: integer): boolean?
---@field keep? integer      tokens that "shift" keeps
---@field shifted? integer   tokens that "shift" has forgotten

local FULL = core.err.FULL

---Drop so many of the oldest tokens that half of what is not kept is free, and `need` tokens fit.
local function shift(seq, need)
  local keep, context, ids = seq.keep or 0, seq.model.context, seq:tokens()
  if math.type(keep) ~= "integer" or keep < 0 then error("keep: number of tokens expected", 0) end
  if keep > #ids or need > context - keep then return nil end
  if seq:constraint() then
    return nil, "a sequence with a constraint cannot be shifted: what it allows depends on the tokens that would go",
      core.err.UNSUPPORTED
  end
  local n_tail = math.min(#ids - keep, context - keep - math.max(need, (context - keep) // 2))
  local tail = table.move(ids, #ids - n_tail + 1, #ids, 1, {})
  local done, message, code = seq:rewind(keep)
  if done then done, message, code = core.classes.Sequence.feed(seq, tail) end
  if not done then return nil, message, code end
  seq.shifted = (seq.shifted or 0) + #ids - keep - n_tail
  return true
end

local function check(policy)
  if policy == "shift" then return shift end
  if type(policy) == "function" then return policy end
  error(('on_overflow: "error", "shift" or a function expected, got %s'):format(tostring(policy)), 0)
end

---Does this sequence have a policy that may make room?
---@param seq kigo.Sequence
---@return boolean
function overflow.has_policy(seq) return seq.on_overflow ~= nil and seq.on_overflow ~= "error" end

-- A function of the user's, of a point in a grammar, has raised.
local function has_place(fault) return type(fault) ~= "string" or fault:find "^[^\n]-:%d+:" end

---What became of appending. A mistake is blamed on whoever called us: nothing but tail calls lies between.
local function settle(append, seq, input, need, called, pos, message, code)
  if not called then error(pos, has_place(pos) and 0 or 2) end
  if pos or code ~= FULL or not overflow.has_policy(seq) then return pos, message, code end
  local made, why, fault = check(seq.on_overflow)(seq, need)
  if fault then return nil, why, fault end
  if not made then return nil, message, code end
  return append(seq, input)
end

---Append tokens with `append`, which gives nil, message, FULL where they do not fit; then the policy may make room,
---once.
---@param append fun(seq: kigo.Sequence, input: any): integer?, string?, integer?
---@param seq kigo.Sequence
---@param input any
---@param need integer   tokens
---@return integer? pos
---@return string? message
---@return integer? code
function overflow.append(append, seq, input, need)
  return settle(append, seq, input, need, pcall(append, seq, input))
end

return overflow
