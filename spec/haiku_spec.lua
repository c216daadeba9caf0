describe("kigo.haiku", function()
  local haiku = require "kigo.haiku"
  local kigo = require "kigo"
  local numbers = require "kigo.numbers"
  local support = require "spec.support"
  local syllables = require "kigo.syllables"
  local tiny = require "spec.tiny"

  describe("words", function()
    it("spells minutes", function()
      assert.equal("zero", numbers.word(0))
      assert.equal("nineteen", numbers.word(19))
      assert.equal("twenty", numbers.word(20))
      assert.equal("twenty-nine", numbers.word(29))
      assert.equal("fifty-nine", numbers.word(59))
      assert.has_error(function() numbers.word(60) end)
      assert.has_error(function() numbers.word(-1) end)
      assert.has_error(function() numbers.word(1.5) end)
    end)

    it("counts whole words only", function()
      assert.equal(0, haiku.occurrences("nine", "twenty-nine crows"))
      assert.equal(0, haiku.occurrences("nine", "nineteen crows"))
      assert.equal(0, haiku.occurrences("twenty", "twenty-nine crows"))
      assert.equal(1, haiku.occurrences("nine", "Nine crows,"))
      assert.equal(2, haiku.occurrences("one", "one crow\nand one"))
      assert.equal(1, haiku.occurrences("twenty-nine", "(twenty-nine)"))
      assert.equal(0, haiku.occurrences("ten", "often tension"))
    end)

    it("counts syllables well enough for a report", function()
      for line, n in pairs { ["twenty-nine cornstalks"] = 5, ["a persimmon drops in mud"] = 7,
        ["the gate clicks softly"] = 5, ["an old silent pond"] = 5 } do
        assert.equal(n, syllables.line(line), line)
      end
    end)
  end)

  describe("judge_text", function()
    it("wants three lines with the word exactly once", function()
      assert.is_true(haiku.judge_text("one crow\nin the snow\nwaits", "one"))
      assert.is_true(haiku.judge_text("one crow\nin the snow\nwaits\n", "one"))
      for _, text in ipairs { "", "one", "one\ncrow", "one\ncrow\nin\nsnow", "one crow\n\nwaits",
        "one\none crow\nwaits", "one\n...\nwaits", "twenty-one\ncrows\nwait", "a crow\nin the snow\nwaits" } do
        assert.is_false((haiku.judge_text(text, "one")), text)
      end
      assert.is_true((select(3, haiku.judge_text("a crow\nin the snow\nwaits", "one"))))
      assert.is_nil((select(3, haiku.judge_text("a crow\nwaits", "one"))))
    end)
  end)

  -- A table that plays a model: tokens are bytes, and `reply` says what it answers. With the honest reply it passes
  -- every demand, so that each attack below fails for its own reason alone.
  local function honest(question)
    if question.damaged then return "mud mud\nmud" end
    return ("%s crows\nhold still over field %d\nno wind at all"):format(question.word, question.seed % 1000)
  end

  local function fake(reply, tricks)
    tricks = tricks or {}
    local model = { path = "fake.gguf", evaluated = 0, steps = 0, damaged = false }
    model.tokenizer = { decode = function(_, ids) return tricks.decode or string.char(table.unpack(ids)) end }
    function model:stats()
      return { device = "cpu", variant = "fake", n_tokens_evaluated = self.evaluated, n_steps = self.steps }
    end
    function model:chat(messages, options)
      local text = reply { word = messages[1].content:match 'the word "([^"]+)"', seed = options.seed,
        damaged = self.damaged, prompt = messages[1].content }
      local ids = { text:byte(1, -1) }
      local n_prompt = #messages[1].content
      self.evaluated = self.evaluated + (tricks.evaluates and tricks.evaluates(n_prompt, #ids) or n_prompt + #ids)
      self.steps = self.steps + (tricks.steps or #ids + 1)
      return { text = text, ids = ids, reason = "end", stats = { prompt_tokens = n_prompt, decode_s = 0.1 } }
    end
    function model:scramble()
      self.damaged = not tricks.undamageable
      return tricks.scrambles or 9
    end
    return setmetatable(model, { __close = function() end })
  end

  ---The report on a fake; `env` replaces parts of the environment.
  local function check(reply, tricks, env)
    local counter = 0
    local environment = {
      clock = function() return 29 end,
      random = function()
        counter = counter + 1
        return 0x1000 * counter + 17
      end,
      copy = function() return fake(reply, tricks) end,
    }
    for name, value in pairs(env or {}) do environment[name] = value end
    return haiku.check(fake(reply, tricks), environment)
  end

  local function fails(reason, reply, tricks, env)
    local report = check(reply, tricks, env)
    assert.is_false(report.passed)
    assert.truthy(report.reason:find(reason, 1, true), report.reason)
    return report
  end

  ---A clock that shows these minutes, one a look; the last stays.
  local function clock_of(...)
    local minutes = { ... }
    return function() return #minutes > 1 and table.remove(minutes, 1) or minutes[1] end
  end

  describe("check", function()
    it("passes what answers like a model", function()
      local report = check(honest)
      assert.is_true(report.passed, report.reason)
      assert.equal("twenty-nine", report.answer.word)
      assert.equal(0, report.retries)
      assert.equal(3, #report.syllables)
    end)

    it("puts the minute and a fresh nonce into every question", function()
      local nonces, words = {}, {}
      check(function(question)
        nonces[#nonces + 1] = question.prompt:match "nonce: (%x%x%x%x%x%x%x%x)%)"
        words[question.word] = true
        return honest(question)
      end)
      assert.is_true(#nonces >= 6)
      assert.equal(nonces[1], nonces[2]) -- another seed is tried on the very same question
      assert.not_equal(nonces[2], nonces[3])
      assert.not_equal(nonces[3], nonces[4])
      local different = 0
      for _ in pairs(words) do different = different + 1 end
      assert.equal(3, different)
    end)

    it("fails a canned poem", function()
      fails("missing", function() return "an old silent pond\na frog jumps into the pond\nsplash and silence now" end)
    end)

    it("fails a canned poem that knows the clock", function()
      fails("same haiku", function(question)
        if question.damaged then return "x" end
        return question.word .. " old ponds\na frog jumps into the one\nsplash and silence now"
      end)
    end)

    it("fails a replay of an earlier minute", function()
      fails("missing", function(question) return honest { word = "twenty-eight", seed = question.seed } end)
    end)

    it("fails a replay of this minute's haiku when other minutes are asked", function()
      fails("missing", function(question) return honest { word = "twenty-nine", seed = question.seed } end)
    end)

    it("fails a wrong, a doubled and a hidden word", function()
      fails("missing", function(q) return (honest(q):gsub(q.word, "thirty-one")) end)
      fails("2 times", function(q) return (honest(q):gsub("no wind", q.word .. " winds")) end)
      fails("missing", function(q) return (honest(q):gsub(q.word, q.word .. "-ish")) end)
    end)

    it("fails two lines and four lines, without a retry", function()
      local report = fails("2 lines", function(q) return (honest(q):gsub("\nno wind.*", "")) end)
      assert.equal(0, report.retries)
      fails("4 lines", function(q) return honest(q) .. "\nnot one feather stirs" end)
    end)

    it("fails an engine whose counters do not grow as they must", function()
      fails("evaluated 0 tokens", honest, { evaluates = function() return 0 end })
      fails("evaluated", honest, { evaluates = function(n_prompt) return n_prompt end })
      fails("evaluated", honest, { evaluates = function(n_prompt, n) return n_prompt + n + 5 end })
      fails("forward passes", honest, { steps = 1 })
    end)

    it("fails a text that its tokens do not say", function()
      fails("tokens say", honest, { decode = "something else" })
    end)

    it("fails an empty answer", function()
      fails("no tokens", function() return "" end)
    end)

    it("fails a template that fills in the word, because damage does not harm it", function()
      fails("scrambled weights still", honest, { undamageable = true })
      fails("no layer to scramble", honest, { scrambles = 0 })
    end)

    it("fails a second load that is another model", function()
      fails("another haiku", honest, nil, { copy = function()
        return fake(function(q) return (honest(q):gsub("crows", "owls")) end)
      end })
      fails("no memory", honest, nil, { copy = function() return nil, "no memory", kigo.err.MEMORY end })
    end)

    it("takes a damaged model without numbers as damaged, and one without memory as a failure", function()
      local function failing(code)
        return { copy = function()
          local model = fake(honest)
          local chat = model.chat
          function model:chat(...)
            if self.damaged then return nil, "no logits", code end
            return chat(self, ...)
          end
          return model
        end }
      end
      assert.is_true(check(honest, nil, failing(kigo.err.NUMERIC)).passed)
      fails("no logits", honest, nil, failing(kigo.err.MEMORY))
    end)

    it("allows one retry for a missing word, in the whole check", function()
      local function forgetful(times)
        return function(question)
          times = times - 1
          return times >= 0 and "crows\nin the snow\nwait" or honest(question)
        end
      end
      local report = check(forgetful(1))
      assert.is_true(report.passed, report.reason)
      assert.equal(1, report.retries)
      fails("missing", forgetful(2))
    end)

    it("asks again when the minute flips, once", function()
      local report = check(honest, nil, { clock = clock_of(29, 30) })
      assert.is_true(report.passed, report.reason)
      assert.equal("thirty", report.answer.word)
      assert.equal(1, report.retries)
      fails("flipped", honest, nil, { clock = clock_of(29, 30, 30, 31) })
    end)

    it("turns whatever is raised into a failed check", function()
      fails("out of order", function() error "out of order" end)
      fails("out of order", honest, nil, { clock = function() error "out of order" end })
    end)
  end)

  -- A table that plays a model on a GPU, and a driver that tells the truth about it unless a trick says otherwise.
  describe("check on a GPU", function()
    local MODEL_BYTES = 40e6

    local function check_gpu(tricks)
      local device = { in_use = 1000e6 }
      local function gpu(is_copy)
        local model = fake(honest)
        local chat = model.chat
        model.gguf = {
          get = function(_, key) return key == "general.architecture" and "fake" or nil end,
          tensor = function() return nil end,
          tensors = function() return { { name = "token_embd.weight", bytes = MODEL_BYTES, shape = { 10, 10 } } } end,
        }
        model.timed_s, model.n_timed = 0, 0
        device.in_use = device.in_use + (tricks.stays_on_host and 0 or MODEL_BYTES + 5e6)
        function model:stats()
          return { device = "cuda", variant = "fake", n_tokens_evaluated = self.evaluated, n_steps = self.steps,
            n_steps_dropped = 0, timed_s = self.timed_s, n_timed = self.n_timed, weight_bytes = MODEL_BYTES }
        end
        function model:chat(...)
          local before, t0 = self.steps, kigo.now()
          while kigo.now() - t0 < 2e-4 do end -- its passes take some time
          local result = chat(self, ...)
          local n = self.steps - before
          self.n_timed = self.n_timed + (tricks.timed and tricks.timed(n) or n)
          self.timed_s = self.timed_s + (tricks.seconds or 1e-4)
          return result
        end
        function model.set_timing() return true end
        function model.device_info()
          return { index = 0, total = 80e9, in_use = device.in_use, note = "", most_bytes_per_s = 33e12,
            managed_in_use = tricks.managed and tricks.managed(device.in_use) or nil,
            process_in_use = tricks.process and tricks.process(device.in_use) or nil }
        end
        function model:check_weights()
          local damaged = tricks.other_weights or (self.damaged and not tricks.blind)
          return { n_weights = 1, n_bytes = MODEL_BYTES, device_sum = damaged and "b" or "a", file_sum = "a",
            differs = damaged and "token_embd.weight" or nil }
        end
        return setmetatable(model, { __close = function()
          if is_copy and not tricks.leaks then device.in_use = device.in_use - MODEL_BYTES - 5e6 end
        end })
      end
      return haiku.check(gpu(), { clock = function() return 29 end, random = (function()
        local n = 0
        return function()
          n = n + 1
          return 0x1000 * n + 17
        end
      end)(), copy = function() return gpu(true) end })
    end

    local function fails_on_gpu(reason, tricks)
      local report = check_gpu(tricks)
      assert.is_false(report.passed)
      assert.truthy(report.reason:find(reason, 1, true), report.reason)
    end

    it("passes where device and driver agree", function()
      local report = check_gpu {}
      assert.is_true(report.passed, report.reason)
      local found = {}
      for i, finding in ipairs(report.evidence) do found[i] = finding.what .. tostring(finding.passed) end
      assert.same({ "kernelstrue", "weightstrue", "memorytrue" }, found)
    end)

    it("fails what never was in the device's memory, or stays there", function()
      fails_on_gpu("memory: ", { stays_on_host = true })
      fails_on_gpu("memory: ", { leaks = true })
      fails_on_gpu("memory: ", { managed = function() return 5e9 end }) -- the other count sees nothing
      fails_on_gpu("memory: ", { process = function() return 5e8 end })
    end)

    it("does not mind other programs where the driver knows this one's memory", function()
      local n = 0
      local report = check_gpu { process = function(bytes) return bytes end, managed = function(bytes)
        n = n + 1e9 -- somebody takes more and more
        return bytes + n
      end }
      assert.is_true(report.passed, report.reason)
    end)

    it("fails weights that are not the file's, and a comparison that would not see it", function()
      fails_on_gpu("weights: ", { other_weights = true })
      fails_on_gpu("although they were scrambled", { blind = true })
    end)

    it("fails passes that the device has not seen, or not for a possible time", function()
      fails_on_gpu("kernels: ", { timed = function() return 0 end })
      fails_on_gpu("kernels: ", { timed = function(n) return n + 1 end })
      fails_on_gpu("kernels: ", { seconds = 0 })
      fails_on_gpu("kernels: ", { seconds = 1e-9 })
      fails_on_gpu("kernels: ", { seconds = 60 })
    end)
  end)

  describe("the bundled model", function()
    local function environment(overrides)
      local env = haiku.environment(function()
        return kigo.load(support.haiku_model, { device = "cpu", threads = 1 })
      end)
      for name, value in pairs(overrides or {}) do env[name] = value end
      return env
    end

    it("test_haiku_generation_anti_cheat", function()
      local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      -- Of 3,600 measured checks of this model 9 failed by chance (two seeds of one mind, a word said twice), so one
      -- more try is due; what cheats fails every time, as the specs below show.
      local report = haiku.check(model, environment())
      if not report.passed then report = haiku.check(model, environment()) end
      assert.is_true(report.passed, report.reason)
      local text = haiku.describe(model, report)
      assert.truthy(text:find("Haiku anti-cheat PASSED (real CPU inference)\n", 1, true))
      assert.truthy(text:find(report.answer.word, 1, true))
      assert.equal(report.answer.text, model.tokenizer:decode(report.answer.ids))
    end)

    ---Random bits that are the same in every run.
    local function lcg(state)
      return function()
        state = (state * 1103515245 + 12345) & 0x7fffffff
        return state
      end
    end

    it("passes at other minutes, from fixed seeds", function()
      local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      for minute = 0, 59, 13 do
        local report = haiku.check(model, environment { clock = function() return minute end, seed = minute,
          random = lcg(minute), topic = "falling leaves" })
        assert.is_true(report.passed, report.reason)
        assert.equal(numbers.word(minute), report.answer.word)
      end
    end)

    it("fails once it is damaged itself", function()
      local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      assert.is_true(model:scramble("blk.1.", 1) > 0)
      local report = haiku.check(model, environment())
      assert.is_false(report.passed)
      assert.truthy(haiku.describe(model, report):find("Haiku anti-cheat FAILED: ", 1, true))
    end)

    it("fails when its answers are replayed", function()
      local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      local recorded
      local replayer = setmetatable({
        chat = function(_, messages, options)
          recorded = recorded or model:chat(messages, options)
          return recorded
        end,
        stats = function() return model:stats() end,
        tokenizer = model.tokenizer,
      }, { __index = model })
      assert.is_false(haiku.check(replayer, environment()).passed)
    end)

    it("passes on a GPU, with evidence of the device and its driver #gpu", function()
      if not tiny.has_gpu then return pending "there is no GPU here" end
      local function load() return kigo.load(support.haiku_model, { device = "cuda" }) end
      local model <close> = assert(load())
      local report
      for _ = 1, 2 do -- one more try, as above
        report = haiku.check(model, haiku.environment(load))
        if report.passed then break end
      end
      assert.is_true(report.passed, report.reason)
      assert.equal(3, #report.evidence)
      local text = haiku.describe(model, report)
      assert.truthy(text:find("\nHaiku anti-cheat PASSED (REAL GPU INFERENCE)\n", 1, true), text)
    end)

    it("fails on a GPU with one wrong byte #gpu", function()
      if not tiny.has_gpu then return pending "there is no GPU here" end
      local function load() return kigo.load(support.haiku_model, { device = "cuda" }) end
      local model <close> = assert(load())
      assert(model:flip_weight("blk.0.ffn_down.weight", 4321, 1)) -- too little to write worse poems
      local report = haiku.check(model, environment { copy = load, clock = function() return 13 end, seed = 13,
        random = lcg(13), topic = "falling leaves" })
      assert.is_false(report.passed)
      assert.truthy(report.reason:find("weights: .*blk%.0%.ffn_down%.weight is not the file's$"), report.reason)
    end)

    it("is found without being named", function()
      assert.truthy(haiku.bundled_model():find("kigo-haiku-4m-q8_0.gguf", 1, true))
    end)
  end)
end)
