-- task.lua - the life of one body of a scheduler: a coroutine, what it waits for, the sequences that it made, its end.
local core = require "kigo.core"
local pass = require "kigo.pass"

---@class kigo.Task
---@field status "queued"|"waiting"|"running"|"done"|"failed"|"cancelled"
---@field priority number      higher goes first; task:set_priority changes it
---@field results table?       what the body returned, packed; when done
---@field error any            what went wrong, with a traceback; when failed, or when closing a cancelled one failed
---@field scheduler kigo.Scheduler
---@field thread thread?       once it is started
---@field batch { failed: kigo.Task? }  tasks that belong together, and the first of them that failed
---@field items kigo.PassItem[]?        what it waits for
---@field joined kigo.Task?             whose end it waits for
---@field question table?               that a device is to answer
---@field _number integer      in order of spawning
---@field _sequences table<kigo.Sequence, true>  that the body made; weak
---@field _cancelled boolean?  it is to end as soon as it does not run
---@field _turn integer?       the last step of the scheduler that computed something for it
---@field _place integer?      in that step
local Task = {}
Task.__index = Task
Task.__name = "kigo.Task"

Task.RAISE = {} -- an outcome of a pass: the message is an error that the body raises

---@param scheduler kigo.Scheduler
---@param number integer
---@param batch table
---@param f fun(...): any
---@return kigo.Task
function Task.new(scheduler, number, batch, f, ...)
  local parent = pass.running()
  return setmetatable({ status = "queued", scheduler = scheduler, batch = batch, _number = number, _f = f,
    priority = parent and parent.scheduler == scheduler and parent.priority or 0,
    _args = table.pack(...), _sequences = setmetatable({}, { __mode = "k" }) }, Task)
end

---@return boolean
function Task:has_ended()
  return self.status == "done" or self.status == "failed" or self.status == "cancelled"
end

---Higher priority first, then the older one.
---@param other kigo.Task
---@return boolean
function Task:outranks(other)
  if self.priority ~= other.priority then return self.priority > other.priority end
  return self._number < other._number
end

---Is this the body itself, and no place in it where Lua cannot yield, nor a coroutine of its own?
local function can_yield(task) return coroutine.isyieldable() and coroutine.running() == task.thread end

-- ---- for pass.lua ----

---Wait until the items are computed.
---@param items kigo.PassItem[]
---@return true?
---@return string? message
---@return integer? code
function Task:ask(items)
  local outcome, message, code
  if can_yield(self) then
    self.items = items
    outcome, message, code = coroutine.yield()
    self.items = nil
  else
    outcome, message, code = self.scheduler:serve_now(self, items)
  end
  if outcome == Task.RAISE then error(message, 0) end
  return outcome, message, code
end

---A question to a device, for engine/bind.h: wait until all bodies that have one have asked.
---@return integer|boolean|nil   what core.use_chains has found; of a question to a tensor the answer is known now
function Task:ask_together(...)
  if not can_yield(self) or self.scheduler.n_ended == self.scheduler.n_tasks - 1 then return nil end
  local question = { ... }
  self.question, self.scheduler.is_asked = question, true
  coroutine.yield()
  self.question = nil
  return question[5]
end

---The body made this sequence.
---@param seq kigo.Sequence
function Task:own(seq) self._sequences[seq] = true end

-- ---- for the scheduler ----

local function is_sequence(value)
  local meta = type(value) == "userdata" and getmetatable(value)
  return meta and meta.__name == "kigo.Sequence"
end

---Own the sequences among packed values.
---@param values table
function Task:own_all(values)
  for i = 1, values.n do
    if is_sequence(values[i]) then self:own(values[i]) end
  end
end

---The task's sequences that hold cache pages of the model. Those that the body forgot may be closed by the collector at
---any time.
---@param model kigo.Model
---@return fun(): kigo.Sequence?
function Task:holders(model)
  local seq
  local function holds() return seq.model == model and seq:pages() > 0 end
  return function()
    repeat
      seq = next(self._sequences, seq)
      local open, found = pcall(holds)
    until not seq or (open and found)
    return seq
  end
