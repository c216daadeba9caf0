-- scheduler.lua - many generation loops at once. Each body runs in a coroutine and waits wherever it needs a forward
-- pass (pass.lua); a step of the scheduler computes what they wait for in shared passes and lets them go on. What a
-- body computes is what it would compute alone, bit for bit; this file only decides who goes when:
--
-- * A pass has a budget of rows. Everybody who decodes gets one, prompts share the rest: however long one is, others
--   wait for one pass at most. Those who were left out of a pass come first in the next.
-- * Cache pages go by rank: higher priority first, then the older task. When the pool is full the lowest gives all of
--   its pages up, and what it needs of them is computed again when there is room. The highest one that waits is always
--   served, so that all come to an end.
-- * What a body asks a device about a tensor, or a chain about one (logits:topk(40), pick(logits, seq)), waits until
--   all bodies that go on have asked: one launch and one round trip serve them all.
-- * A body's end, error or cancellation is its own: its <close> variables run, its sequences are closed, and the others
--   go on.
local core = require "kigo.core"
local check = require "kigo.check"
local Task = require "kigo.task"

local scheduler = {}

---@class kigo.Scheduler
---@field model kigo.Model
---@field n_tasks integer      spawned
---@field n_ended integer      of them
---@field n_steps integer
---@field n_preempted integer  how often a task gave its cache pages up
---@field is_asked boolean?    has a body asked a device something?
---@field _live kigo.Task[]    started, not ended; in order of their turns
---@field _queues table        by priority: what is not started yet
local Scheduler = {}
Scheduler.__index = Scheduler
Scheduler.__name = "kigo.Scheduler"

---Another body: f(...), in a coroutine of its own. It starts with one of the next steps.
---@param f fun(...): any
---@return kigo.Task
function Scheduler:spawn(f, ...)
  if self._closed then error("the scheduler is closed", 2) end
  if type(f) ~= "function" then error("spawn: function expected, got " .. type(f), 2) end
  return self:spawn_in({}, f, ...)
end

---The same as one of several that belong together.
---@param batch { failed: kigo.Task? }
---@return kigo.Task
function Scheduler:spawn_in(batch, f, ...)
  local task = Task.new(self, self.n_tasks + 1, batch, f, ...)
  self:enqueue(task)
  self.n_tasks = self.n_tasks + 1
  return task
end

-- ---- who waits to be started ----

function Scheduler:enqueue(task)
  local queue = self._queues[task.priority]
  if not queue then
    queue = { first = 1, last = 0 }
    self._queues[task.priority] = queue
  end
  queue[queue.last + 1] = task
  queue.last = queue.last + 1
end

---The next one to start, and the queue that it is the first of.
function Scheduler:_next()
  while true do
    local highest
    for priority in pairs(self._queues) do highest = highest and math.max(highest, priority) or priority end
    local queue = self._queues[highest]
    local task = queue and queue[queue.first]
    if not task or task.status == "queued" and task.priority == highest then return task, queue end
    self:_remove_first(queue, highest) -- it was cancelled, or moved to another queue
  end
end

function Scheduler:_remove_first(queue, priority)
  queue[queue.first] = nil
  queue.first = queue.first + 1
  if queue.first > queue.last then self._queues[priority] = nil end
end

-- ---- passes ----

local function fail(item, outcome, message, code)
  item.done, item.failed, item.outcome, item.message, item.code = true, true, outcome, message, code
end

---Have a task give its cache pages up, but those of sequences that take part in the pass.
---@return boolean   did it have any? Those that hooks have written to stay (Sequence:release)
function Scheduler:_preempt(task, model, takes_part)
  local n = 0
  for seq in task:holders(model) do
    if not takes_part[seq] then n = n + (seq:release() or 0) end
  end
  if n > 0 then self.n_preempted = self.n_preempted + 1 end
  return n > 0
end

---Have the collector free sequences that somebody forgot.
---@return boolean   did they hold cache pages?
local function collect(model)
  local before = model:stats().n_pages_used
  collectgarbage()
  return model:stats().n_pages_used < before
end

