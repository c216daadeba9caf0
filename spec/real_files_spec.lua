-- The keys and tensors of files that people have, where they differ from the fixtures': each variant loads, runs, and
-- computes with what it has. Sizes are small, names and relations of sizes are those of the files.
describe("files as they are found", function()
  local arch = require "kigo.arch"
  local build = require "spec.gguf_build"
  local core = require "kigo.core"
  require "kigo" -- the scripted half of models: embed
  local edit = require "spec.gguf_edit"
  local support = require "spec.support"
  local model_fixtures = require "spec.model_fixtures"
  local traffic = require "kigo.traffic"

  local H, HEADS, KV, HEAD, FFN, VOCAB = 32, 4, 2, 8, 48, 40

  -- Shapes of tensors by role, in models of these sizes; `s` overrides some.
  local function shape_of(role, s)
    local h, q, kv = s.hidden or H, (s.heads or HEADS) * (s.head or HEAD), (s.kv or KV) * (s.head or HEAD)
    local ffn, shared = s.ffn or FFN, s.shared or FFN
    local shapes = { attn_q = { h, q }, attn_k = { h, kv }, attn_v = { h, kv }, attn_qkv = { h, q + 2 * kv },
      attn_output = { q, h }, ffn_gate = { h, ffn }, ffn_up = { h, s.fused_up and 2 * ffn or ffn },
      ffn_down = { ffn, h },
      ffn_gate_inp = { h, s.experts },
      ffn_gate_exps = { h, ffn, s.experts }, ffn_up_exps = { h, ffn, s.experts },
      ffn_down_exps = { ffn, h, s.experts }, ffn_gate_shexp = { h, shared }, ffn_up_shexp = { h, shared },
      ffn_down_shexp = { shared, h }, attn_q_norm = { s.norm_q or s.head or HEAD },
      attn_k_norm = { s.norm_k or s.head or HEAD }, token_embd = { h, VOCAB }, output = { h, VOCAB },
      position_embd = { h, 64 }, token_types = { h, 2 }, attn_rot_embd = { 4 } }
    return shapes[role] or { h }
  end

  local function add(tensors, prefix, names, sizes)
    for name in names:gmatch "%S+" do
      local role, ending = name:match "^([%w_]+)%.?(%w*)$"
      local shape = shape_of(role, sizes)
      if ending == "bias" then shape = { shape[2] or shape[1], shape[3] } end
      tensors[#tensors + 1] = { name = prefix .. role .. "." .. (ending == "" and "weight" or ending), shape = shape }
    end
  end

  ---@class spec.RealFile
  ---@field arch string
  ---@field keys table<string, any>  without the architecture
  ---@field model string             names of tensors; "x.bias" for biases
  ---@field blocks string[]          names in each block
  ---@field sizes table?
  ---@field others table[]?          tensors as build.random takes them

  ---@param file spec.RealFile
  local function bytes_of(file)
    local a, metadata, tensors = file.arch .. ".", { ["general.architecture"] = file.arch }, {}
    local s = file.sizes or {}
    for key, value in pairs { ["general.name"] = "a name", ["general.file_type"] = 1, ["general.size_label"] = "8B",
      ["general.quantization_version"] = 2, [a .. "context_length"] = 64, [a .. "embedding_length"] = s.hidden or H,
      [a .. "block_count"] = #file.blocks, [a .. "attention.head_count"] = s.heads or HEADS,
      [a .. "attention.head_count_kv"] = s.kv or KV, [a .. "feed_forward_length"] = s.ffn or FFN,
      [a .. "vocab_size"] = VOCAB } do metadata[key] = value end
    for key, value in pairs(file.keys) do metadata[a .. key] = value end
    add(tensors, "", file.model, s)
    for i, names in ipairs(file.blocks) do add(tensors, ("blk.%d."):format(i - 1), names, s) end
    for _, tensor in ipairs(file.others or {}) do tensors[#tensors + 1] = tensor end
    return build.random(metadata, tensors)
  end

  local function twice(names) return { names, names } end
  local RMS = { ["attention.layer_norm_rms_epsilon"] = 1e-5 }
  local LAYER_NORM = { ["attention.layer_norm_epsilon"] = 1e-5 }
  local function keys(base, more)
    local all = {}
    for key, value in pairs(base) do all[key] = value end
    for key, value in pairs(more) do all[key] = value end
    return all
  end

  local function floats(name, n, value)
    return { name = name, shape = { n }, bytes = string.pack("<" .. ("f"):rep(n), table.unpack((function()
      local list = {}
      for i = 1, n do list[i] = value + i / 10 end
      return list
    end)())) }
  end

  local LLAMA = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down"
  local QKV = "attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down"
  local MOE = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps"
  local ENDS, TIED = "token_embd output_norm output", "token_embd output_norm"
  local GEMMA = "attn_norm attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm post_attention_norm ffn_norm "
    .. "ffn_gate ffn_up ffn_down post_ffw_norm"

  local files = {
    ["Llama 3.2: tied, factors of its rotation"] = { arch = "llama", model = TIED, blocks = twice(LLAMA),
      keys = keys(RMS, { ["rope.freq_base"] = 500000.0, ["rope.dimension_count"] = 8, ["attention.key_length"] = 8,
        ["attention.value_length"] = 8 }), others = { floats("rope_freqs.weight", 4, 1) } },
    ["Mistral Nemo: heads narrower than the row's share"] = { arch = "llama", model = ENDS, blocks = twice(LLAMA),
      sizes = { hidden = 40 }, keys = keys(RMS, { ["attention.key_length"] = 8, ["attention.value_length"] = 8,
        ["rope.dimension_count"] = 8, ["rope.freq_base"] = 1e6 }) },
    ["early LLaMA: counts of no experts, a table of rotations"] = { arch = "llama", model = ENDS,
      blocks = twice(LLAMA .. " attn_rot_embd"), keys = keys(RMS, { expert_count = 0, expert_used_count = 0,
        ["rope.scale_linear"] = 4.0 }) },
    ["LLaMA with biases everywhere"] = { arch = "llama", model = ENDS, blocks = twice(LLAMA
      .. " attn_q.bias attn_k.bias attn_v.bias attn_output.bias ffn_gate.bias ffn_up.bias ffn_down.bias"), keys = RMS },
    ["Mixtral"] = { arch = "llama", model = ENDS, blocks = twice(MOE), sizes = { experts = 8 },
      keys = keys(RMS, { expert_count = 8, expert_used_count = 2, ["rope.freq_base"] = 1e6 }) },
    ["Qwen 2.5 0.5B"] = { arch = "qwen2", model = TIED, blocks = twice(LLAMA .. " attn_q.bias attn_k.bias attn_v.bias"),
      keys = RMS },
    ["Qwen 3 4B"] = { arch = "qwen3", model = TIED,
      blocks = twice(LLAMA .. " attn_q_norm attn_k_norm"), sizes = { head = 16 },
      keys = keys(RMS, { ["attention.key_length"] = 16, ["attention.value_length"] = 16 }) },
    ["Qwen 3 30B A3B"] = { arch = "qwen3moe", model = ENDS, blocks = twice(MOE .. " attn_q_norm attn_k_norm"),
      sizes = { head = 16, ffn = 24, experts = 8 }, keys = keys(RMS, { ["attention.key_length"] = 16,
        ["attention.value_length"] = 16, expert_count = 8, expert_used_count = 3, expert_feed_forward_length = 24 }) },
    ["Qwen 1.5 MoE"] = { arch = "qwen2moe", model = ENDS, sizes = { experts = 6, ffn = 24, shared = 40 },
      blocks = twice(MOE .. " attn_q.bias attn_k.bias attn_v.bias ffn_gate_inp_shexp ffn_gate_shexp ffn_up_shexp "
        .. "ffn_down_shexp"), keys = keys(RMS, { expert_count = 6, expert_used_count = 2,
        expert_feed_forward_length = 24, expert_shared_feed_forward_length = 40 }) },
    ["Phi 2, q, k and v in one"] = { arch = "phi2", model = ENDS .. " output_norm.bias output.bias",
      sizes = { kv = 4 }, keys = keys(LAYER_NORM, { ["rope.dimension_count"] = 4, ["tokenizer.add_bos"] = false }),
      blocks = twice "attn_norm attn_norm.bias attn_qkv attn_qkv.bias attn_output attn_output.bias ffn_up ffn_up.bias \z
        ffn_down ffn_down.bias" },
    ["Phi 3 mini 4k: a window"] = { arch = "phi3", model = ENDS, blocks = twice(QKV), sizes = { fused_up = true },
      keys = keys(RMS, { ["attention.sliding_window"] = 20, ["rope.dimension_count"] = 8,
        ["rope.scaling.original_context_length"] = 64 }) },
    ["Phi 4: no window"] = { arch = "phi3", model = ENDS, blocks = twice(QKV), sizes = { fused_up = true },
      keys = keys(RMS, { ["attention.sliding_window"] = 0, ["rope.dimension_count"] = 8 }) },
    ["Phi 4 mini: tied, a part of each head turns"] = { arch = "phi3", model = TIED, blocks = twice(QKV),
      sizes = { fused_up = true }, keys = keys(RMS, { ["attention.sliding_window"] = 262144,
        ["rope.dimension_count"] = 6, ["rope.scaling.original_context_length"] = 32,
        ["rope.scaling.attn_factor"] = 1.19 }),
      others = { floats("rope_factors_long.weight", 3, 2), floats("rope_factors_short.weight", 3, 1) } },
    ["Gemma 2"] = { arch = "gemma2", model = TIED, sizes = { head = 16 }, keys = keys(RMS, {
      ["attention.key_length"] = 16, ["attention.value_length"] = 16, ["attn_logit_softcapping"] = 50.0,
      ["final_logit_softcapping"] = 30.0, ["attention.sliding_window"] = 20 }),
      blocks = twice(LLAMA .. " post_attention_norm post_ffw_norm") },
    ["Gemma 3 1B"] = { arch = "gemma3", model = TIED, sizes = { head = 16, kv = 1 }, blocks = twice(GEMMA),
      keys = keys(RMS, { ["attention.key_length"] = 16, ["attention.value_length"] = 16, ["rope.freq_base"] = 1e6,
        ["attention.sliding_window"] = 16 }) },
    ["Gemma 3 4B: stretched, with the parts that see images in one file"] = { arch = "gemma3", model = TIED,
      sizes = { head = 16 }, blocks = twice(GEMMA), keys = keys(RMS, { ["attention.key_length"] = 16,
        ["attention.value_length"] = 16, ["attention.sliding_window"] = 16, ["rope.scaling.type"] = "linear",
        ["rope.scaling.factor"] = 8.0, ["vision.block_count"] = 27, ["mm.tokens_per_image"] = 256 }),
      others = { { name = "mm.mm_input_projection.weight", shape = { 8, 8 } },
        { name = "v.blk.0.attn_k.weight", shape = { 8, 8 } },
        { name = "v.patch_embedding.weight", shape = { 2, 2, 3, 8 } } } },
    ["GPT-2, tied"] = { arch = "gpt2", model = "token_embd position_embd output_norm output_norm.bias",
      keys = LAYER_NORM, sizes = { kv = 4 }, blocks = twice(QKV .. " attn_norm.bias attn_qkv.bias attn_output.bias "
        .. "ffn_norm.bias "
        .. "ffn_up.bias ffn_down.bias") },
    ["GPT-2 with its head written out"] = { arch = "gpt2", model = "token_embd position_embd " .. ENDS:sub(12)
      .. " output_norm.bias", keys = LAYER_NORM, sizes = { kv = 4 }, blocks = twice(QKV .. " attn_norm.bias "
        .. "attn_qkv.bias attn_output.bias ffn_norm.bias ffn_up.bias ffn_down.bias") },
    ["Pythia"] = { arch = "gptneox", model = ENDS .. " output_norm.bias", sizes = { kv = 4 },
      keys = keys(LAYER_NORM, { ["rope.dimension_count"] = 2, use_parallel_residual = true,
        ["attention.max_alibi_bias"] = 0.0 }), blocks = twice(QKV .. " attn_norm.bias attn_qkv.bias attn_output.bias "
        .. "ffn_norm.bias ffn_up.bias ffn_down.bias") },
    ["Falcon 7B"] = { arch = "falcon", model = ENDS .. " output_norm.bias", sizes = { kv = 1 }, keys = LAYER_NORM,
      blocks = twice "attn_norm attn_norm.bias attn_qkv attn_output ffn_up ffn_down" },
    ["Falcon 40B, tied"] = { arch = "falcon", model = TIED .. " output_norm.bias", keys = LAYER_NORM,
      blocks = twice "attn_norm attn_norm.bias attn_norm_2 attn_norm_2.bias attn_qkv attn_output ffn_up ffn_down" },
    ["StarCoder 2 15B"] = { arch = "starcoder2", model = ENDS .. " output_norm.bias", keys = LAYER_NORM,
      blocks = twice "attn_norm attn_norm.bias attn_q attn_q.bias attn_k attn_k.bias attn_v attn_v.bias attn_output \z
        attn_output.bias ffn_norm ffn_norm.bias ffn_up ffn_up.bias ffn_down ffn_down.bias" },
    ["StableLM 2 1.6B"] = { arch = "stablelm", model = ENDS .. " output_norm.bias", keys = keys(LAYER_NORM, {
      ["rope.dimension_count"] = 2, use_parallel_residual = false }),
      blocks = twice(LLAMA .. " attn_norm.bias ffn_norm.bias attn_q.bias attn_k.bias attn_v.bias") },
    ["OLMo 2"] = { arch = "olmo2", model = ENDS, keys = RMS, sizes = { norm_q = 32, norm_k = 16 },
      blocks = twice "attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm post_attention_norm ffn_gate ffn_up \z
        ffn_down post_ffw_norm" },
    ["Granite 3"] = { arch = "granite", model = TIED, blocks = twice(LLAMA), keys = keys(RMS, {
      ["attention.scale"] = 0.0078125, embedding_scale = 12.0, residual_scale = 0.22, logit_scale = 16.0 }) },
    ["gpt-oss"] = { arch = "gpt-oss", model = ENDS, sizes = { experts = 8, head = 16 }, keys = keys(RMS, {
      ["attention.key_length"] = 16, ["attention.value_length"] = 16, ["attention.sliding_window"] = 16,
      expert_count = 8, expert_used_count = 4, expert_feed_forward_length = 48, ["rope.freq_base"] = 150000.0,
      ["rope.scaling.type"] = "yarn", ["rope.scaling.factor"] = 32.0,
      ["rope.scaling.original_context_length"] = 32 }),
      blocks = twice((MOE:gsub("ffn_norm", "post_attention_norm")) .. " attn_q.bias attn_k.bias attn_v.bias "
        .. "attn_output.bias ffn_gate_inp.bias ffn_gate_exps.bias ffn_up_exps.bias ffn_down_exps.bias"),
      others = { { name = "blk.0.attn_sinks.weight", shape = { 4 } },
        { name = "blk.1.attn_sinks.weight", shape = { 4 } } } },
    ["BGE"] = { arch = "bert", model = "token_embd token_embd_norm token_embd_norm.bias token_types position_embd",
      sizes = { kv = 4 }, keys = keys(LAYER_NORM, { ["attention.causal"] = false, pooling_type = 2,
        ["tokenizer.ggml.token_type_count"] = 2 }), blocks = twice "attn_q attn_q.bias attn_k attn_k.bias attn_v \z
        attn_v.bias attn_output attn_output.bias attn_output_norm attn_output_norm.bias ffn_up ffn_up.bias ffn_down \z
        ffn_down.bias layer_output_norm layer_output_norm.bias" },
    ["nomic-embed-text 1.5"] = { arch = "nomic-bert", model = "token_embd token_embd_norm token_embd_norm.bias \z
        token_types", sizes = { kv = 4 }, keys = keys(LAYER_NORM, { ["attention.causal"] = false, pooling_type = 1,
        ["rope.freq_base"] = 1000.0 }), blocks = twice "attn_qkv attn_output attn_output_norm attn_output_norm.bias \z
        ffn_gate ffn_up ffn_down layer_output_norm layer_output_norm.bias" },
    ["SmolLM 3"] = { arch = "smollm3", model = TIED, blocks = { LLAMA, LLAMA, LLAMA, LLAMA }, keys = keys(RMS, {
      ["rope.freq_base"] = 5e6, ["rope.dimension_count"] = 8 }) },
  }

  local function open(bytes, device)
    local gguf <close> = assert(core.parse_gguf(bytes, "spec"))
    local plan <close> = assert(arch.build(gguf))
    return assert(core.model(plan, { device = device, threads = 1, kv = "f32" })), plan
  end

  -- ---- other names of what a family computes ----

  -- The file under another architecture's name.
  local function renamed(bytes, to)
    local parts = edit.read(bytes)
    local from, entries = edit.architecture(parts), {}
    for i, entry in ipairs(parts.entries) do
      local key, raw = entry.key, entry.raw
      if key == "general.architecture" then raw = string.pack("<I4s8", 8, to) end
      if key:sub(1, #from + 1) == from .. "." then key = to .. key:sub(#from + 1) end
      entries[i] = { key = key, raw = raw, value = key == "general.architecture" and to or nil }
    end
    return edit.with(parts, { entries = entries })
  end

  local function logits(bytes)
    local model <close> = open(bytes, "reference")
    local out <close> = assert(model:logits { 1, 2, 3, 4, 5, 6 })
    return out:bytes()
  end

  for other, name in pairs { internlm2 = "llama_linear", exaone = "llama_factors", qwen3vlmoe = "qwen3moe",
    minicpm = "granite" } do
    it(("%s computes what the family of %s does"):format(other, name), function()
      local bytes = support.read("spec/fixtures/families/" .. name .. ".gguf")
      local there, here = logits(bytes), logits(edit.write(renamed(bytes, other)))
      assert.equal(other ~= "exaone", there == here) -- whose files hold heads in another order
    end)
  end

  for other, name in pairs { qwen2vl = "qwen2", qwen3vl = "qwen3" } do
    it(("%s computes what %s does"):format(other, name), function()
      local bytes = support.read(support.fixture("models/" .. name .. ".gguf"))
      local parts = edit.said(renamed(bytes, other), { ["rope.dimension_sections"] = { "i32", { 16, 24, 24, 0 } } })
      assert.is_true(logits(bytes) == logits(edit.write(parts)))
    end)
  end

  it("MiniCPM is refused where its file does not say the multipliers", function()
    local parts = edit.said(renamed(support.read "spec/fixtures/families/granite.gguf", "minicpm"),
      { residual_scale = false })
    local gguf <close> = assert(core.parse_gguf(edit.write(parts), "spec"))
    local plan, message, code = arch.build(gguf)
    assert.is_nil(plan)
    assert.equal(core.err.FORMAT, code)
    assert.truthy(message:find("minicpm.residual_scale", 1, true))
  end)

  for _, name in ipairs { "glm4moe", "deepseek2_v3", "dots1" } do
    it(name .. ": the blocks that guess are left out, and counted", function()
      local bytes = support.read("spec/fixtures/families/" .. name .. ".gguf")
      local function with(blocks, guessing)
        local parts = edit.said(edit.read(bytes), { block_count = { "u32", blocks },
          nextn_predict_layers = { "u32", guessing } })
        for _, tensor in ipairs { "nextn.eh_proj", "attn_norm", "nextn.shared_head_norm" } do
          local first = edit.with(parts.tensors[1], { name = ("blk.2.%s.weight"):format(tensor), dims = { 1 },
            offset = #parts.data, type = 0 })
          parts.data = parts.data .. ("\0"):rep(32)
          table.insert(parts.tensors, first)
        end
        return edit.write(parts)
      end
      assert.is_true(logits(bytes) == logits(with(3, 1)))
      local whole <close> = assert(core.parse_gguf(bytes, "spec"))
      local longer <close> = assert(core.parse_gguf(with(3, 1), "spec"))
      assert.equal(traffic.weight_bytes(whole), traffic.weight_bytes(longer))
      for _, case in ipairs { { 3, 0, "blk.2" }, { 2, 0, "blk.2" }, { 3, 3, "nextn_predict_layers" } } do
        local gguf <close> = assert(core.parse_gguf(with(case[1], case[2]), "spec"))
        local plan, message = arch.build(gguf)
        assert.is_nil(plan)
        assert.truthy(message:find(case[3], 1, true), message)
      end
    end)
  end

  -- ---- all of them ----

  for name, file in pairs(files) do
    it(name .. " loads and runs", function()
      local bytes, results = bytes_of(file), {}
      for _, device in ipairs { "reference", "cpu" } do
        local model <close> = open(bytes, device)
        local out <close> = assert(model.has_head and model:logits { 1, 2, 3, 4, 5, 6 }
          or model:embed({ 1, 2, 3, 4, 5, 6 }, { normalize = false }))
        results[device] = out:bytes()
      end
      local _, relative = model_fixtures.difference(results.cpu, results.reference)
      assert.is_true(relative < 1e-4, ("relative difference %g"):format(relative))
    end)
  end
end)
