-- Strings that know where each of their characters came from: the template itself (own) or a variable.
--
-- A string is { kind = "str", text = bytes, own = boolean, cuts = ends of runs or nil }. Runs alternate, so their ends
-- are enough: `own` is that of the first run, and `cuts` holds the last byte of every run but the last; a string of one
-- run has no cuts. The empty string is own. Strings are never changed.
local fault = require "kigo.template.jinja.fault"

---@class kigo.jinja.Str
---@field kind "str"
---@field text string
---@field own boolean
---@field cuts integer[]?

local str = {}

---@param text string
---@param is_own boolean
---@return kigo.jinja.Str
function str.new(text, is_own) return { kind = "str", text = text, own = is_own or text == "" } end

---Text of the template.
---@param text string
---@return kigo.jinja.Str
function str.own(text) return { kind = "str", text = text, own = true } end

---Text that came from a variable, or was made from something that did.
---@param text string
---@return kigo.jinja.Str
function str.foreign(text) return { kind = "str", text = text, own = text == "" } end

---Did the template write all of it?
---@param s kigo.jinja.Str
---@return boolean
function str.is_own(s) return s.own and not s.cuts end

---Text made out of `s` in a way that keeps no track of characters.
---@param s kigo.jinja.Str
---@param text string
---@return kigo.jinja.Str
function str.like(s, text)
  if text == s.text then return s end
  return str.new(text, s.own and not s.cuts)
end

str.empty = str.own ""

local empty = str.empty

