-- 01-chat.lua - load a model, ask, print. Run: build/kigo examples/01-chat.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local answer = assert(model:chat({ { role = "user", content = "Write a haiku about spring rain." } }, { seed = 1 }))
print(answer.text)
