-- schemas.lua - what spec/schema_spec.lua and scripts/check_schemas.lua share: the cases of the official test suite,
-- the ways in which a value may be spelled, feeding a text through masks, and a writer that draws tokens by chance.
local kigo = require "kigo"

local json = kigo.json

local schemas = {}

-- ---- the suite ----

-- Numbers keep their text: the suite has some that no double holds.
local Number = {}

---JSON text with numbers as they are written.
---@param text string
---@return any
function schemas.read(text)
  local value, message = json.decode(text, {
    number = function(digits) return setmetatable({ text = digits }, Number) end,
  })
  if message then error(message) end
  return value
end

---@class spec.SchemaStyle
---@field blank? string      in front of and behind everything
---@field escape? boolean    every character of a string as \uXXXX
---@field reverse? boolean   members of objects from last to first
---@field plain? boolean     numbers without exponents

local function string_text(text, style)
  if not style.escape then return json.encode(text) end
  local out = {}
  for _, code in utf8.codes(text) do
    local format = #out % 2 == 0 and "\\u%04x" or "\\u%04X"
    if code > 0xFFFF then
      out[#out + 1] = format:format(0xD800 + (code - 0x10000 >> 10)) .. format:format(0xDC00 + (code - 0x10000 & 0x3FF))
    else
      out[#out + 1] = format:format(code)
    end
  end
  return '"' .. table.concat(out) .. '"'
end

local function plain_number(text)
  local sign, whole, fraction, power = text:match "^(-?)(%d+)%.?(%d*)[eE]([+-]?%d+)$"
  if not sign then return text end
  power = math.tointeger(tonumber(power))
  local digits = ("0"):rep(-power - #whole + 1) .. whole .. fraction .. ("0"):rep(power - #fraction)
  local point = #digits - math.max(#fraction - power, 0)
  whole, fraction = digits:sub(1, point):gsub("^0+(%d)", "%1"), digits:sub(point + 1)
  return sign .. whole .. (fraction ~= "" and "." .. fraction or "")
end

---A value as JSON text.
---@param value any
---@param style spec.SchemaStyle
---@return string
function schemas.text(value, style)
  if getmetatable(value) == Number then return style.plain and plain_number(value.text) or value.text end
  if value == json.null then return "null" end
  if type(value) == "string" then return string_text(value, style) end
  if type(value) ~= "table" then return json.encode(value) end
  local blank, parts = style.blank or "", {}
  if json.is_array(value) then
    for i, item in ipairs(value) do parts[i] = blank .. schemas.text(item, style) .. blank end
    return "[" .. (#parts > 0 and table.concat(parts, ",") or blank) .. "]"
  end
  for i, key in ipairs(json.keys(value)) do
    local member = string_text(key, style) .. blank .. ":" .. blank .. schemas.text(value[key], style)
    parts[i] = blank .. member .. blank
  end
  if style.reverse then
    for i = 1, #parts // 2 do parts[i], parts[#parts - i + 1] = parts[#parts - i + 1], parts[i] end
  end
  return "{" .. (#parts > 0 and table.concat(parts, ",") or blank) .. "}"
end

---How values are spelled: several ways that must all be taken or all be refused.
---@type spec.SchemaStyle[]
schemas.styles = {
  {}, { blank = " " }, { blank = "\n    ", reverse = true }, { escape = true }, { plain = true, blank = "\t\r\n" },
}

---Every group of a file: its schema's text and its tests.
---@param path string
---@return { description: string, schema: string, tests: { description: string, data: any, valid: boolean }[] }[]
function schemas.groups(path)
  local file = assert(io.open(path, "rb"))
  local groups = schemas.read(file:read "a")
  file:close()
  for _, group in ipairs(groups) do group.schema = schemas.text(group.schema, {}) end
  return groups
end

---Schemas of the real world.
---@param path string
---@return { name: string, schema: string }[]
function schemas.real_world(path)
  local list = {}
  for line in io.lines(path) do
    local entry = schemas.read(line)
    list[#list + 1] = { name = entry.name, schema = schemas.text(entry.schema, {}) }
  end
  return list
end

-- ---- through the mask ----

---Are all ids of a text allowed, one after the other, and may it end there? Asked of the mask itself.
---@param grammar kigo.Grammar
---@param tokenizer kigo.Tokenizer
---@param text string
---@return boolean
---@return integer n   ids that were allowed
function schemas.takes(grammar, tokenizer, text)
  local matcher <close> = assert(grammar:matcher(tokenizer))
  local ids = assert(tokenizer:encode(text))
  local logits <close> = kigo.zeros(tokenizer.size)
  for i, id in ipairs(ids) do
    logits:fill_(0)
    assert(matcher:mask(logits))
    local allowed = logits[id] == 0
    if allowed ~= matcher:allowed(id) then error(("mask and allowed differ at token %d of %s"):format(i, text)) end
    if not allowed then return false, i - 1 end
    if not matcher:accept(id) then error(("an allowed token was refused: %d of %s"):format(i, text)) end
  end
  return matcher:is_complete(), #ids
end

-- ---- by chance ----

-- What ends things, first what ends most; where none of them may come, anything goes. Within a string only its end ends
-- it.
local CLOSERS = { [false] = { "}", "]", ",", '"', "null", "true", "0", "1", "[", ":" }, [true] = { '"' } }

---A text that tokens drawn by chance make under the mask.
---@class spec.ChanceWriter
---@field tokenizer kigo.Tokenizer
---@field closers table<boolean, integer[]>
local ChanceWriter = {}
ChanceWriter.__index = ChanceWriter

---@param tokenizer kigo.Tokenizer
---@return spec.ChanceWriter
function schemas.writer(tokenizer)
  local closers = { [false] = {}, [true] = {} }
  for inside, texts in pairs(CLOSERS) do
    for _, text in ipairs(texts) do
      local ids = assert(tokenizer:encode(text))
      if #ids == 1 then table.insert(closers[inside], ids[1]) end
    end
  end
  return setmetatable({ tokenizer = tokenizer, closers = closers }, ChanceWriter)
end

function ChanceWriter:_draw(matcher, dice, hurry, inside)
  if hurry then
    for _, id in ipairs(self.closers[inside]) do
      if matcher:allowed(id) then return id end
    end
  end
  for _ = 1, 30 do
    local id = dice:roll(self.tokenizer.size) - 1
    if matcher:allowed(id) then return id end
  end
  local ids = assert(matcher:ids())
  if #ids > 0 then return dice:pick(ids) end
  error("no token is allowed behind " .. matcher:text())
end

-- Does the text end within a string?
local function ends_inside(text)
  local _, quotes = text:gsub("\\.", ""):gsub('"', "")
  return quotes % 2 == 1
end

-- In front of a member a name that may be asked for; false: none of them fits.
function ChanceWriter:_name(matcher, dice, names)
  if #names == 0 or not matcher:text():find "[{,]%s*$" then return false end
  for _ = 1, 3 * #names do
    local ids = self.tokenizer:encode(kigo.json.encode(dice:pick(names)))
    local n = 0
    while n < #ids and matcher:accept(ids[n + 1]) do n = n + 1 end
    if n == #ids then return true end
    if n > 0 then matcher:rewind(n) end
  end
  return false
end

---@param grammar kigo.Grammar
---@param dice spec.Dice
---@param soon integer     after so many tokens it hurries to the end
---@param most integer     and gives up here
---@param names? string[]  of members that may have to be there
---@return string? text    nil: it came to no end
---@return string all      what it wrote so far
function ChanceWriter:write(grammar, dice, soon, most, names)
  local matcher <close> = assert(grammar:matcher(self.tokenizer))
  for n = 1, most do
    local hurry = n > soon
    if matcher:is_complete() and (hurry or dice:once_in(4)) then return matcher:text(), matcher:text() end
    local inside = ends_inside(matcher:text())
    local first = self.closers[false][1]
    local closes = hurry and not inside and first and matcher:allowed(first)
    if closes or inside or not hurry or not self:_name(matcher, dice, names or {}) then
      local id = self:_draw(matcher, dice, hurry or dice:once_in(3), inside)
      if self.tokenizer:is_end(id) then return matcher:text(), matcher:text() end
      assert(matcher:accept(id))
    end
  end
  return nil, matcher:text()
end

return schemas
