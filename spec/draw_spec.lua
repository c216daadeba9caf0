-- The same draw by everybody: the chain on the host, and blocks of threads on a device. What the kernels of a GPU run
-- is compared here with a single thread, on the GPU with all of them.
describe("a draw", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err, inf = core.err, math.huge

  local model
  setup(function() model = tiny.model {} end)
  teardown(function() model:close() end)

  local function gauss(seed, i)
    local u, w = core.uniform(seed, i, 0), core.uniform(seed, i, 1)
    return math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * w)
  end

  local kinds = { "greedy", "temp", "top_k", "top_p", "min_p", "typical", "penalties", "bias", "temp", "top_k", "top_p",
    "min_p", "top_n_sigma", "xtc", "dynatemp", "top_n_sigma", "xtc", "dynatemp" }

  -- Ids of which the first are likely to end the histories of this spec.
  local function random_phrase(dice, size)
    local phrase = { value = ({ -inf, 4, -2.5 })[dice(3)] }
    for i = 1, dice(2) + 1 do phrase[i] = dice(math.min(size, 3)) - 1 end
    return phrase
  end

  local function random_stage(dice, size)
    local stage = { kind = kinds[dice(#kinds)] }
    local kind = stage.kind
    if kind == "temp" then
      stage.value = ({ 0, 0.3, 1, 1.7, 30 })[dice(5)]
    elseif kind == "top_k" then
      stage.k = ({ 0, 1, 5, 40, 300, 3000, 20000 })[dice(7)]
    elseif kind == "top_p" or kind == "typical" then
      stage.value = ({ 0, 0.2, 0.9, 0.999, 1 })[dice(5)]
    elseif kind == "min_p" then
      stage.value = ({ 0, 0.001, 0.05, 0.5, 1 })[dice(5)]
    elseif kind == "penalties" then
      stage.last, stage["repeat"], stage.frequency = ({ -1, 0, 5, 64 })[dice(4)], 1.3, 0.2
      stage.presence = ({ 0, 0.5 })[dice(2)]
    elseif kind == "bias" then
      stage.values = {}
      for _ = 1, dice(5) do stage.values[dice(size) - 1] = ({ -inf, 3, -2.5 })[dice(3)] end
      stage.phrases = {}
      for i = 1, dice(4) - 1 do stage.phrases[i] = random_phrase(dice, size) end
    elseif kind == "top_n_sigma" then
      stage.value = ({ 0, 0.3, 1, 2, 5 })[dice(5)]
    elseif kind == "xtc" then
      stage.probability, stage.threshold = ({ 0, 0.5, 0.9, 1 })[dice(4)], ({ 0, 0.001, 0.05, 0.2, 0.7 })[dice(5)]
    elseif kind == "dynatemp" then
      stage.low, stage.high = ({ 0, 0.5, 1 })[dice(3)], ({ 1, 1.5, 9 })[dice(3)]
      stage.exponent = ({ 0, 0.5, 1, 3 })[dice(4)]
    end
    return stage
  end

  -- Greedy only now and then: not much comes behind it.
  local function random_stages(dice, size)
    local stages = {}
    for _ = 1, dice(5) - 1 do
      local stage = random_stage(dice, size)
      if stage.kind ~= "greedy" or dice(3) == 1 then stages[#stages + 1] = stage end
    end
    return stages
  end

  local function describe_stages(stages)
    local parts = {}
    for i, stage in ipairs(stages) do
      parts[i] = stage.kind .. " " .. tostring(stage.value or stage.k or stage.probability or stage.high or "")
    end
    return table.concat(parts, ", ")
  end

  ---What `pick` gives, the number that comes after it, and a code where there is nothing.
  local function drawn(pick, chain, logits, history, seed)
    local seq <close> = model:sequence { seed = seed }
    seq:feed(history)
    local id, _, code = pick(chain, logits, seq)
    return id, seq.rng:uniform(), code
  end

  local function by_chain(chain, logits, seq) return chain(logits, seq) end

  ---The same for what the stages leave of a copy of the logits, by `apply`.
  local function assert_same_left(chain, stages, history, host, other, apply)
    local here <close> = host:clone()
    local there <close> = other:clone()
    local seq <close> = model:sequence { seed = 5 }
    local twin <close> = model:sequence { seed = 5 }
    seq:feed(history)
    twin:feed(history)
    local left, _, code = core.apply(chain, here, seq)
    local other_left, _, other_code = apply(chain, there, twin)
    if left then
      if other_code == err.UNSUPPORTED then return end -- nothing is left, which a device does not say
      local numbers, n_differ = left:totable(), 0
      for i, x in ipairs(other_left:totable()) do n_differ = n_differ + (x == numbers[i] and 0 or 1) end -- -0 is 0
      assert.equal(0, n_differ, describe_stages(stages))
      assert.equal(seq.rng:uniform(), twin.rng:uniform())
    else
      assert.is_nil(other_left)
      assert.equal(err.NUMERIC, code)
    end
  end

  local function assert_same(chain, stages, history, host, other, pick)
    for seed = 1, 3 do
      local id, uniform, code = drawn(by_chain, chain, host, history, seed)
      local other_id, other_uniform, other_code = drawn(pick, chain, other, history, seed)
      if id or pick == by_chain then
        assert.equal(id, other_id, describe_stages(stages))
        assert.equal(uniform, other_uniform)
        assert.equal(code, other_code)
      else
        assert.is_nil(other_id)
        assert.equal(err.NUMERIC, code)
        assert.equal(err.UNSUPPORTED, other_code)
      end
    end
  end

  local function random_history(dice, size)
    local history = {}
    local top = dice(2) == 1 and 3 or tiny.vocab
    for i = 1, dice(60) do history[i] = dice(math.min(size, top)) - 1 end
    return history
  end

  it("is the same by blocks of threads as by the chain", function()
    for trial = 1, tonumber(os.getenv "KIGO_DRAW_TRIALS") or 350 do
      local dice = tiny.dice(trial)
      local size = ({ 1, 2, 48, 300, 5000, trial % 10 == 0 and 40000 or 700 })[dice(6)]
      local spread, rounded = ({ 0, 0.01, 1, 3, 10, 40 })[dice(6)], dice(4) == 1
      local numbers = {}
      for i = 1, size do
        local x = spread * gauss(trial, i)
        numbers[i] = dice(50) == 1 and -inf or rounded and math.floor(x) or x
      end
      local logits <close> = core.tensor(numbers)
      local stages, history = random_stages(dice, size), random_history(dice, size)
      local chain <close> = core.chain(stages)
      assert_same(chain, stages, history, logits, logits, core.pick_as_device)
      assert_same_left(chain, stages, history, logits, logits, core.apply_as_device)
    end
  end)

  it("is left to the chain where logits are none or infinite, or an id is biased twice or not there", function()
    local seq <close> = model:sequence {}
    local chain <close> = core.chain { { kind = "top_k", k = 3 } }
    for _, numbers in ipairs { { 1, 0 / 0, 2 }, { 1, inf }, { -inf, -inf } } do
      local logits <close> = core.tensor(numbers)
      local id, _, code = core.pick_as_device(chain, logits, seq)
      assert.is_nil(id)
      assert.is_true(code == err.UNSUPPORTED or code == err.NUMERIC)
    end
    local biased <close> = core.chain { { kind = "bias", values = { [7] = 1 } } }
    local logits <close> = core.tensor { 1, 2 }
    assert.equal(err.UNSUPPORTED, select(3, core.pick_as_device(biased, logits, seq)))
    for _, stage in ipairs { { kind = "dry", multiplier = 1 }, { kind = "mirostat", tau = 3 } } do
      local remembers <close> = core.chain { stage }
      assert.equal(err.UNSUPPORTED, select(3, core.pick_as_device(remembers, logits, seq)))
    end
  end)

  it("survives the failure of every allocation", function()
    local numbers = {}
    for i = 1, 3000 do numbers[i] = gauss(5, i) end
    local logits <close> = core.tensor(numbers)
    local seq <close> = model:sequence {}
    local function make() return core.chain { { kind = "top_k", k = 40 }, { kind = "bias", values = { [3] = 1 } } } end
    local n = tiny.fail_each_allocation(make, function(chain) return core.pick_as_device(chain, logits, seq) end,
      function(chain)
        assert(core.pick_as_device(chain, logits, seq))
        chain:close()
      end)
    assert.is_true(n > 4)
  end)

  if not tiny.has_gpu then
    it("is the same on the GPU #gpu", function() pending "there is no GPU here" end)
    return
  end

  -- A model whose logits are as many as we like: one matrix, embedded and multiplied.
  local function open(rows)
    local file = build.random({ ["general.architecture"] = "none" }, {
      { name = "w", shape = { 32, rows } }, { name = "n", shape = { 32 } } })
    local gguf <close> = assert(core.parse_gguf(file, "spec"))
    local plan <close> = assert(core.plan(gguf))
    local w = assert(plan:weight "w")
    local x = plan:norm("norm", plan:embed("x", w), assert(plan:weight "n"), nil, { epsilon = 1e-5 })
    assert(plan:finish(plan:linear("logits", x, w), 64))
    return assert(core.model(plan, { device = "cuda" }))
  end

  it("is the same on the GPU #gpu", function()
    for _, size in ipairs { 1, 2, 300, 5000, 40000 } do
      local wide <close> = open(size)
      for trial = 1, 40 do
        local dice = tiny.dice(size + trial)
        local logits <close> = assert(wide:logits { dice(size) - 1 })
        local row = logits:row(0):mul_(({ 0, 0.1, 1, 10, 100, 1000 })[dice(6)])
        if dice(3) == 1 then row:fill_(-inf, { dice(size) - 1, dice(size) - 1 }) end
        local host <close> = core.tensor(support.floats(row:bytes()))
        local stages, history = random_stages(dice, size), random_history(dice, size)
        local chain <close> = core.chain(stages)
        assert_same(chain, stages, history, host, row, by_chain)
        assert_same_left(chain, stages, history, host, row, core.apply)
      end
    end
  end)

  it("takes the best of many rows as it does of one #gpu", function()
    local wide <close> = open(60000) -- more parts of rows than a device has blocks
    for _, stages in ipairs {
      { { kind = "greedy" } },
      { { kind = "penalties", last = -1, ["repeat"] = 1.5, presence = 2 }, { kind = "temp", value = 0 } },
    } do
      local chain <close> = core.chain(stages)
      local seqs, ids = {}, {}
      for i = 1, 64 do
        seqs[i], ids[i] = wide:sequence { seed = i }, {}
        seqs[i]:feed { i * 700, i }
      end
      for _ = 1, 8 do
        for i, id in ipairs(assert(wide:draw(seqs, chain, 4))) do
          table.insert(ids[i], id)
          seqs[i]:push(id)
        end
      end
      for i = 1, 64 do
        seqs[i]:close()
        local alone <close> = wide:sequence { seed = i }
        alone:feed { i * 700, i }
        for _, id in ipairs(ids[i]) do
          assert.equal(id, alone:draw(chain))
          if i % 16 == 0 then
            local logits <close> = core.tensor(support.floats(alone.logits:bytes()))
            assert.equal(id, chain(logits, alone))
          end
          alone:push(id)
        end
      end
    end
  end)
end)
