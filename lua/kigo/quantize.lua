-- quantize.lua - model files in fewer bits: which tensor gets which type under the mixtures that public files are made
-- with. A mixture gives a model's most sensitive matrices more bits: the head, and attn_v and ffn_down of some blocks.
local check = require "kigo.check"
local core = require "kigo.core"

local quantize = {}

---What a mixture knows about a tensor.
---@class kigo.QuantizeTensor
---@field name string
---@field role string    the name without "blk.N." and ".weight"
---@field block integer? 0-based
---@field blocks integer of the model
---@field is_head boolean  makes the logits: "output", or the embeddings where they are tied

---@class kigo.Mixture
---@field file_type integer  for general.file_type
---@field type string        of matrices that no rule names
---@field rule? fun(tensor: kigo.QuantizeTensor): string?

-- The first eighth, the last eighth and every third block between them.
local function is_sensitive(t)
  local eighth = t.blocks // 8
  return t.block < eighth or t.block >= 7 * t.blocks // 8 or (t.block - eighth) % 3 == 2
end

---A rule from types for roles: a type, or one for sensitive blocks and one for the others.
local function rule(head, roles)
  return function(t)
    if t.is_head then return head end
    local choice = roles and roles[t.role]
    if type(choice) ~= "table" then return choice end
    return t.block and is_sensitive(t) and choice[1] or choice[2]
  end
end

---@type table<string, kigo.Mixture>
quantize.mixtures = {
  f32 = { file_type = 0, type = "F32" },
  f16 = { file_type = 1, type = "F16" },
  bf16 = { file_type = 32, type = "BF16" },
  q8_0 = { file_type = 7, type = "Q8_0" },
  q4_0 = { file_type = 2, type = "Q4_0", rule = rule "Q6_K" },
  q4_1 = { file_type = 3, type = "Q4_1", rule = rule "Q6_K" },
  q5_0 = { file_type = 8, type = "Q5_0", rule = rule "Q6_K" },
  q5_1 = { file_type = 9, type = "Q5_1", rule = rule "Q6_K" },
  q2_k = { file_type = 10, type = "Q2_K",
    rule = rule("Q6_K", { attn_v = "Q4_K", attn_qkv = "Q4_K", ffn_down = "Q3_K", ffn_down_exps = "Q3_K" }) },
  q3_k_s = { file_type = 11, type = "Q3_K", rule = rule "Q6_K" },
  q3_k_m = { file_type = 12, type = "Q3_K",
    rule = rule("Q6_K", { attn_v = "Q5_K", attn_qkv = "Q4_K", attn_output = "Q4_K", ffn_down = "Q4_K",
      ffn_down_exps = "Q4_K" }) },
  q4_k_s = { file_type = 14, type = "Q4_K", rule = rule("Q6_K", { attn_v = { "Q5_K" }, ffn_down = { "Q5_K" } }) },
  q4_k_m = { file_type = 15, type = "Q4_K",
    rule = rule("Q6_K", { attn_v = { "Q6_K" }, attn_qkv = "Q5_K", ffn_down = { "Q6_K" },
      ffn_down_exps = { "Q6_K" } }) },
  q5_k_s = { file_type = 16, type = "Q5_K", rule = rule "Q6_K" },
  q5_k_m = { file_type = 17, type = "Q5_K",
    rule = rule("Q6_K", { attn_v = { "Q6_K" }, attn_qkv = "Q6_K", ffn_down = { "Q6_K" },
      ffn_down_exps = { "Q6_K" } }) },
  q6_k = { file_type = 18, type = "Q6_K" },
  iq4_nl = { file_type = 25, type = "IQ4_NL", rule = rule "Q6_K" },
  iq4_xs = { file_type = 30, type = "IQ4_XS", rule = rule "Q6_K" },
  mxfp4 = { file_type = 38, type = "Q8_0",
    rule = rule(nil, { ffn_gate_exps = "MXFP4", ffn_up_exps = "MXFP4", ffn_down_exps = "MXFP4" }) },
}

-- What takes a type's place where rows are not whole blocks of it.
local NARROWER = { Q2_K = "Q4_0", Q3_K = "Q4_0", Q4_K = "Q5_0", Q5_K = "Q5_1", Q6_K = "Q8_0", IQ4_XS = "IQ4_NL",
  IQ4_NL = "F16", Q4_0 = "F16", Q4_1 = "F16", Q5_0 = "F16", Q5_1 = "F16", Q8_0 = "F16", MXFP4 = "F16" }

-- Matrices that are small and decide much, or are looked up by position: they stay as they are.
local KEPT = { ffn_gate_inp = true, ffn_gate_inp_shexp = true, position_embd = true, token_types = true,
  ["shortconv.conv"] = true }

