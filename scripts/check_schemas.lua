-- check_schemas.lua - kigo.json_schema over whole collections of schemas.
--
--   build/kigo scripts/check_schemas.lua suite VOCAB.gguf [FOLDER [FILE ...]]
--     the official test suite: every instance, spelled several ways, token by token through the mask; exit status 1
--     where one is wrong
--   build/kigo scripts/check_schemas.lua write VOCAB.gguf [SCHEMAS.jsonl [TEXTS [SEED]]]
--     compile every schema and write texts by chance under its mask: one JSON object a line
--   build/kigo scripts/check_schemas.lua measure SCHEMA.json
--   build/kigo scripts/check_schemas.lua judge CASES.jsonl
--     what scripts/check_schemas.py asks for
local kigo = require "kigo"
local fuzz = require "spec.fuzz"
local schemas = require "spec.schemas"

local json = kigo.json
local FOLDER = "../shared/fixtures/json-schema/"

local function tokenizer_of(path)
  local gguf <close> = assert(kigo.core.parse_gguf(assert(io.open(path, "rb")):read "a", path))
  return assert(kigo.core.tokenizer(gguf))
end

-- ---- the suite ----

local NAMES = { "additionalProperties", "allOf", "anchor", "anyOf", "boolean_schema", "const", "contains", "content",
  "default", "defs", "dependentRequired", "dependentSchemas", "dynamicRef", "enum", "exclusiveMaximum",
  "exclusiveMinimum", "format", "if-then-else", "infinite-loop-detection", "items", "maxContains", "maxItems",
  "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum",
  "multipleOf", "not", "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames", "ref",
  "refRemote", "required", "type", "unevaluatedItems", "unevaluatedProperties", "uniqueItems", "vocabulary",
  "optional/anchor", "optional/bignum", "optional/dependencies-compatibility", "optional/dynamicRef",
  "optional/ecmascript-regex", "optional/float-overflow", "optional/format-assertion", "optional/id",
  "optional/no-schema", "optional/non-bmp-regex", "optional/refOfUnknownKeyword", "optional/unknownKeyword",
  "optional/format/date-time", "optional/format/date", "optional/format/duration",
  "optional/format/ecmascript-regex", "optional/format/email", "optional/format/hostname",
  "optional/format/idn-email", "optional/format/idn-hostname", "optional/format/ipv4", "optional/format/ipv6",
  "optional/format/iri-reference", "optional/format/iri", "optional/format/json-pointer", "optional/format/regex",
  "optional/format/relative-json-pointer", "optional/format/time", "optional/format/unknown",
  "optional/format/uri-reference", "optional/format/uri-template", "optional/format/uri", "optional/format/uuid" }

-- What lua/kigo/schema says it is stricter about: hostnames with labels of IDNA, integers spelled with an exponent.
local STRICTER = { ["optional/format/hostname"] = "[xX]n%-%-", ["optional/float-overflow"] = "e308" }

local function is_stricter(file, test)
  return test.valid and STRICTER[file] and schemas.text(test.data, {}):find(STRICTER[file])
end

local function check_group(count, grammar, group, tokenizer, file)
  for _, test in ipairs(group.tests) do
    for _, style in ipairs(schemas.styles) do
      local text = schemas.text(test.data, style)
      local taken = grammar ~= nil and schemas.takes(grammar, tokenizer, text)
      local which = taken == test.valid and (taken and "accepted" or "rejected")
        or is_stricter(file, test) and "stricter" or "wrong"
      count[which] = count[which] + 1
      if which == "wrong" then
        print(("WRONG %s: %s: %s: %s should be %s"):format(file, group.description, test.description, text,
          test.valid and "accepted" or "rejected"))
      end
    end
  end
end

local function check_file(folder, file, tokenizer)
  local count = { schemas = 0, refused = 0, accepted = 0, rejected = 0, stricter = 0, wrong = 0 }
  for _, group in ipairs(schemas.groups(folder .. file .. ".json")) do
    count.schemas = count.schemas + 1
    local grammar, message, code = kigo.json_schema(group.schema, { formats = file ~= "format" })
    local is_void = not grammar and message:find("no value satisfies", 1, true)
    if not grammar and not is_void then
      count.refused = count.refused + 1
      print(("refused %s: %s: %s (%s)"):format(file, group.description, message, kigo.core.error_name(code)))
    else
      check_group(count, grammar, group, tokenizer, file)
      if grammar then grammar:close() end
    end
  end
  return count
