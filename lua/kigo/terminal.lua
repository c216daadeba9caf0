-- terminal.lua - a conversation at a terminal: lines in, answers streamed out. Ctrl-C stops an answer, not the program.
local core = require "kigo.core"
local progress = require "kigo.progress"

local terminal = {}

local HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer\n"

local function note(...) io.stderr:write(...) end

---A line from standard input; "" when Ctrl-C interrupted the reading, nil at its end.
local function read_line(interactive)
  if interactive then note "> " end
  local line = io.read "l"
  if line then return (line:gsub("\r$", "")) end
  if core.interrupted() then
    note("\n", HELP)
    return ""
  end
  return nil
end

---Why an answer came to nothing.
local function explain(message, code)
  if code == core.err.CANCELLED then
    note "(stopped)\n"
  elseif code == core.err.FULL then
    note(message, "\n/reset starts over; --ctx N makes room for more\n")
  else
    return nil, message, code
  end
  return true
end

---Stream the answer to one line.
local function answer(chat, line)
  core.interrupted() -- a Ctrl-C before the answer is not meant for it
  local result, message, code = chat:say(line, {
    on_text = function(text)
      io.write(text)
      io.flush()
      return not core.interrupted()
    end,
  })
  if not result then return explain(message, code) end
  io.write "\n"
  if result.reason == "cancelled" then note "(stopped)\n" end
  if result.reason == "length" and chat.seq:pos() >= chat.model.context then
    note(("(cut: the context of %d tokens is full; /reset starts over, --ctx N makes room for more)\n")
      :format(chat.model.context))
  end
  return true
end

-- What a line that is a slash and a word asks for; each returns true, or nil, message, code.
local COMMANDS = {
  ["/reset"] = function(chat) return chat:reset() end,
  ["/help"] = function()
    note(HELP)
    return true
  end,
}

---Do what a line asks for: a command, or words for the model.
local function take(chat, line)
  local word = line:match "^(/%a+)%s*$"
  if word then
    local command = COMMANDS[word]
    if command then return command(chat) end
    note("there is no ", word, ": ", HELP)
    return true
  end
  if line:find "%S" then return answer(chat, line) end
  return true
end

---Talk until the input ends or /exit. In a pipe every input line is a turn, and only the answers go to standard output.
---@param chat kigo.Conversation
---@return true?           nil when the engine failed
---@return string? message
---@return integer? code
function terminal.chat(chat)
  local interactive = core.is_terminal(0)
  if interactive then note(HELP) end
  core.catch_interrupts(true)
  chat.model:set_progress(progress.line(core.interrupted))
  local done, message, code = true, nil, nil
  while done do
    local line = read_line(interactive)
    if not line or line:find "^/exit%s*$" then break end
    done, message, code = take(chat, line)
  end
  chat.model:set_progress(nil)
  core.catch_interrupts(false)
  if interactive then note "\n" end
  return done, message, code
end

return terminal
