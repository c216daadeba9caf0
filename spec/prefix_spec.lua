-- The prefix cache: nothing but the clock and the counters may tell that rows were found instead of computed.
describe("the prefix cache", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local support = require "spec.support"
  local err = kigo.err

  local PAGE, REST -- REST: of a prompt that ends within a page
  setup(function()
    local model <close> = tiny.model {}
    PAGE = model:stats().page
    REST = (PAGE + 1) // 3
  end)

  local slice = tiny.slice

  describe("makes a repeated prompt cost its new tokens only", function()
    local prompt
    setup(function() prompt = tiny.ids(3 * PAGE + REST) end)

    local function evaluate(model, ids, options)
      local seq <close> = model:sequence(options or {})
      seq:feed(ids)
      local bytes = seq.logits:bytes()
      return seq.stats.n_tokens_evaluated, seq.stats.n_tokens_reused, bytes
    end

    for _, device in ipairs(tiny.devices) do
      it("to the bit: on " .. device.name, function()
        local model <close> = tiny.model_on(device, {})
        local none <close> = tiny.model_on(device, { prefix_cache = false })
        local n = #prompt
        local evaluated, reused, bytes = evaluate(model, prompt)
        assert.same({ n, 0 }, { evaluated, reused })
        assert.equal(3, model:stats().n_pages_kept)
        assert.equal(0, model:stats().n_pages_used)
        evaluated, reused = evaluate(model, prompt)
        assert.same({ REST, 3 * PAGE }, { evaluated, reused })
        local _, _, expected = evaluate(none, prompt)
        assert.equal(expected, bytes)
        assert.equal(0, none:stats().n_tokens_reused)
        assert.equal(n + REST, model:stats().n_tokens_evaluated)
        assert.equal(3 * PAGE, model:stats().n_tokens_reused)
        for _, length in ipairs { 1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + REST, 3 * PAGE } do
          local ids = slice(prompt, 1, length)
          evaluated, reused, bytes = evaluate(model, ids) -- the last token's logits are always computed
          assert.same({ 1, length - 1 }, { evaluated, reused })
          assert.equal(bytes, (select(3, evaluate(none, ids))))
        end
        local other = slice(prompt, 1, n) -- goes another way within the second page
        other[PAGE + 1 + REST] = (other[PAGE + 1 + REST] + 1) % tiny.vocab
        evaluated, reused, bytes = evaluate(model, other)
        assert.same({ n - PAGE - REST, PAGE + REST }, { evaluated, reused })
        assert.equal(bytes, (select(3, evaluate(none, other))))
      end)
    end

    it("also where it was rewound, forked, or released, and while others use it", function()
      local model <close> = tiny.model {}
      local a <close> = model:sequence {}
      a:feed(prompt)
      assert(a:step())
      local b <close> = model:sequence {}
      b:feed(prompt)
      assert(b:step())
      assert.equal(3 * PAGE, b.stats.n_tokens_reused)
      assert.equal(a.logits:bytes(), b.logits:bytes())
      assert.equal(5, model:stats().n_pages_used)
      b:rewind(PAGE + REST)
      b:feed(slice(prompt, PAGE + REST + 1, #prompt))
      assert.equal(a.logits:bytes(), b.logits:bytes())
      assert.equal(3 * PAGE + 2 * PAGE - REST, b.stats.n_tokens_reused)
      b:release()
      b:push(1)
      a:push(1)
      assert.equal(a.logits:bytes(), b.logits:bytes())
      local fork <close> = b:fork {}
      fork:rewind(2)
      fork:feed(slice(prompt, 3, #prompt))
      fork:push(1)
      assert.equal(a.logits:bytes(), fork.logits:bytes())
      local reused = fork.stats.n_tokens_reused -- the first two as well if their page had gone out of sight
      assert.is_true(reused == 3 * PAGE or reused == 3 * PAGE - 2)
    end)

    it("not for those who want to see it done", function()
      local model <close> = tiny.model {}
      evaluate(model, prompt)
      local evaluated, reused = evaluate(model, prompt, { prefix_cache = false })
      assert.same({ #prompt, 0 }, { evaluated, reused })
      assert.equal(3, model:stats().n_pages_kept)
      local seq <close> = model:sequence { prefix_cache = false }
      local other = tiny.ids(2 * PAGE, 5)
      seq:feed(other)
      assert(seq:step())
      seq:close()
      evaluated, reused = evaluate(model, other)
      assert.is_true(evaluated > PAGE and reused < PAGE)
      assert.has_error(function() model:sequence { prefix_cache = 1 } end)
    end)

    it("not for the haiku check and receipts, which count the work", function()
      local haiku = require "kigo.haiku"
      local model <close> = assert(kigo.load(support.haiku_model, { threads = 1, device = "cpu" }))
      local question = { topic = "the first drops", word = "nine", nonce = "0000002a", seed = 4, receipt = true }
      local messages = haiku.messages(question.topic, question.word, question.nonce)
      for _ = 1, 2 do assert(model:chat(messages, { seed = 4, max = 60, stop = {} })) end
      local before = model:stats().n_tokens_reused
      for _ = 1, 2 do
        local answer = assert(haiku.ask(model, question))
        assert.is_true((haiku.judge_work(answer, model.tokenizer)))
        local evaluated = model:stats().n_tokens_evaluated
        assert.is_true(assert(kigo.receipt.verify(model, answer.receipt)).passed)
        assert.is_true(model:stats().n_tokens_evaluated - evaluated >= answer.prompt_tokens)
      end
      assert.equal(before, model:stats().n_tokens_reused)
    end)

    it("not from rows that more than their ids made", function()
      local model <close> = tiny.model {}
      local _, _, expected = evaluate(model, prompt, { prefix_cache = false })
      local hooked <close> = model:sequence {}
      local hook = hooked:hook({ "blk.0.out" }, function(x) x:mul_(1.5) end)
      hooked:feed(prompt)
      assert.not_equal(expected, hooked.logits:bytes())
      hook:close()
      local fork <close> = hooked:fork {}
      fork:feed(tiny.ids(PAGE, 8))
      assert(fork:step())
      local evaluated, reused, bytes = evaluate(model, prompt)
      assert.same({ #prompt, 0, expected }, { evaluated, reused, bytes })
      hooked:rewind(PAGE) -- nor does it take any
      hooked:feed(slice(prompt, PAGE + 1, #prompt))
      assert(hooked:step())
      assert.equal(0, hooked.stats.n_tokens_reused)
    end)

    it("not from files", function()
      local path = os.tmpname()
      local model <close> = assert(kigo.load(support.haiku_model, { threads = 1, device = "cpu" }))
      local ids = {}
      for i = 1, 2 * PAGE + 5 do ids[i] = i * 7 % 2000 end
      local seq <close> = assert(model:sequence { prefix_cache = false })
      seq:feed(ids)
      assert(seq:step())
      assert(seq:save(path))
      local again <close> = assert(model:restore(path))
      os.remove(path)
      again:push(5)
      assert(again:step())
      local evaluated, reused = evaluate(model, ids)
      assert.same({ #ids, 0 }, { evaluated, reused })
      again:feed(tiny.ids(PAGE))
      assert(again:step())
      assert.equal(#ids // PAGE, model:stats().n_pages_kept)
    end)

    it("not where the weights have changed since", function()
      local model <close> = tiny.model {}
      local held <close> = model:sequence {}
      held:feed(prompt)
      assert(held:step())
      evaluate(model, tiny.ids(2 * PAGE, 9))
      model:scramble("blk.1.", 1)
      assert.equal(0, model:stats().n_pages_kept)
      local evaluated, reused, bytes = evaluate(model, prompt)
      assert.same({ #prompt, 0 }, { evaluated, reused })
      held:rewind(2 * PAGE + 1) -- its old rows stay its own
      held:feed(slice(prompt, 2 * PAGE + 2, #prompt))
      assert(held:step())
      assert.equal(0, held.stats.n_tokens_reused)
      evaluated, reused = evaluate(model, prompt)
      assert.same({ REST, 3 * PAGE }, { evaluated, reused })
      assert.equal(bytes, (select(3, evaluate(model, prompt))))
    end)
  end)

  it("gives way: the pool is as large as without it", function()
    local model <close> = tiny.model { pool = 4 * PAGE }
    for i = 1, 10 do
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(3 * PAGE + REST, i % 3 + 1))
      assert(seq:step())
      assert.equal(4, model:stats().n_pages_used)
      assert.equal(0, model:stats().n_pages_kept)
    end
    assert.equal(3, model:stats().n_pages_kept)
    local seq <close> = model:sequence {} -- the one page of its own is published, and wanted back
    seq:feed(tiny.ids(4 * PAGE, 7))
    assert(seq:step())
    local expected = seq.logits:bytes()
    seq:rewind(4 * PAGE - 2)
    seq:feed(slice(tiny.ids(4 * PAGE, 7), 4 * PAGE - 1, 4 * PAGE))
    assert.equal(expected, seq.logits:bytes())
    seq:push(1)
    assert.equal(err.FULL, (select(3, seq:step())))
  end)

  it("takes no more memory for itself than it may", function()
    local model <close> = tiny.model { prefix_cache = 2 * PAGE }
    for i = 1, 20 do
      local seq <close> = model:sequence {}
      seq:feed(tiny.ids(PAGE, i))
      assert(seq:step())
    end
    assert.is_true(model:stats().n_pages <= 4)
    assert.has_error(function() tiny.model { prefix_cache = 0 } end)
    assert.has_error(function() tiny.model { prefix_cache = -1 } end)
    assert.has_error(function() tiny.model { prefix_cache = "x" } end)
  end)

  it("lets go first of what was left longest ago, and of whole beginnings last", function()
    local model <close> = tiny.model { pool = 6 * PAGE }
    local function evaluate(ids)
      local seq <close> = model:sequence {}
      seq:feed(ids)
      assert(seq:step())
      return seq.stats.n_tokens_reused
    end
    local a, b, c = tiny.ids(2 * PAGE, 1), tiny.ids(2 * PAGE, 2), tiny.ids(3 * PAGE, 3)
    assert.equal(0, evaluate(a))
    evaluate(b)
    assert.equal(2 * PAGE - 1, evaluate(a)) -- left last now
    evaluate(c)
    assert.equal(2 * PAGE - 1, evaluate(a))
    local reused = evaluate(b) -- its second page is gone, or both
    assert.is_true(reused <= PAGE)
  end)

  -- Lives of several sequences whose prompts begin alike, on a pool that is too small for all of them.
  local function live(model, seed, expected)
    local dice, all = tiny.dice(seed), {}
    local pool = model:stats().n_pages_max
    local function drop(i)
      table.remove(all, i).seq:close()
    end
    local function step(sequences, kept)
      while true do
        local done, message, code = model:step(sequences())
        if done then return end
        if code ~= err.FULL then error(message) end
        local i = dice(#all)
        if all[i] ~= kept then
          if dice(2) == 1 then drop(i) else all[i].seq:release() end
        end
      end
    end
    local function look(one)
      step(function() return { one.seq } end, one)
      if #one.ids > 0 then assert.equal(expected(one.ids), one.seq.logits:bytes()) end
    end
    for _ = 1, 14 do
      local one = #all > 0 and all[dice(#all)]
      local action = one and dice(9) or 1
      if action <= 2 then
        if #all < 4 then all[#all + 1] = { seq = model:sequence { prefix_cache = dice(9) > 1 }, ids = {} } end
      elseif action <= 5 then -- few ways to go on, some of them long
        local way = dice(3)
        local more = tiny.ids(({ PAGE, PAGE // 2 + 3, 1 })[dice(3)], way)
        if #one.ids + #more <= 3 * PAGE + REST then -- which fits the smallest pool
          if dice(4) == 1 then one.seq:expect(more) end
          if dice(4) == 1 then one.seq:expect(slice(more, 1, dice(#more))) end
          assert(one.seq:feed(more))
          table.move(more, 1, #more, #one.ids + 1, one.ids)
        end
      elseif action == 6 then
        local pos = dice(#one.ids + 1) - 1
        one.seq:rewind(pos)
        one.ids = slice(one.ids, 1, pos)
      elseif action == 7 then
        if #all < 4 then all[#all + 1] = { seq = one.seq:fork {}, ids = slice(one.ids, 1, #one.ids) } end
      elseif action == 8 then
        look(one)
      elseif dice(2) == 1 then
        drop(dice(#all))
      else
        local among = {}
        for _, other in ipairs(all) do
          if dice(3) > 1 then among[#among + 1] = other end
        end
        step(function()
          local sequences = {}
          for _, other in ipairs(among) do
            for _, there in ipairs(all) do
              if there == other then sequences[#sequences + 1] = other.seq end
            end
          end
          return sequences
        end)
      end
      local stats = model:stats()
      assert.is_true(stats.n_pages_used + stats.n_pages_kept <= pool)
    end
    while all[1] do
      look(all[1])
      drop(1)
    end
    assert.equal(0, model:stats().n_pages_used)
  end

  local n_lives = math.tointeger(tonumber(os.getenv "KIGO_SCHEDULES" or "")) or 60

  for _, device in ipairs(tiny.variants) do
    it(("through %d random lives: on %s"):format(n_lives, device.name), function()
      local judge <close> = tiny.model_on(device, { prefix_cache = false })
      local known = {}
      local function expected(ids)
        local key = table.concat(ids, " ")
        if not known[key] then
          local seq <close> = judge:sequence {}
          seq:feed(ids)
          known[key] = seq.logits:bytes()
        end
        return known[key]
      end
      local n_reused, n_lived = 0, 0
      local pools = { { pool = 4 * PAGE, chunk = 3 }, { pool = 6 * PAGE, chunk = 50 }, { pool = 20 * PAGE } }
      for _, options in ipairs(pools) do
        local model <close> = tiny.model_on(device, options)
        for i = 1, n_lives // 3 do
          live(model, n_lived + i, expected)
          if i % 17 == 0 then assert.equal(0, model:stats().n_sequences) end
        end
        n_lived = n_lived + n_lives // 3
        n_reused = n_reused + model:stats().n_tokens_reused
      end
      assert.is_true(n_reused > n_lived * PAGE // 32)
    end)
  end

  it("survives the failure of every allocation where a published page is written to and the table grows", function()
    local long = tiny.ids(9 * PAGE)
    local function make()
      local model = tiny.model { device = "cpu", threads = 1 }
      local seq = model:sequence {}
      seq:feed(slice(long, 1, 2 * PAGE))
      assert(seq:step())
      seq:rewind(2 * PAGE - 1)
      seq:feed(slice(long, 2 * PAGE, #long))
      return { model = model, seq = seq }
    end
    local whole = make()
    local expected = whole.seq.logits:bytes()
    whole.seq:close()
    whole.model:close()
    local n = tiny.fail_each_allocation(make, function(o) return o.seq:step() end, function(o)
      assert.equal(expected, o.seq.logits:bytes())
      o.seq:close()
      o.model:close()
    end)
    assert.is_true(n > 4)
  end)

  it("survives the failure of every allocation", function()
    local prompt = tiny.ids(2 * PAGE + 9)
    local function make()
      return { model = tiny.model { chunk = 40 } }
    end
    local function say(o)
      local bytes
      for _ = 1, 3 do
        local seq <close>, message, code = o.model:sequence {}
        if not seq then return nil, message, code end
        local done
        done, message, code = seq:feed(prompt)
        if not done then return nil, message, code end
        done, message, code = seq:step()
        if not done then return nil, message, code end
        bytes = seq.logits:bytes()
      end
      return bytes
    end
    local whole = make()
    local expected = say(whole)
    whole.model:close()
    local n = tiny.fail_each_allocation(make, say, function(o)
      collectgarbage()
      assert.equal(0, o.model:stats().n_pages_used)
      assert.equal(expected, say(o))
      o.model:close()
    end)
    assert.is_true(n > 10)
  end)
end)
