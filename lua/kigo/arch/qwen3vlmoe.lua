-- qwen3vlmoe.lua - Qwen 3 VL with experts: a text alone needs what qwen3moe.lua computes.
return require "kigo.arch".like("qwen3vlmoe", "qwen3moe")
