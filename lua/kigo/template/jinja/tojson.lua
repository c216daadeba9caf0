-- json.dumps, to the byte: what `tojson` writes.
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local sort = require "kigo.template.jinja.sort"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ["\b"] = "\\b",
  ["\f"] = "\\f" }

local function escape(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end

local function escape_wide(character)
  local c = utf8.codepoint(character)
  if c < 0x10000 then return ("\\u%04x"):format(c) end
  c = c - 0x10000
  return ("\\u%04x\\u%04x"):format(0xD800 + (c >> 10), 0xDC00 + (c & 0x3FF))
end

---@class kigo.jinja.Json
---@field run kigo.jinja.Run.State
---@field out string[]
---@field indent string?     one level of it
---@field comma string
---@field colon string
---@field sort boolean
---@field ascii boolean

local function write(self, text)
  self.out[#self.out + 1] = text
  self.run:spend_bytes(#text)
end

local function string_text(self, text)
  self.run:spend_bytes(#text)
  text = text:gsub('[\0-\x1f"\\]', escape)
  if self.ascii then text = text:gsub("[\xc2-\xf4][\x80-\xbf]+", escape_wide) end
  return '"' .. text .. '"'
end

local function number_text(x)
  if math.type(x) == "integer" then return tostring(x) end
  if x ~= x then return "NaN" end
  if x == math.huge then return "Infinity" elseif x == -math.huge then return "-Infinity" end
  return value.float_text(x)
end

local function key_text(self, key)
  local k = kind(key)
  if k == "str" then return string_text(self, key.text) end
  if k == "int" or k == "float" then return '"' .. number_text(key) .. '"' end
  if k == "bool" then return key and '"true"' or '"false"' end
  if k == "none" then return '"null"' end
  fault.raise("type", "keys must be str, int, float, bool or None, not %s", value.type_name(key))
end

local function newline(self, depth)
  if self.indent then
    self.run:spend_bytes(#self.indent * depth)
    write(self, "\n" .. self.indent:rep(depth))
  end
end

-- Items between brackets, each by its own function.
local function write_items(self, open, close, n, write_item, depth)
  if n == 0 then return write(self, open .. close) end
  write(self, open)
  for i = 1, n do
    if i > 1 then write(self, self.comma) end
    newline(self, depth)
    write_item(i)
  end
  newline(self, depth - 1)
  write(self, close)
end

local encode

local function write_dict(self, dict, depth)
  local order = {}
  for i = 1, dict.n do order[i] = i end
  if self.sort then
    order = sort.sorted(self.run, order, dict.n, function(i) return dict.keys[i] end)
  end
  write_items(self, "{", "}", dict.n, function(i)
    write(self, key_text(self, dict.keys[order[i]]) .. self.colon)
    encode(self, dict.values[order[i]], depth + 1)
  end, depth)
end

function encode(self, v, depth)
  if depth > value.max_depth then fault.raise("recursion", "a value is nested too deeply for JSON") end
  self.run:spend(3)
  local k = kind(v)
  if k == "str" then return write(self, string_text(self, v.text)) end
  if k == "int" or k == "float" then return write(self, number_text(v)) end
  if k == "bool" then return write(self, v and "true" or "false") end
  if k == "none" then return write(self, "null") end
  if k == "dict" then return write_dict(self, v, depth) end
  if k == "list" or k == "tuple" then
    return write_items(self, "[", "]", v.n, function(i) encode(self, v[i], depth + 1) end, depth)
  end
  fault.raise("type", "Object of type %s is not JSON serializable", value.type_name(v))
end

-- An indentation is a number of blanks or a string; None writes everything on one line.
local function indentation(run, indent)
  if indent == nil or indent == value.none then return nil end
  if kind(indent) == "str" then return indent.text end
  return str.rep(run, str.own " ", call.integer(indent, "indent")).text
end

local function truth(v) return v ~= nil and value.truth(v) end

---@param run kigo.jinja.Run.State
return function(run, v, ascii, indent, separators, sort_keys)
  local self = { run = run, out = {}, indent = indentation(run, indent), colon = ": ", ascii = truth(ascii),
    sort = truth(sort_keys) }
  self.comma = self.indent and "," or ", "
  if separators ~= nil and separators ~= value.none then
    local pair = value.items(run, separators)
    self.comma, self.colon = call.string(pair[1], "item separator").text, call.string(pair[2], "key separator").text
  end
  encode(self, v, 1)
  return str.foreign(table.concat(self.out))
end
