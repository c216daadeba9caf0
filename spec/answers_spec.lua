-- What samplers ask about logits is answered where they are, and on some devices before it is asked, or put off until
-- somebody looks. Nobody can tell: random programs on the logits of sequences in random company give, bit for bit, what
-- they give on a copy, of which nothing is known.
describe("answers about logits", function()
  local kigo = require "kigo"
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local tiny = require "spec.tiny"
  local WIDE, HIDDEN = 5000, 32

  -- A vocabulary of which parts are looked at by many.
  local function wide(options)
    local file = build.random({ ["general.architecture"] = "none" }, {
      { name = "w", shape = { HIDDEN, WIDE } }, { name = "n", shape = { HIDDEN } } })
    return tiny.product(file, options)
  end

  local function list_of(...)
    local out = {}
    for i = 1, select("#", ...) do
      local value = select(i, ...)
      out[i] = type(value) == "table" and table.concat(value, " ") or ("%a"):format(value)
    end
    return table.concat(out, ", ")
  end

  -- The softmax as numbers that stand in memory.
  local function made(t, log_wanted) return (log_wanted and t:log_softmax() or t:softmax()):add_(0) end

  local factors = { 0.5, 1.7, 3, 1e-3, 1e-38, 1e-44, 1e38, -1, 0, math.huge }

  -- What may be done with a row: on the logits, on the copy. Each gives something to compare.
  local function operations(random)
    local k, factor = random(40), factors[random(#factors)]
    local id = random(40)
    local chain = { { kind = "min_p", value = 0.02 }, { kind = "temp", value = 0.7 } }
    local ops = {
      function(t) return list_of(t:softmax():entropy()) end, function(t) return list_of(t:softmax():max()) end,
      function(t) return list_of(t:softmax():argmax()) end, function(t) return list_of(t:softmax():topk(k)) end,
      function(t) return list_of(t:log_softmax():topk(k)) end, function(t) return list_of(t:argmax()) end,
      function(t) return list_of(t:topk(k)) end, function(t) return list_of(t:topk(math.min(#t, 300))) end,
      function(t) return list_of(t:sum(), t:min(), t:max()) end, function(t) return list_of(t[id]) end,
      function(t) return t:bytes() end, function(t) return t:softmax():bytes() end,
      function(t) return list_of(t:mul_(factor):argmax()) end, function(t) return list_of(t:mul_(factor):topk(k)) end,
      function(t) t:mul_(1 / 1.3) return "" end, function(t) t:add_(0.25) return "" end,
      function(t) t:fill_(-math.huge, { id, 3 }) return "" end, function(t) t[id] = 2 return "" end,
      function(t) return t:clone():bytes() end,
      function(t) t:apply_(chain) return "" end,
      function(t) t:mul_(t:softmax()) return "" end, function(t) t:add_(t, 0.5) return "" end,
    }
    local plain = {
      function(t) return list_of(made(t):entropy()) end, function(t) return list_of(made(t):max()) end,
      function(t) return list_of(made(t):argmax()) end, function(t) return list_of(made(t):topk(k)) end,
      function(t) return list_of(made(t, true):topk(k)) end,
      [12] = function(t) return made(t):bytes() end,
    }
    return ops, plain
  end

  ---A program: which operations, in order.
  local function program(random)
    local ops, plain = operations(random)
    local list = {}
    for i = 1, random(5) do
      local at = random(#ops)
      list[i] = { ops[at], plain[at] or ops[at] }
    end
    return list
  end

  local function dice(number, stream)
    local n_drawn = 0
    return function(n)
      n_drawn = n_drawn + 1
      return 1 + math.floor(core.uniform(number, n_drawn, stream) * n)
    end
  end

  local function try(model, number)
    local random = dice(number, 7)
    local seqs, programs, kept = {}, {}, {}
    for i = 1, random(9) do
      seqs[i] = assert(model:sequence { seed = i })
      assert(seqs[i]:feed { random(40), random(40) })
      programs[i] = program(random)
    end
    for round = 1, 5 do
      local asked = {}
      for _, seq in ipairs(seqs) do
        if random(5) > 1 then asked[#asked + 1] = seq end
      end
      assert(model:step(asked))
      for _, of in ipairs(kept) do assert(of.bytes == of.tensor:bytes(), "a softmax has changed with its logits") end
      kept = {}
      for i, seq in ipairs(seqs) do
        local logits = seq.logits
        local copy = logits:clone()
        copy[0] = copy[0] -- nothing is known of it from here on
        if random(3) == 1 then
          kept[#kept + 1] = { tensor = logits:softmax(), bytes = made(copy):bytes() }
        end
        if random(4) == 1 then programs[i] = program(random) end
        for at, op in ipairs(programs[i]) do
          local got, wanted = op[1](logits), op[2](copy)
          if got ~= wanted then
            error(("schedule %d, round %d, sequence %d, operation %d: %.300s instead of %.300s"):format(number, round,
              i, at, got, wanted))
          end
        end
        if random(2) == 1 then assert(logits:bytes() == copy:bytes(), "the logits are not those of the copy") end
        assert(seq:push(random(40)))
      end
    end
    for _, seq in ipairs(seqs) do seq:close() end
  end

  local chains = { kigo.chain { kigo.top_k(20), kigo.temp(1.3) }, kigo.chain { kigo.min_p(0.1) }, kigo.chain {},
    kigo.chain { kigo.penalties { last = 9, ["repeat"] = 1.4 }, kigo.xtc(0.5, 0.01) },
    kigo.chain { kigo.mirostat(2, 0.2) } } -- the last one draws on the host

  ---What the body of a scheduler does: a random program on the logits of every token, then a chain.
  local function play(model, number, i)
    local said, random = {}, dice(number, 100 + i)
    local seq <close> = assert(model:sequence { seed = i })
    assert(seq:feed { random(40), random(40) })
    for _ = 1, 4 do
      assert(seq:step())
      for _, op in ipairs(program(random)) do said[#said + 1] = op[1](seq.logits) end
      local chain = chains[random(#chains)]
      if random(2) == 1 then said[#said + 1] = select(3, seq.logits:apply_(chain, seq)) or "applied" end
      local id, _, code = chain(seq.logits, seq)
      said[#said + 1] = ("%s %s"):format(id, code)
      assert(seq:push(id or random(40)))
    end
    return said
  end

  local function try_company(model, number)
    local inputs, alone = {}, {}
    for i = 1, 2 + number % 9 do
      inputs[i] = i
      alone[i] = play(model, number, i)
    end
    local together = assert(model:batch({}, inputs, function(_, _, i) return play(model, number, i) end))
    for i in ipairs(inputs) do
      for at, what in ipairs(alone[i]) do
        if together[i][at] ~= what then
          error(("schedule %d, body %d, %d: %.300s instead of %.300s"):format(number, i, at, together[i][at], what))
        end
      end
    end
  end

  for _, device in ipairs(tiny.devices) do
    it("are about a softmax of logits that are others by now: " .. device.name, function()
      local model <close> = wide(device.options)
      for _ = 1, 3 do
        local seq <close> = assert(model:sequence {})
        assert(seq:feed { 1, 2 })
        local logits = seq.logits:clone()
        logits[0] = logits[0]
        local before, wanted = made(logits), seq.logits:softmax()
        assert(seq:push(3))
        assert(seq:step())
        local asked = { function(t) return t:entropy() end, function(t) return t:topk(5) end,
          function(t) return t:argmax() end, function(t) return t:max() end }
        local got = assert(model:batch({}, { 1, 2, 3, 4 }, function(_, _, i) return list_of(asked[i](wanted)) end))
        for i, ask in ipairs(asked) do assert.equal(list_of(ask(before)), got[i]) end
      end
    end)
  end

  local SCHEDULES = tonumber(os.getenv "KIGO_SCHEDULES") or 10
  for _, device in ipairs(tiny.devices) do
    for name, open in pairs { tiny = tiny.model, wide = wide } do
      it(("are those about a copy: %s on %s"):format(name, device.name), function()
        local model <close> = open(device.options)
        for number = 1, SCHEDULES do try(model, number) end
      end)

      it(("are in company what they are alone: %s on %s"):format(name, device.name), function()
        local model <close> = open(device.options)
        for number = 1, SCHEDULES do try_company(model, number) end
      end)
    end
  end
end)
