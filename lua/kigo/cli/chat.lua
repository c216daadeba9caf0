-- kigo chat: talk with a model at the terminal.
local common = require "kigo.cli.common"
local terminal = require "kigo.terminal"

return {
  name = "chat", usage = "MODEL [--system TEXT] [--template NAME] [--set NAME=JSON] [--temp T] [-n N] [--seed S] ...",
  summary = "talk with a model",
  arguments = { min = 1, max = 1 },
  options = common.join({
    { name = "system", type = "string", argument = "TEXT", help = "the system message" },
    { name = "tokens", short = "n", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "most tokens of an answer (default: what the context holds)" },
    common.adapter_option,
  }, common.template_options, common.constraint_options, common.sample_options, common.speculate_options,
    common.load_options),
  notes = "A constraint holds for every answer.\n"
    .. "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer.",
  run = function(options, arguments)
    local wanted = common.sampling(options)
    wanted.constrain = common.constraint(options)
    local model <close> = common.load(arguments[1], options)
    local guesses <close> = common.guesses(options)
    wanted.speculate = guesses.speculate
    wanted.system, wanted.max, wanted.seed = options.system, options.tokens, common.seed(options)
    wanted.template, wanted.variables = common.template(model, options), common.variables(options)
    wanted.adapters = common.adapters(model, options)
    local chat <close> = common.call(model.conversation, model, wanted)
    common.try(terminal.chat(chat))
    return 0
  end,
}
