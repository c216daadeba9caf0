-- kigo arch: the architectures that can be loaded, and the numbers that their files hold.
local arch = require "kigo.arch"
local common = require "kigo.cli.common"
local hyperparameters = require "kigo.hyperparameters"
local json = require "kigo.json"

---What a file may say for a hyperparameter.
local function range_of(row)
  if row.one_of then
    local values = {}
    for value in pairs(row.one_of) do values[#values + 1] = tostring(value) end
    table.sort(values)
    return table.concat(values, "|")
  end
  return row.min and ("%s to %s"):format(row.min, row.max) or ""
end

---What it is where the file does not say.
local function default_of(row)
  if row.default == nil then return "required" end
  if type(row.default) == "function" then return "from the others" end
  return tostring(row.default)
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
  for _, family in ipairs(families) do io.write(("%-12s %s\n"):format(family.name, family.models)) end
end

local function show(family, as_json)
  local rows = json.array {}
  for i, row in ipairs(hyperparameters.merged(family.rows)) do
    rows[i] = { key = family.name .. "." .. row.key, type = row.type, range = range_of(row), default = default_of(row),
      per_block = row.per_block }
  end
  if as_json then
    local all = { name = family.name, models = description(family.name), rope = family.rope, parameters = rows }
    io.write(json.encode(all), "\n")
    return
  end
  io.write(("%s: %s\nrotation: %s\n\n"):format(family.name, description(family.name), family.rope))
  for _, row in ipairs(rows) do
    local default = row.default .. (row.per_block and "; one for each block" or "")
    io.write(("%-52s %-8s %-28s %s\n"):format(row.key, row.type, row.range, default))
  end
end

return {
  name = "arch", usage = "[NAME] [--json]", summary = "list the model architectures, or the parameters of one",
  arguments = { min = 0, max = 1 },
  options = { { name = "json", help = "as JSON" } },
  notes = "An architecture is a Lua file; engine/README.md says how to add one.",
  run = function(options, arguments)
    if not arguments[1] then
      list(options.json)
      return 0
    end
    show(common.try(arch.named(arguments[1])), options.json)
    return 0
  end,
}
