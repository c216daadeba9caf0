-- Receipts as text: JSON out, and JSON from strangers in, where every field is checked and none believed.
local check = require "kigo.check"
local core = require "kigo.core"
local json = require "kigo.json"
local record = require "kigo.receipt.record"

local text = { FORMAT = record.FORMAT }

local MAX_BYTES, MAX_DEPTH = 64 << 20, 16 -- of a receipt's text

local function body(r)
  local copy = {}
  for name, value in pairs(r) do copy[name] = value end
  copy.digest = nil
  return copy
end

---SHA-256 of the receipt's text without its digest: kigo.json's, keys in order.
---@param r kigo.Receipt
---@return string
function text.digest(r) return core.sha256(json.encode(body(r))) end

---@param r kigo.Receipt
---@return string text  JSON with its digest
function text.encode(r)
  local copy = body(r)
  copy.digest = text.digest(r)
  return json.encode(copy) .. "\n"
end

---@param path string
---@param r kigo.Receipt
---@return true?
---@return string? message
---@return integer? code
function text.write(path, r)
  local file, message = io.open(path, "wb")
  if not file then return nil, message, core.err.IO end
  local written, why = file:write(text.encode(r))
  local closed, why_not = file:close()
  if not (written and closed) then return nil, path .. ": " .. (why or why_not), core.err.IO end
  return true
end

-- ---- reading ----

-- A field that is not as it should be is thrown as { field = ..., what = ... } and caught in receipt.decode.
local function refuse(field, what, ...) error({ field = field, what = what:format(...) }, 0) end

local function of_type(value, wanted, field)
  if type(value) ~= wanted then
    refuse(field, "%s expected, got %s", wanted, value == nil and "nothing" or type(value))
  end
  return value
end

local function integer(value, field, min, max)
  local n = math.tointeger(of_type(value, "number", field))
  if not n or n < min or n > max then refuse(field, "%s is not an integer from %d to %d", value, min, max) end
  return n
end

local function float32(value, field)
  local n = of_type(value, "number", field) + 0.0
  if n ~= n or math.abs(n) > 3.4028234663852886e38 or string.unpack("<f", string.pack("<f", n)) ~= n then
    refuse(field, "%s is not a finite float32 number", value)
  end
  return n
end

local function str(value, field, pattern)
  of_type(value, "string", field)
  if pattern and not value:find(pattern) then refuse(field, "%s is malformed", check.quoted(value)) end
  return value
end

local function hash(value, field) return str(value, field, "^" .. ("%x"):rep(64) .. "$") end

local function list(value, field, max, item)
  of_type(value, "table", field)
  local n = #value
  if n > max then refuse(field, "%d items are more than %d", n, max) end
  for key in pairs(value) do
    if math.type(key) ~= "integer" or key < 1 or key > n then refuse(field, "list expected, got an object") end
  end
  local out = json.array {}
  for i = 1, n do out[i] = item(value[i], ("%s[%d]"):format(field, i)) end
  return out
end

---An object with exactly these fields: name -> function(value, field) that returns the value to keep.
local function object(value, field, fields)
  of_type(value, "table", field)
  local prefix, out = field == "receipt" and "" or field .. ".", {}
  for name in pairs(value) do
    if not fields[name] then refuse(prefix .. check.name(tostring(name)), "unknown field") end
  end
  for name, read in pairs(fields) do out[name] = read(value[name], prefix .. name) end
  return out
end

local MAX_ADAPTERS = 8 -- of a sequence
local MAX_ID, MAX_IDS = 2 ^ 31 - 1 | 0, 1 << 20

local function id(value, field) return integer(value, field, 0, MAX_ID) end
local function ids(value, field) return list(value, field, MAX_IDS, id) end
local function float32s(value, field) return list(value, field, MAX_IDS, float32) end

local function seed(value, field)
  str(value, field, "^%-?%d+$")
  if ("%d"):format(math.tointeger(tonumber(value)) or 0) ~= value then
    refuse(field, "%s is not a 64-bit integer", check.quoted(value))
  end
  return value
end

local function optional(read)
  return function(value, field) return value ~= nil and read(value, field) or nil end
end

local function back(value, field) return integer(value, field, -1, MAX_ID) end
local function phrase(value, field) return object(value, field, { ids = ids, value = float32 }) end
local function phrases(value, field) return list(value, field, MAX_IDS, phrase) end
local function id_lists(value, field) return list(value, field, MAX_IDS, ids) end
local function strings(value, field) return list(value, field, 128, str) end

