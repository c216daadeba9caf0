-- 19-ban-phrase.lua - ban phrases, however they are cut into tokens: write on, and where one stands, go back to where
-- it began and write something else there. A stream follows the sequence, so the text goes back with it.
-- Run: build/kigo examples/19-ban-phrase.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local BANNED = { "the ", "silen", "moon" }

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local seq <close> = assert(model:sequence { seed = 11 })
assert(seq:feed(model:template():render({ { role = "user", content = "Write a haiku about the moon." } },
  { generate = true })))

local pick <close> = kigo.chain { kigo.min_p(0.05), kigo.temp(0.8), kigo.dist() }
local text <close> = seq:attach(assert(kigo.stream(model.tokenizer)))
seq.state.no = {} -- position -> ids that led into a phrase there; a rewind to a position leaves seq.state alone

---Where the first banned phrase of the text begins.
local function find_banned(shown)
  local first, which
  for _, phrase in ipairs(BANNED) do
    local at = shown:lower():find(phrase, 1, true)
    if at and (not first or at < first) then first, which = at, phrase end
  end
  return first, which
end

---Take the phrase that begins at byte `at` of the text back, and never enter it by the same token again.
local function take_back(at)
  local ids = seq:tokens()
  repeat seq:rewind(seq:pos() - 1) until #text.text < at
  local pos, no = seq:pos(), seq.state.no
  for later in pairs(no) do
    if later > pos then no[later] = nil end -- of a text that is no more
  end
  no[pos] = no[pos] or {}
  table.insert(no[pos], ids[pos + 1])
end

for _ = 1, 400 do
  local logits = seq.logits
  logits:fill_(-math.huge, seq.state.no[seq:pos()] or {})
  local id = assert(pick(logits, seq))
  if model.tokenizer:is_end(id) then break end
  assert(seq:push(id))
  local at, phrase = find_banned(text.text)
  if at then
    print(("%q: back from %q"):format(phrase, text.text))
    take_back(at)
  end
end
print("\n" .. text.text)
