-- chat.lua - talk with a model. Ctrl-C stops the answer, not the program; /reset forgets, /exit or Ctrl-D leaves.
--   kigo scripts/chat.lua MODEL [SYSTEM MESSAGE]
local kigo = require "kigo"
local terminal = require "kigo.terminal"

local path, system = ...
if not path then
  io.stderr:write "usage: kigo scripts/chat.lua MODEL [SYSTEM MESSAGE]\n"
  os.exit(2)
end

local model <close> = assert(kigo.load(path))
local chat <close> = assert(model:conversation { system = system, temp = 0.7, seed = os.time() })
assert(terminal.chat(chat)) -- reads lines and calls chat:say(line, { on_text = ... })
