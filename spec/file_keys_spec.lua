-- What model files say about how their family computes: it is done, or refused by name. Where files of a family agree
-- and say nothing, what all of them do.
describe("keys of model files", function()
  local arch = require "kigo.arch"
  local core = require "kigo.core"
  local edit = require "spec.gguf_edit"
  local support = require "spec.support"

  -- A family's fixture; those of other engines are in shared.
  local function path_of(name)
    local path = "spec/fixtures/families/" .. name .. ".gguf"
    local file = io.open(path)
    if not file then return support.fixture("models/" .. name .. ".gguf") end
    file:close()
    return path
  end

  -- The plan of a fixture whose file says this instead, too.
  local function build(name, changes)
    local parts = edit.said(edit.read(support.read(path_of(name))), changes or {})
    local gguf <close> = assert(core.parse_gguf(edit.write(parts), "spec.gguf"))
    return arch.build(gguf)
  end

  -- A field of all its operations of a kind, in order.
  local function fields(kind, field, name, changes)
    local plan <close> = assert(build(name, changes))
    local values = {}
    for _, op in ipairs(plan:ops()) do
      if op.kind == kind then values[#values + 1] = op[field] end
    end
    return values
  end

  local function refused(code, name, key, value, names)
    local plan, message, got = build(name, { [key] = value })
    assert.is_nil(plan, name .. " took " .. key)
    assert.equal(code, got)
    assert.truthy(message:find(names or key, 1, true), message)
  end

  local FORMAT, UNSUPPORTED = core.err.FORMAT, core.err.UNSUPPORTED
  local PATTERN, WITH_WINDOW = "attention.sliding_window_pattern", { 1, 0, 0, 1, 1, 0 }

  for _, case in ipairs {
    { "cohere2", 10, { 10, 10, 10, 0 } }, { "exaone4", 10, { 10, 10, 10, 0 } }, { "olmo3", 10, { 10, 10, 10, 0 } },
    { "gemma2", 16, { 16, 0, 16, 0 } }, { "gemma3", 16, { 16, 16, 16, 16, 16, 0 } },
    { "gptoss", 16, { 16, 0, 16, 0 } },
  } do
    it("which blocks have the window: " .. case[1], function()
      local name, window, known = table.unpack(case)
      local n = #fields("attention", "window", name)
      local function windows(value) return fields("attention", "window", name, { [PATTERN] = value }) end
      local function wanted(has)
        local list = {}
        for i = 1, n do list[i] = has(i) and window or 0 end
        return list
      end
      local listed = table.move(WITH_WINDOW, 1, n, 1, {})
      assert.same(table.move(known, 1, n, 1, {}), windows())
      assert.same(wanted(function(i) return i % 2 == 1 end), windows { "u32", 2 })
      assert.same(wanted(function(i) return i % 3 ~= 0 end), windows { "u32", 3 })
      assert.same(wanted(function() return false end), windows { "u32", 1 })
      assert.same(wanted(function() return true end), windows { "u32", 0 })
      assert.same(wanted(function(i) return listed[i] == 1 end), windows { "bool", listed })
      refused(FORMAT, name, PATTERN, { "bool", { 1 } })
      refused(FORMAT, name, PATTERN, { "u32", listed })
      refused(FORMAT, name, PATTERN, { "i32", -1 })
      refused(FORMAT, name, PATTERN, { "f32", 2 })
    end)
  end

  it("rotation goes with the window that the file gives a block", function()
    local function rotated(name, ...)
      local blocks = {}
      for _, out in ipairs(fields("rope", "out", name, { [PATTERN] = { "bool", { ... } } })) do
        local block = out:match "^blk%.(%d+)%.attn_q"
        if block then blocks[#blocks + 1] = tonumber(block) end
      end
      return blocks
    end
    assert.same({ 0, 3 }, rotated("cohere2", 1, 0, 0, 1))
    assert.same({ 1, 2 }, rotated("exaone4", 0, 1, 1, 0))
    local bases = {}
    for i, freqs in ipairs(fields("rope", "inverse_freqs", "gemma3", { [PATTERN] = { "u32", 2 } })) do
      bases[i] = freqs[2]
    end
    for i = 1, #bases, 4 do -- q and k of a near block, q and k of the other
      assert.equal(bases[i], bases[i + 1])
      assert.is_true(bases[i] > bases[i + 2])
    end
  end)

  it("StarCoder 2 has its window, whether the file says so or not", function()
    assert.same({ 10, 10 }, fields("attention", "window", "starcoder2"))
    assert.same({ 4096, 4096 }, fields("attention", "window", "starcoder2", { ["attention.sliding_window"] = false }))
  end)

  it("Granite does not turn where its file says so", function()
    for _, name in ipairs { "granite", "granitemoe" } do
      local key = "rope.scaling.finetuned"
      assert.equal(4, #fields("rope", "out", name))
      assert.equal(4, #fields("rope", "out", name, { [key] = { "bool", 1 } }))
      assert.equal(0, #fields("rope", "out", name, { [key] = { "bool", 0 } }))
    end
    assert.equal(4, #fields("rope", "out", "llama_linear", { ["rope.scaling.finetuned"] = { "bool", 0 } }))
  end)

  it("GLM 4 turns halves where its file has sections of positions: its q and k are not permuted", function()
    local key = "rope.dimension_sections"
    local function styles(value) return fields("rope", "style", "glm4", { [key] = value }) end
    assert.same({ "pairs", "pairs", "pairs", "pairs" }, styles())
    assert.same({ "pairs", "pairs", "pairs", "pairs" }, styles { "i32", { 0, 0, 0, 0 } })
    assert.same({ "halves", "halves", "halves", "halves" }, styles { "i32", { 1, 1, 0, 0 } })
    refused(FORMAT, "glm4", key, { "string", { "1" } })
    refused(FORMAT, "glm4", key, { "u32", 1 })
  end)

  it("scores are scaled as the file says", function()
    for _, name in ipairs { "llama_linear", "qwen3", "gemma", "gemma3", "phi2", "granite" } do
      local scale = fields("attention", "scale", name, { ["attention.scale"] = { "f32", 0.625 } })[1]
      assert.equal(0.625, scale, name)
    end
    refused(UNSUPPORTED, "deepseek2", "attention.scale", { "f32", 0.625 })
  end)

  it("a scale of 0 is none: scores are scaled as without the key", function()
    for _, name in ipairs { "llama_linear", "qwen3", "gemma2", "gemma3", "phi2", "granite", "deepseek2" } do
      local unsaid = fields("attention", "scale", name, { ["attention.scale"] = false })
      assert.same(unsaid, fields("attention", "scale", name, { ["attention.scale"] = { "f32", 0 } }), name)
    end
    for _, scale in ipairs { -0.125, 1e-9, 0 / 0 } do
      refused(FORMAT, "llama_linear", "attention.scale", { "f32", scale })
    end
  end)

  it("rotations have the magnitude that the file says", function()
    local LOG = 1 + 0.1 * math.log(4)
    local function magnitude(name, changes) return fields("rope", "magnitude", name, changes)[1] end
    local attn, yarn = "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"
    for _, name in ipairs { "qwen2", "llama_linear", "llama_factors", "phi3_long" } do
      assert.equal(1.5, magnitude(name, { [attn] = { "f32", 1.5 } }))
    end
    assert.near(LOG, magnitude "llama_yarn", 1e-6)
    assert.near(LOG * 1.5, magnitude("llama_yarn", { [attn] = { "f32", 1.5 } }), 1e-6)
    assert.near(1.5, magnitude("llama_yarn", { [yarn] = { "f32", 1.5 } }), 1e-6)
    assert.near(LOG, magnitude("llama_yarn", { [yarn] = { "f32", 1 } }), 1e-6) -- which says nothing
    assert.equal(1, magnitude("llama_linear", { [yarn] = { "f32", 1.5 } }))
    assert.near(LOG / (1 + 0.03 * math.log(4)),
      magnitude("llama_yarn", { ["rope.scaling.yarn_log_multiplier"] = { "f32", 0.3 } }), 1e-6)
    -- OLMo 3: the whole of it, in blocks that see everything
    local said = fields("rope", "magnitude", "olmo3", { [attn] = { "f32", 1.5 }, [yarn] = { "f32", 1.5 } })
    assert.same({ 1, 1, 1, 1, 1, 1, 1.5, 1.5 }, said)
    refused(UNSUPPORTED, "deepseek2_v3", attn, { "f32", 1.5 })
    refused(UNSUPPORTED, "deepseek2_v3", yarn, { "f32", 1.5 })
  end)

  it("queries grow with their positions where the file says so", function()
    local scale, length = "attention.temperature_scale", "attention.temperature_length"
    local function growth(name, changes)
      return fields("rope", "growth", name, changes), fields("rope", "growth_length", name, changes)
    end
    local of_q, lengths = growth "ministral3"
    for i = 1, 4 do assert.near(i % 2 == 1 and 0.1 or 0, of_q[i], 1e-6) end -- q and k by turns
    assert.equal(10, lengths[1]) -- the original context
    assert.equal(7, select(2, growth("ministral3", { [length] = { "u32", 7 } }))[1])
    local none, same = growth("ministral3", { [scale] = false, [length] = { "u32", 7 } })
    assert.same({ 0, 0, 0, 0 }, none)
    assert.same({ 1, 1, 1, 1 }, same) -- q and k turn alike: one table of angles
    assert.equal(4, #growth "deepseek2_v3")
    local changes = { [scale] = { "f32", 0.5 }, [length] = { "u32", 7 } }
    assert.same({ 0.5, 0, 0, 0.5, 0, 0 }, (growth("deepseek2_v3", changes)))
    -- which leaves the first positions as they were, and no others
    for _, name in ipairs { "deepseek2_v3", "deepseek2_kv_b" } do
      local function rows(more)
        local plan <close> = assert(build(name, more))
        local model <close> = assert(core.model(plan, { device = "reference" }))
        local logits <close> = assert(model:logits { 1, 2, 3, 4, 5, 6, 7, 8, 9 })
        return logits:bytes()
      end
      local plain, grown = rows(), rows(changes)
      local row = #plain // 9
      assert.is_true(plain:sub(1, 7 * row) == grown:sub(1, 7 * row))
      assert.is_false(plain:sub(7 * row + 1, 8 * row) == grown:sub(7 * row + 1, 8 * row))
    end
    refused(FORMAT, "ministral3", scale, { "f32", -1 })
    refused(FORMAT, "ministral3", length, { "u32", 0 })
    refused(UNSUPPORTED, "llama_linear", scale, { "f32", 0.5 })
  end)

  it("longrope is refused without its factors", function()
    refused(FORMAT, "llama_linear", "rope.scaling.type", { "string", "longrope" }, "rope_factors_long.weight")
  end)

  it("experts are chosen and weighed as the file says", function()
    for name, known in pairs { mixtral = { "softmax", true }, qwen2moe = { "softmax", false },
      qwen3moe = { "softmax", true }, olmoe = { "softmax", false }, granitemoe = { "softmax", true },
      hunyuan_moe = { "softmax", true }, ernie4_5_moe = { "softmax", true }, lfm2moe = { "sigmoid", true },
      minimax_m2 = { "sigmoid", true }, gptoss = { "softmax_used", false }, deepseek2 = { "softmax", false },
      dots1 = { "sigmoid", false }, glm4moe = { "sigmoid", false } } do
      local silent = { expert_gating_func = false, expert_weights_norm = false, expert_weights_scale = false }
      local function first(field, changes) return fields("moe", field, name, edit.with(silent, changes or {}))[1] end
      assert.equal(known[1], first "gate", name)
      assert.equal(known[2], first "normalize", name)
      assert.equal(1, first "scale", name)
      assert.equal("softmax_used", first("gate", { expert_gating_func = { "u32", 3 } }))
      assert.equal(not known[2], first("normalize", { expert_weights_norm = { "bool", known[2] and 0 or 1 } }), name)
      assert.equal(2.5, first("scale", { expert_weights_scale = { "f32", 2.5 } }), name)
      assert.equal(1, first("scale", { expert_weights_scale = { "f32", 0 } }), name) -- none
      refused(UNSUPPORTED, name, "expert_gating_func", { "u32", 4 })
    end
  end)

  it("what a family does not do is refused", function()
    for _, name in ipairs { "llama_linear", "qwen3moe", "gemma2", "olmo3", "hunyuan_dense" } do
      for key, value in pairs { ["attention.shared_kv_layers"] = { "u32", 1 }, ["rope.scaling.alpha"] = { "f32", 4 },
        ["attention.value_scale"] = { "f32", 0.5 }, ["attention.output_scale"] = { "f32", 0.5 },
        expert_group_count = { "u32", 2 }, nextn_predict_layers = { "u32", 1 } } do
        refused(UNSUPPORTED, name, key, value)
      end
    end
    for _, name in ipairs { "gemma2", "olmo3", "exaone4", "gptoss" } do
      refused(UNSUPPORTED, name, "rope.freq_base_swa", { "f32", 55 })
      refused(UNSUPPORTED, name, "rope.dimension_count_swa", { "u32", 4 })
      refused(UNSUPPORTED, name, "attention.key_length_swa", { "u32", 4 })
      refused(UNSUPPORTED, name, "attention.value_length_swa", { "u32", 4 })
    end
    refused(UNSUPPORTED, "starcoder2", PATTERN, { "u32", 3 })
  end)

  it("what says again what the family does, or nothing, is taken", function()
    for name, changes in pairs { olmo3 = { ["rope.freq_base_swa"] = { "f32", 10000 },
      ["rope.dimension_count_swa"] = { "u32", 8 }, ["attention.key_length_swa"] = { "u32", 8 } },
      -- and where no block sees less than others
      llama_linear = { ["rope.freq_base_swa"] = { "f32", 55 }, [PATTERN] = { "u32", 3 } },
      qwen3moe = { expert_group_count = { "u32", 1 }, nextn_predict_layers = { "u32", 0 } } } do
      local plan <close> = assert(build(name, changes))
      assert.truthy(plan)
    end
  end)
end)
