-- The CPU kernels against dequantized weights and sums in double precision, against a twin that rounds activations as
-- they do, and against each other.
describe("kernels", function()
  local core = require "kigo.core"
  local support = require "spec.support"

  local all_types = {
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "MXFP4",
  }
  local types = core.types()
  local variants = core.kernel_variants()
  local ROWS, COLS = 24, 512 -- of the fixtures; rows 16 to 23 are random bytes

  local floats, pack_floats = support.floats, support.pack_floats

  local function f32(value)
    return (string.unpack("<f", string.pack("<f", value)))
  end

  ---A small generator, so that cases are the same everywhere.
  local function random_floats(n, seed)
    local values, state = {}, seed
    for i = 1, n do
      state = (state * 1103515245 + 12345) % 2147483648
      values[i] = f32(state / 1073741824 - 1)
    end
    return values
  end

  local function row_bytes(type_name, cols)
    return cols // types[type_name].block_size * types[type_name].block_bytes
  end

  ---The first `cols` columns of rows [first, first + rows) of a fixture. Those of F16 as float32 serve for F32.
  local function fixture_rows(type_name, first, rows, cols)
    local name = type_name == "F32" and "F16.values.f32" or type_name .. ".blocks.bin"
    local bytes, width, parts = support.read(support.fixture("quants/" .. name)), row_bytes(type_name, COLS), {}
    for r = first, first + rows - 1 do
      parts[#parts + 1] = bytes:sub(r * width + 1, r * width + row_bytes(type_name, cols))
    end
    return table.concat(parts)
  end

  local function product(case)
    return assert(core.test_matmul(case))
  end

  local function with(case, changes)
    local copy = {}
    for key, value in pairs(case) do copy[key] = value end
    for key, value in pairs(changes) do copy[key] = value end
    return copy
  end

  local function round_even(value)
    local down = math.floor(value)
    local rest = value - down
    if rest > 0.5 or (rest == 0.5 and down % 2 == 1) then down = down + 1 end
    return math.tointeger(down)
  end

  ---First and last bytes of what is not a code in a block.
  local scale_bytes = {
    Q4_0 = { { 1, 2 } }, Q4_1 = { { 1, 4 } }, Q5_0 = { { 1, 2 } }, Q5_1 = { { 1, 4 } }, Q8_0 = { { 1, 2 } },
    Q2_K = { { 1, 16 }, { 81, 84 } }, Q3_K = { { 97, 110 } }, Q4_K = { { 1, 16 } }, Q5_K = { { 1, 16 } },
    Q6_K = { { 193, 210 } }, IQ4_NL = { { 1, 2 } }, IQ4_XS = { { 1, 8 } }, MXFP4 = { { 1, 1 } },
  }

  ---The blocks with all codes made of one byte, the scales kept.
  local function with_codes(type_name, blocks, byte)
    local size, parts = types[type_name].block_bytes, {}
    for at = 0, #blocks - 1, size do
      local block = byte:rep(size)
      for _, range in ipairs(scale_bytes[type_name]) do
        block = block:sub(1, range[1] - 1) .. blocks:sub(at + range[1], at + range[2]) .. block:sub(range[2] + 1)
      end
      parts[#parts + 1] = block
    end
    return table.concat(parts)
  end

  ---What the kernels make of 32 activations x[at + 1 ...]: codes, scale.
  local function quantize_block(x, at)
    local largest, codes = 0, {}
    for i = 1, 32 do largest = math.max(largest, math.abs(x[at + i])) end
    local factor = f32(127 / largest)
    for i = 1, 32 do codes[i] = largest == 0 and 0 or round_even(f32(x[at + i] * factor)) end
    return codes, f32(largest / 127)
  end

  ---The activations that products of this type see: rounded to 8 bits in blocks of 32, or (BF16 products) to bfloat16.
  local function seen(x, type_name, variant)
    local values = {}
    if type_name == "BF16" and variant == "avx512bf16" then
      return floats(core.dequantize("BF16", core.quantize("BF16", pack_floats(x))))
    end
    if types[type_name].block_size == 1 then return x end
    for at = 0, #x - 1, 32 do
      local codes, scale = quantize_block(x, at)
      for i = 1, 32 do values[at + i] = codes[i] * scale end
    end
    return values
  end

  ---Check n products of rows against sums in double precision over the activations as the kernels see them: what is
  ---left is the rounding of float32 sums. Rows with weights that are not finite, or near the limits, only have to be
  ---there.
  local function check(case, bytes)
    local got, w = floats(bytes), floats(core.dequantize(case.type, case.w))
    local x = seen(floats(case.x), case.type, case.variant)
    assert.equal(case.n * case.rows, #got)
    for r = 0, case.rows - 1 do
      local largest = 0
      for k = 1, case.cols do
        local weight = math.abs(w[r * case.cols + k])
        largest = weight <= largest and largest or weight -- NaN stays
      end
      for n = 0, largest < 1e30 and case.n - 1 or -1 do
        local sum, size = 0.0, 0.0
        for k = 1, case.cols do
          local xk = x[n * case.cols + k]
          sum, size = sum + w[r * case.cols + k] * xk, size + math.abs(xk)
        end
        local close = math.abs(got[n * case.rows + r + 1] - sum) <= 2e-6 * largest * size + 1e-37
        if not close then -- a NaN is not
          assert.equal(sum, got[n * case.rows + r + 1], ("weight row %d, activation row %d"):format(r, n))
        end
      end
    end
  end

  local function case_of(type_name, variant, first, rows, cols, n)
    return {
      type = type_name, variant = variant, cols = cols, rows = rows, n = n,
      w = fixture_rows(type_name, first, rows, cols), x = pack_floats(random_floats(n * cols, rows + cols + n)),
    }
  end

  it("lists generic first and finds the best by itself", function()
    assert.equal("generic", variants[1])
    local case = { type = "F32", cols = 1, rows = 1, n = 1, w = pack_floats { 3 }, x = pack_floats { 5 } }
    assert.same({ 15 }, floats(product(case)))
  end)

  it("names the variants that there are when one is not", function()
    local case = { type = "F32", cols = 1, rows = 1, w = pack_floats { 3 }, x = pack_floats { 5 }, variant = "mmx" }
    local got, message, code = core.test_matmul(case)
    assert.is_nil(got)
    assert.equal(core.err.UNSUPPORTED, code)
    for _, name in ipairs(variants) do assert.truthy(message:find(name, 1, true)) end
  end)

  it("refuses types without arithmetic and shapes that are not whole blocks", function()
    local _, _, code = core.test_matmul { type = "IQ1_S", cols = 256, rows = 1, n = 1, w = "", x = "" }
    assert.equal(core.err.UNSUPPORTED, code)
    _, _, code = core.test_matmul { type = "Q8_0", cols = 33, rows = 1, n = 1, w = "", x = "" }
    assert.equal(core.err.FORMAT, code)
    _, _, code = core.test_matmul { type = "Q4_K", cols = 32, rows = 1, n = 1, w = "", x = "" }
    assert.equal(core.err.FORMAT, code)
  end)

  for _, variant in ipairs(variants) do
    describe(variant, function()
      for _, type_name in ipairs(all_types) do
        local block = types[type_name].block_size

        it("multiplies " .. type_name, function()
          local case = case_of(type_name, variant, 0, ROWS, COLS, 5)
          check(case, product(case))
        end)

        it("multiplies " .. type_name .. " of odd shapes", function()
          local shapes = { { 1, block }, { 15, block }, { 17, 3 * block <= COLS and 3 * block or COLS }, { 1, COLS } }
          if block == 1 then shapes[#shapes + 1] = { 3, 172 } end
          for i, shape in ipairs(shapes) do
            local case = case_of(type_name, variant, i, shape[1], shape[2], i)
            check(case, product(case))
          end
        end)

        if scale_bytes[type_name] then
          it("multiplies the extreme codes of " .. type_name .. " exactly", function()
            for _, byte in ipairs { "\xff", "\x00", "\x80", "\x7f" } do
              for _, sign in ipairs { 1, -1 } do
                local case = case_of(type_name, variant, 0, 16, COLS // 2, 1)
                case.w = with_codes(type_name, case.w, byte)
                case.x = string.pack("<f", sign):rep(COLS // 2)
                check(case, product(case))
              end
            end
          end)
        end

        it("gives the same bits for " .. type_name .. " whatever is computed together", function()
          local n = 33
          local case = case_of(type_name, variant, 0, ROWS, COLS, n)
          local whole = product(case)
          for _, fewer in ipairs { 1, 2, 3, 15, 16, 17 } do
            local got = product(with(case, { n = fewer, x = case.x:sub(1, fewer * COLS * 4) }))
            assert.is_true(got == whole:sub(1, fewer * ROWS * 4), fewer .. " rows")
          end
          for row = 0, n - 1, 7 do
            local x = case.x:sub(row * COLS * 4 + 1, (row + 1) * COLS * 4)
            local got = product(with(case, { n = 1, x = x, piece = 1 }))
            assert.is_true(got == whole:sub(row * ROWS * 4 + 1, (row + 1) * ROWS * 4), "row " .. row)
          end
        end)

        it("keeps activations of " .. type_name .. " that are not finite to their own row", function()
          local case = case_of(type_name, variant, 0, 16, COLS, 3)
          local whole = product(case)
          for _, bad in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
            local at = (COLS + 100) * 4
            local got = product(with(case, { x = case.x:sub(1, at) .. string.pack("<f", bad) .. case.x:sub(at + 5) }))
            assert.is_true(got:sub(1, 64) == whole:sub(1, 64))
            assert.is_true(got:sub(129) == whole:sub(129))
            for r = 1, 16 do
              local value = string.unpack("<f", got, 64 + 4 * r - 3)
              assert.is_false(value - value == 0, "weight row " .. r)
            end
          end
        end)

        it("gives back rows of " .. type_name .. " bit for bit", function()
          local w = fixture_rows(type_name, 0, ROWS, COLS)
          for row = 0, ROWS - 1 do
            local case = { type = type_name, cols = COLS, rows = ROWS, w = w, row = row, variant = variant, piece = 1 }
            local width = row_bytes(type_name, COLS)
            local expected_bytes = core.dequantize(type_name, w:sub(row * width + 1, (row + 1) * width))
            local got_bytes = assert(core.test_packed_row(case))
            if got_bytes ~= expected_bytes then -- one NaN may have other bits than another
              local expected, got = floats(expected_bytes), floats(got_bytes)
              for i = 1, COLS do
                local same = got[i] == expected[i] or (got[i] ~= got[i] and expected[i] ~= expected[i])
                if not same then assert.equal(expected[i], got[i], ("row %d column %d"):format(row, i - 1)) end
              end
            end
          end
        end)
      end

      it("adds the bias, then the residual", function()
        local case = case_of("Q8_0", variant, 0, 19, 64, 3)
        local plain, bias, residual = floats(product(case)), random_floats(19, 7), random_floats(3 * 19, 8)
        local got = floats(product(with(case, { bias = pack_floats(bias), residual = pack_floats(residual) })))
        for i = 1, #plain do assert.equal(f32(f32(plain[i] + bias[(i - 1) % 19 + 1]) + residual[i]), got[i]) end
      end)

      it("finds the plane", function()
        local w = { fixture_rows("Q4_0", 0, 5, 64), fixture_rows("Q4_0", 5, 5, 64), fixture_rows("Q4_0", 10, 5, 64) }
        local case = case_of("Q4_0", variant, 0, 5, 64, 2)
        for plane = 0, 2 do
          local got = product(with(case, { w = table.concat(w), planes = 3, plane = plane }))
          assert.is_true(got == product(with(case, { w = w[plane + 1] })))
        end
      end)

      it("survives activations at the ends of the range", function()
        local values = {}
        for i = 1, 128 do values[i] = i <= 32 and 3e38 or i <= 64 and 1e-42 or i <= 96 and 0 or 1e-30 end
        local case = with(case_of("Q8_0", variant, 0, 2, 128, 1), { x = pack_floats(values) })
        for _, value in ipairs(floats(product(case))) do assert.is_true(value - value == 0) end
      end)
    end)
  end

  it("computes, operation by operation, what matmul.h says", function()
    local w, cols = fixture_rows("Q4_1", 0, 16, COLS), COLS
    local x = random_floats(cols, 99)
    for _, variant in ipairs(variants) do
      if variant ~= "generic" then -- which has no fused operations
        local case = { type = "Q4_1", variant = variant, cols = cols, rows = 16, n = 1, w = w, x = pack_floats(x) }
        local got = floats(product(case))
        for r = 0, 15 do
          local acc = 0.0
          for b = 0, cols // 32 - 1 do
            local at = (r * cols // 32 + b) * 20
            local scales = floats(core.dequantize("F16", w:sub(at + 1, at + 4)))
            local codes, x_scale = quantize_block(x, 32 * b)
            local products, sum = 0, 0
            for i = 1, 32 do
              local byte = w:byte(at + 4 + (i - 1) % 16 + 1)
              products, sum = products + codes[i] * (i <= 16 and byte & 15 or byte >> 4), sum + codes[i]
            end
            acc = f32(f32(products * scales[1]) * x_scale + acc)
            acc = f32(scales[2] * f32(sum * x_scale) + acc)
          end
          assert.equal(acc, got[r + 1], variant .. ", weight row " .. r)
        end
      end
    end
  end)

  for _, type_name in ipairs(all_types) do
    it("gives the same bits for " .. type_name .. " with every fused multiply-add", function()
      local first
      for _, variant in ipairs(variants) do
        if variant ~= "generic" and not (type_name == "BF16" and variant == "avx512bf16") then
          local got = product(case_of(type_name, variant, 0, 16, COLS, 9))
          first = first or got
          assert.is_true(got == first, variant)
        end
      end
    end)
  end

  it("refuses bytes that are not the shape's", function()
    local case = case_of("Q8_0", nil, 0, 2, 64, 1)
    local changes = { { w = case.w .. "x" }, { w = "" }, { x = "" }, { rows = 3 }, { n = 2 }, { type = "Q9" } }
    for _, change in ipairs(changes) do
      assert.has_error(function() core.test_matmul(with(case, change)) end)
    end
  end)
end)
