-- DRY beside its definition, written down naively: texts are searched as texts, matches are extended token by token.
describe("dry", function()
  local core = require "kigo.core"
  local kigo = require "kigo"
  local sample = require "kigo.sample"
  local support = require "spec.support"
  local tiny = require "spec.tiny"

  local model, tokenizer
  setup(function()
    model = assert(kigo.load(support.haiku_model, { threads = 1 }))
    tokenizer = model.tokenizer
  end)
  teardown(function() model:close() end)

  local function f32(x) return (string.unpack("f", string.pack("f", x))) end

  -- The number of the last token in which a breaker ends; 0: none.
  local function last_break(pieces, breakers)
    local text, owner = table.concat(pieces), {}
    for i, piece in ipairs(pieces) do
      for _ = 1, #piece do owner[#owner + 1] = i end
    end
    local last = 0
    for _, breaker in ipairs(breakers) do
      for at = 1, #text - #breaker + 1 do
        if text:sub(at, at + #breaker - 1) == breaker then last = math.max(last, owner[at + #breaker - 1]) end
      end
    end
    return last
  end

  -- Penalties by id.
  local function expected(history, o)
    local last = o.last or -1
    local window = table.move(history, last < 0 and 1 or math.max(1, #history - last + 1), #history, 1, {})
    local pieces, longest, penalties = {}, {}, {}
    for i, id in ipairs(window) do pieces[i] = tokenizer:piece(id) end
    local most = #window - last_break(pieces, o.breakers)
    for i = 1, #window - 1 do
      local n = 0
      while n < most and i - n >= 1 and window[i - n] == window[#window - n] do n = n + 1 end
      longest[window[i + 1]] = math.max(longest[window[i + 1]] or 0, n)
    end
    for id, n in pairs(longest) do
      local is_breaker = last_break({ tokenizer:piece(id) }, o.breakers) > 0
      if n >= (o.allowed or 2) and not is_breaker then
        penalties[id] = f32(math.min(1e6, f32(o.multiplier) * f32(o.base or 1.75) ^ (n - (o.allowed or 2))))
      end
    end
    return penalties
  end

  local function got(history, o)
    local seq <close> = model:sequence()
    assert(seq:feed(history))
    local logits <close> = core.zeros(model.vocab_size):apply_(sample.dry(o), seq)
    local ids, values = logits:mul_(-1):topk(model.vocab_size)
    local penalties = {}
    for i, id in ipairs(ids) do
      if values[i] ~= 0 then penalties[id] = values[i] end
    end
    return penalties
  end

  local function assert_same(history, o)
    o.tokenizer = tokenizer
    local want, have, n = expected(history, o), got(history, o), 0
    for id, penalty in pairs(want) do
      assert.is_true(math.abs(penalty - (have[id] or 0)) <= 1e-6 * penalty, "id " .. id)
      n = n + 1
    end
    for id in pairs(have) do assert.not_nil(want[id], "id " .. id) end
    return n
  end

  local WORDS = { "a", "b", " moon", " the", "\n", ": ", "User:", " ", "er", "Us", "**", "é", "s", "  " }

  it("is its definition", function()
    local n = 0
    for trial = 1, 250 do
      local dice = tiny.dice(trial)
      local first, width, parts = dice(#WORDS), dice(5), {}
      for i = 1, dice(120) do parts[i] = WORDS[(first + dice(width)) % #WORDS + 1] end
      -- Cut into tokens at random places: the texts of breakers must be found however they are cut.
      local history = {}
      for _, part in ipairs(parts) do
        for _, id in ipairs(tokenizer:encode(part, { continues = true })) do history[#history + 1] = id end
      end
      n = n + assert_same(history, { multiplier = ({ 0.8, 2 })[dice(2)], base = ({ 1, 1.75, 3 })[dice(3)],
        allowed = dice(4), last = ({ -1, 0, 1, 20, 50 })[dice(5)],
        breakers = ({ {}, { "\n", ":", "\"", "*" }, { "User:" }, { "er: a", "\n " }, { "é" } })[dice(5)] })
    end
    assert.is_true(n > 150, tostring(n))
  end)

  it("has usual breakers where it has a tokenizer, and none without", function()
    local history = tokenizer:encode "ab:ab:ab:"
    local seq <close> = model:sequence()
    seq:feed(history)
    local function least(o)
      local logits <close> = core.zeros(model.vocab_size):apply_(sample.dry(o), seq)
      return logits:min()
    end
    assert.equal(0, least { multiplier = 1, tokenizer = tokenizer })
    assert.is_true(least { multiplier = 1 } < -1)
  end)

  it("stays a number however long the repetition", function()
    local history = {}
    for i = 1, model.context do history[i] = 300 end
    assert.same({ [300] = 1e6 }, got(history, { multiplier = 0.8, breakers = {} }))
    assert.same({ [300] = f32(0.8) }, got(history, { multiplier = 0.8, base = 1 }))
    assert.same({}, got(history, { multiplier = 0 }))
  end)

  it("takes linear time", function()
    local seq <close> = model:sequence()
    local history = {}
    for i = 1, model.context do history[i] = i % 2 end -- every token is within matches of all lengths
    seq:feed(history)
    local chain <close> = core.chain { sample.dry { multiplier = 1, tokenizer = tokenizer, breakers = { "never" } } }
    local logits <close> = core.zeros(model.vocab_size)
    local t0 = core.now()
    for _ = 1, 10 do assert(core.apply(chain, logits, seq)) end
    assert.is_true(core.now() - t0 < 1)
  end)

  it("keeps the tokenizer that it needs, and can be made again", function()
    local gguf <close> = assert(core.open_gguf(support.haiku_model))
    local own = assert(core.tokenizer(gguf))
    local chain <close> = core.chain { sample.dry { multiplier = 1, tokenizer = own, breakers = { "ab", "\0\xFF" } } }
    own:close()
    local stages = chain:stages()
    assert.same({ "ab", "\0\xFF" }, stages[1].breakers)
    assert.equal(1.75, stages[1].base)
    assert.equal(2, stages[1].allowed)
    assert.equal(-1, stages[1].last)
    local again <close> = core.chain(stages)
    local clone <close> = again:clone()
    local seq <close> = model:sequence()
    seq:feed(tokenizer:encode "moon cab moon c")
    local logits <close> = core.zeros(model.vocab_size)
    assert.same({ chain:candidates(logits, seq) }, { clone:candidates(logits, seq) })
    stages[1].tokenizer:close()
    assert.error(function() core.chain(stages) end)
  end)

  it("refuses breakers that are none", function()
    for _, breakers in ipairs { { "" }, { ("x"):rep(257) }, { 7 }, { {} } } do
      local stage = sample.dry { multiplier = 1, tokenizer = tokenizer, breakers = breakers }
      assert.error(function() core.chain { stage } end)
    end
    local many = {}
    for i = 1, 129 do many[i] = "x" end
    assert.error(function() core.chain { sample.dry { multiplier = 1, tokenizer = tokenizer, breakers = many } } end)
    assert.error(function() core.chain { sample.dry { multiplier = 1, tokenizer = model } } end)
    assert.error(function() sample.dry(1) end)
    assert.error(function() sample.dry { kind = "dry" } end)
  end)

  it("survives the failure of every allocation", function()
    local seq <close> = model:sequence()
    seq:feed(tokenizer:encode "the moon the moon the")
    local logits <close> = core.zeros(model.vocab_size)
    local n = tiny.fail_each_allocation(function() return {} end, function(object)
      local message, code
      object.chain, message, code = core.chain { sample.dry { multiplier = 1, tokenizer = tokenizer } }
      if not object.chain then return nil, message, code end
      return core.apply(object.chain, logits, seq)
    end, function(object)
      if not object.chain then return end
      assert(core.apply(object.chain, logits, seq))
      object.chain:close()
    end)
    assert.is_true(n > 10, tostring(n))
  end)
end)
