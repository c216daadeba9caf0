-- Latent attention and what it is made of: values that are a part of the keys or narrower than them, products with a
-- weight per head, parts of groups and groups put together. That they compute the right thing is in families_spec, by
-- models of transformers; here they are the same bits however rows are cut, in files, forks and when memory is short.
describe("latent attention", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local support = require "spec.support"
  local tiny = require "spec.tiny"

  local HIDDEN, HEADS, RANK, TURN, PLAIN, VALUE = 32, 6, 32, 8, 32, 10
  local dice = tiny.dice(5)

  local function quantized(name, shape)
    local values = {}
    for i = 1, shape[1] * shape[2] * (shape[3] or 1) do values[i] = (dice(2001) - 1001) / 1000 / shape[1] ^ 0.5 end
    return { name = name, shape = shape, type = 8, bytes = core.quantize("Q8_0", support.pack_floats(values)) }
  end

  local file = build.random({ ["general.architecture"] = "none" }, {
    { name = "embd", shape = { HIDDEN, tiny.vocab } }, { name = "norm", shape = { RANK } },
    { name = "q", shape = { HIDDEN, HEADS * (PLAIN + TURN) } }, { name = "kv", shape = { HIDDEN, RANK + TURN } },
    quantized("k_b", { PLAIN, RANK, HEADS }), { name = "v_b", shape = { RANK, VALUE, HEADS } },
    { name = "kv_b", shape = { RANK, HEADS * (PLAIN + VALUE) } }, { name = "o", shape = { HEADS * VALUE, HIDDEN } },
    { name = "head_norm", shape = { PLAIN, HEADS } }, { name = "head_bias", shape = { PLAIN, HEADS } },
    { name = "sinks", shape = { HEADS } },
  })
  local rope = { style = "pairs", head_dim = TURN, inverse_freqs = { 1, 0.1, 0.01, 0.001 } }

  -- Two blocks: the first caches the short row, the second makes keys and narrow values of it, with a window and sinks.
  local function make_plan()
    local gguf <close> = assert(core.parse_gguf(file, "latent"))
    local p = assert(core.plan(gguf))
    local function turned(name, x, heads)
      local full = { heads = heads }
      for key, value in pairs(rope) do full[key] = value end
      return p:rope(name, x, full)
    end
    local x = p:embed("x", p:weight "embd")
    for i = 1, 2 do
      local function n(name) return name .. i end
      local all, kv = p:linear(n "q", x, p:weight "q"), p:linear(n "kv", x, p:weight "kv")
      local q = p:slice(n "q_plain", all, 0, PLAIN, HEADS)
      q = p:norm(n "q_norm", q, p:weight "head_norm", p:weight "head_bias",
        { epsilon = 1e-5, groups = HEADS, subtract_mean = i == 2 })
      local q_turned = turned(n "q_turned", p:slice(n "q_turning", all, PLAIN, TURN, HEADS), HEADS)
      local row = p:norm(n "row", p:slice(n "row_raw", kv, 0, RANK), p:weight "norm", nil, { epsilon = 1e-5 })
      local k_turned = turned(n "k_turned", p:slice(n "k_turning", kv, RANK, TURN), 1)
      local a
      if i == 1 then
        local k = p:concat(n "k", row, k_turned)
        a = p:attention(n "a", p:concat(n "q_all", p:linear_each(n "q_b", q, p:weight "k_b"), q_turned, HEADS), k, nil,
          nil, { heads = HEADS, kv_heads = 1, head_dim = RANK + TURN, value_dim = RANK, scale = 0.2 })
        a = p:linear_each(n "v_b", a, p:weight "v_b")
      else
        local both = p:linear(n "kv_b", row, p:weight "kv_b")
        local k = p:concat(n "k", p:slice(n "k_plain", both, 0, PLAIN, HEADS), k_turned, HEADS, true)
        a = p:attention(n "a", p:concat(n "q_all", q, q_turned, HEADS), k,
          p:slice(n "v", both, PLAIN, VALUE, HEADS), p:weight "sinks",
          { heads = HEADS, kv_heads = HEADS, head_dim = PLAIN + TURN, value_dim = VALUE, window = 30 })
      end
      x = p:add(n "out", x, p:linear(n "o", a, p:weight "o"))
    end
    assert(p:finish(p:linear("logits", x, p:weight "embd"), 1024))
    return p
  end

  local function open(options)
    local plan <close> = make_plan()
    return assert(core.model(plan, options))
  end

  local function with(options, changes)
    local all = {}
    for _, source in ipairs { options, changes } do
      for key, value in pairs(source) do all[key] = value end
    end
    return all
  end

  local devices = { { name = "reference", options = { device = "reference" }, n = 90 } }
  for _, variant in ipairs(core.kernel_variants()) do
    for _, kv in ipairs { "f32", "f16" } do
      local options = { device = "cpu", variant = variant, kv = kv, threads = 1 }
      table.insert(devices, { name = ("cpu as %s, cache %s"):format(variant, kv), options = options, n = 530 })
    end
  end

  for _, kv in ipairs(tiny.has_gpu and { "f32", "f16" } or {}) do
    table.insert(devices, { name = "cuda, cache " .. kv, options = { device = "cuda", kv = kv }, n = 530 })
  end
  local kinds = { "reference", "cpu", tiny.has_gpu and "cuda" or nil }

  local function bytes_of(device, changes, ids)
    local model <close> = open(with(device.options, changes))
    local logits <close> = assert(model:logits(ids))
    return logits:bytes()
  end

  for _, device in ipairs(devices) do
    local ids = tiny.ids(device.n, 7)

    it("gives the same bits however the prompt is cut: " .. device.name, function()
      local whole = bytes_of(device, { chunk = 512 }, ids)
      for _, chunk in ipairs { 1, 9, 100, 257 } do
        assert.is_true(whole == bytes_of(device, { chunk = chunk }, ids), "chunks of " .. chunk)
      end
      assert.is_true(whole == bytes_of(device, { chunk = 60, threads = 3 }, ids), "three threads")
    end)

    it("goes on from forks, rewinds and files with the same bits: " .. device.name, function()
      local model <close> = open(device.options)
      local path = os.tmpname()
      finally(function() os.remove(path) end)
      local n = math.min(device.n, 300)
      local function row_of(seq)
        seq:feed { table.unpack(ids, seq:pos() + 1, n) }
        return seq.logits:bytes()
      end
      local first <close> = model:sequence {}
      local wanted = row_of(first)
      local seq <close> = model:sequence {}
      seq:feed { table.unpack(ids, 1, n - 20) }
      assert(seq:step())
      assert(seq:save(path))
      local fork <close> = seq:fork()
      local restored <close> = assert(model:restore(path))
      seq:feed { 1, 2, 3, 4, 5 }
      assert(seq:step())
      seq:rewind(n - 33)
      for _, one in ipairs { fork, restored, seq } do assert.is_true(wanted == row_of(one)) end
    end)

    it("shows every value, with the same logits: " .. device.name, function()
      local model <close> = open(device.options)
      local some = table.move(ids, 1, 40, 1, {})
      local logits <close> = assert(model:logits(some))
      local trace = assert(model:trace(some, { "q_all1", "k1", "v_b1", "v2", "logits" }))
      assert.is_true(logits:bytes() == trace.logits:bytes())
      -- the turned key is the same at the end of every head's
      local k = model:trace(some, { "k2", "k_turned2" })
      for _, row in ipairs { 0, 39 } do
        local all, turned = k.k2:row(row):totable(), k.k_turned2:row(row):totable()
        for h = 0, HEADS - 1 do
          for c = 1, TURN do assert.equal(turned[c], all[h * (PLAIN + TURN) + PLAIN + c]) end
        end
      end
    end)
  end

  it("is the same everywhere as by definition, over several splits", function()
    local ids = tiny.ids(530, 7)
    local exact <close> = open { device = "reference" }
    local wanted <close> = assert(exact:logits(ids))
    for _, device in ipairs(devices) do
      local model <close> = open(device.options)
      local logits <close> = assert(model:logits(ids))
      local tolerance = device.options.kv == "f16" and 2e-2 or 2e-3
      for _, row in ipairs { 0, 255, 256, 300, 529 } do
        local a, b = wanted:row(row):totable(), logits:row(row):totable()
        for c = 1, #a do assert.near(a[c], b[c], tolerance) end
      end
    end
  end)

  it("holds the keys alone", function()
    for _, device in ipairs(kinds) do
      local model <close> = open { device = device, kv = "f32" }
      local seq <close> = model:sequence {}
      seq:feed { 1 }
      assert(seq:step())
      local stats, floats = model:stats(), { RANK + TURN, HEADS * (PLAIN + TURN + VALUE) }
      if device == "cpu" then floats[2] = floats[2] + HEADS * (16 - VALUE) end -- whole vectors
      for i, group in ipairs(stats.page_groups) do assert.equal(floats[i] * 4 * stats.page, group.page_bytes) end
    end
  end)

  it("survives every failed allocation", function()
    for _, device in ipairs(kinds) do
      local open_and_run = tiny.runner(tiny.ids(12), { device = device, threads = 1, ctx = 64 })
      local n = tiny.fail_each_allocation(make_plan, open_and_run, function(plan) plan:close() end)
      assert.is_true(n > 50)
    end
  end)
end)
