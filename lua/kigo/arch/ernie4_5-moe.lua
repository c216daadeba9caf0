-- ernie4_5-moe.lua - ERNIE 4.5 with experts: what ernie4_5.lua computes.
return require "kigo.arch".like("ernie4_5-moe", "ernie4_5")
