-- evidence.lua - what shows that a GPU computed with the file's weights: asked of the driver and the device, not of our
-- own books. Three questions, each answered with a finding for people:
--
--   memory   was more of the device's memory in use while a copy of the model was open, by its packed weights at least,
--            and not any more once it was closed?
--   weights  do the weights, brought back from the device, equal the file byte by byte?
--   kernels  did the device's own clock see every forward pass, for no longer than it took here, and for longer than
--            the weights need to reach the processors at the very least?
local core = require "kigo.core"
local traffic = require "kigo.traffic"

local evidence = {}

---@class kigo.evidence.Finding
---@field what string     "memory", "weights" or "kernels"
---@field passed boolean
---@field text string     what was measured

local function megabytes(bytes) return ("%.1f MB"):format(bytes / 1e6) end

local function finding(what, passed, text, ...) return { what = what, passed = passed, text = text:format(...) } end

---Does this model compute on a device that can be asked?
---@param model kigo.Model
---@return boolean
function evidence.is_due(model) return model:stats().device:find "^cuda" ~= nil end

-- ---- memory ----

-- What may stay in use after a model was closed: the driver hands out memory in pieces of 2 MB, and loads code when it
-- is first used. Never as much as the weights themselves.
local LEFT_OVER = 32e6

-- The ways in which the driver counts memory. Where it tells what this process has, that decides, because other
-- programs may come and go on the device meanwhile; elsewhere, in most containers, all of them must agree.
local COUNTS = {
  { field = "process_in_use", name = "this process, by NVML" },
  { field = "managed_in_use", name = "the device, by NVML" },
  { field = "in_use", name = "the device, by cudaMemGetInfo" },
}

---@param before kigo.DeviceInfo   before the copy was opened
---@param open kigo.DeviceInfo     while it is open, after it was used
---@param after kigo.DeviceInfo    after it was closed
---@param packed integer           bytes of its packed weights
---@return kigo.evidence.Finding
function evidence.memory(before, open, after, packed)
  local parts, passed, decided = {}, true, false
  for _, count in ipairs(COUNTS) do
    local field = count.field
    if before[field] and open[field] and after[field] then
      local grown, left = open[field] - before[field], after[field] - before[field]
      if not decided then passed = passed and grown >= packed and left < math.min(LEFT_OVER, packed) end
      decided = decided or field == "process_in_use"
      parts[#parts + 1] = ("+%s, then %+.1f MB (%s)"):format(megabytes(grown), left / 1e6, count.name)
    end
  end
  local text = ("%s of packed weights: %s"):format(megabytes(packed), table.concat(parts, "; "))
  if before.note and before.note ~= "" then text = text .. "; " .. before.note end
  return finding("memory", passed, "%s", text)
end

-- ---- weights ----

---@param check kigo.WeightsCheck
---@return kigo.evidence.Finding
function evidence.weights(check)
  local text = ("%d tensors, %s read back from the device, checksum %s"):format(check.n_weights,
    megabytes(check.n_bytes), check.device_sum)
  if check.differs then
    return finding("weights", false, "%s, where the file has %s: %s is not the file's", text, check.file_sum,
      check.differs)
  end
  return finding("weights", check.device_sum == check.file_sum, "%s, as the file", text)
end

-- ---- kernels ----

---A count of what the device does from now on: call the result for the finding.
---@param model kigo.Model
---@return fun(): kigo.evidence.Finding
function evidence.count_kernels(model)
  local before, t0 = model:stats(), core.now()
  return function()
    local after, wall = model:stats(), core.now() - t0
    local steps, timed = after.n_steps - before.n_steps, after.n_timed - before.n_timed
    local all = steps + after.n_steps_dropped - before.n_steps_dropped -- some computed ahead and not used
    local seconds = after.timed_s - before.timed_s
    local least = steps * traffic.weight_bytes(model.gguf) / model:device_info().most_bytes_per_s
    return finding("kernels", steps > 0 and timed == all and seconds <= wall and seconds >= least,
      "%d forward passes, %d timed by the device: %.1f ms of the %.1f ms that passed here, at least %.3f ms are needed",
      all, timed, seconds * 1e3, wall * 1e3, least * 1e3)
  end
end

return evidence
