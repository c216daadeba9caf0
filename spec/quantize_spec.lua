describe("kigo.quantize", function()
  local core = require "kigo.core"
  local arch = require "kigo.arch"
  local kigo = require "kigo"
  local quantize = require "kigo.quantize"
  local build = require "spec.gguf_build"
  local support = require "spec.support"
  local err = core.err

  local FIXTURE = "spec/fixtures/families/olmo2.gguf"

  -- A qwen2 model with rows of whole 256s, written to a file: 256 wide, 8 blocks so that mixtures show.
  local function made(alignment)
    local metadata = { ["general.alignment"] = alignment,
      ["general.architecture"] = "qwen2", ["general.file_type"] = 0, ["general.name"] = "made",
      ["qwen2.context_length"] = 64, ["qwen2.embedding_length"] = 256, ["qwen2.block_count"] = 8,
      ["qwen2.attention.head_count"] = 4, ["qwen2.attention.head_count_kv"] = 2,
      ["qwen2.attention.layer_norm_rms_epsilon"] = 1e-5,
    }
    local tensors = { { name = "token_embd.weight", shape = { 256, 40 } },
      { name = "output_norm.weight", shape = { 256 } } }
    for i = 0, 7 do
      for _, w in ipairs { { "attn_norm", 256 }, { "attn_q", 256, 256 }, { "attn_k", 256, 128 }, { "attn_v", 256, 128 },
        { "attn_output", 256, 256 }, { "ffn_norm", 256 }, { "ffn_gate", 256, 256 }, { "ffn_up", 256, 256 },
        { "ffn_down", 256, 256 } } do
        tensors[#tensors + 1] = { name = ("blk.%d.%s.weight"):format(i, w[1]), shape = { w[2], w[3] } }
      end
    end
    return support.temporary(build.random(metadata, tensors))
  end

  local function write(path, bytes)
    local file <close> = assert(io.open(path, "wb"))
    assert(file:write(bytes))
  end

  local function types_of(path)
    local gguf <close> = assert(core.open_gguf(path))
    local types = {}
    for _, tensor in ipairs(gguf:tensors()) do types[tensor.name] = tensor.type end
    return types, gguf:get "general.file_type", gguf:get "general.name"
  end

  local PROMPT = { 1, 5, 9, 13, 17, 21, 25, 29 }

  local function logits(path)
    local gguf <close> = assert(core.open_gguf(path))
    local plan <close> = assert(arch.build(gguf))
    local model <close> = assert(core.model(plan, { device = "reference" }))
    local all <close> = assert(model:logits(PROMPT))
    return support.floats(all:bytes())
  end

  local function distance(x, y)
    local errors, squares = 0, 0
    for i = 1, #x do
      errors, squares = errors + (x[i] - y[i]) ^ 2, squares + x[i] ^ 2
    end
    return (errors / squares) ^ 0.5
  end

  local from, to, exact
  setup(function()
    from, to = made(), os.tmpname()
    exact = logits(from)
  end)
  teardown(function()
    os.remove(from)
    os.remove(to)
  end)

  -- What a mixture may cost a random model's logits, which suffer more than a trained one's.
  local LIMITS = { f32 = 0, f16 = 2e-3, bf16 = 2e-2, q8_0 = 0.03, q6_k = 0.1, q5_k_m = 0.2, q5_k_s = 0.2, q5_0 = 0.25,
    q5_1 = 0.2, q4_k_m = 0.35, q4_k_s = 0.4, q4_0 = 0.5, q4_1 = 0.45, iq4_nl = 0.45, iq4_xs = 0.45, q3_k_m = 0.7,
    q3_k_s = 0.9, q2_k = 1.5, mxfp4 = 0.03 }

  for _, name in ipairs(quantize.names()) do
    it(name .. " loads, and computes nearly the same", function()
      local result = assert(quantize.file(from, to, { type = name }))
      local off = distance(exact, logits(to))
      assert.is_true(off <= LIMITS[name], ("%g"):format(off))
      assert.equal(0, result.substituted)
      assert.is_false(result.from_quantized)
      assert.is_true(result.bytes_after <= result.bytes_before)
      local _, file_type, title = types_of(to)
      assert.equal(quantize.mixtures[name].file_type, file_type)
      assert.equal("made", title)
    end)
  end

  it("gives the head, and attn_v and ffn_down of sensitive blocks, more bits", function()
    assert(quantize.file(from, to, { type = "q4_k_m" }))
    local types = types_of(to)
    assert.equal("Q6_K", types["token_embd.weight"])
    assert.equal("F32", types["blk.0.attn_norm.weight"])
    local sensitive = {}
    for i = 0, 7 do
      local v, down = types[("blk.%d.attn_v.weight"):format(i)], types[("blk.%d.ffn_down.weight"):format(i)]
      assert.equal(v, down)
      assert.equal("Q4_K", types[("blk.%d.ffn_up.weight"):format(i)])
      sensitive[i + 1] = v == "Q6_K"
    end
    assert.same({ true, false, false, true, false, false, true, true }, sensitive)
  end)

  it("takes the next of kin where rows are no whole blocks", function()
    local result = assert(quantize.file(FIXTURE, to, { type = "q4_k_m" }))
    assert.is_true(result.substituted > 0)
    local types = types_of(to)
    assert.equal("Q5_0", types["blk.0.attn_q.weight"])
    assert.equal("F16", types["blk.1.ffn_down.weight"]) -- 48 wide
    assert.equal("F32", types["blk.1.attn_q_norm.weight"])
  end)

  it("leaves routers and kernels of convolutions as they are", function()
    assert(quantize.file("spec/fixtures/families/lfm2moe.gguf", to, { type = "q8_0" }))
    local types = types_of(to)
    assert.equal("Q8_0", types["blk.0.shortconv.in_proj.weight"])
    assert.equal("F32", types["blk.0.shortconv.conv.weight"])
    assert.equal("F16", types["blk.2.ffn_gate_inp.weight"])
    assert.is_true(distance(logits "spec/fixtures/families/lfm2moe.gguf", logits(to)) < 0.1)
  end)

  it("lets the caller choose for tensors", function()
    assert(quantize.file(from, to, { type = "q4_0", tensors = { { "ffn_", "q8_0" }, { "^blk%.3%.ffn_up", "f16" } } }))
    local types = types_of(to)
    assert.equal("Q8_0", types["blk.2.ffn_up.weight"])
    assert.equal("F16", types["blk.3.ffn_up.weight"])
    assert.equal("Q4_0", types["blk.3.attn_q.weight"])
  end)

  it("lays tensors out in its own way, whatever the file did", function()
    local wide <const> = made(4096)
    assert(quantize.file(from, to, { type = "q8_0" }))
    local expected = support.read(to)
    assert(quantize.file(wide, to, { type = "q8_0" }))
    assert.is_true(expected == support.read(to))
    os.remove(wide)
  end)

  it("gives the same bytes with any number of threads", function()
    local files = {}
    for i, threads in ipairs { 1, 3 } do
      assert(quantize.file(from, to, { type = "q4_k_m", threads = threads }))
      files[i] = support.read(to)
    end
    assert.is_true(files[1] == files[2])
  end)

  it("keeps what needs no change, says what was quantized, and can write over its source", function()
    local copy = os.tmpname()
    finally(function() os.remove(copy) end)
    assert(quantize.file(from, copy, { type = "q8_0" }))
    local once = support.read(copy)
    local result = assert(quantize.file(copy, copy, { type = "q8_0" }))
    assert.is_true(result.from_quantized)
    assert.is_true(once == support.read(copy))
  end)

  it("reports progress and leaves the target alone when cancelled", function()
    write(to, "as it was")
    local last, total = 0, nil
    local result, _, code = quantize.file(from, to, { type = "q4_0", progress = function(what, done, all)
      assert.equal("quantize", what)
      assert.is_true(done > last)
      last, total = done, all
      return done > all / 2
    end })
    assert.is_nil(result)
    assert.equal(err.CANCELLED, code)
    assert.is_true(last < total)
    assert.equal("as it was", support.read(to))
    assert.error_matches(function()
      quantize.file(from, to, { type = "q4_0", progress = function() error "mine" end })
    end, "mine")
    assert.equal("as it was", support.read(to))
  end)

  it("refuses what is wrong", function()
    assert.error_matches(function() quantize.file(from, to, { type = "q9" }) end, "q9")
    assert.error_matches(function() quantize.file(from, to, {}) end, "type")
    local function choosing(pattern, name)
      return function() quantize.file(from, to, { type = "q4_0", tensors = { { pattern, name } } }) end
    end
    assert.error_matches(choosing("[", "f16"), "pattern")
    assert.error_matches(choosing("x", "q0"), "q0")
    local function refused(code, words, ...)
      local result, message, got = quantize.file(...)
      assert.is_nil(result)
      assert.equal(code, got)
      assert.truthy(message:find(words, 1, true), message)
    end
    refused(err.IO, "/nowhere", "/nowhere/in.gguf", to, { type = "q4_0" })
    refused(err.IO, "/nowhere", from, "/nowhere/out.gguf", { type = "q4_0" })
    local broken = support.temporary(build.random({ ["general.architecture"] = "x" }, {
      { name = "a.weight", shape = { 256, 4 }, bytes = ("\0"):rep(256 * 4 * 3) .. string.pack("<f", 0 / 0):rep(256) },
    }))
    finally(function() os.remove(broken) end)
    refused(err.FORMAT, "a.weight", broken, to, { type = "q4_0" })
  end)

  it("leaves the target alone when memory runs out", function()
    finally(function() core.alloc_inject(0) end)
    local gguf <close> = assert(core.open_gguf(FIXTURE))
    local types = {}
    for i in ipairs(gguf:tensors()) do types[i] = "F32" end
    local n, refused, reached = 0, 0, true
    while reached do
      write(to, "as it was")
      n = n + 1
      core.alloc_inject(n)
      local calls = select(2, core.alloc_counts())
      local result, _, code = gguf:quantize(types, to, { threads = 2 })
      reached = select(2, core.alloc_counts()) - calls >= n
      core.alloc_inject(0)
      if not result then
        assert.equal(err.MEMORY, code)
        assert.equal("as it was", support.read(to))
        refused = refused + 1
      end
    end
    assert.is_true(refused > 20)
  end)

  it("is part of the library", function() assert.equal(quantize, kigo.quantize) end)
end)
