-- minicpm.lua - MiniCPM 1 and 2: what granite.lua computes. Files that do not say the multipliers are refused: they
-- were made when programs had to know them.
local arch = require "kigo.arch"
local layers = require "kigo.layers"

local REQUIRED = { embedding_scale = true, residual_scale = true, logit_scale = true }

local rows = {}
for i, row in ipairs(require "kigo.arch.granite".rows) do
  rows[i] = layers.with(row, {})
  if REQUIRED[row.key] then rows[i].default = nil end
end

return arch.like("minicpm", "granite", { rows = rows })
