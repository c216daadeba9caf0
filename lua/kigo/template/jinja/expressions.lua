-- Expressions to closures: each takes a frame and the run, and returns a value.
local attributes = require "kigo.template.jinja.attributes"
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local filters = require "kigo.template.jinja.filters"
local globals = require "kigo.template.jinja.globals"
local operators = require "kigo.template.jinja.operators"
local str = require "kigo.template.jinja.str"
local tests = require "kigo.template.jinja.tests"
local value = require "kigo.template.jinja.value"
require "kigo.template.jinja.str_format"

---@alias kigo.jinja.Expression fun(frame: table, run: kigo.jinja.Run.State): any

local expressions = {}

-- One function for each type of node.
local compilers = {}

---@param node table
---@param scope kigo.jinja.Scope
---@return kigo.jinja.Expression
function expressions.compile(node, scope) return compilers[node.type](node, scope) end
local compile = expressions.compile

local function compile_all(nodes, scope)
  local list = {}
  for i, node in ipairs(nodes) do list[i] = compile(node, scope) end
  return list
end

local function evaluate_all(list, frame, run)
  local values = {}
  for i = 1, #list do values[i] = list[i](frame, run) end
  return values
end

-- ---- values ----

function compilers.constant(node)
  local constant = node.value
  return function() return constant end
end

---The value of a name, or nil where it has none.
---@return kigo.jinja.Expression
function expressions.read(name, scope)
  local hops, slot = scope:find(name)
  if hops == 0 then return function(frame) return frame[slot] end end
  if hops == 1 then return function(frame) return frame.up[slot] end end
  if hops then
    return function(frame)
      for _ = 1, hops do frame = frame.up end
      return frame[slot]
    end
  end
  local global = globals[name]
  return function(_, run)
    local variable = run.variables[name]
    if variable == nil then return global end
    return variable
  end
end

function compilers.name(node, scope)
  local read, missing = expressions.read(node.name, scope), value.undefined(("'%s' is undefined"):format(node.name))
  return function(frame, run)
    local v = read(frame, run)
    if v == nil then return missing end
    return v
  end
end

