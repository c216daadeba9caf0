-- common.lua - what commands share: failing with one line, the options of loading and sampling, loading a model.
local check = require "kigo.check"
local json = require "kigo.json"
local kigo = require "kigo"
local progress = require "kigo.progress"

local common = { failure = { __name = "kigo.cli.Failure" }, MAX_TOKENS = 1 << 24 }

---End the command with a line on standard error.
---@param message string
---@param status? integer  default 1; 2 for a mistake on the command line
function common.fail(message, status)
  error(setmetatable({ message = message, status = status or 1 }, common.failure), 0)
end

---The values themselves, or the end of the command: `local x = common.try(fallible(...))`.
function common.try(value, ...)
  if value == nil then common.fail((...)) end
  return value, ...
end

---What raised in a library call was asked for on the command line: say it without the place in our code.
local function without_place(message) return (tostring(message):gsub("^[^\n]-:%d+: ", "")) end

---Call a library function with values from the command line; a raised mistake ends the command with status 2.
---@param f function
function common.call(f, ...)
  local results = table.pack(pcall(f, ...))
  if not results[1] then
    if getmetatable(results[2]) == common.failure then error(results[2], 0) end
    common.fail(without_place(results[2]), 2)
  end
  return common.try(table.unpack(results, 2, results.n))
end

-- ---- loading ----

local load_names = { device = true, variant = true, threads = true, ctx = true, kv = true, pre = true }

common.pre_option = { name = "pre", type = "string", argument = "NAME",
  help = "cut text into words as this pre-tokenizer does, whatever the file says" }

common.load_options = {
  { name = "device", type = "string", argument = "D",
    help = "where to compute: auto (default), cuda or cuda:N, cpu, or reference (slow and exact)" },
  { name = "variant", type = "string", argument = "V",
    help = "instruction set of the CPU backend (default: the best that works here)" },
  { name = "threads", type = "integer", argument = "N", min = 1, max = 1024,
    help = "threads to compute with (default: one per core)" },
  { name = "ctx", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
    help = "tokens the context holds (default: what the model was made for, at most 4096)" },
  { name = "kv", type = "string", argument = "TYPE",
    help = "type of the key/value cache: auto (default), f32 or f16" },
  common.pre_option,
}

---The options of kigo.load that were given, and a progress line on a terminal.
---@param options table      parsed command-line options
---@param extra? table       more options of kigo.load
---@return kigo.load.Options
function common.loading(options, extra)
  local wanted = check.pick(options, load_names)
  wanted.progress = progress.line()
  for name, value in pairs(extra or {}) do wanted[name] = value end
  return wanted
end

---Say on standard error why the CPU computes where a GPU was looked for.
---@param note string   of model:stats()
function common.say_fallback(note)
  if note ~= "" then io.stderr:write("kigo: ", note, "; the CPU computes\n") end
end

---Load the model named on the command line. A command loads it so once: then it is also said once.
---@param path string
---@param options table      parsed command-line options
---@param extra? table       more options of kigo.load
---@return kigo.Model
function common.load(path, options, extra)
  local model = common.call(kigo.load, path, common.loading(options, extra))
  common.say_fallback(model:stats().note)
  return model
end

-- ---- adapters ----

common.adapter_option = { name = "adapter", type = "string", argument = "FILE[=SCALE]", many = true,
  help = "a low-rank adapter (LoRA, GGUF) for the model, at this scale (default 1); may be repeated" }

---The adapters that the command line names, open for as long as the model is.
---@param model kigo.Model
---@param options table
---@return kigo.Adapted[]?
function common.adapters(model, options)
  if not options.adapter then return nil end
  local list = {}
  for i, text in ipairs(options.adapter) do
    local path, number = text:match "^(.+)=([^=/]*)$"
    local scale = tonumber(number)
    if path and not scale then common.fail(("--adapter: FILE=NUMBER expected, got %q"):format(text), 2) end
    list[i] = { adapter = common.call(model.adapter, model, path or text), scale = scale }
  end
  return list
end

-- ---- tokens and templates ----

---A token's bytes, readable: quotes, control bytes and halves of UTF-8 characters escaped.
---@param piece string
---@return string
function common.quoted(piece)
  local escape = utf8.len(piece) and '[%c"\\]' or '[%c"\\\128-\255]'
  return '"' .. piece:gsub(escape, function(c)
    if c == "\n" then return "\\n" end
    if c == '"' or c == "\\" then return "\\" .. c end
    return ("\\x%02x"):format(c:byte())
  end) .. '"'
end

common.template_options = {
  { name = "template", type = "string", argument = "NAME",
    help = "a chat template by name instead of the model's own, or a file NAME.jinja" },
  { name = "set", type = "string", argument = "NAME=JSON", many = true,
    help = "a variable of the template, like enable_thinking=false; may be repeated" },
}

