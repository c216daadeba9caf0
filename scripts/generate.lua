-- generate.lua - the generation loop in the open, with a sampler written in Lua.
--   kigo scripts/generate.lua MODEL [PROMPT]
local kigo = require "kigo"

local path, prompt = ...
if not path then
  io.stderr:write "usage: kigo scripts/generate.lua MODEL [PROMPT]\n"
  os.exit(2)
end

local model <close> = assert(kigo.load(path))
local tokenizer = model.tokenizer
local seq <close> = assert(model:sequence { seed = 29 })
assert(seq:feed(prompt or { tokenizer.bos }))

-- A sampler is any function (logits, seq) -> id. Logits are a tensor: whole-tensor methods, no loop over a vocabulary.
-- This one is bold where the model is sure and careful where it is not.
local function cautious(logits, s)
  local entropy = logits:softmax():entropy()
  if entropy < 0.1 then return (logits:argmax()) end
  local ids, scores = logits:mul_(1 / (0.6 + 0.4 * entropy)):topk(64)
  local weights, best = {}, scores[1]
  for i, score in ipairs(scores) do weights[i] = math.exp(score - best) end
  return ids[s.rng:choose(weights)]
end

local out = kigo.stream(tokenizer, { stop = { "\n\n" } }) -- holds back half characters and half stop strings
for _ = 1, math.min(256, model.context - seq:pos()) do
  local id = cautious(seq.logits, seq) -- reading the logits runs the tokens that are pending
  if tokenizer:is_end(id) then break end
  assert(seq:push(id))
  io.write(out:add(id))
  io.flush()
  if out.stopped then break end
end
io.write(out:finish(), "\n")
