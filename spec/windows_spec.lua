-- Attention with a window lets go of cache pages. Nothing but memory, the clock and the counters may tell: the judge is
-- one pass over all ids, which lets nothing go before it is computed.
describe("windows", function()
  local kigo = require "kigo"
  local core = kigo.core
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = core.err

  local PAGE, SLACK, LONG
  setup(function()
    local model <close> = tiny.model {}
    PAGE = model:stats().page
    SLACK, LONG = 2 * PAGE, 9 * PAGE + 200
  end)

  local slice = tiny.slice

  ---A function that gives the logits behind the first n of some ids, as bytes.
  local function judge_of(device, kind, ids)
    local model <close> = tiny.model_on(device, { kind = kind, chunk = #ids, prefix_cache = false })
    return tiny.oracle(model, ids)
  end

  local function feed_to(seq, ids, n)
    while seq:pos() < n do
      assert(seq:push(ids[seq:pos() + 1]))
      assert(seq:step())
    end
  end

  ---Rows that it takes to have the logits again.
  local function cost(seq)
    local before = seq.stats.n_tokens_evaluated
    local bytes = seq.logits:bytes()
    return seq.stats.n_tokens_evaluated - before, bytes
  end

  local cpu = tiny.devices[2]

  -- ---- what is let go, and what stays ----

  describe("of a sequence", function()
    local model, ids, judge
    setup(function()
      ids = tiny.ids(LONG)
      judge = judge_of(cpu, "plain", ids)
    end)
    before_each(function() model = tiny.model_on(cpu, { prefix_cache = false }) end)
    after_each(function() model:close() end)

    local function prompt(n)
      local seq = assert(model:sequence {})
      seq:feed(slice(ids, 1, n))
      assert(seq:step())
      return seq
    end

    local function window_pages() return model:stats().page_groups[2].n_pages_used end

    it("let its pages go as it grows", function()
      local seq <close> = prompt(PAGE)
      local most = 0
      for n = PAGE + 1, LONG do
        feed_to(seq, ids, n)
        most = math.max(most, window_pages())
        if n % 31 == 0 then assert.is_true(judge[n] == seq.logits:bytes()) end
      end
      local held = (20 + SLACK) // PAGE + 2 + 2 * (20 // PAGE + 2) -- now, and on both sides of the prompt
      assert.is_true(most <= held, most .. " pages")
      local groups = model:stats().page_groups
      assert.same({ 0, 20 }, { groups[1].window, groups[2].window })
      assert.equal((LONG - 1) // PAGE + 1, groups[1].n_pages_used)
      assert.equal(model:stats().kv_bytes,
        groups[1].n_pages * groups[1].page_bytes + groups[2].n_pages * groups[2].page_bytes)
      seq:close()
      assert.equal(0, window_pages())
    end)

    it("let them go in a long prompt too, of which much is in one pass", function()
      local seq <close> = prompt(LONG)
      assert.is_true(judge[LONG] == seq.logits:bytes())
      assert.is_true(window_pages() <= (20 + SLACK) // PAGE + 2 + 2 * (20 // PAGE + 2))
    end)

    it("stay for going back a little", function()
      local seq <close> = prompt(LONG - 50)
      feed_to(seq, ids, LONG)
      for _, back in ipairs { 1, 7, SLACK // 2, SLACK } do
        seq:rewind(LONG - back)
        local rows, bytes = cost(seq)
        assert.equal(1, rows)
        assert.is_true(bytes == judge[LONG - back])
        feed_to(seq, ids, LONG)
      end
    end)

    it("stay for both ends of the latest prompt", function()
      local seq <close> = prompt(3 * PAGE)
      feed_to(seq, ids, 4 * PAGE)
      seq:feed(slice(ids, 4 * PAGE + 1, 5 * PAGE + 3))
      assert(seq:step())
      feed_to(seq, ids, LONG)
      for _, pos in ipairs { 5 * PAGE + 3, 4 * PAGE } do
        seq:rewind(pos)
        assert.equal(1, seq:pending())
        local rows, bytes = cost(seq)
        assert.equal(1, rows)
        assert.is_true(bytes == judge[pos])
        feed_to(seq, ids, pos + 9)
        assert.is_true(judge[pos + 9] == seq.logits:bytes())
      end
    end)

    it("are computed again where they are missing, and nobody can tell", function()
      local seq <close> = prompt(2 * PAGE)
      feed_to(seq, ids, LONG)
      seq:rewind(7 * PAGE + 5) -- behind the prompt, before the slack
      assert.is_true(seq:pending() > 1)
      local rows, bytes = cost(seq)
      assert.is_true(rows > 1 and rows <= 5 * PAGE + 6, rows .. " rows")
      assert.is_true(bytes == judge[7 * PAGE + 5])
      seq:rewind(2)
      seq:feed(slice(ids, 3, LONG))
      assert.is_true(seq.logits:bytes() == judge[LONG])
    end)

    it("stay while there is a mark, in forks too, and no longer", function()
      local seq <close> = prompt(PAGE)
      feed_to(seq, ids, 4 * PAGE + 9)
      local mark = seq:mark()
      feed_to(seq, ids, 6 * PAGE)
      local fork = assert(seq:fork {})
      feed_to(fork, ids, LONG)
      feed_to(seq, ids, LONG)
      local pages = window_pages()
      for _, each in ipairs { seq, fork } do
        assert.equal(4 * PAGE + 9, each:rewind(mark))
        local rows, bytes = cost(each)
        assert.equal(1, rows)
        assert.is_true(bytes == judge[4 * PAGE + 9])
        feed_to(each, ids, LONG)
      end
      assert.is_true(window_pages() <= pages + 4)
      mark = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      seq:push(ids[1])
      assert(seq:step())
      fork:close()
      seq:rewind(4 * PAGE + 9)
      assert.is_true(seq:pending() > 1)
      assert.is_true(seq.logits:bytes() == judge[4 * PAGE + 9])
    end)

    it("stay of a hooked one, as evaluated again they might be others", function()
      local seq <close> = prompt(5 * PAGE)
      feed_to(seq, ids, 6 * PAGE)
      local seen = {}
      local hook = assert(seq:hook("blk.0.out", function(_, _, pos) seen[#seen + 1] = pos end))
      feed_to(seq, ids, LONG)
      assert.equal(LONG - 6 * PAGE, #seen)
      seq:rewind(6 * PAGE + 1)
      assert.equal(1, (cost(seq)))
      seen = {}
      seq:rewind(PAGE + 3) -- what was there before the hook is computed again without it
      assert.is_true(seq.logits:bytes() == judge[PAGE + 3])
      assert.same({ PAGE + 2 }, seen)
      hook:close()
    end)

    it("are not what files hold, and what comes back goes on", function()
      local path = os.tmpname()
      local seq <close> = prompt(6 * PAGE)
      feed_to(seq, ids, LONG)
      assert(seq:save(path))
      local groups, bytes = model:stats().page_groups, #support.read(path)
      assert.is_true(bytes < LONG // PAGE * (groups[1].page_bytes + groups[2].page_bytes))
      for _, pos in ipairs { LONG, LONG - 3, 6 * PAGE, PAGE + 1 } do
        local again <close> = assert(model:restore(path))
        again:rewind(pos)
        local twin <close> = assert(seq:fork {})
        twin:rewind(pos)
        assert.equal(twin:pending(), again:pending())
        assert.is_true(again.logits:bytes() == judge[pos])
        feed_to(again, ids, LONG)
        assert.is_true(again.logits:bytes() == judge[LONG])
      end
      os.remove(path)
    end)
  end)

  it("let a sequence grow longer than its pool where all layers have one", function()
    local ids = tiny.ids(LONG)
    for _, device in ipairs(tiny.devices) do
      local judge = judge_of(device, "narrow", ids)
      local model <close> = tiny.model_on(device, { kind = "narrow", pool = 7 * PAGE + 60, chunk = PAGE })
      local seq <close> = model:sequence {}
      seq:feed(ids)
      assert(seq:step())
      assert.is_true(seq.logits:bytes() == judge[LONG])
      local most = 7 + 60 // PAGE
      assert.is_true(seq:pages() <= most and most < LONG // PAGE)
      assert.is_true(model:stats().n_pages_used <= most)
      assert.equal(seq:pages(), seq:release())
    end
  end)

  describe("and the prefix cache", function()
    local function evaluate(model, ids)
      local seq <close> = model:sequence {}
      seq:feed(ids)
      assert(seq:step())
      return seq.stats.n_tokens_evaluated, seq.logits:bytes()
    end

    it("find where a sequence ended, and where it was asked", function()
      local ids = tiny.ids(LONG)
      local judge = judge_of(cpu, "plain", ids)
      local model <close> = tiny.model_on(cpu, {})
      do
        local seq <close> = model:sequence {}
        seq:feed(slice(ids, 1, 5 * PAGE))
        assert(seq:step())
        feed_to(seq, ids, 9 * PAGE)
      end
      for _, n in ipairs { 9 * PAGE + 3, 9 * PAGE, 5 * PAGE + 1 } do
        local rows, bytes = evaluate(model, slice(ids, 1, n))
        assert.is_true(rows <= 4, rows .. " rows")
        assert.is_true(bytes == judge[n])
      end
    end)

    it("learn where others go another way", function()
      local model <close> = tiny.model_on(cpu, { prefix_cache = 40 * PAGE })
      local common, rows, n = tiny.ids(3 * PAGE + 9, 5), {}, 12 * PAGE + 9
      for i = 1, 4 do -- their prompts begin alike, and they go far from there
        local seq <close> = model:sequence {}
        local ids = slice(common, 1, #common)
        table.move(tiny.ids(9 * PAGE, 10 + i), 1, 9 * PAGE, #ids + 1, ids)
        seq:feed(slice(ids, 1, 8 * PAGE))
        assert(seq:step())
        feed_to(seq, ids, #ids)
        rows[i] = seq.stats.n_tokens_evaluated
        assert.is_true(seq.logits:bytes() == judge_of(cpu, "plain", ids)[#ids])
      end
      assert.same({ n, 9 * PAGE, 9 * PAGE }, { rows[1], rows[3], rows[4] })
      assert.is_true(rows[2] >= 9 * PAGE and rows[2] <= n)
    end)

    it("know nothing once the weights have changed", function()
      local ids = tiny.ids(LONG)
      local model <close> = tiny.model_on(cpu, {})
      local held <close> = model:sequence {}
      held:feed(ids)
      assert(held:step())
      evaluate(model, slice(ids, 1, 5 * PAGE))
      model:scramble("blk.1.", 1)
      for _, group in ipairs(model:stats().page_groups) do assert.equal(0, group.n_pages_kept) end
      local rows, bytes = evaluate(model, ids)
      assert.equal(LONG, rows)
      held:rewind(LONG // 2)
      held:close()
      assert.is_true(bytes == select(2, evaluate(model, ids)))
      for _, group in ipairs(model:stats().page_groups) do assert.equal(0, group.n_pages_used) end
    end)
  end)

  -- ---- whatever happens ----

  ---@class spec.WindowLife
  ---@field seq kigo.Sequence
  ---@field way integer[]   its ids, and what follows them
  ---@field marks table[]

  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  local acts = {}
  function acts.feed(one, dice)
    local pos, far = one.seq:pos(), dice(4) == 1 and 6 * PAGE or 40
    assert(one.seq:feed(slice(one.way, pos + 1, math.min(#one.way, pos + dice(far)))))
  end
  function acts.step(one) return one.seq:pos() == 0 or one.seq:step() end
  function acts.draw(one, dice) -- several ahead, of which the way takes the first ones
    local pick <close> = core.chain { { kind = "temp", value = 9 }, { kind = "dist" } }
    if one.seq:pos() == 0 then return true end
    for _ = 1, dice(4) do
      local pos, id, message, code = one.seq:pos(), one.seq:draw(pick, dice(6))
      if not id then return nil, message, code end
      if pos == #one.way or id ~= one.way[pos + 1] then break end
      assert(one.seq:push(id))
    end
    return true
  end
  function acts.expect(one, dice)
    local pos = one.seq:pos()
    local draft = slice(one.way, pos + 1, math.min(#one.way, pos + dice(9)))
    if dice(2) == 1 then draft[#draft + 1] = dice(48) - 1 end
    one.seq:expect(draft)
    if pos == 0 or pos == #one.way then return true end
    local done, message, code = one.seq:step()
    if not done then return nil, message, code end
    assert(one.seq:push(one.way[pos + 1]))
    return true
  end
  function acts.rewind(one, dice)
    local pos = one.seq:pos()
    one.seq:rewind(dice(2) == 1 and pos - dice(math.min(pos, 20) + 1) + 1 or dice(pos + 1) - 1)
  end
  function acts.mark(one) table.insert(one.marks, { pos = one.seq:pos(), mark = one.seq:mark() }) end
  function acts.unmark(one, dice)
    if one.marks[1] then table.remove(one.marks, dice(#one.marks)) end
    collectgarbage()
  end
  function acts.rewind_to_mark(one, dice)
    local to = one.marks[1] and one.marks[dice(#one.marks)]
    if to and to.pos <= one.seq:pos() then assert.equal(to.pos, one.seq:rewind(to.mark)) end
  end
  function acts.release(one) assert(one.seq:release()) end
  function acts.fork(one, dice, all)
    local fork = { seq = assert(one.seq:fork {}), way = one.way, marks = slice(one.marks, 1, #one.marks) }
    local at = #all < 3 and #all + 1 or dice(3)
    if all[at] then all[at].seq:close() end
    all[at] = fork
  end
  function acts.other(_, dice, all, ways) -- another one, perhaps on the same way
    local at = #all < 3 and #all + 1 or dice(3)
    if all[at] then all[at].seq:close() end
    all[at] = { seq = assert(all.model:sequence { prefix_cache = dice(5) > 1 }), way = ways[dice(#ways)], marks = {} }
  end
  function acts.save(one)
    local saved, message, code = one.seq:save(path)
    if not saved then return nil, message, code end
    assert(one.seq:release()) -- what comes back needs as many pages
    local again
    again, message, code = one.seq.model:restore(path)
    if not again then return nil, message, code end
    one.seq:close()
    one.seq, one.marks = again, {}
    return true
  end
  function acts.look(one, _, _, _, judge)
    local pos = one.seq:pos()
    if pos == 0 then return true end
    local done, message, code = one.seq:step()
    if not done then return nil, message, code end
    assert(one.seq.logits:bytes() == judge[one.way][pos], "other logits")
    return true
  end
  local names = {}
  for name in pairs(acts) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs { "feed", "feed", "look", "look", "look", "rewind" } do names[#names + 1] = name end

  ---@return integer n  positions that were looked at
  local function live(model, number, ways, judge)
    local dice, done, n = tiny.dice(number), {}, 0
    local all = { model = model, { seq = assert(model:sequence {}), way = ways[dice(#ways)], marks = {} } }
    local function act(name, one)
      while true do
        local result, message, code = acts[name](one, dice, all, ways, judge)
        if code ~= err.FULL then
          assert(result ~= nil or code == nil, message)
          return
        end
        local other = all[dice(#all)] -- the pool is too small for all of them
        if #all == 1 or other == one then one.seq:release() else other.seq:release() end
        done[#done + 1] = "full"
        if #done > 400 then error "no end" end
      end
    end
    local good, message = xpcall(function()
      for _ = 1, 30 do
        local one, name = all[dice(#all)], names[dice(#names)]
        done[#done + 1] = name .. " at " .. one.seq:pos()
        act(name, one)
        n = n + (name == "look" and 1 or 0)
      end
      for i = #all, 1, -1 do
        for j = 1, #all do if j ~= i then all[j].seq:release() end end
        act("look", all[i])
      end
    end, debug.traceback)
    for _, one in ipairs(all) do one.seq:close() end
    if not good then error(("life %d: %s\nafter %s"):format(number, message, table.concat(done, ", ")), 0) end
    return n
  end

  local n_lives = math.tointeger(tonumber(os.getenv "KIGO_SCHEDULES" or "")) or 40

  for _, kind in ipairs { "plain", "narrow", "mixed", "wide" } do
    it(("through %d random lives of kind %s"):format(n_lives, kind), function()
      local ways, n = { tiny.ids(LONG, 3) }, 0
      for i = 1, 2 do -- that begin alike
        ways[1 + i] = slice(ways[1], 1, 2 * i * PAGE + 7)
        table.move(tiny.ids(LONG, 3 + i), 1, LONG - #ways[1 + i], #ways[1 + i] + 1, ways[1 + i])
      end
      for d, device in ipairs(tiny.devices) do
        if device.name ~= "reference" or kind == "plain" and PAGE < 64 then
          local judge = {}
          for _, way in ipairs(ways) do judge[way] = judge_of(device, kind, way) end
          local all = { { pool = LONG + PAGE, chunk = 33 }, { chunk = 2 * PAGE }, { prefix_cache = false } }
          for i, options in ipairs(all) do
            options.kind = kind
            local model <close> = tiny.model_on(device, options)
            for number = 1, n_lives // 6 + 1 do n = n + live(model, number * 40 + d * 5 + i, ways, judge) end
            collectgarbage()
            collectgarbage()
            for _, group in ipairs(model:stats().page_groups) do assert.equal(0, group.n_pages_used) end
          end
        end
      end
      assert.is_true(n > n_lives // 2)
    end)
  end

  it("in a scheduler whose pool is too small for all: what each makes alone", function()
    local scheduler = require "kigo.scheduler"
    local pick <close> = core.chain { { kind = "temp", value = 4 }, { kind = "dist" } }
    for _, kind in ipairs { "plain", "narrow" } do
      local function body(model, i)
        local seq = assert(model:sequence { seed = i })
        assert(seq:feed(tiny.ids(3 * PAGE + 50 * i, i)))
        local mark
        for j = 1, 30 do
          if j == 20 then mark = seq:mark() end
          assert(seq:push(assert(seq:draw(pick))))
        end
        seq:feed(tiny.ids(2 * PAGE, i + 9))
        assert(seq:step())
        seq:rewind(mark)
        seq:push(assert(seq:draw(pick)))
        assert(seq:step())
        return table.concat(seq:tokens(), " ") .. core.checksum(seq.logits:bytes())
      end
      local large <close> = tiny.model_on(cpu, { kind = kind, prefix_cache = false })
      local alone = {}
      for i = 1, 6 do alone[i] = body(large, i) end
      for _, pages in ipairs { 14, 20 } do
        local model <close> = tiny.model_on(cpu, { kind = kind, chunk = 50, pool = pages * PAGE + 300 })
        local together <close>, tasks = scheduler.new(model), {}
        for i = 1, 6 do tasks[i] = together:spawn(body, model, i) end
        assert(together:run())
        for i, task in ipairs(tasks) do assert.equal(alone[i], task.results[1]) end
      end
    end
  end)

  it("when a full context is shifted", function()
    local ids = tiny.ids(LONG)
    local model <close> = tiny.model_on(cpu, { ctx = 6 * PAGE + 40 })
    local judge <close> = tiny.model_on(cpu, { chunk = LONG, prefix_cache = false })
    local seq <close> = model:sequence { on_overflow = "shift" }
    seq.keep = 7
    for i, id in ipairs(ids) do
      assert(seq:push(id))
      if i % 9 == 0 then assert(seq:step()) end
    end
    assert.is_true(seq.shifted > 0)
    assert.is_true(seq.logits:bytes() == tiny.oracle(judge, seq:tokens())[seq:pos()])
  end)

  it("leave nothing behind when memory fails", function()
    local ids = tiny.ids(9 * PAGE + 5)
    local expected
    local function run(model)
      local seq <close>, message, code = model:sequence {}
      if not seq then return nil, message, code end
      local other
      local function try(...)
        if not (...) then error(table.pack(...), 0) end
        return ...
      end
      local ok, problem = pcall(function()
        try(seq:feed(slice(ids, 1, 7 * PAGE)))
        try(seq:step())
        local mark = seq:mark()
        other = try(seq:fork {})
        try(seq:feed(slice(ids, 7 * PAGE + 1, #ids)))
        try(seq:step())
        try(seq:rewind(3 * PAGE))
        try(seq:step())
        if mark then try(other:rewind(mark)) end
        try(other:feed(slice(ids, 7 * PAGE + 1, #ids)))
        try(other:step())
      end)
      local bytes = ok and other.logits:bytes()
      if other then other:close() end
      if not ok then
        if type(problem) ~= "table" then error(problem, 0) end
        return table.unpack(problem, 1, 3)
      end
      assert(not expected or bytes == expected, "other logits")
      expected = expected or bytes
      return true
    end
    local model <close> = tiny.model { device = "cpu", threads = 1, chunk = 64 }
    assert(run(model))
    local n = tiny.fail_each_allocation(function() return model end, run, function()
      collectgarbage()
      for _, group in ipairs(model:stats().page_groups) do assert.equal(0, group.n_pages_used) end
    end)
    assert.is_true(n > 40, n .. " failures")
    assert(run(model))
  end)

  it("hold less than a third of the memory: five layers in six, 1024 of 32768 positions", function()
    -- The made-up model is narrow; only that all of it is there makes this take a second, and sanitized builds longer.
    local n, n_drawn = 32768, 1500
    if os.getenv "ASAN_OPTIONS" then n, n_drawn = 4096, 100 end
    local options = { kind = "gemma", device = "cpu", threads = 1, kv = "f16", ctx = 32768, pool = 32768 }
    local model <close> = tiny.model(options)
    local seq <close> = model:sequence {}
    seq:feed(tiny.ids(n - n_drawn))
    assert(seq:step())
    local pick <close> = core.chain { { kind = "greedy" } }
    for _ = 1, n_drawn do assert(seq:push(assert(seq:draw(pick)))) end -- away from its prompt, which is kept too
    local groups, pages = model:stats().page_groups, 32768 // PAGE
    local bytes = pages * groups[1].page_bytes + groups[2].n_pages * groups[2].page_bytes
    local full = pages * (groups[1].page_bytes + groups[2].page_bytes)
    assert.is_true(3 * bytes < full, ("%d of %d"):format(bytes, full))
    if n == 32768 then assert.equal(bytes, model:stats().kv_bytes) end
    -- Going back further than to what is kept computes as much again, or what is between two places to come back to.
    for _, pos in ipairs { n - n_drawn // 2, n - n_drawn, n - 2 * n_drawn, n * 3 // 4 + 10, n // 2 } do
      seq:rewind(pos)
      local most = 1 + math.max(2 * (n - pos), 8 * 1024)
      assert.is_true(seq:pending() <= most, ("%d rows for %d"):format(seq:pending(), pos))
    end
  end)
end)
