-- Drawing ahead: nothing but the clock may tell it from drawing one by one.
describe("drawing ahead", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = core.err

  local chains = {
    greedy = { { kind = "greedy" } },
    ["a flat draw"] = { { kind = "temp", value = 3 } },
    ["all stages"] = { { kind = "penalties", last = 9, presence = 0.4, ["repeat"] = 1.2 },
      { kind = "bias", values = { [3] = 1, [7] = -math.huge } }, { kind = "top_k", k = 30 },
      { kind = "typical", value = 0.95 },
      { kind = "top_p", value = 0.9 }, { kind = "min_p", value = 0.02 }, { kind = "temp", value = 1.5 } },
    ["stages that draw"] = { { kind = "bias", values = {}, phrases = { { 3, 5, value = 2 }, { 1, 2, 4, value = 3 } } },
      { kind = "xtc", probability = 0.5, threshold = 0.02 }, { kind = "top_n_sigma", value = 2 },
      { kind = "dynatemp", low = 0.5, high = 2 }, { kind = "xtc", probability = 0.3, threshold = 0.05 } },
    ["what the host draws"] = { { kind = "dry", multiplier = 2, allowed = 1 }, { kind = "mirostat", tau = 3 } },
    ["the whole history"] = { { kind = "penalties", last = -1, frequency = 0.3 } },
  }

  local function counted(model, f)
    local before = model:stats()
    local result = f()
    local after = model:stats()
    return result, after.n_tokens_evaluated - before.n_tokens_evaluated, after.n_steps - before.n_steps
  end

  ---What n draws give, with counters, and what is left behind them.
  local function run(model, chain, n, ahead, prompt)
    local seq <close> = model:sequence { seed = 5, prefix_cache = false }
    seq:feed(prompt)
    local ids, n_tokens, n_steps = counted(model, function()
      local ids = {}
      for i = 1, n do
        ids[i] = assert(seq:draw(chain, ahead))
        seq:push(ids[i])
      end
      return ids
    end)
    return { ids = ids, n_tokens = n_tokens, n_steps = n_steps, timeline = seq:tokens(), logits = seq.logits:bytes(),
      uniform = seq.rng:uniform() }
  end

  for _, device in ipairs(tiny.variants) do
    describe("on " .. device.name, function()
      local model
      setup(function()
        local options = { prefix_cache = false } -- tokens are counted
        for key, value in pairs(device.options) do options[key] = value end
        model = tiny.model(options)
      end)
      teardown(function() model:close() end)

      for name, stages in pairs(chains) do
        it("gives the same ids, counters and logits: " .. name, function()
          local chain <close> = core.chain(stages)
          local prompt = tiny.ids(70, 3)
          local expected = run(model, chain, 60, 1, prompt)
          for _, ahead in ipairs { 2, 3, 16, 59, 60, 200 } do
            assert.same(expected, run(model, chain, 60, ahead, prompt))
          end
        end)
      end

      it("serves many at once, who come and go", function()
        local chain <close> = core.chain(chains["all stages"])
        local function play(ahead)
          local seqs, said, n = {}, {}, 0
          for round = 1, 40 do
            if round % 4 == 1 then
              n = n + 1
              seqs[#seqs + 1] = { name = n, seq = model:sequence { seed = n } }
              seqs[#seqs].seq:feed(tiny.ids(3 * n + 1, n))
              said[n] = {}
            end
            if round % 11 == 0 then table.remove(seqs, 1).seq:close() end
            local all = {}
            for i, s in ipairs(seqs) do all[i] = s.seq end
            local ids = assert(model:draw(all, chain, ahead))
            for i, s in ipairs(seqs) do
              table.insert(said[s.name], ids[i])
              s.seq:push(ids[i])
            end
          end
          for _, s in ipairs(seqs) do
            table.insert(said[s.name], s.seq.logits:bytes())
            s.seq:close()
          end
          return said
        end
        local expected, n_tokens, n_steps = counted(model, function() return play(1) end)
        for _, ahead in ipairs { 2, 7, 16 } do
          local said, tokens, steps = counted(model, function() return play(ahead) end)
          assert.same(expected, said)
          if not device.has_states then assert.equal(n_tokens, tokens) end -- those evaluate some again where they stop
          assert.is_true(steps >= n_steps)
        end
      end)

      it("lets others in while the device may be at work", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local other <close> = core.chain(chains["stages that draw"])
        local function play(ahead)
          local said, seqs = {}, {}
          for i = 1, 6 do
            seqs[i] = model:sequence { seed = i }
            seqs[i]:feed(tiny.ids(5 * i, i))
          end
          local groups = { { seqs[1], seqs[2] }, { seqs[3], seqs[4], seqs[5] }, { seqs[6] } }
          for round = 1, 24 do
            local group = groups[round % 3 + 1]
            local ids = assert(model:draw(group, round % 3 == 1 and other or chain, ahead))
            for i, seq in ipairs(group) do
              said[#said + 1] = ids[i]
              seq:push(ids[i])
            end
            if round % 4 == 0 then -- from logits that are there, beside looks
              local one <close> = group[1]:fork { seed = round }
              said[#said + 1] = other(one.logits, one)
            end
            if round % 5 == 0 then said[#said + 1] = group[#group].rng:uniform() end
            if round % 7 == 0 then group[1]:rewind(group[1]:pos() - 2) end
            if round == 10 then table.remove(groups[2], 2):close() end
            if round == 13 then said[#said + 1] = seqs[1].logits:bytes() end
          end
          for i, seq in ipairs(seqs) do
            if i ~= 4 then said[#said + 1] = seq.logits:bytes() end
            seq:close()
          end
          return said
        end
        local expected = play(1)
        for _, ahead in ipairs { 2, 5, 16 } do assert.same(expected, play(ahead)) end
      end)

      it("lets a model go in the middle of it", function()
        local chain <close> = core.chain(chains["a flat draw"])
        for n = 1, 3 do
          local own = tiny.model(device.options)
          local seqs = {}
          for i = 1, n do
            seqs[i] = own:sequence { seed = i }
            seqs[i]:feed(tiny.ids(9, i))
          end
          local ids = assert(own:draw(seqs, chain, 32))
          assert.equal(n, #ids)
          for i = 1, n do seqs[i]:close() end
          assert.equal(0, own:stats().n_pages_used)
          assert.equal(n * 31, own:stats().n_tokens_dropped)
          own:close()
        end
      end)

      it("goes where the caller goes", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local other <close> = core.chain(chains.greedy)
        local function play(ahead)
          local seq <close> = model:sequence { seed = 2 }
          local said = {}
          local function say(...) for _, value in ipairs { ... } do said[#said + 1] = value end end
          seq:feed(tiny.ids(20))
          for i = 1, 6 do
            say(seq:draw(chain, ahead))
            seq:push(said[#said])
            if i == 2 then seq:push((said[#said] + 1) % tiny.vocab) end -- something else
            if i == 3 then say(seq.logits:bytes()) end                 -- a look at the logits
            if i == 4 then seq:feed { 4, 5, 6 } end
            if i == 5 then say(seq:draw(other, ahead)) end             -- another chain, then this one again
          end
          say(seq:draw(chain, ahead), seq:draw(chain, ahead))           -- twice from one position
          local mark = seq:mark()
          seq:push(seq:draw(chain, ahead))
          say(seq:draw(chain, ahead))
          seq:rewind(mark)
          say(seq:draw(chain, ahead), seq:pos())
          seq:push(seq:draw(chain, ahead))
          local fork <close> = seq:fork {}
          for _ = 1, 5 do
            local id = seq:draw(chain, ahead)
            say(id, fork:draw(chain, 1))
            assert.equal(said[#said], id)
            seq:push(id)
            fork:push(id)
          end
          say(seq.rng:uniform(), seq.logits:bytes(), fork.logits:bytes())
          return said
        end
        local expected = play(1)
        for _, ahead in ipairs { 2, 8, 40 } do assert.same(expected, play(ahead)) end
      end)

      it("is the same for one whose pages were given back, logits that somebody wrote to included", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local function play(ahead, releases)
          local dice, said = tiny.dice(releases), {}
          local seq <close> = model:sequence { seed = 3 }
          local function look(value)
            said[#said + 1] = value
            if releases > 0 and dice(2) == 1 then assert.is_number(seq:release()) end
          end
          seq:feed { 5 }
          for i = 1, 24 do
            if i % 6 == 0 then look(seq.logits:mul_(0.5):bytes()) end
            if i % 8 == 0 then seq:feed(tiny.ids(30, i)) end
            local id = seq:draw(chain, ahead)
            look(id)
            if i % 5 == 0 then look(seq.logits:bytes()) end
            if i % 7 == 0 then look(seq:fork({ seed = i }):draw(chain, ahead)) end
            seq:push(id)
            look(seq.rng:uniform())
          end
          return said
        end
        local expected = play(1, 0)
        for releases = 1, 6 do assert.same(expected, play(({ 1, 2, 16 })[releases % 3 + 1], releases)) end
        collectgarbage()
        assert.equal(0, model:stats().n_pages_used)
      end)

      it("draws again from logits that somebody wrote to", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local function play(ahead)
          local seq <close> = model:sequence { seed = 2 }
          seq:feed(tiny.ids(12))
          seq.logits:mul_(0.25)
          return { seq:draw(chain, ahead), (seq:draw(chain, ahead)), seq.logits:bytes() }
        end
        local expected = play(1)
        for _, ahead in ipairs { 2, 9 } do assert.same(expected, play(ahead)) end
      end)

      it("stops at the end of the context", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local plan <close> = tiny.plan(40, device.options.kind)
        local options = { ctx = 40 }
        for name, value in pairs(device.options) do options[name] = name ~= "kind" and value or nil end
        local small <close> = assert(core.model(plan, options))
        local seq <close> = small:sequence {}
        seq:feed(tiny.ids(30))
        for _ = 1, 10 do assert(seq:push(assert(seq:draw(chain, 16)))) end
        assert(seq:draw(chain, 16)) -- of the full context
        assert.equal(err.FULL, select(3, seq:push(1)))
      end)

      it("makes do with fewer where pages are short", function()
        local chain <close> = core.chain(chains["a flat draw"])
        local options = { pool = 64 }
        for name, value in pairs(device.options) do options[name] = value end
        local small <close> = tiny.model(options)
        local seq <close> = small:sequence { seed = 1 }
        local free <close> = model:sequence { seed = 1 }
        seq:feed(tiny.ids(50))
        free:feed(tiny.ids(50))
        for i = 1, 15 do
          local id = assert(seq:draw(chain, 16))
          if i == 1 then assert.equal(50, small:stats().n_tokens_evaluated) end -- none of them twice
          assert.equal((free:draw(chain)), id)
          seq:push(id)
          free:push(id)
        end
        assert.equal(err.FULL, select(3, seq:draw(chain, 16)))
        assert.equal(65, seq:pos())
      end)

      it("leaves what cannot be drawn to the chain, and says why", function()
        local none = {}
        for id = 0, tiny.vocab - 1 do none[id] = -math.huge end
        local chain <close> = core.chain { { kind = "bias", values = none } }
        local absent <close> = core.chain { { kind = "bias", values = { [tiny.vocab] = 1 } } }
        local good <close> = core.chain {}
        local seq <close> = model:sequence {}
        seq:feed { 1, 2, 3 }
        local id, _, code = seq:draw(chain, 16)
        assert.is_nil(id)
        assert.equal(err.NUMERIC, code)
        assert.error(function() seq:draw(absent, 16) end)
        assert.equal(3, seq:pos())
        assert(seq:draw(good, 16))
      end)
    end)
  end

  it("counts what nobody took apart", function()
    local model <close> = tiny.model {}
    local chain <close> = core.chain {}
    local seq <close> = model:sequence {}
    seq:feed { 1, 2, 3 }
    seq:push(seq:draw(chain, 10))
    seq:push(seq:draw(chain, 10))
    assert.equal(4, model:stats().n_tokens_evaluated)
    assert.equal(2, model:stats().n_steps)
    assert.equal(0, model:stats().n_tokens_dropped)
    seq:rewind(2)
    assert.equal(4, model:stats().n_tokens_evaluated)
    assert.equal(8, model:stats().n_tokens_dropped)
    assert.equal(8, model:stats().n_steps_dropped)
  end)

  it("refuses what it cannot mean", function()
    local model <close> = tiny.model {}
    local other <close> = tiny.model {}
    local chain <close> = core.chain {}
    local seq <close> = model:sequence {}
    local foreign <close> = other:sequence {}
    assert.error(function() seq:draw(chain, 4) end) -- empty
    seq:feed { 1 }
    foreign:feed { 1 }
    for _, ahead in ipairs { 0, -1, 1025, "x", 1.5 } do assert.error(function() seq:draw(chain, ahead) end) end
    assert.error(function() seq:draw() end)
    assert.error(function() seq:draw(seq) end)
    assert.error(function() model:draw({ seq, seq }, chain, 4) end)
    assert.error(function() model:draw({ seq, foreign }, chain, 4) end)
    assert.error(function() model:draw({ 1 }, chain, 4) end)
    assert.same({}, model:draw({}, chain, 4))
    local closed = core.chain {}
    seq:push(seq:draw(closed, 8))
    closed:close()
    assert.error(function() seq:draw(closed, 8) end)
    assert(seq:draw(chain, 8))
  end)

  it("survives the failure of every allocation", function()
    local chain <close> = core.chain(chains["all stages"])
    local function make()
      local model = tiny.model {}
      local seq = model:sequence { seed = 3 }
      seq:feed(tiny.ids(10))
      return { model = model, seq = seq }
    end
    local function say(o)
      local ids = {}
      for i = 1, 6 do
        local id, message, code = o.seq:draw(chain, 4)
        if not id then return nil, message, code end
        ids[i] = id
        local pos
        pos, message, code = o.seq:push(id)
        if not pos then return nil, message, code end
      end
      return ids
    end
    local whole = make()
    local expected = say(whole)
    whole.seq:close()
    whole.model:close()
    local n = tiny.fail_each_allocation(make, say, function(o)
      o.seq:rewind(o.seq:pos()) -- a draw that could not be pushed was a draw
      while o.seq:pos() < 16 do o.seq:push(assert(o.seq:draw(chain, 4))) end
      assert.same(expected, table.move(o.seq:tokens(), 11, 16, 1, {}))
      o.seq:close()
      o.model:close()
    end)
    assert.is_true(n > 10)
  end)
end)
