-- model_fixtures.lua - runs the reference models of shared/fixtures/models on a device: logits of the prompt beside the
-- reference logits, and the greedy continuation. Every backend's spec uses it.
local assert = require "luassert"
local busted = require "busted"
local core = require "kigo.core"
local arch = require "kigo.arch"
local support = require "spec.support"

local model_fixtures = {}

---All of them.
model_fixtures.names = {
  "llama", "qwen2", "mixtral", "llama256_q4_0", "llama256_q8_0", "llama256_q4_k_m", "haiku", "qwen3", "phi3", "gpt2",
  "gemma2", "gemma3", "gptoss", "gptoss_mxfp4",
}

---@class spec.ModelFixture
---@field path string
---@field prompt integer[]
---@field greedy integer[]
---@field logits string  float32 numbers, a row per prompt position

---@param name string
---@param exact? boolean default true; false: the reference with 8-bit activations where there is one
---@return spec.ModelFixture
function model_fixtures.get(name, exact)
  local info = support.read_json(support.fixture("models/" .. name .. ".json"))
  local logits = exact == false and name .. ".llamacpp.logits.f32" or info.logits
  local path = support.fixture("models/" .. name .. ".gguf")
  if name == "haiku" then path = support.haiku_model end
  return { path = path, prompt = info.prompt, greedy = info.greedy,
    logits = support.read(support.fixture("models/" .. logits)) }
end

---A model file on a device.
---@param path string
---@param options table  of core.model
---@return kigo.Model
function model_fixtures.open(path, options)
  local gguf <close> = assert(core.open_gguf(path))
  local plan <close> = assert(arch.build(gguf))
  return assert(core.model(plan, options))
end

---@param got string  float32 numbers
---@param wanted string
---@return number max  largest difference
---@return number relative  2-norm of the difference over that of the wanted numbers
function model_fixtures.difference(got, wanted)
  assert(#got == #wanted, "different sizes")
  local max, difference, norm = 0, 0, 0
  for at = 1, #got, 4 do
    local a, b = string.unpack("<f", got, at), string.unpack("<f", wanted, at)
    local d = math.abs(a - b)
    if d ~= d then return d, d end
    if d > max then max = d end
    difference, norm = difference + d * d, norm + b * b
  end
  return max, (difference / norm) ^ 0.5
end

---Logits of all prompt positions against the reference.
---@param model kigo.Model
---@param fixture spec.ModelFixture
---@return number max
---@return number relative
function model_fixtures.compare(model, fixture)
  local logits <close> = assert(model:logits(fixture.prompt))
  return model_fixtures.difference(logits:bytes(), fixture.logits)
end

---The n ids that greedy decoding gives after a prompt.
---@param model kigo.Model
---@param prompt integer[]
---@param n integer
---@return integer[]
function model_fixtures.greedy(model, prompt, n)
  local sequence <close> = model:sequence { seed = 1 }
  assert(sequence:feed(prompt))
  local ids = {}
  for i = 1, n do
    ids[i] = sequence.logits:argmax()
    if i < n then assert(sequence:push(ids[i])) end
  end
  return ids
end

---Declare the specs of a device: every fixture within the tolerances, greedy ids equal.
---@param options table  of core.model: the device and its variant
---@param max number  largest difference of a logit
---@param relative number
---@param names? string[]  default: all of the known architectures
function model_fixtures.declare(options, max, relative, names)
  for _, name in ipairs(names or model_fixtures.names) do
    busted.describe(name, function()
      if not support.shared then return busted.pending("needs ../shared, which is not here") end
      busted.it("gives the reference logits and greedy ids", function()
        local fixture = model_fixtures.get(name)
        local model <close> = model_fixtures.open(fixture.path, options)
        local got_max, got_relative = model_fixtures.compare(model, fixture)
        assert.is_true(got_max <= max, ("largest difference %g"):format(got_max))
        assert.is_true(got_relative <= relative, ("relative difference %g"):format(got_relative))
        assert.same(fixture.greedy, model_fixtures.greedy(model, fixture.prompt, #fixture.greedy))
      end)
    end)
  end
end

return model_fixtures
