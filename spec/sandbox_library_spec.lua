-- What a script finds in its sandbox, beside what stock Lua does: this Lua is the oracle of functions that were
-- written anew.
local core = require "kigo.core"

describe("the library of a sandbox", function()
  local kigo = require "kigo"

  -- Run in a sandbox what stands behind `return function(...)`.
  local function sandbox(body, options)
    return assert(kigo.sandbox("local function plain(x) if type(x) == 'string' or type(x) == 'number' or x == nil then "
      .. "return x end return type(x) end return function(...) " .. body .. " end", options or { timeout = 20,
      instructions = 1 << 40, memory = "64M" }))
  end

  local function results(s, ...)
    local returned = table.pack(s:call(nil, ...))
    assert.is_true(returned[1], returned[2])
    return table.unpack(returned, 2, returned.n)
  end

  it("has these names, and no others", function()
    local s <close> = sandbox [[
      local names = {}
      local function list(t, prefix)
        for k, v in pairs(t) do
          names[#names + 1] = prefix .. k
          if type(v) == "table" and v ~= _G then list(v, prefix .. k .. ".") end
        end
      end
      list(_G, "")
      table.sort(names)
      return table.concat(names, " ")]]
    assert.equal("_G _VERSION assert coroutine coroutine.close coroutine.create coroutine.isyieldable coroutine.resume "
      .. "coroutine.running coroutine.status coroutine.wrap coroutine.yield error getmetatable ipairs kigo kigo.tensor "
      .. "kigo.zeros load math math.abs math.acos math.asin math.atan math.ceil math.cos math.deg math.exp math.floor "
      .. "math.fmod math.huge math.log math.max math.maxinteger math.min math.mininteger math.modf math.pi math.rad "
      .. "math.random math.randomseed math.sin math.sqrt math.tan math.tointeger math.type math.ult next pairs pcall "
      .. "rawequal rawget rawlen rawset select setmetatable string string.byte string.char string.find string.format "
      .. "string.gmatch string.gsub string.len string.lower string.match string.rep string.reverse string.sub "
      .. "string.upper table table.concat table.insert table.move table.pack table.remove table.sort table.unpack "
      .. "tonumber tostring type utf8 utf8.char utf8.charpattern utf8.codepoint utf8.codes utf8.len utf8.offset xpcall",
      (results(s)))
  end)

  it("reads no bytecode", function()
    local s <close> = sandbox [[
      local binary, mode = ...
      local loaded = { load(binary, "x", mode) }
      return loaded[1] == nil, type(loaded[2]), string.dump]]
    local binary = string.dump(function() return 1 end)
    for _, mode in ipairs { "b", "bt", "t" } do assert.same({ true, "string" }, { results(s, binary, mode) }) end
    assert.same({ true, "string" }, { results(s, binary, nil) })
  end)

  it("loads text, into an environment of its own too", function()
    local s <close> = sandbox [[
      local environment = {}
      assert(load("x = 5", "chunk", "t", environment))()
      assert(load "y = 6")()
      local nothing, message = load("x =", "=chunk")
      return environment.x, x, y, nothing, message, (select("#", load("return ...")(1, nil, nil))),
        pcall(load, function() return nil end)]]
    local got = table.pack(results(s))
    assert.same({ 5, nil, 6, nil, "chunk:1: unexpected symbol near <eof>", 3, false }, { table.unpack(got, 1, 7) })
  end)

  it("has strings whose metatable is locked, and its own", function()
    local s <close> = sandbox [[
      local plus = pcall(function() return "1" + 1 end)
      string.upper = function() return "mine" end
      return getmetatable "", pcall(setmetatable, "", {}), plus, ("a"):upper(), string.upper "a", ("x").nothing]]
    local got = table.pack(results(s))
    assert.is_false(got[1])
    assert.is_false(got[2])
    assert.same({ false, "A", "mine" }, { got[3], got[4], got[5] })
    assert.equal("A", ("a"):upper())
  end)

  it("makes no finalizers", function()
    local s <close> = sandbox [[
      local refused = not pcall(setmetatable, {}, { __gc = function() ran = true end })
      local meta = {}
      for _ = 1, 1000 do setmetatable({}, meta) end
      meta.__gc = function() ran = true end
      local also_refused = not pcall(setmetatable, {}, meta)
      for _ = 1, 200000 do local _ = {} end
      return refused, also_refused, ran]]
    assert.same({ true, true }, { results(s) })
  end)

  it("makes no tables with weak keys", function()
    local s <close> = sandbox [[
      return pcall(setmetatable, {}, { __mode = "k" }), pcall(setmetatable, {}, { __mode = "kv" }),
        pcall(setmetatable, {}, { __mode = "v" })]]
    assert.same({ false, false, true }, { table.unpack({ results(s) }, 1, 3) })
  end)

  it("shares nothing with others", function()
    local vandal <close> = assert(kigo.sandbox [[
      return function(t)
        for _, name in ipairs { "string", "math", "table", "coroutine", "utf8", "kigo" } do
          for k in pairs(_G[name]) do _G[name][k] = nil end
        end
        setmetatable(_G, { __index = function() return 42 end })
        return string.rep, whatever, pcall(function() t.mul_ = 1 end), pcall(rawset, t, "mul_", 1)
      end]])
    local t = kigo.zeros(3)
    local got = table.pack(vandal:call(nil, t))
    assert.same({ true, nil, 42, false }, { table.unpack(got, 1, 4) })
    local s <close> = sandbox "return string.rep('x', 3), math.max(1, 2), whatever, kigo.zeros(2):sum(), _G == _ENV"
    assert.same({ "xxx", 2, nil, 0, true }, { results(s) })
    assert.equal("xxx", ("x"):rep(3))
    assert.equal(0, t:mul_(2):sum())
    assert.is_nil(whatever) -- luacheck: ignore
  end)

  it("bounds what one call returns or makes", function()
    local s <close> = sandbox [[
      local long = ("x"):rep(5000)
      return pcall(string.byte, long, 1, -1), pcall(utf8.codepoint, long, 1, -1), pcall(table.unpack, {}, 1, 5000),
        pcall(string.rep, "xx", 1 << 18), pcall(string.rep, "", 1 << 62), pcall(string.format, long),
        select("#", string.byte(long, 1, 4096)), select("#", table.unpack({}, 1, 4096)), #("x"):rep(1 << 18)]]
    local got = table.pack(results(s))
    assert.same({ false, false, false, false, false, false }, { table.unpack(got, 1, 6) })
    assert.same({ 4096, 4096, 1 << 18 }, { table.unpack(got, got.n - 2) })
  end)

  it("catches errors as Lua does", function()
    local body = [[
      local function close(f) return setmetatable({}, { __close = f }) end
      local log = {}
      local function note(...) log[#log + 1] = table.concat({ ... }, " ") end
      note(tostring(pcall(error)), tostring(select("#", pcall(error))))
      note(tostring(select(2, pcall(error, "x", 0))))
      note(tostring(select(2, xpcall(error, function(e) return e .. "!" end, "y", 0))))
      note(tostring(pcall(function(...) return ... end, 1, 2)))
      note(tostring(select("#", pcall(function() return 1, nil, nil end))))
      note(tostring(xpcall(function(a, b) return a + b end, error, 2, 3)))
      note(tostring(pcall(xpcall)), tostring(pcall(pcall)), tostring(pcall(xpcall, error)))
      local co = coroutine.wrap(function(a)
        local b = coroutine.yield(a + 1)
        local ok, c = pcall(function() return coroutine.yield(b + 1) + 1 end)
        local ok2, d = xpcall(function() error(coroutine.yield(c), 0) end, function(e) return e .. "?" end)
        return ok, ok2, d
      end)
      note(co(1), co(10), co(100))
      local x, y, z = co "end"
      note(tostring(x), tostring(y), z, tostring(pcall(co)))
      local stuck = coroutine.create(function()
        local c <close> = close(function() note "closed" end)
        coroutine.yield()
      end)
      coroutine.resume(stuck)
      note(coroutine.status(stuck), tostring(coroutine.close(stuck)), coroutine.status(stuck))
      local failing = coroutine.create(function()
        local c <close> = close(function() error("in close", 0) end)
        coroutine.yield()
      end)
      coroutine.resume(failing)
      note(select(2, coroutine.close(failing)))
      note(select(2, coroutine.resume(coroutine.create(function() error("in thread", 0) end))))
      note(select(2, pcall(coroutine.wrap(function() error({ "object" }) end)))[1])
      note(tostring(pcall(coroutine.close, coroutine.running())), tostring(pcall(coroutine.resume, 1)))
      note(tostring((coroutine.resume(coroutine.create(function() return coroutine.isyieldable() end)))))
      local outer outer = coroutine.create(function()
        return coroutine.resume(coroutine.create(function() return coroutine.status(outer), coroutine.close(outer) end))
      end)
      note(tostring(select(2, coroutine.resume(outer))))
      return table.concat(log, "\n")]]
    local s <close> = sandbox(body)
    assert.equal(load("return function(...) " .. body .. " end")()(), (results(s)))
  end)

  -- ---- oracles ----

  local function random(seed)
    local n = 0
    return function(limit)
      n = n + 1
      return math.floor(core.uniform(seed, n, 1) * limit) + 1
    end
  end

  local SUBJECT = { "a", "b", "a", "1", " ", "(", ")", "%", "-", "\0", "z", "[", "]", ".", "\n", "\xe4" }
  local PATTERN = { "a", "b", ".", "%a", "%w", "%s", "%d", "%S", "[ab]", "[^a]", "[a-z]", "[%w_]", "%b()", "%f[%w]",
    "%1", "(", ")", "()", "*", "+", "-", "?", "^", "$", "[", "]", "%", "%z", "[]a]", "[^]]", "[%a-z]", "[a-]", "\0",
    "(a*)", "(.-)", "%g", "%x" }

  local function text(draw, pool, max)
    local parts = {}
    for i = 1, draw(max) - 1 do parts[i] = pool[draw(#pool)] end
    return table.concat(parts)
  end

  -- The same code, here and there: calls a function of `library` by name, and returns what came of it as text.
  local DO = [[
    local calls, out = ..., {}
    for i, call in ipairs(calls) do
      local f, got = call.f, nil
      if f == "gmatch" then
        got = table.pack(pcall(function()
          local all = {}
          for a, b, c in string.gmatch(call[1], call[2], call[3]) do
            all[#all + 1] = tostring(a) .. "," .. tostring(b) .. "," .. tostring(c)
            if #all > 50 then break end
          end
          return table.concat(all, ";")
        end))
      elseif call.by == "function" then
        got = table.pack(pcall(string.gsub, call[1], call[2], function(a, b)
          return b or #tostring(a) % 2 == 0 and "<" .. a .. ">"
        end, call[4]))
      else
        got = table.pack(pcall((call.of == "table" and table or string)[f], table.unpack(call, 1, call.n)))
      end
      if not got[1] then got = { false, n = 1 } end
      for k = 1, got.n do got[k] = math.type(got[k]) == "float" and "f" .. got[k] or tostring(got[k]) end
      if call.of == "table" then
        if call.f == "move" or not tostring(got[2]):find "^table" then else got[2] = "table" end
        for _, t in ipairs(call) do
          if type(t) == "table" then
            for k = -3, 12 do got[#got + 1] = tostring(t[k]) end
            if call.f == "move" then got[2] = "table" end
          end
        end
      end
      out[i] = table.concat(got, "|")
    end
    return out]]

  local function compare(s, calls)
    local wanted = load(DO)(calls)
    local got = results(s, calls)
    for i, call in ipairs(calls) do
      if wanted[i] ~= got[i] then
        local shown = {}
        for k = 1, call.n do shown[k] = type(call[k]) == "string" and ("%q"):format(call[k]) or tostring(call[k]) end
        assert.equal(wanted[i], got[i], call.f .. "(" .. table.concat(shown, ", ") .. ")")
      end
    end
  end

  it("matches patterns as stock Lua does", function()
    local s <close> = sandbox(DO)
    local draw, total = random(1), math.tointeger(os.getenv "KIGO_PATTERNS" or "") or 8000
    for _ = 1, total // 200 do
      local calls = {}
      for i = 1, 200 do
        local f = ({ "find", "match", "gmatch", "gsub", "gsub", "find" })[draw(6)]
        local call = { f = f, text(draw, SUBJECT, 14), text(draw, PATTERN, 7), n = 2 }
        if f == "gsub" then
          call.n, call[3] = 3, ({ "<%0>", "%1", "%%", "x", "%2%1" })[draw(5)]
          if draw(3) == 1 then call.by = "function" end
          if draw(3) == 1 then call.n, call[4] = 4, draw(4) - 1 end
        elseif draw(3) == 1 then
          call.n, call[3] = 3, draw(20) - 10
          if f == "find" and draw(3) == 1 then call.n, call[4] = 4, true end
        end
        calls[i] = call
      end
      compare(s, calls)
    end
  end)

  it("works on tables as stock Lua does", function()
    local s <close> = sandbox(DO)
    local draw = random(2)
    local function list()
      local t = {}
      for i = 1, draw(8) - 1 do t[i] = draw(3) == 1 and "s" .. draw(5) or draw(9) end
      return t
    end
    for _ = 1, 20 do
      local calls, again = {}, {}
      for i = 1, 200 do
        local f = ({ "insert", "remove", "move", "concat", "unpack", "insert" })[draw(6)]
        local t = list()
        local call = { f = f, of = "table", t }
        if f == "insert" then
          if draw(2) == 1 then call[2], call[3] = draw(10) - 1, "new" else call[2] = "new" end
        elseif f == "remove" then
          if draw(3) > 1 then call[2] = draw(11) - 2 end
        elseif f == "move" then
          call[2], call[3], call[4] = draw(6) - 2, draw(8) - 2, draw(8) - 3
          if draw(3) == 1 then call[5] = list() end
        elseif f == "concat" then
          call[2] = ({ "", ", " })[draw(2)]
          if draw(2) == 1 then call[3], call[4] = draw(5), draw(8) - 1 end
        elseif draw(2) == 1 then
          call[2], call[3] = draw(6) - 2, draw(9)
        end
        call.n = #call
        calls[i] = call
        again[i] = { f = f, of = "table", n = call.n }
        for k = 1, call.n do
          again[i][k] = type(call[k]) == "table" and table.move(call[k], 1, #call[k], 1, {}) or call[k]
        end
      end
      local wanted = load(DO)(again)
      local got = results(s, calls)
      for i, call in ipairs(calls) do
        assert.equal(wanted[i], got[i], call.f .. " " .. i)
      end
    end
  end)

  it("sorts", function()
    local s <close> = sandbox [[
      local t, how = ...
      if how == "down" then table.sort(t, function(a, b) return a > b end) else table.sort(t) end
      return t]]
    local draw = random(3)
    for round = 1, 60 do
      local t, wanted = {}, {}
      for i = 1, draw(200) - 1 do
        t[i] = round % 3 == 0 and tostring(draw(50)) or draw(50)
        wanted[i] = t[i]
      end
      if round % 2 == 0 then
        table.sort(wanted, function(a, b) return a > b end)
      else
        table.sort(wanted)
      end
      assert.same(wanted, (results(s, t, round % 2 == 0 and "down" or nil)))
    end
    assert.is_nil((s:call(nil, { 1, "x", 2 })))
  end)

  it("draws the same random numbers every time", function()
    local source = "return function() local t = {} for i = 1, 5 do t[i] = math.random(1 << 40) end return t end"
    local one <close> = kigo.sandbox(source)
    local two <close> = kigo.sandbox(source)
    assert.same((results(one)), (results(two)))
  end)
end)
