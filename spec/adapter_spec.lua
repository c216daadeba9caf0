-- Adapters: the numbers of Hugging Face's peft (spec/fixtures/make_adapters.py), and company that nobody notices.
describe("an adapter", function()
  local kigo = require "kigo"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local core, err = kigo.core, kigo.err

  local FOLDER = "spec/fixtures/adapters/"
  local devices = tiny.devices

  -- ---- files for the tiny model ----

  local WIDTHS = { -- inputs, outputs
    attn_q = { tiny.hidden, tiny.heads * tiny.head_dim }, attn_k = { tiny.hidden, tiny.kv_heads * tiny.head_dim },
    attn_v = { tiny.hidden, tiny.kv_heads * tiny.head_dim }, attn_output = { tiny.heads * tiny.head_dim, tiny.hidden },
    ffn_gate = { tiny.hidden, tiny.ffn }, ffn_up = { tiny.hidden, tiny.ffn }, ffn_down = { tiny.ffn, tiny.hidden },
  }
  local NAMES = {}
  for name in pairs(WIDTHS) do NAMES[#NAMES + 1] = name end
  table.sort(NAMES)

  local function floats(dice, n, size)
    local list = {}
    for i = 1, n do list[i] = string.pack("<f", (dice(2001) - 1001) / 1000 * size) end
    return table.concat(list)
  end

  local function tensor(dice, name, cols, rows, size)
    return { name = name, shape = { cols, rows }, bytes = floats(dice, cols * rows, size) }
  end

  local function metadata(alpha)
    return { ["general.type"] = "adapter", ["adapter.type"] = "lora", ["general.architecture"] = "tiny",
      ["adapter.lora.alpha"] = alpha or 4.0 }
  end

  ---Tensors of a random adapter: matrices of blocks, each with a rank of its own, and now and then the table.
  local function tensors(seed)
    local dice, list = tiny.dice(seed), {}
    local function pair(name, rank, a, b)
      list[#list + 1] = tensor(dice, name .. ".weight.lora_a", a[1] or rank, a[2] or rank, 0.3)
      list[#list + 1] = tensor(dice, name .. ".weight.lora_b", rank, b, 0.5)
    end
    for layer = 0, tiny.layers - 1 do
      for _, name in ipairs(NAMES) do
        local w = WIDTHS[name]
        if dice(3) > 1 then pair(("blk.%d.%s"):format(layer, name), dice(7), { w[1], nil }, w[2]) end
      end
    end
    if dice(2) == 1 then pair("token_embd", 3, { nil, tiny.vocab }, tiny.hidden) end
    if #list == 0 then pair("blk.0.attn_q", 2, { tiny.hidden, nil }, tiny.heads * tiny.head_dim) end
    return list
  end

  local function open(model, entries, list, name)
    local gguf <close> = assert(core.parse_gguf(build.random(entries, list), name or "adapter.gguf"))
    return model:adapter(gguf)
  end

  local function random_adapter(model, seed)
    return assert(open(model, metadata(1.0 + seed % 3), tensors(seed), "adapter" .. seed))
  end

  local function fed(model, ids, adapters)
    local seq = assert(model:sequence {})
    for _, a in ipairs(adapters or {}) do assert(seq:adapt(a[1], a[2])) end
    assert(seq:feed(ids))
    return seq
  end

  -- ---- against peft ----

  local kinds = { { "reference", "auto", 1e-3, 1e-5 }, { "cpu", "auto", 0.03, 2e-3 }, { "cpu", "f32", 1e-3, 1e-5 } }
  if tiny.has_gpu then
    kinds[4], kinds[5] = { "cuda", "auto", 0.03, 2e-3 }, { "cuda", "f32", 0.03, 2e-3 }
  end
  for _, kind in ipairs(kinds) do
    for _, name in ipairs { "llama_linear", "phi3_short", "gemma" } do
      it(("gives the logits of peft: %s on %s, cache %s"):format(name, kind[1], kind[2]), function()
        local info = support.read_json(FOLDER .. name .. ".json")
        local model <close> = assert(kigo.load("spec/fixtures/families/" .. name .. ".gguf",
          { device = kind[1], kv = kind[2], ctx = math.tointeger(info.context) }))
        for case, scales in pairs(info.cases) do
          local seq <close> = model:sequence()
          for adapter, scale in pairs(scales) do
            local opened <close> = assert(model:adapter(("%s%s.%s.gguf"):format(FOLDER, name, adapter)))
            assert.equal(seq, seq:adapt(opened, scale)) -- the sequence keeps it
          end
          local rows = {}
          for i, id in ipairs(info.prompt) do
            seq:push(math.tointeger(id))
            rows[i] = seq.logits:bytes()
          end
          local wanted = support.read(("%s%s.%s.logits.f32"):format(FOLDER, name, case))
          local max, relative = model_fixtures.difference(table.concat(rows), wanted)
          assert.is_true(max <= kind[3], ("%s: largest difference %g"):format(case, max))
          assert.is_true(relative <= kind[4], ("%s: relative difference %g"):format(case, relative))
        end
      end)
    end
  end

  -- ---- company ----

  local ROUNDS = tonumber(os.getenv "KIGO_ADAPTERS") or 6
  for _, device in ipairs(devices) do
    it("is its sequence's own, to the bit, whoever shares the passes: on " .. device.name, function()
      local plain <close> = tiny.model_on(device) -- where nobody ever had one
      for round = 1, ROUNDS do
        local dice = tiny.dice(round)
        local model <close> = tiny.model_on(device, { chunk = dice(40) + 2 })
        local alone <close> = tiny.model_on(device)
        local adapters, twins, all = {}, {}, {}
        for i = 1, dice(3) do
          adapters[i], twins[i] = random_adapter(model, 10 * round + i), random_adapter(alone, 10 * round + i)
        end
        for i = 1, dice(5) + 1 do
          local own, same = {}, {}
          for j = 1, dice(#adapters + 1) - 1 do
            local scale = (dice(9) - 5) / 4
            own[j], same[j] = { adapters[j], scale }, { twins[j], scale }
            if scale == 0 then own[j][2], same[j][2] = 0.125, 0.125 end
          end
          local ids = tiny.ids(dice(70), dice(1000))
          all[i] = { seq = fed(model, ids, own), twin = fed(#same == 0 and plain or alone, ids, same) }
        end
        for _ = 1, 3 do
          local waiting = {}
          for _, one in ipairs(all) do
            if dice(4) > 1 then waiting[#waiting + 1] = one.seq end
          end
          assert(model:step(waiting))
          for _, one in ipairs(all) do
            local id = dice(tiny.vocab) - 1
            if dice(3) == 1 then one.seq:expect { id, dice(tiny.vocab) - 1 } end
            assert.equal(one.twin.logits:bytes(), one.seq.logits:bytes())
            one.seq:push(id)
            one.twin:push(id)
          end
        end
        for _, one in ipairs(all) do one.seq:close() one.twin:close() end
        for _, list in ipairs { adapters, twins } do
          for _, adapter in ipairs(list) do adapter:close() end
        end
      end
    end)

    it("is there from the first token on, whenever it came: on " .. device.name, function()
      local ids = tiny.ids(90)
      local model <close> = tiny.model_on(device, { chunk = 17 })
      local a <close> = random_adapter(model, 1)
      local b <close> = random_adapter(model, 2)
      local plain <close> = fed(model, ids)
      local first <close> = fed(model, ids, { { a, 0.5 } })
      local both <close> = fed(model, ids, { { a, 0.5 }, { b, 2 } })
      local other <close> = fed(model, ids, { { b, 2 } })
      assert.not_equal(plain.logits:bytes(), first.logits:bytes())
      assert.not_equal(first.logits:bytes(), both.logits:bytes())
      local seq <close> = fed(model, ids)
      assert.equal(plain.logits:bytes(), seq.logits:bytes())
      local function set(adapter, scale, pending, like)
        assert(seq:adapt(adapter, scale))
        assert.equal(pending, seq:pending())
        assert.equal(like.logits:bytes(), seq.logits:bytes())
      end
      set(a, 0.5, #ids, first)
      set(a, 0.5, 0, first) -- as it is
      set(b, 0, 0, first)
      local fork <close> = seq:fork()
      set(b, 2, #ids, both)
      assert.same({ 0.5, 2.0 }, { seq:adapters()[1].scale, seq:adapters()[2].scale })
      set(a, 0, #ids, other)
      seq:rewind(40)
      seq:feed(table.move(ids, 41, #ids, 1, {}))
      assert.equal(other.logits:bytes(), seq.logits:bytes())
      set(b, 0, #ids, plain)
      assert.equal(0, #seq:adapters())
      assert.equal(first.logits:bytes(), fork.logits:bytes()) -- which has what its origin had
      fork:push(7)
      first:push(7)
      assert.equal(first.logits:bytes(), fork.logits:bytes())
    end)

    it("is in rows that the prefix cache gives to those with the same, and no others: on " .. device.name, function()
      local model <close> = tiny.model_on(device)
      local page = model:stats().page
      local ids = tiny.ids(3 * page + 5)
      local whole = (#ids - 1) // page * page
      local a <close> = random_adapter(model, 1)
      local b <close> = random_adapter(model, 2)
      local same <close> = random_adapter(model, 1)
      local function logits(adapters)
        local seq <close> = fed(model, ids, adapters)
        local bytes = seq.logits:bytes()
        return bytes, seq.stats.n_tokens_reused
      end
      local sets = { {}, { { a } }, { { a, 2 } }, { { a }, { b } }, { { b }, { a } }, { { a, 2 }, { b } } }
      local known = {}
      for i, set in ipairs(sets) do
        local bytes, n = logits(set)
        assert.equal(0, n)
        for _, other in ipairs(known) do assert.not_equal(other, bytes) end
        known[i] = bytes
      end
      for i, set in ipairs(sets) do assert.same({ known[i], whole }, { logits(set) }) end
      assert.same({ known[3], whole }, { logits { { same, 2 } } }) -- of the same contents
      local seq <close> = fed(model, ids, { { a } })
      seq:step()
      seq:adapt(a, 0)
      assert.equal(known[1], seq.logits:bytes())
      assert.equal(2 * whole, seq.stats.n_tokens_reused)
      seq:adapt(a, 2)
      local fork <close> = seq:fork()
      assert.equal(known[3], seq.logits:bytes())
      assert.equal(known[3], fork.logits:bytes())
      model:flip_weight("output_norm.weight", 0, 0) -- who knows what for: all that is cached is forgotten
      assert.same({ known[3], 0 }, { logits { { a, 2 } } })
      assert.same({ known[3], whole }, { logits { { a, 2 } } })
    end)

    it("is in the rows of a fork that goes on within its first page, and no others: on " .. device.name, function()
      local model <close> = tiny.model_on(device)
      local page = model:stats().page
      local ids = tiny.ids(2 * page + 5)
      local a <close> = random_adapter(model, 1)
      local plain <close> = fed(model, ids)
      assert.is_true(plain:step())
      local seq <close> = fed(model, ids, { { a } })
      local wanted = seq.logits:bytes()
      seq:rewind(3)
      local fork <close> = seq:fork()
      fork:feed(table.move(ids, 4, #ids, 1, {}))
      assert.is_true(wanted == fork.logits:bytes())
      assert.is_true(fork.stats.n_tokens_reused > 0)
    end)

    it("never meets the rows of another in the prefix cache, whatever is shared: on " .. device.name, function()
      local model <close> = tiny.model_on(device, { chunk = 40 })
      local alone <close> = tiny.model_on(device, { prefix_cache = false })
      local dice, open_now, known, reused = tiny.dice(7), {}, {}, 0
      local adapters, twins = {}, {}
      for i = 1, 3 do adapters[i], twins[i] = random_adapter(model, i), random_adapter(alone, i) end
      for _ = 1, 3 * ROUNDS do
        local n, set, twin, name = dice(150), {}, {}, ""
        for j = 1, dice(3) - 1 do
          local which, scale = dice(3), dice(2)
          set[j], twin[j] = { adapters[which], scale }, { twins[which], scale }
          name = ("%s %d*%d"):format(name, which, scale)
        end
        local ids = tiny.ids(n, dice(2))
        name = ("%s: %s"):format(name, table.concat(ids, " "))
        if not known[name] then
          local seq <close> = fed(alone, ids, twin)
          known[name] = seq.logits:bytes()
        end
        local seq = fed(model, ids, set)
        assert.equal(known[name], seq.logits:bytes())
        reused = reused + seq.stats.n_tokens_reused
        open_now[#open_now + 1] = seq
        if #open_now > 4 then table.remove(open_now, dice(#open_now)):close() end
      end
      assert.is_true(reused > 0 or ROUNDS < 6)
      for _, list in ipairs { open_now, adapters, twins } do
        for _, one in ipairs(list) do one:close() end
      end
    end)

    it("is seen by hooks, which may change what it made: on " .. device.name, function()
      local ids = tiny.ids(30)
      local model <close> = tiny.model_on(device, { chunk = 7 })
      local a <close> = random_adapter(model, 3)
      local wanted <close> = fed(model, ids, { { a } })
      local plain <close> = fed(model, ids)
      local expected, unchanged = wanted.logits:bytes(), plain.logits:bytes()
      local seen, lone = {}, {}
      local function look(rows)
        return function(x, _, pos, name)
          for i = 0, #x - 1 do rows[name .. pos + i] = x:row(i):bytes() end
        end
      end
      local seq <close> = fed(model, ids, { { a } })
      local without <close> = fed(model, ids)
      local hook <close> = seq:hook({ "blk.*.attn_q", "blk.*.out", "embd" }, look(seen))
      local other <close> = without:hook({ "blk.*.attn_q", "blk.*.out", "embd" }, look(lone))
      assert(model:step { seq, without })
      assert.equal(expected, seq.logits:bytes())
      assert.equal(unchanged, without.logits:bytes())
      assert.not_equal(seen["blk.1.out29"], lone["blk.1.out29"])
      local changed <close> = fed(model, ids, { { a } })
      local zero <close> = changed:hook("blk.1.attn_q", function(x) x:fill_(0) end)
      assert.not_equal(expected, changed.logits:bytes())
      local _, _, code = changed:adapt(a, 0) -- its rows are the hook's work
      assert.equal(err.UNSUPPORTED, code)
      assert.equal(1, #changed:adapters())
      assert.is_not_nil(hook, other, zero)
    end)
  end

  for _, device in ipairs(devices) do
    it("goes with tokens that are drawn ahead, on " .. device.name, function()
      local model <close> = tiny.model_on(device)
      local a <close> = random_adapter(model, 1)
      local b <close> = random_adapter(model, 2)
      local chain <close> = core.chain { { kind = "temp", value = 1 } }
      local wanted = {}
      local function start(i)
        local seq = assert(model:sequence { seed = i })
        if i ~= 3 then assert(seq:adapt(i % 2 == 0 and a or b, i / 2)) end
        seq:feed(tiny.ids(10 + i, i))
        return seq
      end
      for i = 1, 5 do
        local seq <close> = start(i)
        for _ = 1, 24 do
          local id = assert(seq:draw(chain))
          seq:push(id)
          assert.is_not_nil(seq.logits:bytes()) -- no draw is ahead of this
        end
        wanted[i] = { seq:tokens(), seq.logits:bytes() }
      end
      local seqs = {}
      for i = 1, 5 do seqs[i] = start(i) end
      for _ = 1, 24 do
        local ids = assert(model:draw(seqs, chain, 8))
        for i, seq in ipairs(seqs) do seq:push(ids[i]) end
      end
      for i, seq in ipairs(seqs) do
        assert.same(wanted[i], { seq:tokens(), seq.logits:bytes() })
        seq:close()
      end
    end)

    it("may be of any rank, for any number of rows, on " .. device.name, function()
      local model <close> = tiny.model_on(device)
      local dice, adapters = tiny.dice(3), {}
      for i, rank in ipairs { 1, 31, 32, 33, 70 } do
        adapters[i] = assert(open(model, metadata(2.0), {
          tensor(dice, "blk.0.ffn_gate.weight.lora_a", tiny.hidden, rank, 0.3),
          tensor(dice, "blk.0.ffn_gate.weight.lora_b", rank, tiny.ffn, 0.5),
          tensor(dice, "blk.1.attn_v.weight.lora_a", tiny.hidden, rank, 0.3),
          tensor(dice, "blk.1.attn_v.weight.lora_b", rank, tiny.kv_heads * tiny.head_dim, 0.5) }))
      end
      local ids, wanted = tiny.ids(200), {}
      local function all()
        local rows = assert(fed(model, ids, { { adapters[5], 0.5 }, { adapters[2], -1 } }))
        local bytes = rows.logits:bytes()
        rows:close()
        return bytes
      end
      local alone = all()
      local seqs = {}
      for i = 1, 12 do
        local own = { { adapters[i % 5 + 1], i / 8 }, i % 3 == 0 and { adapters[(i + 1) % 5 + 1], 1 } or nil }
        seqs[i] = fed(model, table.move(ids, 1, 16 * i - 9, 1, {}), i ~= 6 and own or {})
        wanted[i] = seqs[i].logits:bytes()
        seqs[i]:rewind(0)
        seqs[i]:feed(table.move(ids, 1, 16 * i - 9, 1, {}))
      end
      assert(model:step(seqs))
      for i, seq in ipairs(seqs) do
        assert.equal(wanted[i], seq.logits:bytes())
        seq:close()
      end
      assert.equal(alone, all())
      for _, a in ipairs(adapters) do a:close() end
    end)
  end

  it("comes with a sequence, by its options", function()
    local model <close> = tiny.model {}
    local a <close> = random_adapter(model, 1)
    local b <close> = random_adapter(model, 2)
    local seq <close> = assert(model:sequence { adapters = { a, { adapter = b, scale = 0.5 } } })
    local found = seq:adapters()
    assert.same({ "adapter1", 1.0, "adapter2", 0.5 },
      { found[1].adapter.path, found[1].scale, found[2].adapter.path, found[2].scale })
    local same <close> = model:sequence { adapters = found }
    assert.equal(2, #same:adapters())
    for _, bad in ipairs { 3, { 3 }, { {} }, { { adapter = a, scale = "x" } } } do
      assert.has_error(function() model:sequence { adapters = bad } end)
    end
  end)

  it("goes with bodies of a scheduler", function()
    local model <close> = tiny.model { device = "cpu", threads = 1 }
    local a <close> = random_adapter(model, 1)
    local b <close> = random_adapter(model, 2)
    local chain <close> = core.chain { { kind = "temp", value = 1 } }
    local function draw(seq, adapter, seed)
      if adapter then assert(seq:adapt(adapter)) end
      seq:feed(tiny.ids(20 + seed, seed))
      for _ = 1, 20 do seq:push(assert(seq:draw(chain))) end
      return { seq:seed(), table.concat(seq:tokens(), " ") }
    end
    local inputs = { { a, 1 }, { false, 2 }, { b, 3 }, { a, 4 }, { false, 5 } }
    local together = assert(model:batch(nil, inputs, function(seq, input) return draw(seq, input[1], input[2]) end))
    for i, input in ipairs(inputs) do
      local seq <close> = model:sequence { seed = together[i][1] }
      assert.same(draw(seq, input[1], input[2]), together[i])
    end
  end)

  -- ---- files ----

  for _, device in ipairs(devices) do
    it("is named by files of sequences, by its contents: on " .. device.name, function()
      local path = os.tmpname()
      local model <close> = tiny.model_on(device)
      local a, b = random_adapter(model, 1), random_adapter(model, 2)
      local same <close> = random_adapter(model, 1)
      local c <close> = random_adapter(model, 3)
      assert.equal(a.sha256, same.sha256)
      assert.not_equal(a.sha256, b.sha256)
      local seq <close> = fed(model, tiny.ids(70), { { b, -0.5 }, { a, 2 }, { same, 0.25 } })
      assert(seq:step())
      assert.is_true(seq:save(path))
      local function found(again)
        local list = {}
        for i, each in ipairs(again:adapters()) do list[i] = { each.adapter.sha256, each.scale } end
        return list
      end
      local again <close> = assert(model:restore(path, { adapters = { same, c, { adapter = b, scale = 9 }, a } }))
      assert.same({ { b.sha256, -0.5 }, { a.sha256, 2.0 }, { a.sha256, 0.25 } }, found(again))
      assert.equal(1, again:pending())
      local digest, name = a.sha256, a.name
      a:close()
      for i = 1, 3 do
        assert.equal(seq.logits:bytes(), again.logits:bytes())
        seq:push(i)
        again:push(i)
      end
      for _, given in ipairs { {}, { b }, { c, same, b }, { same, same, b } } do -- it takes two of its contents
        local before = model:stats()
        local none, message, code = model:restore(path, { adapters = given })
        assert.is_nil(none)
        assert.equal(err.UNSUPPORTED, code)
        assert.truthy(message:find(given[1] and digest or b.sha256, 1, true), message)
        assert.truthy(message:find(given[1] and name or b.name, 1, true), message)
        assert.equal(before.n_pages_used, model:stats().n_pages_used)
        assert.equal(before.n_sequences, model:stats().n_sequences)
      end
      local other <close> = tiny.model_on(device)
      local far <close> = random_adapter(other, 1)
      for _, bad in ipairs { { far }, { 1 }, { {} }, { "x" }, 3 } do
        assert.has_error(function() model:restore(path, { adapters = bad }) end)
      end
      assert.has_error(function() model:restore(path, { adapter = b }) end)
      b:close()
      os.remove(path)
    end)
  end

  -- ---- handles ----

  it("is a handle, and belongs to its model", function()
    local model <close> = tiny.model {}
    local other <close> = tiny.model {}
    local a = random_adapter(model, 1)
    assert.equal("adapter1", a.path)
    assert.is_true(a.rank >= 1 and a.n_matrices >= 1 and a.n_bytes > 0 and a.alpha == 2)
    local seq <close> = fed(model, { 1, 2, 3 }, { { a } })
    local far <close> = other:sequence {}
    assert.has_error(function() far:adapt(a) end)
    for _, bad in ipairs { 0 / 0, 1 / 0, 1e300, "x", {} } do
      assert.has_error(function() seq:adapt(a, bad) end)
    end
    for _, bad in ipairs { 1, "adapter", {}, seq } do
      assert.has_error(function() seq:adapt(bad) end)
      assert.has_error(function() model:adapter(bad == "adapter" and {} or bad == 1 and {} or bad) end)
    end
    local bytes = seq.logits:bytes()
    a:close()
    a:close()
    assert.matches("closed", tostring(a))
    assert.has_error(function() seq:adapt(a) end)
    assert.has_error(function() return a.rank end)
    seq:rewind(0)
    seq:feed { 1, 2, 3 }
    assert.equal(bytes, seq.logits:bytes())
    local kept = seq:adapters()[1].adapter
    assert.equal("adapter1", kept.path)
    local more = {}
    for i = 2, 9 do more[i] = random_adapter(model, i) end
    for i = 2, 8 do assert(seq:adapt(more[i])) end
    assert.has_error(function() seq:adapt(more[9]) end)
    assert.equal(8, #seq:adapters())
    seq:close()
    model:close()
    assert.equal("adapter1", kept.path) -- of a model that is gone
    kept:close()
    for i = 2, 9 do more[i]:close() end
  end)

  it("is refused in the middle of a step", function()
    local model <close> = tiny.model {}
    local a <close> = random_adapter(model, 1)
    local seq <close> = fed(model, { 1, 2, 3 })
    local _ <close> = seq:hook("embd", function() seq:adapt(a) end)
    assert.has_error(function() seq:step() end)
    assert.equal(0, #seq:adapters())
  end)

  it("survives the failure of every allocation", function()
    local ids = tiny.ids(20)
    for _, device in ipairs { "reference", "cpu", tiny.has_gpu and "cuda" or nil } do
      local model <close> = tiny.model { device = device, threads = 1 }
      local expected
      do
        local a <close> = random_adapter(model, 5)
        local seq <close> = fed(model, ids, { { a } })
        expected = seq.logits:bytes()
      end
      local bytes = build.random(metadata(3.0), tensors(5))
      local gguf <close> = assert(core.parse_gguf(bytes, "adapter"))
      local n = tiny.fail_each_allocation(function() return gguf end, function(g)
        local a, message, code = model:adapter(g)
        if not a then return nil, message, code end
        a:close()
        return true
      end, function(g) assert(model:adapter(g)):close() end)
      assert.is_true(n > 10)
      tiny.fail_each_allocation(function()
        local fresh = tiny.model { device = device, threads = 1 }
        local seq, a = fresh:sequence {}, random_adapter(fresh, 5)
        seq:feed(ids)
        return { model = fresh, seq = seq, a = a }
      end, function(o)
        local done, message, code = o.seq:adapt(o.a)
        if done then done, message, code = o.seq:step() end
        return done, message, code
      end, function(o)
        assert(o.seq:adapt(o.a))
        assert.equal(expected, o.seq.logits:bytes())
        o.seq:close()
        o.a:close()
        o.model:close()
      end)
    end
  end)

  -- ---- files that lie ----

  describe("is refused", function()
    local model
    setup(function() model = tiny.model {} end)
    teardown(function() model:close() end)

    local function refused(entries, list, code, words)
      local a, message, got = open(model, entries, list)
      assert.is_nil(a, message)
      assert.equal(code, got, message)
      assert.matches("^adapter.gguf: ", message)
      assert.truthy(message:find(words, 1, true), message)
    end

    local function pair(name, a, b, edit)
      local dice = tiny.dice(1)
      local list = { tensor(dice, name .. ".lora_a", a[1], a[2], 1), tensor(dice, name .. ".lora_b", b[1], b[2], 1) }
      if edit then edit(list) end
      return list
    end

    local function but(changes)
      local entries = metadata()
      for key, value in pairs(changes) do entries[key] = value ~= "none" and value or nil end
      return entries
    end

    local Q = "blk.0.attn_q.weight"
    local good = pair(Q, { 32, 4 }, { 4, 32 })

    it("where its metadata says something else", function()
      assert(open(model, metadata(), good)):close()
      assert(open(model, metadata(0.0), good)):close()
      for key, cases in pairs {
        ["general.type"] = { { "model", err.FORMAT }, { "none", err.FORMAT }, { 3, err.FORMAT } },
        ["adapter.type"] = { { "control_vector", err.UNSUPPORTED }, { "none", err.FORMAT } },
        ["general.architecture"] = { { "llama", err.UNSUPPORTED }, { "tinyx", err.UNSUPPORTED },
          { "none", err.FORMAT } },
        ["adapter.lora.alpha"] = { { "none", err.FORMAT }, { 4, err.FORMAT }, { 0 / 0, err.FORMAT },
          { 1 / 0, err.FORMAT }, { "4", err.FORMAT } },
        ["adapter.alora.invocation_tokens"] = { { 3, err.UNSUPPORTED } },
      } do
        for _, case in ipairs(cases) do refused(but { [key] = case[1] }, good, case[2], key) end
      end
    end)

    it("where its tensors fit nothing", function()
      refused(metadata(), {}, err.FORMAT, "no tensors")
      for _, case in ipairs {
        { pair("blk.9.attn_q.weight", { 32, 4 }, { 4, 32 }), "blk.9.attn_q" },
        { pair("blk.0.attn_q", { 32, 4 }, { 4, 32 }), "blk.0.attn_q.lora_a" },
        { pair("", { 32, 4 }, { 4, 32 }), ".lora_a" },
        { pair(Q, { 31, 4 }, { 4, 32 }), "attn_q.weight.lora_a" },
        { pair(Q, { 32, 4 }, { 4, 31 }), "attn_q.weight.lora_b" },
        { pair(Q, { 32, 3 }, { 4, 32 }), "attn_q.weight.lora_a" },
        { pair(Q, { 4, 32 }, { 32, 4 }), "attn_q.weight.lora" },
        { pair(Q, { 32, 4097 }, { 4097, 32 }), "rank 4097" },
        { pair("token_embd.weight", { 32, 4 }, { 4, 48 }), "token_embd" },
        { pair(Q, { 32, 4 }, { 4, 32 }, function(list) list[2].shape = { 4, 8, 4 } end), "lora_b" },
        { { good[1] }, "other half" }, { { good[2] }, "other half" },
        { { good[1], good[2], { name = "blk.0.attn_q.bias", shape = { 4 } } }, "attn_q.bias" },
      } do
        refused(metadata(), case[1], err.FORMAT, case[2])
      end
      refused(metadata(), pair("output_norm.weight", { 32, 4 }, { 4, 32 }), err.UNSUPPORTED, "output_norm")
    end)

    it("where a number of it is none, of any type that holds such", function()
      for i = 1, 2 do
        for _, bad in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
          local list = pair(Q, { 32, 4 }, { 4, 32 })
          list[i].bytes = list[i].bytes:sub(1, 4 * 77) .. string.pack("<f", bad) .. list[i].bytes:sub(4 * 78 + 1)
          refused(metadata(), list, err.FORMAT, "number 77")
        end
      end
      local list = pair(Q, { 32, 4 }, { 4, 32 })
      list[1].type, list[1].bytes = 24, ("\0"):rep(128) -- I8
      refused(metadata(), list, err.UNSUPPORTED, "lora_a")
    end)

    it("where it adapts experts", function()
      local moe <close> = assert(kigo.load("spec/fixtures/families/qwen3moe.gguf", { device = "cpu", ctx = 32 }))
      local entries = but { ["general.architecture"] = "qwen3moe" }
      local list = pair("blk.0.ffn_up_exps.weight", { 32, 4 }, { 4, 32 })
      local gguf <close> = assert(core.parse_gguf(build.random(entries, list), "adapter.gguf"))
      local a, message, code = moe:adapter(gguf)
      assert.is_nil(a)
      assert.equal(err.UNSUPPORTED, code)
      assert.truthy(message:find("blk.0.ffn_up_exps.weight.lora_a", 1, true))
    end)

    it("wherever the file is cut, and where there is none", function()
      local _, message, code = model:adapter "/nowhere/adapter.gguf"
      assert.equal(err.IO, code)
      assert.truthy(message:find("/nowhere/adapter.gguf", 1, true))
      local path, bytes = os.tmpname(), build.random(metadata(), good)
      for n = 0, #bytes - 1, 13 do
        local file = assert(io.open(path, "wb"))
        file:write(bytes:sub(1, n))
        file:close()
        local a
        a, message, code = model:adapter(path)
        assert.is_nil(a)
        assert.equal(err.FORMAT, code)
        assert.truthy(message:find(path, 1, true))
      end
      os.remove(path)
    end)
  end)
end)
