describe("kigo.Chain", function()
  local core = require "kigo.core"
  local sample = require "kigo.sample"
  local tiny = require "spec.tiny"
  local nan, inf = 0 / 0, math.huge

  local model
  setup(function() model = tiny.model {} end)
  teardown(function() model:close() end)

  local function f32(x) return (string.unpack("f", string.pack("f", x))) end

  local function random_logits(n, seed)
    local logits = {}
    for i = 1, n do
      local u, w = core.uniform(seed, i, 0), core.uniform(seed, i, 1)
      logits[i] = f32(3 * math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * w))
    end
    return logits
  end

  -- ---- the plain definition: lists of { id, x }, sorted and cut as the papers say ----

  -- Cuts that fall this near to a boundary depend on rounding; such a case shows nothing.
  local TOO_NEAR = 1e-5

  local function rank(list)
    table.sort(list, function(a, b)
      if a.x ~= b.x then return a.x > b.x end
      return a.id < b.id
    end)
  end

  local function set_probabilities(list)
    rank(list)
    local sum, entropy = 0, 0
    for _, c in ipairs(list) do
      c.p = math.exp(c.x - list[1].x)
      sum = sum + c.p
    end
    for _, c in ipairs(list) do
      c.p = c.p / sum
      if c.p > 0 then entropy = entropy - c.p * math.log(c.p) end
    end
    return entropy
  end

  -- Keep the head of the list whose probabilities reach p.
  local function cut_at_mass(list, p, near)
    if p == 1 then return end
    local mass = 0
    for i, c in ipairs(list) do
      mass = mass + c.p
      near[1] = math.min(near[1], math.abs(mass - p))
      if mass >= p then
        for j = #list, i + 1, -1 do list[j] = nil end
        return
      end
    end
  end

  local plain = {}

  function plain.greedy(list)
    rank(list)
    for i = #list, 2, -1 do list[i] = nil end
  end

  function plain.temp(list, stage)
    if stage.value == 0 then return plain.greedy(list) end
    for _, c in ipairs(list) do c.x = f32(c.x / f32(stage.value)) end
  end

  function plain.top_k(list, stage)
    rank(list)
    if stage.k > 0 then for i = #list, stage.k + 1, -1 do list[i] = nil end end
  end

  function plain.top_p(list, stage, near)
    set_probabilities(list)
    cut_at_mass(list, stage.value, near)
  end

  function plain.min_p(list, stage, near)
    set_probabilities(list)
    local least = stage.value * list[1].p
    for i = #list, 1, -1 do
      if stage.value > 0 then near[1] = math.min(near[1], math.abs(list[i].p / list[1].p - stage.value)) end
      if list[i].p < least then table.remove(list, i) end
    end
  end

  function plain.typical(list, stage, near)
    local entropy = set_probabilities(list)
    for _, c in ipairs(list) do c.far = math.abs(-math.log(c.p) - entropy) end
    table.sort(list, function(a, b)
      if a.far ~= b.far then return a.far < b.far end
      return a.id < b.id
    end)
    for i = 2, #list do
      local gap = list[i].far - list[i - 1].far
      if gap > 0 and gap < 1e-5 and list[i].x ~= list[i - 1].x and #list < 400 then near[1] = 0 end
    end
    cut_at_mass(list, stage.value, near)
  end

  function plain.top_n_sigma(list, stage, near)
    if stage.value == 0 then return end
    rank(list)
    local sum, squares = 0, 0
    for _, c in ipairs(list) do sum = sum + c.x end
    for _, c in ipairs(list) do squares = squares + (c.x - sum / #list) ^ 2 end
    local cut = list[1].x - f32(stage.value) * math.sqrt(squares / #list)
    for i = #list, 1, -1 do
      if list[i].x ~= list[1].x then near[1] = math.min(near[1], math.abs(list[i].x - cut)) end
      if list[i].x < cut then table.remove(list, i) end
    end
  end

  function plain.xtc(list, stage, near, history, draws)
    local probability, threshold = f32(stage.probability), f32(stage.threshold or 0.1)
    if probability == 0 or threshold > 0.5 then return end
    if probability < 1 then
      draws.n = draws.n + 1
      if core.uniform(1, #history, draws.n - 1) >= probability then return end
    end
    set_probabilities(list)
    local n_top = 0
    for _, c in ipairs(list) do
      near[1] = math.min(near[1], math.abs(c.p - threshold))
      if c.p >= threshold then n_top = n_top + 1 end
    end
    for _ = 2, n_top do table.remove(list, 1) end
  end

  function plain.dynatemp(list, stage)
    local entropy = set_probabilities(list)
    local share = #list > 1 and entropy / math.log(#list) or 0
    local power = share > 0 and share ^ (stage.exponent or 1) or stage.exponent == 0 and 1 or 0
    local temperature = stage.low + (stage.high - stage.low) * power
    if temperature < 1e-6 then return plain.greedy(list) end
    for _, c in ipairs(list) do c.x = f32(c.x / f32(temperature)) end
  end

  -- As its author describes it: for each earlier place of the last token, how far back does the match go?
  function plain.dry(list, stage, _, history)
    local last = stage.last or -1
    local window = table.move(history, last < 0 and 1 or math.max(1, #history - last + 1), #history, 1, {})
    local longest = {}
    for i = 1, #window - 1 do
      local length = 0
      while i - length >= 1 and window[i - length] == window[#window - length] do length = length + 1 end
      local next_id = window[i + 1]
      longest[next_id] = math.max(longest[next_id] or 0, length)
    end
    local allowed = stage.allowed or 2
    for _, c in ipairs(list) do
      local n = longest[c.id] or 0
      if n >= allowed then
        c.x = f32(c.x - f32(math.min(1e6, f32(stage.multiplier) * f32(stage.base or 1.75) ^ (n - allowed))))
      end
    end
  end

  function plain.mirostat(list, stage, near) -- before anything was drawn
    set_probabilities(list)
    for i = #list, 2, -1 do
      local surprise = -math.log(list[i].p, 2)
      near[1] = math.min(near[1], math.abs(surprise - 2 * stage.tau))
      if surprise > 2 * stage.tau then table.remove(list, i) end
    end
  end

  function plain.penalties(list, stage, _, history)
    local counts = {}
    local last = stage.last or 64
    for i = last < 0 and 1 or math.max(1, #history - last + 1), #history do
      counts[history[i]] = (counts[history[i]] or 0) + 1
    end
    local strength, frequency, presence = f32(stage["repeat"] or 1), f32(stage.frequency or 0), f32(stage.presence or 0)
    for _, c in ipairs(list) do
      local n = counts[c.id]
      if n then
        c.x = c.x > 0 and f32(c.x / strength) or f32(c.x * strength)
        c.x = f32(f32(c.x - f32(frequency * n)) - presence)
      end
    end
  end

  local function begins(phrase, history)
    for i = 1, #phrase - 1 do
      if history[#history - #phrase + 1 + i] ~= phrase[i] then return false end
    end
    return true
  end

  function plain.bias(list, stage, _, history)
    for _, c in ipairs(list) do
      c.x = f32(c.x + f32(stage.values[c.id] or 0))
      for _, phrase in ipairs(stage.phrases or {}) do
        if phrase[#phrase] == c.id and begins(phrase, history) then c.x = f32(c.x + f32(phrase.value)) end
      end
    end
  end

  -- What is left, best first, and how near a cut came to a boundary.
  local function plain_candidates(logits, stages, history)
    local list, near, draws = {}, { 1 }, { n = 0 }
    for i, x in ipairs(logits) do list[i] = { id = i - 1, x = x } end
    for _, stage in ipairs(stages) do
      for i = #list, 1, -1 do if list[i].x == -inf then table.remove(list, i) end end
      plain[stage.kind](list, stage, near, history, draws)
    end
    for i = #list, 1, -1 do if list[i].x == -inf then table.remove(list, i) end end
    set_probabilities(list)
    return list, near[1]
  end

  local function assert_same_candidates(logits, stages, history, seq)
    local expected, near = plain_candidates(logits, stages, history)
    if near < TOO_NEAR then return 0 end
    local chain <close> = core.chain(stages)
    local ids, probs = chain:candidates(core.tensor(logits), seq)
    assert.equal(#expected, #ids)
    for i, c in ipairs(expected) do
      assert.equal(c.id, ids[i])
      assert.is_true(math.abs(c.p - probs[i]) < 1e-5 * c.p + 1e-9)
    end
    return 1
  end

  -- ---- each stage, and free orders ----

  local sizes = { 1, 2, 7, 320, 5000 }

  local function sequence_with(history, seed)
    local seq = model:sequence { seed = seed or 1 }
    seq:feed(history)
    return seq
  end

  local function history_for(n, seed)
    local ids = {}
    for i = 1, 100 do ids[i] = math.floor(core.uniform(seed, i, 5) * math.min(n, tiny.vocab)) end
    return ids
  end

  local examples = {
    greedy = { {} },
    temp = { { value = 0 }, { value = 0.7 }, { value = 1 }, { value = 1e-6 }, { value = 30 } },
    top_k = { { k = 0 }, { k = 1 }, { k = 5 }, { k = 64 }, { k = 300 }, { k = 100000 } },
    top_p = { { value = 0 }, { value = 0.1 }, { value = 0.5 }, { value = 0.9 }, { value = 0.999 }, { value = 1 } },
    min_p = { { value = 0 }, { value = 0.01 }, { value = 0.1 }, { value = 0.5 }, { value = 1 } },
    typical = { { value = 0 }, { value = 0.2 }, { value = 0.5 }, { value = 0.95 }, { value = 1 } },
    penalties = { {}, { ["repeat"] = 1.3 }, { last = 5, frequency = 0.5 }, { last = -1, presence = 0.7 },
                  { last = 0, presence = 5 }, { last = 30, ["repeat"] = 0.8, frequency = -0.25, presence = -1 } },
    bias = { { values = {} }, { values = { [0] = 3 } }, { values = { [0] = -5.5, [1] = -inf } } },
    top_n_sigma = { { value = 0 }, { value = 0.5 }, { value = 1 }, { value = 2.5 }, { value = 100 } },
    xtc = { { probability = 0 }, { probability = 1 }, { probability = 0.5, threshold = 0.02 },
            { probability = 0.9, threshold = 0.2 }, { probability = 1, threshold = 0.6 },
            { probability = 1, threshold = 0.001 } },
    dynatemp = { { low = 1, high = 1 }, { low = 0.5, high = 2 }, { low = 0.7, high = 1.3, exponent = 3 },
                 { low = 0, high = 0 }, { low = 0.5, high = 5, exponent = 0.5 }, { low = 1, high = 2, exponent = 0 } },
    dry = { { multiplier = 0 }, { multiplier = 0.8 }, { multiplier = 2, base = 1, allowed = 1 },
            { multiplier = 0.5, base = 3, allowed = 1, last = 40 }, { multiplier = 1, last = 1 },
            { multiplier = 1, last = 0 } },
  }
  local all_examples = { mirostat = { { tau = 0 }, { tau = 1 }, { tau = 2.5, eta = 1 }, { tau = 100 } } }
  for kind, list in pairs(examples) do all_examples[kind] = list end

  for kind, list in pairs(all_examples) do
    it("is the plain definition of " .. kind, function()
      local n_compared, n_cases = 0, 0
      for _, n in ipairs(sizes) do
        local history = history_for(n, 3 * n)
        local seq <close> = sequence_with(history)
        for i, fields in ipairs(list) do
          local stage = { kind = kind }
          for name, value in pairs(fields) do stage[name] = value end
          if not (kind == "bias" and n == 1 and fields.values[1]) then -- there is no id 1
            n_cases = n_cases + 1
            n_compared = n_compared + assert_same_candidates(random_logits(n, 100 * n + i), { stage }, history, seq)
          end
        end
      end
      assert.is_true(n_compared > 0.6 * n_cases)
    end)
  end

  it("applies stages in any order", function()
    local kinds = { "temp", "top_k", "top_p", "min_p", "typical", "penalties", "bias", "top_n_sigma", "xtc", "dynatemp",
      "dry", "greedy" }
    local n_compared, n_cases = 0, 0
    for trial = 1, 150 do
      local dice = tiny.dice(1000 + trial)
      local n = ({ 7, 320, 320, 1000 })[dice(4)]
      local history = history_for(n, trial)
      local stages = {}
      for i = 1, dice(5) do
        local kind = kinds[dice(trial % 5 == 0 and #kinds or #kinds - 1)]
        local fields = examples[kind][dice(#examples[kind])]
        stages[i] = { kind = kind }
        for name, value in pairs(fields) do stages[i][name] = value end
      end
      local seq <close> = sequence_with(history)
      n_cases = n_cases + 1
      n_compared = n_compared + assert_same_candidates(random_logits(n, trial), stages, history, seq)
    end
    assert.is_true(n_compared > 0.6 * n_cases)
  end)

  it("gives ties to the lower id in every stage", function()
    local logits = {}
    for i = 1, 500 do logits[i] = (i * 7919) % 3 end
    local seq <close> = sequence_with {}
    for _, stages in ipairs {
      {}, { { kind = "greedy" } }, { { kind = "top_k", k = 77 } },
      { { kind = "top_k", k = 200 }, { kind = "top_k", k = 150 } },
      { { kind = "top_p", value = 0.3 } }, { { kind = "typical", value = 0.4 } }, { { kind = "min_p", value = 0.2 } },
      { { kind = "top_k", k = 300 }, { kind = "temp", value = 0.5 }, { kind = "top_p", value = 0.77 } },
      { { kind = "bias", values = { [499] = 2, [3] = 5 } }, { kind = "top_k", k = 9 } },
    } do
      assert.equal(1, assert_same_candidates(logits, stages, {}, seq))
    end
    local equal = {}
    for i = 1, 3000 do equal[i] = 1.5 end
    local chain <close> = core.chain { { kind = "top_k", k = 100 } }
    local ids = chain:candidates(core.tensor(equal))
    for i = 1, 100 do assert.equal(i - 1, ids[i]) end
  end)

  it("makes equal logits out of different ones only by temperature, and ranks them again", function()
    local logits = { f32(1e-40), f32(2e-40), 0, -1 } -- all but the last are 0 after the division
    assert.equal(1, assert_same_candidates(logits, { { kind = "top_k", k = 3 }, { kind = "temp", value = 1e6 } }, {}))
  end)

  -- ---- history ----

  it("looks at the last tokens of the timeline only, and follows rewind", function()
    local logits = {}
    for i = 1, 10 do logits[i] = 0 end
    local t <close> = core.tensor(logits)
    local chain <close> = core.chain { { kind = "penalties", last = 2, presence = 1 } }
    local seq <close> = sequence_with { 5, 6, 7 }
    local function last_two()
      local ids = chain:candidates(t, seq)
      return { ids[9], ids[10] }
    end
    assert.same({ 6, 7 }, last_two())
    seq:push(1)
    assert.same({ 1, 7 }, last_two())
    seq:rewind(2)
    assert.same({ 5, 6 }, last_two())
    assert.equal(0, chain:candidates(t)[1]) -- no sequence, no history
  end)

  it("refuses a timeline that the logits do not cover", function()
    local chain <close> = core.chain { { kind = "penalties", ["repeat"] = 1.1 } }
    local seq <close> = sequence_with { 5, 40 }
    local t <close> = core.tensor { 1, 2, 3, 4, 5, 6 }
    assert.error(function() chain(t, seq) end)
    seq:rewind(1)
    assert.equal(6, #chain:candidates(t, seq))
  end)

  -- ---- the draw ----

  it("draws by the inverse of the distribution in rank order", function()
    for _, n in ipairs { 2, 7, 320, 5000 } do
      local logits = random_logits(n, n)
      local t <close> = core.tensor(logits)
      local chains = { {}, { { kind = "temp", value = 3 }, { kind = "dist" } }, { { kind = "top_k", k = 20 } } }
      for _, stages in ipairs(chains) do
        local chain <close> = core.chain(stages)
        local plain_stages = {}
        for _, stage in ipairs(stages) do if stage.kind ~= "dist" then plain_stages[#plain_stages + 1] = stage end end
        local list = plain_candidates(logits, plain_stages, {})
        for seed = 1, 40 do
          local seq <close> = sequence_with({}, seed)
          local u, sum, expected, near = core.uniform(seed, 0, 0), 0, nil, 1
          for _, c in ipairs(list) do
            sum = sum + c.p
            near = math.min(near, math.abs(sum - u))
            if sum > u then
              expected = c.id
              break
            end
          end
          if near > 1e-6 then assert.equal(expected, chain(t, seq)) end
        end
      end
    end
  end)

  it("follows the distribution", function()
    local logits, total = { 1, 0, 2, -1, 0.5, -inf }, 0
    for _, x in ipairs(logits) do total = total + math.exp(x / 0.8) end
    local t <close> = core.tensor(logits)
    local chain <close> = core.chain { { kind = "temp", value = 0.8 } }
    local seq <close> = sequence_with({}, 29)
    local counts, n = {}, 20000
    for _ = 1, n do
      local id = chain(t, seq)
      counts[id] = (counts[id] or 0) + 1
    end
    local chi2 = 0
    for i = 1, 5 do
      local expected = n * math.exp(logits[i] / 0.8) / total
      chi2 = chi2 + (counts[i - 1] - expected) ^ 2 / expected
    end
    assert.is_nil(counts[5])
    assert.is_true(chi2 < 23.5, "chi square " .. chi2) -- 4 degrees of freedom, 99.99 %
  end)

  it("follows the distribution of a stage that draws, too", function()
    local logits = { 1.5, 0, 2, -1, 1, 0.5 }
    local t <close> = core.tensor(logits)
    local function shares(is_there)
      local all, total = {}, 0
      for i, x in ipairs(logits) do
        all[i] = is_there(i) and math.exp(x) or 0
        total = total + all[i]
      end
      for i in ipairs(all) do all[i] = all[i] / total end
      return all
    end
    -- The three best reach 0.14; in 0.4 of the draws only the worst of them is there.
    local as_it_is, without = shares(function() return true end), shares(function(i) return i ~= 1 and i ~= 3 end)
    local chain <close> = core.chain { sample.xtc(0.4, 0.14) }
    local seq <close> = sequence_with({}, 31)
    local counts, n, chi2 = {}, 20000, 0
    for _ = 1, n do
      local id = chain(t, seq)
      counts[id + 1] = (counts[id + 1] or 0) + 1
    end
    for i = 1, 6 do
      local expected = n * (0.6 * as_it_is[i] + 0.4 * without[i])
      chi2 = chi2 + (counts[i] - expected) ^ 2 / expected
    end
    assert.is_true(chi2 < 25.7, "chi square " .. chi2) -- 5 degrees of freedom, 99.99 %
    assert.equal(core.uniform(31, 0, 2 * n), seq.rng:uniform()) -- two numbers each
  end)

  it("depends on the seed and the position, not on what was drawn elsewhere", function()
    local t <close> = core.tensor(random_logits(320, 5))
    local chain <close> = core.chain { { kind = "temp", value = 2 } }
    local function run(seed)
      local seq <close> = sequence_with({}, seed)
      local ids = {}
      for i = 1, 30 do
        ids[i] = chain(t, seq)
        seq:push(ids[i] % tiny.vocab)
      end
      return ids
    end
    local first = run(7)
    assert.same(first, run(7))
    assert.not_same(first, run(8))
    local seq <close> = sequence_with({}, 7)
    for i = 1, 10 do seq:push(first[i] % tiny.vocab) end -- nothing drawn so far
    assert.equal(first[11], chain(t, seq))
    local fork <close> = seq:fork { seed = 7 }
    seq:push(first[11] % tiny.vocab)
    assert.equal(first[12], chain(t, seq))
    fork:push(first[11] % tiny.vocab)
    assert.equal(first[12], chain(t, fork))
    seq:rewind(10)
    assert.equal(first[11], chain(t, seq))
  end)

  it("draws no number when one candidate is left", function()
    local t <close> = core.tensor { 1, 3, 3, 2 }
    for _, stages in ipairs { { sample.greedy() }, { sample.temp(0) }, { sample.top_k(1) } } do
      local chain <close> = core.chain(stages)
      local seq <close> = sequence_with({}, 11)
      assert.equal(1, chain(t, seq))
      assert.equal(core.uniform(11, 0, 0), seq.rng:uniform())
      assert.equal(1, chain(t)) -- and so it needs no sequence
    end
    local draws <close> = core.chain {}
    assert.error(function() draws(t) end)
  end)

  it("leaves the logits as they were", function()
    local t <close> = core.tensor(random_logits(320, 1))
    local before = t:bytes()
    local chain <close> = core.chain { sample.bias { [3] = 4 }, sample.temp(0.5), sample.top_k(40), sample.top_p(0.9) }
    local seq <close> = sequence_with { 1, 2 }
    chain(t, seq)
    assert.is_true(before == t:bytes())
  end)

  it("serves vocabularies of several sizes", function()
    local chain <close> = core.chain { sample.top_k(3), sample.greedy() }
    for _, n in ipairs { 5, 5000, 7, 320 } do
      local t <close> = core.tensor(random_logits(n, n))
      assert.equal((t:argmax()), chain(t))
    end
  end)

  -- ---- what are no logits ----

  it("refuses NaN with a count, and goes on afterwards", function()
    local chain <close> = core.chain { sample.top_k(2), sample.greedy() }
    for _, n in ipairs { 1, 7, 320 } do
      local logits = random_logits(n, n)
      logits[n] = nan
      local id, message, code = chain(core.tensor(logits))
      assert.is_nil(id)
      assert.matches("^1 of " .. n, message)
      assert.equal(core.err.NUMERIC, code)
      local ids, _, candidates_code = chain:candidates(core.tensor(logits))
      assert.is_nil(ids)
      assert.equal(core.err.NUMERIC, candidates_code)
    end
    assert.equal(1, chain(core.tensor { 0, 1 }))
  end)

  it("refuses to draw from nothing", function()
    local nothing <close> = core.tensor { -inf, -inf, -inf }
    local some <close> = core.tensor { 1, -inf, 2 }
    local ban = sample.bias { [0] = -inf, [2] = -inf }
    for _, stage in ipairs { sample.greedy(), sample.temp(0.5), sample.temp(0), sample.top_k(2), sample.top_p(0.5),
                             sample.min_p(0.1), sample.min_p(0), sample.typical(0.5), sample.dist() } do
      local chain <close> = core.chain { stage }
      assert.equal(core.err.NUMERIC, select(3, chain(nothing)))
      local banning <close> = core.chain { ban, stage }
      assert.equal(core.err.NUMERIC, select(3, banning(some)))
      assert.equal(core.err.NUMERIC, select(3, banning:candidates(some)))
    end
  end)

  it("lets infinite logits win", function()
    local t <close> = core.tensor { 1, inf, 5, inf, -inf }
    local chain <close> = core.chain { sample.temp(0.5), sample.top_p(0.99) }
    assert.same({ { 1, 3 }, { 0.5, 0.5 } }, { chain:candidates(t) })
    local greedy <close> = core.chain { sample.greedy() }
    assert.equal(1, greedy(t))
  end)

  it("says so when a stage makes a logit overflow", function()
    local t <close> = core.tensor { 3e38, 1 }
    local chain <close> = core.chain { sample.temp(0.1) }
    assert.equal(core.err.NUMERIC, select(3, chain(t)))
  end)

  it("keeps banned ids out, however flat the rest is", function()
    local logits = {}
    for i = 1, 2000 do logits[i] = i % 2 == 0 and -inf or 0 end
    local t <close> = core.tensor(logits)
    local chain <close> = core.chain { sample.temp(100) }
    local seq <close> = sequence_with {}
    for _ = 1, 200 do assert.equal(0, chain(t, seq) % 2) end
    assert.equal(1000, #chain:candidates(t))
  end)

  -- ---- the caller's mistakes ----

  it("refuses bad stages and names the place", function()
    local bad = {
      { 7 }, { {} }, { { kind = 7 } }, { { kind = "none" } }, { { kind = "greedy", value = 1 } },
      { { kind = "temp" } }, { { kind = "temp", value = "hot" } }, { { kind = "temp", value = -1 } },
      { { kind = "temp", value = nan } }, { { kind = "temp", value = inf } }, { { kind = "temp", value = 1e-9 } },
      { { kind = "temp", value = 1, k = 3 } }, { { kind = "temp", 0.7 } },
      { { kind = "top_k" } }, { { kind = "top_k", k = -1 } }, { { kind = "top_k", k = 1.5 } },
      { { kind = "top_k", k = 2 ^ 31 } }, { { kind = "top_k", k = nan } }, { { kind = "top_k", k = "40" } },
      { { kind = "top_p", value = 1.01 } }, { { kind = "top_p", value = -0.1 } }, { { kind = "top_p", value = nan } },
      { { kind = "min_p", value = 2 } }, { { kind = "typical", value = -1 } }, { { kind = "typical" } },
      { { kind = "penalties", last = -2 } }, { { kind = "penalties", last = 0.5 } },
      { { kind = "penalties", ["repeat"] = 0 } }, { { kind = "penalties", ["repeat"] = inf } },
      { { kind = "penalties", frequency = 1e9 } }, { { kind = "penalties", presence = nan } },
      { { kind = "penalties", precense = 1 } },
      { { kind = "bias" } }, { { kind = "bias", values = 3 } }, { { kind = "bias", values = { [-1] = 1 } } },
      { { kind = "bias", values = { [1.5] = 1 } } }, { { kind = "bias", values = { ["a"] = 1 } } },
      { { kind = "bias", values = { [1] = nan } } }, { { kind = "bias", values = { [1] = inf } } },
      { { kind = "bias", values = { [1] = "x" } } }, { { kind = "bias", values = { [2 ^ 40] = 1 } } },
      { { kind = "dist", value = 1 } }, { { kind = "dist" }, { kind = "greedy" } },
      { { kind = "top_n_sigma" } }, { { kind = "top_n_sigma", value = -1 } }, { { kind = "top_n_sigma", value = nan } },
      { { kind = "xtc" } }, { { kind = "xtc", probability = 1.1 } },
      { { kind = "xtc", probability = 0.5, threshold = -1 } },
      { { kind = "xtc", probability = nan } }, { { kind = "xtc", probability = 0.5, value = 1 } },
      { { kind = "dynatemp", low = 1 } }, { { kind = "dynatemp", low = 2, high = 1 } },
      { { kind = "dynatemp", low = -1, high = 1 } }, { { kind = "dynatemp", low = 0, high = 1, exponent = -1 } },
      { { kind = "dynatemp", low = 0, high = inf } },
      { { kind = "dry" } }, { { kind = "dry", multiplier = -1 } }, { { kind = "dry", multiplier = 1, base = 0.5 } },
      { { kind = "dry", multiplier = 1, allowed = 0 } }, { { kind = "dry", multiplier = 1, allowed = 1.5 } },
      { { kind = "dry", multiplier = 1, last = -2 } }, { { kind = "dry", multiplier = 1, breakers = "x" } },
      { { kind = "dry", multiplier = 1, breakers = { "x" } } }, { { kind = "dry", multiplier = 1, breakers = { 1 } } },
      { { kind = "dry", multiplier = nan } },
      { { kind = "mirostat" } }, { { kind = "mirostat", tau = -1 } }, { { kind = "mirostat", tau = 5, eta = 11 } },
      { { kind = "mirostat", tau = 5 }, { kind = "temp", value = 1 } },
      { { kind = "bias", values = {}, phrases = 7 } }, { { kind = "bias", values = {}, phrases = { 7 } } },
      { { kind = "bias", values = {}, phrases = { { 1, 2 } } } },
      { { kind = "bias", values = {}, phrases = { { 1, value = 1 } } } },
      { { kind = "bias", values = {}, phrases = { { 1, -2, value = 1 } } } },
      { { kind = "bias", values = {}, phrases = { { 1, 2, value = nan } } } },
    }
    for _, stages in ipairs(bad) do
      local ok, message = pcall(core.chain, stages)
      assert.is_false(ok)
      assert.matches("stage 1", message)
      table.insert(stages, 1, { kind = "top_k", k = 9 })
      ok, message = pcall(core.chain, stages)
      assert.is_false(ok)
      assert.matches("stage 2", message)
    end
    assert.error(function() core.chain() end)
    assert.error(function() core.chain(3) end)
    local many = {}
    for i = 1, 65 do many[i] = { kind = "greedy" } end
    assert.error(function() core.chain(many) end)
  end)

  it("refuses what are no logits of this vocabulary", function()
    local chain <close> = core.chain { sample.bias { [9] = 1 }, sample.greedy() }
    local seq <close> = sequence_with {}
    assert.error(function() chain(core.tensor { 1, 2 }, seq) end)
    assert.error(function() chain(core.zeros(2, 12), seq) end)
    assert.error(function() chain(core.zeros(0), seq) end)
    assert.error(function() chain({}, seq) end)
    assert.error(function() chain(core.zeros(12), {}) end)
    assert.error(function() chain() end)
    assert.equal(9, chain(core.zeros(12), seq))
    seq:close()
    assert.error(function() chain(core.zeros(12), seq) end)
  end)

  it("refuses everything when it is closed", function()
    local chain = core.chain {}
    assert.equal("kigo.Chain", tostring(chain))
    chain:close()
    chain:close()
    assert.equal("kigo.Chain (closed)", tostring(chain))
    local t <close> = core.tensor { 1, 2 }
    assert.error(function() chain(t) end)
    assert.error(function() chain:candidates(t) end)
    t:close()
    local open <close> = core.chain { sample.greedy() }
    assert.error(function() open(t) end)
  end)

  it("survives any allocation that fails", function()
    local logits = random_logits(320, 2)
    local t <close> = core.tensor(logits)
    local stages = { { kind = "bias", values = { [1] = 2, [4] = -inf }, phrases = { { 3, 4, value = 1 } } },
      sample.dry { multiplier = 1 }, sample.top_p(0.9), sample.top_k(10), sample.greedy() }
    local reference <close> = core.chain(stages)
    local expected = reference(t)
    local n_refused = 0
    for nth = 1, 35 do
      core.alloc_inject(nth, true)
      local ok, chain, _, code = pcall(core.chain, stages)
      local picked, id, pick_code
      if ok and chain then
        local _
        picked, id, _, pick_code = pcall(chain, t)
      end
      core.alloc_inject(0)
      if not ok or not chain then
        assert.is_true(not ok or code == core.err.MEMORY)
        n_refused = n_refused + 1
      else
        if picked and id then
          assert.equal(expected, id)
        else
          assert.is_true(not picked or pick_code == core.err.MEMORY)
          n_refused = n_refused + 1
        end
        assert.equal(expected, chain(t))
        chain:close()
      end
    end
    assert.is_true(n_refused >= 8)
  end)
end)

describe("kigo.sample", function()
  local core = require "kigo.core"
  local sample = require "kigo.sample"

  it("makes stages that a chain takes", function()
    local chain <close> = sample.chain {
      sample.penalties { last = 64, ["repeat"] = 1.1 }, sample.bias { [0] = 1 }, sample.top_k(40), sample.typical(0.9),
      sample.top_p(0.95), sample.min_p(0.05), sample.temp(0.7), sample.greedy(), sample.dist(),
    }
    assert.equal(1, chain(core.tensor { 1, 5 }))
    assert.error(function() sample.penalties(1) end)
    assert.error(function() sample.penalties { kind = "greedy" } end)
    assert.error(function() sample.bias() end)
    assert.error(function() sample.chain { sample.temp() } end)
  end)

  it("makes a chain from options", function()
    local t <close> = core.tensor { 0, 1, 2, 3, 2.5 }
    local function left(options)
      local chain <close> = sample.from_options(options)
      return chain:candidates(t)
    end
    assert.equal(5, #left())
    assert.equal(5, #left { max = 10 })
    assert.equal(5, #left { top_k = 0 })
    local cool <close> = sample.from_options { top_k = 2, temp = 0.8 }
    local _, probs = cool:candidates(t)
    assert.is_true(math.abs(probs[2] / probs[1] - math.exp(-0.5 / 0.8)) < 1e-5)
    assert.same({ 3 }, left { temp = 0, top_k = 3 })
    assert.same({ 3, 4, 2 }, left { temp = 0.7, top_k = 3 })
    assert.same({ 3, 4 }, left { top_p = 0.7, min_p = 0.1 })
    assert.same({ 4 }, left { temp = 0, bias = { [3] = -math.huge } })
    assert.equal(5, #left { top_k = 0, repeat_penalty = 1.1, repeat_last = -1, frequency_penalty = 0.1,
                            presence_penalty = 0.1 })
    assert.error(function() sample.from_options { temp = -1 } end)
    assert.error(function() sample.from_options { repeat_penalty = -1 } end)
    assert.error(function() sample.from_options(3) end)
  end)
end)
