-- constraint.lua - grammars from the notations that people write: GBNF, regular expressions, lists of texts. What they
-- become is described in meta.lua (kigo.GrammarNode); engine/grammar.h compiles it.
local core = require "kigo.core"
local check = require "kigo.check"
local gbnf = require "kigo.gbnf"
local regex = require "kigo.regex"

local constraint = {}

local grammar_options = { memory = "integer", nodes = "integer", depth = "integer" }

local function with(more)
  local known = {}
  for name, wanted in pairs(grammar_options) do known[name] = wanted end
  for name, wanted in pairs(more) do known[name] = wanted end
  return known
end

local gbnf_options = with { points = "table" }
local regex_options = with { unicode = "boolean", dotall = "boolean", lenient = "boolean" }

local function check_text(what, text)
  if type(text) ~= "string" then error(("%s: string expected, got %s"):format(what, type(text)), 3) end
end

---A grammar in GBNF (lua/kigo/gbnf.lua describes it). Matching starts at the rule `root`.
---
---    seq:constrain(assert(kigo.gbnf [[
---      root ::= "yes" | "no, because " [^\n]{1,80}
---    ]]))
---@param text string
---@param options? kigo.GbnfOptions
---@return kigo.Grammar?
---@return string? message   names line and column
---@return integer? code     FORMAT; FULL: a limit (256 KiB, 60 nested groups, counts up to 2^20, kigo.GrammarOptions)
function constraint.gbnf(text, options)
  check_text("gbnf", text)
  options = check.options(options, gbnf_options)
  local rules, message, code = gbnf.parse(text, options)
  if not rules then return nil, message, code end
  return core.grammar(rules, check.pick(options, grammar_options))
end

---@class kigo.RegexGrammarOptions: kigo.GrammarOptions, kigo.RegexOptions

---Texts that match a regular expression from their start to their end (lua/kigo/regex.lua says which ones there are).
---@param pattern string
---@param options? kigo.RegexGrammarOptions
---@return kigo.Grammar?
---@return string? message
---@return integer? code     FORMAT; UNSUPPORTED: what no automaton can do, by name; FULL: a limit
function constraint.regex(pattern, options)
  check_text("regex", pattern)
  options = check.options(options, regex_options)
  local node, message, code = regex.parse(pattern, options)
  if not node then return nil, message, code end
  return core.grammar({ root = node }, check.pick(options, grammar_options))
end

---One of these texts: `kigo.choice { "yes", "no", "maybe" }`.
---@param texts string[]
---@param options? kigo.GrammarOptions
---@return kigo.Grammar?
---@return string? message
---@return integer? code
function constraint.choice(texts, options)
  if type(texts) ~= "table" then error("choice: table expected, got " .. type(texts), 2) end
  options = check.options(options, grammar_options)
  if #texts == 0 then error("choice: there is nothing to choose from", 2) end
  local node = { "alt" }
  for i, text in ipairs(texts) do
    if type(text) ~= "string" then error(("choice %d: string expected, got %s"):format(i, type(text)), 2) end
    node[i + 1] = text
  end
  return core.grammar({ root = { "regular", node } }, check.pick(options, grammar_options))
end

return constraint
