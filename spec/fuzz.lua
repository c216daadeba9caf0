-- fuzz.lua - inputs that nobody wrote, and the loop that tries them. A case is a function of the seed and its number:
-- the same two give the same bytes on every machine. spec/fuzz_targets.lua says what is tried with them.
--
--   KIGO_FUZZ_SECONDS=40   processor time for each target; 2 unless given
--   KIGO_FUZZ_SEED=N       other cases than those of seed 1; "clock": others each time. It is written before anything
--                          can crash, and failures name it
--   KIGO_FUZZ_CASE=N       this case alone
--   KIGO_FUZZ_KEEP=PATH    write every input there before it is tried: after a crash it holds the culprit
local core = require "kigo.core"

local fuzz = {}

---The bounds of one case and of what a refusal may say.
fuzz.max_seconds, fuzz.max_message = 4, 1280

-- ---- dice ----

---A stream of random numbers (splitmix64).
---@class spec.Dice
---@field state integer
local Dice = {}
Dice.__index = Dice

---@param seed integer
---@param case integer
---@return spec.Dice
function fuzz.dice(seed, case)
  local dice = setmetatable({ state = seed * 0x2545F4914F6CDD1D + case }, Dice)
  dice.state = dice:bits()
  return dice
end

---@return integer 64 bits
function Dice:bits()
  self.state = self.state + 0x9E3779B97F4A7C15
  local x = self.state
  x = (x ~ x >> 30) * 0xBF58476D1CE4E5B9
  x = (x ~ x >> 27) * 0x94D049BB133111EB
  return x ~ x >> 31
end

---@param n integer
---@return integer  in 1 to n
function Dice:roll(n) return (self:bits() >> 1) % n + 1 end

