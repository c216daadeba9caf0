-- Jinja2 as chat templates use it, in Lua: the text of a template in, a function from variables to text out. Templates
-- and variables are untrusted: a template reaches nothing but its variables, and ends within its limits.
--
--   local jinja = require "kigo.template.jinja"
--   local template = assert(jinja.compile("<|user|>{{ message }}<|end|>"))
--   local text = assert(template:render { message = "Hello <|end|>" })
--   tostring(text)     -- <|user|>Hello <|end|><|end|>
--   text[1], text[2]   -- { text = "<|user|>", own = true }, { text = "Hello <|end|>", own = false }
--
-- Variables are Lua data: strings, numbers (integers and floats differ, as in Python), booleans, kigo.json.null for
-- None, lists, and tables with string keys. kigo.json.decode keeps the order of keys and knows [] from {}; keys of
-- plain tables come sorted, and an empty plain table is a list.
--
-- Where text came from. Every character of the output is the template's own or a variable's. What moves characters
-- around keeps that for each of them: concatenation, slices, strip, split, join, replace, partition, padding, indent,
-- formats that are the template's own, set blocks, macros, namespaces. What makes other characters of them (upper,
-- escape, title, ...) is own only if all of its text is; and text made of anything that is no string (numbers, lists,
-- tojson) is a variable's. Tests and comparisons take no notice of it. In doubt a character is a variable's: then it is
-- plain text to a model.
--
-- What differs from Python's Jinja with the environment that Hugging Face's templates are written for:
--   - integers have 64 bits (more is a "limit"); there are no complex numbers, no bytes, no attributes of numbers;
--   - nothing is escaped on its own: `safe` and `escape` give plain text, to which more can be added unescaped;
--   - digits are 0 to 9 for `int` and `float`; roman and CJK numerals and circled letters are of the class that their
--     general category says;
--   - `pprint` writes one line; methods, iterators and objects print without an address; `random`, `urlize`, `lipsum`,
--     other templates and `autoescape` have no meaning here;
--   - a name that a scope assigns begins with the value it has outside, also for macros that are called before;
--   - a slice of a number or None is a "type" fault, also where Python folds constants; a filter or call block that
--     gives no string fails where it stands, not at the end; which items sort compares first where some have no order.
--
-- The way through the files: lexer, parser and statements (text to tree), scope, compiler and expressions (tree to
-- closures), value, str and print (what there is), operators, attributes, call, methods, filters, tests, globals (what
-- can be done with it), run (limits).
local check = require "kigo.check"
local compiler = require "kigo.template.jinja.compiler"
local core = require "kigo.core"
local fault = require "kigo.template.jinja.fault"
local lexer = require "kigo.template.jinja.lexer"
local Parser = require "kigo.template.jinja.parser"
local Run = require "kigo.template.jinja.run"
local str = require "kigo.template.jinja.str"
local variables = require "kigo.template.jinja.variables"
require "kigo.template.jinja.statements"

---@class kigo.jinja.Run
---@field text string
---@field own boolean   written by the template itself; false: came from a variable, whole or in part

---A list of runs; tostring gives the whole text.
---@class kigo.jinja.Text
---@field [integer] kigo.jinja.Run
local Text = {}
Text.__index = Text
Text.__name = "kigo.jinja.Text"

---@alias kigo.jinja.Kind "syntax"|"raise"|"undefined"|"type"|"security"|"recursion"|"limit"|"other"

---@class kigo.jinja.Place
---@field name string
---@field line integer
---@field column integer

---@class kigo.jinja.Options
---@field now? string|osdate  what strftime_now tells: "2026-07-29 10:29:00" or as os.date "*t"; else the local time
---@field steps? integer      how much work a template may do (a step: about one operation, or 32 bytes of text)
---@field output? integer     bytes that it may write

local render_options = { now = "string|table", steps = "integer", output = "integer" }

---The limits of a rendering.
local STEPS, OUTPUT = 1 << 23, 1 << 24

---@class kigo.jinja.Template
---@field name string
---@field source string
---@field _run kigo.jinja.Statement
local Template = {}
Template.__index = Template
Template.__name = "kigo.jinja.Template"

local jinja = {}

---The whole text, without where it came from.
---@return string
function Text:plain()
  local parts = {}
  for i, run in ipairs(self) do parts[i] = run.text end
  return table.concat(parts)
