-- 15-token-healing.lua - a prompt that ends within a word ends in a token that the model never saw there. So take the
-- last token back, and let the first draw choose among all tokens that begin with its text.
-- Run: build/kigo examples/15-token-healing.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local tokenizer = model.tokenizer
local question = { { role = "user", content = "Write a haiku about the winter." } }
local begun = "first fro"

---A sampler for a sequence whose last token was taken back: it begins with `text`, and goes on as `pick` says.
local function beginning_with(text, pick)
  local mask = model:zeros(model.vocab_size):fill_(-math.huge):fill_(0, tokenizer:with_prefix(text))
  local first
  return function(logits, seq)
    first = first or seq:pos()
    return pick(seq:pos() == first and logits:add_(mask) or logits, seq)
  end
end

local function complete(heals)
  local seq <close> = assert(model:sequence { seed = 1 })
  assert(seq:feed(model:template():render(question, { generate = true })))
  assert(seq:feed(begun))
  local pick <close> = kigo.chain { kigo.min_p(0.05), kigo.temp(0.6) }
  if not heals then return begun .. assert(seq:generate { max = 40, sample = pick }).text end
  local ids = seq:tokens()
  local last = tokenizer:piece(ids[#ids])
  assert(seq:rewind(#ids - 1))
  return begun:sub(1, -#last - 1) .. assert(seq:generate { max = 40, sample = beginning_with(last, pick) }).text
end

print("As it is:\n" .. complete(false))
print("\nHealed:\n" .. complete(true))
