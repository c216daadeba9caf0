-- steering.lua - control vectors: a direction for the results of some blocks, found as the difference between what a
-- model computes of texts that have something and of texts that have not, and added where it shall have more of it.
--
--   local joy = assert(kigo.steering.contrast(model, { "I am so happy", ... }, { "I am so sad", ... }))
--   local hook <close> = joy:apply(seq, 4)
--
-- Files are GGUF with a float32 tensor "direction.N" for block N >= 1, as other programs read and write them.
local core = require "kigo.core"
local check = require "kigo.check"
local pooling = require "kigo.pooling"

local steering = {}

---@class kigo.Steering
---@field directions table<integer, kigo.Tensor>   [width] by block, on the model's device
---@field architecture string
local Steering = {}
Steering.__index = Steering
Steering.__name = "kigo.Steering"

local function blocks_of(self)
  local blocks = {}
  for block in pairs(self.directions) do blocks[#blocks + 1] = block end
  table.sort(blocks)
  return blocks
end

function Steering:__tostring()
  local blocks = blocks_of(self)
  return ("kigo.Steering (%d blocks from %s on)"):format(#blocks, blocks[1])
end

local function value_of(block) return ("blk.%d.out"):format(block) end

local function of_file(model, key)
  local architecture = model.gguf:get "general.architecture"
  return architecture, model.gguf:get(architecture .. "." .. key)
end

---@param directions table<integer, kigo.Tensor>
local function new(model, directions)
  return setmetatable({ directions = directions, architecture = (of_file(model, "block_count")) }, Steering)
end

-- ---- making ----

---@class kigo.ContrastOptions
---@field pooling? "last"|"mean"|"cls"  what of a text counts: its last token, the default, the mean, or its first
---@field normalize? boolean      each direction to length 1; default false: as long as the difference is
local contrast_options = { pooling = "string", normalize = "boolean" }

---Add what the texts make of the blocks' results to the directions, `factor` times.
local function add_texts(model, texts, pool, factor, directions)
  for _, text in ipairs(texts) do
    local ids, why, fault = text, nil, nil
    if type(text) == "string" then ids, why, fault = model.tokenizer:encode(text, { bos = true }) end
    if not ids then return nil, why, fault end
    local failed
    local _, message, code = model:trace(ids, "blk.*.out", function(rows, _, block)
      local one, problem = pool(rows)
      failed = failed or problem
      if block == 0 or failed then return end -- the file format has no block 0
      if directions[block] then
        directions[block]:add_(one, factor)
        one:close()
      else
        directions[block] = one:mul_(factor)
      end
    end)
    if code or failed then return nil, failed or message, code or core.err.MEMORY end
  end
  return true
end

---Directions from the mean of the `without` texts to the mean of the `with` texts, for every block but the first.
---@param model kigo.Model
---@param with (string|integer[])[]
---@param without (string|integer[])[]
---@param options? kigo.ContrastOptions
---@return kigo.Steering?
---@return string? message
---@return integer? code
function steering.contrast(model, with, without, options)
  options = check.options(options, contrast_options)
  local pool = pooling.named(options.pooling or "last", 2)
  for _, texts in ipairs { with, without } do
    if type(texts) ~= "table" or #texts == 0 then error("a list of texts is needed", 2) end
    for _, text in ipairs(texts) do
      if type(text) == "string" and not model.tokenizer then
        error("the model was loaded without a tokenizer; work with token ids", 2)
      end
    end
  end
  local directions = {}
  local done, message, code = add_texts(model, with, pool, 1 / #with, directions)
  if done then done, message, code = add_texts(model, without, pool, -1 / #without, directions) end
  if not done then return nil, message, code end
  if next(directions) == nil then return nil, "the model has no block behind the first", core.err.UNSUPPORTED end
  for _, direction in pairs(options.normalize and directions or {}) do
    done, message, code = pooling.to_length_one(direction)
    if not done then return nil, message, code end
  end
  return new(model, directions)
end

-- ---- using ----

---@class kigo.SteeringApplyOptions
---@field first? integer   block; default: the first there is a direction for
---@field last? integer
local apply_options = { first = "integer", last = "integer" }

---Add the directions, `strength` times, to what the blocks of this sequence give, until the hook is closed.
---@param seq kigo.Sequence
---@param strength? number   default 1; negative: the other way
---@param options? kigo.SteeringApplyOptions
---@return kigo.Hook?
---@return string? message
---@return integer? code
function Steering:apply(seq, strength, options)
  options = check.options(options, apply_options)
  local names, by_name = {}, {}
  for _, block in ipairs(blocks_of(self)) do
    if block >= (options.first or block) and block <= (options.last or block) then
      names[#names + 1] = value_of(block)
      by_name[value_of(block)] = self.directions[block]
    end
  end
  if #names == 0 then error("there is no direction for these blocks", 2) end
  strength = strength or 1
  return seq:hook(names, function(x, _, _, name) x:add_(by_name[name], strength) end)
end

-- ---- files ----

---Write the directions to a file; it appears whole or not at all.
---@param path string
---@return string? path
---@return string? message
---@return integer? code
function Steering:save(path)
  local blocks, tensors = blocks_of(self), {}
  for i, block in ipairs(blocks) do
    if block < 1 then error(("block %d: files hold directions of blocks from 1 on"):format(block), 2) end
    tensors[i] = { ("direction.%d"):format(block), self.directions[block] }
  end
  return core.write_gguf(path, {
    { "general.architecture", "controlvector" },
    { "controlvector.model_hint", self.architecture },
    { "controlvector.layer_count", #blocks },
  }, tensors)
end

---One direction of a file, or what is wrong with it.
local function read_direction(gguf, info, model, width, n_blocks)
  local block = math.tointeger(tonumber(info.name:match "^direction%.([1-9]%d*)$"))
  local name = check.name(info.name)
  if not block then return nil, ("tensor %s: direction.N expected, with a block N from 1 on"):format(name) end
  if block >= n_blocks then
    return nil, ("tensor %s: the model has blocks 0 to %d"):format(name, n_blocks - 1)
  end
  if #info.shape ~= 1 or info.shape[1] ~= width then
    return nil, ("tensor %s: shape [%s], wanted [%d]"):format(name, table.concat(info.shape, ", "), width)
  end
  local numbers, message, code = gguf:values(info.name, width)
  if not numbers then return nil, message, code end
  local host
  host, message, code = core.tensor(numbers)
  if not host then return nil, message, code end
  local sum = host:sum()
  if sum ~= sum or host:max() == math.huge or host:min() == -math.huge then
    return nil, ("tensor %s: not all of its numbers are finite"):format(name)
  end
  return host:to(model), nil, nil, block
end

local function read_all(gguf, model)
  local architecture, n_blocks = of_file(model, "block_count")
  local _, width = of_file(model, "embedding_length")
  local hint = gguf:get "controlvector.model_hint"
  if gguf:get "general.architecture" ~= "controlvector" then
    return nil, "no control vectors: general.architecture is not controlvector", core.err.FORMAT
  end
  if hint ~= nil and hint ~= architecture then
    return nil, ("control vectors for %s, but the model is %s"):format(check.name(tostring(hint)), architecture),
      core.err.UNSUPPORTED
  end
  local directions = {}
  for _, info in ipairs(gguf:tensors()) do
    local direction, message, code, block = read_direction(gguf, info, model, width, n_blocks)
    if not direction then return nil, message, code or core.err.FORMAT end
    directions[block] = direction
  end
  if next(directions) == nil then return nil, "no tensor direction.N in it", core.err.FORMAT end
  return new(model, directions)
end

---Read directions for a model from a file.
---@param path string
---@param model kigo.Model
---@return kigo.Steering?
---@return string? message   names the file
---@return integer? code
function steering.load(path, model)
  local gguf <close>, message, code = core.open_gguf(path)
  local result
  if gguf then result, message, code = read_all(gguf, model) end
  if result then return result end
  return nil, message:find(path, 1, true) and message or path .. ": " .. message, code
end

return steering
