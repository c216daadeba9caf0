-- arch/init.lua - model architectures: each is a Lua file here that declares the forward pass. To add one, write
-- lua/kigo/arch/NAME.lua, where NAME is what general.architecture says in its files:
--
--   return arch.family("NAME", function(g, hp) ... return g:logits(...) end)
--
-- llama.lua is the example to begin with, kigo.graph lists what g can do, kigo.hyperparameters what hp holds.
local check = require "kigo.check"
local core = require "kigo.core"
local graph = require "kigo.graph"
local hyperparameters = require "kigo.hyperparameters"

local arch = {}

---A declared architecture.
---@class kigo.Family
---@field name string
---@field declare fun(g: kigo.Graph, hp: kigo.Hyperparameters): kigo.Value
---@field rope "halves"|"pairs"
---@field rows kigo.HyperparameterRow[]
local Family = {}
Family.__index = Family
Family.__tostring = function(self) return "kigo.Family " .. self.name end

---The families that come with kigo, for messages; a script may put one of its own here: arch.families.mine =
---arch.family("mine", ...). A file lua/kigo/arch/NAME.lua is found without an entry.
---@type table<string, kigo.Family|string>
arch.families = {
  llama = "LLaMA 1 to 3, Mistral, Mixtral, SmolLM, TinyLlama",
  qwen2 = "Qwen 2 and 2.5",
}

---@class kigo.FamilyOptions
---@field rope? "halves"|"pairs" which channels of a head turn together: (i, i + n/2), the default, or (2i, 2i + 1)
---@field rows? kigo.HyperparameterRow[] hyperparameters beyond the common ones

---Declare a family.
---@param name string
---@param options kigo.FamilyOptions|fun(g: kigo.Graph, hp: kigo.Hyperparameters): kigo.Value
---@param declare? fun(g: kigo.Graph, hp: kigo.Hyperparameters): kigo.Value
---@return kigo.Family
function arch.family(name, options, declare)
  if type(options) == "function" then options, declare = {}, options end
  if type(name) ~= "string" then error("name: string expected, got " .. type(name), 2) end
  if type(declare) ~= "function" then error("declare: function expected, got " .. type(declare), 2) end
  return setmetatable({ name = name, declare = declare, rope = options.rope or "halves", rows = options.rows or {} },
    Family)
end

