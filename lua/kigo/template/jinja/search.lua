-- Looking for text in text, and taking it apart. Positions are bytes here; pieces keep their provenance.
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"

local search = {}

---First bytes of all places of `needle`, from the left, without overlaps.
---@param run kigo.jinja.Run.State
---@param text string
---@param needle string    not empty
---@param max integer      at most so many; negative: all
---@return integer[]
function search.places(run, text, needle, max)
  run:spend_search(text, needle)
  local places, at = {}, 1
  while max < 0 or #places < max do
    local found = text:find(needle, at, true)
    if not found then break end
    places[#places + 1] = found
    at = found + #needle
    run:spend(6)
  end
  return places
end

-- The same from the right.
local function places_from_right(run, text, needle, max)
  local mirrored = search.places(run, text:reverse(), needle:reverse(), max)
  local places = {}
  for i, at in ipairs(mirrored) do places[#mirrored + 1 - i] = #text - at - #needle + 2 end
  return places
end

-- Words between white space: first and last bytes.
local function words(run, text)
  run:spend_bytes(#text * 8)
  local list = {}
  if str.is_ascii(text) then
    for first, after in text:gmatch "()[^%s\x1c-\x1f]+()" do list[#list + 1] = { first, after - 1 } end
    return list
  end
  local first
  for at, c in utf8.codes(text) do
    if str.is_space(utf8.char(c)) then
      if first then list[#list + 1] = { first, at - 1 } end
      first = nil
    else
      first = first or at
    end
  end
  if first then list[#list + 1] = { first, #text } end
  return list
end

-- Up to max words; the rest stays together, at the right or at the left, with the white space at its far end.
local function split_words(run, s, max, from_right)
  local list, pieces = words(run, s.text), {}
  run:spend(6 * #list)
  if max < 0 or max >= #list then
    for i, word in ipairs(list) do pieces[i] = str.sub(s, word[1], word[2]) end
    return pieces
  end
  if from_right then
    local rest = #list - max
    pieces[1] = str.sub(s, 1, list[rest][2])
    for i = rest + 1, #list do pieces[#pieces + 1] = str.sub(s, list[i][1], list[i][2]) end
    return pieces
  end
  for i = 1, max do pieces[i] = str.sub(s, list[i][1], list[i][2]) end
  pieces[max + 1] = str.sub(s, list[max + 1][1], #s.text)
  return pieces
end

---The pieces between separators.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param separator kigo.jinja.Str?   white space unless given
---@param max integer                 splits; negative: all
---@param from_right? boolean
---@return kigo.jinja.Str[]
function search.split(run, s, separator, max, from_right)
  if not separator then return split_words(run, s, max, from_right) end
  if separator.text == "" then fault.raise("other", "empty separator") end
  local find = from_right and places_from_right or search.places
  local places, pieces, at = find(run, s.text, separator.text, max), {}, 1
  for i, place in ipairs(places) do
    pieces[i] = str.sub(s, at, place - 1)
    at = place + #separator.text
  end
  pieces[#pieces + 1] = str.sub(s, at, #s.text)
  return pieces
end

-- `new` before, between and behind characters.
local function insert_everywhere(run, s, new, max)
  local pieces, left = {}, max
  run:spend(6 * #s.text)
  for character in str.characters(s) do
    if left ~= 0 then pieces[#pieces + 1] = new end
    left = left - 1
    pieces[#pieces + 1] = character
  end
  if left ~= 0 then pieces[#pieces + 1] = new end
  return str.concat(run, pieces)
end

---Every place of `old` by `new`.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param old kigo.jinja.Str
---@param new kigo.jinja.Str
---@param max integer   negative: all
---@return kigo.jinja.Str
function search.replace(run, s, old, new, max)
  if old.text == "" then return insert_everywhere(run, s, new, max) end
  local places = search.places(run, s.text, old.text, max)
  if #places == 0 then return s end
  local pieces, at = {}, 1
  for _, place in ipairs(places) do
    pieces[#pieces + 1] = str.sub(s, at, place - 1)
    pieces[#pieces + 1] = new
    at = place + #old.text
  end
  pieces[#pieces + 1] = str.sub(s, at, #s.text)
  return str.concat(run, pieces)
end

local WIDE_BREAKS = { ["\u{85}"] = true, ["\u{2028}"] = true, ["\u{2029}"] = true }

---Lines, as str.splitlines has them.
---@param run kigo.jinja.Run.State
---@param s kigo.jinja.Str
---@param keep_ends? boolean
---@return kigo.jinja.Str[]
function search.lines(run, s, keep_ends)
  local text, pieces, at, look = s.text, {}, 1, 1
  run:spend_bytes(#text)
  while at <= #text do
    local found = text:find("[\n\r\v\f\x1c-\x1e\xc2\xe2]", look)
    local after
    if not found then
      after = #text + 1
    elseif text:byte(found) < 0x80 then
      after = found + (text:sub(found, found + 1) == "\r\n" and 2 or 1)
    else
      after = utf8.offset(text, 2, found)
      if not WIDE_BREAKS[text:sub(found, after - 1)] then
        look, after = after, nil
      end
    end
    if after then
      pieces[#pieces + 1] = str.sub(s, at, (keep_ends or not found) and after - 1 or found - 1)
      at, look = after, after
      run:spend(6)
    end
  end
  return pieces
end

return search
