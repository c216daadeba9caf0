describe("kigo.sequence", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = core.err

  local ids = tiny.ids(200, 3)
  local model, reference

  local function prefix(n) return table.move(ids, 1, n, 1, {}) end

  setup(function()
    model = tiny.model { chunk = 32 }
    reference = tiny.oracle(model, ids)
  end)

  teardown(function() model:close() end)

  describe("feed", function()
    it("appends and returns the position", function()
      local seq <close> = model:sequence { seed = 5 }
      assert.equal(0, seq:pos())
      assert.equal(3, seq:feed { 1, 2, 3 })
      assert.equal(4, seq:push(7))
      assert.equal(4, seq:feed {})
      assert.same({ 1, 2, 3, 7 }, seq:tokens())
      assert.equal(5, seq:seed())
      assert.equal(model, seq.model)
    end)

    it("refuses ids that the vocabulary does not have, all or nothing", function()
      local seq <close> = model:sequence {}
      seq:feed { 1 }
      for _, bad in ipairs { -1, tiny.vocab, 2 ^ 31 - 1 } do
        local ok, message = pcall(seq.feed, seq, { 2, 3, math.tointeger(bad) })
        assert.is_false(ok)
        local expected = ("token 3 of 3: id %d is outside the vocabulary's 0 to %d"):format(bad, tiny.vocab - 1)
        assert.truthy(message:find(expected, 1, true))
        assert.has_error(function() seq:push(math.tointeger(bad)) end)
      end
      for _, bad in ipairs { { "1" }, { 1.5 }, { {} }, { 1 << 40 } } do
        assert.has_error(function() seq:feed(bad) end)
        assert.has_error(function() seq:push(bad[1]) end)
      end
      assert.has_error(function() seq:feed(1) end)
      assert.has_error(function() seq:feed() end)
      assert.same({ 1 }, seq:tokens())
    end)

    it("fails with both counts and the limit when the context is full, and changes nothing", function()
      local small <close> = tiny.model { ctx = 6 }
      local seq <close> = small:sequence {}
      seq:feed(prefix(4))
      local pos, message, code = seq:feed { 1, 2, 3 }
      assert.is_nil(pos)
      assert.equal(err.FULL, code)
      assert.matches("6 tokens.*4 are.*3 more", message)
      assert.equal(4, seq:pos())
      assert.equal(reference[4], seq.logits:bytes())
      assert.equal(6, seq:feed { 1, 2 })
      pos, message, code = seq:push(1)
      assert.is_nil(pos)
      assert.matches("6 tokens.*6 are.*1 more", message)
      assert.equal(err.FULL, code)
      seq:rewind(4)
      assert.equal(5, seq:push(ids[5]))
      assert.equal(reference[5], seq.logits:bytes())
    end)
  end)

  describe("logits", function()
    it("are those after the last token, computed when they are asked for", function()
      local seq <close> = model:sequence { prefix_cache = false }
      local before = model:stats().n_tokens_evaluated
      seq:feed(prefix(40))
      assert.equal(before, model:stats().n_tokens_evaluated)
      assert.equal(reference[40], seq.logits:bytes())
      assert.equal(before + 40, model:stats().n_tokens_evaluated)
      assert.equal(seq.logits, seq.logits)
      assert.equal(before + 40, model:stats().n_tokens_evaluated)
      assert.same({ tiny.vocab }, { seq.logits:shape() })
    end)

    it("of an empty sequence are the caller's mistake", function()
      local seq <close> = model:sequence {}
      assert.has_error(function() return seq.logits end)
      assert.has_error(function() seq:step() end)
    end)

    it("outlive the sequence and the model", function()
      local other <close> = tiny.model {}
      local seq = other:sequence {}
      seq:feed(prefix(4))
      local logits = seq.logits
      seq:close()
      other:close()
      assert.equal(reference[4], logits:bytes())
    end)

    it("come back whole after somebody closed the handle or wrote to it", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(4))
      seq.logits:close()
      assert.equal(reference[4], seq.logits:bytes())
      seq.logits:fill_(0)
      assert.not_equal(reference[4], seq.logits:bytes())
      seq:rewind(4)
      assert.equal(reference[4], seq.logits:bytes())
    end)
  end)

  describe("rewind", function()
    it("shortens the timeline; the last token is evaluated again", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(100))
      assert.is_true(seq:step())
      for _, pos in ipairs { 100, 99, 65, 64, 63, 17, 16, 15, 1 } do
        assert.equal(pos, seq:rewind(pos))
        assert.equal(reference[pos], seq.logits:bytes())
      end
      assert.equal(0, seq:rewind(0))
      assert.has_error(function() return seq.logits end)
      seq:feed(prefix(30))
      assert.equal(reference[30], seq.logits:bytes())
    end)

    it("drops tokens that were never evaluated", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(10))
      assert.is_true(seq:step())
      seq:feed { 1, 1, 1 }
      seq:rewind(12)
      assert.equal(12, seq:pos())
      seq:rewind(10)
      assert.equal(reference[10], seq.logits:bytes())
    end)

    it("gives pages back", function()
      local own <close> = tiny.model {}
      local seq <close> = own:sequence {}
      seq:feed(prefix(200))
      assert.is_true(seq:step())
      local used = own:stats().n_pages_used
      seq:rewind(10)
      assert.is_true(own:stats().n_pages_used < used)
      seq:rewind(0)
      assert.equal(0, own:stats().n_pages_used)
    end)

    it("refuses positions outside of the timeline", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(4))
      for _, bad in ipairs { -1, 5, 1.5, "2", {}, model } do
        assert.has_error(function() seq:rewind(bad) end)
      end
      assert.has_error(function() seq:rewind() end)
      assert.equal(4, seq:pos())
    end)
  end)

  describe("mark", function()
    it("brings back position, random numbers and state", function()
      local seq <close> = model:sequence { seed = 9 }
      seq:feed(prefix(20))
      seq.state.n = 1
      seq.rng:uniform()
      local mark = seq:mark()
      assert.equal(20, mark.pos)
      local function play()
        local drawn = { seq.rng:uniform(), seq.rng:integer(1000) }
        seq:push(ids[21])
        drawn[3] = seq.rng:uniform()
        seq.state.n = seq.state.n + 1
        seq.state.more = true
        return drawn
      end
      local first = play()
      for _ = 1, 3 do
        assert.equal(20, seq:rewind(mark))
        assert.equal(1, seq.state.n)
        assert.is_nil(seq.state.more)
        assert.equal(reference[20], seq.logits:bytes())
        assert.same(first, play())
      end
    end)

    it("fits every timeline with the same past, and no other", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(20))
      local mark = seq:mark()
      local fork <close> = seq:fork {}
      fork:feed { 1, 2 }
      assert.equal(20, fork:rewind(mark))
      local stranger <close> = model:sequence {}
      stranger:feed(tiny.ids(30, 99))
      assert.has_error(function() stranger:rewind(mark) end)
      assert.equal(30, stranger:pos())
      local twin <close> = model:sequence {} -- the same tokens do not make it the same sequence
      twin:feed(prefix(20))
      assert.has_error(function() twin:rewind(mark) end)
      local other <close> = tiny.model { chunk = 32 }
      local abroad <close> = other:sequence {}
      abroad:feed(prefix(20))
      assert.has_error(function() abroad:rewind(mark) end)
      seq:rewind(10)
      assert.has_error(function() seq:rewind(mark) end)
      seq:feed(tiny.ids(15, 98))
      assert.has_error(function() seq:rewind(mark) end)
      assert.equal(25, seq:pos())
    end)

    it("says what it is", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(3))
      local mark = seq:mark()
      assert.matches("Mark.*3", tostring(mark))
      assert.is_nil(mark.other)
      assert.has_error(function() mark.pos = 1 end)
    end)
  end)

  describe("fork", function()
    it("goes its own way from the same past", function()
      local a <close> = model:sequence { seed = 1 }
      a:feed(prefix(70))
      local early <close> = a:fork { seed = 2 } -- nothing evaluated yet
      assert.equal(reference[70], a.logits:bytes())
      local before = model:stats().n_tokens_evaluated
      local late <close> = a:fork {}
      assert.equal(reference[70], late.logits:bytes())
      assert.equal(before, model:stats().n_tokens_evaluated) -- copied
      assert.equal(2, early:seed())
      assert.equal(1, late:seed())
      late:push(1)
      late:feed { 2, 3 }
      a:push(ids[71])
      assert.equal(reference[71], a.logits:bytes())
      assert.is_not_nil(late.logits)
      assert.equal(reference[70], early.logits:bytes())
      late:rewind(70)
      late:push(ids[71])
      assert.equal(reference[71], late.logits:bytes())
      assert.equal(71, a:pos())
    end)

    it("copies state, and draws what its origin would have drawn", function()
      local a <close> = model:sequence { seed = 1 }
      a:feed(prefix(3))
      a.state.list = { 1 }
      a.rng:uniform()
      local same <close> = a:fork {}
      local other <close> = a:fork { seed = 4 }
      assert.same(a.state.list, same.state.list)
      assert.not_equal(a.state.list, same.state.list)
      same.state.x = 1
      assert.is_nil(a.state.x)
      assert.equal(core.uniform(4, 3, 0), other.rng:uniform())
      assert.equal(a.rng:uniform(), same.rng:uniform())
    end)

    it("keeps working when its origin is gone", function()
      local a = model:sequence {}
      a:feed(prefix(100))
      assert.is_true(a:step())
      local b = a:fork {}
      a:close()
      local c <close> = b:fork {}
      b:rewind(30)
      c:push(ids[101])
      assert.equal(reference[101], c.logits:bytes())
      assert.equal(reference[30], b.logits:bytes())
      b:close()
    end)
  end)

  describe("state", function()
    it("is copied whole: tables in tables, shared ones, and ones that contain themselves", function()
      local seq <close> = model:sequence {}
      seq:feed(prefix(2))
      local shared = { "x" }
      seq.state = { list = { 1, 2.5, true, { "deep" } }, [1] = "\0bytes", [2.5] = false, [true] = shared,
        again = shared }
      seq.state.list.up = seq.state
      local mark = seq:mark()
      local fork <close> = seq:fork()
      seq.state.list[4][1] = "changed"
      seq.state[true][1] = "y"
      for _, state in ipairs { fork.state, seq:rewind(mark) and seq.state } do
        assert.same({ "deep" }, state.list[4])
        assert.equal("\0bytes", state[1])
        assert.is_false(state[2.5])
        assert.equal("float", math.type(state.list[2]))
        assert.equal(state.again, state[true])
        assert.same({ "x" }, state.again)
        assert.equal(state, state.list.up)
      end
      fork.state.list[4][1] = "other"
      assert.equal("deep", seq.state.list[4][1])
    end)

    it("that is no plain data is refused by its path, and nothing happens", function()
      local seq <close> = model:sequence {}
      local deep = {}
      local inner = deep
      for _ = 1, 100 do
        inner.t = {}
        inner = inner.t
      end
      local cases = { ['state["f"]: function'] = { f = print },
        ['state["a"][2]["b\\x0a"]: userdata'] = { a = { 0, { ["b\n"] = seq } } },
        ["state[true]: thread"] = { [true] = coroutine.create(print) }, ["with a metatable"] = { setmetatable({}, {}) },
        ["state[1]: a key of type table"] = { { [{}] = 1 } }, ["a hundred others"] = { deep } }
      for message, state in pairs(cases) do
        seq.state = state
        for _, call in ipairs { "mark", "fork" } do
          local ok, fault = pcall(seq[call], seq)
          assert.is_false(ok)
          assert.truthy(fault:find(message, 1, true), fault)
        end
        assert.equal(state, seq.state)
      end
      assert.equal(1, model:stats().n_sequences)
      seq.state = { deep.t.t }
      assert.is_truthy(seq:mark())
    end)
  end)

  describe("rng", function()
    it("depends on seed, position and draw only", function()
      local seq <close> = model:sequence { seed = 77 }
      assert.equal(core.uniform(77, 0, 0), seq.rng:uniform())
      assert.equal(core.uniform(77, 0, 1), seq.rng:uniform())
      seq:feed(prefix(2))
      assert.equal(core.uniform(77, 2, 0), seq.rng:uniform())
      seq:rewind(1)
      assert.equal(core.uniform(77, 1, 0), seq.rng:uniform())
      seq:rewind(1)
      assert.equal(core.uniform(77, 1, 0), seq.rng:uniform())
      local minus <close> = model:sequence { seed = -1 }
      assert.equal(-1, minus:seed())
      assert.equal(core.uniform(-1, 0, 0), minus.rng:uniform())
    end)

    it("chooses in proportion", function()
      local seq <close> = model:sequence { seed = 3 }
      local counts = { 0, 0, 0, 0 }
      for _ = 1, 4000 do
        local i = seq.rng:choose { 1, 0, 2.5, 0.5 }
        counts[i] = counts[i] + 1
      end
      assert.equal(0, counts[2])
      for i, share in ipairs { 0.25, 0, 0.625, 0.125 } do assert.near(share, counts[i] / 4000, 0.03) end
      assert.equal(2, seq.rng:choose { 0, 1e-300, 0 })
    end)

    it("chooses among logits as among their exponentials", function()
      local one <close> = model:sequence { seed = 5 }
      local other <close> = model:sequence { seed = 5 }
      for round = 1, 300 do
        local logits, weights = {}, {}
        for i = 1, 1 + round % 9 do logits[i] = 60 * core.uniform(8, round, i) - 30 end
        if round % 7 == 0 then logits[#logits + 1] = -math.huge end
        local best = math.max(table.unpack(logits))
        for i, logit in ipairs(logits) do weights[i] = math.exp(logit - best) end
        assert.equal(one.rng:choose(weights), other.rng:choose_logits(logits))
      end
    end)

    it("refuses what cannot be drawn from", function()
      local seq <close> = model:sequence {}
      for _, bad in ipairs { {}, { -math.huge }, { 0, 0 / 0 }, { math.huge }, { "1" } } do
        assert.has_error(function() seq.rng:choose_logits(bad) end)
      end
      assert.has_error(function() seq.rng:choose_logits(1) end)
      for _, bad in ipairs { {}, { 0, 0 }, { 1, -1 }, { 0 / 0 }, { math.huge }, { "1" }, { 1e308, 1e308 } } do
        assert.has_error(function() seq.rng:choose(bad) end)
      end
      assert.has_error(function() seq.rng:choose(1) end)
      assert.has_error(function() seq.rng:integer(0) end)
      assert.equal(core.uniform(0, 0, 0), seq.rng:uniform()) -- none of these has drawn
    end)

    it("gives whole numbers from 1 to n", function()
      local seq <close> = model:sequence {}
      local seen = {}
      for _ = 1, 200 do
        local i = seq.rng:integer(3)
        assert.equal("integer", math.type(i))
        seen[i] = true
      end
      assert.same({ true, true, true }, seen)
    end)
  end)

  describe("fields", function()
    it("can be added; properties cannot be replaced", function()
      local seq <close> = model:sequence {}
      assert.is_nil(seq.mine)
      seq.mine = 1
      assert.equal(1, seq.mine)
      for _, name in ipairs { "logits", "rng", "model" } do
        assert.has_error(function() seq[name] = 1 end)
      end
      seq.state = { a = 1 }
      assert.equal(1, seq.state.a)
      assert.has_error(function() seq.state = 1 end)
    end)
  end)

  describe("close", function()
    it("leaves a handle that refuses everything", function()
      local seq = model:sequence {}
      seq:feed(prefix(3))
      local rng, mark = seq.rng, seq:mark()
      assert.matches("3 of", tostring(seq))
      seq:close()
      seq:close()
      assert.matches("closed", tostring(seq))
      local uses = {
        function() seq:feed { 1 } end, function() seq:push(1) end, function() seq:pos() end,
        function() seq:tokens() end, function() seq:seed() end, function() seq:mark() end,
        function() seq:rewind(0) end, function() seq:rewind(mark) end, function() seq:fork {} end,
        function() seq:step() end, function() return seq.logits end, function() return seq.rng end,
        function() rng:uniform() end, function() rng:choose { 1 } end, function() rng:integer(2) end,
        function() model:step { seq } end,
      }
      for _, use in ipairs(uses) do
        local ok, message = pcall(use)
        assert.is_false(ok)
        assert.matches("closed", message)
      end
    end)

    it("works in every order of model, sequences, forks and logits", function()
      local function permutations(items, n, found)
        if n == 0 then found[#found + 1] = table.move(items, 1, #items, 1, {}) end
        for i = 1, n do
          items[i], items[n] = items[n], items[i]
          permutations(items, n - 1, found)
          items[i], items[n] = items[n], items[i]
        end
        return found
      end
      for _, order in ipairs(permutations({ 1, 2, 3, 4 }, 4, {})) do
        local own = tiny.model {}
        local seq = own:sequence {}
        seq:feed(prefix(70))
        local logits = seq.logits
        local fork = seq:fork {}
        local things, is_open = { own, seq, fork, logits }, { true, true, true, true }
        for _, i in ipairs(order) do
          things[i]:close()
          is_open[i] = false
          if is_open[4] then assert.equal(reference[70], logits:bytes()) end
          if is_open[3] then
            fork:rewind(70)
            fork:push(ids[71])
            assert.equal(reference[71], fork.logits:bytes())
          end
        end
      end
    end)

    it("happens to forgotten ones before they pile up", function()
      local own <close> = tiny.model {}
      local kept = {}
      for i = 1, 500 do
        local seq = own:sequence {}
        seq:push(1)
        assert.is_true(seq:step())
        if i % 100 == 0 then kept[#kept + 1] = seq:fork {} end
      end
      assert.is_true(own:stats().n_sequences < 60)
      assert.equal(5, #kept)
    end)

    it("happens by itself, in whatever order the collector likes", function()
      for _ = 1, 5 do
        local own = tiny.model {}
        local seq = own:sequence {}
        seq:feed(prefix(10))
        seq.state.self, own.seq, seq.rng2 = seq, seq, seq.rng
        own.logits_of = seq.logits
        own, seq = nil, nil -- luacheck: ignore
        collectgarbage()
      end
      collectgarbage()
    end)
  end)

  it("refuses methods on other things", function()
    local seq <close> = model:sequence {}
    assert.has_error(function() seq.feed(model, { 1 }) end)
    assert.has_error(function() seq.feed({}, { 1 }) end)
    assert.has_error(function() seq.rng.uniform(seq) end)
  end)

  it("survives the failure of every allocation while opening, feeding, forking and marking", function()
    collectgarbage()
    local live_before = core.alloc_counts()
    local n = tiny.fail_each_allocation(function() return { list = {} } end, function(object)
      local function keep(seq, message, code)
        object.list[#object.list + 1] = seq
        return seq, message, code
      end
      local seq, message, code = keep(model:sequence { seed = 1 })
      if not seq then return nil, message, code end
      local pos
      pos, message, code = seq:feed(prefix(70))
      if not pos then return nil, message, code end
      seq.state.x = 1
      pos, message, code = seq:step()
      if not pos then return nil, message, code end
      local fork
      fork, message, code = keep(seq:fork { seed = 2 })
      if not fork then return nil, message, code end
      local mark = fork:mark()
      pos, message, code = fork:push(ids[71])
      if not pos then return nil, message, code end
      return fork:rewind(mark) and fork.logits
    end, function(object)
      for _, seq in ipairs(object.list) do
        local pos = seq:pos()
        assert.is_true(pos == 0 or pos == 70 or pos == 71)
        if pos > 0 then assert.equal(reference[pos], seq.logits:bytes()) end
        seq:close()
      end
      collectgarbage() -- handles that were made but never returned
      assert.equal(0, model:stats().n_sequences)
      assert.equal(0, model:stats().n_pages_used)
    end)
    assert.is_true(n > 20)
    collectgarbage()
    collectgarbage()
    assert.is_true(core.alloc_counts() - live_before < n / 2)
  end)
end)
