-- rope.lua - rotary position embeddings (Su et al.: "RoFormer", 2021): how fast each pair of channels turns, with the
-- scalings that model files ask for. All of it is folded into `inverse_freqs` and `magnitude` when a plan is built.
--
--   none      base^(-2i / dims)
--   linear    divided by a factor (Chen et al.: "Extending Context Window of LLMs via Position Interpolation", 2023)
--   yarn      fast pairs as they are, slow ones divided, a ramp between (Peng et al.: "YaRN", 2023)
--   longrope  divided by a factor for each pair, one list for short contexts and one for long ones (Ding et al.:
--             "LongRoPE", 2024): tensors rope_factors_short.weight, rope_factors_long.weight
--   llama 3   a factor for each pair: tensor rope_freqs.weight
local core = require "kigo.core"

local rope = {}

---Tensors that are read here and not by an operation of the plan.
rope.tensors = { ["rope_freqs.weight"] = true, ["rope_factors_short.weight"] = true,
  ["rope_factors_long.weight"] = true }

local FACTOR_MIN, FACTOR_MAX = 1e-6, 1e6

-- The numbers of a tensor of n factors; nil where the file has none, nil, message, code where they are wrong.
local function factors(gguf, name, n)
  local tensor = gguf:tensor(name)
  if not tensor then return nil end
  if #tensor.shape ~= 1 or tensor.shape[1] ~= n then
    return nil, ("tensor %s: shape [%s], wanted [%d]"):format(name, table.concat(tensor.shape, ", "), n),
      core.err.FORMAT
  end
  local values, message, code = gguf:values(name)
  if not values then return nil, message, code end
  for i, factor in ipairs(values) do
    if not (factor >= FACTOR_MIN and factor <= FACTOR_MAX) then
      return nil, ("tensor %s: number %d = %s is outside %g to %g"):format(name, i, factor, FACTOR_MIN, FACTOR_MAX),
        core.err.FORMAT
    end
  end
  return values
end

-- How much of each pair is interpolated under yarn: 0 for pairs that turn more than `fast` times over the original
-- context, 1 for those that turn less than `slow` times.
local function yarn_share(hp)
  local dims = hp.rope_dims
  local function pair_of(turns)
    return dims * math.log(hp.rope_original / (turns * 2 * math.pi)) / (2 * math.log(hp.rope_base))
  end
  local low = math.max(0, math.floor(pair_of(hp.rope_yarn_fast)))
  local high = math.min(dims - 1, math.ceil(pair_of(hp.rope_yarn_slow)))
  return function(i) return math.min(1, math.max(0, (i - low) / math.max(0.001, high - low))) end
end

-- What yarn multiplies cos and sin by: what the file says, else what the paper does. Files say 1 for a factor on top,
-- too.
local function yarn_magnitude(hp)
  if hp.rope_yarn_attn_factor ~= 1 then return hp.rope_yarn_attn_factor end
  local log = 0.1 * math.log(hp.rope_scale)
  return (1 + log) / (1 + hp.yarn_log_multiplier * log)
end

-- The divisor of each pair's frequency, 0-based, and what cos and sin are multiplied by.
local function scaling(gguf, hp, context)
  local n, kind = hp.rope_dims // 2, hp.rope_scaling
  local long, message, code = factors(gguf, "rope_factors_long.weight", n)
  if message then return nil, message, code end
  local short
  short, message, code = factors(gguf, "rope_factors_short.weight", n)
  if message then return nil, message, code end
  if (long == nil) ~= (short == nil) then
    return nil, ("tensor rope_factors_%s.weight is missing beside its twin"):format(long and "short" or "long"),
      core.err.FORMAT
  end
  if long then
    local list = context > hp.rope_original and long or short
    return function(i) return list[i + 1] end, hp.rope_attn_factor
  end
  if kind == "longrope" then
    return nil, "tensors rope_factors_long.weight, rope_factors_short.weight are missing beside longrope",
      core.err.FORMAT
  end
  local list
  list, message, code = factors(gguf, "rope_freqs.weight", n)
  if message then return nil, message, code end
  local function factor(i) return list and list[i + 1] or 1 end
  if kind == "linear" then return function(i) return hp.rope_scale * factor(i) end, hp.rope_attn_factor end
  if kind == "yarn" then
    local share = yarn_share(hp)
    local function divisor(i) return factor(i) / (share(i) / hp.rope_scale + 1 - share(i)) end
    return divisor, hp.rope_attn_factor * yarn_magnitude(hp)
  end
  return factor, hp.rope_attn_factor
end

local function parameters(hp, style, base, divisor, magnitude)
  local freqs = {}
  for i = 0, hp.rope_dims // 2 - 1 do freqs[i + 1] = base ^ (-2 * i / hp.rope_dims) / divisor(i) end
  return { style = style, head_dim = hp.head_dim, dims = hp.rope_dims, inverse_freqs = freqs, magnitude = magnitude }
end

---The rotation that a file asks for.
---@param gguf kigo.Gguf
---@param hp kigo.Hyperparameters
---@param style "halves"|"pairs"
---@param context integer   positions that sequences may hold: longrope has two lists
---@return kigo.RopeParameters?
---@return string? message  names the key or tensor
---@return integer? code
function rope.parameters(gguf, hp, style, context)
  local divisor, magnitude, code = scaling(gguf, hp, context)
  if not divisor then return nil, magnitude, code end
  return parameters(hp, style, hp.rope_base, divisor, magnitude)
end

---A rotation of another base without scaling: local layers beside global ones.
---@param hp kigo.Hyperparameters  after kigo.arch made hp.rope
---@param base number
---@return kigo.RopeParameters
function rope.plain(hp, base)
  return parameters(hp, hp.rope.style, base, function() return 1 end, 1)
end

return rope
