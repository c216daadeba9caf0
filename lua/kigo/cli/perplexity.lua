-- kigo perplexity: how well a model foretells a text.
local common = require "kigo.cli.common"
local perplexity = require "kigo.perplexity"
local progress = require "kigo.progress"

local function read(path)
  local file = path == "-" and io.stdin or common.try(io.open(path, "rb"))
  local text = common.try(file:read "a")
  if file ~= io.stdin then file:close() end
  return text
end

return {
  name = "perplexity", usage = "MODEL FILE [--ctx N] [--stride N] [--device D] ...",
  summary = "measure how well a model foretells a text",
  arguments = { min = 2, max = 2 },
  options = common.join({
    { name = "stride", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "new tokens in each window behind the first (default: half of the context)" },
  }, common.load_options),
  notes = [[
FILE is plain text ("-": standard input). It is read in windows of --ctx tokens that overlap; every token counts once
and has at least ctx - stride tokens before it, but for those of the first window. The error is one standard error.]],
  run = function(options, arguments)
    local model <close> = common.load(arguments[1], options)
    local ids = common.try(common.tokenizer(model):encode(read(arguments[2])))
    if #ids < 2 then common.fail(arguments[2] .. ": a text of at least two tokens is needed") end
    local result = common.call(perplexity.measure, model, ids, { stride = options.stride, progress = progress.line() })
    io.write(("perplexity %.4f +- %.4f\n"):format(result.perplexity, result.error))
    io.stderr:write(("%d tokens of %s in %d windows of %d, %s; %.1f tokens/s\n"):format(result.n_tokens, arguments[2],
      result.n_windows, math.min(model.context, #ids), model:stats().device, result.n_evaluated / result.seconds))
    return 0
  end,
}
