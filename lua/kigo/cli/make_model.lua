-- kigo make-model: a model file of a known shape with random weights, for benchmarks.
local common = require "kigo.cli.common"
local kigo = require "kigo"
local progress = require "kigo.progress"

return {
  name = "make-model", usage = "FILE --like SHAPE [--type TYPE] [--seed S]",
  summary = "write a model of a known shape with random weights",
  arguments = { min = 1, max = 1 },
  options = {
    { name = "like", type = "string", argument = "SHAPE", required = true,
      help = "qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b or tiny" },
    { name = "type", type = "string", argument = "TYPE",
      help = "of the matrices: q8_0 (default), q5_1, q5_0, q4_1, q4_0, bf16, f16 or f32; kigo quantize makes others" },
    { name = "seed", type = "integer", argument = "S", help = "the same seed gives the same file (default 1)" },
  },
  notes = "What such a model says is noise; how fast it says it is not.",
  run = function(options, arguments)
    local core = kigo.core
    core.catch_interrupts(true) -- so that Ctrl-C leaves no half file behind
    common.call(core.make_model, arguments[1], { like = options.like, type = options.type or "q8_0",
      seed = options.seed or 1, progress = progress.line(core.interrupted) })
    return 0
  end,
}
