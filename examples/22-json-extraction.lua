-- 22-json-extraction.lua - text in, data out: what the model says about a haiku must be JSON of a schema, whatever the
-- model would rather say. Any model will do; the bundled one knows nothing but haiku, and still every field is what it
-- should be.
-- Run: build/kigo examples/22-json-extraction.lua [MODEL]
local kigo = require "kigo"
local haiku = require "kigo.haiku"

local HAIKU = "an old silent pond / a frog jumps into the pond / splash! silence again"

-- JSON text rather than a Lua table: then members may come in the order in which they stand here.
local SCHEMA = [[{
  "type": "object",
  "properties": {
    "season": { "enum": ["spring", "summer", "autumn", "winter", null] },
    "animals": { "type": "array", "maxItems": 3,
      "items": { "type": "string", "pattern": "^[a-z]+$", "maxLength": 12 } },
    "summary": { "type": "string", "pattern": "^[a-z ,]+$", "minLength": 10, "maxLength": 60 },
    "syllables": { "type": "array", "minItems": 3, "maxItems": 3,
      "items": { "type": "integer", "minimum": 3, "maximum": 9 } },
    "published": { "type": "string", "format": "date" }
  },
  "required": ["season", "animals", "summary", "syllables", "published"],
  "additionalProperties": false
}]]

local model <close> = assert(kigo.load(arg[1] or haiku.bundled_model()))
-- No blanks between tokens, no escapes that are not needed, and 5 rather than 5.0.
local grammar <close> = assert(kigo.json_schema(SCHEMA,
  { order = "declared", whitespace = 0, escapes = "needed", numbers = "plain" }))

local seq <close> = assert(model:sequence { seed = 5 })
assert(seq:feed(model:template():render({
  { role = "user", content = "Describe this haiku in JSON: " .. HAIKU }, -- a larger model would like to see the schema
}, { generate = true })))
seq:constrain(grammar)
local result = assert(seq:generate { temp = 0.7, top_p = 0.9, max = 300 })
print(result.text)

-- No need to look whether it is right: a schema that could not be enforced would have been refused above.
local data = assert(kigo.json.decode(result.text))
print(("season: %s; syllables: %s"):format(data.season, table.concat(data.syllables, "-")))
for _, animal in ipairs(data.animals) do print("animal: " .. animal) end
