-- 18-steering.lua - a steering vector: the difference between what a model makes of winter prompts and of summer
-- prompts, added to the results of its blocks while it writes about neither.
-- Run: build/kigo examples/18-steering.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local template = model:template()

local function prompt(subject)
  return template:render({ { role = "user", content = "Write a haiku about " .. subject .. "." } }, { generate = true })
end

local function prompts(...)
  local list = {}
  for i, subject in ipairs { ... } do list[i] = assert(model.tokenizer:encode(prompt(subject))) end
  return list
end

local winter = prompts("snow", "the first frost", "winter rain", "ice on the pond")
local summer = prompts("summer heat", "fireflies", "a summer noon", "the beach")
local vector = assert(kigo.steering.contrast(model, winter, summer)) -- vector:save(path) keeps it

for _, strength in ipairs { -0.2, 0, 0.2 } do
  local seq <close> = assert(model:sequence {})
  local _ <close> = assert(vector:apply(seq, strength)) -- a hook; gone at the end of the scope
  assert(seq:feed(prompt "the evening"))
  print(("strength %g:\n%s\n"):format(strength, assert(seq:generate { max = 64, temp = 0 }).text))
end
