-- pass.lua - the one place where Lua asks for a forward pass. Outside a scheduler a pass is computed here and now. In a
-- body of a scheduler (lua/kigo/scheduler.lua) the body waits until it was computed, together with what others wait
-- for; where a coroutine cannot yield (within table.sort, string.gsub, a coroutine of the body's own) the scheduler
-- computes it at once. Numbers are the same in all three cases.
--
-- A new call that needs a pass goes through one of these:
--   pass.step(seq)              bring the logits behind the last token up to date
--   pass.step(seq, rows, from)  and write those behind every position from `from` on to the tensor `rows`
--   pass.draw(seq, chain)       draw an id
--   pass.alone(on, run, ...)    whatever else steps in C: run(...) is called when its turn has come
-- and what makes a sequence hands it to pass.made. Tensors and chains that need a device's answer come here
-- by themselves (engine/bind.h); on the host they have it at once.
local core = require "kigo.core"

-- What computes here and now. model.lua and sequence.lua replace these methods by ones that come here.
local Sequence, Model = core.classes.Sequence, core.classes.Model
local step_now, draw_now, step_all_now, draw_all_now = Sequence.step, Sequence.draw, Model.step, Model.draw

local pass = {}

-- The task whose body runs now, of the innermost scheduler; nil outside of bodies. Only pass.resume sets it, for as
-- long as the body runs.
local running

---What a task waits for.
---@class kigo.PassItem: kigo.StepItem
---@field chain? kigo.Chain     draw an id
---@field ahead? integer
---@field id? integer           the drawn one
---@field model? kigo.Model     the sequence's, unless given
---@field done? boolean         computed, or failed
---@field run? function         called alone, with args
---@field args? table
---@field results? table

local function step_rows_now(seq, rows, from)
  local done, message, code = seq.model:advance({ { seq = seq, rows = rows, from = from } }, {})
  if not done then return nil, message, code end
  return true
end

---Evaluate what is pending, so that seq.logits are there.
---@param seq kigo.Sequence
---@param rows? kigo.Tensor  [seq:pos() - from, vocab] on the model's device: takes the logits behind every position
---that is evaluated and not before `from`; row 0 is position `from`'s
---@param from? integer      default 0
---@return true?
---@return string? message
---@return integer? code
function pass.step(seq, rows, from)
  if running and seq:pending() > 0 then return running:ask { { seq = seq, rows = rows, from = from } } end
  if rows then return step_rows_now(seq, rows, from) end
  return step_now(seq)
end

---Draw the next id with a chain, as seq:draw does.
---@param seq kigo.Sequence
---@param chain kigo.Chain
---@param ahead? integer
---@return integer? id
---@return string? message
---@return integer? code
function pass.draw(seq, chain, ahead)
  if not running or seq:pending() == 0 or seq:drawn(chain) then return draw_now(seq, chain, ahead) end
  local item = { seq = seq, chain = chain, ahead = ahead }
  local done, message, code = running:ask { item }
  if not done then return nil, message, code end
  return item.id
end

---Evaluate several sequences, as model:step does.
function pass.steps(model, sequences)
  if not running then return step_all_now(model, sequences) end
  local items = {}
  for _, seq in ipairs(sequences) do
    if seq:pending() > 0 then items[#items + 1] = { seq = seq } end
  end
  return #items == 0 or running:ask(items)
end

---Draw for several sequences, as model:draw does.
function pass.draws(model, sequences, chain, ahead)
  if not running then return draw_all_now(model, sequences, chain, ahead) end
  local items = {}
  for i, seq in ipairs(sequences) do items[i] = { seq = seq, chain = chain, ahead = ahead } end
  local done, message, code = running:ask(items)
  if not done then return nil, message, code end
  local ids = {}
  for i, item in ipairs(items) do ids[i] = item.id end
  return ids
end

---Have a function called that steps by itself: it shares no pass, but waits for its turn, and for cache pages: where it
---fails with kigo.err.FULL and others can give theirs up, it is called again.
---@param on kigo.Sequence|kigo.Model
---@param run fun(...): any   gives nil, message, code when it fails
---@return any ...            what it returned
function pass.alone(on, run, ...)
  if not running then return run(...) end
  local item = { seq = on, model = on.model or on, run = run, args = table.pack(...) }
  local done, message, code = running:ask { item }
  if not done then return nil, message, code end
  return table.unpack(item.results, 1, item.results.n)
end

---A sequence was made. When a body made it, the scheduler closes it with the body, and may take its cache pages away
---for a while.
---@param seq kigo.Sequence?
---@return kigo.Sequence? seq, ...  the arguments
function pass.made(seq, ...)
  if running and seq then running:own(seq) end
  return seq, ...
end

-- A tensor on a device, or a chain on one, is about to be asked something: other bodies may ask the same now.
core.set_company(function(...) return running and running:ask_together(...) end)

---The task whose body runs now.
---@return kigo.Task?
function pass.running() return running end

local function leave(outer, ...)
  running = outer
  return ...
end

---For schedulers: run a body until it yields or ends.
---@param task kigo.Task
---@return boolean ok
---@return any ...   as coroutine.resume
function pass.resume(task, ...)
  local outer = running
  running = task
  return leave(outer, coroutine.resume(task.thread, ...))
end

return pass
