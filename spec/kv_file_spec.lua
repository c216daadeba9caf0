-- Sequences in files: what comes back goes on bit for bit, what does not fit is refused and changes nothing, and no
-- failure or kill in the middle hurts the file that was there.
describe("kigo.kv_file", function()
  local kigo = require "kigo"
  local core = kigo.core
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = core.err

  local HEADER, RANGES = 248, 24 -- bytes; engine/kv_file.c says what stands where

  local folder, path, tokenizer
  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
    path = folder .. "/chat.kv"
    tokenizer = tiny.tokenizer() -- ids from 0 are "!" and what follows in ASCII
  end)
  teardown(function()
    os.execute("rm -r " .. folder)
    tokenizer:close()
  end)

  local function model_of(options)
    local model = tiny.model(options)
    model.tokenizer = tokenizer
    return model
  end

  local function write(bytes)
    os.remove(path) -- file systems take their time over files that are emptied and filled again
    local file <close> = assert(io.open(path, "wb"))
    assert(file:write(bytes))
  end

  ---The file with right checksums.
  local function sealed(bytes)
    local head = bytes:sub(1, 16) .. ("\0"):rep(8) .. bytes:sub(25, HEADER)
    local sum = string.pack("<j", core.checksum(head))
    local body = bytes:sub(1, 16) .. sum .. bytes:sub(25, -9)
    return body .. string.pack("<j", core.checksum(body))
  end

  local function patched(bytes, at, with) return bytes:sub(1, at) .. with .. bytes:sub(at + #with + 1) end

  ---What a sequence is and does from here on.
  local function future(seq)
    local list = { table.concat(seq:tokens(), " "), seq.state, seq:seed() }
    if seq:pos() > 0 then list[#list + 1] = seq.logits:bytes() end
    local pick <close> = core.chain { { kind = "penalties", last = 8, ["repeat"] = 1.3 },
      { kind = "temp", value = 0.8 } }
    for _ = 1, 6 do
      list[#list + 1] = seq.rng:uniform()
      seq:push(seq:pos() > 0 and pick(seq.logits, seq) or 7)
    end
    for _, stream in ipairs(seq:attached()) do
      list[#list + 1] = { stream.text, tostring(stream.reason), stream:read(), stream:finish() }
    end
    if seq:pos() > 9 then
      seq:rewind(9)
      for _, stream in ipairs(seq:attached()) do
        list[#list + 1] = { stream.text, tostring(stream.reason), stream:finish() }
      end
    end
    return list
  end

  local function saved_and_restored(seq, model)
    assert.is_true(seq:save(path))
    return assert(model:restore(path))
  end

  for _, device in ipairs(tiny.variants) do
    describe("on " .. device.name, function()
      local model
      setup(function()
        local options = { chunk = 32 }
        for key, value in pairs(device.options) do options[key] = value end
        model = model_of(options)
      end)
      teardown(function() model:close() end)

      it("comes back as it was, wherever it stood", function()
        for _, n in ipairs { 0, 1, 15, 63, 64, 65, 128, 150 } do
          for _, pending in ipairs { 0, 1, 40 } do
            local seq <close> = model:sequence { seed = -n - pending }
            seq:feed(tiny.ids(n, 3))
            if n > 0 then assert.is_true(seq:step()) end
            seq:feed(tiny.ids(pending, 4))
            for _ = 1, n % 3 do seq.rng:uniform() end
            seq.state.n = n
            local again <close> = saved_and_restored(seq, model)
            assert.same(future(seq), future(again))
          end
        end
      end)

      it("evaluates nothing again but the last token", function()
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(100))
        assert.is_true(seq:step())
        local again <close> = saved_and_restored(seq, model)
        local before = model:stats().n_tokens_evaluated
        again:push(3)
        assert.is_true(again:step())
        assert.equal(before + 1, model:stats().n_tokens_evaluated)
      end)

      it("shares no pages with where it came from", function()
        local seq <close> = model:sequence {}
        seq:feed(tiny.ids(100))
        local expected = seq.logits:bytes()
        local again <close> = saved_and_restored(seq, model)
        seq:rewind(50)
        seq:feed(tiny.ids(60, 9))
        assert.is_true(seq:step())
        assert.equal(expected, again.logits:bytes())
      end)
    end)
  end

  for _, device in ipairs(tiny.devices) do
    it("may hold what is no number, which reaches nobody who gets its pages, on " .. device.name, function()
      local model <close> = model_of { device = device.options.device, kv = device.options.kv, threads = 1, pool = 64,
        prefix_cache = false }
      local ids = tiny.ids(20) -- in the only page
      local expected = tiny.oracle(model, ids)
      local first = model:sequence {}
      first:feed(ids)
      assert.is_true(first:step() and first:save(path))
      first:close()
      local bytes, is_half = support.read(path), device.options.kv == "f16"
      local size = #ids * tiny.layers * 2 * tiny.kv_heads * tiny.head_dim * (is_half and 2 or 4)
      for _, number in ipairs { "\xFF\xFF\xFF\xFF", "\0\x7C\x80\x7F", "\0\xFC\x80\xFF" } do
        write(sealed(patched(bytes, #bytes - 8 - size, number:rep(size // 4))))
        assert(model:restore(path)):close()
        local seq <close> = model:sequence {}
        for i, id in ipairs(ids) do
          seq:push(id)
          assert.equal(expected[i], seq.logits:bytes())
        end
      end
    end)
  end

  it("is the same file from every backend, but for the name of the device", function()
    local first <close> = model_of { kv = "f32" }
    local seq <close> = first:sequence { seed = 3 }
    seq:feed(tiny.ids(150))
    assert.is_true(seq:step())
    assert.is_true(seq:save(path))
    local bytes = support.read(path)
    for _, device in ipairs(tiny.devices) do
      if device.options.kv ~= "f16" then
        local model <close> = model_of(device.options)
        local again <close> = assert(model:restore(path))
        assert.is_true(again:save(path .. "2"))
        assert.is_true(bytes:sub(HEADER + 1, -9) == support.read(path .. "2"):sub(HEADER + 1, -9))
      end
    end
  end)

  it("keeps states: going back in what comes back computes no more than in what was saved", function()
    local model <close> = model_of { kind = "hybrid", device = "cpu", threads = 1, kv = "f32" }
    local other <close> = model_of { kind = "hybrid", device = "reference" }
    local seq <close> = model:sequence {}
    seq:feed(tiny.ids(150))
    assert.is_true(seq:step())
    for i = 1, 30 do seq:push(i) end
    assert.is_true(seq:step())
    local function costs(one, pos)
      local fork <close> = assert(one:fork())
      local before = fork.model:stats().n_tokens_evaluated
      fork:rewind(pos)
      local logits = fork.logits:bytes()
      return fork.model:stats().n_tokens_evaluated - before, logits
    end
    local again <close> = saved_and_restored(seq, model)
    for _, pos in ipairs { 180, 179, 160, 120, 60, 1 } do
      local n, logits = costs(seq, pos)
      local m, same = costs(again, pos)
      assert.equal(n, m)
      assert.is_true(logits == same)
      assert.is_true(n <= math.max(180 - pos, 16) + 1)
    end
    local elsewhere <close> = assert(other:restore(path))
    assert.equal(1, (costs(elsewhere, 180)))

    local bytes, size = support.read(path), 8 + model:stats().state_bytes
    local n = string.unpack("<I4", bytes, 181)
    assert.is_true(n > 4)
    local function refused(content)
      write(content)
      local back, _, code = model:restore(path)
      assert.is_nil(back)
      assert.equal(err.FORMAT, code)
    end
    local last = #bytes - 8 - size
    for _, pos in ipairs { 0, -1, 181, 1 << 33, 1 } do refused(sealed(patched(bytes, last, string.pack("<j", pos)))) end
    for _, count in ipairs { n - 1, n + 1, 81, 1 << 31 } do
      refused(sealed(patched(bytes, 180, string.pack("<I4", count))))
    end
    refused(sealed(patched(bytes, 184, string.pack("<I4", 1))))
    write(sealed(bytes))
    assert(model:restore(path)):close()
    assert.is_true(model:stats().n_states_used < 60)
  end)

  it("gives rows of another device to nobody else, and keeps them", function()
    local here <close> = model_of { device = "cpu", threads = 1, kv = "f32" }
    local there <close> = model_of { device = "reference" }
    local ids = tiny.ids(200)
    local seq <close> = there:sequence {}
    seq:feed(ids)
    assert.is_true(seq:step())
    local guest <close> = saved_and_restored(seq, here)
    local fresh <close> = here:sequence {}
    fresh:feed(ids)
    assert.is_true(fresh.logits:bytes() == tiny.reference(ids, { device = "cpu", threads = 1, kv = "f32" })[200])
    guest:push(1)
    local after = guest.logits:bytes()
    guest:rewind(200)
    guest:push(1)
    guest:release() -- would be evaluated again, with other numbers
    guest:rewind(200)
    guest:push(1)
    assert.is_true(after == guest.logits:bytes())
    local again <close> = saved_and_restored(guest, here)
    again:release()
    again:rewind(200)
    again:push(1)
    assert.is_true(after == again.logits:bytes())
    guest:rewind(0)
    guest:feed(ids)
    assert.is_true(guest:step())
  end)

  it("refuses hooks", function()
    local model <close> = model_of {}
    local seq <close> = model:sequence {}
    seq:feed { 1, 2, 3 }
    local hook = seq:hook("embd", function() end)
    local done, _, code = seq:save(path .. "4")
    assert.is_nil(done)
    assert.equal(err.UNSUPPORTED, code)
    assert.is_nil(io.open(path .. "4"))
    hook:close()
    local again <close> = saved_and_restored(seq, model)
    assert.same(future(seq), future(again))
  end)

  it("brings streams back: held text, what was read, what was finished", function()
    local model <close> = model_of { device = "cpu", threads = 1 }
    local cases = {
      function(out) return out end,
      function(out) out:read() return out end,
      function(out) out:finish() return out end,
    }
    for _, text in ipairs { "", "!", "!!!", '"#$%&', "-...-", "+-+-+", "+-+--+", "(((((((((())" } do
      for i, prepare in ipairs(cases) do
        for _, after in ipairs { "", "+-" } do
          local seq <close> = model:sequence {}
          local early <close> = core.stream(tokenizer, { stop = "!!" })
          early:add(0)
          seq:feed { 7 }
          seq:attach(early)
          seq:attach(core.stream(tokenizer, { stop = { "+-+--", "))" } }))
          seq:feed(tokenizer:encode(text))
          prepare(seq:attached()[i % 2 + 1])
          seq:feed(tokenizer:encode(after))
          local again <close> = saved_and_restored(seq, model)
          assert.same(future(seq), future(again))
        end
      end
    end
  end)

  it("brings constraints back, wherever they stand", function()
    local model <close> = model_of { device = "cpu", threads = 1 }
    local grammars = {
      assert(kigo.regex "[!-&]{2,4}([+] [!-&]+)*[.]"), assert(kigo.choice { "!!", "!+", "!+-+-+" }),
      assert(kigo.gbnf 'root ::= "(" (root | [+]){0,3} ")"'),
      assert(core.grammar { root = { "members", { { "!", required = true }, { "+", requires = { 1 } }, { "-" } },
        separator = ",", others = { "class", 35, 38 }, min = 1, max = 4 } }),
      assert(core.grammar { root = { "seq", { "not", "++" }, "." } }),
      assert(core.grammar { root = { "multiple", 15, 1 } }),
    }
    for _, grammar in ipairs(grammars) do
      for _, options in ipairs { {}, { after = "(" }, { after = "((", within = 4 } } do
        local seq <close> = model:sequence { seed = 5 }
        seq:push(1)
        seq:attach(core.stream(tokenizer))
        assert(seq:constrain(grammar, options))
        local pick <close> = core.chain { { kind = "temp", value = 5 } }
        for _ = 1, 9 do
          local again <close> = saved_and_restored(seq, model)
          local twin <close> = again:fork()
          assert.same(seq:constraint(), again:constraint())
          assert.is_true(seq.logits:bytes() == again.logits:bytes())
          if seq:is_over() then break end
          local id = assert(seq:draw(pick))
          assert.equal(id, again:draw(pick))
          assert.equal(id, twin:draw(pick))
          assert(seq:push(id) and again:push(id) and twin:push(id))
          assert.same(seq:constraint(), again:constraint())
          again:rewind(again:pos() - 1)
          again:push(id)
          assert.same(seq:constraint(), again:constraint())
          assert.same(seq:constraint(), twin:constraint())
        end
      end
    end
  end)

  it("refuses a constraint with functions of somebody's", function()
    local model <close> = model_of {}
    local seq <close> = model:sequence {}
    local grammar = assert(core.grammar { root = { "point", { "class", 33, 47 }, name = "p" } })
    assert(seq:constrain(grammar, { points = { p = function() return true end } }))
    local done, _, code = seq:save(path .. "5")
    assert.is_nil(done)
    assert.equal(err.UNSUPPORTED, code)
  end)

  it("brings plain data back as it was", function()
    local model <close> = model_of {}
    local seq <close> = model:sequence {}
    local shared = { 1, 2.0, -0.0, math.huge, 1 << 62, math.mininteger, true, false, "\0\xFF" }
    seq.state = { list = shared, again = shared, [1.5] = { {} }, [-3] = "", [true] = "yes", [""] = 0 }
    seq.state.list[20] = seq.state
    local again <close> = saved_and_restored(seq, model)
    local state = again.state
    assert.equal(state.list, state.again)
    assert.equal(state, state.list[20])
    for i = 1, 9 do
      assert.equal(math.type(shared[i]), math.type(state.list[i]))
      assert.equal(shared[i], state.list[i])
    end
    assert.equal(-math.huge, 1 / state.list[3])
    assert.same({ {} }, state[1.5])
    assert.equal("yes", state[true])
    assert.equal(0, state[""])
    seq.state = { bad = print }
    assert.has_error(function() seq:save(path) end)
    local still <close> = assert(model:restore(path))
    assert.equal("yes", still.state[true])
  end)

  describe("refuses", function()
    local model, bytes
    setup(function()
      model = model_of { kv = "f32" }
      local seq <close> = model:sequence { seed = 4 }
      seq:attach(core.stream(tokenizer, { stop = "!!" }))
      seq:feed(tiny.ids(20))
      assert.is_true(seq:step())
      seq.state.list = { 1, "two", { 3 } }
      assert.is_true(seq:save(path))
      bytes = support.read(path)
    end)
    teardown(function() model:close() end)

    ---Restoring must fail with one of the codes, leave nothing behind, and the message names the file.
    local function refused(content, codes, on)
      on = on or model
      local sequences, pages = on:stats().n_sequences, on:stats().n_pages_used
      if content then write(content) end
      local seq, message, code = on:restore(path)
      local is_expected = false -- plain Lua: thousands of these
      for _, expected in ipairs(codes) do is_expected = is_expected or expected == code end
      if seq or not is_expected then error(("took it, or code %s: %s"):format(code, message)) end
      if not (message:find(path, 1, true) or message:find "stream" or message:find "pool") then error(message) end
      if on:stats().n_sequences ~= sequences or on:stats().n_pages_used ~= pages then error "left something" end
    end

    it("a file that is cut anywhere, or goes on", function()
      for n = 0, #bytes - 1, 7 do refused(bytes:sub(1, n), { err.FORMAT }) end
      for n = 0, HEADER + 20 do refused(bytes:sub(1, n), { err.FORMAT }) end
      for n = #bytes - 20, #bytes - 1 do refused(bytes:sub(1, n), { err.FORMAT }) end
      refused(bytes .. "\0", { err.FORMAT })
    end)

    it("a file with any bit changed", function()
      for at = 0, #bytes - 1, #bytes > 4000 and 5 or 1 do
        local bit = 1 << at % 8
        refused(patched(bytes, at, string.char(bytes:byte(at + 1) ~ bit)), { err.FORMAT, err.UNSUPPORTED })
      end
    end)

    it("another model, version, KV type or layout, also with right checksums", function()
      refused(sealed(patched(bytes, 24, ("0"):rep(64))), { err.UNSUPPORTED })
      refused(sealed(patched(bytes, 8, string.pack("<I4", 1))), { err.UNSUPPORTED })
      refused(sealed(patched(bytes, 12, string.pack("<I4", 1))), { err.UNSUPPORTED })
      refused(sealed(patched(bytes, 12, string.pack("<I4", 7))), { err.FORMAT })
      refused(sealed(patched(bytes, 0, "kigo-kW\n")), { err.FORMAT })
      for _, n_adapters in ipairs { 1, 8, 9, -1 } do
        refused(sealed(patched(bytes, 176, string.pack("<i4", n_adapters))), { err.FORMAT })
      end
      local half <close> = model_of { device = "cpu", kv = "f16" }
      refused(bytes, { err.UNSUPPORTED }, half)
    end)

    it("sizes that cannot be, also with right checksums", function()
      for at = 104, 168, 4 do
        local is_place = at == 160 or at == 164
        for _, value in ipairs { -1, 1 << 31, 0x7FFFFFFF, 21, is_place and 99 or 0, is_place and 99 or 1 } do
          local size = (at < 112 or at >= 160) and 4 or 8
          local new = patched(bytes, at, string.pack("<j", value):sub(1, size))
          if new ~= bytes then refused(sealed(new), { err.FORMAT, err.UNSUPPORTED }) end
        end
      end
    end)

    it("ranges of the cache that cannot be, also with right checksums", function()
      assert.equal(string.pack("<i4i4i4i4i4i4", 0, 0, 20, 1, 0, 20), bytes:sub(HEADER + 1, HEADER + RANGES))
      for _, ranges in ipairs { { 0, 0, 20, 0, 0, 20 }, { 1, 0, 20, 0, 0, 20 }, { 0, 0, 20, 1, 0, 21 },
        { 0, 0, 20, 1, -1, 19 }, { 0, 0, 20, 4, 0, 20 }, { -1, 0, 20, 1, 0, 20 },
        { 0, 0, 20, 2, 0, 20 }, { 0, 20, 0, 1, 0, 20 },
        { 0, 1, 20, 1, 0, 20 }, { 0, 0, 19, 1, 0, 20 }, { 0, 0, 0x7FFFFFFF, 1, 0, 20 }, { 0, 0, 10, 0, 10, 20 },
        { 1, 0, 10, 1, 10, 20 } } do
        refused(sealed(patched(bytes, HEADER, string.pack("<i4i4i4i4i4i4", table.unpack(ranges)))), { err.FORMAT })
      end
    end)

    it("ids, companions and states that cannot be, also with right checksums", function()
      local tokens = HEADER + RANGES
      refused(sealed(patched(bytes, tokens + 8, string.pack("<i4", tiny.vocab))), { err.FORMAT })
      refused(sealed(patched(bytes, tokens + 8, string.pack("<i4", -1))), { err.FORMAT })
      local companions = tokens + 80
      assert.equal("stream", bytes:sub(companions + 5, companions + 10))
      refused(sealed(patched(bytes, companions + 4, "strewn")), { err.UNSUPPORTED })
      refused(sealed(patched(bytes, companions + 4, "\0\n\xFF")), { err.UNSUPPORTED })
      refused(sealed(patched(bytes, companions, "\7")), { err.FORMAT, err.UNSUPPORTED })
      refused(sealed(patched(bytes, companions + 10, string.pack("<i4", 21))), { err.FORMAT })
      refused(sealed(patched(bytes, companions + 10, string.pack("<i4", -1))), { err.FORMAT })
      refused(sealed(patched(bytes, companions + 22, string.pack("<j", 99))), { err.FORMAT }) -- stop strings
      refused(sealed(patched(bytes, companions + 46, string.pack("<j", 21))), { err.FORMAT }) -- finished when
      local state = bytes:find("T", companions + 80, true) - 1
      for _, wrong in ipairs { "Q", "e", "n", "r" } do refused(sealed(patched(bytes, state, wrong)), { err.FORMAT }) end
    end)

    it("what the model has no room for", function()
      local short <close> = model_of { kv = "f32", ctx = 19 }
      refused(bytes, { err.FULL }, short)
      local enough <close> = model_of { kv = "f32", ctx = 20 }
      assert(enough:restore(path)):close()
      local narrow <close> = model_of { kv = "f32", pool = 1 }
      local other <close> = narrow:sequence {}
      other:push(1)
      assert.is_true(other:step())
      refused(bytes, { err.FULL }, narrow)
    end)

    it("a stream without a tokenizer", function()
      local mute <close> = tiny.model { kv = "f32" }
      refused(bytes, { err.UNSUPPORTED }, mute)
    end)

    it("what is no file", function()
      for _, wrong in ipairs { folder, folder .. "/nothing", folder .. "/no/thing", "/dev/null", "" } do
        local seq, message, code = model:restore(wrong)
        assert.is_nil(seq)
        assert.equal(err.IO, code)
        assert.truthy(message:find(wrong, 1, true))
      end
      local seq <close> = model:sequence {}
      for _, wrong in ipairs { folder, folder .. "/no/thing", "/dev/null", "" } do
        local done, _, code = seq:save(wrong)
        assert.is_nil(done)
        assert.equal(err.IO, code)
      end
      for _, call in ipairs { function() seq:save() end, function() model:restore() end, function() seq:save {} end } do
        assert.has_error(call)
      end
      local left <close> = io.popen("ls " .. folder)
      assert.equal("chat.kv\nchat.kv2\n", left:read "a")
    end)

    it("closed handles and the middle of a step", function()
      local own = model_of { kv = "f32", chunk = 8 }
      local seq = own:sequence {}
      seq:feed(tiny.ids(30))
      write(bytes)
      local failures = 0
      own:set_progress(function()
        for _, call in ipairs { function() return seq:save(path .. "3") end,
          function() return own:restore(path) end } do
          if not pcall(call) then failures = failures + 1 end
        end
      end)
      assert.is_true(seq:step())
      assert.is_true(failures > 2)
      assert.is_nil(io.open(path .. "3"))
      own:set_progress(nil)
      seq:close()
      assert.has_error(function() seq:save(path) end)
      own:close()
      assert.has_error(function() own:restore(path) end)
    end)

    it("nothing quietly for want of memory", function()
      write(bytes)
      local live
      for _ = 1, 2 do
        local n = tiny.fail_each_allocation(function() return model end, function(m)
          local seq, message, code = m:restore(path)
          if not seq then return nil, message, code end
          seq:close()
          return true
        end, function(m)
          if m:stats().n_sequences > 0 then collectgarbage() end -- the handle that Lua had no memory to return
          assert.equal(0, m:stats().n_sequences)
        end)
        assert.is_true(n > 10)
        local seq <close> = assert(model:restore(path))
        n = tiny.fail_each_allocation(function() return seq end, function(s) return s:save(path) end, function(s)
          assert.equal(bytes, support.read(path))
          assert.equal(20, s:pos())
        end)
        assert.is_true(n > 10)
        collectgarbage()
        collectgarbage()
        local now = core.alloc_counts()
        assert.is_true(not live or now <= live + 50)
        live = now
      end
    end)
  end)

  describe("a kill in the middle of a save", function()
    it("leaves the old file or the new one", function()
      local kills = tonumber(os.getenv "KIGO_KILLS") or 24
      local script = folder .. "/save.lua"
      local file <close> = assert(io.open(script, "w"))
      file:write([[
        local tiny = require "spec.tiny"
        local model <close> = tiny.model { device = "cpu", threads = 1 }
        local a, b = model:sequence { seed = 1 }, model:sequence { seed = 2 }
        a:feed(tiny.ids(900, 1))
        b:feed(tiny.ids(700, 2))
        assert(a:save(arg[1] .. ".a") and b:save(arg[1] .. ".b") and a:save(arg[1]))
        if arg[2] == "once" then os.exit(0, true) end
        io.open(arg[1] .. ".on", "w"):close()
        while true do assert(a:save(arg[1]) and b:save(arg[1])) end
      ]])
      file:close()
      local place = folder .. "/killed.kv"
      assert(os.execute(("%s %s %s once"):format(support.program, script, place)))
      local a, b = support.read(place .. ".a"), support.read(place .. ".b")
      local n_old, n_new, n_cut = 0, 0, 0
      for i = 1, kills do
        os.remove(place .. ".on")
        local wait = 0.0004 + core.uniform(os.time(), i, 0) * 0.01
        os.execute(([[
          %s %s %s & child=$!
          while ! test -e %s.on; do sleep 0.005; done
          sleep %f; kill -9 $child; wait $child 2>/dev/null
        ]]):format(support.program, script, place, place, wait) .. " 2>/dev/null")
        local now = support.read(place)
        if now == a then n_old = n_old + 1 elseif now == b then n_new = n_new + 1 else error "neither" end
        local model <close> = tiny.model { device = "cpu", threads = 1 }
        local seq <close> = assert(model:restore(place))
        assert.equal(now == a and 900 or 700, seq:pos())
        local left = assert(io.popen("ls " .. folder .. "/killed.kv.?????? 2>/dev/null"))
        if left:read "a" ~= "" then n_cut = n_cut + 1 end
        left:close()
        os.execute("rm -f " .. folder .. "/killed.kv.??????")
      end
      if os.getenv "KIGO_KILLS" then
        io.stderr:write(("\n%d kills: %d the first file, %d the second, %d within a save\n"):format(kills, n_old, n_new,
          n_cut))
      end
      assert.equal(kills, n_old + n_new)
      assert.is_true(n_cut > 0) -- else they came at other times
    end)
  end)
end)
