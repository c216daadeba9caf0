-- hyperparameters.lua - the numbers of a model that stand in the file's metadata. One table of rows says for each which
-- key it has, its type and range, its default and how it relates to the others; the errors are made from the row, so
-- they always name the key and the value. A family may add rows or replace the one of the same field.
local core = require "kigo.core"

local hyperparameters = {}

---One hyperparameter. Rows are read in order: `default` and `relation` see the fields of the rows above.
---@class kigo.HyperparameterRow
---@field key string metadata key without the architecture: "attention.head_count"
---@field name string field of kigo.Hyperparameters that receives it
---@field type "integer"|"number"|"boolean"|"string"|"table"
---@field min? number
---@field max? number
---@field one_of? table<any, boolean> the values that we can handle
---@field default? any a value, or a function of the fields so far; a row without one is required
---@field relation? fun(hp: kigo.Hyperparameters): string? what is wrong with the value beside the others, or nil
---@field default_text? string what a default that is a function is, for people
---@field unset? any a value of the file that says as much as none
---@field per_block? boolean the file may have an array with a value for each block; the field NAME_of is an array in
---any case, from 1 on, and the field is what the file says, or the largest of its numbers
---@field expand? fun(n: integer, blocks: integer): any[]   a number that stands for the values of all blocks

---The fields of the common rows; a family's own rows add theirs.
---@class kigo.Hyperparameters
---@field context_length integer
---@field embedding_length integer
---@field block_count integer
---@field head_count integer
---@field head_count_kv integer
---@field head_dim integer
---@field norm_epsilon number
---@field window integer 0: none
---@field rope_dims integer
---@field rope_base number
---@field rope_scaling "none"|"linear"|"yarn"|"longrope"
---@field rope_scale number positions are divided by it
---@field rope_original integer positions of the training before the scaling
---@field rope_attn_factor number multiplies cos and sin, beside what yarn does
---@field rope_yarn_fast number turns over the original context, and rope_yarn_slow: between them yarn's ramp
---@field rope_yarn_attn_factor number what yarn multiplies cos and sin by; 1: what its paper says
---@field yarn_log_multiplier number where the paper says, they are divided by 1 + so many times 0.1 log(rope_scale)
---@field attention_scale number of q.k
---@field expert_count integer 0: a dense model
---@field expert_used_count integer
---@field rope kigo.RopeParameters for graph:rope, made by kigo.arch
---@field attention kigo.AttentionParameters for graph:attention, made by kigo.arch

local WIDTH = 1 << 24 -- KG_PLAN_MAX_WIDTH

