-- hostile.lua - scripts that nobody should have to trust: those that are known by name, and a generator of more. Each
-- is the text
-- of a script; what is hostile about it happens while it runs.
local core = require "kigo.core"

local hostile = {}

-- ---- named: work without an end ----

---Each must end with kigo.err.LIMIT, or with an error of its own where the trick is refused.
hostile.hogs = {
  ["a loop"] = "while true do end",
  ["a loop without a body of instructions"] = "::again:: goto again",
  ["pcall in a loop"] = "while true do pcall(function() while true do end end) end",
  ["goto and pcall"] = "::again:: pcall(error) goto again",
  ["pcall of pcall"] = "local function f() pcall(pcall, f) return f() end f()",
  ["pcall of pcall in a coroutine"] =
    "coroutine.wrap(function() local function f() pcall(pcall, f) return f() end f() end)()",
  ["pcall and recursion in a coroutine"] = [[
    local function f(n) if n > 0 then return 1 + f(n - 1) end return (pcall(f, 1000)) and 1 end
    coroutine.wrap(function() while true do pcall(f, 3000) end end)()]],
  ["xpcall with a handler that loops"] = "while true do xpcall(error, function() while true do end end) end",
  ["xpcall whose handler fails"] = "local function h() error(h) end while true do xpcall(error, h) end",
  ["a coroutine"] = "coroutine.wrap(function() while true do end end)()",
  ["coroutines without an end"] = "while true do coroutine.wrap(function() for i = 1, 40 do end end)() end",
  ["coroutines that catch"] =
    "while true do coroutine.resume(coroutine.create(function() while true do pcall(error) end end)) end",
  ["a coroutine that yields for ever"] =
    "local f = coroutine.wrap(function() while true do coroutine.yield() end end) while true do f() end",
  ["yields across pcall"] = [[
    local f = coroutine.wrap(function() while true do pcall(coroutine.yield) end end) while true do f() end]],
  ["coroutine.close of what loops"] = [[
    local meta = { __close = function() while true do end end }
    while true do
      local co = coroutine.create(function() local x <close> = setmetatable({}, meta) coroutine.yield() end)
      coroutine.resume(co) coroutine.close(co)
    end]],
  ["__close"] = "while true do local x <close> = setmetatable({}, { __close = function() while true do end end }) end",
  ["nested __close"] = [[
    local function f()
      local x <close> = setmetatable({}, { __close = function() f() end })
      while true do end
    end f()]],
  ["__close in every frame"] = [[
    local meta = { __close = function() while true do end end }
    local function f() local x <close> = setmetatable({}, meta) return 1 + f() end
    pcall(f) while true do end]],
  ["__close in every frame of a coroutine"] = [[
    local meta = { __close = function() while true do end end }
    local function f(n)
      local x <close> = setmetatable({}, meta)
      if n == 0 then while true do end end
      return 1 + f(n - 1)
    end
    local co = coroutine.create(f)
    coroutine.resume(co, 15000)
    coroutine.close(co)]],
  ["pcall below many frames"] = [[
    local function f(n) if n > 0 then return 1 + f(n - 1) end while true do pcall(error) end end f(60000)]],
  ["__close after an error"] = [[
    local meta = { __close = function() while true do end end }
    while true do pcall(function() local x <close> = setmetatable({}, meta) error "x" end) end]],
  ["__index"] = "local t = setmetatable({}, { __index = function() while true do end end }) return t.x",
  ["__index chains"] = [[
    local t = {} for i = 1, 1900 do t = setmetatable({}, { __index = t }) end
    while true do local x = t.a end]],
  ["comparison of long strings"] = [[
    local a, b = ("x"):rep(250000) .. 1, ("x"):rep(250000) .. 2
    while true do local c = a < b local d = a == b end]],
  ["joining long strings"] = "local a = ('x'):rep(100000) while true do local b = a .. a end",
  ["numbers out of long strings"] = "local a = ('0'):rep(250000) while true do local b = tonumber(a) end",
  ["for loops over long strings"] = [[
    local a = ('1'):rep(250000) while true do pcall(function() for i = 1, a do end end) end]],
  ["many arguments"] = "local function f(...) return f(1, ...) end f()",
  ["many arguments, kept"] = [[
    local t = {} for i = 1, 4000 do t[i] = i end local u = table.unpack while true do u(t) end]],
  ["next over what is gone"] = [[
    local t = {} for i = 1, 100000 do t[i .. ""] = i end for k in pairs(t) do t[k] = nil end
    while true do next(t) end]],
  ["memory at its limit"] = [[
    local t = {} pcall(function() while true do t[#t + 1] = { {} } end end)
    while true do pcall(function() local s = ("x"):rep(200000) .. #t end) end]],
  ["strings that are too long"] = "local s = ('x'):rep(200000) while true do pcall(function() return s .. s end) end",
  ["string.rep of nothing"] = "while true do pcall(string.rep, '', math.maxinteger) end",
  ["find with 18 times .-"] = "return ('a'):rep(60):find((('.-'):rep(18)) .. 'b')",
  ["find in a long line"] = "return ('a'):rep(200000):find('.-.-.-b')",
  ["gsub(.-b)"] = "return ('a'):rep(200000):gsub('.-b', '')",
  ["gmatch"] = "for x in ('a'):rep(200000):gmatch('.-.-b') do end",
  ["sets in patterns"] = "return ('a'):rep(200000):find('[' .. ('b'):rep(100000) .. ']')",
  ["balanced brackets"] = "return ('('):rep(200000):find('%b()')",
  ["frontiers"] = "return ('a'):rep(200000):find(('%f[a]a*'):rep(20) .. 'b')",
  ["captures again"] = "return ('a'):rep(20000):find('(.-)%1b')",
  ["plain find"] = "while true do (('a'):rep(100000)):find(('a'):rep(50000) .. 'b', 1, true) end",
  ["gsub with a function"] = "while true do ('a'):rep(100000):gsub('.', function() return 'bb' end) end",
  ["table.move over nothing"] = "table.move({}, 1, math.maxinteger - 1, 1)",
  ["table.concat of nothing"] = [[
    table.concat(setmetatable({}, { __index = function() return '' end }), '', 1, 1 << 50)]],
  ["table.insert far away"] = [[
    local t = {} for i = 0, 61 do t[1 << i] = 1 end for i = 1, 9 do table.insert(t, 1, 0) end while true do end]],
  ["table.remove far away"] = [[
    local t = {} for i = 0, 61 do t[1 << i] = 1 end for i = 1, 9 do table.remove(t, 1) end while true do end]],
  ["table.sort"] = [[
    local t = {} for i = 1, 100000 do t[i] = i end while true do table.sort(t, function() return true end) end]],
  ["table.sort without order"] = [[
    local t = {} for i = 1, 50000 do t[i] = i end while true do pcall(table.sort, t, error) table.sort(t) end]],
  ["formats"] = [[
    local f = ('%99.99f'):rep(580) local t = {} for i = 1, 580 do t[i] = 1e308 end while true do
    f:format(table.unpack(t)) end]],
  ["%q"] = "local s = ('\\n'):rep(100000) while true do ('%q'):format(s) end",
  ["__tostring in format"] = [[
    return ('%s'):format(setmetatable({}, { __tostring = function() while true do end end }))]],
  ["utf8"] = "local s = ('\u{10ffff}'):rep(60000) while true do utf8.len(s) utf8.offset(s, -1) end",
  ["utf8.codes of continuation bytes"] = [[
    local s = 'a' .. ('\x80'):rep(250000) while true do pcall(function() for _ in utf8.codes(s) do end end) end]],
  ["load in a loop"] = "local s = 'x = 1 ' local long = s:rep(30000) while true do load(long) end",
  ["load of a text that takes n squared steps"] =
    "while true do load('return ' .. ('a or '):rep(50000) .. 'a') load('return ' .. ('a and '):rep(40000) .. 'a') end",
  ["load of many branches"] = "while true do load('if a then ' .. ('elseif a then '):rep(18000) .. 'end') end",
  ["load of what does not compile"] = "local s = ('('):rep(250000) while true do load(s) end",
  ["garbage"] = "while true do local t = { {}, {}, function() return t end } end",
  ["tensors"] = "local t = kigo.zeros(500000) while true do t:softmax() end",
  ["tensors, no results"] = "local t = kigo.zeros(500000) while true do t:argmax() t:add_(t) end",
  ["tensors that sort"] = "local t = kigo.zeros(100000) while true do t:topk(100000) end",
  ["__lt"] = "local t = setmetatable({}, { __lt = function(a, b) return a < b end }) return t < t",
  ["__eq in a loop"] = [[
    local m = { __eq = function() while true do end end } return setmetatable({}, m) == setmetatable({}, m)]],
  ["__concat"] = "local t = setmetatable({}, { __concat = function() while true do end end }) return t .. t",
  ["__pairs"] = "for k in pairs(setmetatable({}, { __pairs = function() while true do end end })) do end",
  ["__call"] = "local t = setmetatable({}, { __call = function(f) return f() end }) t()",
  ["globals with a metatable"] = "setmetatable(_G, { __index = function() while true do end end }) return x",
}

-- ---- named: too much memory ----

hostile.bombs = {
  ["a string that doubles"] = "local s = 'x' while true do s = s .. s end",
  ["strings that are kept"] = "local t = {} for i = 1, math.huge do t[i] = ('x'):rep(1000) .. i end",
  ["a table that grows"] = "local t = {} for i = 1, math.huge do t[i] = i end",
  ["tables in tables"] = "local t = {} while true do t = { t } end",
  ["closures"] = "local t = {} while true do local u = t t = function() return u end end",
  ["coroutines"] = "local t = {} while true do t[#t + 1] = coroutine.create(function() end) end",
  ["table.concat"] = [[
    local t = {} for i = 1, 100000 do t[i] = 'xxxxxxxxxxxxxxxxxxxx' end while true do table.concat(t) end]],
  ["string.rep"] = "local t = {} while true do t[#t + 1] = ('x'):rep(262000 - #t) end",
  ["gsub"] = "return ('x'):rep(200000):gsub('.', ('y'):rep(200000))",
  ["tensors"] = "local t = {} while true do t[#t + 1] = kigo.zeros(10000) end",
  ["small tensors"] = "local t = {} while true do t[#t + 1] = kigo.zeros(1) end",
  ["copies of tensors"] = "local t = { kigo.zeros(10000) } while true do t[#t + 1] = t[1]:clone() end",
  ["one large tensor"] = "return kigo.zeros((1 << 31) - 1)",
  ["load"] = "local t = {} while true do t[#t + 1] = load(('x = { 1, 2, 3 } '):rep(1000)) end",
}

-- ---- named: deep ----

---Each must end with an error (a stack is full) or with its limits.
hostile.deep = {
  ["recursion"] = "local function f() return 1 + f() end f()",
  ["recursion through pcall"] = "local function f() return pcall(f) end return select('#', f())",
  ["recursion through metamethods"] = [[
    local t = setmetatable({}, {}) getmetatable(t).__index = function(x, k) return x[k] .. 1 end return t.x]],
  ["recursion through gsub"] = "local function f() return (('x'):gsub('.', f)) end f()",
  ["recursion through sort"] = "local function f() table.sort({ 1, 2, 3 }, f) return true end f()",
  ["recursion through coroutines"] = "local function f() return coroutine.wrap(f)() end f()",
  ["recursion through tostring"] = [[
    local t = setmetatable({}, {}) getmetatable(t).__tostring = function(x) return tostring(x) end return
    tostring(t)]],
  ["recursion through load"] = "local f f = function() return load('return ...')(f()) .. 'x' end f()",
  ["errors in error handlers"] = "local function h() return h() .. error(h) end xpcall(error, h) error 'x'",
  ["nested brackets"] = "assert(load('return ' .. ('('):rep(100000) .. ('1') .. (')'):rep(100000)))",
  ["nested tables"] = "assert(load('return ' .. ('{'):rep(100000) .. ('}'):rep(100000)))",
  ["nested functions"] = "assert(load(('return function() '):rep(10000) .. ('end '):rep(10000)))",
  ["nested blocks"] = "assert(load(('do '):rep(50000) .. ('end '):rep(50000)))",
  ["many assignments"] = "assert(load(('a.'):rep(50000) .. 'b = ' .. ('-'):rep(50000) .. '1'))",
  ["nested patterns"] = [[
    return ('x'):rep(300):find(('(x'):rep(31) .. (')'):rep(31) .. ('x?'):rep(250) .. ('x'):rep(250))]],
  ["a table in itself as result"] = "local t = {} t.t = t return function() return t end",
}

-- ---- generated ----

-- A generator of its own: the same scripts everywhere, whatever else draws numbers.
local function random(seed)
  local n = 0
  return function(limit)
    n = n + 1
    return math.floor(core.uniform(seed, n, 0) * limit) + 1
  end
end

local function sorted(set)
  local names = {}
  for name in pairs(set) do names[#names + 1] = name end
  table.sort(names)
  local texts = {}
  for i, name in ipairs(names) do texts[i] = set[name] end
  return texts
end

-- What stands around a body: nothing of it may let the body go on.
local WRAPPERS = {
  "do BODY end",
  "pcall(function() BODY end) BODY",
  "while true do pcall(function() BODY end) end",
  "xpcall(function() BODY end, function(e) BODY end)",
  "coroutine.wrap(function() BODY end)()",
  [[
    local co = coroutine.create(function() coroutine.yield() BODY end) coroutine.resume(co) coroutine.resume(co)
    coroutine.close(co)]],
  [[
    local x <close> = setmetatable({}, { __close = function() BODY end }) error(setmetatable({}, { __tostring =
    function() BODY end }))]],
  "assert(load([==[ BODY ]==]))()",
  "assert(load([==[ BODY ]==], 'x', 't', setmetatable({}, { __index = _G })))()",
  "setmetatable({}, { __index = function() BODY end }).x()",
  "local _ = ('x'):rep(3):gsub('.', function() BODY end)",
  "table.sort({ 3, 2, 1 }, function() BODY end)",
  "for _ in function() BODY end do end",
  "local f f = function(n) if n == 0 then BODY else return f(n - 1) end end f(100)",
  "string.rep = nil string.format = error BODY",
  "_G.pcall = function() end _ENV.error = nil BODY",
  "for k in pairs(_G) do if k ~= '_G' then pcall(rawset, _G, k, _G[k]) end end BODY",
  "local t = setmetatable({}, { __gc = function() BODY end })",
  "local m = {} local t = setmetatable({}, m) m.__gc = function() BODY end m.__mode = 'k' BODY",
  "return function() BODY end",
  "return setmetatable({}, { __len = function() BODY end, __call = function() BODY end })",
}

-- Tries to get at what is not there. Those that succeed say so.
hostile.ESCAPED = "ESCAPED"
local PROBES = {
  [[
    if io or os or package or require or debug or dofile or loadfile or collectgarbage or print then error
    'ESCAPED' end]],
  "if string.dump or string.pack then error 'ESCAPED' end",
  "local f = load(('\\27Lua') .. ('\\0'):rep(100), 'x', 'b') if f then error 'ESCAPED' end",
  "if getmetatable('') then error 'ESCAPED' end pcall(setmetatable, '', { __index = error })",
  "if pcall(function() getmetatable('').__index.upper = error end) then error 'ESCAPED' end",
  [[
    local t = kigo.zeros(4) if getmetatable(t) then error 'ESCAPED' end pcall(function() t[4] = 1 end)
    pcall(function() t[-1] = 1 end)]],
  [[
    local t = kigo.zeros(4) t:close() if pcall(t.sum, t) then error 'ESCAPED' end pcall(t.sum, {}) pcall(t.sum,
    'x') pcall(t.close)]],
  [[
    pcall(kigo.zeros, -1) pcall(kigo.zeros, 1 << 62) pcall(kigo.tensor, { 1, {}, 3 }) pcall(kigo.tensor,
    setmetatable({}, { __len = error }))]],
  [[
    local t = kigo.zeros(3) pcall(t.fill_, t, 1, { -1, 99, 2 ^ 53 }) pcall(t.topk, t, -1) pcall(t.topk, t, 1e9)
    pcall(t.add_, t, kigo.zeros(4))]],
  "pcall(string.rep) pcall(string.format, '%d', 'x') pcall(('x').find, 'x', '[') pcall(utf8.char, -1) pcall(select, 0)",
  [[
    pcall(rawset, _G, nil, 1) pcall(rawset, {}, 0 / 0, 1) pcall(next, {}, 'x') pcall(setmetatable, _G, {
    __metatable = 1 })]],
  "pcall(coroutine.close, coroutine.running()) pcall(coroutine.resume, coroutine.running()) pcall(coroutine.yield)",
}

---A hostile script of this number: the same for everybody.
---@param seed integer
---@return string
function hostile.generate(seed)
  local draw = random(seed)
  local pools = { sorted(hostile.hogs), sorted(hostile.bombs), sorted(hostile.deep), PROBES }
  local function body()
    local pool = pools[draw(#pools)]
    return "do " .. pool[draw(#pool)] .. " end"
  end
  local text = body()
  for _ = 1, draw(4) - 1 do
    local wrapper = WRAPPERS[draw(#WRAPPERS)]
    if not (wrapper:find("[==[", 1, true) and text:find("]==]", 1, true)) then
      text = "do " .. wrapper:gsub("BODY", function() return draw(3) == 1 and body() or text end) .. " end"
    end
  end
  return PROBES[draw(#PROBES)] .. "\n" .. text
end

return hostile
