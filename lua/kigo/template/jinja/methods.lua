-- Methods of strings, lists, tuples, dictionaries and numbers, by kind and name.
local call = require "kigo.template.jinja.call"
local case = require "kigo.template.jinja.unicode"
local fault = require "kigo.template.jinja.fault"
local search = require "kigo.template.jinja.search"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local kind = value.kind

local methods = { str = {}, list = {}, tuple = {}, dict = {}, int = {}, float = {}, cycler = {} }

local function define(of, name, signature, run) methods[of][name] = call.native(name, signature, run) end

local function text_method(name, signature, run) define("str", name, signature, run) end

-- An argument that may be None.
local function given(v)
  if v == nil or v == value.none then return nil end
  return v
end

-- ---- strings: case and classes ----

for _, name in ipairs { "upper", "lower", "capitalize", "title" } do
  text_method(name, "", function(run, s)
    run:spend_bytes(#s.text * 4)
    return str.like(s, case[name](s.text))
  end)
end

text_method("casefold", "", function(run, s)
  run:spend_bytes(#s.text * 4)
  return str.like(s, case.fold(s.text))
end)

text_method("swapcase", "", function(run, s)
  run:spend_bytes(#s.text * 8)
  return str.like(s, case.swap(s.text))
end)

for _, class in ipairs { "alpha", "digit", "decimal", "numeric", "alnum" } do
  text_method("is" .. class, "", function(run, s)
    run:spend_bytes(#s.text * 8)
    return case.all(s.text, class)
  end)
end

for _, class in ipairs { "upper", "lower" } do
  text_method("is" .. class, "", function(run, s)
    run:spend_bytes(#s.text * 8)
    return case.all_cased(s.text, class)
  end)
end

text_method("istitle", "", function(run, s)
  run:spend_bytes(#s.text * 8)
  return case.is_title(s.text)
end)

text_method("isspace", "", function(run, s)
  run:spend_bytes(#s.text * 8)
  local first, last = str.strip_bounds(s.text, nil, true, false)
  return s.text ~= "" and first > last
end)

text_method("isascii", "", function(_, s) return str.is_ascii(s.text) end)
text_method("isprintable", "", function(_, s) return s.text == "" or case.all(s.text, "printable") end)

text_method("isidentifier", "", function(_, s)
  return s.text:find "^[%a_\x80-\xff]" ~= nil and case.all(s.text:gsub("_", "a"), "alnum")
end)

-- ---- strings: ends ----

local function strip(left, right)
  return function(run, s, characters)
    local set
    characters = given(characters)
    if characters then
      set = {}
      for character in str.characters(call.string(characters, "strip arg")) do set[character.text] = true end
      run:spend_bytes(#characters.text * 32)
    end
    local first, last = str.strip_bounds(s.text, set, left, right)
    run:spend_bytes((#s.text - (last - first + 1)) * 8)
    return str.sub(s, first, last)
  end
end

text_method("strip", "chars?", strip(true, true))
text_method("lstrip", "chars?", strip(true, false))
text_method("rstrip", "chars?", strip(false, true))

-- The part between two character positions, and where it begins.
local function window(run, s, from, to)
  from, to = given(from), given(to)
  if not from and not to then return s, 0 end
  run:spend_bytes(#s.text)
  local n = str.length(s)
  local first, last = call.integer(from, "slice index", 0), call.integer(to, "slice index", n)
  if first < 0 then first = math.max(first + n, 0) end
  if last < 0 then last = math.max(last + n, 0) end
  if first > n then return nil, 0 end
  return str.slice(s, first, math.min(last, n)), first, math.min(last, n) < first
end

local function begins(text, part) return text:sub(1, #part) == part end
local function ends(text, part) return part == "" or text:sub(-#part) == part end

local function affix(name, matches)
  text_method(name, "affix start? end?", function(run, s, affixes, from, to)
    local part, _, is_reversed = window(run, s, from, to)
    local candidates = { affixes }
    if kind(affixes) == "tuple" then
      candidates = affixes
    elseif kind(affixes) ~= "str" then
      fault.raise("type", "%s first arg must be str or a tuple of str, not %s", name, value.type_name(affixes))
    end
    for _, candidate in ipairs(candidates) do
      call.string(candidate, name .. " arg")
      run:spend(1)
      if part and not is_reversed and matches(part.text, candidate.text) then return true end
    end
    return false
  end)
end

affix("startswith", begins)
affix("endswith", ends)

text_method("removeprefix", "prefix", function(_, s, prefix)
  return begins(s.text, call.string(prefix, "prefix").text) and str.sub(s, #prefix.text + 1, #s.text) or s
end)

text_method("removesuffix", "suffix", function(_, s, suffix)
  return ends(s.text, call.string(suffix, "suffix").text) and str.sub(s, 1, #s.text - #suffix.text) or s
end)

-- ---- strings: search ----

-- Position of the first or last place, or nil.
local function position(run, s, needle, from, to, from_right)
  call.string(needle, "sub")
  local part, offset, is_reversed = window(run, s, from, to)
  if not part or is_reversed then return nil end
  local text = part.text
  run:spend_search(text, needle.text)
  local at
  if from_right then
    at = text:reverse():find(needle.text:reverse(), 1, true)
    at = at and #text - at - #needle.text + 2
  else
    at = text:find(needle.text, 1, true)
  end
  return at and offset + str.index_of(text, at)
end

for name, from_right in pairs { find = false, rfind = true } do
  text_method(name, "sub start? end?", function(run, s, needle, from, to)
    return position(run, s, needle, from, to, from_right) or -1
  end)
  text_method(from_right and "rindex" or "index", "sub start? end?", function(run, s, needle, from, to)
    return position(run, s, needle, from, to, from_right) or fault.raise("other", "substring not found")
  end)
end

text_method("count", "sub start? end?", function(run, s, needle, from, to)
  call.string(needle, "sub")
  local part, _, is_reversed = window(run, s, from, to)
  if not part or is_reversed then return 0 end
  if needle.text == "" then return str.length(part) + 1 end
  return #search.places(run, part.text, needle.text, -1)
end)

-- ---- strings: taking apart and putting together ----

for name, from_right in pairs { split = false, rsplit = true } do
  text_method(name, "sep? maxsplit?", function(run, s, separator, max)
    separator = given(separator)
    if separator then call.string(separator, "sep") end
    return value.list(search.split(run, s, separator, call.integer(max, "maxsplit", -1), from_right))
  end)
end

text_method("splitlines", "keepends?", function(run, s, keep_ends)
  return value.list(search.lines(run, s, keep_ends ~= nil and value.truth(keep_ends)))
end)

for name, from_right in pairs { partition = false, rpartition = true } do
  text_method(name, "sep", function(run, s, separator)
    local pieces = search.split(run, s, call.string(separator, "sep"), 1, from_right)
    if pieces[2] then
      local at = #pieces[1].text
      return value.tuple({ pieces[1], str.sub(s, at + 1, at + #separator.text), pieces[2] }, 3)
    end
    return value.tuple(from_right and { str.empty, str.empty, s } or { s, str.empty, str.empty }, 3)
  end)
end

text_method("replace", "old new count?", function(run, s, old, new, max)
  return search.replace(run, s, call.string(old, "replace() argument 1"), call.string(new, "replace() argument 2"),
    call.integer(max, "count", -1))
end)

text_method("join", "iterable", function(run, s, iterable)
  local pieces, n = {}, 0
  for item in value.iterate(iterable) do
    if kind(item) ~= "str" then
      fault.raise("type", "sequence item %d: expected str instance, %s found", (n + 1) // 2, value.type_name(item))
    end
    if n > 0 then pieces[n + 1], n = s, n + 1 end
    pieces[n + 1], n = item, n + 1
    run:spend(2)
  end
  return str.concat(run, pieces, n)
end)

-- ---- strings: padding ----

-- The padding is as trusted as the string, and as what fills it.
local function fill(run, s, character, n)
  if n <= 0 then return str.empty end
  return str.rep(run, character or str.new(" ", str.is_own(s)), n)
end

local function pad(name, left_of)
  text_method(name, "width fillchar?", function(run, s, width, character)
    if character and (kind(character) ~= "str" or str.length(character) ~= 1) then
      fault.raise("type", "the fill character must be exactly one character long")
    end
    local missing = call.integer(width, "width") - str.length(s)
    if missing <= 0 then return s end
    local left = left_of(missing, call.integer(width, "width"))
    return str.concat(run, { fill(run, s, character, left), s, fill(run, s, character, missing - left) })
  end)
end

pad("ljust", function() return 0 end)
pad("rjust", function(missing) return missing end)
pad("center", function(missing, width) return missing // 2 + (missing & width & 1) end)

text_method("zfill", "width", function(run, s, width)
  local missing = call.integer(width, "width") - str.length(s)
  if missing <= 0 then return s end
  local zeros = str.rep(run, str.new("0", str.is_own(s)), missing)
  local sign = s.text:find "^[+-]" and 1 or 0
  return str.concat(run, { str.sub(s, 1, sign), zeros, str.sub(s, sign + 1, #s.text) })
end)

text_method("expandtabs", "tabsize?", function(run, s, size)
  size = call.integer(size, "tabsize", 8)
  local pieces, column = {}, 0
  for character in str.characters(s) do
    run:spend(2)
    if character.text == "\t" then
      local n = size > 0 and size - column % size or 0
      character = str.rep(run, str.new(" ", str.is_own(character)), n)
      column = column + n
    else
      column = (character.text == "\n" or character.text == "\r") and 0 or column + 1
    end
    pieces[#pieces + 1] = character
  end
  return str.concat(run, pieces)
end)

-- ---- lists and tuples ----

for _, of in ipairs { "list", "tuple" } do
  define(of, "index", "value start? stop?", function(run, v, wanted, from, to)
    local first, last = call.integer(given(from), "start", 0), call.integer(given(to), "stop", v.n)
    if first < 0 then first = math.max(first + v.n, 0) end
    if last < 0 then last = last + v.n end
    for i = first + 1, math.min(last, v.n) do
      if value.equals(v[i], wanted, run) then return i - 1 end
    end
    fault.raise("other", "the value is not in the %s", v.kind)
  end)
  define(of, "count", "value", function(run, v, wanted)
    local n = 0
    for i = 1, v.n do
      if value.equals(v[i], wanted, run) then n = n + 1 end
    end
    return n
  end)
end

define("list", "copy", "", function(run, v)
  run:spend(v.n)
  return value.list(table.move(v, 1, v.n, 1, {}), v.n)
end)

-- ---- dictionaries ----

define("dict", "get", "key default?", function(run, dict, key, default)
  local item = value.get(dict, key, run)
  if item ~= nil then return item end
  if default ~= nil then return default end
  return value.none
end)

for _, what in ipairs { "keys", "values", "items" } do
  define("dict", what, "", function(_, dict) return value.view(dict, what) end)
end

define("dict", "copy", "", function(run, dict)
  run:spend(4 * dict.n)
  local copy = value.dict()
  for i = 1, dict.n do value.set(copy, dict.keys[i], dict.values[i], run) end
  return copy
end)

-- ---- numbers, cyclers ----

define("float", "is_integer", "", function(_, x) return math.tointeger(x) ~= nil end)

define("int", "bit_length", "", function(_, x)
  local n = 0
  x = x < 0 and -x or x
  while x ~= 0 do x, n = x >> 1, n + 1 end
  return n
end)

define("cycler", "next", "", function(_, cycler)
  local item = cycler.items[cycler.at + 1]
  cycler.at = (cycler.at + 1) % cycler.n
  return item
end)

define("cycler", "reset", "", function(_, cycler)
  cycler.at = 0
  return value.none
end)

return methods
