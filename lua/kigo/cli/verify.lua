-- kigo verify: compute again what a receipt says, and tell whether it fits.
local common = require "kigo.cli.common"
local haiku = require "kigo.haiku"
local json = require "kigo.json"
local kigo = require "kigo"

local DRAWS = {
  exact = "each is what the sampler draws with the receipt's seed",
  possible = "each is what the sampler may have drawn with the receipt's seed and logits this close",
  script = "not checked: a script drew them, or stages that want logits of the same bits",
}

local function write_steps(model, report)
  io.write "  step       id  token                 rank  probability  difference\n"
  for i, step in ipairs(report.steps) do
    local piece = json.encode(model.tokenizer and model.tokenizer:piece(step.id) or "")
    io.write(("%6d  %7d  %-20s  %4d  %11.6f  %10.3g%s\n"):format(i, step.id, piece, step.rank, step.probability,
      step.difference, step.problem and "  <- " .. step.problem or ""))
  end
end

local function write_summary(model, receipt, report)
  local here = model:stats()
  io.write(("written on %s (%s, %s cache), %s; computed again on %s (%s, %s cache)\n"):format(receipt.device.name,
    receipt.device.variant, receipt.device.kv, receipt.time, here.device, here.variant, here.kv))
  for _, one in ipairs(receipt.adapters or {}) do
    io.write(("adapter %s at scale %g\n"):format(common.quoted(one.name), one.scale))
  end
  if #report.steps > 0 then
    io.write(report.bitwise and "logits  the same bits\n"
      or ("logits  differ by at most %.3g, %.3g in the root mean square; %g is allowed\n"):format(report.max_difference,
        report.rms_difference, report.tolerance))
    if not report.step then io.write("ids     ", DRAWS[report.draws], "\n") end -- else the verdict says more
  end
  for i, problem in ipairs(report.problems) do
    if i > 1 then io.write("also    ", problem, "\n") end
  end
  io.write("Receipt ", report.passed and "PASSED" or "FAILED: " .. report.problems[1], "\n")
end

local KV_TYPES = { f16 = true, f32 = true }

---Load the model with a context that holds the receipt, and with the cache type of the receipt, unless told otherwise.
local function load_for(path, options, receipt)
  local gguf <close> = common.try(kigo.open_gguf(path))
  local most = gguf:get(("%s.context_length"):format(gguf:get "general.architecture"))
  local needed = #receipt.prompt + #receipt.sampled
  if math.type(most) == "integer" and needed > most + 1 then
    common.fail(("the %d tokens of the receipt are more than %s can hold"):format(needed, path))
  end
  return common.load(path, options, {
    ctx = options.ctx or (needed > 4096 and math.min(needed, most or needed) or nil),
    kv = options.kv or (KV_TYPES[receipt.device.kv] and receipt.device.kv) or nil,
  })
end

---What is not even a receipt gets its verdict too.
local function malformed(options, message)
  local report = { passed = false, problems = { message } }
  io.write(options.json and json.encode(report) or "Receipt FAILED: " .. message, "\n")
  return 1
end

return {
  name = "verify", usage = "RECEIPT [--model FILE] [--adapter FILE] [--device D] [--tolerance X] ...",
  summary = "compute again what a receipt says, on any device",
  arguments = { min = 1, max = 1 },
  options = common.join({
    { name = "model", type = "string", argument = "FILE", help = "the receipt's model (default: the bundled one)" },
    { name = "adapter", type = "string", argument = "FILE", many = true,
      help = "an adapter that the receipt names, with its scale; may be repeated" },
    { name = "tolerance", type = "number", argument = "X", min = 0, max = 1000,
      help = "largest difference of a logit (default: 0 on the device of the receipt, else what rounding explains)" },
    { name = "json", help = "print the report as JSON" },
  }, common.load_options),
  notes = "The exit status is 0 when everything fits, 1 when it does not or cannot be computed.",
  run = function(options, arguments)
    local receipt, message, code = kigo.receipt.read(arguments[1])
    if code == kigo.err.FORMAT then return malformed(options, message) end
    common.try(receipt, message)
    local path = options.model or haiku.bundled_model() or common.fail "give --model FILE"
    local model <close> = load_for(path, options, receipt)
    local adapters = {}
    for i, file in ipairs(options.adapter or {}) do adapters[i] = common.call(model.adapter, model, file) end
    local report = common.call(kigo.receipt.verify, model, receipt,
      { tolerance = options.tolerance, adapters = adapters })
    if options.json then
      io.write(json.encode(report), "\n")
    else
      write_steps(model, report)
      write_summary(model, receipt, report)
    end
    return report.passed and 0 or 1
  end,
}
