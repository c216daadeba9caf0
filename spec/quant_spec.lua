local core = require "kigo.core"
local support = require "spec.support"

describe("quant", function()
  local computable = {
    "BF16", "F16", "IQ4_NL", "IQ4_XS", "MXFP4", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K",
    "Q8_0",
  }
  local floats = support.floats

  describe("types", function()
    it("have the block sizes of the fixtures", function()
      local types, n = core.types(), 0
      for _, row in ipairs(support.read_json(support.fixture("quants/index.json")).types) do
        assert.equal(row.block_size, types[row.type].block_size)
        assert.equal(row.block_bytes, types[row.type].block_bytes)
        n = n + 1
      end
      assert.equal(25, n)
    end)

    it("are computable where a reference says what they hold", function()
      local names = { "F32", table.unpack(computable) }
      for name, row in pairs(core.types()) do
        local expected = false
        for _, known in ipairs(names) do expected = expected or known == name end
        assert.equal(expected, row.computable, name)
      end
    end)
  end)

  describe("dequantize", function()
    for _, name in ipairs(computable) do
      it("gives the reference values of " .. name .. " bit for bit", function()
        local blocks = support.read(support.fixture("quants/" .. name .. ".blocks.bin"))
        local values = support.read(support.fixture("quants/" .. name .. ".values.f32"))
        assert.equal(24 * 512 * 4, #values)
        assert.is_true(core.dequantize(name, blocks) == values)
      end)
    end

    it("leaves F32 as it is", function()
      local bytes = support.pack_floats { 0, -0.0, 1e-45, math.huge, -math.huge }
      assert.equal(bytes, core.dequantize("F32", bytes))
    end)

    it("knows every half-precision number", function()
      local halves = {}
      for bits = 0, 65535 do halves[bits + 1] = string.pack("<I2", bits) end
      local values = floats(core.dequantize("F16", table.concat(halves)))
      for bits = 0, 65535 do
        local sign, exponent, mantissa = bits < 32768 and 1 or -1, bits >> 10 & 31, bits & 1023
        local value = values[bits + 1]
        if exponent == 31 and mantissa ~= 0 then
          assert.is_true(value ~= value)
        elseif exponent == 31 then
          assert.is_true(value == sign * math.huge)
        else
          local expected = exponent == 0 and mantissa * 2.0 ^ -24 or (1024 + mantissa) * 2.0 ^ (exponent - 25)
          if value ~= sign * expected then assert.equal(sign * expected, value) end
        end
      end
      assert.equal("-0.0", tostring(values[32769]))
    end)

    it("raises for broken blocks, unknown types and types that cannot be computed with", function()
      assert.error(function() core.dequantize("Q8_0", ("\0"):rep(33)) end)
      assert.error(function() core.dequantize("Q9_Z", "") end)
      assert.error(function() core.dequantize("IQ2_S", ("\0"):rep(82)) end)
      assert.equal("", core.dequantize("q8_0", ""))
    end)
  end)

  describe("quantize", function()
    it("returns every 16-bit number unchanged", function()
      local numbers = {}
      for bits = 0, 65535 do numbers[bits + 1] = string.pack("<I2", bits) end
      for _, case in ipairs { { "F16", 31, 10 }, { "BF16", 255, 7 } } do
        local name, exponent_max, mantissa_bits = table.unpack(case)
        local back = core.quantize(name, core.dequantize(name, table.concat(numbers)))
        for bits = 0, 65535 do
          local got = string.unpack("<I2", back, bits * 2 + 1)
          local exponent, mantissa = bits >> mantissa_bits & exponent_max, bits & (1 << mantissa_bits) - 1
          if exponent == exponent_max and mantissa ~= 0 then bits = bits | 1 << mantissa_bits - 1 end -- NaN, quiet
          if got ~= bits then assert.equal(bits, got) end
        end
      end
    end)

    it("rounds halves to even", function()
      local function half(value) return (string.unpack("<I2", core.quantize("F16", support.pack_floats { value }))) end
      local function bf16(value) return (string.unpack("<I2", core.quantize("BF16", support.pack_floats { value }))) end
      assert.equal(0x3c00, half(1 + 2.0 ^ -11))
      assert.equal(0x3c02, half(1 + 3 * 2.0 ^ -11))
      assert.equal(0x3c01, half(1 + 2.0 ^ -11 + 2.0 ^ -20))
      assert.equal(0x7bff, half(65519))
      assert.equal(0x7c00, half(65520))
      assert.equal(0xfc00, half(-1e30))
      assert.equal(0x0000, half(2.0 ^ -25))
      assert.equal(0x0001, half(2.0 ^ -25 * 1.001))
      assert.equal(0x8002, half(-3 * 2.0 ^ -25))
      assert.equal(0x0400, half(2.0 ^ -14 - 2.0 ^ -26))
      assert.equal(0x3f80, bf16(1 + 2.0 ^ -8))
      assert.equal(0x3f82, bf16(1 + 3 * 2.0 ^ -8))
      assert.equal(0x7f80, bf16(3.4e38))
    end)

    -- The largest error is half a step of the block's grid, the extreme one of a one-sided grid a whole step; the
    -- grid's own rounding to half precision adds up to 1/2048 of the largest value, or half of its smallest number.
    local steps = { Q8_0 = 127, Q4_0 = 8, Q5_0 = 16, Q4_1 = 15, Q5_1 = 31 }
    for name, n_steps in pairs(steps) do
      it("stays within a step of the grid: " .. name, function()
        local one_sided = name:sub(-1) == "0" and name ~= "Q8_0"
        local source = support.read(support.fixture("quants/source.f32"))
        local x, y = floats(source), floats(core.dequantize(name, core.quantize(name, source)))
        assert.equal(#x, #y)
        for first = 1, #x, 32 do
          local low, high = math.huge, -math.huge
          for i = first, first + 31 do low, high = math.min(low, x[i]), math.max(high, x[i]) end
          local largest = math.max(-low, high)
          local span = name:sub(-1) == "1" and high - low or largest
          local limit = span / n_steps * (one_sided and 1 or 0.5) + largest / 1024 + n_steps * 2.0 ^ -25
          for i = first, first + 31 do
            if y[i] ~= y[i] or math.abs(x[i] - y[i]) > limit then
              error(("value %d: %g became %g, more than %g away"):format(i, x[i], y[i], limit))
            end
          end
        end
      end)
    end

    local searched = { Q2_K = true, Q3_K = true, Q4_K = true, Q5_K = true, Q6_K = true, IQ4_NL = true, IQ4_XS = true,
      MXFP4 = true }

    it("loses little more than the reference quantizers on a gaussian", function()
      local source = support.read(support.fixture("quants/source.f32")):sub(1, 512 * 4)
      local x = floats(source)
      for _, row in ipairs(support.read_json(support.fixture("quants/index.json")).types) do
        if steps[row.type] or searched[row.type] then
          local y, errors, squares = floats(core.dequantize(row.type, core.quantize(row.type, source))), 0, 0
          for i = 1, #x do
            errors, squares = errors + (x[i] - y[i]) ^ 2, squares + x[i] ^ 2
          end
          local limit = searched[row.type] and 1.01 or 1.1
          assert.is_true(math.sqrt(errors / squares) < limit * row.relative_rms_error_row0, row.type)
        end
      end
    end)

    it("finds its own grid again: what was dequantized is quantized with next to no loss", function()
      for name in pairs(searched) do
        local once = core.dequantize(name, core.quantize(name, support.read(support.fixture("quants/source.f32"))))
        local x, y = floats(once), floats(core.dequantize(name, core.quantize(name, once)))
        local errors, squares = 0, 0
        for i = 1, 512 do
          errors, squares = errors + (x[i] - y[i]) ^ 2, squares + x[i] ^ 2
        end
        assert.is_true(math.sqrt(errors / squares) < 0.05, name)
      end
    end)

    it("makes zeros of zeros", function()
      for _, names in ipairs { steps, searched } do
        for name in pairs(names) do
          for _, value in ipairs(floats(core.dequantize(name, core.quantize(name, ("\0"):rep(1024))))) do
            assert.equal(0, value)
          end
        end
      end
    end)

    it("raises for numbers that blocks cannot hold, and for types it cannot write", function()
      for _, value in ipairs { 0 / 0, math.huge, -math.huge, 65505 } do
        local values = {}
        for i = 1, 256 do values[i] = i == 20 and value or 1 end
        for _, names in ipairs { steps, searched } do
          for name in pairs(names) do
            assert.error(function() core.quantize(name, support.pack_floats(values)) end)
          end
        end
      end
      assert.error(function() core.quantize("IQ2_S", ("\0"):rep(1024)) end)
      assert.error(function() core.quantize("Q8_0", ("\0"):rep(124)) end)
      assert.error(function() core.quantize("F32", "123") end)
    end)
  end)
end)
