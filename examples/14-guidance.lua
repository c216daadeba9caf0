-- 14-guidance.lua - two sequences, one answer: what the question changes is made stronger (classifier-free guidance),
-- or what would be said anyway counts less (contrastive decoding).
-- Run: build/kigo examples/14-guidance.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local template = model:template()
local function ask(content) return template:render({ { role = "user", content = content } }, { generate = true }) end

-- The answer to a question, where `combine` changes the logits by those of a second sequence, which was asked something
-- else and hears the same answer.
local function answer(question, other_question, combine)
  local seq <close> = assert(model:sequence { seed = 5 })
  local other <close> = assert(model:sequence {})
  assert(seq:feed(ask(question)))
  assert(other:feed(ask(other_question)))
  local draw <close> = kigo.chain { kigo.min_p(0.05), kigo.temp(0.6) }
  return assert(seq:generate { max = 64, sample = function(logits)
    local id = assert(draw(combine(logits, other.logits), seq))
    if not model.tokenizer:is_end(id) then assert(other:push(id)) end
    return id
  end }).text
end

-- Away from the other question: other + 1.5 * (own - other). (Sanchez et al.: "Stay on topic with Classifier-Free
-- Guidance", 2023)
local function guided(logits, other) return logits:mul_(1.5):add_(other, -0.5) end

-- Of what is plausible at all, what the other one would rather not have said. (Li et al.: "Contrastive Decoding", 2022)
local function contrasted(logits, other) return logits:apply_(kigo.min_p(0.1)):add_(other, -0.5) end

local question, other = "Write a haiku about the winter moon.", "Write a haiku about a summer day."
print("As it is:\n" .. answer(question, other, function(logits) return logits end))
print("\nGuided:\n" .. answer(question, other, guided))
print("\nContrasted:\n" .. answer(question, other, contrasted))
