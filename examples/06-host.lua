-- 06-host.lua - kigo in a Lua 5.4 of your own; kigo.so is all it needs.
-- Run: LUA_CPATH="$PWD/build/?.so;;" lua5.4 examples/06-host.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
io.write("kigo ", kigo.version, " in ", _VERSION, " on ", model:stats().device, "\n\n")
local conversation <close> = assert(model:conversation { seed = 3, on_text = function(text) io.write(text) end })
assert(conversation:say("Write a haiku about a mountain path."))
print()
