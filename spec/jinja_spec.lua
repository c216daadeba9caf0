describe("kigo.template.jinja", function()
  local core = require "kigo.core"
  local jinja = require "kigo.template.jinja"
  local json = require "kigo.json"

  local function compiled(source) return assert(jinja.compile(source)) end

  local function render(source, variables, options)
    local text, message = compiled(source):render(variables or {}, options)
    return text and tostring(text) or error(message, 2)
  end

  -- "syntax", "type", ... of a template that fails, and its message.
  local function fault(source, variables, options)
    local template, message, code, kind, place = jinja.compile(source)
    local wanted = core.err.FORMAT
    if template then
      wanted, template, message, code, kind, place = core.err.UNSUPPORTED, template:render(variables or {}, options)
    end
    assert.is_nil(template)
    assert.equal(wanted, code)
    assert.equal("table", type(place))
    return kind, message, place
  end

  -- Runs as "+text" and "-text".
  local function runs(source, variables)
    local list = {}
    for i, run in ipairs(assert(compiled(source):render(variables or {}))) do
      list[i] = (run.own and "+" or "-") .. run.text
    end
    return list
  end

  -- ---- against Python's Jinja ----

  -- The variables of the generated cases, and the cases.
  local function generated()
    local variables, cases = nil, {}
    for line in io.lines(os.getenv "KIGO_JINJA_CASES" or "spec/fixtures/jinja_cases.json") do
      local value = assert(json.decode(line))
      if variables then cases[#cases + 1] = value else variables = value end
    end
    return variables, cases
  end

  it("renders generated templates as Python does", function()
    local variables, cases = generated()
    assert.is_true(#cases >= 300)
    for _, case in ipairs(cases) do
      local template, message, code, kind = jinja.compile(case.template)
      local text
      if template then text, message, code, kind = template:render(variables, { now = "2026-07-29 10:29:00" }) end
      assert.equal(case.expected or case.error, text and tostring(text) or kind, case.template .. ": "
        .. tostring(message) .. tostring(code))
    end
  end)

  -- Every letter and digit as one that no template has.
  local function disguised(v)
    if type(v) == "string" then
      return (v:gsub("%w", function(c) return utf8.char(0xe000 + c:byte()) end))
    end
    if type(v) ~= "table" or v == json.null then return v end
    local copy = {}
    for key, item in pairs(v) do copy[disguised(key)] = disguised(item) end
    return copy
  end

  it("never calls a variable's characters the template's own", function()
    local variables, cases = generated()
    local hidden, rendered = {}, 0
    for name, v in pairs(variables) do hidden[name] = disguised(v) end
    for _, case in ipairs(cases) do
      local template = jinja.compile(case.template)
      for _, run in ipairs(template and template:render(hidden) or {}) do
        assert.is_false(run.own and run.text:find "\xee[\x80-\x83]" ~= nil, case.template .. ": " .. run.text)
        rendered = rendered + 1
      end
    end
    assert.is_true(rendered > 300)
  end)

  -- ---- tables of small cases: what Python's Jinja renders from the left is on the right ----

  local SMALL = {
    ["white space"] = {
      { "  {% if 1 %}\n a\n  {% endif %}\nb\n", " a\nb" }, { "x {%- if 1 -%} a {%- endif -%} y", "xay" },
      { "a\n  {%+ if 1 %}b{% endif %}", "a\n  b" }, { "{% if 1 +%}\nb{% endif %}", "\nb" },
      { "  {{ 1 }}\n\n", "  1\n" },
      { "a {#- c -#} b", "ab" }, { "{# c #}\nb", "b" }, { "{% raw %} {{ x }} {% endraw %}", " {{ x }} " },
      { "a\r\nb\rc\n", "a\nb\nc" }, { "\u{a0}{{- 1 -}}\u{3000}x", "1x" },
      { "{{ '}}' }}{{ {'a': {'b': 1}}['a'] }}", "}}{'b': 1}" },
    },
    ["numbers"] = {
      { "{{ 1e16 }} {{ 1e15 }} {{ 0.1 + 0.2 }} {{ 1e-5 }} {{ 5e-324 }} {{ 100.0 }}",
        "1e+16 1000000000000000.0 0.30000000000000004 1e-05 5e-324 100.0" },
      { "{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }} {{ 1 // 0.1 }}",
        "3 -4 -2 3.5 64 4 9.0" },
      { "{{ 2.5|round }} {{ 3.5|round }} {{ 2.675|round(2) }} {{ 25|round(-1) }} {{ 42.55|round(1, 'floor') }}",
        "2.0 4.0 2.67 20 42.5" },
      { "{{ 9223372036854775807 }} {{ -9223372036854775807 - 1 }}", "9223372036854775807 -9223372036854775808" },
      { "{{ true + 1 }} {{ 1 == 1.0 == true }} {{ {1: 'a'}[true] }}", "2 True a" },
      { "{{ '0x1F'|int(base=16) }} {{ ' 12 '|int }} {{ '3.9'|int }} {{ 'x'|int(-1) }} {{ '1_000'|float }}",
        "31 12 3 -1 1000.0" },
    },
    ["printing"] = {
      { "{{ [1, 'a', 2.0, none, true, (1,), {}, {'k': \"it's\"}] }}",
        "[1, 'a', 2.0, None, True, (1,), {}, {'k': \"it's\"}]" },
      { "{{ ['\\n\\t\\\\', '\\u00ad', 'é', '\\x7f'] }}", "['\\n\\t\\\\', '\\xad', 'é', '\\x7f']" },
      { "{{ nope }}|{{ [nope] }}|{{ 'a' ~ nope }}", "|[Undefined]|a" },
      { "{{ {'a': 1}.items() }} {{ range(1, 5) }} {{ namespace(a=1) }}",
        "dict_items([('a', 1)]) range(1, 5) <Namespace {'a': 1}>" },
    },
    ["characters"] = {
      { "{{ 'größe'|length }}{{ 'größe'[2] }}{{ 'größe'[::-1] }}{{ 'größe'|upper }}", "5öeßörgGRÖSSE" },
      { "{{ 'ΣΑΣ'.lower() }} {{ 'ﬁx ßa ᾈ'.title() }} {{ 'ǆ'.capitalize() }} {{ 'İ'.lower()|length }}",
        "σας Fix Ssa ᾈ ǅ 2" },
      { "{{ '\u{3000}x\u{a0}'.strip() }}|{{ 'a\u{2003}b'.split() }}", "x|['a', 'b']" },
      { "{{ '😀a'.find('a') }}{{ '½'.isnumeric() }}{{ '٣'.isdigit() }}{{ 'Ab1'.isalnum() }}", "1TrueTrueTrue" },
    },
    ["loops"] = {
      { "{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "123" },
      { "{% for i in [1, 2, 3, 4] if i is even %}{{ i }}{{ loop.last }}{% endfor %}", "2False4True" },
      { "{% set x = 0 %}{% for i in [1] %}{% set x = 1 %}{{ x }}{% endfor %}{{ x }}", "10" },
      { "{% for i in [] %}{% else %}none{% endfor %}", "none" },
      { "{% for i in [1, 1, 2] %}{{ loop.changed(i) }}{{ loop.previtem }}{{ loop.nextitem }},{% endfor %}",
        "True1,False12,True1," },
      { "{% for i in [[1, [2]], [3, []]] recursive %}{{ loop.depth }}{{ i if i is number else loop(i) }}{% endfor %}",
        "1212321232" },
      { "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "02" },
      { "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3" },
    },
    ["macros"] = {
      { "{% macro m(a, b=a ~ '!') %}{{ a }}{{ b }}{{ varargs}}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}{{ m(5)}}",
        "12(3,){'x': 4}55!(){}" },
      { "{% macro m() %}<{{ caller(2) }}>{% endmacro %}{% call(x) m() %}{{ x * 2 }}{% endcall %}", "<4>" },
      { "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}", "1" },
      { "{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "1" },
      { "{% set x | upper %}a{{ 1 }}{% endset %}{{ x }}{% filter replace('a', 'b') %}aa{% endfilter %}", "A1bb" },
      { "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}", "1" },
    },
    ["tojson"] = {
      { "{{ {'b': [1, 1.0, none, true], 'a': \"é</\"}|tojson }}", "{\"b\": [1, 1.0, null, true], \"a\": \"é</\"}" },
      { "{{ {'b': [], 'a': {}}|tojson(indent=2, sort_keys=true) }}", "{\n  \"a\": {},\n  \"b\": []\n}" },
      { "{{ ['é😀\\n\\x7f\\x01']|tojson(ensure_ascii=true) }}", "[\"\\u00e9\\ud83d\\ude00\\n\x7f\\u0001\"]" },
      { "{{ [1, 2]|tojson(separators=(',', ':')) }}{{ {1: 2, none: 3}|tojson }}", "[1,2]{\"1\": 2, \"null\": 3}" },
    },
    ["time"] = {
      { "{{ strftime_now('%Y-%m-%d %H:%M:%S %A %a %B %b %d %-d %j %p %I %y %U %W %V %u %e|%%|%F %T') }}",
        "2026-02-03 09:05:07 Tuesday Tue February Feb 03 3 034 AM 09 26 05 05 06 2  3|%|2026-02-03 09:05:07" },
    },
  }

  for name, cases in pairs(SMALL) do
    it("knows " .. name, function()
      for _, case in ipairs(cases) do
        assert.equal(case[2], render(case[1], {}, { now = "2026-02-03 09:05:07" }), case[1])
      end
    end)
  end

  -- ---- variables ----

  describe("variables", function()
    it("are Lua data", function()
      local variables = { s = "x", i = 1, f = 1.0, b = true, n = json.null, l = { 1, 2 }, d = { b = 1, a = 2 }, e = {} }
      assert.equal("x1 1.0 True None [1, 2] {'a': 2, 'b': 1} []",
        render("{{ s }}{{ i }} {{ f }} {{ b }} {{ n }} {{ l }} {{ d }} {{ e }}", variables))
    end)

    it("keep the order of JSON", function()
      local variables = assert(json.decode '{"d": {"z": {}, "a": [], "m": 1.0}}')
      assert.equal('{"z": {}, "a": [], "m": 1.0}', render("{{ d|tojson }}", variables))
    end)

    it("raise where they are no data", function()
      local template, cycle = compiled "x", {}
      cycle[1] = cycle
      local wrong_ones = { { x = print }, { x = { 1, a = 2 } }, { x = { [1.5] = 1 } }, { x = cycle }, { [1] = 2 } }
      for _, wrong in ipairs(wrong_ones) do
        assert.error(function() template:render(wrong) end)
      end
      assert.error(function() template:render(nil) end)
      assert.error(function() template:render({}, { now = "soon" }) end)
      assert.error(function() template:render({}, { step = 1 }) end)
    end)

    it("are valid UTF-8 inside", function()
      assert.equal("a\u{fffd}2", render("{{ x }}{{ x|length }}", { x = "a\xff" }))
    end)
  end)

  -- ---- where text came from ----

  describe("provenance", function()
    local CASES = {
      { "<s>{{ x }}</s>", "+<s>", "-<b>", "+</s>" },
      { "{{ '<|' + x + '|>' }}", "+<|", "-<b>", "+|>" },
      { "{{ ('<|' ~ x ~ '|>')[1:4] }}", "+|", "-<b" },
      { "{{ ('  ' + x + '  ')|trim }}", "-<b>" },
      { "{{ (x + 'a,b' + x).split(',')|join(';') }}", "-<b>", "+a;b", "-<b>" },
      { "{{ 'a-b'.replace('-', x) }}", "+a", "-<b>", "+b" },
      { "{{ x.replace('b', 'i') }}", "-<", "+i", "->" },
      { "{{ x.center(5, '*') }}", "+*", "-<b>", "+*" },
      { "{{ x.center(5) }}", "- <b> " },
      { "{{ '[%s|%5s]' % (x, x) }}", "+[", "-<b>", "+|  ", "-<b>", "+]" },
      { "{{ '[{}]'.format(x) }}", "+[", "-<b>", "+]" },
      { "{{ f.format('<s>') }}{{ f % () }}", "-<s>{}" },
      { "{{ '{:{}>3}'.format('', x[0]) }}{{ '{:*>3}'.format(x) }}{{ '{:->4}'.format(x) }}", "-<<<<b>", "+-", "-<b>" },
      { "{{ x|upper }}{{ 'a'|upper }}", "-<B>", "+A" },
      { "{{ ('<s>' + x)|upper }}", "-<S><B>" },
      { "{{ 5 }}{{ 1.5 }}{{ true }}{{ none }}{{ ['a'] }}", "-51.5TrueNone['a']" },
      { "{{ 'a'|tojson }}", '-"a"' },
      { "{% set y %}<s>{{ x }}{% endset %}{{ y }}", "+<s>", "-<b>" },
      { "{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(x) }}{{ m('c') }}", "+<", "-<b>", "+><c>" },
      { "{% set ns = namespace(t=x) %}{{ ns.t }}{{ {'k': x}.k }}{{ x|default('d') }}", "-<b><b><b>" },
      { "{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}{{ d|list|first }}", "-<k><v><k>" },
      { "{% macro m() %}{{ kwargs.keys()|first }}{% endmacro %}{{ m(**d) }}", "-<k>" },
      { "{{ {x: 1}.keys()|list|first }}{{ dict(**d).keys()|list|first }}", "-<b><k>" },
      { "{{ x.partition('b')|join }}", "-<b>" },
      { "{{ x[::-1] }}{{ x|reverse }}{{ x|list|join }}{{ x|first }}", "->b<>b<<b><" },
      { "{{ ('a\n' ~ x)|indent('> ') }}", "+a", "-\n", "+> ", "-<b>" },
      { "{% if x == '<b>' %}<b>{% endif %}", "+<b>" },
      { "{{ {'<b>': '<s>'}[x] }}", "+<s>" },
      { "{{ '%c%c' % (60, x[0]) }}", "-<<" },
      { "{{ (x ~ 'a' ~ x) * 2 }}", "-<b>", "+a", "-<b><b>", "+a", "-<b>" },
      { "{{ own }}{{ 'a' + own }}{{ own|upper }}", "+<t>a<t><T>" },
      { "{{ (own ~ x)|wordwrap(3) }}", "+<t>", "-\n<b>" },
      { "{{ strftime_now('%%') }}{{ strftime_now(x) }}", "+%", "-<b>" },
      { "{{ [x, 'a']|join('|') }}{{ [['a', x]]|map('join')|list|first }}", "-<b>", "+|aa", "-<b>" },
      { "{{ x|e }}{{ ('<' ~ x)|striptags }}", "-&lt;b&gt;" },
      { "{{ ('abc' ~ x)|truncate(4, true, '', 0) }}", "+abc", "-<" },
    }

    for _, case in ipairs(CASES) do
      it("of " .. case[1], function()
        local variables = { x = "<b>", f = "{}", d = { ["<k>"] = "<v>" }, own = jinja.own "<t>" }
        assert.same(table.move(case, 2, #case, 1, {}), runs(case[1], variables))
      end)
    end

    it("leaves the whole text as it is", function()
      local text = assert(compiled "a{{ x }}b":render { x = "<b>" })
      assert.equal("a<b>b", tostring(text))
      assert.equal("a<b>b", text:plain())
    end)
  end)

  -- ---- faults ----

  describe("faults", function()
    it("have a kind", function()
      for source, wanted in pairs {
        ["{{ raise_exception('no') }}"] = "raise", ["{{ x.y }}"] = "undefined", ["{{ {}.a.b }}"] = "undefined",
        ["{{ x + 1 }}"] = "undefined", ["{{ x() }}"] = "undefined", ["{{ 'a' + 1 }}"] = "type",
        ["{{ 1 in 2 }}"] = "type",
        ["{{ none|length }}"] = "type", ["{{ [].append(1) }}"] = "security", ["{{ {}.update({}) }}"] = "security",
        ["{{ ''.__class__.x }}"] = "security", ["{{ 1 // 0 }}"] = "other", ["{{ 'a'.index('b') }}"] = "other",
        ["{% if 0 %}{{ 1|nope }}{% endif %}ok{{ 1 if 1 else 1 is nope }}{{ (1|nope) if 1 }}"] = "other",
        ["{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"] = "recursion",
        ["{{ 2 ** 63 }}"] = "limit",
        ["{{ 'ffffffffffffffff'|int(0, 16) }}"] = "limit", ["{{ 1|nope }}"] = "syntax", ["{{ x is nope }}"] = "syntax",
        ["{% nope %}"] = "syntax",
        ["{% break %}"] = "syntax", ["{{ 1"] = "syntax", ["{% if 1 %}"] = "syntax", ["{{ 'a }}"] = "syntax",
        ["{{ }}"] = "syntax",
        ["{{ (1 }}"] = "syntax", ["{% set 1 = 2 %}"] = "syntax", ["{# x"] = "syntax", ["{% raw %}"] = "syntax",
        ["{{ $ }}"] = "syntax",
        ["{% include 'x' %}"] = "syntax", ["{{ 9223372036854775808 }}"] = "syntax", ["{{ f(a=1, 2) }}"] = "syntax",
        ["\xff"] = "syntax",
        ["{% macro m() %}{% endmacro %}{{ m(1) }}"] = "type", ["{{ dict(1, 2) }}"] = "type",
        ["{{ 'a'.upper(1) }}"] = "type",
        ["{% set a, b = [1] %}"] = "other", ["{% set x.y = 1 %}"] = "other", ["{{ [1, 'a']|sort }}"] = "type",
      } do
        assert.equal(wanted, (fault(source)), source)
      end
    end)

    it("name the template, line and column", function()
      local template = assert(jinja.compile("a\n é{{ 1 + 'x' }}", { name = "my template" }))
      local _, message, _, _, place = template:render {}
      assert.same({ name = "my template", line = 2, column = 8 }, place)
      assert.truthy(message:find("my template", 1, true) and message:find(":2:8: ", 1, true))
      local _, _, _, _, other = jinja.compile "ab{% nope %}"
      assert.same({ name = "template", line = 1, column = 6 }, other)
    end)

    it("are raised with the template's own words", function()
      local kind, message = fault("{{ raise_exception('bad\\n' ~ x) }}", { x = "\1%d" })
      assert.same({ "raise", "bad\n\1%d" }, { kind, message })
    end)

    it("are one short line else", function()
      local _, message = fault("{{ x[y] + 1 }}", { x = {}, y = ("\n\0"):rep(5000) })
      assert.is_true(#message < 512)
      assert.is_nil(message:find "%c")
    end)

    it("leave the template usable", function()
      local template = compiled "{{ 1 + x }}"
      assert.is_nil(template:render { x = "a" })
      assert.equal("3", tostring(template:render { x = 2 }))
    end)
  end)

  -- ---- limits ----

  describe("limits", function()
    local HUGE = {
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 'a' * 10 ** 12 }}",
      "{{ [1] * 10 ** 12 }}", "{{ 'a'.center(10 ** 12) }}", "{{ 'a'.zfill(10 ** 12) }}", "{{ '%1000000000d' % 1 }}",
      "{{ '{:1000000000}'.format(1) }}", "{{ 'a'|indent(10 ** 12) }}", "{{ [[]]|tojson(indent=10 ** 12) }}",
      "{{ range(99)|batch(10 ** 12, 1)|list }}", "{{ range(9)|slice(10 ** 12)|list }}",
      "{{ '\\t'.expandtabs(10 ** 12) }}",
      "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
      "{% set n = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}"
        .. "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
      "{% set n = namespace(s=(1,)) %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1} }}",
      "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
      "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s|tojson }}",
      "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
      "{% set a = 'a' * 1000000 %}{{ a.find('a' * 500000 + 'b') }}",
      "{% set a = 'é' * 1000000 %}{% for i in range(9999) %}{{ a|length }}{{ a[5] }}{{ a.strip() == a }}{% endfor %}",
    }

    for _, source in ipairs(HUGE) do
      it("end " .. source:sub(1, 60), function()
        local t0 = os.clock()
        assert.equal("limit", (fault(source, {}, { steps = 200000 })))
        assert.is_true(os.clock() - t0 < 2)
      end)
    end

    it("hold for output", function()
      local template = compiled "{% for i in range(10) %}0123456789{% endfor %}"
      assert.truthy(template:render({}, { output = 100 }))
      assert.equal("limit", (select(4, template:render({}, { output = 99 }))))
    end)

    it("hold for nesting in the template", function()
      local function nested(n) return "{{ " .. ("("):rep(n) .. "1" .. (")"):rep(n) .. " }}" end
      assert.equal("1", render(nested(49)))
      assert.equal("syntax", (fault(nested(50))))
      local function blocks(n) return ("{% if 1 %}"):rep(n) .. "x" .. ("{% endif %}"):rep(n) end
      assert.equal("x", render(blocks(100)))
      assert.equal("syntax", (fault(blocks(101))))
      assert.equal("200001", render("{{ 1" .. (" + 1"):rep(200000) .. " }}"))
    end)

    it("hold for recursion", function()
      local macro = "{% macro m(n) %}{{ m(n - 1) if n > 1 else 'end' }}{% endmacro %}{{ m(depth) }}"
      assert.equal("end", render(macro, { depth = 200 }))
      assert.equal("recursion", (fault(macro, { depth = 201 })))
      assert.equal("recursion", (fault "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}"))
      assert.equal("recursion", (fault
        "{% set n = namespace(s=[]) %}{% for i in range(999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}"))
      assert.equal("recursion", (fault "{% set n = namespace() %}{% set n.n = n %}{{ n }}"))
    end)
  end)

  it("lets a template reach nothing but its variables", function()
    for _, name in ipairs { "kind", "text", "own", "n", "keys_", "index_", "dict", "run", "invoke", "definition", "up",
      "iterable", "next_item", "_G", "__index", "__gc", "rep", "format_", "values_", "method", "self" } do
      for _, v in ipairs { "''", "[]", "()", "1", "1.5", "true", "none", "range(1)", "range", "namespace()", "dict",
        "cycler(1)", "joiner()", "''.upper", "{}.items()", "[1]|map('string')" } do
        local source = ("{{ (%s).%s is defined }}{{ (%s)['%s'] is defined }}"):format(v, name, v, name)
        assert.equal("FalseFalse", render(source), source)
      end
    end
    assert.equal("", render("{{ _G }}{{ os }}{{ require }}{{ self }}{{ _ENV }}{{ string }}"))
  end)
end)
