-- Sampler chains as plain data: what a receipt says about the sampler.
local core = require "kigo.core"
local json = require "kigo.json"

local stages = {}

---A stage as JSON can say it, and back.
local function stage_to_data(stage)
  if stage.kind ~= "bias" then return stage end
  local data = { kind = "bias", ids = json.array {}, values = json.array {}, bans = json.array {} }
  local ids = {}
  for id in pairs(stage.values) do ids[#ids + 1] = id end
  table.sort(ids)
  for _, id in ipairs(ids) do
    if stage.values[id] == -math.huge then
      table.insert(data.bans, id)
    else
      table.insert(data.ids, id)
      table.insert(data.values, stage.values[id])
    end
  end
  return data
end

local function stage_from_data(data)
  if data.kind ~= "bias" then return data end
  local values = {}
  for i, id in ipairs(data.ids) do values[id] = data.values[i] end
  for _, id in ipairs(data.bans) do values[id] = -math.huge end
  return { kind = "bias", values = values }
end

---@param pick kigo.Sampler
---@return kigo.receipt.Stage[]|string
function stages.of(pick)
  if type(pick) ~= "userdata" then return "script" end
  local data = json.array(pick:stages())
  for i, stage in ipairs(data) do data[i] = stage_to_data(stage) end
  return data
end

---@param data kigo.receipt.Stage[]
---@return kigo.Chain? chain
---@return string? message
function stages.chain(data)
  local made = {}
  for i, stage in ipairs(data) do made[i] = stage_from_data(stage) end
  local done, chain, message = pcall(core.chain, made)
  if done and chain then return chain end
  return nil, "sampler: " .. (done and message or chain)
end

return stages
