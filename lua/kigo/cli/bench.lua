-- kigo bench: how fast a model runs here.
local bench = require "kigo.bench"
local common = require "kigo.cli.common"
local json = require "kigo.json"
local tokenizer_bench = require "kigo.tokenizer_bench"

---The whole of the file, or the end of the command.
local function read(path)
  local file, message = io.open(path, "rb")
  local text
  if file then
    text, message = file:read "a"
    file:close()
  end
  return text or common.fail(message)
end

local function measure_tokenizer(options, arguments)
  return common.call(tokenizer_bench.measure, arguments[1], { text = arguments[2] and read(arguments[2]),
    pre = options.pre, repeats = options["repeat"] })
end

---A list of numbers: "1,8,64".
local function numbers(name, text)
  if not text then return nil end
  local list = {}
  for item in (text .. ","):gmatch "([^,]*)," do
    local n = item:find "^%d+$" and math.tointeger(tonumber(item))
    if not n or n < 1 or n > common.MAX_TOKENS then
      common.fail(("--%s: numbers with commas between them expected, got %q"):format(name, text), 2)
    end
    list[#list + 1] = n
  end
  return list
end

local function measure_model(options, arguments)
  if arguments[2] then common.fail("bench takes a text only with --tokenizer", 2) end
  local batches, contexts = numbers("batch", options.batch), numbers("context", options.context)
  local figures = common.call(bench.measure, arguments[1], {
    prompt_tokens = options.prompt_tokens, tokens = options.tokens, repeats = options["repeat"],
    batches = batches, contexts = contexts, stages = options.stages, load = common.loading(options),
  })
  common.say_fallback(figures.note)
  figures.note = nil
  return figures
end

return {
  name = "bench", usage = "MODEL [--batch 1,8,64] [--context 512,4096] [--stages] [--json] [--repeat 5] ...\n"
    .. "       kigo bench --tokenizer MODEL [TEXTFILE] [--json] [--repeat 5] [--pre NAME]",
  summary = "measure speed and memory of a model on this machine",
  arguments = { min = 1, max = 2 },
  options = common.join({
    { name = "tokenizer", help = "measure the tokenizer, on TEXTFILE or on made-up text in many languages" },
    { name = "json", help = "print the figures as JSON, in bytes and seconds" },
    { name = "prompt-tokens", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "tokens of the prefill (default 512)" },
    { name = "tokens", short = "n", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "tokens of the decode (default 128; 64 in a table)" },
    { name = "batch", type = "string", argument = "LIST",
      help = "a table: sequences computed together (on a GPU: 1,8,64)" },
    { name = "context", type = "string", argument = "LIST",
      help = "a table: tokens of each sequence before the decode (on a GPU: 512,4096)" },
    { name = "stages", help = "on a GPU: what each stage of a step moves and takes" },
    { name = "repeat", type = "integer", argument = "N", min = 1, max = 1000,
      help = "runs, of which the median counts (default 5)" },
  }, common.load_options),
  notes = "The share of the bandwidth counts the weights that a token reads, by size in the file, and its cache.\n"
    .. "A GPU gets a table. Its floor is the time in which the device could at best move those bytes, by the rate\n"
    .. "of a copy, or do the products, by that of tensor cores with operands in registers: both measured first.",
  run = function(options, arguments)
    local measure = options.tokenizer and measure_tokenizer or measure_model
    local figures, describe = measure(options, arguments), (options.tokenizer and tokenizer_bench or bench).describe
    io.write(options.json and json.encode(figures) .. "\n" or describe(figures))
    return 0
  end,
}
