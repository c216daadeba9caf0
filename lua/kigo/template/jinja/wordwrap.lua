-- Lines of a limited width, as Python's textwrap makes them: what `wordwrap` does.
local call = require "kigo.template.jinja.call"
local fault = require "kigo.template.jinja.fault"
local registry = require "kigo.template.jinja.registry"
local search = require "kigo.template.jinja.search"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

local LETTER, WORD, PUNCTUATION = "[%a\x80-\xff]", "[%w_\x80-\xff]", "[%w_!\"'&.,?\x80-\xff]"

-- May a line break behind the hyphen at `at`? Between letters, two of them or one and a hyphen before.
local function breaks_behind(text, at)
  local before = text:sub(math.max(at - 3, 1), at - 1)
  return (before:find(LETTER .. LETTER .. "$") or before:find("^" .. LETTER .. "%-" .. LETTER .. "$"))
    and text:find("^" .. LETTER .. "%-?" .. LETTER, at + 1) ~= nil
end

-- The end of the chunk that begins at `at`: white space, a dash between words, or a word up to where it may break.
local function chunk_end(text, at, hyphens)
  local blanks = text:match("^[ \t\n\v\f\r]+()", at)
  if blanks then return blanks end
  local stop = text:match("^[^ \t\n\v\f\r]+()", at)
  if not hyphens then return stop end
  local dash = at > 1 and text:sub(at - 1, at - 1):find(PUNCTUATION) and text:match("^%-%-+()" .. WORD, at)
  if dash then return dash end
  local look = at
  while true do
    local hyphen = text:find("-", look, true)
    if not hyphen or hyphen >= stop then return stop end
    if hyphen > at and text:sub(hyphen - 1, hyphen - 1):find(PUNCTUATION) and text:find("^%-%-+" .. WORD, hyphen) then
      return hyphen
    end
    if hyphen > at and breaks_behind(text, hyphen) then return hyphen + 1 end
    look = hyphen + 1
  end
end

local function chunks_of(run, line, hyphens)
  local chunks, at = {}, 1
  while at <= #line.text do
    local stop = chunk_end(line.text, at, hyphens)
    chunks[#chunks + 1] = str.sub(line, at, stop - 1)
    at = stop
    run:spend(4)
  end
  return chunks
end

local function is_blank(chunk) return chunk.text:find "^%s*$" ~= nil end

-- Where a chunk that is wider than a line is cut, in characters.
local function cut_at(chunk, room, hyphens)
  if not hyphens or str.length(chunk) <= room then return room end
  local head = str.slice(chunk, 0, room).text
  local hyphen = head:match "^.*()%-"
  return hyphen and head:sub(1, hyphen - 1):find "[^-]" and str.index_of(head, hyphen) + 1 or room
end

-- Fill one line from chunks[i] on; what is cut from a chunk is put back. Returns the line and where to go on.
local function fill_line(run, chunks, i, width, options)
  local line, size = {}, 0
  while chunks[i] and size + str.length(chunks[i]) <= width do
    line[#line + 1], size = chunks[i], size + str.length(chunks[i])
    i = i + 1
  end
  local chunk = chunks[i]
  if chunk and str.length(chunk) > width then
    run:spend_bytes(#chunk.text * 4)
    if options.long then
      local cut = cut_at(chunk, width - size, options.hyphens)
      line[#line + 1] = str.slice(chunk, 0, cut)
      chunks[i] = str.slice(chunk, cut, str.length(chunk))
    elseif #line == 0 then
      line[1], i = chunk, i + 1
    end
  end
  if line[1] and is_blank(line[#line]) then line[#line] = nil end
  return line, i
end

local function wrap(run, line, width, options)
  local chunks, lines, i = chunks_of(run, line, options.hyphens), {}, 1
  while chunks[i] do
    run:spend(4)
    if lines[1] and is_blank(chunks[i]) then i = i + 1 end
    local filled
    filled, i = fill_line(run, chunks, i, width, options)
    if filled[1] then lines[#lines + 1] = str.concat(run, filled) end
  end
  return lines
end

local function is_true(v) return v == nil or value.truth(v) end

registry.filter("wordwrap", "width? break_long_words? wrapstring? break_on_hyphens?",
  function(run, s, width, long, newline, hyphens)
    if value.kind(s) == "undefined" then value.fail_undefined(s) end
    if value.kind(s) ~= "str" then
      fault.raise("other", "'%s' object has no attribute 'splitlines'", value.type_name(s))
    end
    width = call.integer(width, "width", 79)
    if width <= 0 then fault.raise("other", "invalid width %d (must be > 0)", width) end
    newline = newline and newline ~= value.none and call.string(newline, "wrapstring") or str.new("\n", str.is_own(s))
    local options, pieces = { long = is_true(long), hyphens = is_true(hyphens) }, {}
    for i, line in ipairs(search.lines(run, s)) do
      if i > 1 then pieces[#pieces + 1] = newline end
      for j, part in ipairs(wrap(run, line, width, options)) do
        if j > 1 then pieces[#pieces + 1] = newline end
        pieces[#pieces + 1] = part
      end
    end
    return str.concat(run, pieces)
  end)
