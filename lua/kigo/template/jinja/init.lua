-- Jinja2 as chat templates use it, in Lua: the text of a template in, a function from variables to text out. Templates
-- and variables are untrusted: a template reaches nothing but its variables, and ends within its limits.
--
--   local jinja = require "kigo.template.jinja"
--   local template = assert(jinja.compile("<|user|>{{ message }}<|end|>"))
--   local text = assert(template:render { message = "Hello <|end|>" })
--   tostring(text)                       -- <|user|>Hello <|end|><|end|>
--   for _, run in ipairs(text) do ... end -- { text = "<|user|>", own = true }, { text = "Hello <|end|>", own = false }, ...
--
-- Variables are Lua data: strings, numbers (integers and floats differ, as in Python), booleans, kigo.json.null for None,
-- lists, and tables with string keys. kigo.json.decode keeps the order of keys and knows [] from {}; keys of plain tables
-- come sorted, and an empty plain table is a list.
local core = require "kigo.core"

---@class kigo.jinja.Run
---@field text string
---@field own boolean   written by the template itself; false: came from a variable, whole or in part

---@class kigo.jinja.Text   a list of runs; tostring gives the whole text

---@alias kigo.jinja.Kind "syntax"|"raise"|"undefined"|"type"|"security"|"recursion"|"limit"|"other"

---@class kigo.jinja.Place
---@field name string
---@field line integer
---@field column integer

---@class kigo.jinja.Options
---@field now? string|osdate  what strftime_now tells: "2026-07-29 10:29:00" or as os.date "*t"; the local time unless given
---@field steps? integer      how much work a template may do (a step: about one operation, or 32 bytes of text)
---@field output? integer     bytes that it may write

---@class kigo.jinja.Template
local Template = {}
Template.__index = Template
Template.__name = "kigo.jinja.Template"

local jinja = {}

---Mark a string among the variables as trusted: it counts as the template's own text, like the name of the token that
---begins a sequence, or a role from a fixed set.
---@param text string
---@return userdata|table
function jinja.own(text) return setmetatable({ text = text }, jinja) end

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
  return nil, (options and options.name or "template") .. ": Jinja is not built yet", core.err.FORMAT, "syntax"
end

---Render with these variables.
---@param variables table
---@param options? kigo.jinja.Options
---@return kigo.jinja.Text?
---@return string? message             exactly the text that the template gave, where kind is "raise"
---@return integer? code               kigo.err.UNSUPPORTED
---@return kigo.jinja.Kind? kind
---@return kigo.jinja.Place? place
function Template:render(variables, options) -- luacheck: no unused
  return nil, "Jinja is not built yet", core.err.UNSUPPORTED, "other"
end

return jinja
