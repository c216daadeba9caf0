-- Speculation: what is said is what would have been said without.
describe("kigo.speculate", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local support = require "spec.support"
  local err = kigo.err

  local slice = tiny.slice

  describe("seq:verify", function()
    local chains = {
      { { kind = "greedy" } },
      { { kind = "temp", value = 2 } },
      { { kind = "penalties", last = 9, presence = 0.4, ["repeat"] = 1.2 }, { kind = "top_k", k = 30 },
        { kind = "temp", value = 1.5 } },
      { { kind = "dry", multiplier = 0.8, allowed = 1 }, { kind = "mirostat", tau = 3 } },
      { { kind = "xtc", probability = 0.5, threshold = 0.05 }, { kind = "dynatemp", low = 0.5, high = 2 } },
    }

    ---A sampler of Lua's that works in place, keeps a state and draws numbers.
    local function scripted(logits, seq)
      seq.state.n = (seq.state.n or 0) + 1
      local ids, p = logits:mul_(0.8):topk(4)
      local least = p[4]
      for i = 1, 4 do p[i] = p[i] - least + seq.state.n % 3 end
      assert(logits == seq.logits)
      return ids[seq.rng:choose(p)]
    end

    ---What n draws say, one by one, and what they leave.
    local function straight(model, prompt, seed, sampler, n)
      local seq <close> = model:sequence { seed = seed }
      seq:feed(prompt)
      local ids = {}
      for i = 1, n do
        ids[i] = sampler(seq.logits, seq)
        seq:push(ids[i])
      end
      return ids, seq.logits:bytes(), seq.rng:uniform(), seq.state.n
    end

    local n_schedules = math.tointeger(tonumber(os.getenv "KIGO_SCHEDULES" or "")) or 40

    for _, device in ipairs(tiny.variants) do
      it(("says what drawing one by one says, %d times: on %s"):format(n_schedules, device.name), function()
        local models = {}
        for i, chunk in ipairs { 512, 3 } do
          local options = { chunk = chunk }
          for name, value in pairs(device.options) do options[name] = value end
          models[i] = tiny.model(options)
        end
        local N = 12
        for seed = 1, n_schedules do
          local dice, model = tiny.dice(seed), models[seed % 2 + 1]
          local kind = dice(#chains + 1)
          local chain <close> = kigo.core.chain(chains[math.min(kind, #chains)])
          local sampler = kind > #chains and scripted or chain
          local prompt = tiny.ids(dice(30), dice(40))
          local expected, logits, uniform, count = straight(models[1], prompt, seed, sampler, N)
          local seq <close> = model:sequence { seed = seed }
          seq:feed(prompt)
          if dice(3) == 1 then assert(seq:step()) end
          local said = 0
          while said < N do
            local draft, n = {}, dice(5) == 1 and dice(90) or dice(9) - 1
            local n_right = dice(2) == 1 and dice(n + 1) - 1 or n
            for i = 1, n do
              draft[i] = i <= n_right and expected[said + i] or dice(tiny.vocab) - 1
            end
            if dice(9) == 1 then -- away and back
              local mark = seq:mark()
              seq:verify(tiny.ids(4, seed), sampler)
              seq:rewind(mark)
            end
            local before = seq:pos()
            local n_accepted, id = assert(seq:verify(slice(draft, 1, math.min(n, N - said)), sampler))
            assert.equal(before + n_accepted, seq:pos())
            for i = 1, n_accepted do assert.equal(expected[said + i], draft[i]) end
            said = said + n_accepted
            if said == N then
              seq:rewind(seq:pos()) -- the draw behind the last one was one too many
              seq.state.n = seq.state.n and seq.state.n - 1
              break
            end
            assert.equal(expected[said + 1], id)
            said = said + 1
            seq:push(id)
          end
          assert.same(expected, seq:tokens(#prompt))
          assert.equal(count, seq.state.n)
          assert.equal(logits, seq.logits:bytes())
          assert.equal(uniform, seq.rng:uniform())
        end
        for _, model in ipairs(models) do model:close() end
      end)
    end

    it("takes one pass for a draft, and keeps what it evaluated", function()
      local model <close> = tiny.model {}
      local chain <close> = kigo.core.chain(chains[1])
      local prompt = tiny.ids(10)
      local expected = straight(model, prompt, 0, chain, 81)
      local seq <close> = model:sequence { prefix_cache = false }
      seq:feed(prompt)
      local before = model:stats().n_steps
      assert.same({ 7, expected[8] }, { seq:verify(slice(expected, 1, 7), chain) })
      assert.equal(before + 1, model:stats().n_steps)
      assert.equal(17, seq.stats.n_tokens_evaluated)
      assert.same({ 0, expected[8] }, { seq:verify({ (expected[8] + 1) % tiny.vocab, 3 }, chain) })
      assert.equal(before + 1, model:stats().n_steps) -- the logits were there
      assert.same({ 0, expected[8] }, { seq:verify({}, chain) })
      assert.same({ 73, expected[81] }, { seq:verify(slice(expected, 8, 80), chain) })
      assert.equal(before + 3, model:stats().n_steps) -- 64 at a time
    end)

    it("ends where the context ends", function()
      local plan <close> = tiny.plan(20)
      local model <close> = assert(kigo.core.model(plan, { device = "reference" }))
      local chain <close> = kigo.core.chain(chains[1])
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(15))
      local big <close> = tiny.model {}
      local expected = straight(big, tiny.ids(15), 0, chain, 9)
      assert.same({ 5, expected[6] }, { seq:verify(expected, chain) })
      assert.equal(20, seq:pos())
      assert.same({ 0, expected[6] }, { seq:verify(slice(expected, 6, 9), chain) })
    end)

    it("leaves the timeline at the last accepted id where the sampler fails", function()
      local model <close> = tiny.model {}
      local chain <close> = kigo.core.chain(chains[2])
      local prompt = tiny.ids(10)
      local expected, logits = straight(model, prompt, 4, chain, 6)
      for _, problem in ipairs { "boom", {}, false } do
        local seq <close> = model:sequence { seed = 4 }
        seq:feed(prompt)
        local n = 0
        local ok, caught = pcall(seq.verify, seq, expected, function(l, s)
          n = n + 1
          if n == 4 then
            if not problem then return -1 end
            error(problem)
          end
          return chain(l, s)
        end)
        assert.is_false(ok)
        if type(problem) == "table" then assert.equal(problem, caught) end
        assert.same(slice(expected, 1, 3), seq:tokens(#prompt))
        assert.equal(3, (assert(seq:verify(slice(expected, 4, 6), chain))))
        assert.equal(logits, seq.logits:bytes())
      end
      local seq <close> = model:sequence {}
      seq:feed(prompt)
      local n, message, code = seq:verify({ 1, 2 }, function() return nil, "no idea", err.NUMERIC end)
      assert.same({ "no idea", err.NUMERIC }, { message, code })
      assert.is_nil(n)
      assert.equal(10, seq:pos())
    end)

    it("refuses what it cannot mean", function()
      local model <close> = tiny.model {}
      local chain <close> = kigo.core.chain {}
      local seq <close> = model:sequence {}
      assert.error(function() seq:verify({ 1 }, chain) end) -- empty
      seq:feed { 1 }
      for _, draft in ipairs { { -1 }, { tiny.vocab }, { "x" }, 1, "x" } do
        assert.error(function() seq:verify(draft, chain) end)
      end
      assert.error(function() seq:verify({ 1 }) end)
      assert.error(function() seq:verify({ 1 }, 1) end)
      assert.error(function() seq:verify() end)
      assert.equal(1, seq:pos())
      seq:close()
      assert.error(function() seq:verify({ 1 }, chain) end)
    end)

    it("survives the failure of every allocation", function()
      local chain <close> = kigo.core.chain(chains[3])
      local prompt = tiny.ids(10)
      local model <close> = tiny.model {}
      local expected = straight(model, prompt, 3, chain, 8)
      local function make()
        local own = tiny.model { chunk = 4 }
        local seq = own:sequence { seed = 3 }
        seq:feed(prompt)
        return { model = own, seq = seq }
      end
      local n = tiny.fail_each_allocation(make, function(o)
        return o.seq:verify(slice(expected, 1, 6), chain)
      end, function(o)
        o.seq:rewind(o.seq:pos())
        while o.seq:pos() < 18 do o.seq:push(assert(o.seq:draw(chain))) end
        assert.same(expected, o.seq:tokens(10))
        o.seq:close()
        o.model:close()
      end)
      assert.is_true(n > 5)
    end)
  end)

  describe("seq:generate", function()
    local PROMPT = [[Write a haiku about a dog at the door that includes the word "nine".]]
    local model, draft
    setup(function()
      model = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      draft = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
    end)
    teardown(function()
      model:close()
      draft:close()
    end)

    local speculators = {
      ["prompt lookup"] = function() return kigo.prompt_lookup { shortest = 1 } end,
      ["n-grams"] = function() return kigo.ngrams {} end,
      ["a draft model"] = function() return kigo.draft_model(draft, { max = 4 }) end,
      ["one after the other"] = function()
        return kigo.first_of { kigo.prompt_lookup { longest = 9 }, kigo.draft_model(draft) }
      end,
      ["nonsense"] = function()
        local n = 0
        return function(_, most)
          n = n + 1
          return tiny.ids(most + n % 3 * 30, n)
        end
      end,
      ["nothing"] = function() return function() return {} end end,
    }

    local function greedy(logits) return (logits:argmax()) end
    local ways = {
      greedy = { temp = 0, max = 40 },
      ["a seed"] = { temp = 1, min_p = 0.1, max = 40 },
      ["penalties"] = { temp = 1.5, repeat_penalty = 1.2, max = 40 },
      ["a sampler of Lua's"] = { max = 30, sample = function(logits, seq)
        seq.state.n = (seq.state.n or 0) + 1
        if seq.state.n % 7 == 0 then return 65 + seq.state.n % 20 end
        return greedy(logits:mul_(0.5))
      end },
      ["a stop string"] = { temp = 0.7, stop = { "e", "\n" }, max = 40 },
      ["log-probabilities"] = { temp = 1, logprobs = true, max = 25 },
      ["few tokens"] = { temp = 0, max = 3 },
      ["a receipt"] = { temp = 1, receipt = true, max = 25 },
    }

    local function run(options, speculator)
      local seq <close> = assert(model:sequence { seed = 7 })
      seq:feed { { text = PROMPT .. " " .. PROMPT } }
      local all, shown = { speculate = speculator }, {}
      for name, value in pairs(options) do all[name] = value end
      all.on_text = function(text, id)
        shown[#shown + 1] = text .. (id or "") .. "@" .. seq:pos()
        return #shown < 28
      end
      local result = assert(seq:generate(all))
      local speculated = result.speculated
      result.speculated = nil
      if result.receipt then result.receipt = { result.receipt.sampled, result.receipt.steps, result.receipt.text } end
      local more = seq:generate { temp = 1, max = 5, speculate = speculator }
      return { result, shown, seq:tokens(), seq.logits:bytes(), seq.rng:uniform(), more.text, seq.state.n }, speculated
    end

    for way, options in pairs(ways) do
      it("says the same with and without, with " .. way, function()
        local expected = run(options)
        for name, make in pairs(speculators) do
          local speculator = make()
          local got, speculated = run(options, speculator)
          assert.same(expected, got, name)
          assert.is_true(speculated.n_passes >= 1 and speculated.n_passes <= #got[1].ids + 1)
          assert.is_true(speculated.n_accepted <= speculated.n_drafted)
          if name == "a draft model" and way == "greedy" then
            assert.is_true(speculated.n_drafted - speculated.n_accepted < 4) -- but for the end
            assert.is_true(speculated.n_passes < 20)
          end
          if name == "nothing" then assert.same({ 0, 0 }, { speculated.n_drafted, speculated.n_accepted }) end
          if type(speculator) == "table" and speculator.close then speculator:close() end
        end
      end)
    end

    it("needs few passes where the answer repeats what was said", function()
      local words = model.tokenizer:encode(PROMPT)
      local function parrot(_, seq) return words[(seq:pos() - 1) % #words + 1] end
      for _, make in pairs { kigo.prompt_lookup, kigo.ngrams } do
        local seq <close> = assert(model:sequence {})
        seq:feed { words[#words] }
        local result = assert(seq:generate { sample = parrot, max = 120, speculate = make {} })
        assert.equal(120, result.n_tokens)
        assert.is_true(result.speculated.n_passes < 80)
        assert.equal(1, model:stats().n_sequences)
      end
    end)

    it("evaluates what a constraint forces in one pass", function()
      local grammar = assert(kigo.regex
        [[\{"season": "(spring|summer|autumn)", "lines": \["[a-z ]{5,9}", "[a-z]{3}"\]\}]])
      local function write(option, sampler)
        local seq <close> = assert(model:sequence { seed = 2 })
        seq:feed { { text = PROMPT } }
        seq:constrain(grammar)
        local result = assert(seq:generate { temp = 1, sample = sampler, max = 80, speculate = option })
        assert.is_true(grammar:accepts(result.text), result.text)
        return { result.text, result.ids, result.reason, seq:tokens() }, result.speculated
      end
      for _, sampler in ipairs { false, greedy } do
        local expected, none = write(false, sampler or nil)
        assert.is_nil(none)
        local got, speculated = write(nil, sampler or nil)
        assert.same(expected, got)
        assert.is_true(speculated.n_accepted > 8)
        assert.is_true(speculated.n_passes < #got[2] - 8)
        got, speculated = write(true, sampler or nil)
        assert.same(expected, got)
        assert.is_true(speculated.n_accepted > 8)
        assert.same(expected, (write(function(_, n) return tiny.ids(n) end, sampler or nil)))
      end
    end)

    it("verifies drafts under a constraint, up to what it refuses", function()
      local seq <close> = assert(model:sequence {})
      seq:feed { { text = PROMPT } }
      seq:constrain(assert(kigo.choice { "summer rain", "summer snow" }))
      local ids = model.tokenizer:encode "summer storm"
      local at = seq:pos()
      local n = assert(seq:verify(ids, function(logits, s) -- as the draft wants it, while it may
        local id = ids[s:pos() - at + 1]
        return id and logits[id] > -math.huge and id or (logits:argmax())
      end))
      assert.is_true(n > 0 and n < #ids)
      assert.equal(n, seq.stats.n_drafted)
      assert.matches("^summer ?s?$", seq:constraint().text)
    end)

    it("passes what is wrong with a speculator on", function()
      local seq <close> = assert(model:sequence {})
      seq:feed { 65 }
      for _, bad in ipairs { function() error "mine" end, function() return 5 end, function() return { -1 } end,
        function() return { "x" } end, function() end } do
        assert.error(function() seq:generate { speculate = bad, max = 5 } end)
        assert.equal(1, seq:pos())
      end
      for _, bad in ipairs { 5, "x", {} } do
        assert.error(function() seq:generate { speculate = bad, max = 5 } end)
      end
      assert.error(function() kigo.prompt_lookup { longest = 17 } end)
      assert.error(function() kigo.prompt_lookup { longest = 2, shortest = 3 } end)
      assert.error(function() kigo.prompt_lookup { max = 65 } end)
      assert.error(function() kigo.prompt_lookup { size = 3 } end)
      assert.error(function() kigo.ngrams { order = 4 } end)
      assert.error(function() kigo.draft_model() end)
      assert.error(function() kigo.draft_model(seq) end)
      assert.error(function() kigo.first_of { 1 } end)
      assert.error(function() kigo.first_of() end)
      local other <close> = tiny.model {}
      assert.error(function() seq:generate { speculate = kigo.draft_model(other), max = 5 } end)
    end)

    it("lets a draft model's timelines go with it, and does without where it has no room", function()
      local small <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1, ctx = 70 }))
      local speculator <close> = kigo.draft_model(small)
      local seq <close> = assert(model:sequence { seed = 3 })
      seq:feed { { text = PROMPT } }
      local plain <close> = assert(seq:fork())
      local expected = plain:generate { temp = 1, max = 100, stop = {} }
      assert.equal(expected.text, seq:generate({ temp = 1, max = 100, speculate = speculator }).text)
      assert.equal(1, small:stats().n_sequences)
      speculator:close()
      assert.equal(0, small:stats().n_sequences)
    end)

    it("works in batches", function()
      local function batch(make)
        local speculator = make and make()
        local texts = assert(model:batch({ max = 4 }, { 1, 2, 3, 4, 5, 6 }, function(seq, i)
          seq:feed { { text = PROMPT:rep(2 + i % 3) } }
          if i % 2 == 0 then return seq:generate({ temp = 1, max = 20 + i, speculate = speculator }).text end
          local result = seq:generate { max = 20, speculate = speculator, sample = greedy, logprobs = true }
          local n, id = assert(seq:verify({ 65 }, greedy))
          return result.text .. result.mean_logprob .. n .. id
        end))
        if type(speculator) == "table" and speculator.close then speculator:close() end
        return texts
      end
      local expected = batch()
      assert.equal(6, #expected)
      for name, make in pairs(speculators) do assert.same(expected, batch(make), name) end
      assert.equal(0, model:stats().n_sequences)
    end)

    it("works in chats", function()
      local messages = { { role = "user", content = PROMPT .. PROMPT } }
      local expected = assert(model:chat(messages, { seed = 5 }))
      local got = assert(model:chat(messages, { seed = 5, speculate = kigo.prompt_lookup {} }))
      assert.equal(expected.text, got.text)
      assert.truthy(got.speculated.n_passes)
      assert.is_true(got.stats.reused_tokens > 0 or got.stats.prompt_tokens < model:stats().page)
    end)
  end)
end)
