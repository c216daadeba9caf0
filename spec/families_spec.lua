-- Families without a fixture in shared: logits and greedy ids of tiny random models, computed by Hugging Face's
-- transformers in float32 (spec/fixtures/make_families.py).
describe("the families", function()
  local arch = require "kigo.arch"
  local build = require "spec.gguf_build"
  local core = require "kigo.core"
  local kigo = require "kigo"
  local model_fixtures = require "spec.model_fixtures"
  local support = require "spec.support"
  local tiny = require "spec.tiny"

  local FOLDER = "spec/fixtures/families/"
  local NAMES = require "spec.families"

  local function open(path, context, options)
    local gguf <close> = assert(core.open_gguf(path))
    local plan <close> = assert(arch.build(gguf, context))
    options.ctx = context
    return assert(core.model(plan, options))
  end

  -- The reference computes in float32 as transformers does; the cpu backend multiplies float16 weights exactly too, and
  -- rounds keys and values to float16.
  -- A GPU rounds weights and activations to float16; greedy ids have to be the same where they have a margin.
  local devices = { { "reference", 1e-3, 1e-5 }, { "cpu", 0.03, 2e-3 } }
  if tiny.has_gpu then table.insert(devices, { "cuda", 0.1, 5e-3 }) end
  for _, device in ipairs(devices) do
    for _, name in ipairs(NAMES) do
      it(("%s: %s gives the logits and ids of transformers"):format(device[1], name), function()
        local info = support.read_json(FOLDER .. name .. ".json")
        local model <close> = open(FOLDER .. name .. ".gguf", info.context, { device = device[1] })
        local fixture = { prompt = info.prompt, logits = support.read(FOLDER .. name .. ".logits.f32") }
        local max, relative = model_fixtures.compare(model, fixture)
        assert.is_true(max <= device[2], ("largest difference %g"):format(max))
        assert.is_true(relative <= device[3], ("relative difference %g"):format(relative))
        if device[1] ~= "cuda" or info.min_greedy_margin > device[2] then
          assert.same(info.greedy, model_fixtures.greedy(model, info.prompt, #info.greedy))
        end
      end)
    end
  end

  for name, pooling in pairs { bert = "cls", nomic_bert = "mean" } do
    for _, device in ipairs(devices) do
      it(("%s: %s embeds as its file says, alone and in company"):format(name, device[1]), function()
        local info = support.read_json(FOLDER .. name .. ".json")
        local hidden, width = support.read_f32(FOLDER .. name .. ".logits.f32"), 32
        local model <close> = assert(kigo.load(FOLDER .. name .. ".gguf", { device = device[1] }))
        local alone <close> = assert(model:embed(info.prompt, { normalize = false }))
        local others = assert(model:embed({ { 7, 8 }, info.prompt, { 9 } }, { normalize = false }))
        assert.equal(alone:bytes(), others[2]:bytes())
        for c = 1, width do
          local wanted = hidden[c]
          for row = 1, pooling == "mean" and #info.prompt - 1 or 0 do wanted = wanted + hidden[row * width + c] end
          if pooling == "mean" then wanted = wanted / #info.prompt end
          assert.near(wanted, alone[c - 1], device[2] / 10)
        end
      end)
    end
  end

  -- The file with its tensor's name or shape changed, in place.
  local function rename(bytes, name)
    local at = assert(bytes:find(string.pack("<s8", name), 1, true)) + 8
    return bytes:sub(1, at + #name - 2) .. "~" .. bytes:sub(at + #name)
  end

  local function reshape(bytes, tensor)
    local shape = tensor.shape
    local at = assert(bytes:find(string.pack("<s8I4", tensor.name, #shape), 1, true)) + 8 + #tensor.name + 4
    local first, second = shape[1], shape[2]
    if #shape == 1 then first = first // 2 else first, second = second, first end
    if first == second then return nil end
    local changed = second and string.pack("<I8I8", first, second) or string.pack("<I8", first)
    return bytes:sub(1, at - 1) .. changed .. bytes:sub(at + #changed)
  end

  -- Refused with words that name the tensor, or one that no longer fits it.
  local function refused(bytes, tensor)
    local gguf, message, code = core.parse_gguf(bytes, "spec.gguf")
    local plan
    if gguf then
      local _ <close> = gguf
      plan, message, code = arch.build(gguf)
    end
    assert.is_nil(plan, tensor)
    assert.is_true(code == core.err.FORMAT or code == core.err.UNSUPPORTED, tensor)
    assert.truthy(message:find "^spec.gguf: " and message:find "tensor", message)
  end

  it("deepseek2: is refused with numbers that do not fit, in words that name them", function()
    local bytes = support.read(FOLDER .. "deepseek2_v3.gguf")
    for _, case in ipairs {
      { "expert_gating_func", 2, 4, "expert_gating_func = 4", core.err.UNSUPPORTED },
      { "expert_group_count", 4, 3, "3 equal groups" }, { "expert_group_count", 4, 0, "expert_group_count = 0" },
      { "expert_group_used_count", 2, 5, "groups_used = 5" }, { "expert_used_count", 3, 5, "used = 5" },
      { "attention.kv_lora_rank", 24, 23, "attn_kv" }, { "rope.dimension_count", 8, 7, "rope.dimension_count = 7" },
      { "attention.key_length_mla", 20, 8, "attention.key_length_mla = 8" },
      { "attention.key_length_mla", 20, 24, "attn_q_b" }, { "attention.head_count", 4, 2, "attn_k_b" },
      { "leading_dense_block_count", 1, 0, "blk.0.ffn_gate_inp" },
      { "leading_dense_block_count", 1, 2, "blk.1.ffn_up" },
    } do
      local key = "deepseek2." .. case[1]
      local old, new = build.entry(key, "u32", case[2]), build.entry(key, "u32", case[3])
      local at = assert(bytes:find(old, 1, true), key)
      local changed = bytes:sub(1, at - 1) .. new .. bytes:sub(at + #old)
      local gguf <close> = assert(core.parse_gguf(changed, "spec.gguf"))
      local plan, message, code = arch.build(gguf)
      assert.is_nil(plan, key)
      assert.equal(case[5] or core.err.FORMAT, code)
      assert.truthy(message:find(case[4], 1, true), message)
    end
  end)

  for _, name in ipairs(NAMES) do
    it(("%s: is refused without one of its tensors, or with another shape of it"):format(name), function()
      local bytes = support.read(FOLDER .. name .. ".gguf")
      local gguf <close> = assert(core.parse_gguf(bytes, "spec.gguf"))
      for i, tensor in ipairs(gguf:tensors()) do -- all of them: spec/wrong_files_spec.lua
        if tensor.name:find "^blk%.[1-9]" or (i + #name) % 3 ~= 0 then goto continue end
        refused(rename(bytes, tensor.name), tensor.name)
        local reshaped = reshape(bytes, tensor)
        if reshaped then refused(reshaped, tensor.name) end
        ::continue::
      end
      for part = 0, 0.99, 0.09 do
        local cut, message, code = core.parse_gguf(bytes:sub(1, math.floor(#bytes * part)), "spec.gguf")
        assert.is_nil(cut)
        assert.equal(core.err.FORMAT, code)
        assert.truthy(message:find("spec.gguf", 1, true))
      end
    end)
  end
end)
