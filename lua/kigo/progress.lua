-- progress.lua - a line on standard error that shows how far long work has come: on a terminal, never in a pipe.
local core = require "kigo.core"

local progress = {}

local DELAY, INTERVAL, WIDTH = 0.3, 0.1, 30 -- seconds, seconds, columns
local LABELS = { load = "loading", prefill = "reading the prompt", write = "writing",
  quantize = "quantizing" }

---A callback for kigo.load, model:set_progress and core.make_model, or nil when standard error is not a terminal. Work
---that is done within a moment shows nothing; the line is wiped when the work is complete.
---@param cancelled? fun(): boolean   asked at every call; true stops the work
---@return kigo.Progress?
function progress.line(cancelled)
  local shows = core.is_terminal(2)
  if not (shows or cancelled) then return nil end
  local began, drawn
  local function wipe()
    if drawn then io.stderr:write("\r\27[K") end
    began, drawn = nil, nil
  end
  local function draw(what, done, total)
    local now = core.now()
    began = began or now
    if done >= total then return wipe() end
    if now - began < DELAY or (drawn and now - drawn < INTERVAL) then return end
    drawn = now
    local filled = math.floor(WIDTH * done / math.max(total, 1))
    io.stderr:write(("\r%s [%s%s] %3.0f %%"):format(LABELS[what] or what, ("="):rep(filled), (" "):rep(WIDTH - filled),
      100 * done / math.max(total, 1)))
    io.stderr:flush()
  end
  return function(what, done, total)
    if shows then draw(what, done, total) end
    if cancelled and cancelled() then
      wipe()
      return true
    end
  end
end

return progress
