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
local rope = require "kigo.rope"

local arch = {}

local DEFAULT_CONTEXT = 4096 -- of kigo.load, where the file says more

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
  arcee = "AFM 4.5B",
  bert = "BERT, BGE, GTE, E5, MiniLM: embeddings",
  cohere2 = "Command R7B, Command A",
  ["command-r"] = "Command R and R+",
  deepseek2 = "DeepSeek V2, V2 Lite, V3 and R1, Kimi K2",
  dots1 = "dots.llm1",
  ernie4_5 = "ERNIE 4.5",
  ["ernie4_5-moe"] = "ERNIE 4.5 with experts",
  exaone = "EXAONE 3 and 3.5",
  exaone4 = "EXAONE 4",
  falcon = "Falcon 7B and 40B",
  gemma = "Gemma 1",
  gemma2 = "Gemma 2",
  gemma3 = "Gemma 3, text",
  glm4 = "GLM 4 (0414), GLM 4.1 V, text",
  glm4moe = "GLM 4.5 and 4.6",
  ["gpt-oss"] = "gpt-oss 20B and 120B",
  gpt2 = "GPT-2",
  gptneox = "GPT-NeoX, Pythia, Dolly 2",
  granite = "Granite 3",
  granitemoe = "Granite 3 with experts",
  ["hunyuan-dense"] = "Hunyuan 0.5B to 7B",
  ["hunyuan-moe"] = "Hunyuan A13B",
  internlm2 = "InternLM 2 and 2.5",
  lfm2 = "LFM2 350M to 2.6B",
  lfm2moe = "LFM2 8B-A1B",
  llama = "LLaMA 1 to 3, Mistral, Mixtral, SmolLM, TinyLlama",
  minicpm = "MiniCPM 1 and 2",
  ["minimax-m2"] = "MiniMax M2",
  mistral3 = "Ministral 3, Mistral Medium 3.5",
  nemotron = "Nemotron 3 and 4, Minitron",
  ["nomic-bert"] = "nomic-embed-text: embeddings",
  olmo2 = "OLMo 2 and 3",
  olmoe = "OLMoE",
  phi2 = "Phi 1, 1.5 and 2",
  phi3 = "Phi 3, 3.5 and 4",
  qwen2 = "Qwen 2 and 2.5",
  qwen2moe = "Qwen 1.5 and 2 with experts",
  qwen2vl = "Qwen 2 and 2.5 VL, text",
  qwen3 = "Qwen 3",
  qwen3moe = "Qwen 3 with experts",
  qwen3vl = "Qwen 3 VL, text",
  qwen3vlmoe = "Qwen 3 VL with experts, text",
  seed_oss = "Seed-OSS",
  smollm3 = "SmolLM 3",
  stablelm = "StableLM 3B, 2 1.6B and 2 12B",
  starcoder = "StarCoder 1",
  starcoder2 = "StarCoder 2",
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

---The family of files that say another name and hold what one of ours computes.
---@param name string
---@param other string  a file of lua/kigo/arch
---@param changes? kigo.FamilyOptions
---@return kigo.Family
function arch.like(name, other, changes)
  local family = require("kigo.arch." .. other)
  changes = changes or {}
  return arch.family(name, { rope = changes.rope or family.rope, rows = changes.rows or family.rows }, family.declare)
end

---The names of the known families, in order.
---@return string[]
function arch.names()
  local names = {}
  for name in pairs(arch.families) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function unknown(name)
  local nearest = check.nearest(name, arch.names())
  return ('architecture "%s" is not known%s; `kigo arch` lists all. A new one is a file lua/kigo/arch/%s.lua: see '
    .. '"adding an architecture" in engine/README.md'):format(name,
    nearest and (" (%s is nearest)"):format(nearest) or "", name)
end

local function is_plain(name) return #name <= 64 and name:find "^[a-z0-9_.-]+$" ~= nil end

---The family of this name.
---@param name string
---@return kigo.Family?
---@return string? message  names the nearest
---@return integer? code
function arch.named(name)
  local family = arch.families[name]
  if getmetatable(family) == Family then return family end
  local module = "kigo.arch." .. name
  if is_plain(name) and not name:find(".", 1, true) and name ~= "init" and package.searchpath(module, package.path) then
    family = require(module)
    if getmetatable(family) ~= Family then error(module .. " does not return arch.family(...)", 0) end
    return family
  end
  return nil, unknown(check.name(name)), core.err.UNSUPPORTED
