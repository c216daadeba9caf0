describe("kigo.step", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = core.err

  local long = tiny.ids(700, 7)
  local reference -- logits after every token of `long`, from one pass

  setup(function() reference = tiny.reference(long) end)

  local function prefix(n) return table.move(long, 1, n, 1, {}) end
  local function slice(first, last) return table.move(long, first, last, 1, {}) end

  ---@param on table  options of the models
  local function describe_results(on)
    local function model_with(options)
      for name, value in pairs(on) do options[name] = value end
      return tiny.model(options)
    end

    local own
    setup(function() own = tiny.reference(long, on) end)

    for _, chunk in ipairs { 1, 3, 64, 511, 512 } do
      it("do not depend on how the prompt is cut: chunks of " .. chunk, function()
        local model <close> = model_with { chunk = chunk }
        local seq <close> = model:sequence {}
        local n = chunk < 10 and 150 or 600
        seq:feed(prefix(n))
        assert.equal(own[n], seq.logits:bytes())
        seq:feed(slice(n + 1, n + 4)) -- crosses nothing, then a single token
        assert.equal(own[n + 4], seq.logits:bytes())
        seq:push(long[n + 5])
        assert.equal(own[n + 5], seq.logits:bytes())
        local rows = tiny.oracle(model, prefix(130))
        for i = 1, 130 do assert.equal(own[i], rows[i]) end
      end)
    end

    for _, size in ipairs { 1, 2, 7, 8, 9, 33, 64 } do
      it("do not depend on who shares the step: " .. size .. " sequences", function()
        local model <close> = model_with { chunk = 50 }
        local sequences, lengths, dice = {}, {}, tiny.dice(size)
        for i = 1, size do
          sequences[i] = model:sequence {}
          lengths[i] = dice(3) == 1 and 1 or dice(70)
          sequences[i]:feed(prefix(lengths[i]))
        end
        for _ = 1, 3 do
          assert.is_true(model:step(sequences))
          for i, seq in ipairs(sequences) do assert.equal(own[lengths[i]], seq.logits:bytes()) end
          for i, seq in ipairs(sequences) do -- decode most, prefill some, leave some as they are
            local n = ({ 1, 1, 1, 0, 17 })[dice(5)]
            seq:feed(slice(lengths[i] + 1, lengths[i] + n))
            lengths[i] = lengths[i] + n
          end
        end
        for _, seq in ipairs(sequences) do seq:close() end
        assert.equal(0, model:stats().n_pages_used)
      end)
    end

    it("follow a naive oracle through random feeds, forks, rewinds, releases, steps and closes", function()
      local judge <close> = model_with { chunk = 512 }
      local known = {} -- logits by timeline
      local function expected(ids)
        local key = table.concat(ids, " ")
        if not known[key] then
          local rows = tiny.oracle(judge, ids)
          known[key] = rows[#rows]
        end
        return known[key]
      end
      for seed = 1, 8 do
        local model <close> = model_with { chunk = ({ 1, 3, 5, 16, 64, 512, 64, 5 })[seed],
          pool = seed > 4 and 320 or 0 }
        local dice = tiny.dice(seed)
        local live = { { seq = model:sequence {}, ids = {} } }
        local function drop(entry)
          entry.seq:close()
          for i, other in ipairs(live) do
            if other == entry then return table.remove(live, i) end
          end
        end
        ---Step; where the pool is full, close one of the others until it is not.
        local function step(sequences, kept)
          while true do
            local ok, message, code = model:step(sequences())
            if ok then return end
            if code ~= err.FULL then error(message) end
            local victim = live[dice(#live)]
            if victim ~= kept then drop(victim) end
          end
        end
        local function look(entry)
          step(function() return { entry.seq } end, entry)
          assert.equal(#entry.ids, entry.seq:pos())
          assert.same(entry.ids, entry.seq:tokens())
          if #entry.ids > 0 then assert.equal(expected(entry.ids), entry.seq.logits:bytes()) end
        end
        local operations = {
          function(entry)
            local ids = tiny.ids(dice(dice(4) == 1 and 90 or 4), dice(1000))
            if #entry.ids + #ids > 300 then return end
            entry.seq:feed(ids)
            table.move(ids, 1, #ids, #entry.ids + 1, entry.ids)
          end,
          function(entry)
            if #live >= 6 then return end
            live[#live + 1] = { seq = entry.seq:fork {}, ids = table.move(entry.ids, 1, #entry.ids, 1, {}) }
          end,
          function(entry)
            local pos = dice(#entry.ids + 1) - 1
            entry.seq:rewind(pos)
            for i = #entry.ids, pos + 1, -1 do entry.ids[i] = nil end
          end,
          function(entry)
            step(function()
              local sequences = {}
              for _, other in ipairs(live) do
                if other == entry or dice(3) > 1 then sequences[#sequences + 1] = other.seq end
              end
              return sequences
            end, entry)
          end,
          look,
          function(entry) entry.seq:release() end,
          function(entry)
            if #live > 1 and dice(3) == 1 then drop(entry) end
          end,
        }
        for _ = 1, 120 do operations[dice(#operations)](live[dice(#live)]) end
        while live[1] do
          look(live[1])
          drop(live[1])
        end
        assert.equal(0, model:stats().n_pages_used)
      end
    end)
  end

  for _, device in ipairs(tiny.variants) do
    describe("results on " .. device.name, function() describe_results(device.options) end)
  end

  it("does not depend on the number of threads", function()
    local own = tiny.reference(long, { device = "cpu", threads = 1 })
    for _, threads in ipairs { 2, 3, 5 } do
      local model <close> = tiny.model { device = "cpu", threads = threads, chunk = 100 }
      local seq <close> = model:sequence {}
      seq:feed(prefix(250))
      for i = 251, 260 do
        assert.equal(own[i - 1], seq.logits:bytes())
        seq:push(long[i])
      end
    end
  end)

  describe("the reference models give the same bits", function()
    local models = require "spec.model_fixtures"

    local function check(model, prompt, rows)
      local crowd = {}
      for i = 1, 9 do -- prompts of all lengths, then a decoding step of all but one, which reads on
        crowd[i] = model:sequence {}
        crowd[i]:feed(table.move(prompt, 1, 2 * i - 1, 1, {}))
      end
      assert.is_true(model:step(crowd))
      for i, seq in ipairs(crowd) do
        assert.equal(rows(2 * i - 1), seq.logits:bytes())
        seq:feed(table.move(prompt, 2 * i, i == 4 and 2 * i + 9 or 2 * i, 1, {}))
      end
      crowd[10] = crowd[9]:fork {}
      assert.is_true(model:step(crowd))
      for i, seq in ipairs(crowd) do
        assert.equal(rows(seq:pos()), seq.logits:bytes(), "sequence " .. i)
        seq:close()
      end
    end

    for _, device in ipairs(tiny.devices) do
      for _, name in ipairs(models.names) do
        it(("alone, in company and however cut: %s on %s"):format(name, device.name), function()
          local fixture = models.get(name)
          local all
          for _, chunk in ipairs { 512, 1, 3, 7, 16 } do
            local options = { chunk = chunk }
            for k, v in pairs(device.options) do options[k] = v end
            local model <close> = models.open(fixture.path, options)
            local logits <close> = assert(model:logits(fixture.prompt))
            all = all or logits:bytes()
            assert.is_true(all == logits:bytes(), "chunks of " .. chunk)
            local size = model.vocab_size * 4
            check(model, fixture.prompt, function(pos) return all:sub((pos - 1) * size + 1, pos * size) end)
          end
        end)
      end
    end
  end)

  describe("numbers that are none", function()
    local models = require "spec.model_fixtures"
    for _, device in ipairs(tiny.devices) do
      it("stay in their sequence and leave its pages with it: on " .. device.name, function()
        local options = { pool = 200, chunk = 8 }
        for k, v in pairs(device.options) do options[k] = v end
        local model <close> = models.open(models.get("llama256_q8_0").path, options)
        assert.equal(1, model:scramble("token_embd", 3)) -- scales land among the weights: some tokens become NaN
        local bad, good
        for id = 0, 50 do
          local logits <close> = assert(model:logits { id })
          local sum = logits:sum()
          if sum ~= sum then bad = bad or id else good = good or id end
        end
        local function clean(company)
          local seq <close> = model:sequence {}
          local all = {}
          for i = 1, 20 do
            seq:push(good)
            if company then company:feed { bad, bad } end
            assert.is_true(model:step { company or seq, company and seq or nil })
            all[i] = seq.logits:bytes()
          end
          return table.concat(all)
        end
        local expected = clean()
        do
          local poison <close> = model:sequence {}
          local ids = {}
          for i = 1, 100 do ids[i] = bad end
          poison:feed(ids)
          local sum = poison.logits:sum()
          assert.is_true(sum ~= sum)
          assert.is_true(expected == clean(poison))
        end
        assert.is_true(expected == clean())
      end)
    end
  end)

  it("counts tokens and passes", function()
    local model <close> = tiny.model { chunk = 10 }
    local a <close> = model:sequence {}
    local b <close> = model:sequence {}
    a:feed(prefix(25))
    b:push(1)
    assert.is_true(model:step { a, b })
    assert.equal(26, model:stats().n_tokens_evaluated)
    assert.equal(3, model:stats().n_steps)
    assert.is_true(model:step { a, b }) -- nothing is pending
    assert.equal(3, model:stats().n_steps)
  end)

  it("refuses a sequence that is named twice, foreign ones and things that are none", function()
    local model <close> = tiny.model {}
    local other <close> = tiny.model {}
    local a <close> = model:sequence {}
    local b <close> = other:sequence {}
    a:feed { 1, 2 }
    assert.has_error(function() model:step { a, a } end)
    assert.has_error(function() model:step { a, b } end)
    assert.has_error(function() model:step { a, 1 } end)
    assert.has_error(function() model:step(a) end)
    assert.is_true(model:step {})
    assert.is_true(model:step { a })
    assert.equal(2, a:pos())
  end)

  describe("a turn of a scheduler", function()
    it("goes on where a limit stopped it, with rows of all positions", function()
      for seed = 1, 6 do
        local model <close> = tiny.model { chunk = ({ 3, 7, 64 })[seed % 3 + 1] }
        local dice = tiny.dice(seed)
        local n, from = 40 + dice(60), dice(30) - 1
        local a <close> = model:sequence {}
        local b <close> = model:sequence {}
        a:feed(prefix(n))
        b:feed(prefix(5))
        local rows <close> = core.zeros(n - from, tiny.vocab)
        while a:pending() > 0 do
          if dice(8) == 1 then a:release() end
          if b:pending() == 0 then b:push(long[b:pos() + 1]) end
          local before = a:pending()
          local most = dice(9)
          assert(model:advance({ { seq = a, most = most, rows = rows, from = from }, { seq = b } }, {}))
          assert.equal(before - math.min(most, before), a:pending())
          assert.equal(reference[b:pos()], b.logits:bytes())
        end
        assert.equal(reference[n], a.logits:bytes())
        assert.equal(table.concat(reference, "", from + 1, n), rows:bytes())
      end
    end)

    it("draws for some while it evaluates others, in one pass", function()
      local model <close> = tiny.model {}
      local chain <close> = core.chain { { kind = "top_k", k = 5 } }
      local other <close> = core.chain {}
      local alone, shared = {}, {}
      for i = 1, 3 do
        for _, list in ipairs { alone, shared } do
          list[i] = model:sequence { seed = i }
          list[i]:feed(prefix(9 + i))
        end
      end
      local expected = { assert(alone[1]:draw(chain)), assert(alone[2]:draw(other)) }
      local before = model:stats().n_steps
      assert.same(expected, model:advance({ { seq = shared[3] } },
        { { seq = shared[1], chain = chain }, { seq = shared[2], chain = other, ahead = 4 } }))
      assert.equal(before + 1, model:stats().n_steps)
      assert.equal(reference[12], shared[3].logits:bytes())
      for i = 1, 3 do
        alone[i]:close()
        shared[i]:close()
      end
    end)

    it("refuses what is no item, foreign sequences and rows that are too few", function()
      local model <close> = tiny.model {}
      local elsewhere <close> = tiny.model {}
      local a <close> = model:sequence {}
      local b <close> = elsewhere:sequence {}
      local chain <close> = core.chain {}
      local rows <close> = core.zeros(2, tiny.vocab)
      a:feed { 1, 2, 3 }
      b:feed { 1 }
      local steps = { { a }, { { seq = b } }, { { seq = a, rows = rows } }, { { seq = a, rows = rows, from = -1 } },
        { { seq = a, most = -1 } }, { { seq = a }, { seq = a } }, 1 }
      local draws = { { { seq = a } }, { { seq = b, chain = chain } }, { { seq = a, chain = chain, ahead = 0 } },
        { { seq = model:sequence {}, chain = chain } }, 1 }
      for _, wrong in ipairs(steps) do assert.has_error(function() model:advance(wrong, {}) end) end
      for _, wrong in ipairs(draws) do assert.has_error(function() model:advance({}, wrong) end) end
      assert.equal(3, a:pending())
      assert.same({}, model:advance({ { seq = a, rows = rows, from = 1 } }, {}))
      assert.equal(reference and table.concat(tiny.reference { 1, 2, 3 }, "", 2, 3), rows:bytes())
    end)
  end)

  it("lets an empty sequence pass", function()
    local model <close> = tiny.model {}
    local a <close> = model:sequence {}
    assert.is_true(model:step { a })
    assert.has_error(function() return a.logits end)
  end)

  describe("progress", function()
    it("is reported between the passes of a prefill, not while decoding", function()
      local model <close> = tiny.model { chunk = 10 }
      local seen = {}
      model:set_progress(function(...) seen[#seen + 1] = table.concat({ ... }, " ") end)
      local seq <close> = model:sequence {}
      seq:feed(prefix(25))
      assert.equal(reference[25], seq.logits:bytes())
      assert.same({ "prefill 0 25", "prefill 10 25", "prefill 20 25", "prefill 25 25" }, seen)
      seq:push(long[26])
      assert.equal(reference[26], seq.logits:bytes())
      assert.equal(4, #seen)
      model:set_progress(nil)
      seq:feed(slice(27, 60))
      assert.equal(reference[60], seq.logits:bytes())
      assert.equal(4, #seen)
    end)

    it("cancels by returning true; repeating the call completes", function()
      local model <close> = tiny.model { chunk = 10, prefix_cache = false }
      for at = 0, 40, 10 do
        model:set_progress(function(_, done) return done == at end)
        local a <close> = model:sequence {}
        local b <close> = model:sequence {}
        a:feed(prefix(39))
        b:push(long[1])
        local ok, _, code = model:step { a, b }
        assert.is_nil(ok)
        assert.equal(err.CANCELLED, code)
        assert.equal(39, a:pos())
        model:set_progress(nil)
        if at > 0 then -- decoding went first
          local before = model:stats().n_steps
          assert.equal(reference[1], b.logits:bytes())
          assert.equal(before, model:stats().n_steps)
        end
        assert.is_true(model:step { a, b })
        assert.equal(reference[39], a.logits:bytes())
      end
    end)

    it("passes an error of the function on, with its value, and leaves the sequence usable", function()
      local model <close> = tiny.model { chunk = 10 }
      local seq <close> = model:sequence {}
      seq:feed(prefix(25))
      local problem = { "mine" }
      model:set_progress(function(_, done) if done == 10 then error(problem) end end)
      local ok, caught = pcall(seq.step, seq)
      assert.is_false(ok)
      assert.equal(problem, caught)
      model:set_progress(function() error("oh dear") end)
      ok, caught = pcall(function() return seq.logits end)
      assert.is_false(ok)
      assert.matches("oh dear.*traceback", caught)
      ok, caught = pcall(model.logits, model, prefix(30))
      assert.is_false(ok)
      assert.matches("oh dear", caught)
      assert.equal(1, model:stats().n_sequences)
      model:set_progress(nil)
      assert.equal(reference[25], seq.logits:bytes())
    end)

    it("cannot change what is being stepped", function()
      local model <close> = tiny.model { chunk = 10 }
      local seq <close> = model:sequence {}
      seq:feed(prefix(25))
      local refused, tried = 0, {
        function() seq:feed { 1 } end, function() seq:push(1) end, function() seq:rewind(0) end,
        function() seq:fork {} end, function() seq:close() end, function() model:close() end,
        function() model:step { seq } end, function() return seq.logits:bytes() end, function() model:sequence {} end,
        function() model:logits { 1 } end, function() model:scramble("blk", 1) end,
      }
      local looks
      model:set_progress(function()
        for _, f in ipairs(tried) do
          if not pcall(f) then refused = refused + 1 end
        end
        looks = { seq:pos(), #seq:tokens(), model.vocab_size, model:stats().n_sequences }
        collectgarbage()
      end)
      assert.is_true(seq:step())
      assert.equal(4 * #tried - 1, refused) -- after the last pass the logits are there to look at
      assert.same({ 25, 25, tiny.vocab, 1 }, looks)
      model:set_progress(nil)
      assert.equal(reference[25], seq.logits:bytes())
    end)

    it("may let go of the sequences that are being stepped", function()
      local model <close> = tiny.model { chunk = 5 }
      local list = {}
      for i = 1, 4 do
        list[i] = model:sequence {}
        list[i]:feed(prefix(9))
      end
      model:set_progress(function()
        for i = 1, 4 do list[i] = nil end
        collectgarbage()
        collectgarbage()
      end)
      assert.is_true(model:step(list))
      collectgarbage()
      collectgarbage()
      assert.equal(0, model:stats().n_sequences)
    end)
  end)

  describe("a pool that is full", function()
    it("is an error that leaves timelines alone; making room lets the step go on", function()
      local model <close> = tiny.model { pool = 256, chunk = 100, prefix_cache = false }
      local a <close> = model:sequence {}
      local b <close> = model:sequence {}
      a:feed(prefix(200))
      b:feed(prefix(150))
      assert.is_true(a:step())
      local ok, message, code = b:step()
      assert.is_nil(ok)
      assert.equal(err.FULL, code)
      assert.matches("full", message)
      assert.equal(150, b:pos())
      assert.equal(reference[200], a.logits:bytes())
      assert.has_error(function() return b.logits end)
      a:close()
      assert.equal(reference[150], b.logits:bytes())
    end)

    it("counts the copy of a shared page", function()
      local model <close> = tiny.model { pool = 1 } -- one page
      local a <close> = model:sequence {}
      a:feed(prefix(3))
      assert.is_true(a:step())
      local b <close> = a:fork {}
      a:push(long[4])
      local ok, _, code = a:step()
      assert.is_nil(ok)
      assert.equal(err.FULL, code)
      assert.equal(reference[3], b.logits:bytes())
      b:close()
      assert.equal(reference[4], a.logits:bytes())
    end)

    it("shares pages between forks and copies only the one that is written to", function()
      local model <close> = tiny.model {}
      local a <close> = model:sequence {}
      a:feed(prefix(300))
      assert.is_true(a:step())
      local used = model:stats().n_pages_used
      local b <close> = a:fork {}
      local c <close> = a:fork {}
      assert.equal(used, model:stats().n_pages_used)
      b:push(long[301])
      c:push(long[302])
      a:push(long[301])
      assert.is_true(model:step { a, b, c })
      assert.is_true(model:stats().n_pages_used <= used + 3)
      assert.equal(reference[301], a.logits:bytes())
      assert.equal(reference[301], b.logits:bytes())
      assert.not_equal(reference[301], c.logits:bytes())
    end)
  end)

  it("survives the failure of every allocation", function()
    collectgarbage()
    local live_before = core.alloc_counts()
    local n = tiny.fail_each_allocation(function()
      local model = tiny.model { chunk = 16 }
      local a = model:sequence {}
      local b = model:sequence {}
      a:feed(prefix(70))
      b:push(long[1])
      return { model = model, a, b }
    end, function(list)
      local ok, message, code = list.model:step(list)
      if not ok then return nil, message, code end
      list[3], message, code = list[1]:fork {}
      if not list[3] then return nil, message, code end
      list[3]:push(long[71])
      return list[3]:step()
    end, function(list)
      assert.equal(70, list[1]:pos())
      assert.is_true(list.model:step(list))
      assert.equal(reference[70], list[1].logits:bytes())
      assert.equal(reference[1], list[2].logits:bytes())
      if list[3] then assert.equal(reference[list[3]:pos()], list[3].logits:bytes()) end
      for _, seq in ipairs(list) do seq:close() end
      collectgarbage() -- a fork that was made but never returned
      assert.equal(0, list.model:stats().n_sequences)
      assert.equal(0, list.model:stats().n_pages_used)
      list.model:close()
    end)
    assert.is_true(n > 30)
    collectgarbage()
    collectgarbage()
    assert.is_true(core.alloc_counts() - live_before < n / 2)
  end)

  it("decodes without allocating in the engine", function()
    local model <close> = tiny.model {}
    local seq <close> = model:sequence {}
    seq:feed(prefix(10))
    assert.is_true(seq:step())
    local logits = seq.logits
    for i = 11, 40 do
      seq:push(long[i])
      assert.equal(logits, seq.logits) -- the same handle, new numbers
    end
    assert.equal(reference[40], logits:bytes())
  end)
end)
