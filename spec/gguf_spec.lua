local core = require "kigo.core"
local build = require "spec.gguf_build"
local support = require "spec.support"

describe("gguf", function()
  local err = core.err

  -- Touch everything that a loaded file offers: a sanitizer finds the pointers that should not be there.
  local function read_all(gguf)
    for _, entry in ipairs(gguf:entries()) do gguf:get(entry.key) end
    for _, tensor in ipairs(gguf:tensors()) do
      local n = 1
      for _, size in ipairs(tensor.shape) do n = n * size end
      if n <= 65536 then gguf:values(tensor.name) end
    end
    return gguf:parameters()
  end

  -- Part `number` (from 0) of a model in two files, with one tensor; `fields` says what is wrong with it.
  local function part_bytes(number, fields)
    fields = fields or {}
    local name = fields.name or ("t" .. number)
    return build.file {
      entries = {
        build.entry("general.name", "string", "part " .. number), build.entry("split.no", "u16", fields.no or number),
        build.entry("split.count", "u16", fields.count or 2),
        build.entry("split.tensors.count", "i32", fields.n_tensors or 2),
      },
      tensors = { { name = name, dims = { 2 } } }, data = fields.data or support.pack_floats { number, 7 },
    }
  end

  local function write_part(stem, number, bytes)
    local path = ("%s-%05d-of-00002.gguf"):format(stem, number + 1)
    assert(io.open(path, "wb")):write(bytes):close()
    return path
  end

  describe("open_gguf", function()
    it("opens the fixtures and lists what is in them", function()
      for _, case in ipairs {
        { "models/stories260K.gguf", 47, 23, 260032, "llama" }, { "models/qwen2.gguf", 38, 22, 150336, "qwen2" },
        { "models/gptoss_mxfp4.gguf", 79, 31, 192864, "gpt-oss" }, { "vocab/qwen2.gguf", 0, 21, 0, "qwen2" },
        { "models/llama256_q4_k_m.gguf", 21, 22, 1344768, "llama" }, { "models/gpt2.gguf", 40, 20, 186944, "gpt2" },
      } do
        local path, n_tensors, n_entries, parameters, architecture = support.fixture(case[1]), table.unpack(case, 2)
        local gguf <close> = assert(core.open_gguf(path))
        assert.equal(path, gguf:path())
        assert.equal(3, gguf:version())
        assert.equal(1, gguf:files())
        assert.equal(#support.read(path), gguf:bytes())
        assert.equal(n_tensors, #gguf:tensors())
        assert.equal(n_entries, #gguf:entries())
        assert.equal(parameters, gguf:parameters())
        assert.equal(architecture, gguf:get("general.architecture"))
        read_all(gguf)
      end
    end)

    it("describes tensors with the row length first", function()
      local gguf <close> = assert(core.open_gguf(support.fixture("models/stories260K.gguf")))
      local tensor = gguf:tensor("blk.0.ffn_up.weight")
      assert.same({ 64, 172 }, tensor.shape)
      assert.equal("F32", tensor.type)
      assert.equal(64 * 172 * 4, tensor.bytes)
      assert.is_nil(gguf:tensor("blk.0.ffn_up"))
      local bytes = support.read(gguf:path())
      assert.equal(string.unpack("<f", bytes, tensor.offset + 1), gguf:values(tensor.name)[1])
    end)

    it("refuses what is not a file", function()
      local empty <const> = support.temporary("")
      for _, case in ipairs {
        { "/", err.IO }, { "/nowhere/model.gguf", err.IO }, { "/dev/null", err.IO }, { empty, err.FORMAT },
      } do
        local gguf, message, code = core.open_gguf(case[1])
        assert.is_nil(gguf)
        assert.equal(case[2], code)
        assert.truthy(message:find(case[1], 1, true))
      end
      os.remove(empty)
    end)

    it("does not wait for the writer of a pipe", function()
      local path = os.tmpname()
      os.remove(path)
      assert(os.execute("mkfifo " .. path))
      local _, _, code = core.open_gguf(path)
      os.remove(path)
      assert.equal(err.IO, code)
    end)

    it("notices that a file was changed", function()
      local path = support.temporary(build.file {})
      local gguf <close> = assert(core.open_gguf(path))
      assert.is_true(gguf:check_unchanged())
      assert(io.open(path, "ab")):write("x"):close()
      local _, message, code = gguf:check_unchanged()
      os.remove(path)
      assert.equal(err.IO, code)
      assert.truthy(message:find(path, 1, true))
    end)

    it("reads a tensor again after its pages were released", function()
      local gguf <close> = assert(core.open_gguf(support.fixture("models/stories260K.gguf")))
      local before = gguf:values("token_embd.weight")
      gguf:release("token_embd.weight")
      assert.same(before, gguf:values("token_embd.weight"))
    end)
  end)

  describe("metadata", function()
    it("has every type, in versions 2 and 3", function()
      local values = {
        { "u8", 255 }, { "i8", -128 }, { "u16", 65535 }, { "i16", -32768 }, { "u32", 4294967295 },
        { "i32", -2147483648 }, { "f32", 0.5 }, { "string", "a\0b" }, { "i64", math.mininteger }, { "f64", 1e300 },
      }
      for version = 2, 3 do
        local entries = {
          build.entry("yes", "bool", 1), build.entry("no", "bool", 0), build.array("flags", "bool", { 1, 0 }),
          build.entry("big", "u64", -1), build.entry("u64", "u64", 5), build.array("none", "string", {}),
        }
        for _, case in ipairs(values) do
          entries[#entries + 1] = build.entry(case[1], case[1], case[2])
          entries[#entries + 1] = build.array("a." .. case[1], case[1], { case[2], case[2] })
        end
        local gguf <close> = assert(core.parse_gguf(build.file { version = version, entries = entries }, "types"))
        assert.equal(version, gguf:version())
        for _, case in ipairs(values) do
          assert.equal(case[2], gguf:get(case[1]))
          assert.equal(math.type(case[2]), math.type(gguf:get(case[1])))
          assert.same({ case[2], case[2] }, gguf:array("a." .. case[1]))
        end
        assert.is_true(gguf:get("yes"))
        assert.is_false(gguf:get("no"))
        assert.same({ true, false }, gguf:get("flags"))
        assert.equal(2.0 ^ 64, gguf:get("big"))
        assert.equal(5, gguf:get("u64"))
        assert.same({}, gguf:array("none"))
        assert.same({ 0, 2 }, { gguf:count("none"), gguf:count("flags") })
        assert.is_nil(gguf:count("yes"))
        assert.is_nil(gguf:count("absent"))
        assert.is_nil(gguf:get("absent"))
        assert.same({ key = "yes", type = "bool", count = 1, is_array = false }, gguf:entries()[1])
        assert.same({ key = "flags", type = "bool", count = 2, is_array = true }, gguf:entries()[3])
      end
    end)

    it("array says what is missing", function()
      local gguf <close> = assert(core.parse_gguf(build.file { entries = { build.entry("x", "u8", 1) } }, "memory"))
      assert.equal(err.FORMAT, select(3, gguf:array("x")))
      assert.equal(err.FORMAT, select(3, gguf:array("y")))
    end)
  end)

  describe("tensors", function()
    it("stand at the file's alignment", function()
      local entries = { build.entry("general.alignment", "u32", 64) }
      local gguf <close> = assert(core.parse_gguf(build.file {
        entries = entries, alignment = 64,
        tensors = { { name = "a", dims = { 2 } }, { name = "b", dims = { 1, 1, 1, 2 }, offset = 64 } },
        data = support.pack_floats { 1, 2 } .. ("\0"):rep(56) .. support.pack_floats { 3, 4 },
      }, "aligned"))
      assert.same({ 1, 2 }, gguf:values("a"))
      assert.same({ 3, 4 }, gguf:values("b"))
      assert.equal(4, gguf:parameters())
    end)

    it("values refuses large, unknown and uncomputable ones", function()
      local gguf <close> = assert(core.parse_gguf(build.file {
        tensors = { { name = "a", dims = { 2 } }, { name = "i", dims = { 2 }, type = 26, offset = 32 } },
        data = ("\0"):rep(64),
      }, "memory"))
      assert.error(function() gguf:values("a", 1) end)
      assert.equal(err.FORMAT, select(3, gguf:values("b")))
      assert.equal(err.UNSUPPORTED, select(3, gguf:values("i")))
      assert.equal("I32", gguf:tensor("i").type)
    end)
  end)

  describe("hostile files", function()
    local big <const> = math.maxinteger
    local entry, array, row = build.entry, build.array, { name = "t", dims = { 8 } }
    local function tensor(fields)
      local t = { name = "t", dims = { 8 } }
      for key, value in pairs(fields) do t[key] = value end
      return build.file { tensors = { t }, data = ("\0"):rep(32) }
    end
    local function tensors(...)
      return build.file { tensors = { ... }, data = ("\0"):rep(128) }
    end
    local function meta(...)
      return build.file { entries = { ... } }
    end
    -- what, bytes, code, what the message names
    local cases = {
      { "no bytes", "", "FORMAT", "empty" },
      { "three bytes", "GGU", "FORMAT", "offset 3" },
      { "another magic", build.file { magic = "GGML" }, "FORMAT", "GGML" },
      { "magic with control bytes", build.file { magic = "\27[2J" }, "FORMAT", "x1b" },
      { "a big-endian file", "GGUF" .. string.pack(">I4I8I8", 3, 0, 0), "UNSUPPORTED", "big%-endian" },
      { "version 0", build.file { version = 0 }, "UNSUPPORTED", "version 0" },
      { "version 1", build.file { version = 1 }, "UNSUPPORTED", "version 1" },
      { "version 4", build.file { version = 4 }, "UNSUPPORTED", "version 4" },
      { "more entries than bytes", build.file { n_entries = big }, "FORMAT", "entries" },
      { "more entries than bytes, unsigned", build.file { n_entries = -1 }, "FORMAT", "18446744073709551615" },
      { "more tensors than bytes", build.file { n_tensors = big }, "FORMAT", "tensors" },
      { "one entry too few", build.file { n_entries = 1, entries = {} }, "FORMAT", "offset 24" },
      { "an empty key", meta(entry("", "u8", 1), entry("b", "u64", 1)), "FORMAT", "empty metadata key" },
      { "a key with NUL", meta(entry("a\0b", "u8", 1)), "FORMAT", "NUL" },
      { "a key of 65,536 bytes", meta(entry(("k"):rep(65536), "u8", 1)), "FORMAT", "65535" },
      { "a key that wraps", build.file { n_entries = 1, entries = { string.pack("<I8", -1) .. ("x"):rep(20) } },
        "FORMAT", "metadata key" },
      { "the same key twice", meta(entry("k", "u8", 1), entry("l", "u8", 1), entry("k", "u16", 1)), "FORMAT",
        '"k" appears twice' },
      { "an unknown value type", meta(string.pack("<s8I4", "k", 13) .. ("\0"):rep(8)), "FORMAT", "type 13" },
      { "an unknown element type", meta(string.pack("<s8I4I4I8", "k", 9, 99, 0)), "FORMAT", "type 99" },
      { "an array of arrays", meta(string.pack("<s8I4I4I8", "k", 9, 9, 1) .. ("\0"):rep(12)), "UNSUPPORTED", '"k"' },
      { "an array longer than the file", meta(array("k", "u8", { 1 }, big)), "FORMAT", tostring(big) },
      { "an array whose size wraps", meta(array("k", "u64", { 1 }, 1 << 61)), "FORMAT", "array elements" },
      { "strings longer than the file", meta(array("k", "string", { "a" }, 1 << 60)), "FORMAT", "strings" },
      { "a string that ends behind the file", meta(string.pack("<s8I4I8", "k", 8, 100)), "FORMAT", "100 bytes" },
      { "a string in an array that wraps", meta(string.pack("<s8I4I4I8I8I8", "k", 9, 8, 2, -1, -1)), "FORMAT",
        "a string" },
      { "a bool of 2", meta(entry("k", "bool", 2)), "FORMAT", '"k"' },
      { "a bool of 7 in an array", meta(array("k", "bool", { 1, 7 })), "FORMAT", "7" },
      { "alignment 0", meta(entry("general.alignment", "u32", 0)), "FORMAT", "alignment is 0" },
      { "alignment 48", meta(entry("general.alignment", "u32", 48)), "FORMAT", "48" },
      { "alignment 2^31", meta(entry("general.alignment", "u32", 1 << 31)), "FORMAT", "2147483648" },
      { "alignment of another type", meta(entry("general.alignment", "u64", 32)), "FORMAT", "u64" },
      { "an array as alignment", meta(array("general.alignment", "u32", { 32 })), "FORMAT", "array" },
      { "an empty tensor name", tensor { name = "" }, "FORMAT", "empty tensor name" },
      { "a tensor name with NUL", tensor { name = "a\0" }, "FORMAT", "NUL" },
      { "a tensor name of 128 bytes", tensor { name = ("n"):rep(128) }, "FORMAT", "127" },
      { "no dimensions", tensor { dims = {} }, "FORMAT", "0 dimensions" },
      { "five dimensions", tensor { dims = { 1, 1, 1, 1, 1 } }, "FORMAT", "5 dimensions" },
      { "2^32 - 1 dimensions", tensor { n_dims = 0xffffffff }, "FORMAT", "4294967295" },
      { "a dimension of 0", tensor { dims = { 0 } }, "FORMAT", "dimension 0 is 0" },
      { "a negative dimension", tensor { dims = { 8, -1 } }, "FORMAT", "dimension 1" },
      { "dimensions whose product wraps to 0", tensor { dims = { 1 << 32, 1 << 32 } }, "FORMAT", "overflow" },
      { "dimensions whose product wraps to 8", tensor { dims = { 8, (1 << 61) + 1 } }, "FORMAT", "overflow" },
      { "a size in bytes that wraps", tensor { dims = { 1 << 62 } }, "FORMAT", "overflow" },
      { "more bytes than any file has", tensor { dims = { 1 << 60 } }, "FORMAT", "end behind" },
      { "an unknown type", tensor { type = 99 }, "UNSUPPORTED", "type 99" },
      { "a removed type", tensor { type = 4 }, "UNSUPPORTED", "type 4" },
      { "a type of 2^32 - 1", tensor { type = 0xffffffff }, "UNSUPPORTED", "4294967295" },
      { "rows of broken blocks", tensor { type = 8, dims = { 33 } }, "FORMAT", "Q8_0" },
      { "whole blocks, but broken rows", tensor { type = 8, dims = { 16, 2 } }, "FORMAT", "16" },
      { "an offset that is not aligned", tensor { offset = 8 }, "FORMAT", "offset 8" },
      { "an offset behind the file", tensor { offset = 64 }, "FORMAT", "tensor t" },
      { "an offset that wraps", tensor { offset = -32 }, "FORMAT", "18446744073709551584" },
      { "a tensor that ends behind the file", tensor { dims = { 9 } }, "FORMAT", "36 bytes" },
      { "the same tensor twice", tensors(row, { name = "t", dims = { 8 }, offset = 32 }), "FORMAT", "t appears twice" },
      { "two tensors in one place", tensors(row, { name = "u", dims = { 8 } }), "FORMAT", "overlap" },
      { "tensors that overlap", tensors({ name = "u", dims = { 8 }, offset = 32 }, { name = "t", dims = { 9 } }),
        "FORMAT", "t and u overlap" },
      { "a part of a split model in memory", meta(entry("split.count", "u16", 2), entry("split.no", "u16", 0),
        entry("split.tensors.count", "i32", 0)), "UNSUPPORTED", "path" },
      { "split.count without split.no", meta(entry("split.count", "u16", 2)), "FORMAT", "split.no" },
      { "split.count as a string", meta(entry("split.count", "string", "2")), "FORMAT", "split.count" },
    }
    for _, case in ipairs(cases) do
      it("refuses " .. case[1], function()
        local gguf, message, code = core.parse_gguf(case[2], "hostile.gguf")
        assert.is_nil(gguf)
        assert.equal(err[case[3]], code)
        assert.truthy(message:find("hostile.gguf", 1, true), message)
        assert.truthy(message:find(case[4]), message)
        assert.is_nil(message:find("%c"))
      end)
    end

    it("accepts names and keys at their limits", function()
      local name, key = ("n"):rep(127), ("k"):rep(65535)
      local gguf <close> = assert(core.parse_gguf(build.file {
        entries = { build.entry(key, "u8", 1) }, tensors = { { name = name, dims = { 1, 1, 1, 1 } } },
        data = ("\0"):rep(4),
      }, "limits"))
      assert.equal(1, gguf:get(key))
      assert.equal(1, #gguf:values(name))
    end)

    it("refuses one key twice among 100,000 in no time", function()
      local parts = {}
      for i = 1, 100000 do parts[i] = build.entry("k" .. i % 99999, "u8", 1) end
      local start = core.now()
      local _, _, code = core.parse_gguf(build.file { entries = parts }, "many")
      assert.equal(err.FORMAT, code)
      assert.is_true(core.now() - start < 2)
    end)
  end)

  describe("a file cut or flipped", function()
    local bytes, header_size
    local function load_fixture()
      bytes = bytes or support.read(support.fixture("models/stories260K.gguf"))
      if not header_size then
        local gguf <close> = assert(core.parse_gguf(bytes, "whole"))
        header_size = math.huge
        for _, tensor in ipairs(gguf:tensors()) do header_size = math.min(header_size, tensor.offset) end
      end
    end
    -- A pseudo-random integer in [0, n): the same ones in every run.
    local function pick(case, n)
      return math.floor(core.uniform(29, case, 0) * n)
    end
    local function check(mutant)
      local gguf, message, code = core.parse_gguf(mutant, "mutant.gguf")
      if gguf then
        local opened <close> = gguf
        read_all(opened)
        return true
      end
      assert.is_true(code == err.FORMAT or code == err.UNSUPPORTED, message)
      assert.truthy(message:find("mutant.gguf: ", 1, true), message)
      local place
      for _, word in ipairs { "offset", "key", "tensor", "general.alignment", "version", "starts with", "endian" } do
        place = place or message:find(word, 1, true)
      end
      assert.truthy(place, message)
      assert.is_nil(message:find("%c"))
      return false
    end

    it("is refused at each of 200 lengths", function()
      load_fixture()
      for case = 1, 200 do
        local size = 1 + (case <= 100 and pick(case, header_size) or pick(case, #bytes - 1))
        assert.is_false(check(bytes:sub(1, size)))
      end
    end)

    it("is refused at each byte of a small file", function()
      local small = build.file {
        entries = { build.entry("a", "u8", 1), build.array("s", "string", { "x", "yz" }) },
        tensors = { { name = "t", dims = { 2, 2 } } }, data = support.pack_floats { 1, 2, 3, 4 },
      }
      for size = 1, #small - 1 do assert.is_false(check(small:sub(1, size))) end
      assert.is_true(check(small))
    end)

    it("is loaded or refused after each of 2,000 flips in its header", function()
      load_fixture()
      local tail, loaded = bytes:sub(header_size + 1), 0
      for case = 1, 2000 do
        local at, mask = pick(case, header_size) + 1, pick(100000 + case, 255) + 1
        local flipped = string.char(bytes:byte(at) ~ mask)
        if check(bytes:sub(1, at - 1) .. flipped .. bytes:sub(at + 1, header_size) .. tail) then loaded = loaded + 1 end
        if case % 100 == 0 then collectgarbage() end
      end
      assert.is_true(loaded > 0 and loaded < 2000)
    end)
  end)

  describe("split files", function()
    local stem
    before_each(function()
      stem = os.tmpname()
      os.remove(stem)
    end)
    after_each(function()
      for part = 1, 3 do os.remove(("%s-%05d-of-00002.gguf"):format(stem, part)) end
    end)

    local function write(number, bytes)
      return write_part(stem, number, bytes)
    end

    it("are one model", function()
      local path = write(0, part_bytes(0))
      local second = write(1, part_bytes(1))
      local gguf <close> = assert(core.open_gguf(path))
      assert.equal(2, gguf:files())
      assert.equal(path, gguf:path())
      assert.equal("part 0", gguf:get("general.name"))
      assert.same({ 0, 7 }, gguf:values("t0"))
      assert.same({ 1, 7 }, gguf:values("t1"))
      assert.equal(1, gguf:tensor("t1").file)
      assert.equal(#part_bytes(0) + #part_bytes(1), gguf:bytes())
      gguf:release("t1")
      assert(io.open(second, "ab")):write("x"):close()
      assert.equal(err.IO, select(3, gguf:check_unchanged()))
    end)

    it("are refused when a part is wrong", function()
      local path = write(0, part_bytes(0))
      for _, case in ipairs {
        { part_bytes(1, { no = 0 }), "FORMAT", "split.no" }, { part_bytes(1, { count = 3 }), "FORMAT", "split.count" },
        { part_bytes(1, { name = "t0" }), "FORMAT", "t0 appears twice" },
        { part_bytes(1, { data = "" }), "FORMAT", "t1" }, { "GGUF", "FORMAT", "offset 4" },
        { build.file {}, "FORMAT", "split.no" }, { "", "FORMAT", "empty" },
      } do
        local second = write(1, case[1])
        local gguf, message, code = core.open_gguf(path)
        assert.is_nil(gguf)
        assert.equal(err[case[2]], code)
        assert.truthy(message:find(second, 1, true), message)
        assert.truthy(message:find(case[3], 1, true), message)
      end
    end)

    it("are refused when one is missing, misnamed, miscounted or not the first", function()
      local path = write(0, part_bytes(0))
      local _, message, code = core.open_gguf(path)
      assert.equal(err.IO, code)
      assert.truthy(message:find("-00002-of-00002.gguf", 1, true))

      local second = write(1, part_bytes(1))
      assert.equal(err.UNSUPPORTED, select(3, core.open_gguf(second)))

      write(0, part_bytes(0, { n_tensors = 3 }))
      assert.equal(err.FORMAT, select(3, core.open_gguf(path)))

      local other = support.temporary(part_bytes(0))
      assert.equal(err.FORMAT, select(3, core.open_gguf(other)))
      os.remove(other)
    end)
  end)

  describe("out of memory", function()
    -- Open with the n-th allocation failing, for every n that an open reaches: how many of them came back as errors.
    -- Lua's own allocations fail too; it collects garbage and tries again.
    local function fail_each(open)
      local refused, n, reached = 0, 0, true
      while reached do
        n = n + 1
        core.alloc_inject(n)
        local calls = select(2, core.alloc_counts())
        local gguf, _, code = open()
        reached = select(2, core.alloc_counts()) - calls >= n
        core.alloc_inject(0)
        if gguf then
          gguf:close()
        else
          assert.equal(err.MEMORY, code)
          refused = refused + 1
        end
      end
      return refused
    end

    it("at any allocation of an open is an error", function()
      local path = support.fixture("models/qwen2.gguf")
      assert.is_true(fail_each(function() return core.open_gguf(path) end) > 38) -- there is a name for each tensor
    end)

    it("leaks nothing, once or for good #unsanitized", function()
      local program = arg and arg[-1] or ""
      local folder = program:match("^(.*/)[^/]*$")
      local module = folder and io.open(folder .. "kigo.so", "rb")
      if not module then return pending("kigo.so is not beside the program") end
      module:close()
      local stem = os.tmpname()
      local first, second = write_part(stem, 0, part_bytes(0)), write_part(stem, 1, part_bytes(1))
      -- In a plain Lua, which has memory of its own: one that has none could not run the test.
      local script = support.temporary(([[
        package.cpath = %q .. "?.so"
        require "kigo"
        local core = require "kigo.core"
        for case = 0, 3 do
          local n, for_ever, path = 0, case %% 2 == 1, case < 2 and %q or %q
          repeat
            n = n + 1
            local before = core.alloc_counts()
            core.alloc_inject(n, for_ever)
            local gguf, _, code = core.open_gguf(path)
            core.alloc_inject(0)
            if gguf then gguf:close() end
            assert(gguf or code == core.err.MEMORY)
            assert(core.alloc_counts() == before)
          until gguf
          print("refused " .. n - 1)
        end
      ]]):format(folder, support.fixture("models/qwen2.gguf"), first))
      local pipe = io.popen("lua5.4 " .. script .. " 2>&1")
      local output = pipe:read("a")
      pipe:close()
      for _, path in ipairs { script, stem, first, second } do os.remove(path) end
      if output:find("ASan runtime", 1, true) or output:find("not found", 1, true) then return pending(output) end
      local refused = {}
      for n in output:gmatch("refused (%d+)\n") do refused[#refused + 1] = tonumber(n) end
      assert.same({ refused[1], refused[1], refused[3], refused[3] }, refused, output)
      assert.is_true(refused[1] > 38 and refused[3] > 8, output)
    end)
  end)

  it("raises after close, and closes twice", function()
    local gguf = assert(core.parse_gguf(build.file {}, "memory"))
    assert.truthy(tostring(gguf):find("memory", 1, true))
    gguf:close()
    gguf:close()
    assert.truthy(tostring(gguf):find("closed", 1, true))
    for _, method in ipairs { "get", "array", "entries", "tensors", "tensor", "values", "release", "path", "version",
      "files", "bytes", "parameters", "check_unchanged" } do
      assert.error(function() gguf[method](gguf, "x") end)
    end
  end)

  it("keeps the parsed string alive", function()
    local entry = build.entry("k", "string", ("v"):rep(50))
    local gguf <close> = assert(core.parse_gguf(build.file { entries = { entry } }, "memory"))
    collectgarbage()
    collectgarbage()
    assert.equal(("v"):rep(50), gguf:get("k"))
  end)
end)