-- What the fields of the kinds hold; the engine checks the ranges when it makes the chain.
local STAGES = {
  greedy = {}, temp = { value = float32 }, top_k = { k = id }, top_p = { value = float32 },
  min_p = { value = float32 }, typical = { value = float32 },
  penalties = { last = back, ["repeat"] = float32, frequency = float32, presence = float32 },
  bias = { ids = ids, values = float32s, bans = ids, phrases = optional(phrases), banned_phrases = optional(id_lists) },
  top_n_sigma = { value = float32 }, xtc = { probability = float32, threshold = float32 },
  dynatemp = { low = float32, high = float32, exponent = float32 }, mirostat = { tau = float32, eta = float32 },
  dry = { multiplier = float32, base = float32, allowed = id, last = back, breakers = optional(strings) },
}

local function stage(value, field)
  of_type(value, "table", field)
  local fields = STAGES[str(value.kind, field .. ".kind")]
  if not fields then refuse(field .. ".kind", "%s is not a kind of stage", check.quoted(value.kind)) end
  local all = { kind = str }
  for name, read in pairs(fields) do all[name] = read end
  local out = object(value, field, all)
  if out.ids and #out.ids ~= #out.values then refuse(field .. ".values", "%d for %d ids", #out.values, #out.ids) end
  return out
end

local function sampler(value, field)
  if value == "script" then return value end
  return list(value, field, 64, stage)
end

local function step(value, field)
  local out = object(value, field, { ids = ids, logits = float32s })
  local n = #out.ids
  if n < 1 or n > record.TOP then refuse(field .. ".ids", "%d are not 1 to %d", n, record.TOP) end
  if #out.logits ~= n then refuse(field .. ".logits", "%d for %d ids", #out.logits, n) end
  for i = 2, n do
    local a, b = out.logits[i - 1], out.logits[i]
    if a < b or (a == b and out.ids[i - 1] >= out.ids[i]) then refuse(field, "not in order: best first") end
  end
  return out
end

local function file(value, field) return object(value, field, { name = str, sha256 = hash }) end

local function adapter(value, field) return object(value, field, { name = str, sha256 = hash, scale = float32 }) end

local FIELDS = {
  digest = hash, time = str, seed = seed, prompt = ids, sampled = ids, reason = str, text = str, sampler = sampler,
  format = function(value, field)
    if str(value, field) ~= record.FORMAT then refuse(field, "%s is not %q", check.quoted(value), record.FORMAT) end
    return value
  end,
  versions = function(value, field) return object(value, field, { kigo = str, lua = str }) end,
  device = function(value, field) return object(value, field, { name = str, variant = str, kv = str }) end,
  model = function(value, field)
    return object(value, field, { files = function(files, name) return list(files, name, 1024, file) end })
  end,
  adapters = optional(function(value, field) return list(value, field, MAX_ADAPTERS, adapter) end),
  steps = function(value, field) return list(value, field, MAX_IDS, step) end,
  haiku = optional(function(value, field)
    return object(value, field, { topic = str, word = str, nonce = str,
      minute = function(minute, name) return integer(minute, name, 0, 59) end })
  end),
}

local function check_whole(r)
  if #r.prompt == 0 then refuse("prompt", "no ids") end
  if #r.sampled == 0 then refuse("sampled", "no ids") end
  if #r.steps ~= #r.sampled then refuse("steps", "%d for %d sampled ids", #r.steps, #r.sampled) end
  return r
end

---A receipt from its text; every field is checked, none is believed.
---@param encoded string
---@return kigo.Receipt?
---@return string? message   names the field
---@return integer? code     kigo.err.FORMAT
function text.decode(encoded)
  if #encoded > MAX_BYTES then
    return nil, ("receipt: %d bytes are more than %d"):format(#encoded, MAX_BYTES), core.err.FORMAT
  end
  local cjson = require "cjson".new() -- here alone: who reads no receipts needs no package
  cjson.decode_max_depth(MAX_DEPTH)
  cjson.decode_invalid_numbers(false)
  local parsed, value = pcall(cjson.decode, encoded)
  if not parsed then return nil, "receipt: " .. tostring(value), core.err.FORMAT end
  local done, r = pcall(function() return check_whole(object(value, "receipt", FIELDS)) end)
  if done then return r end
  if type(r) ~= "table" then error(r, 0) end
  return nil, ("receipt: %s: %s"):format(r.field, r.what), core.err.FORMAT
end

---@param path string
---@return kigo.Receipt?
---@return string? message
---@return integer? code
function text.read(path)
  local input, message = io.open(path, "rb")
  if not input then return nil, message, core.err.IO end
  local encoded, why = input:read(MAX_BYTES + 1)
  input:close()
  if not encoded then return nil, path .. ": " .. (why or "empty"), core.err.IO end
  local r, what, code = text.decode(encoded)
  if not r then return nil, path .. ": " .. what, code end
  return r
end

return text
