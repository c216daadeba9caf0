-- What {{ value }} prints: str() and repr() of Python.
local case = require "kigo.template.jinja.unicode"
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local print = {}

local kind = value.kind

local ESCAPES = { ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

local function escape_ascii(c) return ESCAPES[c] or ("\\x%02x"):format(c:byte()) end

local function escape_wide(character)
  if case.is.printable(character) then return character end
  local c = utf8.codepoint(character)
  return (c < 0x100 and "\\x%02x" or c < 0x10000 and "\\u%04x" or "\\U%08x"):format(c)
end

---repr of a string.
---@param text string
---@return string
function print.quote(text)
  local quote = text:find("'", 1, true) and not text:find('"', 1, true) and '"' or "'"
  text = text:gsub("[%c\\\127]", escape_ascii):gsub("[\xc2-\xf4][\x80-\xbf]+", escape_wide)
  if quote == "'" then text = text:gsub("'", "\\'") end
  return quote .. text .. quote
end

local write

local function write_items(run, out, n, item, depth)
  for i = 1, n do
    if i > 1 then out[#out + 1] = ", " end
    write(run, out, item(i), depth + 1)
  end
end

local function write_pairs(run, out, dict, depth)
  out[#out + 1] = "{"
  write_items(run, out, dict.n, function(i)
    return { kind = "pair", dict.keys[i], dict.values[i] }
  end, depth)
  out[#out + 1] = "}"
end

local writers = {}

function writers.str(_, out, v) out[#out + 1] = print.quote(v.text) end
function writers.none(_, out) out[#out + 1] = "None" end
function writers.undefined(_, out) out[#out + 1] = "Undefined" end
function writers.bool(_, out, v) out[#out + 1] = v and "True" or "False" end
function writers.int(_, out, v) out[#out + 1] = tostring(v) end
function writers.float(_, out, v) out[#out + 1] = value.float_text(v) end

function writers.list(run, out, v, depth)
  out[#out + 1] = "["
  write_items(run, out, v.n, function(i) return v[i] end, depth)
  out[#out + 1] = "]"
end

function writers.tuple(run, out, v, depth)
  out[#out + 1] = "("
  write_items(run, out, v.n, function(i) return v[i] end, depth)
  out[#out + 1] = v.n == 1 and ",)" or ")"
end

function writers.pair(run, out, v, depth)
  write(run, out, v[1], depth)
  out[#out + 1] = ": "
  write(run, out, v[2], depth)
end

writers.dict = write_pairs

function writers.view(run, out, v, depth)
  out[#out + 1] = "dict_" .. v.what .. "("
  local items, n = value.items(run, v)
  writers.list(run, out, value.list(items, n), depth)
  out[#out + 1] = ")"
end

function writers.range(_, out, v)
  out[#out + 1] = v.step == 1 and ("range(%d, %d)"):format(v.start, v.stop)
    or ("range(%d, %d, %d)"):format(v.start, v.stop, v.step)
end

function writers.namespace(run, out, v, depth)
  out[#out + 1] = "<Namespace "
  write_pairs(run, out, v.dict, depth)
  out[#out + 1] = ">"
end

function writers.macro(_, out, v)
  out[#out + 1] = "<Macro " .. (v.name and print.quote(v.name) or "anonymous") .. ">"
end

function writers.loop(_, out, v) out[#out + 1] = ("<LoopContext %d/%d>"):format(v.index0 + 1, v:length()) end

-- Python shows an address; nothing depends on it.
local function write_object(_, out, v) out[#out + 1] = "<" .. value.type_name(v) .. ">" end

function write(run, out, v, depth)
  if depth > value.max_depth then fault.raise("recursion", "a value is nested too deeply to print") end
  run:spend(3);
  (writers[kind(v)] or write_object)(run, out, v, depth)
  run:spend_bytes(#out[#out])
end

---repr: text made of a value counts as a variable's.
---@param run kigo.jinja.Run.State
---@return kigo.jinja.Str
function print.repr(run, v)
  local out = {}
  write(run, out, v, 1)
  return str.foreign(table.concat(out))
end

---str: a string is itself.
---@param run kigo.jinja.Run.State
---@return kigo.jinja.Str
function print.str(run, v)
  local k = kind(v)
  if k == "str" then return v end
  if k == "undefined" then return str.empty end
  if k == "int" then return str.foreign(tostring(v)) end
  return print.repr(run, v)
end

return print
