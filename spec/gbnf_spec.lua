describe("kigo.gbnf", function()
  local kigo = require "kigo"
  local err = kigo.err

  local function check(text, accepted, rejected, options)
    local grammar <close> = assert(kigo.gbnf(text, options))
    for _, one in ipairs(accepted) do assert.is_true(grammar:accepts(one), ("%q"):format(one)) end
    for _, one in ipairs(rejected) do assert.is_false(grammar:accepts(one), ("%q"):format(one)) end
  end

  it("reads rules, alternatives, groups and quantifiers", function()
    check([[root ::= "a" ("b" | "c")* d? [x-z]+ "e"{2} "f"{1,2} "g"{1,}
d ::= "d"]], { "axeefg", "abcbdxyzeeffggg" }, { "axefg", "axeefffg", "a" })
  end)

  it("goes on behind | and within groups", function()
    check('root ::= "a" |\n  "b" |\n\n # comment\n "c"', { "a", "b", "c" }, { "" })
    check('root ::= (\n "a"\n "b"\n )\nother ::= "x"', { "ab" }, { "a" })
    check('root ::=\n  "a" other\nother ::= "b" |', { "ab", "a" }, { "b" })
    check('# first\n\nroot::="a"#last', { "a" }, {})
    check('root ::= a-b_c\r\na-b_c ::= "x"\r\n', { "x" }, {})
  end)

  it("reads escapes and classes", function()
    check([[root ::= "\x41\u00e9\U0001F600\n\t\\\"" [\]\-a] [^\n"] .]],
      { "Aé\u{1F600}\n\t\\\"]é\n", "Aé\u{1F600}\n\t\\\"-ab" },
      { "Aé\u{1F600}\n\t\\\"b\n" })
    check('root ::= "日本" [ぁ-ん]+', { "日本ご" }, { "日本" })
    check("root ::= []\"a\"? | \"x\"", { "x" }, { "a" })
  end)

  it("recurs", function()
    check([[root ::= "(" root ")" | ]], { "", "(())" }, { "(", "())" })
    check([[
      root  ::= (expr "=" term "\n")+
      expr  ::= term ([-+*/] term)*
      term  ::= ident | num | "(" expr ")"
      ident ::= [a-z] [a-z0-9_]*
      num   ::= [0-9]+
    ]], { "a+(b*2)=c\n", "1=2\n(3)=x_1\n" }, { "a=b", "a+=b\n", "" })
  end)

  it("names points", function()
    local grammar <close> = assert(kigo.gbnf('root ::= word "." word ::= [a-z]+', { points = { "word" } }))
    assert.is_true(grammar:accepts("abc.", { points = { word = function(text) return text == "abc" end } }))
    assert.is_false(grammar:accepts("abd.", { points = { word = function(text) return text == "abc" end } }))
    assert.has_error(function() kigo.gbnf('root ::= "a"', { points = { "b" } }) end)
    assert.has_error(function() kigo.gbnf('root ::= "a"', { points = { root = function() end } }) end)
  end)

  local function refused(code, text)
    local started = os.clock()
    local grammar, message, got = kigo.gbnf(text)
    assert.is_nil(grammar)
    assert.equal(code, got, message)
    assert.is_true(os.clock() - started < 0.25, text:sub(1, 40))
    return message
  end

  it("says where a grammar is malformed", function()
    for text, place in pairs {
      ['root ::= "a'] = "line 1, column 10", ['root ::= ("a"'] = "line 1, column 10",
      ['root ::= "a")'] = "line 1, column 13",
      ['root ::= [a'] = "line 1, column 10", ['root ::= *'] = "line 1, column 10",
      ['root ::= "a" | +'] = "line 1, column 16",
      ['root ::= "a"{2,1}'] = "line 1, column 13", ['root ::= "a"{x}'] = "line 1, column 13",
      ['root ::= "a"**'] = "line 1, column 13", ['root = "a"'] = "line 1, column 6", ["root"] = "line 1, column 5",
      ['root ::= "a"\nroot ::= "b"'] = "line 2, column 1", ['root ::= a\n\na ::= "x" nope'] = "line 3, column 11",
      ['root ::= "\\q"'] = "line 1, column 11", ['root ::= "\\ud800"'] = "line 1, column 11",
      ['root ::= [z-a]'] = "line 1, column 11", ['root ::= "\xff"'] = "line 1, column 11",
      ['a ::= "x"'] = "line 1, column 1",
      [""] = "line 1, column 1", ["1 ::= 2"] = "line 1, column 1", ['root ::= "\\U00110000"'] = "line 1, column 11",
    } do
      assert.is_truthy(refused(err.FORMAT, text):find(place, 1, true), text .. ": " .. refused(err.FORMAT, text))
    end
  end)

  it("refuses what cannot be matched", function()
    assert.matches("left recursion", refused(err.FORMAT, 'root ::= root "a" | "b"'))
    refused(err.FORMAT, 'root ::= a\na ::= b "x"\nb ::= "y"? a | "z"')
    refused(err.FORMAT, "root ::= root")
    refused(err.FORMAT, 'root ::= "a" root')
  end)

  it("has limits", function()
    refused(err.FULL, "root ::= " .. ("("):rep(60000))
    refused(err.FULL, "root ::= " .. ('("a" '):rep(60000))
    refused(err.FULL, 'root ::= "a"{1000000000}')
    refused(err.FULL, "root ::= " .. ("x"):rep(1 << 19))
    assert.has_error(function() kigo.gbnf(nil) end)
  end)

  it("takes large and nasty grammars in time", function()
    local rules = { 'root ::= r1' }
    for i = 1, 3000 do rules[#rules + 1] = ('r%d ::= "x" r%d | "y"'):format(i, i % 3000 + 1) end
    local names = {}
    for i = 1, 2000 do names[i] = ('"name %d"'):format(i) end
    for _, text in ipairs {
      table.concat(rules, "\n"),
      "root ::= (" .. table.concat(names, " | ") .. ")+",
      'root ::= ("a"* "b"*){0,1000} "c"', 'root ::= ("a" root "b" | "a" root "c" | "")', 'root ::= (("a"?)*)* "b"',
      'root ::= x{0,500} x ::= "(" root ")" | "a"', 'root ::= ("a" | root2)* root2 ::= "b" root | "c"',
      "root ::= " .. ("("):rep(55) .. '"a"' .. (")*"):rep(55),
    } do
      local started = os.clock()
      local grammar <close>, message = kigo.gbnf(text)
      assert.is_truthy(grammar, message)
      assert.is_true(os.clock() - started < 0.25, text:sub(1, 60))
      grammar:accepts(("a"):rep(300) .. "b")
      grammar:accepts(("x"):rep(300) .. "y")
      assert.is_true(os.clock() - started < 1, text:sub(1, 60))
    end
  end)
end)
