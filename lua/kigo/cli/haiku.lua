-- kigo haiku: a haiku about this minute, and the proof that a model wrote it.
local common = require "kigo.cli.common"
local haiku = require "kigo.haiku"
local kigo = require "kigo"

return {
  name = "haiku", usage = "[--model FILE] [--topic TEXT] [--seed S] [--receipt FILE] [--device D] ...",
  summary = "let a model write a haiku, and check that it really did",
  arguments = { min = 0, max = 1 },
  options = common.join({
    { name = "model", type = "string", argument = "FILE", help = "an instruct model (default: the bundled one)" },
    { name = "topic", type = "string", argument = "TEXT", help = "what it is about (default: one of a few)" },
    { name = "seed", type = "integer", argument = "S",
      help = "of the random numbers (default: another one each time)" },
    common.receipt_option,
  }, common.load_options),
  notes = "The exit status is 0 when every question was answered as a model answers it, else 1. On a GPU the device\n"
    .. "and its driver are asked too: did memory in use grow by the weights and shrink again, are the weights, read\n"
    .. "back, those of the file, and did the device's own clock see every forward pass?",
  run = function(options, arguments)
    local path = options.model or arguments[1] or haiku.bundled_model()
    if not path then common.fail "the bundled model is not here: give --model FILE" end
    local model <close> = common.load(path, options)
    local function load_again() return kigo.load(path, common.loading(options)) end
    local report = haiku.check(model, haiku.environment(load_again, { topic = options.topic, seed = options.seed,
      receipt = options.receipt ~= nil }))
    io.write(haiku.describe(model, report))
    if options.receipt and report.passed then common.try(kigo.receipt.write(options.receipt, report.answer.receipt)) end
    return report.passed and 0 or 1
  end,
}
