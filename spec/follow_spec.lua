-- Streams that follow a sequence: the simplest companions (engine/companion.h), and with them what holds for all.
describe("kigo.follow", function()
  local core = require "kigo.core"
  local tiny = require "spec.tiny"
  local vocabulary = require "spec.fixtures.vocabulary"

  local model, tokenizer, small
  setup(function()
    model = tiny.model { chunk = 32 }
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe {}), "spec"))
    tokenizer = assert(core.tokenizer(gguf)) -- ids are bytes; the model has those below 48
    local mute <close> = assert(core.parse_gguf(vocabulary.file { { "general.architecture", "string", "none" },
      { "tokenizer.ggml.model", "string", "no_vocab" }, { "none.vocab_size", "u32", 40 } }, "spec"))
    small = assert(core.tokenizer(mute)) -- knows 40 of the model's ids
  end)
  teardown(function()
    tokenizer:close()
    small:close()
    model:close()
  end)

  local function stream(options) return assert(core.stream(tokenizer, options)) end
  local function bytes(text) return { text:byte(1, -1) } end

  it("get everything that is appended from then on", function()
    local seq <close> = model:sequence {}
    seq:feed(bytes "###")
    local out <close> = stream { stop = "%%" }
    assert.is_false(out.following)
    assert.equal(out, seq:attach(out))
    assert.is_true(out.following)
    seq:feed(bytes "+-")
    seq:push(("%"):byte())
    assert.equal("+-", out:read())
    assert.equal("", out:read())
    seq:push(("!"):byte())
    assert.equal("%!", out:read())
    assert.equal("+-%!", out.text)
    seq:feed(bytes "/%%++")
    assert.equal("/", out:read())
    assert.equal("stop", out.reason)
    assert.equal(4 + 5, out.n_ids)
    assert.equal("+-%!/", out.text)
  end)

  it("belong to one sequence, and get nothing from elsewhere", function()
    local seq <close> = model:sequence {}
    local other <close> = model:sequence {}
    local out <close> = seq:attach(stream())
    for _, wrong in ipairs {
      function() seq:attach(out) end, function() other:attach(out) end, function() other:detach(out) end,
      function() out:add(33) end, function() out:rewind(0) end, function() seq:attach(1) end,
    } do
      assert.is_false((pcall(wrong)))
    end
    assert.equal("", out.text)
    assert.equal(out, seq:detach(out))
    assert.is_false((pcall(seq.detach, seq, out)))
    seq:push(33)
    assert.equal("#", out:add(35))
    other:attach(out)
    other:push(36)
    assert.equal("#$", out.text)
  end)

  it("go back with a rewind to where they were, and are let go before they came", function()
    local seq <close> = model:sequence {}
    local out <close> = stream()
    out:add(33)
    seq:feed(bytes "##")
    seq:attach(out)
    seq:feed(bytes "+-+-")
    assert.equal("!+-+-", out.text)
    assert.equal("+-+-", out:read())
    seq:rewind(4)
    assert.equal("!+-", out.text)
    seq:push(47)
    assert.equal("/", out:read())
    seq:rewind(2)
    assert.equal("!", out.text)
    assert.is_true(out.following)
    seq:feed(bytes "//")
    seq:rewind(1)
    assert.equal("!", out.text)
    assert.is_false(out.following)
    assert.same({}, seq:attached())
    assert.equal("#", out:add(35))
  end)

  it("are finished where they were finished, and open before", function()
    local seq <close> = model:sequence {}
    local out <close> = seq:attach(stream { stop = "+++" })
    seq:feed(bytes "-++")
    assert.equal("-++", out:finish())
    assert.equal("length", out.reason)
    seq:feed(bytes "//")
    assert.equal("-++", out.text)
    seq:rewind(4)
    assert.equal("length", out.reason)
    seq:rewind(3)
    assert.is_nil(out.reason)
    assert.equal("-", out.text)
    seq:push(43)
    assert.equal("stop", out.reason)
  end)

  it("have twins in forks", function()
    local seq <close> = model:sequence {}
    local out <close> = seq:attach(stream())
    seq:attach(stream { stop = "$" })
    seq:feed(bytes "!#")
    local fork <close> = seq:fork {}
    local twins = fork:attached()
    assert.equal(2, #twins)
    seq:push(36)
    fork:push(37)
    assert.equal("!#$", out.text)
    assert.equal("!#%", twins[1].text)
    assert.equal("stop", seq:attached()[2].reason)
    assert.is_nil(twins[2].reason)
    assert.equal("!#%", twins[2]:read())
    fork:rewind(1)
    assert.equal("!", twins[1].text)
    assert.equal("!#$", out.text)
  end)

  it("come back with a mark: read, finished, detached or attached since", function()
    local seq <close> = model:sequence {}
    local out <close> = seq:attach(stream())
    local gone <close> = seq:attach(stream())
    seq:feed(bytes "!#")
    assert.equal("!#", gone:read())
    local mark = seq:mark()
    for round = 1, 3 do
      assert.equal("!#", out:read())
      out:finish()
      if round == 2 then seq:detach(gone) end
      local late <close> = seq:attach(stream())
      seq:feed(bytes "%%%")
      assert.equal("!#", out.text)
      assert.equal("%%%", late.text)
      assert.equal(2, seq:rewind(mark))
      assert.is_nil(out.reason)
      assert.is_false(late.following)
      assert.equal("", late.text)
      local now = seq:attached()
      assert.equal(2, #now)
      assert.equal("!#", now[2].text)
      assert.equal("", now[2]:read())
      assert.equal(round < 2, gone.following) -- a twin has taken its place
      seq:push(38)
      assert.equal("&", now[2]:read())
      assert.equal("!#&", out.text)
      seq:rewind(mark)
    end
    local fork <close> = seq:fork {}
    fork:push(33)
    fork:rewind(mark)
    assert.equal("!#", fork:attached()[1]:read())
    seq:close()
    assert.equal("!#", out:read())
    assert.is_false(out.following)
  end)

  it("change nothing when one of them refuses", function()
    local seq <close> = model:sequence { seed = 3 }
    local first <close> = seq:attach(stream { stop = "+++" })
    local refuses <close> = seq:attach(assert(core.stream(small)))
    local last <close> = seq:attach(stream())
    local done <close> = seq:attach(stream())
    seq:feed { 33, 35 }
    done:finish()
    local before = seq.logits:bytes()
    local drawn = seq.rng:uniform()
    assert.is_false((pcall(seq.feed, seq, { 38, 47, 33 })))
    assert.is_false((pcall(seq.push, seq, 47)))
    assert.equal(2, seq:pos())
    for _, each in ipairs { first, last, done } do
      assert.equal("!#", each.text)
      assert.equal(2, each.n_ids)
    end
    assert.equal("length", done.reason)
    assert.is_nil(first.reason)
    assert.equal(2, refuses.n_ids)
    assert.equal(before, seq.logits:bytes())
    assert.not_equal(drawn, seq.rng:uniform())
    assert.equal(core.uniform(3, 2, 1), (function() seq:rewind(2) seq.rng:uniform() return seq.rng:uniform() end)())
    assert.equal(4, seq:feed { 38, 39 })
    assert.equal("!#&'", last.text)
  end)

  it("outlive their sequence, their tokenizer and each other", function()
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe {}), "spec"))
    local own_model, own = tiny.model {}, assert(core.tokenizer(gguf))
    local seq, out = own_model:sequence {}, assert(core.stream(own))
    seq:attach(out)
    seq:push(33)
    local mark, handle = seq:mark(), seq:attached()[1]
    out:close()
    own:close()
    seq:push(35)
    assert.equal("!#", handle:read())
    seq:rewind(mark)
    assert.equal("!", handle.text)
    seq:close()
    own_model:close()
    assert.equal("!", handle.text)
    assert.equal("!#", handle:add(35)) -- nothing of it was read when the mark was made
    for _, use in ipairs { function() seq:attach(handle) end, function() seq:attached() end,
      function() seq:detach(handle) end, function() seq:rewind(mark) end } do
      assert.is_false((pcall(use)))
    end
    handle:close()
    assert.equal(1, mark.pos)
    mark = nil -- luacheck: ignore
    collectgarbage()
  end)

  it("survive failing memory as they were", function()
    local function attempt(n)
      local seq <close> = model:sequence {}
      local out <close> = seq:attach(stream { stop = "++" })
      local second <close> = seq:attach(stream())
      seq:feed(bytes "!+")
      local mark = seq:mark()
      seq:feed(bytes "##")
      local function try(call, ...)
        core.alloc_inject(n)
        local ok, result, _, code = pcall(call, ...)
        core.alloc_inject(0)
        if ok and result then return result end
        assert.is_true(code == core.err.MEMORY or tostring(result):find("memory", 1, true) ~= nil)
      end
      local failed = false
      if not try(seq.feed, seq, { 36, 37 }) then
        failed = true
        assert.equal("!+##", out.text)
        seq:feed { 36, 37 }
      end
      assert.equal("!+##$%", out.text)
      local fork = try(seq.fork, seq)
      if fork then
        assert.equal("!+##$%", fork:attached()[2].text)
        fork:close()
      end
      local other = try(seq.mark, seq)
      local pos = try(seq.rewind, seq, mark)
      failed = failed or not fork or not other or not pos
      assert.equal(pos and "!" or "!+##$%", out.text)
      assert.equal(pos and "!+" or "!+##$%", second.text)
      return failed
    end
    local function sweep()
      local n = 1
      while attempt(n) or n < 10 do n = n + 1 end
      assert.is_true(n > 10)
      collectgarbage()
      collectgarbage()
      return (core.alloc_counts())
    end
    sweep()
    assert.equal(sweep(), sweep())
  end)
end)
