-- kigo arch: the architectures that can be loaded, and the numbers that their files hold.
local arch = require "kigo.arch"
local common = require "kigo.cli.common"
local hyperparameters = require "kigo.hyperparameters"
local json = require "kigo.json"

-- A number as people write it: 1e+12, not 1000000000000.0.
local function shown(value) return math.type(value) == "float" and ("%g"):format(value) or tostring(value) end

---What a file may say for a hyperparameter.
local function range_of(row)
  if row.one_of then
    local values = {}
    for value in pairs(row.one_of) do values[#values + 1] = tostring(value) end
    table.sort(values)
    return table.concat(values, "|")
  end
  return row.min and ("%s to %s"):format(shown(row.min), shown(row.max)) or ""
end

---What it is where the file does not say.
local function default_of(row)
  if row.default == nil then return "required" end
  return row.default_text or shown(row.default)
end

-- How the file may say it.
local function type_of(row)
  if not row.per_block then return row.type end
  return row.expand and "integer, or " .. row.type .. "s" or row.type .. "s"
end

local function description(name)
  local entry = arch.families[name]
  return type(entry) == "string" and entry or ""
end

local function list(as_json)
  local families = json.array {}
  for i, name in ipairs(arch.names()) do families[i] = { name = name, models = description(name) } end
  if as_json then
    io.write(json.encode(families), "\n")
    return
  end
  local width = 0
  for _, family in ipairs(families) do width = math.max(width, #family.name) end
  for _, family in ipairs(families) do
    io.write(("%s%s %s\n"):format(family.name, (" "):rep(width - #family.name), family.models))
  end
end

local TURNING = { halves = "channels i and i + n/2 of a head turn together",
  pairs = "channels 2i and 2i + 1 of a head turn together" }

-- Lines of a table under a heading; `rows` of strings.
local function write_table(heading, rows)
  local widths = {}
  table.insert(rows, 1, { heading, "type", "values", "where the file does not say" })
  for _, row in ipairs(rows) do
    for i, text in ipairs(row) do widths[i] = math.max(widths[i] or 0, #text) end
  end
  for _, row in ipairs(rows) do
    local line = {}
    for i, text in ipairs(row) do line[i] = text .. (" "):rep(widths[i] - #text) end
    io.write((table.concat(line, "  "):gsub(" +$", "")), "\n")
  end
end

local function show(family, as_json)
  local own, rows, parts = {}, json.array {}, { {}, {} }
  for _, row in ipairs(family.rows) do own[row] = true end
  for i, row in ipairs(hyperparameters.merged(family.rows)) do
    rows[i] = { key = family.name .. "." .. row.key, type = row.type, range = range_of(row), default = default_of(row),
      per_block = row.per_block }
    local part = parts[own[row] and 1 or 2]
    part[#part + 1] = { rows[i].key, type_of(row), rows[i].range, rows[i].default }
  end
  if as_json then
    local all = { name = family.name, models = description(family.name), rope = family.rope, parameters = rows }
    io.write(json.encode(all), "\n")
    return
  end
  local models = description(family.name)
  io.write(("%s%s%s\nwhere it has rotations, %s\n\n"):format(family.name, models ~= "" and ": " or "", models,
    TURNING[family.rope]))
  if #parts[1] > 0 then
    write_table("its own parameters", parts[1])
    io.write "\n"
  end
  write_table("parameters of all", parts[2])
end

return {
  name = "arch", usage = "[NAME] [--json]", summary = "list the model architectures, or the parameters of one",
  arguments = { min = 0, max = 1 },
  options = { { name = "json", help = "as JSON" } },
  notes = "A model file says its architecture (kigo inspect FILE shows it) and has a key for each parameter.\n"
    .. "An architecture is a Lua file in lua/kigo/arch; engine/README.md says how to add one.",
  run = function(options, arguments)
    if not arguments[1] then
      list(options.json)
      return 0
    end
    show(common.try(arch.named(arguments[1])), options.json)
    return 0
  end,
}
