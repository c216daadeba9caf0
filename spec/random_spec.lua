describe("kigo.random", function()
  local core = require "kigo.core"

  describe("philox", function()
    it("gives the published answers of Philox4x32-10", function()
      -- key, counter, result: the known-answer vectors of the Random123 library
      local vectors = {
        { { 0, 0 }, { 0, 0, 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff },
          { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0xa4093822, 0x299f31d0 }, { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
          { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
      }
      for _, v in ipairs(vectors) do
        local key, counter = v[1], v[2]
        assert.same(v[3], { core.philox(key[1], key[2], table.unpack(counter)) })
      end
    end)

    it("refuses what is no 32-bit word", function()
      assert.error(function() core.philox(0, 0, 0, 0, 0, 1 << 32) end)
      assert.error(function() core.philox(-1, 0, 0, 0, 0, 0) end)
      assert.error(function() core.philox(0, 0, 0, 0, 0) end)
    end)
  end)

  describe("uniform", function()
    it("is the top 53 bits of the first two words", function()
      local a, b = core.philox(29, 1, 7, 0, 3, 0)
      local expected = ((a << 32 | b) >> 11) * 2.0 ^ -53
      assert.equal(expected, core.uniform(1 << 32 | 29, 7, 3))
    end)

    it("depends on seed, position and draw", function()
      local seen, n = {}, 0
      for seed = 0, 9 do
        for pos = 0, 9 do
          for draw = 0, 9 do
            local u = core.uniform(seed, pos, draw)
            assert.is_nil(seen[u])
            seen[u], n = true, n + 1
          end
        end
      end
      assert.equal(1000, n)
      assert.equal(core.uniform(-1, 5, 0), core.uniform(-1, 5, 0))
    end)

    -- Fixed seeds: these pass or fail for ever. 99.99 % bounds, so that a sound generator is not refused.
    it("fills [0, 1) evenly", function()
      local streams = {
        function(i) return core.uniform(29, i, 0) end, function(i) return core.uniform(29, 0, i) end,
        function(i) return core.uniform(i, 0, 0) end,
      }
      for _, stream in ipairs(streams) do
        local n, n_bins, bins, sum, squares = 64000, 64, {}, 0, 0
        for i = 1, n_bins do bins[i] = 0 end
        local product, last = 0, 0.5
        for i = 1, n do
          local u = stream(i)
          assert.is_true(u >= 0 and u < 1)
          local bin = math.floor(u * n_bins) + 1
          bins[bin] = bins[bin] + 1
          sum, squares = sum + u, squares + u * u
          product, last = product + (u - 0.5) * (last - 0.5), u
        end
        local chi2 = 0
        for i = 1, n_bins do chi2 = chi2 + (bins[i] - n / n_bins) ^ 2 / (n / n_bins) end
        assert.is_true(chi2 < 113, "chi square " .. chi2) -- 63 degrees of freedom
        assert.is_true(math.abs(sum / n - 1 / 2) < 4 * math.sqrt(1 / 12 / n))
        assert.is_true(math.abs(squares / n - 1 / 3) < 4 * math.sqrt(4 / 45 / n))
        assert.is_true(math.abs(product / n) < 4 / 12 / math.sqrt(n)) -- neighbours are not correlated
      end
    end)
  end)
end)
