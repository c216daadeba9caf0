-- 21-haiku-by-constraint.lua - five, seven, five: a grammar says what lines look like, a Lua function counts syllables.
-- A function at a named point of a grammar decides whether the text of that rule will do; the mask bans every token
-- that it would not have. `partial` looks at lines that are not complete, so that no line runs out of syllables.
-- Run: build/kigo examples/21-haiku-by-constraint.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"
local syllables = require "kigo.syllables"

local grammar = assert(kigo.gbnf([[
  root  ::= five "\n" seven "\n" last
  five  ::= words
  seven ::= words
  last  ::= words
  words ::= word (" " word)*
  word  ::= [a-z]+
]], { points = { "five", "seven", "last" } }))

local function line(n)
  return {
    complete = function(text) return syllables.line(text) == n end,
    partial = function(text) return syllables.line(text) <= (text:find " $" and n - 1 or n) end,
  }
end

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local question = { { role = "user", content = "Write a haiku about the moon." } }
for seed = 1, 3 do
  local seq <close> = assert(model:sequence { seed = seed })
  assert(seq:feed(model:template():render(question, { generate = true })))
  assert(seq:constrain(grammar, { points = { five = line(5), seven = line(7), last = line(5) } }))
  local text = assert(seq:generate { max = 64, temp = 0.7 }).text
  for one in text:gmatch "[^\n]+" do print(("%d  %s"):format(syllables.line(one), one)) end
  print()
end