end

local ORDER = { "schemas", "refused", "accepted", "rejected", "stricter", "wrong" }

local function suite(vocabulary, folder, ...)
  folder = folder or FOLDER .. "draft2020-12/"
  local tokenizer, total = tokenizer_of(vocabulary), {}
  local files = select("#", ...) > 0 and { ... } or NAMES
  for _, file in ipairs(files) do
    local count, parts = check_file(folder, file, tokenizer), {}
    for i, name in ipairs(ORDER) do
      total[name] = (total[name] or 0) + count[name]
      parts[i] = ("%d %s"):format(count[name], name)
    end
    print(("%-40s %s"):format(file, table.concat(parts, ", ")))
  end
  local parts = {}
  for i, name in ipairs(ORDER) do parts[i] = ("%d %s"):format(total[name] or 0, name) end
  print("all: " .. table.concat(parts, ", "))
  return total.wrong == 0
end

-- ---- texts by chance ----

-- Resident bytes of this process and the most that they were since they were last asked.
local function resident()
  local status = assert(io.open "/proc/self/status"):read "a"
  local now, peak = status:match "VmRSS:%s*(%d+)", status:match "VmHWM:%s*(%d+)"
  local reset = io.open("/proc/self/clear_refs", "w")
  if reset then
    reset:write "5"
    reset:close()
  end
  return tonumber(now) * 1024, tonumber(peak) * 1024
end

-- Names that the schema asks for anywhere.
local function required_names(value, names)
  if type(value) ~= "table" then return names end
  for key, inner in pairs(value) do
    if key == "required" and json.is_array(inner) then table.move(inner, 1, #inner, #names + 1, names) end
    required_names(inner, names)
  end
  return names
end

-- Milliseconds and bytes that one schema takes in a program that has done nothing else, as JSON.
local function measure(path)
  local text = assert(io.open(path, "rb")):read "a"
  assert(kigo.json_schema "{}"):close()
  local before = resident()
  local start = os.clock()
  local grammar <close> = kigo.json_schema(text)
  local ms = (os.clock() - start) * 1000
  local _, peak = resident()
  print((json.encode { ms = ms, bytes = math.max(0, peak - before), compiled = grammar ~= nil }:gsub("\n", " ")))
  return true
end

-- Schemas with values, a line each: which values are accepted.
local function judge(path)
  for line in io.lines(path) do
    local entry = schemas.read(line)
    local grammar, message, code = kigo.json_schema(entry.schema)
    local out = { refused = not grammar and not message:find("no value satisfies", 1, true) and message or nil }
    if not out.refused then
      out.accepted = json.array {}
      for i, text in ipairs(entry.texts) do out.accepted[i] = grammar ~= nil and grammar:accepts(text) end
    else
      out.code = kigo.core.error_name(code)
    end
    if grammar then grammar:close() end
    print((json.encode(out):gsub("\n", " ")))
  end
  return true
end

local function write(vocabulary, path, n_texts, seed)
  local writer = schemas.writer(tokenizer_of(vocabulary))
  for i, entry in ipairs(schemas.real_world(path or FOLDER .. "real-world.jsonl")) do
    local grammar, message, code = kigo.json_schema(entry.schema)
    local out = { name = entry.name, schema = entry.schema }
    if grammar then
      local names = required_names(json.decode(entry.schema), {})
      out.texts, out.unfinished = json.array {}, 0
      for k = 1, n_texts and tonumber(n_texts) or 5 do
        local text, all = writer:write(grammar, fuzz.dice(tonumber(seed or 1), i * 1000 + k), 60, 1500, names)
        if text then
          table.insert(out.texts, text)
        else
          out.unfinished = out.unfinished + 1
          io.stderr:write(("%s: no end: ...%s\n"):format(entry.name, all:sub(-200)))
        end
      end
      grammar:close()
    else
      out.refused, out.code = message, kigo.core.error_name(code)
    end
    print((json.encode(out):gsub("\n", " ")))
  end
  return true
end

local commands = { suite = suite, write = write, measure = measure, judge = judge }
local command = commands[arg[1] or ""]
if not command or not arg[2] then
  io.stderr:write "usage: check_schemas.lua suite|write VOCAB.gguf ... | measure|judge FILE\n"
  os.exit(2)
end
if not command(table.unpack(arg, 2)) then os.exit(1) end
