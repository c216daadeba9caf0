-- Expressions: tokens in, a tree out. Binary operators by precedence (a Pratt parser); statements are in
-- statements.lua.
--
-- A node is a table with `type` and `at`, the byte position that a fault names. Which fields a type has stands where
-- the node is made; compiler.lua has one function for each type.
local fault = require "kigo.template.jinja.fault"
local str = require "kigo.template.jinja.str"
local value = require "kigo.template.jinja.value"

---@class kigo.jinja.Parser
---@field tokens kigo.jinja.Token[]
---@field i integer
---@field token kigo.jinja.Token   the current one
---@field depth integer
---@field nodes integer            made since the block began: what running it once costs
local Parser = {}
Parser.__index = Parser

-- Blocks and expressions inside one another.
local MAX_DEPTH = 100

---@param tokens kigo.jinja.Token[]
---@return kigo.jinja.Parser
function Parser.new(tokens)
  return setmetatable({ tokens = tokens, i = 1, token = tokens[1], depth = 0, nodes = 0 }, Parser)
end

function Parser:node(type, at, fields)
  self.nodes = self.nodes + 1
  fields.type, fields.at = type, at
  return fields
end

-- ---- the stream ----

---Take the current token.
function Parser:advance()
  local token = self.token
  self.i = self.i + 1
  self.token = self.tokens[self.i] or token
  return token
end

function Parser:is_name(name) return self.token.type == "name" and self.token.value == name end

function Parser:skip(type)
  if self.token.type ~= type then return false end
  self:advance()
  return true
end

function Parser:skip_name(name)
  if not self:is_name(name) then return false end
  self:advance()
  return true
end

local READABLE = { eof = "the end of the template", block_end = "the end of the statement",
  variable_end = "the end of the expression", block_begin = "a statement", variable_begin = "an expression",
  data = "text", name = "a name" }

local function describe(token)
  if token.type == "name" then return "'" .. token.value:sub(1, 40) .. "'" end
  return READABLE[token.type] or "'" .. token.type .. "'"
end

function Parser:refuse(wanted)
  fault.syntax(self.token.at, "%s expected, got %s", wanted, describe(self.token))
end

function Parser:expect(type)
  if self.token.type ~= type then self:refuse(READABLE[type] or "'" .. type .. "'") end
  return self:advance()
end

function Parser:expect_name(name)
  if not self:is_name(name) then self:refuse("'" .. name .. "'") end
  return self:advance()
end

---Enter a level of nesting; leave undoes it.
function Parser:enter()
  self.depth = self.depth + 1
  if self.depth > MAX_DEPTH then fault.syntax(self.token.at, "nested more than %d levels deep", MAX_DEPTH) end
end

function Parser:leave() self.depth = self.depth - 1 end

-- ---- primary expressions ----

local CONSTANTS = { ["true"] = true, True = true, ["false"] = false, False = false, none = value.none,
  None = value.none }

function Parser:constant(at, constant) return self:node("constant", at, { value = constant }) end

function Parser:parse_name()
  local token = self:advance()
  local constant = CONSTANTS[token.value]
  if constant ~= nil then return self:constant(token.at, constant) end
  return self:node("name", token.at, { name = token.value })
end

