-- Products in shapes that fit nothing well: rows that fill no tile, columns that fill no block, chunk or run, as gates,
-- with residuals, three of one value. Each is near the reference's, and a row has its bits whatever it stands beside.
describe("products in odd shapes", function()
  local core = require "kigo.core"
  local build = require "spec.gguf_build"
  local model_fixtures = require "spec.model_fixtures"
  local tiny = require "spec.tiny"
  local CODES = { f32 = 0, f16 = 1, q8_0 = 8, q5_0 = 6, q4_k = 12, q6_k = 14, bf16 = 30 }
  local COUNTS = { 1, 2, 3, 8, 9, 17, 65, 130 } -- rows together

  local pattern = {} -- of a length that no row has a part of
  for i = 1, 4999 do pattern[i] = core.uniform(7, i, 0) - 0.5 end
  pattern = string.pack(("<f"):rep(#pattern), table.unpack(pattern))

  ---Shape: columns, hidden columns, rows of the last matrix.
  local function open(name, shape, options)
    local cols, hidden, vocab = table.unpack(shape)
    local list, at = { { name = "e", shape = { cols, vocab } }, { name = "n", shape = { cols } } }, 0
    for _, matrix in ipairs { { "gate", cols, hidden }, { "up", cols, hidden }, { "down", hidden, cols },
      { "a", cols, 20 }, { "b", cols, 3 }, { "c", cols, 20 }, { "d", 23, cols }, { "o", cols, vocab } } do
      local size, type_ = 4 * matrix[2] * matrix[3], name
      if matrix[1] == "d" then type_ = "f32" end
      at = at + 4
      local bytes = pattern:rep(size // #pattern + 2):sub(at + 1, at + size)
      list[#list + 1] = { name = matrix[1], shape = { matrix[2], matrix[3] }, type = CODES[type_],
        bytes = type_ == "f32" and bytes or assert(core.quantize(type_, bytes)) }
    end
    local gguf <close> = assert(core.parse_gguf(build.random({ ["general.architecture"] = "none" }, list), "spec"))
    local plan <close> = assert(core.plan(gguf))
    local function weight(of) return assert(plan:weight(of)) end
    local function linear(of, x) return plan:linear(of, x, weight(of)) end
    local x = plan:embed("x", weight "e")
    local h = plan:norm("h", x, weight "n", nil, { epsilon = 1e-5 })
    local a, b, c = linear("a", h), linear("b", h), linear("c", h)
    x = plan:add("y", x, linear("down", plan:glu("hidden", linear("gate", h), linear("up", h), "silu")))
    local d = plan:concat("ab", plan:add("ac", a, c), b, 1)
    x = plan:add("z", x, linear("d", d))
    assert(plan:finish(linear("o", plan:norm("last", x, weight "n", nil, { epsilon = 1e-5 })), 256))
    return assert(core.model(plan, options))
  end

  local function rows_of(model, ids, width)
    local logits <close> = assert(model:logits(ids))
    local bytes, rows = logits:bytes(), {}
    for i = 1, #ids do rows[i] = bytes:sub(4 * width * (i - 1) + 1, 4 * width * i) end
    return rows
  end

  local SHAPES = {
    f32 = { { 5, 3, 7 }, { 33, 50, 9 }, { 132, 260, 45 } },
    f16 = { { 5, 3, 7 }, { 33, 50, 9 }, { 100, 300, 45 }, { 132, 2052, 48 }, { 3110, 36, 21 }, { 64, 6500, 20 } },
    bf16 = { { 5, 3, 7 }, { 100, 300, 45 } },
    q8_0 = { { 32, 32, 5 }, { 96, 160, 18 }, { 416, 1056, 51 }, { 3104, 32, 20 }, { 64, 3104, 20 } },
    q5_0 = { { 32, 32, 5 }, { 96, 160, 18 }, { 1056, 352, 20 } },
    q4_k = { { 256, 256, 3 }, { 768, 1280, 37 }, { 3328, 256, 20 } },
    q6_k = { { 256, 256, 3 }, { 1280, 768, 37 }, { 256, 3328, 20 } },
  }

  -- There is no cache here, so a device is wanted once.
  local devices = { "cpu", tiny.has_gpu and "cuda" or nil }
  for _, device in ipairs(devices) do
    for name, shapes in pairs(SHAPES) do
      it(name .. ": " .. device, function()
        for _, shape in ipairs(shapes) do
          local what, dice, ids = table.concat(shape, " "), tiny.dice(3), {}
          for i = 1, COUNTS[#COUNTS] do ids[i] = dice(shape[3]) - 1 end
          local model <close> = open(name, shape, { device = device, chunk = 256, prefix_cache = false })
          local all = rows_of(model, ids, shape[3])
          local reference <close> = open(name, shape, { device = "reference" })
          local wanted <close> = assert(reference:logits(tiny.slice(ids, 1, 20)))
          local _, relative = model_fixtures.difference(table.concat(all, "", 1, 20), wanted:bytes())
          local most = ({ f32 = 1e-5, bf16 = 0.01 })[name] or 3e-3
          assert.is_true(relative < most, ("%s: relative %g"):format(what, relative))
          for _, n in ipairs(COUNTS) do
            local rows = rows_of(model, tiny.slice(ids, 1, n), shape[3])
            for i = 1, n do
              assert.is_true(rows[i] == all[i], ("%s: row %d of %d is another one"):format(what, i, n))
            end
          end
          local seq <close> = model:sequence {} -- by itself, with what is fused for it
          for i = 1, 3 do
            assert(seq:push(ids[i]))
            assert.is_true(seq.logits:bytes() == all[i], ("%s: row %d alone is another one"):format(what, i))
          end
        end
      end)
    end
  end
end)
