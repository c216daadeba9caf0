-- kigo run: complete raw text. Standard output carries the generated text and nothing else.
local kigo = require "kigo"
local common = require "kigo.cli.common"
local progress = require "kigo.progress"

local DEFAULT_TOKENS = 128

---Put the prompt on the timeline; an empty one is BOS alone.
local function feed(seq, prompt)
  local tokenizer = common.tokenizer(seq.model)
  if prompt ~= "" then return common.try(seq:feed(prompt)) end
  if not tokenizer.bos then
    common.fail "an empty prompt starts from BOS, and this model has none: give --prompt TEXT"
  end
  common.try(seq:feed { tokenizer.bos })
end

local function write(text)
  io.write(text)
  io.flush()
end

return {
  name = "run", usage = "MODEL [--prompt TEXT] [--temp T] [-n N] [--json-schema FILE] ...",
  summary = "complete raw text with a model",
  arguments = { min = 1, max = 1 },
  options = common.join({
    { name = "prompt", short = "p", type = "string", argument = "TEXT",
      help = "text to complete; without one: from BOS" },
    { name = "tokens", short = "n", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
      help = "most tokens to generate (default 128, or what the context holds)" },
    common.adapter_option, common.receipt_option,
  }, common.constraint_options, common.sample_options, common.speculate_options, common.load_options),
  notes = "Only the generated text goes to standard output; everything else goes to standard error.",
  run = function(options, arguments)
    local constraint = common.constraint(options)
    local model <close> = common.load(arguments[1], options)
    local adapters = common.adapters(model, options)
    local seq <close> = common.call(model.sequence, model, { seed = common.seed(options), adapters = adapters })
    local guesses <close> = common.guesses(options)
    model:set_progress(progress.line())
    feed(seq, options.prompt or "")
    local generate = common.sampling(options)
    generate.constrain, generate.speculate = constraint, guesses.speculate
    local room = model.context - seq:pos()
    generate.max = options.tokens or (room > 0 and math.min(DEFAULT_TOKENS, room) or nil)
    generate.on_text, generate.receipt = write, options.receipt ~= nil
    local t0 = kigo.now()
    local result = common.call(seq.generate, seq, generate)
    if kigo.core.is_terminal(1) then io.stderr:write "\n" end
    local guessed = result.speculated
    io.stderr:write(("%d tokens after %d, %.2f s, seed %d, ended by: %s\n"):format(result.n_tokens,
      seq:pos() - result.n_tokens, kigo.now() - t0, seq:seed(), result.reason))
    if guessed then
      io.stderr:write(("%d of %d guessed tokens were right: %d forward passes\n"):format(guessed.n_accepted,
        guessed.n_drafted, guessed.n_passes))
    end
    if options.receipt then common.try(kigo.receipt.write(options.receipt, result.receipt)) end
    return 0
  end,
}
