-- check.lua - option tables: a misspelt name or a wrong type is the caller's mistake and raises.
local check = {}

local NEAREST_BYTES = 64 -- of names that are worth comparing

---How many bytes must be changed, left out or put in to make one text of another (Levenshtein, 1966).
local function edit_distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal
    diagonal, row[0] = row[0], i
    for j = 1, #b do
      local changed = diagonal + (a:byte(i) == b:byte(j) and 0 or 1)
      diagonal, row[j] = row[j], math.min(changed, row[j] + 1, row[j - 1] + 1)
    end
  end
  return row[#b]
end

---The name that is most like another one, for messages; nil where none is.
---@param name string
---@param names string[]
---@return string?
function check.nearest(name, names)
  if #name > NEAREST_BYTES then return nil end
  local best, least
  for _, known in ipairs(names) do
    local distance = #known <= NEAREST_BYTES and edit_distance(name, known)
    if distance and distance < math.max(#name, #known) and (not least or distance < least) then
      best, least = known, distance
    end
  end
  return best
end

---What may have been meant by a misspelt or shortened name, as a part of a message; "" where nothing is like it.
---@param name string
---@param names string[]
---@return string
function check.meant(name, names)
  for _, known in ipairs(names) do
    if #name > 2 and known:sub(1, #name) == name then return ("; did you mean %s?"):format(known) end
  end
  local best = check.nearest(name, names)
  if not best or edit_distance(name, best) > math.min(3, #name // 2) then return "" end
  return ("; did you mean %s?"):format(best)
end

local function type_matches(value, wanted)
  if wanted == "any" or type(value) == wanted then return true end
  if wanted == "integer" then return math.type(value) == "integer" end
  if wanted == "callable" then
    local meta = getmetatable(value)
    return type(value) == "function" or (type(meta) == "table" and meta.__call ~= nil)
  end
  return false
end

local function matches(value, wanted)
  for one in wanted:gmatch "[^|]+" do
    if type_matches(value, one) then return true end
  end
  return false
end

local function unknown_name(name, known)
  local names = {}
  for one in pairs(known) do names[#names + 1] = tostring(one) end
  table.sort(names)
  return ("unknown option %q%s; the options are %s"):format(name, check.meant(name, names), table.concat(names, ", "))
end

---Raise unless `options` is nil or a table whose every key is known and whose every value has one of the types.
---@param options table?
---@param known table<string, string>  name -> "integer", "number", "string", "boolean", "table", "callable", "any", or
---several with "|" between them
---@param level integer?  stack level of the function to blame; 2 is the caller of the caller, as in `error`
---@return table options  the table itself, or an empty one
function check.options(options, known, level)
  level = (level or 2) + 1
  if options == nil then return {} end
  if type(options) ~= "table" then error("options: table expected, got " .. type(options), level) end
  for name, value in pairs(options) do
    local wanted = known[name]
    if not wanted then
      error(unknown_name(tostring(name), known), level)
    end
    if not matches(value, wanted) then
      local got = type(value) == "number" and value or type(value)
      error(("option %s: %s expected, got %s"):format(name, wanted:gsub("|", " or "), got), level)
    end
  end
  return options
end

---A text of strangers for a message: quoted, on one line, and not all of a long one.
---@param text string
---@return string
function check.quoted(text)
  return (("%q"):format(text:sub(1, 40)):gsub("\\\n", "\\n"))
end

---A message with parts of a stranger's text in it: bytes that are no printable ASCII are escaped.
---@param message string
---@return string
function check.printable(message)
  return (message:gsub("[^\x20-\x7E]", function(c) return ("\\x%02X"):format(c:byte()) end))
end

---A name of strangers for a message: as it is where it is a plain one.
---@param name string
---@return string
function check.name(name)
  return #name <= 64 and name:find "^[%w_.-]+$" and name or check.quoted(name)
end

---The options of `from` whose names are in `known`, as a new table.
---@param from table
---@param known table<string, any>
---@return table
function check.pick(from, known)
  local picked = {}
  for name in pairs(known) do picked[name] = from[name] end
  return picked
end

return check