end

Text.__tostring = Text.plain

---Mark a string among the variables as trusted: it counts as the template's own text, like the name of the token that
---begins a sequence, or a role from a fixed set.
---@param text string
---@return kigo.jinja.Own
function jinja.own(text)
  if type(text) ~= "string" then error("text: string expected, got " .. type(text), 2) end
  return variables.own(text)
end

-- ---- faults ----

local MAX_MESSAGE = 300

local function place_of(name, source, at)
  local before = source:sub(1, at - 1)
  local _, lines = before:gsub("\n", "")
  local line_at = before:match "^.*\n()" or 1
  return { name = name, line = lines + 1, column = (utf8.len(before, line_at) or 0) + 1 }
end

-- One line of text, not all of a long one.
local function short(message)
  if #message > MAX_MESSAGE then message = message:sub(1, (utf8.offset(message, 0, MAX_MESSAGE))) .. "..." end
  return (message:gsub("%c", function(c) return ("\\x%02x"):format(c:byte()) end))
end

-- nil, message, code, kind, place of a fault; anything else that was raised goes on.
local function refused(name, source, problem, at, code)
  if type(problem) == "string" and problem:find "stack overflow" then
    problem = { kind = "recursion", message = "nested too deeply" }
  elseif not fault.is(problem) then
    error(problem, 0)
  end
  local place = place_of(name, source, problem.at or at)
  local message = problem.message
  if problem.kind ~= "raise" then
    message = ("%s:%d:%d: %s"):format(check.name(name), place.line, place.column, short(message))
  end
  return nil, message, code, problem.kind, place
end

-- ---- compiling ----

local function compile(source)
  local parser = Parser.new(lexer.tokens(source))
  return compiler.compile(parser:parse_template())
end

---Compile a template.
---@param source string
---@param options? { name: string? }   name: for messages
---@return kigo.jinja.Template?
---@return string? message             names the template, line and column
---@return integer? code               kigo.err.FORMAT
---@return kigo.jinja.Kind? kind       "syntax"
---@return kigo.jinja.Place? place
function jinja.compile(source, options)
  if type(source) ~= "string" then error("source: string expected, got " .. type(source), 2) end
  options = check.options(options, { name = "string" })
  local name = options.name or "template"
  local _, bad = utf8.len(source)
  if bad then
    return nil, ("%s: byte %d is not UTF-8"):format(check.name(name), bad), core.err.FORMAT, "syntax",
      { name = name, line = 1, column = 1 }
  end
  source = lexer.normalise(source)
  local good, run = pcall(compile, source)
  if not good then return refused(name, source, run, 1, core.err.FORMAT) end
  return setmetatable({ name = name, source = source, _run = run }, Template)
end

-- ---- rendering ----

local function time_of(now)
  if type(now) == "table" then return now end
  if not now then return os.date "*t" end
  local year, month, day, hour, min, sec = now:match "^(%d%d%d%d)-(%d%d)-(%d%d)[ T](%d%d):(%d%d):(%d%d)$"
  if not year then error('option now: "2026-07-29 10:29:00" expected, got ' .. check.quoted(now), 3) end
  local seconds = os.time { year = year, month = month, day = day, hour = hour, min = min, sec = sec }
  return os.date("*t", seconds)
end

---Render with these variables.
---@param from table
---@param options? kigo.jinja.Options
---@return kigo.jinja.Text?
---@return string? message             exactly the text that the template gave, where kind is "raise"
---@return integer? code               kigo.err.UNSUPPORTED
---@return kigo.jinja.Kind? kind
---@return kigo.jinja.Place? place
function Template:render(from, options)
  if type(from) ~= "table" then error("variables: table expected, got " .. type(from), 2) end
  options = check.options(options, render_options)
  local now = time_of(options.now)
  local good, made = pcall(variables.from, from)
  if not good then error(made, 2) end
  local run = Run.new(made, { steps = options.steps or STEPS, output = options.output or OUTPUT }, now)
  local problem
  good, problem = pcall(self._run, {}, run)
  if good then good, problem = pcall(str.concat, run, run.out, run.out.n) end
  if not good then return refused(self.name, self.source, problem, run.at, core.err.UNSUPPORTED) end
  return setmetatable(str.runs(problem), Text)
end

return jinja