---Make cache pages free, or the pass smaller, for the sake of `top`: the lowest other task that has pages or a part in
---the pass gives both up; at last `top` itself gives up what the pass does not need.
---@return boolean   false: nothing is left to give up
function Scheduler:_make_room(model, items, top)
  local takes_part, others = {}, {}
  for _, item in ipairs(items) do takes_part[item.task], takes_part[item.seq] = true, item.task == top or nil end
  for _, task in ipairs(self._live) do
    if task ~= top then others[#others + 1] = task end
  end
  table.sort(others, function(a, b) return b:outranks(a) end)
  for _, task in ipairs(others) do
    local gave_up = self:_preempt(task, model, takes_part)
    for i = #items, 1, -1 do
      if items[i].task == task then table.remove(items, i) end
    end
    if gave_up or takes_part[task] then return true end
  end
  return self:_preempt(top, model, takes_part) or collect(model)
end

---Compute the items in one pass, and tell in each what became of it.
---@return true?
---@return string? message  the model's progress function wants no more
---@return integer? code
function Scheduler:_compute(model, items, top)
  if #items == 0 then return true end
  local steps, draws = {}, {}
  for _, item in ipairs(items) do
    local list = item.chain and not item.most and draws or steps
    list[#list + 1] = item
  end
  self.computing = true
  local called, ids, message, code = pcall(model.advance, model, steps, draws)
  self.computing = false
  if called and ids then
    for i, item in ipairs(draws) do item.id, item.done = ids[i], true end
    for _, item in ipairs(steps) do -- a part may do: the prefix cache may have held the rest
      item.done = not item.most or not item.chain and item.seq:pending() == 0
    end
    return true
  end
  if code == core.err.CANCELLED then return nil, message, code end
  if code == core.err.FULL and self:_make_room(model, items, top) then return self:_compute(model, items, top) end
  if called then
    return self:_compute_each(model, items, top, nil, message, code)
  end
  return self:_compute_each(model, items, top, Task.RAISE, ids)
end

---The item whose hook raised an error, so that it was left behind while others came along; it must not be called again.
---@return kigo.PassItem?   nil: one cannot tell
local function left_behind(items)
  local behind, advanced = {}, false
  for _, item in ipairs(items) do
    local open, pending = pcall(item.seq.pending, item.seq)
    if not open or pending == item.pending and pending > 0 then
      local is_step = not item.chain -- steps come before draws that are made on a device
      if not behind[1] or is_step == not behind[1].chain then behind[#behind + 1] = item
      elseif is_step then behind = { item } end
    elseif pending < item.pending then
      advanced = true
    end
  end
  return advanced and #behind == 1 and behind[1] or nil
end

---After a failure: each is tried alone, but for who is known to have caused it.
function Scheduler:_compute_each(model, items, top, outcome, message, code)
  local culprit = items[1]
  if #items > 1 then culprit = outcome == Task.RAISE and left_behind(items) or nil end
  if culprit then fail(culprit, outcome, message, code) end
  for _, item in ipairs(items) do
    if item ~= culprit then
      local done, why, kind = self:_compute(model, { item }, top)
      if not done then return nil, why, kind end
    end
  end
  return true
end

---Call what steps by itself. Where it finds no room and has to stand back, it is left for later.
function Scheduler:_call(item, top)
  local items = { item }
  self.computing = true
  local results = table.pack(pcall(item.run, table.unpack(item.args, 1, item.args.n)))
  self.computing = false
  if results[1] and results[2] == nil and results[4] == core.err.FULL and self:_make_room(item.model, items, top) then
    if items[1] then return self:_call(item, top) end
    item.is_blocked = true -- until its task is the highest
  elseif results[1] then
    item.results, item.done = table.pack(table.unpack(results, 2, results.n)), true
    item.task:own_all(item.results) -- it may be cancelled before it hears of them
  else
    fail(item, Task.RAISE, results[2])
  end
end

local function is_done(items)
  for _, item in ipairs(items) do
    if not item.done then return false end
  end
  return true
end

---What to tell the body about its items: the first failure, or success.
local function outcome_of(items)
  for _, item in ipairs(items) do
    if item.failed then return item.outcome, item.message, item.code end
  end
  return true
end

---Compute what a body wants that cannot yield.
function Scheduler:serve_now(task, items)
  for _, item in ipairs(items) do
    item.task, item.model = task, item.model or item.seq.model
    if item.run then
      self:_call(item, task)
    else
      local done, message, code = self:_compute(item.model, { item }, task)
      if not done then return nil, message, code end
    end
  end
  return outcome_of(items)
end

-- ---- who takes part ----

---The tasks that wait for passes, in order of their turns, higher priorities first.
function Scheduler:_waiting()
  local waiting, is_sorted = {}, true
  for _, task in ipairs(self._live) do
    if task.status == "waiting" and task.items then
      local last = waiting[#waiting]
      if last and last.priority < task.priority then is_sorted = false end
      waiting[#waiting + 1] = task
      task._place = #waiting
    end
  end
  if not is_sorted then
    table.sort(waiting, function(a, b)
      if a.priority ~= b.priority then return a.priority > b.priority end
      return a._place < b._place
    end)
  end
  return waiting
end

---Put an item to the others of its model: groups of { model, items, top }, top being their highest task.
local function add_to_group(groups, item)
  local model = item.model
  local group = groups[model]
  if not group then
    group = { model = model, items = {}, top = item.task }
    groups[model], groups[#groups + 1] = group, group
  end
  if item.task:outranks(group.top) then group.top = item.task end
  group.items[#group.items + 1] = item
end

---@return boolean   false: another body has closed its sequence
local function look_at(item)
  local open, pending = pcall(item.seq.pending, item.seq)
  if not open then
    fail(item, Task.RAISE, pending)
    return false
  end
  item.pending, item.model = pending, item.model or item.seq.model
  return true
end

---What they wait for: groups of what passes compute, what is to be called alone, and the highest task of all.
local function sort_out(waiting)
  local groups, call, top, seen = {}, nil, waiting[1], {}
  for _, task in ipairs(waiting) do
    if task:outranks(top) then top = task end
  end
  for _, task in ipairs(waiting) do
    for _, item in ipairs(task.items) do
      item.task = task
      if item.run then
        if not (item.is_blocked and task ~= top) then call = call or item end
      elseif not (item.done or seen[item.seq]) then -- two tasks may ask for the same sequence
        seen[item.seq] = true
        if look_at(item) then add_to_group(groups, item) end
      end
    end
  end
  return groups, call, top
end

---Pages that a sequence of so many tokens needs while its prompt is computed: those of layers with a window let go of
---some meanwhile.
local function pages_for(stats, n_tokens)
  local window = stats.page_groups[1].window
  if window > 0 then n_tokens = math.min(n_tokens, 2 * window + stats.chunk) end
  return n_tokens // stats.page + 1
end

---Leave out those who hold no pages and will not find enough: with the lower ones, in order of rank.
local function admit(group)
  local new = {}
  for _, item in ipairs(group.items) do
    if item.task ~= group.top and item.seq:pages() == 0 then new[#new + 1] = item end
  end
  if #new == 0 then return group.items end
  table.sort(new, function(a, b) return a.task:outranks(b.task) end)
  local stats, refused = group.model:stats(), {}
  local room = stats.n_pages_max - stats.n_pages_used - (#group.items - #new) -- each may need another one soon
  for _, item in ipairs(new) do
    room = room - pages_for(stats, item.seq:pos())
    if room < 0 then refused[item] = true end
  end
  local admitted = {}
  for _, item in ipairs(group.items) do
    if not refused[item] then admitted[#admitted + 1] = item end
  end
  return admitted
end

---Share the budget: a row for everybody who decodes, what is left for prompts in order of their turns, and something
---for the first of them in any case.
---@return kigo.PassItem[] items   with `most` where only a part of what is pending fits
local function allot(items, budget)
  local chosen, prompts = {}, {}
  for _, item in ipairs(items) do
    if budget == 0 then break end
    if item.pending > 1 then
      if #prompts == 0 then budget = budget - 1 end
      prompts[#prompts + 1] = item
    else
      budget, item.most = budget - 1, nil
      chosen[#chosen + 1] = item
    end
  end
  if #prompts > 0 then budget = budget + 1 end
  for _, item in ipairs(prompts) do
    if budget == 0 then break end
    local rows = math.min(item.pending, budget)
    budget, item.most = budget - rows, rows < item.pending and rows or nil
    chosen[#chosen + 1] = item
  end
  return chosen
end

function Scheduler:_budget_of(model)
  local budget = self._budgets[model]
  if not budget then
    budget = self._budget or model:stats().chunk
    self._budgets[model] = budget
  end
  return budget
end

-- ---- a step ----

---Let go on who waits for no pass, and start who waits outside.
function Scheduler:_wake()
  local n_active = 0
  for i = 1, #self._live do
    local task = self._live[i]
    if task.status == "running" then -- since an earlier step
      task:interrupted()
    elseif task.status == "queued" then
      task:start()
    elseif task.status == "waiting" and not task.items and not (task.joined and not task.joined:has_ended()) then
      task.joined = nil
      task:resume()
    end
    if task.status == "waiting" and not task.joined then n_active = n_active + 1 end
  end
  while n_active < self._max do
    local task, queue = self:_next()
    if not task then break end
    self._live[#self._live + 1] = task
    self:_remove_first(queue, task.priority)
    task:start()
    if task.status == "waiting" and not task.joined then n_active = n_active + 1 end
  end
end

---Compute what the bodies wait for, each model's in a pass of its own, and one call that shares none.
---@return true?
---@return string? message
---@return integer? code
function Scheduler:_pass(waiting)
  local groups, call, top = sort_out(waiting)
  for _, group in ipairs(groups) do
    local items = allot(admit(group), self:_budget_of(group.model))
    for _, item in ipairs(items) do item.task._turn = self.n_steps end
    local done, message, code = self:_compute(group.model, items, group.top)
    if not done then return nil, message, code end
  end
  if call then
    call.task._turn = self.n_steps
    self:_call(call, top)
  end
  return true
end

---Have the questions answered that bodies have to devices, all of them together, until none has one.
function Scheduler:_answer()
  while self.is_asked do
    self.is_asked = false
    local asking, looks, uses = {}, {}, {}
    for _, task in ipairs(self._live) do
      local question = task.status == "waiting" and task.question
      if question then
        local list = question[4] and uses or looks
        asking[#asking + 1], list[#list + 1] = task, question
      end
    end
    if #looks > 0 then core.look(looks) end
    if #uses > 0 then core.use_chains(uses) end
    for _, task in ipairs(asking) do
      if task.status == "waiting" then task:resume() end
    end
  end
end

---Those who had no turn come first in the next step; who has ended goes.
function Scheduler:_rotate()
  local live = {}
  for _, had_turn in ipairs { false, true } do
    for _, task in ipairs(self._live) do
      if (task._turn == self.n_steps) == had_turn and not task:has_ended() then live[#live + 1] = task end
    end
  end
  self._live = live
end

function Scheduler:_step()
  self.n_steps = self.n_steps + 1
  self:_wake()
  self:_answer()
  local waiting = self:_waiting()
  local done, message, code = self:_pass(waiting)
  for _, task in ipairs(self._live) do task:end_cancelled() end -- while they were computed
  if not done then return nil, message, code end
  for _, task in ipairs(waiting) do
    if task.status == "waiting" and task.items and is_done(task.items) then
      task:resume(outcome_of(task.items))
    end
  end
  self:_answer()
  self:_rotate()
  if self._progress and self._progress("batch", self.n_ended, self.n_tasks) then
    return nil, ("cancelled after %d of %d bodies"):format(self.n_ended, self.n_tasks), core.err.CANCELLED
  end
  return self.n_ended < self.n_tasks
end

---One pass of everything that waits, and on with the bodies.
---@return boolean? more    are there tasks that have not ended?
---@return string? message  a progress function wants no more; the tasks stay as they are
---@return integer? code    kigo.err.CANCELLED
function Scheduler:step()
  if self._closed then error("the scheduler is closed", 2) end
  if self._stepping then error("the scheduler is in the middle of a step", 2) end
  self._stepping = true
  local _ <close> = self._step_end
  return self:_step()
end

---Step until all tasks have ended. What became of each is in its status, results and error.
---@return true?
---@return string? message
---@return integer? code
function Scheduler:run()
  local more, message, code
  repeat more, message, code = self:step() until not more
  if code then return nil, message, code end
  return true
end

---Cancel what has not ended.
function Scheduler:close()
  self._closed = true
  for _, queue in pairs(self._queues) do
    for i = queue.first, queue.last do queue[i]:cancel() end
  end
  self._queues = {}
  for _, task in ipairs(self._live) do task:cancel() end
end
Scheduler.__close = Scheduler.close

---@class kigo.SchedulerOptions
---@field max? integer        most bodies that run at a time; default 32
---@field budget? integer     most rows of a pass; default: the model's chunk
---@field progress? kigo.Progress   called after every step: ("batch", bodies that have ended, bodies); true cancels
scheduler.options = { max = "integer", budget = "integer", progress = "callable" }

---Raise unless max and budget, where they are given, are at least 1.
function scheduler.check_options(options, level)
  for _, name in ipairs { "max", "budget" } do
    local value = options[name]
    if value and value < 1 then error(("%s: %d is not positive"):format(name, value), level + 1) end
  end
end

---A scheduler. Bodies may also use sequences of other models.
---@param model kigo.Model
---@param options? kigo.SchedulerOptions
---@return kigo.Scheduler   a to-be-closed variable
function scheduler.new(model, options)
  options = check.options(options, scheduler.options)
  scheduler.check_options(options, 2)
  local self = setmetatable({ model = model, n_tasks = 0, n_ended = 0, n_steps = 0, n_preempted = 0, _live = {},
    _queues = {}, _max = options.max or 32, _budget = options.budget, _budgets = setmetatable({}, { __mode = "k" }),
    _progress = options.progress }, Scheduler)
  self._step_end = setmetatable({}, { __close = function() self._stepping, self.computing = false, false end })
  return self
end

return scheduler
