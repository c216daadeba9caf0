describe("kigo.core.split", function()
  local kigo = require "kigo"
  local core = kigo.core
  local fuzz = require "spec.fuzz"
  local splits = require "spec.fixtures.splits"
  local vocabulary = require "spec.fixtures.vocabulary"

  local names = core.pretokenizers()

  local function open(pre, options)
    local gguf <close> = assert(core.parse_gguf(vocabulary.file(vocabulary.with(vocabulary.bpe {},
      "tokenizer.ggml.pre", pre and "string", pre)), "spec"))
    return core.tokenizer(gguf, options)
  end

  ---Words end one behind the other, and the last one where the text does.
  local function check_ends(ends, text, name)
    local last = 0
    for _, at in ipairs(ends) do
      assert(at > last, name)
      last = at
    end
    assert.equal(#text, last, name)
  end

  for name, expected in pairs(splits.ends) do
    it("cuts as the model's own tokenizer does: " .. name, function()
      for i, text in ipairs(splits.texts) do assert.same(expected[i], core.split(name, text)) end
    end)
  end

  it("knows every name of public files once", function()
    local seen = {}
    for _, name in ipairs(names) do
      assert.is_nil(seen[name])
      seen[name] = true
      local tokenizer <close> = assert(open(name))
      assert.equal(name, tokenizer.pre)
    end
    for name in pairs(splits.ends) do assert.is_true(seen[name]) end
    for name in ("deepseek-r1-qwen llama3 llama-v3 falcon3 falcon-h1 refact command-r mpt olmo smaug-bpe llama4 smollm "
      .. "codeshell poro-chat gpt3-finnish chatglm-bpe glm4 jais minerva-7b exaone exaone4 jina-v2-code trillion "
      .. "bailingmoe2 llada-moe hunyuan hunyuan-dense granite-docling minimax-m2 grok-2 megrez mellum a.x-4.0 midm-2.0 "
      .. "lfm2 modern-bert roberta-bpe phi-2 stablelm2 solar-open pixtral gigachat"):gmatch "%S+" do
      assert.is_true(seen[name], name)
    end
  end)

  -- Characters of many kinds, bytes that are no UTF-8 among them, in runs.
  local function random_text(dice)
    local sets = { "'sStTdDmM", "abcXYZ", " ", "  \n", "\r\n\t", "0123456789", "!?.,/$+<=>^`|~(", "\0\1\127" }
    local points = { { 0xA0, 0x2FF }, { 0x300, 0x36F }, { 0x370, 0x6FF }, { 0x900, 0xFFF }, { 0x1680, 0x1FFF },
      { 0x2000, 0x206F }, { 0x2070, 0x2BFF }, { 0x3000, 0x30FF }, { 0x4E00, 0x4F00 }, { 0xAC00, 0xAC80 },
      { 0xFF00, 0xFFEF }, { 0x1D7C0, 0x1D7FF }, { 0x1F300, 0x1F6FF }, { 0x17F, 0x17F }, { 0x212A, 0x212A } }
    local parts = {}
    for i = 1, dice:roll(25) do
      if dice:once_in(12) then
        parts[i] = string.char(dice:roll(256) - 1)
      elseif dice:once_in(3) then
        local range = dice:pick(points)
        parts[i] = utf8.char(range[1] + dice:roll(range[2] - range[1] + 1) - 1)
      else
        local set = dice:pick(sets)
        local at = dice:roll(#set)
        parts[i] = set:sub(at, at):rep(dice:once_in(6) and dice:roll(9) or 1)
      end
    end
    return table.concat(parts)
  end

  it("gives the same words by hand and by PCRE2", function()
    local dice = fuzz.dice(7, 0)
    for _ = 1, 300 do
      local text = random_text(dice)
      for name in pairs(splits.ends) do
        local by_hand = assert(core.split(name, text))
        check_ends(by_hand, text, name)
        assert.same(by_hand, core.split(name, text, { by_regex = true }), ("%s: %q"):format(name, text))
      end
    end
  end)

  it("is at least twice as fast by hand for GPT-2, Llama 3 and Qwen2 #slow", function()
    local text = ("The quick brown fox, 1234 and \u{442}\u{435}\u{43A}\u{441}\u{442} \u{4E2D}\u{6587}.\n"):rep(4000)
    local function best(name, by_regex)
      local seconds = math.huge
      for _ = 1, 5 do
        local start = core.now()
        core.split(name, text, { by_regex = by_regex, count = true })
        seconds = math.min(seconds, core.now() - start)
      end
      return seconds
    end
    for _, name in ipairs { "gpt-2", "llama-bpe", "qwen2" } do
      assert.is_true(best(name, false) * 2 <= best(name, true), name)
    end
  end)

  it("takes time in proportion to the text, whatever it is", function()
    local n = 100000
    local runs = { ("a"):rep(n), ("A"):rep(n), (" "):rep(n), (" "):rep(n) .. "x", ("\n"):rep(n), ("1"):rep(n),
      ("1"):rep(n) .. "x", ("!"):rep(n), (" \n"):rep(n // 2), ("\n "):rep(n // 2), ("\u{4E2D}"):rep(n // 3),
      ("\u{300}"):rep(n // 2), ("a b"):rep(n // 3), ("1a"):rep(n // 2), ("\xFF"):rep(n), ("\r"):rep(n) .. (" "):rep(n) }
    for name in pairs(splits.ends) do
      for i, text in ipairs(runs) do
        local start = core.now()
        assert.is_true(core.split(name, text, { count = true }) > 0)
        assert.is_true(core.now() - start < 1, ("%s, text %d"):format(name, i))
      end
    end
  end)

  it("cuts nothing out of nothing", function()
    for _, name in ipairs(names) do assert.same({}, core.split(name, "")) end
  end)

  it("raises on what is no name, text or option", function()
    assert.has_error(function() core.split("gpt-3", "x") end)
    assert.has_error(function() core.split("gpt-2", nil) end)
    assert.has_error(function() core.split("gpt-2", "x", { regex = true }) end)
    assert.has_error(function() core.split("gpt-2", "x", { by_regex = 1 }) end)
    assert.has_error(function() core.split("gpt-2", "x", { count = 1 }) end)
  end)

  describe("a file's pre-tokenizer", function()
    it("is the default one where it names none", function()
      local tokenizer <close> = assert(open(nil))
      assert.is_nil(tokenizer.pre)
    end)

    it("may be forced", function()
      local tokenizer <close> = assert(open("not-yet-known", { pre = "qwen2" }))
      assert.equal("qwen2", tokenizer.pre)
    end)

    it("is refused where it is not known, with all names that are", function()
      for _, opened in ipairs { { open "not-yet-known" }, { open("gpt-2", { pre = "gpt-3" }) } } do
        assert.is_nil(opened[1])
        assert.equal(kigo.err.UNSUPPORTED, opened[3])
        for _, name in ipairs(names) do assert.is_truthy(opened[2]:find(name, 1, true), name) end
      end
      assert.has_error(function() open("gpt-2", { pre = 2 }) end)
    end)
  end)
end)
