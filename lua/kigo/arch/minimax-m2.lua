-- minimax-m2.lua - MiniMax M2: what olmoe.lua computes, a part of each head turning, with experts chosen by sigmoids.
local layers = require "kigo.layers"

return require "kigo.arch".like("minimax-m2", "olmoe", { rows = layers.expert_rows(2, true) })
