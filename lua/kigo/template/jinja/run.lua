-- The state of one rendering: what is left of its budget, where it is, and where its output goes.
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"

---@class kigo.jinja.Run.State
---@field left integer         steps left; one is about an operation, or 32 bytes of new text
---@field at integer           byte position of the operation that runs
---@field depth integer        macros and recursive loops inside one another
---@field max_output integer
---@field out table            pieces written so far: { n, size, [1..n] }
---@field variables table<string, any>
---@field now osdate
local Run = {}
Run.__index = Run

-- Python's recursion limit stops macros at about this depth too.
local MAX_DEPTH = 200

local BYTES_PER_STEP = 32

---@param variables table<string, any>
---@param limits { steps: integer, output: integer }
---@param now osdate
---@return kigo.jinja.Run.State
function Run.new(variables, limits, now)
  return setmetatable({ variables = variables, left = limits.steps, max_output = limits.output, depth = 0, at = 1,
    now = now, out = { n = 0, size = 0 } }, Run)
end

---Pay for n operations.
---@param n integer
function Run:spend(n)
  self.left = self.left - n
  if self.left < 0 then fault.raise("limit", "the template takes too many steps") end
end

---Pay for n bytes that are about to be made or looked at.
---@param n integer
function Run:spend_bytes(n) self:spend(n // BYTES_PER_STEP) end

---Pay for looking for `needle` in every place of `text`.
---@param text string
---@param needle string
function Run:spend_search(text, needle)
  self:spend(#text // BYTES_PER_STEP)
  if #needle > 16 then self:spend(#text // 1024 * (#needle // 4)) end
end

---Write a piece of output.
---@param piece kigo.jinja.Str
function Run:write(piece)
  local out = self.out
  local n, size = out.n + 1, out.size + #piece.text
  if size > self.max_output then
    fault.raise("limit", "the template writes more than %d bytes", self.max_output)
  end
  out[n], out.n, out.size = piece, n, size
end

---Enter a macro or a recursive loop.
function Run:enter()
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then fault.raise("recursion", "macros call each other more than %d deep", MAX_DEPTH) end
end

function Run:leave() self.depth = self.depth - 1 end

---What `body` writes, as a string. A fault ends the rendering, so nothing has to be put back then.
---@param body fun(frame: table, run: kigo.jinja.Run.State): string?
---@param frame table
---@return kigo.jinja.Str text
---@return string? signal      "break" or "continue"
function Run:capture(body, frame)
  local outside, own = self.out, { n = 0, size = 0 }
  self.out = own
  local signal = body(frame, self)
  self.out = outside
  return str.concat(self, own, own.n), signal
end

return Run