---@type kigo.HyperparameterRow[]
hyperparameters.rows = {
  { key = "context_length", name = "context_length", type = "integer", min = 1, max = 1 << 24 },
  { key = "embedding_length", name = "embedding_length", type = "integer", min = 1, max = WIDTH },
  { key = "block_count", name = "block_count", type = "integer", min = 1, max = 1024 },
  { key = "attention.head_count", name = "head_count", type = "integer", min = 1, max = 1 << 16 },
  { key = "attention.head_count_kv", name = "head_count_kv", type = "integer", min = 1, max = 1 << 16,
    default = function(hp) return hp.head_count end, default_text = "attention.head_count",
    relation = function(hp)
      if hp.head_count % hp.head_count_kv ~= 0 then
        return ("does not divide attention.head_count = %d"):format(hp.head_count)
      end
    end },
  { key = "attention.key_length", name = "head_dim", type = "integer", min = 1, max = 1 << 16,
    default = function(hp) return hp.embedding_length // hp.head_count end,
    default_text = "embedding_length / attention.head_count",
    relation = function(hp)
      if hp.head_dim * hp.head_count > WIDTH then
        return ("times attention.head_count = %d is more than %d"):format(hp.head_count, WIDTH)
      end
    end },
  { key = "attention.value_length", name = "value_dim", type = "integer", min = 1, max = 1 << 16,
    default = function(hp) return hp.head_dim end, default_text = "attention.key_length",
    relation = function(hp)
      if hp.value_dim ~= hp.head_dim then return ("is not attention.key_length = %d"):format(hp.head_dim) end
    end },
  { key = "attention.layer_norm_rms_epsilon", name = "norm_epsilon", type = "number", min = 1e-13, max = 1 },
  { key = "attention.sliding_window", name = "window", type = "integer", min = 0, max = 1 << 24, default = 0 },
  { key = "attention.scale", name = "attention_scale", type = "number", unset = 0, min = 1e-6, max = 1e6,
    default = function(hp) return hp.head_dim ^ -0.5 end, default_text = "attention.key_length ^ -0.5" },
  { key = "attention.causal", name = "causal", type = "boolean", one_of = { [true] = true }, default = true },
  { key = "rope.dimension_count", name = "rope_dims", type = "integer", min = 2, max = 1 << 16,
    default = function(hp) return hp.head_dim end, default_text = "attention.key_length",
    relation = function(hp)
      if hp.rope_dims % 2 ~= 0 then return "is not even" end
      if hp.rope_dims > hp.head_dim then return ("is more than the head size %d"):format(hp.head_dim) end
    end },
  { key = "rope.freq_base", name = "rope_base", type = "number", min = 1, max = 1e12, default = 10000 },
  { key = "rope.scaling.type", name = "rope_scaling", type = "string",
    one_of = { none = true, linear = true, yarn = true, longrope = true }, default = "linear" },
  { key = "rope.scale_linear", name = "rope_scale_linear", type = "number", min = 1e-3, max = 1e6, default = 1 },
  { key = "rope.scaling.factor", name = "rope_scale", type = "number", min = 1e-3, max = 1e6,
    default = function(hp) return hp.rope_scale_linear end, default_text = "rope.scale_linear" }, -- the older key
  { key = "rope.scaling.original_context_length", name = "rope_original", type = "integer", min = 1, max = 1 << 24,
    default = function(hp) return hp.context_length end, default_text = "context_length" },
  { key = "rope.scaling.attn_factor", name = "rope_attn_factor", type = "number", min = 1e-3, max = 1e3, default = 1 },
  { key = "rope.scaling.yarn_beta_fast", name = "rope_yarn_fast", type = "number", min = 1e-3, max = 1e6,
    default = 32 },
  { key = "rope.scaling.yarn_beta_slow", name = "rope_yarn_slow", type = "number", min = 1e-3, max = 1e6,
    default = 1 },
  { key = "rope.scaling.yarn_attn_factor", name = "rope_yarn_attn_factor", type = "number", min = 1e-3, max = 1e3,
    default = 1 },
  { key = "rope.scaling.yarn_log_multiplier", name = "yarn_log_multiplier", type = "number", min = 0, max = 100,
    default = 0 },
  { key = "rope.scaling.yarn_ext_factor", name = "rope_yarn_ext_factor", type = "number",
    one_of = { true, [-1] = true }, default = 1 }, -- how much yarn there is: all
  { key = "expert_count", name = "expert_count", type = "integer", min = 0, max = 1024, default = 0 },
  { key = "expert_used_count", name = "expert_used_count", type = "integer", min = 0, max = 1024, default = 0,
    relation = function(hp)
      if hp.expert_used_count > hp.expert_count then
        return ("is more than expert_count = %d"):format(hp.expert_count)
      end
      if hp.expert_count > 0 and hp.expert_used_count == 0 then
        return ("leaves all of expert_count = %d out"):format(hp.expert_count)
      end
    end },
}

-- Keys that change what is computed, with the value that changes nothing, as 0 does: where a family has no row for one,
-- a file with another value wants what the family does not do.
local CHANGING = {
  ["attention.clamp_kqv"] = 0, ["attention.max_alibi_bias"] = 0, ["attention.output_scale"] = 1,
  ["attention.value_scale"] = 1, ["attention.shared_kv_layers"] = 0, ["attention.temperature_scale"] = 0,
  ["attention.key_length_swa"] = function(hp) return hp.head_dim end,
  ["attention.value_length_swa"] = function(hp) return hp.value_dim end,
  ["attention.sliding_window_pattern"] = 0, -- all blocks have the window
  attn_logit_softcapping = 0, final_logit_softcapping = 0, router_logit_softcapping = 0,
  embedding_scale = 1, residual_scale = 1, logit_scale = 1,
  expert_group_count = 1, nextn_predict_layers = 0,
  ["rope.dimension_count_swa"] = function(hp) return hp.rope_dims end,
  ["rope.freq_base_swa"] = function(hp) return hp.rope_base end,
  ["rope.scaling.alpha"] = 1,
}

