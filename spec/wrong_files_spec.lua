-- Model files of every family with one thing wrong: loading says what in one line that names the file and the key or
-- tensor, and what is taken all the same runs. One case in 607 is tried, always the same ones; KIGO_WRONG_FILES=1 tries
-- all of them.
describe("a wrong file", function()
  local arch = require "kigo.arch"
  local edit = require "spec.gguf_edit"
  local hyperparameters = require "kigo.hyperparameters"
  local kigo = require "kigo"
  local support = require "spec.support"

  local ONE_IN = math.tointeger(os.getenv "KIGO_WRONG_FILES") or 607 -- a prime, so that all kinds of cases come along
  local MAX_GROWTH = 512 * 1024 -- kilobytes of resident memory; a sanitizer keeps half of that back
  local FORMAT, UNSUPPORTED = kigo.err.FORMAT, kigo.err.UNSUPPORTED
  local build = require "spec.gguf_build"
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  -- ---- one case ----

  local function peak_kilobytes()
    local file = io.open "/proc/self/status"
    if not file then return 0 end
    local text = file:read "a"
    file:close()
    return tonumber(text:match "VmHWM:%s*(%d+) kB")
  end

  -- Up to four tokens, alone or as an embedding.
  local function run(model)
    local ids = {}
    for i = 1, math.min(4, model.context) do ids[i] = math.min(i, model.vocab_size - 1) end
    assert(model.has_head and model:logits(ids) or model:embed(ids, { pooling = "mean" })):close()
  end

  -- The message of a refusal; nil where the file was taken, and ran.
  local function refusal(bytes)
    local file = assert(io.open(path, "wb"))
    file:write(bytes)
    file:close()
    for i, device in ipairs { "reference", "cpu" } do
      local model <close>, message, code = kigo.load(path, { device = device, threads = 1 })
      if not model then
        if i > 1 then error("only this device refused it: " .. message, 0) end
        if code ~= FORMAT and code ~= UNSUPPORTED then error(("code %s: %s"):format(code, message), 0) end
        if message:sub(1, #path) ~= path or #message > 1280 or message:find "[\0-\31\127]" then error(message, 0) end
        return message:sub(#path + 1)
      end
      run(model)
    end
  end

  ---@class spec.WrongFile
  ---@field label string
  ---@field change fun(): spec.GgufParts|string
  ---@field names string[]?  one of them stands in the message
  ---@field may_run boolean?

  ---@param case spec.WrongFile
  local function try(case)
    local changed = case.change()
    local ok, message = pcall(refusal, type(changed) == "string" and changed or edit.write(changed))
    if not ok then error(("%s: %s"):format(case.label, message), 0) end
    if not message then
      if not case.may_run then error(case.label .. ": was taken", 0) end
      return
    end
    for _, name in ipairs(case.names) do
      if message:find(name, 1, true) then return end
    end
    error(("%s: what is wrong? %s"):format(case.label, message), 0)
  end

  -- ---- tensors ----

  -- What a file may lack and be a file of another model.
  local MAY_BE_MISSING = { ["output.weight"] = true, ["output.bias"] = true, ["rope_freqs.weight"] = true,
    ["output_norm.bias"] = true }
  -- Tables of tokens may have any number of rows in files without a tokenizer and with tied embeddings; of types the
  -- first is used; norms of heads may be shared.
  local function may_have_rows(parts, name)
    return name == "token_embd.weight" and parts.is_bare and parts.is_tied or name == "token_types.weight"
      or name == "position_embd.weight" or name:find "attn_[qk]_norm"
  end

  local function sizes_beside(size)
    return { 0, 1, size - 1, size + 1, size * 2, size // 2, 1 << 32, (1 << 62) + size, -1, math.mininteger }
  end

  local function tensor_cases(parts, add)
    local block_names = { "blk.", "tensor" }
    for i, tensor in ipairs(parts.tensors) do
      local name, dims = tensor.name, tensor.dims
      local names = { name, (name:gsub("%.weight$", "")), table.unpack(block_names) }
      local function case(label, changes, may_run)
        add { label = name .. " " .. label, names = names, may_run = may_run, change = function()
          return edit.with(parts, { tensors = edit.replaced(parts.tensors, i, changes and edit.with(tensor, changes)) })
        end }
      end
      case("missing", nil, MAY_BE_MISSING[name]
        or parts.architecture == "ernie4_5-moe" and name:find "exp_probs_b") -- and it is in one block only
      case("renamed", { name = name .. "x" })
      case("under another's name", { name = parts.tensors[i % #parts.tensors + 1].name })
      case("of a block that is not there", { name = "blk.99." .. name })
      for d, size in ipairs(dims) do
        for _, other in ipairs(sizes_beside(size)) do
          if other ~= size then
            case(("of size %d for %d"):format(other, size), { dims = edit.replaced(dims, d, other) },
              d == 2 and may_have_rows(parts, name))
          end
        end
      end
      if #dims > 1 then
        if dims[1] ~= dims[2] then case("turned", { dims = { dims[2], dims[1], dims[3] } }) end
        case("flat", { dims = { dims[1] * dims[2] * (dims[3] or 1) } })
      end
      case("with more dimensions", { dims = { dims[1], dims[2] or 1, dims[3] or 1, 2 } })
      case("with none", { dims = {} })
      for number = 0, 43 do
        if number ~= tensor.type then case("of type " .. number, { type = number }, true) end
      end
      for _, offset in ipairs { 1, -32, #parts.data, 1 << 62, math.mininteger } do
        case("at offset " .. offset, { offset = offset })
      end
    end
    local first = parts.tensors[1]
    for _, extra in ipairs { "extra.weight", "blk.0.extra.weight", "blk.0.attn_q.scale", first.name } do
      add { label = "one more: " .. extra, names = { extra }, change = function()
        return edit.with(parts, { tensors = edit.replaced(parts.tensors, #parts.tensors + 1,
          edit.with(first, { name = extra })) })
      end }
    end
  end

  -- ---- keys ----

  local function raw(type_name, value)
    local number, format = table.unpack(build.types[type_name])
    return string.pack("<I4", number) .. string.pack(format, value)
  end

  local function raw_array(type_name, ...)
    local number, format = table.unpack(build.types[type_name])
    local out = { string.pack("<I4I4I8", 9, number, select("#", ...)) }
    for i, value in ipairs { ... } do out[i + 1] = string.pack(format, value) end
    return table.concat(out)
  end

  local VALUES = {
    { "i32", -1 }, { "u32", 0 }, { "u32", 1 }, { "u32", 3 }, { "u32", 0xFFFFFFFF }, { "u64", -1 }, { "u64", 1 << 40 },
    { "i64", math.mininteger }, { "f32", 0.0 }, { "f32", -1.0 }, { "f32", 0 / 0 }, { "f32", math.huge },
    { "f32", -math.huge }, { "f32", 1e38 }, { "f32", 1e-38 }, { "f64", 1e300 }, { "bool", 0 }, { "bool", 1 },
    { "string", "" }, { "string", "x" }, { "string", ("long"):rep(2000) }, { "string", "a\n\0\xFFb" },
  }

  -- Rows of hyperparameters by key.
  local function rows_of(architecture)
    local family, by_key = assert(arch.named(architecture)), {}
    for _, row in ipairs(hyperparameters.merged(family.rows)) do by_key[architecture .. "." .. row.key] = row end
    return by_key
  end

  -- May a hyperparameter have this value, as far as its own row tells?
  local function is_allowed(row, type_name, value)
    if not row then return true end
    local is_number = type_name ~= "bool" and type_name ~= "string"
    if row.type == "boolean" then return type_name == "bool" end
    if row.type == "string" then return type_name == "string" end
    if not is_number or row.type == "integer" and math.type(value) ~= "integer" then return false end
    if type_name == "u64" and value < 0 then return false end
    return not row.min or value >= row.min and value <= row.max
  end

  local function key_cases(parts, add)
    local rows = rows_of(parts.architecture)
    for i, entry in ipairs(parts.entries) do
      local row, key = rows[entry.key], entry.key
      local is_architecture = key == "general.architecture"
      local is_free = not row and not is_architecture -- of a tokenizer, or of no use to us
      local names = { key, key:match "^tokenizer%." and "tokenizer" or parts.architecture .. ".", "blk.", "tensor" }
      local function case(label, bytes, may_run)
        add { label = key .. " " .. label, names = names, may_run = may_run, change = function()
          return edit.with(parts, { entries = edit.replaced(parts.entries, i, bytes and
            { key = key, raw = bytes }) })
        end }
      end
      case("missing", nil, is_free or row and row.default ~= nil)
      for _, value in ipairs(VALUES) do
        if not is_architecture or value[1] ~= "string" then
          case(("= %s %s"):format(value[1], tostring(value[2]):sub(1, 20)), raw(value[1], value[2]),
            is_free or row and is_allowed(row, value[1], value[2]))
        end
      end
      case("= an empty array", raw_array "u32", is_free)
      case("= an array", raw_array("u32", 1, 2, 3), is_free)
      case("= texts", raw_array("string", "a", "b"), is_free)
      case("of an unknown type", string.pack("<I4", 77) .. entry.raw:sub(5))
      case("= an array of arrays", string.pack("<I4I4I8", 9, 9, 1) .. raw_array "u32":sub(5))
      case("= an array that is longer than the file", raw_array "u8":sub(1, 8) .. string.pack("<I8", 1 << 40))
      if entry.is_array then
        case("with one less", entry.raw:sub(1, 8) .. string.pack("<I8", entry.count - 1)
          .. entry.raw:sub(17, -1 - entry.last_size), true)
      end
    end
    add { label = "a key twice", names = { parts.entries[2].key }, change = function()
      return edit.with(parts, { entries = edit.replaced(parts.entries, #parts.entries + 1, parts.entries[2]) })
    end }
  end

  -- ---- shorter files ----

  local function cut_cases(bytes, parts, add)
    local head = #bytes - #parts.data
    local step = math.max(1, #parts.data // 50)
    local function case(n)
      add { label = "cut to " .. n, names = { ": " }, change = function() return bytes:sub(1, n) end }
    end
    for n = 0, head - 1 do case(n) end
    for n = head, #bytes - 1, step do case(n) end
    case(#bytes - 1)
  end

  -- ---- all files ----

  local function read(bytes)
    local parts = edit.read(bytes)
    parts.is_bare, parts.is_tied = true, true
    for _, entry in ipairs(parts.entries) do
      if entry.key == "general.architecture" then parts.architecture = entry.value end
      if entry.key == "tokenizer.ggml.tokens" then parts.is_bare = false end
    end
    for _, tensor in ipairs(parts.tensors) do
      if tensor.name == "output.weight" then parts.is_tied = false end
    end
    return parts
  end

  local function files()
    local list = {}
    for _, name in ipairs(require "spec.families") do list[#list + 1] = "spec/fixtures/families/" .. name .. ".gguf" end
    for _, name in ipairs { "llama", "qwen2", "mixtral", "llama256_q4_0", "llama256_q4_k_m", "qwen3", "phi3", "gpt2",
      "gemma2", "gemma3", "gptoss", "gptoss_mxfp4", "stories260K" } do
      if support.shared then list[#list + 1] = support.shared .. "/fixtures/models/" .. name .. ".gguf" end
    end
    return list
  end

  local offset = 0 -- each file begins with another case
  for _, file in ipairs(files()) do
    it("is refused in clear words, or runs: " .. file:match "[^/]*$", function()
      local bytes = support.read(file)
      local parts, before, number, wrong = read(bytes), peak_kilobytes(), offset, {}
      offset = offset + 37
      for _, make in ipairs { tensor_cases, key_cases, function(p, add) cut_cases(bytes, p, add) end } do
        make(parts, function(case)
          number = number + 1
          if number % ONE_IN ~= 0 then return end
          local ok, message = pcall(try, case)
          if not ok then wrong[#wrong + 1] = message end
        end)
      end
      assert.equal("", table.concat(wrong, "\n"))
      local growth = peak_kilobytes() - before
      assert.is_true(growth < MAX_GROWTH, ("memory grew by %d kB"):format(growth))
    end)
  end
end)
