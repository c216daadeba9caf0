-- support.lua - what specs share: where the reference data stands, and reading it.
local cjson = require "cjson"

local support = {}

local function exists(path)
  local file = io.open(path, "rb")
  if file then file:close() end
  return file ~= nil
end

---The reference data beside the project (inside, in a bundle), or nil: what needs it is then pending, never passed.
support.shared = exists("../shared/fixtures/README.md") and "../shared"
  or exists("shared/fixtures/README.md") and "shared" or nil

-- busted gives `pending` to spec files as a global, not to modules: find it in the spec that called us.
local function pend(reason)
  local level, info = 2, debug.getinfo(2, "f")
  while info do
    for i = 1, debug.getinfo(info.func, "u").nups do
      local name, value = debug.getupvalue(info.func, i)
      if name == "_ENV" and value.pending then value.pending(reason) end -- does not return
    end
    level = level + 1
    info = debug.getinfo(level, "f")
  end
  error(reason, 0)
end

---The model that comes with the project.
support.haiku_model = "examples/haiku-model/kigo-haiku-4m-q8_0.gguf"

---The program under test.
support.program = os.getenv "KIGO" or "./build/kigo"

---Path of reference data below shared/fixtures; marks the running spec as pending where there is none.
---@param name string
---@return string
function support.fixture(name)
  if not support.shared then pend("../shared/fixtures is not here") end
  return (support.shared or "../shared") .. "/fixtures/" .. name
end

---@param path string
---@return string
function support.read(path)
  local file = assert(io.open(path, "rb"))
  local bytes = assert(file:read("a"))
  file:close()
  return bytes
end

---@param path string
---@return any
function support.read_json(path)
  return cjson.decode(support.read(path))
end

local RUN = 128 -- numbers in one call of string.unpack
local RUN_FORMAT = "<" .. ("f"):rep(RUN)

---Little-endian float32 numbers.
---@param bytes string
---@return number[]
function support.floats(bytes)
  local values, n = {}, #bytes // 4
  for at = 0, n - RUN, RUN do table.move({ string.unpack(RUN_FORMAT, bytes, at * 4 + 1) }, 1, RUN, at + 1, values) end
  for i = #values + 1, n do values[i] = string.unpack("<f", bytes, i * 4 - 3) end
  return values
end

---@param values number[]
---@return string bytes
function support.pack_floats(values)
  local parts, n = {}, #values
  for at = 1, n - RUN + 1, RUN do
    parts[#parts + 1] = string.pack(RUN_FORMAT, table.unpack(values, at, at + RUN - 1))
  end
  for i = n - n % RUN + 1, n do parts[#parts + 1] = string.pack("<f", values[i]) end
  return table.concat(parts)
end

---Little-endian float32 numbers of a file.
---@param path string
---@return number[]
function support.read_f32(path) return support.floats(support.read(path)) end

---Write bytes to a fresh temporary file and return its path.
---@param bytes string
---@return string
function support.temporary(bytes)
  local path = os.tmpname()
  local file = assert(io.open(path, "wb"))
  assert(file:write(bytes))
  file:close()
  return path
end

return support