function Parser:parse_string()
  local at, parts = self.token.at, {}
  while self.token.type == "string" do parts[#parts + 1] = self:advance().value end
  return self:constant(at, str.own(table.concat(parts)))
end

-- Items up to a closing token, separated by commas; one more comma may end them.
function Parser:parse_items(closing, parse_item)
  local items = {}
  while self.token.type ~= closing do
    if #items > 0 then
      self:expect ","
      if self.token.type == closing then break end
    end
    items[#items + 1] = parse_item(self)
  end
  self:expect(closing)
  return items
end

function Parser:parse_list()
  local at = self:expect("[").at
  return self:node("list", at, { items = self:parse_items("]", self.parse_expression) })
end

function Parser:parse_pair()
  local key = self:parse_expression()
  self:expect ":"
  return { key = key, value = self:parse_expression() }
end

function Parser:parse_dict()
  local at = self:expect("{").at
  return self:node("dict", at, { pairs = self:parse_items("}", self.parse_pair) })
end

function Parser:parse_parentheses()
  self:expect "("
  local inner = self:parse_tuple { parentheses = true }
  self:expect ")"
  return inner
end

local PRIMARY = {
  name = Parser.parse_name, string = Parser.parse_string, ["["] = Parser.parse_list, ["{"] = Parser.parse_dict,
  ["("] = Parser.parse_parentheses,
  integer = function(self) return self:constant(self.token.at, self:advance().value) end,
  float = function(self) return self:constant(self.token.at, self:advance().value) end,
}

function Parser:parse_primary()
  local parse = PRIMARY[self.token.type]
  if not parse then self:refuse "an expression" end
  self:enter()
  local node = parse(self)
  self:leave()
  return node
end

-- ---- what follows a primary expression ----

-- One index or slice inside brackets.
function Parser:parse_index()
  local at = self.token.at
  local from = self.token.type ~= ":" and self:parse_expression() or nil
  if not self:skip ":" then return from end
  local function part()
    local type = self.token.type
    if type == ":" or type == "]" or type == "," then return nil end
    return self:parse_expression()
  end
  local to = part()
  local step = self:skip ":" and part() or nil
  return self:node("slice", at, { from = from, to = to, step = step })
end

function Parser:parse_subscript(object)
  local at = self:expect("[").at
  local items = { self:parse_index() }
  local is_tuple = self.token.type == ","
  while self:skip "," do
    if self.token.type == "]" then break end
    items[#items + 1] = self:parse_index()
  end
  self:expect "]"
  local index = is_tuple and self:node("tuple", at, { items = items }) or items[1]
  return self:node("item", at, { object = object, index = index })
end

function Parser:parse_attribute(object)
  local at = self:expect(".").at
  local token = self:advance()
  if token.type == "name" then return self:node("attribute", at, { object = object, name = token.value }) end
  if token.type ~= "integer" then fault.syntax(token.at, "a name or number expected, got %s", describe(token)) end
  return self:node("item", at, { object = object, index = self:constant(token.at, token.value) })
end

---@class kigo.jinja.Arguments
---@field [integer] table   expressions
---@field names string[]
---@field named table[]     expressions, by the position of their names
---@field list table?       after *
---@field map table?        after **

-- One argument of a call; they come in the order positional, named, *list, **map.
function Parser:parse_argument(into)
  local at = self.token.at
  local function order(allowed)
    if not allowed then fault.syntax(at, "arguments in a wrong order") end
  end
  if self:skip "*" then
    order(not into.list and not into.map)
    into.list = self:parse_expression()
  elseif self:skip "**" then
    order(not into.map)
    into.map = self:parse_expression()
  elseif self.token.type == "name" and self.tokens[self.i + 1].type == "=" then
    order(not into.map)
    into.names[#into.names + 1] = self:advance().value
    self:advance()
    into.named[#into.named + 1] = self:parse_expression()
  else
    order(not into.list and not into.map and #into.names == 0)
    into[#into + 1] = self:parse_expression()
  end
end

---@return kigo.jinja.Arguments
function Parser:parse_arguments()
  self:expect "("
  local arguments = { names = {}, named = {} }
  local first = true
  while self.token.type ~= ")" do
    if not first then
      self:expect ","
      if self.token.type == ")" then break end
    end
    self:parse_argument(arguments)
    first = false
  end
  self:expect ")"
  return arguments
end

local NO_ARGUMENTS = { names = {}, named = {} }

function Parser:parse_call(callee)
  return self:node("call", self.token.at, { callee = callee, arguments = self:parse_arguments() })
end

local function dotted_name(self)
  local name = self:expect("name").value
  while self:skip "." do name = name .. "." .. self:expect("name").value end
  return name
end

---A filter without its "|".
function Parser:parse_filter(operand)
  local at = self.token.at
  local name = dotted_name(self)
  local arguments = self.token.type == "(" and self:parse_arguments() or NO_ARGUMENTS
  return self:node("filter", at, { operand = operand, name = name, arguments = arguments })
end

local ARGUMENT_BEGINS = { name = true, string = true, integer = true, float = true, ["("] = true, ["["] = true,
  ["{"] = true }

function Parser:parse_test(operand)
  local at = self:expect_name("is").at
  local negated = self:skip_name "not"
  local name, arguments = dotted_name(self), NO_ARGUMENTS
  local token = self.token
  if token.type == "(" then
    arguments = self:parse_arguments()
  elseif ARGUMENT_BEGINS[token.type] and not (self:is_name "else" or self:is_name "or" or self:is_name "and") then
    if self:is_name "is" then fault.syntax(token.at, "tests cannot be chained") end
    arguments = { self:parse_postfix(self:parse_primary()), names = {}, named = {} }
  end
  local node = self:node("test", at, { operand = operand, name = name, arguments = arguments })
  return negated and self:node("not", at, { operand = node }) or node
end

function Parser:parse_postfix(node)
  while true do
    local type = self.token.type
    if type == "." then
      node = self:parse_attribute(node)
    elseif type == "[" then
      node = self:parse_subscript(node)
    elseif type == "(" then
      node = self:parse_call(node)
    else
      return node
    end
  end
end

function Parser:parse_filters(node)
  while true do
    if self:skip "|" then
      node = self:parse_filter(node)
    elseif self:is_name "is" then
      node = self:parse_test(node)
    elseif self.token.type == "(" then
      node = self:parse_call(node)
    else
      return node
    end
  end
end

-- ---- operators ----

-- A sign binds tighter than filters and tests: -1|abs is (-1)|abs.
function Parser:parse_unary(without_filters)
  local token = self.token
  local node
  if token.type == "-" or token.type == "+" then
    self:advance()
    self:enter()
    node = self:node(token.type == "-" and "negative" or "positive", token.at,
      { operand = self:parse_unary(true) })
    self:leave()
  else
    node = self:parse_primary()
  end
  node = self:parse_postfix(node)
  return without_filters and node or self:parse_filters(node)
end

local PRECEDENCE = { ["+"] = 1, ["-"] = 1, ["~"] = 2, ["*"] = 3, ["/"] = 3, ["//"] = 3, ["%"] = 3, ["**"] = 4 }

-- Operators that bind at least this tight; all of them go to the left, ** too.
function Parser:parse_binary(minimum)
  local left = self:parse_unary()
  while true do
    local token = self.token
    local precedence = PRECEDENCE[token.type]
    if not precedence or precedence < minimum then return left end
    self:advance()
    local right = self:parse_binary(precedence + 1)
    if token.type ~= "~" then
      left = self:node("binary", token.at, { operator = token.type, left = left, right = right })
    elseif left.type == "join" then
      left.items[#left.items + 1] = right
    else
      left = self:node("join", token.at, { items = { left, right } })
    end
  end
end

local COMPARISONS = { ["=="] = true, ["!="] = true, ["<"] = true, ["<="] = true, [">"] = true, [">="] = true }

function Parser:comparison()
  local token = self.token
  if COMPARISONS[token.type] then return self:advance().type end
  if self:skip_name "in" then return "in" end
  local after = self.tokens[self.i + 1]
  if self:is_name "not" and after.type == "name" and after.value == "in" then
    self:advance()
    self:advance()
    return "not in"
  end
  return nil
end

function Parser:parse_comparison()
  local left, steps = self:parse_binary(1), {}
  while true do
    local at = self.token.at
    local operator = self:comparison()
    if not operator then break end
    steps[#steps + 1] = { operator = operator, at = at, operand = self:parse_binary(1) }
  end
  return #steps == 0 and left or self:node("compare", left.at, { left = left, steps = steps })
end

function Parser:parse_not()
  if not self:is_name "not" then return self:parse_comparison() end
  local at = self:advance().at
  self:enter()
  local node = self:node("not", at, { operand = self:parse_not() })
  self:leave()
  return node
end

function Parser:parse_and()
  local left = self:parse_not()
  while self:is_name "and" do
    local at = self:advance().at
    left = self:node("and", at, { left = left, right = self:parse_not() })
  end
  return left
end

function Parser:parse_or()
  local left = self:parse_and()
  while self:is_name "or" do
    local at = self:advance().at
    left = self:node("or", at, { left = left, right = self:parse_and() })
  end
  return left
end

---A whole expression, `a if b else c` included.
function Parser:parse_expression()
  self:enter()
  local node = self:parse_or()
  while self:is_name "if" do
    local at = self:advance().at
    local test = self:parse_or()
    local otherwise = self:skip_name "else" and self:parse_expression() or nil
    node = self:node("choice", at, { test = test, yes = node, no = otherwise })
  end
  self:leave()
  return node
end

-- ---- tuples ----

local TUPLE_ENDS = { variable_end = true, block_end = true, [")"] = true }

---Expressions with commas between them, or one without. Options: parentheses (an empty tuple is fine), no_choice (`if`
---belongs to the statement), stop (a name that ends it), item (the parser of an item).
---@param options? { parentheses: boolean?, no_choice: boolean?, stop: string?, item: fun(self: table): table }
function Parser:parse_tuple(options)
  options = options or {}
  local parse = options.item or options.no_choice and self.parse_or or self.parse_expression
  local at, items, is_tuple = self.token.at, {}, false
  while not (TUPLE_ENDS[self.token.type] or options.stop and self:is_name(options.stop)) do
    items[#items + 1] = parse(self)
    if not self:skip "," then break end
    is_tuple = true
  end
  if not is_tuple then
    if items[1] then return items[1] end
    if not options.parentheses then self:refuse "an expression" end
  end
  return self:node("tuple", at, { items = items })
end

return Parser
