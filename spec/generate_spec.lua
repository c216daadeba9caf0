describe("kigo.generate", function()
  local kigo = require "kigo"
  local support = require "spec.support"

  local STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
    .. "she saw a big, red ball. She wanted to play with it, but it was too high."

  local function stories(ctx)
    return assert(kigo.load(support.fixture "models/stories260K.gguf", { ctx = ctx, threads = 1 }))
  end

  ---A sequence of the model with BOS on it.
  local function begin(model, seed)
    local seq = assert(model:sequence { seed = seed or 1 })
    assert(seq:feed { model.tokenizer.bos })
    return seq
  end

  local model
  setup(function() model = support.shared and stories(256) end)
  teardown(function() if model then model:close() end end)
  local it = support.shared and it or pending -- all of it needs the reference data

  describe("seq:feed", function()
    it("takes ids, text and segments", function()
      local seq <close> = assert(model:sequence {})
      assert.equal(3, seq:feed { 1, 5, 6 })
      local pos = seq:feed "once upon"
      assert.is_true(pos > 3)
      assert.is_true(seq:feed { { text = "a time" } } > pos)
      assert.has_error(function() seq:feed(nil) end)
      assert.has_error(function() seq:feed(5) end)
      assert.has_error(function() seq:feed { model.vocab_size } end)
    end)

    it("puts BOS before text at the start only", function()
      local seq <close> = assert(model:sequence {})
      seq:feed "Once"
      assert.equal(model.tokenizer.bos, seq:tokens()[1])
      local n = seq:pos()
      seq:feed "Once"
      assert.not_equal(model.tokenizer.bos, seq:tokens()[n + 1])
    end)
  end)

  describe("seq:generate", function()
    it("gives the published text, greedy from BOS", function()
      local seq <close> = begin(model)
      local result = assert(seq:generate { temp = 0, max = 90 })
      assert.equal(STORY, result.text:sub(1, #STORY))
      assert.equal("length", result.reason)
      assert.equal(90, result.n_tokens)
      assert.equal(91, seq:pos())
      assert.same(result.ids, table.move(seq:tokens(), 2, 91, 1, {}))
      assert.equal(result.text, model.tokenizer:decode(result.ids))
    end)

    it("gives the same text from the same seed, another from another", function()
      local function sample(seed)
        local seq <close> = begin(model, seed)
        return seq:generate({ temp = 1, top_p = 0.95, max = 40 }).text
      end
      assert.equal(sample(7), sample(7))
      assert.not_equal(sample(7), sample(8))
    end)

    it("ends before a stop string and shows what it shows piece by piece", function()
      local seq <close> = begin(model)
      local shown = {}
      local result = seq:generate { temp = 0, max = 90, stop = { "Lily", "nothing like it" },
        on_text = function(text) shown[#shown + 1] = text end }
      assert.equal("stop", result.reason)
      assert.equal("Once upon a time, there was a little girl named ", result.text)
      assert.equal(result.text, table.concat(shown))
      assert.same(result.text, (begin(model)):generate({ temp = 0, max = 90, stop = "Lily" }).text)
    end)

    it("ends at the model's end token, which stays off the timeline", function()
      local seq <close> = begin(model)
      local n = 0
      local result = seq:generate { max = 50, sample = function(logits)
        n = n + 1
        return n > 3 and model.tokenizer.eos or (logits:argmax())
      end }
      assert.equal("end", result.reason)
      assert.equal(model.tokenizer.eos, result.end_id)
      assert.equal(3, result.n_tokens)
      assert.equal(4, seq:pos())
    end)

    it("can be ended by on_text", function()
      local seq <close> = begin(model)
      local n = 0
      local result = seq:generate { temp = 0, max = 50, on_text = function()
        n = n + 1
        return n < 5
      end }
      assert.equal("cancelled", result.reason)
      assert.equal(5, result.n_tokens)
    end)

    it("reports log-probabilities", function()
      local seq <close> = begin(model)
      local result = seq:generate { temp = 0, max = 8, logprobs = true }
      assert.equal(8, #result.logprobs)
      local sum = 0
      for i, id in ipairs(result.ids) do
        local fresh <close> = assert(model:sequence {})
        fresh:feed(table.move(seq:tokens(), 1, i, 1, {}))
        local expected = fresh.logits:log_softmax()[id]
        assert.near(expected, result.logprobs[i], 1e-4)
        sum = sum + expected
      end
      assert.near(sum / 8, result.mean_logprob, 1e-4)
    end)

    it("reports the log-probabilities of the model, whatever the sampler does to the logits", function()
      local one <close> = begin(model)
      local result = one:generate { max = 5, logprobs = true, sample = function(logits)
        return (logits:mul_(0.1):argmax())
      end }
      local other <close> = begin(model)
      local plain = other:generate { temp = 0, max = 5, logprobs = true }
      assert.same(plain.ids, result.ids)
      assert.same(plain.logprobs, result.logprobs)
    end)

    it("says the same however far it looks ahead", function()
      -- What a run leaves: the answer, what was shown when, the timeline and the counters.
      local function run(options, ahead)
        local seq <close> = begin(model, 11)
        local before, shown = model:stats(), {}
        local all = { ahead = ahead }
        for name, value in pairs(options) do all[name] = value end
        if options.on_text then
          all.on_text = function(text, id)
            local stats = model:stats()
            shown[#shown + 1] = { text, id, seq:pos(), stats.n_tokens_evaluated - before.n_tokens_evaluated,
              stats.n_steps - before.n_steps }
            return options.on_text(#shown, seq)
          end
        end
        local result = assert(seq:generate(all))
        local after, uniform = model:stats(), seq.rng:uniform()
        local next_turn = assert(seq:generate { max = 5, ahead = ahead })
        return { result = result, shown = shown, next_turn = next_turn.ids, tokens = seq:tokens(), uniform = uniform,
          evaluated = after.n_tokens_evaluated - before.n_tokens_evaluated, steps = after.n_steps - before.n_steps }
      end
      local bias = { [model.tokenizer.eos] = 22 } -- an end comes soon
      for _, options in ipairs {
        { max = 40 }, { max = 1 }, { temp = 0, max = 90, stop = { "Lily" } },
        { temp = 1, max = 60, bias = bias },
        { max = 30, repeat_penalty = 1.2, repeat_last = -1, on_text = function() end },
        { max = 30, on_text = function(n) return n < 9 end },
        { max = 20, on_text = function(n, seq) if n % 5 == 0 then assert.equal(model.vocab_size, #seq.logits) end end },
      } do
        local expected = run(options, 1)
        for _, ahead in ipairs { 2, 5, 64 } do assert.same(expected, run(options, ahead)) end
      end
      assert.equal("end", run({ temp = 1, max = 60, bias = bias }, 16).result.reason)
      local seq <close> = begin(model)
      for _, ahead in ipairs { 0, -3, 1025 } do assert.has_error(function() seq:generate { ahead = ahead } end) end
    end)

    it("takes a chain as sampler", function()
      local seq <close> = begin(model)
      local pick = kigo.chain { kigo.top_k(1), kigo.dist() }
      assert.equal(STORY:sub(1, 40), seq:generate({ sample = pick, max = 60 }).text:sub(1, 40))
    end)

    it("passes a sampler's error on with a traceback and leaves the sequence usable", function()
      local seq <close> = begin(model)
      local n = 0
      local function clumsy(logits)
        n = n + 1
        if n == 4 then error "the sampler fell over" end
        return (logits:argmax())
      end
      local done, message = pcall(seq.generate, seq, { sample = clumsy, max = 20 })
      assert.is_false(done)
      assert.truthy(message:find("the sampler fell over", 1, true))
      assert.truthy(message:find("stack traceback", 1, true))
      assert.truthy(message:find("generate_spec", 1, true))
      assert.equal(4, seq:pos())
      local rest = seq:generate { temp = 0, max = 87 }
      local whole <close> = begin(model)
      whole:generate { temp = 0, max = 90 }
      assert.same(whole:tokens(), seq:tokens())
      assert.equal(87, rest.n_tokens)
    end)

    it("passes an error of on_text on in the same way", function()
      local seq <close> = begin(model)
      local done, message = pcall(seq.generate, seq, { temp = 0, max = 5, on_text = function() error "no paper" end })
      assert.is_false(done)
      assert.truthy(message:find("no paper", 1, true))
      assert.equal(2, seq:pos())
    end)

    for what, value in pairs {
      ["nil"] = false, ["-1"] = -1, ["512"] = 512, ["1.5"] = 1.5, ['"Lily"'] = "Lily",
      ["9223372036854775807"] = math.maxinteger,
    } do
      it("names what a sampler returned instead of an id: " .. what, function()
        local seq <close> = begin(model)
        local done, message = pcall(seq.generate, seq, { max = 5, sample = function() return value or nil end })
        assert.is_false(done)
        assert.truthy(message:find(what, 1, true), message)
        assert.equal(1, seq:pos())
      end)
    end

    it("hands on the fault of a chain that a sampler calls", function()
      local seq <close> = begin(model)
      local result, message, code = seq:generate { max = 5, sample = function()
        return nil, "nothing left", kigo.err.NUMERIC
      end }
      assert.is_nil(result)
      assert.equal("nothing left", message)
      assert.equal(kigo.err.NUMERIC, code)
    end)

    it("says up front that an answer cannot fit, with both counts", function()
      local small <close> = stories(32)
      local seq <close> = begin(small)
      local result, message, code = seq:generate { temp = 0, max = 32 }
      assert.is_nil(result)
      assert.equal(kigo.err.FULL, code)
      assert.truthy(message:find "1 tokens" and message:find "32")
      assert.equal(1, seq:pos())
      assert.equal(31, seq:generate({ temp = 0, max = 31 }).n_tokens)
      assert.equal(kigo.err.FULL, (select(3, seq:generate { temp = 0 })))
      assert.equal(kigo.err.FULL, (select(3, seq:generate { temp = 0, max = 1 })))
    end)

    it("fills the context when no max is given, and says that the length ended it", function()
      local small <close> = stories(32)
      local seq <close> = begin(small)
      local result = assert(seq:generate { temp = 0 })
      assert.equal("length", result.reason)
      assert.equal(32, seq:pos())
    end)

    it("raises for options that do not exist and values that make no sense", function()
      local seq <close> = begin(model)
      assert.error_matches(function() seq:generate { temperature = 1 } end, "temperature")
      assert.error_matches(function() seq:generate { max = "8" } end, "max")
      assert.has_error(function() seq:generate { max = 0 } end)
      assert.has_error(function() seq:generate { temp = -1 } end)
      assert.has_error(function() seq:generate { top_p = 2 } end)
      assert.has_error(function() seq:generate { sample = 5 } end)
      assert.has_error(function() seq:generate { stop = { "" } } end)
      assert.equal(1, seq:pos())
    end)

    it("refuses closed sequences", function()
      local seq = begin(model)
      seq:close()
      assert.has_error(function() seq:generate { max = 1 } end)
      assert.has_error(function() seq:feed "x" end)
      assert.has_error(function() seq:stream { max = 1 } end)
    end)
  end)

  describe("seq:stream", function()
    it("gives a token at a time", function()
      local seq <close> = begin(model)
      local text, count = "", 0
      for i, piece, id in seq:stream { temp = 0, max = 30 } do
        text, count = text .. piece, i
        assert.is_true(id == nil or math.type(id) == "integer")
      end
      assert.is_true(count >= 30)
      local other <close> = begin(model)
      assert.equal(other:generate({ temp = 0, max = 30 }).text, text)
    end)

    it("may be left at any token", function()
      local seq <close> = begin(model)
      for i in seq:stream { temp = 0, max = 30 } do
        if i == 3 then break end
      end
      assert.equal(4, seq:pos())
    end)

    it("raises when the answer cannot fit", function()
      local seq <close> = begin(model)
      assert.has_error(function() seq:stream { max = 1000 } end)
    end)
  end)

  describe("transactions", function()
    it("repeat an answer after a rewind, and part after a fork with another seed", function()
      local seq <close> = begin(model, 3)
      local mark = seq:mark()
      local first = seq:generate({ temp = 1, max = 20 }).ids
      seq:rewind(mark)
      assert.same(first, seq:generate({ temp = 1, max = 20 }).ids)
      seq:rewind(mark)
      local branch <close> = assert(seq:fork { seed = 4 })
      assert.not_same(first, branch:generate({ temp = 1, max = 20 }).ids)
    end)
  end)

  describe("model:chat and conversations", function()
    local QUESTION = 'Write a haiku about the autumn moon that includes the word "twenty-nine".'
    local poet
    setup(function() poet = assert(kigo.load(support.haiku_model, { ctx = 256, threads = 1 })) end)
    teardown(function() poet:close() end)

    it("answers with text, ids and stats", function()
      local reference = support.read_json(support.fixture "models/haiku.json")
      local result = assert(poet:chat({ { role = "user", content = QUESTION } }, { temp = 0 }))
      assert.equal(reference.greedy_text, result.text)
      assert.equal("end", result.reason)
      assert.equal(reference.greedy[#reference.greedy], result.end_id)
      reference.greedy[#reference.greedy] = nil
      assert.same(reference.greedy, result.ids)
      assert.equal(#reference.prompt, result.stats.prompt_tokens)
      assert.equal(#result.ids, result.stats.tokens)
    end)

    it("refuses a model without a chat template, and raises for unknown options", function()
      local messages = { { role = "user", content = "hi" } }
      assert.equal(kigo.err.UNSUPPORTED, (select(3, model:chat(messages))))
      assert.equal(kigo.err.UNSUPPORTED, (select(3, model:conversation())))
      assert.equal(kigo.err.UNSUPPORTED, (select(3, model:template "chatml")))
      assert.error_matches(function() poet:chat(messages, { tempo = 1 }) end, "tempo")
      assert.has_error(function() poet:chat "hi" end)
    end)

    it("keeps what was said, by the ids that were sampled", function()
      local chat <close> = assert(poet:conversation { temp = 0.8, seed = 5 })
      local first = assert(chat:say(QUESTION))
      local before = chat.seq:tokens()
      local evaluated = poet:stats().n_tokens_evaluated
      local second = assert(chat:say "Write a haiku.")
      local after = chat.seq:tokens()
      assert.same(before, table.move(after, 1, #before, 1, {}))
      assert.is_true(poet:stats().n_tokens_evaluated - evaluated <= #after - #before + 1)
      -- The timeline is what a template would have made of the whole conversation.
      local tokenizer = poet.tokenizer
      local text = tokenizer:decode(after, { control = true })
      local whole = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n%s<|im_end|>\n"
        .. "<|im_start|>user\nWrite a haiku.<|im_end|>\n<|im_start|>assistant\n%s"
      assert.equal(whole:format(QUESTION, first.text, second.text), text)
    end)

    it("starts over after a reset, with its system message", function()
      local chat <close> = assert(poet:conversation { temp = 0, system = "You are a haiku poet." })
      local first = chat:say(QUESTION)
      chat:say "Write a haiku."
      assert(chat:reset())
      assert.equal(0, chat.seq:pos())
      assert.equal(first.text, chat:say(QUESTION).text)
      assert.truthy(poet.tokenizer:decode(chat.seq:tokens()):find("You are a haiku poet.", 1, true))
    end)

    it("stays as it was when the context cannot hold a turn", function()
      local chat <close> = assert(poet:conversation { temp = 0 })
      assert(chat:say(QUESTION))
      local before = chat.seq:tokens()
      local result, _, code = chat:say(("long "):rep(300))
      assert.is_nil(result)
      assert.equal(kigo.err.FULL, code)
      assert.same(before, chat.seq:tokens())
      assert(chat:say "Write a haiku.")
    end)

    it("stays as it was when reading the prompt is cancelled", function()
      local chat <close> = assert(poet:conversation { temp = 0 })
      poet:set_progress(function() return true end)
      local result, _, code = chat:say(("words "):rep(60))
      poet:set_progress(nil)
      assert.is_nil(result)
      assert.equal(kigo.err.CANCELLED, code)
      assert.equal(0, chat.seq:pos())
      assert(chat:say(QUESTION))
    end)

    it("goes on after an answer that was cut", function()
      local chat <close> = assert(poet:conversation { temp = 0 })
      assert.equal("length", chat:say(QUESTION, { max = 4 }).reason)
      assert(chat:say("Write a haiku.", { max = 4 }))
    end)

    ---A sampler that says these texts, one an answer, whatever the model thinks.
    local function saying(...)
      local tokenizer, answers = poet.tokenizer, { ... }
      local ids
      return function()
        ids = ids or assert(tokenizer:encode(table.remove(answers, 1) or error "no more answers"))
        local id = table.remove(ids, 1)
        if not id then ids = nil end
        return id or tokenizer.eos
      end
    end

    it("takes answers apart", function()
      local deltas = {}
      local text = '<think>\nHm.\n</think>\n\nOh.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
      local result = assert(poet:chat({ { role = "user", content = "hi" } }, { format = "hermes",
        on_delta = function(delta) deltas[#deltas + 1] = delta.type end, sample = saying(text) }))
      assert.equal("Oh.", result.answer.content)
      assert.equal("Hm.", result.answer.reasoning)
      assert.equal(1, result.answer.tool_calls[1].values.x)
      assert.equal("reasoning", deltas[1])
      assert.equal("call_end", deltas[#deltas])
      assert.same({ role = "assistant", content = "Oh.", reasoning_content = "Hm.", tool_calls = { { id = "call00001",
        type = "function", ["function"] = { name = "f", arguments = { x = 1 } } } } }, result.message)
      assert.equal(text, result.text)
    end)

    it("reads answers in the format that the template teaches", function()
      local source = "{{ messages[0].content }}<tool_call>{% if enable_thinking %}<think>\n{% endif %}"
      local template = assert(kigo.template.new(source, poet.tokenizer))
      local messages = { { role = "user", content = "hi" } }
      assert.equal("plain", poet:parser().format)
      assert.equal("hermes", poet:parser({ template = template }).format)
      assert.equal("mistral", poet:parser({ template = template, format = "mistral" }).format)
      for _, on in ipairs { true, false } do
        local prompt = template:render(messages, { enable_thinking = on })
        local parser = poet:parser { template = template, prompt = prompt }
        parser:add "Hm.</think>Yes."
        parser:finish()
        assert.equal(on and "Yes." or "Hm.</think>Yes.", parser:result().content)
        local result = assert(poet:chat(messages, { template = template, enable_thinking = on,
          sample = saying "Hm.</think>Yes." }))
        assert.equal(on and "Hm." or nil, result.answer.reasoning)
      end
      assert.has_error(function() poet:parser { formt = "hermes" } end)
      assert.has_error(function() poet:parser { format = "hermess" } end)
    end)

    it("takes the file's template for tools where it has one", function()
      local find = require("kigo.conversation").template
      local function model_with(key)
        return { gguf = { get = function(_, asked) return asked == key and "x" or nil end },
          template = function(_, name) return name or "the first" end }
      end
      local with = model_with "tokenizer.chat_template.tool_use"
      assert.equal("tool_use", find(with, { tools = {} }))
      assert.equal("the first", find(with, {}))
      assert.equal("rag", find(with, { tools = {}, template = "rag" }))
      assert.equal("the first", find(model_with "other", { tools = {} }))
    end)

    it("hands a parser's error on, and the conversation stays as it was", function()
      local chat <close> = assert(poet:conversation { sample = saying("one", "two") })
      local ok = pcall(chat.say, chat, "hi", { on_delta = function() error "mine" end })
      assert.is_false(ok)
      assert.equal(0, chat.seq:pos())
      assert.same({}, chat.messages)
    end)

    it("brings tools their answers back", function()
      local source = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ (m.content or '') }}"
        .. "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
        .. "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
      local template = assert(kigo.template.new(source, poet.tokenizer))
      local call = '<tool_call>{"name": "f", "arguments": {"b": 1, "a": [2.5, null]}}</tool_call>'
      local chat <close> = assert(poet:conversation { template = template, sample = saying(call, "Done.") })
      local first = assert(chat:say "Go.").answer.tool_calls[1]
      local before = chat.seq:tokens()
      assert.equal("f", first.name)
      assert.equal("Done.", chat:say({ { role = "tool", content = "42", tool_call_id = "call00001" } }).text)
      assert.same({ "user", "assistant", "tool", "assistant" }, (function()
        local roles = {}
        for i, message in ipairs(chat.messages) do roles[i] = message.role end
        return roles
      end)())
      local after = chat.seq:tokens() -- arguments in the order that the model wrote: nothing was read twice
      assert.same(before, table.move(after, 1, #before, 1, {}))
      assert.equal(template:text(chat.messages), poet.tokenizer:decode(after, { control = true }) .. "<|im_end|>\n")
    end)

    it("goes back where the template changes what was said", function()
      local source = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content | trim ~ '<|im_end|>\n' }}"
        .. "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
      local template = assert(kigo.template.new(source, poet.tokenizer))
      local says = saying("  padded  ", "two", "three")
      local chat <close> = assert(poet:conversation { template = template, sample = says })
      assert(chat:say "Go.")
      local first = chat.seq:tokens()
      local function check()
        local messages = table.move(chat.messages, 1, #chat.messages - 1, 1, {})
        local prompt = poet.tokenizer:encode(template:render(messages, { generate = true }))
        assert.same(prompt, table.move(chat.seq:tokens(), 1, #prompt, 1, {}))
      end
      local result, _, code = chat:say(("long "):rep(300))
      assert.is_nil(result)
      assert.equal(kigo.err.FULL, code)
      assert.same(first, chat.seq:tokens())
      assert.equal("two", assert(chat:say "On.").text)
      check()
      assert.is_true(#chat.seq:tokens() > 20)
      assert(chat:say "On.", { stop = "hr" })
      check()
    end)

    it("leaves a stop string out of what was said", function()
      local chat <close> = assert(poet:conversation { sample = saying("one STOP", "two") })
      assert.equal("one ", chat:say("Go.", { stop = "STOP" }).text)
      assert(chat:say "On.")
      assert.is_nil(poet.tokenizer:decode(chat.seq:tokens()):find("STOP", 1, true))
    end)

    it("goes on from messages that a script put there", function()
      local chat <close> = assert(poet:conversation { sample = saying "ok" })
      assert(chat:say { { role = "user", content = "a" }, { role = "assistant", content = "b" },
        { role = "user", content = "c" } })
      assert.equal(4, #chat.messages)
      assert.has_error(function() chat:say(3) end)
      assert.has_error(function() chat:say {} end)
    end)

    it("refuses a closed conversation", function()
      local chat = assert(poet:conversation {})
      chat:close()
      assert.has_error(function() chat:say "hi" end)
    end)
  end)
end)
