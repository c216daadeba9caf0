-- lfm2moe.lua - LFM2 with experts in all but the first blocks: the best by their sigmoids and what a bias adds for the
-- choice, weighed by what they have of their sum.
local arch = require "kigo.arch"
local lfm2 = require "kigo.arch.lfm2"

local rows = {
  { key = "expert_gating_func", name = "gate", type = "integer", one_of = { [2] = true }, default = 2 }, -- sigmoid
}
table.move(lfm2.rows, 1, #lfm2.rows, #rows + 1, rows)

return arch.family("lfm2moe", { rows = rows }, lfm2.declare)
