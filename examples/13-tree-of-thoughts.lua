-- 13-tree-of-thoughts.lua - a search through lines of a haiku: every node of the tree is a body of its own, which
-- writes one line and starts its children. Likelier thoughts have a higher priority, so they are followed first; when
-- the first three haiku are complete, whatever is still being thought is cancelled.
-- Run: build/kigo examples/13-tree-of-thoughts.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local tree <close> = kigo.scheduler(model, { max = 6 }) -- thoughts at a time
local LINES, CHILDREN, WANTED = 3, 3, 3
local poems, n_thoughts = {}, 0

---Write the next line on a branch of `parent`, then think on from there.
local function think(parent, seed, text, depth, score)
  local branch = assert(parent:fork { seed = seed })
  local line = assert(branch:generate { max = 24, temp = 1.1, stop = "\n", logprobs = true })
  n_thoughts = n_thoughts + 1
  text, score = text .. line.text .. "\n", score + line.mean_logprob
  if depth == LINES or line.reason ~= "stop" then
    poems[#poems + 1] = { text = text, score = score }
    return
  end
  local children = {}
  for i = 1, CHILDREN do
    children[i] = tree:spawn(think, branch, seed * 10 + i, text, depth + 1, score)
    children[i]:set_priority(score)
  end
  for _, child in ipairs(children) do child:wait() end -- our branch is closed when we return, and they fork it
end

local root <close> = assert(model:sequence {})
local question = { { role = "user", content = "Write a haiku about the harbour." } }
assert(root:feed(model:template():render(question, { generate = true })))
assert(root:step())
for i = 1, CHILDREN do tree:spawn(think, root, i, "", 1, 0) end
while #poems < WANTED and tree:step() do end
tree:close() -- cancels what is left, wherever it is

table.sort(poems, function(a, b) return a.score > b.score end)
print(("%d thoughts, %d haiku; the likeliest:\n\n%s"):format(n_thoughts, #poems, poems[1].text))
