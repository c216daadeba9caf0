-- logprobs.lua - how likely a given text is: the log-probability of each of its tokens after those before it. Logits of
-- many positions are computed together, in pieces that bound memory; Lua sees a number per token.
local core = require "kigo.core"
local check = require "kigo.check"
local pass = require "kigo.pass"

local Sequence, Model = core.classes.Sequence, core.classes.Model

local PIECE_FLOATS, PIECE_ROWS = 16 << 20, 256 -- of logits at once: 64 MB, and as much for their logarithms

---@class kigo.Alternative
---@field id integer
---@field logprob number

---@class kigo.Logprobs
---@field ids integer[]
---@field logprobs (number|false)[]       of each id; false where it was not asked for, or nothing stands before it
---@field top (kigo.Alternative[]|false)[]?  the likeliest ids in each place, best first
---@field n integer        ids that have one
---@field sum number       of those
---@field mean number      0 where there are none

---@class kigo.LogprobsOptions
---@field top? integer    also report so many alternatives
---@field from? integer   1-based index of the first id that is asked for; default 1
local logprobs_options = { top = "integer", from = "integer" }

---@param row kigo.Tensor   log-probabilities [vocab]
---@param n integer
---@return kigo.Alternative[]
local function alternatives(row, n)
  local ids, values = row:topk(n)
  local out = {}
  for i, id in ipairs(ids) do out[i] = { id = id, logprob = values[i] } end
  return out
end

---Note what the row in front of id `i` says about it.
local function note(result, i, row, top)
  local value = row[result.ids[i]]
  result.logprobs[i] = value
  result.n, result.sum = result.n + 1, result.sum + value
  if top then result.top[i] = alternatives(row, top) end
end

---Feed ids [first, last] and note what their logits say about the ids behind each.
local function do_piece(seq, result, first, last, from, top)
  local pos, ids = seq:pos(), result.ids
  local fed, message, code = seq:feed(table.move(ids, first, last, 1, {}))
  if not fed then return nil, message, code end
  local begin = math.max(first, from - 1) -- the first whose logits matter
  local stop = math.min(last, #ids - 1)
  if begin > stop then return pass.step(seq) end
  local rows
  rows, message, code = seq.model:zeros(last - begin + 1, seq.model.vocab_size)
  if not rows then return nil, message, code end
  local done
  done, message, code = pass.step(seq, rows, pos + begin - first)
  if not done then return nil, message, code end
  local log_probs <close> = rows:log_softmax()
  rows:close()
  for i = begin, stop do note(result, i + 1, log_probs:row(i - begin), top) end
  return true
end

---@param seq kigo.Sequence
---@param result kigo.Logprobs
local function do_all(seq, result, from, top)
  local ids = result.ids
  if seq:pos() > 0 and from == 1 and #ids > 0 then
    local done, message, code = seq:step()
    if not done then return nil, message, code end
    local log_probs <close> = seq.logits:log_softmax()
    note(result, 1, log_probs, top)
  end
  local piece = math.max(1, math.min(PIECE_ROWS, PIECE_FLOATS // seq.model.vocab_size))
  for first = 1, #ids, piece do
    local done, message, code = do_piece(seq, result, first, math.min(first + piece - 1, #ids), from, top)
    if not done then return nil, message, code end
  end
  return true
end

---The ids of a text as seq:feed would take it.
local function ids_of(seq, input)
  if type(input) == "string" then
    local tokenizer = seq.model.tokenizer
      or error("the model was loaded without a tokenizer; work with token ids", 3)
    return tokenizer:encode(input, { bos = seq:pos() == 0 })
  end
  if type(input) ~= "table" then error("logprobs: ids or text expected, got " .. type(input), 3) end
  return input
end

---Feed tokens and tell how likely each of them was after those before it. On failure the sequence is as it was.
---@param input integer[]|string   text that opens a timeline gets the tokens that the model's file asks for there (BOS)
---@param options? kigo.LogprobsOptions
---@return kigo.Logprobs?
---@return string? message
---@return integer? code
function Sequence:logprobs(input, options)
  options = check.options(options, logprobs_options)
  local ids, why, code = ids_of(self, input)
  if not ids then return nil, why, code end
  local from, top = options.from or 1, options.top
  if from < 1 or from > #ids + 1 then error(("from: %d is outside 1 to %d"):format(from, #ids + 1), 2) end
  if top and (top < 1 or top > self.model.vocab_size) then
    error(("top: %d is outside 1 to %d"):format(top, self.model.vocab_size), 2)
  end
  local room = self.model.context - self:pos()
  if #ids > room then
    return nil, ("%d tokens do not fit into the %d that the context still holds"):format(#ids, room), core.err.FULL
  end
  local result = { ids = ids, logprobs = {}, top = top and {} or nil, n = 0, sum = 0 }
  for i = 1, #ids do
    result.logprobs[i] = false
    if top then result.top[i] = false end
  end
  local mark = self:mark()
  local called, done, message, failed = pcall(do_all, self, result, from, top)
  if not (called and done) then self:rewind(mark) end
  if not called then error(done, 0) end
  if not done then return nil, message, failed end
  result.mean = result.n > 0 and result.sum / result.n or 0
  return result
end

---The same on a sequence of its own. The first token has nothing before it, so that its log-probability is false.
---@param input integer[]|string
---@param options? kigo.LogprobsOptions
---@return kigo.Logprobs?
---@return string? message
---@return integer? code
function Model:logprobs(input, options)
  local seq <close>, message, code = self:sequence {}
  if not seq then return nil, message, code end
  return seq:logprobs(input, options)
end

return { alternatives = alternatives }
