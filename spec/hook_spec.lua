describe("kigo.Sequence:hook", function()
  local kigo = require "kigo"
  local core = kigo.core
  local tiny = require "spec.tiny"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"

  local ids, others = tiny.ids(40, 3), tiny.ids(40, 4)

  local function prefix(list, n) return table.move(list, 1, n, 1, {}) end

  ---A sequence with these ids on it.
  local function fed(model, list)
    local seq = assert(model:sequence {})
    assert(seq:feed(list))
    return seq
  end

  ---Something that depends on the position and nothing else, added to a row.
  local function nudge(x, _, pos)
    for i = 0, #x - 1 do x:row(i):add_(0.03125 * ((pos + i) % 7 - 3)) end
  end

  it("refuses what makes no sense, and names what a name may have meant", function()
    local model <close> = tiny.model {}
    local seq <close> = fed(model, { 1, 2 })
    local nop = function() end
    assert.error_matches(function() seq:hook("blk.1.ouch", nop) end, '"blk.1.ouch"; the nearest are blk.1.out')
    assert.error_matches(function() seq:hook("*.nothing", nop) end, "nearest")
    for _, bad in ipairs { false, 3, { 3 }, {}, { "embd", {} } } do
      assert.has_error(function() seq:hook(bad, nop) end)
    end
    assert.has_error(function() seq:hook "embd" end)
    assert.has_error(function() seq:hook("embd", {}) end)
    assert.has_error(function() seq.hook(model, "embd", nop) end)
    local hook = assert(seq:hook("blk.*.out", nop))
    assert.matches("kigo.Hook .2 values from blk.0.out on", tostring(hook))
    hook:close()
    hook:close()
    assert.matches("closed", tostring(hook))
    local late = assert(seq:hook("embd", nop))
    seq:close()
    assert.matches("closed sequence", tostring(late))
    late:close()
    assert.has_error(function() seq:hook("embd", nop) end)
  end)

  for _, device in ipairs(tiny.devices) do
    describe("on " .. device.name, function()
      local plain, straight -- logits after every token; with every value nudged

      local function model_with(options)
        for key, value in pairs(device.options) do options[key] = value end
        return tiny.model(options)
      end

      setup(function() plain = tiny.reference(ids, device.options) end)

      it("shows every value as a trace does, and looking changes nothing", function()
        local model <close> = model_with { chunk = 7 }
        local traced = assert(model:trace(ids, "*"))
        for _, name in ipairs(model:values()) do
          local seq <close> = fed(model, prefix(ids, 31))
          local seen, last = {}, nil
          local hook <close> = seq:hook(name, function(x, who, pos, value)
            assert.equal(seq, who)
            assert.equal(name, value)
            for i = 0, #x - 1 do seen[pos + i] = x:row(i) end
            last = pos + #x
          end)
          assert.is_true(seq:step())
          assert.equal(plain[31], seq.logits:bytes())
          assert.equal(31, last)
          for i = 32, 34 do -- decoding
            seq:push(ids[i])
            assert.equal(plain[i], seq.logits:bytes())
          end
          assert.not_nil(seen[33])
          for pos, row in pairs(seen) do assert.equal(traced[name]:row(pos):bytes(), row:bytes(), name) end
          hook:close()
        end
      end)

      it("shows values behind the last attention of those rows that are computed", function()
        local model <close> = model_with { chunk = 7 }
        local n = {}
        local seq <close> = fed(model, ids)
        local _ <close> = seq:hook({ "blk.0.out", "blk.1.out" }, function(x, _, _, name)
          n[name] = (n[name] or 0) + #x
        end)
        assert.is_true(seq:step())
        assert.same({ ["blk.0.out"] = #ids, ["blk.1.out"] = 1 }, n)
      end)

      it("takes what is written: embeddings of other tokens make theirs", function()
        local wanted = tiny.reference(others, device.options)
        local model <close> = model_with { chunk = 7 }
        local seq <close> = fed(model, prefix(ids, 35))
        local _ <close> = seq:hook("embd", function(x, _, pos)
          for i = 0, #x - 1 do
            local row <close> = model:tensor("token_embd.weight", others[pos + i + 1], 1)
            x:row(i):fill_(0):add_(row:row(0))
          end
        end)
        assert.equal(wanted[35], seq.logits:bytes())
        seq:push(ids[36])
        assert.equal(wanted[36], seq.logits:bytes())
      end)

      it("takes what is written to a block's result, which is all that the next one reads", function()
        local wanted = tiny.reference(others, device.options)
        local model <close> = model_with { chunk = 16 }
        local traced = assert(model:trace(others, "blk.0.out"))[0]
        local seq <close> = fed(model, ids)
        local _ <close> = seq:hook("blk.0.out", function(x, _, pos)
          for i = 0, #x - 1 do x:row(i):fill_(0):add_(traced:row(pos + i)) end
        end)
        assert.equal(wanted[#ids], seq.logits:bytes())
      end)

      ---Sequences that grow, go back and fork, some of them hooked from the start: each has the straight run's logits.
      local function follow_schedule(seed, model, values)
        local dice, list = tiny.dice(seed), {}
        local function add(seq, hooked)
          for _, name in ipairs(hooked and values or {}) do seq:hook(name, nudge) end
          list[#list + 1] = { seq = seq, hooked = hooked }
        end
        for _ = 1, 4 do
          local seq = assert(model:sequence {})
          add(seq, dice(2) == 1)
          seq:feed(prefix(ids, dice(12)))
        end
        for _ = 1, 6 do
          local sequences = {}
          for i, entry in ipairs(list) do sequences[i] = entry.seq end
          assert.is_true(model:step(sequences))
          for _, entry in ipairs(list) do
            local seq = entry.seq
            assert.equal((entry.hooked and straight or plain)[seq:pos()], seq.logits:bytes())
            local turn = dice(6)
            if turn == 1 and seq:pos() > 1 then seq:rewind(dice(seq:pos() - 1)) end
            if turn == 2 and #list < 7 then add(seq:fork {}, entry.hooked) end
            if turn == 3 then
              local from = math.min(seq:pos(), #ids - 4)
              seq:expect(table.move(dice(2) == 1 and ids or others, from + 1, from + 4, 1, {}))
            end
            local n_more = math.min(dice(4) == 1 and dice(9) or 1, #ids - seq:pos())
            seq:feed(table.move(ids, seq:pos() + 1, seq:pos() + n_more, 1, {}))
          end
        end
        for _, entry in ipairs(list) do entry.seq:close() end
        assert.equal(0, model:stats().n_pages_used)
        model:close()
      end

      it("gives the same bits however a prompt is cut and whoever shares the step, who see nothing", function()
        local model <close> = model_with { chunk = 512 }
        local values = { "embd", "blk.0.k_rope", "blk.0.ffn_norm", "blk.0.ffn_down", "blk.1.attn", "blk.1.attn_output",
          "blk.1.ffn_act", "output_norm", "logits" }
        straight = {}
        for i = 1, #ids do
          local seq <close> = fed(model, prefix(ids, i))
          local _ <close> = seq:hook(values, nudge)
          straight[i] = seq.logits:bytes()
          assert.not_equal(plain[i], straight[i])
        end
        local ends, n = os.time() + (tonumber(os.getenv "KIGO_FUZZ_SECONDS") or 0) / #tiny.devices, 0
        while n < 4 or os.time() < ends do
          n = n + 1
          follow_schedule(n, model_with { chunk = ({ 1, 3, 7, 64, 5, 512 })[n % 6 + 1] }, values)
        end
        if n > 4 then print(("hooks: %d random schedules on %s"):format(n, device.name)) end
      end)

      it("neither takes pages from the prefix cache nor gives it any", function()
        local model <close> = model_with {}
        local long = tiny.ids(300, 8)
        local wanted = tiny.reference(long, device.options)
        local first <close> = fed(model, long)
        assert.equal(wanted[300], first.logits:bytes())
        local n, edited = 0, fed(model, long)
        local hook = edited:hook("blk.0.out", function(x)
          n = n + #x
          x:add_(0.25)
        end)
        assert.not_equal(wanted[300], edited.logits:bytes())
        assert.equal(300, n)
        hook:close()
        local _ <close> = edited:fork {}
        edited:close()
        local last <close> = fed(model, long)
        assert.equal(wanted[300], last.logits:bytes())
        assert.is_true(model:stats().n_tokens_reused > 0)
      end)

      it("is gone when it is closed; what was evaluated under it stays", function()
        local model <close> = model_with {}
        local seq <close> = fed(model, prefix(ids, 20))
        local under
        do
          local _ <close> = seq:hook("blk.0.out", nudge)
          under = seq.logits:bytes()
          assert.not_equal(plain[20], under)
        end
        assert.equal(under, seq.logits:bytes())
        local fork <close> = seq:fork {}
        assert.equal(under, fork.logits:bytes())
        seq:push(ids[21])
        assert.not_equal(plain[21], seq.logits:bytes())
        seq:rewind(0)
        seq:feed(prefix(ids, 21))
        assert.equal(plain[21], seq.logits:bytes())
      end)

      it("is not inherited by forks, which keep what was evaluated", function()
        local model <close> = model_with {}
        local seq <close> = fed(model, prefix(ids, 20))
        local _ <close> = seq:hook("blk.0.out", function(x) x:mul_(1) end)
        assert.is_true(seq:step())
        local n = 0
        local _ <close> = seq:hook("embd", function() n = n + 1 end)
        local fork <close> = seq:fork {}
        fork:push(ids[21])
        assert.equal(plain[21], fork.logits:bytes())
        assert.equal(0, n)
        seq:push(ids[21])
        assert.is_true(seq:step())
        assert.equal(1, n)
      end)

      it("is one of several, called in order of creation", function()
        local model <close> = model_with {}
        local function logits_with(...)
          local seq <close> = fed(model, prefix(ids, 10))
          for _, f in ipairs { ... } do seq:hook("blk.0.out", f) end
          return seq.logits:bytes()
        end
        local function double(x) x:mul_(2) end
        local function add(x) x:add_(0.5) end
        assert.equal(logits_with(function(x) x:mul_(2):add_(0.5) end), logits_with(double, add))
        assert.equal(logits_with(function(x) x:add_(0.5):mul_(2) end), logits_with(add, double))
        assert.not_equal(logits_with(double, add), logits_with(add, double))
      end)

      it("ends its own sequence's step when it fails, with a traceback, and no other's", function()
        local model <close> = model_with { chunk = 8 }
        local list = { fed(model, prefix(ids, 12)), fed(model, prefix(ids, 30)), fed(model, prefix(ids, 1)) }
        local fails_at = 0
        local hook = list[2]:hook("blk.0.ffn_act", function(x, _, pos)
          x:fill_(0 / 0)
          if pos + #x > fails_at then error "mine" end
        end)
        for _, at in ipairs { 0, 15, 29 } do
          fails_at = at
          local ok, message = pcall(model.step, model, list)
          assert.is_false(ok)
          assert.matches("hook_spec.lua:%d+: mine\nstack traceback", message)
          assert.equal(plain[12], list[1].logits:bytes())
          assert.equal(plain[1], list[3].logits:bytes())
          assert.equal(30, list[2]:pos())
        end
        hook:close()
        list[2]:rewind(0)
        list[2]:feed(prefix(ids, 30))
        assert.is_true(model:step(list))
        assert.equal(plain[30], list[2].logits:bytes())
        local problem = {}
        local again <close> = list[3]:hook("embd", function() error(problem) end)
        list[3]:push(ids[2])
        local ok, caught = pcall(function() return list[3].logits end)
        assert.is_false(ok)
        assert.equal(problem, caught)
        again:close()
        assert.equal(plain[2], list[3].logits:bytes())
        for _, seq in ipairs(list) do seq:close() end
        assert.equal(0, model:stats().n_pages_used)
      end)

      it("may unembed and use tensors, but not change what is being stepped", function()
        local model <close> = model_with { chunk = 9 }
        local seq <close> = fed(model, ids)
        local hook, late, refused = nil, nil, 0
        local tried = { function() seq:feed { 1 } end, function() seq:step() end, function() seq:close() end,
          function() hook:close() end, function() seq:hook("embd", print) end, function() model:close() end,
          function() model:logits { 1 } end, function() seq:rewind(0) end, function() coroutine.yield() end }
        hook = seq:hook("blk.*.out", function(x, _, pos, name)
          for _, f in ipairs(tried) do refused = refused + (pcall(f) and 0 or 1) end
          late = model:unembed(x)
          if name == "blk.1.out" then assert.equal(plain[pos + 1], late:row(0):bytes()) end
          collectgarbage()
        end)
        assert.equal(plain[#ids], seq.logits:bytes())
        assert.equal(#tried * 6, refused) -- 5 runs with rows of block 0, one of them with rows of block 1 too
        assert.equal(plain[#ids], late:row(0):bytes())
        hook:close()
      end)

      it("belongs to one body of a batch, whose error ends that body alone", function()
        local model <close> = model_with { chunk = 16, pool = 6 * 64 }
        local lists = {}
        for i = 1, 12 do lists[i] = prefix(ids, 20 + i) end
        local function decode(seq, list)
          seq:feed(list)
          local out = {}
          for i = 1, 8 do
            out[i] = seq.logits:argmax()
            seq:push(out[i])
          end
          return table.concat(out, " ") .. seq.logits:bytes()
        end
        local function body(seq, list, i)
          local _ <close> = i % 3 == 1 and seq:hook({ "blk.0.out", "blk.1.attn" }, nudge) or nil
          local _ <close> = i == 6 and seq:hook("embd", function(_, _, pos)
            if pos >= 26 then error "mine" end
          end) or nil
          return decode(seq, list)
        end
        local alone = {}
        for i, list in ipairs(lists) do
          local seq <close> = model:sequence {}
          alone[i] = i ~= 6 and body(seq, list, i) or nil
        end
        local results, errors = assert(model:batch({ max = 12, errors = "collect" }, lists, body))
        for i = 1, 12 do assert.equal(alone[i], results[i]) end
        assert.matches("mine.*traceback", errors[6])
        assert.equal(0, model:stats().n_pages_used)
      end)

      it("holds for ids that are drawn", function()
        local model <close> = model_with {}
        local chain <close> = kigo.chain { kigo.temp(0.9), kigo.dist() }
        local texts = {}
        for i, ahead in ipairs { 1, 8 } do
          local seq <close> = fed(model, prefix(ids, 4))
          local drawn = {}
          assert(seq:draw(chain, ahead))
          local _ <close> = seq:hook("blk.0.out", nudge)
          for j = 1, 10 do
            drawn[j] = assert(seq:draw(chain, ahead))
            seq:push(drawn[j])
          end
          texts[i] = drawn
        end
        assert.same(texts[1], texts[2])
      end)
    end)
  end

  it("changes nothing by looking in any family, and unembeds to the same bits", function()
    for _, name in ipairs { "bert", "deepseek2", "deepseek2_v3", "falcon", "falcon_new", "gemma", "gptneox", "granite",
      "llama_yarn", "nomic_bert", "olmo2", "phi2", "phi3_short", "qwen2moe", "qwen3moe", "smollm3",
      "stablelm_parallel" } do
      local prompt = support.read_json("spec/fixtures/families/" .. name .. ".json").prompt
      for _, device in ipairs { "reference", "cpu" } do
        local model <close> = assert(kigo.load("spec/fixtures/families/" .. name .. ".gguf",
          { device = device, threads = 2, tokenizer = false }))
        local unhooked <close> = fed(model, prompt)
        local seq <close> = fed(model, prompt)
        local n, residual, last = 0, model:residual(), nil
        local _ <close> = seq:hook("*", function(x, _, _, value)
          n = n + 1
          if value == residual then last = x end
        end)
        assert.equal(unhooked.logits:bytes(), seq.logits:bytes(), name)
        assert.is_true(n >= #model:values())
        if residual then assert.equal(unhooked.logits:bytes(), model:unembed(last):row(#last - 1):bytes(), name) end
      end
    end
  end)

  it("stays without anybody who knows it, as long as its sequence", function()
    local model <close> = tiny.model {}
    local seq = fed(model, prefix(ids, 3))
    local calls, canary = 0, setmetatable({ {} }, { __mode = "v" })
    do
      local held = canary[1]
      seq:hook("embd", function() calls = calls + (held and 1 or 0) end)
    end
    collectgarbage()
    collectgarbage()
    assert.is_true(seq:step())
    assert.equal(1, calls)
    seq = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.is_nil(canary[1])
    assert.equal(0, model:stats().n_sequences)
  end)

  it("survives the failure of every allocation", function()
    for _, device in ipairs { "reference", "cpu" } do
      local expected = tiny.reference(prefix(ids, 9), { device = device, threads = 1 })
      local n = tiny.fail_each_allocation(function()
        local model = tiny.model { device = device, threads = 1, chunk = 4 }
        return { model = model, fed(model, prefix(ids, 9)), fed(model, prefix(ids, 5)) }
      end, function(list)
        local _ <close> = list[1]:hook({ "blk.0.out", "blk.0.attn_q", "output_norm" }, function(x)
          assert(x:clone())
        end)
        local ok, message, code = list.model:step { list[1], list[2] }
        if ok then return true end
        return nil, message, code
      end, function(list)
        assert.equal(9, list[1]:pos())
        assert.is_true(list.model:step { list[1], list[2] })
        assert.equal(expected[9], list[1].logits:bytes())
        assert.equal(expected[5], list[2].logits:bytes())
        list[1]:close()
        list[2]:close()
        assert.equal(0, list.model:stats().n_pages_used)
        list.model:close()
      end)
      assert.is_true(n > 20)
      collectgarbage()
    end
  end)

  describe("and model:unembed", function()
    local function check(model, list)
      local name, hidden = model:residual()
      assert.equal("output_norm", hidden)
      local kept = assert(model:trace(list, { name, "logits" }))
      local logits = assert(model:unembed(kept[name]))
      assert.equal(kept.logits:bytes(), logits:bytes())
      assert.equal(kept.logits:row(1):bytes(), assert(model:unembed(kept[name]:row(1))):bytes())
      local seq <close> = fed(model, list)
      assert.equal(seq.logits:bytes(), logits:row(#list - 1):bytes())
    end

    for _, device in ipairs(tiny.devices) do
      it("gives the model's own logits of the last block's value on " .. device.name, function()
        local model <close> = tiny.model(device.options)
        check(model, ids)
        check(model, tiny.ids(150, 9)) -- more than go through at once
        assert.equal("kigo.Tensor [0, 48]", tostring(model:unembed(kigo.zeros(0, 32):to(model))))
      end)
    end

    it("knows the last operations of many families, on every backend", function()
      if not support.shared then return pending "needs ../shared, which is not here" end
      for _, name in ipairs { "llama", "qwen2", "gpt2", "gemma2", "phi3", "gptoss", "llama256_q8_0" } do
        local fixture = model_fixtures.get(name)
        for _, backend in ipairs { "reference", "cpu" } do
          local model <close> = model_fixtures.open(fixture.path, { device = backend, threads = 2 })
          check(model, prefix(fixture.prompt, 6))
        end
      end
    end)

    it("refuses what is no row of it", function()
      local model <close> = tiny.model {}
      for _, bad in ipairs { kigo.zeros(31), kigo.zeros(2, 33), kigo.zeros(1, 1, 32), kigo.zeros(64) } do
        assert.has_error(function() model:unembed(bad) end)
      end
      for _, bad in ipairs { 3, "x", model } do assert.has_error(function() model:unembed(bad) end) end
    end)

    it("survives the failure of every allocation", function()
      for _, device in ipairs { "reference", "cpu" } do
        tiny.fail_each_allocation(function()
          return tiny.model { device = device, threads = 1 }
        end, function(model)
          return model:unembed(kigo.zeros(70, 32))
        end, function(model)
          assert(model:unembed(kigo.zeros(70, 32)))
          model:close()
        end)
      end
    end)
  end)

  describe("and model:tensor", function()
    it("reads weights, whole or some rows", function()
      local model <close> = assert(kigo.load(support.haiku_model, { threads = 1 }))
      for _, info in ipairs(model.gguf:tensors()) do
        local n = 1
        for _, size in ipairs(info.shape) do n = n * size end
        if n <= 65536 then
          local tensor = assert(model:tensor(info.name))
          assert.equal(support.pack_floats(model.gguf:values(info.name)), tensor:bytes())
          local sizes = { tensor:shape() }
          for i, size in ipairs(info.shape) do assert.equal(size, sizes[#sizes + 1 - i]) end
        end
      end
      local width = model.gguf:tensor("token_embd.weight").shape[1]
      local whole, some = model:tensor "token_embd.weight", model:tensor("token_embd.weight", 5, 3)
      assert.same({ 3, width }, { some:shape() })
      assert.equal(whole:bytes():sub(5 * width * 4 + 1, 8 * width * 4), some:bytes())
      assert.equal(whole:row(#whole - 1):bytes(), model:tensor("token_embd.weight", #whole - 1):bytes())
      assert.equal(0, #model:tensor("token_embd.weight", #whole))
      for _, bad in ipairs { { "none" }, { "token_embd.weight", -1 }, { "token_embd.weight", 0, #whole + 1 },
        { "token_embd.weight", #whole + 1 }, { "output_norm.weight", 0, 1 }, { 3 } } do
        assert.has_error(function() model:tensor(table.unpack(bad)) end)
      end
    end)

    it("goes to a device and back", function()
      local model <close> = tiny.model {}
      local x = kigo.tensor { { 1, 2 }, { 3, 4 } }
      local there = assert(x:to(model))
      assert.same({ { 1, 2 }, { 3, 4 } }, there:to():totable())
      there:fill_(0)
      assert.same({ { 1, 2 }, { 3, 4 } }, x:totable())
      assert.same({ 3, 4 }, x:row(1):to():totable())
      assert.has_error(function() x:to(3) end)
    end)
  end)

  it("leaves nothing behind: steps without hooks allocate nothing", function()
    local model <close> = tiny.model { device = "cpu", threads = 1 }
    local seq <close> = fed(model, prefix(ids, 10))
    do
      local _ <close> = seq:hook("*", function() end)
      assert.is_true(seq:step())
    end
    seq:feed(prefix(ids, 20)) -- room on the timeline, and pages where they are small
    assert.is_true(seq:step())
    seq:rewind(10)
    assert.is_true(seq:step())
    local n, step, count = 0, seq.step, core.alloc_counts
    for i = 11, 20 do
      seq:push(ids[i])
      local _, before = count()
      step(seq)
      local _, after = count()
      n = n + after - before
    end
    assert.equal(0, n)
  end)
end)
