-- Filters of text. Their operand may be any value, which is text first.
local call = require "kigo.template.jinja.call"
local case = require "kigo.template.jinja.unicode"
local fault = require "kigo.template.jinja.fault"
local format = require "kigo.template.jinja.format"
local methods = require "kigo.template.jinja.methods"
local print = require "kigo.template.jinja.print"
local search = require "kigo.template.jinja.search"
local registry = require "kigo.template.jinja.registry"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local define = registry.filter

local function truth(v) return v ~= nil and value.truth(v) end

-- Filters that are a method of the text.
local function define_method(filter, method, signature)
  method = methods.str[method]
  define(filter, signature, function(run, v, ...) return method.run(run, print.str(run, v), ...) end)
end

define_method("upper", "upper", "")
define_method("lower", "lower", "")
define_method("capitalize", "capitalize", "")
define_method("trim", "strip", "chars?")

define("replace", "old new count?", function(run, v, old, new, max)
  if max == value.none then max = nil end
  local text = print.str(run, v)
  return search.replace(run, text, print.str(run, old), print.str(run, new), call.integer(max, "count", -1))
end)

define("center", "width?", function(run, v, width)
  return methods.str.center.run(run, print.str(run, v), width or 80)
end)

define("format", "...", function(run, v, arguments, n, keywords)
  if keywords then
    if n > 0 then fault.raise("other", "can't handle positional and keyword arguments at the same time") end
    return format.printf(run, print.str(run, v), call.keyword_dict(run, keywords))
  end
  return format.printf(run, print.str(run, v), value.tuple(arguments, n))
end)

-- Jinja's own title case: words begin behind blanks, hyphens and opening brackets.
define("title", "", function(run, v)
  local s = print.str(run, v)
  run:spend_bytes(#s.text * 8)
  local titled = s.text:gsub("[^-%s({%[<]+", function(word)
    local first = word:match "^[\0-\x7f\xc2-\xf4][\x80-\xbf]*"
    return case.upper(first) .. case.lower(word:sub(#first + 1))
  end)
  return str.like(s, titled)
end)

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["'"] = "&#39;", ['"'] = "&#34;" }

local function escape(run, v)
  local s = print.str(run, v)
  run:spend_bytes(#s.text * 2)
  return str.like(s, (s.text:gsub("[&<>'\"]", ENTITIES)))
end

define("escape e forceescape", "", escape)

define("xmlattr", "autospace?", function(run, v, autospace)
  if kind(v) ~= "dict" then fault.raise("type", "'%s' object has no items", value.type_name(v)) end
  local parts = {}
  for i = 1, v.n do
    local item = v.values[i]
    local key = print.str(run, v.keys[i])
    if key.text:find "[%s/>=]" then fault.raise("other", "invalid character in attribute name") end
    if item ~= value.none and kind(item) ~= "undefined" then
      parts[#parts + 1] = ('%s="%s"'):format(escape(run, key).text, escape(run, item).text)
    end
  end
  local text = table.concat(parts, " ")
  return str.foreign((text ~= "" and (autospace == nil or value.truth(autospace)) and " " or "") .. text)
end)

-- ---- lines and words ----

-- Filters that Python applies to strings alone.
local function needs_text(v)
  if kind(v) == "undefined" then value.fail_undefined(v) end
  if kind(v) == "list" then fault.raise("other", "'list' object has no attribute 'splitlines'") end
  return call.string(v, "the operand")
end

define("indent", "width? first? blank?", function(run, v, width, first, blank)
  local s = needs_text(v)
  local indention = width and kind(width) == "str" and width
    or str.rep(run, str.new(" ", str.is_own(s)), call.integer(width, "width", 4))
  local newline = str.new("\n", str.is_own(s))
  local lines = search.lines(run, str.add(run, s, newline))
  local pieces = truth(first) and { indention, lines[1] } or { lines[1] }
  for i = 2, #lines do
    pieces[#pieces + 1] = newline
    if lines[i].text ~= "" or truth(blank) then pieces[#pieces + 1] = indention end
    pieces[#pieces + 1] = lines[i]
  end
  return str.concat(run, pieces)
end)

define("wordcount", "", function(run, v)
  local text, n, inside = print.str(run, v).text, 0, false
  run:spend_bytes(#text * 8)
  for _, c in utf8.codes(text) do
    local is_word = c == 95 or case.is.alnum(utf8.char(c))
    if is_word and not inside then n = n + 1 end
    inside = is_word
  end
  return n
end)

define("truncate", "length? killwords? end? leeway?", function(run, v, length, kill, ending, leeway)
  if kind(v) == "list" or kind(v) == "dict" or kind(v) == "undefined" then return v end
  local s = call.string(v, "the operand")
  length, leeway = call.integer(length, "length", 255), call.integer(leeway, "leeway", 5)
  ending = ending and call.string(ending, "end") or str.own "..."
  if length < str.length(ending) then fault.raise("other", "expected length >= %d", str.length(ending)) end
  if leeway < 0 then fault.raise("other", "expected leeway >= 0") end
  if str.length(s) <= length + leeway then return s end
  local head = str.slice(s, 0, length - str.length(ending))
  if not truth(kill) then
    local blank = head.text:match "^.*() "
    if blank then head = str.sub(head, 1, blank - 1) end
  end
  return str.add(run, head, ending)
end)

-- The last byte of the tag or comment that begins at `open`, or nil.
local function tag_end(text, open)
  if text:sub(open, open + 3) ~= "<!--" then return text:find(">", open, true) end
  return select(2, text:find("-->", open + 4, true))
end

-- What is left of a text without tags and comments, with single blanks between words.
define("striptags", "", function(run, v)
  local s = print.str(run, v)
  local text, parts, at = s.text, {}, 1
  run:spend_bytes(#text * 8)
  while true do
    local open, stop = text:find("<", at, true), nil
    if open then stop = tag_end(text, open) end
    parts[#parts + 1] = text:sub(at, stop and open - 1 or #text)
    if not stop then break end
    at = stop + 1
  end
  local words = search.split(run, str.foreign(table.concat(parts)), nil, -1)
  for i, word in ipairs(words) do words[i] = word.text end
  local bare = table.concat(words, " ")
  return str.like(s, (bare:gsub("&(#?%w+);", { amp = "&", lt = "<", gt = ">", quot = '"', ["#39"] = "'",
    ["#34"] = '"' })))
end)

-- ---- urlencode ----

local function percent(text, safe)
  return (text:gsub("[^%w_.%-~" .. safe .. "]", function(c) return ("%%%02X"):format(c:byte()) end))
end

define("urlencode", "", function(run, v)
  local pairs_of = kind(v) == "dict" and value.view(v, "items") or v
  local k = kind(v)
  if k == "str" or value.try_iterate(pairs_of) == nil then
    local s = print.str(run, v)
    run:spend_bytes(#s.text * 3)
    return str.like(s, percent(s.text, "/"))
  end
  local parts = {}
  for pair in value.iterate(pairs_of) do
    local items, n = value.items(run, pair)
    if n ~= 2 then fault.raise("other", "not enough values to unpack (expected 2, got %d)", n) end
    local key, item = print.str(run, items[1]).text, print.str(run, items[2]).text
    run:spend_bytes((#key + #item) * 3)
    parts[#parts + 1] = percent(key, ""):gsub("%%20", "+") .. "=" .. percent(item, ""):gsub("%%20", "+")
  end
  return str.foreign(table.concat(parts, "&"))
end)
