-- schema - kigo.json_schema: a JSON Schema (draft 2020-12, and the older forms of its keywords) as a grammar whose
-- texts are exactly the JSON values that the schema allows. Read in this order: keywords.lua (a schema is a formula),
-- branches.lua, object.lua, array.lua and scalar.lua (formulas are made plain), writer.lua (and become rules).
--
-- What a model may write:
--   - Members of objects come in any order, or with `order = "declared"` in that of the schema.
--   - Between tokens at most `whitespace` blanks (spaces, tabs, line ends), in front of the value too, behind it none.
--   - Strings are spelled with any escapes, or with `escapes = "needed"` with those that JSON asks for.
--   - Numbers: any spelling where nothing is asked; with limits plainly or as 1.5e+20; integers and multiples plainly,
--     where 1.0 is an integer. With `numbers = "plain"` there are no exponents, and 1.0 is written 1.
-- What cannot be enforced is refused, with the keyword's JSON pointer: uniqueItems of infinitely many values,
-- minProperties that only free names could fill, references to other documents, patterns that are not regular,
-- negations that ask for a property of whatever name, combinations that would be too large. Keywords that the standard
-- does not know are annotations, and so are contentEncoding, contentMediaType and contentSchema. `format` is enforced
-- where formats.lua knows it (the standard leaves that open), unless `formats = false`. A name that the schema does not
-- mention may be written twice in an object; readers take the last one, and each has a value that is allowed.
local core = require "kigo.core"
local json = require "kigo.json"
local check = require "kigo.check"
local branches = require "kigo.schema.branches"
local budget = require "kigo.schema.budget"
local decimal = require "kigo.schema.decimal"
local document = require "kigo.schema.document"
local formula = require "kigo.schema.formula"
local keywords = require "kigo.schema.keywords"
local language = require "kigo.schema.language"
local refuse = require "kigo.schema.refuse"
local writer = require "kigo.schema.writer"

local schema = {}

local MAX_TEXT = 4 << 20

---@class kigo.json_schema.Options
---@field whitespace? integer  most blanks at one place, 0 to 1000; default 40
---@field escapes? string      "all" (default): characters of strings may be escaped where they need not be; "needed"
---@field numbers? string      "any" (default); "plain": without exponents, and whole numbers without a point
---@field order? string        "any" (default) or "declared": members come in the order of the schema, which a JSON text
---has and a Lua table has not
---@field formats? boolean     false: `format` is an annotation; default true
---@field dialect? string      "2020-12": read it so, whatever $schema says
local known_options = {
  whitespace = "integer", escapes = "string", numbers = "string", order = "string", formats = "boolean",
  dialect = "string",
}

local CHOICES = { escapes = { all = true, needed = true }, numbers = { any = true, plain = true },
  order = { any = true, declared = true },
  dialect = { ["2020-12"] = true } }

local function checked(options)
  options = check.options(options, known_options, 3)
  for name, choices in pairs(CHOICES) do
    if options[name] ~= nil and not choices[options[name]] then
      error(("option %s: unknown value %s"):format(name, check.quoted(options[name])), 4)
    end
  end
  local whitespace = options.whitespace or 40
  if whitespace < 0 or whitespace > 1000 then error("option whitespace: 0 to 1000 expected, got " .. whitespace, 4) end
  return {
    whitespace = whitespace, escapes = options.escapes or "all", ordered = options.order == "declared",
    plain_numbers = options.numbers == "plain", formats = options.formats ~= false,
    any_dialect = options.dialect ~= nil,
  }
end

local function read(source)
  if type(source) ~= "string" then return source end
  if #source > MAX_TEXT then refuse.unsupported("#", ("a text of more than %d bytes"):format(MAX_TEXT)) end
  local value, message = json.decode(source, { number = decimal.parse })
  if message then refuse.malformed("#", message) end
  return value
end

local function rules_of(source, options)
  local work = budget.new()
  local formulas = formula.new(work)
  local doc = document.new(read(source), work, options.any_dialect)
  local reader = keywords.reader(formulas, doc, options)
  local root = reader:at(doc.root)
  return writer.new(branches.new(formulas), options):write(root)
end

---The rules that `kigo.grammar` compiles.
---@param source table|boolean|string  the schema, or its JSON text
---@param options? kigo.json_schema.Options
---@return table<string, any>? rules
---@return string? message   names the keyword by its JSON pointer
---@return integer? code     kigo.err.UNSUPPORTED: cannot be enforced; kigo.err.FORMAT: is no schema
function schema.rules(source, options)
  if type(source) ~= "table" and type(source) ~= "boolean" and type(source) ~= "string" then
    error("schema: a table, a boolean or a JSON text expected, got " .. type(source), 3)
  end
  local settled = checked(options)
  local good, result = pcall(rules_of, source, settled)
  if good then return result end
  if not refuse.is(result) then error(result, 0) end
  return nil, result.message, result.code
end

---A grammar for `seq:constrain`: what is written satisfies the schema.
---@param source table|boolean|string  the schema, or its JSON text
---@param options? kigo.json_schema.Options
---@return kigo.Grammar? grammar
---@return string? message   names the keyword by its JSON pointer
---@return integer? code     kigo.err.UNSUPPORTED: cannot be enforced; FORMAT: is no schema, or nothing satisfies it
function schema.grammar(source, options)
  local rules, message, code = schema.rules(source, options)
  if not rules then return nil, message, code end
  local grammar
  grammar, message, code = core.grammar(rules)
  if grammar then return grammar end
  if language.says_nothing(message) then return nil, "json schema: #: no value satisfies the schema", code end
  if code == core.err.FULL then code = core.err.UNSUPPORTED end
  return nil, "json schema: #: " .. message, code
end

return schema
