-- The kinds of vocabularies beside byte-level BPE, and what all kinds share: special tokens, frames, white space
-- around them. spec/fixtures/tokenizers holds small trained vocabularies with the ids that SentencePiece and Hugging
-- Face give; spec/fixtures/make_tokenizers.py makes those and, for KIGO_TOKENIZER_CASES, as many as one likes.
describe("kigo.tokenizer kinds", function()
  local core = require "kigo.core"
  local fuzz = require "spec.fuzz"
  local support = require "spec.support"
  local vocabulary = require "spec.fixtures.vocabulary"

  local T = "tokenizer.ggml."

  local function parse(entries)
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(entries), "spec"))
    return core.tokenizer(gguf)
  end

  local function make(entries) return assert(parse(entries)) end

  local function refuses(code, entries)
    local tokenizer, message, found = parse(entries)
    assert.is_nil(tokenizer)
    assert.equal(code, found)
    return message
  end

  -- ---- outside oracles ----

  local FOLDER = os.getenv "KIGO_TOKENIZER_CASES"

  ---How many cases of a vocabulary differ, and the first of them.
  local function compare(folder, name)
    local gguf <close> = assert(core.open_gguf(("%s/%s.gguf"):format(folder, name)))
    local tokenizer <close> = assert(core.tokenizer(gguf))
    local data, differ, first = support.read_json(("%s/%s.json"):format(folder, name)), 0, nil
    for _, case in ipairs(data.cases) do
      local text, expected = case[1], case[2]
      for i, id in ipairs(expected) do expected[i] = math.tointeger(id) end
      local ids = assert(tokenizer:encode(text))
      if table.concat(ids, " ") ~= table.concat(expected, " ") then
        differ, first = differ + 1, first or { text, expected, ids }
      end
      -- U+2581 is a space to SentencePiece
      if data.lossless then assert.equal(text:gsub("\u{2581}", " "), tokenizer:decode(ids)) end
    end
    return differ, #data.cases, first
  end

  for _, name in ipairs { "spm", "spm-no-prefix", "spm-squeeze", "unigram", "unigram-bytes", "bert-uncased",
                          "bert-cased", "bert-accents", "gemma4" } do
    it("give the ids of outside tokenizers: " .. name, function()
      local _, n, first = compare("spec/fixtures/tokenizers", name)
      if first then
        assert.same(first[2], first[3], ("%q"):format(first[1]))
      end
      assert.equal(100, n)
    end)
  end

  if FOLDER then
    it("give the ids of outside tokenizers in " .. FOLDER, function()
      for path in io.popen(("ls '%s'"):format(FOLDER)):lines() do
        local name = path:match "^(.*)%.json$"
        if name then
          local differ, n, first = compare(FOLDER, name)
          io.stderr:write(("\n%-20s %d texts, %d differ%s"):format(name, n, differ,
            first and (", first %q"):format(first[1]) or ""))
        end
      end
    end)
  end

  -- ---- WordPiece ----

  describe("WordPiece", function()
    local M = "\u{2581}"
    local rows = { { "[PAD]", 0, 3 }, { "[UNK]", 0, 3 }, { "[CLS]", 0, 3 }, { "[SEP]", 0, 3 }, { "[MASK]", 0, 3 },
      { M .. "a" }, { "a" }, { "b" }, { M .. "ab" }, { "bb" }, { M .. "!" }, { M .. "\u{4e2d}" }, { M .. "e" },
      { M .. "\u{e9}" }, { M .. "x" }, { M .. "NEW", 0, 4 } }
    local UNK, CLS, SEP, MASK, A, _A, AB, BB, BANG, ZH, E, EE, X, NEW = 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15

    ---@param entries table[]?
    local function bert(entries) return vocabulary.of("bert", rows, entries) end

    it("takes the longest pieces from the left, or the word is unknown", function()
      local tokenizer <close> = make(bert())
      assert.same({ AB, BB, _A }, tokenizer:encode "abbba")
      assert.same({ UNK }, tokenizer:encode "abc")
      assert.same({ A, UNK, A }, tokenizer:encode "a bbb a")
      assert.same({ BANG, BANG, A, BANG }, tokenizer:encode "!!a!")
      assert.same({}, tokenizer:encode " \t\n\u{3000}")
    end)

    it("knows words of a hundred characters and no longer ones", function()
      local tokenizer <close> = make(bert())
      local ids = { A }
      for i = 2, 100 do ids[i] = _A end
      assert.same(ids, tokenizer:encode(("a"):rep(100)))
      assert.same({ UNK }, tokenizer:encode(("a"):rep(101)))
      assert.same({ UNK, A }, tokenizer:encode(("\u{e4}\u{308}"):rep(5000) .. "c a"))
    end)

    it("cleans text, parts ideographs and drops what is no character", function()
      local tokenizer <close> = make(bert())
      assert.same({ A, ZH, ZH, A }, tokenizer:encode "a\u{4e2d}\u{4e2d}a")
      assert.same({ AB }, tokenizer:encode "\0a\u{200b}\u{ad}\x01\u{fffd}\u{e000}b")
      assert.same({ AB }, tokenizer:encode "a\xFF\xE4\xB8b\xC3")
      assert.same({ A, A }, tokenizer:encode "a\u{2028}a")
    end)

    it("lowers letters and strips accents as the file says, or as its alphabet shows", function()
      local function ids_of(text, entries)
        local tokenizer <close> = make(bert(entries))
        return tokenizer:encode(text)
      end
      local function flags(lower, strip)
        return { lower ~= nil and { T .. "normalizer.lowercase", "bool", lower } or nil,
          strip ~= nil and { T .. "normalizer.strip_accents", "bool", strip } or nil }
      end
      assert.same({ A, EE, EE }, ids_of "A \u{c9} \u{e9}") -- the vocabulary has a letter with an accent
      assert.same({ A, E, E, E }, ids_of("A \u{c9} \u{e9} e\u{301}", flags(1)))
      assert.same({ A, EE, EE, UNK }, ids_of("A \u{c9} \u{e9} e\u{301}", flags(1, 0)))
      assert.same({ UNK, UNK, EE }, ids_of("A \u{c9} \u{e9}", flags(0)))
      assert.same({ UNK, UNK, E }, ids_of("A \u{c9} \u{e9}", { { T .. "normalizer.lowercase", "bool", 0 },
        { T .. "normalizer.strip_accents", "bool", 1 } }))
      local cased = { { "[UNK]", 0, 2 } }
      for c = 65, 90 do cased[#cased + 1] = { M .. string.char(c) } end
      local tokenizer <close> = make(vocabulary.of("bert", cased))
      assert.same({ 1, 0, 26 }, tokenizer:encode "A a Z")
    end)

    it("finds its special tokens, and never gives the unknown one for a control token", function()
      local tokenizer <close> = make(bert())
      assert.same({ CLS, CLS, SEP, MASK, UNK, 0 }, { tokenizer.bos, tokenizer.cls, tokenizer.sep, tokenizer.mask,
        tokenizer.unk, tokenizer.pad })
      assert.is_nil(tokenizer.eos)
      assert.is_false(tokenizer:is_control(UNK))
      assert.is_true(tokenizer:is_control(SEP))
      for _, id in ipairs(tokenizer:encode "[CLS] [MASK] [SEP] a") do assert.is_false(tokenizer:is_control(id)) end
      assert.same({ A, MASK, A, SEP }, tokenizer:encode("a [MASK]a[SEP]", { special = true }))
      assert.same({ A, NEW, A }, tokenizer:encode "a NEW a")
    end)

    it("frames a text once", function()
      local tokenizer <close> = make(bert())
      assert.is_true(tokenizer.add_bos and tokenizer.add_sep)
      assert.is_false(tokenizer.add_eos)
      local frame = { bos = true, eos = true }
      assert.same({ CLS, A, SEP }, tokenizer:encode("a", frame))
      assert.same({ CLS, SEP }, tokenizer:encode("", frame))
      assert.same({ CLS, A, SEP }, tokenizer:encode({ { control = "[CLS]" }, "a", { control = "[SEP]" } }, frame))
      assert.same({ A }, tokenizer:encode "a")
      local bare <close> = make(bert { { T .. "add_bos_token", "bool", 0 }, { T .. "add_sep_token", "bool", 0 } })
      assert.same({ A }, bare:encode("a", frame))
      local newer <close> = make(bert { { T .. "eos_token_id", "u32", SEP }, { T .. "add_eos_token", "bool", 1 } })
      assert.same({ CLS, A, SEP }, newer:encode("a", frame))
    end)

    it("writes words with spaces between them", function()
      local tokenizer <close> = make(bert())
      assert.equal("ab a !", tokenizer:decode { CLS, AB, A, BANG, SEP })
      assert.equal("a a", tokenizer:decode { A, MASK, A })
      assert.equal("a[MASK] a", tokenizer:decode({ A, MASK, A }, { control = true }))
      assert.equal("[CLS] a", tokenizer:decode({ CLS, A }, { control = true }))
    end)

    it("needs an unknown token only for what is unknown", function()
      local tokenizer <close> = make(vocabulary.of("bert", { { M .. "a" } }))
      assert.same({ 0 }, tokenizer:encode "a")
      assert.same({ nil, core.err.UNSUPPORTED }, { select(1, tokenizer:encode "b"), select(3, tokenizer:encode "b") })
      assert.is_nil(tokenizer.unk)
    end)

    it("knows a mask that swallows the space before it", function()
      local tokenizer <close> = make(bert { { T .. "pre", "string", "modern-bert" } })
      assert.same({ X, MASK, A }, tokenizer:encode("x \u{3000} [MASK] a", { special = true }))
    end)
  end)

  -- ---- unigram ----

  describe("unigram", function()
    local M = "\u{2581}"
    local rows = { { "<pad>", 0, 3 }, { "</s>", 0, 3 }, { "<unk>", 0, 2 }, { M, -2 }, { "a", -3 }, { "b", -3 },
      { "ab", -4 }, { M .. "a", -4.5 }, { "<u>", 0, 4 }, { M .. M, 0, 4 }, { "x", 0, 5 } }
    local EOS, UNK, SPACE, A, B, AB, _A, USER, SPACES = 1, 2, 3, 4, 5, 6, 7, 8, 9

    local function t5(entries) return vocabulary.of("t5", rows, entries) end

    it("finds the best sum of scores", function()
      local tokenizer <close> = make(t5())
      assert.same({ SPACE, AB }, tokenizer:encode "ab")   -- -6, not -7.5
      assert.same({ _A, A }, tokenizer:encode "aa")       -- -7.5, not -8
      assert.same({ SPACE, B, _A }, tokenizer:encode "b a")
    end)

    it("writes one unknown token for a run of them", function()
      local tokenizer <close> = make(t5())
      assert.same({ _A, UNK, B }, tokenizer:encode "azzzb")
      assert.same({ _A, UNK, B }, tokenizer:encode "a\xFF\xE4\u{4e2d}b")
      assert.same({ SPACE, UNK }, tokenizer:encode "x") -- an unused piece
      assert.equal("a<unk>b", tokenizer:decode({ _A, UNK, B }, { control = true }))
      assert.equal("ab", tokenizer:decode { _A, UNK, B })
    end)

    it("squeezes spaces unless told otherwise, and cuts out user-defined tokens", function()
      local tokenizer <close> = make(t5())
      assert.same({ _A, _A }, tokenizer:encode " a a ")
      assert.same({ _A, USER, _A }, tokenizer:encode "a<u>a")
      assert.same({ _A, SPACES, _A }, tokenizer:encode "a  a")
      assert.equal("a  a", tokenizer:decode { _A, SPACES, _A })
      local plain <close> = make(t5 { { T .. "add_space_prefix", "bool", 0 },
        { T .. "remove_extra_whitespaces", "bool", 0 } })
      assert.same({ A, SPACE }, plain:encode "a ")
      assert.same({}, tokenizer:encode " ")
    end)

    it("ends with EOS where it is asked to", function()
      local tokenizer <close> = make(t5())
      assert.is_true(tokenizer.add_eos)
      assert.is_false(tokenizer.add_bos)
      assert.same({ _A, EOS }, tokenizer:encode("a", { bos = true, eos = true }))
      assert.same({ _A, EOS }, tokenizer:encode({ "a", { control = "</s>" } }, { eos = true }))
      assert.is_true(tokenizer:is_end(EOS))
    end)

    it("falls back to bytes where the vocabulary has them", function()
      local tokenizer <close> = make(vocabulary.of("t5", vocabulary.rows { { M, -1 }, { "a", -2 } },
        { { T .. "remove_extra_whitespaces", "bool", 0 } }))
      for _, text in ipairs { "a\u{4e2d} \u{1F600}", "  ", "\0\x80\xFFa", "" } do
        assert.equal(text, tokenizer:decode(tokenizer:encode(text)))
      end
    end)

    it("replaces characters by the file's table", function()
      local tokenizer <close> = make(t5 { { T .. "precompiled_charsmap", "u8", vocabulary.charsmap("Q", "ab") } })
      assert.same({ SPACE, AB }, tokenizer:encode "Q")
      assert.same({ SPACE, AB, AB }, tokenizer:encode "QQ")
      local signed = vocabulary.charsmap("Q", "ab")
      for i, byte in ipairs(signed) do signed[i] = byte > 127 and byte - 256 or byte end
      local older <close> = make(t5 { { T .. "precompiled_charsmap", "i8", signed } })
      assert.same({ SPACE, AB }, older:encode "Q")
    end)
  end)

  describe("a table of replacements", function()
    local rows = vocabulary.rows { { "a", -1 }, { "b", -2 } }
    local good = vocabulary.charsmap("Q", "ab")

    local function with(bytes, type_name)
      return vocabulary.of("t5", rows, { { T .. "precompiled_charsmap", type_name or "u8", bytes } })
    end

    local function changed(at, byte)
      local copy = table.move(good, 1, #good, 1, {})
      copy[at] = byte
      return copy
    end

    it("is refused when it is malformed", function()
      for n = 1, #good - 1 do
        if n < 1000 and n % 41 == 0 or n >= 1000 then
          local cut = table.move(good, 1, n, 1, {})
          local tokenizer, _, code = parse(with(cut))
          assert.is_nil(tokenizer)
          assert.equal(core.err.FORMAT, code)
        end
      end
      refuses(core.err.FORMAT, with(changed(1, 3)))
      refuses(core.err.FORMAT, with(changed(4, 255)))
      refuses(core.err.FORMAT, with(changed(#good, 65)))
      refuses(core.err.FORMAT, with(good, "u32"))
      refuses(core.err.FORMAT, vocabulary.of("t5", rows, { { T .. "precompiled_charsmap", "string", "x" } }))
      local empty <close> = make(with {})
      assert.is_table(empty:encode "Q")
    end)

    it("is refused when it points outside of itself", function()
      local leaf = 4 + (("Q"):byte() ~ 255) * 4
      for _, place in ipairs { leaf + 3, 4 + ("Q"):byte() * 4 + 3, 4 + 3 } do
        local tokenizer <close> = make(with(changed(place, 0x3F)))
        local ids, _, code = tokenizer:encode "aQ"
        assert.is_nil(ids)
        assert.equal(core.err.FORMAT, code)
      end
    end)

    it("may hold anything", function()
      for case = 1, 200 do
        local dice, bytes = fuzz.dice(5, case), table.move(good, 1, #good, 1, {})
        for _ = 1, dice:roll(40) do bytes[dice:roll(#bytes - 5) + 4] = dice:roll(256) - 1 end
        local tokenizer <close> = make(with(bytes))
        fuzz.accepted(tokenizer:encode(dice:text(20)))
      end
    end)
  end)

  -- ---- RWKV, and no vocabulary ----

  describe("RWKV", function()
    local words = { { "ab" }, { "abc" }, { "\xE4\xB8\xAD" }, { "'q'" }, { "a\\" }, { "\n\n" }, { "<t>", 0, 4 } }
    local tokenizer

    setup(function() tokenizer = make(vocabulary.rwkv(words)) end)
    teardown(function() tokenizer:close() end)

    it("takes the longest token from the left", function()
      assert.same({ 258, 257, 257 }, tokenizer:encode "abcabab")
      assert.same({ 259, 260, 261, 262, 263, 1 + 0xE4 }, tokenizer:encode "\u{4e2d}'q'a\\\n\n<t>\xE4")
    end)

    it("reads bytes as Python prints them", function()
      local escaped <close> = make(vocabulary.of("rwkv", { { "<s>", 0, 3 }, { "\\t" }, { "\\xff\\x00" }, { "\\\\x" },
        { "\\'" }, { "\\q" }, { "\\" }, { "\\x4" } }))
      for i, bytes in ipairs { "\t", "\xFF\0", "\\x", "'", "\\q", "\\", "\\x4" } do
        assert.equal(bytes, escaped:piece(i))
      end
    end)

    it("gives back whatever it took", function()
      for case = 1, 300 do
        local text = fuzz.dice(11, case):text(30)
        assert.equal(text, tokenizer:decode(tokenizer:encode(text)))
      end
    end)

    it("says so when a byte has no token", function()
      local poor <close> = make(vocabulary.of("rwkv", { { "a" } }))
      local ids, _, code = poor:encode "ab"
      assert.is_nil(ids)
      assert.equal(core.err.UNSUPPORTED, code)
    end)
  end)

  describe("no vocabulary", function()
    local function none(more)
      local entries = { { "general.architecture", "string", "llama" }, { T .. "model", "string", "none" } }
      return table.move(more, 1, #more, 3, entries)
    end

    it("has two names", function()
      local tokenizer <close> = make(vocabulary.with(none { { "llama.vocab_size", "u32", 2 } }, T .. "model", "string",
        "no_vocab"))
      assert.equal(2, tokenizer.size)
      assert.is_nil(tokenizer:encode "a")
    end)

    it("is ids only", function()
      local tokenizer <close> = make(none { { "llama.vocab_size", "u32", 50 }, { T .. "eos_token_id", "u32", 7 } })
      assert.equal(50, tokenizer.size)
      assert.equal("none", tokenizer.model)
      assert.is_true(tokenizer:is_end(7))
      assert.is_false(tokenizer:is_end(8))
      assert.equal("", tokenizer:piece(49))
      for _, call in ipairs { "encode", "decode" } do
        local result, message, code = tokenizer[call](tokenizer, call == "encode" and "a" or { 1 })
        assert.is_nil(result)
        assert.equal(core.err.UNSUPPORTED, code)
        assert.is_truthy(message:find("no vocabulary", 1, true))
      end
    end)

    it("has the size of the model's table where the file does not say", function()
      local build = require "spec.gguf_build"
      local bytes = build.file { entries = build.entries(none {}), tensors = {
        { name = "token_embd.weight", dims = { 2, 3 } } }, data = ("\0"):rep(32) }
      local gguf <close> = assert(core.parse_gguf(bytes, "spec"))
      local tokenizer <close> = assert(core.tokenizer(gguf))
      assert.equal(3, tokenizer.size)
    end)

    it("does not keep a model from working on ids", function()
      local kigo, models = require "kigo", require "spec.fuzz_models"
      local path = support.temporary(models.write(models.list[#models.list]))
      local model <close> = assert(kigo.load(path, { device = "reference" }))
      os.remove(path)
      assert.equal("none", model.tokenizer.model)
      local seq <close> = assert(model:sequence { seed = 1 })
      local pos, _, code = seq:feed "text"
      assert.is_nil(pos)
      assert.equal(core.err.UNSUPPORTED, code)
      assert(seq:feed { 1, 2 })
      local answer = assert(seq:generate { max = 3 })
      assert.equal(3, #answer.ids)
      assert.equal("", answer.text)
    end)

    it("is refused without a size", function()
      refuses(core.err.FORMAT, none {})
      refuses(core.err.FORMAT, none { { "llama.vocab_size", "u32", 0 } })
      refuses(core.err.FORMAT, none { { "llama.vocab_size", "u32", 7 }, { T .. "bos_token_id", "u32", 7 } })
    end)
  end)

  -- ---- what all kinds share ----

  describe("special tokens", function()
    local special = { { "<s>", 3 }, { "</s>", 3 }, { "<|user|>", 3 }, { "<unk>", 2 }, { "<|user|>!", 3 } }
    local BOS, EOS, USER, UNK, USER_BANG = 256, 257, 258, 259, 260

    local function bpe(entries) return make(vocabulary.bpe { special = special, entries = entries }) end
    local framed = { { T .. "bos_token_id", "u32", BOS }, { T .. "eos_token_id", "u32", EOS },
      { T .. "add_bos_token", "bool", 1 }, { T .. "add_eos_token", "bool", 1 } }

    it("come from text only where it is trusted", function()
      local tokenizer <close> = bpe {}
      local text = "a<|user|>b<s><unk><|user|>!"
      for _, id in ipairs(tokenizer:encode(text)) do assert.is_true(id < 256) end
      assert.same({ 97, USER, 98, BOS, UNK, USER_BANG }, tokenizer:encode(text, { special = true }))
      assert.same({ 97, USER, 98 }, tokenizer:encode({ "a<|us", { text = "er|>b" } }, { special = true }))
      assert.equal(text, tokenizer:decode(tokenizer:encode(text, { special = true }), { control = true }))
    end)

    it("never give two BOS", function()
      local tokenizer <close> = bpe(framed)
      local bos, with = { control = "<s>" }, { bos = true }
      for _, segments in ipairs { { "a" }, { bos, "a" }, { "", bos, "a" }, { bos, bos, "a" }, { bos, "", bos, "a" } } do
        assert.same({ BOS, 97 }, tokenizer:encode(segments, with))
      end
      assert.same({ BOS, 97 }, tokenizer:encode("<s>a", { bos = true, special = true }))
      assert.same({ BOS, 97 }, tokenizer:encode("<s><s>a", { bos = true, special = true }))
      assert.same({ BOS }, tokenizer:encode({}, with))
      assert.same({ BOS }, tokenizer:encode({ bos }, with))
      assert.same({ BOS, 97, BOS }, tokenizer:encode({ "a", bos }, with))
      assert.same({ BOS, BOS, 97 }, tokenizer:encode { bos, bos, "a" }) -- taken as they are
    end)

    it("end a text as the file asks for, once", function()
      local tokenizer <close> = bpe(framed)
      assert.same({ BOS, 97, EOS }, tokenizer:encode("a", { bos = true, eos = true }))
      assert.same({ 97, EOS }, tokenizer:encode({ "a", { control = "</s>" } }, { eos = true }))
      local open <close> = bpe {}
      assert.is_false(open.add_eos)
      assert.same({ 97 }, open:encode("a", { bos = true, eos = true }))
    end)

    it("are known by name", function()
      local keys = { bos = "bos", eos = "eos", eot = "eot", eom = "eom", unk = "unknown", sep = "seperator",
        pad = "padding", cls = "cls", mask = "mask", fim_prefix = "fim_pre", fim_suffix = "fim_suf",
        fim_middle = "fim_mid", fim_pad = "fim_pad", fim_repo = "fim_rep", fim_file = "fim_sep" }
      local plain <close> = make(vocabulary.bpe {})
      for name, key in pairs(keys) do
        assert.is_nil(plain[name])
        local tokenizer <close> = bpe { { T .. key .. "_token_id", "u32", USER } }
        assert.equal(USER, tokenizer[name])
        refuses(core.err.FORMAT, vocabulary.bpe { entries = { { T .. key .. "_token_id", "string", "1" } } })
        local beyond = vocabulary.bpe { entries = { { T .. key .. "_token_id", "u32", 256 } } }
        if ("bos eos eot eom unk"):find(name, 1, true) then
          refuses(core.err.FORMAT, beyond)
        else
          local lax <close> = make(beyond)
          assert.is_nil(lax[name])
        end
      end
      local older <close> = bpe { { T .. "prefix_token_id", "u32", 1 }, { T .. "suffix_token_id", "u32", 2 },
        { T .. "middle_token_id", "u32", 3 } }
      assert.same({ 1, 2, 3 }, { older.fim_prefix, older.fim_suffix, older.fim_middle })
      local spelled <close> = make(vocabulary.bpe { special = { { "<|fim_prefix|>", 3 }, { "<fim_suffix>", 4 },
        { "<\u{ff5c}fim\u{2581}end\u{ff5c}>", 3 } } })
      assert.same({ 256, 257, 258 }, { spelled.fim_prefix, spelled.fim_suffix, spelled.fim_middle })
      assert.is_true(spelled:is_control(257))
    end)

    it("are never given for text that has no token", function()
      local tokens = { { "a" }, { "<|endoftext|>", 0, 3 } }
      local tokenizer <close> = make(vocabulary.of("llama", tokens, { { T .. "unknown_token_id", "u32", 1 },
        { T .. "bos_token_id", "u32", 1 }, { T .. "add_space_prefix", "bool", 0 } }))
      local ids, _, code = tokenizer:encode "ab"
      assert.is_nil(ids)
      assert.equal(core.err.UNSUPPORTED, code)
    end)

    it("that are unused are never given for text", function()
      local rows = vocabulary.rows { { "a", -1 }, { "aa", -2, 5 }, { "x", -3, 5 }, { "\u{2581}", -4 } }
      for _, entries in ipairs {
        vocabulary.of("llama", rows), vocabulary.of("t5", rows), vocabulary.rwkv { { "aa", 0, 5 }, { "x", 0, 5 } },
        vocabulary.of("gemma4", rows, { { T .. "merges", "string", { "a a" } } }),
        vocabulary.bpe { special = { { "aa", 5 } }, merges = { { "a", "a" } } },
      } do
        local tokenizer <close> = make(entries)
        assert.equal("aax", tokenizer:decode(tokenizer:encode "aax"))
      end
    end)

    it("swallow the white space behind them in Phi-3", function()
      local rows = { { "<unk>", 0, 2 }, { "<s>", 0, 3 }, { "</s>", 0, 3 }, { "<|user|>", 0, 3 }, { "<|end|>", 0, 3 },
        { "<tag>", 0, 4 }, { "\u{2581}", -1 }, { "a", -2 }, { "\n", -3 } }
      local name = { { "general.name", "string", "Phi 3.5 by Phi-3's makers" }, { T .. "add_bos_token", "bool", 0 } }
      local tokenizer <close> = make(vocabulary.of("llama", rows, name))
      local segments = { { control = "<|user|>" }, "\n \u{a0}\u{3000}", "\ta\n", { control = "<|end|>" }, "\n",
        { control = "<s>" }, "\na<tag>\na" }
      assert.same({ 3, 6, 7, 8, 4, 1, 6, 8, 7, 5, 6, 7 }, tokenizer:encode(segments))
      local other <close> = make(vocabulary.of("llama", rows, { { "general.name", "string", "another" } }))
      assert.same({ 3, 6, 8, 7 }, other:encode { { control = "<|user|>" }, "\na" })
      local by_family <close> = make(vocabulary.with(vocabulary.of("llama", rows), "general.architecture", "string",
        "phi3"))
      assert.same({ 3, 6, 7 }, by_family:encode { { control = "<|user|>" }, "\na" })
    end)

    it("of RoBERTa's kind swallow the white space before a mask", function()
      local tokenizer <close> = make(vocabulary.bpe { special = { { "<mask>", 3 }, { "[MASK]", 3 } } })
      assert.same({ 97, 256, 32, 97, 32, 257 }, tokenizer:encode("a \t<mask> a [MASK]", { special = true }))
      assert.same({ 97, 256 }, tokenizer:encode { "a", "\n ", { control = "<mask>" } })
      assert.same({ 256, 256 }, tokenizer:encode { { control = "<mask>" }, " ", { control = "<mask>" } })
      assert.same({ 0xFF, 0xA0, 256 }, tokenizer:encode { "\xFF\xA0 ", { control = "<mask>" } })
    end)

    it("refuse to be looked for when they are too long", function()
      local long <close> = make(vocabulary.bpe { special = { { ("x"):rep(1024), 3 } } })
      assert.is_number(long:control(("x"):rep(1024)))
      refuses(core.err.UNSUPPORTED, vocabulary.bpe { special = { { ("x"):rep(1025), 4 } } })
      refuses(core.err.UNSUPPORTED, vocabulary.of("rwkv", { { ("x"):rep(1025) } }))
    end)

    it("may be empty or stand twice", function()
      for _, model in ipairs { "llama", "t5", "bert", "rwkv" } do
        local tokenizer <close> = make(vocabulary.of(model, vocabulary.rows { { "a", -1 }, { "a", -1 }, { "", -1 },
          { "<u>", 0, 4 }, { "<u>", 0, 4 }, { "", 0, 4 }, { "", 0, 3 }, { "", 0, 2 }, { "\u{2581}a", -1 },
          { "\u{2581}", -9 } }))
        assert.is_truthy(table.concat(assert(tokenizer:encode "a<u>a"), " "):find("262", 1, true))
      end
    end)
  end)

  it("are linear in the length of the text", function()
    local long = { { "\u{2581}", -1 }, { "a", -2 }, { ("a"):rep(40), -9 }, { "\u{2581}a", -3 }, { " ", -3 },
      { ("<"):rep(60) .. "u", 0, 4 }, { ("a"):rep(200), -30 } }
    for _, entries in ipairs {
      vocabulary.of("llama", vocabulary.rows(long)), vocabulary.of("t5", vocabulary.rows(long)),
      vocabulary.of("t5", vocabulary.rows(long), { { T .. "remove_extra_whitespaces", "bool", 0 },
        { T .. "precompiled_charsmap", "u8", vocabulary.charsmap("a", "aa") } }),
      vocabulary.of("bert", vocabulary.rows(long), { { T .. "unknown_token_id", "u32", 0 } }), vocabulary.rwkv(long),
    } do
      local tokenizer <close> = make(entries)
      for _, text in ipairs { ("a"):rep(100000), (" "):rep(100000), ("<"):rep(100000), ("\u{4e2d}"):rep(33333),
                              ("a\u{301}"):rep(33333), ("\xFF"):rep(100000), (("a"):rep(39) .. "b"):rep(2500) } do
        local start = core.now()
        assert(tokenizer:encode(text))
        assert.is_true(core.now() - start < 2)
      end
    end
  end)

  describe("malformed scores", function()
    it("are refused", function()
      local rows = vocabulary.rows { { "a", -1 } }
      for _, bad in ipairs { math.huge, -math.huge, 0 / 0 } do
        rows[#rows] = { "a", bad }
        refuses(core.err.FORMAT, vocabulary.of("t5", rows))
      end
      refuses(core.err.FORMAT, vocabulary.with(vocabulary.of("t5", rows), T .. "scores"))
      refuses(core.err.FORMAT, vocabulary.with(vocabulary.of("t5", rows), T .. "scores", "f32", { 1, 2 }))
    end)
  end)
end)
