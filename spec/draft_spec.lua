-- Drafts: nothing but the clock and the counters may tell a timeline with one from a timeline without.
describe("a draft", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = core.err

  local chains = {
    { { kind = "greedy" } },
    { { kind = "temp", value = 2 } },
    { { kind = "penalties", last = 9, presence = 0.4, ["repeat"] = 1.2 }, { kind = "top_k", k = 30 },
      { kind = "temp", value = 1.5 } },
  }

  local slice = tiny.slice

  ---A right draft up to some place, and something else from there on; `future` is what will be fed.
  local function guess(dice, future)
    local n = dice(4) == 1 and dice(70) or dice(6)
    local ids = {}
    local n_right = dice(3) == 1 and n or dice(n + 1) - 1
    for i = 1, n do
      ids[i] = i <= n_right and future[i] or dice(tiny.vocab) - 1
    end
    return ids
  end

  ---A random life of a sequence, the same for the same seed whether there are drafts or not: what is drawn, with the
  ---logits that a look now and then saw, and what is left at the end.
  local function play(model, seed, futures, drafts)
    local dice, draft_dice, seen = tiny.dice(seed), tiny.dice(seed + 1000), {}
    local function see(...) for _, value in ipairs { ... } do seen[#seen + 1] = value end end
    local live = { { seq = model:sequence { seed = seed }, name = "0" } }
    live[1].seq:feed(tiny.ids(dice(40), seed))
    local chain <close> = core.chain(chains[dice(#chains)])
    local function in_place(logits, s) -- a sampler of Lua's, with a history of its own
      s.state.n = (s.state.n or 0) + 1
      logits:mul_(0.9)
      local ids, p = logits:topk(5)
      local least = math.huge
      for i = 1, 5 do least = math.min(least, p[i]) end
      for i = 1, 5 do p[i] = p[i] - least + s.state.n % 2 end
      return ids[s.rng:choose(p)]
    end
    for round = 1, 24 do
      local one = live[dice(#live)]
      local seq, future = one.seq, futures[one.name .. ":" .. round] or {}
      if drafts and draft_dice(3) > 1 then
        local expected = guess(draft_dice, future)
        assert.equal(math.min(#expected, 64), seq:expect(expected))
      end
      local fed = {}
      local action = dice(8)
      if action <= 5 then -- some tokens, one by one
        for _ = 1, dice(6) do
          local id = action <= 3 and assert(seq:draw(chain)) or in_place(seq.logits, seq)
          if dice(9) == 1 then id = dice(tiny.vocab) - 1 end
          if dice(5) == 1 then see(seq.logits:bytes()) end
          if dice(9) == 1 then see(seq.rng:uniform()) end
          assert(seq:push(id))
          fed[#fed + 1] = id
          see(id)
        end
      elseif action == 6 then -- some at once
        fed = tiny.ids(dice(20), round)
        seq:feed(fed)
      elseif action == 7 then
        local to = seq:pos() - dice(math.min(seq:pos(), 12)) + 1
        seq:rewind(to)
      elseif #live < 3 then
        live[#live + 1] = { seq = seq:fork { seed = dice(3) }, name = one.name .. "." .. round }
      else
        table.remove(live, dice(#live)).seq:close()
      end
      if not drafts then futures[one.name .. ":" .. round] = fed end
      if dice(4) == 1 then
        local all = {}
        for i, other in ipairs(live) do all[i] = other.seq end
        assert(model:step(all))
      end
    end
    for _, one in ipairs(live) do
      see(one.seq.logits:bytes(), one.seq.rng:uniform(), table.concat(one.seq:tokens(), " "))
      one.seq:close()
    end
    assert.equal(0, model:stats().n_pages_used)
    return seen
  end

  local n_lives = math.tointeger(tonumber(os.getenv "KIGO_SCHEDULES" or "")) or 12

  for _, device in ipairs(tiny.variants) do
    for _, chunk in ipairs { 512, 3 } do
      it(("changes nothing but the speed of %d lives: on %s in chunks of %d"):format(n_lives, device.name, chunk),
        function()
        local options = { chunk = chunk }
        for name, value in pairs(device.options) do options[name] = value end
        local model <close> = tiny.model(options)
        for seed = 1, n_lives do
          local futures = {}
          local expected = play(model, seed, futures, false)
          local drafted = play(model, seed, futures, true)
          assert.equal(table.concat(expected, "|"), table.concat(drafted, "|"), "seed " .. seed)
        end
        assert.is_true(model:stats().n_tokens_dropped > 0)
      end)
    end
  end

  describe("is evaluated with what is pending", function()
    local chain, ids, model
    setup(function()
      chain = core.chain(chains[1])
      model = tiny.model {}
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(10))
      ids = {}
      for i = 1, 30 do
        ids[i] = seq:draw(chain)
        seq:push(ids[i])
      end
    end)
    teardown(function()
      chain:close()
      model:close()
    end)

    local function begin()
      local seq = model:sequence { prefix_cache = false }
      seq:feed(tiny.ids(10))
      return seq
    end

    it("in one pass, and counted when it is reached", function()
      local seq <close> = begin()
      local before = model:stats()
      assert.equal(4, seq:expect(slice(ids, 1, 4)))
      assert.equal(10, seq:pending())
      for i = 1, 5 do
        assert.equal(ids[i], seq:draw(chain))
        if i < 5 then seq:push(ids[i]) end
        assert.equal(0, seq:pending())
        assert.equal(before.n_tokens_evaluated + 9 + math.min(i + 1, 5), model:stats().n_tokens_evaluated)
      end
      local stats = model:stats()
      assert.equal(before.n_steps + 1, stats.n_steps)
      assert.equal(before.n_tokens_dropped, stats.n_tokens_dropped)
      assert.same({ n_tokens_evaluated = 14, n_tokens_reused = 0, n_drafted = 4, n_accepted = 4 }, seq.stats)
    end)

    it("and dropped where the timeline goes another way", function()
      local seq <close> = begin()
      local before = model:stats()
      seq:expect(slice(ids, 1, 4))
      seq:push((seq:draw(chain)))
      seq:push((ids[2] + 1) % tiny.vocab)
      local stats = model:stats()
      assert.equal(before.n_tokens_dropped + 3, stats.n_tokens_dropped)
      assert.equal(before.n_tokens_evaluated + 11, stats.n_tokens_evaluated)
      assert.equal(1, seq:pending())
      assert.same({ n_tokens_evaluated = 11, n_tokens_reused = 0, n_drafted = 4, n_accepted = 1 }, seq.stats)
    end)

    it("not where nothing is pending: it waits for a pass that is", function()
      local seq <close> = begin()
      assert(seq:step())
      seq:expect(slice(ids, 1, 4))
      local before = model:stats().n_steps
      assert(seq:step())
      assert.equal(before, model:stats().n_steps)
      seq:push(ids[1])
      for i = 2, 5 do
        assert.equal(ids[i], seq:draw(chain))
        if i < 5 then seq:push(ids[i]) end
      end
      assert.equal(before + 1, model:stats().n_steps)
    end)

    it("together with other sequences' tokens and drafts", function()
      local seqs = { begin(), begin(), begin() }
      seqs[1]:expect(slice(ids, 1, 6))
      seqs[2]:expect { ids[1], ids[2], (ids[3] + 1) % tiny.vocab }
      local before = model:stats().n_steps
      assert(model:step(seqs))
      assert.equal(before + 1, model:stats().n_steps)
      for i = 1, 8 do
        local drawn = assert(model:draw(seqs, chain))
        for k, seq in ipairs(seqs) do
          assert.equal(ids[i], drawn[k])
          seq:push(drawn[k])
        end
      end
      for _, seq in ipairs(seqs) do seq:close() end
    end)

    it("and a fork takes no part in it", function()
      local seq <close> = begin()
      seq:expect(slice(ids, 1, 6))
      seq:push((seq:draw(chain)))
      local fork <close> = seq:fork {}
      for i = 2, 8 do
        local id = fork:draw(chain)
        assert.equal(ids[i], id)
        fork:push(i == 4 and 0 or id)
        if i == 4 then break end
      end
      for i = 2, 8 do
        assert.equal(ids[i], seq:draw(chain))
        seq:push(ids[i])
      end
      assert.equal(6, seq.stats.n_accepted)
      assert.equal(0, fork.stats.n_accepted)
    end)
  end)

  describe("never makes a step fail", function()
    local chain <const> = core.chain(chains[1])
    local function draw_all(seq, n, draft)
      local ids = {}
      for i = 1, n do
        if draft and seq:pending() > 0 then seq:expect(slice(draft, i, #draft)) end
        local id, _, code = seq:draw(chain)
        if not id then return ids, code end
        ids[i] = id
        local pos
        pos, _, code = seq:push(id)
        if not pos then return ids, code end
      end
      return ids
    end

    it("where the pool is full", function()
      local page = core.model(tiny.plan(), { device = "reference" }):stats().page
      local model <close> = tiny.model { pool = 2 * page, chunk = 20 }
      local function run(draft)
        local a <close> = model:sequence {}
        local b <close> = model:sequence {}
        a:feed(tiny.ids(page - 3))
        local ids = { draw_all(a, 3, draft) }
        b:feed(tiny.ids(page))
        assert(model:step { b })
        if draft then a:expect(slice(draft, 4, 10)) end
        assert(model:step { a, b })
        ids[2] = { draw_all(a, 10, draft and slice(draft, 4, #draft)) }
        return ids
      end
      local expected = run()
      assert.equal(err.FULL, expected[2][2])
      local all = table.move(expected[2][1], 1, #expected[2][1], 4, slice(expected[1], 1, 3))
      for i = #all + 1, 30 do all[i] = 1 end
      assert.same(expected, run(all))
      assert.equal(0, model:stats().n_pages_used)
    end)

    it("where another sequence of the step wants the page", function()
      local page = core.model(tiny.plan(), { device = "reference" }):stats().page
      local model <close> = tiny.model { pool = 3 * page }
      local a <close> = model:sequence {}
      local b <close> = model:sequence {}
      a:feed(tiny.ids(page - 1))
      b:feed(tiny.ids(page))
      assert(model:step { a, b })
      a:push(1)
      b:push(1)
      a:expect(tiny.ids(9))
      assert(model:step { a, b })
    end)

    it("where the context ends", function()
      local plan <close> = tiny.plan(30)
      local model <close> = assert(core.model(plan, { device = "reference" }))
      local function run(draft)
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(20))
        local ids, code = draw_all(seq, 20, draft)
        return { ids, code, seq:tokens(), seq.logits:bytes() }
      end
      local expected = run()
      assert.equal(err.FULL, expected[2])
      assert.same(expected, run(table.move(tiny.ids(40), 1, 40, 12, slice(expected[1], 1, 11))))
    end)
  end)

  it("refuses what it cannot mean, and stays as it was", function()
    local model <close> = tiny.model {}
    local seq <close> = model:sequence {}
    seq:feed { 1, 2, 3 }
    assert.equal(2, seq:expect { 4, 5 })
    for _, bad in ipairs { { -1 }, { tiny.vocab }, { 1, "x" }, { 1.5 }, { {} } } do
      assert.error(function() seq:expect(bad) end)
    end
    assert.error(function() seq:expect() end)
    assert.error(function() seq:expect(1) end)
    assert(seq:step())
    assert.equal(2, seq.stats.n_drafted)
    assert.equal(0, seq:expect {})
    assert.error(function() seq.stats = 1 end)
    assert.equal(2, model:stats().n_tokens_dropped)
    local closed = model:sequence {}
    closed:close()
    for _, name in ipairs { "expect", "pending", "lookup", "common" } do
      assert.error(function() closed[name](closed, {}) end)
    end
  end)

  it("survives the failure of every allocation", function()
    local chain <close> = core.chain(chains[3])
    local function make()
      local model = tiny.model { chunk = 8 }
      local seq = model:sequence { seed = 3 }
      seq:feed(tiny.ids(10))
      return { model = model, seq = seq }
    end
    local function say(o, draft)
      local ids = {}
      for i = 1, 8 do
        local id, kept, message, code
        if draft then
          kept, message, code = o.seq:expect(slice(draft, i, i + 2))
          if not kept then return nil, message, code end
        end
        id, message, code = o.seq:draw(chain)
        if not id then return nil, message, code end
        kept, message, code = o.seq:push(id)
        if not kept then return nil, message, code end
        ids[i] = id
      end
      return ids
    end
    local whole = make()
    local expected = say(whole)
    whole.seq:close()
    whole.model:close()
    local n = tiny.fail_each_allocation(make, function(o) return say(o, expected) end, function(o)
      o.seq:rewind(o.seq:pos()) -- a draw that could not be pushed was a draw
      while o.seq:pos() < 18 do o.seq:push(assert(o.seq:draw(chain))) end
      assert.same(expected, slice(o.seq:tokens(), 11, 18))
      o.seq:close()
      assert.equal(0, o.model:stats().n_pages_used)
      o.model:close()
    end)
    assert.is_true(n > 10)
  end)

  describe("looked up", function()
    local model
    setup(function() model = tiny.model {} end)
    teardown(function() model:close() end)

    ---The same, as one would say it.
    local function naive(ids, longest, shortest, most)
      for length = math.min(longest, #ids - 1), shortest, -1 do
        for first = #ids - length, 1, -1 do
          local same = true
          for i = 0, length - 1 do same = same and ids[first + i] == ids[#ids - length + 1 + i] end
          if same then return slice(ids, first + length, math.min(#ids, first + length + most - 1)) end
        end
      end
      return {}
    end

    it("is what followed the last tokens before", function()
      local seq <close> = model:sequence {}
      assert.same({}, seq:lookup(3, 1, 5))
      seq:feed { 1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3 }
      assert.same({ 4, 9, 2, 3 }, seq:lookup(3, 1, 4))
      assert.same({ 5, 1, 2, 3 }, seq:lookup(2, 1, 9))
      assert.same({}, seq:lookup(2, 1, 0))
      seq:push(7)
      assert.same({}, seq:lookup(3, 1, 4))
      assert.error(function() seq:lookup(1, 2, 4) end)
      assert.error(function() seq:lookup(17, 1, 4) end)
      assert.error(function() seq:lookup(0, 0, 4) end)
      assert.error(function() seq:lookup(3, 1, -1) end)
    end)

    it("agrees with a search that tries everything", function()
      for seed = 1, 300 do
        local dice, ids = tiny.dice(seed), {}
        for i = 1, dice(60) do ids[i] = dice(4) end
        local longest, most = dice(6), dice(8)
        local shortest = dice(longest)
        local seq <close> = model:sequence {}
        seq:feed(ids)
        assert.same(naive(ids, longest, shortest, most), seq:lookup(longest, shortest, most))
      end
    end)

    it("knows how far two timelines are the same", function()
      local a <close> = model:sequence {}
      local b <close> = model:sequence {}
      assert.equal(0, a:common(b))
      a:feed { 1, 2, 3, 4 }
      b:feed { 1, 2, 3 }
      assert.equal(3, a:common(b))
      b:feed { 5, 6 }
      assert.equal(3, a:common(b))
      assert.equal(5, b:common(b))
      assert.error(function() a:common(1) end)
    end)
  end)
end)
