describe("kigo.regex", function()
  local kigo = require "kigo"
  local regex = require "kigo.regex"
  local err = kigo.err

  local function check(pattern, accepted, rejected, options)
    local grammar <close> = assert(kigo.regex(pattern, options))
    for _, text in ipairs(accepted) do assert.is_true(grammar:accepts(text), ("%s: %q"):format(pattern, text)) end
    for _, text in ipairs(rejected) do assert.is_false(grammar:accepts(text), ("%s: %q"):format(pattern, text)) end
  end

  it("agrees with Python's", function() -- scripts/regex_cases.py
    local n = 0
    for line in io.lines "spec/fixtures/regex.jsonl" do
      local case = assert(kigo.json.decode(line))
      for mode, anchored in pairs { f = true, s = false } do
        local node, _, code = regex.parse(case.p, { anchored = anchored })
        local grammar <close> = node and kigo.grammar { root = node }
        if not node then assert.equal(err.UNSUPPORTED, code, case.p) end
        for i, text in ipairs(node and case.t or {}) do
          local got = grammar and grammar:accepts(text) or false
          assert.equal(case[mode]:sub(i, i) == "1", got, ("%s %s %q"):format(mode, case.p, text))
          n = n + 1
        end
      end
    end
    assert.is_true(n > 1500)
  end)

  it("knows classes and escapes", function()
    check("[\\d\\-x-]+", { "1-x" }, { "", "a" })
    check("[^\\D]", { "7" }, { "a" })
    check("\\x41\\u0042\\u{43}\\cJ\\0", { "ABC\n\0" }, { "ABC\n" })
    check("\\ud83d\\ude00", { "\u{1F600}" }, { "x" })
    check("[\\u{1F600}-\\u{1F64F}]", { "\u{1F601}" }, { "\u{1F650}" })
    check("\\p{Lu}\\p{Ll}+\\P{L}", { "Éa!", "Ab1" }, { "ea!", "Abb" })
    check("\\p{Letter}[\\p{N}_]", { "é٣", "a_" }, { "aa" })
    check("\\d", { "٣" }, { "a" }, { unicode = true })
    check("\\d", {}, { "٣" })
    check("a.b", { "a\nb" }, {}, { dotall = true })
    check("a.b", { "aéb" }, { "a\nb" })
    check("{a}", { "{a}" }, {}, { lenient = true })
    check("\\/\\$\\^", { "/$^" }, {})
  end)

  it("knows anchors and lookaheads", function()
    check("^abc$", { "abc" }, { "xabc" })
    check("(?!.*--)[a-z-]+", { "a-b" }, { "a--b" })
    check("(?=.*\\d)(?=.*[a-z]).{3,5}", { "a1b", "12abc" }, { "abc", "123", "a1b2c3" })
    check("(^|x)a", { "a", "xa" }, { "ya" })
    check("a(b$|c)d?", { "ab", "acd" }, { "abd" })
    check("", { "" }, { "a" })
    check("a|", { "", "a" }, { "aa" })
  end)

  local function refused(code, pattern)
    local started = os.clock()
    local grammar, message, got = kigo.regex(pattern)
    assert.is_nil(grammar)
    assert.equal(code, got, message)
    assert.is_true(os.clock() - started < 0.25)
    return message
  end

  it("refuses by name what no automaton can do", function()
    for pattern, word in pairs {
      ["(a)\\1"] = "backreference", ["(?<n>a)\\k<n>"] = "backreference", ["(?<=a)b"] = "lookbehind",
      ["(?<!a)b"] = "lookbehind", ["\\bword"] = "\\b", ["a++"] = "possessive", ["(?i)a"] = "(?i", ["(?>a)"] = "(?>",
      ["[[:alpha:]]"] = "POSIX", ["\\p{Greek}"] = "\\p{Greek}", ["(^a)*"] = "repeated", ["\\Z"] = "\\Z",
    } do
      assert.is_truthy(refused(err.UNSUPPORTED, pattern):find(word, 1, true), pattern)
    end
  end)

  it("says where a pattern is malformed", function()
    for pattern, at in pairs { ["(a"] = 1, ["a)"] = 2, ["[a"] = 1, ["*a"] = 1, ["a**"] = 3, ["a{2,1}"] = 2,
      ["[b-a]"] = 3, ["\\"] = 1, ["\\x1"] = 1, ["\\u12"] = 1, ["a{1"] = 2, ["\xFF"] = 1, ["\\p{"] = 3, ["}"] = 1 } do
      assert.matches(" at " .. at .. "$", refused(err.FORMAT, pattern), pattern)
    end
    refused(err.FORMAT, "a^b") -- nothing matches
  end)

  it("has limits", function()
    refused(err.FULL, ("("):rep(60000))
    refused(err.FULL, ("(a|"):rep(60000))
    refused(err.FULL, ("a"):rep(1 << 17))
    refused(err.FULL, "a{99999999}")
    refused(err.FULL, "(a{1000000000})")
    refused(err.FULL, "^" .. ("(?!the|a$).{1,8}$^"):rep(60))
    assert.has_error(function() kigo.regex(1) end)
    assert.has_error(function() kigo.regex("a", { nope = true }) end)
  end)

  it("knows at once that nothing more can come where a negative lookahead failed", function()
    local word = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    local pattern = ("(?=.{1,253}$)(?!.*\\d)%s(?:\\.%s)*"):format(word, word)
    local grammar <close> = assert(kigo.regex(pattern))
    local matcher <close> = assert(grammar:matcher())
    assert.is_true(matcher:accept_bytes "a.b-c")
    assert.is_false(matcher:accept_bytes "1")
    assert.is_true(grammar:accepts "a.b-c.d")
  end)

  it("takes patterns that make other engines slow", function()
    for _, pattern in ipairs { "(a*)*b", "(a|a)*b", "(a+)+b", "(.*)*x", "(a{0,1000}){0,1000}",
      "((a{1,100}){1,100}){1,100}", "(x+x+)+y", "(a{0,1000}b?){0,1000}", ("a?"):rep(100) .. ("a"):rep(100),
      "(.*,){100}", ("(a|b"):rep(50) .. (")*"):rep(50), "[^x]{1000000}", "(\\p{L}|\\p{N}|\\p{P}){3,500}",
      "(?!" .. ("a"):rep(5000) .. ").*" } do
      local started = os.clock()
      local grammar <close>, message = kigo.regex(pattern)
      assert.is_truthy(grammar, message)
      assert.is_true(os.clock() - started < 0.25, pattern)
      grammar:accepts(("a"):rep(1000) .. "b")
      assert.is_true(os.clock() - started < 2, pattern)
    end
  end)
end)

describe("kigo.choice", function()
  local kigo = require "kigo"

  it("is one of its texts", function()
    local texts = {}
    for i = 1, 5000 do texts[i] = ("item %d of %d"):format(i, i * 7919 % 5000) end
    texts[#texts + 1] = "item"
    local grammar <close> = assert(kigo.choice(texts))
    for i = 1, 5001, 97 do assert.is_true(grammar:accepts(texts[i])) end
    assert.is_true(grammar:accepts "item")
    for _, text in ipairs { "", "item ", "item 1 of 1", texts[7] .. " " } do assert.is_false(grammar:accepts(text)) end
  end)

  it("wants texts", function()
    assert.has_error(function() kigo.choice {} end)
    assert.has_error(function() kigo.choice { 1 } end)
    assert.has_error(function() kigo.choice "a" end)
  end)
end)
