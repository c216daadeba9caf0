-- granitemoe.lua - Granite 3 with experts: what granite.lua computes.
return require "kigo.arch".like("granitemoe", "granite")
