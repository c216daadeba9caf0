-- kigo tokenize: standard input as tokens.
local common = require "kigo.cli.common"
local kigo = require "kigo"

return {
  name = "tokenize", usage = "MODEL [--ids] [--no-bos] [--special] [--pre NAME] < TEXT",
  summary = "show standard input as tokens",
  arguments = { min = 1, max = 1 },
  options = {
    { name = "ids", help = "only the ids, in one line" },
    { name = "no-bos", help = "without the tokens that the file asks for at the start" },
    { name = "special", help = "text that spells a control token becomes it" },
    common.pre_option,
  },
  notes = "The input is plain text: without --special, what spells a control token stays text.",
  run = function(options, arguments)
    local gguf <close> = common.try(kigo.open_gguf(arguments[1]))
    local tokenizer <close> = common.try(kigo.core.tokenizer(gguf, { pre = options.pre }))
    local text = io.read "a"
    local ids = common.try(tokenizer:encode(text, { bos = not options.no_bos, special = options.special }))
    if options.ids then
      io.write(table.concat(ids, " "), "\n")
      return 0
    end
    for _, id in ipairs(ids) do io.write(("%7d  %s\n"):format(id, common.quoted(tokenizer:piece(id)))) end
    return 0
  end,
}
