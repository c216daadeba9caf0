-- experts.lua - what a step reads of a mixture's experts, counted where they are multiplied: on the CPU by the products
-- themselves (kigo.ModelStats), on a GPU from what its mixtures chose (Model:profile).
local figures = require "kigo.bench.figures"
local traffic = require "kigo.traffic"

local experts = {}

---Does the model have any?
---@param model kigo.Model
---@return integer? bytes  of all of them in the file
function experts.all(model)
  local _, bytes = traffic.tensor_bytes(model.gguf)
  return bytes > 0 and bytes or nil
end

---A function that gives the bytes of experts read since it was made; nil where the device does not count them.
---@param model kigo.Model
---@return (fun(): integer)?
function experts.meter(model)
  local before = model:stats().expert_bytes
  return before and function() return model:stats().expert_bytes - before end
end

---What a step of pending tokens reads, where the device does not count by itself. The tokens stay pending.
---@param model kigo.Model
---@param seqs kigo.Sequence[]
---@return number bytes
function experts.profiled(model, seqs)
  local bytes = 0
  for _, stage in ipairs(figures.try(model:profile(seqs))) do bytes = bytes + stage.expert_bytes end
  return bytes
end

---For people.
---@param bytes number  read by a step
---@param all integer   in the file
---@return string
function experts.describe(bytes, all)
  return ("%.1f MB of the experts' %.1f MB a step (%.0f %%), counted"):format(bytes / 1e6, all / 1e6, 100 * bytes / all)
end

return experts
