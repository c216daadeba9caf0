-- The functions that every template has.
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local print = require "kigo.template.jinja.print"
local str = require "kigo.template.jinja.str"
local strftime = require "kigo.template.jinja.strftime"
local value = require "kigo.template.jinja.value"

---@type table<string, kigo.jinja.Function>
local globals = {}

local function define(name, signature, run) globals[name] = call.native(name, signature, run) end

-- Python's sandbox has the same limit.
local MAX_RANGE = 100000

define("range", "start stop? step?", function(run, _, start, stop, step)
  start, stop, step = call.integer(start, "range"), call.integer(stop, "range"), call.integer(step, "range", 1)
  if not stop then start, stop = 0, start end
  if step == 0 then fault.raise("other", "range() arg 3 must not be zero") end
  local distance = step > 0 and (stop + 0.0 - start) or (start + 0.0 - stop)
  local n = math.max(math.ceil(distance / math.abs(step + 0.0)), 0)
  if n > MAX_RANGE then fault.raise("other", "a range has more than %d items", MAX_RANGE) end
  run:spend(1)
  return value.range(start, stop, step, n)
end)

local function fill_dict(run, dict, items)
  if value.kind(items) == "dict" then
    run:spend(4 * items.n)
    for i = 1, items.n do value.set(dict, items.keys[i], items.values[i], run) end
    return
  end
  for pair in value.iterate(items) do
    run:spend(4)
    local parts, n = value.items(run, pair)
    if n ~= 2 then fault.raise("other", "an element of a dictionary has %d parts; 2 is required", n) end
    value.set(dict, parts[1], parts[2], run)
  end
end

local function make_dict(name, run, arguments, n, keywords)
  if n > 1 then fault.raise("type", "%s expected at most 1 argument, got %d", name, n) end
  local dict = value.dict()
  if n == 1 then fill_dict(run, dict, arguments[1]) end
  return call.keyword_dict(run, keywords, nil, dict)
end

define("dict", "...", function(run, _, ...) return make_dict("dict", run, ...) end)

-- The one thing that a template can change: {% set ns.name = ... %}.
define("namespace", "...", function(run, _, ...)
  return { kind = "namespace", dict = make_dict("namespace", run, ...) }
end)

define("cycler", "...", function(_, _, arguments, n)
  if n == 0 then fault.raise("other", "at least one item has to be provided") end
  return { kind = "cycler", items = table.move(arguments, 1, n, 1, {}), n = n, at = 0 }
end)

-- A joiner is called: the first time it is empty, then it is the separator.
define("joiner", "sep?", function(_, _, separator)
  local joiner = { kind = "joiner", used = false, separator = separator or str.own ", " }
  function joiner:invoke()
    if self.used then return self.separator end
    self.used = true
    return str.empty
  end
  return joiner
end)

define("raise_exception", "message", function(run, _, message)
  fault.raise("raise", print.str(run, message).text)
end)

define("strftime_now", "format", function(run, _, format)
  run:spend(#call.string(format, "format").text)
  return str.like(format, strftime(format.text, run.now))
end)

define("lipsum", "...", function() fault.raise("other", "a template has no random text") end)

return globals
