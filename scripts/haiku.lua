-- haiku.lua - kigo's main job: a model writes a haiku with the current minute in it, and a check proves that it did.
--   kigo scripts/haiku.lua [--model FILE] [--topic TEXT] [--seed S] [--device D]
-- What is asked and what counts as proof stands in lua/kigo/haiku.lua.
os.exit(require("kigo.cli").main("haiku", ...), true)
