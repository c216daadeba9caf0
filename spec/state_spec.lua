-- States of recurrent operations: that they are the same bits whatever way they came to be, how little is computed
-- again where they are gone, and that none is left behind.
describe("states", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local core = kigo.core

  local ids = tiny.ids(200, 5)

  local function model_with(device, options)
    local all = { kind = "hybrid", prefix_cache = false } -- so that what is computed is counted
    for k, v in pairs(device.options) do all[k] = v end
    for k, v in pairs(options or {}) do all[k] = v end
    return tiny.model(all)
  end

  ---So much was computed, or less where pages are short and more of them end where there is a state.
  local function computed(expected, n, model)
    local stats = model:stats()
    if stats.state_every == stats.page then assert.equal(expected, n) end
    assert.is_true(n <= expected)
  end

  ---What computing something costs.
  local function costs(model, action)
    local before = model:stats().n_tokens_evaluated
    action()
    return model:stats().n_tokens_evaluated - before
  end

  it("are what a convolution over all rows reads", function()
    local gguf <close> = tiny.gguf "hybrid"
    local plan <close> = tiny.plan(nil, "hybrid")
    local model <close> = assert(core.model(plan, { device = "reference", chunk = 5 }))
    local traces = assert(model:trace(tiny.ids(20), { "blk.0.in", "blk.0.conv", "blk.2.in", "blk.2.conv" }))
    for layer, gated in pairs { [0] = true, [2] = false } do
      local weights, taps, n = gguf:values(("blk.%d.conv.weight"):format(layer)), tiny.taps, tiny.hidden
      local input, result = traces[("blk.%d.in"):format(layer)], traces[("blk.%d.conv"):format(layer)]
      local function value(row, c) return input:row(row)[c] end
      for row = 0, 19 do
        for c = 0, n - 1 do
          local sum = 0
          for t = math.max(0, taps - 1 - row), taps - 1 do
            local at = row + t - (taps - 1)
            sum = sum + weights[c * taps + t + 1] * (gated and value(at, c) * value(at, 2 * n + c) or value(at, c))
          end
          if gated then sum = sum * value(row, n + c) end
          assert.near(sum, result:row(row)[c], 1e-5)
        end
      end
    end
  end)

  for _, device in ipairs(tiny.devices) do
    describe("on " .. device.name, function()
      local straight
      setup(function()
        local model <close> = model_with(device, { chunk = 512 })
        straight = tiny.oracle(model, ids)
      end)

      it("are the same bits however a prompt is cut and whoever shares the pass", function()
        for _, chunk in ipairs { 1, 2, 3, 5, 64, 100 } do
          local model <close> = model_with(device, { chunk = chunk })
          assert.same(straight, tiny.oracle(model, ids))
        end
        local model <close> = model_with(device, { chunk = 40 })
        local dice, seqs = tiny.dice(7), {}
        for i = 1, 9 do seqs[i] = model:sequence {} end
        for _ = 1, 30 do
          for _, seq in ipairs(seqs) do
            local n = math.min(dice(12) - 1, #ids - seq:pos())
            seq:feed(table.move(ids, seq:pos() + 1, seq:pos() + n, 1, {}))
          end
          assert.is_true(model:step(seqs))
          for _, seq in ipairs(seqs) do
            if seq:pos() > 0 then assert.is_true(straight[seq:pos()] == seq.logits:bytes()) end
          end
        end
        for _, seq in ipairs(seqs) do seq:close() end
        assert.equal(0, model:stats().n_states_used)
      end)

      it("let a sequence go back for no more than it went back", function()
        local model <close> = model_with(device)
        local seq <close> = model:sequence {}
        seq:feed(table.move(ids, 1, 120, 1, {}))
        assert.is_true(seq:step())
        for pos = 121, 200 do
          seq:push(ids[pos])
          assert.is_true(seq:step())
        end
        assert.is_true(model:stats().n_states_used <= 14)
        for _, pos in ipairs { 200, 199, 195, 184, 150, 121, 120, 100, 60, 10, 1 } do
          local fork <close> = assert(seq:fork())
          fork:rewind(pos)
          local n = costs(model, function() assert.is_true(straight[pos] == fork.logits:bytes()) end)
          assert.is_true(n <= math.max(200 - pos, 16) + 1, ("%d tokens at %d"):format(n, pos))
        end
      end)

      it("are as few, and reach as far back, where tokens were drawn ahead", function()
        local model <close> = model_with(device)
        local chain <close> = kigo.chain { kigo.temp(3), kigo.dist() }
        local seq <close> = model:sequence {}
        seq:feed(table.move(ids, 1, 30, 1, {}))
        for _ = 1, 800 do seq:push(assert(seq:draw(chain, 2))) end -- 400 round trips, each of which leaves one
        assert.is_true(model:stats().n_states_used <= 16)
        for _, pos in ipairs { 820, 700, 550, 420, 100 } do
          seq:rewind(pos)
          local n = seq:pending()
          assert.is_true(n <= math.max(830 - pos, 16) + 1, ("%d tokens at %d"):format(n, pos))
        end
      end)

      it("go back to a mark and compute nothing again, however long ago it was", function()
        local model <close> = model_with(device)
        local seq <close> = model:sequence {}
        seq:feed(table.move(ids, 1, 77, 1, {}))
        assert.is_true(seq:step())
        local mark = seq:mark()
        for _ = 1, 2 do
          for pos = 78, 200 do
            seq:push(ids[pos])
            assert.is_true(seq:step())
          end
          seq:rewind(mark)
          assert.equal(1, costs(model, function() assert.is_true(straight[77] == seq.logits:bytes()) end))
          seq:rewind(mark)
          seq:push(ids[78])
          assert.equal(1, costs(model, function() assert.is_true(straight[78] == seq.logits:bytes()) end))
        end
      end)

      it("are shared by forks, each of which goes its own way", function()
        local model <close> = model_with(device)
        local seq <close> = model:sequence {}
        seq:feed(table.move(ids, 1, 77, 1, {}))
        assert.is_true(seq:step())
        local used, forks = model:stats().n_states_used, {}
        for i = 1, 5 do forks[i] = assert(seq:fork()) end
        assert.equal(used, model:stats().n_states_used)
        for i, fork in ipairs(forks) do
          fork:push(i)
          assert.equal(1, costs(model, function() assert.is_true(fork:step()) end))
        end
        seq:push(ids[78])
        assert.is_true(straight[78] == seq.logits:bytes())
        for i, fork in ipairs(forks) do
          local fresh <close> = model:sequence {}
          fresh:feed(table.move(ids, 1, 77, 1, {}))
          fresh:push(i)
          assert.is_true(fresh.logits:bytes() == fork.logits:bytes())
          fork:close()
        end
      end)

      it("stand behind every id of a draft, and are dropped with it", function()
        local model <close> = model_with(device)
        local seq <close> = model:sequence {}
        seq:feed(table.move(ids, 1, 50, 1, {}))
        for good = 0, 5 do
          seq:rewind(50)
          local draft = table.move(ids, 51, 50 + good, 1, {})
          for i = good + 1, 6 do draft[i] = (ids[50 + i] + 1) % tiny.vocab end
          seq:expect(draft)
          assert.is_true(seq:step())
          local n = costs(model, function()
            for i = 1, good + 1 do
              seq:push(ids[50 + i])
              assert.is_true(straight[50 + i] == seq.logits:bytes())
            end
          end)
          assert.equal(good + 1, n) -- what was accepted counts when it is fed
        end
      end)

      it("follow what is drawn ahead, wherever it is left", function()
        local model <close> = model_with(device)
        local chain <close> = kigo.chain { kigo.temp(3), kigo.dist() }
        local function play(ahead, stop)
          local seq <close> = model:sequence { seed = 3 }
          seq:feed(table.move(ids, 1, 40, 1, {}))
          local said = {}
          for i = 1, 40 do
            said[i] = assert(seq:draw(chain, ahead))
            seq:push(said[i])
            if i % stop == 0 then
              said[i] = said[i] .. seq.logits:bytes()
              local fork <close> = assert(seq:fork())
              fork:feed { 1, 2, 3 }
              said[i] = said[i] .. fork.logits:bytes()
            end
          end
          seq:rewind(55)
          return table.concat(said, " ") .. seq.logits:bytes()
        end
        for _, stop in ipairs { 40, 7, 3 } do
          local expected = play(1, stop)
          for _, ahead in ipairs { 2, 5, 16 } do assert.is_true(expected == play(ahead, stop)) end
        end
        assert.equal(0, model:stats().n_states_used)
      end)

      it("are seen by hooks and traces as values are", function()
        local model <close> = model_with(device, { chunk = 130 }) -- more than one pass takes while somebody looks
        local seen = {}
        local seq <close> = model:sequence {}
        local hook <close> = assert(seq:hook("blk.2.conv", function(x, _, pos)
          for i = 0, x:shape() - 1 do seen[pos + i] = x:row(i):bytes() end
        end))
        seq:feed(table.move(ids, 1, 150, 1, {}))
        assert.is_true(straight[150] == seq.logits:bytes())
        local trace <close> = assert(model:trace(table.move(ids, 1, 150, 1, {}), { "blk.2.conv" }))["blk.2.conv"]
        for row = 0, 149 do assert.is_true(seen[row] == trace:row(row):bytes()) end
        hook:close()
      end)
    end)
  end

  it("are found by ids, at the ends of pages", function()
    local model <close> = model_with(tiny.devices[2], { prefix_cache = 1024 })
    local every = model:stats().state_every
    local straight = tiny.reference(ids, { kind = "hybrid", device = "cpu", threads = 1 })
    local function run(n, more)
      local seq <close> = model:sequence {}
      seq:feed(table.move(ids, 1, n, 1, {}))
      for i = 1, more or 0 do
        assert.is_true(seq:step())
        seq:push(ids[n + i])
      end
      local last = costs(model, function() assert.is_true(straight[n + (more or 0)] == seq.logits:bytes()) end)
      return last + (more or 0)
    end
    local function whole(n) return n - n % every end
    computed(100, run(100), model)
    computed(150 - whole(100), run(150), model) -- pages of the first one
    computed(140 - whole(139), run(140), model) -- of which that is a part
    run(150, 50) -- token by token
    computed(200 - whole(199), run(200), model)
    local other = table.move(ids, 1, 130, 1, {})
    other[#other + 1] = (ids[131] + 1) % tiny.vocab
    local seq <close> = model:sequence {}
    seq:feed(other)
    local fresh <close> = model_with(tiny.devices[2])
    local alone <close> = fresh:sequence {}
    alone:feed(other)
    local function same() assert.is_true(alone.logits:bytes() == seq.logits:bytes()) end
    computed(131 - whole(130), costs(model, same), model)
    seq:release()
    seq:rewind(131)
    computed(131 - whole(130), costs(model, same), model)
    seq:close()
    assert.is_true(model:stats().n_states_kept >= 200 // every)
    assert.equal(model:stats().n_states_kept, model:stats().n_states_used)
    assert.is_true(model:scramble("blk.0.in", 1) > 0) -- other weights, other states
    assert.equal(0, model:stats().n_states_used)
  end)

  it("are left at the ends of pages by what is drawn ahead", function()
    local model <close> = model_with(tiny.devices[2], { prefix_cache = 1024 })
    local chain <close> = kigo.chain { kigo.temp(3), kigo.dist() }
    local every, said = model:stats().state_every, table.move(ids, 1, 20, 1, {})
    do
      local seq <close> = model:sequence { seed = 5 }
      seq:feed(said)
      for _ = 1, 100 do seq:push(assert(seq:draw(chain, 16))) end
      assert.is_true(seq:step())
      said = seq:tokens()
    end
    local again <close> = model:sequence {}
    again:feed(said)
    computed(120 - 119 // every * every, costs(model, function() assert.is_true(again:step()) end), model)
  end)

  it("are not left where the pages are gone, when memory was short", function()
    local n = 0
    for nth = 1, 60 do
      local model <close> = tiny.model { kind = "wide", device = "cpu", threads = 1, chunk = 1000 }
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(10 * model:stats().page))
      core.alloc_inject(nth)
      if seq:step() then n = n + 1 end
      core.alloc_inject(0)
      seq:push(3) -- leaves in the prefix cache what there was no room for
      assert.is_true(seq:step())
      seq:close()
      assert.is_true(model:stats().n_states_kept <= model:stats().n_pages_kept)
    end
    assert.is_true(n > 10, n .. " steps that did without")
  end)

  it("do not tell hooks how rows were cut, nor show them rows that were made before", function()
    local function play(chunk, straight)
      local model <close> = model_with(tiny.devices[2], { chunk = chunk })
      local seq <close> = model:sequence {}
      seq:feed(table.move(ids, 1, straight and 67 or 74, 1, {}))
      assert.is_true(seq:step())
      seq:rewind(67)
      local first
      local hook <close> = assert(seq:hook("blk.0.out", function(x, _, pos)
        first = first or pos
        x:mul_(0.9)
      end))
      seq:feed(table.move(ids, 68, 69, 1, {}))
      local said = { seq.logits:bytes() }
      assert.equal(67, first)
      seq:feed(table.move(ids, 70, 90, 1, {}))
      assert.is_true(seq:step())
      hook:close()
      for pos = 91, 120 do
        seq:push(ids[pos])
        assert.is_true(seq:step())
      end
      seq:rewind(93) -- rows are made again from a place that all have
      said[2] = seq.logits:bytes()
      seq:rewind(85)
      said[3] = seq.logits:bytes()
      return said
    end
    local expected = play(512, true)
    for _, chunk in ipairs { 1, 2, 7, 64, 512 } do assert.same(expected, play(chunk)) end
  end)

  it("do not tell, where rows were made under a hook, whether there was a draft", function()
    local long = tiny.ids(1700, 8)
    local function play(draft)
      local model <close> = model_with(tiny.devices[2], { ctx = 2048 })
      local seq <close> = model:sequence {}
      local hook = assert(seq:hook("blk.0.out", function(x) x:mul_(1.5) end))
      seq:feed(long)
      assert.is_true(seq:step())
      hook:close()
      seq:push(1)
      seq:expect(draft)
      assert.is_true(seq:step())
      seq:rewind(#long - 1300) -- rows there are computed again without the hook, from a place that shall be the same
      return seq.logits:bytes()
    end
    assert.is_true(play {} == play(tiny.ids(64, 9)))
  end)

  it("come back after a release, as rows do", function()
    local model <close> = model_with(tiny.devices[2])
    local seq <close> = model:sequence {}
    seq:feed(table.move(ids, 1, 90, 1, {}))
    local expected = seq.logits:bytes()
    seq:release()
    assert.equal(0, model:stats().n_states_used)
    assert.is_true(expected == seq.logits:bytes())
    seq:rewind(90)
    assert.equal(90, costs(model, function() assert.is_true(expected == seq.logits:bytes()) end))
  end)

  it("of marks are of no use where the rows are others now", function()
    local model <close> = model_with(tiny.devices[2])
    local file <close> = assert(core.parse_gguf(require "spec.gguf_build".random({ ["general.type"] = "adapter",
      ["adapter.type"] = "lora", ["general.architecture"] = "tiny", ["adapter.lora.alpha"] = 4.0 }, {
      { name = "blk.1.attn_q.weight.lora_a", shape = { 32, 2 } },
      { name = "blk.1.attn_q.weight.lora_b", shape = { 2, 32 } } }), "adapter"))
    local adapter <close> = assert(model:adapter(file))
    local changes = {
      function(seq) seq:adapt(adapter, 30) end,
      function(seq)
        assert(model:scramble("blk.0.in", 1) > 0)
        seq:rewind(0)
        seq:feed(table.move(ids, 1, 60, 1, {}))
      end,
    }
    for i, change in ipairs(changes) do
      local seq <close> = model:sequence {}
      seq:feed(table.move(ids, 1, 50, 1, {}))
      local before = seq.logits:bytes()
      local mark = seq:mark()
      seq:feed(table.move(ids, 51, 60, 1, {}))
      assert.is_true(seq:step())
      change(seq)
      assert.is_true(seq:step())
      seq:rewind(mark)
      local fresh <close> = model:sequence {}
      if i == 1 then fresh:adapt(adapter, 30) end
      fresh:feed(table.move(ids, 1, 50, 1, {}))
      assert.is_true(seq.logits:bytes() == fresh.logits:bytes())
      assert.is_false(before == fresh.logits:bytes())
      seq:push(ids[51])
      fresh:push(ids[51])
      assert.is_true(seq.logits:bytes() == fresh.logits:bytes())
    end
  end)

  it("may be held by marks that outlive their model", function()
    local mark
    do
      local model <close> = tiny.model { kind = "hybrid" }
      local seq <close> = model:sequence {}
      seq:feed { 1, 2, 3 }
      assert.is_true(seq:step())
      mark = seq:mark()
    end
    assert.is_userdata(mark)
    mark = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
  end)

  it("survive the failure of every allocation", function()
    local chain <close> = kigo.chain { kigo.top_k(1), kigo.dist() }
    local expected = tiny.reference(ids, { kind = "hybrid", device = "cpu", threads = 1 })
    local n = tiny.fail_each_allocation(function()
      return tiny.model { kind = "hybrid", device = "cpu", threads = 1, chunk = 16, prefix_cache = 128 }
    end, function(model)
      local seq <close> = assert(model:sequence {})
      local function try(action)
        local ok, message, code = action()
        if not ok then error { message, code } end
        return ok
      end
      local ok, failure = pcall(function()
        try(function() return seq:feed(table.move(ids, 1, 60, 1, {})) end)
        try(function() return seq:step() end)
        local mark = try(function() return seq:mark() end)
        local fork <close> = try(function() return seq:fork() end)
        for _ = 1, 6 do fork:push(try(function() return fork:draw(chain, 4) end)) end
        seq:rewind(mark)
        try(function() return fork:step() end)
        return true
      end)
      if ok then return true end
      if type(failure) == "table" then return nil, table.unpack(failure) end
      error(failure, 0)
    end, function(model)
      collectgarbage()
      local seq <close> = assert(model:sequence {})
      seq:feed(table.move(ids, 1, 70, 1, {}))
      assert.is_true(expected[70] == seq.logits:bytes())
      seq:close()
      assert.equal(model:stats().n_states_kept, model:stats().n_states_used)
      model:close()
    end)
    assert.is_true(n > 20)
  end)
end)
