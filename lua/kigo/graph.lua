-- graph.lua - the forward pass as a family declares it: objects over the builder of kigo.core's Plan. A graph finds
-- weights by name, adds the biases that stand in the file, and names every value:
--
--   "token_embd", "output_norm", "logits"    after the weight; the last is always called so
--   "logits_padded"                          those of a head with more rows than there are tokens
--   "blk.3.attn_q"                           a norm or a projection, after its weight in block 3
--   "blk.3.attn_q_rope"                      rotated by position
--   "blk.3.attn_out"                         what attention gives, before its projection "blk.3.attn_output"
--   "blk.3.attn_output_residual"             a + b, after b
--   "blk.3.shortconv.conv"                   a convolution over positions, after its weight
--   "blk.3.ffn_act"                          act(gate) * up, and an activation alone
--   "blk.3.ffn_gate_inp", "blk.3.ffn_moe"    router logits and the experts' weighted sum
--   "blk.3.out"                              the block's result: block:out(x)
--
-- The last argument `name` of most methods overrides this; value:named(name) does so afterwards.
local core = require "kigo.core"

local graph = {}

---A fault of the file, thrown through the family's function to kigo.arch.build, which returns it.
---@class kigo.GraphFailure
---@field message string
---@field code integer
local Failure = {}
Failure.__index = Failure
Failure.__tostring = function(self) return self.message end
graph.Failure = Failure

local function fail(code, format, ...)
  error(setmetatable({ message = format:format(...), code = code }, Failure), 0)
end

-- Results of the builder: an id, or nil, message, code.
local function check(id, message, code)
  if id == nil then error(setmetatable({ message = message, code = code }, Failure), 0) end
  return id
end

---A matrix with a row per token, computed by one operation. `a + b` adds two of the same width.
---@class kigo.Value
---@field id integer
---@field name string
---@field width integer
---@field _plan kigo.Plan
---@operator add(kigo.Value): kigo.Value
local Value = {}
Value.__index = Value
Value.__tostring = function(self) return ("kigo.Value %s [rows, %d]"):format(self.name, self.width) end

local function new_value(plan, id)
  local info = plan:value(id)
  return setmetatable({ id = id, name = info.name, width = info.width, _plan = plan }, Value)
end

local function id_of(plan, value, role)
  if getmetatable(value) ~= Value then error(("%s: kigo.Value expected, got %s"):format(role, type(value)), 3) end
  if value._plan ~= plan then error(("%s: value %s is of another plan"):format(role, value.name), 3) end
  return value.id
end

function Value.__add(a, b)
  local plan = getmetatable(a) == Value and a._plan or b._plan
  local first, second = id_of(plan, a, "a"), id_of(plan, b, "b")
  return new_value(plan, check(plan:add(b.name .. "_residual", first, second)))
end

---Give the value another name, which must be free.
---@param name string
---@return kigo.Value self
function Value:named(name)
  check(self._plan:rename(self.id, name))
  self.name = name
  return self
end

---The builder that families see. g:block(i) is one too; its weights and values have "blk.i." before their names.
---@class kigo.Graph
---@field hp kigo.Hyperparameters
---@field has_head boolean
---@field stacked table<string, boolean>  tensors that are a part of a weight
---@field left_out table<string, boolean> "blk.N." of blocks that are for something else
---@field _plan kigo.Plan
---@field _prefix string
---@field _tokens integer?   that the tokenizer has
---@field _table string?    the tensor of embeddings
---@field _rows integer?     and its rows
---@field _optional table<string, table<string, boolean>>  by role: tensors that were asked for, and are they there
local Graph = {}
Graph.__index = Graph
Graph.__tostring = function(self) return "kigo.Graph " .. (self._prefix == "" and "(model)" or self._prefix) end

---@param plan kigo.Plan
---@param hp kigo.Hyperparameters
---@param tokens? integer  of the file's tokenizer, where it has one
---@return kigo.Graph
function graph.new(plan, hp, tokens)
  return setmetatable({ hp = hp, has_head = true, stacked = {}, left_out = {}, _plan = plan, _prefix = "",
    _tokens = tokens, _optional = {} }, Graph)
end

---The part of the graph for block i: 0-based, as in the file.
---@param i integer
---@return kigo.Graph
function Graph:block(i)
  return setmetatable({ hp = self.hp, stacked = self.stacked, _plan = self._plan, _prefix = ("blk.%d."):format(i),
    _optional = self._optional }, Graph)
end

---Block i of the file has another use than to make logits from tokens (to guess several at once, say).
---@param i integer
function Graph:leave_out(i) self.left_out[("blk.%d."):format(i)] = true end

