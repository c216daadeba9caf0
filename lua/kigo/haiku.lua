-- The haiku check: proof that text came out of a real model, now. The current minute in words and a nonce go into the
-- prompt; three lines with that word exactly once must come out, and then a canned poem, a replay, a template and a
-- proxy each fail at one of the questions below. On a GPU the device and its driver are asked too (kigo.evidence).
local core = require "kigo.core"
local evidence = require "kigo.evidence"
local numbers = require "kigo.numbers"
local syllables = require "kigo.syllables"

local haiku = {}

-- Topics that the bundled model knows well; any other model has its own opinion of them.
haiku.topics = {
  "a dog at the door", "a snail after rain", "morning birdsong", "ripe persimmons", "an apple orchard",
  "mist over the fields", "a kernel launch", "the fans of a server", "a crowd of small threads", "the quarry",
  "clouds below the peak", "a storm at night", "a bridge in the rain", "the first drops", "a mosquito net",
  "a night swim", "a summer storm",
}

---Sampling of the minute's haiku: warm enough that another seed gives another poem, and no token that the model finds
---unlikely gets in. Measured with the bundled model: 3591 of 3600 checks passed, 60 at every minute.
haiku.sampling = { temp = 1, min_p = 0.45, max = 64 }

---Sampling where only the word counts: what the model finds likeliest.
haiku.greedy = { temp = 0, max = 64 }

---What is asked of the model.
---@param topic string
---@param word string
---@param nonce string
---@return kigo.Message[]
function haiku.messages(topic, word, nonce)
  return { {
    role = "user",
    content = ('Write a haiku about %s that includes the word "%s". (nonce: %s)'):format(topic, word, nonce),
  } }
end

---How often a word stands in a text, as a whole word, in any case: "nine" does not count inside "twenty-nine".
---@param word string
---@param text string
---@return integer
function haiku.occurrences(word, text)
  local n, at = 0, 1
  word, text = word:lower(), " " .. text:lower() .. " "
  while true do
    local first, last = text:find(word, at, true)
    if not first then return n end
    local before, after = text:sub(first - 1, first - 1), text:sub(last + 1, last + 1)
    if not (before:find "[%w_%-]" or after:find "[%w_%-]") then n = n + 1 end
    at = first + 1
  end
end

