describe("kigo.arch", function()
  local core = require "kigo.core"
  local arch = require "kigo.arch"
  local gguf_build = require "spec.gguf_build"
  local FORMAT, UNSUPPORTED = core.err.FORMAT, core.err.UNSUPPORTED

  -- Metadata and tensors of a one-block model of this architecture, to be changed by specs.
  local function one_block(architecture)
    local a = architecture .. "."
    local metadata = {
      ["general.architecture"] = architecture,
      [a .. "context_length"] = 64, [a .. "embedding_length"] = 32, [a .. "block_count"] = 1,
      [a .. "attention.head_count"] = 4, [a .. "attention.head_count_kv"] = 2,
      [a .. "attention.layer_norm_rms_epsilon"] = 1e-5,
    }
    local tensors = {
      { name = "token_embd.weight", shape = { 32, 40 } }, { name = "output_norm.weight", shape = { 32 } },
      { name = "blk.0.attn_norm.weight", shape = { 32 } }, { name = "blk.0.attn_q.weight", shape = { 32, 32 } },
      { name = "blk.0.attn_k.weight", shape = { 32, 16 } }, { name = "blk.0.attn_v.weight", shape = { 32, 16 } },
      { name = "blk.0.attn_output.weight", shape = { 32, 32 } }, { name = "blk.0.ffn_norm.weight", shape = { 32 } },
      { name = "blk.0.ffn_gate.weight", shape = { 32, 48 } }, { name = "blk.0.ffn_up.weight", shape = { 32, 48 } },
      { name = "blk.0.ffn_down.weight", shape = { 48, 32 } },
    }
    return metadata, tensors
  end

  -- Build a one-block model after `change(metadata, tensors)`.
  local function build(architecture, change)
    local metadata, tensors = one_block(architecture)
    if change then change(metadata, tensors) end
    local gguf <close> = assert(core.parse_gguf(gguf_build.random(metadata, tensors), "spec.gguf"))
    return arch.build(gguf)
  end

  local function refused(code, names, architecture, change)
    local plan, message, got = build(architecture, change)
    assert.is_nil(plan)
    assert.equal(code, got)
    assert.equal("spec.gguf: ", message:sub(1, 11))
    for _, name in ipairs(names) do assert.truthy(message:find(name, 1, true), message .. " does not name " .. name) end
  end

  local function find(tensors, name)
    for i, tensor in ipairs(tensors) do
      if tensor.name == name then return i, tensor end
    end
  end

  local function op(plan, name)
    for _, entry in ipairs(plan:ops()) do
      if entry.out == name then return entry end
    end
  end

  describe("build", function()
    it("names every value", function()
      local plan <close> = assert(build "llama")
      assert.same({
        "token_embd", "blk.0.attn_norm", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_q_rope",
        "blk.0.attn_k_rope", "blk.0.attn_out", "blk.0.attn_output", "blk.0.attn_output_residual", "blk.0.ffn_norm",
        "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_act", "blk.0.ffn_down", "blk.0.out", "output_norm", "logits",
      }, plan:value_names())
      assert.same({ vocab_size = 40, tokens = 40, has_head = true, context_length = 64, layers = 1, tail = 8,
        logits = "logits" }, plan:info())
    end)

    it("ties the output to the embedding unless the file has its own", function()
      local tied <close> = assert(build "llama")
      assert.same({ "token_embd.weight" }, op(tied, "logits").weights)
      local own <close> = assert(build("llama", function(_, tensors)
        tensors[#tensors + 1] = { name = "output.weight", shape = { 32, 40 } }
      end))
      assert.same({ "output.weight" }, op(own, "logits").weights)
    end)

    it("adds the biases that stand in the file", function()
      local plan <close> = assert(build("qwen2", function(_, tensors)
        tensors[#tensors + 1] = { name = "blk.0.attn_q.bias", shape = { 32 } }
      end))
      assert.same({ "blk.0.attn_q.weight", "blk.0.attn_q.bias" }, op(plan, "blk.0.attn_q").weights)
      assert.same({ "blk.0.attn_k.weight" }, op(plan, "blk.0.attn_k").weights)
    end)

    it("turns neighbours in llama, halves in qwen2", function()
      local llama <close> = assert(build "llama")
      local qwen2 <close> = assert(build "qwen2")
      assert.equal("pairs", op(llama, "blk.0.attn_q_rope").style)
      assert.equal("halves", op(qwen2, "blk.0.attn_q_rope").style)
    end)

    it("computes rope frequencies from base, linear scaling and factors", function()
      local plan <close> = assert(build("llama", function(metadata, tensors)
        metadata["llama.rope.freq_base"] = 16.0
        metadata["llama.rope.scaling.type"] = "linear"
        metadata["llama.rope.scaling.factor"] = 2.0
        local factors = string.pack("<ffff", 1, 1, 4, 8)
        tensors[#tensors + 1] = { name = "rope_freqs.weight", shape = { 4 }, bytes = factors }
      end))
      assert.same({ 0.5, 0.25, 0.03125, 0.0078125 }, op(plan, "blk.0.attn_k_rope").inverse_freqs)
      local none <close> = assert(build("llama", function(metadata)
        metadata["llama.rope.freq_base"] = 16.0
        metadata["llama.rope.scaling.type"] = "none"
        metadata["llama.rope.scaling.factor"] = 2.0
      end))
      assert.same({ 1, 0.5, 0.25, 0.125 }, op(none, "blk.0.attn_k_rope").inverse_freqs)
      local older <close> = assert(build("llama", function(metadata)
        metadata["llama.rope.freq_base"] = 16.0
        metadata["llama.rope.scale_linear"] = 4.0
      end))
      assert.same({ 0.25, 0.125, 0.0625, 0.03125 }, op(older, "blk.0.attn_k_rope").inverse_freqs)
    end)

    it("has two lists of factors for longrope, and takes both or none", function()
      local function factors(tensors, name, value)
        tensors[#tensors + 1] = { name = ("rope_factors_%s.weight"):format(name), shape = { 4 },
          bytes = string.pack("<ffff", value, value, value, value) }
      end
      local function longrope(metadata, tensors)
        metadata["llama.rope.freq_base"] = 16.0
        metadata["llama.rope.scaling.original_context_length"] = 32
        metadata["llama.rope.scaling.attn_factor"] = 1.5
        factors(tensors, "short", 2)
        factors(tensors, "long", 4)
      end
      for context, divisor in pairs { [32] = 2, [33] = 4 } do
        local metadata, tensors = one_block "llama"
        longrope(metadata, tensors)
        local gguf <close> = assert(core.parse_gguf(gguf_build.random(metadata, tensors), "spec.gguf"))
        local plan <close> = assert(arch.build(gguf, context))
        local rope = op(plan, "blk.0.attn_k_rope")
        assert.same({ 1 / divisor, 0.5 / divisor, 0.25 / divisor, 0.125 / divisor }, rope.inverse_freqs)
        assert.equal(1.5, rope.magnitude)
      end
      for _, name in ipairs { "short", "long" } do
        refused(FORMAT, { "rope_factors_" .. (name == "short" and "long" or "short") .. ".weight" }, "llama",
          function(_, tensors) factors(tensors, name, 2) end)
        refused(FORMAT, { "rope_factors_" .. name .. ".weight" }, "llama", function(_, tensors)
          factors(tensors, "short", name == "short" and 0 / 0 or 1)
          factors(tensors, "long", name == "long" and 0 or 1)
        end)
      end
    end)

    it("passes a sliding window on", function()
      local plan <close> = assert(build("llama", function(metadata) metadata["llama.attention.sliding_window"] = 7 end))
      assert.equal(7, op(plan, "blk.0.attn_out").window)
    end)

    it("names missing and misshaped tensors", function()
      refused(FORMAT, { "blk.0.attn_v.weight" }, "llama", function(_, t)
        table.remove(t, (find(t, "blk.0.attn_v.weight")))
      end)
      refused(FORMAT, { "blk.1.attn_norm.weight" }, "llama", function(m) m["llama.block_count"] = 2 end)
      refused(FORMAT, { "token_embd.weight" }, "llama", function(_, t) table.remove(t, 1) end)
      refused(FORMAT, { "blk.0.attn_q.weight", "[30, 32]" }, "llama", function(_, t)
        select(2, find(t, "blk.0.attn_q.weight")).shape = { 30, 32 }
      end)
      refused(FORMAT, { "blk.0.attn_q" }, "llama", function(_, t)
        select(2, find(t, "blk.0.attn_q.weight")).shape = { 32, 30 }
      end)
      refused(FORMAT, { "blk.0.attn_output_residual" }, "llama", function(_, t)
        select(2, find(t, "blk.0.attn_output.weight")).shape = { 32, 31 }
      end)
      refused(FORMAT, { "blk.0.ffn_up" }, "llama", function(_, t)
        select(2, find(t, "blk.0.ffn_up.weight")).shape = { 32, 47 }
      end)
      refused(FORMAT, { "rope_freqs.weight", "[5]", "[4]" }, "llama", function(_, t)
        t[#t + 1] = { name = "rope_freqs.weight", shape = { 5 } }
      end)
      refused(FORMAT, { "rope_freqs.weight" }, "llama", function(_, t)
        t[#t + 1] = { name = "rope_freqs.weight", shape = { 4 }, bytes = string.pack("<ffff", 1, 1, 0, 1) }
      end)
      refused(FORMAT, { "token_embd.weight" }, "llama", function(_, t)
        t[#t + 1] = { name = "output.weight", shape = { 32, 41 } }
      end)
    end)

    it("refuses a part that some blocks have and others lack, and a head of other rows than the embeddings", function()
      refused(FORMAT, { "tensor blk.1.attn_q.bias", "blk.0.attn_q.bias is" }, "qwen2", function(m, t)
        m["qwen2.block_count"] = 2
        for i = 3, #t do t[#t + 1] = { name = t[i].name:gsub("blk.0", "blk.1"), shape = t[i].shape } end
        t[#t + 1] = { name = "blk.0.attn_q.bias", shape = { 32 } }
      end)
      refused(FORMAT, { "blk.0.attn_norm.bias" }, "gpt2", function(m, t)
        m["gpt2.attention.layer_norm_epsilon"] = 1e-5
        t[#t + 1] = { name = "position_embd.weight", shape = { 32, 64 } }
        t[#t + 1] = { name = "output_norm.bias", shape = { 32 } }
      end)
      refused(FORMAT, { "output.weight", "39", "40" }, "llama", function(_, t)
        t[#t + 1] = { name = "output.weight", shape = { 32, 39 } }
      end)
    end)

    it("refuses tensors that it would leave out", function()
      refused(UNSUPPORTED, { "blk.0.attn_q_norm.weight" }, "llama", function(_, t)
        t[#t + 1] = { name = "blk.0.attn_q_norm.weight", shape = { 8 } }
      end)
    end)
  end)

  describe("hyperparameters", function()
    local cases = {
      { "context_length" }, { "context_length", 0 }, { "context_length", 1 << 25 }, { "context_length", "many" },
      { "context_length", 64.0 }, { "context_length", true },
      { "context_length", { 9, string.pack("<I4I8I4I4", 4, 2, 64, 64) } }, -- an array
      { "context_length", { 10, string.pack("<i8", -1) } }, -- u64 above all integers
      { "embedding_length" }, { "embedding_length", 0 }, { "block_count" }, { "block_count", 0 },
      { "block_count", 1025 }, { "attention.head_count" }, { "attention.head_count", 0 },
      { "attention.head_count_kv", 3 }, { "attention.head_count_kv", 0 }, { "attention.key_length", 0 },
      { "attention.key_length", 65537 }, { "attention.value_length", 4 }, { "attention.layer_norm_rms_epsilon" },
      { "attention.layer_norm_rms_epsilon", -1.0 }, { "attention.layer_norm_rms_epsilon", 0 / 0 },
      { "attention.layer_norm_rms_epsilon", math.huge }, { "rope.dimension_count", 7 }, { "rope.dimension_count", 10 },
      { "rope.freq_base", 0.0 }, { "rope.freq_base", 0 / 0 }, { "rope.scaling.factor", 0.0 },
      { "rope.scaling.type", 5 }, { "expert_used_count", 1 }, { "expert_count", 2000 },
    }
    for _, case in ipairs(cases) do
      local key, value = "llama." .. case[1], case[2]
      it(("refuse %s = %s"):format(key, type(value) == "table" and "another type" or tostring(value)), function()
        refused(FORMAT, { key }, "llama", function(metadata) metadata[key] = value end)
      end)
    end

    it("refuse what is well formed but not supported", function()
      refused(UNSUPPORTED, { "llama.rope.scaling.type", '"su"', "linear, longrope, none, yarn" }, "llama",
        function(metadata) metadata["llama.rope.scaling.type"] = "su" end)
      refused(UNSUPPORTED, { "llama.attention.causal" }, "llama",
        function(metadata) metadata["llama.attention.causal"] = false end)
    end)

    it("refuse what the family would leave out", function()
      for key, value in pairs { ["attention.clamp_kqv"] = 8.0, logit_scale = 0.5, attn_logit_softcapping = 50.0,
        residual_scale = "much" } do
        refused(UNSUPPORTED, { "llama." .. key }, "llama", function(metadata) metadata["llama." .. key] = value end)
      end
      local plan <close> = assert(build("llama", function(metadata)
        metadata["llama.attention.clamp_kqv"] = 0.0
        metadata["llama.logit_scale"] = 1.0
      end))
      assert.truthy(plan)
    end)

    it("stand in relation to each other", function()
      refused(FORMAT, { "llama.expert_used_count = 0", "expert_count = 5" }, "llama",
        function(metadata) metadata["llama.expert_count"] = 5 end)
    end)

    it("quote strings of the file", function()
      refused(UNSUPPORTED, { '"\\x0a\\x22"' }, "llama",
        function(metadata) metadata["llama.rope.scaling.type"] = '\n"' end)
    end)
  end)

  it("loads or refuses files with flipped bytes, and what loads can run", function()
    local metadata, tensors = one_block("llama")
    local whole = gguf_build.random(metadata, tensors)
    local header, n_loaded = #whole, 0 -- bytes before the data: the shapes above need no padding
    for _, tensor in ipairs(tensors) do header = header - 4 * tensor.shape[1] * (tensor.shape[2] or 1) end
    for i = 1, 1500 do
      local at = math.floor(core.uniform(1, i, 0) * header) + 1
      local byte = math.floor(core.uniform(1, i, 1) * 256)
      local bytes = whole:sub(1, at - 1) .. string.char(byte) .. whole:sub(at + 1)
      local gguf, message = core.parse_gguf(bytes, "spec")
      local plan
      if gguf then plan, message = arch.build(gguf) end
      if plan then
        n_loaded = n_loaded + 1
        local model <close> = assert(core.model(plan, { device = "reference" }))
        local _ <close> = assert(model:logits { 1, 2, 3, 4 })
      end
      assert.truthy(plan or #message > 10)
      if gguf then gguf:close() end
    end
    assert.truthy(n_loaded > 0)
  end)

  describe("architectures", function()
    it("that are unknown: the error says where to find the known ones and where to add one", function()
      refused(UNSUPPORTED, { '"mamba"', "kigo arch", "lua/kigo/arch/mamba.lua" }, "mamba")
      for _, name in ipairs { "baichuan", "bloom", "mpt", "jina-bert-v2" } do -- who bias scores by distance
        refused(UNSUPPORTED, { name }, name)
      end
      refused(UNSUPPORTED, { '"qwen33"', "(qwen3 is nearest)", "engine/README.md" }, "qwen33")
      refused(UNSUPPORTED, { '"init"' }, "init")
      refused(UNSUPPORTED, { '"a.b"' }, "a.b")
    end)

    it("must have a plain name", function()
      for _, name in ipairs { "../llama", "", "LLaMA", "llama\n", ("x"):rep(65), 5, true } do
        refused(FORMAT, { "general.architecture" }, "llama", function(m) m["general.architecture"] = name end)
      end
      refused(FORMAT, { "general.architecture" }, "llama", function(m) m["general.architecture"] = nil end)
    end)

    it("of files that are no models are not asked for", function()
      for _, kind in ipairs { "adapter", "mmproj" } do
        refused(UNSUPPORTED, { "general.type is " .. kind }, "llama", function(m) m["general.type"] = kind end)
      end
      local plan <close> = assert(build("llama", function(m) m["general.type"] = "model" end))
      assert.truthy(plan)
    end)

    it("can be added by a script, with hyperparameters of their own", function()
      local seen
      arch.families.mine = arch.family("mine", {
        rows = { { key = "depth", name = "depth", type = "integer", min = 1, max = 3 } },
      }, function(g, hp)
        seen = hp.depth
        return g:logits(g:softcap(g:scale(g:embed("token_embd"), 2), 30), "token_embd")
      end)
      finally(function() arch.families.mine = nil end)
      local function only_embedding(metadata, tensors)
        for i = #tensors, 2, -1 do tensors[i] = nil end
        metadata["mine.depth"] = 3
      end
      local plan <close> = assert(build("mine", only_embedding))
      assert.equal(3, seen)
      assert.same({ "token_embd", "token_embd_scaled", "token_embd_scaled_capped", "logits" }, plan:value_names())
      refused(FORMAT, { "mine.depth = 4" }, "mine", function(metadata, tensors)
        only_embedding(metadata, tensors)
        metadata["mine.depth"] = 4
      end)
    end)

    it("raise mistakes of the family's function with a traceback", function()
      finally(function() arch.families.mine = nil end)
      local function fails(text, declare)
        arch.families.mine = arch.family("mine", declare)
        local ok, message = pcall(build, "mine")
        assert.is_false(ok)
        assert.truthy(message:find(text, 1, true), message)
        assert.truthy(message:find("arch_spec.lua", 1, true), message)
      end
      fails("oops", function() error("oops") end)
      fails("returned no value", function() end)
      fails("kigo.Value expected", function(g) return g:linear(5, "token_embd") end)
      fails("kigo.Value expected", function(g) return g:embed("token_embd") + 1 end)
      fails("is taken", function(g) return g:embed("token_embd"), g:embed("token_embd") end)
    end)

    it("say of every parameter what it is where a file does not say it", function()
      local hyperparameters = require "kigo.hyperparameters"
      for _, name in ipairs(arch.names()) do
        for _, row in ipairs(hyperparameters.merged(assert(arch.named(name)).rows)) do
          local is_plain = type(row.default) ~= "function" and type(row.default) ~= "table"
          assert.is_true(is_plain or type(row.default_text) == "string", name .. "." .. row.key)
        end
      end
    end)

    it("must be declared with a name and a function", function()
      assert.has_error(function() arch.family(5, print) end)
      assert.has_error(function() arch.family("x", {}) end)
    end)
  end)
end)
