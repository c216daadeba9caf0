local core = require "kigo.core"
local support = require "spec.support"

describe("quant", function()
  local computable = { "BF16", "F16", "IQ4_NL", "IQ4_XS", "MXFP4", "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1",
    "Q5_K", "Q6_K", "Q8_0" }

  describe("dequantize", function()
    for _, name in ipairs(computable) do
      it("gives the reference values of " .. name .. " bit for bit", function()
        local blocks = support.read(support.fixture("quants/" .. name .. ".blocks.bin"))
        local values = support.read(support.fixture("quants/" .. name .. ".values.f32"))
        assert.is_true(core.dequantize(name, blocks) == values)
      end)
    end
  end)
end)
