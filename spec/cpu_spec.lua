describe("the cpu backend", function()
  local core = require "kigo.core"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = core.err

  local FLOAT = { "llama", "qwen2", "mixtral", "qwen3", "phi3", "gpt2", "gemma2", "gemma3", "gptoss" }
  local QUANTIZED = { "llama256_q4_0", "llama256_q8_0", "llama256_q4_k_m", "haiku" }

  -- The fixtures' README asks for 1e-3 and 1e-4 with float32 weights, 0.6 and 0.06 with 8-bit activations. Ours have
  -- two terms: what is left is the rounding of keys and values to half precision.
  for _, variant in ipairs(core.kernel_variants()) do
    describe("as " .. variant, function()
      model_fixtures.declare({ device = "cpu", variant = variant }, 1e-4, 1e-5, FLOAT)
      model_fixtures.declare({ device = "cpu", variant = variant, threads = 2 }, 0.02, 2e-3, QUANTIZED)
      model_fixtures.declare({ device = "cpu", variant = variant }, 0.05, 5e-3, { "gptoss_mxfp4" })
    end)
  end

  it("continues stories260K from BOS alone with the published text", function()
    local path = support.fixture("models/stories260K.gguf")
    local gguf <close> = assert(core.open_gguf(path))
    local tokenizer = assert(core.tokenizer(gguf))
    local model <close> = model_fixtures.open(path, { device = "cpu" })
    local text = tokenizer:decode(model_fixtures.greedy(model, { tokenizer.bos }, 100)):gsub("^ ", "")
    local published = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
      .. "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
    assert.equal(published, text:sub(1, #published))
  end)

  describe("gives the same bits", function()
    -- Long enough for three splits of attention; one pass takes 256 rows at most.
    local ids = tiny.ids(700, 3)
    local expected

    local function bytes_with(options)
      options.device = "cpu"
      local model <close> = tiny.model(options)
      local logits <close> = assert(model:logits(ids))
      return logits:bytes()
    end

    setup(function() expected = bytes_with { chunk = 512, threads = 1 } end)

    for _, chunk in ipairs { 1, 3, 8, 9, 16, 64, 255, 257, 511, 512 } do
      it("in chunks of " .. chunk, function()
        assert.is_true(expected == bytes_with { chunk = chunk, threads = 2 })
      end)
    end

    for _, threads in ipairs { 2, 3, 7 } do
      it("with threads: " .. threads, function()
        assert.is_true(expected == bytes_with { chunk = 300, threads = threads })
      end)
    end

    for _, name in ipairs { "llama256_q4_0", "llama256_q4_k_m", "mixtral" } do
      it("for each variant of " .. name .. " however it is cut", function()
        local fixture = model_fixtures.get(name)
        local prompt = {}
        for _ = 1, 2 do table.move(fixture.prompt, 1, #fixture.prompt, #prompt + 1, prompt) end
        for _, variant in ipairs(core.kernel_variants()) do
          local whole
          for _, chunk in ipairs { 512, 1, 7, 17 } do
            local options = { device = "cpu", variant = variant, chunk = chunk, threads = 1 }
            local model <close> = model_fixtures.open(fixture.path, options)
            local logits <close> = assert(model:logits(prompt))
            whole = whole or logits:bytes()
            assert.is_true(whole == logits:bytes(), variant .. ", chunks of " .. chunk)
          end
        end
      end)
    end

    it("when pages with old numbers are used again", function()
      local model <close> = tiny.model { device = "cpu", pool = 768 }
      for seed = 1, 3 do
        local other <close> = model:sequence {}
        assert(other:feed(tiny.ids(650, seed)))
        assert(other:step())
      end
      local logits <close> = assert(model:logits(ids))
      assert.is_true(expected == logits:bytes())
    end)

    it("for wanted rows alone and for all rows", function()
      local model <close> = tiny.model { device = "cpu" }
      local sequence <close> = model:sequence {}
      assert(sequence:feed(ids))
      assert.is_true(expected:sub(-tiny.vocab * 4) == sequence.logits:bytes())
    end)
  end)

  describe("agrees with the reference", function()
    local ids = tiny.ids(620, 5)

    local function logits_of(options)
      local model <close> = tiny.model(options)
      local logits <close> = assert(model:logits(ids))
      return logits:bytes()
    end

    it("over several splits of attention, for every variant", function()
      local expected = logits_of { device = "reference" }
      for _, variant in ipairs(core.kernel_variants()) do
        local max, relative = model_fixtures.difference(logits_of { device = "cpu", variant = variant }, expected)
        assert.is_true(max < 1e-4 and relative < 1e-5, ("%s: %g, %g"):format(variant, max, relative))
      end
    end)

    it("up to the rounding of a half precision cache", function()
      local exact = logits_of { device = "cpu", kv = "f32" }
      local max, relative = model_fixtures.difference(logits_of { device = "cpu", kv = "f16" }, exact)
      assert.is_true(max > 0 and relative < 2e-3, ("%g, %g"):format(max, relative))
    end)

    it("in every value of the plan", function()
      local reference <close> = tiny.model { device = "reference" }
      local model <close> = tiny.model { device = "cpu", chunk = 300 }
      local names = model:values()
      local wanted, got = assert(reference:trace(ids, names)), assert(model:trace(ids, names))
      for _, name in ipairs(names) do
        assert.same(wanted[name]:shape(), got[name]:shape())
        local max = model_fixtures.difference(got[name]:bytes(), wanted[name]:bytes())
        assert.is_true(max < 1e-4, ("%s: %g"):format(name, max))
      end
      local logits <close> = assert(model:logits(ids))
      assert.is_true(logits:bytes() == got.logits:bytes()) -- tracing changes nothing
    end)
  end)

  describe("takes a plan", function()
    local build = require "spec.gguf_build"

    -- Odd widths, operations between the last product and the logits, a product that two operations read.
    local file = build.random({ ["general.architecture"] = "none" },
      { { name = "embd", shape = { 33, 41 } }, { name = "w", shape = { 33, 33 } } })
    local function open(device)
      local gguf <close> = assert(core.parse_gguf(file, "spec"))
      local plan <close> = assert(core.plan(gguf))
      local w = assert(plan:weight "w")
      local x = plan:embed("x", assert(plan:weight "embd"))
      local y = plan:linear("y", x, w)
      x = plan:add("twice", y, plan:scale("scaled", y, 0.5))
      x = plan:add("sum", x, plan:linear("z", x, w))
      x = plan:act("act", plan:slice("slice", plan:softcap("cap", x, 3), 0, 33), "gelu")
      assert(plan:finish(plan:softcap("logits", plan:scale("s", plan:linear("head", x, plan:weight "embd"), 4), 2), 64))
      return assert(core.model(plan, { device = device }))
    end

    it("without attention and with scaled logits", function()
      local reference <close> = open "reference"
      local model <close> = open "cpu"
      local ids = { 0, 40, 7, 7, 12 }
      local wanted <close> = assert(reference:logits(ids))
      local got <close> = assert(model:logits(ids))
      local max = model_fixtures.difference(got:bytes(), wanted:bytes())
      assert.is_true(max < 1e-5, ("%g"):format(max))
      local trace = assert(model:trace(ids, { "y", "z", "s", "logits" }))
      assert.is_true(trace.logits:bytes() == got:bytes())
    end)
  end)

  it("names its variants and refuses others", function()
    local variants = core.kernel_variants()
    assert.equal("generic", variants[1])
    local model <close> = tiny.model { device = "cpu", variant = "generic", threads = 1 }
    local stats = model:stats()
    assert.equal("cpu", stats.device)
    assert.equal("generic", stats.variant)
    assert.equal(1, stats.n_threads)
    assert.is_true(stats.weight_bytes > 0)
    local plan <close> = tiny.plan()
    local none, _, code = core.model(plan, { device = "cpu", variant = "sse9" })
    assert.is_nil(none)
    assert.equal(err.UNSUPPORTED, code)
  end)

  it("can be cancelled while it packs", function()
    local calls = 0
    local plan <close> = tiny.plan()
    local none, _, code = core.model(plan, { device = "cpu", progress = function(what, done, total)
      calls = calls + 1
      assert.equal("load", what)
      assert.is_true(done > 0 and done <= total)
      return calls == 3
    end })
    assert.is_nil(none)
    assert.equal(err.CANCELLED, code)
    assert.equal(3, calls)
  end)

  it("survives the failure of every allocation", function()
    collectgarbage()
    local live_before = core.alloc_counts()
    local n = tiny.fail_each_allocation_of_a_run { device = "cpu", threads = 2, chunk = 16 }
    assert.is_true(n > 60)
    collectgarbage()
    collectgarbage()
    assert.is_true(core.alloc_counts() - live_before < n / 2)
  end)

  it("reserves for attention what its rows can use, and keeps it #unsanitized", function()
    local function mapped() -- bytes
      local file = io.open "/proc/self/statm"
      if not file then return end
      local pages = file:read "n"
      file:close()
      return pages * 4096
    end
    if not mapped() then return pending "there is no /proc/self/statm here" end
    local HEADS, DIM = 256, 256 -- 0.25 MB for a row and split
    local build = require "spec.gguf_build"
    local file = build.random({ ["general.architecture"] = "none" }, { { name = "embd", shape = { 32, 64 } },
      { name = "q", shape = { 32, HEADS } }, { name = "k", shape = { 32, 1 } }, { name = "v", shape = { 32, DIM } },
      { name = "o", shape = { HEADS * DIM, 32 } } })
    local gguf <close> = assert(core.parse_gguf(file, "spec"))
    local plan <close> = assert(core.plan(gguf))
    local x = plan:embed("x", plan:weight "embd")
    local function linear(name, from) return plan:linear(name, from, plan:weight(name)) end
    local a = plan:attention("a", linear("q", x), linear("k", x), linear("v", x), nil,
      { heads = HEADS, kv_heads = 1, head_dim = 1, value_dim = DIM })
    assert(plan:finish(plan:linear("logits", linear("o", a), plan:weight "embd"), 1024))
    local model <close> = assert(core.model(plan, { device = "cpu", chunk = 16, threads = 1 }))
    local s <close> = assert(model:sequence {})
    s:feed { 1, 2 }
    assert(s:step())
    local ids = {}
    for i = 1, 1008 do ids[i] = i % 64 end
    s:feed(ids)
    collectgarbage()
    local before = mapped()
    assert(s:step())
    s:push(1)
    assert(s:step())
    assert.is_true(mapped() - before < 6 * 2 ^ 20, mapped() - before)
    local n, step, count = 0, s.step, core.alloc_counts
    for i = 1, 3 do
      s:push(i)
      local _, calls_before = count()
      step(s)
      local _, calls = count()
      n = n + calls - calls_before
    end
    assert.equal(0, n)
  end)

  it("computes with damaged weights and not with the file's", function()
    local ids = tiny.ids(20)
    local model <close> = tiny.model { device = "cpu" }
    local before <close> = assert(model:logits(ids))
    assert.is_true(model:scramble("blk.1.", 7) > 0)
    local after <close> = assert(model:logits(ids))
    assert.is_false(before:bytes() == after:bytes())
  end)

  it("refuses to compute in a child process, where its threads are not, and closes there", function()
    local library = support.temporary ""
    finally(function() os.remove(library) end)
    local include = "$(pkg-config --cflags lua5.4 2>/dev/null)"
    if not os.execute(("cc -shared -fPIC %s -o %s spec/fixtures/forker.c 2>/dev/null"):format(include, library)) then
      return pending "needs a C compiler and Lua's headers"
    end
    local forker = assert(package.loadlib(library, "luaopen_forker"))()
    local model <close> = tiny.model { device = "cpu", threads = 2 }
    local s <close> = model:sequence {}
    s:feed { 1, 2 }
    local child = forker.fork()
    if child == 0 then
      local done, _, code = s:step()
      s:close()
      model:close()
      os.exit(not done and code == err.DEVICE and 7 or 8)
    end
    assert.equal(7, forker.wait(child))
    assert.is_true(s:step())
  end)

  it("measures how fast memory is read", function()
    local bandwidth = assert(core.read_bandwidth(1, 16))
    assert.is_true(bandwidth > 1e8 and bandwidth < 1e13)
    assert.has_error(function() core.read_bandwidth(-1, 16) end)
    assert.has_error(function() core.read_bandwidth(1, 0) end)
  end)
end)
