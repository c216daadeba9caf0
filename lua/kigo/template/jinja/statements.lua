-- Statements: the methods of the parser that read {% ... %} and what stands between.
local Parser = require "kigo.template.jinja.parser"
local fault = require "kigo.template.jinja.fault"

-- Every statement has a function; its first word is still the current token.
local statements = {}

-- ---- blocks ----

-- Where a block was opened, for the message about its missing end.
local function missing_end(opened, ends)
  fault.syntax(opened.at, "'%s' has no '%s'", opened.value, ends[#ends])
end

local function is_one_of(self, names)
  for _, name in ipairs(names) do
    if self:is_name(name) then return true end
  end
  return false
end

-- Text and statements up to one of the ending words, which is left as the current token; to the end of the template
-- where there are none.
function Parser:parse_nodes(opened, ends)
  local list = {}
  while true do
    local token = self.token
    if token.type == "data" then
      self:advance()
      list[#list + 1] = self:node("data", token.at, { text = token.value })
    elseif token.type == "variable_begin" then
      self:advance()
      list[#list + 1] = self:node("output", token.at, { expression = self:parse_tuple() })
      self:expect "variable_end"
    elseif token.type == "block_begin" then
      self:advance()
      if ends and is_one_of(self, ends) then return list end
      list[#list + 1] = self:parse_statement()
      self:expect "block_end"
    else
      if ends then missing_end(opened, ends) end
      return list
    end
  end
end

---A block: { cost = what running it once costs beside the blocks in it, [statements] }.
---@param opened kigo.jinja.Token   the word that began it
---@param ends string[]
function Parser:parse_block(opened, ends)
  self:skip ":"
  self:expect "block_end"
  self:enter()
  local outside = self.nodes
  self.nodes = 1
  local block = self:parse_nodes(opened, ends)
  block.cost, self.nodes = self.nodes, outside
  self:leave()
  return block
end

-- A block with one end, which is taken.
function Parser:parse_body(opened, ending)
  local block = self:parse_block(opened, { ending })
  self:advance()
  return block
end

function Parser:parse_statement()
  local token = self.token
  if token.type ~= "name" then self:refuse "the name of a statement" end
  local parse = statements[token.value]
  if not parse then fault.syntax(token.at, "there is no statement '%s' here", token.value:sub(1, 40)) end
  return parse(self, self:advance())
end

---The whole template as a block.
function Parser:parse_template()
  local block = self:parse_nodes()
  block.cost = self.nodes
  return block
end

-- ---- targets of assignments ----

local function check_target(node)
  if node.type == "tuple" then
    for _, item in ipairs(node.items) do check_target(item) end
  elseif node.type ~= "name" and node.type ~= "member" then
    fault.syntax(node.at, "nothing can be assigned to this")
  end
  return node
end

-- A name, or a member of a namespace.
local function parse_member(self)
  local token = self.token
  if token.type == "name" and self.tokens[self.i + 1].type == "." then
    self:advance()
    self:advance()
    return self:node("member", token.at, { object = token.value, name = self:expect("name").value })
  end
  return self:parse_primary()
end

function Parser:parse_target(stop, item)
  return check_target(self:parse_tuple { stop = stop, item = item or self.parse_primary })
end

function Parser:parse_name_target()
  local token = self:expect "name"
  return token.value
end

-- ---- the statements ----

statements["if"] = function(self, opened)
  local node = self:node("if", opened.at, { branches = {} })
  repeat
    local test = self:parse_tuple { no_choice = true }
    local body = self:parse_block(opened, { "elif", "else", "endif" })
    node.branches[#node.branches + 1] = { test = test, body = body }
  until not self:skip_name "elif"
  if self:advance().value == "else" then node.otherwise = self:parse_body(opened, "endif") end
  return node
end

-- The body of a loop, in which break and continue have a meaning.
local function parse_loop_body(self, opened)
  local outside = self.in_loop
  self.in_loop = true
  local body = self:parse_block(opened, { "else", "endfor" })
  self.in_loop = outside
  return body
end

statements["for"] = function(self, opened)
  local target = self:parse_target "in"
  self:expect_name "in"
  local node = self:node("for", opened.at, { target = target,
    iterable = self:parse_tuple { no_choice = true, stop = "recursive" } })
  if self:skip_name "if" then node.test = self:parse_expression() end
  node.recursive = self:skip_name "recursive"
  node.body = parse_loop_body(self, opened)
  if self:advance().value == "else" then node.otherwise = self:parse_body(opened, "endfor") end
  return node
end

for _, word in ipairs { "break", "continue" } do
  statements[word] = function(self, opened)
    if not self.in_loop then fault.syntax(opened.at, "'%s' outside of a loop", word) end
    return self:node(word, opened.at, {})
  end
end

function statements.set(self, opened)
  local target = self:parse_target(nil, parse_member)
  if self:skip "=" then
    return self:node("set", opened.at, { target = target, expression = self:parse_tuple() })
  end
  local node = self:node("set_block", opened.at, { target = target })
  node.filters = self:parse_filter_chain()
  node.body = self:parse_body(opened, "endset")
  return node
end

-- `|a|b(1)`: filters of a text that is not there yet. The operand of the innermost is nil.
function Parser:parse_filter_chain()
  local node
  while self:skip "|" do node = self:parse_filter(node) end
  return node
end

-- A body that is a function of its own: loops outside of it are not its loops.
local function parse_function_body(self, opened, ending)
  local outside = self.in_loop
  self.in_loop = false
  local body = self:parse_body(opened, ending)
  self.in_loop = outside
  return body
end

local function parse_parameters(self)
  local parameters = { names = {}, defaults = {} }
  self:expect "("
  while self.token.type ~= ")" do
    if #parameters.names > 0 then self:expect "," end
    local at, n = self.token.at, #parameters.names + 1
    parameters.names[n] = self:parse_name_target()
    if self:skip "=" then
      parameters.defaults[n] = self:parse_expression()
    elseif parameters.defaults[n - 1] then
      fault.syntax(at, "a parameter without a default follows one with a default")
    end
  end
  self:expect ")"
  return parameters
end

function statements.macro(self, opened)
  local name = self:parse_name_target()
  local node = self:node("macro", opened.at, { name = name, parameters = parse_parameters(self) })
  node.body = parse_function_body(self, opened, "endmacro")
  return node
end

function statements.call(self, opened)
  local parameters = self.token.type == "(" and parse_parameters(self) or { names = {}, defaults = {} }
  local call = self:parse_expression()
  if call.type ~= "call" then fault.syntax(call.at, "a call expected") end
  local node = self:node("call_block", opened.at, { call = call, parameters = parameters })
  node.body = parse_function_body(self, opened, "endcall")
  return node
end

function statements.filter(self, opened)
  local filters = self:parse_filter()
  while self:skip "|" do filters = self:parse_filter(filters) end
  return self:node("filter_block", opened.at, { filters = filters, body = self:parse_body(opened, "endfilter") })
end

function statements.with(self, opened)
  local node = self:node("with", opened.at, { targets = {}, values = {} })
  while self.token.type ~= "block_end" do
    if #node.targets > 0 then self:expect "," end
    node.targets[#node.targets + 1] = check_target(self:parse_primary())
    self:expect "="
    node.values[#node.values + 1] = self:parse_expression()
  end
  node.body = self:parse_body(opened, "endwith")
  return node
end

-- Marks what the model wrote, for training; here it is a scope.
function statements.generation(self, opened)
  return self:node("scope", opened.at, { body = parse_function_body(self, opened, "endgeneration") })
end

function statements.block(self, opened)
  local name = self:expect("name").value
  self:skip_name "scoped"
  local node = self:node("scope", opened.at, { body = parse_function_body(self, opened, "endblock") })
  self:skip_name(name)
  return node
end

-- Nothing is escaped here, so this is a scope too.
function statements.autoescape(self, opened)
  self:parse_expression()
  return self:node("scope", opened.at, { body = self:parse_body(opened, "endautoescape") })
end

function statements.print(self, opened)
  local node = self:node("print", opened.at, { expressions = {} })
  while self.token.type ~= "block_end" do
    if #node.expressions > 0 then self:expect "," end
    node.expressions[#node.expressions + 1] = self:parse_expression()
  end
  return node
end

for _, word in ipairs { "include", "import", "from", "extends" } do
  statements[word] = function(_, opened) fault.syntax(opened.at, "'%s': there are no other templates", word) end
end

return Parser
