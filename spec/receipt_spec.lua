describe("kigo.receipt", function()
  local build = require "spec.gguf_build"
  local cjson = require "cjson"
  local json = require "kigo.json"
  local kigo = require "kigo"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local receipt = kigo.receipt

  local QUESTION = { { role = "user", content = "Write a haiku about the autumn moon." } }
  local models, written = {}, nil

  ---The haiku model on a device; opened once.
  local function model(device)
    models[device] = models[device] or assert(kigo.load(support.haiku_model, { device = device, threads = 1 }))
    return models[device]
  end

  local function record(device, options)
    options.receipt, options.seed = true, options.seed or 29
    return assert(model(device):chat(QUESTION, options)).receipt
  end

  setup(function() written = receipt.encode(record("cpu", {})) end)
  teardown(function()
    for _, one in pairs(models) do one:close() end
  end)

  local function read(text) return assert(receipt.decode(text or written)) end

  ---A file with a random adapter for a block's product of the model.
  local function adapter_file(seed)
    local gguf = model "reference".gguf
    local name = "blk.1.ffn_down.weight"
    local cols, rows = table.unpack(gguf:tensor(name).shape)
    local dice = tiny.dice(seed)
    local function numbers(n)
      local list = {}
      for i = 1, n do list[i] = string.pack("<f", (dice(2001) - 1001) / 4000) end
      return table.concat(list)
    end
    return support.temporary(build.random({ ["general.type"] = "adapter", ["adapter.type"] = "lora",
      ["general.architecture"] = gguf:get "general.architecture", ["adapter.lora.alpha"] = 4.0 }, {
      { name = name .. ".lora_a", shape = { cols, 3 }, bytes = numbers(cols * 3) },
      { name = name .. ".lora_b", shape = { 3, rows }, bytes = numbers(3 * rows) } }))
  end

  ---A copy of the receipt that `change` has edited. Sealed again, only the computation can tell.
  local function edited(change, seal_again)
    local r = read()
    change(r)
    if seal_again then r.digest = receipt.digest(r) end
    return read(json.encode(r))
  end

  local function verify(device, r, options) return assert(receipt.verify(model(device), r, options)) end

  local function passes(device, r, options)
    local report = verify(device, r, options)
    assert.same({}, report.problems)
    assert.is_true(report.passed)
    return report
  end

  ---It fails, one of the problems says `what`, and the report has all steps or none.
  local function fails(device, r, what)
    local report = verify(device, r)
    assert.is_false(report.passed)
    local problems = table.concat(report.problems, "\n")
    assert.truthy(problems:find(what, 1, true), problems)
    return report
  end

  describe("a round trip", function()
    it("keeps everything, float32 numbers to the bit", function()
      local made = record("cpu", {})
      local back = read(receipt.encode(made))
      assert.equal(receipt.digest(made), back.digest)
      back.digest = nil
      assert.same(made, back)
      assert.equal(receipt.FORMAT, back.format)
      assert.equal("29", back.seed)
      assert.equal(8, #back.steps[1].ids)
      assert.equal("end", back.reason)
      assert.equal(#back.sampled, #back.steps)
    end)

    it("goes through a file", function()
      local path = os.tmpname()
      assert(receipt.write(path, read()))
      assert.same(read(), (assert(receipt.read(path))))
      os.remove(path)
      assert.equal(kigo.err.IO, (select(3, receipt.write("/nonexistent/x", read()))))
      assert.equal(kigo.err.IO, (select(3, receipt.write("/dev/full", read()))))
      assert.equal(kigo.err.IO, (select(3, receipt.read "/nonexistent")))
      assert.is_nil((receipt.read "/tmp"))
    end)

    it("changes nothing about the answer", function()
      local without = assert(model "cpu":chat(QUESTION, { seed = 29 }))
      assert.same(without.ids, table.move(read().sampled, 1, #without.ids, 1, {}))
      assert.equal(without.text, read().text)
      assert.is_nil(without.receipt)
    end)

    for _, device in ipairs { "cpu", "reference", tiny.has_gpu and "cuda:0" or nil } do
      it("gives the same bits and draws on " .. device, function()
        local report = passes(device, record(device, {}))
        assert.is_true(report.same and report.bitwise)
        assert.equal("exact", report.draws)
        assert.equal(0, report.max_difference)
        assert.equal(0, report.tolerance)
      end)
    end

    for _, pair in ipairs { { "cpu", "reference" }, { "reference", "cpu" } } do
      it(("holds from %s to %s"):format(pair[1], pair[2]), function()
        for seed = 1, 6 do
          local report = passes(pair[2], record(pair[1], { seed = seed }))
          assert.is_false(report.same)
          assert.is_true(report.max_difference < 0.05)
        end
      end)
    end

    it("holds from a GPU to the CPU backends and back #gpu", function()
      if not tiny.has_gpu then return pending "there is no GPU here" end
      for seed = 1, 3 do
        local r = record("cuda:0", { seed = seed })
        assert.is_true(passes("cuda:0", r).bitwise)
        passes("cpu", r)
        passes("reference", r)
        passes("cuda:0", record("reference", { seed = seed }))
      end
    end)

    it("of a GPU fails once it is edited, here and there #gpu", function()
      if not tiny.has_gpu then return pending "there is no GPU here" end
      local made = receipt.encode(record("cuda:0", {}))
      for _, change in ipairs {
        function(r) r.sampled[4] = 600 end,
        function(r) r.seed = "30" end,
        function(r) r.model.files[1].sha256 = ("0"):rep(64) end,
        function(r) r.steps[6].logits[1] = r.steps[6].logits[1] + 1 end,
        function(r) -- a last digit
          local values = r.steps[6].logits
          values[1] = string.unpack("<f", string.pack("<I4", string.unpack("<I4", string.pack("<f", values[1])) + 1))
        end,
      } do
        local r = read(made)
        change(r)
        for _, device in ipairs { "cuda:0", "cpu", "reference" } do fails(device, r, "digest: ") end
        r.digest = receipt.digest(r)
        assert.is_false(verify("cuda:0", r).passed)
      end
    end)

    it("holds for every sampler", function()
      for _, options in ipairs {
        { temp = 0 }, { temp = 1.5, top_k = 20 }, { top_p = 0.9, temp = 0.5 }, { typical = 0.8 },
        { temp = 1, top_k = 0 },
        { repeat_penalty = 1.2, frequency_penalty = 0.1, presence_penalty = 0.1, repeat_last = -1 },
        { bias = { [398] = -math.huge, [10] = 1.5 } }, { sample = kigo.chain {}, max = 20 },
        { top_n_sigma = 1.5, temp = 1.2 }, { dry_multiplier = 1, dry_allowed_length = 1 },
        { bias = { [" moon"] = 1, ["a moonquake"] = -math.huge, ["two frogs"] = 2 } },
        { stop = "\n" }, { seed = math.mininteger }, { seed = (1 << 53) + 1, max = 5 },
      } do
        local r = read(receipt.encode(record("cpu", options)))
        passes("cpu", r)
        passes("reference", r)
      end
    end)

    it("holds for a sampler that depends on every bit where the bits are the same", function()
      for _, options in ipairs {
        { xtc_probability = 0.5 }, { dynatemp_range = 0.5, temp = 1 }, { mirostat_tau = 2, temp = 1.5 },
        { xtc_probability = 1, xtc_threshold = 0.05, mirostat_tau = 3 },
      } do
        local r = read(receipt.encode(record("cpu", options)))
        assert.equal("exact", passes("cpu", r).draws)
        assert.equal("script", passes("reference", r).draws)
      end
    end)

    it("says so when its sampler cannot be written down", function()
      local r = record("cpu", { dry_multiplier = 1, dry_breakers = { "\xFF" } })
      assert.equal("script", r.sampler)
    end)

    it("holds for a later turn of a conversation", function()
      local chat <close> = assert(model "cpu":conversation { seed = 3, receipt = true })
      assert(chat:say "Write a haiku about a dog.")
      local r = assert(chat:say "Write a haiku about the sea.").receipt
      assert.is_true(#r.prompt > 40)
      passes("cpu", r)
    end)

    it("holds for a sampler in Lua, whose draws are its own", function()
      local r = record("cpu", { sample = function(logits) return (logits:argmax()) end })
      assert.equal("script", r.sampler)
      assert.equal("script", passes("cpu", read(receipt.encode(r))).draws)
    end)

    it("tells rank and probability", function()
      local report = passes("cpu", record("cpu", { temp = 0 }))
      for _, step in ipairs(report.steps) do
        assert.equal(1, step.rank)
        assert.is_true(step.probability > 0 and step.probability <= 1)
      end
      local r = record("cpu", { sample = function() return 77 end, max = 3 })
      assert.is_true(passes("cpu", r).steps[1].rank > 64)
    end)
  end)

  describe("of an answer under adapters", function()
    local paths, made = {}, nil
    setup(function()
      for i = 1, 3 do paths[i] = adapter_file(i) end
      local a <close> = assert(model "cpu":adapter(paths[1]))
      local b <close> = assert(model "cpu":adapter(paths[2]))
      made = receipt.encode(record("cpu", { adapters = { b, { adapter = a, scale = 0.3 } } }))
    end)
    teardown(function()
      for _, path in ipairs(paths) do os.remove(path) end
    end)

    local function opened(device, ...)
      local list = {}
      for i, which in ipairs { ... } do list[i] = assert(model(device):adapter(paths[which])) end
      return list
    end

    it("names them, and holds with them", function()
      local r = read(made)
      assert.same({ (kigo.core.sha256_file(paths[2])), (kigo.core.sha256_file(paths[1])) },
        { r.adapters[1].sha256, r.adapters[2].sha256 })
      assert.same({ 1.0, (string.unpack("<f", string.pack("<f", 0.3))) }, { r.adapters[1].scale, r.adapters[2].scale })
      assert.not_equal(read().text, r.text)
      local report = passes("cpu", r, { adapters = opened("cpu", 1, 3, 2) })
      assert.is_true(report.bitwise and report.draws == "exact")
      for _, device in ipairs { "reference", tiny.has_gpu and "cuda" or nil } do
        assert.is_false(passes(device, r, { adapters = opened(device, 1, 2) }).same)
      end
      if not tiny.has_gpu then return end
      local adapters = opened("cuda", 1, 2)
      r = record("cuda", { adapters = adapters })
      assert.is_true(passes("cuda", r, { adapters = adapters }).bitwise)
      passes("cpu", r, { adapters = opened("cpu", 1, 2) })
    end)

    it("fails without one of them, at another scale, and in another order where bits are compared", function()
      for _, given in ipairs { {}, { 1 }, { 2, 3 } } do
        local report = verify("cpu", read(made), { adapters = opened("cpu", table.unpack(given)) })
        assert.is_false(report.passed)
        assert.matches("^adapters%[%d%]: .*SHA%-256 %x+", report.problems[1])
        assert.equal(0, #report.steps)
      end
      for _, change in ipairs {
        function(r) r.adapters[1].scale = -1.0 end,
        function(r) r.adapters[2].scale = 0.25 end,
        function(r) r.adapters[1], r.adapters[2] = r.adapters[2], r.adapters[1] end,
        function(r) table.remove(r.adapters) end,
        function(r) r.adapters = nil end,
      } do
        local r = read(made)
        change(r)
        r.digest = receipt.digest(r)
        r = read(json.encode(r))
        assert.is_false(verify("cpu", r, { adapters = opened("cpu", 1, 2) }).passed)
      end
      assert.has_error(function() receipt.verify(model "cpu", read(made), { adapters = { "x" } }) end)
    end)

    it("is refused where they changed within the answer", function()
      local a = opened("cpu", 1)[1]
      for _, first in ipairs { true, false } do
        local seq <close> = model "cpu":sequence { adapters = first and { a } or nil }
        seq:feed(assert(model "cpu".tokenizer:encode "the moon"))
        local n = 0
        local answer, _, code = seq:generate { max = 9, receipt = true, sample = function(logits)
          n = n + 1
          if n == 3 then assert(seq:adapt(a, first and 0.5 or 1)) end
          return logits:argmax()
        end }
        assert.is_nil(answer)
        assert.equal(kigo.err.UNSUPPORTED, code)
        assert.equal(3, n)
      end
    end)

    it("is verified by the program, with --adapter", function()
      local path = support.temporary(made)
      local line = ("%s verify %s --device cpu --threads 1 --model %s"):format(support.program, path,
        support.haiku_model)
      local function run(more)
        local pipe = io.popen(line .. more .. " 2>&1")
        local output = pipe:read "a"
        local _, _, status = pipe:close()
        return status, output
      end
      local status, output = run((" --adapter %s --adapter %s"):format(paths[1], paths[2]))
      assert.equal(0, status, output)
      assert.truthy(output:find("at scale 0.3\n", 1, true), output)
      status, output = run(" --adapter " .. paths[1])
      assert.equal(1, status)
      assert.truthy(output:find("Receipt FAILED: adapters[1]", 1, true), output)
      os.remove(path)
    end)
  end)

  describe("an edited receipt", function()
    -- What is edited, what is said about it, and the first step that does not fit. Where it is sealed again it still
    -- fails on both backends; not so where the change is smaller than what sets backends apart.
    local cases = {
      { "an id", function(r) r.sampled[4] = 600 end, "step 4: the sampler draws", 4 },
      { "the last id", function(r) r.sampled[#r.sampled] = 600 end, "the sampler draws" },
      { "the order of the best", function(r)
        r.steps[3].ids[2], r.steps[3].ids[3] = r.steps[3].ids[3], r.steps[3].ids[2]
      end, "step 3: a logit is", 3, bits = true },
      { "a logit", function(r) r.steps[6].logits[1] = r.steps[6].logits[1] + 1 end, "step 6: a logit is 1 away", 6 },
      { "a logit's last digit", function(r)
        local values = r.steps[6].logits
        values[1] = string.unpack("<f", string.pack("<I4", string.unpack("<I4", string.pack("<f", values[1])) + 1))
      end, "step 6: a logit is", 6, bits = true },
      { "the seed", function(r) r.seed = "30" end, "the sampler draws" },
      { "the sampler", function(r) r.sampler = { { kind = "greedy" } } end, "the sampler draws" },
      { "the prompt", function(r) r.prompt[5] = r.prompt[5] + 1 end, "a logit is" },
      { "the model", function(r) r.model.files[1].sha256 = ("0"):rep(64) end, "model: another one" },
      { "the text", function(r) r.text = "An old silent pond" end, "text: the ids say something else" },
      { "the reason", function(r) r.reason = "stop" end, "digest", sealed_passes = true },
      { "the time", function(r) r.time = "2026-01-01T00:00:00Z" end, "digest", sealed_passes = true },
      { "a step less", function(r)
        table.remove(r.sampled)
        table.remove(r.steps)
      end, "text: the ids say something else" },
      { "another top", function(r) r.steps[2].ids[8] = 1999 end, "step 2", 2, bits = true },
    }
    for _, case in ipairs(cases) do
      local what, change, says, step = table.unpack(case, 1, 4)
      it("fails: " .. what, function()
        local report = fails("cpu", edited(change), "digest: the receipt was edited")
        if case.sealed_passes then return end
        assert.equal(#report.steps > 0 and step or report.step, report.step)
        report = fails("cpu", edited(change, true), says)
        if step then assert.equal(step, report.step) end
        fails("reference", edited(change), "digest: the receipt was edited")
        if not case.bits then fails("reference", edited(change, true), says:gsub("1 away", "")) end
      end)
    end

    it("fails with another seed, wherever it is computed", function()
      local n_failed = 0
      for seed = 100, 105 do
        local report = verify("reference", edited(function(r) r.seed = tostring(seed) end, true))
        n_failed = n_failed + (report.passed and 0 or 1)
      end
      assert.equal(6, n_failed)
    end)

    it("fails on another model", function()
      local other <close> = assert(kigo.load(support.fixture "models/stories260K.gguf"))
      local report = assert(receipt.verify(other, read()))
      assert.is_false(report.passed)
      assert.truthy(report.problems[1]:find "^model: another one")
      assert.equal(0, #report.steps)
    end)

    it("fails on damaged weights", function()
      local copy <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
      assert.is_true(copy:scramble("blk.1.", 1) > 0)
      local report = assert(receipt.verify(copy, read(), { tolerance = 0.6 }))
      assert.is_false(report.passed)
      assert.equal(1, report.step)
    end)

    it("names ids that the model has not, and a context that is too small", function()
      fails("cpu", edited(function(r) r.prompt[3] = 4000000 end), "prompt[3]: 4000000")
      fails("cpu", edited(function(r) r.sampled[2] = 2048 end), "sampled[2]: 2048")
      fails("cpu", edited(function(r) r.steps[2].ids[1] = 999999 end), "step 2: ids: 999999")
      fails("cpu", edited(function(r)
        r.sampler = { { kind = "bias", ids = { 99999 }, values = { 1 }, bans = {} } }
      end), "99999")
      fails("cpu", edited(function(r) r.sampler = { { kind = "top_p", value = 7 } } end), "sampler: ")
      local small <close> = assert(kigo.load(support.haiku_model, { ctx = 16 }))
      local report, message, code = receipt.verify(small, read())
      assert.is_nil(report)
      assert.truthy(message:find "ctx")
      assert.equal(kigo.err.FULL, code)
    end)

    it("raises for options that nobody knows", function()
      assert.has_error(function() receipt.verify(model "cpu", read(), { tolerence = 1 }) end)
    end)
  end)

  describe("a malformed receipt", function()
    local function refused(text, field)
      local r, message, code = receipt.decode(text)
      assert.is_nil(r, field)
      assert.equal(kigo.err.FORMAT, code)
      assert.truthy(message:find(field, 1, true), message)
      assert.is_nil(message:find("\n", 1, true))
    end

    local function refused_with(field, change)
      local value = cjson.decode(written)
      change(value)
      refused(json.encode(value):gsub('"@null@"', "null"), field)
    end

    it("is no JSON", function()
      for _, text in ipairs { "", "{", "nonsense", "[1,", written:sub(1, -20), '{"seed": nan}', ("["):rep(100000) } do
        refused(text, "receipt: ")
      end
      for _, text in ipairs { "5", "null", '"x"', "[]", "[[]]" } do refused(text, "receipt: ") end
    end)

    it("misses a field, has a strange one or one of another type", function()
      for field in pairs(cjson.decode(written)) do
        refused_with(field, function(r) r[field] = nil end)
        refused_with(field, function(r) r[field] = true end)
        refused_with(field, function(r) r[field] = "@null@" end)
        refused_with(field, function(r) r[field] = 1e300 end)
        refused_with(field, function(r) r[field] = { x = { { { { {} } } } } } end)
      end
      refused_with("extra", function(r) r.extra = 1 end)
      refused_with("device.extra", function(r) r.device.extra = "1" end)
      refused_with("device.kv", function(r) r.device.kv = 16 end)
      refused_with("model.files[1].sha256", function(r) r.model.files[1].sha256 = ("g"):rep(64) end)
      refused_with("haiku.minute", function(r) r.haiku = { topic = "a", word = "b", nonce = "c", minute = 60 } end)
    end)

    it("has numbers out of range or place", function()
      for field, change in pairs {
        ["prompt[3]"] = function(r) r.prompt[3] = -1 end,
        ["prompt[4]"] = function(r) r.prompt[4] = 2 ^ 31 end,
        ["prompt[5]"] = function(r) r.prompt[5] = 1.5 end,
        ["prompt"] = function(r) r.prompt = {} end,
        ["sampled[1]"] = function(r) r.sampled[1] = "1" end,
        ["steps"] = function(r) table.remove(r.steps) end,
        ["steps[2].logits"] = function(r) table.remove(r.steps[2].logits) end,
        ["steps[3].logits[1]"] = function(r) r.steps[3].logits[1] = 0.1 end,
        ["steps[4].logits[1]"] = function(r) r.steps[4].logits[1] = 1e39 end,
        ["steps[5]: not in order"] = function(r) r.steps[5].logits[8] = 1000 end,
        ["steps[6].ids"] = function(r)
          for i = 9, 16 do r.steps[6].ids[i], r.steps[6].logits[i] = i, -1000 end
        end,
        ["seed"] = function(r) r.seed = "99999999999999999999" end,
        ["seed: "] = function(r) r.seed = "12; drop" end,
        ["sampler[1].kind"] = function(r) r.sampler = { { kind = "magic\n" } } end,
        ["sampler[1].k"] = function(r) r.sampler = { { kind = "top_k", k = -1 } } end,
        ["sampler[1].values"] = function(r)
          r.sampler = { { kind = "bias", ids = { 1, 2 }, values = { 1 }, bans = {} } }
        end,
        ["sampler[1].bans[1]"] = function(r)
          r.sampler = { { kind = "bias", ids = {}, values = {}, bans = { {} } } }
        end,
        ["sampler[1].phrases[1].value"] = function(r)
          r.sampler = { { kind = "bias", ids = {}, values = {}, bans = {}, phrases = { { ids = { 1, 2 } } } } }
        end,
        ["sampler[1].breakers[2]"] = function(r)
          r.sampler = { { kind = "dry", multiplier = 1, base = 2, allowed = 2, last = -1, breakers = { "x", 7 } } }
        end,
        ["sampler[1].last"] = function(r)
          r.sampler = { { kind = "dry", multiplier = 1, base = 2, allowed = 2, last = -2 } }
        end,
        ["format"] = function(r) r.format = "kigo receipt 99" end,
      } do refused_with(field, change) end
    end)

    it("is huge", function()
      refused_with("prompt", function(r)
        for i = 1, (1 << 20) + 1 do r.prompt[i] = 1 end
      end)
      refused((" "):rep((64 << 20) + 1), "bytes")
    end)

    it("is never taken for a good one, whatever bytes are changed", function()
      local digits = 0
      for round = 1, 400 do
        local at = 1 + math.floor(kigo.core.uniform(7, round, 0) * #written)
        local byte = string.char(math.floor(kigo.core.uniform(7, round, 1) * 256))
        if round % 2 == 0 then byte = tostring(math.floor(kigo.core.uniform(7, round, 1) * 10)) end
        local text = written:sub(1, at - 1) .. byte .. written:sub(at + 1)
        local r, message, code = receipt.decode(text)
        if r then -- what is still well-formed says something else, or the same in other words
          digits = digits + 1
          assert.is_true(receipt.digest(r) ~= r.digest or receipt.encode(r) == written)
        else
          assert.equal(kigo.err.FORMAT, code)
          assert.is_string(message)
        end
      end
      assert.is_true(digits > 20)
    end)
  end)

  describe("the program", function()
    local function run(line)
      local pipe = io.popen(support.program .. " " .. line .. " 2>&1")
      local output = pipe:read "a"
      local _, _, status = pipe:close()
      return status, output
    end

    it("writes and verifies the receipt of a haiku", function()
      local path = os.tmpname()
      local status, output = run("haiku --threads 1 --receipt " .. path)
      assert.equal(0, status, output)
      local r = assert(receipt.read(path))
      assert.truthy(output:find(r.haiku.word, 1, true))
      for _, device in ipairs { "", "--device reference" } do
        status, output = run(("verify %s %s --model %s"):format(path, device, support.haiku_model))
        assert.equal(0, status, output)
        assert.truthy(output:find "\nReceipt PASSED\n$", output)
      end
      passes("cpu", r)
      r.haiku.minute = (r.haiku.minute + 1) % 60
      fails("cpu", r, "haiku.word")
      r.haiku.word = kigo.core.version
      fails("cpu", r, "prompt: it is not the haiku check's")
      local sampled = r.sampled[2]
      r.sampled[2] = 900
      assert(receipt.write(path, r))
      local text = receipt.encode(r):gsub('"logits": %[%-?%d', '"logits": [x', 1)
      local damaged = support.temporary(text)
      status, output = run("verify " .. damaged)
      os.remove(damaged)
      assert.equal(1, status)
      assert.truthy(output:find("^Receipt FAILED: "), output)
      damaged = support.temporary((receipt.encode(r):gsub('"digest": "%x%x%x%x', '"digest": "0000')))
      status, output = run("verify " .. damaged)
      os.remove(damaged)
      assert.equal(1, status)
      assert.truthy(output:find("Receipt FAILED: step 2: ", 1, true), output)
      assert.truthy(output:find("also    digest: ", 1, true), output)
      status, output = run("verify " .. path)
      assert.equal(1, status)
      assert.truthy(output:find("Receipt FAILED: step 2: the sampler draws " .. sampled, 1, true), output)
      assert.is_nil(output:find("each is what the sampler draws", 1, true), output)
      os.remove(path)
    end)

    it("writes and verifies the receipt of a run", function()
      local path, stories = os.tmpname(), support.fixture "models/stories260K.gguf"
      local status, output = run(("run %s --threads 1 -n 40 --seed 5 --receipt %s"):format(stories, path))
      assert.equal(0, status, output)
      for _, device in ipairs { "", "--device reference", "--kv f16" } do
        status, output = run(("verify %s --model %s %s"):format(path, stories, device))
        assert.equal(0, status, output)
      end
      status, output = run(("verify %s"):format(path)) -- the bundled model is another one
      assert.equal(1, status)
      assert.truthy(output:find("Receipt FAILED: model", 1, true))
      local _, text = run(("verify %s --model %s --json --device cpu"):format(path, stories))
      assert.is_true(cjson.decode(text).passed)
      os.remove(path)
    end)

    it("ends with 1 for what is no receipt, no model, or nowhere to write to", function()
      for _, line in ipairs { "verify /nonexistent", "verify README.md", "verify /tmp",
        "haiku --threads 1 --receipt /dev/full",
        "run " .. support.haiku_model .. " -p x -n 2 --receipt /nonexistent/x" } do
        local status, output = run(line)
        assert.equal(1, status, output)
        assert.is_nil(output:find("traceback", 1, true), output)
      end
      assert.equal(2, (run "verify"))
    end)
  end)
end)
