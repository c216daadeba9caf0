-- kigo quantize: a model file in fewer bits.
local common = require "kigo.cli.common"
local kigo = require "kigo"
local progress = require "kigo.progress"
local quantize = require "kigo.quantize"

-- What most people want, and the others.
local KNOWN = "q8_0 (8.5 bits a weight, hardly to be told from the original), q6_k (6.6), "
  .. "q4_k_m (4.9: most people's choice), q3_k_m (3.9)"
local others = {}
for _, name in ipairs(quantize.names()) do
  if not KNOWN:find(name .. " (", 1, true) then others[#others + 1] = name end
end

---"PATTERN=TYPE" options as pairs.
local function overrides(texts)
  local list = {}
  for i, text in ipairs(texts or {}) do
    local pattern, name = text:match "^(.+)=([%w_]+)$"
    if not pattern then common.fail(("--tensor %s: PATTERN=TYPE expected"):format(text), 2) end
    list[i] = { pattern, name }
  end
  return list
end

local function print_summary(result)
  local names = {}
  for name in pairs(result.types) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do names[i] = ("%d %s"):format(result.types[name], name) end
  io.write(("%s: %.1f MB of weights, %.2f bits each, were %.1f MB; tensors: %s\n"):format(result.path,
    result.bytes_after / 1e6, result.bits_per_weight, result.bytes_before / 1e6, table.concat(names, ", ")))
  if result.substituted > 0 then
    io.write(("%d tensors have rows that are no whole blocks of their type and got another\n")
      :format(result.substituted))
  end
  if result.from_quantized then
    io.write "the file was quantized already: begin with an F32, F16 or BF16 one where you can\n"
  end
end

return {
  name = "quantize", usage = "IN.gguf OUT.gguf --type TYPE [--tensor PATTERN=TYPE] ...",
  summary = "write a model file in fewer bits",
  arguments = { min = 2, max = 2 },
  options = {
    { name = "type", type = "string", argument = "TYPE", required = true,
      help = ("%s, or one of %s"):format(KNOWN, table.concat(others, ", ")) },
    { name = "tensor", type = "string", argument = "PATTERN=TYPE", many = true,
      help = "tensors whose names hold this Lua pattern get this type (q8_0, q4_k, f16 ...; no mixture); may be "
        .. "repeated, the last that fits counts" },
    { name = "threads", type = "integer", argument = "N", min = 1, max = 1024, help = "default: one per core" },
  },
  notes = "Begin with a file in F32, F16 or BF16. A type is a mixture: most give the head more\n"
    .. "bits, _m types some other matrices too. Vectors, norms and routers stay as they are; rows that are\n"
    .. "no whole blocks of a type get its next of kin.",
  run = function(options, arguments)
    kigo.core.catch_interrupts(true) -- so that Ctrl-C leaves no half file behind
    local result = common.call(quantize.file, arguments[1], arguments[2], { type = options.type,
      tensors = overrides(options.tensor), threads = options.threads,
      progress = progress.line(kigo.core.interrupted) })
    print_summary(result)
    return 0
  end,
}
