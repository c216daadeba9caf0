-- Random schedules on timelines against the straight run: whatever way a sequence took through marks, rewinds, forks,
-- files and drafts, it is bit for bit what a new one is that did what is left of it, once and in order.
--
--   KIGO_SCHEDULES=10000   how many, over all models; 120 unless given
--   KIGO_SCHEDULE=N        this one alone
describe("timelines", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local core = kigo.core

  local MOST = 90 -- tokens on a timeline, behind those that some begin with: many enough for windows to let pages go

  local tokenizer, path, chains, samplers, grammars
  setup(function()
    tokenizer = tiny.tokenizer() -- ids from 0 are "!" and what follows in ASCII
    path = os.tmpname()
    local in_memory = "/dev/shm" .. path:match "/[^/]*$" -- where there is one: hundreds of files are made durable
    local file = io.open(in_memory, "w")
    if file then
      file:close()
      os.remove(path)
      path = in_memory
    end
    chains = {
      kigo.chain { kigo.penalties { last = 9, ["repeat"] = 1.4 }, kigo.temp(4), kigo.dist() },
      kigo.chain { kigo.temp(2), kigo.mirostat(4, 0.3) },
      kigo.chain { kigo.top_k(1), kigo.dist() },
      kigo.chain { kigo.dry { multiplier = 0.8, breakers = {} }, kigo.temp(3), kigo.typical(0.8), kigo.dist() },
    }
    grammars = { -- such that most ids will do
      assert(kigo.gbnf [[root ::= ([!-*] | "+" "-"+ | [.-O])*]]),
      assert(kigo.gbnf [[
        root ::= flat (pair flat)*
        pair ::= "(" flat (pair flat)* ")"
        flat ::= [!-'*-O]*
      ]]),
    }
    samplers = {
      kigo.sampler(function(logits, seq, state) -- remembers
        state.n = (state.n or 0) + 1
        state.list = state.list or {}
        state.list[state.n % 5] = { seq:pos() }
        local ids, p = logits:mul_(0.2 + state.n % 3 / 10):softmax():topk(6)
        return ids[seq.rng:choose(p)]
      end, { name = "remembers" }),
      function(logits, seq) -- works in place, draws twice
        local other = seq:pos() % 48
        if logits:argmax() ~= other then logits:fill_(-math.huge, { other }) end -- else it may be all that is allowed
        if seq.rng:uniform() < 0.3 then return (logits:argmax()) end
        local id = seq.rng:integer(48) - 1
        return logits[id] > -math.huge and id or (logits:argmax())
      end,
      chains[1], chains[2], chains[3], chains[4],
    }
  end)
  teardown(function() os.remove(path) end)

  -- ---- what a sequence is ----

  ---Plain data as text.
  local function say(value, seen)
    if type(value) ~= "table" then return ("%s:%s"):format(math.type(value) or type(value), tostring(value)) end
    seen = seen or {}
    if seen[value] then return "seen" end
    seen[value] = true
    local keys = {}
    for key in pairs(value) do keys[#keys + 1] = say(key) .. " = " .. say(value[key], seen) end
    table.sort(keys)
    return "{ " .. table.concat(keys, ", ") .. " }"
  end

  local function add(list, ...) list[#list + 1] = table.concat({ ... }, " ") end

  ---Everything that one can see of a sequence, and what it does next; it is as before afterwards.
  local function portrait(seq)
    local mark, list = seq:mark(), {}
    add(list, "tokens", table.concat(seq:tokens(), " "))
    add(list, "seed", seq:seed())
    add(list, "state", say(seq.state))
    local constraint = seq:constraint()
    if constraint then add(list, "constraint", ("%q"):format(constraint.text), tostring(constraint.waiting)) end
    for i, stream in ipairs(seq:attached()) do
      add(list, "stream", i, ("%q"):format(stream.text), tostring(stream.reason), stream.n_ids)
    end
    add(list, "uniform", seq.rng:uniform())
    for i, pick in ipairs { chains[2], chains[1], chains[4] } do
      if seq:pos() > 0 then
        local ids = assert(pick:candidates(seq.logits, seq)) -- what mirostat, DRY and penalties remember shows here
        add(list, "candidates", #ids, table.concat(ids, " "))
        if i == 2 then add(list, "logits", core.checksum(seq.logits:bytes())) end
        local id = assert(seq:draw(pick))
        add(list, "draws", id)
        seq:push(id)
      end
    end
    for i, stream in ipairs(seq:attached()) do
      add(list, "then", i, ("%q"):format(stream:read()), ("%q"):format(stream:finish()), tostring(stream.reason))
    end
    seq:rewind(mark)
    return table.concat(list, "\n")
  end

  -- ---- the straight run ----
  -- A history is a list of operations: { kind, what, from = position before, to = position behind }. Playing one does
  -- it; when it was done before, it must give what it gave then.

  local play = {}

  local function copy(value)
    if type(value) ~= "table" then return value end
    local made = {}
    for key, one in pairs(value) do made[key] = copy(one) end
    return made
  end

  function play.feed(seq, op) assert(seq:feed(op.ids)) end
  function play.look(seq) return seq:pos() > 0 and seq.logits:bytes() end
  function play.uniform(seq) seq.rng:uniform() end
  function play.state(seq, op) seq.state = copy(op.state) end
  function play.note(seq, op) seq.state[op.key] = op.value end
  function play.attach(seq, op) seq:attach(core.stream(tokenizer, { stop = op.stop })) end
  function play.detach(seq, op) seq:detach(seq:attached()[op.i]) end
  function play.constrain(seq, op) seq:constrain(op.grammar, op.grammar and { after = op.after }) end
  function play.read(seq, op) return seq:attached()[op.i]:read() end
  function play.finish(seq, op) return seq:attached()[op.i]:finish() end

  ---Drawn one by one, whatever way they were drawn at first.
  function play.draws(seq, op)
    for i, id in ipairs(op.ids) do
      local pick = op.pick
      local drawn
      if getmetatable(pick) == getmetatable(chains[1]) then
        drawn = assert(seq:draw(pick))
      else
        assert(seq:step())
        drawn = assert(pick(seq.logits, seq))
      end
      if drawn ~= id then error(("drew %d instead of %d at %d"):format(drawn, id, seq:pos())) end
      if i < #op.ids or op.pushes then assert(seq:push(id)) end
    end
  end

  function play.generate(seq, op)
    local answer = assert(seq:generate { sample = op.pick, max = op.max, stop = "++" })
    if op.answer then assert(op.answer == table.concat(answer.ids, " ") .. answer.text) end
    return answer
  end

  ---A seed that others draw with from here on.
  local function reseeded(seq, seed)
    if seq:seed() == seed then return seq end
    local fork = assert(seq:fork { seed = seed })
    seq:close()
    return fork
  end

  local function straight_run(model, seed, history)
    local seq = assert(model:sequence { seed = seed })
    for _, op in ipairs(history) do
      if op.kind == "seed" then seq = reseeded(seq, op.seed) else play[op.kind](seq, op) end
    end
    return seq
  end

  -- ---- what a schedule does ----

  ---@class spec.Timeline
  ---@field seq kigo.Sequence
  ---@field first_seed integer
  ---@field history table[]
  ---@field marks table[]
  ---@field least integer   positions before it are not rewound to: what was detached there does not come back

  local function record(line, op)
    op.to = line.seq:pos()
    line.history[#line.history + 1] = op
  end

  local function cut(history, pos)
    local kept = {}
    for i, op in ipairs(history) do
      local is_instant = op.from == op.to
      local stays = op.kind == "attach" or op.kind == "detach" or op.kind == "seed" or op.kind == "state"
        or op.kind == "note" or op.kind == "constrain"
      if op.to <= pos and (op.from < pos or stays) then
        kept[#kept + 1] = op
      elseif op.from < pos then -- a part of it
        local part = {}
        for key, value in pairs(op) do part[key] = value end
        part.to = pos
        if op.kind == "generate" then
          part.max, part.answer = pos - op.from, nil
        else
          part.ids, part.pushes = table.move(op.ids, 1, pos - op.from, 1, {}), true
        end
        kept[#kept + 1] = part
      elseif is_instant and stays and op.from <= pos then
        kept[#kept + 1] = history[i]
      end
    end
    return kept
  end

  local function go_back(line, pos)
    line.seq:rewind(pos)
    line.history = cut(line.history, pos)
    record(line, { kind = "seed", from = pos, seed = line.seq:seed() }) -- a fork keeps its own
    for i, stream in ipairs(line.seq:attached()) do -- what was read behind `pos` is no matter any more
      stream:read()
      record(line, { kind = "read", from = pos, i = i })
    end
    record(line, { kind = "state", from = pos, state = line.seq:fork().state })
  end

  local function draws(line, pick, ids, pushes)
    record(line, { kind = "draws", from = line.from, pick = pick, ids = ids, pushes = pushes })
    assert(line.seq:pos() == line.from + #ids - (pushes and 0 or 1))
  end

  local acts = {}

  local function simply(kind, make)
    return function(line, dice)
      local op = make(line, dice)
      if not op then return end
      op.kind, op.from = kind, line.from
      op.answer = nil
      play[kind](line.seq, op)
      record(line, op)
    end
  end

  local function room(line) return line.lead + MOST - line.seq:pos() end

  function acts.feed(line, dice)
    if room(line) < 12 then return end
    local op = { kind = "feed", from = line.from, ids = {} }
    for i = 1, dice(12) - 1 do op.ids[i] = dice(48) - 1 end
    local ok = pcall(play.feed, line.seq, op) -- the constraint may refuse them: all or nothing
    assert(ok or line.seq:constraint() and line.seq:pos() == line.from)
    if ok then record(line, op) end
  end
  acts.look = simply("look", function() return {} end)
  acts.uniform = simply("uniform", function() return {} end)
  acts.note = simply("note", function(_, dice) return { key = "k" .. dice(3), value = dice(9) } end)
  acts.attach = simply("attach", function(line, dice)
    if #line.seq:attached() > 2 then return nil end
    return { stop = ({ "++", "+", { "%%", "-." } })[dice(4)] }
  end)
  local function some_stream(line, dice)
    local n = #line.seq:attached()
    return n > 0 and { i = dice(n) } or nil
  end
  acts.read, acts.finish = simply("read", some_stream), simply("finish", some_stream)
  acts.detach = simply("detach", function(line, dice)
    if dice(3) > 1 then return nil end
    line.least = line.seq:pos()
    return some_stream(line, dice)
  end)

  acts.constrain = simply("constrain", function(line, dice)
    if line.seq:constraint() then line.least = line.from end
    return { grammar = dice(4) > 1 and grammars[dice(2)] or nil, after = dice(2) == 1 and "*" or nil }
  end)

  function acts.draw(line, dice)
    if line.from == 0 or room(line) < 9 then return end
    local pick, ids, ahead = samplers[dice(#samplers)], {}, dice(5)
    local is_chain = getmetatable(pick) == getmetatable(chains[1])
    local pushes = dice(4) > 1
    for i = 1, dice(4) do
      local seq = line.seq
      if not is_chain then assert(seq:step()) end
      ids[i] = assert(is_chain and seq:draw(pick, ahead) or not is_chain and pick(seq.logits, seq))
      if not pushes then break end
      assert(seq:push(ids[i]))
    end
    if not (is_chain or pushes) then -- it has written to the logits: nobody promises those
      return go_back(line, line.from)
    end
    draws(line, pick, ids, pushes)
  end

  function acts.verify(line, dice)
    if line.from == 0 or room(line) < 9 then return end
    local pick, draft = samplers[dice(#samplers)], {}
    if dice(2) == 1 then -- a good one: what it will draw
      local fork <close> = assert(line.seq:fork())
      draft = assert(fork:generate { sample = pick, max = 4 }).ids
    end
    draft[#draft + 1] = dice(48) - 1
    local n, next_id = assert(line.seq:verify(draft, pick))
    local ids = table.move(draft, 1, n, 1, {})
    ids[n + 1] = next_id
    assert(line.seq:push(next_id))
    draws(line, pick, ids, true)
  end

  function acts.generate(line, dice)
    if line.from == 0 or room(line) < 9 then return end
    local op = { kind = "generate", from = line.from, pick = samplers[dice(#samplers)], max = dice(8) }
    local answer = play.generate(line.seq, op)
    if answer.reason == "end" then -- the sampler may have written to the logits behind the text: nobody promises those
      op.max = #answer.ids
      if op.max > 0 then record(line, op) end
      return go_back(line, line.seq:pos())
    end
    op.answer = table.concat(answer.ids, " ") .. answer.text
    record(line, op)
  end

  function acts.mark(line)
    table.insert(line.marks, { mark = line.seq:mark(), history = table.move(line.history, 1, #line.history, 1, {}),
      pos = line.from, seed = line.seq:seed(), least = line.least,
      tokens = table.concat(line.seq:tokens(), " ") })
  end

  ---To a mark, which must be refused where the timeline has gone another way.
  function acts.rewind_to_mark(line, dice)
    if #line.marks == 0 then return end
    local to = line.marks[dice(#line.marks)]
    if to.seed ~= line.seq:seed() then return end -- another generator's numbers
    local now = line.seq:tokens()
    local fits = to.pos <= #now and table.concat(now, " ", 1, to.pos) == to.tokens
    local ok, pos = pcall(line.seq.rewind, line.seq, to.mark)
    assert(ok == fits, "the mark is " .. (fits and "good" or "not"))
    if not ok then return end
    assert(pos == to.pos)
    line.history, line.least = table.move(to.history, 1, #to.history, 1, {}), to.least
  end

  function acts.rewind(line, dice)
    if line.from < line.least then return end
    local most = line.from - line.least + 1
    go_back(line, line.from + 1 - dice(dice(2) == 1 and math.min(most, 8) or most)) -- often just a few
  end

  function acts.fork(line, dice, lines)
    local seed = dice(2) == 1 and line.seq:seed() or dice(1000)
    local fork = { seq = assert(line.seq:fork { seed = seed }), first_seed = line.first_seed, least = line.least,
      lead = line.lead, history = table.move(line.history, 1, #line.history, 1, {}),
      marks = table.move(line.marks, 1, #line.marks, 1, {}) }
    if seed ~= line.seq:seed() then
      local op = { kind = "seed", seed = seed, from = line.from, to = line.from }
      table.insert(fork.history, op)
    end
    local at = #lines < 3 and #lines + 1 or dice(#lines)
    if lines[at] then lines[at].seq:close() end
    lines[at] = fork
  end

  ---One that changes nothing; from then on the sequence and its forks keep away from others' pages.
  function acts.hook(line, dice)
    line.hook = line.hook or assert(line.seq:hook(dice(2) == 1 and "blk.0.out" or "*", function(x, seq, pos)
      assert(seq == line.seq and pos + x:shape() <= seq:pos() and not pcall(seq.feed, seq, { 1 }))
    end))
  end

  local function unhook(line)
    if line.hook then line.hook:close() end
    line.hook = nil
  end
  acts.unhook = unhook

  function acts.save(line)
    unhook(line)
    assert(line.seq:save(path))
    local again = assert(line.seq.model:restore(path))
    for _, mark in ipairs(line.marks) do assert(not pcall(again.rewind, again, mark.mark)) end
    line.seq:close()
    line.seq, line.marks = again, {}
  end

  function acts.release(line) line.seq:release() end
  function acts.expect(line, dice)
    if line.from > 0 then line.seq:expect { dice(48) - 1, dice(48) - 1 } end
  end

  local names = {}
  for name in pairs(acts) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs { "feed", "draw", "rewind_to_mark", "mark", "generate", "rewind", "uniform" } do
    names[#names + 1] = name
    names[#names + 1] = name
  end

  -- Behind these more often than elsewhere the straight run is looked at.
  local returns = { rewind_to_mark = true, rewind = true, save = true }

  ---@return integer n  comparisons with the straight run
  local function schedule(model, number, lead)
    local dice = tiny.dice(number)
    local seed = dice(1000)
    local lines = { { seq = assert(model:sequence { seed = seed }), first_seed = seed, history = {}, marks = {},
      least = 0, lead = lead } }
    if lead > 0 then
      local op = { kind = "feed", from = 0, ids = tiny.ids(lead, 77) }
      play.feed(lines[1].seq, op)
      record(lines[1], op)
    end
    local done, n = {}, 0
    local function compare(line)
      local straight <close> = straight_run(model, line.first_seed, line.history)
      local expected, got = portrait(straight), portrait(line.seq)
      n = n + 1
      if expected ~= got then error(("the straight run is\n%s\nthis one is\n%s"):format(expected, got), 0) end
    end
    local good, message = xpcall(function()
      for _ = 1, 10 + dice(30) do
        local line = lines[dice(#lines)]
        line.from = line.seq:pos()
        local name = names[dice(#names)]
        done[#done + 1] = name
        acts[name](line, dice, lines)
        if dice(returns[name] and 5 or 25) == 1 then compare(lines[dice(#lines)]) end
      end
      for _, line in ipairs(lines) do compare(line) end
    end, debug.traceback)
    for _, line in ipairs(lines) do line.seq:close() end
    if not good then
      error(("KIGO_SCHEDULE=%d: %s\nafter %s"):format(number, message, table.concat(done, ", ")), 0)
    end
    return n
  end

  local MODELS = {
    { device = "reference", chunk = 3 },
    { device = "cpu", threads = 1, chunk = 3, kv = "f32" },
    { device = "cpu", threads = 1, chunk = 32, kv = "f16" },
    { device = "cpu", threads = 2, chunk = 3, kv = "f16", prefix_cache = false },
    { device = "cpu", threads = 1, chunk = 64, kv = "f32", lead = 300 },
    { device = "cpu", threads = 1, chunk = 64, kv = "f16", lead = 260, prefix_cache = false },
  }
  if tiny.has_gpu then
    table.insert(MODELS, { device = "cuda", chunk = 3 })
    table.insert(MODELS, { device = "cuda", chunk = 64, lead = 300 })
  end
  for i = 1, #MODELS do
    local hybrid = { kind = i % 2 == 1 and "wide" or "hybrid" }
    for option, value in pairs(MODELS[i]) do hybrid[option] = value end
    table.insert(MODELS, hybrid)
  end

  it("are what the straight run makes of them", function()
    local total, only = tonumber(os.getenv "KIGO_SCHEDULES") or 120, tonumber(os.getenv "KIGO_SCHEDULE")
    local first, last = only or 1, only or math.max(total // #MODELS, 1)
    local n_schedules, n_compared, page = 0, 0, nil
    for i, options in ipairs(MODELS) do
      local lead = options.lead or 0
      options.lead = nil
      local model <close> = tiny.model(options)
      model.tokenizer, page = tokenizer, model:stats().page
      for number = first, last do
        n_compared = n_compared + schedule(model, only or number * #MODELS + i, lead)
        n_schedules = n_schedules + 1
        collectgarbage "step"
      end
      collectgarbage()
      collectgarbage()
      assert.equal(0, model:stats().n_sequences)
      assert.equal(0, model:stats().n_pages_used)
      assert.equal(model:stats().n_states_kept, model:stats().n_states_used)
    end
    if os.getenv "KIGO_SCHEDULES" then
      io.stderr:write(("\n%d schedules, %d comparisons, pages of %d\n"):format(n_schedules, n_compared, page))
    end
  end)
end)