---The template that the command line names.
---@param model kigo.Model
---@param options table
---@return kigo.Template
function common.template(model, options)
  local name = options.template
  if not name or not name:find "%.jinja$" then return common.try(model:template(name)) end
  local file = common.try(io.open(name, "rb"))
  local source = common.try(file:read "a")
  file:close()
  return common.try(kigo.template.new(source, common.tokenizer(model), name))
end

---The model's tokenizer, which the command cannot do without.
---@param model kigo.Model
---@return kigo.Tokenizer
function common.tokenizer(model)
  return model.tokenizer or common.fail(model.path .. ": the file has no tokenizer")
end

---The variables that the command line sets.
---@param options table
---@return table<string, any>
function common.variables(options)
  local variables = {}
  for _, setting in ipairs(options.set or {}) do
    local name, text = setting:match "^([%a_][%w_]*)=(.*)$"
    if not name then common.fail(("--set: NAME=JSON expected, got %q"):format(setting), 2) end
    local value, message = json.decode(text)
    if value == nil then common.fail(("--set %s: %s"):format(name, message), 2) end
    variables[name] = value
  end
  return variables
end

-- ---- sampling ----

common.sample_options = {
  { name = "temp", type = "number", argument = "T", min = 0, max = 100,
    help = "temperature (default 0.8); 0 is greedy" },
  { name = "top-k", type = "integer", argument = "K", min = 0, max = 2 ^ 31 - 1 | 0,
    help = "keep the K best; 0 keeps all" },
  { name = "top-p", type = "number", argument = "P", min = 0, max = 1, help = "keep the best that reach P together" },
  { name = "min-p", type = "number", argument = "P", min = 0, max = 1,
    help = "keep those with P times the best one's probability (0.05 if no other filter is given)" },
  { name = "typical", type = "number", argument = "P", min = 0, max = 1, help = "keep those of typical surprise" },
  { name = "top-n-sigma", type = "number", argument = "N", min = 0, max = 1000,
    help = "keep logits within N standard deviations of the best; 0 keeps all" },
  { name = "xtc-probability", type = "number", argument = "P", min = 0, max = 1,
    help = "how often to exclude top choices" },
  { name = "xtc-threshold", type = "number", argument = "P", min = 0, max = 1,
    help = "what a top choice is (default 0.1); the least of them stays" },
  { name = "dynatemp-range", type = "number", argument = "R", min = 0, max = 100,
    help = "temperature by entropy, from temp - R to temp + R" },
  { name = "dynatemp-exponent", type = "number", argument = "X", min = 0, max = 1000,
    help = "of the share of the entropy (default 1)" },
  { name = "mirostat-tau", type = "number", argument = "BITS", min = 0, max = 1000,
    help = "mirostat 2: surprise to hold, in bits a token" },
  { name = "mirostat-eta", type = "number", argument = "X", min = 0, max = 10,
    help = "how fast mirostat follows (default 0.1)" },
  { name = "dry-multiplier", type = "number", argument = "X", min = 0, max = 1e6,
    help = "DRY: make repeated sequences less likely, by X * base ^ (length - allowed)" },
  { name = "dry-base", type = "number", argument = "X", min = 1, max = 1000, help = "of DRY (default 1.75)" },
  { name = "dry-allowed-length", type = "integer", argument = "N", min = 1, max = common.MAX_TOKENS,
    help = "shorter repetitions are free (default 2)" },
  { name = "dry-last", type = "integer", argument = "N", min = -1, max = common.MAX_TOKENS,
    help = "tokens that DRY looks at (default -1: all)" },
  { name = "dry-breaker", type = "string", argument = "TEXT", many = true,
    help = "a repetition starts anew behind it; may be repeated (default: newline : \" *)" },
  { name = "bias", type = "string", argument = "TEXT=X", many = true,
    help = "add X to the logit of a text; -inf bans it; may be repeated" },
  { name = "repeat-penalty", type = "number", argument = "X", min = 0.01, max = 100,
    help = "make repetition less likely (1: off)" },
  { name = "repeat-last", type = "integer", argument = "N", min = -1, max = common.MAX_TOKENS,
    help = "tokens that count as repetition (default 64; -1: all)" },
  { name = "stop", type = "string", argument = "TEXT", many = true, help = "end before this text; may be repeated" },
  { name = "ahead", type = "integer", argument = "N", min = 1, max = 1024,
    help = "tokens per round trip to a GPU (default 4); the text is the same" },
  { name = "seed", type = "integer", argument = "S",
    help = "seed of the random numbers (default: another one each time)" },
}

-- ---- constraints and guesses ----

common.constraint_options = {
  { name = "json-schema", type = "string", argument = "FILE",
    help = "write JSON that satisfies this JSON Schema, members in its order" },
  { name = "grammar", type = "string", argument = "FILE", help = "write what this grammar (GBNF) allows" },
  { name = "regex", type = "string", argument = "PATTERN", help = "write what this regular expression matches" },
  { name = "choice", type = "string", argument = "TEXT", many = true,
    help = "write one of these texts; may be repeated" },
  { name = "after", type = "string", argument = "TEXT",
    help = "the constraint begins behind this text, like </think>; until then anything goes" },
  { name = "within", type = "integer", argument = "N", min = 0, max = common.MAX_TOKENS,
    help = "after so many tokens without it, --after's text is written" },
}

