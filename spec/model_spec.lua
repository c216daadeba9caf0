describe("kigo.model", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = core.err

  describe("opening", function()
    it("takes the plan, and keeps what it needs of the file", function()
      local gguf = tiny.gguf()
      local plan = tiny.plan()
      local model <close> = assert(core.model(plan, { device = "reference" }))
      gguf:close()
      assert.matches("closed", tostring(plan))
      assert.has_error(function() core.model(plan, { device = "reference" }) end)
      plan, gguf = nil, nil -- luacheck: ignore
      collectgarbage()
      assert.equal(tiny.vocab, model.vocab_size)
      assert.equal("reference", model.device)
      local logits <close> = assert(model:logits { 1, 2, 3 })
      assert.same({ 3, tiny.vocab }, { logits:shape() })
    end)

    it("has a context of what the file says, at most 4096", function()
      local model <close> = tiny.model {}
      assert.equal(tiny.context, model.context)
      local small <close> = tiny.model { ctx = 7 }
      assert.equal(7, small.context)
      local large <close> = assert(core.model(tiny.plan(100000), { device = "reference" }))
      assert.equal(4096, large.context)
      local largest <close> = assert(core.model(tiny.plan(100000), { device = "reference", ctx = 100000 }))
      assert.equal(100000, largest.context)
    end)

    it("refuses a context beyond the file's, naming both", function()
      local plan <close> = tiny.plan()
      local ok, message = pcall(core.model, plan, { device = "reference", ctx = 1025 })
      assert.is_false(ok)
      assert.matches("1025.*1024", message)
    end)

    it("refuses bad options and leaves the plan open", function()
      local plan <close> = tiny.plan()
      for _, bad in ipairs {
        { ctx = -1 }, { ctx = "8" }, { ctx = 1.5 }, { chunk = -1 }, { chunk = 1 << 20 }, { threads = -1 },
        { threads = 1 << 20 }, { pool = -1 }, { pool = 1 << 40 }, { kv = "q3" }, { kv = 16 }, { progress = 1 },
        { device = 1 },
      } do
        bad.device = bad.device or "reference"
        assert.has_error(function() core.model(plan, bad) end)
      end
      local ok, message, code = core.model(plan, { device = "abacus" })
      assert.is_nil(ok)
      assert.equal(err.UNSUPPORTED, code)
      assert.matches("abacus", message)
      assert.has_error(function() core.model() end)
      assert.has_error(function() core.model({}) end)
      local model <close> = assert(core.model(plan, { device = "reference", kv = "f32", chunk = 5, pool = 100 }))
      assert.equal(tiny.vocab, model.vocab_size)
      for _, kv in ipairs { "auto", "f16" } do
        local other <close> = tiny.model { kv = kv }
        assert.equal(2, #tiny.oracle(other, { 1, 2 }))
      end
    end)

    it("refuses a plan that is not finished", function()
      local plan <close> = core.plan(tiny.gguf())
      assert.has_error(function() core.model(plan, { device = "reference" }) end)
    end)

    it("reports its progress; it can be cancelled and errors pass through, and the plan stays open", function()
      local plan <close> = tiny.plan()
      local options = { device = "cpu", progress = function(what) return what == "load" end }
      local model, _, code = core.model(plan, options)
      assert.is_nil(model)
      assert.equal(err.CANCELLED, code)
      options.progress = function() error { "mine" } end
      local ok, caught = pcall(core.model, plan, options)
      assert.is_false(ok)
      assert.same({ "mine" }, caught)
      local last
      options.progress = function(what, done, total)
        assert(what == "load" and done <= total)
        last = done == total
        assert.matches("closed", tostring(plan)) -- out of reach meanwhile
      end
      model = assert(core.model(plan, options))
      assert.is_true(last)
      model:close()
    end)

    it("survives the failure of every allocation, and the plan does too", function()
      collectgarbage()
      local live_before = core.alloc_counts()
      local n = tiny.fail_each_allocation(tiny.plan, function(plan)
        return core.model(plan, { device = "reference", chunk = 8 })
      end, function(plan)
        if tostring(plan):find "closed" then -- opened, and already out of reach
          collectgarbage()
          return
        end
        local model <close> = assert(core.model(plan, { device = "reference", chunk = 8 }))
        assert.equal(2, #tiny.oracle(model, { 1, 2 }))
      end)
      assert.is_true(n > 10)
      collectgarbage()
      collectgarbage()
      assert.is_true(core.alloc_counts() - live_before < n / 2)
    end)
  end)

  it("has fields of its own, read-only properties and a name", function()
    local model <close> = tiny.model {}
    assert.is_nil(model.tokenizer)
    model.tokenizer = "t"
    assert.equal("t", model.tokenizer)
    model[1] = 2
    assert.equal(2, model[1])
    for _, name in ipairs { "vocab_size", "context", "device" } do
      assert.has_error(function() model[name] = 1 end)
    end
    assert.matches("kigo.Model %(reference", tostring(model))
  end)

  it("can be extended with methods", function()
    local model <close> = tiny.model {}
    function core.classes.Model:spec_method() return self.vocab_size end
    assert.equal(tiny.vocab, model:spec_method())
    core.classes.Model.spec_method = nil
    assert.is_nil(model.spec_method)
  end)

  it("is reported on by stats", function()
    local model <close> = tiny.model {}
    local stats = model:stats()
    assert.equal("reference", stats.device)
    assert.equal("string", type(stats.variant))
    assert.is_true(stats.weight_bytes > 10000)
    assert.equal(0, stats.n_tokens_evaluated)
    assert.equal(0, stats.n_steps)
    assert.equal(0, stats.n_sequences)
    local seq <close> = model:sequence {}
    seq:feed { 1, 2, 3 }
    assert.is_true(seq:step())
    stats = model:stats()
    assert.equal(3, stats.n_tokens_evaluated)
    assert.equal(1, stats.n_steps)
    assert.equal(1, stats.n_sequences)
    assert.equal(1, stats.n_pages_used)
    assert.is_true(stats.kv_bytes > 0)
  end)

  describe("logits", function()
    it("stand for every position and leave nothing behind", function()
      local model <close> = tiny.model { chunk = 7 }
      local ids = tiny.ids(30)
      local rows = tiny.oracle(model, ids)
      assert.equal(30, #rows)
      local seq <close> = model:sequence {}
      for i, id in ipairs(ids) do
        seq:push(id)
        assert.equal(rows[i], seq.logits:bytes())
      end
      assert.equal(1, model:stats().n_sequences)
    end)

    it("fail cleanly", function()
      local model <close> = tiny.model { ctx = 8 }
      assert.has_error(function() model:logits {} end)
      assert.has_error(function() model:logits() end)
      assert.has_error(function() model:logits { tiny.vocab } end)
      local ok, _, code = model:logits(tiny.ids(9))
      assert.is_nil(ok)
      assert.equal(err.FULL, code)
      assert.equal(0, model:stats().n_sequences)
    end)

    it("survive the failure of every allocation", function()
      local model <close> = tiny.model { chunk = 8 }
      local ids = tiny.ids(10)
      local expected = tiny.oracle(model, ids)
      tiny.fail_each_allocation(function() return model end, function() return model:logits(ids) end, function()
        assert.same(expected, tiny.oracle(model, ids))
        collectgarbage()
        assert.equal(0, model:stats().n_sequences)
        assert.equal(0, model:stats().n_pages_used)
      end)
    end)
  end)

  describe("trace", function()
    local names = { "embd", "blk.0.attn", "blk.1.out", "logits" }

    it("records named values for every row, however the rows were cut", function()
      local ids = tiny.ids(30)
      local traced = {}
      for i, chunk in ipairs { 512, 7, 1 } do
        local model <close> = tiny.model { chunk = chunk }
        local values = assert(model:trace(ids, names))
        traced[i] = {}
        for name, tensor in pairs(values) do traced[i][name] = tensor:bytes() end
        assert.same({ 30, tiny.hidden }, { values["blk.1.out"]:shape() })
        assert.equal(table.concat(tiny.oracle(model, ids)), traced[i].logits)
      end
      assert.same(traced[1], traced[2])
      assert.same(traced[1], traced[3])
    end)

    it("takes a name that comes twice as one", function()
      for _, device in ipairs { "reference", "cpu" } do
        local progress = function() collectgarbage() end -- nothing that the step writes to may be garbage
        local model <close> = tiny.model { device = device, threads = 1, chunk = 4, progress = progress }
        local ids = tiny.ids(10)
        local once, twice = model:trace(ids, { "embd" }), model:trace(ids, { "embd", "embd", "embd" })
        assert.equal(once.embd:bytes(), twice.embd:bytes())
      end
    end)

    it("leaves no sequence behind when a name is wrong", function()
      local model <close> = tiny.model {}
      for _, wrong in ipairs { "nonsense", 1 } do
        assert.is_false((pcall(model.trace, model, { 1 }, { "embd", wrong })))
        assert.equal(0, model:stats().n_sequences)
      end
    end)

    it("survives the failure of every allocation", function()
      local ids = tiny.ids(10)
      local expected
      local function bytes(values)
        local all = {}
        for name, tensor in pairs(values) do all[name] = tensor:bytes() end
        return all
      end
      do
        local model <close> = tiny.model {}
        expected = bytes(assert(model:trace(ids, names)))
      end
      tiny.fail_each_allocation(function() return tiny.model { chunk = 8 } end, function(model)
        return model:trace(ids, names)
      end, function(model)
        collectgarbage()
        assert.equal(0, model:stats().n_sequences)
        assert.same(expected, bytes(assert(model:trace(ids, names))))
        model:close()
      end)
    end)

    it("takes patterns, and a function for what to keep", function()
      require "kigo.model"
      local model <close> = tiny.model {}
      local ids = tiny.ids(5)
      local values, found = assert(model:trace(ids, "blk.*.out"))
      assert.same({ "blk.0.out", "blk.1.out" }, found)
      local sums = assert(model:trace(ids, { "blk.1.out", "embd" }, function(x, name) return name .. x:sum() end))
      assert.equal("blk.1.out" .. values["blk.1.out"]:sum(), sums["blk.1.out"])
      assert.is_nil(sums["blk.0.out"])
      assert.equal("embd", select(2, assert(model:trace(ids, { "blk.1.out", "embd" })))[1])
      assert.has_error(function() model:trace(ids, "blk.?.out") end)
      assert.has_error(function() model:trace(ids, "blk") end)
      assert.error_matches(function() model:trace(ids, "embd", function() error "mine" end) end, "mine")
    end)

    it("knows its values", function()
      local model <close> = tiny.model {}
      local values = model:values()
      assert.equal("embd", values[1])
      assert.equal("logits", values[#values])
      assert.same({}, assert(model:trace({ 1 }, {})))
      for _, bad in ipairs { { "blk.9.out" }, { 1 }, { false } } do
        assert.has_error(function() model:trace({ 1 }, bad) end)
      end
      assert.has_error(function() model:trace({ 1 }) end)
      assert.has_error(function() model:trace({}, names) end)
      assert.equal(0, model:stats().n_sequences)
    end)
  end)

  describe("scramble", function()
    it("changes what the model says, the same way for the same seed", function()
      local function damaged(prefix, seed)
        local model <close> = tiny.model {}
        assert.equal(9, model:scramble(prefix, seed))
        return table.concat(tiny.oracle(model, { 1, 2, 3 }))
      end
      local model <close> = tiny.model {}
      local healthy = table.concat(tiny.oracle(model, { 1, 2, 3 }))
      local first = damaged("blk.0.", 1)
      assert.not_equal(healthy, first)
      assert.equal(first, damaged("blk.0.", 1))
      assert.not_equal(first, damaged("blk.0.", 2))
      assert.equal(healthy, table.concat(tiny.oracle(model, { 1, 2, 3 })))
    end)

    it("refuses a prefix that no weight has", function()
      local model <close> = tiny.model {}
      assert.has_error(function() model:scramble("nothing", 1) end)
      assert.has_error(function() model:scramble() end)
    end)
  end)

  describe("close", function()
    it("leaves a handle that refuses new work; fields stay", function()
      local model = tiny.model {}
      model.mine = 1
      model:close()
      model:close()
      assert.matches("closed", tostring(model))
      assert.equal(1, model.mine)
      for _, use in ipairs {
        function() model:sequence {} end, function() model:step {} end, function() model:logits { 1 } end,
        function() model:trace({ 1 }, {}) end, function() model:values() end, function() model:stats() end,
        function() model:scramble("blk", 1) end, function() model:set_progress(nil) end,
        function() return model.vocab_size end, function() return model.context end, function() return model.device end,
      } do
        local ok, message = pcall(use)
        assert.is_false(ok)
        assert.matches("closed", message)
      end
    end)

    it("waits for open sequences, which go on", function()
      local ids = tiny.ids(5)
      local model = tiny.model {}
      local expected = tiny.oracle(model, ids)
      local seq <close> = model:sequence {}
      model:close()
      seq:feed(ids)
      assert.equal(expected[5], seq.logits:bytes())
      local fork <close> = seq:fork {}
      seq:close()
      fork:rewind(3)
      assert.equal(expected[3], fork.logits:bytes())
    end)
  end)

  it("reports progress on long steps until it is told not to", function()
    local calls = 0
    local function count(what) calls = calls + (what == "prefill" and 1 or 0) end
    local model <close> = tiny.model { chunk = 4, progress = count }
    tiny.oracle(model, tiny.ids(10))
    assert.equal(4, calls)
    assert.has_error(function() model:set_progress(1) end)
    model:set_progress(nil)
    tiny.oracle(model, tiny.ids(10))
    assert.equal(4, calls)
  end)
end)
