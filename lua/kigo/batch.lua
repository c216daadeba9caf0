-- batch.lua - one body for every input, on a scheduler of their own, or on that of the body that starts them.
local check = require "kigo.check"
local pass = require "kigo.pass"
local scheduler = require "kigo.scheduler"

local batch = {}

---@class kigo.BatchOptions: kigo.SchedulerOptions  in a body, `max`, `budget` and `progress` are those of its scheduler
---@field seed? integer       the sequence of input i has seed + i - 1; default 0
---@field errors? "raise"|"collect"   what becomes of a body's error: raise, which cancels the others (the default), or
---collect, which lets them go on
local known = { seed = "integer", errors = "string" }
for name, wanted in pairs(scheduler.options) do known[name] = wanted end

local function check_arguments(options, inputs, body)
  options = check.options(options, known, 3)
  scheduler.check_options(options, 3)
  local errors = options.errors or "raise"
  if errors ~= "raise" and errors ~= "collect" then error('errors: "raise" or "collect" expected', 3) end
  if type(inputs) ~= "table" then error("inputs: table expected, got " .. type(inputs), 3) end
  if type(body) ~= "function" then error("body: function expected, got " .. type(body), 3) end
  return options
end

local function run_body(model, seed, body, input, i)
  local seq, message, code = model:sequence { seed = seed } -- closed with its task
  if not seq then return nil, message, code end
  return body(seq, input, i)
end

---The tasks of a batch; at the end of its scope those that have not ended are cancelled.
---@return kigo.Task[]|{ failed: kigo.Task? }
local function new_tasks()
  return setmetatable({}, { __close = function(tasks)
    for _, task in ipairs(tasks) do task:cancel() end
  end })
end

---Wait until all have ended, or the first one has failed where that raises.
local function wait_for(owner, outer, tasks, raises)
  local function check_failed()
    if raises and tasks.failed then error(tasks.failed.error, 0) end
  end
  for _, task in ipairs(tasks) do
    if outer then task:join(outer, 3) end
    check_failed()
    while not task:has_ended() do
      local _, message, code = owner:step()
      if code then return nil, message, code end
      check_failed()
    end
  end
  return true
end

---As Model:batch in model.lua says.
---@param model kigo.Model
---@param options kigo.BatchOptions?
---@param inputs any[]
---@param body function
---@return table? results
---@return table|string errors
---@return integer? code
function batch.run(model, options, inputs, body)
  options = check_arguments(options, inputs, body)
  local outer = pass.running()
  local owner = outer and outer.scheduler or scheduler.new(model, check.pick(options, scheduler.options))
  local tasks <close> = new_tasks()
  for i = 1, #inputs do
    tasks[i] = owner:spawn_in(tasks, run_body, model, (options.seed or 0) + i - 1, body, inputs[i], i)
  end
  local done, message, code = wait_for(owner, outer, tasks, options.errors ~= "collect")
  if not done then return nil, message, code end
  local results, errors = { n = #inputs }, {}
  for i, task in ipairs(tasks) do
    if task.status == "done" then
      results[i] = task.results[1]
      if results[i] == nil then errors[i] = task.results[2] end
    else
      errors[i] = task.error or "the task was cancelled"
    end
  end
  return results, errors
end

return batch
