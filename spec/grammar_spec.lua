describe("kigo.grammar", function()
  local kigo = require "kigo"
  local support = require "spec.support"
  local err = kigo.err

  local ANY = { "class", negate = true }
  local DIGIT = { "bytes", 0x30, 0x39 }

  local function any_number(node) return { "repeat", node, 0 } end

  ---Which of the texts are in the language of the rule `root`.
  local function check(rules, accepted, rejected)
    local grammar <close> = assert(kigo.grammar(rules))
    for _, text in ipairs(accepted) do assert.is_true(grammar:accepts(text), ("%q"):format(text)) end
    for _, text in ipairs(rejected) do assert.is_false(grammar:accepts(text), ("%q"):format(text)) end
  end

  local function refused(code, rules, options)
    local grammar, message, got = kigo.grammar(rules, options)
    assert.is_nil(grammar)
    assert.equal(code, got, message)
    return message
  end

  describe("nodes", function()
    it("are texts, sequences and alternatives", function()
      check({ root = "ab" }, { "ab" }, { "", "a", "b", "abc" })
      check({ root = "" }, { "" }, { "a" })
      check({ root = { "seq", "a", "b", "" } }, { "ab" }, { "a", "ba" })
      check({ root = { "seq" } }, { "" }, { "a" })
      check({ root = { "alt", "a", "bc", "" } }, { "", "a", "bc" }, { "b", "abc" })
    end)

    it("are classes of characters and bytes", function()
      check({ root = { "class", 0x61, 0x63, 0xE9, 0xE9 } }, { "a", "c", "é" }, { "d", "e", "\xE9", "" })
      check({ root = { "class", 0x61, 0x63, negate = true } }, { "d", "é", "\u{10FFFF}", "\0" },
        { "a", "b", "\xFF", "\xED\xA0\x80" })
      check({ root = { "bytes", 0x80, 0xFF } }, { "\x80", "\xFF" }, { "a", "é" })
    end)

    it("are multiples of a decimal number", function()
      check({ root = { "multiple", 7 } }, { "0", "7", "14", "007", "1001", "14.0", "" },
        { "1", "15", "14.1", "-7", "7e1" })
      check({ root = { "multiple", 25, 2 } }, { "0.25", "1.5", "1", "0.750", ".25" }, { "0.1", "0.255", "1.2.5" })
      assert.has_error(function() kigo.grammar { root = { "multiple", 0 } } end)
      assert.has_error(function() kigo.grammar { root = { "multiple", 3, 101 } } end)
      refused(err.FORMAT, { root = { "json", { "multiple", 3 } } })
    end)

    it("are members that can come at all", function()
      local function list(...) return { "seq", "{", { "members", ... }, "}" } end
      local void = { "and", "a", "b" }
      local function with(...) return { "alt", "0", { "seq", "{", { "members", ... }, "}" } } end
      local nothing = with({ { void } })
      nothing[3][3].min, nothing[3][3].separator = 1, ","
      check({ root = nothing }, { "0" }, { "{}", "{" })
      local again = list { { { "rule", "root" } } }
      again[3].min, again[3].separator = 1, ","
      refused(err.FORMAT, { root = again }) -- never ends
      local one = with({ { void }, { "b" } })
      one[3][3].min, one[3][3].separator = 1, ","
      check({ root = one }, { "0", "{b}" }, { "{}", "{a}" })
    end)

    it("are dead in masks too where another way found them dead", function()
      local vocabulary = require "spec.fixtures.vocabulary"
      local file = vocabulary.file(vocabulary.bpe { pieces = { "61", "62", "66" } })
      local gguf <close> = assert(kigo.core.parse_gguf(file, "vocabulary"))
      local tokenizer = assert(kigo.core.tokenizer(gguf))
      local function with(text) return { "seq", any_number(ANY), text, any_number(ANY) } end
      local function string(content) return { "regular", { "seq", '"', { "json", content }, '"' } } end
      local no_b = { "not", with "b" }
      local grammar <close> = assert(kigo.grammar { root = { "alt", { "seq", string { "and", with "f", no_b }, "x" },
        { "seq", string { "and", { "not", with "f" }, no_b }, "y" } } })
      local matcher <close> = assert(grammar:matcher(tokenizer))
      local logits <close> = kigo.zeros(tokenizer.size)
      assert(matcher:accept_bytes '"')
      assert(matcher:mask(logits)) -- which finds out what is behind b
      assert(matcher:accept_bytes "\\u00")
      logits:fill_(0)
      assert(matcher:mask(logits))
      for id = 0, tokenizer.size - 1 do assert.equal(matcher:allowed(id), logits[id] == 0, tokenizer:decode { id }) end
    end)

    it("are repeats, counted", function()
      check({ root = { "repeat", "ab", 2, 3 } }, { "abab", "ababab" }, { "ab", "abababab", "aba" })
      check({ root = { "repeat", "a", 0 } }, { "", "a", ("a"):rep(5000) }, { "b", "ab" })
      check({ root = { "repeat", { "alt", "", "a" }, 3, 5 } }, { "", "aaaaa" }, { "aaaaaa" })
      check({ root = { "repeat", ANY, 3, 10 } }, { "abc", ("é"):rep(10) }, { "éé", ("é"):rep(11) })
      check({ root = { "repeat", "a", 0, 0 } }, { "" }, { "a" })
    end)

    it("are rules, which may recur", function()
      local nested = { root = { "alt", { "seq", "(", { "rule", "root" }, ")" }, "" } }
      check(nested, { "", "()", ("("):rep(300) .. (")"):rep(300) }, { "(", "())", ")(" })
      local again = { "rule", "root" }
      check({ root = { "alt", { "seq", "a", again, "b" }, { "seq", "a", again, "c" }, "" } },
        { "aabc", "aaaabcbc", ("a"):rep(60) .. ("bc"):rep(30) }, { "abac", "aab" }) -- 2^60 ways
      local list = { "seq", "[", any_number { "rule", "list" }, "]" }
      check({ root = { "repeat", { "rule", "list" }, 2, 3 }, list = list }, { "[][]", "[[]][][]" },
        { "[]", "[][][][]" })
    end)

    it("are intersections and complements of what is regular", function()
      local letters = any_number { "class", 0x61, 0x7A }
      check({ root = { "and", letters, { "not", { "alt", "if", "end" } }, { "repeat", ANY, 2, 4 } } },
        { "ab", "ends", "iff", "en" }, { "a", "if", "end", "abcde", "a1" })
      check({ root = { "not", "a" } }, { "", "b", "aa" }, { "a" })
      refused(err.FORMAT, { root = { "and", "a", "b" } })
      local nothing = { "and", { "seq", "a", any_number "b" }, { "seq", any_number "a", "d" } }
      check({ root = { "alt", "x", nothing } }, { "x" }, { "a", "ab", "ad" })
    end)

    it("are characters as JSON strings spell them", function()
      local name = { "json", "na\"\\\u{e9}\n/" }
      check({ root = name }, { [[na\"\\é\n/]], [[\u006ea\u0022\u005C\u00E9\u000a\/]], [[n\u0061\"\\\u00e9\n/]] },
        { "na\"\\é\n/", [[na\"\\e\n/]], [[na\"\\\u00e8\n/]] })
      check({ root = { "json", any_number(ANY) } },
        { "", "plain é \u{1F600}", [[\ud83d\ude00 \uD83D\uDE00]], [[\t\/\b]], "\x7f" },
        { "\n", "\"", "\\", [[\ud83d]], [[\ude00]], [[\ud83d\u0041]], [[\x]], "\xff" })
      check({ root = { "json", { "repeat", ANY, 2, 2 } } }, { [[\ud83d\ude00a]], [[\u0041\n]] },
        { [[\ud83d\ude00]], "abc" })
      check({ root = { "json", any_number(ANY), escapes = "needed" } }, { "plain", [[\"\\\n\u0001\u001F]] },
        { [[\u0041]], [[\/]], [[\u000a]] })
      check({ root = { "json", { "not", { "alt", "id", "name" } } } }, { "", "i", "idd", [[\n]] },
        { "id", [[i\u0064]], "name", [[\u006e\u0061\u006d\u0065]], "\n", "a\"" })
      refused(err.FORMAT, { root = { "json", { "json", "a" } } })
      refused(err.FORMAT, { root = { "json", "\xff" } })
      refused(err.FORMAT, { root = { "json", { "bytes", 1, 2 } } })
    end)
  end)

  describe("members", function()
    local function members(items, options)
      local node = { "members", items, separator = "," }
      for name, value in pairs(options or {}) do node[name] = value end
      return { root = { "seq", "{", node, "}" } }
    end

    it("come in any order, each at most once, required ones always", function()
      check(members { { "a", required = true }, { "b" }, { "c", required = true } },
        { "{a,c}", "{c,a}", "{b,a,c}", "{c,b,a}" }, { "{}", "{a}", "{a,b}", "{a,c,a}", "{a,c,}", "{,a,c}", "{a,c,d}" })
      check(members { { "a" }, { "b" } }, { "{}", "{a}", "{b}", "{b,a}" }, { "{a,a}", "{,}" })
      check(members({}, {}), { "{}" }, { "{a}" })
    end)

    it("come with others", function()
      local letter = { "class", 0x63, 0x7A }
      check(members({ { "a", required = true } }, { others = letter }), { "{a}", "{c,a,c,d}", "{a,z}" },
        { "{}", "{c}", "{a,a}", "{a,b}" })
      check(members({ { "a", required = true }, { "b", required = true } }, { others = letter, min = 2, max = 3 }),
        { "{a,b}", "{b,c,a}" }, { "{a,c}", "{c,d,a}", "{c,d", "{a,b,c,d}" })
      check(members({}, { others = letter, min = 2, max = 3 }), { "{c,d}", "{c,c,c}" }, { "{}", "{c}", "{c,c,c,c}" })
    end)

    it("come in order where they are told to", function()
      check(members({ { "a" }, { "b", required = true }, { "c" } }, { ordered = true, others = "z" }),
        { "{a,b,c}", "{b}", "{b,c}", "{a,b,z,z}" }, { "{b,a}", "{a,c}", "{z,b}", "{b,z,c}" })
      check(members({ { "a" }, { "b" }, { "c" } }, { ordered = true, min = 2 }), { "{a,b}", "{b,c}", "{a,c}" },
        { "{c}", "{c", "{}" })
    end)

    it("ask for others", function()
      local needy = members { { "a", requires = { 2 } }, { "b", requires = { 3 } }, { "c" }, { "d" } }
      check(needy, { "{}", "{c}", "{d}", "{b,c}", "{c,b}", "{a,b,c}", "{c,a,d,b}" }, { "{a}", "{a,b}", "{b}", "{b,d}" })
      local few = members({ { "a", requires = { 2, 3 } }, { "b" }, { "c" }, { "d" } }, { max = 3 })
      check(few, { "{a,b,c}", "{b,d,c}" }, { "{d,a", "{d,b,a" })
    end)

    it("may be many", function()
      local items, all = {}, {}
      for i = 1, 300 do
        items[i] = { "<" .. i .. ">", required = i % 2 == 0 }
        if i % 2 == 0 then table.insert(all, 1, "<" .. i .. ">") end
      end
      check(members(items), { "{" .. table.concat(all, ",") .. ",<1>,<299>}" },
        { "{" .. table.concat(all, ",", 2) .. "}" })
    end)

    it("are refused where they cannot be had", function()
      refused(err.FORMAT, members({ { "a", required = true }, { "b", required = true } }, { max = 1 }))
      refused(err.FORMAT, members({ { "a" } }, { min = 2 }))
      refused(err.FORMAT, members { { { "alt" }, required = true } })
      check(members { { "a" }, { { "alt" } } }, { "{a}" }, { "{,a}" })
    end)
  end)

  describe("checks", function()
    it("refuse what cannot be matched", function()
      assert.matches("nope", refused(err.FORMAT, { root = { "rule", "nope" } }))
      assert.matches("left recursion", refused(err.FORMAT, { root = { "alt", { "seq",
        { "rule", "root" }, "a" }, "a" } }))
      refused(err.FORMAT, { root = { "rule", "a" }, a = { "seq", { "repeat", "x", 0 },
        { "rule", "b" }, "y" }, b = { "alt", "z", { "rule", "a" } } })
      refused(err.FORMAT, { root = { "rule", "root" } })
      refused(err.FORMAT, { root = { "seq", "a", { "rule", "root" } } })
      refused(err.FORMAT, { root = { "alt" } })
      refused(err.FORMAT, { root = { "not", { "rule", "x" } }, x = { "alt", { "seq", "(",
        { "rule", "x" }, ")" }, "" } })
      refused(err.FORMAT, {})
    end)

    it("refuse what is too large", function()
      local list = { "seq" }
      for _ = 1, 2000 do list[#list + 1] = { "alt", "a", { "seq", "b" } } end
      refused(err.FULL, { root = list }, { nodes = 1000 })
      refused(err.FULL, { root = ("x"):rep(1 << 20) }, { memory = 1 << 18 })
      local deep = "a"
      for _ = 1, 200 do deep = { "seq", deep } end
      assert(kigo.grammar { root = deep }):close()
      refused(err.FULL, { root = { "seq", deep } })
    end)

    it("raise for shapes that are no nodes", function()
      local function raises(rules) assert.has_error(function() kigo.grammar(rules) end) end
      raises(nil)
      raises { root = 1 }
      raises { root = {} }
      raises { root = { "what" } }
      raises { root = { "class", 1 } }
      raises { root = { "class", 2, 1 } }
      raises { root = { "class", 0, 0x110000 } }
      raises { root = { "repeat", "a", 2, 1 } }
      raises { root = { "repeat", "a", -1 } }
      raises { root = { "repeat" } }
      raises { root = { "rule" } }
      raises { root = { "members", { { "a", requires = { 2 } } } } }
      raises { root = { "json", "a", escapes = "some" } }
      raises { "a" }
      local cyclic = { "seq", "a" }
      cyclic[3] = cyclic
      raises { root = cyclic }
      assert.has_error(function() kigo.grammar({ root = "a" }, { nope = 1 }) end)
    end)
  end)

  describe("a matcher of bytes", function()
    it("goes on, and back", function()
      local grammar <close> = assert(kigo.grammar { root = { "seq", "{", any_number(DIGIT), "}" } })
      local matcher <close> = assert(grammar:matcher())
      assert.is_true(matcher:accept_bytes "{1")
      assert.is_false(matcher:is_complete())
      assert.is_false(matcher:accept_bytes "2x")
      assert.equal("{1", matcher:text())
      assert.is_true(matcher:accept_bytes "2}")
      assert.is_true(matcher:is_complete())
      assert.is_true(matcher:is_over())
      assert.equal(1, matcher:rewind())
      assert.is_false(matcher:is_over())
      local copy <close> = matcher:copy()
      assert.is_true(copy:accept_bytes "}")
      assert.equal("{1", matcher:text())
      assert.equal(0, matcher:rewind(1))
      assert.has_error(function() matcher:rewind() end)
      assert.has_error(function() matcher:accept(1) end)
    end)

    it("closes", function()
      local grammar = assert(kigo.grammar { root = "a" })
      local matcher = assert(grammar:matcher())
      grammar:close()
      assert.is_true(matcher:accept_bytes "a") -- the matcher keeps what it needs
      matcher:close()
      assert.has_error(function() matcher:text() end)
      assert.has_error(function() grammar:matcher() end)
      assert.equal("kigo.Grammar (closed)", tostring(grammar))
    end)
  end)

  describe("a matcher of tokens", function()
    it("allows what it accepts, on a full vocabulary", function()
      local gguf <close> = assert(kigo.open_gguf(support.fixture "vocab/qwen2.gguf"))
      local tokenizer <close> = assert(kigo.core.tokenizer(gguf))
      local grammar <close> = assert(kigo.grammar { root = { "seq", '"', { "json", any_number(ANY) }, '"' } })
      local matcher <close> = assert(grammar:matcher(tokenizer))
      for _, id in ipairs(tokenizer:encode [["a\nb é"]]) do
        local allowed = {}
        for _, one in ipairs(matcher:ids()) do allowed[one] = true end
        for one = 0, tokenizer.size - 1, 61 do assert.equal(matcher:allowed(one), allowed[one] or false) end
        assert.is_true(matcher:accept(id))
      end
      assert.is_true(matcher:is_over())
      assert.is_true(tokenizer:is_end(matcher:ids()[1]))
    end)
  end)

  describe("without memory", function()
    local pcall = pcall -- looking a global up costs memory in a spec
    local vocabulary = require "spec.fixtures.vocabulary"
    local core = kigo.core

    local function small_tokenizer()
      local entries = vocabulary.bpe { pieces = { "ab", "b]", "{a" }, special = { { "<eos>", 3 } },
        entries = { { "tokenizer.ggml.eos_token_id", "u32", 259 } } }
      local gguf <close> = assert(core.parse_gguf(vocabulary.file(entries), "spec"))
      return assert(core.tokenizer(gguf))
    end

    local LETTER = { "class", 0x61, 0x7A, 0xE9, 0xE9 }
    local RULES = {
      root = { "alt", { "seq", "[", { "rule", "root" }, "]" },
        { "members", { { "ab", required = true }, { { "rule", "name" } } }, separator = ",", others = "z" } },
      name = { "regular", { "seq", "{", { "and", { "json", { "repeat", LETTER, 0, 9 } }, { "not", "a" } }, "}" } },
    }
    local IDS = { 0x5B, 0x7B, 0x61, 0x62, 0x7D, 0x2C, 256, 0x5D }

    ---All calls once, the n-th allocation failing: is that still reached?
    local function attempt(tokenizer, n, for_ever)
      local grammar, matcher, copy, ok, value, code, odd
      -- no memory may be wanted here but by what is called
      local function note(called, one, _, number)
        ok, value, code = called, one, number
        if not (called and (one ~= nil or number == err.MEMORY)) and odd == nil then odd = one or number end
        return called and one
      end
      local function body()
        grammar = note(pcall(kigo.grammar, RULES))
        matcher = grammar and note(pcall(grammar.matcher, grammar, tokenizer))
        for i = 1, matcher and #IDS or 0 do
          note(pcall(matcher.count, matcher))
          note(pcall(matcher.allowed, matcher, 256))
          if not note(pcall(matcher.accept, matcher, IDS[i])) then note(pcall(matcher.accept, matcher, IDS[i])) end
          copy = note(pcall(matcher.copy, matcher))
          if copy then copy:close() end
        end
      end
      local _, before = core.alloc_counts()
      core.alloc_inject(n, for_ever)
      body()
      core.alloc_inject(0)
      local _, after = core.alloc_counts()
      if odd then assert.matches("memory", tostring(odd)) end
      if matcher and not for_ever then
        assert.equal("[{ab},ab]", matcher:text())
        assert.is_true(matcher:is_over())
      end
      if matcher then matcher:close() end
      if grammar then grammar:close() end
      return after - before >= n, ok, value, code
    end

    it("says so, leaks nothing, and goes on where it was", function()
      for _, for_ever in ipairs { false, true } do
        local live = {}
        for round = 1, 3 do -- the first ones make what stays
          local n, is_hit = 1, true
          while is_hit do
            local tokenizer <close> = small_tokenizer() -- its trees are made, too
            is_hit = attempt(tokenizer, n, for_ever)
            n = n + (for_ever and 11 or 5)
          end
          collectgarbage()
          collectgarbage()
          live[round] = core.alloc_counts()
          assert.is_true(n > 100)
        end
        assert.equal(live[2], live[3])
      end
    end)
  end)
end)
