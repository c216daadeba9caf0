-- Statements to closures: each takes a frame and the run, and returns nil, or "break" or "continue" for the loop
-- around.
local Loop = require "kigo.template.jinja.loop"
local Scope = require "kigo.template.jinja.scope"
local call = require "kigo.template.jinja.call"
local expressions = require "kigo.template.jinja.expressions"
local fault = require "kigo.template.jinja.fault"
local macro = require "kigo.template.jinja.macro"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

---@alias kigo.jinja.Statement fun(frame: table, run: kigo.jinja.Run.State): "break"|"continue"|nil

local compiler = {}

-- One function for each type of node.
local compilers = {}

-- ---- blocks and scopes ----

---The statements of a block, one after the other.
---@param block table
---@param scope kigo.jinja.Scope
---@return kigo.jinja.Statement
local function compile_block(block, scope)
  local list, n, cost = {}, #block, block.cost
  for i, node in ipairs(block) do list[i] = compilers[node.type](node, scope) end
  return function(frame, run)
    run:spend(cost)
    for i = 1, n do
      local signal = list[i](frame, run)
      if signal then return signal end
    end
    return nil
  end
end

---Give the names that a block assigns a place in its scope: a closure that sets them to what they are outside.
---@param names string[]
---@param scope kigo.jinja.Scope
---@return fun(frame: table, run: kigo.jinja.Run.State)?   nil where there are none
local function compile_entry(names, scope)
  local slots, reads = {}, {}
  for _, name in ipairs(names) do
    if not scope.slots[name] then -- a target or parameter has a value already
      reads[#reads + 1] = expressions.read(name, scope)
      slots[#slots + 1] = scope:declare(name)
    end
  end
  if #slots == 0 then return nil end
  return function(frame, run)
    for i = 1, #slots do frame[slots[i]] = reads[i](frame, run) end
  end
end

---A block whose assignments stay inside.
local function compile_inner(block, outer)
  local scope = Scope.new(outer, false)
  local enter = compile_entry(Scope.assigned(block), scope)
  local body = compile_block(block, scope)
  if not enter then return body end
  return function(frame, run)
    enter(frame, run)
    return body(frame, run)
  end
end

-- ---- output ----

function compilers.data(node)
  local text = str.own(node.text)
  return function(_, run) run:write(text) end
end

local function compile_output(expression, scope)
  local evaluate = expressions.compile(expression, scope)
  return function(frame, run)
    local v = evaluate(frame, run)
    run:write(print.str(run, v))
  end
end

function compilers.output(node, scope) return compile_output(node.expression, scope) end

function compilers.print(node, scope)
  local list = {}
  for i, expression in ipairs(node.expressions) do list[i] = compile_output(expression, scope) end
  return function(frame, run)
    for _, write in ipairs(list) do write(frame, run) end
  end
end

-- ---- assignment ----

local compile_assignment

local function unpack_items(run, v, n)
  local next_item = value.try_iterate(v)
  if not next_item then fault.raise("type", "cannot unpack non-iterable %s object", value.type_name(v)) end
  local items = {}
  for i = 1, n do
    items[i] = next_item()
    if items[i] == nil then fault.raise("other", "not enough values to unpack (expected %d, got %d)", n, i - 1) end
  end
  if next_item() ~= nil then fault.raise("other", "too many values to unpack (expected %d)", n) end
  run:spend(n)
  return items
end

local function compile_tuple_assignment(target, scope)
  local n, list = #target.items, {}
  for i, item in ipairs(target.items) do list[i] = compile_assignment(item, scope) end
  return function(frame, run, v)
    run.at = target.at
    local items = unpack_items(run, v, n)
    for i = 1, n do list[i](frame, run, items[i]) end
  end
end

local function compile_member_assignment(target, scope)
  local read, name = expressions.read(target.object, scope), str.own(target.name)
  return function(frame, run, v)
    local object = read(frame, run)
    run.at = target.at
    if value.kind(object) ~= "namespace" then
      fault.raise("other", "cannot assign attribute on non-namespace object")
    end
    value.set(object.dict, name, v, run)
  end
end

---A target: a closure that gives it a value.
---@return fun(frame: table, run: kigo.jinja.Run.State, v: any)
function compile_assignment(target, scope)
  if target.type == "tuple" then return compile_tuple_assignment(target, scope) end
  if target.type == "member" then return compile_member_assignment(target, scope) end
  local slot = scope:declare(target.name)
  return function(frame, _, v) frame[slot] = v end
end

function compilers.set(node, scope)
  local evaluate, assign = expressions.compile(node.expression, scope), compile_assignment(node.target, scope)
  return function(frame, run) assign(frame, run, evaluate(frame, run)) end
end

-- What a block writes, through filters: a closure that returns the text and what ended the block early. The text is in
-- a slot while the filters run, since their arguments are expressions of the frame.
local function compile_capture(body, filters, scope)
  local write, slot, filter = compile_inner(body, scope), nil, nil
  if filters then
    slot = scope:reserve()
    scope.captured = slot
    filter = expressions.compile(filters, scope)
  end
  return function(frame, run)
    local text, signal = run:capture(write, frame)
    if signal or not filter then return text, signal end
    frame[slot] = text
    return filter(frame, run)
  end
end

function compilers.set_block(node, scope)
  local capture = compile_capture(node.body, node.filters, scope)
  local assign = compile_assignment(node.target, scope)
  return function(frame, run)
    local v, signal = capture(frame, run)
    if signal then return signal end
    assign(frame, run, v)
  end
end

function compilers.filter_block(node, scope)
  local capture = compile_capture(node.body, node.filters, scope)
  return function(frame, run)
    local v, signal = capture(frame, run)
    if signal then return signal end
    run:write(call.string(v, "what a filter block writes"))
  end
end

-- ---- branches ----

compilers["if"] = function(node, scope)
  local outside = scope.is_soft
  scope.is_soft = true
  local tests, bodies, n = {}, {}, #node.branches
  for i, branch in ipairs(node.branches) do
    tests[i], bodies[i] = expressions.compile(branch.test, scope), compile_block(branch.body, scope)
  end
  local otherwise = node.otherwise and compile_block(node.otherwise, scope)
  scope.is_soft = outside
  return function(frame, run)
    for i = 1, n do
      if value.truth(tests[i](frame, run)) then return bodies[i](frame, run) end
    end
    return otherwise and otherwise(frame, run)
  end
end

function compilers.scope(node, scope) return compile_inner(node.body, scope) end

function compilers.with(node, outer)
  local scope = Scope.new(outer, false)
  local values, assigns = {}, {}
  for i, target in ipairs(node.targets) do
    values[i], assigns[i] = expressions.compile(node.values[i], outer), compile_assignment(target, scope)
  end
  local enter = compile_entry(Scope.assigned(node.body), scope)
  local body = compile_block(node.body, scope)
  return function(frame, run)
    local now = {}
    for i, evaluate in ipairs(values) do now[i] = evaluate(frame, run) end
    for i, assign in ipairs(assigns) do assign(frame, run, now[i]) end
    if enter then enter(frame, run) end
    return body(frame, run)
  end
end

-- ---- loops ----

compilers["break"] = function() return function() return "break" end end
compilers["continue"] = function() return function() return "continue" end end

-- `if` behind the iterable: its target has a scope of its own, since the loop may look ahead while its body runs.
local function compile_condition(node, outer)
  local scope = Scope.new(outer, false)
  local assign = compile_assignment(node.target, scope)
  local test = expressions.compile(node.test, scope)
  return function(frame, run, next_item)
    return function()
      while true do
        local item = next_item()
        if item == nil then return nil end
        run:spend(1)
        assign(frame, run, item)
        if value.truth(test(frame, run)) then return item end
      end
    end
  end
end

-- The rounds of a loop in a frame: a closure that returns whether one was run to its end, as Python's Jinja counts them
-- for `else`.
local function compile_rounds(node, scope, loop_slot)
  local assign = compile_assignment(node.target, scope)
  local enter = compile_entry(Scope.assigned(node.body), scope)
  local body = compile_block(node.body, scope)
  return function(frame, run, loop)
    local any_whole = false
    frame[loop_slot] = loop
    while loop:advance() do
      assign(frame, run, loop.current)
      if enter then enter(frame, run) end
      local signal = body(frame, run)
      if signal == "break" then break end
      any_whole = any_whole or not signal
    end
    return any_whole
  end
end

local function compile_loop(node, scope)
  local loop_slot = scope:declare "loop"
  local rounds = compile_rounds(node, scope, loop_slot)
  local condition = node.test and compile_condition(node, scope.parent)
  local otherwise = node.otherwise and compile_inner(node.otherwise, scope.parent)
  return function(frame, run, iterable, depth, again)
    run.at = node.at
    local next_item = value.iterate(iterable)
    if condition then next_item, iterable = condition(frame, run, next_item), value.none end
    local loop = Loop.new(iterable, next_item, depth, again)
    if rounds(frame, run, loop) or not otherwise then return nil end
    return otherwise(frame, run)
  end
end

-- The body of a recursive loop is a function: every call of loop(...) has a frame of its own.
local function compile_recursive(node, outer)
  local evaluate = expressions.compile(node.iterable, outer)
  local around = Scope.new(outer, true)
  local loop = compile_loop(node, Scope.new(around, false))
  return function(up, run)
    local function again(_, iterable, depth)
      run:enter()
      local text = run:capture(function() return loop({ up = up }, run, iterable, depth, again) end)
      run:leave()
      return text
    end
    run:write(again(run, evaluate(up, run), 0))
  end
end

compilers["for"] = function(node, outer)
  if node.recursive then return compile_recursive(node, outer) end
  local evaluate, loop = expressions.compile(node.iterable, outer), compile_loop(node, Scope.new(outer, false))
  return function(frame, run) return loop(frame, run, evaluate(frame, run), 0) end
end

-- ---- macros ----

-- The function of a macro or call block in its own frame.
local function compile_function(node, outer, name)
  local scope = Scope.new(outer, true)
  local slots, defaults, names = {}, {}, node.parameters.names
  for i, parameter in ipairs(names) do slots[i] = scope:declare(parameter) end
  for i, default in pairs(node.parameters.defaults) do defaults[i] = expressions.compile(default, scope) end
  local definition = { name = name, parameters = names, slots = slots, defaults = defaults }
  for _, special in ipairs { "caller", "kwargs", "varargs" } do
    if not scope.slots[special] and Scope.mentions(node.body, special) then
      definition[special] = scope:declare(special)
    end
  end
  definition.enter = compile_entry(Scope.assigned(node.body), scope)
  definition.body = compile_block(node.body, scope)
  return definition
end

function compilers.macro(node, scope)
  local definition, slot = compile_function(node, scope, node.name), scope:declare(node.name)
  return function(frame) frame[slot] = macro.new(definition, frame) end
end

local caller_key = str.own "caller"

function compilers.call_block(node, scope)
  local definition = compile_function(node, scope, nil)
  local callee = expressions.compile(node.call.callee, scope)
  local evaluate, at = expressions.arguments(node.call.arguments, scope), node.call.at
  return function(frame, run)
    local f = callee(frame, run)
    local arguments, n, keywords = evaluate(frame, run)
    keywords = keywords or call.keywords()
    keywords.names[#keywords.names + 1], keywords.keys.caller = "caller", caller_key
    keywords.map.caller = macro.new(definition, frame)
    run.at = at
    run:write(call.string(call.value(run, f, arguments, n, keywords), "what a call block writes"))
  end
end

---A template: a closure that writes it.
---@param block table
---@return kigo.jinja.Statement
function compiler.compile(block)
  local scope = Scope.new(nil, true)
  local enter = compile_entry(Scope.assigned(block), scope)
  local body = compile_block(block, scope)
  return function(frame, run)
    if enter then enter(frame, run) end
    return body(frame, run)
  end
end

return compiler
