-- kigo embed: texts as vectors.
local common = require "kigo.cli.common"

local MAX_TEXTS = 1 << 16

---One vector as a line of JSON.
local function line_of(vector)
  local numbers = {}
  for i, x in ipairs(vector:totable()) do numbers[i] = ("%.7g"):format(x) end
  return "[" .. table.concat(numbers, ", ") .. "]\n"
end

---The lines of standard input.
local function read_lines()
  local texts = {}
  for line in io.lines() do
    if line ~= "" then texts[#texts + 1] = line end
  end
  return texts
end

return {
  name = "embed", usage = "MODEL [TEXT...] [--pooling mean|last|cls] [--raw] [--device D] ...",
  summary = "turn texts into vectors, a line of JSON each",
  arguments = { min = 1, max = MAX_TEXTS },
  options = common.join({
    { name = "pooling", type = "string", argument = "KIND",
      help = "the mean of all tokens, the last or the first (cls) one (default: what the model's file says, or mean)" },
    { name = "raw", help = "vectors as they are, not of length 1" },
  }, common.load_options),
  notes = "Without TEXT each line of standard input is one; empty lines are left out.",
  run = function(options, arguments)
    local texts = table.move(arguments, 2, #arguments, 1, {})
    if #texts == 0 then texts = read_lines() end
    local model <close> = common.load(arguments[1], options)
    common.tokenizer(model)
    local vectors = common.call(model.embed, model, texts, { pooling = options.pooling, normalize = not options.raw })
    for _, vector in ipairs(vectors) do io.write(line_of(vector)) end
    return 0
  end,
}
