-- qwen3vl.lua - Qwen 3 VL, of which a text alone needs what qwen3.lua computes.
return require "kigo.arch".like("qwen3vl", "qwen3")
