-- perplexity.lua - how well a model foretells a text: exp of the mean negative log-likelihood of its tokens. A text
-- longer than the context is read in windows that overlap, and every token counts once, in the first window that
-- reaches it: with a context of `ctx` and a stride of `stride` each has at least ctx - stride tokens before it, but for
-- those of the first window. Every window begins as the model's file asks texts to (BOS).
local core = require "kigo.core"
local check = require "kigo.check"

local perplexity = {}

---@class kigo.Perplexity
---@field perplexity number
---@field error number       one standard error of it, as if tokens were independent
---@field nll number         mean negative log-likelihood of a token, in nats
---@field n_tokens integer   that count
---@field n_evaluated integer  with those that are read again as context
---@field n_windows integer
---@field seconds number

---@class kigo.PerplexityOptions
---@field ctx? integer       tokens in a window; default: the model's context
---@field stride? integer    new tokens in each window behind the first; default: half of ctx
---@field progress? fun(what: string, done: integer, total: integer): boolean?  in tokens; true cancels
local options_known = { ctx = "integer", stride = "integer", progress = "function" }

local function check_range(name, value, min, max)
  if value < min or value > max then error(("%s: %d is outside %d to %d"):format(name, value, min, max), 4) end
end

---Windows [first, last] of the text, of which ids from `from` on are new.
local function windows(n, room, stride)
  local list, last = {}, 0
  while last < n do
    local from = last + 1
    last = math.min(n, last == 0 and room or last + stride)
    list[#list + 1] = { first = math.max(1, last - room + 1), last = last, from = from }
  end
  return list
end

---Add up a window's numbers. One number a token: this loop is not over a vocabulary.
local function add_window(sums, result, first)
  for i = first, #result.ids do
    local value = result.logprobs[i]
    if value then
      sums.n, sums.sum, sums.squares = sums.n + 1, sums.sum - value, sums.squares + value * value
    end
  end
end

local function finish(sums, n_evaluated, n_windows, seconds)
  local mean = sums.sum / sums.n
  local variance = sums.n > 1 and math.max(0, (sums.squares - sums.n * mean * mean) / (sums.n - 1)) or 0
  local value = math.exp(mean)
  return { perplexity = value, error = value * (variance / sums.n) ^ 0.5, nll = mean, n_tokens = sums.n,
    n_evaluated = n_evaluated, n_windows = n_windows, seconds = seconds }
end

---Measure it.
---@param model kigo.Model
---@param ids integer[]   the text, without what begins it
---@param options? kigo.PerplexityOptions
---@return kigo.Perplexity?
---@return string? message
---@return integer? code   kigo.err.CANCELLED, where the progress function asked for it
function perplexity.measure(model, ids, options)
  options = check.options(options, options_known)
  local tokenizer = model.tokenizer
  local begins = tokenizer and tokenizer.add_bos and tokenizer.bos
  local n_before = begins and 1 or 0
  local ctx = options.ctx or model.context
  check_range("ctx", ctx, 2, model.context)
  local room = ctx - n_before
  local stride = options.stride or math.max(1, ctx // 2)
  check_range("stride", stride, 1, ctx - 1)
  if #ids + n_before < 2 then error("a text of at least two tokens is needed", 2) end
  local sums, list, t0 = { n = 0, sum = 0, squares = 0 }, windows(#ids, room, stride), core.now()
  local n_evaluated = 0
  for _, window in ipairs(list) do
    local part = begins and { begins } or {}
    table.move(ids, window.first, window.last, n_before + 1, part)
    local from = n_before + window.from - window.first + 1
    local result, message, code = model:logprobs(part, { from = from })
    if not result then return nil, message, code end
    add_window(sums, result, from)
    n_evaluated = n_evaluated + #part
    if options.progress and options.progress("perplexity", window.last, #ids) then
      return nil, ("cancelled after %d of %d tokens"):format(window.last, #ids), core.err.CANCELLED
    end
  end
  return finish(sums, n_evaluated, #list, core.now() - t0)
end

return perplexity
