-- cli.lua - the program's commands. Each stands in lua/kigo/cli/<command>.lua and uses the library as anybody would.
-- Exit statuses: 0 done, 1 the world's fault (one line on standard error), 2 a mistake on the command line.
local check = require "kigo.check"
local core = require "kigo.core"
local common = require "kigo.cli.common"
local options = require "kigo.cli.options"

local cli = {}

local COMMANDS = { "run", "chat", "haiku", "verify", "bench", "inspect", "arch", "tokenize", "template",
  "logits", "perplexity", "embed", "quantize", "make-model" }

---@return kigo.cli.Command
local function command_named(name)
  return require("kigo.cli." .. name:gsub("%-", "_"))
end

local function is_command(name)
  for _, known in ipairs(COMMANDS) do
    if known == name then return true end
  end
  return false
end

local function help_text()
  local out = { "usage: kigo COMMAND [ARGUMENTS]\n       kigo SCRIPT.lua [ARGUMENTS]\n\n"
    .. "kigo is a Lua-scriptable inference engine for language models.\n\ncommands:\n" }
  for _, name in ipairs(COMMANDS) do
    out[#out + 1] = ("  %-12s %s\n"):format(name, command_named(name).summary)
  end
  out[#out + 1] = "\nkigo COMMAND --help tells more; kigo --version prints the version.\n"
  return table.concat(out)
end

local function usage_error(message, hint)
  io.stderr:write("kigo: ", message, "\n", hint, "\n")
  return 2
end

local function unknown_command(name)
  if name:find "%.gguf$" then
    return usage_error(("%s is a model: say what to do with it"):format(name),
      ("kigo run %s, kigo chat %s ...; kigo --help lists the commands"):format(name, name))
  end
  if name:sub(1, 1) == "-" then return usage_error("unknown option " .. name, "kigo --help tells more") end
  local message = ("unknown command %q%s"):format(name, check.meant(name, COMMANDS))
  return usage_error(message, "kigo --help lists the commands")
end

local function help(name)
  if not name then
    io.write(help_text())
    return 0
  end
  if not is_command(name) then return unknown_command(name) end
  io.write(options.help(command_named(name)))
  return 0
end

---Run a command; a failure thrown by common.fail becomes its line and status.
local function run(command, parsed, arguments)
  local done, status = xpcall(command.run, function(e)
    return getmetatable(e) == common.failure and e or debug.traceback(tostring(e), 2)
  end, parsed, arguments)
  io.stdout:flush()
  if done then return status or 0 end
  if getmetatable(status) ~= common.failure then error(status, 0) end
  io.stderr:write("kigo: ", status.message, "\n")
  return status.status
end

---@param ... string  the command line
---@return integer status  of the process
function cli.main(...)
  local arguments = { ... }
  local name = table.remove(arguments, 1)
  if not name then
    io.stderr:write(help_text())
    return 2
  end
  if name == "--help" or name == "-h" or name == "help" then return help(arguments[1]) end
  if name == "--version" then
    io.write("kigo ", core.version, "\n")
    return 0
  end
  if not is_command(name) then return unknown_command(name) end
  local command = command_named(name)
  local parsed, rest = options.parse(command, arguments)
  if not parsed then return usage_error(name .. ": " .. rest, "kigo " .. name .. " --help tells more") end
  if parsed.help then return help(name) end
  return run(command, parsed, rest)
end

return cli
