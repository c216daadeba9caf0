describe("kigo.tokenizer", function()
  local kigo = require "kigo"
  local core = kigo.core or kigo
  local support = require "spec.support"
  local vocabulary = require "spec.fixtures.vocabulary"
  local our_cases = require "spec.fixtures.tokenizer_cases"

  local map = vocabulary.map

  ---The tokenizer of a file's bytes; the Gguf is closed at once, because a tokenizer copies what it needs.
  local function parse(bytes, name)
    local gguf <close> = assert(core.parse_gguf(bytes, name or "spec"))
    return core.tokenizer(gguf)
  end

  local function open(path)
    local gguf <close> = assert(core.open_gguf(path))
    return assert(core.tokenizer(gguf))
  end

  local function make(entries)
    return assert(parse(vocabulary.file(entries)))
  end

  local function text_of(ids)
    return table.concat(ids, " ")
  end

  ---"gpt-2 as qwen2" is the vocabulary gpt-2 with that pre-tokenizer.
  local function open_as(name)
    local file, pre = name:match("^(%S+) as (%S+)$")
    local gguf <close> = assert(core.open_gguf(support.fixture("vocab/" .. (file or name) .. ".gguf")))
    return assert(core.tokenizer(gguf, { pre = pre }))
  end

  ---Numbers that are the same in every run.
  local function generator(seed)
    local draw = 0
    return function(n)
      draw = draw + 1
      return math.floor(core.uniform(seed, 0, draw) * n)
    end
  end

  describe("reference vocabularies", function()
    for _, name in ipairs { "gpt-2", "llama-spm", "qwen2" } do
      it("gives the ids of all public cases of " .. name, function()
        local path = support.fixture("vocab/" .. name .. ".gguf")
        local tokenizer <close> = open(path)
        local cases, n = {}, 0
        for case in support.read(path .. ".inp"):gmatch("(.-)\n__ggml_vocab_test__\n") do cases[#cases + 1] = case end
        for line in io.lines(path .. ".out") do
          n = n + 1
          local ids = tokenizer:encode(cases[n])
          assert.equal(line:match("^%s*(.-)%s*$"), text_of(ids))
          assert.equal(cases[n], tokenizer:decode(ids))
        end
        assert.equal(46, n)
        assert.equal(46, #cases)
      end)
    end

    for _, name in ipairs { "gpt-2", "llama-spm", "qwen2", "gpt-2 as qwen2", "gpt-2 as llama-bpe" } do
      it("gives the ids of our own cases of " .. name, function()
        local tokenizer <close> = open_as(name)
        for _, case in ipairs(our_cases) do
          local ids = tokenizer:encode(case[1])
          assert.equal(case[2][name], text_of(ids), ("%q"):format(case[1]))
          -- U+2581 is a space to SentencePiece
          local expected = tokenizer.model == "llama" and case[1]:gsub("\u{2581}", " ") or case[1]
          assert.equal(expected, tokenizer:decode(ids))
        end
      end)

      it("decodes what it encoded from random bytes and characters with " .. name, function()
        local tokenizer <close> = open_as(name)
        local random = generator(29)
        for _ = 1, 300 do
          local parts = {}
          for i = 1, random(60) do
            local kind = random(4)
            if kind == 0 then
              parts[i] = string.char(random(256))
            elseif kind == 1 then
              parts[i] = string.char(32 + random(95))
            elseif kind == 2 then
              parts[i] = utf8.char(random(0x2500))
            else
              parts[i] = utf8.char(0x2600 + random(0x10000))
            end
          end
          local text = table.concat(parts)
          assert.equal(text, tokenizer:decode(tokenizer:encode(text)))
        end
      end)
    end

    it("reads the toy vocabulary of the model fixtures", function()
      local tokenizer <close> = open(support.fixture("models/qwen2.gguf"))
      assert.equal(320, tokenizer.size)
      assert.equal("gpt2", tokenizer.model)
      assert.equal("qwen2", tokenizer.pre)
      assert.equal(296, tokenizer.eos)
      assert.is_false(tokenizer.add_bos)
      local all = {}
      for byte = 0, 255 do
        assert.equal(string.char(byte), tokenizer:piece(byte))
        all[#all + 1] = string.char(byte)
      end
      local text = table.concat(all)
      assert.equal(text, tokenizer:decode(tokenizer:encode(text)))
    end)

    it("gives the prompt ids of the haiku model", function()
      local reference = support.read_json(support.fixture("models/haiku.json"))
      local tokenizer <close> = open(support.haiku_model)
      local segments = {}
      local rest = reference.prompt_text
      while #rest > 0 do
        local before, control, after = rest:match("^(.-)(<|im_%a+|>)(.*)$")
        if before ~= "" then segments[#segments + 1] = before or rest end
        if control then segments[#segments + 1] = { control = control } end
        rest = after or ""
      end
      assert.same(reference.prompt, tokenizer:encode(segments))
      assert.equal(reference.greedy_text, tokenizer:decode(reference.greedy))
      assert.equal(reference.prompt_text, tokenizer:decode(reference.prompt, { control = true }))
      assert.is_true(tokenizer:is_end(reference.greedy[#reference.greedy]))
    end)

    it("adds BOS where the file or its kind asks for it", function()
      local spm <close> = open(support.fixture("vocab/llama-spm.gguf"))
      assert.is_true(spm.add_bos)
      assert.same({ 1 }, spm:encode("", { bos = true }))
      assert.same({}, spm:encode(""))
      assert.equal(1, spm:encode("x", { bos = true })[1])
      local gpt2 <close> = open_as("gpt-2")
      assert.is_false(gpt2.add_bos)
      assert.same({}, gpt2:encode("", { bos = true }))
      local llama3 <close> = open_as("gpt-2 as llama-bpe")
      assert.is_true(llama3.add_bos)
      assert.same({ 50256 }, llama3:encode("", { bos = true }))
    end)

    it("opens the largest vocabulary in well under a second", function()
      local gguf <close> = assert(core.open_gguf(support.fixture("vocab/qwen2.gguf")))
      local start = core.now()
      local tokenizer <close> = assert(core.tokenizer(gguf))
      assert.is_true(core.now() - start < 0.5)
      assert.equal(151936, tokenizer.size)
    end)

    for _, name in ipairs { "gpt-2", "llama-spm", "qwen2" } do
      it("is not slowed down by 200 KB without a break: " .. name, function()
        local tokenizer <close> = open_as(name)
        local random, bytes = generator(7), {}
        for i = 1, 200000 do bytes[i] = string.char(random(256)) end
        for _, text in ipairs {
          ("a"):rep(200000), (" "):rep(200000), ("\n"):rep(200000), ("!"):rep(200000), ("'s"):rep(100000),
          ("\u{4e2d}"):rep(66667), ("<tool_call"):rep(20000), table.concat(bytes),
        } do
          local start = core.now()
          local ids = tokenizer:encode(text)
          assert.is_true(core.now() - start < 2)
          assert.equal(text, tokenizer:decode(ids))
        end
      end)
    end
  end)

  describe("segments", function()
    local special = { { "<|start|>", 3 }, { "<|eot_id|>", 3 }, { "<tool>", 4 }, { "<tool>x", 4 }, { "<unk>", 2 } }
    local START, EOT, TOOL, TOOL_X, UNKNOWN = 258, 259, 260, 261, 262
    local tokenizer

    before_each(function()
      tokenizer = make(vocabulary.bpe { pieces = { "ab", "abc" }, merges = { { "a", "b" }, { "ab", "c" } },
                                        special = special })
    end)
    after_each(function() tokenizer:close() end)

    it("makes control tokens of control segments only", function()
      assert.same({ START }, tokenizer:encode { { control = "<|start|>" } })
      assert.same({ START, 257, EOT },
                  tokenizer:encode { { control = "<|start|>" }, "abc", { control = "<|eot_id|>" } })
      for _, forged in ipairs { "<|start|>", "x<|start|>y", "<|eot_id|>", "<unk>", "<|start|><|eot_id|>" } do
        local ids = tokenizer:encode(forged)
        for _, id in ipairs(ids) do
          assert.is_false(tokenizer:is_control(id))
          assert.is_true(id < 256)
        end
        assert.equal(forged, tokenizer:decode(ids))
        assert.same(ids, tokenizer:encode { { text = forged } })
      end
    end)

    it("does not let neighbouring text forge a control token", function()
      assert.same(tokenizer:encode "<|start|>", tokenizer:encode { "<|sta", "", { text = "rt|>" } })
    end)

    it("refuses control segments that spell no control token", function()
      for _, text in ipairs { "", "abc", "<tool>", "<unk>", "<|start|> ", " <|start|>", "<|start|><|start|>" } do
        assert.has_error(function() tokenizer:encode { { control = text } } end)
      end
    end)

    it("encodes neighbouring text segments as one text", function()
      assert.same({ 257 }, tokenizer:encode { "a", { text = "b" }, "c" })
      assert.same({ 256, START, 99 }, tokenizer:encode { "a", "b", { control = "<|start|>" }, "c" })
      assert.same({ TOOL_X }, tokenizer:encode { "<to", "ol>x" })
      assert.same({}, tokenizer:encode { "", "" })
      assert.same({}, tokenizer:encode {})
    end)

    it("cuts out user-defined tokens, the longest first", function()
      assert.same({ TOOL, 257, TOOL_X, 97 }, tokenizer:encode "<tool>abc<tool>xa")
      assert.equal("<tool>abc<tool>xa", tokenizer:decode { TOOL, 257, TOOL_X, 97 })
      assert.same({ TOOL, TOOL }, tokenizer:encode "<tool><tool>")
    end)

    it("decodes control tokens only when asked", function()
      assert.equal("abc", tokenizer:decode { START, 257, EOT, UNKNOWN })
      assert.equal("<|start|>abc<|eot_id|>", tokenizer:decode({ START, 257, EOT }, { control = true }))
      assert.equal("<|start|>", tokenizer:piece(START))
      assert.equal(START, tokenizer:control "<|start|>")
      assert.is_nil(tokenizer:control "<tool>")
      assert.is_nil(tokenizer:control "")
    end)

    it("does not add a BOS that is there", function()
      local with_bos <close> = make(vocabulary.bpe { special = { { "<s>", 3 } }, entries = {
        { "tokenizer.ggml.bos_token_id", "u32", 256 }, { "tokenizer.ggml.add_bos_token", "bool", 1 } } })
      assert.same({ 256, 97 }, with_bos:encode("a", { bos = true }))
      assert.same({ 256, 97 }, with_bos:encode({ { control = "<s>" }, "a" }, { bos = true }))
      assert.same({ 97 }, with_bos:encode("a", { bos = false }))
    end)

    it("treats structural markers as control tokens even where the file calls them user-defined", function()
      local lax <close> = make(vocabulary.bpe { special = { { "<|im_start|>", 4 }, { "<|im_end|>", 4 }, { "[X]", 4 },
        { "<|fim_pad|>", 4 } }, entries = { { "tokenizer.ggml.eos_token_id", "u32", 258 } } })
      for _, text in ipairs { "<|im_start|>", "<|im_end|>", "[X]", "<|fim_pad|>" } do
        assert.is_true(lax:encode(text)[1] < 256)
        assert.is_number(lax:control(text))
      end
    end)

    it("knows the tokens that end an answer", function()
      local ends <close> = make(vocabulary.bpe {
        special = { { "<|im_end|>", 3 }, { "<|endoftext|>", 3 }, { "<|im_start|>", 3 }, { "my-eos", 3 },
                    { "my-eot", 3 }, { "my-eom", 3 }, { "<|end|>", 3 }, { "</s>", 1 } },
        entries = { { "tokenizer.ggml.eos_token_id", "u32", 259 }, { "tokenizer.ggml.eot_token_id", "u32", 260 },
                    { "tokenizer.ggml.eom_token_id", "u32", 261 } } })
      local expected = { [256] = true, [257] = true, [259] = true, [260] = true, [261] = true, [262] = true }
      for id = 0, ends.size - 1 do assert.equal(expected[id] or false, ends:is_end(id)) end
      local harmony <close> = make(vocabulary.bpe {
        special = { { "<|end|>", 3 }, { "<|return|>", 3 }, { "<|call|>", 3 } } })
      assert.is_false(harmony:is_end(256))
      assert.is_true(harmony:is_end(257))
      assert.is_true(harmony:is_end(258))
    end)

    it("finds tokens by what they write", function()
      local some <close> = make(vocabulary.bpe { pieces = { " moon", "moon", " moonlit", "mo" },
        special = { { "moonlight", 4 }, { "<|moon|>", 3 } } })
      assert.equal(257, some:token "moon")
      assert.equal(97, some:token "a")
      assert.is_nil(some:token "moonl")
      assert.is_nil(some:token "<|moon|>")
      assert.is_nil(some:token "")
      assert.same({ 257, 260 }, some:with_prefix "moon")
      assert.same({ 109, 257, 259, 260 }, some:with_prefix "m")
      assert.same({ 32, 256, 258 }, some:with_prefix " ")
      assert.same({}, some:with_prefix "<|m")
      assert.equal(261, #some:with_prefix "")
      local spm <close> = make(vocabulary.spm { pieces = { { "\u{2581}cat", 0 }, { "cat", -1 }, { "cat", -2 } } })
      assert.same({ 259 }, spm:with_prefix " cat")
      assert.same({ 3 + 99, 260, 261 }, spm:with_prefix "c") -- equal pieces, and the byte
      assert.equal(3 + 99, spm:token "c")
      assert.equal(3 + 0xFF, spm:token "\xFF")
      for _, bad in ipairs { 7, {}, true } do
        assert.has_error(function() some:token(bad) end)
        assert.has_error(function() some:with_prefix(bad) end)
      end
    end)

    it("puts no space before text that goes on", function()
      local spm <close> = make(vocabulary.spm { pieces = { { "\u{2581}", -1 }, { "\u{2581}a", -2 }, { "a", -3 } } })
      assert.same({ 260 }, spm:encode "a")
      assert.same({ 261 }, spm:encode("a", { continues = true }))
      assert.same({ 260 }, spm:encode(" a", { continues = true }))
      assert.has_error(function() spm:encode("a", { continues = 1 }) end)
    end)

    it("survives the failure of every allocation when it looks for a prefix", function()
      local tiny = require "spec.tiny"
      local some <close> = make(vocabulary.bpe {})
      assert.is_true(0 < tiny.fail_each_allocation(function() return some end, function(t) return t:with_prefix "" end,
        function(t) assert.equal(256, #t:with_prefix "") end))
    end)

    it("raises on what is not text", function()
      for _, bad in ipairs { 7, true, { 7 }, { {} }, { { text = 7 } }, { { text = "a", control = "<|start|>" } },
                             { { control = {} } }, { { "a" } } } do
        assert.has_error(function() tokenizer:encode(bad) end)
      end
      assert.has_error(function() tokenizer:encode(nil) end)
      assert.has_error(function() tokenizer:encode("a", { bos = 1 }) end)
    end)

    it("raises on ids out of range", function()
      for _, id in ipairs { -1, tokenizer.size, 2 ^ 31, -2 ^ 31, 0.5, "1" } do
        assert.has_error(function() tokenizer:decode { 97, id } end)
        assert.has_error(function() tokenizer:piece(id) end)
        assert.has_error(function() tokenizer:is_end(id) end)
        assert.has_error(function() tokenizer:is_control(id) end)
      end
    end)

    it("raises after close", function()
      assert.equal("kigo.Tokenizer (gpt2, 263 tokens)", tostring(tokenizer))
      tokenizer:close()
      tokenizer:close()
      assert.equal("kigo.Tokenizer (closed)", tostring(tokenizer))
      for _, call in ipairs {
        function() tokenizer:encode "a" end, function() tokenizer:decode {} end, function() tokenizer:piece(1) end,
        function() tokenizer:is_end(1) end, function() tokenizer:is_control(1) end,
        function() tokenizer:control "x" end, function() tokenizer:token "x" end,
        function() tokenizer:with_prefix "x" end, function() return tokenizer.size end,
        function() core.stream(tokenizer) end,
      } do
        assert.has_error(call)
      end
    end)
  end)

  describe("normalization", function()
    local function opened(pre, normalize)
      local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.bpe { pre = pre }), "spec"))
      return assert(core.tokenizer(gguf, { normalize = normalize }))
    end

    it("is left out unless asked for, so that every text comes back", function()
      for _, normalize in ipairs { false, nil } do
        local tokenizer <close> = opened("qwen2", normalize)
        assert.is_false(tokenizer.normalize)
        assert.equal("e\u{301}", tokenizer:decode(tokenizer:encode "e\u{301}"))
      end
    end)

    it("makes form C where the model's own tokenizer does", function()
      local tokenizer <close> = opened("qwen2", true)
      assert.is_true(tokenizer.normalize)
      for text, expected in pairs {
        [""] = "", ["plain"] = "plain", ["caf\u{E9}"] = "caf\u{E9}", ["cafe\u{301}"] = "caf\u{E9}",
        ["e\u{301}e\u{301} x"] = "\u{E9}\u{E9} x", ["\u{301}e"] = "\u{301}e", ["\u{212B}"] = "\u{C5}",
        ["\u{1112}\u{1161}\u{11AB}"] = "\u{D55C}", ["q\u{307}\u{323}"] = "q\u{323}\u{307}",
        ["\u{4E2D}\u{6587}"] = "\u{4E2D}\u{6587}", ["\u{958}"] = "\u{915}\u{93C}",
        ["\xFFe\u{301}\xE4\xB8"] = "\xFF\u{E9}\xE4\xB8", ["e\xFF\u{301}"] = "e\xFF\u{301}",
        [("e\u{301}"):rep(3000)] = ("\u{E9}"):rep(3000), [("\u{1112}\u{1161}"):rep(999)] = ("\u{D558}"):rep(999),
      } do
        assert.equal(expected, tokenizer:decode(tokenizer:encode(text)))
      end
    end)

    it("is left out where the model's own tokenizer does none", function()
      local tokenizer <close> = opened("gpt-2", true)
      assert.is_false(tokenizer.normalize)
      assert.equal("e\u{301}", tokenizer:decode(tokenizer:encode "e\u{301}"))
    end)

    it("takes time in proportion to a text of marks", function()
      local tokenizer <close> = opened("qwen2", true)
      local start = core.now()
      tokenizer:encode(("\u{301}\u{323}"):rep(50000)) -- in the wrong order
      assert.is_true(core.now() - start < 2)
    end)
  end)

  describe("byte-level BPE", function()
    it("merges by rank, then from the left", function()
      local tokenizer <close> = make(vocabulary.bpe { pieces = { "bc", "ab", "aa" },
                                                      merges = { { "b", "c" }, { "a", "b" }, { "a", "a" } } })
      assert.same({ 97, 256 }, tokenizer:encode "abc")
      assert.same({ 257, 98 }, tokenizer:encode "abb")
      assert.same({ 258, 97 }, tokenizer:encode "aaa")
    end)

    it("lets whole words go before merges where the pre-tokenizer says so", function()
      local options = { pieces = { "xy", "xyz" }, merges = { { "x", "y" } } }
      local merging <close> = make(vocabulary.bpe(options))
      assert.same({ 256, 122 }, merging:encode "xyz")
      options.pre = "llama-bpe"
      local whole <close> = make(vocabulary.bpe(options))
      assert.same({ 257 }, whole:encode "xyz")
    end)

    it("ignores merges that make no ordinary token", function()
      local tokenizer <close> = make(vocabulary.bpe { pieces = { "ab" }, special = { { "cd", 3 } },
        merges = { { "a", "x" }, { "zz", "a" }, { "c", "d" }, { "a", "b" } } })
      assert.same({ 97, 120 }, tokenizer:encode "ax")
      assert.same({ 99, 100 }, tokenizer:encode "cd")
      assert.same({ 256 }, tokenizer:encode "ab")
    end)

    it("takes the first of equal tokens and of equal merges", function()
      local tokenizer <close> = make(vocabulary.bpe { pieces = { "ab", "ab", "bc" },
        merges = { { "a", "b" }, { "b", "c" }, { "a", "b" } } })
      assert.same({ 256, 99 }, tokenizer:encode "abc")
    end)

    it("refuses bytes for which there is no token, or gives the unknown token", function()
      local entries = vocabulary.bpe {}
      local tokens, types = { "a", "<u>" }, { 1, 2 }
      entries = vocabulary.with(vocabulary.with(entries, "tokenizer.ggml.tokens", "string", tokens),
                                "tokenizer.ggml.token_type", "i32", types)
      local strict <close> = make(entries)
      assert.same({ 0, 0 }, strict:encode "aa")
      local ids, _, code = strict:encode "ab"
      assert.is_nil(ids)
      assert.equal(core.err.UNSUPPORTED, code)
      local lax <close> = make(vocabulary.with(entries, "tokenizer.ggml.unknown_token_id", "u32", 1))
      assert.same({ 0, 1 }, lax:encode "ab")
    end)

    it("knows the pre-tokenizers by all their names", function()
      local options = { pieces = { "12", " x" }, merges = { { "1", "2" }, { " ", "x" } } }
      for pre, expected in pairs { ["gpt-2"] = { 256, 51 }, olmo = { 256, 51 }, qwen2 = { 49, 50, 51 },
                                   ["deepseek-r1-qwen"] = { 49, 50, 51 }, llama3 = { 256, 51 },
                                   ["smaug-bpe"] = { 256, 51 } } do
        options.pre = pre
        local tokenizer <close> = make(vocabulary.bpe(options))
        assert.equal(pre, tokenizer.pre)
        assert.same(expected, tokenizer:encode "123")
      end
    end)

    it("keeps text of added tokens that is not in the byte alphabet", function()
      local entries = vocabulary.bpe { special = { { "\u{4e2d}\u{6587}", 1 }, { "a b", 4 }, { "", 1 }, { "pad", 5 } } }
      local tokenizer <close> = make(entries)
      assert.equal("\u{4e2d}\u{6587}a b", tokenizer:decode { 256, 257, 258, 259 })
      assert.same({ 120, 257 }, tokenizer:encode "xa b")
    end)
  end)

  describe("SentencePiece", function()
    local pieces = { { "\u{2581}", -1 }, { "a", -2 }, { "b", -3 }, { "ab", -4 }, { "\u{2581}a", -5 },
                     { "\u{2581}\u{2581}", -6 }, { "<u>", 0, 4 }, { "</", -7 }, { "s>", -8 } }
    local SPACE, A, B, AB, SPACE_A, SPACES, USER = 259, 260, 261, 262, 263, 264, 265

    it("merges by score and puts a space before the text", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces })
      assert.same({ SPACE, AB }, tokenizer:encode "ab")
      assert.same({ SPACE_A, A }, tokenizer:encode "aa")
      assert.same({ SPACES }, tokenizer:encode " ")
      assert.same({}, tokenizer:encode "")
      assert.equal("ab", tokenizer:decode { SPACE, AB })
      assert.equal("a", tokenizer:decode { 1, SPACE_A, 2 })
      assert.equal(" ", tokenizer:decode { SPACES })
    end)

    it("puts a space behind special tokens too, and takes it away again", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces })
      local segments = { { control = "<s>" }, "a<u>", "b<u>", { control = "</s>" }, " a" }
      local ids = tokenizer:encode(segments)
      assert.same({ 1, SPACE_A, USER, SPACE, B, USER, 2, SPACE, SPACE_A }, ids)
      assert.equal("a<u>b<u> a", tokenizer:decode(ids))
      assert.equal("<s>a<u>b<u></s> a", tokenizer:decode(ids, { control = true }))
    end)

    it("leaves the space away where the file says so", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces, entries = {
        { "tokenizer.ggml.add_space_prefix", "bool", 0 } } })
      assert.same({ AB }, tokenizer:encode "ab")
      assert.same({ SPACE_A }, tokenizer:encode " a")
      assert.equal(" a", tokenizer:decode { SPACE_A })
    end)

    it("keeps spaces unless the file says that they are squeezed", function()
      local keeping <close> = make(vocabulary.spm { pieces = pieces })
      assert.equal("  a  b ", keeping:decode(keeping:encode "  a  b "))
      local squeezing <close> = make(vocabulary.spm { pieces = pieces, entries = {
        { "tokenizer.ggml.remove_extra_whitespaces", "bool", 1 } } })
      assert.equal("a b", squeezing:decode(squeezing:encode "  a  b "))
      assert.same({}, squeezing:encode "   ")
    end)

    it("never makes control or byte tokens of text", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces })
      for _, text in ipairs { "</s>", "<s>", "<unk>", "<0x41>" } do
        for _, id in ipairs(tokenizer:encode(text)) do
          assert.is_false(tokenizer:is_control(id))
          assert.is_true(id ~= 3 + 0x41 and id ~= 0)
        end
        assert.equal(text, tokenizer:decode(tokenizer:encode(text)))
      end
    end)

    it("writes bytes for what no piece covers", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces })
      assert.same({ SPACE, 3 + 0xE4, 3 + 0xB8, 3 + 0xAD, A, 3 + 0xFF }, tokenizer:encode "\u{4e2d}a\xFF")
      assert.equal("\u{4e2d}a\xFF", tokenizer:decode(tokenizer:encode "\u{4e2d}a\xFF"))
      assert.same({ SPACE, 3 + 0xE4, A }, tokenizer:encode "\xE4a")
    end)

    it("has customary ids where the file names none", function()
      local tokenizer <close> = make(vocabulary.spm { pieces = pieces })
      assert.equal(1, tokenizer.bos)
      assert.equal(2, tokenizer.eos)
      assert.is_true(tokenizer.add_bos)
      assert.is_true(tokenizer:is_end(2))
      assert.is_nil(tokenizer.pre)
    end)
  end)

  describe("malformed files", function()
    local bpe = vocabulary.bpe { special = { { "<s>", 3 } } }
    local spm = vocabulary.spm { pieces = { { "a", -1 } } }
    local T = "tokenizer.ggml."
    local FORMAT, UNSUPPORTED = core.err.FORMAT, core.err.UNSUPPORTED

    local function types(n, odd)
      local list = {}
      for i = 1, n do list[i] = 1 end
      list[n] = odd or 1
      return list
    end

    local cases = {
      { "no model", bpe, T .. "model", nil, nil, FORMAT },
      { "model of another type", bpe, T .. "model", "u32", 1, FORMAT },
      { "unknown model", bpe, T .. "model", "string", "plamo2", UNSUPPORTED },
      { "empty model", bpe, T .. "model", "string", "", UNSUPPORTED },
      { "model that starts like a known one", bpe, T .. "model", "string", "gpt2\0", UNSUPPORTED },
      { "pre of another type", bpe, T .. "pre", "bool", 1, FORMAT },
      { "unknown pre", bpe, T .. "pre", "string", "gpt-3", UNSUPPORTED },
      { "pre with a NUL", bpe, T .. "pre", "string", "gpt-2\0x", UNSUPPORTED },
      { "no tokens", bpe, T .. "tokens", nil, nil, FORMAT },
      { "tokens that are numbers", bpe, T .. "tokens", "u32", { 1, 2 }, FORMAT },
      { "tokens that are one string", bpe, T .. "tokens", "string", "a", FORMAT },
      { "empty tokens", bpe, T .. "tokens", "string", {}, FORMAT },
      { "types of another type", bpe, T .. "token_type", "u8", types(257), FORMAT },
      { "types that are no array", bpe, T .. "token_type", "i32", 1, FORMAT },
      { "too few types", bpe, T .. "token_type", "i32", types(256), FORMAT },
      { "too many types", bpe, T .. "token_type", "i32", types(258), FORMAT },
      { "type above the last", bpe, T .. "token_type", "i32", types(257, 7), FORMAT },
      { "negative type", bpe, T .. "token_type", "i32", types(257, -1), FORMAT },
      { "no merges", bpe, T .. "merges", nil, nil, FORMAT },
      { "merges that are numbers", bpe, T .. "merges", "i32", { 1 }, FORMAT },
      { "merge without a space", bpe, T .. "merges", "string", { "ab" }, FORMAT },
      { "empty merge", bpe, T .. "merges", "string", { "" }, FORMAT },
      { "merge without a left piece", bpe, T .. "merges", "string", { " a" }, FORMAT },
      { "merge without a right piece", bpe, T .. "merges", "string", { "a " }, FORMAT },
      { "BOS out of range", bpe, T .. "bos_token_id", "u32", 257, FORMAT },
      { "BOS far out of range", bpe, T .. "bos_token_id", "u32", 0xFFFFFFFF, FORMAT },
      { "negative EOS", bpe, T .. "eos_token_id", "i32", -1, FORMAT },
      { "EOS that is a string", bpe, T .. "eos_token_id", "string", "1", FORMAT },
      { "EOT out of range", bpe, T .. "eot_token_id", "u32", 257, FORMAT },
      { "EOM out of range", bpe, T .. "eom_token_id", "u32", 257, FORMAT },
      { "unknown id out of range", bpe, T .. "unknown_token_id", "u32", 257, FORMAT },
      { "add_bos_token that is a number", bpe, T .. "add_bos_token", "u32", 1, FORMAT },
      { "add_bos_token that is an array", bpe, T .. "add_bos_token", "bool", { 1 }, FORMAT },
      { "no scores", spm, T .. "scores", nil, nil, FORMAT },
      { "scores that are bytes", spm, T .. "scores", "u8", types(260), FORMAT },
      { "too few scores", spm, T .. "scores", "f32", types(259), FORMAT },
      { "too many scores", spm, T .. "scores", "f32", types(261), FORMAT },
      { "a score that is no number", spm, T .. "scores", "f32", types(260, 0 / 0), FORMAT },
      { "add_space_prefix that is a number", spm, T .. "add_space_prefix", "u32", 1, FORMAT },
    }

    for _, case in ipairs(cases) do
      it("are refused: " .. case[1], function()
        local tokenizer, message, code = parse(vocabulary.file(vocabulary.with(case[2], case[3], case[4], case[5])))
        assert.is_nil(tokenizer)
        assert.equal(case[6], code)
        assert.is_truthy(message:find(case[3], 1, true))
      end)
    end

    for _, text in ipairs { "<0x4>", "<0x-1>", "<0x041>", "<0xZZ>", "<0x4g>", "<0xab>", "0x41", "<0X41>", "", "A" } do
      it(("are refused: a byte token that spells %q"):format(text), function()
        local entries = vocabulary.spm { pieces = { { text, 0, 6 } } }
        local tokenizer, _, code = parse(vocabulary.file(entries))
        assert.is_nil(tokenizer)
        assert.equal(FORMAT, code)
      end)
    end

    it("list what is known when a kind is not", function()
      local _, models = parse(vocabulary.file(vocabulary.with(bpe, T .. "model", "string", "plamo2")))
      for _, name in ipairs { "gpt2", "llama", "bert", "gemma4", "t5", "rwkv", "none", "plamo2" } do
        assert.is_truthy(models:find(name, 1, true))
      end
      local _, pres = parse(vocabulary.file(vocabulary.with(bpe, T .. "pre", "string", "my-pre")))
      assert.is_truthy(pres:find("llama-bpe", 1, true) and pres:find("qwen2", 1, true) and pres:find("my-pre", 1, true))
    end)

    it("may lack types, and then have no control tokens", function()
      local tokenizer <close> = make(vocabulary.with(bpe, T .. "token_type"))
      assert.is_nil(tokenizer:control "<s>")
      assert.equal("<s>", tokenizer:decode { 256 })
    end)

    it("are cut anywhere without a crash", function()
      local bytes = vocabulary.file(vocabulary.bpe { pieces = { "ab" }, merges = { { "a", "b" } } })
      for n = 0, #bytes - 1, 7 do
        local gguf = core.parse_gguf(bytes:sub(1, n), "cut")
        if gguf then
          core.tokenizer(gguf)
          gguf:close()
        end
      end
    end)

    it("survive flipped bytes", function()
      local random = generator(3)
      for _, entries in ipairs { bpe, spm } do
        local bytes = vocabulary.file(entries)
        for _ = 1, 300 do
          local at = 1 + random(#bytes)
          local flipped = bytes:sub(1, at - 1) .. string.char(random(256)) .. bytes:sub(at + 1)
          local gguf <close> = core.parse_gguf(flipped, "flipped")
          local tokenizer <close> = gguf and core.tokenizer(gguf)
          if tokenizer then tokenizer:encode "a <s> b\xFF" end
        end
      end
    end)
  end)

  describe("out of memory", function()
    local pcall = pcall -- looking a global up costs memory in a spec

    ---Run `call` with every allocation in turn failing, until it needs fewer. Lua's own fail too; some it survives.
    local function fail_each(call, for_ever)
      local n_failed, n = 0, 0
      repeat
        n = n + 1
        local _, before = core.alloc_counts()
        core.alloc_inject(n, for_ever)
        local ok, result, _, code = pcall(call)
        core.alloc_inject(0)
        local _, after = core.alloc_counts()
        if not ok then
          assert.is_truthy(tostring(result):find("memory", 1, true))
          n_failed = n_failed + 1
        elseif not result then
          assert.equal(core.err.MEMORY, code)
          n_failed = n_failed + 1
        end
      until after - before < n
      return n_failed
    end

    local function check(call, at_least)
      for _, for_ever in ipairs { false, true } do
        fail_each(call, for_ever) -- once before counting, so that Lua's own tables have their size
        collectgarbage()
        collectgarbage()
        local live_before = core.alloc_counts()
        local n_failed = fail_each(call, for_ever)
        collectgarbage()
        collectgarbage()
        local live_after = core.alloc_counts()
        assert.equal(live_before, live_after)
        assert.is_true(n_failed >= at_least)
      end
    end

    local gguf, tokenizer
    local sources = {
      { "gpt2", vocabulary.bpe { pieces = { "ab" }, merges = { { "a", "b" } }, special = { { "<s>", 3 }, { "<t>", 4 },
                                                                                       { "<tt>", 4 } } } },
      { "gpt2 with expressions", vocabulary.bpe { pre = "deepseek-v3", pieces = { "ab" }, merges = { { "a", "b" } },
                                                  special = { { "<s>", 3 }, { "<t>", 4 } } } },
      { "llama", vocabulary.spm { pieces = { { "\u{2581}", -1 }, { "a", -2 }, { "aa", -3 }, { "<t>", 0, 4 } } } },
      { "t5", vocabulary.of("t5", vocabulary.rows { { "\u{2581}", -1 }, { "a", -2 }, { "b", -3 }, { "<t>", 0, 4 } },
        { { "tokenizer.ggml.precompiled_charsmap", "u8", vocabulary.charsmap("x", "x") },
          { "tokenizer.ggml.remove_extra_whitespaces", "bool", 0 } }) },
      { "gemma4", vocabulary.of("gemma4", vocabulary.rows { { "\u{2581}", -1 }, { "a" }, { "aa" }, { "<t>", 0, 4 } },
        { { "tokenizer.ggml.merges", "string", { "a a" } } }) },
      { "rwkv", vocabulary.rwkv { { "<t>", 0, 4 }, { "ab" } } },
      { "bert", vocabulary.of("bert", { { "[UNK]", 0, 3 }, { "<s>", 0, 3 }, { "\u{2581}a" }, { "a" }, { "b" },
        { "\u{2581}\u{4e2d}" }, { "<t>", 0, 4 }, { "\u{2581}x" }, { "y" }, { "\u{2581}y" } }) },
    }
    for _, entry in ipairs(sources) do
      entry[2] = vocabulary.with(entry[2], "general.name", "string", "phi-3 by name") -- strips white space
    end
    for _, source in ipairs(sources) do
      it("is reported and leaks nothing: " .. source[1], function()
        gguf = assert(core.parse_gguf(vocabulary.file(source[2]), "spec"))
        local handle = gguf
        check(function()
          local opened, message, code = core.tokenizer(handle)
          if opened then opened:close() end
          return opened, message, code
        end, 8)
        tokenizer = assert(core.tokenizer(gguf))
        local text = { ("ab aa \u{4e2d}<t>"):rep(30), { control = "<s>" }, "x", "y" }
        local opened = tokenizer
        check(function() return opened:encode(text) end, 3)
        local ids = tokenizer:encode(text)
        check(function() return opened:decode(ids) end, 2)
        if source[1] ~= "bert" then assert.equal(text[1] .. "xy", tokenizer:decode(ids)) end
        tokenizer:close()
        gguf:close()
      end)
    end
  end)

  it("writes the alphabet of byte-level BPE as everybody does", function()
    assert.equal("\u{120}\u{10A}!\u{C4}\u{143}", map " \n!\xC4\xAD")
  end)
end)
