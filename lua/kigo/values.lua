-- values.lua - names of the values of a forward pass: patterns, layers, and what a wrong name may have meant.
local values = {}

---"blk.*.out" as a pattern of Lua's: "*" stands for any characters, everything else for itself.
local function to_lua_pattern(pattern)
  return "^" .. pattern:gsub("[^%w_*]", "%%%0"):gsub("%*", ".*") .. "$"
end

---Levenshtein's distance: how many characters to insert, delete or change.
local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local diagonal, c = row[0], a:byte(i)
    row[0] = i
    for j = 1, #b do
      local above = row[j]
      row[j] = math.min(above + 1, row[j - 1] + 1, diagonal + (c == b:byte(j) and 0 or 1))
      diagonal = above
    end
  end
  return row[#b]
end

local N_NEAREST, MAX_LENGTH = 3, 200

---The names that look most like this one, for messages.
---@param wrong string
---@param names string[]
---@return string   "blk.0.out, blk.1.out, blk.2.out"
function values.nearest(wrong, names)
  local ranked = {}
  wrong = wrong:sub(1, MAX_LENGTH)
  for i, name in ipairs(names) do ranked[i] = { name = name, rank = distance(wrong, name), at = i } end
  table.sort(ranked, function(a, b)
    if a.rank ~= b.rank then return a.rank < b.rank end
    return a.at < b.at
  end)
  local out = {}
  for i = 1, math.min(N_NEAREST, #ranked) do out[i] = ranked[i].name end
  return table.concat(out, ", ")
end

---The values of the model that the patterns name, in order of computation; a pattern that names none raises.
---@param model kigo.Model
---@param patterns string|string[]   "*" stands for any characters: "blk.*.out"
---@param what string                begins messages
---@param level integer              stack level to blame, as in `error`; 2: the caller of our caller
---@return string[]
function values.match(model, patterns, what, level)
  level = level + 1
  if type(patterns) == "string" then patterns = { patterns } end
  if type(patterns) ~= "table" then
    error(("%s: names or patterns expected, got %s"):format(what, type(patterns)), level)
  end
  local all, wanted, names = model:values(), {}, {}
  for _, pattern in ipairs(patterns) do
    if type(pattern) ~= "string" then
      error(("%s: names or patterns expected, got %s"):format(what, type(pattern)), level)
    end
    local lua_pattern, found = to_lua_pattern(pattern), false
    for i, name in ipairs(all) do
      if name:find(lua_pattern) then wanted[i], found = true, true end
    end
    if not found then
      error(("%s: the model has no value %q; the nearest are %s"):format(what, pattern, values.nearest(pattern, all)),
        level)
    end
  end
  for i, name in ipairs(all) do
    if wanted[i] then names[#names + 1] = name end
  end
  return names
end

---The block that a value belongs to.
---@param name string
---@return integer?   14 of "blk.14.out"; nil of what belongs to no block
function values.layer(name) return math.tointeger(name:match "^blk%.(%d+)%.") end

return values