local function known_families()
  local names = {}
  for name in pairs(arch.families) do names[#names + 1] = name end
  table.sort(names)
  return table.concat(names, ", ")
end

local function find_family(name)
  local family = arch.families[name]
  if getmetatable(family) == Family then return family end
  local module = "kigo.arch." .. name
  if not name:find(".", 1, true) and name ~= "init" and package.searchpath(module, package.path) then
    family = require(module)
    if getmetatable(family) ~= Family then error(module .. " does not return arch.family(...)", 0) end
    return family
  end
  return nil, ('architecture "%s" is not known; there are: %s. A new one is a file lua/kigo/arch/%s.lua')
    :format(name, known_families(), name), core.err.UNSUPPORTED
end

---The family that a file's general.architecture names.
---@param gguf kigo.Gguf
---@return kigo.Family?
---@return string? message
---@return integer? code
function arch.find(gguf)
  local name = gguf:get("general.architecture")
  if name == nil then return nil, "general.architecture is missing", core.err.FORMAT end
  if type(name) ~= "string" or #name > 64 or not name:find("^[a-z0-9_.-]+$") then
    return nil, "general.architecture is no name of 1 to 64 of a-z, 0-9, _, . and -", core.err.FORMAT
  end
  return find_family(name)
end

-- Factors that divide the frequencies (llama 3), or nil where the file has none.
local function rope_factors(gguf, n)
  local tensor = gguf:tensor("rope_freqs.weight")
  if not tensor then return nil end
  if #tensor.shape ~= 1 or tensor.shape[1] ~= n then
    return nil, ("tensor rope_freqs.weight: shape [%s], wanted [%d]"):format(table.concat(tensor.shape, ", "), n),
      core.err.FORMAT
  end
  local factors, message, code = gguf:values("rope_freqs.weight")
  if not factors then return nil, message, code end
  for i, factor in ipairs(factors) do
    if not (factor >= 1e-6 and factor <= 1e6) then
      return nil, ("tensor rope_freqs.weight: number %d = %s is outside 1e-6 to 1e6"):format(i, factor), core.err.FORMAT
    end
  end
  return factors
end

---Rotations per position of each pair of channels: base^(-2i / dims), divided by the linear scaling and by the
---factors of the tensor rope_freqs.weight.
---@param gguf kigo.Gguf
---@param hp kigo.Hyperparameters
---@return number[]? inverse_freqs
---@return string? message
---@return integer? code
function arch.inverse_freqs(gguf, hp)
  local n = hp.rope_dims // 2
  local factors, message, code = rope_factors(gguf, n)
  if message then return nil, message, code end
  local scale = hp.rope_scaling == "linear" and hp.rope_scale or 1
  local freqs = {}
  for i = 0, n - 1 do
    freqs[i + 1] = hp.rope_base ^ (-2 * i / hp.rope_dims) / scale / (factors and factors[i + 1] or 1)
  end
  return freqs
end

-- Tensors that older converters wrote and nothing needs, and the one that inverse_freqs reads.
local UNUSED = { "^rope_freqs%.weight$", "^blk%.%d+%.attn_rot_embd%.weight$", "^blk%.%d+%.attn%.rope%.freqs$" }

local function is_known_unused(name)
  for _, pattern in ipairs(UNUSED) do
    if name:find(pattern) then return true end
  end
  return false
end

-- A tensor that the plan leaves out is a part of the model that we would silently not compute: refuse it.
local function check_all_used(plan, gguf)
  local used = {}
  for _, weight in ipairs(plan:weights()) do used[weight.name] = true end
  for _, tensor in ipairs(gguf:tensors()) do
    if not used[tensor.name] and not is_known_unused(tensor.name) then
      local name = check.name(tensor.name)
      return nil, ("tensor %s: this architecture has no use for it"):format(name), core.err.UNSUPPORTED
    end
  end
  return true
end

local function handle_error(message)
  if getmetatable(message) == graph.Failure then return message end
  return debug.traceback(tostring(message), 2)
end

-- Run the family's function over the plan and finish it; a mistake in the function raises with its traceback.
local function declare(family, plan, hp)
  local ok, result = xpcall(function()
    local logits = family.declare(graph.new(plan, hp), hp)
    if type(logits) ~= "table" or not logits.id then error("family " .. family.name .. " returned no value") end
    return logits
  end, handle_error)
  if not ok then
    if getmetatable(result) ~= graph.Failure then error(result, 0) end
    return nil, result.message, result.code
  end
  return plan:finish(result.id, hp.context_length)
end

-- All of build, with messages that do not name the file yet.
local function build(gguf)
  local family, message, code = arch.find(gguf)
  if not family then return nil, message, code end
  local hp
  hp, message, code = hyperparameters.read(gguf, gguf:get("general.architecture"), family.rows)
  if not hp then return nil, message, code end
  local freqs
  freqs, message, code = arch.inverse_freqs(gguf, hp)
  if not freqs then return nil, message, code end
  hp.rope = { style = family.rope, head_dim = hp.head_dim, dims = hp.rope_dims, inverse_freqs = freqs }
  hp.attention = { heads = hp.head_count, kv_heads = hp.head_count_kv, head_dim = hp.head_dim, window = hp.window }

  local plan
  plan, message, code = core.plan(gguf)
  if not plan then return nil, message, code end
  local ok
  ok, message, code = declare(family, plan, hp)
  if ok then ok, message, code = check_all_used(plan, gguf) end
  if ok then return plan end
  plan:close()
  return nil, message, code
end

---Declare the forward pass of a model file. The plan is finished; core.model takes it.
---@param gguf kigo.Gguf
---@return kigo.Plan? plan
---@return string? message names the file and the key or tensor
---@return integer? code one of kigo.err
function arch.build(gguf)
  local plan, message, code = build(gguf)
  if plan then return plan end
  return nil, gguf:path() .. ": " .. message, code
end

return arch
