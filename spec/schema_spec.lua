-- kigo.json_schema: which values a schema allows, token by token; what is refused, and where; and what must not take
-- long.
local support = require "spec.support"

describe("kigo.json_schema", function()
  local kigo = require "kigo"
  local fuzz = require "spec.fuzz"
  local oracle = require "spec.grammar_oracle"
  local schema = require "kigo.schema"
  local schemas = require "spec.schemas"
  local vocabulary = require "spec.fixtures.vocabulary"
  local models = require "spec.fuzz_models"

  local json = kigo.json

  local function tokenizer(path)
    local gguf <close> = assert(kigo.core.parse_gguf(support.read(path), path))
    return assert(kigo.core.tokenizer(gguf))
  end

  local function made_tokenizer(name)
    local gguf <close> = assert(kigo.core.parse_gguf(vocabulary.file(models.vocabularies[name]), name))
    return assert(kigo.core.tokenizer(gguf))
  end

  -- Whole texts through the grammar, byte by byte.
  local function takes(source, text, options)
    local grammar <close> = assert(kigo.json_schema(source, options))
    return grammar:accepts(text)
  end

  local function refuses(source, code, place, options)
    local grammar, message, got = kigo.json_schema(source, options)
    assert.is_nil(grammar)
    assert.equal(code, got, message)
    assert.is_truthy(message:find(place, 1, true), message)
  end

  local is_sanitized = support.read "/proc/self/cmdline":find "sanitized" ~= nil

  local UNSUPPORTED, FORMAT = kigo.err.UNSUPPORTED, kigo.err.FORMAT

  -- ---- the official test suite ----

  -- What cannot be enforced, or asks for other documents: everything else must be exact.
  local REFUSED = { defs = 1, dependentSchemas = 1, dynamicRef = 12, multipleOf = 1, ["not"] = 1, ref = 1,
    refRemote = 15, unevaluatedItems = 1, unevaluatedProperties = 2, uniqueItems = 2, vocabulary = 2 }

  local FILES = { "additionalProperties", "allOf", "anchor", "anyOf", "boolean_schema", "const", "contains", "content",
    "default", "defs", "dependentRequired", "dependentSchemas", "dynamicRef", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "if-then-else", "infinite-loop-detection", "items", "maxContains", "maxItems",
    "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
    "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames", "ref",
    "refRemote", "required", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "vocabulary",
    "optional/bignum", "optional/ecmascript-regex", "optional/format/date", "optional/format/duration",
    "optional/format/email", "optional/format/ipv6", "optional/format/json-pointer", "optional/format/time",
    "optional/format/uri", "optional/format/uuid" }

  describe("suite", function()
    local tok

    setup(function() tok = support.shared and tokenizer(support.fixture "vocab/gpt-2.gguf") end)

    -- Each instance in one of the ways to spell it; scripts/check_schemas.lua tries all of them.
    local function check(file)
      local refused, n = 0, 0
      for _, group in ipairs(schemas.groups(support.fixture("json-schema/draft2020-12/" .. file .. ".json"))) do
        local grammar, message, code = kigo.json_schema(group.schema, { formats = file ~= "format" })
        if code == UNSUPPORTED then
          refused = refused + 1
        else
          for _, test in ipairs(group.tests) do
            n = n + 1
            local text = schemas.text(test.data, schemas.styles[n % #schemas.styles + 1])
            local taken = grammar ~= nil and schemas.takes(grammar, tok, text)
            assert.equal(test.valid, taken, ("%s: %s: %s"):format(group.description, test.description, text))
          end
          assert.is_truthy(grammar or message:find("no value satisfies", 1, true), message)
          if grammar then grammar:close() end
        end
      end
      return refused
    end

    for _, file in ipairs(FILES) do
      it("is exact: " .. file, function() assert.equal(REFUSED[file] or 0, check(file)) end)
    end
  end)

  -- ---- texts ----

  describe("texts", function()
    it("have members in any order, or in the declared one", function()
      local source = [[{ "type": "object", "properties": { "b": { "type": "integer" }, "a": { "type": "null" } },
        "required": ["b"], "additionalProperties": false }]]
      assert.is_true(takes(source, '{"b":1,"a":null}'))
      assert.is_true(takes(source, '{ "a" : null , "b" : 1 }'))
      assert.is_false(takes(source, '{"a":null}'))
      assert.is_false(takes(source, '{"b":1,"b":2}'))
      assert.is_true(takes(source, '{"b":1,"a":null}', { order = "declared" }))
      assert.is_false(takes(source, '{"a":null,"b":1}', { order = "declared" }))
    end)

    it("have blanks within bounds, and none at the end", function()
      local source = { type = "array" }
      assert.is_true(takes(source, "\n [ 1 ,\t2 ]"))
      assert.is_false(takes(source, "[] "))
      assert.is_true(takes(source, "[" .. (" "):rep(40) .. "1]"))
      assert.is_false(takes(source, "[" .. (" "):rep(41) .. "1]"))
      assert.is_true(takes(source, "[1,2]", { whitespace = 0 }))
      assert.is_false(takes(source, "[1, 2]", { whitespace = 0 }))
      assert.is_true(takes(source, "[1,\n\n2]", { whitespace = 2 }))
    end)

    it("count characters, however they are spelled", function()
      local source = [[{ "type": "string", "minLength": 2, "maxLength": 3, "pattern": "^[a-zé😀]+$" }]]
      for _, text in ipairs { '"ab"', '"é😀"', [["\u0061\u00e9\ud83D\uDe00"]], '"aé\\u00E9"' } do
        assert.is_true(takes(source, text), text)
      end
      for _, text in ipairs { '"a"', '"aaaa"', '"aB"', [["\ud83d\u0061"]], '"\\ude00a"', '"a\n"' } do
        assert.is_false(takes(source, text), text)
      end
    end)

    it("have only the escapes that are needed, if so wished", function()
      local source = { type = "string" }
      assert.is_true(takes(source, [["a\"\\\n\u0001"]], { escapes = "needed" }))
      assert.is_false(takes(source, [["\u0061"]], { escapes = "needed" }))
      assert.is_true(takes(source, [["\u0061\/"]]))
    end)

    it("have numbers by their value", function()
      local source = [[{ "type": "number", "exclusiveMinimum": -2.5, "maximum": 1200 }]]
      for _, text in ipairs { "-2.4999", "0", "-0.0", "1200", "1200.00", "1.2e3", "1.2E+03", "1e-300", "-2.49e0" } do
        assert.is_true(takes(source, text), text)
      end
      for _, text in ipairs { "-2.5", "-2.50", "-2.5e0", "1200.01", "1.21e3", "2e3", "1e400", "01", "1.", "-", "+1" } do
        assert.is_false(takes(source, text), text)
      end
    end)

    it("take 1.0 for an integer", function()
      for text, whole in pairs { ["1.0"] = true, ["1.00"] = true, ["1.5"] = false, ["-7"] = true, ["1e2"] = false } do
        assert.equal(whole, takes({ type = "integer" }, text), text)
      end
      assert.is_true(takes({ const = 1.0 }, "1"))
      assert.is_true(takes({ enum = { 100 } }, "1e2"))
      assert.is_true(takes([[{ "const": 9007199254740993 }]], "9007199254740993"))
      assert.is_false(takes([[{ "const": 9007199254740993 }]], "9007199254740992"))
    end)

    it("have whole numbers without a point, if so wished", function()
      local plain = { numbers = "plain" }
      for text, fits in pairs { ["1"] = true, ["1.0"] = false, ["-7"] = true, ["1e2"] = false } do
        assert.equal(fits, takes({ type = "integer" }, text, plain), text)
      end
      for text, fits in pairs { ["1"] = true, ["1.0"] = false, ["1.50"] = true, ["1.5e1"] = false } do
        assert.equal(fits, takes({ type = "number", minimum = 1 }, text, plain), text)
        assert.equal(fits, takes({}, text, plain), text)
      end
      assert.is_false(takes({ const = 2 }, "2.0", plain))
    end)

    it("keep to limits and multiples, as arithmetic has it", function()
      local dice = fuzz.dice(20, 12)
      for _ = 1, 60 do
        local low, high, step = dice:roll(400) - 200, dice:roll(400) - 200, dice:roll(12)
        local source = { type = "number", minimum = low / 8, exclusiveMaximum = high / 8,
          multipleOf = dice:once_in(2) and step / 4 or nil }
        local rules = assert(schema.rules(source))
        for _ = 1, 12 do
          local value = (dice:roll(420) - 210) / 8
          local wanted = value >= low / 8 and value < high / 8
            and (not source.multipleOf or value % source.multipleOf == 0)
          local text = ("%.3f"):format(value)
          assert.equal(wanted, oracle.accepts(rules, text), json.encode(source) .. text)
        end
      end
    end)
  end)

  -- ---- schemas ----

  describe("schemas", function()
    it("are tables or JSON texts", function()
      local shape = { type = "object", properties = { n = { enum = { 1, "x", json.null } } }, required = { "n" } }
      assert.is_true(takes(shape, '{"n":null}'))
      assert.is_true(takes(json.encode(shape), '{"n":"x"}'))
      assert.is_true(takes({}, '{"a":[1,{}]}'))
      assert.is_true(takes(true, "17"))
      refuses("{", FORMAT, "#")
      refuses(false, FORMAT, "no value satisfies")
    end)

    it("may call themselves", function()
      local source = [[{ "$ref": "#/$defs/tree", "$defs": { "tree": { "type": "object", "required": ["value"],
        "properties": { "value": { "type": "integer" },
          "nodes": { "type": "array", "items": { "$ref": "#/$defs/tree" } } },
        "additionalProperties": false } } }]]
      assert.is_true(takes(source, '{"value":1,"nodes":[{"value":2,"nodes":[]},{"nodes":[{"value":4}],"value":3}]}'))
      assert.is_false(takes(source, '{"value":1,"nodes":[{"nodes":[]}]}'))
    end)

    it("that exclude each other make a oneOf of objects", function()
      local source = [[{ "oneOf": [
        { "type": "object", "required": ["kind", "r"],
          "properties": { "kind": { "const": "circle" }, "r": { "type": "number" } } },
        { "type": "object", "required": ["kind", "a"],
          "properties": { "kind": { "const": "square" }, "a": { "type": "number" } } }
      ] }]]
      assert.is_true(takes(source, '{"r":1,"kind":"circle","a":"x"}'))
      assert.is_true(takes(source, '{"kind":"square","a":2}'))
      assert.is_false(takes(source, '{"kind":"square","r":2}'))
    end)

    it("look at items only where they apply", function()
      local source = [[{ "dependentSchemas": { "a": { "items": true } }, "unevaluatedItems": false }]]
      assert.is_true(takes(source, "[]"))
      assert.is_false(takes(source, "[1]"))
      assert.is_true(takes(source, '{"a":1}'))
    end)

    it("of older drafts are read by the form of their keywords", function()
      assert.is_true(takes([[{ "items": [{ "type": "null" }], "additionalItems": false }]], "[null]"))
      assert.is_false(takes([[{ "items": [{ "type": "null" }], "additionalItems": false }]], "[null,1]"))
      assert.is_false(takes([[{ "type": "number", "minimum": 3, "exclusiveMinimum": true }]], "3"))
      assert.is_false(takes([[{ "dependencies": { "a": ["b"] } }]], '{"a":1}'))
      assert.is_true(takes([[{ "dependencies": { "a": ["b"] } }]], '{"b":0,"a":1}'))
    end)

    it("know formats, unless told otherwise", function()
      assert.is_true(takes({ type = "string", format = "date" }, '"2024-02-29"'))
      assert.is_false(takes({ type = "string", format = "date" }, '"2023-02-29"'))
      assert.is_true(takes({ type = "string", format = "date" }, '"2023-02-29"', { formats = false }))
      assert.is_true(takes({ type = "string", format = "what-is-this" }, '"2023-02-29"'))
    end)

    it("know at once that nothing more can come where a pattern is refused", function()
      for _, format in ipairs { "hostname", "email" } do
        local source = { type = "string", format = format, ["not"] = { pattern = "\\d+" } }
        local grammar <close> = assert(kigo.json_schema(source))
        local matcher <close> = assert(grammar:matcher())
        assert.is_true(matcher:accept_bytes '"ab.c')
        assert.is_false(matcher:accept_bytes "1")
        assert.is_false(matcher:accept_bytes "\\u0031")
      end
    end)

    it("say by name what cannot be enforced", function()
      for source, place in pairs {
        [ [[{ "properties": { "a/b": { "uniqueItems": true } } }]] ] = "#/properties/a~1b/uniqueItems",
        [ [[{ "items": { "$ref": "https://example.com/x.json" } }]] ] = "#/items/$ref",
        [ [[{ "pattern": "(a)\\1" }]] ] = "#/pattern",
        [ [[{ "format": "idn-hostname" }]] ] = "#/format",
        [ [[{ "minProperties": 3 }]] ] = "#/minProperties",
        [ [[{ "multipleOf": 0.123456789 }]] ] = "#/multipleOf",
        [ [[{ "not": { "additionalProperties": { "type": "null" } } }]] ] = "#/not/additionalProperties",
        [ [[{ "not": { "uniqueItems": true } }]] ] = "#/not/uniqueItems",
        [ [[{ "$recursiveRef": "#" }]] ] = "#/$recursiveRef",
        [ [[{ "$schema": "https://example.com/dialect" }]] ] = "#/$schema",
        [ [[{ "anyOf": [{ "$ref": "#" }] }]] ] = "#",
        [ [[{ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }]] ] = "#",
      } do
        refuses(source, UNSUPPORTED, place)
      end
    end)

    it("say where they are malformed", function()
      for source, place in pairs {
        [ [[{ "type": "any" }]] ] = "#/type", [ [[{ "required": true }]] ] = "#/required",
        [ [[{ "properties": [] }]] ] = "#/properties", [ [[{ "minLength": -1 }]] ] = "#/minLength",
        [ [[{ "maxItems": 1.5 }]] ] = "#/maxItems", [ [[{ "enum": 1 }]] ] = "#/enum",
        [ [[{ "anyOf": [] }]] ] = "#/anyOf", [ [[{ "items": 7 }]] ] = "#/items",
        [ [[{ "pattern": "(" }]] ] = "#/pattern", [ [[{ "multipleOf": 0 }]] ] = "#/multipleOf",
        [ [[{ "$ref": "#/$defs/none" }]] ] = "#/$ref", [ [[{ "maximum": "1" }]] ] = "#/maximum",
      } do
        refuses(source, FORMAT, place)
      end
    end)

    it("that nothing satisfies are refused", function()
      for _, source in ipairs { [[{ "type": "string", "minLength": 3, "maxLength": 2 }]], [[{ "enum": [] }]],
        [[{ "type": "object", "required": ["next"], "properties": { "next": { "$ref": "#" } } }]],
        [[{ "type": "integer", "minimum": 1.1, "maximum": 1.9 }]],
        [[{ "allOf": [{ "const": 1 }, { "const": 2 }] }]] } do
        refuses(source, FORMAT, "no value satisfies")
      end
    end)

    it("are no numbers, and options have names", function()
      assert.has_error(function() kigo.json_schema(7) end)
      assert.has_error(function() kigo.json_schema({}, { blanks = 1 }) end)
      assert.has_error(function() kigo.json_schema({}, { whitespace = -1 }) end)
      assert.has_error(function() kigo.json_schema({}, { order = "random" }) end)
    end)
  end)

  -- ---- what must not take long ----

  describe("strangers' schemas", function()
    local function list_of(n, item)
      local list = {}
      for i = 1, n do list[i] = item(i) end
      return table.concat(list, ",")
    end

    local CASES = {
      ["lists in lists"] = ('{"items":'):rep(60) .. "{}" .. ("}"):rep(60),
      ["lists in lists, too deep"] = ('{"items":'):rep(5000) .. "{}" .. ("}"):rep(5000),
      ["not in not"] = ('{"not":'):rep(61) .. '{"type":"string"}' .. ("}"):rep(61),
      ["a huge enum"] = '{"enum":[' .. list_of(20000, function(i) return ('"value %d"'):format(i * i) end) .. "]}",
      ["a huge enum of objects"] = '{"enum":[' .. list_of(3000, function(i) return ('{"a":%d}'):format(i) end) .. "]}",
      ["many properties"] = '{"properties":{' .. list_of(1000, function(i)
        return ('"p%d":{"type":"integer"}'):format(i)
      end) .. '},"additionalProperties":false}',
      ["too many properties"] = '{"properties":{' .. list_of(3000, function(i)
        return ('"p%d":{"type":"integer"}'):format(i)
      end) .. '},"additionalProperties":false}',
      ["2^20 combinations"] = '{"allOf":[' .. list_of(20, function(i)
        return ('{"anyOf":[{"required":["a%d"]},{"required":["b%d"]}]}'):format(i, i)
      end) .. "]}",
      ["2^20 negations"] = '{"oneOf":[' .. list_of(20, function(i)
        return ('{"properties":{"a%d":{"type":"null"},"b%d":{"type":"null"}}}'):format(i, i)
      end) .. "]}",
      ["many patterns"] = '{"patternProperties":{' .. list_of(20, function(i)
        return ('"%s":{"type":"null"}'):format(("a"):rep(i))
      end) .. "}}",
      ["a chain of references"] = '{"$ref":"#/$defs/d1","$defs":{' .. list_of(2000, function(i)
        return ('"d%d":{"allOf":[{"$ref":"#/$defs/d%d"}]}'):format(i, i + 1)
      end) .. ',"d2001":{}}}',
      ["a ring of references"] = '{"$ref":"#/$defs/d1","$defs":{' .. list_of(500, function(i)
        return ('"d%d":{"$ref":"#/$defs/d%d"}'):format(i, i % 500 + 1)
      end) .. "}}",
      ["products of recursive schemas"] = '{"allOf":[' .. list_of(12, function(i)
        return ('{"$ref":"#/$defs/c%d"}'):format(i)
      end) .. '],"$defs":{' .. list_of(12, function(i)
        return ('"c%d":{"properties":{"x":{"$ref":"#/$defs/c%d"},"y%d":{"$ref":"#"}}}'):format(i, i % 12 + 1, i)
      end) .. "}}",
      ["references that double"] = '{"$ref":"#/$defs/d1","$defs":{' .. list_of(40, function(i)
        return ('"d%d":{"prefixItems":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}'):format(i, i + 1, i + 1)
      end) .. ',"d41":{}}}',
      ["counts beyond reason"] =
        [[{ "minItems": 1000000000, "maxItems": 1000000000000, "contains": {}, "minContains": 9 }]],
      ["counted items"] = [[{ "minItems": 500, "contains": { "const": 1 }, "minContains": 400, "maxContains": 450 }]],
      ["long strings"] = [[{ "type": "string", "minLength": 1000000, "maxLength": 900000000, "pattern": "^(a|b)*c$" }]],
      ["a pattern of nests"] = '{"pattern":"' .. ("("):rep(5000) .. (")"):rep(5000) .. '"}',
      ["a pattern of repeats"] = [[{ "pattern": "((a{1,1000}){1,1000}){1,1000}b" }]],
      ["a pattern of many lookaheads"] = ('{"items":'):rep(12) .. '{"pattern":"^' ..
        ("(?!the|a$).{1,8}$^"):rep(60) .. '"}' .. ("}"):rep(12),
      ["far numbers"] = [[{ "minimum": 1e300, "maximum": 1e308, "multipleOf": 7 }]],
      ["numbers too far"] = [[{ "minimum": 1e99999999999999999999 }]],
      ["unevaluated ways"] = '{"unevaluatedProperties":false,"anyOf":[' .. list_of(12, function(i)
        return ('{"properties":{"p%d":{"type":"null"}}}'):format(i)
      end) .. "]}",
    }

    for name, source in pairs(CASES) do
      it("are compiled or refused at once: " .. name, function()
        local seconds = math.huge
        for _ = 1, 3 do -- the machine may be busy with something else
          local start = os.clock()
          local grammar, message, code = kigo.json_schema(source)
          seconds = math.min(seconds, os.clock() - start)
          assert.is_true(grammar ~= nil or code == UNSUPPORTED or code == FORMAT, message)
          assert.is_true(#(message or "") < 1280)
          if grammar then grammar:close() end
          if seconds < 1 then break end
        end
        assert.is_true(seconds < (is_sanitized and 10 or 1), ("%.2f s"):format(seconds))
      end)
    end

    it("survive the failure of any allocation", function()
      local source = [[{ "required": ["a"], "properties": { "a": { "multipleOf": 0.5, "minimum": 3 } },
        "patternProperties": { "^b": { "$ref": "#" }, "c$": true, "d": false }, "additionalProperties": false }]]
      local core, n, refused, reached = kigo.core, 0, 0, true
      while reached do -- Lua's own allocations are tried again
        n = n + 11
        core.alloc_inject(n, n % 2 == 0)
        local _, calls = core.alloc_counts()
        local called, grammar, _, code = pcall(kigo.json_schema, source)
        reached = select(2, core.alloc_counts()) - calls >= n
        core.alloc_inject(0, false)
        if called and not grammar then
          assert.equal(kigo.err.MEMORY, code)
          refused = refused + 1
        elseif called then
          assert.is_true(grammar:accepts '{"a":3.5,"bc":{"a":4}}')
          assert.is_false(grammar:accepts '{"a":3.5,"bd":{"a":4}}')
          grammar:close()
        end
      end
      assert.is_true(refused > 20)
    end)

    it("may be Lua tables that contain themselves", function()
      local loop = { type = "array" }
      loop.items = loop
      assert.is_true(takes(loop, "[[],[[]]]"))
      assert.is_false(takes(loop, "[1]"))
      local constant = {}
      constant[1] = constant
      refuses({ const = constant }, UNSUPPORTED, "deep")
      local twice = { type = "array" }
      local inner = twice
      for _ = 1, 40 do inner = { prefixItems = { inner, inner } } end
      assert(kigo.json_schema(inner)):close()
    end)
  end)

  -- ---- by chance ----

  describe("writing by chance", function()
    local SOURCES = {
      [[{ "type": "object", "required": ["a", "b"], "properties": { "a": { "type": "string", "maxLength": 4 },
        "b": { "enum": [1, "x", null] }, "c": { "type": "array", "items": { "type": "boolean" }, "minItems": 2 } },
        "additionalProperties": false }]],
      [[{ "$ref": "#/$defs/t", "$defs": { "t": { "type": "array", "maxItems": 3, "items": { "anyOf": [
        { "type": "integer", "minimum": 3, "maximum": 17, "multipleOf": 2 }, { "$ref": "#/$defs/t" }] } } } }]],
      [[{ "type": "array", "items": { "enum": ["a", "b", "c"] }, "uniqueItems": true, "minItems": 2 }]],
      [[{ "type": "object", "propertyNames": { "pattern": "^[a-c]{2,3}$" }, "minProperties": 1, "maxProperties": 3,
        "additionalProperties": { "type": "string", "format": "date-time" } }]],
      [[{ "oneOf": [{ "type": "string", "pattern": "^x+$" }, { "type": "string", "minLength": 3, "maxLength": 3 }] }]],
      [[{ "type": "array", "contains": { "const": 7 }, "maxContains": 2, "items": { "enum": [7, 8] }, "maxItems": 5 }]],
    }

    for _, name in ipairs { "qwen2", "spm" } do
      it("ends, and says what the schema allows: " .. name, function()
        local writer = schemas.writer(made_tokenizer(name))
        for i, source in ipairs(SOURCES) do
          local rules = assert(schema.rules(source))
          local grammar <close> = assert(kigo.json_schema(source))
          for k = 1, 12 do
            local text = writer:write(grammar, fuzz.dice(i, k), 20, 500)
            assert.is_string(text, source)
            assert.is_true(oracle.accepts(rules, text), text)
            assert.is_not_nil(json.decode(text), text)
          end
        end
      end)
    end
  end)
end)
