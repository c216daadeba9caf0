describe("kigo.json", function()
  local core = require "kigo.core"
  local json = require "kigo.json"

  local TEXT = '{"z": [1, -2, 0.5, 1e3, 2.0], "a": {}, "m": [], "n": null, "t": [true, false], '
    .. '"s": "\\u00e9\\ud83d\\ude00\\n\\/"}'

  it("reads what it writes, keys in their order", function()
    local value = assert(json.decode(TEXT))
    assert.same({ "z", "a", "m", "n", "t", "s" }, json.keys(value))
    assert.same({ 1, -2, 0.5, 1000.0, 2.0 }, { table.unpack(value.z) })
    assert.same({ "integer", "float" }, { math.type(value.z[1]), math.type(value.z[5]) })
    assert.is_true(json.is_object(value.a) and json.is_array(value.m) and value.n == json.null)
    assert.same({ true, false }, { table.unpack(value.t) })
    assert.equal("é😀\n/", value.s)
    local again = assert(json.decode(json.encode(value)))
    assert.equal(json.encode(value), json.encode(again))
  end)

  it("puts new keys behind the old ones, sorted", function()
    local value = assert(json.decode '{"b": 1, "a": 2}')
    value.d, value.c, value.b = 3, 4, nil
    assert.same({ "a", "c", "d" }, json.keys(value))
    value.b = 5
    assert.same({ "b", "a", "c", "d" }, json.keys(value))
  end)

  it("takes the last of equal keys", function()
    local value = assert(json.decode '{"a": 1, "b": 2, "a": 3}')
    assert.same({ "a", "b" }, json.keys(value))
    assert.equal(3, value.a)
  end)

  it("makes of numbers what whoever reads them likes", function()
    local function keep(text) return text ~= "3" and { text = text } or nil end
    local value = assert(json.decode("[1e400, 123456789012345678901, -0.10]", { number = keep }))
    assert.same({ "1e400", "123456789012345678901", "-0.10" }, { value[1].text, value[2].text, value[3].text })
    assert.equal(core.err.FORMAT, select(3, json.decode("[3]", { number = keep })))
    assert.equal(core.err.FORMAT, select(3, json.decode("[1.]", { number = keep })))
    assert.has_error(function() json.decode("1", { numbers = keep }) end)
  end)

  it("replaces what is no character", function()
    assert.equal("\u{fffd}", json.decode '"\\ud800"')
    assert.equal("\u{fffd}x", json.decode '"\\ud800x"')
    assert.equal("a\u{fffd}", json.decode '"a\xff"')
  end)

  it("refuses everything else and names the place", function()
    local wrong = { "", " ", "{", "[1,]", '{"a" 1}', '{"a": 1,}', "{a: 1}", "01", "1.", ".5", "1e", "+1", "-", "nul",
      "nulls", '"a', '"\n"', '"\\x"', '"\\u12"', "1 2", "[1 2]", "NaN", "Infinity", "9223372036854775808", "'a'", "tru",
      "[", "]" }
    for _, text in ipairs(wrong) do
      local value, message, code = json.decode(text)
      assert.is_nil(value, text)
      assert.equal(core.err.FORMAT, code)
      assert.truthy(message:find("byte", 1, true))
    end
    for i = 1, #TEXT - 1 do assert.is_nil((json.decode(TEXT:sub(1, i)))) end
    assert.error(function() json.decode(nil) end)
  end)

  it("has a limit for nesting", function()
    assert.truthy(json.decode(("["):rep(64) .. ("]"):rep(64)))
    assert.is_nil((json.decode(("["):rep(65) .. ("]"):rep(65))))
    assert.is_nil((json.decode(("["):rep(100000))))
  end)
end)
