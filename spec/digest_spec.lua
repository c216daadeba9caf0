describe("SHA-256", function()
  local core = require "kigo.core"
  local support = require "spec.support"

  -- The examples of FIPS 180-4's companion (NIST CSRC, "SHA-256") and of NIST's short message vectors.
  local VECTORS = {
    [""] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ["abc"] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ["abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"]
      = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
    ["abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"]
      = "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
    ["\xbd"] = "68325720aabd7c82f30f554b313d0570c95accbb7dc4b5aae11204c08ffe732b",
    ["\xc9\x8c\x8e\x55"] = "7abc22c0ae5af26ce93dbb94433a0e0b2e119d014f8e7f65bd56c61ccccd9504",
    [("\0"):rep(55)] = "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7",
    [("\0"):rep(56)] = "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb",
    [("\0"):rep(57)] = "65a16cb7861335d5ace3c60718b5052e44660726da4cd13bb745381b235a1785",
    [("\0"):rep(64)] = "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b",
    [("a"):rep(1000000)] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
  }

  it("gives the published digests", function()
    for bytes, digest in pairs(VECTORS) do
      assert.equal(digest, core.sha256(bytes))
      assert.equal(digest, core.sha256(bytes, true)) -- without the processor's own instructions
    end
  end)

  it("is the same with the processor's own instructions and without", function()
    local bytes = {}
    for i = 1, 1000 do
      bytes[i] = string.char(math.floor(core.uniform(1, i, 0) * 256))
      if i < 300 or i % 50 == 0 then
        local text = table.concat(bytes)
        if core.sha256(text) ~= core.sha256(text, true) then error("they differ at " .. i .. " bytes") end
      end
    end
  end)

  it("reads files in pieces", function()
    local bytes = ("0123456789abcdef"):rep(20000) .. "x"
    local path = support.temporary(bytes)
    assert.equal(core.sha256(bytes), core.sha256_file(path))
    os.remove(path)
  end)

  it("names the file that it cannot read", function()
    for _, path in ipairs { "/nonexistent", "/tmp" } do
      local digest, message, code = core.sha256_file(path)
      assert.is_nil(digest)
      assert.truthy(message:find(path, 1, true))
      assert.equal(core.err.IO, code)
    end
    assert.has_error(function() core.sha256_file() end)
    assert.has_error(function() core.sha256 {} end)
  end)
end)

describe("XXH64", function()
  local core = require "kigo.core"

  -- As the Python package xxhash 4.1 computes them, over the implementation of the format's author.
  local VECTORS = {
    [""] = 0xef46db3751d8e999, ["abc"] = 0x44bc2cf5ad770999, [("xyz"):rep(100)] = 0x6a23ee3b8dfc3782,
    ["a"] = 0xd24ec4f1a98c6e5b, [("0123456789"):rep(3) .. "01"] = 0xe5cc9f411ea110ba,
    [("0123456789"):rep(3) .. "0"] = 0x8b80da128591b789,
    [("\xFF\0"):rep(5000)] = 0xabc9762feacfc035,
    ["1234567"] = 0xd3a46e9108289359, ["123456789012"] = 0xb5cee4c943d43c7e,
  }

  it("gives the values of others", function()
    for bytes, sum in pairs(VECTORS) do assert.equal(("%x"):format(sum), ("%x"):format(core.checksum(bytes))) end
  end)
end)
