-- Upper, lower and title case and the classes of characters, as Python's str has them.
local unicode = require "kigo.core".unicode

local case = {}

local NOT_ASCII = "[\xc2-\xf4][\x80-\xbf]+"

---"Lu", "Nd", ... of a character.
---@param character string
---@return string
function case.category(character) return unicode.category(utf8.codepoint(character)) end
local category = case.category

-- Characters whose upper case is more than one: that of each character of their folding. Two fold and are upper case.
local function expand(c, first)
  local folded = { unicode.fold(c) }
  if #folded < 2 or c == 0x130 or c == 0x1e9e then return nil end
  for i, part in ipairs(folded) do
    if i == 1 or first == unicode.upper then folded[i] = first(part) end
  end
  return utf8.char(table.unpack(folded))
end

local function upper_character(character)
  local c = utf8.codepoint(character)
  return expand(c, unicode.upper) or utf8.char(unicode.upper(c))
end

local function title_character(character)
  local c = utf8.codepoint(character)
  local titled = unicode.title(c)
  if titled == c and category(character) ~= "Lt" or c == 0xDF then -- a sharp s has a capital, but begins words as "Ss"
    return expand(c, unicode.title) or character
  end
  return utf8.char(titled)
end

local function lower_character(character)
  local c = utf8.codepoint(character)
  return c == 0x130 and "i\u{307}" or utf8.char(unicode.lower(c))
end

local function is_cased(character)
  local name = category(character)
  return name == "Lu" or name == "Ll" or name == "Lt"
end

---@param text string
---@return string
function case.upper(text) return (text:upper():gsub(NOT_ASCII, upper_character)) end

-- Characters that word ends are looked for behind: "'", ".", marks and the like.
local function is_ignorable(character)
  local name = category(character)
  return character == "'" or character == "." or character == ":" or character == "\u{b7}" or name == "Mn"
    or name == "Me" or name == "Cf" or name == "Lm" or name == "Sk"
end

local function cased_beside(text, at, step)
  while true do
    local from = step > 0 and at or utf8.offset(text, -1, at)
    if not from or from > #text then return false end
    local character = text:match("^[\0-\x7f\xc2-\xf4][\x80-\xbf]*", from)
    if not is_ignorable(character) then return is_cased(character) end
    at = step > 0 and from + #character or from
    if step < 0 and at == 1 then return false end
  end
end

-- A capital sigma that ends a word is a final one.
local function lower_sigmas(text)
  return (text:gsub("()\u{3a3}()", function(from, to)
    return cased_beside(text, from, -1) and not cased_beside(text, to, 1) and "\u{3c2}" or nil
  end))
end

---@param text string
---@return string
function case.lower(text)
  if text:find("\u{3a3}", 1, true) then text = lower_sigmas(text) end
  return (text:lower():gsub(NOT_ASCII, lower_character))
end

---Full case folding.
---@param text string
---@return string
function case.fold(text)
  return (text:lower():gsub(NOT_ASCII, function(character)
    return utf8.char(unicode.fold(utf8.codepoint(character)))
  end))
end

---Upper case to lower and the other way round.
---@param text string
---@return string
function case.swap(text)
  return (text:gsub("[\0-\x7f\xc2-\xf4][\x80-\xbf]*", function(character)
    local name = category(character)
    return name == "Lu" and case.lower(character) or name == "Ll" and case.upper(character) or nil
  end))
end

---The first character in title case, the others in lower case.
---@param text string
---@return string
function case.capitalize(text)
  local first, rest = text:match "^([\0-\x7f\xc2-\xf4][\x80-\xbf]*)(.*)$"
  if not first then return text end
  local whole = case.lower(text)
  local head = case.lower(first)
  return title_character(first) .. (whole:sub(1, #head) == head and whole:sub(#head + 1) or case.lower(rest))
end

---Every run of letters capitalized.
---@param text string
---@return string
function case.title(text)
  local parts, inside, from = {}, false, 1
  for at, c in utf8.codes(text) do
    local character = utf8.char(c)
    local cased = is_cased(character)
    if cased and not inside then
      parts[#parts + 1] = case.lower(text:sub(from, at - 1)) .. title_character(character)
      from = at + #character
    elseif not cased and inside then
      parts[#parts + 1] = case.lower(text:sub(from, at - 1)) .. character
      from = at + #character
    end
    inside = cased
  end
  return table.concat(parts) .. case.lower(text:sub(from))
end

-- ---- classes ----

local function of(pattern)
  return function(character) return category(character):find(pattern) ~= nil end
end

case.is = {
  alpha = of "^L",
  decimal = of "^Nd",
  digit = function(character)
    return category(character) == "Nd" or character == "\u{b2}" or character == "\u{b3}" or character == "\u{b9}"
  end,
  numeric = of "^N",
  alnum = of "^[LN]",
  printable = function(character)
    return character == " " or not category(character):find "^[CZ]"
  end,
  upper = of "^Lu",
  lower = of "^Ll",
  title = of "^Lt",
}

---Does every character have the class, and is there one?
---@param text string
---@param class string
---@return boolean
function case.all(text, class)
  local has = case.is[class]
  for _, c in utf8.codes(text) do
    if not has(utf8.char(c)) then return false end
  end
  return text ~= ""
end

---str.isupper, str.islower: cased characters are all of this class, and there is one.
---@param text string
---@param class "upper"|"lower"
---@return boolean
function case.all_cased(text, class)
  local seen, has = false, case.is[class]
  for _, c in utf8.codes(text) do
    local character = utf8.char(c)
    if is_cased(character) then
      if not has(character) then return false end
      seen = true
    end
  end
  return seen
end

---str.istitle: upper case exactly where a run of letters begins.
---@param text string
---@return boolean
function case.is_title(text)
  local inside, seen = false, false
  for _, c in utf8.codes(text) do
    local character = utf8.char(c)
    local cased = is_cased(character)
    if cased then
      if (category(character) == "Ll") ~= inside then return false end
      seen = true
    end
    inside = cased
  end
  return seen
end

return case
