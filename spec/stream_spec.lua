describe("kigo.stream", function()
  local kigo = require "kigo"
  local core = kigo.core or kigo
  local support = require "spec.support"
  local vocabulary = require "spec.fixtures.vocabulary"

  local END = 256 -- in the vocabularies of pieces below

  ---A tokenizer with the single bytes (id = byte), <|im_end|>, and these pieces from id 257 on.
  local function tokenizer_of(pieces)
    local special = { { "<|im_end|>", 3 } }
    for i, piece in ipairs(pieces) do special[i + 1] = { vocabulary.map(piece), 1 } end
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe { special = special }), "spec"))
    return assert(core.tokenizer(gguf))
  end

  ---A tokenizer in which every part of the text is one token: id_of[part].
  local function tokenizer_of_parts(text)
    local id_of, pieces = {}, {}
    for first = 1, #text do
      for last = first, #text do
        local part = text:sub(first, last)
        if #part == 1 then
          id_of[part] = part:byte()
        elseif not id_of[part] then
          pieces[#pieces + 1] = part
          id_of[part] = END + #pieces
        end
      end
    end
    return tokenizer_of(pieces), id_of
  end

  -- The oracle: what a stream must have shown, from the bytes so far, with the simplest means.

  ---Can more bytes make this one character?
  local function is_start(bytes)
    for n = 1, 3 do
      for _, second in ipairs { "", "\x80", "\x90", "\xA0", "\xBF" } do
        if utf8.len(bytes .. second .. ("\x80"):rep(n - 1)) == 1 then return true end
      end
    end
    return false
  end

  ---Characters of the bytes, U+FFFD for each maximal invalid part; and whether the last waits for more bytes.
  local function characters(bytes, is_last)
    local list, at = {}, 1
    while at <= #bytes do
      local size
      for n = 1, 4 do
        if at + n - 1 <= #bytes and utf8.len(bytes:sub(at, at + n - 1)) == 1 then size = n end
        if size then break end
      end
      if size then
        list[#list + 1] = bytes:sub(at, at + size - 1)
      else
        size = 1
        for n = 2, 3 do
          if at + n - 1 <= #bytes and is_start(bytes:sub(at, at + n - 1)) then size = n end
        end
        local is_open = at + size > #bytes and is_start(bytes:sub(at))
        if is_open and not is_last then return list end
        list[#list + 1] = "\u{FFFD}"
      end
      at = at + size
    end
    return list
  end

  ---Text to be shown after these bytes, and whether a stop string ended it.
  local function oracle(bytes, stops, is_last)
    local text = ""
    for _, character in ipairs(characters(bytes, is_last)) do
      text = text .. character
      local cut = 0
      for _, stop in ipairs(stops) do
        if #stop > cut and text:sub(-#stop) == stop then cut = #stop end
      end
      if cut > 0 then return text:sub(1, #text - cut), true end
    end
    if is_last then return text, false end
    local held = 0
    for _, stop in ipairs(stops) do
      for n = 1, #stop - 1 do
        if n <= #text and text:sub(-n) == stop:sub(1, n) and n > held then held = n end
      end
    end
    return text:sub(1, #text - held), false
  end

  ---Feed parts of a text and compare with the oracle after each.
  local function follow(tokenizer, id_of, parts, stops)
    local stream <close> = core.stream(tokenizer, { stop = stops })
    local bytes, shown = "", ""
    for _, part in ipairs(parts) do
      bytes = bytes .. part
      local piece = stream:add(id_of[part])
      shown = shown .. piece
      local expected, is_stopped = oracle(bytes, stops, false)
      assert.equal(expected, shown)
      assert.is_truthy(utf8.len(piece))
      assert.equal(is_stopped, stream.stopped)
      assert.equal(is_stopped and "stop" or nil, stream.reason)
    end
    shown = shown .. stream:finish()
    local expected, is_stopped = oracle(bytes, stops, true)
    assert.equal(expected, shown)
    assert.equal(expected, stream.text)
    assert.equal(is_stopped, stream.stopped)
  end

  ---All 2^(n-1) ways to cut a text of n bytes.
  local function every_split(text, stops)
    local tokenizer <close>, id_of = tokenizer_of_parts(text)
    for mask = 0, (1 << (#text - 1)) - 1 do
      local parts, from = {}, 1
      for at = 1, #text do
        if at == #text or mask >> (at - 1) & 1 == 1 then
          parts[#parts + 1] = text:sub(from, at)
          from = at + 1
        end
      end
      follow(tokenizer, id_of, parts, stops)
    end
  end

  describe("characters", function()
    for _, text in ipairs { "a\u{e9}\u{4e2d}\u{1F642}z", "\u{1F469}\u{200D}\u{1F467}", "\u{e9}", "abc" } do
      it(("are never cut: %s"):format(text), function() every_split(text, {}) end)
    end

    for _, text in ipairs {
      "\xFF", "a\x80b", "\xC3", "\xE4\xB8", "\xF0\x9F\x99", "\xC3a\xC3", "\xE4\xB8\xE4\xB8\xAD", "\xF0\x9F\xC3\xA9",
      "\xED\xA0\x80x", "\xC0\xAF\xC1", "\xE0\x80\x80", "\xF4\x90\x80\x80", "\xF8\x88\x80", "\xF0\x80\x80\x41",
      "\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41",
    } do
      it(("that are invalid become U+FFFD: %q"):format(text), function() every_split(text, {}) end)
    end

    it("wait for their last byte", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer)
      assert.equal("", stream:add(0xF0))
      assert.equal("", stream:add(0x9F))
      assert.equal("", stream:add(0x99))
      assert.equal("\u{1F642}", stream:add(0x82))
      assert.equal("", stream:add(0xF0))
      assert.equal("\u{FFFD}", stream:finish())
      assert.equal("\u{1F642}\u{FFFD}", stream.text)
    end)
  end)

  describe("stop strings", function()
    local cases = {
      { "Hi\nUser: x", { "\nUser:" } }, { "aaab", { "aab" } }, { "ababac", { "abac" } }, { "abababab", { "abac" } },
      { "one\n\ntwo", { "\n\n", "User:" } }, { "xabcdy", { "abcd", "bc" } }, { "xabce", { "abcd", "bce" } },
      { "xabcy", { "c", "bc", "abc" } }, { "caf\u{e9}s", { "\u{e9}s" } }, { "\u{e8}\u{e9}\u{ea}", { "\u{e9}" } },
      { "a\u{1F642}b", { "\u{1F643}", "\u{1F642}b" } }, { "stop", { "stop" } }, { "sto", { "stop" } },
      { "ab\xFFcd", { "\u{FFFD}c" } }, { "\xC3ab\xE4", { "\u{FFFD}" } }, { "aXbXXc", { "XX" } },
      { "aaaaaaaa", { "aaaab", "aac" } },
    }
    for _, case in ipairs(cases) do
      it(("end the text however it is cut: %q"):format(case[1]), function() every_split(case[1], case[2]) end)
    end

    it("agree with the oracle on random texts", function()
      local alphabet = { "a", "b", "\u{e9}", "\n", "\xC3", "\xA9", "\u{4e2d}" }
      local draw = 0
      local function random(n)
        draw = draw + 1
        return math.floor(core.uniform(11, 0, draw) * n)
      end
      local function text(n)
        local list = {}
        for i = 1, n do list[i] = alphabet[1 + random(#alphabet)] end
        return table.concat(list)
      end
      for _ = 1, 300 do
        local source, stops = text(1 + random(12)), {}
        for _ = 1, random(4) do
          local stop = text(1 + random(4))
          if utf8.len(stop) then stops[#stops + 1] = stop end
        end
        local tokenizer <close>, id_of = tokenizer_of_parts(source)
        local parts, at = {}, 1
        while at <= #source do
          local n = 1 + random(4)
          parts[#parts + 1] = source:sub(at, at + n - 1)
          at = at + n
        end
        follow(tokenizer, id_of, parts, stops)
      end
    end)

    it("are not shown, nor what follows them", function()
      local tokenizer <close> = tokenizer_of { "ab!!cd" }
      local stream <close> = core.stream(tokenizer, { stop = { "!!" } })
      assert.equal("ab", stream:add(257))
      assert.is_true(stream.stopped)
      assert.equal("stop", stream.reason)
      assert.equal("", stream:add(97))
      assert.equal("", stream:add(END))
      assert.equal("stop", stream.reason)
      assert.equal("", stream:finish())
      assert.equal("ab", stream.text)
    end)

    it("that are long cost no more than short ones", function()
      local tokenizer <close> = tokenizer_of { ("a"):rep(1000) }
      local stream <close> = core.stream(tokenizer, { stop = { ("a"):rep(100000) .. "b", ("a"):rep(99999) .. "c" } })
      local start = core.now()
      for _ = 1, 500 do stream:add(257) end
      assert.is_true(core.now() - start < 2)
      assert.equal(400000, #stream.text)
      stream:finish()
      assert.equal(500000, #stream.text)
    end)

    it("may be one string", function()
      local tokenizer <close> = tokenizer_of { "ab!!cd" }
      local stream <close> = core.stream(tokenizer, { stop = "!!" })
      assert.equal("ab", stream:add(257))
      assert.equal("stop", stream.reason)
    end)

    it("must be UTF-8 and not empty", function()
      local tokenizer <close> = tokenizer_of {}
      for _, bad in ipairs { "", "\xFF", "\xC3", "a\x80", "\xED\xA0\x80" } do
        assert.has_error(function() core.stream(tokenizer, { stop = { "ok", bad } }) end)
      end
      for _, bad in ipairs { 7, true, "", "\xFF", { 7 }, { {} } } do
        assert.has_error(function() core.stream(tokenizer, { stop = bad }) end)
      end
      core.stream(tokenizer, {}):close()
      core.stream(tokenizer, nil):close()
    end)
  end)

  describe("end tokens", function()
    it("end the stream and are not shown", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer, { stop = { "abc" } })
      assert.is_false(stream.stopped)
      assert.is_nil(stream.reason)
      assert.equal("", stream:add(97))
      assert.equal("", stream:add(END))
      assert.is_true(stream.stopped)
      assert.equal("end", stream.reason)
      assert.equal("", stream:add(98))
      assert.equal("a", stream:finish())
      assert.equal("", stream:finish())
      assert.equal("a", stream.text)
    end)

    it("or stop strings that never come leave a length as the reason", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer, { stop = { "abc" } })
      assert.equal("", stream:add(97))
      assert.equal("a", stream:finish())
      assert.equal("length", stream.reason)
      assert.is_false(stream.stopped)
      local copy <close> = stream:copy()
      assert.equal("length", copy.reason)
    end)

    it("leave half a character to finish", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer)
      stream:add(0xC3)
      stream:add(END)
      assert.equal("\u{FFFD}", stream:finish())
    end)
  end)

  describe("control tokens", function()
    it("are left out, or spelled out where that is asked for", function()
      local special = { { "<|im_end|>", 3 }, { "<|tool|>", 3 } }
      local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe { special = special }), "spec"))
      local tokenizer <close> = assert(core.tokenizer(gguf))
      local ids = { 0x61, END + 1, 0xC3, END + 1, 0x62, END }
      for control, expected in pairs { [false] = "a\u{fffd}b", [true] = "a<|tool|>\u{fffd}<|tool|>b" } do
        local stream <close> = assert(core.stream(tokenizer, { control = control, stop = { "|>b" } }))
        local copy <close> = assert(stream:copy())
        for _, each in ipairs { stream, copy } do
          local text = ""
          for _, id in ipairs(ids) do text = text .. each:add(id) end
          text = text .. each:finish()
          assert.equal(control and "a<|tool|>\u{fffd}<|tool" or expected, text)
          assert.equal(control and "stop" or "end", each.reason)
        end
      end
    end)
  end)

  describe("SentencePiece", function()
    local it = support.shared and it or pending -- a vocabulary of this kind is reference data
    local tokenizer
    before_each(function()
      local gguf <close> = assert(core.open_gguf(support.fixture("models/stories260K.gguf")))
      tokenizer = assert(core.tokenizer(gguf))
    end)
    after_each(function() tokenizer:close() end)

    local function stream_text(options, ids)
      local stream <close> = core.stream(tokenizer, options)
      local shown = ""
      for _, id in ipairs(ids) do shown = shown .. stream:add(id) end
      return shown .. stream:finish()
    end

    it("shows no space before the first word", function()
      local text = "Once upon a time, \u{1F642}  there"
      local ids = tokenizer:encode(text)
      assert.equal(text, stream_text(nil, ids))
      assert.equal(text, stream_text({ after = tokenizer.bos }, ids))
      table.insert(ids, 1, tokenizer.bos)
      assert.equal(text, stream_text(nil, ids))
    end)

    it("keeps the space where it goes on with a text", function()
      local ids = tokenizer:encode "upon a time"
      assert.equal(" upon a time", stream_text({ after = tokenizer:encode("Once")[1] }, ids))
    end)

    it("refuses an id that is out of range as the one before", function()
      for _, id in ipairs { -1, tokenizer.size, 0.5, "1" } do
        assert.has_error(function() core.stream(tokenizer, { after = id }) end)
      end
    end)

    it("gives the text that decode gives", function()
      for id = 3, tokenizer.size - 4 do
        local ids = { id, id + 1, id + 2, id + 3 }
        local decoded = tokenizer:decode(ids)
        if utf8.len(decoded) then assert.equal(decoded, stream_text(nil, ids)) end
      end
    end)
  end)

  describe("copy", function()
    it("goes its own way from the same state", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer, { stop = { "xyz" } })
      for _, id in ipairs { 97, 120, 121, 0xC3 } do stream:add(id) end
      local copy <close> = stream:copy()
      assert.equal("a", copy.text)
      assert.equal("xy\u{e9}", copy:add(0xA9))
      assert.equal("axy\u{e9}", copy.text)
      assert.equal("a", stream.text)
      assert.equal("xy\u{FFFD}z", stream:add(122))
      local second <close> = stream:copy()
      stream:close()
      assert.equal("axy\u{FFFD}z", second.text)
      assert.equal("b", second:add(98))
      second:add(END)
      local ended <close> = second:copy()
      assert.equal("end", ended.reason)
    end)

    it("keeps half-matched stop strings", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer, { stop = { "xyz" } })
      stream:add(120)
      stream:add(121)
      local copy <close> = stream:copy()
      assert.equal("", copy:add(122))
      assert.equal("stop", copy.reason)
      assert.is_nil(stream.reason)
      assert.equal("xy", stream:finish())
      local finished <close> = stream:copy()
      assert.has_error(function() finished:add(97) end)
    end)
  end)

  describe("rewind", function()
    ---Everything that one can see of a stream, and what it does with these ids next.
    local function portrait(stream, ids)
      local copy <close> = stream:copy()
      local list = { copy.text, tostring(copy.reason), tostring(copy.stopped), copy.n_ids }
      for _, id in ipairs(ids) do list[#list + 1] = copy:add(id) end
      list[#list + 1] = copy:finish()
      list[#list + 1] = copy.reason
      return list
    end

    it("goes back to the state behind any id, as if nothing had come after it", function()
      local dice = require "spec.tiny".dice(5)
      local tokenizer <close> = tokenizer_of { "ab", "abab", "b\xC3", "\xA9a", "aba" }
      local alphabet = { 97, 98, 99, 0xC3, 0xA9, 0xF0, 257, 258, 259, 260, 261, END }
      local options = { stop = { "abac", "bb", "\u{e9}" } }
      for _ = 1, 300 do
        local stream <close> = core.stream(tokenizer, options)
        local ids = {}
        for _ = 1, 60 do
          local choice = dice(10)
          if choice <= 7 then
            local id = alphabet[dice(dice(4) == 1 and #alphabet or #alphabet - 1)]
            stream:add(id)
            ids[#ids + 1] = id
          elseif choice == 8 then
            local n = dice(#ids + 1) - 1
            assert.equal(stream, stream:rewind(n))
            ids = table.move(ids, 1, n, 1, {})
          elseif choice == 9 then -- finish and think better of it
            stream:finish()
            stream:rewind(#ids)
          else
            local fresh <close> = core.stream(tokenizer, options)
            for _, id in ipairs(ids) do fresh:add(id) end
            local next_ids = { alphabet[dice(11)], alphabet[dice(11)], alphabet[dice(11)] }
            assert.same(portrait(fresh, next_ids), portrait(stream, next_ids))
          end
        end
      end
    end)

    it("does not hand out again what was read, nor keep what is gone", function()
      local tokenizer <close> = tokenizer_of {}
      local stream <close> = core.stream(tokenizer)
      for _, id in ipairs { 97, 98, 99 } do stream:add(id) end
      stream:rewind(1)
      assert.equal("a", stream.text)
      assert.equal("", stream:read())
      assert.equal("d", stream:add(100))
      assert.equal("ad", stream.text)
      for _, bad in ipairs { -1, 3, 1.5, "1" } do
        assert.has_error(function() stream:rewind(bad) end)
      end
    end)
  end)

  describe("handles", function()
    it("raise after close and after finish, and keep their tokenizer", function()
      local tokenizer <close> = tokenizer_of {}
      local stream = core.stream(tokenizer)
      assert.equal("kigo.Stream (0 bytes)", tostring(stream))
      for _, id in ipairs { -1, tokenizer.size, 0.5, "1" } do
        assert.has_error(function() stream:add(id) end)
      end
      stream:add(97)
      local other = core.stream(tokenizer)
      stream:finish()
      assert.has_error(function() stream:add(97) end)
      stream:close()
      stream:close()
      assert.equal("kigo.Stream (closed)", tostring(stream))
      for _, call in ipairs {
        function() stream:add(97) end, function() stream:finish() end, function() stream:copy() end,
        function() return stream.text end, function() return stream.stopped end,
      } do
        assert.has_error(call)
      end
      tokenizer:close()
      assert.equal("a", other:add(97))
      local copy <close> = other:copy()
      other:close()
      assert.equal("b", copy:add(98))
      assert.has_error(function() core.stream({}) end)
    end)

    it("report failing memory, stay as they were and leak nothing", function()
      local tokenizer <close> = tokenizer_of { ("text "):rep(20), "st" }
      local options = { stop = { "stop", "text text!" } }
      local pcall = pcall -- looking a global up costs memory in a spec

      ---Once more with the n-th allocation failing; true while that hits.
      local function attempt(n, for_ever)
        local stream <close> = core.stream(tokenizer, options)
        local _, before = core.alloc_counts()
        core.alloc_inject(n, for_ever)
        local is_added, text, _, code = pcall(stream.add, stream, 257)
        core.alloc_inject(0)
        local _, after = core.alloc_counts()
        if not (is_added and text) then
          assert.is_true(code == core.err.MEMORY or tostring(text):find("memory", 1, true) ~= nil)
          -- nothing was taken, unless it was Lua that could not make a string of it
          text = stream.text
          if text == "" then text = stream:add(257) else assert.is_nil(code) end
        end
        assert.equal(stream.text, text)
        text = text .. stream:add(258)
        core.alloc_inject(n, for_ever)
        local is_copied, copy = pcall(stream.copy, stream)
        core.alloc_inject(0)
        if is_copied and copy then
          assert.equal(stream.text, copy.text)
          copy:close()
        end
        assert.equal(("text "):rep(20) .. "st", text .. stream:finish())
        return after - before >= n
      end

      for _, for_ever in ipairs { false, true } do
        local function sweep()
          local n = 1
          while attempt(n, for_ever) or n < 12 do n = n + 1 end
        end
        sweep()
        collectgarbage()
        collectgarbage()
        local live_before = core.alloc_counts()
        sweep()
        for n = 1, 12 do
          core.alloc_inject(n, for_ever)
          local ok, stream = pcall(core.stream, tokenizer, options)
          core.alloc_inject(0)
          if ok and stream then stream:close() end
        end
        collectgarbage()
        collectgarbage()
        local live_after = core.alloc_counts()
        assert.equal(live_before, live_after)
      end
    end)
  end)
end)