-- Append the cuts of `s`, moved by `offset`, to `cuts`; `last` is the provenance before. Returns cuts, the new last.
local function append_runs(cuts, last, s, offset)
  if last ~= s.own then
    cuts = cuts or {}
    cuts[#cuts + 1] = offset
    last = s.own
  end
  if s.cuts then
    cuts = cuts or {}
    for _, cut in ipairs(s.cuts) do
      cuts[#cuts + 1] = offset + cut
      last = not last
    end
  end
  return cuts, last
end

---Both, one after the other.
---@param run kigo.jinja.Run.State
---@param a kigo.jinja.Str
---@param b kigo.jinja.Str
---@return kigo.jinja.Str
function str.add(run, a, b)
  if a.text == "" then return b end
  if b.text == "" then return a end
  run:spend_bytes(#a.text + #b.text)
  local text = a.text .. b.text
  if a.own == b.own and not a.cuts and not b.cuts then return { kind = "str", text = text, own = a.own } end
  local cuts, last = append_runs(nil, a.own, a, 0)
  cuts = append_runs(cuts, last, b, #a.text)
  return { kind = "str", text = text, own = a.own, cuts = cuts }
end

---All pieces, one after the other.
---@param run kigo.jinja.Run.State
---@param pieces kigo.jinja.Str[]
---@param n? integer
---@return kigo.jinja.Str
function str.concat(run, pieces, n)
  n = n or #pieces
  if n == 0 then return empty end
  if n == 1 then return pieces[1] end
  local texts, size, first, last, cuts = {}, 0, nil, nil, nil
  for i = 1, n do
    local piece = pieces[i]
    local text = piece.text
    texts[i] = text
    if text ~= "" then
      if first == nil then first, last = piece.own, piece.own end
      if last ~= piece.own or piece.cuts then cuts, last = append_runs(cuts, last, piece, size) end
      size = size + #text
    end
  end
  run:spend_bytes(size)
  if size == 0 then return empty end
  return { kind = "str", text = table.concat(texts), own = first, cuts = cuts }
end

---Bytes from..to, both included.
---@param s kigo.jinja.Str
---@param from integer
---@param to integer
---@return kigo.jinja.Str
function str.sub(s, from, to)
  if from < 1 then from = 1 end
  if to > #s.text then to = #s.text end
  if from > to then return empty end
  if from == 1 and to == #s.text then return s end
  local cuts = s.cuts
  if not cuts then return { kind = "str", text = s.text:sub(from, to), own = s.own } end
  local own, first, kept = s.own, nil, nil
  for _, cut in ipairs(cuts) do
    if cut >= to then break end
    if cut >= from then
      if first == nil then first = own end
      kept = kept or {}
      kept[#kept + 1] = cut - from + 1
    end
    own = not own
  end
  if first == nil then first = own end
  return { kind = "str", text = s.text:sub(from, to), own = first, cuts = kept }
end

---`s` n times.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param n integer
---@return kigo.jinja.Str
function str.rep(run, s, n)
  if n <= 0 or s.text == "" then return empty end
  if n == 1 then return s end
  if n > run.left then fault.raise("limit", "a string of %d times %d bytes is too long", n, #s.text) end
  run:spend_bytes(#s.text * n)
  if not s.cuts then return { kind = "str", text = s.text:rep(n), own = s.own } end
  run:spend(n * #s.cuts)
  local pieces = {}
  for i = 1, n do pieces[i] = s end
  return str.concat(run, pieces, n)
end

---The runs, as { text, own }.
---@param s kigo.jinja.Str
---@return kigo.jinja.Run[]
function str.runs(s)
  local list, from, own = {}, 1, s.own
  for _, cut in ipairs(s.cuts or {}) do
    list[#list + 1] = { text = s.text:sub(from, cut), own = own }
    from, own = cut + 1, not own
  end
  if from <= #s.text then list[#list + 1] = { text = s.text:sub(from), own = own } end
  return list
end

-- ---- characters ----

---Code points.
---@param s kigo.jinja.Str
---@return integer
function str.length(s) return utf8.len(s.text) end

---Is it ASCII, so that bytes are characters?
---@param text string
---@return boolean
function str.is_ascii(text) return not text:find "[\x80-\xff]" end

---Character position (0-based) of a byte position.
---@param text string
---@param byte integer
---@return integer
function str.index_of(text, byte) return byte == 1 and 0 or utf8.len(text, 1, byte - 1) end

---Characters first..last-1, 0-based, both within the string.
---@param s kigo.jinja.Str
---@param first integer
---@param last integer
---@return kigo.jinja.Str
function str.slice(s, first, last)
  if first >= last then return empty end
  if str.is_ascii(s.text) then return str.sub(s, first + 1, last) end
  local from = utf8.offset(s.text, first + 1)
  return str.sub(s, from, utf8.offset(s.text, last - first + 1, from) - 1)
end

---Characters one by one: a function that returns the next, or nil.
---@param s kigo.jinja.Str
---@return fun(): kigo.jinja.Str?
function str.characters(s)
  local at, size = 1, #s.text
  return function()
    if at > size then return nil end
    local from = at
    at = utf8.offset(s.text, 2, from)
    return str.sub(s, from, at - 1)
  end
end

-- What Python calls white space.
local SPACES = { ["\u{85}"] = true, ["\u{a0}"] = true, ["\u{1680}"] = true, ["\u{2028}"] = true, ["\u{2029}"] = true,
  ["\u{202f}"] = true, ["\u{205f}"] = true, ["\u{3000}"] = true }
for c = 0x2000, 0x200a do SPACES[utf8.char(c)] = true end
for _, c in ipairs { 9, 10, 11, 12, 13, 0x1c, 0x1d, 0x1e, 0x1f, 32 } do SPACES[string.char(c)] = true end

---@param character string
---@return boolean
function str.is_space(character) return SPACES[character] or false end

---The bytes first..last that remain of text without characters of `set` at its ends.
---@param text string
---@param set table<string, boolean>?  white space unless given
---@param left boolean
---@param right boolean
---@return integer first
---@return integer last
function str.strip_bounds(text, set, left, right)
  set = set or SPACES
  local first, last = 1, #text
  while left and first <= last do
    local after = utf8.offset(text, 2, first)
    if not set[text:sub(first, after - 1)] then break end
    first = after
  end
  while right and first <= last do
    local start = utf8.offset(text, -1, last + 1)
    if not set[text:sub(start, last)] then break end
    last = start - 1
  end
  return first, last
end

return str