---Does the file have the tensor "blk.i.NAME.weight" (or with another ending)?
---@param name string
---@param ending? string default "weight"
---@return boolean
function Graph:has(name, ending)
  return self._plan:has_weight(self._prefix .. name .. "." .. (ending or "weight"))
end

-- Is the tensor there? Noted for graph.check_optional: tensors of one role are all there, or none is.
function Graph:_has_in_role(role, name)
  local full, found = self._prefix .. name, self._optional[role] or {}
  self._optional[role] = found
  found[full] = self._plan:has_weight(full)
  return found[full]
end

---The same for a part that a model has in every block that could have it, or in none: a file where only some have it
---is refused (graph.check_optional).
---@param name string
---@param ending? string default "weight"
---@return boolean
function Graph:has_like_others(name, ending)
  local full = name .. "." .. (ending or "weight")
  return self:_has_in_role(full, full)
end

local function smaller(a, b) return (not b or a < b) and a or b end

---Fails where the file does not have this tensor of the block.
---@param name string
---@param ending? string default "weight"
function Graph:wants(name, ending)
  if self:has(name, ending) then return end
  fail(core.err.FORMAT, "tensor %s%s.%s is not in the file", self._prefix, name, ending or "weight")
end

---Fails where a part is in some blocks and not in others.
---@param g kigo.Graph
function graph.check_optional(g)
  local missing, beside
  for _, found in pairs(g._optional) do
    local absent, present
    for name, has in pairs(found) do
      if has then present = smaller(name, present) else absent = smaller(name, absent) end
    end
    if present and absent and (not missing or absent < missing) then missing, beside = absent, present end
  end
  if missing then fail(core.err.FORMAT, "tensor %s is not in the file, but %s is", missing, beside) end
end

-- The value of a new operation of the plan; the name comes first among the arguments.
function Graph:_emit(kind, ...)
  return new_value(self._plan, check(self._plan[kind](self._plan, ...)))
end

function Graph:_weight(name)
  return check(self._plan:weight(self._prefix .. name .. ".weight"))
end

-- The experts' matrices of a role: one tensor of all, or, in older files, one for each.
function Graph:_experts(name, suffix, n)
  if suffix or self:has(name .. "_exps") or not self:has(name .. ".0") or n < 2 then
    return self:_weight(name .. (suffix or "_exps"))
  end
  local names = {}
  for i = 1, n do
    names[i] = ("%s%s.%d.weight"):format(self._prefix, name, i - 1)
    self.stacked[names[i]] = true
  end
  return check(self._plan:weight_stack(names))
end

-- The bias beside a weight, or nil where the file has none. All biases of one role are there, or none is.
function Graph:_bias(name, role)
  if self:_has_in_role(role or name .. ".bias", name .. ".bias") then
    return check(self._plan:weight(self._prefix .. name .. ".bias"))
  end
end

-- Rows of a weight of the plan.
function Graph:_rows_of(weight) return self._plan:weights()[weight + 1].rows end

---Rows of an embedding table at the token ids; `positions` names a table of learned positions to add, `types` one whose
---first row is added to all.
---@param name string
---@param positions? string
---@param types? string
---@return kigo.Value
function Graph:embed(name, positions, types)
  local table_id, positions_id = self:_weight(name), positions and self:_weight(positions)
  self._table, self._rows = self._prefix .. name .. ".weight", self:_rows_of(table_id)
  if self._tokens and (self._tokens < 1 or self._tokens > self._rows) then
    fail(core.err.FORMAT, "tokenizer.ggml.tokens has %d entries, tensor %s %d rows", self._tokens, self._table,
      self._rows)
  end
  return self:_emit("embed", self._prefix .. name, table_id, positions_id, types and self:_weight(types))
end

---@class kigo.NormParameters
---@field epsilon? number default hp.norm_epsilon
---@field groups? integer equal parts of the row, normalized each on its own (heads); default 1
---@field subtract_mean? boolean LayerNorm instead of RMSNorm

---Normalize rows and scale them with the weight; adds the bias where the file has one.
---@param x kigo.Value
---@param name string
---@param params? kigo.NormParameters
---@return kigo.Value
function Graph:norm(x, name, params)
  local id, full = id_of(self._plan, x, "x"), { epsilon = self.hp.norm_epsilon }
  for key, value in pairs(params or {}) do full[key] = value end
  local is_layer_norm = full.subtract_mean and not full.groups
  local scale, bias = self:_weight(name), self:_bias(name, is_layer_norm and "LayerNorm" or nil)
  return self:_emit("norm", self._prefix .. name, id, scale, bias, full)
end

