-- Computing receipts again, on any backend.
local check = require "kigo.check"
local core = require "kigo.core"
local haiku = require "kigo.haiku"
local json = require "kigo.json"
local numbers = require "kigo.numbers"
local record = require "kigo.receipt.record"
local stages = require "kigo.receipt.stages"
local text = require "kigo.receipt.text"

local verify = {}

---@class kigo.receipt.Report
---@field passed boolean
---@field problems string[]        what does not fit, the first step's before the later ones'
---@field step integer?            the first step that does not fit
---@field steps kigo.receipt.StepReport[]
---@field same boolean             the engine, device, variant and cache type of the receipt
---@field bitwise boolean          every logit of the receipt came out with the same bits
---@field tolerance number         largest difference of a logit that was allowed
---@field max_difference number
---@field rms_difference number
---@field draws string             "exact", "possible" or "script": what the draws were held against; script: nothing,
---because only Lua knows the sampler, or because it depends on every bit of the logits (XTC, dynamic temperature,
---mirostat) and this is another backend

---@class kigo.receipt.StepReport
---@field id integer
---@field rank integer             1: the model's best
---@field probability number       before the sampler
---@field difference number        largest one of the step's logits
---@field problem string?

-- Largest and root mean square differences between backends (fixtures: float32 arithmetic 1e-3, relative 1e-4; weights
-- or activations of fewer bits 0.6, relative 0.06; logits of standard deviation 2.5).
local EXACT, ROUNDED = { max = 1e-3, rms = 2.5e-4 }, { max = 0.6, rms = 0.15 }

local function is_float32(model, r)
  for _, tensor in ipairs(model.gguf:tensors()) do
    if #tensor.shape > 1 and tensor.type:lower() ~= "f32" then return false end
  end
  return r.device.kv == "f32" and model:stats().kv == "f32"
end

local Verification = {}
Verification.__index = Verification

function Verification:problem(what, ...)
  table.insert(self.report.problems, what:format(...))
end

local function is_same(model, r)
  local here = record.device(model)
  return r.versions.kigo == core.version and r.device.name == here.name and r.device.variant == here.variant
    and r.device.kv == here.kv
end

---Find the receipt's adapters among those given: by their contents, each taken once. False where one is missing.
function Verification:find_adapters(given)
  local taken = {}
  self.adapters = {}
  for i, wanted in ipairs(self.receipt.adapters or {}) do
    for _, adapter in ipairs(given) do
      if not self.adapters[i] and not taken[adapter] and adapter.sha256 == wanted.sha256 then
        self.adapters[i], taken[adapter] = { adapter = adapter, scale = wanted.scale }, true
      end
    end
    if not self.adapters[i] then
      self:problem("adapters[%d]: the answer was written under the adapter %s, SHA-256 %s, which is not given", i,
        check.quoted(wanted.name), wanted.sha256)
      return false
    end
  end
  return true
end

