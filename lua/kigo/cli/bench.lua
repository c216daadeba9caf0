-- kigo bench: how fast a model runs here.
local bench = require "kigo.bench"
local common = require "kigo.cli.common"
local json = require "kigo.json"

return {
  name = "bench", usage = "MODEL [--json] [--prompt-tokens 512] [--tokens 128] [--repeat 5] ...",
  summary = "measure speed and memory of a model on this machine",
  arguments = { min = 1, max = 1 },
  options = common.join({
    { name = "json", help = "print the figures as JSON, in bytes and seconds" },
    { name = "prompt-tokens", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "tokens of the prefill (default 512)" },
    { name = "tokens", short = "n", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "tokens of the decode (default 128)" },
    { name = "repeat", type = "integer", argument = "N", min = 1, max = 1000,
      help = "runs, of which the median counts (default 5)" },
  }, common.load_options),
  notes = "The share of the bandwidth counts the weights that a token reads, by their size in the file, and its cache.",
  run = function(options, arguments)
    local figures = common.call(bench.measure, arguments[1], {
      prompt_tokens = options.prompt_tokens, tokens = options.tokens, repeats = options["repeat"],
      load = common.loading(options),
    })
    common.say_fallback(figures.note)
    figures.note = nil
    io.write(options.json and json.encode(figures) .. "\n" or bench.describe(figures))
    return 0
  end,
}