common.speculate_options = {
  { name = "speculate", type = "string", argument = "HOW",
    help = "guess what comes next: lookup (what followed the same words), ngrams or no; the text is the same" },
  { name = "draft-model", type = "string", argument = "FILE",
    help = "guess with a smaller model of the same vocabulary; the text is the same" },
}

---All of a file.
local function read_file(path)
  local file = common.try(io.open(path, "rb"))
  local text, message = file:read "a"
  file:close()
  return text or common.fail(("%s: %s"):format(path, message))
end

---A grammar from a file, or the end of the command with the file's name.
local function grammar_of_file(path, compile, options)
  local grammar, message = compile(read_file(path), options)
  return grammar or common.fail(("%s: %s"):format(path, message))
end

-- Left to itself a small model may spend its tokens on blanks and needless escapes.
local JSON = { order = "declared", whitespace = 1, escapes = "needed" }

local GRAMMARS = {
  json_schema = function(path) return grammar_of_file(path, kigo.json_schema, JSON) end,
  grammar = function(path) return grammar_of_file(path, kigo.gbnf) end,
  regex = function(pattern) return common.call(kigo.regex, pattern) end,
  choice = function(texts) return common.call(kigo.choice, texts) end,
}

---The constraint that the command line asks for, as seq:generate takes it; nil: none.
---@param options table
---@return kigo.AnswerConstraint?
function common.constraint(options)
  local kind
  for name in pairs(GRAMMARS) do
    if options[name] then
      if kind then common.fail("more than one of --json-schema, --grammar, --regex and --choice", 2) end
      kind = name
    end
  end
  if options.within and not options.after then common.fail("--within: it counts what comes before --after TEXT", 2) end
  if options.after and not kind then common.fail("--after: there is no constraint to begin behind it", 2) end
  return kind and { GRAMMARS[kind](options[kind]), after = options.after, within = options.within }
end

---Who guesses what comes next, as the command line has it; to be closed.
---@class kigo.cli.Guesses
---@field speculate kigo.Speculator|boolean|nil   as seq:generate takes it
---@field model? kigo.Model                       the draft model
local Guesses = {}
Guesses.__index = Guesses

function Guesses:__close()
  if not self.model then return end
  self.speculate:close()
  self.model:close()
end

local SPECULATORS = { lookup = kigo.prompt_lookup, ngrams = kigo.ngrams, no = function() return false end }

---@param options table
---@return kigo.cli.Guesses
function common.guesses(options)
  local how = options.speculate
  if how and options.draft_model then common.fail("--speculate and --draft-model: give one of them", 2) end
  if how and not SPECULATORS[how] then
    common.fail(("--speculate: lookup, ngrams or no expected, got %q"):format(how), 2)
  end
  local guesses = setmetatable({ speculate = how and SPECULATORS[how]() }, Guesses)
  if options.draft_model then
    guesses.model = common.call(kigo.load, options.draft_model, common.loading(options))
    guesses.speculate = kigo.draft_model(guesses.model)
  end
  return guesses
end

local generate_names = { temp = true, top_k = true, top_p = true, min_p = true, typical = true, repeat_penalty = true,
  repeat_last = true, stop = true, ahead = true, top_n_sigma = true, xtc_probability = true, xtc_threshold = true,
  dynatemp_range = true, dynatemp_exponent = true, mirostat_tau = true, mirostat_eta = true, dry_multiplier = true,
  dry_base = true, dry_allowed_length = true, dry_last = true }

---Biases by text: "TEXT=X" each.
local function biases(settings)
  local bias = {}
  for _, setting in ipairs(settings) do
    local text, number = setting:match "^(.+)=([^=]*)$"
    local value = number == "-inf" and -math.huge or tonumber(number)
    if not value then common.fail(("--bias: TEXT=NUMBER expected, got %q"):format(setting), 2) end
    bias[text] = value
  end
  return bias
end

---The options of seq:generate that were given.
---@param options table
---@return table
function common.sampling(options)
  local wanted = check.pick(options, generate_names)
  wanted.dry_breakers = options.dry_breaker
  wanted.bias = options.bias and biases(options.bias)
  return wanted
end

---The seed that was given, or a random one.
---@param options table
---@return integer
function common.seed(options)
  return options.seed or (string.unpack("<I4", assert(kigo.core.random_bytes(4))))
end

common.receipt_option = { name = "receipt", type = "string", argument = "FILE",
  help = "write what it takes to compute the answer again (kigo verify FILE)" }

---One list of options after another.
---@param ... kigo.cli.Option[]
---@return kigo.cli.Option[]
function common.join(...)
  local all = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #all + 1, all) end
  return all
end

return common
