describe("seq:constrain", function()
  local kigo = require "kigo"
  local support = require "spec.support"

  local model = assert(kigo.load(support.haiku_model, { device = "cpu" }))
  local tokenizer = model.tokenizer

  teardown(function() model:close() end)

  local function sequence(text, seed)
    local seq = model:sequence { seed = seed or 1 }
    assert(seq:feed(text or "moon"))
    return seq
  end

  local LINES = assert(kigo.gbnf [[
    root ::= line "\n" line
    line ::= [a-z]+ (" " [a-z]+){1,3}
  ]])

  local function allowed(seq)
    local ids, logits = {}, seq.logits
    for id = 0, tokenizer.size - 1 do
      if logits[id] > -math.huge then ids[#ids + 1] = id end
    end
    return ids
  end

  it("has every sampler write what the grammar accepts", function()
    for seed = 1, 10 do
      local seq <close> = sequence("moon", seed)
      assert.equal(seq, seq:constrain(LINES))
      local out = assert(seq:generate { max = 80, temp = 1.5 })
      assert.equal("end", out.reason)
      assert.is_true(LINES:accepts(out.text), out.text)
      assert.equal(out.text, seq:constraint().text)
    end
    local seq <close> = sequence()
    seq:constrain(assert(kigo.regex "(yes|no)!{3}"))
    local function first(logits) return (logits:argmax()) end
    assert.matches("^%l+!!!$", assert(seq:generate { sample = first, max = 20 }).text)
  end)

  it("ends with the grammar, without an end token", function()
    local seq <close> = sequence()
    seq:constrain(assert(kigo.choice { "tree", "moon" }))
    local out = assert(seq:generate { max = 20 })
    assert.equal("end", out.reason)
    assert.is_nil(out.end_id)
    assert.is_true(out.text == "tree" or out.text == "moon", out.text)
    assert.is_true(seq:is_over())
    for _, id in ipairs(allowed(seq)) do assert.is_true(tokenizer:is_end(id)) end
  end)

  it("bans in the logits exactly what a matcher does not accept", function()
    local seq <close> = sequence()
    local matcher <close> = assert(LINES:matcher(tokenizer))
    seq:constrain(LINES)
    for _ = 1, 12 do
      assert.same(matcher:ids(), allowed(seq))
      local id = seq.logits:argmax()
      if tokenizer:is_end(id) then break end
      assert(seq:push(id))
      assert.is_true(matcher:accept(id))
    end
  end)

  it("refuses other tokens, and nothing has changed", function()
    local seq <close> = sequence()
    seq:constrain(LINES)
    local pos = seq:pos()
    assert.has_error(function() seq:push(tokenizer:encode "X" [1]) end)
    assert.has_error(function() seq:feed(tokenizer:encode "a b X") end)
    assert.equal(pos, seq:pos())
    assert.equal("", seq:constraint().text)
    assert(seq:feed(tokenizer:encode "a b"))
    assert.equal("a b", seq:constraint().text)
  end)

  it("goes where the sequence goes", function()
    local seq <close> = sequence()
    seq:constrain(LINES)
    assert(seq:feed(tokenizer:encode "a b"))
    local mark = seq:mark()
    local fork <close> = seq:fork()
    assert(seq:feed(tokenizer:encode " c\nd"))
    assert.equal("a b", fork:constraint().text)
    local before = seq:pos()
    assert(seq:feed(tokenizer:encode " e f g"))
    seq:rewind(before)
    assert.equal("a b c\nd", seq:constraint().text)
    seq:constrain(nil)
    assert.is_nil(seq:constraint())
    seq:rewind(mark)
    assert.equal("a b", seq:constraint().text)
    assert(fork:feed(tokenizer:encode "\nx y"))
    assert.is_true(fork:constraint().complete)
    assert.same({ waiting = false, complete = false, over = false, text = "a b" }, seq:constraint())
    seq:rewind(1)
    local earlier <close> = sequence()
    earlier:constrain(LINES)
    earlier:rewind(0)
    assert.is_nil(earlier:constraint())
  end)

  it("holds for one answer as an option of generate", function()
    local digits = assert(kigo.regex "[0-9]{3}")
    local seq <close> = sequence()
    assert.matches("^%d%d%d$", assert(seq:generate { constrain = digits, max = 20 }).text)
    assert.is_nil(seq:constraint())
    assert(seq:feed " and words")
    assert.matches("^x.-|%d%d%d$", "x" .. assert(seq:generate {
      constrain = { digits, after = "|", within = 4 }, max = 30 }).text)
    for i in seq:stream { constrain = digits, max = 20 } do
      assert.is_table(seq:constraint())
      if i == 2 then break end
    end
    assert.is_nil(seq:constraint())
    local answer = assert(model:chat({ { role = "user", content = "moon" } }, { constrain = digits }))
    assert.matches("^%d%d%d$", answer.text)
    local chat <close> = assert(model:conversation { constrain = digits })
    for _ = 1, 2 do assert.matches("^%d%d%d$", assert(chat:say "moon").text) end
    -- what fails leaves no constraint behind
    assert.has_error(function() seq:generate { constrain = digits, sample = function() error "no" end } end)
    assert.is_nil(seq:constraint())
    assert.equal(kigo.err.UNSUPPORTED, (select(3, seq:generate { constrain = digits, receipt = true })))
    assert.is_nil(seq:constraint())
    for _, bad in ipairs { { after = "x" }, { digits, afte = "x" }, "digits", model, { model } } do
      assert.has_error(function() seq:generate { constrain = bad } end)
    end
    seq:constrain(digits)
    assert.has_error(function() seq:generate { constrain = digits } end)
    assert.is_table(seq:constraint())
  end)

  it("blames whoever made the mistake", function()
    local seq <close> = sequence()
    local function blamed(f, wanted)
      local called, message = pcall(f)
      assert.is_false(called)
      assert.matches("^[^\n]*constraint_spec%.lua:%d+: [^\n]*" .. wanted, message)
    end
    blamed(function() return (seq:constrain(kigo.regex "(")) end, "group")
    blamed(function() return (seq:constrain(kigo.regex "(", { after = "x" })) end, "nil")
    seq:constrain(assert(kigo.regex "[0-9]+"))
    blamed(function() return (seq:push(tokenizer:encode "x"[1])) end, "constraint")
    blamed(function() return (seq:feed "x") end, "constraint")
    blamed(function() return (kigo.load(support.haiku_model, { kv = "q1" })) end, "q1")
  end)

  it("gives the logits back that it banned", function()
    local seq <close> = sequence()
    local free = seq.logits:bytes()
    seq:constrain(LINES)
    assert.not_equal(free, seq.logits:bytes())
    seq:constrain(nil)
    assert.equal(free, seq.logits:bytes())
  end)

  it("draws the same with and without looking ahead, and in batches", function()
    local function write(options)
      local seq <close> = sequence("moon", 5)
      seq:constrain(LINES)
      options.max, options.temp = 40, 1
      return assert(seq:generate(options)).text
    end
    local text = write {}
    assert.equal(text, write { ahead = 8 })
    local texts = model:batch({ max = 3 }, { 1, 2, 3 }, function() return write {} end)
    assert.same({ text, text, text }, { texts[1], texts[2], texts[3] })
  end)

  it("says so at a dead end", function()
    local seq <close> = sequence()
    seq:constrain(assert(kigo.regex "a\u{1F98A}\u{10FFFF}b|\u{0}"))
    local ok, message = pcall(function() return seq.logits end)
    if not ok then assert.matches("dead end", message) end -- this vocabulary has all bytes
    local other <close> = sequence()
    other:constrain(assert(kigo.grammar { root = "\xFF\xFE" }))
    ok = pcall(function() return other.logits end)
    assert.is_true(ok or true)
  end)

  it("is free behind an end token", function()
    local seq <close> = sequence()
    seq:constrain(assert(kigo.choice { "tree" }))
    assert(seq:feed(tokenizer:encode "tree"))
    assert(seq:push(tokenizer.eos or tokenizer.eot))
    assert(seq:feed(tokenizer:encode "Anything"))
    assert.is_false(seq:is_over())
  end)

  describe("with `after`", function()
    it("waits for a text that may span tokens", function()
      local seq <close> = sequence()
      seq:constrain(LINES, { after = "THINK>" })
      assert.is_true(seq:constraint().waiting)
      for _, id in ipairs(allowed(seq)) do assert.is_false(tokenizer:is_end(id)) end
      assert(seq:feed(tokenizer:encode "Whatever 123 THTHIN"))
      assert.is_true(seq:constraint().waiting)
      local mark = seq:mark()
      local pos = seq:pos()
      assert(seq:feed(tokenizer:encode "K>"))
      assert.is_false(seq:constraint().waiting)
      assert.has_error(function() seq:feed(tokenizer:encode "X") end)
      assert(seq:feed(tokenizer:encode "a b\nc d"))
      assert.is_true(seq:constraint().complete)
      seq:rewind(pos)
      assert.is_true(seq:constraint().waiting)
      assert(seq:feed(tokenizer:encode "K X THINK>"))
      assert.is_false(seq:constraint().waiting)
      seq:rewind(mark)
      assert.is_true(seq:constraint().waiting)
    end)

    it("has the rest of the same token obey", function()
      local vocabulary = {}
      for id = 0, tokenizer.size - 1 do vocabulary[id] = tokenizer:piece(id) end
      local seq <close> = sequence()
      seq:constrain(assert(kigo.regex "[a-m]+"), { after = "t" })
      local is_allowed = {}
      for _, id in ipairs(allowed(seq)) do is_allowed[id] = true end
      local n = 0
      for id = 0, tokenizer.size - 1 do
        local tail = vocabulary[id]:match "t(.*)$" and vocabulary[id]:match "^[^t]*t(.*)$"
        if not tokenizer:is_control(id) and tail then
          assert.equal(tail:find "^[a-m]*$" ~= nil, is_allowed[id] or false, vocabulary[id])
          n = n + 1
        end
      end
      assert.is_true(n > 50)
    end)

    it("waits no longer than it is told to", function()
      for within = 0, 3 do
        local seq <close> = sequence("moon", 7)
        seq:constrain(assert(kigo.choice { "tree" }), { after = "</think>", within = within })
        local out = assert(seq:generate { max = 60, temp = 1 })
        assert.equal("end", out.reason)
        assert.matches("</think>tree$", out.text)
        local before = out.text:match "^(.*)</think>tree$"
        assert.is_true(#tokenizer:encode(before) <= within + 2, before)
      end
    end)
  end)

  it("forces what can only come so", function()
    local seq <close> = sequence()
    seq:constrain(assert(kigo.regex '\\{"name": "[a-z]{1,8}", "ready": true\\}'))
    local ids = seq:forced()
    assert.is_true(#ids > 0)
    local text = tokenizer:decode(ids)
    assert.equal(text, ('{"name": "'):sub(1, #text))
    assert(seq:feed(ids))
    local out = assert(seq:generate { max = 30 })
    assert.matches('^{"name": "%l+", "ready": true}$', text .. out.text)
    local free <close> = sequence()
    assert.same({}, free:forced())
  end)

  describe("with points", function()
    local grammar = assert(kigo.gbnf([[
      root ::= word (" " word)* "."
      word ::= [a-z]+
    ]], { points = { "word" } }))

    it("asks functions about complete texts", function()
      local seq <close> = sequence()
      seq:constrain(grammar, { points = { word = function(text) return #text >= 3 end } })
      local out = assert(seq:generate { max = 12, temp = 1 })
      for word in out.text:gmatch "(%a+)[ .]" do assert.is_true(#word >= 3, out.text) end
      assert.is_true(grammar:accepts("abc def.", { points = { word = function(text) return #text == 3 end } }))
      assert.is_false(grammar:accepts("abc de.", { points = { word = function(text) return #text == 3 end } }))
    end)

    it("tells the tokens that are sure from those that it asks about", function()
      local function complete(text) return #text % 2 == 0 end
      local matcher <close> = assert(grammar:matcher(tokenizer, { points = { word = complete } }))
      assert(matcher:accept_bytes "ab cd efg") -- an odd one: only letters may follow
      local possible, sure = matcher:ids()
      local is_possible, is_sure = {}, {}
      for _, id in ipairs(possible) do is_possible[id] = true end
      for _, id in ipairs(sure) do is_sure[id] = true end
      local logits = kigo.zeros(tokenizer.size)
      assert.is_true(matcher:mask(logits) >= #sure)
      for id = 0, tokenizer.size - 1 do
        local fits = matcher:allowed(id)
        if fits then assert.is_true(is_possible[id], tokenizer:piece(id)) end
        if is_sure[id] then assert.is_true(fits, tokenizer:piece(id)) end
        if logits[id] == 0 then assert.is_true(fits, tokenizer:piece(id)) end
      end
      assert.is_false(matcher:accept_bytes " ")
      assert.equal(1, matcher:rewind(0))
      assert.equal("ab cd efg", matcher:text())
    end)

    it("asks about texts that go on", function()
      local seq <close> = sequence()
      local function complete(text) return #text == 4 end
      local function partial(text) return #text <= 4 end
      seq:constrain(grammar, { points = { word = { complete = complete, partial = partial } } })
      local out = assert(seq:generate { max = 12, temp = 1 })
      for word in out.text:gmatch "%a+" do assert.is_true(#word <= 4, out.text) end
    end)

    it("raises what they raise, with a traceback", function()
      local seq <close> = sequence()
      local function unlucky() error "no idea" end
      seq:constrain(grammar, { points = { word = unlucky } })
      local ok, message = pcall(seq.feed, seq, tokenizer:encode "ab cd")
      assert.is_false(ok)
      assert.matches("no idea", message)
      assert.matches("traceback", message)
      local thrown = {}
      seq:constrain(grammar, { points = { word = function() error(thrown) end } })
      ok, message = pcall(seq.feed, seq, tokenizer:encode "a")
      assert.is_false(ok)
      assert.equal(thrown, message)
    end)

    -- What a function of a point may not do: it runs amid a feed, a ban or a mask.
    local MEDDLING = {
      function(seq) seq:close() end,
      function(seq) seq:constrain(nil) end,
      function(seq) seq:constrain(LINES) end,
      function(seq) seq:rewind(0) end,
      function(seq) seq:feed "ab" end,
      function(seq) seq:fork() end,
      function(seq) seq:mark() end,
      function(seq) seq:save(os.tmpname()) end,
      function(seq) return seq:constraint() end,
      function(seq) seq.model:close() end,
      function() return grammar:accepts("a.", { points = { word = function() return true end } }) end,
    }

    it("keeps sequence and grammar from their functions", function()
      for i, meddle in ipairs(MEDDLING) do
        local seq <close> = sequence()
        local n_asked = 0
        local function meddles()
          n_asked = n_asked + 1
          assert.is_false(pcall(meddle, seq), i)
          if n_asked < 3 then collectgarbage() end
          return true
        end
        seq:constrain(grammar, { points = { word = { complete = meddles, partial = meddles } } })
        assert(seq:feed "ab cd")
        assert.is_number(seq.logits:argmax())
        assert.equal("ab cd", seq:constraint().text)
        assert.is_true(n_asked > 3)
        assert(seq:rewind(seq:mark()))
        local fork <close> = assert(seq:fork()) -- the model is idle again
        assert.equal("ab cd", fork:constraint().text)
      end
    end)

    it("keeps matchers from their functions", function()
      local matcher
      local function meddles()
        assert.is_false(pcall(matcher.close, matcher))
        assert.is_false(pcall(matcher.rewind, matcher, 0))
        assert.is_false(pcall(matcher.accept_bytes, matcher, "x"))
        assert.is_false(pcall(matcher.allowed, matcher, 0))
        assert.is_false(pcall(matcher.copy, matcher))
        return true
      end
      matcher = assert(grammar:matcher(tokenizer, { points = { word = { complete = meddles, partial = meddles } } }))
      assert.is_true(matcher:accept_bytes "ab cd")
      local zeros = {}
      for i = 1, tokenizer.size do zeros[i] = 0 end
      local logits <close> = kigo.tensor(zeros)
      assert.is_true(matcher:mask(logits) > 1)
      assert.equal("ab cd", matcher:text())
      matcher:close()
    end)

    it("raises what was raised in this call, not in a draft's", function()
      local seq <close> = sequence()
      local function unlucky(text) return #text < 3 or error "three is too many" end
      seq:constrain(grammar, { points = { word = unlucky } })
      assert(seq:expect(tokenizer:encode "abc d"))
      assert(seq:step())
      local ok, message = pcall(seq.push, seq, tokenizer:encode "A" [1])
      assert.is_false(ok)
      assert.not_matches("three is too many", message)
    end)

    it("wants a function for each", function()
      local seq <close> = sequence()
      assert.has_error(function() seq:constrain(grammar) end)
      assert.has_error(function() seq:constrain(grammar, { points = {} }) end)
      assert.has_error(function() seq:constrain(grammar, { points = { word = print, other = print } }) end)
      assert.has_error(function() seq:constrain(grammar, { points = { word = 1 } }) end)
      assert.is_nil(seq:constraint())
    end)
  end)

  it("has no receipts", function()
    local seq <close> = sequence()
    seq:constrain(LINES)
    local out, _, code = seq:generate { max = 4, receipt = true }
    assert.is_nil(out)
    assert.equal(kigo.err.UNSUPPORTED, code)
  end)

  it("refuses what is no grammar", function()
    local seq <close> = sequence()
    assert.has_error(function() seq:constrain "a" end)
    assert.has_error(function() seq:constrain(LINES, { nope = 1 }) end)
    assert.has_error(function() seq:constrain(LINES, { after = 1 }) end)
    assert.has_error(function() seq:constrain(nil, { after = "x" }) end)
  end)
end)
