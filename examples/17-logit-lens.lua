-- 17-logit-lens.lua - a logit lens: what would the model say next if its head read the result of an earlier block? A
-- picture with a column for each token of a prompt and a row for each block, blue where the model is sure.
-- Run: build/kigo examples/17-logit-lens.lua [MODEL] [FILE.svg]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local WIDTH, HEIGHT, LEFT = 96, 28, 60 -- of a cell; room for the blocks' numbers

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
local path = arg[2] or os.tmpname() .. ".svg"
local question = { { role = "user", content = "Write a haiku about the sea." } }
local ids = assert(model.tokenizer:encode(model:template():render(question, { generate = true })))

-- For every block, of every token: the likeliest next token and its probability.
local lens, blocks = assert(model:trace(ids, "blk.*.out", function(rows)
  local logits <close> = assert(model:unembed(rows))
  local best = {}
  for i = 0, #ids - 1 do
    local id = logits:row(i):argmax()
    best[i] = { text = model.tokenizer:piece(id), p = logits:row(i):softmax()[id] }
  end
  return best
end))

local out = {}
local function text(x, y, colour, s)
  s = s:gsub("%c", "\u{b7}"):gsub("[&<]", { ["&"] = "&amp;", ["<"] = "&lt;" })
  out[#out + 1] = ('<text x="%d" y="%d" fill="%s">%s</text>'):format(x, y, colour, utf8.len(s) and s or "?")
end

local function column(i) return LEFT + i * WIDTH end
local width, height = column(#ids), (#blocks + 1) * HEIGHT
for i, id in ipairs(ids) do text(column(i - 1) + 4, height - 9, "#888", model.tokenizer:piece(id)) end
for block = 0, #blocks - 1 do
  local y = (#blocks - 1 - block) * HEIGHT -- the last block on top
  text(4, y + 19, "#888", "block " .. block)
  for i = 0, #ids - 1 do
    local best = lens[block][i]
    out[#out + 1] = ('<rect x="%d" y="%d" width="%d" height="%d" fill="#2a6fbb" fill-opacity="%.2f"/>')
      :format(column(i), y, WIDTH - 2, HEIGHT - 2, best.p)
    text(column(i) + 4, y + 19, best.p > 0.5 and "white" or "#222", best.text)
  end
end
local file <close> = assert(io.open(path, "w"))
assert(file:write(('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="monospace" '
  .. 'font-size="12">\n'):format(width, height), table.concat(out, "\n"), "\n</svg>\n"))
print(("%d tokens, %d blocks: the last block says %q next\n%s"):format(#ids, #blocks,
  lens[#blocks - 1][#ids - 1].text, path))