-- A value from a file as it may stand in a one-line message.
local function quoted(value)
  if type(value) == "table" then return "an array" end
  if type(value) ~= "string" then return tostring(value) end
  return '"' .. value:sub(1, 60):gsub("[%c\"\\]", function(c) return ("\\x%02x"):format(c:byte()) end) .. '"'
end

local function has_type(value, wanted)
  if wanted == "integer" then return math.type(value) == "integer" end
  return type(value) == wanted
end

-- What is wrong with a value of the file, or nil; the second result is the error code.
local function complaint(row, value)
  if not has_type(value, row.type) then return ("is no %s"):format(row.type), core.err.FORMAT end
  if row.min and not (value >= row.min and value <= row.max) then -- false for NaN
    return ("is outside %s to %s"):format(row.min, row.max), core.err.FORMAT
  end
  if row.one_of and not row.one_of[value] then
    local known = {}
    for name in pairs(row.one_of) do known[#known + 1] = tostring(name) end
    table.sort(known)
    return "is not supported; there are: " .. table.concat(known, ", "), core.err.UNSUPPORTED
  end
end

---The common rows and those of a family, which may replace some.
---@param extra? kigo.HyperparameterRow[]
---@return kigo.HyperparameterRow[]
function hyperparameters.merged(extra)
  local list, index = {}, {}
  for _, source in ipairs { hyperparameters.rows, extra or {} } do
    for _, row in ipairs(source) do
      index[row.name] = index[row.name] or #list + 1
      list[index[row.name]] = row
    end
  end
  return list
end

-- An array with a value for each block: each checked by itself.
local function block_values(row, hp, value)
  if row.expand and math.type(value) == "integer" and value >= 0 then return row.expand(value, hp.block_count) end
  if type(value) ~= "table" then
    local wrong, code = complaint(row, value)
    local values = {}
    for i = 1, wrong and 0 or hp.block_count do values[i] = value end
    return values, wrong, code
  end
  if #value ~= hp.block_count then
    return nil, ("has %d values for %d blocks"):format(#value, hp.block_count), core.err.FORMAT
  end
  for i, each in ipairs(value) do
    local wrong, code = complaint(row, each)
    if wrong then return nil, ("has %s for block %d, which %s"):format(quoted(each), i - 1, wrong), code end
  end
  return value
end

-- A key that asks for something else than the rows know: what is wrong, or nil.
local function unread(gguf, architecture, rows, hp)
  local known, keys = {}, {}
  for _, row in ipairs(rows) do known[row.key] = true end
  for key in pairs(CHANGING) do
    local is_moot = hp.window == 0 and (key:find "_swa$" or key:find "_pattern$") -- no block sees less than others
    if not known[key] and not is_moot then keys[#keys + 1] = key end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local value, neutral = gguf:get(architecture .. "." .. key), CHANGING[key]
    if type(neutral) == "function" then neutral = neutral(hp) end
    if value ~= nil and value ~= neutral and value ~= 0 then
      return ("%s.%s = %s: this architecture does not do that"):format(architecture, key, quoted(value))
    end
  end
end

---Read and check all rows.
---@param gguf kigo.Gguf
---@param architecture string the prefix of the keys
---@param extra? kigo.HyperparameterRow[] rows of the family
---@return kigo.Hyperparameters? hp
---@return string? message
---@return integer? code
function hyperparameters.read(gguf, architecture, extra)
  local hp, rows = {}, hyperparameters.merged(extra)
  for _, row in ipairs(rows) do
    local key = architecture .. "." .. row.key
    local value = gguf:get(key)
    if value == nil or value == row.unset then
      if row.default == nil then return nil, ("%s is missing"):format(key), core.err.FORMAT end
      value = row.default
      if type(value) == "function" then value = value(hp) end
    end
    local wrong, code
    if row.per_block then
      local values
      values, wrong, code = block_values(row, hp, value)
      hp[row.name .. "_of"] = values
      hp[row.name] = not wrong and row.type ~= "boolean" and math.max(table.unpack(values)) or value
    else
      wrong, code = complaint(row, value)
      hp[row.name] = value
    end
    if not wrong and row.relation then wrong, code = row.relation(hp), core.err.FORMAT end
    if wrong then return nil, ("%s = %s %s"):format(key, quoted(value), wrong), code end
  end
  local more = unread(gguf, architecture, rows, hp)
  if more then return nil, more, core.err.UNSUPPORTED end
  return hp
end

return hyperparameters
