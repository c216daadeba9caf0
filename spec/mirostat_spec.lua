-- Mirostat's mu along a timeline: after every draw it must be what the paper's recurrence makes of the surprises,
-- however the timeline came to where it is.
describe("mirostat", function()
  local kigo = require "kigo"
  local core = kigo.core
  local sample = require "kigo.sample"
  local support = require "spec.support"
  local tiny = require "spec.tiny"

  local model
  setup(function() model = tiny.model {} end)
  teardown(function() model:close() end)

  local TAU, ETA = 3, 0.4

  -- Surprises of all ids in bits, from the logits themselves.
  local function surprises(logits)
    local log_p <close> = logits:log_softmax()
    local bits = {}
    for id = 0, #log_p - 1 do bits[id] = -log_p[id] / math.log(2) end
    return bits
  end

  -- How many candidates a mu leaves; nil where rounding may decide.
  local function count(bits, mu)
    local n = 0
    for id = 0, #bits do
      if math.abs(bits[id] - mu) < 1e-4 then return nil end
      if bits[id] <= mu then n = n + 1 end
    end
    return math.max(n, 1)
  end

  -- Draw and feed n tokens, and hold what the chain leaves against the recurrence. Returns mu.
  local function go_on(seq, chain, mu, n, tau, eta)
    for _ = 1, n do
      local logits = seq.logits
      local bits = surprises(logits)
      local expected = count(bits, mu)
      if expected then assert.equal(expected, #chain:candidates(logits, seq)) end
      local id = assert(chain(logits, seq))
      assert.is_true(bits[id] <= mu + 1e-4 or expected == 1)
      assert(seq:push(id))
      mu = mu - eta * (bits[id] - tau)
    end
    return mu
  end

  it("moves mu with what is drawn and fed", function()
    for seed = 1, 4 do
      local chain <close> = core.chain { sample.mirostat(TAU, ETA) }
      local seq <close> = model:sequence { seed = seed }
      seq:feed { 1, 2, 3 }
      go_on(seq, chain, 2 * TAU, 60, TAU, ETA)
    end
  end)

  it("holds the surprise near tau", function()
    local chain <close> = core.chain { sample.mirostat(2.5, 0.1) }
    local seq <close> = model:sequence { seed = 3 }
    seq:feed { 5 }
    local sum, n = 0, 400
    for _ = 1, n do
      local bits = surprises(seq.logits)
      local id = assert(chain(seq.logits, seq))
      sum = sum + bits[id]
      assert(seq:push(id))
    end
    assert.is_true(math.abs(sum / n - 2.5) < 0.25, "mean surprise " .. sum / n)
  end)

  it("takes no notice of tokens that nobody drew, and of draws that nobody fed", function()
    local chain <close> = core.chain { sample.mirostat(TAU, ETA) }
    local seq <close> = model:sequence { seed = 1 }
    seq:feed { 1 }
    local mu = go_on(seq, chain, 2 * TAU, 5, TAU, ETA)
    for _ = 1, 3 do assert(chain(seq.logits, seq)) end
    local id = chain(seq.logits, seq)
    seq:push((id + 1) % tiny.vocab)
    seq:feed { 4, 5, 6 }
    mu = go_on(seq, chain, mu, 5, TAU, ETA)
    local bits = surprises(seq.logits)
    id = chain(seq.logits, seq)
    seq:feed { id, 7, 8 } -- the first of several was drawn
    go_on(seq, chain, mu - ETA * (bits[id] - TAU), 5, TAU, ETA)
  end)

  it("is the same after rewinding anywhere, to a mark, and in forks", function()
    local chain <close> = core.chain { sample.mirostat(TAU, ETA) }
    local function straight(n)
      local seq <close> = model:sequence { seed = 9 }
      seq:feed { 1, 2 }
      for _ = 1, n do seq:push((assert(chain(seq.logits, seq)))) end
      return seq:tokens()
    end
    local expected = straight(40)
    for trial = 1, math.tointeger(tonumber(os.getenv "KIGO_SCHEDULES" or "")) or 20 do
      local dice = tiny.dice(trial)
      local seq = model:sequence { seed = 9 }
      seq:feed { 1, 2 }
      local mark
      local clone <close> = chain:clone()
      local left = {}
      while seq:pos() < 42 do
        local what = dice(12)
        if what == 1 and seq:pos() > 2 then
          local to = dice(seq:pos() - 1) + 1
          seq:rewind(to)
          if mark and mark.pos > to then mark = nil end
        elseif what == 2 then
          mark = seq:mark()
        elseif what == 3 and mark then
          seq:rewind(mark)
        elseif what == 4 then
          left[#left + 1] = seq
          seq = seq:fork()
        elseif what == 5 then
          seq:push((chain(seq.logits, seq) + 1) % tiny.vocab) -- another way, and back
          seq:rewind(seq:pos() - 1)
        end
        local pick = dice(2) == 1 and chain or clone -- mu is the timeline's
        if seq:pos() < 42 then seq:push((assert(pick(seq.logits, seq)))) end
      end
      assert.same(expected, seq:tokens(), "trial " .. trial)
      seq:close()
      for _, one in ipairs(left) do one:close() end
    end
  end)

  it("keeps apart what has other parameters", function()
    local one <close> = core.chain { sample.mirostat(TAU, ETA) }
    local other <close> = core.chain { sample.mirostat(1, ETA) }
    local seq <close> = model:sequence { seed = 2 }
    seq:feed { 1 }
    local mu = go_on(seq, one, 2 * TAU, 4, TAU, ETA)
    local mu_other = go_on(seq, other, 2, 4, 1, ETA)
    mu = go_on(seq, one, mu, 4, TAU, ETA)
    go_on(seq, other, mu_other, 4, 1, ETA)
    go_on(seq, one, mu, 2, TAU, ETA)
  end)

  it("survives the failure of every allocation", function()
    local function make()
      local seq = model:sequence { seed = 2 }
      seq:feed { 1 }
      assert(seq:step())
      return { seq = seq, chain = core.chain { sample.mirostat(TAU, ETA) } }
    end
    local n = tiny.fail_each_allocation(make, function(object)
      local id, message, code = object.chain(object.seq.logits, object.seq)
      if not id then return nil, message, code end
      local fork
      fork, message, code = object.seq:fork()
      if not fork then return nil, message, code end
      fork:close()
      return object.seq:push(id)
    end, function(object)
      object.seq:rewind(1)
      go_on(object.seq, object.chain, 2 * TAU, 3, TAU, ETA)
      object.seq:close()
      object.chain:close()
    end)
    assert.is_true(n > 8)
  end)

  it("goes to files and comes back", function()
    local file <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
    local chain <close> = core.chain { sample.mirostat(TAU, ETA) }
    local seq <close> = assert(file:sequence { seed = 5 })
    seq:feed "the moon"
    for _ = 1, 12 do seq:push((assert(chain(seq.logits, seq)))) end
    local drawn = assert(chain(seq.logits, seq)) -- and not fed yet
    local path = support.temporary ""
    assert(seq:save(path))
    local again <close> = assert(file:restore(path))
    os.remove(path)
    for _, s in ipairs { seq, again } do
      s:push(drawn)
      for _ = 1, 12 do s:push((assert(chain(s.logits, s)))) end
    end
    assert.same(seq:tokens(), again:tokens())
    for _, s in ipairs { seq, again } do
      s:rewind(6)
      for _ = 1, 20 do s:push((assert(chain(s.logits, s)))) end
    end
    assert.same(seq:tokens(), again:tokens())
  end)

  it("generates alike token by token and at once", function()
    local seq <close> = model:sequence { seed = 4 }
    seq:feed { 3 }
    local chain <close> = core.chain { sample.mirostat(TAU, ETA) }
    local ids = {}
    for i = 1, 20 do
      ids[i] = assert(seq:draw(chain, 8))
      seq:push(ids[i])
    end
    seq:rewind(1)
    for i = 1, 20 do
      assert.equal(ids[i], (chain(seq.logits, seq)))
      seq:push(ids[i])
    end
  end)
end)
