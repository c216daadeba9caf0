-- 12-beam-search.lua - beam search in forty lines: keep the four likeliest beginnings, fork each by its likeliest next
-- tokens, drop the rest. One forward pass advances all beams, and forks share their cache pages.
-- Run: build/kigo examples/12-beam-search.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local BEAMS, MOST = 4, 48
local root = assert(model:sequence {})
local question = { { role = "user", content = "Write a haiku about a lantern." } }
assert(root:feed(model:template():render(question, { generate = true })))
local start = root:pos()

---Every beam's likeliest continuations, the best of all first. Those that end the answer are finished beams.
local function continuations(beams)
  local sequences, found = {}, {}
  for i, beam in ipairs(beams) do sequences[i] = beam.seq end
  assert(model:step(sequences))
  for _, beam in ipairs(beams) do
    local ids, scores = beam.seq.logits:log_softmax():topk(BEAMS)
    for i, id in ipairs(ids) do found[#found + 1] = { beam = beam, id = id, score = beam.score + scores[i] } end
  end
  table.sort(found, function(a, b) return a.score > b.score end)
  return found
end

local beams, finished = { { seq = root, score = 0 } }, {}
for _ = 1, MOST do
  local kept = {}
  for _, c in ipairs(continuations(beams)) do
    if #kept == BEAMS then break end
    local seq = assert(c.beam.seq:fork())
    if model.tokenizer:is_end(c.id) then
      finished[#finished + 1] = { seq = seq, score = c.score }
    else
      assert(seq:push(c.id))
      kept[#kept + 1] = { seq = seq, score = c.score }
    end
  end
  for _, beam in ipairs(beams) do beam.seq:close() end
  beams = kept
  if #finished >= BEAMS or #beams == 0 then break end
end

-- Longer answers have less of a chance: compare by token.
local function by_token(beam) return beam.score / (beam.seq:pos() - start) end
table.sort(finished, function(a, b) return by_token(a) > by_token(b) end)
for i, beam in ipairs(finished) do
  local text = model.tokenizer:decode(table.move(beam.seq:tokens(), start + 1, beam.seq:pos(), 1, {}))
  print(("beam %d, log-probability %.2f, %.2f by token:\n%s\n"):format(i, beam.score, by_token(beam), text))
  beam.seq:close()
end
