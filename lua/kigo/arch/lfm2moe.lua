-- lfm2moe.lua - LFM2 with experts in all but the first blocks: what lfm2.lua computes.
return require "kigo.arch".like("lfm2moe", "lfm2")
