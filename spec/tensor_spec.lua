describe("kigo.Tensor", function()
  local core = require "kigo.core"

  -- Numbers that look like logits: a fixed sequence, different for every seed.
  local function random_numbers(n, seed)
    local numbers = {}
    for i = 1, n do
      local u, w = core.uniform(seed, i, 0), core.uniform(seed, i, 1)
      numbers[i] = string.unpack("f", string.pack("f", 3 * math.sqrt(-2 * math.log(1 - u)) * math.cos(2 * math.pi * w)))
    end
    return numbers
  end

  local sizes = { 1, 2, 7, 31, 32, 33, 320, 5000 }
  local nan = 0 / 0

  -- The plain definition of the order: larger first, then the lower id, NaN last.
  local function ranked(numbers)
    local ids = {}
    for i = 1, #numbers do ids[i] = i - 1 end
    table.sort(ids, function(a, b)
      local x, y = numbers[a + 1], numbers[b + 1]
      if x ~= x or y ~= y then
        if x ~= x and y ~= y then return a < b end
        return x == x
      end
      if x ~= y then return x > y end
      return a < b
    end)
    return ids
  end

  local function assert_close(expected, got, tolerance, what)
    assert(math.abs(expected - got) <= tolerance, string.format("%s: %.9g expected, got %.9g", what, expected, got))
  end

  describe("tensor", function()
    it("holds the numbers of a table", function()
      local t <close> = core.tensor { 1, 2.5, -3 }
      assert.same({ 1, 2.5, -3 }, t:totable())
      assert.equal(3, #t)
      assert.equal(3, (t:shape()))
      assert.equal("kigo.Tensor [3]", tostring(t))
    end)

    it("nests up to four dimensions", function()
      local t <close> = core.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
      assert.same({ 2, 3 }, { t:shape() })
      assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
      assert.same({ { { { 7 } } } }, core.tensor({ { { { 7 } } } }):totable())
      assert.error(function() core.tensor { { { { { 7 } } } } } end)
    end)

    it("refuses what is no rectangle of numbers", function()
      assert.error(function() core.tensor(1) end)
      assert.error(function() core.tensor { 1, "2" } end)
      assert.error(function() core.tensor { { 1, 2 }, { 3 } } end)
      assert.error(function() core.tensor { { 1, 2 }, 3 } end)
      assert.error(function() core.tensor { 1, { 2 } } end)
    end)

    it("may be empty", function()
      local t <close> = core.tensor {}
      assert.equal(0, #t)
      assert.same({}, t:totable())
      assert.equal(0, t:sum())
      assert.equal(math.huge, t:min())
      assert.equal(0, #t:softmax())
      assert.error(function() t:argmax() end)
      assert.error(function() return t[0] end)
    end)
  end)

  describe("zeros", function()
    it("has the shape that was asked for", function()
      local t <close> = core.zeros(2, 3)
      assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, t:totable())
    end)

    it("refuses impossible sizes", function()
      assert.error(function() core.zeros() end)
      assert.error(function() core.zeros(-1) end)
      assert.error(function() core.zeros(1.5) end)
      assert.error(function() core.zeros(1, 1, 1, 1, 1) end)
      assert.error(function() core.zeros(2 ^ 31 - 1, 2 ^ 31 - 1, 2 ^ 31 - 1) end)
    end)

    it("says so when memory is short", function()
      local n_refused = 0
      collectgarbage() -- a collection on the way would make allocations of its own
      for nth = 1, 8 do -- some of these are Lua's own, which collects and tries again
        core.alloc_inject(nth, false)
        local t, message, code = core.zeros(1000)
        core.alloc_inject(0)
        if not t then
          n_refused = n_refused + 1
          assert.is_string(message)
          assert.equal(core.err.MEMORY, code)
        end
      end
      assert.is_true(n_refused >= 3) -- the handle, the buffer, its numbers
    end)
  end)

  describe("indexing", function()
    it("reads and writes one number by its id", function()
      local t <close> = core.tensor { 1, 2, 3 }
      t[2] = 7
      assert.equal(7, t[2])
      assert.equal(1, t[0])
    end)

    it("raises outside the tensor", function()
      local t <close> = core.tensor { 1, 2, 3 }
      assert.error(function() return t[3] end)
      assert.error(function() return t[-1] end)
      assert.error(function() return t[1.5] end)
      assert.error(function() t[3] = 1 end)
      assert.error(function() t[0] = "x" end)
      assert.error(function() t.name = 1 end)
      assert.is_nil(t.name)
    end)

    it("gives rows as views of the same numbers", function()
      local t <close> = core.tensor { { 1, 2 }, { 3, 4 } }
      local row = t[1]
      row[0] = 9
      assert.same({ { 1, 2 }, { 9, 4 } }, t:totable())
      assert.same({ 1, 2 }, t:row(0):totable())
      t:close()
      assert.equal(9, row[0])
      assert.error(function() return row:row(0) end)
      assert.error(function() row[0] = nil end)
    end)
  end)

  describe("argmax", function()
    it("is the first of the best", function()
      assert.same({ 1, 5 }, { core.tensor({ 1, 5, 5, 2 }):argmax() })
      for _, n in ipairs(sizes) do
        local numbers = random_numbers(n, n)
        local best = ranked(numbers)[1]
        assert.same({ best, numbers[best + 1] }, { core.tensor(numbers):argmax() })
      end
    end)

    it("ranks NaN below everything", function()
      assert.equal(2, (core.tensor({ nan, -math.huge, -1, nan }):argmax()))
      assert.equal(1, (core.tensor({ nan, -math.huge }):argmax()))
      assert.equal(0, (core.tensor({ nan, nan }):argmax()))
    end)

    it("looks at each row of several", function()
      assert.same({ { 0 }, { 1 } }, { core.tensor({ { 1 } }):argmax() })
      assert.same({ { 2, 0, 1 }, { 3, 9, 5 } }, { core.tensor({ { 1, 2, 3 }, { 9, 8, 7 }, { 4, 5, 5 } }):argmax() })
      assert.error(function() core.zeros(3, 0):argmax() end)
    end)
  end)

  describe("topk", function()
    local function check(numbers, k)
      local ids, values = core.tensor(numbers):topk(k)
      local expected = ranked(numbers)
      assert.equal(math.min(k, #numbers), #ids)
      assert.equal(#ids, #values)
      for i = 1, #ids do
        assert.equal(expected[i], ids[i])
        assert.equal(string.pack("f", numbers[ids[i] + 1]), string.pack("f", values[i]))
      end
    end

    it("is the plain definition", function()
      for _, n in ipairs(sizes) do
        for _, k in ipairs { 0, 1, 2, 3, 64, 65, 200, n // 2, n - 1, n, n + 1 } do
          if k >= 0 then check(random_numbers(n, n + k), k) end
        end
      end
    end)

    it("gives ties to the lower id", function()
      for _, k in ipairs { 1, 5, 64, 1000, 5000 } do
        local equal, few, ascending, descending = {}, {}, {}, {}
        for i = 1, 5000 do
          equal[i], few[i], ascending[i], descending[i] = 0, (i * 7919) % 3, i, -i
        end
        for _, numbers in ipairs { equal, few, ascending, descending } do check(numbers, k) end
      end
      check({ 0.0, -0.0, 0.0, -0.0 }, 3)
    end)

    it("ranks infinities and NaN", function()
      for _, k in ipairs { 1, 20, 2500, 4990, 5000 } do
        local numbers = random_numbers(5000, k)
        for i = 1, 5000, 2 do numbers[i] = -math.huge end
        for i = 1, 5000, 4 do numbers[i] = nan end
        numbers[77], numbers[4000] = math.huge, math.huge
        check(numbers, k)
      end
    end)
  end)

  describe("softmax", function()
    it("is the plain definition", function()
      for _, n in ipairs(sizes) do
        local numbers, sum = random_numbers(n, 7 * n), 0
        for i = 1, n do sum = sum + math.exp(numbers[i]) end
        local p, log_p = core.tensor(numbers):softmax(), core.tensor(numbers):log_softmax()
        for i = 1, n do
          local expected = math.exp(numbers[i]) / sum
          assert_close(expected, p[i - 1], 2e-6 * expected, "p")
          assert_close(math.log(expected), log_p[i - 1], 4e-6, "log p")
        end
        assert_close(1, p:sum(), 1e-6, "sum")
      end
    end)

    it("takes each row for itself", function()
      local t <close> = core.tensor { { 0, 0 }, { 0, math.log(3) } }
      local p = t:softmax()
      assert_close(0.5, p[0][0], 1e-7, "p")
      assert_close(0.75, p[1][1], 1e-7, "p")
    end)

    it("keeps banned ids at zero", function()
      assert.same({ 0.5, 0, 0.5 }, core.tensor({ 1, -math.huge, 1 }):softmax():totable())
      assert.equal(-math.huge, core.tensor({ 1, -math.huge, 1 }):log_softmax()[1])
    end)

    it("stands large and small numbers", function()
      assert.same({ 1, 0, 0 }, core.tensor({ 3e38, 0, -3e38 }):softmax():totable())
      assert.same({ 0.5, 0.5 }, core.tensor({ -3e38, -3e38 }):softmax():totable())
    end)

    it("spreads what is not a number", function()
      for _, bad in ipairs { nan, math.huge } do
        local p = core.tensor({ 1, bad, 2 }):softmax()
        for i = 0, 2 do assert.is_true(p[i] ~= p[i]) end
      end
      local p = core.tensor({ -math.huge, -math.huge }):softmax()
      assert.is_true(p[0] ~= p[0])
    end)

    it("gives the same bits wherever the numbers stand", function()
      local numbers = random_numbers(1001, 3)
      local reference = core.tensor(numbers)
      local rows = {}
      for i = 1, 17 do rows[i] = numbers end -- 1001 is odd: every row is aligned differently
      local t <close> = core.tensor(rows)
      local p = t:softmax()
      for i = 0, 16 do
        assert.is_true(reference:softmax():bytes() == p[i]:bytes())
        assert.equal(reference:softmax():entropy(), p[i]:entropy())
        assert.equal(reference:sum(), t[i]:sum())
      end
    end)
  end)

  describe("entropy", function()
    it("is the plain definition", function()
      for _, n in ipairs(sizes) do
        local p = core.tensor(random_numbers(n, 11 * n)):softmax()
        local expected = 0
        for i = 0, n - 1 do if p[i] > 0 then expected = expected - p[i] * math.log(p[i]) end end
        assert_close(expected, p:entropy(), 2e-6 * math.max(1, expected), "entropy of " .. n)
      end
      assert_close(math.log(4), core.tensor({ 1, 1, 1, 1 }):entropy(), 1e-6, "weights are normalized")
      assert.equal(0, core.tensor({ 0, 1, 0 }):entropy())
    end)

    it("refuses what are no probabilities", function()
      assert.error(function() core.tensor({ 0.5, -0.1 }):entropy() end)
      assert.error(function() core.tensor({ 0, 0 }):entropy() end)
      local of_nan = core.tensor({ 0.5, nan }):entropy()
      assert.is_true(of_nan ~= of_nan)
    end)
  end)

  describe("sum, min, max", function()
    it("cover all elements", function()
      for _, n in ipairs(sizes) do
        local numbers, sum = random_numbers(n, 13 * n), 0
        for i = 1, n do sum = sum + numbers[i] end
        local t <close> = core.tensor(numbers)
        assert_close(sum, t:sum(), 1e-4, "sum")
        assert.equal(math.min(table.unpack(numbers)), t:min())
        assert.equal(math.max(table.unpack(numbers)), t:max())
      end
      assert.equal(21, core.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }):sum())
    end)

    it("skip NaN for min and max", function()
      local t <close> = core.tensor { nan, 1, 2, nan }
      assert.equal(1, t:min())
      assert.equal(2, t:max())
      assert.is_true(t:sum() ~= t:sum())
    end)
  end)

  describe("in place", function()
    it("returns the tensor itself", function()
      local t <close> = core.tensor { 1, 2 }
      assert.equal(t, t:mul_(2):add_(1):fill_(0))
    end)

    it("scales and shifts by numbers", function()
      for _, n in ipairs(sizes) do
        local numbers = random_numbers(n, n)
        local t <close> = core.tensor(numbers)
        t:mul_(2):add_(3, 0.5)
        for i = 1, n do assert_close(numbers[i] * 2 + 1.5, t[i - 1], 1e-6, "x") end
      end
    end)

    it("multiplies and adds tensors of the same shape", function()
      for _, n in ipairs(sizes) do
        local a, b = random_numbers(n, n), random_numbers(n, n + 1)
        local t <close> = core.tensor(a)
        local o <close> = core.tensor(b)
        t:mul_(o):add_(o, -0.5)
        for i = 1, n do assert_close(a[i] * b[i] - 0.5 * b[i], t[i - 1], 1e-5, "x") end
      end
    end)

    it("adds one row to every row", function()
      local t <close> = core.tensor { { 1, 2 }, { 3, 4 } }
      local o <close> = core.tensor { 10, 20 }
      assert.same({ { 21, 42 }, { 23, 44 } }, t:add_(o, 2):totable())
      assert.same({ { 210, 840 }, { 230, 880 } }, t:mul_(o):totable())
      assert.error(function() o:add_(t) end)
      assert.error(function() t:add_(core.tensor { 1, 2, 3 }) end)
      assert.error(function() t:mul_("x") end)
    end)

    it("takes an operand that is part of the tensor as it is before", function()
      local numbers, n = {}, 100
      for i, number in ipairs(random_numbers(n, 9)) do numbers[i] = { number } end
      local t <close> = core.tensor(numbers)
      t:rows(1, n - 1):add_(t:rows(0, n - 1))
      for i = 2, n do assert_close(numbers[i][1] + numbers[i - 1][1], t:row(i - 1)[0], 1e-6, "added") end
      local o <close> = core.tensor(numbers)
      o:rows(0, n - 1):mul_(o:rows(1, n - 1))
      for i = 1, n - 1 do assert_close(numbers[i][1] * numbers[i + 1][1], o:row(i - 1)[0], 1e-6, "multiplied") end
      local m <close> = core.tensor { { 1, 2 }, { 3, 4 }, { 5, 6 } }
      assert.same({ { 3, 8 }, { 9, 16 }, { 15, 24 } }, m:mul_(m:row(1)):totable())
      assert.same({ { 6, 16 }, { 12, 24 }, { 18, 32 } }, m:add_(m:row(0)):totable())
    end)

    it("stays as it is where there is no memory for a copy of its part", function()
      local m <close> = core.tensor { { 1, 2 }, { 3, 4 } }
      local row, n = m:row(1), 0
      repeat
        n = n + 1
        core.alloc_inject(n)
        local done, _, code = m:add_(row)
        core.alloc_inject(0)
        if not done then
          assert.equal(core.err.MEMORY, code)
          assert.same({ { 1, 2 }, { 3, 4 } }, m:totable())
        end
      until done
      assert.is_true(n > 1)
      assert.same({ { 4, 6 }, { 6, 8 } }, m:totable())
    end)

    it("keeps the sign of zero and -inf when scaling", function()
      local t = core.tensor({ -0.0, -math.huge }):mul_(2)
      assert.equal(-math.huge, 1 / t[0])
      assert.equal(-math.huge, t[1])
    end)

    it("fills all or the ids that are given", function()
      local t <close> = core.tensor { 1, 2, 3, 4 }
      assert.same({ 1, 0, 3, 0 }, t:fill_(0, { 1, 3, 3 }):totable())
      assert.same({ 1, 0, 3, 0 }, t:fill_(9, {}):totable())
      assert.same({ 5, 5, 5, 5 }, t:fill_(5):totable())
      assert.error(function() t:fill_(0, { 1, 4 }) end)
      assert.error(function() t:fill_(0, { -1 }) end)
      assert.error(function() t:fill_(0, { 1.5 }) end)
      assert.error(function() t:fill_() end)
      assert.same({ 5, 5, 5, 5 }, t:totable())
    end)
  end)

  describe("clone, bytes, totable", function()
    it("copies the numbers", function()
      local t <close> = core.tensor { { 1, 2 }, { 3, 4 } }
      local copy <close> = t:clone()
      t:fill_(0)
      assert.same({ { 1, 2 }, { 3, 4 } }, copy:totable())
      assert.equal(string.pack("<ffff", 1, 2, 3, 4), copy:bytes())
      assert.equal(string.pack("<ff", 3, 4), copy[1]:bytes())
    end)

    it("refuses large tensors as tables", function()
      assert.equal(65536, #core.zeros(65536):totable())
      assert.error(function() core.zeros(65537):totable() end)
    end)
  end)

  describe("the loops", function()
    it("agree to the bit on every instruction set", function()
      for _, n in ipairs { 0, 1, 5, 31, 32, 33, 320, 4096, 5000, 9001 } do
        local bytes = core.tensor(random_numbers(n, 17 * n)):bytes()
        local expected = core.vector_digest("base", bytes)
        assert.equal(88 + 8 * n, #expected)
        for _, variant in ipairs { "avx2", "avx512" } do
          local digest = core.vector_digest(variant, bytes)
          assert.is_true(digest == nil or digest == expected, variant .. ", " .. n)
        end
      end
    end)

    it("have no other variants", function()
      assert.is_nil(core.vector_digest("none", ""))
    end)
  end)

  it("survives any allocation that fails", function()
    local t <close> = core.tensor { { 3, 1, 2 } }
    for nth = 1, 4 do
      for _, method in ipairs { "clone", "softmax", "log_softmax" } do
        core.alloc_inject(nth, false)
        local ok, result, _, code = pcall(t[method], t)
        core.alloc_inject(0)
        assert.is_true(not ok or result ~= nil or code == core.err.MEMORY)
      end
    end
    assert.same({ { 3, 1, 2 } }, t:totable())
  end)

  it("releases what is dropped", function()
    collectgarbage()
    local before = core.alloc_counts()
    do
      local t <close> = core.zeros(1000)
      local _ = t:softmax():entropy()
    end
    collectgarbage()
    collectgarbage()
    local after = core.alloc_counts()
    assert.is_true(after <= before + 50) -- Lua's own objects use the same allocator
  end)

  it("collects dropped tensors before they fill the memory", function()
    local t <close> = core.zeros(800000)
    local before = core.alloc_counts()
    t:softmax() -- 3.2 MB that nobody keeps
    local each, most = core.alloc_counts() - before, 0
    for _ = 1, 300 do
      t:softmax()
      most = math.max(most, core.alloc_counts() - before)
    end
    assert.is_true(most < 150 * each, most) -- of 301; 256 MB are 84, however large Lua itself is by now
  end)

  it("takes methods in Lua", function()
    local Tensor = core.classes.Tensor
    function Tensor:mean() return self:sum() / #self end
    assert.equal(2, core.tensor({ 1, 2, 3 }):mean())
    Tensor.mean = nil
  end)

  it("refuses everything when it is closed", function()
    local t = core.tensor { 1, 2 }
    t:close()
    t:close()
    assert.equal("kigo.Tensor (closed)", tostring(t))
    for _, method in ipairs { "shape", "argmax", "topk", "softmax", "log_softmax", "entropy", "sum", "min", "max",
                              "mul_", "add_", "fill_", "clone", "totable", "row", "bytes" } do
      assert.error(function() t[method](t, 1) end)
    end
    assert.error(function() return t[0] end)
    assert.error(function() t[0] = 1 end)
    assert.error(function() return #t end)
    assert.error(function() core.tensor({ 1, 2 }):add_(t) end)
    assert.error(function() t.shape(7) end)
  end)
end)
