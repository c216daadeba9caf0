-- internlm2.lua - InternLM 2 and 2.5: what llama.lua computes.
return require "kigo.arch".like("internlm2", "llama")
