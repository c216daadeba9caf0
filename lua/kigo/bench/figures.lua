-- figures.lua - what all measurements share.
local core = require "kigo.core"

local figures = {}

---@param values number[]  are sorted
---@return number
function figures.median(values)
  table.sort(values)
  local n = #values
  return n % 2 == 1 and values[n // 2 + 1] or (values[n // 2] + values[n // 2 + 1]) / 2
end

---Token ids without meaning, the same ones every time.
---@param n integer
---@param vocab_size integer
---@param seed? integer
---@return integer[]
function figures.some_ids(n, vocab_size, seed)
  local ids = {}
  for i = 1, n do ids[i] = math.floor(core.uniform(seed or 1, i, 0) * vocab_size) end
  return ids
end

---A 64-bit hash of a tensor's bytes (FNV-1a over words): two runs that differ in one bit differ here.
---@param bytes string
---@return string
function figures.hash(bytes)
  local h, prime = 0xcbf29ce484222325, 0x100000001b3
  for at = 1, #bytes - 7, 8 do h = (h ~ string.unpack("<i8", bytes, at)) * prime end
  for at = #bytes - #bytes % 8 + 1, #bytes do h = (h ~ bytes:byte(at)) * prime end
  return ("%016x"):format(h)
end

---The values themselves; a failure is thrown as { message, code } for kigo.bench.
function figures.try(value, message, code)
  if value == nil then error({ message = message, code = code }, 0) end
  return value, message
end

---Seconds that a call takes, and its result; a failure (nil, message, code) is thrown.
function figures.timed(f, ...)
  local t0 = core.now()
  local result, message, code = f(...)
  if result == nil and message then figures.try(result, message, code) end
  return core.now() - t0, result
end

return figures
