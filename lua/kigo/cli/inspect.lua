-- kigo inspect: what a model file holds.
local common = require "kigo.cli.common"
local json = require "kigo.json"
local kigo = require "kigo"

local SHOWN_ITEMS, SHOWN_BYTES = 8, 200 -- of arrays and strings in the metadata

local function shorten(text)
  if #text <= SHOWN_BYTES then return text end
  return text:sub(1, (utf8.offset(text, 0, SHOWN_BYTES) or SHOWN_BYTES) - 1) .. ("... (%d bytes)"):format(#text)
end

---The first items of an array, and how many there are.
local function array_head(gguf, entry)
  local values = entry.count > 0 and gguf:get(entry.key) or {}
  local head = {}
  for i = 1, math.min(SHOWN_ITEMS, #values) do
    head[i] = type(values[i]) == "string" and shorten(values[i]) or values[i]
  end
  return head
end

---Everything there is to say about a file, as plain data.
---@param gguf kigo.Gguf
---@return table
local function describe(gguf)
  local metadata, types = json.array {}, {}
  for i, entry in ipairs(gguf:entries()) do
    local row = { key = entry.key, type = entry.type }
    if entry.is_array then
      row.count, row.head = entry.count, json.array(array_head(gguf, entry))
    else
      local value = gguf:get(entry.key)
      row.value = type(value) == "string" and shorten(value) or value
    end
    metadata[i] = row
  end
  local tensors = json.array(gguf:tensors())
  for _, tensor in ipairs(tensors) do
    local sum = types[tensor.type] or { count = 0, bytes = 0 }
    types[tensor.type] = sum
    sum.count, sum.bytes = sum.count + 1, sum.bytes + tensor.bytes
  end
  return { path = gguf:path(), version = gguf:version(), files = gguf:files(), bytes = gguf:bytes(),
    parameters = gguf:parameters(), architecture = gguf:get "general.architecture", metadata = metadata,
    tensors = tensors, types = types }
end

local function item_text(value)
  return type(value) == "string" and json.encode(value) or tostring(value)
end

local function value_text(row)
  if not row.head then return item_text(row.value) end
  local items = {}
  for i, item in ipairs(row.head) do items[i] = item_text(item) end
  return ("[%s%s] (%d)"):format(table.concat(items, ", "), row.count > #items and ", ..." or "", row.count)
end

local function megabytes(bytes) return ("%.1f MB"):format(bytes / 1e6) end

local function write_table(about)
  io.write(("%s: GGUF version %d, %d file%s, %s, %s, %.1f M parameters\n\nmetadata\n"):format(about.path, about.version,
    about.files, about.files == 1 and "" or "s", megabytes(about.bytes), about.architecture or "no architecture",
    about.parameters / 1e6))
  for _, row in ipairs(about.metadata) do
    local kind = row.head and row.type .. "[]" or row.type
    io.write(("  %-45s %-10s %s\n"):format(row.key, kind, value_text(row)))
  end
  io.write "\ntensors\n"
  for _, tensor in ipairs(about.tensors) do
    io.write(("  %-45s %-10s %-20s %d bytes\n"):format(tensor.name, tensor.type, table.concat(tensor.shape, " x "),
      tensor.bytes))
  end
  io.write "\ntypes\n"
  local names = {}
  for name in pairs(about.types) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    io.write(("  %-10s %5d tensors %12s\n"):format(name, about.types[name].count, megabytes(about.types[name].bytes)))
  end
end

return {
  name = "inspect", usage = "FILE [--json]",
  summary = "show a model file's metadata, tensors and sizes",
  arguments = { min = 1, max = 1 },
  options = { { name = "json", help = "print all of it as JSON" } },
  run = function(options, arguments)
    local gguf <close> = common.try(kigo.open_gguf(arguments[1]))
    local about = describe(gguf)
    if options.json then
      io.write(json.encode(about), "\n")
    else
      write_table(about)
    end
    return 0
  end,
}
