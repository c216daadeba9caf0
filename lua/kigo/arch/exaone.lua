-- exaone.lua - EXAONE 3 and 3.5: what llama.lua computes, with halves of heads that turn together.
return require "kigo.arch".like("exaone", "llama", { rope = "halves" })
