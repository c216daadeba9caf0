-- Sampler chains as plain data: what a receipt says about the sampler.
local core = require "kigo.core"
local json = require "kigo.json"

local stages = {}

---A stage as JSON can say it, and back.
local function bias_to_data(stage)
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
  for _, phrase in ipairs(stage.phrases or {}) do
    local copy = json.array(table.move(phrase, 1, #phrase, 1, {}))
    if phrase.value == -math.huge then
      data.banned_phrases = data.banned_phrases or json.array {}
      table.insert(data.banned_phrases, copy)
    else
      data.phrases = data.phrases or json.array {}
      table.insert(data.phrases, { ids = copy, value = phrase.value })
    end
  end
  return data
end

local function stage_to_data(stage)
  if stage.kind == "bias" then return bias_to_data(stage) end
  stage.tokenizer = nil -- the model's
  if stage.breakers then stage.breakers = json.array(stage.breakers) end
  return stage
end

local function bias_from_data(data)
  local values, phrases = {}, {}
  for i, id in ipairs(data.ids) do values[id] = data.values[i] end
  for _, id in ipairs(data.bans) do values[id] = -math.huge end
  local function add(ids, value)
    local phrase = table.move(ids, 1, #ids, 1, { value = value })
    phrases[#phrases + 1] = phrase
  end
  for _, phrase in ipairs(data.phrases or {}) do add(phrase.ids, phrase.value) end
  for _, ids in ipairs(data.banned_phrases or {}) do add(ids, -math.huge) end
  return { kind = "bias", values = values, phrases = phrases }
end

local function stage_from_data(data, tokenizer)
  if data.kind == "bias" then return bias_from_data(data) end
  if not data.breakers then return data end
  local stage = { tokenizer = tokenizer }
  for name, value in pairs(data) do stage[name] = value end
  return stage
end

-- Stages whose outcome jumps, or drifts, where logits differ a little.
local LOCAL = { xtc = true, dynatemp = true, mirostat = true }

---Can its draws be held only against logits of the same bits?
---@param data kigo.receipt.Stage[]
---@return boolean
function stages.is_local(data)
  for _, stage in ipairs(data) do
    if LOCAL[stage.kind] then return true end
  end
  return false
end

---Breakers of DRY that are no UTF-8 cannot be said in JSON.
local function can_be_said(list)
  for _, stage in ipairs(list) do
    for _, text in ipairs(stage.breakers or {}) do
      if not utf8.len(text) then return false end
    end
  end
  return true
end

---@param pick kigo.Sampler
---@return kigo.receipt.Stage[]|string
function stages.of(pick)
  if type(pick) ~= "userdata" then return "script" end
  local data = json.array(pick:stages())
  if not can_be_said(data) then return "script" end
  for i, stage in ipairs(data) do data[i] = stage_to_data(stage) end
  return data
end

---@param data kigo.receipt.Stage[]
---@param tokenizer kigo.Tokenizer?
---@return kigo.Chain? chain
---@return string? message
function stages.chain(data, tokenizer)
  local made = {}
  for i, stage in ipairs(data) do made[i] = stage_from_data(stage, tokenizer) end
  local done, chain, message = pcall(core.chain, made)
  if done and chain then return chain end
  return nil, "sampler: " .. (done and message or chain)
end

return stages
