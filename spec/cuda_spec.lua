describe("the cuda backend", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = core.err

  it("is refused by name where there is none, and auto says why it is not used", function()
    if tiny.has_gpu then
      local model <close> = tiny.model { device = "auto" }
      assert.equal("cuda", model:stats().device)
      assert.equal("", model:stats().note)
    else
      local plan <close> = tiny.plan()
      local model, _, code = core.model(plan, { device = "cuda" })
      assert.is_nil(model)
      assert.is_true(code == err.DEVICE or code == err.UNSUPPORTED)
      local other <close> = tiny.model { device = "auto" }
      assert.equal("cpu", other:stats().device)
      -- A build without CUDA has not looked for a GPU, and has nothing to say.
      assert.equal(code == err.DEVICE, other:stats().note:find "^no GPU: " ~= nil)
      assert.equal("", tiny.model { device = "cpu" }:stats().note)
    end
    local plan <close> = tiny.plan()
    for _, name in ipairs { "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cudas", "cuda:100000000000" } do
      local model, _, code = core.model(plan, { device = name })
      assert.is_nil(model)
      assert.equal(err.UNSUPPORTED, code)
    end
    local model, _, code = core.model(plan, { device = "cuda:99" })
    assert.is_nil(model)
    assert.is_true(code == err.DEVICE or code == err.UNSUPPORTED)
  end)

  it("alone has a device that can be asked", function()
    local model <close> = tiny.model { device = "cpu" }
    local seq <close> = model:sequence {}
    seq:push(1)
    for _, ask in ipairs { model.device_info, model.device_rates, model.set_timing, model.check_weights } do
      local answer, _, code = ask(model)
      assert.is_nil(answer)
      assert.equal(err.UNSUPPORTED, code)
    end
    assert.equal(err.UNSUPPORTED, (select(3, model:profile { seq })))
    assert.equal(0, model:stats().n_timed)
  end)

  if not tiny.has_gpu then
    it("computes what the reference computes #gpu", function() pending "there is no GPU here" end)
    return
  end

  -- Float32 weights meet the fixtures' 1e-3 and 1e-4 with room; others are multiplied as f16, and so are activations.
  describe("#gpu", function()
    model_fixtures.declare({ device = "cuda" }, 1e-4, 1e-5, { "llama", "qwen2", "mixtral" })
    model_fixtures.declare({ device = "cuda" }, 0.05, 5e-3,
      { "llama256_q4_0", "llama256_q8_0", "llama256_q4_k_m", "haiku", "qwen3", "phi3", "gpt2", "gemma2",
      "gemma3", "gptoss", "gptoss_mxfp4" })

    it("multiplies, alone or with others, what was made long before", function()
      local bytes, list = support.read(support.fixture "quants/F16.blocks.bin"), { { name = "n", shape = { 32 } } }
      for i, name in ipairs { "embd", "near", "far" } do
        list[#list + 1] = { name = name, shape = { 32, 32 }, type = 1, bytes = bytes:sub(2048 * i - 2047, 2048 * i) }
      end
      local file = build.random({ ["general.architecture"] = "none" }, list)
      local function open(options)
        local gguf <close> = assert(core.parse_gguf(file, "spec"))
        local plan <close> = assert(core.plan(gguf))
        local function weight(name) return assert(plan:weight(name)) end
        local h = plan:norm("h", plan:embed("x", weight "embd"), weight "n", nil, { epsilon = 1e-5 })
        local near = plan:linear("near", h, weight "near")
        for i = 1, 40 do near = plan:act("act" .. i, near, "relu") end
        assert(plan:finish(plan:add("sum", near, plan:linear("far", h, weight "far")), 64))
        return assert(core.model(plan, options))
      end
      local ids = {}
      for i = 1, 20 do ids[i] = i end
      local reference <close> = open { device = "reference" }
      local model <close> = open { device = "cuda" }
      local single <close> = open { device = "cuda", chunk = 1 }
      local wanted, got, alone = assert(reference:logits(ids)), assert(model:logits(ids)), assert(single:logits(ids))
      local max, relative = model_fixtures.difference(got:bytes(), wanted:bytes())
      assert.is_true(relative < 1e-3, ("%g, relative %g"):format(max, relative))
      assert.is_true(got:bytes() == alone:bytes())
    end)

    describe("computes with", function()
      local COLS, ROWS = 512, 16
      local numbers = { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11,
        Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39 }

      for name, number in pairs(numbers) do
        it(name, function()
          local path = "quants/" .. (name == "F32" and "F16.values.f32" or name .. ".blocks.bin")
          local type_ = core.types()[name]
          local bytes = support.read(support.fixture(path)):sub(1, ROWS * COLS // type_.block_size * type_.block_bytes)
          local file = build.random({ ["general.architecture"] = "none" }, {
            { name = "w", shape = { COLS, ROWS }, type = number, bytes = bytes }, { name = "n", shape = { COLS } } })
          local ids = {}
          for i = 1, 40 do ids[i] = i * 7 % ROWS end
          local reference <close> = tiny.product(file, { device = "reference" })
          local model <close> = tiny.product(file, { device = "cuda" })
          local single <close> = tiny.product(file, { device = "cuda", chunk = 1 })
          local wanted, got = assert(reference:trace(ids, { "x" })), assert(model:trace(ids, { "x" }))
          local off = model_fixtures.difference(got.x:bytes(), wanted.x:bytes())
          assert.equal(0, off)
          wanted, got = assert(reference:logits(ids)), assert(model:logits(ids))
          local max, relative = model_fixtures.difference(got:bytes(), wanted:bytes())
          assert.is_true(relative < 1e-3, ("%g, relative %g"):format(max, relative))
          local alone <close> = assert(single:logits(ids))
          assert.is_true(got:bytes() == alone:bytes())
        end)

        it(name .. ", whose weights come back as the file has them", function()
          local path = "quants/" .. (name == "F32" and "F16.values.f32" or name .. ".blocks.bin")
          local type_ = core.types()[name]
          local blocks = support.read(support.fixture(path))
          for _, shape in ipairs { { 512, 16 }, { 256, 37 } } do
            local cols, rows = table.unpack(shape)
            local bytes = blocks:sub(1, rows * cols // type_.block_size * type_.block_bytes)
            local file = build.random({ ["general.architecture"] = "none" }, {
              { name = "w", shape = { cols, rows }, type = number, bytes = bytes }, { name = "n", shape = { cols } } })
            local model <close> = tiny.product(file, { device = "cuda" })
            local check = assert(model:check_weights())
            assert.is_nil(check.differs)
            assert.equal(check.file_sum, check.device_sum)
            assert.equal(#bytes + cols * 4, check.n_bytes)
            local dice = tiny.dice(number + 1)
            for _ = 1, 8 do
              local at, mask = dice(#bytes) - 1, 1 << (dice(8) - 1)
              if shape[2] == 16 then -- whole tiles: every one of the first bytes holds a part of some number
                assert(model:flip_weight("w", at // 2, mask))
                check = assert(model:check_weights())
                assert.equal("w", check.differs)
                assert.not_equal(check.file_sum, check.device_sum)
                assert(model:flip_weight("w", at // 2, mask))
              end
            end
            assert(model:flip_weight("n", 5, 64))
            assert.equal("n", assert(model:check_weights()).differs)
          end
        end)
      end
    end)

    describe("attends with", function()
      local N = 200
      ---One layer of attention in the given shape.
      local function open(shape, options)
        local tensors, q, kv = {}, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for name, size in pairs { w = { 32, 48 }, q = { 32, q }, k = { 32, kv }, v = { 32, kv }, o = { q, 32 },
          n = { 32 }, s = { shape.heads } } do
          tensors[#tensors + 1] = { name = name, shape = size }
        end
        table.sort(tensors, function(a, b) return a.name < b.name end)
        local file = build.random({ ["general.architecture"] = "none" }, tensors)
        local gguf <close> = assert(core.parse_gguf(file, "spec"))
        local plan <close> = assert(core.plan(gguf))
        local w = assert(plan:weight "w")
        local x = plan:norm("norm", plan:embed("x", w), assert(plan:weight "n"), nil, { epsilon = 1e-5 })
        local freqs = {}
        for i = 1, shape.head_dim // (shape.partly and 4 or 2) do freqs[i] = 1000 ^ (-i / shape.head_dim) end
        local function linear(name, input) return plan:linear(name, input, assert(plan:weight(name))) end
        local function turned(name, heads)
          return plan:rope(name .. "_rope", linear(name, x), { style = shape.style or "halves", heads = heads,
            head_dim = shape.head_dim, dims = 2 * #freqs, inverse_freqs = freqs })
        end
        local a = plan:attention("attn", turned("q", shape.heads), turned("k", shape.kv_heads), linear("v", x),
          shape.sinks and assert(plan:weight "s"), { heads = shape.heads, kv_heads = shape.kv_heads,
            head_dim = shape.head_dim, window = shape.window, softcap = shape.softcap, scale = 1 })
        assert(plan:finish(plan:linear("logits", linear("o", a), w), 256))
        return assert(core.model(plan, options))
      end

      for _, shape in ipairs {
        { heads = 14, kv_heads = 2, head_dim = 64 },
        { heads = 4, kv_heads = 4, head_dim = 80, window = 70, partly = true },
        { heads = 3, kv_heads = 1, head_dim = 96, softcap = 5, style = "pairs" },
        { heads = 20, kv_heads = 1, head_dim = 128, sinks = true },
        { heads = 4, kv_heads = 2, head_dim = 256, window = 20, sinks = true },
        { heads = 2, kv_heads = 1, head_dim = 192, softcap = 3 },
        { heads = 6, kv_heads = 2, head_dim = 24 },
        { heads = 4, kv_heads = 2, head_dim = 20 }, -- no tensor cores
      } do
        it(("%d heads on %d of %d"):format(shape.heads, shape.kv_heads, shape.head_dim), function()
          local ids = tiny.ids(N, shape.head_dim)
          local reference <close> = open(shape, { device = "reference" })
          local model <close> = open(shape, { device = "cuda", kv = "f16", chunk = 256 })
          local wanted, got = assert(reference:trace(ids, { "attn" })), assert(model:trace(ids, { "attn" }))
          local _, relative = model_fixtures.difference(got.attn:bytes(), wanted.attn:bytes())
          assert.is_true(relative < 2e-3, ("%g"):format(relative))
          local rows = tiny.oracle(model, ids)
          for _, chunk in ipairs { 1, 7, 19, 130 } do
            local other <close> = open(shape, { device = "cuda", kv = "f16", chunk = chunk })
            assert.same(rows, tiny.oracle(other, ids))
          end
          local seq <close> = model:sequence {}
          seq:feed(table.move(ids, 1, N - 10, 1, {}))
          for i = N - 9, N do
            seq:push(ids[i])
            assert.is_true(rows[i] == seq.logits:bytes())
          end
        end)
      end
    end)

    -- Mixtures give attn_v more bits: q, k and v are one launch where a single row is decoded, and two otherwise.
    for _, types in ipairs { { "q5_0", "q8_0" }, { "q4_k", "q6_k" }, { "q5_k", "q6_k" }, { "q6_k", "q4_k" },
      { "q4_0", "q8_0" } } do
      it(("multiplies one value with matrices of %s and %s"):format(types[1], types[2]), function()
        local tensors, codes = {}, { q4_0 = 2, q5_0 = 6, q8_0 = 8, q4_k = 12, q5_k = 13, q6_k = 14 }
        for _, t in ipairs { { "w", 256, 48 }, { "n", 256 }, { "q", 256, 80, types[1] }, { "k", 256, 16, types[1] },
          { "v", 256, 16, types[2] }, { "o", 80, 256 } } do
          local floats = {}
          for i = 1, t[4] and t[2] * t[3] or 0 do floats[i] = core.uniform(#tensors, i, 0) - 0.5 end
          tensors[#tensors + 1] = { name = t[1], shape = { t[2], t[3] }, type = codes[t[4]],
            bytes = t[4] and assert(core.quantize(t[4], string.pack(("<f"):rep(#floats), table.unpack(floats)))) }
        end
        local file = build.random({ ["general.architecture"] = "none" }, tensors)
        local function open(options)
          local gguf <close> = assert(core.parse_gguf(file, "spec"))
          local plan <close> = assert(core.plan(gguf))
          local function weight(name) return assert(plan:weight(name)) end
          local x = plan:norm("norm", plan:embed("x", weight "w"), weight "n", nil, { epsilon = 1e-5 })
          local function linear(name) return plan:linear(name, x, weight(name)) end
          local a = plan:attention("attn", linear "q", linear "k", linear "v", nil,
            { heads = 5, kv_heads = 1, head_dim = 16, scale = 0.25 })
          assert(plan:finish(plan:linear("logits", plan:linear("o", a, weight "o"), weight "w"), 256))
          return assert(core.model(plan, options))
        end
        local ids = tiny.ids(40, 3)
        local reference <close> = open { device = "reference" }
        local model <close> = open { device = "cuda", kv = "f16" }
        local wanted, got = assert(reference:trace(ids, { "attn" })), assert(model:trace(ids, { "attn" }))
        local _, relative = model_fixtures.difference(got.attn:bytes(), wanted.attn:bytes())
        assert.is_true(relative < 5e-3, ("%g"):format(relative))
        local rows = tiny.oracle(model, ids)
        local seq <close> = model:sequence {}
        for i, id in ipairs(ids) do
          seq:push(id)
          assert.is_true(rows[i] == seq.logits:bytes(), "position " .. i)
        end
      end)
    end

    it("agrees with the reference in every value of the plan", function()
      local ids = tiny.ids(620, 5)
      local reference <close> = tiny.model { device = "reference" }
      local model <close> = tiny.model { device = "cuda", chunk = 300 }
      local names = model:values()
      local wanted, got = assert(reference:trace(ids, names)), assert(model:trace(ids, names))
      for _, name in ipairs(names) do
        local max = model_fixtures.difference(got[name]:bytes(), wanted[name]:bytes())
        assert.is_true(max < 1e-4, ("%s: %g"):format(name, max))
      end
      local logits <close> = assert(model:logits(ids))
      assert.is_true(logits:bytes() == got.logits:bytes()) -- tracing changes nothing
    end)

    it("decodes with graphs as it does without", function()
      local ids = tiny.ids(900, 9)
      local expected = tiny.oracle(tiny.model { device = "cuda" }, ids)
      local model <close> = tiny.model { device = "cuda" }
      local seq <close> = model:sequence {}
      for i, id in ipairs(ids) do
        seq:push(id)
        assert.is_true(expected[i] == seq.logits:bytes(), "position " .. i)
      end
    end)

    describe("keeps tensors on the device:", function()
      local model, device, host
      before_each(function()
        model = tiny.model { device = "cuda" }
        device = assert(model:logits(tiny.ids(5)))
        host = core.tensor(device:row(2):totable())
        device = device:row(2)
      end)
      after_each(function() model:close() end)

      local function near(a, b)
        local max = model_fixtures.difference(a:bytes(), b:bytes())
        assert.is_true(max < 1e-5, ("%g"):format(max))
      end

      it("questions", function()
        assert.same({ host:argmax() }, { device:argmax() })
        assert.same({ host:topk(7) }, { device:topk(7) })
        assert.near(host:sum(), device:sum(), 1e-5)
        assert.equal(host:min(), device:min())
        assert.equal(host:max(), device:max())
        assert.near(host:softmax():entropy(), device:softmax():entropy(), 1e-5)
        assert.equal(host[3], device[3])
      end)

      it("arithmetic", function()
        near(host:softmax(), device:softmax())
        near(host:log_softmax(), device:log_softmax())
        local a, b = host:clone(), device:clone()
        near(a:mul_(3), b:mul_(3))
        near(a:add_(1), b:add_(1))
        near(a:mul_(host), b:mul_(device))
        near(a:add_(host, 0.5), b:add_(device, 0.5))
        assert.has_error(function() a:mul_(device) end) -- on two devices
        assert.has_error(function() b:add_(host, 0.5) end)
        near(a:fill_(7, { 1, 3 }), b:fill_(7, { 1, 3 }))
        b[5], a[5] = 2, 2
        near(a, b)
        assert.has_error(function() b:fill_(1, { 4000 }) end)
        near(a:fill_(2), b:fill_(2))
      end)

      it("operands that are part of a tensor", function()
        local there = assert(model:logits(tiny.ids(50)))
        local here = core.tensor(there:totable())
        for _, t in ipairs { there, here } do
          t:rows(1, 49):add_(t:rows(0, 49), 0.5)
          t:rows(0, 49):mul_(t:rows(1, 49))
          t:add_(t:row(3))
        end
        near(here, there)
      end)

      it("and outlive the model", function()
        local before = device:bytes()
        model:close()
        assert.is_true(before == device:bytes())
      end)
    end)

    it("survives the failure of every allocation", function()
      local n = tiny.fail_each_allocation_of_a_run { device = "cuda", chunk = 16 }
      assert.is_true(n > 20)
    end)

    -- Values of 2^24 numbers, 2048 rows of them: more than any device holds.
    local function open_wide(options)
      local width, head_dim = 1 << 24, 256
      local file = build.random({ ["general.architecture"] = "none" }, {
        { name = "w", shape = { width, 2 }, type = 1, bytes = ("\0"):rep(4 * width) } })
      local gguf <close> = assert(core.parse_gguf(file, "spec"))
      local plan <close> = assert(core.plan(gguf))
      local w = assert(plan:weight "w")
      local x = plan:embed("x", w)
      local heads = width // head_dim
      local a = plan:attention("a", x, x, x, nil, { heads = heads, kv_heads = heads, head_dim = head_dim })
      assert(plan:finish(plan:linear("logits", plan:add("sum", x, a), w), 4096))
      return core.model(plan, options)
    end

    -- Bytes of the device that this process holds; where the driver does not tell, those that all programs hold.
    local function in_use_of(model)
      local info = assert(model:device_info())
      return info.process_in_use or info.in_use
    end

    it("says what it wanted and what was free when memory is out, and goes on", function()
      local model <close> = tiny.model { device = "cuda" }
      local before = tiny.oracle(model, tiny.ids(70))
      local in_use = in_use_of(model)
      local wide, message, code = open_wide { device = "cuda", chunk = 2048 }
      assert.is_nil(wide)
      assert.equal(err.MEMORY, code)
      assert.matches("^out of device memory: %d+ bytes wanted for .+, %d+ of %d+ are free$", message)
      assert.is_true(in_use_of(model) - in_use < 32e6)
      assert.same(before, tiny.oracle(model, tiny.ids(70)))
      local another <close> = tiny.model { device = "cuda" }
      assert.same(before, tiny.oracle(another, tiny.ids(70)))
    end)

    it("is asked what it holds, and answers with what was allocated", function()
      local first <close> = tiny.model { device = "cuda" } -- the driver's own memory is there from here on
      local info, before = assert(first:device_info()), in_use_of(first)
      assert.is_true(info.total > 1e9 and info.in_use > 0 and info.most_bytes_per_s > 1e11)
      local function use_some()
        local model <close> = tiny.model { device = "cuda", kv = "f32" }
        local seqs = {}
        for i = 1, 64 do
          seqs[i] = model:sequence { prefix_cache = false } -- pages of its own
          seqs[i]:feed(tiny.ids(1000))
        end
        assert(model:step(seqs))
        local bytes = model:stats().kv_bytes
        assert.is_true(bytes > 8e6)
        assert.is_true(in_use_of(first) - before >= bytes)
        for _, seq in ipairs(seqs) do seq:close() end
        return bytes
      end
      local bytes = use_some()
      collectgarbage()
      collectgarbage()
      assert.is_true(math.abs(in_use_of(first) - before) < bytes / 2)
    end)

    it("gives the same bits every time, in shapes that keep all of it busy", function()
      local path = os.tmpname()
      finally(function() os.remove(path) end)
      for _, name in ipairs { "q8_0", "f16" } do
        assert(core.make_model(path, { like = "qwen2.5-0.5b", type = name }))
        local model <close> = model_fixtures.open(path, { device = "cuda", ctx = 1024, prefix_cache = false })
        local dice, ids = tiny.dice(5), {}
        for i = 1, 600 do ids[i] = dice(model.vocab_size) - 1 end
        for _, n in ipairs { 2, 8, 9, 33, 129, 600 } do
          local function bits(piece)
            local seq <close> = model:sequence {}
            for first = 1, n, piece do
              assert(seq:feed(table.move(ids, first, math.min(n, first + piece - 1), 1, {})))
              assert(seq:step())
            end
            return seq.logits:bytes()
          end
          local wanted = bits(n)
          for _ = 1, 12 do assert.is_true(wanted == bits(n), name .. " " .. n) end
          if n < 200 then assert.is_true(wanted == bits(7), name .. " by 7 of " .. n) end
          if n < 50 then assert.is_true(wanted == bits(1), name .. " by 1 of " .. n) end
        end
      end
    end)

    it("times its passes where it is asked to", function()
      local model <close> = tiny.model { device = "cuda" }
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(10))
      assert(seq:step())
      assert.equal(0, model:stats().n_timed)
      assert(model:set_timing(true))
      local t0 = core.now()
      for i = 1, 20 do
        seq:push(i)
        assert(seq:step())
      end
      local stats, wall = model:stats(), core.now() - t0
      assert.equal(20, stats.n_timed)
      assert.is_true(stats.timed_s > 20 * 5e-6 and stats.timed_s <= wall, stats.timed_s)
      assert(model:set_timing(false))
      seq:push(1)
      assert(seq:step())
      assert.equal(20, model:stats().n_timed)
    end)

    it("has rates that a device can have", function()
      local model <close> = tiny.model { device = "cuda" }
      local rates = assert(model:device_rates())
      assert.is_true(rates.copy_bytes_per_s > 1e11 and rates.copy_bytes_per_s < 1e14, rates.copy_bytes_per_s)
      assert.is_true(rates.tensor_flops > 1e13 and rates.tensor_flops < 1e16, rates.tensor_flops)
    end)

    it("takes its passes apart, and leaves sequences as they were", function()
      local model <close> = tiny.model { device = "cuda" }
      local seqs, ids = {}, tiny.ids(200, 4)
      local expected = tiny.oracle(model, ids)
      for i = 1, 3 do
        seqs[i] = model:sequence {}
        seqs[i]:feed(table.move(ids, 1, 60 * i, 1, {}))
      end
      assert(model:step { seqs[1] })
      seqs[1]:push(ids[61])
      local stages = assert(model:profile(seqs))
      local seen = {}
      for _, stage in ipairs(stages) do
        seen[stage.name] = stage
        assert.is_true(stage.bytes > 0 and stage.seconds > 0 and stage.count > 0, stage.name)
      end
      for _, name in ipairs { "qkv", "attention", "output", "gate_up", "down", "head" } do
        assert.truthy(seen[name], name)
      end
      assert.equal(tiny.layers, seen.attention.count)
      assert(model:step(seqs))
      assert.is_true(expected[61] == seqs[1].logits:bytes())
      assert.is_true(expected[180] == seqs[3].logits:bytes())
      seqs[2]:feed(tiny.ids(600))
      assert.has_error(function() model:profile { seqs[2] } end) -- more than one run
    end)

    it("takes numbers from hooks that its weights could not give", function()
      local fixture = model_fixtures.get "llama256_q8_0"
      local function logits(device, factor, chunk)
        local model <close> = model_fixtures.open(fixture.path, { device = device, chunk = chunk, kv = "f16" })
        local seq <close> = model:sequence {}
        assert(seq:feed(fixture.prompt))
        local _ <close> = seq:hook({ "blk.1.ffn_up" }, function(x) x:mul_(factor) end)
        return seq.logits:bytes()
      end
      local plain = logits("cuda", 1)
      local model <close> = model_fixtures.open(fixture.path, { device = "cuda", kv = "f16" })
      local rows <close> = assert(model:logits(fixture.prompt))
      assert.is_true(plain == rows:bytes():sub(-#plain)) -- every row by itself, and nothing fused
      local wanted, got = logits("reference", 1e7), logits("cuda", 1e7)
      local _, relative = model_fixtures.difference(got, wanted)
      assert.is_true(relative < 0.05, ("%g"):format(relative))
      assert.is_true(got == logits("cuda", 1e7, 3))
    end)

    it("computes with damaged weights", function()
      local ids = tiny.ids(20)
      local model <close> = tiny.model { device = "cuda" }
      local before <close> = assert(model:logits(ids))
      assert.is_true(model:scramble("blk.1.", 7) > 0)
      local after <close> = assert(model:logits(ids))
      assert.is_false(before:bytes() == after:bytes())
    end)
  end)
end)