---@generic T
---@param list T[]
---@return T
function Dice:pick(list) return list[self:roll(#list)] end

---True once in n times.
---@param n integer
---@return boolean
function Dice:once_in(n) return self:roll(n) == 1 end

local EXTREMES = { 0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 257, 32767, 32768, 65535, 65536,
  1 << 24, (1 << 24) + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, (1 << 53) + 1, 1 << 60, 1 << 61,
  1 << 62, math.maxinteger - 31, math.maxinteger - 1, math.maxinteger, math.mininteger, -2, -32, -128, -129,
  -0x80000000 }

---An integer where arithmetic likes to go wrong.
---@return integer
function Dice:extreme()
  return self:once_in(4) and self:bits() >> self:roll(64) - 1 or self:pick(EXTREMES)
end

local FLOATS = { 0.0, -0.0, 1.0, -1.0, 0.5, 1e-7, 1e-38, 1e-45, 1e38, 3.5e38, 1e308, -1e308, 2.0 ^ 53, 2.0 ^ 63,
  math.huge, -math.huge, 0 / 0 }

---@return number
function Dice:float() return self:once_in(3) and self:roll(2000) / 1000 - 1 or self:pick(FLOATS) end

---@param max integer
---@return string
function Dice:bytes(max)
  local list = {}
  for i = 1, self:roll(max + 1) - 1 do list[i] = string.char(self:roll(256) - 1) end
  return table.concat(list)
end

local WORDS = { "", " ", "  ", "\n", "\r\n", "\t", "\0", "a", "A", "Z", "9", "123", "1234", "'s", "'LL", "'ve", "don't",
  "hello", " world", "the", "!", "?!", "...", "_", "\u{a0}", "\u{3000}", "\u{2581}", "\u{e9}", "e\u{301}", "\u{df}",
  "\u{4e2d}", "\u{d55c}", "\u{663}", "\u{1f600}", "\u{200d}", "\u{fe0f}", "\u{fffd}", "\u{10ffff}", "\u{7ff}",
  "\u{800}", "\xC3", "\xE4\xB8", "\xF0\x9F\x98", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF", "\x80",
  "<|im_start|>", "<|im_end|>", "<0x41>", "</s>", "<unk>", "\u{120}", "\u{10a}" }

---Text as people and attackers write it.
---@param max integer  words
---@return string
function Dice:text(max)
  local list = {}
  for i = 1, self:roll(max + 1) - 1 do
    list[i] = self:once_in(8) and self:bytes(6) or self:once_in(40) and self:pick(WORDS):rep(self:roll(200))
      or self:pick(WORDS)
  end
  return table.concat(list)
end

-- ---- mutations of bytes ----

-- Where to cut: `from` to `to`, both included, maybe nothing.
local function span(dice, bytes, max)
  local from = dice:roll(#bytes + 1)
  return from, math.min(#bytes, from + dice:roll(max) - 2)
end

local function replaced(bytes, from, to, with) return bytes:sub(1, from - 1) .. with .. bytes:sub(to + 1) end

-- An aligned integer of 1 to 8 bytes: its place, its size and its value.
local function integer_at(dice, bytes)
  local size = dice:pick { 1, 2, 4, 4, 8, 8 }
  if #bytes < size then return nil end
  local at = dice:roll(#bytes // size) * size - size + 1
  return at, size, (string.unpack("<i" .. size, bytes, at))
end

local mutations = {}

function mutations.flip(dice, bytes)
  local at = dice:roll(#bytes)
  return replaced(bytes, at, at, string.char(bytes:byte(at) ~ 1 << dice:roll(8) - 1))
end

function mutations.byte(dice, bytes)
  local at = dice:roll(#bytes)
  return replaced(bytes, at, at, string.char(dice:roll(256) - 1))
end

function mutations.extreme(dice, bytes)
  local at, size = integer_at(dice, bytes)
  if not at then return bytes end
  return replaced(bytes, at, at + size - 1, string.pack("<j", dice:extreme()):sub(1, size))
end

function mutations.nudge(dice, bytes)
  local at, size, value = integer_at(dice, bytes)
  if not at then return bytes end
  return replaced(bytes, at, at + size - 1, string.pack("<j", value + dice:roll(9) - 5):sub(1, size))
end

function mutations.truncate(dice, bytes) return bytes:sub(1, dice:roll(#bytes) - 1) end

function mutations.remove(dice, bytes)
  local from, to = span(dice, bytes, 64)
  return replaced(bytes, from, to, "")
end

function mutations.duplicate(dice, bytes)
  local from, to = span(dice, bytes, 64)
  return replaced(bytes, from, to, bytes:sub(from, to):rep(dice:once_in(8) and 50 or 2))
end

function mutations.move(dice, bytes)
  local from, to = span(dice, bytes, 64)
  local part, rest = bytes:sub(from, to), replaced(bytes, from, to, "")
  local at = dice:roll(#rest + 1)
  return replaced(rest, at, at - 1, part)
end

function mutations.insert(dice, bytes)
  local at = dice:roll(#bytes + 1)
  return replaced(bytes, at, at - 1, dice:bytes(8))
end

function mutations.word(dice, bytes, _, words)
  local from, to = span(dice, bytes, 16)
  return replaced(bytes, from, dice:once_in(2) and from - 1 or to, dice:pick(words or WORDS))
end

function mutations.splice(dice, bytes, seeds)
  local other = dice:pick(seeds)
  return bytes:sub(1, dice:roll(#bytes + 1) - 1) .. other:sub(dice:roll(#other + 1))
end

local KINDS = {}
for name in pairs(mutations) do KINDS[#KINDS + 1] = name end
table.sort(KINDS)

---One of the seeds after one to eight changes.
---@param dice spec.Dice
---@param seeds string[]
---@param words? string[]  what the format is made of
---@return string
function fuzz.mutate(dice, seeds, words)
  local bytes = dice:pick(seeds)
  for _ = 1, 1 << dice:roll(4) - 1 do
    if bytes == "" then bytes = dice:bytes(8) .. "x" end
    local kind = words and dice:once_in(3) and "word" or dice:pick(KINDS)
    bytes = mutations[kind](dice, bytes, seeds, words)
  end
  return bytes
end

-- ---- Lua data as text ----

---Source of a value made of tables, strings, numbers and booleans.
---@param value any
---@return string
function fuzz.source(value)
  if type(value) ~= "table" then
    return (("%q"):format(value):gsub("\\\n", "\\n"):gsub("\r", "\\r"))
  end
  local parts, keys = {}, {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) == type(b) and type(a) ~= "boolean" then return a < b end
    return tostring(a) < tostring(b)
  end)
  for i, key in ipairs(keys) do parts[i] = ("[%s] = %s"):format(fuzz.source(key), fuzz.source(value[key])) end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

-- ---- what every target demands ----

local codes = {}
for _, code in pairs(core.err) do codes[code] = true end

---A refusal has a code of kigo.err and one short line of text.
---@param message any
---@param code any
function fuzz.check_refusal(message, code)
  if not codes[code] then error(("code %s of %q"):format(tostring(code), tostring(message)), 0) end
  if type(message) ~= "string" then error("message is a " .. type(message), 0) end
  if #message == 0 or #message >= fuzz.max_message then
    error(("message of %d bytes: %q"):format(#message, message:sub(1, 200)), 0)
  end
  if message:find "%c" then error(("control bytes in the message %q"):format(message), 0) end
end

---The value, or false after a refusal that is as it should be.
---@generic T
---@param value T?
---@return T|false
function fuzz.accepted(value, message, code)
  if value then return value end
  fuzz.check_refusal(message, code)
  return false
end

-- ---- the loop ----

---@class spec.FuzzTarget
---@field make fun(dice: spec.Dice, seeds: string[]): string   an input
---@field try fun(input: string): boolean?                     raises for a finding; true: it was taken
---@field seeds? string[]                                      beside the files of the corpus
---@field finish? fun()                                        closes what its cases shared

local seed = os.getenv "KIGO_FUZZ_SEED" or "1"
fuzz.seed = seed == "clock" and os.time() or
  assert(math.tointeger(tonumber(seed)), "KIGO_FUZZ_SEED: a number or clock expected")
fuzz.seconds = tonumber(os.getenv "KIGO_FUZZ_SECONDS" or "") or 2

---The files of a target's corpus, in order of their names.
---@param target string
---@return { name: string, bytes: string }[]
function fuzz.corpus(target)
  local folder = "spec/fixtures/fuzz/" .. target
  local pipe, list = assert(io.popen("LC_ALL=C ls " .. folder)), {}
  for name in pipe:lines() do
    local file <close> = assert(io.open(folder .. "/" .. name, "rb"))
    list[#list + 1] = { name = name, bytes = assert(file:read "a") }
  end
  pipe:close()
  return list
end

---Try one input.
---@param target spec.FuzzTarget
---@param input string
---@return boolean taken
---@return number seconds  of processor time
function fuzz.try(target, input)
  local keep = os.getenv "KIGO_FUZZ_KEEP"
  if keep then
    local file <close> = assert(io.open(keep, "wb"))
    assert(file:write(input))
  end
  local t0 = os.clock()
  local taken = target.try(input) or false
  local seconds = os.clock() - t0
  if seconds > fuzz.max_seconds then error(("it took %.1f s"):format(seconds), 0) end
  return taken, seconds
end

-- A finding as a failure that can be repeated.
local function report(name, case, input, message)
  error(("%s\nrepeat: KIGO_FUZZ_SEED=%d KIGO_FUZZ_CASE=%d, target %s\ninput of %d bytes: %q"):format(tostring(message),
    fuzz.seed, case, name, #input, input:sub(1, 600)), 0)
end

---Cases until the time is over.
---@param name string
---@param target spec.FuzzTarget
function fuzz.run(name, target)
  local seeds = table.move(target.seeds or {}, 1, #(target.seeds or {}), 1, {})
  for _, file in ipairs(fuzz.corpus(name)) do seeds[#seeds + 1] = file.bytes end
  local only = math.tointeger(tonumber(os.getenv "KIGO_FUZZ_CASE" or ""))
  local case, taken, slowest, stop = only or 1, 0, 0, os.clock() + fuzz.seconds
  repeat
    local input = target.make(fuzz.dice(fuzz.seed, case), seeds)
    local good, was_taken, seconds = xpcall(fuzz.try, function(message)
      return type(message) == "string" and debug.traceback(message, 2) or message
    end, target, input)
    if not good then report(name, case, input, was_taken) end
    taken, slowest = taken + (was_taken and 1 or 0), math.max(slowest, seconds)
    case = case + 1
  until only or os.clock() >= stop
  if os.getenv "KIGO_FUZZ_SECONDS" then
    io.stderr:write(("\nfuzz %s: %d cases, %d taken, the slowest %.0f ms, seed %d\n"):format(name, case - 1, taken,
      slowest * 1000, fuzz.seed))
  end
end

return fuzz
