-- hunyuan-moe.lua - Hunyuan A13B: what hunyuan-dense.lua computes.
return require "kigo.arch".like("hunyuan-moe", "hunyuan-dense")