end

-- What people have in files with the same ending.
local BESIDE_MODELS = { adapter = "an adapter for one (--adapter, model:adapter)",
  mmproj = "the part of one that sees images or hears" }

---The family that a file's general.architecture names.
---@param gguf kigo.Gguf
---@return kigo.Family?
---@return string? message
---@return integer? code
function arch.find(gguf)
  local name, kind = gguf:get "general.architecture", gguf:get "general.type"
  if BESIDE_MODELS[kind] then
    return nil, ("general.type is %s: the file is no model but %s"):format(kind, BESIDE_MODELS[kind]),
      core.err.UNSUPPORTED
  end
  if name == nil then return nil, "general.architecture is missing", core.err.FORMAT end
  if type(name) ~= "string" or not is_plain(name) then
    return nil, "general.architecture is no name of 1 to 64 of a-z, 0-9, _, . and -", core.err.FORMAT
  end
  return arch.named(name)
end

-- Tensors that older converters wrote and nothing needs, and what some files have beside a model of text: the parts
-- that see images, and bring what they saw to the model.
local UNUSED = { "^blk%.%d+%.attn_rot_embd%.weight$", "^blk%.%d+%.attn%.rope%.freqs$", "^v%.", "^mm%." }

local function is_known_unused(name)
  if rope.tensors[name] then return true end
  for _, pattern in ipairs(UNUSED) do
    if name:find(pattern) then return true end
  end
  return false
end

-- A tensor that the plan leaves out is a part of the model that we would silently not compute: refuse it.
local function check_all_used(plan, gguf, g)
  local used = setmetatable({}, { __index = g.stacked })
  for _, weight in ipairs(plan:weights()) do used[weight.name] = true end
  for _, tensor in ipairs(gguf:tensors()) do
    local is_left_out = g.left_out[tensor.name:match "^blk%.%d+%."]
    if not used[tensor.name] and not is_known_unused(tensor.name) and not is_left_out then
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
local function declare(family, plan, hp, gguf)
  local g = graph.new(plan, hp, gguf:count "tokenizer.ggml.tokens")
  local ok, result = xpcall(function()
    local logits = family.declare(g, hp)
    if type(logits) ~= "table" or not logits.id then error("family " .. family.name .. " returned no value") end
    graph.check_optional(g)
    return logits
  end, handle_error)
  if not ok then
    if getmetatable(result) ~= graph.Failure then error(result, 0) end
    return nil, result.message, result.code
  end
  local done, message, code = plan:finish(result.id, hp.context_length, g.has_head)
  if done then done, message, code = check_all_used(plan, gguf, g) end
  return done, message, code
end

-- All of build, with messages that do not name the file yet.
local function build(gguf, context)
  local family, message, code = arch.find(gguf)
  if not family then return nil, message, code end
  local hp
  hp, message, code = hyperparameters.read(gguf, gguf:get("general.architecture"), family.rows)
  if not hp then return nil, message, code end
  hp.rope, message, code = rope.parameters(gguf, hp, family.rope,
    context or math.min(hp.context_length, DEFAULT_CONTEXT))
  if not hp.rope then return nil, message, code end
  hp.attention = { heads = hp.head_count, kv_heads = hp.head_count_kv, head_dim = hp.head_dim, window = hp.window,
    scale = hp.attention_scale }

  local plan
  plan, message, code = core.plan(gguf)
  if not plan then return nil, message, code end
  local ok
  ok, message, code = declare(family, plan, hp, gguf)
  if ok then return plan end
  plan:close()
  return nil, message, code
end

---Declare the forward pass of a model file. The plan is finished; core.model takes it.
---@param gguf kigo.Gguf
---@param context? integer  positions that sequences will hold, where that is known: some files have one kind of
---rotation for short contexts and one for long ones. Default: as of kigo.load
---@return kigo.Plan? plan
---@return string? message names the file and the key or tensor
---@return integer? code one of kigo.err
function arch.build(gguf, context)
  local plan, message, code = build(gguf, context)
  if plan then return plan end
  return nil, gguf:path() .. ": " .. message, code
end

return arch
