describe("on_overflow", function()
  local kigo = require "kigo"
  local tiny = require "spec.tiny"
  local err = kigo.err

  local CONTEXT = 24
  local model
  before_each(function() model = tiny.model { ctx = CONTEXT } end)
  after_each(function() model:close() end)

  local function some(n, seed) return tiny.ids(n, seed or 1) end
  local function of(list, first, last) return table.move(list, first, last, 1, {}) end

  it("is an error unless said otherwise, and changes nothing", function()
    for _, options in ipairs { {}, { on_overflow = "error" } } do
      local seq <close> = model:sequence(options)
      assert(seq:feed(some(CONTEXT)))
      for _, append in ipairs { function() return seq:push(1) end, function() return seq:feed { 1, 2 } end } do
        local pos, message, code = append()
        assert.is_nil(pos)
        assert.equal(err.FULL, code)
        assert.truthy(message:find(tostring(CONTEXT), 1, true))
        assert.equal(CONTEXT, seq:pos())
      end
    end
  end)

  it("shift: forgets the oldest tokens behind those to keep, and computes what a fresh sequence would", function()
    local ids = some(CONTEXT)
    local seq <close> = model:sequence { on_overflow = "shift", keep = 4 }
    assert(seq:feed(ids))
    assert(seq:step())
    assert.equal(15, seq:push(7)) -- 10 of the 20 others stay
    local wanted = of(ids, 1, 4)
    table.move(ids, 15, 24, 5, wanted)
    wanted[15] = 7
    assert.same(wanted, seq:tokens())
    assert.equal(10, seq.shifted)
    local fresh <close> = model:sequence()
    assert(fresh:feed(wanted))
    assert.equal(fresh.logits:bytes(), seq.logits:bytes())
    local fork <close> = seq:fork()
    assert(fork:feed(some(19, 3)))
    assert.equal(4 + 1 + 19, fork:pos()) -- only one of the others beside what must fit
    local pos, _, code = fork:feed(some(21))
    assert.is_nil(pos)
    assert.equal(err.FULL, code)
  end)

  it("shift: lets an answer go on", function()
    local seq <close> = model:sequence { on_overflow = "shift", keep = 2, seed = 3 }
    assert(seq:feed(some(20)))
    local chain <close> = kigo.chain { kigo.temp(1) }
    for _ = 1, 3 * CONTEXT do
      local id = assert(seq:draw(chain))
      assert(seq:push(id))
    end
    assert.is_true(seq.shifted > CONTEXT)
    assert.same(some(2), of(seq:tokens(), 1, 2))
  end)

  it("shift: is refused where a constraint would go", function()
    local seq <close> = model:sequence { on_overflow = "shift" }
    assert(seq:feed(some(CONTEXT)))
    local original = kigo.core.classes.Sequence.constraint
    finally(function() kigo.core.classes.Sequence.constraint = original end)
    kigo.core.classes.Sequence.constraint = function() return {} end
    local pos, _, code = seq:push(1)
    assert.is_nil(pos)
    assert.equal(err.UNSUPPORTED, code)
    assert.equal(CONTEXT, seq:pos())
  end)

  it("a function makes room, or does not", function()
    local needs = {}
    local seq <close> = model:sequence { on_overflow = function(s, need)
      needs[#needs + 1] = need
      return need < 5 and s:rewind(10)
    end }
    assert(seq:feed(some(CONTEXT)))
    assert.equal(13, seq:feed { 1, 2, 3 })
    assert(seq:feed(some(CONTEXT - 13)))
    local pos, _, code = seq:feed { 1, 2, 3, 4, 5 }
    assert.is_nil(pos)
    assert.equal(err.FULL, code)
    assert.same({ 3, 5 }, needs)
    seq.on_overflow = function() error "mine" end
    assert.error_matches(function() seq:push(1) end, "mine")
    seq.on_overflow = function(s) return s end -- says yes, and did nothing
    pos, _, code = seq:push(1)
    assert.is_nil(pos)
    assert.equal(err.FULL, code)
  end)

  it("must be a policy", function()
    assert.error_matches(function() model:sequence { on_overflow = "wrap" } end, "wrap")
    assert.error(function() model:sequence { on_overflow = 5 } end)
    assert.error(function() model:sequence { keep = 1.5 } end)
    local seq <close> = model:sequence()
    assert(seq:feed(some(CONTEXT)))
    seq.on_overflow = "wrap"
    assert.error_matches(function() seq:push(1) end, "wrap")
  end)
end)
