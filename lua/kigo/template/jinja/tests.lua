-- Tests by name: x is NAME. They return Lua booleans, which are the template's.
local case = require "kigo.template.jinja.unicode"
local operators = require "kigo.template.jinja.operators"
local print = require "kigo.template.jinja.print"
local registry = require "kigo.template.jinja.registry"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local define = registry.test

local function set(words)
  local kinds = {}
  for word in words:gmatch "%S+" do kinds[word] = true end
  return kinds
end

-- Tests that ask for kinds of values.
for name, words in pairs {
  undefined = "undefined", none = "none", boolean = "bool", integer = "int", float = "float", number = "int float bool",
  string = "str", mapping = "dict", sequence = "str list tuple dict range undefined",
  iterable = "str list tuple dict range view iterator undefined loop",
  callable = "function method macro undefined loop joiner",
} do
  local kinds = set(words)
  define(name, "", function(_, v) return kinds[kind(v)] or false end)
end

define("defined", "", function(_, v) return kind(v) ~= "undefined" end)
define("true", "", function(_, v) return v == true end)
define("false", "", function(_, v) return v == false end)
define("escaped", "", function() return false end)

-- ---- comparison ----

for names, operator in pairs { ["== eq equalto"] = "==", ["!= ne"] = "!=", ["< lt lessthan"] = "<", ["<= le"] = "<=",
  ["> gt greaterthan"] = ">", [">= ge"] = ">=" } do
  define(names, "other", function(run, v, other) return operators.compare[operator](run, v, other) end)
end

define("in", "seq", function(run, v, container) return operators.contains(run, container, v) end)

define("sameas", "other", function(_, v, other)
  if kind(v) ~= kind(other) then return false end
  return rawequal(v, other) or kind(v) == "str" and v.text == other.text
end)

-- ---- numbers ----

local function remainder(run, v, by)
  local rest = operators.binary["%"](run, v, by)
  return rest
end

define("odd", "", function(run, v) return value.equals(remainder(run, v, 2), 1, run) end)
define("even", "", function(run, v) return value.equals(remainder(run, v, 2), 0, run) end)
define("divisibleby", "num", function(run, v, by) return value.equals(remainder(run, v, by), 0, run) end)

-- ---- text ----

define("lower", "", function(run, v) return case.all_cased(print.str(run, v).text, "lower") end)
define("upper", "", function(run, v) return case.all_cased(print.str(run, v).text, "upper") end)

-- ---- what there is ----

local function define_known(name, list)
  define(name, "", function(run, v) return list[value.key(v, run)] ~= nil end)
end

define_known("filter", registry.filters)
define_known("test", registry.tests)

return registry.tests
