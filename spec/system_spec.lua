local core = require "kigo.core"
local build = require "spec.gguf_build"
local support = require "spec.support"
local tiny = require "spec.tiny"

describe("system calls", function()
  local err = core.err
  local CALLS = { "open", "mkostemp", "stat", "fstat", "mmap", "munmap", "madvise", "read", "write", "fchmod", "fsync",
    "rename", "close", "unlink", "getrandom", "pthread_create" }
  local stem, single, split, saved

  local function part_bytes(number)
    return build.file {
      entries = { build.entry("split.no", "u16", number), build.entry("split.count", "u16", 2),
        build.entry("split.tensors.count", "i32", 2) },
      tensors = { { name = "t" .. number, dims = { 2 } } }, data = support.pack_floats { number, 7 },
    }
  end

  local function write(path, bytes)
    assert(io.open(path, "wb")):write(bytes):close()
    return path
  end

  setup(function()
    stem = os.tmpname()
    single = write(stem .. "-single.gguf", build.file { tensors = { { name = "t", dims = { 2 } } },
      data = support.pack_floats { 1, 2 } })
    split = write(stem .. "-00001-of-00002.gguf", part_bytes(0))
    write(stem .. "-00002-of-00002.gguf", part_bytes(1))
    saved = tiny.model {}:sequence {}
    saved:feed(tiny.ids(20))
    assert(saved:step() and saved:save(stem .. "-in.kv"))
  end)
  teardown(function()
    saved.model:close()
    saved:close()
    for _, rest in ipairs { "", "-in.kv", "-single.gguf", "-00001-of-00002.gguf", "-00002-of-00002.gguf" } do
      os.remove(stem .. rest)
    end
  end)
  after_each(function() -- a failed expectation must not fail what comes after it
    for _, call in ipairs(CALLS) do core.system_inject(call, 0) end
  end)

  ---@return integer files, integer maps   that are open in this process; maps of the files of this spec
  local function held()
    local files, maps = 0, 0
    for fd = 0, 255 do
      local file = io.open("/proc/self/fdinfo/" .. fd)
      if file then
        files = files + 1
        file:close()
      end
    end
    for line in io.lines "/proc/self/maps" do
      if line:find(stem, 1, true) then maps = maps + 1 end
    end
    return files, maps
  end

  local function live_blocks()
    collectgarbage()
    collectgarbage()
    return (core.alloc_counts())
  end

  local function left_behind()
    local pipe <close> = io.popen("ls " .. stem .. "-out* 2>/dev/null")
    return pipe:read("a")
  end

  ---What the library does with the system. `run` is the whole of it and returns what the call did; `names` stands in
  ---its errors; `spared` says which failures (of call number n) nobody has to hear of; `failed` looks around after it.
  local operations = {
    { name = "opening a file", reaches = { open = 1, fstat = 1, mmap = 1, munmap = 1, close = 1 },
      names = function() return single end,
      run = function()
        local gguf, message, code = core.open_gguf(single)
        if gguf then gguf:close() end
        return gguf, message, code
      end },
    { name = "opening a split model", reaches = { open = 2, fstat = 2, mmap = 2, munmap = 2, close = 2 },
      names = function(n) return (split:gsub("00001%-", ("%05d-"):format(n))) end,
      run = function()
        local gguf, message, code = core.open_gguf(split)
        if gguf then gguf:close() end
        return gguf, message, code
      end },
    { name = "hashing a file", reaches = { open = 1, read = 2, close = 1 }, names = function() return single end,
      run = function() return core.sha256_file(single) end,
      check = function(digest) assert.equal(core.sha256(support.read(single)), digest) end },
    { name = "random bytes", reaches = { getrandom = 1 }, names = function() return "random bytes" end,
      run = function() return core.random_bytes(32) end, check = function(bytes) assert.equal(32, #bytes) end },
    { name = "writing a model",
      reaches = { stat = 1, mkostemp = 1, write = 20, fchmod = 1, fsync = 2, rename = 1, open = 1, close = 2 },
      -- Once the file is in its place there is only its folder to make durable, which some file systems cannot do.
      spared = { open = { true }, fsync = { [2] = true } },
      names = function() return stem .. "-out.gguf" end,
      prepare = function() write(stem .. "-out.gguf", "old") end,
      run = function() return core.make_model(stem .. "-out.gguf", { like = "tiny", type = "q4_0" }) end,
      failed = function()
        assert.equal("old", support.read(stem .. "-out.gguf"))
        assert.equal(stem .. "-out.gguf\n", left_behind())
      end,
      check = function(path)
        assert.equal(stem .. "-out.gguf\n", left_behind())
        local gguf <close> = assert(core.open_gguf(path))
        assert.equal(26, #gguf:tensors())
      end,
      finish = function() os.remove(stem .. "-out.gguf") end },
    { name = "saving a sequence",
      reaches = { stat = 1, mkostemp = 1, write = 5, fchmod = 1, fsync = 2, rename = 1, open = 1, close = 2 },
      spared = { open = { true }, fsync = { [2] = true } },
      names = function() return stem .. "-out.kv" end,
      prepare = function() write(stem .. "-out.kv", "old") end,
      run = function() return saved:save(stem .. "-out.kv") end,
      failed = function()
        assert.equal("old", support.read(stem .. "-out.kv"))
        assert.equal(stem .. "-out.kv\n", left_behind())
      end,
      check = function()
        assert.equal(stem .. "-out.kv\n", left_behind())
        local seq <close> = assert(saved.model:restore(stem .. "-out.kv"))
        assert.equal(20, seq:pos())
      end,
      finish = function() os.remove(stem .. "-out.kv") end },
    { name = "restoring a sequence", reaches = { open = 1, fstat = 1, read = 5, close = 1 },
      names = function() return stem .. "-in.kv" end,
      run = function()
        local seq, message, code = saved.model:restore(stem .. "-in.kv")
        if seq then seq:close() end
        return seq, message, code
      end,
      failed = function() assert.equal(1, saved.model:stats().n_sequences) end },
    { name = "threads", reaches = { pthread_create = 2 }, names = function(n) return "thread " .. n + 1 .. " of 3" end,
      uninterrupted = true,
      run = function()
        local plan <close> = tiny.plan()
        local model, message, code = core.model(plan, { device = "cpu", threads = 3 })
        if model then model:close() end
        return model, message, code
      end },
  }

  local silent = { close = true, munmap = true, madvise = true, unlink = true } -- nobody can do anything about these

  ---Run with the n-th `call` failing, for every n that is reached: calls handle(n, result, message, code) -> nothing.
  ---@return integer reached
  local function sweep(operation, call, error_name, for_ever, handle)
    local n = 0
    while true do
      n = n + 1
      if operation.prepare then operation.prepare() end
      local before = core.system_calls(call)
      core.system_inject(call, n, error_name, for_ever)
      local result, message, code = operation.run()
      core.system_inject(call, 0)
      if core.system_calls(call) - before < n then
        assert(result, message)
        if operation.check then operation.check(result) end
        return n - 1
      end
      handle(n, result, message, code)
    end
  end

  for _, operation in ipairs(operations) do
    describe("of " .. operation.name, function()
      after_each(function() if operation.finish then operation.finish() end end)

      local function expect_failure(call, words)
        return function(n, result, message, code)
          local spared = silent[call] or operation.spared and operation.spared[call] and operation.spared[call][n]
          if spared then
            assert(result, message)
            if operation.check then operation.check(result) end
            return
          end
          assert.is_nil(result)
          assert.equal(err.IO, code)
          assert.truthy(message:find(operation.names(n), 1, true), message)
          assert.truthy(message:find(call .. " failed: " .. words, 1, true), message)
          if operation.failed then operation.failed() end
        end
      end

      it("may fail, each in turn, once and for ever: the error names call and file, nothing leaks", function()
        local function all()
          for _, call in ipairs(CALLS) do
            for _, for_ever in ipairs { false, true } do
              local n = sweep(operation, call, "EIO", for_ever, expect_failure(call, "Input/output error"))
              assert.is_true(n >= (operation.reaches[call] or 0), call .. " was reached " .. n .. " times")
            end
          end
        end
        all() -- what is made once and kept is there now
        local files, maps = held()
        local blocks = live_blocks()
        all()
        local blocks_after = live_blocks() -- before luassert makes anything
        assert.equal(blocks, blocks_after)
        assert.same({ files, maps }, { held() })
        assert.equal(0, maps)
      end)

      if operation.uninterrupted then return end

      it("are made again after a signal, but not for ever", function()
        for call in pairs(operation.reaches) do
          sweep(operation, call, "EINTR", false, function(_, result, message)
            assert(result, message)
            if operation.check then operation.check(result) end
          end)
          core.system_inject(call, 1, "EINTR", true)
          if operation.prepare then operation.prepare() end
          local result, message, code = operation.run()
          core.system_inject(call, 0)
          expect_failure(call, "Interrupted system call")(1, result, message, code)
        end
      end)

      it("go on after short counts", function()
        for _, call in ipairs { "read", "write", "getrandom" } do
          if operation.reaches[call] then
            if operation.prepare then operation.prepare() end
            local before = core.system_calls(call)
            core.system_inject(call, 1, "short", true)
            local result, message = operation.run()
            core.system_inject(call, 0)
            assert(result, message)
            if operation.check then operation.check(result) end
            assert.is_true(core.system_calls(call) - before > operation.reaches[call])
          end
        end
      end)
    end)
  end

  it("of a full disk fail in words that say so", function()
    core.system_inject("write", 3, "ENOSPC", true)
    local made, message, code = core.make_model(stem .. "-out.gguf", { like = "tiny" })
    core.system_inject("write", 0)
    assert.is_nil(made)
    assert.equal(err.IO, code)
    assert.truthy(message:find("write failed: No space left on device", 1, true), message)
    assert.equal("", left_behind())
  end)

  it("of a full disk leave the saved sequence that was there", function()
    assert.is_true(saved:save(stem .. "-out.kv"))
    local before = support.read(stem .. "-out.kv")
    for call, error_name in pairs { write = "ENOSPC", fsync = "EIO", rename = "ENOSPC" } do
      core.system_inject(call, 1, error_name, true)
      local done, _, code = saved:save(stem .. "-out.kv")
      core.system_inject(call, 0)
      assert.is_nil(done)
      assert.equal(err.IO, code)
      assert.equal(before, support.read(stem .. "-out.kv"))
      assert.equal(stem .. "-out.kv\n", left_behind())
    end
    os.remove(stem .. "-out.kv")
  end)

  it("of threads fail for want of memory as memory does", function()
    local plan <close> = tiny.plan()
    core.system_inject("pthread_create", 1, "ENOMEM")
    local model, _, code = core.model(plan, { device = "cpu", threads = 2 })
    assert.is_nil(model)
    assert.equal(err.MEMORY, code)
  end)

  it("are injected by name", function()
    assert.has_error(function() core.system_inject("opne", 1) end)
    assert.has_error(function() core.system_inject("open", 1, "EWHAT") end)
    assert.has_error(function() core.system_inject("open") end)
    assert.has_error(function() core.system_calls() end)
  end)
end)
