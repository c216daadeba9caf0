-- starcoder.lua - StarCoder 1: what gpt2.lua computes, with one head of keys and values.
return require "kigo.arch".like("starcoder", "gpt2")
