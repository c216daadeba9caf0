-- bench_grammar.lua - what masks of a grammar cost, in processor time, over texts written under the mask by a random
-- sampler that likes short texts; and apart what it costs to set the logits of all other tokens to -inf.
--   kigo scripts/bench_grammar.lua [VOCABULARY.gguf] [SCHEMAS.jsonl] [TEXTS]
-- Without a file of JSON Schemas: grammars in GBNF, regular expressions, and nodes. "cold": compiled anew for every
-- text, so that first times are in the figures.
local kigo = require "kigo"
local core = require "kigo.core"

local shared = "../shared/fixtures/"
local vocabulary, schemas = arg[1] or shared .. "vocab/qwen2.gguf", arg[2]
local N_TEXTS, MAX_TOKENS = math.tointeger(arg[3] or 20), 400 -- texts per grammar, tokens per text

local gguf = assert(kigo.open_gguf(vocabulary))
local tokenizer = assert(core.tokenizer(gguf))
local logits = kigo.zeros(tokenizer.size)

local JSON = [[
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array  ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
]]

local ANY = { "class", negate = true }
local function text(node) return { "regular", { "seq", '"', { "json", node }, '"' } } end
local WS = { "regular", { "repeat", { "bytes", 0x20, 0x20, 0x0A, 0x0A }, 0, 4 } }

local function object(properties)
  local items = {}
  for name, node in pairs(properties) do
    items[#items + 1] = { { "seq", text(name), ":", WS, node }, required = #items % 2 == 0 }
  end
  return { "seq", "{", WS, { "members", items, separator = { "seq", ",", WS } }, WS, "}" }
end

local OBJECT = { -- what a JSON Schema becomes
  root = object {
    name = text { "repeat", ANY, 1, 40 }, description = text { "repeat", ANY, 0 },
    code = text { "repeat", { "class", 0x41, 0x5A, 0x30, 0x39 }, 3, 12 },
    tags = { "seq", "[", { "repeat", { "seq", text { "repeat", ANY, 0 }, "," }, 0, 5 }, text(ANY), "]" },
    child = { "alt", "null", { "rule", "root" } },
    slug = text { "and", { "repeat", { "class", 0x61, 0x7A, 0x2D, 0x2D }, 1 }, { "not", { "alt", "a", "the" } } },
  },
}

local function subjects()
  local list = {
    { "GBNF: JSON", function() return kigo.gbnf(JSON) end },
    { "object", function() return kigo.grammar(OBJECT) end },
    { "regex: date", function() return kigo.regex "\\d{4}-(0\\d|1[0-2])-[0-3]\\d" end },
    { "regex: words", function() return kigo.regex "([A-Z]?\\p{Ll}+[ ,])*[a-z]+\\." end },
  }
  if not schemas then return list end
  list = {}
  for line in io.lines(schemas) do
    local entry = assert(kigo.json.decode(line))
    list[#list + 1] = { entry.name, function() return kigo.json_schema(entry.schema) end }
  end
  return list
end

---The next token: tokens that end something are liked, so that texts come to an end.
local function choose(matcher, i, seed)
  local u = core.uniform(seed, i, 0)
  local liked = { '"', '"}', "}", "]", '",', ".", ",", " ", "1", "0", '":' }
  if u < 0.4 then
    for _, one in ipairs(liked) do
      local ids = tokenizer:encode(one)
      if #ids == 1 and matcher:allowed(ids[1]) then return ids[1] end
    end
  end
  local ids = matcher:ids()
  if #ids == 0 then return nil end
  return ids[1 + math.floor(core.uniform(seed, i, 1) * #ids)]
end

local function percentile(times, p) return times[math.max(1, math.ceil(#times * p))] or 0 end

local function report(name, times, compile_ms)
  table.sort(times)
  print(("%-40s %7d masks  median %7.1f us  p90 %7.1f  p99 %7.1f  max %8.1f   compile %6.2f ms"):format(name:sub(1, 40),
    #times, percentile(times, 0.5), percentile(times, 0.9), percentile(times, 0.99), times[#times] or 0, compile_ms))
end

local ban_us = 0

local function walk(grammar, seed, times)
  local matcher <close> = assert(grammar:matcher(tokenizer))
  for i = 1, MAX_TOKENS do
    local before = os.clock()
    local n = assert(matcher:count())
    local between = os.clock()
    matcher:mask(logits)
    times[#times + 1] = (between - before) * 1e6
    ban_us = ban_us + (os.clock() - between) * 1e6
    if n == 0 or matcher:is_over() then break end
    local id = choose(matcher, i, seed)
    if not id or tokenizer:is_end(id) then break end
    assert(matcher:accept(id))
  end
end

local all, refused, slowest, n_masks = {}, 0, 0, 0
for _, subject in ipairs(subjects()) do
  local name, compile = subject[1], subject[2]
  local times, compile_ms = {}, 0
  for seed = 1, schemas and 1 or N_TEXTS do
    local before = os.clock()
    local grammar = compile()
    compile_ms = math.max(compile_ms, (os.clock() - before) * 1e3)
    if grammar then
      walk(grammar, seed, times)
      grammar:close()
    else
      refused = refused + 1
    end
  end
  table.move(times, 1, #times, #all + 1, all)
  n_masks = n_masks + #times
  slowest = math.max(slowest, compile_ms)
  if not schemas then report(name .. " (cold)", times, compile_ms) end
  if not schemas then
    local warm, grammar = {}, assert(compile())
    for seed = 1, N_TEXTS do walk(grammar, seed, warm) end
    report(name .. " (warm)", warm, 0)
    n_masks = n_masks + #warm
    grammar:close()
  end
end
report("all", all, slowest)
print(("banning in %d logits: %.1f us on average"):format(tokenizer.size, ban_us / n_masks))
if schemas then print(refused .. " refused") end
