-- kigo logits: the numbers after every position of a token sequence, for comparison with other engines.
local common = require "kigo.cli.common"
local progress = require "kigo.progress"

local function parse_ids(text, vocab_size)
  local ids = {}
  for part in (text .. ","):gmatch "([^,]*)," do
    local id = part:find "^%s*%d+%s*$" and math.tointeger(tonumber(part))
    if not id then common.fail(("--tokens: %q is not a token id"):format(part), 2) end
    if id >= vocab_size then common.fail(("--tokens: id %d is outside 0 to %d"):format(id, vocab_size - 1), 2) end
    ids[#ids + 1] = id
  end
  return ids
end

---Open the file before the long work, so that a place that cannot be written to costs none.
local function open_output(path)
  local file, message = io.open(path, "wb")
  return file or common.fail(message)
end

---Write everything; a file that cannot take it is left empty, not half full. It is not removed: it may be a device.
local function write_all(path, file, bytes)
  local written, message = file:write(bytes)
  local closed, why = file:close()
  if written and closed then return end
  local empty = io.open(path, "wb")
  if empty then empty:close() end
  common.fail(("%s: %s"):format(path, message or why))
end

return {
  name = "logits", usage = "MODEL --tokens 1,2,3 --out FILE",
  summary = "write the logits of every position as float32 [n, vocab]",
  arguments = { min = 1, max = 1 },
  options = common.join({
    { name = "tokens", type = "string", argument = "IDS", required = true,
      help = "token ids with commas between them" },
    { name = "out", type = "string", argument = "FILE", required = true, help = "where to write" },
  }, common.load_options),
  run = function(options, arguments)
    local model <close> = common.load(arguments[1], options, { tokenizer = false })
    model:set_progress(progress.line())
    local ids = parse_ids(options.tokens, model.vocab_size)
    local file <close> = open_output(options.out)
    local logits <close> = common.call(model.logits, model, ids)
    write_all(options.out, file, logits:bytes())
    io.stderr:write(("%s: float32 [%d, %d]\n"):format(options.out, #ids, model.vocab_size))
    return 0
  end,
}