---x times the transposed weight, plus the bias where the file has one.
---@param x kigo.Value
---@param name string
---@param as? string name of the value, default that of the weight
---@return kigo.Value
function Graph:linear(x, name, as)
  local id = id_of(self._plan, x, "x")
  local weight, bias = self:_weight(name), self:_bias(name)
  return self:_emit("linear", self._prefix .. (as or name), id, weight, bias)
end

---Each of as many equal parts of x as the weight has planes times its plane, transposed: a weight for each head.
---@param x kigo.Value
---@param name string
---@return kigo.Value
function Graph:linear_each(x, name)
  local id = id_of(self._plan, x, "x")
  return self:_emit("linear_each", self._prefix .. name, id, self:_weight(name))
end

---@class kigo.RopeParameters
---@field style "halves"|"pairs"
---@field head_dim integer
---@field dims? integer rotated channels at the start of each head; default head_dim
---@field inverse_freqs number[] dims / 2 of them; the angle is position * inverse_freqs[i]
---@field magnitude? number of cos and sin; default 1
---@field growth? number the magnitude grows by this much times log(1 + position // growth_length); default 0
---@field growth_length? integer

---Rotate by position; the number of heads follows from the width.
---@param x kigo.Value
---@param params kigo.RopeParameters
---@param name? string default the value's name with "_rope"
---@return kigo.Value
function Graph:rope(x, params, name)
  local id = id_of(self._plan, x, "x")
  if x.width % params.head_dim ~= 0 then
    fail(core.err.FORMAT, "%s: width %d is not a multiple of the head size %d", x.name, x.width, params.head_dim)
  end
  local full = { heads = x.width // params.head_dim }
  for key, value in pairs(params) do full[key] = value end
  name = name and self._prefix .. name or x.name .. "_rope"
  return self:_emit("rope", name, id, full)
end

---@class kigo.AttentionParameters
---@field heads integer
---@field kv_heads integer
---@field head_dim integer of queries and keys
---@field value_dim? integer of values and results; default head_dim
---@field scale? number of q.k; default 1 / sqrt(head_dim)
---@field softcap? number 0: none
---@field window? integer positions seen, this one counts; 0: all
---@field bidirectional? boolean every token sees the whole sequence; then all blocks do

---Attention over the sequence's cache. A tensor "attn_sinks.weight" of the block gives each head's sink. Without v the
---first value_dim channels of the keys are the values too, and the cache holds the keys alone.
---@param q kigo.Value
---@param k kigo.Value
---@param v kigo.Value?
---@param params kigo.AttentionParameters
---@param name? string default "attn_out"
---@return kigo.Value
function Graph:attention(q, k, v, params, name)
  local plan = self._plan
  local q_id, k_id, v_id = id_of(plan, q, "q"), id_of(plan, k, "k"), v and id_of(plan, v, "v")
  local sinks = self:has_like_others("attn_sinks") and self:_weight("attn_sinks") or nil
  return self:_emit("attention", self._prefix .. (name or "attn_out"), q_id, k_id, v_id, sinks, params)
end

---An activation: "silu", "gelu" (tanh form), "gelu_erf", "relu", or a table for the clamped one of gpt-oss.
---@alias kigo.Act string|{ kind: string, limit: number?, alpha: number? }

---act(gate) * up
---@param act kigo.Act
---@param gate kigo.Value
---@param up kigo.Value
---@param name? string default "ffn_act"
---@return kigo.Value
function Graph:glu(act, gate, up, name)
  local gate_id, up_id = id_of(self._plan, gate, "gate"), id_of(self._plan, up, "up")
  return self:_emit("glu", self._prefix .. (name or "ffn_act"), gate_id, up_id, act)
end

---act(x)
---@param act kigo.Act
---@param x kigo.Value
---@param name? string default "ffn_act"
---@return kigo.Value
function Graph:act(act, x, name)
  local id = id_of(self._plan, x, "x")
  return self:_emit("act", self._prefix .. (name or "ffn_act"), id, act)
end

---@class kigo.MoeParameters
---@field experts integer
---@field used integer
---@field gate "softmax"|"softmax_used"|"sigmoid" how router logits become weights
---@field normalize? boolean divide the used weights by their sum
---@field scale? number of the used weights; default 1
---@field groups? integer equal parts of the experts; default 1
---@field groups_used? integer only experts of the best groups are used; default all
---@field group_top? 1|2 a group is as good as the sum of its best one or two; default 1
---@field act kigo.Act

---A mixture of experts: router "ffn_gate_inp", experts "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", each with the
---bias that stands in the file (older files have a tensor for each expert, "ffn_gate.0"); "exp_probs_b.bias" is added
---to the experts' scores for the choice alone. A shared expert whose weight comes from a gate is one more mixture, of
---one expert, with a suffix of its own.
---@param x kigo.Value
---@param params kigo.MoeParameters
---@param name? string default "ffn_moe"
---@param router? string default "ffn_gate_inp"
---@param suffix? string of the experts' weights, default "_exps"
---@return kigo.Value
function Graph:moe(x, params, name, router, suffix)
  local id, routes = id_of(self._plan, x, "x"), self:linear(x, router or "ffn_gate_inp")
  local weights = {}
  for _, role in ipairs { "gate", "up", "down" } do
    local weight = "ffn_" .. role .. (suffix or "_exps")
    weights[role] = self:_experts("ffn_" .. role, suffix, params.experts)
    weights[role .. "_bias"] = self:_bias(weight)
  end
  if not suffix then weights.choice_bias = self:_bias "exp_probs_b" end
  return self:_emit("moe", self._prefix .. (name or "ffn_moe"), id, routes.id, weights, params)
end

---x * factor
---@param x kigo.Value
---@param factor number
---@param name? string default the value's name with "_scaled"
---@return kigo.Value
function Graph:scale(x, factor, name)
  local id = id_of(self._plan, x, "x")
  name = name and self._prefix .. name or x.name .. "_scaled"
  return self:_emit("scale", name, id, factor)
end

---cap * tanh(x / cap)
---@param x kigo.Value
---@param cap number
---@param name? string default the value's name with "_capped"
---@return kigo.Value
function Graph:softcap(x, cap, name)
  local id = id_of(self._plan, x, "x")
  name = name and self._prefix .. name or x.name .. "_capped"
  return self:_emit("softcap", name, id, cap)
end

---Columns [first, first + width) of x, or of each of some equal parts of it: parts of a fused projection.
---@param x kigo.Value
---@param first integer 0-based
---@param width integer
---@param name string
---@param groups? integer default 1
---@return kigo.Value
function Graph:slice(x, first, width, name, groups)
  local id = id_of(self._plan, x, "x")
  return self:_emit("slice", self._prefix .. name, id, first, width, groups)
end

---Each of some equal parts of a, followed by the same part of b, or by all of b.
---@param a kigo.Value
---@param b kigo.Value
---@param name string
---@param groups? integer default 1
---@param shared? boolean
---@return kigo.Value
function Graph:concat(a, b, name, groups, shared)
  local a_id, b_id = id_of(self._plan, a, "a"), id_of(self._plan, b, "b")
  return self:_emit("concat", self._prefix .. name, a_id, b_id, groups, shared)
end

---Each channel of x convolved over the positions so far, with a row of the weight; adds the bias where the file has
---one. The sequence remembers the last taps - 1 positions. Gated: x is three values b, c and x side by side, b * x is
---convolved and the result multiplied by c.
---@param x kigo.Value
---@param name string
---@param taps integer positions that the weight reaches over, this one counts
---@param gated? boolean
---@return kigo.Value
function Graph:conv(x, name, taps, gated)
  local id = id_of(self._plan, x, "x")
  local weight = check(self._plan:weight(self._prefix .. name .. ".weight", taps))
  return self:_emit("conv", self._prefix .. name, id, weight, self:_bias(name), gated)
end

---Name the result of a block "blk.i.out".
---@param x kigo.Value
---@return kigo.Value
function Graph:out(x)
  id_of(self._plan, x, "x")
  return x:named(self._prefix .. "out")
end

---The logits: a projection by the first of these weights that the file has ("output", or the tied "token_embd"). Rows
---behind the tokenizer's last token are padding: nobody shall draw ids that no text belongs to.
---@param x kigo.Value
---@param ... string
---@return kigo.Value
function Graph:logits(x, ...)
  for _, name in ipairs { ... } do
    if self:has(name) then return self:_head(x, name) end
  end
  return fail(core.err.FORMAT, "none of these tensors is in the file: %s.weight", table.concat({ ... }, ".weight, "))
end

function Graph:_head(x, name)
  local rows = self:_rows_of(self:_weight(name))
  if rows ~= self._rows then
    fail(core.err.FORMAT, "tensor %s.weight: %d rows, but %s has %d", name, rows, self._table, self._rows)
  end
  if not self._tokens or rows == self._tokens then return self:linear(x, name, "logits") end
  return self:slice(self:linear(x, name, "logits_padded"), 0, self._tokens, "logits")
end

---The end of a model without a head: what it makes of each token, for embeddings.
---@param x kigo.Value
---@return kigo.Value x
function Graph:embedding(x)
  id_of(self._plan, x, "x")
  self.has_head = false
  return x
end

return graph