---The checks that need no forward pass. False when there is nothing to compare a computation with.
function Verification:facts()
  local r, model = self.receipt, self.model
  local files, message, code = record.model_files(model)
  if not files then return nil, message, code end
  local same = #files == #r.model.files
  for i, one in ipairs(files) do same = same and one.sha256 == r.model.files[i].sha256 end
  if not same then
    self:problem("model: another one: its SHA-256 is %s, not %s", files[1].sha256, r.model.files[1] and
      r.model.files[1].sha256 or "there")
    return false
  end
  for _, name in ipairs { "prompt", "sampled" } do
    for i, one in ipairs(r[name]) do
      if one >= model.vocab_size then
        self:problem("%s[%d]: %d is not in the vocabulary of %d", name, i, one, model.vocab_size)
        return false
      end
    end
  end
  if #r.prompt + #r.sampled - 1 > model.context then
    return nil, ("the receipt's %d tokens do not fit into the context of %d; load the model with a larger ctx")
      :format(#r.prompt + #r.sampled - 1, model.context), core.err.FULL
  end
  return true
end

local AT_ONCE = 256 << 20 -- bytes of logits computed in one go

---Logits before every sampled id: a function i -> tensor. On the backend of the receipt they come the way they came
---then, a token at a time; elsewhere all at once where memory allows.
function Verification:rows()
  local r, model = self.receipt, self.model
  local timeline = table.move(r.sampled, 1, #r.sampled - 1, #r.prompt + 1, table.move(r.prompt, 1, #r.prompt, 1, {}))
  if not self.report.same and #self.adapters == 0 and #timeline * model.vocab_size * 4 <= AT_ONCE then
    local all, message, code = model:logits(timeline)
    if not all then return nil, message, code end
    return function(i) return all:row(#r.prompt + i - 2) end
  end
  return function()
    local done, message, code = self.seq:step()
    if not done then return nil, message, code end
    return self.seq.logits
  end
end

---Largest difference of a step's logits; also: are the ids the best ones here, as far as the tolerance says?
function Verification:compare(row, seen)
  local report, largest, bitwise = self.report, 0, true
  for i, one in ipairs(seen.ids) do
    if one >= #row then return nil, ("ids: %d is not in the vocabulary"):format(one) end
    local difference = math.abs(row[one] - seen.logits[i])
    if difference ~= difference then return nil, "the logits computed here are not numbers" end
    largest, self.squares = math.max(largest, difference), self.squares + difference * difference
    bitwise = bitwise and difference == 0
  end
  self.n_logits = self.n_logits + #seen.ids
  local best, values = row:topk(math.min(#seen.ids, #row))
  for i, one in ipairs(best) do bitwise = bitwise and one == seen.ids[i] end
  report.bitwise = report.bitwise and bitwise
  report.max_difference = math.max(report.max_difference, largest)
  if largest > report.tolerance then
    return largest, ("a logit is %.9g away from what is computed here (tolerance %g)"):format(largest, report.tolerance)
  end
  local known = {}
  for _, one in ipairs(seen.ids) do known[one] = true end
  for i, one in ipairs(best) do
    if not known[one] and values[i] > seen.logits[#seen.logits] + report.tolerance then
      return largest, ("id %d, with %.9g here, is not among the best of the receipt"):format(one, values[i])
    end
  end
  return largest
end

---By how much the stages may stretch a difference between logits.
local function gain_of(chain)
  local gain = 1
  for _, stage in ipairs(chain:stages()) do
    if stage.kind == "temp" and stage.value > 0 then gain = gain * math.max(1, 1 / stage.value) end
    if stage.kind == "penalties" then gain = gain * math.max(stage["repeat"], 1 / stage["repeat"]) end
  end
  return gain
end

---Together, the shares that another one's place may change with: those within the factor of it.
local function mass_near(shares, share, factor)
  local sum = 0
  for _, one in ipairs(shares) do
    if one <= share * factor and one >= share / factor then sum = sum + one end
  end
  return sum
end

---Would the filters keep another number of candidates if the best one were a little better or worse?
local function is_at_edge(chain, logits, seq, best, delta)
  local value, counts = logits[best], {}
  for i, change in ipairs { -2 * delta, 2 * delta } do
    logits[best] = value + change
    counts[i] = #(chain:candidates(logits, seq) or {})
  end
  logits[best] = value
  return counts[1] ~= counts[2]
end

-- A share at the filters' edge below this is always allowed for; a greater one only where the edge is really near.
local SMALL_SHARE = 0.05

---Could the sampler have drawn the id from logits that differ from these by delta? The seed's number must fall to it,
---with room for what such differences do: to sums of shares (their odds change by at most exp(2 delta)), to the order
---of candidates that are nearly equal, and to who passes a filter.
local function falls_to(drawn, chain, logits, seq, delta)
  local candidates, shares = chain:candidates(logits, seq)
  if not candidates then return false end
  local factor, smallest = math.exp(4 * delta * gain_of(chain)), shares[#shares]
  local room = 2 * (1 - 1 / factor) + 2 * (mass_near(shares, shares[1], factor) - shares[1])
  if smallest < SMALL_SHARE or is_at_edge(chain, logits, seq, candidates[1], delta) then
    room = room + 2 * mass_near(shares, smallest, factor)
  end
  local u, below = core.uniform(seq:seed(), seq:pos(), 0), 0
  for i, candidate in ipairs(candidates) do
    if candidate == drawn then
      room = room + mass_near(shares, shares[i], factor) - shares[i]
      return u >= below - room and u < below + shares[i] + room
    end
    below = below + shares[i]
  end
  return false
end

---The id itself may be better or worse by as much: a filter may have dropped or kept it.
local function may_draw(chain, logits, seq, drawn, delta)
  local logit = logits[drawn]
  for _, change in ipairs { 0, 2 * delta, -2 * delta } do
    logits[drawn] = logit + change
    if falls_to(drawn, chain, logits, seq, delta) then return true end
  end
  return false
end

---Is the id what the sampler draws? The receipt's own logits stand in for those computed here: what is left to differ
---lies below the best ones.
function Verification:draw(i, row, difference)
  local chain = self.chain
  if not chain then return nil end
  local drawn, seen = self.receipt.sampled[i], self.receipt.steps[i]
  local logits <close> = row:clone()
  for at, one in ipairs(seen.ids) do logits[one] = seen.logits[at] end
  local done, got, message = pcall(chain, logits, self.seq) -- raises for a bias on ids that the model has not
  if done and got == drawn then return nil end
  if not done then return got end
  self.seq:rewind(self.seq:pos()) -- as if nothing had been drawn
  local what = got and ("the sampler draws %d here, not %d"):format(got, drawn) or message
  if self.report.bitwise and self.report.same then return what end
  if not may_draw(chain, logits, self.seq, drawn, 2 * difference) then return what end
  self.report.draws = "possible"
  return nil
end

local function rank_of(row, one)
  for _, n in ipairs { 64, #row } do
    for rank, other in ipairs((row:topk(math.min(n, #row)))) do
      if other == one then return rank end
    end
  end
end

function Verification:step(i, row)
  local drawn = self.receipt.sampled[i]
  local probabilities <close> = row:softmax()
  local difference, problem = self:compare(row, self.receipt.steps[i])
  local done = { id = drawn, rank = rank_of(row, drawn), probability = probabilities[drawn],
    difference = difference or math.huge }
  done.problem = problem or self:draw(i, row, difference)
  self.report.steps[i] = done
  if not done.problem then return end
  self.report.step = self.report.step or i
  if self.report.step == i then self:problem("step %d: %s", i, done.problem) end
end

---Every step; a failure of the engine is returned, what does not fit is noted.
function Verification:steps()
  local r = self.receipt
  local fed, message, code = self.seq:feed(r.prompt)
  if not fed then return nil, message, code end
  local rows
  rows, message, code = self:rows()
  if not rows then return nil, message, code end
  for i, drawn in ipairs(r.sampled) do
    local row
    row, message, code = rows(i)
    if not row then return nil, message, code end
    self:step(i, row)
    if i < #r.sampled then
      fed, message, code = self.seq:push(drawn)
      if not fed then return nil, message, code end
    end
  end
  self.report.rms_difference = (self.squares / math.max(self.n_logits, 1)) ^ 0.5
  if self.report.rms_difference > self.rms then
    self:problem("logits: they differ by %.6g in the root mean square, which is more than %g",
      self.report.rms_difference, self.rms)
  end
  return true
end

---The text is what the ids say; a haiku's prompt is what the check asks, and its answer what it accepts.
function Verification:words()
  local r, model = self.receipt, self.model
  if json.encode(record.text(model, r)) ~= json.encode(r.text) then self:problem "text: the ids say something else" end
  if not r.haiku then return end
  local about = r.haiku
  if about.word ~= numbers.word(about.minute) then
    self:problem('haiku.word: minute %d is not "%s"', about.minute, about.word)
  end
  local template = model:template()
  local segments = template and template:render(haiku.messages(about.topic, about.word, about.nonce),
    { generate = true })
  local asked = segments and model.tokenizer:encode(segments)
  if not asked or table.concat(asked, " ") ~= table.concat(r.prompt, " ") then
    self:problem "prompt: it is not the haiku check's"
  end
  local passed, reason = haiku.judge_text(r.text, about.word)
  if not passed then self:problem("text: %s", reason) end
end

---@class kigo.receipt.Options
---@field tolerance? number  largest difference of a logit; default: none on the backend of the receipt, elsewhere what
---the arithmetic of the backends explains
---@field adapters? kigo.Adapter[]   of the model, opened: among them those that the receipt names

---Compute a receipt again. Whatever does not fit is in the report; nil is for what keeps us from finding out.
---@param model kigo.Model
---@param r kigo.Receipt
---@param options? kigo.receipt.Options
---@return kigo.receipt.Report?
---@return string? message
---@return integer? code
function verify.verify(model, r, options)
  local known = check.options(options, { tolerance = "number", adapters = "table" })
  local tolerance = known.tolerance
  for i, adapter in ipairs(known.adapters or {}) do
    if type(adapter) ~= "userdata" then
      error(("adapters[%d]: an adapter expected, got %s"):format(i, type(adapter)), 2)
    end
  end
  local same = is_same(model, r)
  local limits = is_float32(model, r) and EXACT or ROUNDED
  if same then limits = { max = 0, rms = 0 } end
  local report = { problems = json.array {}, steps = json.array {}, same = same, bitwise = true,
    tolerance = tolerance or limits.max, max_difference = 0, rms_difference = 0, draws = "exact" }
  local self = setmetatable({ model = model, receipt = r, report = report, rms = tolerance or limits.rms, squares = 0,
    n_logits = 0 }, Verification)
  local comparable, message, code = self:facts()
  if comparable == nil then return nil, message, code end
  comparable = comparable and self:find_adapters(known.adapters or {})
  if comparable then
    if r.sampler == "script" or not same and stages.is_local(r.sampler) then
      report.draws = "script"
    else
      self.chain, message = stages.chain(r.sampler, model.tokenizer)
      if not self.chain then self:problem("%s", message) end
    end
    local seq <close>, why, kind = model:sequence { seed = math.tointeger(tonumber(r.seed)), prefix_cache = false,
      adapters = self.adapters }
    if not seq then return nil, why, kind end
    self.seq = seq
    local done
    done, message, code = self:steps()
    if not done then return nil, message, code end
    self:words()
  end
  if r.digest and r.digest ~= text.digest(r) then self:problem "digest: the receipt was edited or damaged" end
  report.passed = #report.problems == 0
  return report
end

return verify
