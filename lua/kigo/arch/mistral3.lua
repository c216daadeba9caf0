-- mistral3.lua - Ministral 3 and what its files are named after: what llama.lua computes. Behind the context of the
-- training, queries would be made longer the farther they are (attention.temperature_scale): contexts end there.
return require "kigo.arch".like("mistral3", "llama")
