-- sandbox.lua - scripts that nobody trusts: kigo.sandbox(source, options). The class is made by engine/bind_sandbox.c;
-- README.md, "Scripts you do not trust", says what each strength holds back and what it does not.
--
-- The script's Lua differs from stock Lua:
--   there is no io, os, package, require, debug, print, collectgarbage, dofile, loadfile, string.dump and string.pack
--   load takes text, as a string; setmetatable refuses __gc and weak keys
--   strings are at most 256 KiB, have no arithmetic, and their metatable is locked; formats have at most 4,096 bytes
--   functions of table are raw (no metamethods); unpack, byte and codepoint return at most 4,096 values
--   protected calls nest 150 deep
--   tensors have the methods that work on a row, but not apply_; kigo.zeros and kigo.tensor make rows
--   math.random starts the same every time
local core = require "kigo.core"
local check = require "kigo.check"

local sandbox = {}

---@class kigo.Sandbox
local Sandbox = core.classes.Sandbox

---@class kigo.SandboxOptions
---@field isolate? boolean       true: in a worker process, against hostile code; false (default): in this process,
---against accidents
---@field memory? integer|string bytes that the script may hold, or "16M" (default), "512K"
---@field instructions? integer  that one call may spend; default 10,000,000
---@field timeout? number        seconds that one call may take; default 1
---@field tensors? integer|string  isolate: bytes of tensors that one call may take along; default "4M"
---@field name? string           what messages call the script; default "script"
local options_known = {
  isolate = "boolean", memory = "number|string", instructions = "number", timeout = "number",
  tensors = "number|string", name = "string",
}

local UNITS = { [""] = 1, K = 1 << 10, M = 1 << 20, G = 1 << 30 }
local DIGITS_MAX = 12

---A number of bytes: 4096, "64K", "16M", "1G".
local function bytes(name, value)
  if type(value) ~= "string" then return value end
  local digits, unit = value:match "^(%d+)([KMG]?)$"
  if not digits or #digits > DIGITS_MAX then
    error(("option %s: bytes expected, as in \"16M\", got %s"):format(name, check.quoted(value)), 3)
  end
  return math.tointeger(digits) * UNITS[unit]
end

---A script in a Lua of its own: an environment by allow list, its memory, instructions and time limited. Its text is
---run once, here;
---the function that it returns, and its global functions, are called later. What crosses the border is copied: nil,
---booleans, numbers,
---strings and tables of these; tensors of one dimension may go in, and what the script changes in them comes back
---when it succeeds.
---A script that spends its instructions or its time is never run again: see `restart`.
---@param source string   text of Lua, no bytecode
---@param options? kigo.SandboxOptions
---@return kigo.Sandbox?  a to-be-closed handle
---@return string? message
---@return integer? code  kigo.err.FORMAT (no Lua), SCRIPT (its own error), LIMIT, MEMORY, UNSUPPORTED (a worker
---cannot be had)
function sandbox.new(source, options)
  if type(source) ~= "string" then error("source: string expected, got " .. type(source), 2) end
  options = check.pick(check.options(options, options_known), options_known)
  options.memory, options.tensors = bytes("memory", options.memory), bytes("tensors", options.tensors)
  return core.sandbox(source, options)
end

---A sampler for generate, chat and batches: f(logits, s) -> id, where f is the function that the script returned, or
---its global
---function `name`. s has what samplers use of a sequence: s.state, a table that is copied in and back (seq.state),
---s.rng, whose numbers
---are the sequence's own, and s:pos().
---@param name? string
---@return fun(logits: kigo.Tensor, seq: kigo.Sequence?): integer?, string?, integer?
function Sandbox:sampler(name)
  return function(logits, seq)
    local id, state, code = self:sample(name, logits, seq, seq and seq.state)
    if id == nil then return nil, state or "the script's sampler returned nil", code or core.err.SCRIPT end
    if seq and type(state) == "table" then seq.state = state end
    return id
  end
end

return sandbox
