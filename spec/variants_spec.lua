-- Forms of the same model in a file: with the head tied or separate, in several files, its tensors in any mixture of
-- types, with more rows than tokens. Each beside its plain twin.
describe("a model file", function()
  local build = require "spec.gguf_build"
  local core = require "kigo.core"
  local edit = require "spec.gguf_edit"
  local kigo = require "kigo"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local traffic = require "kigo.traffic"

  local IDS = { 5, 17, 60, 3, 44, 8 }
  local paths
  before_each(function() paths = {} end)
  after_each(function()
    for _, path in ipairs(paths) do os.remove(path) end
  end)

  local function write(bytes, path)
    path = path or os.tmpname()
    paths[#paths + 1] = path
    assert(io.open(path, "wb")):write(bytes):close()
    return path
  end

  local function open(path, device)
    local options = { threads = 1, prefix_cache = false }
    for key, value in pairs(device.options) do options[key] = value end
    return assert(kigo.load(path, options))
  end

  -- Logits of a prompt, and what three steps more lead to.
  local function results(path, device)
    local model <close> = open(path, device)
    local all <close> = assert(model:logits(IDS))
    local seq <close> = assert(model:sequence())
    assert(seq:feed(IDS))
    local parts = { all:bytes() }
    for i = 1, 3 do
      parts[i + 1] = seq.logits:bytes()
      assert(seq:push((seq.logits:argmax())))
    end
    return table.concat(parts)
  end

  local function find(parts, name)
    for i, tensor in ipairs(parts.tensors) do
      if tensor.name == name then return i, tensor end
    end
  end

  local function without(parts, name)
    return edit.with(parts, { tensors = edit.replaced(parts.tensors, (assert(find(parts, name)))) })
  end

  local function entry_index(parts, key)
    for i, entry in ipairs(parts.entries) do
      if entry.key == key then return i end
    end
  end

  local FAMILIES = "spec/fixtures/families/"

  for _, device in ipairs(tiny.devices) do
    it("with a head of its own computes what a tied one does: " .. device.name, function()
      local parts = edit.read(support.read(FAMILIES .. "granite.gguf"))
      local table_of = select(2, find(parts, "token_embd.weight"))
      local bytes = parts.data:sub(table_of.offset + 1, table_of.offset + table_of.dims[1] * table_of.dims[2] * 2)
      local data = parts.data .. ("\0"):rep(-#parts.data % 32)
      local separate = edit.with(parts, { data = data .. bytes, tensors = edit.replaced(parts.tensors,
        #parts.tensors + 1, edit.with(table_of, { name = "output.weight", offset = #data })) })
      local tied = results(write(edit.write(parts)), device)
      assert.is_true(tied == results(write(edit.write(separate)), device))
      -- and one that is different makes a difference
      separate.data = data .. bytes:reverse()
      assert.is_false(tied == results(write(edit.write(separate)), device))
    end)
  end

  -- ---- experts one by one ----

  -- As old converters wrote mixtures: a tensor for each expert, those of one expert side by side.
  local function one_by_one(parts)
    local tensors, data, at = {}, {}, 0
    local function add(tensor, bytes, changes)
      tensors[#tensors + 1] = edit.with(tensor, edit.with(changes, { offset = at }))
      data[#data + 1] = bytes .. ("\0"):rep(-#bytes % 32)
      at = at + #data[#data]
    end
    local experts = {}
    for _, tensor in ipairs(parts.tensors) do
      local n = 4
      for _, size in ipairs(tensor.dims) do n = n * size end
      local bytes, role = parts.data:sub(tensor.offset + 1, tensor.offset + n), tensor.name:match "^(.*)_exps%.weight$"
      if role then experts[#experts + 1] = { role, tensor, bytes } else add(tensor, bytes, {}) end
    end
    for e = 0, experts[1][2].dims[3] - 1 do
      for _, row in ipairs(experts) do
        local role, tensor, bytes = table.unpack(row)
        local size = #bytes // tensor.dims[3]
        add(tensor, bytes:sub(e * size + 1, (e + 1) * size), { name = ("%s.%d.weight"):format(role, e),
          dims = { tensor.dims[1], tensor.dims[2] } })
      end
    end
    return edit.with(parts, { tensors = tensors, data = table.concat(data) })
  end

  for _, device in ipairs(tiny.devices) do
    it("with a tensor for each expert is the same model: " .. device.name, function()
      local path = support.fixture "models/mixtral.gguf"
      local parts = one_by_one(edit.read(support.read(path)))
      local made = write(edit.write(parts))
      assert.is_true(results(path, device) == results(made, device))
      local model <close> = open(made, device)
      local file <close> = assert(core.open_gguf(path))
      for _, count in ipairs { traffic.tensor_bytes, traffic.flops } do
        assert.same({ count(file) }, { count(model.gguf) })
      end
      if device.options.device == "cuda" then assert.is_nil(assert(model:check_weights()).differs) end
      assert.truthy(require "kigo.bench.experts".all(model) > 0)
      assert.is_true(model:scramble("blk.1.", 7) > 0)
    end)
  end

  it("with a tensor for each expert is refused without one of them, or with one of another kind", function()
    local parts = one_by_one(edit.read(support.read(support.fixture "models/mixtral.gguf")))
    local i, tensor = find(parts, "blk.1.ffn_up.2.weight")
    for _, case in ipairs { { nil, "blk.1.ffn_up.2.weight" }, { { type = 1 }, "blk.1.ffn_up.2.weight" },
      { { dims = { tensor.dims[1], tensor.dims[2] // 2 } }, "blk.1.ffn_up.2.weight" },
      { { name = "blk.1.ffn_up.9.weight" }, "blk.1.ffn_up.2.weight" },
      { { dims = { tensor.dims[1], tensor.dims[2], 1 }, name = "blk.1.ffn_up_exps.weight" }, "blk.1.ffn_up_exps" } } do
      local changed = edit.with(parts, { tensors = edit.replaced(parts.tensors, i, case[1] and edit.with(tensor,
        case[1])) })
      local model, message, code = kigo.load(write(edit.write(changed)))
      assert.is_nil(model)
      assert.is_true(code == kigo.err.FORMAT or code == kigo.err.UNSUPPORTED)
      assert.truthy(message:find(case[2], 1, true), message)
    end
  end)

  -- ---- split files ----

  -- Files of the parts; the i-th has the tensors whose number modulo `n` is i - 1, the first one all other metadata.
  local function split(parts, n, first_is_bare)
    local stem = os.tmpname()
    paths[#paths + 1] = stem
    local files = {}
    for i = 1, n do
      local entries, tensors, data, at = {}, {}, {}, 0
      if i == 1 then table.move(parts.entries, 1, #parts.entries, 1, entries) end
      for _, row in ipairs { { "split.no", "u16", i - 1 }, { "split.count", "u16", n },
        { "split.tensors.count", "i32", #parts.tensors } } do
        entries[#entries + 1] = { key = row[1], raw = build.entry(table.unpack(row)):sub(9 + #row[1]) }
      end
      for k, tensor in ipairs(parts.tensors) do
        local home = first_is_bare and k % (n - 1) + 2 or k % n + 1
        if home == i then
          local following = #parts.data
          for _, other in ipairs(parts.tensors) do
            if other.offset > tensor.offset and other.offset < following then following = other.offset end
          end
          local bytes = parts.data:sub(tensor.offset + 1, following)
          bytes = bytes .. ("\0"):rep(-#bytes % parts.alignment)
          tensors[#tensors + 1] = edit.with(tensor, { offset = at })
          data[#data + 1], at = bytes, at + #bytes
        end
      end
      files[i] = write(edit.write { entries = entries, tensors = tensors, data = table.concat(data),
        alignment = parts.alignment }, ("%s-%05d-of-%05d.gguf"):format(stem, i, n))
    end
    return files
  end

  for _, name in ipairs { "deepseek2_v3", "qwen2moe", "gemma" } do
    it("in parts is the same model as in one: " .. name, function()
      local parts = edit.read(support.read(FAMILIES .. name .. ".gguf"))
      for _, device in ipairs { tiny.devices[1], tiny.devices[2] } do
        local whole = results(FAMILIES .. name .. ".gguf", device)
        assert.is_true(whole == results(split(parts, 3)[1], device))
        assert.is_true(whole == results(split(parts, 2, true)[1], device)) -- metadata alone in the first
        assert.is_true(whole == results(split(parts, 1)[1], device))
      end
      local files = split(parts, 3)
      local model, message, code = kigo.load(files[2])
      assert.is_nil(model)
      assert.equal(kigo.err.UNSUPPORTED, code)
      assert.truthy(message:find("first", 1, true), message)
      os.remove(files[3])
      model, message, code = kigo.load(files[1])
      assert.is_nil(model)
      assert.equal(kigo.err.IO, code)
      assert.truthy(message:find(files[3], 1, true), message)
    end)
  end

  -- ---- mixtures ----

  local function all_types()
    local list = {}
    for name, info in pairs(core.types()) do
      if info.computable then list[#list + 1] = name end
    end
    table.sort(list)
    return list
  end

  -- The file with every matrix in a type of its own, as the dice fall.
  local function mixed(path, seed)
    local to, dice, types, rules = write "", tiny.dice(seed), all_types(), {}
    local gguf <close> = assert(kigo.open_gguf(path))
    for _, tensor in ipairs(gguf:tensors()) do
      if #tensor.shape > 1 and not tensor.name:find "ffn_gate_inp" then
        rules[#rules + 1] = { "^" .. tensor.name:gsub("%p", "%%%0") .. "$", types[dice(#types)] }
      end
    end
    assert(kigo.quantize.file(path, to, { type = "f16", tensors = rules }))
    return to
  end

  for _, name in ipairs { "llama256_q8_0", "mixtral", "qwen2" } do
    for seed = 1, math.tointeger(os.getenv "KIGO_MIXTURES" or "") or 3 do
      it(("of any mixture of types gives the reference's logits: %s, %d"):format(name, seed), function()
        local path = mixed(support.fixture("models/" .. name .. ".gguf"), seed)
        local seen = {}
        do
          local gguf <close> = assert(kigo.open_gguf(path))
          for _, tensor in ipairs(gguf:tensors()) do seen[tensor.type] = true end
        end
        local n_types = 0
        for _ in pairs(seen) do n_types = n_types + 1 end
        assert.is_true(n_types > 4)
        local reference <close> = open(path, { options = { device = "reference", kv = "f32" } })
        local wanted <close> = assert(reference:logits(IDS))
        for _, device in ipairs { "cpu", tiny.has_gpu and "cuda" or nil } do
          local model <close>, message, code = kigo.load(path, { device = device, kv = "f32" })
          if model then
            local got <close> = assert(model:logits(IDS))
            local _, relative = model_fixtures.difference(got:bytes(), wanted:bytes())
            assert.is_true(relative < 5e-3, ("%s: %g"):format(device, relative))
          else -- experts with gates and ups of two kinds of types on a GPU
            assert.equal("cuda", device)
            assert.equal(kigo.err.UNSUPPORTED, code)
            assert.truthy(message:find "experts", message)
          end
        end
      end)
    end
  end

  -- ---- vocabularies ----

  -- The fixture with this many tokens: it has 320 rows, of which those from 299 on are padding.
  local function with_tokens(parts, n)
    for _, key in ipairs { "tokenizer.ggml.tokens", "tokenizer.ggml.token_type" } do
      local i = assert(entry_index(parts, key))
      local values, entry = {}, parts.entries[i]
      local gguf <close> = assert(core.parse_gguf(edit.write(parts), "spec"))
      local old = gguf:get(key)
      for id = 1, n do values[id] = old[id] or (entry.type == "string" and "more" .. id or 1) end
      parts = edit.with(parts, { entries = edit.replaced(parts.entries, i,
        { key = key, raw = build.array(key, entry.type, values):sub(9 + #key) }) })
    end
    return parts
  end

  -- And with a head that likes id 310 better than all others: its row is twice that of the best id.
  local function tempted(parts)
    local head = assert(select(2, find(parts, "output.weight")))
    local row = head.dims[1] * 4
    local function at(id) return head.offset + id * row end
    local values = support.floats(parts.data:sub(at(42) + 1, at(42) + row))
    for i, value in ipairs(values) do values[i] = 50 * value end
    for _, id in ipairs { 310, 311 } do
      for i, value in ipairs(values) do values[i] = -value end -- one of the two is large, whatever the row
      parts = edit.with(parts, { data = parts.data:sub(1, at(id)) .. support.pack_floats(values)
        .. parts.data:sub(at(id) + row + 1) })
    end
    return parts
  end

  for _, device in ipairs(tiny.devices) do
    it("with more rows than tokens ends with its last token: " .. device.name, function()
      local parts = tempted(edit.read(support.read(support.fixture "models/llama.gguf")))
      local n = 299
      local full <close> = open(write(edit.write(parts)), device)
      local model <close> = open(write(edit.write(with_tokens(parts, n))), device)
      assert.equal(320, full.vocab_size)
      assert.equal(n, model.vocab_size)
      assert.equal(n, model.tokenizer.size)
      local wanted <close> = assert(full:logits(IDS))
      local got <close> = assert(model:logits(IDS))
      local n_tempted = 0
      for row = 0, #IDS - 1 do
        assert.is_true(wanted:row(row):bytes():sub(1, 4 * n) == got:row(row):bytes())
        if wanted:row(row):argmax() >= n then n_tempted = n_tempted + 1 end
      end
      assert.is_true(n_tempted > 0)
      -- never drawn, by whomever, alone and together, ahead of the caller or not
      local chain <close> = kigo.chain { kigo.temp(3), kigo.dist() }
      local ids = {}
      for seed = 1, 3 do
        local seq <close> = assert(model:sequence { seed = seed })
        assert(seq:feed(IDS))
        for _ = 1, 20 do
          local id = assert(seq:draw(chain, 8))
          ids[#ids + 1] = id
          assert(seq:push(id))
          ids[#ids + 1] = (seq.logits:argmax())
        end
        local result = assert(seq:generate { max = 16, temp = 2, top_k = 0 })
        table.move(result.ids, 1, #result.ids, #ids + 1, ids)
      end
      for _, id in ipairs(ids) do assert.is_true(id < n, id) end
      local seq <close> = assert(model:sequence())
      assert.has_error(function() seq:feed { n } end)
      local lens = model:trace(IDS, "blk.1.out", function(x) return model:unembed(x):bytes() end)
      assert.equal(#IDS * n * 4, #lens["blk.1.out"])
    end)
  end

  it("with fewer rows than tokens is refused", function()
    local parts = edit.read(support.read(support.fixture "models/qwen2.gguf"))
    local path = write(edit.write(with_tokens(parts, 321)))
    local model, message, code = kigo.load(path)
    assert.is_nil(model)
    assert.equal(kigo.err.FORMAT, code)
    for _, text in ipairs { path, "tokenizer.ggml.tokens", "321", "token_embd.weight", "320" } do
      assert.truthy(message:find(text, 1, true), message)
    end
    assert.is_nil((kigo.load(path, { tokenizer = false })))
  end)

  it("without a head of its own and without embeddings is refused", function()
    local parts = without(edit.read(support.read(FAMILIES .. "gptneox.gguf")), "output.weight")
    local model, message, code = kigo.load(write(edit.write(parts)))
    assert.is_nil(model)
    assert.equal(kigo.err.FORMAT, code)
    assert.truthy(message:find("output.weight", 1, true))
  end)
end)
