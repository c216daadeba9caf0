-- The worker process: what it takes along, what it leaves behind, and what a hostile one can do to us.
local core = require "kigo.core"
local support = require "spec.support"

describe("a sandbox's worker", function()
  local kigo = require "kigo"
  local err = kigo.err
  local sanitized = support.read "/proc/self/maps":find("libasan", 1, true) ~= nil
  local folder = support.program:match "^(.*)/" or "."

  local SLACK = 1 -- seconds that a busy machine may add to a deadline

  local CALLS = { "memfd_create", "ftruncate", "fcntl", "mmap", "socketpair", "posix_spawn", "ppoll", "send", "recv",
    "waitpid", "close", "munmap" }

  after_each(function()
    core.alloc_inject(0)
    for _, call in ipairs(CALLS) do core.system_inject(call, 0) end
  end)

  local function worker(source, options)
    options = options or {}
    options.isolate = true
    return assert(kigo.sandbox(source, options))
  end

  local function shell(command)
    local pipe <close> = assert(io.popen(command .. " 2>&1"))
    return (pipe:read "a")
  end

  -- Open descriptors, children (zombies too) and shared maps of this process.
  local function held()
    local files, maps, children = 0, 0, 0
    for fd = 0, 255 do
      local file = io.open("/proc/self/fdinfo/" .. fd)
      if file then
        files = files + 1
        file:close()
      end
    end
    for line in io.lines "/proc/self/maps" do
      if line:find("memfd:kigo", 1, true) then maps = maps + 1 end
    end
    local self = support.read "/proc/self/stat":match "^(%d+)"
    for pid in shell "ls /proc":gmatch "%f[%d]%d+" do
      local stat = io.open("/proc/" .. pid .. "/stat")
      local line = stat and stat:read "a"
      if stat then stat:close() end
      local is_worker = line and line:find("(kigo-worker)", 1, true)
      if is_worker and line:match "%) %S (%d+)" == self then children = children + 1 end
    end
    return { files = files, maps = maps, children = children }
  end

  local function is_running(pid)
    local file = io.open("/proc/" .. pid .. "/stat")
    local line = file and file:read "a"
    if file then file:close() end
    return line ~= nil and line:match "%) (%S)" ~= "Z"
  end

  local function wait_until(condition, seconds)
    local stop = kigo.now() + seconds
    while not condition() do
      if kigo.now() > stop then return false end
      os.execute "sleep 0.01"
    end
    return true
  end

  local function status(pid, field)
    return support.read("/proc/" .. pid .. "/status"):match("\n" .. field .. ":%s*(%S+)")
  end

  it("locks itself in before it reads a script", function()
    local s <close> = worker "return function() end"
    local stats = s:stats()
    assert.is_true(stats.layers.limits)
    assert.is_true(stats.layers.seccomp)
    assert.equal("1", status(stats.pid, "NoNewPrivs"))
    assert.equal("2", status(stats.pid, "Seccomp"))
    local limits = support.read("/proc/" .. stats.pid .. "/limits")
    for _, name in ipairs { "Max file size", "Max processes", "Max core file size", "Max locked memory" } do
      assert.is_truthy(limits:find(name .. "%s+0%s+0"), name)
    end
    assert.equal("", support.read("/proc/" .. stats.pid .. "/environ"))
    assert.equal("1000", support.read("/proc/" .. stats.pid .. "/oom_score_adj"):match "%d+")
    local files = {}
    for fd in shell("ls /proc/" .. stats.pid .. "/fd"):gmatch "%d+" do files[#files + 1] = tonumber(fd) end
    table.sort(files)
    assert.same({ 0, 1, 2, 3 }, files)
    assert.is_truthy(shell("readlink /proc/" .. stats.pid .. "/fd/3"):find "socket")
  end)

  it("is stopped when it breaks out of Lua", function()
    local function try(call)
      local _, how, code = os.execute(("exec %s/kigo-worker --try %s </dev/null 2>/dev/null"):format(folder, call))
      return how .. " " .. code
    end
    assert.equal("exit 0", try "nothing")
    local killed = sanitized and "exit 1" or "signal 31" -- SIGSYS; a sanitizer gets an error, so that it can report
    for _, call in ipairs { "open", "socket", "fork", "exec", "kill", "code" } do
      assert.equal(killed, try(call), call)
    end
    if not sanitized then
      assert.equal("signal 31", try "write")
      assert.equal("exit 1", try "memory")
    end
  end)

  it("has no more addresses than its memory asks for", function()
    if sanitized then return pending "sanitized builds have no RLIMIT_AS: AddressSanitizer reserves terabytes" end
    local s <close> = worker("return function() end", { memory = "8M" })
    local stats = s:stats()
    assert.is_true(stats.layers.addresses)
    local limit = tonumber(support.read("/proc/" .. stats.pid .. "/limits"):match "Max address space%s+(%d+)")
    local now = tonumber(support.read("/proc/" .. stats.pid .. "/statm"):match "^%d+") * 4096
    assert.is_true(limit <= now + (10 << 20) and limit >= now + (8 << 20))
  end)

  it("grows by no more than its memory and a MiB", function()
    if sanitized then return pending "AddressSanitizer keeps what was freed, and shadows it" end
    for _, bomb in ipairs { "t[#t + 1] = { i }", "t[#t + 1] = ('x'):rep(900) .. i",
      "t[#t + 1] = ('x'):rep(100000) .. i",
      "t[#t + 1] = kigo.zeros(20000) t[#t + 1] = t[#t]:clone()", "t[i] = i" } do
      local s <close> = worker("return function() local t = {} for i = 1, math.huge do " .. bomb .. " end end",
        { memory = "24M", timeout = 20, instructions = 1 << 40 })
      local function resident() return tonumber(status(s:stats().pid, "RssAnon")) end
      local before = resident()
      local _, message = s:call()
      assert.is_string(message)
      local pid = s:stats().pid
      local most = tonumber(status(pid, "VmHWM")) - tonumber(status(pid, "RssFile"))
      assert.is_true(most - before <= 25 << 10, ("%s: %d KiB"):format(bomb, most - before))
    end
  end)

  it("leaves nothing behind", function()
    local before = held()
    for round = 1, 5 do
      local s <close> = worker("return function() while true do end end", { instructions = 100000 })
      if round % 2 == 0 then s:call() end
      if round == 4 then assert(s:restart()) end
    end
    kigo.sandbox("error 'x'", { isolate = true })
    do
      local forgotten = worker "return function() end" -- luacheck: ignore
      assert(forgotten:call())
    end
    collectgarbage()
    collectgarbage()
    assert.same(before, held())
  end)

  it("goes with the body that made it, however that ends", function()
    local before = held()
    do
      local model <close> = assert(kigo.load(support.haiku_model, { device = "cpu", threads = 1 }))
      local scheduler <close> = kigo.scheduler(model)
      local function body(how)
        local seq <close> = assert(model:sequence())
        local s <close> = worker "return function(l) return (l:argmax()) end"
        local sample = s:sampler()
        seq:feed { 1, 2, 3 }
        for i = 1, 20 do
          assert(seq:push(assert(sample(seq.logits, seq))))
          if how == "error" and i == 5 then error "on purpose" end
        end
      end
      local well, failing, cancelled = scheduler:spawn(body), scheduler:spawn(body, "error"), scheduler:spawn(body)
      for _ = 1, 4 do scheduler:step() end
      assert.equal(3, held().children - before.children)
      cancelled:cancel()
      scheduler:run()
      assert.same({ "done", "failed", "cancelled" }, { well.status, failing.status, cancelled.status })
    end
    collectgarbage()
    collectgarbage()
    assert.same(before, held())
  end)

  it("is one of many", function()
    local all, before = {}, held()
    local source = "local mine = %d return function(x) mine = mine + x return mine end"
    for i = 1, 24 do all[i] = worker(source:format(i)) end
    for round = 1, 3 do
      for i = 1, 24 do assert.same({ true, i + round }, { all[i]:call(nil, 1) }) end
    end
    for i = 1, 24 do all[i]:close() end
    assert.same(before, held())
  end)

  it("may be killed by anybody, and is restarted", function()
    local s <close> = worker "n = 0 return function() n = n + 1 return n end"
    assert.equal(1, select(2, s:call()))
    os.execute("kill -9 " .. s:stats().pid)
    local ok, message, code = s:call()
    assert.is_nil(ok)
    assert.equal(err.SCRIPT, code)
    assert.is_truthy(message:find("died", 1, true))
    assert.is_false(s:stats().alive)
    assert.equal(err.SCRIPT, select(3, s:call()))
    assert.is_true(s:restart())
    assert.equal(1, select(2, s:call()))
  end)

  it("is killed when it does not answer in time", function()
    local s <close> = worker("return function() return 1 end", { timeout = 0.5 })
    os.execute("kill -STOP " .. s:stats().pid)
    local started = kigo.now()
    local ok, _, code = s:call()
    local took = kigo.now() - started
    assert.is_nil(ok)
    assert.equal(err.LIMIT, code)
    assert.is_true(took >= 0.5 and took <= 0.6 + SLACK, took)
    assert.equal(0, held().children)
  end)

  it("is killed when it works where no hook runs", function()
    local s <close> = worker([[
      local meta, keys = {}, {}
      local weak = setmetatable({}, meta)
      meta.__mode = "k" -- a chain of weak keys: the collector needs n squared steps, and in no hurry to let anybody in
      for i = 1, 60000 do keys[i] = {} end
      for i = #keys, 2, -1 do
        local j = math.random(i)
        keys[i], keys[j] = keys[j], keys[i]
      end
      return function()
        for i = 1, #keys - 1 do weak[keys[i] ] = keys[i + 1] end
        first, keys = keys[1], nil
        while true do local _ = {} end
      end]], { timeout = 0.5, instructions = 1 << 40 })
    local started = kigo.now()
    assert.equal(err.LIMIT, select(3, s:call()))
    assert.is_true(kigo.now() - started <= 0.6 + SLACK)
    assert.equal(0, held().children)
  end)

  it("ends with its parent", function()
    local script = os.tmpname() .. ".lua"
    local file <close> = assert(io.open(script, "w"))
    file:write [[
      local kigo = require "kigo"
      local s = assert(kigo.sandbox("return function() while true do end end",
        { isolate = true, timeout = 60, instructions = 1 << 50 }))
      print(s:stats().pid)
      io.stdout:flush()
      s:call() -- for ever]]
    file:close()
    local pipe <close> = assert(io.popen(("exec %s %s"):format(support.program, script)))
    local pid = pipe:read "n"
    assert.is_true(is_running(pid))
    local parent = support.read("/proc/" .. pid .. "/stat"):match "%) %S (%d+)"
    os.execute("kill -9 " .. parent)
    assert.is_true(wait_until(function() return not is_running(pid) end, 2))
    os.remove(script)
  end)

  it("ends when its parent lets go of the socket", function()
    local s = worker "return function() return 1 end"
    local pid = s:stats().pid
    s:close()
    assert.is_false(is_running(pid))
    assert.has_error(function() s:call() end)
    s:close()
  end)

  it("is found by a host that has only kigo.so #unsanitized", function()
    if not os.execute "command -v lua5.4 >/dev/null" then return pending "there is no lua5.4 here" end
    local code = [[local s = assert(require "kigo".sandbox("return function(x) return x + 1 end", { isolate = true }))
      print(s:call(nil, 41))]]
    local output = shell(("LUA_CPATH='%s/?.so;;' lua5.4 -e '%s'"):format(folder, code))
    assert.equal("true\t42\n", output)
  end)

  it("is of no use by hand", function()
    assert.is_truthy(shell(folder .. "/kigo-worker"):find("of no use by hand", 1, true))
    assert.is_nil(os.execute(folder .. "/kigo-worker 1 2 3 4 x >/dev/null 2>&1"))
  end)

  it("takes tensors within its share, and no more", function()
    local s <close> = worker("return function(a, b) a:add_(b) return #a end", { tensors = 8192 })
    local a, b = kigo.zeros(1000), kigo.zeros(1000)
    b:fill_(3)
    assert.same({ true, 1000 }, { s:call(nil, a, b) })
    assert.equal(3000, a:sum())
    assert.has_error(function() s:call(nil, a, kigo.zeros(1100)) end)
    assert.same({ true, 1000 }, { s:call(nil, a, b) })
  end)

  -- ---- faults of the machine ----

  local function in_full()
    local s, message, code = kigo.sandbox("return function(t) t:mul_(2) return { t:sum(), 'x' } end",
      { isolate = true })
    if not s then return nil, message, code end
    local t <close> = kigo.tensor { 1, 2 } or error "memory"
    local ok, answer, call_code = s:call(nil, t)
    local sum = t:sum()
    s:close()
    if not ok then return nil, sum == 3 and answer or "a call that failed has changed something", call_code end
    return answer[1] == 6 and answer[2] == "x" and sum == 6, "a wrong answer"
  end

  for _, isolate in ipairs { false, true } do
    it("and every allocation may fail" .. (isolate and " in a worker" or ""), function()
      local run = isolate and in_full or function()
        local s, message, code = kigo.sandbox("return function(t) t:mul_(2) return { t:clone():sum(), 'x' } end")
        if not s then return nil, message, code end
        local t <close> = kigo.tensor { 1, 2 } or error "memory"
        local ok, answer, call_code = s:call(nil, t)
        s:close()
        if not ok then return nil, answer, call_code end
        return answer[1] == 6 and answer[2] == "x"
      end
      local function calls() return (select(2, core.alloc_counts())) end
      local function live()
        collectgarbage()
        collectgarbage()
        return (core.alloc_counts())
      end
      -- No assertions in here: busted keeps memory of its own.
      local odd
      local function walk(for_ever)
        local from = calls()
        run()
        local total, n_failed = calls() - from, 0
        for n = 1, total do
          core.alloc_inject(n, for_ever)
          local fine, ok, message, code = pcall(run)
          core.alloc_inject(0)
          if not (fine and ok) then n_failed = n_failed + 1 end
          if not fine then
            if not tostring(ok):find "memory" then odd = ok end -- of this state
          elseif not ok then
            if code ~= err.MEMORY and code ~= err.SCRIPT or type(message) ~= "string" then odd = message end
          end
        end
        return n_failed
      end
      walk(false)
      local before = live()
      local n_failed = walk(true)
      local grown = live() - before
      assert.is_nil(odd)
      assert.is_true(n_failed > 5)
      assert.equal(0, grown)
    end)
  end

  it("and every system call may fail", function()
    in_full()
    local before = held()
    for _, call in ipairs(CALLS) do
      local from = core.system_calls(call)
      in_full()
      local reached = core.system_calls(call) - from
      for _, fault in ipairs(sanitized and { "EIO" } or { "EIO", "EINTR" }) do -- a sanitized worker starts in 50 ms
        for n = 1, math.min(reached, 6) do
          core.system_inject(call, n, fault)
          local ok, message, code = in_full()
          core.system_inject(call, 0)
          if not ok then
            assert.is_true(code == err.IO, message)
            assert.is_truthy(message:find(call, 1, true), message)
          end
          if fault == "EINTR" and call ~= "mmap" then assert.is_true(ok, message) end -- it is made again
        end
      end
    end
    for _, call in ipairs { "send", "recv" } do
      core.system_inject(call, 1, "short", true)
      assert.is_true((in_full()))
      core.system_inject(call, 0)
    end
    assert.same(before, held())
  end)

  -- ---- a worker that lies ----

  local MAGIC = 0x6b677731

  local function hello(code, layers) return string.pack("<I4I4i4c128", MAGIC, layers or 15, code or 0, "no") end
  local function frame(serial, payload) return string.pack("<I4I4I4", MAGIC, serial, #payload) .. payload end
  local function answer(fields)
    return string.pack("<i4I4I4I4I8I8I8I8", fields.code or 0, fields.values or 0, fields.changed or 0,
      fields.spent or 0, fields.draws or 0, 0, 0, 0) .. (fields.rest or "")
  end

  -- A folder with the program and without a worker.
  -- The program without a worker beside it, but with the libraries that it may have brought.
  local function folder_without()
    local place = os.tmpname()
    os.remove(place)
    os.execute(("mkdir %s && cp %s %s/kigo && ln -s \"$PWD/lua\" %s/lua && ln -s \"$(cd %s && pwd)/lib\" %s/lib")
      :format(place, support.program, place, place, folder, place))
    return place
  end

  -- For each file: start a worker that says its bytes, whatever it is asked, and tell what came of it.
  local TRY = [[
    local kigo = require "kigo"
    local function try()
      local s <close>, message, code = kigo.sandbox("", { isolate = true, timeout = 0.3 })
      if not s then return "start " .. kigo.core.error_name(code) end
      local t = kigo.tensor { 1, 2, 3 }
      local ok, result, call_code = s:call("f", t)
      if ok then return ("ok %s %s"):format(tostring(result):gsub("%c", "?"):sub(1, 40), t:sum()) end
      return ("call %s %s %s"):format(kigo.core.error_name(call_code), s:stats().alive, t:sum())
    end
    local place = arg[0]:match "^(.*)/"
    for i = 1, tonumber(arg[1]) do
      os.rename(place .. "/" .. i, place .. "/kigo-worker.says")
      print(try())
    end]]
  local loaded = hello() .. frame(1, answer {})
  local NO_START = "start script"
  local DEAD, ALIVE = "call script false 6.0", "call script true 6.0"
  -- What it says, and what comes of it.
  local LIES = {
    ["nothing of sense"] = { ("x"):rep(200), NO_START },
    ["that it cannot lock itself in"] = { hello(-5), "start unsupported" },
    ["an answer without the magic"] = { hello() .. "XXXX" .. frame(1, answer {}):sub(5), NO_START },
    ["an answer to another request"] = { hello() .. frame(7, answer {}), NO_START },
    ["an answer that is too long"] = { hello() .. string.pack("<I4I4I4", MAGIC, 1, 0xffffffff), NO_START },
    ["an answer that is too short"] = { hello() .. frame(1, "abc"), NO_START },
    ["an answer with no end"] = { hello() .. string.pack("<I4I4I4", MAGIC, 1, 100), "start limit" },
    ["an unknown code"] = { hello() .. frame(1, answer { code = 5 }), NO_START },
    ["that the caller made a mistake"] = { loaded .. frame(2, answer { code = -1, rest = "x" }), DEAD },
    ["a message that is too long"] = { loaded .. frame(2, answer { code = -10, rest = ("x"):rep(5000) }),
      DEAD },
    ["more values than there are"] = { loaded .. frame(2, answer { values = 3, rest = "\1" }), ALIVE },
    ["fewer values than there are"] = { loaded .. frame(2, answer { values = 1, rest = "\1\1" }), ALIVE },
    ["a million values"] = { loaded .. frame(2, answer { values = 1000000 }), DEAD },
    ["an unknown kind of value"] = { loaded .. frame(2, answer { values = 1, rest = "\99" }), ALIVE },
    ["a tensor"] = { loaded .. frame(2, answer { values = 1, rest = "\7\0\0\0\0" }), ALIVE },
    ["a string without an end"] = { loaded .. frame(2, answer { values = 1, rest = "\5\255\255\255\255abc" }),
      ALIVE },
    ["a table of four billion"] = { loaded .. frame(2, answer { values = 1, rest = "\6" .. ("\255"):rep(8) }),
      ALIVE },
    ["a table with a nil key"] = { loaded .. frame(2, answer { values = 1, rest = "\6\0\0\0\0\1\0\0\0\0\1" }),
      ALIVE },
    ["a table with a NaN key"] = { loaded .. frame(2, answer { values = 1,
      rest = "\6\0\0\0\0\1\0\0\0\4" .. string.pack("<d", 0 / 0) .. "\1" }), ALIVE },
    ["tables without a bottom"] = { loaded .. frame(2, answer { values = 1,
      rest = "\6" .. ("\1\0\0\0\0\0\0\0\6"):rep(1000) }), ALIVE },
    ["that it changed tensors that it does not have"] = { loaded .. frame(2, answer { changed = 0xff }),
      DEAD },
    ["that it is spent, and well"] = { loaded .. frame(2, answer { spent = 1 }), DEAD },
    ["the truth"] = { loaded .. frame(2, answer { values = 1, rest = "\3" .. string.pack("<i8", 42) }), "ok 42 6.0" },
  }
  local function write(path, text)
    local file <close> = assert(io.open(path, "wb"))
    assert(file:write(text))
  end

  local LIAR = '#!/bin/sh\ncat "$0.says" >&"$1"\nexec sleep 5\n'

  it("may lie", function()
    local place, names = folder_without(), {}
    for name in pairs(LIES) do names[#names + 1] = name end
    table.sort(names)
    for i, name in ipairs(names) do write(place .. "/" .. i, LIES[name][1]) end
    write(place .. "/kigo-worker", LIAR)
    write(place .. "/try.lua", TRY)
    os.execute(("chmod +x %s/kigo-worker"):format(place))
    local i = 0
    for line in shell(("timeout 20 %s/kigo %s/try.lua %d"):format(place, place, #names)):gmatch "[^\n]+" do
      i = i + 1
      assert.equal(LIES[names[i]][2], line, names[i])
    end
    assert.equal(#names, i)
    os.execute("rm -r " .. place)
  end)

  it("may say anything for values", function()
    local place, n = folder_without(), sanitized and 20 or 60
    for i = 1, n do
      -- Bytes that are kinds of values and small numbers more often than not.
      local bytes = {}
      for k = 1, 8 + i do
        local draw = core.uniform(i, k, 3)
        bytes[k] = string.char(draw < 0.7 and math.floor(draw * 12) or draw < 0.9 and 0 or math.floor(draw * 255))
      end
      write(place .. "/" .. i, loaded .. frame(2, answer { values = 1 + i % 3, rest = table.concat(bytes) }))
    end
    write(place .. "/kigo-worker", LIAR)
    write(place .. "/try.lua", TRY)
    os.execute(("chmod +x %s/kigo-worker"):format(place))
    local lines = 0
    for line in shell(("timeout 20 %s/kigo %s/try.lua %d"):format(place, place, n)):gmatch "[^\n]+" do
      lines = lines + 1
      assert.is_truthy(line == ALIVE or line:find "^ok .* 6%.0$", line)
    end
    assert.equal(n, lines)
    os.execute("rm -r " .. place)
  end)

  it("says when there is none", function()
    local place = folder_without()
    write(place .. "/script.lua", [[local kigo = require "kigo"
      local s, message, code = kigo.sandbox("", { isolate = true })
      print(s, message, kigo.core.error_name(code))]])
    assert.equal("nil\tkigo-worker is not beside the program or library of kigo\tunsupported\n",
      shell(("%s/kigo %s/script.lua"):format(place, place)))
    os.execute("rm -r " .. place)
  end)
end)