local function compile_items(make)
  return function(node, scope)
    local items = compile_all(node.items, scope)
    return function(frame, run) return make(evaluate_all(items, frame, run), #items) end
  end
end

compilers.list, compilers.tuple = compile_items(value.list), compile_items(value.tuple)

function compilers.dict(node, scope)
  local keys, values = {}, {}
  for i, pair in ipairs(node.pairs) do keys[i], values[i] = compile(pair.key, scope), compile(pair.value, scope) end
  return function(frame, run)
    local dict = value.dict()
    for i = 1, #keys do value.set(dict, keys[i](frame, run), values[i](frame, run), run) end
    return dict
  end
end

-- ---- operators ----

function compilers.binary(node, scope)
  local left, right, at = compile(node.left, scope), compile(node.right, scope), node.at
  local operate = operators.binary[node.operator]
  return function(frame, run)
    local a = left(frame, run)
    local b = right(frame, run)
    run.at = at
    return operate(run, a, b)
  end
end

function compilers.join(node, scope)
  local items, at = compile_all(node.items, scope), node.at
  return function(frame, run)
    local values = evaluate_all(items, frame, run)
    run.at = at
    return operators.join(run, values)
  end
end

for _, sign in ipairs { "negative", "positive" } do
  local operate = operators[sign]
  compilers[sign] = function(node, scope)
    local operand, at = compile(node.operand, scope), node.at
    return function(frame, run)
      local v = operand(frame, run)
      run.at = at
      return operate(v)
    end
  end
end

compilers["not"] = function(node, scope)
  local operand = compile(node.operand, scope)
  return function(frame, run) return not value.truth(operand(frame, run)) end
end

compilers["and"] = function(node, scope)
  local left, right = compile(node.left, scope), compile(node.right, scope)
  return function(frame, run)
    local v = left(frame, run)
    if value.truth(v) then return right(frame, run) end
    return v
  end
end

compilers["or"] = function(node, scope)
  local left, right = compile(node.left, scope), compile(node.right, scope)
  return function(frame, run)
    local v = left(frame, run)
    if value.truth(v) then return v end
    return right(frame, run)
  end
end

-- a < b < c is a < b and b < c, with b evaluated once.
function compilers.compare(node, scope)
  local first, steps = compile(node.left, scope), {}
  for i, step in ipairs(node.steps) do
    steps[i] = { at = step.at, operate = operators.compare[step.operator], operand = compile(step.operand, scope) }
  end
  return function(frame, run)
    local left = first(frame, run)
    for i = 1, #steps do
      local step = steps[i]
      local right = step.operand(frame, run)
      run.at = step.at
      if not step.operate(run, left, right) then return false end
      left = right
    end
    return true
  end
end

-- Without an else, what is not chosen is undefined. Filters in a choice need to exist only if they run.
function compilers.choice(node, scope)
  local outside = scope.is_soft
  scope.is_soft = true
  local test, yes = compile(node.test, scope), compile(node.yes, scope)
  local no = node.no and compile(node.no, scope)
  scope.is_soft = outside
  local missing = value.undefined "the inline if-expression evaluated to false and no else section was defined."
  return function(frame, run)
    if value.truth(test(frame, run)) then return yes(frame, run) end
    if no then return no(frame, run) end
    return missing
  end
end

-- ---- attributes, items, slices ----

function compilers.attribute(node, scope)
  local object, name, at = compile(node.object, scope), str.own(node.name), node.at
  return function(frame, run)
    local v = object(frame, run)
    run.at = at
    return attributes.get(run, v, name)
  end
end

local function nothing() return nil end

local function compile_slice(object, slice, scope)
  local from = slice.from and compile(slice.from, scope) or nothing
  local to = slice.to and compile(slice.to, scope) or nothing
  local step = slice.step and compile(slice.step, scope) or nothing
  return function(frame, run)
    local v, first, last, by = object(frame, run), from(frame, run), to(frame, run), step(frame, run)
    run.at = slice.at
    return attributes.slice(run, v, first, last, by)
  end
end

-- A slice among several indices, which nothing here understands.
function compilers.slice(node) fault.syntax(node.at, "a slice has to be the only index") end

function compilers.item(node, scope)
  local object, at = compile(node.object, scope), node.at
  if node.index.type == "slice" then return compile_slice(object, node.index, scope) end
  local index = compile(node.index, scope)
  return function(frame, run)
    local v = object(frame, run)
    local i = index(frame, run)
    run.at = at
    return attributes.item(run, v, i)
  end
end

-- ---- calls ----

local function expand_list(run, values, n, list)
  if value.kind(list) == "undefined" then value.fail_undefined(list) end
  local items, more = value.items(run, list)
  run:spend(more)
  table.move(items, 1, more, n + 1, values)
  return n + more
end

local function add_keyword(keywords, key, v)
  local name = key.text
  if keywords.map[name] ~= nil then fault.raise("type", "got multiple values for keyword argument '%s'", name) end
  keywords.names[#keywords.names + 1], keywords.map[name], keywords.keys[name] = name, v, key
end

local function expand_map(keywords, map)
  if value.kind(map) ~= "dict" then
    if value.kind(map) == "undefined" then value.fail_undefined(map) end
    fault.raise("type", "argument after ** must be a mapping, not %s", value.type_name(map))
  end
  for i = 1, map.n do
    if value.kind(map.keys[i]) ~= "str" then fault.raise("type", "keywords must be strings") end
    add_keyword(keywords, map.keys[i], map.values[i])
  end
end

---The arguments of a call: a closure that returns them, their number, and the keywords or nil.
---@param arguments kigo.jinja.Arguments
---@return fun(frame: table, run: kigo.jinja.Run.State): any[], integer, kigo.jinja.Keywords?
function expressions.arguments(arguments, scope)
  local positional = compile_all(arguments, scope)
  local n = #positional
  if not arguments.list and not arguments.map and #arguments.names == 0 then
    return function(frame, run) return evaluate_all(positional, frame, run), n, nil end
  end
  local keys, named = {}, compile_all(arguments.named, scope)
  for i, name in ipairs(arguments.names) do keys[i] = str.own(name) end
  local list = arguments.list and compile(arguments.list, scope)
  local map = arguments.map and compile(arguments.map, scope)
  return function(frame, run)
    local values, count = evaluate_all(positional, frame, run), n
    if list then count = expand_list(run, values, n, list(frame, run)) end
    local keywords = call.keywords()
    for i, key in ipairs(keys) do add_keyword(keywords, key, named[i](frame, run)) end
    if map then expand_map(keywords, map(frame, run)) end
    return values, count, keywords.names[1] and keywords or nil
  end
end

-- object.name(...): the method is called without a value being made of it.
local function compile_method_call(node, scope)
  local object, name, at = compile(node.callee.object, scope), str.own(node.callee.name), node.at
  local evaluate = expressions.arguments(node.arguments, scope)
  return function(frame, run)
    local v = object(frame, run)
    local method, callee = attributes.method(v, name.text), nil
    if not method then
      run.at = node.callee.at
      callee = attributes.get(run, v, name)
    end
    local arguments, n, keywords = evaluate(frame, run)
    run.at = at
    if method then return call.invoke(run, method, v, arguments, n, keywords) end
    return call.value(run, callee, arguments, n, keywords)
  end
end

function compilers.call(node, scope)
  if node.callee.type == "attribute" then return compile_method_call(node, scope) end
  local callee, at = compile(node.callee, scope), node.at
  local evaluate = expressions.arguments(node.arguments, scope)
  return function(frame, run)
    local f = callee(frame, run)
    local arguments, n, keywords = evaluate(frame, run)
    run.at = at
    return call.value(run, f, arguments, n, keywords)
  end
end

-- A filter or test by name. One that does not exist is an error of the template, in a choice only when it runs.
local function lookup(node, list, what, scope)
  local found = list[node.name]
  if found then return found end
  if not scope.is_soft then fault.syntax(node.at, "no %s named '%s'", what, node.name:sub(1, 40)) end
  return call.native(node.name, "...", function()
    fault.raise("other", "no %s named '%s'", what, node.name:sub(1, 40))
  end)
end

---A filter; its operand is a node, or for the innermost of a block's filters the value in `frame[slot]`.
function compilers.filter(node, scope)
  local operand
  if node.operand then
    operand = compile(node.operand, scope)
  else
    local slot = scope.captured
    operand = function(frame) return frame[slot] end
  end
  local filter, at = lookup(node, filters, "filter", scope), node.at
  local evaluate = expressions.arguments(node.arguments, scope)
  return function(frame, run)
    local v = operand(frame, run)
    local arguments, n, keywords = evaluate(frame, run)
    run.at = at
    return call.invoke(run, filter, v, arguments, n, keywords)
  end
end

function compilers.test(node, scope)
  local operand, at = compile(node.operand, scope), node.at
  local test = lookup(node, tests, "test", scope)
  local evaluate = expressions.arguments(node.arguments, scope)
  return function(frame, run)
    local v = operand(frame, run)
    local arguments, n, keywords = evaluate(frame, run)
    run.at = at
    return call.invoke(run, test, v, arguments, n, keywords)
  end
end

return expressions
