-- Draws that are still being made when they are asked for, and devices that fail at it: nothing but the clock may tell.
-- All runs in kigo-late (late.c), whose device "cuda" is late, and fails when it is told to.
describe("a device that is late", function()
  local core = require "kigo.core"
  local support = require "spec.support"
  local tiny = require "spec.tiny"
  local err = core.err

  if not core.lose_draws then
    local function try(options)
      local program = support.program:gsub("kigo$", "kigo-late")
      local file = io.open(program, "rb")
      if not file then return pending(program .. " is not here") end
      file:close()
      local pipe = assert(io.popen(("%s %s %s 2>&1"):format(program, arg[0], options)))
      local said = pipe:read "a"
      assert(pipe:close(), said)
      assert.is_true(tonumber(said:match "(%d+) successes / 0 failures / 0 errors / 0 pending") >= 12, said)
    end

    it("is tried in a program of its own", function() try "spec/late_spec.lua" end)
    it("draws ahead as others do #unsanitized", function() try "--filter=cuda spec/ahead_spec.lua" end)
    return
  end

  local STAGES = { { kind = "penalties", last = 5, presence = 0.4 },
    { kind = "xtc", probability = 0.5, threshold = 0.02 }, { kind = "temp", value = 3 } }

  ---A model on the late device, or the same without looking ahead.
  local function model_of(kind, is_late, kv)
    return tiny.model { device = is_late and "cuda" or "cpu", threads = 1, kind = kind, kv = kv, prefix_cache = false }
  end

  ---Ids that sequences draw together, and what is left behind. `lose` is called before each draw.
  local function say(model, n_seqs, ahead, lose)
    local chain <close> = core.chain(STAGES)
    local seqs, said = {}, {}
    for i = 1, n_seqs do
      seqs[i] = model:sequence { seed = i }
      seqs[i]:feed(tiny.ids(17 * i + 50, i))
    end
    for _ = 1, 12 do
      lose()
      for i, id in ipairs(assert(model:draw(seqs, chain, ahead))) do
        said[#said + 1] = id
        seqs[i]:push(id)
      end
    end
    for _, seq in ipairs(seqs) do
      table.move({ seq.logits:bytes(), seq.rng:uniform(), seq:pos() }, 1, 3, #said + 1, said)
      seq:close()
    end
    assert.equal(0, model:stats().n_pages_used)
    return said
  end

  for _, kind in ipairs { "plain", "hybrid" } do
    describe("with a model that is " .. kind, function()
      for n_seqs = 1, 3 do
        it("may lose any draws of " .. n_seqs .. " sequences", function()
          local model <close> = model_of(kind, true)
          local plain <close> = model_of(kind, false)
          local expected = say(plain, n_seqs, 1, function() end)
          for _, ahead in ipairs { 1, 2, 5, 12 } do
            for step = 0, ahead do
              local is_first, dropped = true, model:stats().n_tokens_dropped
              assert.same(expected, say(model, n_seqs, ahead, function()
                if is_first then core.lose_draws(step) end
                is_first = false
              end))
              if step < ahead and ahead > 1 then assert.is_true(model:stats().n_tokens_dropped > dropped) end
            end
          end
        end)
      end

      it("draws nothing where it fails at once, and goes on afterwards", function()
        local model <close> = model_of(kind, true)
        local plain <close> = model_of(kind, false)
        local chain <close> = core.chain(STAGES)
        local seq <close> = model:sequence { seed = 3 }
        local twin <close> = plain:sequence { seed = 3 }
        for _, one in ipairs { seq, twin } do one:feed(tiny.ids(40)) end
        for round = 1, 20 do
          core.lose_draws(-1)
          local ahead = round % 4 + 1
          if not seq:drawn(chain) then
            local id, _, code = seq:draw(chain, ahead)
            assert.is_nil(id)
            assert.equal(err.DEVICE, code)
            assert.equal(twin:pos(), seq:pos())
          end
          core.lose_draws(ahead)
          local id = assert(seq:draw(chain, ahead))
          assert.equal((twin:draw(chain)), id)
          seq:push(id)
          twin:push(id)
        end
        assert.equal(twin.rng:uniform(), seq.rng:uniform())
        assert.equal(twin.logits:bytes(), seq.logits:bytes())
      end)

      ---A life of sequences who draw together and apart and go elsewhere; how often the device failed at once.
      local function live(model, seed, most, losses)
        local dice, said, seqs, n_failed = tiny.dice(seed), {}, {}, 0
        local chain <close> = core.chain(STAGES)
        local greedy <close> = core.chain {}
        local function look(value) said[#said + 1] = value end
        local function draw(group, ahead)
          local by = dice(5) == 1 and greedy or chain
          if losses then core.lose_draws(losses(ahead + 4) - 2) end -- some not at all
          local ids, _, code = model:draw(group, by, ahead)
          if not ids then
            assert.equal(err.DEVICE, code)
            n_failed = n_failed + 1
            ids = assert(model:draw(group, by, ahead))
          end
          for i, seq in ipairs(group) do
            look(ids[i])
            if dice(8) > 1 then assert(seq:push(ids[i])) end
          end
        end
        local acts = {
          function(seq) seq:feed(tiny.ids(dice(30), dice(100))) end,
          function(seq) seq:rewind(math.max(1, seq:pos() - dice(9))) end,
          function(seq) look(seq.logits:bytes()) end,
          function(seq) look(seq.rng:uniform()) end,
          function(seq) seq.logits:mul_(0.5) end,
          function(seq) if most > 1 then seq:release() end end,
          function(seq) look(seq:tokens()) end,
          function(seq)
            local fork <close> = seq:fork { seed = dice(2) }
            draw({ fork }, most)
            draw({ seq }, most)
            draw({ fork }, most)
          end,
          function(seq)
            local mark = seq:mark()
            draw({ seq }, most)
            seq:rewind(mark)
            draw({ seq }, most)
          end,
          function()
            seqs[dice(#seqs)]:close()
            for i, seq in ipairs(seqs) do if tostring(seq):find "closed" then return table.remove(seqs, i) end end
          end,
        }
        for round = 1, 60 do
          if #seqs < 2 or dice(12) == 1 and #seqs < 5 then
            seqs[#seqs + 1] = model:sequence { seed = round }
            seqs[#seqs]:feed(tiny.ids(dice(70), round))
          end
          local group, from = {}, dice(#seqs)
          for i = from, dice(#seqs - from + 1) + from - 1 do group[#group + 1] = seqs[i] end
          for _ = 1, dice(6) do draw(group, most) end
          if dice(3) == 1 then acts[dice(#acts)](seqs[dice(#seqs)]) end
        end
        for _, seq in ipairs(seqs) do
          look(seq.logits:bytes())
          seq:close()
        end
        assert.equal(0, model:stats().n_pages_used)
        return said, n_failed
      end

      it("lives as if it drew one by one", function()
        local model <close> = model_of(kind, true, "f16")
        local plain <close> = model_of(kind, false, "f16")
        local n_failed = 0
        for seed = 1, tonumber(os.getenv "KIGO_SCHEDULES") or 3 do
          local expected = live(plain, seed, 1)
          assert.same(expected, (live(model, seed, 7)))
          for losses = 1, 3 do
            local said, n = live(model, seed, 2 + 3 * losses, tiny.dice(100 * seed + losses))
            assert.same(expected, said)
            n_failed = n_failed + n
          end
        end
        assert.is_true(n_failed > 10)
      end)

      it("survives the failure of every allocation", function()
        local chain <close> = core.chain(STAGES)
        local function make()
          local o = { model = model_of(kind, true), seqs = {} }
          for i = 1, 3 do
            o.seqs[i] = o.model:sequence { seed = i }
            o.seqs[i]:feed(tiny.ids(10 * i, i))
          end
          return o
        end
        ---Two draw ahead, and lose it, while the third one takes in its tokens.
        local function play(o, n)
          local a, b, c = table.unpack(o.seqs)
          local steps = { { seq = c } }
          local draws = { { seq = a, chain = chain, ahead = 4 }, { seq = b, chain = chain, ahead = 4 } }
          while a:pos() < 10 + n or b:pos() < 20 + n do
            core.lose_draws(a:pos() % 3 + 1)
            local late = a:pos() - 10 < b:pos() - 20 and 1 or a:pos() - 10 > b:pos() - 20 and 2 -- of a push that failed
            local group = late and { draws[late] } or draws
            local ids, message, code = o.model:advance(steps, group)
            if not ids then return nil, message, code end
            for i, item in ipairs(group) do
              local pos
              pos, message, code = item.seq:push(ids[i])
              if not pos then return nil, message, code end
            end
          end
          return true
        end
        local function finish(o)
          for _, seq in ipairs(o.seqs) do seq:rewind(seq:pos()) end -- a draw that could not be pushed was a draw
          assert(play(o, 8))
          local said = {}
          for i, seq in ipairs(o.seqs) do
            said[i] = { seq:tokens(), seq.logits:bytes() }
            seq:close()
          end
          assert.equal(0, o.model:stats().n_pages_used)
          o.model:close()
          return said
        end
        local expected = finish(make())
        local n = tiny.fail_each_allocation(make, function(o) return play(o, 6) end, function(o)
          assert.same(expected, finish(o))
        end)
        assert.is_true(n > 20)
      end)
    end)
  end
end)
