-- qwen2vl.lua - Qwen 2 and 2.5 VL, of which a text alone needs what qwen2.lua computes.
return require "kigo.arch".like("qwen2vl", "qwen2")
