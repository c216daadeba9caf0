-- options.lua - declared command-line options: `--name VALUE`, `--name=VALUE`, `-x VALUE`, flags, and `--` before
-- arguments that begin with a dash. The same declarations write the help text.
local check = require "kigo.check"

local options = {}

---@class kigo.cli.Option
---@field name string       long name; also the key of the result, with "_" for "-"
---@field short? string     one letter
---@field type? "string"|"integer"|"number"   none: a flag
---@field argument? string  what the help calls the value
---@field min? number
---@field max? number
---@field many? boolean     may be given more than once; the result is a list
---@field required? boolean
---@field help string

---@class kigo.cli.Command
---@field name string
---@field summary string
---@field usage string               arguments after the command's name
---@field arguments? { min: integer, max: integer }   how many positional ones
---@field options kigo.cli.Option[]
---@field notes? string
---@field run fun(options: table, arguments: string[]): integer

local function key_of(option) return (option.name:gsub("%-", "_")) end

local function find(command, field, name)
  for _, option in ipairs(command.options) do
    if option[field] == name then return option end
  end
end

---The value of a text, or nil and what is wrong with it. `spelled`: the option as the user wrote it.
local function parse_value(option, spelled, text)
  if not option.type then return true end
  if option.type == "string" then return text end
  local value = tonumber(text)
  if option.type == "integer" then value = text:find "^[+-]?%d+$" and math.tointeger(value) or nil end
  if not value or value ~= value then
    return nil, ("%s: %s expected, got %q"):format(spelled, option.type, text)
  end
  if (option.min and value < option.min) or (option.max and value > option.max) then
    return nil, ("%s: %s is outside %s to %s"):format(spelled, text, option.min or "-inf", option.max or "inf")
  end
  return value
end

local function store(result, option, value)
  local key = key_of(option)
  if not option.many then
    result[key] = value
    return
  end
  result[key] = result[key] or {}
  table.insert(result[key], value)
end

local function meant(command, name)
  local names = {}
  for i, option in ipairs(command.options) do names[i] = "--" .. option.name end
  return check.meant("--" .. name, names)
end

---The option that an argument names and the value attached with "=", or nil and why not.
local function match(command, argument)
  local name, attached = argument:match "^%-%-([^=]+)=?(.*)$"
  local option
  if name then
    option = find(command, "name", name)
    if not argument:find("=", 1, true) then attached = nil end
  elseif #argument == 2 then
    option = find(command, "short", argument:sub(2))
  end
  if not option then return nil, "unknown option " .. argument .. (name and meant(command, name) or "") end
  if attached and not option.type then return nil, ("--%s takes no value"):format(option.name) end
  return option, attached
end

local function check_counts(command, result, positional)
  local limits = command.arguments or { min = 0, max = 0 }
  if #positional < limits.min then return nil, "missing argument: " .. command.usage:match "^%S+" end
  if #positional > limits.max then return nil, ("unexpected argument %q"):format(positional[limits.max + 1]) end
  for _, option in ipairs(command.options) do
    if option.required and result[key_of(option)] == nil then return nil, "missing option --" .. option.name end
  end
  return result, positional
end

---@param command kigo.cli.Command
---@param arguments string[]
---@return table? options          by name; `help` is true when --help or -h is there
---@return string[]|string         the other arguments, or what is wrong
function options.parse(command, arguments)
  local result, positional, i = {}, {}, 1
  local only_positional = false
  while i <= #arguments do
    local argument = arguments[i]
    i = i + 1
    if only_positional or argument == "-" or argument:sub(1, 1) ~= "-" then
      positional[#positional + 1] = argument
    elseif argument == "--" then
      only_positional = true
    elseif argument == "--help" or argument == "-h" then
      return { help = true }, {}
    else
      local option, attached = match(command, argument)
      if not option then return nil, attached end
      local text = attached
      if option.type and not text then
        text = arguments[i]
        i = i + 1
        if not text then return nil, ("%s: a value is missing"):format(argument) end
      end
      local value, message = parse_value(option, argument:match "^[^=]+", text)
      if value == nil then return nil, message end
      store(result, option, value)
    end
  end
  return check_counts(command, result, positional)
end

---The help text of a command.
---@param command kigo.cli.Command
---@return string
function options.help(command)
  local out = { ("usage: kigo %s %s\n\n%s\n"):format(command.name, command.usage, command.summary) }
  if #command.options > 0 then out[#out + 1] = "\noptions:\n" end
  for _, option in ipairs(command.options) do
    local left = (option.short and "-" .. option.short .. ", " or "    ") .. "--" .. option.name
    if option.type then left = left .. " " .. (option.argument or option.type:upper()) end
    out[#out + 1] = ("  %-30s %s\n"):format(left, option.help)
  end
  if command.notes then out[#out + 1] = "\n" .. command.notes .. "\n" end
  return table.concat(out)
end

return options