end

---The end: let go of everything that is the task's own, but for sequences that it returns.
local function finish(task, status, results, problem)
  local scheduler = task.scheduler
  task.status, task.results, task.error = status, results, problem
  task.items, task.joined, task.question = nil, nil, nil
  scheduler.n_ended = scheduler.n_ended + 1
  if status == "failed" then task.batch.failed = task.batch.failed or task end
  if task.thread then
    local closed, why = coroutine.close(task.thread)
    if status == "cancelled" and not closed then task.error = why end
  end
  for i = 1, results and results.n or 0 do
    if is_sequence(results[i]) then task._sequences[results[i]] = nil end
  end
  for seq in pairs(task._sequences) do seq:close() end
end

local function with_traceback(thread, value)
  if type(value) ~= "string" or value:find("\nstack traceback:\n", 1, true) then return value end
  return debug.traceback(thread, value)
end

---What a resumed body did: it waits, or has ended.
local function settle(task, ok, ...)
  if coroutine.status(task.thread) == "suspended" then
    task.status = "waiting"
    if task._cancelled then finish(task, "cancelled") end
  elseif ok then
    finish(task, "done", table.pack(...))
  else
    finish(task, "failed", nil, with_traceback(task.thread, (...)))
  end
end

---Let the body go on, or begin.
function Task:resume(...)
  self.status = "running"
  settle(self, pass.resume(self, ...))
end

function Task:start()
  self.thread = self.thread or coroutine.create(self._f)
  self:resume(table.unpack(self._args, 1, self._args.n))
  self._f, self._args = nil, nil
end

---For want of memory an earlier step stopped while the body ran.
function Task:interrupted() finish(self, "failed", nil, "the scheduler was interrupted while the body ran") end

---End it if that was put off.
function Task:end_cancelled()
  if self._cancelled and self.status == "waiting" then finish(self, "cancelled") end
end

---In the body `waiter`: yield until this task has ended.
---@param waiter kigo.Task
---@param level integer
function Task:join(waiter, level)
  local other = self
  while other and other ~= waiter do other = other.joined end
  if other then error("wait: the task would wait for itself", level + 1) end
  if not can_yield(waiter) then error("wait: a body cannot wait for another one where it cannot yield", level + 1) end
  while not self:has_ended() do
    waiter.joined = self
    coroutine.yield()
  end
end

-- ---- for everybody ----

---End the task now: its <close> variables run and its sequences are closed. One that runs, or waits for a pass that is
---being computed, ends as soon as it does not.
---@return boolean   false: it had ended before
function Task:cancel()
  if self:has_ended() then return false end
  if self.status == "queued" or (self.status == "waiting" and not self.scheduler.computing) then
    finish(self, "cancelled")
  else
    self._cancelled = true
    if pass.running() == self and can_yield(self) then coroutine.yield() end
  end
  return true
end

---At any time.
---@param priority number   higher goes first
function Task:set_priority(priority)
  if type(priority) ~= "number" or priority ~= priority then
    error("priority: number expected, got " .. tostring(priority), 2)
  end
  self.priority = priority
  if self.status == "queued" then self.scheduler:enqueue(self) end
end

---Wait for the task's end: in a body of the same scheduler as for a pass, elsewhere by stepping the scheduler.
---@return any ...   what the body returned; an error in it is raised here; nil, message, code when it was cancelled, or
---a progress function wants no more
function Task:wait()
  local waiter = pass.running()
  if waiter and waiter.scheduler == self.scheduler then self:join(waiter, 2) end
  while not self:has_ended() do
    local _, message, code = self.scheduler:step()
    if code then return nil, message, code end
  end
  if self.status == "cancelled" then return nil, "the task was cancelled", core.err.CANCELLED end
  if self.status == "failed" then error(self.error, 0) end
  if waiter then waiter:own_all(self.results) end
  return table.unpack(self.results, 1, self.results.n)
end

return Task