---@param text string
---@return string[]
function haiku.lines(text)
  local lines = {}
  for line in (text:gsub("%s+$", "") .. "\n"):gmatch "([^\n]*)\n" do lines[#lines + 1] = line end
  return lines
end

---Is this a haiku with the word? Three lines, none empty, the word exactly once.
---@param text string
---@param word string
---@return boolean passed
---@return string? reason
---@return boolean? missing  true when only the word is missing
function haiku.judge_text(text, word)
  local lines = haiku.lines(text)
  if #lines ~= 3 then return false, ("the answer has %d lines, not 3"):format(#lines) end
  for i, line in ipairs(lines) do
    if not line:find "%a" then return false, ("line %d is empty"):format(i) end
  end
  local n = haiku.occurrences(word, text)
  if n == 0 then return false, ('the word "%s" is missing'):format(word), true end
  if n > 1 then return false, ('the word "%s" stands there %d times, not once'):format(word, n) end
  return true
end

---Did the engine compute this answer? Its counters must have moved by exactly the tokens of the prompt and the
---answer, one forward pass per token of the answer at least, and the text must be what the tokens say. Tokens whose
---rows an earlier question left in the prefix cache would be missing there, so the check asks without it.
---@param answer kigo.haiku.Answer
---@param tokenizer kigo.Tokenizer
---@return boolean passed
---@return string? reason
function haiku.judge_work(answer, tokenizer)
  if #answer.ids == 0 then return false, "the answer has no tokens" end
  -- SentencePiece drops the space before a text's first word; after a prompt it stands.
  if tokenizer:decode(answer.ids):gsub("^ ", "") ~= answer.text:gsub("^ ", "") then
    return false, "the text is not what its tokens say"
  end
  -- The last token of an answer that no end token closed was sampled but not evaluated.
  local wanted = answer.prompt_tokens + #answer.ids - (answer.reason == "end" and 0 or 1)
  if answer.evaluated ~= wanted then
    return false, ("the engine evaluated %d tokens where %d of prompt and answer were due")
      :format(answer.evaluated, wanted)
  end
  if answer.steps < #answer.ids then
    return false, ("the engine made %d forward passes for %d tokens"):format(answer.steps, #answer.ids)
  end
  return true
end

---@class kigo.haiku.Answer
---@field text string
---@field ids integer[]
---@field reason string
---@field word string
---@field nonce string
---@field seed integer
---@field prompt_tokens integer
---@field evaluated integer   tokens by which the engine's counter grew
---@field steps integer       forward passes by which it grew
---@field decode_s number     seconds between the first and the last token
---@field receipt kigo.Receipt?   where it was asked for

---@class kigo.haiku.Environment  where the check gets its facts from; specs replace them
---@field clock fun(): integer            the current minute
---@field random fun(): integer           32 random bits
---@field copy fun(): kigo.Model?, string?, integer?  loads the model a second time
---@field topic string?
---@field seed integer?
---@field receipt boolean?                make a receipt of this minute's haiku

---Ask a model for a haiku and count the engine's work.
---@param model kigo.Model
---@param question { topic: string, word: string, nonce: string, seed: integer, greedy: boolean?, receipt: boolean? }
---@return kigo.haiku.Answer?
---@return string? message
---@return integer? code
function haiku.ask(model, question)
  local before = model:stats()
  local options = { seed = question.seed, receipt = question.receipt, prefix_cache = false }
  for name, value in pairs(question.greedy and haiku.greedy or haiku.sampling) do options[name] = value end
  local result, message, code = model:chat(haiku.messages(question.topic, question.word, question.nonce), options)
  if not result then return nil, message, code end
  local after = model:stats()
  return {
    text = result.text, ids = result.ids, reason = result.reason, receipt = result.receipt,
    word = question.word, nonce = question.nonce, seed = question.seed, topic = question.topic,
    prompt_tokens = result.stats.prompt_tokens, decode_s = result.stats.decode_s,
    evaluated = after.n_tokens_evaluated - before.n_tokens_evaluated, steps = after.n_steps - before.n_steps,
  }
end

-- ---- the check ----

---One run of the check; a failed demand is thrown as { reason = ... } and caught in haiku.check.
---@class kigo.haiku.Check
local Check = {}
Check.__index = Check

local function demand(passed, reason, ...)
  if not passed then error({ reason = reason:format(...) }, 0) end
end

function Check:nonce() return ("%08x"):format(self.env.random() & 0xffffffff) end

---An answer whose text and work both pass. The whole check has one retry, for a word that is missing: from another
---seed, and with a new nonce where none is given.
---@param word string
---@param what string        for the reason of a failure
---@param question { nonce: string?, seed: integer, greedy: boolean?, receipt: boolean? }
---@return kigo.haiku.Answer
function Check:poem(word, what, question)
  local seed = question.seed
  while true do
    local answer, message = haiku.ask(self.model, { topic = self.topic, word = word,
      nonce = question.nonce or self:nonce(), seed = seed, greedy = question.greedy, receipt = question.receipt })
    demand(answer, "%s: %s", what, message)
    local worked, why_not = haiku.judge_work(answer, self.model.tokenizer)
    demand(worked, "%s: %s", what, why_not)
    local passed, reason, missing = haiku.judge_text(answer.text, word)
    if passed then return answer end
    demand(missing and self.retries > 0, "%s: %s", what, reason)
    self.retries, seed = self.retries - 1, seed + 2
  end
end

---The haiku of the current minute; a minute that flips meanwhile uses up the retry.
function Check:current()
  while true do
    local minute = self.env.clock()
    local answer = self:poem(numbers.word(minute), "the haiku of this minute",
      { seed = self.seed, receipt = self.env.receipt })
    answer.minute = minute
    if answer.receipt then
      answer.receipt.haiku = { topic = self.topic, word = answer.word, minute = minute, nonce = answer.nonce }
    end
    if self.env.clock() == minute then return answer end
    demand(self.retries > 0, "the minute flipped twice while the haiku was written")
    self.retries = self.retries - 1
  end
end

---The same question, to the letter, from another seed.
function Check:another_seed(first)
  local second = self:poem(first.word, "another seed", { nonce = first.nonce, seed = first.seed + 1 })
  demand(second.text ~= first.text, "another seed gives the same haiku")
end

---Two other minutes, each with its own word and without the first one's. Only the word counts here: no draw.
function Check:other_minutes(first)
  local step = 1 + self.env.random() % 29
  for i = 1, 2 do
    local word = numbers.word((first.minute + i * step) % 60)
    local answer = self:poem(word, 'the word "' .. word .. '"', { seed = self.seed, greedy = true })
    demand(haiku.occurrences(first.word, answer.text) == 0, 'asked for "%s", the model still says "%s"', word,
      first.word)
  end
end

---Note what the device or its driver showed; a failed finding is the end.
---@param finding kigo.evidence.Finding
function Check:found(finding)
  table.insert(self.report.evidence, finding)
  demand(finding.passed, "%s: %s", finding.what, finding.text)
end

---What the driver says about the device now, with nothing of ours left that waits to be collected.
function Check:device_info()
  collectgarbage()
  collectgarbage()
  local info, message = self.model:device_info()
  demand(info, "asking the device: %s", message)
  return info
end

---The device holds the file's weights.
function Check:weights()
  local weights, message = self.model:check_weights()
  demand(weights, "reading the weights back: %s", message)
  self:found(evidence.weights(weights))
end

---The damage below is seen where the weights are.
local function see_damage(copy)
  local weights, message = copy:check_weights()
  demand(weights, "reading the weights back: %s", message)
  demand(weights.differs and weights.device_sum ~= weights.file_sum,
    "the weights read back from the device equal the file although they were scrambled")
end

---A second load of the model writes the same haiku, and none once a layer of it is scrambled. On a GPU the device's
---memory shows that it came and went.
function Check:damage(first)
  if not self.is_gpu then return self:damage_copy(first) end
  local before = self:device_info()
  local open, packed = self:damage_copy(first)
  self:found(evidence.memory(before, open, self:device_info(), packed))
end

---@return kigo.DeviceInfo? open   on a GPU: while the copy was open
---@return integer packed          bytes of its weights
function Check:damage_copy(first)
  local copy <close>, message = self.env.copy()
  demand(copy, "the second load of the model: %s", message)
  local open
  local packed = copy:stats().weight_bytes
  local question = { topic = self.topic, word = first.word, nonce = first.nonce, seed = first.seed }
  local same
  same, message = haiku.ask(copy, question)
  demand(same, "the second load of the model: %s", message)
  demand(same.text == first.text, "the second load of the model writes another haiku from the same seed")
  if self.is_gpu then open = self:device_info() end
  demand(copy:scramble("blk.1.", self.seed) > 0, "the copy has no layer to scramble")
  if self.is_gpu then see_damage(copy) end
  local damaged, why, code = haiku.ask(copy, question)
  if not damaged then -- no haiku is what we want, but for want of numbers, not of memory
    demand(code == core.err.NUMERIC, "the scrambled model: %s", why)
  else
    demand(not haiku.judge_text(damaged.text, first.word), "a model with scrambled weights still writes a haiku")
  end
  return open, packed
end

---The questions to the model; on a GPU its own clock counts meanwhile.
function Check:questions()
  local count
  if self.is_gpu then
    local done, message = self.model:set_timing(true)
    demand(done, "timing the device: %s", message)
    count = evidence.count_kernels(self.model)
  end
  self.report.answer = self:current()
  self:another_seed(self.report.answer)
  self:other_minutes(self.report.answer)
  if count then
    self:found(count())
    self:weights()
  end
end

---@class kigo.haiku.Report
---@field passed boolean
---@field reason string?                 why it failed
---@field answer kigo.haiku.Answer?      the haiku of this minute
---@field syllables integer[]?
---@field retries integer                retries used
---@field evidence kigo.evidence.Finding[]   on a GPU: what the device and its driver showed

local function syllable_counts(text)
  local counts = {}
  for i, line in ipairs(haiku.lines(text)) do counts[i] = syllables.line(line) end
  return counts
end

---The whole check. It never raises for what a model does: whatever goes wrong is a failed check with its reason.
---@param model kigo.Model
---@param env kigo.haiku.Environment
---@return kigo.haiku.Report
function haiku.check(model, env)
  local report = { passed = false, retries = 0, evidence = {} }
  local check = setmetatable({
    model = model, env = env, report = report, retries = 1, is_gpu = evidence.is_due(model),
    topic = env.topic or haiku.topics[1 + env.random() % #haiku.topics], seed = env.seed or env.random(),
  }, Check)
  local done, thrown = xpcall(function()
    check:questions()
    check:damage(report.answer)
  end, function(e) return type(e) == "table" and e or { reason = debug.traceback(tostring(e), 2) } end)
  if check.is_gpu then model:set_timing(false) end
  report.passed, report.retries = done, 1 - check.retries
  if not done then report.reason = thrown.reason end
  if report.answer then report.syllables = syllable_counts(report.answer.text) end
  return report
end

-- ---- in the real world ----

local function random_bits()
  return (string.unpack("<I4", assert(core.random_bytes(4))))
end

---The environment of a real check: the wall clock, the system's random bytes, and a second load by `load`.
---@param load fun(): kigo.Model?, string?, integer?
---@param options? { topic: string?, seed: integer?, receipt: boolean? }
---@return kigo.haiku.Environment
function haiku.environment(load, options)
  options = options or {}
  return {
    clock = function() return os.date("*t").min end,
    random = random_bits, copy = load, topic = options.topic, seed = options.seed,
    receipt = options.receipt,
  }
end

---The model that comes with kigo, or nil where it is not installed.
---@return string?
function haiku.bundled_model()
  local here = package.searchpath("kigo.haiku", package.path) or ""
  local root = (here:match "^(.*)lua/kigo/haiku%.lua$" or "./"):gsub("[^/.]+/%.%./$", "")
  local path = root .. "examples/haiku-model/kigo-haiku-4m-q8_0.gguf"
  local file = io.open(path, "rb")
  if not file then return nil end
  file:close()
  return path
end

---The report as lines of text, the verdict last.
---@param model kigo.Model
---@param report kigo.haiku.Report
---@return string
function haiku.describe(model, report)
  local out, stats = {}, model:stats()
  local function add(...) out[#out + 1] = string.format(...) end
  local answer = report.answer
  if answer then
    add("\n  %s\n", answer.text:gsub("\n", "\n  "))
    add("word       %s (minute %d, nonce %s, seed %d)", answer.word, answer.minute, answer.nonce, answer.seed)
  end
  add("model      %s", model.path)
  add("device     %s (%s)", stats.device, stats.variant)
  if answer then
    add("tokens     %d, %.0f tokens/s, after a prompt of %d", #answer.ids,
      #answer.ids / math.max(answer.decode_s, 1e-9), answer.prompt_tokens)
    local counts = table.concat(report.syllables, "-")
    add("syllables  %s by rule of thumb%s", counts, counts == "5-7-5" and "" or ", where 5-7-5 is the custom")
  end
  if report.retries > 0 then add("retries    %d", report.retries) end
  for _, finding in ipairs(report.evidence) do
    add("%-10s %s: %s", finding.what, finding.text, finding.passed and "passed" or "FAILED")
  end
  if report.passed then
    add("Haiku anti-cheat PASSED (%s)", stats.device:find "^cuda" and "REAL GPU INFERENCE" or "real CPU inference")
  else
    add("Haiku anti-cheat FAILED: %s", report.reason)
  end
  return table.concat(out, "\n") .. "\n"
end

return haiku
