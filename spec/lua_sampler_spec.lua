-- Samplers in Lua that remember things, and stages on tensors: what scripts put their own sampling together from.
describe("kigo.sampler", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local nan = 0 / 0

  local model
  setup(function() model = tiny.model {} end)
  teardown(function() model:close() end)

  local function sequence(seed)
    local seq = model:sequence { seed = seed or 1 }
    seq:feed { 1, 2, 3 }
    return seq
  end

  -- Bans what it has drawn before.
  local function unlike(logits, _, state)
    if #state.drawn > 0 then logits:fill_(-math.huge, state.drawn) end
    local id = logits:argmax()
    table.insert(state.drawn, id)
    return id
  end

  it("has a state of its own for every sequence, which moves with it", function()
    local pick = kigo.sampler(unlike, { name = "unlike", state = { drawn = {} } })
    local seq <close> = sequence()
    local function go_on(s, n)
      local ids = {}
      for i = 1, n do
        ids[i] = pick(s.logits, s)
        s:push(ids[i])
      end
      return ids
    end
    local first = go_on(seq, 5)
    assert.same(first, pick:state(seq).drawn)
    assert.equal(pick:state(seq), seq.state.unlike)
    local mark = seq:mark()
    local fork <close> = seq:fork()
    local second = go_on(seq, 5)
    seq:rewind(mark)
    assert.same(second, go_on(seq, 5))
    assert.same(second, go_on(fork, 5))
    local other <close> = sequence()
    assert.same(first, go_on(other, 5))
  end)

  it("can be cloned, with or without what it remembers", function()
    local pick = kigo.sampler(unlike, { name = "unlike", state = { drawn = {} } })
    local clone, fresh = pick:clone(), pick:clone { name = "other", state = { drawn = { 0 } } }
    local seq <close> = sequence()
    local a = pick(seq.logits:clone(), seq)
    assert.not_equal(a, clone(seq.logits:clone(), seq))
    assert.equal(2, #pick:state(seq).drawn)
    assert.equal("unlike", clone.name)
    assert.same({ 0 }, fresh:state(seq).drawn)
  end)

  it("answers like the function itself, alone and in generate", function()
    local function plain(logits, seq) return (logits:topk(5))[seq.rng:integer(5)] end
    local named = kigo.sampler(plain)
    local ids = {}
    for i, pick in ipairs { plain, named } do
      local seq <close> = sequence(7)
      for _ = 1, 20 do seq:push(pick(seq.logits, seq)) end
      ids[i] = seq:tokens()
    end
    assert.same(ids[1], ids[2])
    assert.matches("^spec/lua_sampler_spec.lua:%d+$", named.name)
    assert.matches("lua_sampler_spec", tostring(named))
  end)

  it("says whose mistake it is", function()
    local seq <close> = sequence()
    for what, value in pairs { nothing = { nil }, ["nan"] = { nan }, ["3.0"] = { 3.0 }, ["48"] = { 48 },
      ["-1"] = { -1 }, ['"7"'] = { "7" }, ["true"] = { true }, ["9223372036854775807"] = { math.maxinteger } } do
      local pick = kigo.sampler(function() return value[1] end, { name = "clumsy" })
      local ok, message = pcall(pick, seq.logits, seq)
      assert.is_false(ok)
      assert.truthy(message:find("lua_sampler_spec.lua", 1, true), message)
      assert.truthy(message:find("the sampler clumsy returned ", 1, true), message)
      assert.truthy(message:lower():find(what, 1, true), message)
    end
  end)

  it("hands on the fault of a chain that it calls", function()
    local greedy <close> = kigo.chain { kigo.greedy() }
    local pick = kigo.sampler(function(logits, seq) return greedy(logits:fill_(nan), seq) end)
    local seq <close> = sequence()
    local id, message, code = pick(seq.logits, seq)
    assert.is_nil(id)
    assert.matches("NaN", message)
    assert.equal(kigo.err.NUMERIC, code)
  end)

  it("refuses what is no function and no plain state", function()
    assert.error(function() kigo.sampler() end)
    assert.error(function() kigo.sampler {} end)
    assert.error(function() kigo.sampler(unlike, { name = 7 }) end)
    assert.error(function() kigo.sampler(unlike, { nmae = "x" }) end)
    assert.error(function() kigo.sampler(unlike, { state = { f = print } }) end)
    assert.error(function() kigo.sampler(unlike, { state = { [{}] = io.stdout } }) end)
  end)
end)

describe("stages on a tensor", function()
  local kigo = require "kigo"
  local core = kigo.core
  local tiny = require "spec.tiny"
  local inf = math.huge

  local model
  setup(function() model = tiny.model {} end)
  teardown(function() model:close() end)

  local function random(n, seed)
    local numbers = {}
    for i = 1, n do numbers[i] = 8 * core.uniform(seed, i, 0) end
    return core.tensor(numbers)
  end

  local STAGES = {
    { kigo.greedy() }, { kigo.temp(0.5) }, { kigo.temp(0) }, { kigo.top_k(7) }, { kigo.top_p(0.7) },
    { kigo.min_p(0.1) }, { kigo.typical(0.6) }, { kigo.top_n_sigma(1) }, { kigo.dynatemp(0.5, 1.5) },
    { kigo.mirostat(2) },
    { kigo.xtc(1, 0.02) }, { kigo.xtc(0.5, 0.02) }, { kigo.bias { [3] = 2, [4] = -inf } },
    { kigo.penalties { ["repeat"] = 1.3 } }, { kigo.dry { multiplier = 1, allowed = 1 } },
    { kigo.top_k(30), kigo.xtc(0.5, 0.02), kigo.temp(0.7), kigo.xtc(0.5, 0.1), kigo.min_p(0.01) }, {},
  }

  it("leave the candidates that a chain has, and count what they draw", function()
    for i, stages in ipairs(STAGES) do
      for seed = 1, 4 do
        local seq <close> = model:sequence { seed = seed }
        seq:feed { 1, 2, 3, 1, 2, 3, 1 }
        local logits <close> = random(48, i)
        local chain <close> = core.chain(stages)
        local ids, probs = chain:candidates(logits, seq)
        local n_draws = 0
        for _, stage in ipairs(stages) do
          if stage.kind == "xtc" and stage.probability < 1 then n_draws = n_draws + 1 end
        end
        local row <close> = logits:clone()
        assert.equal(row, row:apply_(#stages == 1 and stages[1] or stages, seq))
        assert.equal(core.uniform(seed, 7, n_draws), seq.rng:uniform())
        local p <close> = row:softmax()
        local n = 0
        for id = 0, 47 do n = n + (row[id] > -inf and 1 or 0) end
        assert.equal(#ids, n)
        for at, id in ipairs(ids) do assert.is_true(math.abs(p[id] - probs[at]) < 1e-5) end
        local again <close> = logits:clone()
        seq:rewind(7) -- as if nobody had drawn
        assert.equal(again, again:apply_(chain, seq))
        assert.is_true(row:bytes() == again:bytes())
      end
    end
  end)

  it("work on rows, and read well in a row", function()
    local logits <close> = assert(model:logits { 1, 2, 3 })
    local before = logits:row(0):bytes() .. logits:row(2):bytes()
    local H = logits:row(1):apply_(kigo.top_k(4)):softmax():entropy()
    assert.is_true(H > 0 and H <= math.log(4))
    assert.is_true(before == logits:row(0):bytes() .. logits:row(2):bytes())
    assert.error(function() logits:apply_(kigo.top_k(4)) end)
  end)

  it("refuse what they cannot work on, and leave it as it was", function()
    local logits <close> = core.tensor { 1, 0 / 0 }
    local before = logits:bytes()
    local nothing, _, code = logits:apply_(kigo.top_k(1))
    assert.is_nil(nothing)
    assert.equal(kigo.err.NUMERIC, code)
    assert.is_true(before == logits:bytes())
    local good <close> = core.tensor { 1, 2 }
    for _, bad in ipairs { 7, "x", { kind = "none" }, { 7 } } do
      assert.error(function() good:apply_(bad) end)
    end
    assert.error(function() good:apply_() end)
    assert.error(function() good:apply_(kigo.xtc(0.5)) end) -- a number, of whom?
    local seq <close> = model:sequence {}
    seq:feed { 40 }
    assert.error(function() good:apply_(kigo.penalties { ["repeat"] = 2 }, seq) end)
    local closed = core.chain {}
    closed:close()
    assert.error(function() good:apply_(closed) end)
  end)

  it("survive the failure of every allocation", function()
    local logits <close> = random(300, 3)
    local before = logits:bytes()
    local n = tiny.fail_each_allocation(function() return {} end, function()
      return logits:apply_ { kigo.bias { [2] = 1 }, kigo.typical(0.9), kigo.top_k(200) }
    end, function() logits:fill_(0):add_(random(300, 3)) end)
    assert.is_true(before == logits:bytes())
    assert.is_true(n > 15)
  end)

  it("take biases of texts", function()
    local support = require "spec.support"
    local haiku <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
    local tokenizer = haiku.tokenizer
    local one = assert(tokenizer:token " moon")
    local several = tokenizer:encode(" moonquake", { continues = true })
    assert.is_true(#several > 1)
    local stage = kigo.bias({ [" moon"] = 2, [" moonquake"] = -inf, [one] = 1, [7] = 0.5 }, tokenizer)
    assert.same({ [one] = 3, [7] = 0.5 }, stage.values)
    assert.equal(1, #stage.phrases)
    local seq <close> = haiku:sequence()
    local last = table.remove(several)
    local function biased()
      local logits <close> = core.zeros(haiku.vocab_size):apply_(stage, seq)
      return logits[last] == -inf, logits[one], logits[7]
    end
    assert.same({ false, 3, 0.5 }, { biased() })
    seq:feed(several)
    assert.same({ true, 3, 0.5 }, { biased() })
    seq:push(5)
    assert.same({ false, 3, 0.5 }, { biased() })
    assert.error(function() kigo.bias { [" moon"] = 2 } end)
    assert.error(function() kigo.bias({ [""] = 2 }, tokenizer) end)
    assert.error(function() kigo.bias({ [" moon"] = "x" }, tokenizer) end)
    assert.error(function() kigo.bias({ [" moonquake"] = "x" }, tokenizer) end)
    local answer = assert(haiku:chat({ { role = "user", content = "Write a haiku about the moon." } },
      { seed = 1, max = 40, bias = { [" moon"] = -inf, moon = -inf } }))
    assert.is_nil(answer.text:find("moon", 1, true))
  end)
end)