---The names of the mixtures, in order.
---@return string[]
function quantize.names()
  local names = {}
  for name in pairs(quantize.mixtures) do names[#names + 1] = name end
  table.sort(names)
  return names
end

local function describe(tensor, blocks, has_output)
  local block, role = tensor.name:match "^blk%.(%d+)%.(.*)%.weight$"
  role = role or tensor.name:match "^(.*)%.weight$"
  local head = has_output and "output" or "token_embd"
  return { name = tensor.name, role = role, block = block and tonumber(block), blocks = blocks,
    is_head = role == head and not block }
end

-- The wanted type, or the first that whole blocks of fit into the rows.
local function fitting(wanted, row, types)
  while row % types[wanted].block_size ~= 0 do wanted = NARROWER[wanted] end
  return wanted
end

local function type_named(name, types)
  local upper = tostring(name):upper()
  if types[upper] and types[upper].computable then return upper end
end

-- The type that the user's own rules give a tensor: the last pattern that its name holds.
local function overridden(overrides, name)
  local found
  for _, entry in ipairs(overrides) do
    if name:find(entry[1]) then found = entry[2] end
  end
  return found
end

local function check_overrides(overrides, types)
  for _, entry in ipairs(overrides) do
    if not pcall(string.find, "", entry[1]) then error(("tensor: %q is no Lua pattern"):format(entry[1]), 3) end
    entry[2] = type_named(entry[2], types) or error(("tensor: there is no type %q"):format(tostring(entry[2])), 3)
  end
end

---@class kigo.QuantizeOptions
---@field type string            name of a mixture: quantize.names()
---@field tensors? table[]       { pattern, type } pairs that go before the mixture's choice; the last that fits counts
---@field threads? integer       default: one per available core
---@field progress? kigo.Progress  "quantize", in bytes; true cancels
local options_known = { type = "string", tensors = "table", threads = "integer", progress = "function" }

---@class kigo.Quantized
---@field path string
---@field bytes_before integer   of all tensors
---@field bytes_after integer
---@field parameters integer
---@field bits_per_weight number
---@field types table<string, integer>  how many tensors have each type
---@field substituted integer    tensors whose rows do not fit the mixture's type, which got another one
---@field from_quantized boolean the file was quantized already: what that lost is not coming back

---The type of every tensor under a mixture, in the file's order, and how many had to take another one.
---@param gguf kigo.Gguf
---@param mixture kigo.Mixture
---@param overrides table[]
---@return string[] types
---@return integer substituted
local function choose(gguf, mixture, overrides)
  local types, chosen, substituted = core.types(), {}, 0
  local tensors, blocks, has_output = gguf:tensors(), 0, gguf:tensor "output.weight" ~= nil
  for _, tensor in ipairs(tensors) do
    blocks = math.max(blocks, (tonumber(tensor.name:match "^blk%.(%d+)%.") or -1) + 1)
  end
  for i, tensor in ipairs(tensors) do
    local t = describe(tensor, blocks, has_output)
    local wanted = overridden(overrides, tensor.name)
    local is_matrix = #tensor.shape > 1 and t.role and not KEPT[t.role] and not t.role:find "norm"
    if not wanted and is_matrix then wanted = mixture.rule and mixture.rule(t) or mixture.type end
    chosen[i] = wanted and fitting(wanted, tensor.shape[1], types) or tensor.type
    if wanted and chosen[i] ~= wanted then substituted = substituted + 1 end
  end
  return chosen, substituted
end

local function is_quantized(gguf)
  local types = core.types()
  for _, tensor in ipairs(gguf:tensors()) do
    if types[tensor.type].block_size > 1 then return true end
  end
  return false
end

local function bytes_as(name, shape)
  local info, values = core.types()[name], 1
  for _, n in ipairs(shape) do values = values * n end
  return values // info.block_size * info.block_bytes
end

---Write a model file again with its matrices in other types. Vectors, norms and routers stay as they are.
---@param from string   a GGUF file, or the first of a split one
---@param to string     appears whole, or not at all
---@param options kigo.QuantizeOptions
---@return kigo.Quantized?
---@return string? message
---@return integer? code
function quantize.file(from, to, options)
  options = check.options(options, options_known)
  local mixture = quantize.mixtures[(options.type or ""):lower()]
  if not mixture then
    error(("type: %q is none of %s"):format(options.type or "", table.concat(quantize.names(), ", ")), 2)
  end
  local overrides = {}
  for i, entry in ipairs(options.tensors or {}) do overrides[i] = { entry[1], entry[2] } end
  check_overrides(overrides, core.types())
  local opened, message, code = core.open_gguf(from)
  if not opened then return nil, message, code end
  local gguf <close> = opened
  local types, substituted = choose(gguf, mixture, overrides)
  local done
  done, message, code = gguf:quantize(types, to, { file_type = mixture.file_type, threads = options.threads,
    progress = options.progress })
  if not done then return nil, message, code end
  local result = { path = to, bytes_before = 0, bytes_after = 0, parameters = gguf:parameters(), types = {},
    substituted = substituted, from_quantized = is_quantized(gguf) }
  for i, tensor in ipairs(gguf:tensors()) do
    result.bytes_before = result.bytes_before + tensor.bytes
    result.bytes_after = result.bytes_after + bytes_as(types[i], tensor.shape)
    result.types[types[i]] = (result.types[types[i]] or 0) + 1
  end
  result.bits_per_weight = 8 * result.bytes_after / result.parameters
  return result
end

return quantize
