-- Schedulers: whatever shares the passes, is preempted, cancelled or fails, a body computes what it computes alone.
-- KIGO_SCHEDULES=10000 goes on for longer.
describe("kigo.scheduler", function()
  local kigo = require "kigo"
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local err = kigo.err

  local function is_clean(model)
    collectgarbage()
    local stats = model:stats()
    assert.equal(0, stats.n_sequences)
    assert.equal(0, stats.n_pages_used)
    assert.equal(stats.n_states_kept, stats.n_states_used)
  end

  ---@return fun(...)  that notes values in a list, logits by their bits
  local function notes(said)
    return function(...)
      for _, value in ipairs { ... } do
        said[#said + 1] = type(value) == "userdata" and core.sha256(value:bytes()):sub(1, 16) or value
      end
    end
  end

  ---Sample with a Lua function.
  local function sampled(seq)
    local ids, scores = seq.logits:topk(6)
    local weights = {}
    for i, score in ipairs(scores) do weights[i] = math.exp(score - scores[1]) end
    return ids[seq.rng:choose(weights)]
  end

  -- ---- random bodies ----

  local chains = { core.chain { kigo.top_k(7), kigo.temp(1.3) },
    core.chain { kigo.penalties { last = 9, ["repeat"] = 1.4 } }, core.chain { kigo.greedy() },
    core.chain { kigo.mirostat(2, 0.2) } }
  local MOST = 110 -- tokens on a timeline

  -- What a body may do. Each takes (b, dice): b.live are the body's sequences, b.say notes what it saw.
  local deeds = {
    function(b, dice) b:feed(tiny.ids(dice(4), dice(1000))) end,
    function(b, dice) b:feed(tiny.ids(dice(50), dice(1000))) end,
    function(b) if b.seq:pos() > 0 then b.say(b.seq.logits) end end,
    function(b, dice) -- a loop with a sampler in Lua
      for _ = 1, b:pos_for(dice(5)) do
        local id = sampled(b.seq)
        b.say(id)
        b:feed { id }
      end
    end,
    function(b, dice) -- with a chain
      local chain, ahead = chains[dice(#chains)], dice(2) == 1 and 1 or dice(6)
      for _ = 1, b:pos_for(dice(5)) do
        local id = assert(b.seq:draw(chain, ahead))
        b.say(id)
        if dice(6) > 1 then b:feed { id } end
      end
    end,
    function(b, dice) -- logits that were written to, and another sequence's pass before they are read again
      if b.seq:pos() == 0 then return end
      b.seq.logits:mul_(0.5)
      if #b.live > 1 then
        local other = b.live[dice(#b.live)]
        if other:pos() > 0 then b.say(other.logits) end
      end
      b.say(b.seq.logits, assert(b.seq:draw(chains[1])))
    end,
    function(b, dice) if #b.live < 3 then b.live[#b.live + 1] = assert(b.seq:fork { seed = dice(9) }) end end,
    function(b, dice) b.seq = b.live[dice(#b.live)] end,
    function(b)
      if #b.live < 2 then return end
      table.remove(b.live):close()
      b.seq = b.live[1]
    end,
    function(b, dice)
      local mark = b.seq:mark()
      b:feed(tiny.ids(dice(9), 5))
      if b.seq:pos() > 0 then b.say(b.seq.logits) end
      b.say(b.seq.rng:uniform())
      b.seq:rewind(mark)
      b.say(b.seq.rng:uniform())
    end,
    function(b, dice) b.seq:rewind(dice(b.seq:pos() + 1) - 1) end,
    function(b, dice) b.say(assert(b.model:logits(tiny.ids(dice(80), dice(50))))) end,
    function(b) -- all at once
      assert(b.model:step(b.live))
      for _, seq in ipairs(b.live) do
        if seq:pos() > 0 then b.say(seq.logits) end
      end
    end,
    function(b)
      for _, seq in ipairs(b.live) do
        if seq:pos() == 0 then return end
      end
      b.say(table.unpack(assert(b.model:draw(b.live, chains[1]))))
    end,
    function(b) -- within pcall, and out of it by an error
      local ok, message = pcall(function()
        if b.seq:pos() > 0 then b.say(b.seq.logits) end
        error("caught", 0)
      end)
      assert(not ok and message == "caught", message)
    end,
    function(b, dice) -- where a coroutine cannot yield
      if b.seq:pos() == 0 or b.seq:pos() >= MOST then return end
      b:feed { dice(40) }
      local list = { 3, 1, 2 }
      table.sort(list, function(x, y)
        b.say(b.seq.logits)
        return x < y
      end)
      b.say(table.unpack(list))
    end,
    function(b, dice) -- from an iterator that is a coroutine
      if b.seq:pos() == 0 then return end
      for id in coroutine.wrap(function()
        for _ = 1, b:pos_for(dice(3)) do
          local id = sampled(b.seq)
          b:feed { id }
          coroutine.yield(id)
        end
      end) do b.say(id) end
    end,
    function(b, dice) -- a draft, of which something may be right
      if b.seq:pos() == 0 or b.seq:pos() > MOST - 12 then return end
      local draft = tiny.ids(dice(9), dice(50))
      if dice(2) == 1 then
        local ahead <close> = b.seq:fork()
        for i = 1, dice(#draft) do
          draft[i] = assert(ahead:draw(chains[1]))
          ahead:push(draft[i])
        end
      end
      local n, id = b.seq:verify(draft, dice(2) == 1 and chains[1] or function(_, seq) return sampled(seq) end)
      b.say(assert(n and id), n)
      b:feed { id }
    end,
    function(b, dice) -- to a file and back
      if dice(5) > 1 then return end
      local path = os.tmpname()
      assert(b.seq:save(path))
      local at
      for i, seq in ipairs(b.live) do at = seq == b.seq and i or at end
      b.seq:close()
      b.live[at] = assert(b.model:restore(path))
      b.seq = b.live[at]
      os.remove(path)
    end,
    function(b) b.seq:release() end,
    function(b) b.give_way() end,
    function(b, dice) -- what changes the pass itself, where pages never have to be given up
      if not b.hooks or b.seq:pos() == 0 then return end
      local _ <close> = assert(b.seq:hook("blk.0.out", function(x) x:mul_(0.9) end))
      for _ = 1, b:pos_for(dice(3)) do
        b:feed { dice(40) }
        b.say(b.seq.logits)
      end
    end,
  }

  local Body = {}
  Body.__index = Body

  function Body:pos_for(n) return self.seq:pos() == 0 and 0 or math.min(n, MOST - self.seq:pos()) end

  function Body:feed(ids)
    if self.seq:pos() + #ids <= MOST then assert(self.seq:feed(ids)) end
  end

  ---Run the body of this seed.
  local function play(model, seed, say, give_way, hooks)
    local dice = tiny.dice(seed)
    local b = setmetatable({ model = model, say = say, give_way = give_way, hooks = hooks }, Body)
    b.live = { assert(model:sequence { seed = seed }) }
    local _ <close> = setmetatable({}, { __close = function()
      say "closed"
      for _, seq in ipairs(b.live) do seq:close() end
    end })
    b.seq = b.live[1]
    for _ = 1, 4 + dice(16) do deeds[dice(#deeds)](b, dice) end
    if dice(8) == 1 then error("on purpose", 0) end
    return seed, b.seq:pos()
  end

  local judges = {} -- models with room for everything, and what each body says alone there
  setup(function()
    for _, kind in ipairs { "plain", "hybrid" } do
      judges[kind] = { model = tiny.model { device = "cpu", threads = 1, kind = kind }, straight = {} }
    end
  end)
  teardown(function()
    for _, judge in pairs(judges) do
      is_clean(judge.model)
      judge.model:close()
    end
  end)

  local function alone(judge, seed, hooks)
    local key = seed .. (hooks and " with hooks" or "")
    if not judge.straight[key] then
      local said = {}
      local outcome = table.pack(pcall(play, judge.model, seed, notes(said), function() end, hooks))
      judge.straight[key] = { said = said, outcome = outcome }
    end
    return judge.straight[key]
  end

  local function is_prefix(said, of)
    for i, value in ipairs(said) do
      if value ~= of[i] and not (i == #said and value == "closed") then return false, i end
    end
    return true
  end

  ---A scheduler with random bodies, and random things that happen to them.
  local function run_schedule(model, seed, hooks, judge)
    local dice = tiny.dice(seed * 7919)
    local tasks, said, seeds = {}, {}, {}
    do
      local scheduler <close> = kigo.scheduler(model, { max = dice(8), budget = ({ 1, 3, 7, 64, 512 })[dice(5)] })
      local function add()
        local i = #tasks + 1
        seeds[i], said[i] = dice(3000), {}
        tasks[i] = scheduler:spawn(play, model, seeds[i], notes(said[i]), coroutine.yield, hooks)
        if dice(4) == 1 then tasks[i]:set_priority(dice(3)) end
      end
      for _ = 1, dice(8) do add() end
      local n_steps, closes = 0, dice(10) == 1 and dice(40)
      while assert(n_steps <= 20000, "no end") and scheduler:step() do
        n_steps = n_steps + 1
        if n_steps == closes then break end
        local what, task = dice(60), tasks[dice(#tasks)]
        if what == 1 and #tasks < 12 then add()
        elseif what == 2 then task:cancel()
        elseif what < 6 then task:set_priority(dice(3) - 2) end
      end
      if closes then scheduler:close() end
      for i, task in ipairs(tasks) do
        local expected = alone(judge, seeds[i], hooks)
        local about = ("schedule %d, body %d (%d): %s"):format(seed, i, seeds[i], tostring(task.error))
        if task.status == "done" then
          assert.is_true(expected.outcome[1], about)
          assert.same(expected.said, said[i], about)
          assert.same({ table.unpack(expected.outcome, 2) }, { table.unpack(task.results, 1, task.results.n) }, about)
        elseif task.status == "failed" then
          assert.is_false(expected.outcome[1], about)
          assert.same(expected.said, said[i], about)
          assert.equal(1, task.error:find(expected.outcome[2], 1, true), about)
        else
          assert.equal("cancelled", task.status)
          local same, at = is_prefix(said[i], expected.said)
          assert.is_true(same, same or about .. " at " .. at)
        end
      end
    end
    is_clean(model)
  end

  describe("random schedules", function()
    local n = tonumber(os.getenv "KIGO_SCHEDULES") or 180
    local shapes = { { chunk = 512 }, { chunk = 3 }, { chunk = 16, pool = 128 }, { chunk = 3, pool = 128 },
      { chunk = 64, pool = 320 }, { chunk = 1, pool = 192, kept = true }, { chunk = 3, pool = 128, kind = "hybrid" },
      { chunk = 64, kind = "hybrid" } }
    for i, shape in ipairs(shapes) do
      it(("say what their bodies say alone: chunks of %d, a pool of %s%s"):format(shape.chunk, shape.pool or "any size",
        shape.kind and ", with states" or ""),
        function()
          local model <close> = tiny.model { device = "cpu", threads = 1, chunk = shape.chunk, pool = shape.pool,
            prefix_cache = shape.kept or false, kind = shape.kind }
          for seed = i, n, #shapes do run_schedule(model, seed, not shape.pool, judges[shape.kind or "plain"]) end
        end)
    end
  end)

  -- ---- one thing at a time ----

  local function generating(n, sample)
    return function(seq, ids)
      assert(seq:feed(ids))
      local said = {}
      for i = 1, n do
        said[i] = sample(seq)
        assert(seq:push(said[i]))
      end
      return table.concat(said, " ")
    end
  end

  local function drawn(seq) return assert(seq:draw(chains[1], 3)) end

  describe("a step", function()
    it("computes what all wait for in one pass, whatever they sample with", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      for i = 1, 9 do
        scheduler:spawn(function()
          local seq = model:sequence { seed = i }
          return generating(6, i % 2 == 0 and sampled or function(s) return assert(s:draw(chains[1])) end)(seq, { i })
        end)
      end
      assert.is_true(scheduler:run())
      assert.equal(6, model:stats().n_steps)
      assert.equal(54, model:stats().n_tokens_evaluated)
      assert.equal(9, scheduler.n_ended)
      is_clean(model)
    end)

    it("lets nobody wait for more than a part of a long prompt", function()
      local model <close> = tiny.model { chunk = 16 }
      local scheduler <close> = kigo.scheduler(model)
      local n_pushed, at_end = 0, nil
      scheduler:spawn(function()
        local seq = model:sequence {}
        seq:push(1)
        while not at_end do
          seq:push((seq.logits:argmax()))
          n_pushed = n_pushed + 1
        end
      end)
      for _, length in ipairs { 150, 5 } do
        scheduler:spawn(function()
          local seq = model:sequence {}
          seq:feed(tiny.ids(length))
          assert(seq:step())
          if length == 150 then at_end = n_pushed end
        end)
      end
      local before = 0
      while scheduler:step() do
        local now = model:stats().n_tokens_evaluated
        assert.is_true(now - before <= 16)
        before = now
      end
      assert.is_true(at_end >= 9, at_end)
    end)

    it("goes round: those who had no turn come first, higher priorities before all", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model, { budget = 2 })
      local turns, tasks = {}, {}
      for i = 1, 5 do
        tasks[i] = scheduler:spawn(function()
          local seq = model:sequence {}
          for id = 1, 4 do
            seq:push(id)
            assert(seq:step())
            turns[#turns + 1] = i
          end
        end)
      end
      for _ = 1, 5 do scheduler:step() end
      table.sort(turns)
      assert.same({ 1, 1, 2, 2, 3, 3, 4, 4, 5, 5 }, turns)
      turns = {}
      tasks[4]:set_priority(1)
      scheduler:step()
      scheduler:step()
      table.sort(turns)
      assert.same({ 4, 4 }, { turns[#turns], turns[#turns - 1] })
      assert.equal("done", tasks[4].status)
      assert.is_true(scheduler:run())
    end)

    it("does not tell whose sequence it is: two bodies may wait for the same one", function()
      local model <close> = tiny.model {}
      local shared <close> = model:sequence {}
      shared:feed(tiny.ids(7))
      local scheduler <close> = kigo.scheduler(model)
      local seen = {}
      for i = 1, 3 do
        scheduler:spawn(function() seen[i] = shared.logits:bytes() end)
      end
      assert.is_true(scheduler:run())
      local expected = tiny.reference(tiny.ids(7))[7]
      assert.same({ expected, expected, expected }, seen)
    end)

    it("serves sequences of several models", function()
      local model <close> = tiny.model {}
      local other <close> = tiny.model { device = "cpu", threads = 1 }
      local scheduler <close> = kigo.scheduler(model)
      local texts = {}
      for i = 1, 4 do
        scheduler:spawn(function()
          for k, one in ipairs { model, other } do
            texts[i * 2 + k] = generating(4, sampled)(one:sequence { seed = i }, { i, 2 })
          end
        end)
      end
      assert.is_true(scheduler:run())
      assert.equal(4, model:stats().n_steps)
      assert.equal(4, other:stats().n_steps)
      for i = 1, 4 do
        local seq <close> = other:sequence { seed = i }
        assert.equal(generating(4, sampled)(seq, { i, 2 }), texts[i * 2 + 2])
      end
    end)

    it("cannot be taken within a step", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local task = scheduler:spawn(function() scheduler:step() end)
      scheduler:step()
      assert.equal("failed", task.status)
    end)
  end)

  describe("an error", function()
    it("in one body ends that one alone, with a traceback, <close> variables and all", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local closed = 0
      local bad = scheduler:spawn(function()
        local _ <close> = setmetatable({}, { __close = function() closed = closed + 1 end })
        local seq = model:sequence {}
        seq:push(1)
        return seq.logits[0] + seq.nothing
      end)
      local good = scheduler:spawn(function() return generating(5, sampled)(model:sequence {}, { 3 }) end)
      assert.is_true(scheduler:run())
      assert.equal("failed", bad.status)
      assert.matches("nothing", bad.error)
      assert.matches("stack traceback", bad.error)
      assert.equal(1, closed)
      assert.equal("done", good.status)
      assert.same({ false, bad.error }, { pcall(bad.wait, bad) })
      is_clean(model)
    end)

    it("that is no text is left as it is", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local object = { code = 7 }
      local task = scheduler:spawn(function() error(object) end)
      scheduler:run()
      assert.equal(object, task.error)
    end)

    it("in a pass reaches the one that caused it: NaN, a sequence or a chain that was closed", function()
      local model <close> = tiny.model { device = "cpu", threads = 1 }
      local scheduler <close> = kigo.scheduler(model, { budget = 8 })
      local codes, texts, victim, chain = {}, {}, nil, core.chain {}
      scheduler:spawn(function()
        local seq = model:sequence {}
        seq:push(1)
        seq.logits:fill_(0 / 0)
        codes[1] = select(3, seq:draw(chains[1]))
        codes[2] = select(3, model:draw({ seq, (seq:fork()) }, chains[1]))
      end)
      local victims = {}
      victims[1] = scheduler:spawn(function()
        victim = model:sequence {}
        victim:feed(tiny.ids(90))
        return victim.logits
      end)
      victims[2] = scheduler:spawn(function()
        local seq = model:sequence {}
        seq:feed(tiny.ids(90))
        return seq:draw(chain)
      end)
      victims[3] = scheduler:spawn(function() return model:draw({ (model:sequence {}) }, chains[1]) end)
      local closer = scheduler:spawn(function()
        coroutine.yield()
        victim:close()
        chain:close()
        local seq = model:sequence {}
        seq:push(1)
        return seq.logits and "went on"
      end)
      for i = 1, 3 do
        scheduler:spawn(function() texts[i] = generating(5, drawn)(model:sequence { seed = i }, { 3 }) end)
      end
      assert.is_true(scheduler:run())
      assert.same({ err.NUMERIC, err.NUMERIC }, codes)
      for i, why in ipairs { "Sequence is closed", "Chain is closed", "empty sequence" } do
        assert.equal("failed", victims[i].status)
        assert.matches(why, victims[i].error)
      end
      assert.equal("went on", closer:wait())
      for i = 1, 3 do
        local seq <close> = model:sequence { seed = i }
        assert.equal(generating(5, drawn)(seq, { 3 }), texts[i])
      end
    end)

    it("in a hook is that of its sequence, and the hook is not called again", function()
      local model <close> = tiny.model {}
      local n_calls, said = 0, {}
      local results, errors = model:batch({ errors = "collect" }, { 1, 2, 3, 4 }, function(seq, i)
        seq:feed(tiny.ids(i, i))
        local _ <close> = i == 3 and assert(seq:hook("blk.0.out", function()
          n_calls = n_calls + 1
          if n_calls == 1 then error "the first time" end
        end)) or nil
        if i % 2 == 0 then return drawn(seq) end
        said[i] = seq.logits:bytes()
        return i
      end)
      assert.same({ n_calls = 1, 1, nil, nil }, { n_calls = n_calls, results[1], results[3] })
      assert.matches("the first time", errors[3])
      assert.equal(tiny.reference(tiny.ids(1, 1))[1], said[1])
      assert.is_true(results[2] ~= nil and results[4] ~= nil)
    end)

    it("of the world is told to the body: a context and a pool that are too small", function()
      local model <close> = tiny.model { pool = 128 }
      local scheduler <close> = kigo.scheduler(model)
      local task = scheduler:spawn(function()
        local seq = model:sequence {}
        assert(seq:feed(tiny.ids(200)))
        local ok, message, code = seq:step()
        assert(not ok and message)
        seq:rewind(100)
        assert(seq:step())
        return code
      end)
      local other = scheduler:spawn(function() return generating(5, sampled)(model:sequence {}, tiny.ids(60)) end)
      assert.is_true(scheduler:run())
      assert.equal(err.FULL, task:wait())
      assert.is_string(other:wait())
      is_clean(model)
    end)
  end)

  describe("a full pool", function()
    it("makes the lowest give up its pages, and nobody notices", function()
      local model <close> = tiny.model { device = "cpu", threads = 1, pool = 256, chunk = 32 }
      local body = generating(100, sampled)
      local inputs = {}
      for i = 1, 7 do inputs[i] = tiny.ids(30 + 9 * i, i) end
      local texts = {}
      do
        local scheduler <close> = kigo.scheduler(model)
        for i, ids in ipairs(inputs) do
          scheduler:spawn(function() texts[i] = body(model:sequence { seed = i }, ids) end)
        end
        while scheduler:step() do
          local stats = model:stats()
          assert.is_true(stats.n_pages_used * stats.page <= 256)
        end
        assert.is_true(scheduler.n_preempted > 0)
      end
      is_clean(model)
      for i, ids in ipairs(inputs) do
        local seq <close> = judges.plain.model:sequence { seed = i }
        assert.equal(body(seq, ids), texts[i])
      end
    end)

    it("lets a body have more forks than there is room for", function()
      local model <close> = tiny.model { pool = 128 }
      local forks = 0
      local results = model:batch({}, { 1 }, function(seq)
        seq:feed(tiny.ids(70))
        local branches, said = {}, {}
        for i = 1, 4 do branches[i] = assert(seq:fork { seed = i }) end
        for _ = 1, 3 do
          assert(model:step(branches))
          for i, branch in ipairs(branches) do
            said[#said + 1] = sampled(branch)
            branch:push(said[#said])
            forks = math.max(forks, i)
          end
        end
        return #said
      end)
      assert.equal(12, results[1])
      assert.equal(4, forks)
      is_clean(model)
    end)

    it("serves the older one first, the one of higher priority before it", function()
      for _, priority in ipairs { 0, 1 } do
        local model <close> = tiny.model { pool = 128 }
        local scheduler <close> = kigo.scheduler(model)
        local ended = {}
        for i = 1, 3 do
          local task = scheduler:spawn(function()
            generating(10, sampled)(model:sequence {}, tiny.ids(80, i))
            ended[#ended + 1] = i
          end)
          if i == 3 then task:set_priority(priority) end
        end
        assert.is_true(scheduler:run())
        assert.same(priority == 0 and { 1, 2, 3 } or { 3, 1, 2 }, ended)
      end
    end)
  end)

  describe("task:cancel", function()
    it("ends a body wherever it is; its <close> variables run and its sequences are closed", function()
      local model <close> = tiny.model { chunk = 4 }
      for n = 0, 12 do
        local scheduler <close> = kigo.scheduler(model)
        local closed
        local task = scheduler:spawn(function()
          local _ <close> = setmetatable({}, { __close = function() closed = true end })
          local seq = model:sequence {}
          seq:feed(tiny.ids(20))
          seq:fork { seed = 2 }
          generating(5, sampled)(seq, { 1 })
        end)
        for _ = 1, n do scheduler:step() end
        local was_over = task.status == "done"
        assert.equal(not was_over, task:cancel())
        assert.equal(was_over and "done" or "cancelled", task.status)
        assert.equal(n > 0 or nil, closed)
        assert.is_false(scheduler:step())
        is_clean(model)
        if not was_over then assert.equal(err.CANCELLED, select(3, task:wait())) end
        assert.is_false(task:cancel())
      end
    end)

    it("by itself, by another body and while a pass is computed", function()
      local model <close> = tiny.model { chunk = 8 }
      local scheduler <close> = kigo.scheduler(model)
      local tasks, went_on = {}, false
      tasks[1] = scheduler:spawn(function()
        tasks[1]:cancel()
        went_on = true
      end)
      tasks[2] = scheduler:spawn(function()
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(30))
        assert(seq:step())
        went_on = true
      end)
      tasks[3] = scheduler:spawn(function() return coroutine.yield() and tasks[2]:cancel() end)
      tasks[4] = scheduler:spawn(function()
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(40))
        assert(seq:step())
        went_on = true
      end)
      model:set_progress(function() tasks[4]:cancel() end)
      tasks[5] = scheduler:spawn(function()
        coroutine.yield()
        table.sort({ 1, 2 }, function() tasks[5]:cancel() end)
        coroutine.yield()
        went_on = true
      end)
      assert.is_true(scheduler:run())
      model:set_progress(nil)
      for i, status in ipairs { "cancelled", "done", "done", "cancelled", "cancelled" } do
        if i ~= 2 then assert.equal(status, tasks[i].status, i) end
      end
      assert.is_false(went_on and tasks[2].status == "cancelled")
      is_clean(model)
    end)

    it("closes sequences that the body has not heard of yet", function()
      local model <close> = tiny.model { chunk = 4 }
      local path = os.tmpname()
      do
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(10))
        assert(seq:step())
        assert(seq:save(path))
      end
      collectgarbage()
      collectgarbage "stop"
      local scheduler <close> = kigo.scheduler(model)
      local task = scheduler:spawn(function() return model:restore(path):pos() end)
      local other = scheduler:spawn(function()
        local seq = model:sequence {}
        while task.status ~= "cancelled" do
          seq:push(1)
          assert(seq:step())
          task:cancel()
        end
      end)
      other:set_priority(1) -- goes on first when both have been served
      assert.is_true(scheduler:run())
      os.remove(path)
      assert.equal("cancelled", task.status)
      local stats = model:stats()
      collectgarbage "restart"
      assert.same({ 0, 0 }, { stats.n_sequences, stats.n_pages_used })
    end)

    it("reports an error of a <close> variable", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local task = scheduler:spawn(function()
        local _ <close> = setmetatable({}, { __close = function() error "closing failed" end })
        coroutine.yield()
      end)
      scheduler:step()
      task:cancel()
      assert.equal("cancelled", task.status)
      assert.matches("closing failed", task.error)
    end)

    it("comes with closing the scheduler", function()
      local model <close> = tiny.model {}
      local n_closed, tasks = 0, {}
      do
        local scheduler <close> = kigo.scheduler(model, { max = 3 })
        for i = 1, 5 do
          tasks[i] = scheduler:spawn(function()
            local seq <close> = model:sequence {}
            local _ <close> = setmetatable({}, { __close = function() n_closed = n_closed + 1 end })
            while true do
              seq:push(1)
              seq:step()
            end
          end)
        end
        for _ = 1, 4 do scheduler:step() end
      end
      for _, task in ipairs(tasks) do assert.equal("cancelled", task.status) end
      assert.equal(3, n_closed)
      is_clean(model)
    end)
  end)

  describe("task:wait", function()
    it("gives what the body returned, in and outside of bodies", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model, { max = 1 })
      local inner = scheduler:spawn(function() return generating(3, sampled)(model:sequence {}, { 1 }), nil, 3 end)
      local outer = scheduler:spawn(function()
        local child = scheduler:spawn(function()
          local seq = model:sequence {}
          seq:feed { 1, 2, 3 }
          return seq
        end)
        local seq <close> = child:wait()
        assert(seq:step())
        return seq:pos(), inner:wait()
      end)
      local text = inner:wait()
      assert.is_string(text)
      assert.same({ n = 4, 3, text, nil, 3 }, table.pack(outer:wait()))
      is_clean(model)
    end)

    it("refuses what would never end", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local a, b
      a = scheduler:spawn(function() b:wait() end)
      b = scheduler:spawn(function() a:wait() end)
      local c
      c = scheduler:spawn(function() c:wait() end)
      local d = scheduler:spawn(function() table.sort({ 1, 2 }, function() return c:wait() end) end)
      assert.is_true(scheduler:run())
      for _, task in ipairs { a, b, c, d } do assert.equal("failed", task.status) end
    end)

    it("keeps sequences that a body returns open", function()
      local model <close> = tiny.model {}
      local scheduler <close> = kigo.scheduler(model)
      local seq <close> = scheduler:spawn(function()
        local made = model:sequence {}
        made:feed { 5 }
        return made
      end):wait()
      assert.equal(1, seq:pos())
      assert.is_true(seq:step())
    end)
  end)

  describe("model:batch", function()
    local inputs = {}
    for i = 1, 12 do inputs[i] = tiny.ids(3 * i, i) end

    it("gives every input's result, as a plain loop does", function()
      local model <close> = tiny.model { chunk = 20 }
      for _, sample in ipairs { sampled, drawn } do
        local results, errors = model:batch({ max = 5, seed = 40 }, inputs, generating(8, sample))
        assert.equal(12, results.n)
        assert.same({}, errors)
        for i, ids in ipairs(inputs) do
          local seq <close> = model:sequence { seed = 39 + i }
          assert.equal(generating(8, sample)(seq, ids), results[i])
        end
      end
      assert.same({ { n = 0 }, {} }, { model:batch(nil, {}, sampled) })
      is_clean(model)
    end)

    it("within a body shares the passes of the batch around it", function()
      local model <close> = tiny.model {}
      local function body(seq, ids)
        local inner = model:batch({ seed = ids[1] }, { 1, 2, 3 }, function(s) return generating(3, sampled)(s, ids) end)
        return table.concat(inner, "|") .. generating(2, sampled)(seq, ids)
      end
      local results = model:batch({}, { { 1 }, { 2 }, { 3 } }, body)
      assert.equal(5, model:stats().n_steps)
      for i, ids in ipairs { { 1 }, { 2 }, { 3 } } do
        local seq <close> = model:sequence { seed = i - 1 }
        assert.equal(body(seq, ids), results[i])
      end
      is_clean(model)
    end)

    it("raises the first error, or collects them", function()
      local model <close> = tiny.model {}
      local function body(seq, ids, i)
        local text = generating(3, sampled)(seq, ids)
        if i == 2 then error "number two" end
        if i == 4 then return nil, "number four", err.IO end
        return text
      end
      local ok, message = pcall(model.batch, model, {}, inputs, body)
      assert.is_false(ok)
      assert.matches("number two.*stack traceback", message)
      is_clean(model)
      local results, errors = model:batch({ errors = "collect" }, inputs, body)
      assert.is_nil(results[2])
      assert.is_nil(results[4])
      assert.matches("number two", errors[2])
      assert.equal("number four", errors[4])
      assert.is_string(results[12])
      local nested, why = model:batch({}, { 1 }, function() -- an error goes up through batches within batches
        return pcall(model.batch, model, {}, inputs, body)
      end)
      assert.is_false(nested[1])
      assert.same({}, why)
      is_clean(model)
    end)

    it("reports progress, and stops when it is told to", function()
      local model <close> = tiny.model {}
      local seen = {}
      assert(model:batch({ max = 4, progress = function(what, done, total)
        assert.equal("batch", what)
        assert.equal(12, total)
        seen[#seen + 1] = done
      end }, inputs, generating(3, sampled)))
      assert.equal(12, seen[#seen])
      local results, _, code = model:batch({ progress = function(_, done) return done > 5 end, max = 4 }, inputs,
        generating(3, sampled))
      assert.is_nil(results)
      assert.equal(err.CANCELLED, code)
      is_clean(model)
    end)

    it("passes on that the model's own progress function wants no more", function()
      local model <close> = tiny.model { chunk = 8 }
      model:set_progress(function(_, done) return done > 0 end)
      local results, _, code = model:batch({}, inputs, generating(3, sampled))
      assert.is_nil(results)
      assert.equal(err.CANCELLED, code)
      model:set_progress(nil)
      is_clean(model)
    end)

    it("refuses what makes no sense", function()
      local model <close> = tiny.model {}
      for _, wrong in ipairs { { { max = 0 } }, { { budget = -1 } }, { { errors = "ignore" } }, { { seed = 1.5 } },
        { { colour = 1 } }, { {}, 5 }, { {}, {}, 5 } } do
        assert.has_error(function() model:batch(wrong[1], wrong[2] or {}, wrong[3] or sampled) end)
      end
      assert.has_error(function() kigo.scheduler(model, { max = "many" }) end)
      local scheduler = kigo.scheduler(model)
      local task = scheduler:spawn(function() end)
      for _, wrong in ipairs { 0 / 0, "high", {} } do assert.has_error(function() task:set_priority(wrong) end) end
      assert.has_error(function() scheduler:spawn(1) end)
      scheduler:close()
      assert.has_error(function() scheduler:spawn(function() end) end)
      assert.has_error(function() scheduler:step() end)
    end)
  end)

  it("runs everything that generates: bodies say what they say alone", function()
    local support = require "spec.support"
    local model <close> = assert(kigo.load(support.haiku_model, { threads = 1, pool = 640, chunk = 24 }))
    local free <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
    local words = { "the moon", "rain", "a frog", "the sea", "frost", "an owl", "snow" }
    local function question(word) return { { role = "user", content = "Write a haiku about " .. word .. "." } } end
    local ways = {
      function(seq) return assert(seq:generate { max = 40, temp = 1.2, logprobs = true }) end,
      function(seq)
        return assert(seq:generate { max = 40, stop = { "the ", "\n" }, sample = function(_, s) return sampled(s) end })
      end,
      function(seq)
        local parts = {}
        for i, text, id in seq:stream { max = 30, top_k = 5, speculate = kigo.prompt_lookup {} } do
          parts[i] = text .. ":" .. tostring(id)
        end
        return parts
      end,
      function(seq, word) return assert(seq.model:chat(question(word), { max = 30, seed = 3 })).message end,
      function(seq)
        seq:constrain(kigo.regex "[a-z ]{5,25}[.]")
        return assert(seq:generate { max = 40, on_text = function(text) seq.state[#seq.state + 1] = text end }).text,
          seq.state
      end,
      function(seq)
        local conversation <close> = assert(seq.model:conversation { seed = 5, max = 20 })
        conversation:say("Write a haiku about mud.")
        return conversation:say("Write a haiku about dust.").text
      end,
    }
    local function body(seq, word, i)
      assert(seq:feed(seq.model:template():render(question(word), { generate = true })))
      local said = { ways[(i - 1) % #ways + 1](seq, word) }
      said[#said + 1] = seq:tokens()
      return said
    end
    local inputs = {}
    for i = 1, 2 * #ways do inputs[i] = words[i % #words + 1] end
    local results = assert(model:batch({ seed = 20 }, inputs, body))
    for i, word in ipairs(inputs) do
      local seq <close> = free:sequence { seed = 19 + i }
      assert.same(body(seq, word, i), results[i])
    end
    is_clean(model)
  end)

  it("has bodies ask a device together, and go on when all have", function()
    local model <close> = tiny.model { device = "cpu", threads = 1 }
    local scheduler <close> = kigo.scheduler(model)
    local order = {}
    for i = 1, 3 do
      scheduler:spawn(function()
        local seq = assert(model:sequence { seed = i })
        assert(seq:feed { i })
        local logits = seq.logits
        for round = 1, 2 do
          order[#order + 1] = ("%d asks %d"):format(i, round)
          -- As tensors of a device do: nothing is found about those of the host.
          assert.is_nil(require "kigo.pass".running():ask_together(2, logits, 5))
        end
        assert.is_nil(require "kigo.pass".running():ask_together(10, kigo.chain {}, logits, seq))
        order[#order + 1] = ("%d has %d"):format(i, (logits:argmax()))
      end)
    end
    assert.is_true(scheduler:run())
    assert.equal("1 asks 1, 2 asks 1, 3 asks 1, 1 asks 2, 2 asks 2, 3 asks 2", table.concat(order, ", ", 1, 6))
    assert.equal(9, #order)
    -- A single one has nobody to wait for, and elsewhere nobody waits.
    local n_steps = scheduler.n_steps
    local task = scheduler:spawn(function()
      return require "kigo.pass".running():ask_together(2, core.zeros(4), 1) == nil
    end)
    assert.is_true(scheduler:run())
    assert.same({ true, n = 1 }, task.results)
    assert.equal(n_steps + 1, scheduler.n_steps)
  end)

  describe("failing allocations", function()
    ---Bodies whose n-th allocation from now on fails, Lua's own ones included.
    local function run_failing(model, kind, nth, for_ever)
      local said, tasks = {}, {}
      local scheduler <close> = kigo.scheduler(model, { max = 3 })
      for i = 1, 3 do
        said[i] = {}
        tasks[i] = scheduler:spawn(play, model, 40 + i, notes(said[i]), coroutine.yield)
        alone(judges[kind], 40 + i)
      end
      local function deepen(n) return n > 0 and 1 + deepen(n - 1) or 0 end
      deepen(60) -- so that Lua has room for calling pcall below
      local ok, more
      local _, before = core.alloc_counts()
      core.alloc_inject(nth, for_ever)
      for step = 1, 1000 do
        ok, more = pcall(scheduler.step, scheduler)
        if ok and not more then break end
        if step == 3 and for_ever then core.alloc_inject(0, false) end
      end
      core.alloc_inject(0, false)
      local _, after = core.alloc_counts()
      assert.is_true(ok and not more)
      for i, task in ipairs(tasks) do
        if task.status == "done" then assert.same(alone(judges[kind], 40 + i).said, said[i]) end
      end
      return after - before >= nth
    end

    for _, kind in ipairs { "plain", "hybrid" } do
      it("end bodies or steps, and leave no pages behind: " .. kind, function()
        local model <close> = tiny.model { device = "cpu", threads = 1, pool = 192, chunk = 8, kind = kind }
        for _, for_ever in ipairs { false, true } do
          local nth, reached = 1, true
          while reached and nth < (for_ever and 300 or 3000) do
            reached = run_failing(model, kind, nth, for_ever)
            is_clean(model)
            nth = nth + 29
          end
          assert.is_true(nth > 250)
        end
      end)
    end
  end)
end)
